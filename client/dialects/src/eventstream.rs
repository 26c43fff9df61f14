//! `application/vnd.amazon.eventstream`: frames of length, headers, payload and two CRC-32.
//! <https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html>,
//! <https://smithy.io/2.0/aws/amazon-eventstream.html>
//!
//! ```text
//! total length u32 | headers length u32 | CRC-32 of those 8 | headers | payload | CRC-32 of all before
//! header: name length u8 | name | type u8 | value (type 7, string: length u16 | bytes)
//! ```
//! All numbers are big endian; the CRC is that of IEEE 802.3.
use crate::error::DialectError;
use crate::limits::EVENT_BYTES_MAX;

/// Lengths and their CRC.
const PRELUDE: usize = 12;
/// The shortest frame: no headers, no payload.
const FRAME_MIN: usize = PRELUDE + 4;
/// The protocol's bound on headers.
const HEADERS_MAX: usize = 128 * 1024;

/// One frame.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Frame {
    /// `:message-type`: `event`, `exception` or `error`.
    pub(crate) message_type: String,
    /// `:event-type`, `:exception-type` or `:error-code`.
    pub(crate) kind: String,
    /// `:error-message`.
    pub(crate) error_message: String,
    pub(crate) payload: Vec<u8>,
}

/// Frames out of bytes, cut anywhere.
#[derive(Default)]
pub(crate) struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    pub(crate) fn feed(&mut self, bytes: &[u8], out: &mut Vec<Frame>) -> Result<(), DialectError> {
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            let rest = self.pending.get(done..).unwrap_or_default();
            let Some(total) = frame_len(rest)? else { break };
            let Some(frame) = rest.get(..total) else { break };
            out.push(read(frame)?);
            done += total;
        }
        self.pending.drain(..done);
        Ok(())
    }

    /// Whether no frame is begun.
    pub(crate) fn is_border(&self) -> bool {
        self.pending.is_empty()
    }

    /// The stream is over: nothing may be left.
    pub(crate) fn finish(&self) -> Result<(), DialectError> {
        if self.pending.is_empty() { Ok(()) } else { Err(DialectError::Truncated) }
    }
}

fn damaged(what: &'static str) -> DialectError {
    DialectError::DamagedFrame { what }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

/// The length of the frame that starts here, checked as soon as its prelude is there.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, DialectError> {
    let (Some(total), Some(headers), Some(crc)) = (be32(bytes, 0), be32(bytes, 4), be32(bytes, 8)) else {
        return Ok(None);
    };
    if crc != crc32(bytes.get(..8).unwrap_or_default()) {
        return Err(damaged("prelude checksum"));
    }
    let (total, headers) = (total as usize, headers as usize);
    if total > EVENT_BYTES_MAX {
        return Err(DialectError::TooLarge { what: "an event", max: EVENT_BYTES_MAX }.in_answer());
    }
    if total < FRAME_MIN || headers > HEADERS_MAX || headers > total - FRAME_MIN {
        return Err(damaged("lengths"));
    }
    Ok(Some(total))
}

fn read(frame: &[u8]) -> Result<Frame, DialectError> {
    let (body, crc) = frame.split_at_checked(frame.len() - 4).ok_or_else(|| damaged("lengths"))?;
    if be32(crc, 0) != Some(crc32(body)) {
        return Err(damaged("message checksum"));
    }
    let headers = be32(body, 4).ok_or_else(|| damaged("lengths"))? as usize;
    let (mut headers, payload) = body
        .get(PRELUDE..)
        .and_then(|rest| rest.split_at_checked(headers))
        .ok_or_else(|| damaged("lengths"))?;
    let mut out = Frame { payload: payload.to_vec(), ..Frame::default() };
    while !headers.is_empty() {
        let (name, value, rest) = header(headers).ok_or_else(|| damaged("headers"))?;
        match (name, value) {
            (b":message-type", Some(value)) => out.message_type = value,
            (b":event-type" | b":exception-type" | b":error-code", Some(value)) => out.kind = value,
            (b":error-message", Some(value)) => out.error_message = value,
            _ => {}
        }
        headers = rest;
    }
    Ok(out)
}

