//! Development only: the firmware launcher, the demo provider, meshes on one machine, the search for keys in them, what
//! measures them and wears them out. Nothing here runs in production.
#![forbid(unsafe_code)]

pub mod bench;
pub mod firmware;
pub mod mesh;
pub mod provider;
pub mod scan;
pub mod soak;
