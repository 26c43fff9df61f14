//! The types that Raft is instantiated with.

use std::fmt;
use std::io::Cursor;

use bytes::Bytes;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

openraft::declare_raft_types!(
    /// Raft as this daemon runs it: opaque batches in, a tree size out, addresses kept elsewhere.
    pub TypeConfig:
        D            = Batch,
        R            = Applied,
        NodeId       = u64,
        Node         = openraft::EmptyNode,
        Entry        = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        Responder    = openraft::impls::OneshotResponder<TypeConfig>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// A Raft node's number, as policy assigns it.
pub type RaftNodeId = u64;
/// The Raft handle.
pub type Raft = openraft::Raft<TypeConfig>;
/// A Raft log entry.
pub type Entry = openraft::Entry<TypeConfig>;
/// A term and leader with an index.
pub type LogId = openraft::LogId<RaftNodeId>;
/// A term with its candidate or leader.
pub type Vote = openraft::Vote<RaftNodeId>;
/// The members of Raft.
pub type Membership = openraft::Membership<RaftNodeId, openraft::EmptyNode>;
/// A membership with the log id that set it.
pub type StoredMembership = openraft::StoredMembership<RaftNodeId, openraft::EmptyNode>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<RaftNodeId, openraft::EmptyNode>;
/// A snapshot with its content.
pub type Snapshot = openraft::Snapshot<TypeConfig>;
/// What storage reports to Raft; any of them stops Raft on this node.
pub type StorageError = openraft::StorageError<RaftNodeId>;

/// An encoded batch of commands: one entry of the log. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Batch(Bytes);

impl Batch {
    /// The longest batch. A batch travels in one message to each peer and is fsynced as a whole, so
    /// this bounds both; commands carry no blobs, only their digests.
    pub const BYTES_MAX: usize = 4 << 20;

    /// Takes encoded commands.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, BatchTooLarge> {
        let bytes = bytes.into();
        match bytes.len() <= Self::BYTES_MAX {
            true => Ok(Self(bytes)),
            false => Err(BatchTooLarge { got: bytes.len() }),
        }
    }

    /// The encoded commands.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The length of the encoding.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Length only: a trace line never shows commands.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.0.len())
    }
}

/// A batch longer than [`Batch::BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a batch of {got} bytes exceeds the {} that one entry may hold", Batch::BYTES_MAX)]
pub struct BatchTooLarge {
    /// The length offered.
    pub got: usize,
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BatchVisitor)
    }
}

struct BatchVisitor;

impl<'de> Visitor<'de> for BatchVisitor {
    type Value = Batch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} bytes", Batch::BYTES_MAX)
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Batch, E> {
        // the bound comes before the copy
        match bytes.len() <= Batch::BYTES_MAX {
            true => Ok(Batch(Bytes::copy_from_slice(bytes))),
            false => Err(E::custom(BatchTooLarge { got: bytes.len() })),
        }
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Batch, E> {
        Batch::new(bytes).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Batch, A::Error> {
        // formats without a byte string (JSON in tests and tools); the hint is not trusted
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element::<u8>()? {
            if bytes.len() == Batch::BYTES_MAX {
                return Err(A::Error::custom(BatchTooLarge { got: bytes.len() + 1 }));
            }
            bytes.push(byte);
        }
        Ok(Batch(bytes.into()))
    }
}

/// What applying an entry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The transparency log's size after the entry.
    pub tree_size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_its_encodings() {
        let batch = Batch::new(vec![7u8; 300]).unwrap();
        let encoded = postcard::to_stdvec(&batch).unwrap();
        assert_eq!(encoded.len(), 302, "a two byte length, then the bytes");
        assert_eq!(postcard::from_bytes::<Batch>(&encoded).unwrap(), batch);
        let json = serde_json::to_string(&batch).unwrap();
        assert_eq!(serde_json::from_str::<Batch>(&json).unwrap(), batch);
    }

    #[test]
    fn a_batch_over_the_bound_is_refused_everywhere() {
        let long = vec![0u8; Batch::BYTES_MAX + 1];
        assert_eq!(Batch::new(long.clone()), Err(BatchTooLarge { got: Batch::BYTES_MAX + 1 }));
        assert!(Batch::new(long[1..].to_vec()).is_ok());

        let encoded = postcard::to_stdvec(&Batch(long.into())).unwrap();
        assert!(postcard::from_bytes::<Batch>(&encoded).is_err());
    }

    #[test]
    fn a_batch_never_prints_its_content() {
        let batch = Batch::new(&b"secret"[..]).unwrap();
        assert_eq!(format!("{batch:?}"), "Batch(6 bytes)");
    }
}
