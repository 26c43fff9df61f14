//! The bytes of a segment: a header, then frames. Format version 2 (version 1 was a database file).
//!
//! ```text
//! segment: "qrm-rlog" | version u32 | 0 u32 | salt (16) | segment u64 | 0 ... | sum (8)           512 bytes
//! frame:   length u32 | 0 u32 | sequence u64 | sum of the body (8) | sum of this header (8) | body
//! ```
//!
//! Integers are little endian; a sum is the first 8 bytes of SHA-256. The header's sum covers salt, segment and
//! offset as well, so no frame is taken for one at another place or of a file's earlier life. The salt is
//! random and stays on this disk: commands come from strangers, who must not be able to write bytes that look
//! like a frame. Frames begin at multiples of 8; a body is padded, and its sum covers the padding.
//!
//! The header has a sum of its own so that it speaks even if its body is damaged: a frame is written only
//! after the one before was synced, so any header of a later sequence proves that.

use aws_lc_rs::digest::{Context, SHA256};

use super::LogStoreError;

/// The version of this layout.
pub(super) const FORMAT_VERSION: u32 = 2;
/// Where the first frame is: one sector, never written again once the segment is in use.
pub(super) const SEGMENT_HEADER_BYTES: usize = 512;
/// What a frame takes beside its body.
pub(super) const FRAME_HEADER_BYTES: usize = 32;
/// What the position and length of a frame are multiples of.
pub(super) const ALIGN: usize = 8;
/// The longest segment file. The writer stays far below; opening reads no more than this into memory.
pub(super) const SEGMENT_BYTES_MAX: usize = 1 << 30;

const MAGIC: &[u8; 8] = b"qrm-rlog";
const SUM_BYTES: usize = 8;

type Sum = [u8; SUM_BYTES];

/// What all frames of one log are summed with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt(pub(super) [u8; 16]);

fn sum(parts: &[&[u8]]) -> Sum {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut sum = [0; SUM_BYTES];
    for (to, from) in sum.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    sum
}

/// The header of a segment.
pub(super) fn segment_header(salt: Salt, segment: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&salt.0);
    header.extend_from_slice(&segment.to_le_bytes());
    header.resize(SEGMENT_HEADER_BYTES - SUM_BYTES, 0);
    let sum = sum(&[&header]);
    header.extend_from_slice(&sum);
    header
}

/// Reads the header of the segment that the file's name promises.
pub(super) fn read_segment_header(segment: u64, bytes: &[u8]) -> Result<Salt, LogStoreError> {
    let damaged = |what| LogStoreError::Damaged { segment, offset: 0, what };
    let mut fields = Fields(bytes);
    if fields.take::<8>() != Some(*MAGIC) {
        return Err(LogStoreError::UnknownFormat { got: None });
    }
    let version = fields.u32().ok_or_else(|| damaged("its header is cut short"))?;
    if version != FORMAT_VERSION {
        return Err(LogStoreError::UnknownFormat { got: Some(version) });
    }
    let (_, salt, found) = (fields.take::<4>(), fields.take::<16>(), fields.u64());
    let header = bytes.first_chunk::<SEGMENT_HEADER_BYTES>();
    let whole = header.and_then(|header| header.split_last_chunk::<SUM_BYTES>());
    let (Some(salt), Some((head, got))) = (salt, whole) else {
        return Err(damaged("its header is cut short"));
    };
    if *got != sum(&[head]) {
        return Err(damaged("its header's checksum does not match"));
    }
    match found == Some(segment) {
        true => Ok(Salt(salt)),
        false => Err(damaged("it is another segment")),
    }
}

/// Where a frame is or will be.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub(super) salt: Salt,
    pub(super) segment: u64,
}

impl Spot {
    fn header_sum(&self, offset: u64, fields: &[u8]) -> Sum {
        sum(&[&self.salt.0, &self.segment.to_le_bytes(), &offset.to_le_bytes(), fields])
    }

    fn body_sum(&self, body: &[u8]) -> Sum {
        sum(&[&self.salt.0, body])
    }

    /// Writes the header of a frame into the room left for it before its body.
    pub(super) fn seal(&self, frame: &mut [u8], offset: u64, sequence: u64) -> Result<(), LogStoreError> {
        let bytes = frame.len();
        let too_long = || LogStoreError::WriteTooLong { bytes };
        let (header, body) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>().ok_or_else(too_long)?;
        let length = u32::try_from(body.len()).map_err(|_| too_long())?;
        let mut fields = Vec::with_capacity(FRAME_HEADER_BYTES);
        fields.extend_from_slice(&length.to_le_bytes());
        fields.extend_from_slice(&[0; 4]);
        fields.extend_from_slice(&sequence.to_le_bytes());
        fields.extend_from_slice(&self.body_sum(body));
        let sum = self.header_sum(offset, &fields);
        fields.extend_from_slice(&sum);
        header.copy_from_slice(&fields);
        Ok(())
    }

    /// The header at this place, if a valid one of at least this sequence is there.
    fn header<'a>(&self, bytes: &'a [u8], offset: usize, at_least: u64) -> Option<Header<'a>> {
        let (header, rest) = bytes.get(offset..)?.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let mut fields = Fields(header);
        let (length, _, sequence) = (fields.u32()?, fields.u32()?, fields.u64()?);
        // first what costs nothing: most places hold no header
        if sequence < at_least {
            return None;
        }
        let (body_sum, header_sum) = (fields.take::<SUM_BYTES>()?, fields.take::<SUM_BYTES>()?);
        let (fields, _) = header.split_last_chunk::<SUM_BYTES>()?;
        if header_sum != self.header_sum(u64::try_from(offset).ok()?, fields) {
            return None;
        }
        Some(Header { length: usize::try_from(length).ok()?, sequence, body_sum, rest })
    }

    /// The sequence and body of the frame at this place, if a whole one of at least this sequence is there.
    pub(super) fn read<'a>(&self, bytes: &'a [u8], offset: usize, at_least: u64) -> Option<(u64, &'a [u8])> {
        let header = self.header(bytes, offset, at_least)?;
        let body = header.rest.get(..header.length)?;
        (header.body_sum == self.body_sum(body)).then_some((header.sequence, body))
    }

    /// The first place from `offset` on that holds the header of a frame of at least this sequence.
    pub(super) fn find(&self, bytes: &[u8], offset: usize, at_least: u64) -> Option<usize> {
        (offset..bytes.len()).step_by(ALIGN).find(|at| self.header(bytes, *at, at_least).is_some())
    }
}

struct Header<'a> {
    length: usize,
    sequence: u64,
    body_sum: Sum,
    rest: &'a [u8],
}

/// Takes integers from the front.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }
}
