//! How one entry and one pointer look on disk.
//!
//! `version (1) | first 8 bytes of SHA-256(body) | body`, where body is postcard. Frames are checked when a log is opened;
//! the checksum here finds a flipped bit on every later read. It protects from accidents, not from someone who
//! writes to the disk.

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::LogStoreError;
use crate::raft::types::{Entry, LogId};

/// The only version so far. A new one keeps reading this one.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

/// Encodes anything stored as a value.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, LogStoreError> {
    let body = postcard::to_stdvec(value).map_err(|source| LogStoreError::Encoding { source })?;
    let mut record = Vec::with_capacity(1 + CHECKSUM_BYTES + body.len());
    record.push(VERSION);
    record.extend_from_slice(&checksum(&body));
    record.extend_from_slice(&body);
    Ok(record)
}

/// Decodes a value; all bytes must be used.
pub(super) fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, &'static str> {
    let (version, rest) = record.split_first().ok_or("it is empty")?;
    if *version != VERSION {
        return Err("its version is unknown");
    }
    let (sum, body) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or("it is cut short")?;
    if *sum != checksum(body) {
        return Err("its checksum does not match");
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err("bytes follow it"),
        Err(_) => Err("it does not decode"),
    }
}

/// Decodes the entry stored under `index`.
pub(super) fn decode_entry(index: u64, record: &[u8]) -> Result<Entry, LogStoreError> {
    let entry: Entry = decode(record).map_err(|what| LogStoreError::CorruptEntry { index, what })?;
    match entry.log_id.index == index {
        true => Ok(entry),
        false => Err(LogStoreError::CorruptEntry { index, what: "it holds another index" }),
    }
}

/// The log id of a stored entry: what its encoding begins with. Whoever calls has checked the bytes already.
pub(super) fn log_id(record: &[u8]) -> Result<LogId, &'static str> {
    let (version, rest) = record.split_first().ok_or("an entry is empty")?;
    if *version != VERSION {
        return Err("an entry's version is unknown");
    }
    let body = rest.get(CHECKSUM_BYTES..).ok_or("an entry is cut short")?;
    postcard::take_from_bytes(body).map(|(log_id, _)| log_id).map_err(|_| "an entry does not decode")
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    for (to, from) in sum.iter_mut().zip(digest(&SHA256, body).as_ref()) {
        *to = *from;
    }
    sum
}

#[cfg(test)]
mod tests {
    use openraft::testing::{blank_ent, membership_ent};

    use super::*;
    use crate::raft::types::{Batch, TypeConfig};

    fn entry(index: u64, payload: &[u8]) -> Entry {
        let mut entry = blank_ent::<TypeConfig>(3, 2, index);
        entry.payload = openraft::EntryPayload::Normal(Batch::new(payload.to_vec()).unwrap());
        entry
    }

    /// Bytes of version 1, kept for ever: every later build must read them.
    #[test]
    fn version_one_stays_readable() {
        let golden = "01a5e05212eaa98b1f03020501036f6e65";
        let record = hex::decode(golden).unwrap();
        assert_eq!(decode_entry(5, &record).unwrap(), entry(5, b"one"));
        assert_eq!(hex::encode(encode(&entry(5, b"one")).unwrap()), golden);
    }

    #[test]
    fn every_payload_survives() {
        let members = [1, 2, 3].into_iter().collect();
        for entry in [entry(9, &[1; 512]), blank_ent(1, 1, 9), membership_ent(1, 1, 9, vec![members])] {
            let record = encode(&entry).unwrap();
            assert_eq!(log_id(&record).unwrap(), entry.log_id);
            assert_eq!(decode_entry(9, &record).unwrap(), entry);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let record = encode(&entry(5, b"some command")).unwrap();
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(decode_entry(5, &bad), Err(LogStoreError::CorruptEntry { index: 5, .. })),
                "bit {bit}"
            );
        }
        for len in 0..record.len() {
            assert!(decode_entry(5, &record[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn an_entry_under_another_index_is_refused() {
        let record = encode(&entry(5, b"some command")).unwrap();
        assert!(matches!(
            decode_entry(6, &record),
            Err(LogStoreError::CorruptEntry { index: 6, what: "it holds another index" })
        ));
    }

    #[test]
    fn bytes_after_a_record_are_refused() {
        let mut body = postcard::to_stdvec(&entry(5, b"x")).unwrap();
        body.push(0);
        let mut record = vec![VERSION];
        record.extend_from_slice(&checksum(&body));
        record.extend_from_slice(&body);
        assert!(matches!(
            decode_entry(5, &record),
            Err(LogStoreError::CorruptEntry { index: 5, what: "bytes follow it" })
        ));
    }
}
