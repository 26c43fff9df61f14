//! What an answer said of itself, in words common to all dialects.
use crate::errors::ErrorKind;

/// Tokens of one answer, on the provider's word. `None`: it did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All tokens of the prompt, those read from and written to a cache included.
    pub input: u64,
    /// All generated tokens, reasoning included.
    pub output: u64,
    /// Of `input`, those read from a cache.
    pub cached_input: u64,
    /// Of `input`, those written to a cache.
    pub cache_write_input: u64,
    /// Of `output`, those of reasoning.
    pub reasoning: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model was done.
    Stop,
    /// One of the caller's stop sequences.
    StopSequence,
    /// The bound on output tokens.
    Length,
    /// The context is full.
    ContextLength,
    /// The model calls tools.
    ToolCalls,
    /// The model refused.
    Refusal,
    /// A filter of the provider.
    ContentFilter,
    /// The turn is paused, to be continued as it stands.
    Pause,
    /// A tool call that is none.
    MalformedToolCall,
}

impl Finish {
    /// Name for telemetry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopSequence => "stop_sequence",
            Self::Length => "length",
            Self::ContextLength => "context_length",
            Self::ToolCalls => "tool_calls",
            Self::Refusal => "refusal",
            Self::ContentFilter => "content_filter",
            Self::Pause => "pause",
            Self::MalformedToolCall => "malformed_tool_call",
        }
    }
}

/// What was observed of an answer. No content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tokens.
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// The model that the provider says answered.
    pub model: Option<String>,
    /// The provider's error, of a whole answer or within a stream.
    pub error: Option<ErrorKind>,
    /// A stream's last event was seen, or the whole answer was read.
    pub complete: bool,
}
