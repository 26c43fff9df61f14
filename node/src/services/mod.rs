//! The node's gRPC services: size checks, identities, and the mapping from what we know to what a caller sees.
pub mod gate;
pub mod mesh;
pub mod peer;
pub(crate) mod rate;
pub mod status;
mod usage;
