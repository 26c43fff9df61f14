//! OpenAI chat completions, and the accents of compatible servers.
//! <https://platform.openai.com/docs/api-reference/chat>, <https://github.com/openai/openai-openapi>
//!
//! Beyond OpenAI's own fields, what has become customary is read and written:
//! - `reasoning_content` (DeepSeek, vLLM, llama.cpp, xAI; `reasoning` at OpenRouter and Groq) for unsigned thinking.
//!   <https://api-docs.deepseek.com/guides/reasoning_model>
//! - `thinking_blocks` on assistant messages and deltas for thinking with signatures, as LiteLLM has them.
//!   <https://docs.litellm.ai/docs/reasoning_content>. A block that stands elsewhere than in front has a `position`
//!   among all pieces of the message (ours). In deltas each has an `index` among the blocks: OpenAI's SDK sums deltas up
//!   by it (`openai/lib/streaming/_deltas.py`), and would add the numbers: `position` is said once.
//! - `cache_control` on text parts and tools, as OpenRouter and LiteLLM take it. It is written to OpenRouter, on text.
//! - `thinking` and `top_k` of a request, which a provider behind may know.
//!
//! Hints that are left out towards other dialects, as no answer depends on them: `user` and `safety_identifier` (where
//! the other has no place), `metadata`, `store: false`, `prompt_cache_key`, `prompt_cache_retention`,
//! `service_tier: auto|default`, `stream_options.include_obfuscation`, the name of a schema (towards Anthropic and Gemini).
//!
//! Of answers, what a translation does not ask for is left out (`system_fingerprint`, `logprobs`); audio, images, citations
//! and reasons to stop that are not known are refused, as they are of every dialect.
mod answer;
mod request;
mod stream;

pub(crate) use answer::{finish_of, read_reply, read_usage, write_reply};
pub(crate) use request::{
    Names, arguments_of, has_images, read_cache_control, read_effort, read_format, read_request, read_tool,
    read_tool_choice, write_request,
};
pub(crate) use stream::{Decoder, Encoder};
