//! The quorate client: applications speak to LLM providers through the mesh, and believe nothing that is not proven.
//!
//! ```no_run
//! # async fn run() -> Result<(), quorate_client::Error> {
//! use quorate_client::{Chat, Client, TrustFile};
//! let trust = TrustFile::load("trust.toml".as_ref())?;
//! let client = Client::connect(trust).await?;
//! let answer = client.chat(&Chat::new("demo-chat", "hello")).await?;
//! println!("{}", answer.text);
//! let receipt = client.receipt(answer.provenance.request).await?;
//! # drop(receipt); Ok(()) }
//! ```
//!
//! **Keys**: the application never has one. On a route with a credential the request goes out around a hole that relay and keyer
//! fill together; a request that brings a key of its own is refused ([`Error::CredentialHeader`]).
//!
//! **Decides**: which nodes to believe (those proven attested by the log, against the genesis digest of the
//! [`TrustFile`]), which of them carry a request, and whether the provider is the route's: this crate makes the TLS
//! connection to the provider itself and verifies its certificate. **Refuses**: a directory that is stale, rolled back or
//! forked; a provider without TLS 1.3 and TLS_CHACHA20_POLY1305_SHA256; answers that are cut off. **Leaves to the
//! caller**: what to ask, and whether a request may be repeated ([`Request::idempotent`]).
#![forbid(unsafe_code)]

mod answer;
pub mod cli;
mod client;
mod directory;
mod error;
pub mod http1;
mod known_chains;
mod openai;
mod pool;
mod request;
mod response;
mod route;
mod send;
mod shun;
#[cfg(test)]
mod tests;
mod trust;
mod usage;
mod wire;

pub use answer::is_own_error_form;
pub use client::{Client, settlements, status_of_any};
pub use directory::Directory;
pub use error::{Darkness, Error, Fault, MeshRefusal, NodeFailure, Retry, chain};
pub use openai::{Chat, ChatAnswer, ChatStream, Message};
pub use pool::PoolOptions;
pub use request::{Attempted, Method, Request, Target, Trail};
pub use response::{Authorised, Provenance, Response, ResponseBody, Timings};
pub use route::head_template;
pub use send::DangerDirect;
pub use trust::{ClientKey, FRESHNESS_MS, TrustError, TrustFile, generate_client_key};
