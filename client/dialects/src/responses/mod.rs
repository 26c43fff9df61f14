//! OpenAI Responses, said to providers of other dialects. To OpenAI's own and to servers that speak it, it passes.
//! <https://platform.openai.com/docs/api-reference/responses>,
//! <https://platform.openai.com/docs/api-reference/responses-streaming>
//!
//! Nothing is stored: `previous_response_id`, `conversation`, `background` and references to items are refused, an absent
//! `store` is taken for `false`. Thinking is a `reasoning` item; its signature is the `encrypted_content`, and redacted
//! thinking an `encrypted_content` marked as such.
//!
//! Hints that are left out: `metadata`, `prompt_cache_key`, `prompt_cache_retention`, `safety_identifier`, `include` of
//! encrypted reasoning (which always comes), `reasoning.summary`, ids and states of items.
mod answer;
mod request;
mod stream;

pub(crate) use answer::write_reply;
pub(crate) use request::read_request;
pub(crate) use stream::Encoder;

/// Marks redacted thinking within an `encrypted_content`.
const REDACTED: &str = "redacted_thinking:";
