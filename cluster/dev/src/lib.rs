//! Development only: the firmware launcher and the demo provider. Nothing here runs in production.
#![forbid(unsafe_code)]

pub mod bench;
pub mod firmware;
pub mod mesh;
pub mod provider;
