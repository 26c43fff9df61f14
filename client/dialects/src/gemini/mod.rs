//! Gemini `generateContent`.
//! <https://ai.google.dev/api/generate-content>, <https://ai.google.dev/gemini-api/docs/function-calling>,
//! <https://ai.google.dev/gemini-api/docs/thought-signatures>, <https://ai.google.dev/gemini-api/docs/thinking>
//!
//! Proto JSON: fields are read in camel case and in snake case, written in camel case.
//!
//! Signatures. Elsewhere a signature belongs to thinking, here to the part that thinking led to. A signed thought hands
//! its signature to the text or call after it; a signed part hands it to the thought before it, or to an empty one. What
//! is not base64 is wrapped in it, as the field is bytes; so is redacted thinking for callers. Routes are not asked to
//! read another provider's redacted thinking: that is refused.
//!
//! Calls without an id are numbered in the order of the conversation; a result without an id answers the first open call
//! of its name. JSON schemas go into `parametersJsonSchema` and `responseJsonSchema`; what callers say in OpenAPI's
//! subset (`parameters`, `responseSchema`) becomes a JSON schema. One strict tool makes all of them strict
//! (`VALIDATED`); `strict: false` is what goes without saying.
//!
//! Of answers, remarks about them are left out: `safetyRatings`, `citationMetadata`, `avgLogprobs`, counts by modality.
mod answer;
mod request;
mod schema;
mod stream;

pub(crate) use answer::{finish_of, read_reply, read_usage, write_reply};
pub(crate) use request::{has_images, read_request, write_request};
pub(crate) use stream::{Decoder, Encoder, Form};
