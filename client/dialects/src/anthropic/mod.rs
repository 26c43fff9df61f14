//! Anthropic Messages.
//! <https://docs.anthropic.com/en/api/messages>, <https://docs.anthropic.com/en/docs/build-with-claude/streaming>,
//! types of <https://github.com/anthropics/anthropic-sdk-python/tree/main/src/anthropic/types>
//!
//! Hints that are left out towards other dialects, as no answer depends on them: `cache_control` towards OpenAI and Gemini
//! (both cache prefixes unasked), `metadata.user_id` where the other has no place, `service_tier`,
//! `eager_input_streaming` of tools.
//!
//! `max_tokens` is required here: without a bound of the caller's, [`crate::TargetRoute::max_output_default`] is sent.
mod answer;
mod request;
mod stream;

pub(crate) use answer::{UsageSeen, finish_of, read_reply, write_reply};
pub(crate) use request::{
    effort_fields, has_images, read_effort, read_request, read_thinking, thinking_fields, write_request,
};
pub(crate) use stream::{Decoder, Encoder};
