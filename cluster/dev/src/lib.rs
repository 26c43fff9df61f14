//! Development only: the firmware launcher, the demo provider, meshes on one machine, the search for keys in them. Nothing
//! here runs in production.
#![forbid(unsafe_code)]

pub mod bench;
pub mod firmware;
pub mod mesh;
pub mod provider;
pub mod scan;
