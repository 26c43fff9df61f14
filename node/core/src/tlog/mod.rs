//! The transparency log: an RFC 6962 Merkle tree in C2SP clothes. Pure: bytes in, bytes or a typed refusal out.
//!
//! | module | text it implements |
//! |---|---|
//! | [`hash`] | RFC 6962 §2.1, Merkle Tree Hash |
//! | [`frontier`] | the right edge of that tree (a "compact range"), enough to append and to know the root |
//! | [`proof`] | RFC 6962 §2.1.1 and §2.1.2 to make proofs, RFC 9162 §2.1.3.2 and §2.1.4.2 to verify them |
//! | [`tile`] | C2SP tlog-tiles: paths, hash tiles, entry bundles |
//! | [`note`] | C2SP signed-note: notes, signature lines, verifier keys |
//! | [`checkpoint`] | C2SP tlog-checkpoint: the body of the note |
//! | [`cosignature`] | C2SP tlog-cosignature, Ed25519 (type 0x04) |
//!
//! What is proved survives any adversary that cannot break SHA-256 or Ed25519: a proof that verifies is true of the root
//! it was verified against. Which root to believe (a quorum of cosignatures, by whom, attested when) is decided elsewhere.
//! Not here: ML-DSA cosignatures (0x06), pruning, witnesses.

pub mod checkpoint;
pub mod cosignature;
pub mod frontier;
pub mod hash;
pub mod note;
pub mod proof;
pub mod tile;

pub use checkpoint::{Checkpoint, CheckpointError, Origin};
pub use cosignature::{Cosignature, CosignatureError, cosigned_bytes};
pub use frontier::Frontier;
pub use hash::{EMPTY_ROOT, Hash, LeafIndex, TreeSize, leaf_hash, node_hash, sha256, tree_root};
pub use note::{KeyId, KeyKind, KeyName, Note, NoteError, NoteSignature, VerifierKey};
pub use proof::{
    ConsistencyProof, InclusionProof, NodeReader, ProofError, ProveError, prove_consistency, prove_inclusion,
    root_at, verify_consistency, verify_inclusion,
};
pub use tile::{
    BUNDLE_BYTES_MAX, FULL_TILE_BYTES, LEVEL_MAX, MAX_LEAF_BYTES, TILE_HEIGHT, TILE_WIDTH, TileError,
    TileKind, TilePath, decode_bundle, decode_tile, encode_bundle, encode_tile,
};

#[cfg(test)]
pub(crate) mod testing;
