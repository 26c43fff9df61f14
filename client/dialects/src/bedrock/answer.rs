//! Whole answers.
use crate::bedrock::request::{read_reasoning, read_tool_use, write_block};
use crate::common::{Part, Reply};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::json::{Json, Obj, Object, Value};
use crate::outcome::{Finish, Usage};

/// Reads a response.
pub(crate) fn read_reply(body: &Value<'_>) -> Result<Reply, DialectError> {
    let mut o = body.object()?;
    let mut reply = Reply::default();
    let mut message = o.need("output")?.object()?.need("message")?.object()?;
    for block in message.need("content")?.array()? {
        let mut b = block.object()?;
        reply.parts.push(if let Some(text) = b.take_string("text")? {
            Part::Text(text)
        } else if let Some(call) = b.take("toolUse") {
            read_tool_use(&call, Dialect::Bedrock)?
        } else if let Some(reasoning) = b.take("reasoningContent") {
            read_reasoning(&reasoning, Dialect::Bedrock)?
        } else {
            return Err(block.expected("a block of text, reasoning or tool use"));
        });
    }
    reply.finish = o.take("stopReason").map(|reason| read_finish(&reason)).transpose()?;
    reply.usage = o.take_object("usage")?.map(read_usage).transpose()?;
    Ok(reply)
}

pub(super) fn read_finish(reason: &Value<'_>) -> Result<Finish, DialectError> {
    finish_of(&reason.string()?).ok_or_else(|| reason.expected("a known reason"))
}

/// Why it ended. `None`: a reason that is not known here, and that may mean anything.
pub(crate) fn finish_of(reason: &str) -> Option<Finish> {
    Some(match reason {
        "end_turn" => Finish::Stop,
        "max_tokens" => Finish::Length,
        "stop_sequence" => Finish::StopSequence,
        "tool_use" => Finish::ToolCalls,
        "guardrail_intervened" | "content_filtered" => Finish::ContentFilter,
        "refusal" => Finish::Refusal,
        "model_context_window_exceeded" => Finish::ContextLength,
        "malformed_tool_use" | "malformed_model_output" => Finish::MalformedToolCall,
        _ => return None,
    })
}

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Pause => "end_turn",
        Finish::StopSequence => "stop_sequence",
        Finish::Length => "max_tokens",
        Finish::ContextLength => "model_context_window_exceeded",
        Finish::ToolCalls => "tool_use",
        Finish::Refusal | Finish::ContentFilter => "content_filtered",
        Finish::MalformedToolCall => "malformed_tool_use",
    }
}

/// `usage`: `inputTokens` leaves out the cache.
pub(crate) fn read_usage(mut o: Object<'_>) -> Result<Usage, DialectError> {
    let mut count = |name: &str| o.take_u64(name).map(Option::unwrap_or_default);
    let cached_input = count("cacheReadInputTokens")?;
    let cache_write_input = count("cacheWriteInputTokens")?;
    Ok(Usage {
        input: count("inputTokens")?.saturating_add(cached_input).saturating_add(cache_write_input),
        output: count("outputTokens")?,
        cached_input,
        cache_write_input,
        reasoning: 0,
    })
}

/// `metrics`, which an answer must have: without a clock, nothing was measured.
pub(super) fn metrics() -> Obj {
    Obj::new().with("latencyMs", 0_u64)
}

pub(super) fn write_usage(usage: &Usage) -> Obj {
    let uncached = usage.input.saturating_sub(usage.cached_input).saturating_sub(usage.cache_write_input);
    Obj::new()
        .with("inputTokens", uncached)
        .with("outputTokens", usage.output)
        .with("totalTokens", usage.input.saturating_add(usage.output))
        .with("cacheReadInputTokens", usage.cached_input)
        .with("cacheWriteInputTokens", usage.cache_write_input)
}

/// Writes a response.
pub(crate) fn write_reply(reply: &Reply) -> String {
    // an answer holds no images, the only blocks that cannot be written
    let content: Vec<Json> = reply.parts.iter().filter_map(|p| write_block(p).ok()).map(Json::from).collect();
    let message = Obj::new().with("role", "assistant").with("content", content);
    Obj::new()
        .with("output", Obj::new().with("message", message))
        .with("stopReason", finish_name(reply.finish.unwrap_or(Finish::Stop)))
        .with("usage", write_usage(&reply.usage.unwrap_or_default()))
        .with("metrics", metrics())
        .text()
}
