//! Amazon Bedrock Converse, with bearer API keys: no SigV4.
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html>,
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html>,
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html>
//!
//! Thinking, effort and `top_k` have no fields here; they go into `additionalModelRequestFields` as Claude takes them, and
//! are refused for models that are not Claude's by name.
//!
//! Hints that are left out towards other dialects, as no answer depends on them: `requestMetadata`, `cachePoint` (towards
//! OpenAI and Gemini), `serviceTier: default`, `performanceConfig: standard`. Towards here: the caller's `user`.
mod answer;
mod request;
mod stream;

pub(crate) use answer::{finish_of, read_reply, read_usage, write_reply};
pub(crate) use request::{has_images, read_request, write_request};
pub(crate) use stream::{Decoder, Encoder};
