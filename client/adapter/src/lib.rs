//! `quorate serve`: an HTTP process beside the application, in its trust domain, that speaks the APIs applications speak already and
//! the mesh's protocol to the nodes.
//!
//! ```text
//! endpoints   path and headers in, an operation out       api, gate, guards, [`quorate_dialects`]
//! routing     a model to targets in an order               config, routing, health
//! attempt     one target after the other, or two at once   attempt, upstream
//! answer      what comes back, as it arrives               answer, errors, cache, receipts
//! ```
//!
//! **Decides**: which route a request takes, in which order others follow, when to give up. **Assumes**: the trust file, and that
//! whoever reaches its socket may use the client key (hence loopback, or tokens). **Refuses**: what it cannot carry over whole;
//! nothing is dropped in silence except the application's own API key, which the mesh supplies. **Leaves** to
//! [`quorate_client`] everything that makes the mesh trustworthy: this crate holds no proof of its own.
//!
//! Prompts and answers pass through memory and nowhere else: no trace line, metric or error of this crate has room for them.
#![forbid(unsafe_code)]

mod answer;
mod api;
mod attempt;
mod cache;
pub mod config;
mod endpoints;
mod errors;
mod gate;
mod guards;
mod health;
mod metrics;
mod receipts;
mod routing;
pub mod serve;
mod server;
mod socket;
#[cfg(test)]
mod testing;
mod trace;
mod upstream;

pub use cache::CacheError;
pub use gate::{Gate, TokenError};
pub use server::Server;
pub use upstream::{Answer, Body, Mesh, Route, Routes, Upstream};