/// Name, value if it is a string, and what follows.
fn header(bytes: &[u8]) -> Option<(&[u8], Option<String>, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (kind, rest) = rest.split_first()?;
    let fixed = match kind {
        0 | 1 => 0,
        2 => 1,
        3 => 2,
        4 => 4,
        5 | 8 => 8,
        9 => 16,
        6 | 7 => {
            let (len, rest) = rest.split_at_checked(2)?;
            let len = usize::from(u16::from_be_bytes(len.try_into().ok()?));
            let (value, rest) = rest.split_at_checked(len)?;
            let text = if *kind == 7 { Some(String::from_utf8(value.to_vec()).ok()?) } else { None };
            return Some((name, text, rest));
        }
        _ => return None,
    };
    Some((name, None, rest.split_at_checked(fixed)?.1))
}

/// Writes a frame of JSON. `headers` are string headers of fewer than 256 bytes each.
pub(crate) fn write(out: &mut Vec<u8>, headers: &[(&str, &str)], payload: &str) {
    let mut head = Vec::new();
    for (name, value) in headers {
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            continue;
        };
        head.push(name_len);
        head.extend_from_slice(name.as_bytes());
        head.push(7);
        head.extend_from_slice(&value_len.to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let total = FRAME_MIN + head.len() + payload.len();
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(total);
    frame.extend_from_slice(&len(total));
    frame.extend_from_slice(&len(head.len()));
    frame.extend_from_slice(&crc32(&frame).to_be_bytes());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(payload.as_bytes());
    frame.extend_from_slice(&crc32(&frame).to_be_bytes());
    out.extend_from_slice(&frame);
}

/// Writes an event as Bedrock does.
pub(crate) fn write_event(out: &mut Vec<u8>, kind: &str, payload: &str) {
    let headers = [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")];
    write(out, &headers, payload);
}

/// Writes an exception as Bedrock does.
pub(crate) fn write_exception(out: &mut Vec<u8>, kind: &str, payload: &str) {
    let headers =
        [(":exception-type", kind), (":content-type", "application/json"), (":message-type", "exception")];
    write(out, &headers, payload);
}

/// CRC-32 of IEEE 802.3, reflected, a byte at a time: frames are small, a dependency is not worth it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let at = usize::from(crc.to_le_bytes()[0] ^ byte);
        CRC_TABLE.get(at).copied().unwrap_or_default() ^ (crc >> 8)
    };
    !bytes.iter().fold(!0, step)
}

static CRC_TABLE: [u32; 256] = crc_table();

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time, index below 256")]
const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_check_value() {
        // the check value of CRC-32/ISO-HDLC
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn empty_message_of_the_specification() {
        // smithy's test vector "empty_message"
        let frame = [0, 0, 0, 16, 0, 0, 0, 0, 0x05, 0xc2, 0x48, 0xeb, 0x7d, 0x98, 0xc8, 0xff];
        let mut out = Vec::new();
        Frames::default().feed(&frame, &mut out).unwrap();
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn any_cut() {
        let mut stream = Vec::new();
        write_event(&mut stream, "messageStart", r#"{"role":"assistant"}"#);
        write_exception(&mut stream, "throttlingException", r#"{"message":"slow"}"#);
        for cut in 0..stream.len() {
            let (mut frames, mut out) = (Frames::default(), Vec::new());
            frames.feed(&stream[..cut], &mut out).unwrap();
            assert_eq!(frames.finish().is_ok(), cut == 0 || out.len() == 1 && frames.pending.is_empty());
            frames.feed(&stream[cut..], &mut out).unwrap();
            frames.finish().unwrap();
            assert_eq!(out.len(), 2);
            assert_eq!((out[0].message_type.as_str(), out[0].kind.as_str()), ("event", "messageStart"));
            assert_eq!(out[1].payload, br#"{"message":"slow"}"#);
        }
    }

    #[test]
    fn one_flipped_bit_is_damage() {
        let mut stream = Vec::new();
        write_event(&mut stream, "messageStart", "{}");
        for bit in 0..stream.len() * 8 {
            let mut bent = stream.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let error = Frames::default().feed(&bent, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, DialectError::DamagedFrame { .. }), "{bit}: {error}");
        }
    }
}
