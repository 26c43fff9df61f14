//! Wire dialects of model providers, and translation between them, as pure functions: bytes in, bytes out. No IO, no
//! clock, no randomness; ids and time are arguments.
//!
//! A [`Call`] is what a caller asked for. [`Call::for_route`] says it in the dialect of a route; an
//! [`AnswerTranslator`] says the route's answer in the caller's dialect again, whole or streamed, and reads usage, finish
//! reason and errors from it on the way. [`errors`] and [`headers`] do the same for failures and rate limits.
//!
//! Rules:
//! - Where the caller's operation and the route's dialect agree, bytes pass untouched; only the model's value is spliced.
//! - Elsewhere both sides go through one common representation. A field that the other side cannot say is refused by a
//!   [`DialectError`] that names it. Nothing is dropped, but for hints without effect on the answer (listed in each
//!   dialect's module).
//! - A form that is not known here is refused for this route only: a provider of the caller's own dialect may know it.
//! - What others control has a bound: see [`limits`].
//! - No error, and nothing with `Debug` here, holds content.
#![forbid(unsafe_code)]

mod anthropic;
mod bedrock;
mod call;
mod common;
mod dialect;
mod embeddings;
mod error;
pub mod errors;
mod eventstream;
mod gemini;
pub mod headers;
mod json;
pub mod limits;
pub mod models;
mod observe;
mod openai;
mod outcome;
mod responses;
mod splice;
mod sse;
#[cfg(test)]
mod tests;
mod translate;

pub use call::{Call, Needs, TargetRoute, UpstreamRequest};
pub use dialect::{Dialect, Endpoint, Flavour, Operation};
pub use error::{DialectError, Fault};
pub use outcome::{Finish, Outcome, Usage};
pub use translate::{Answer, AnswerTranslator, Head, Stamp};
