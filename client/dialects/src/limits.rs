//! Bounds on what others control.

/// Most bytes of one server-sent event or of one event-stream frame. Gemini sends whole inline images (some MiB in
/// base64) and whole tool arguments in one event; the others send deltas.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most bytes of a streamed message's text and tool arguments that a translation must keep until its end. Tool
/// arguments towards Gemini are kept, which has no deltas of them, and all of an answer towards OpenAI Responses, whose
/// last event repeats it.
pub const PENDING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most content blocks of one streamed message.
pub const BLOCKS_MAX: usize = 4096;
/// Most bytes of an upstream's error message that reach the caller.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 4096;
/// Most messages of a conversation, parts of a message and tools of a request, each.
pub const ITEMS_MAX: usize = 100_000;
/// Most characters of a field's path in an error: keys are the caller's.
pub const PATH_BYTES_MAX: usize = 160;
