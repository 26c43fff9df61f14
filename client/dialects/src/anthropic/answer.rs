//! Whole answers.
use crate::anthropic::request::write_block;
use crate::common::{Framing, Part, Reply};
use crate::error::DialectError;
use crate::json::{Json, Obj, Object, Value};
use crate::outcome::{Finish, Usage};

/// Reads a message.
pub(crate) fn read_reply(body: &Value<'_>) -> Result<Reply, DialectError> {
    let mut o = body.object()?;
    let mut reply = Reply { model: o.take_string("model")?, ..Reply::default() };
    for block in o.need("content")?.array()? {
        let mut b = block.object()?;
        reply.parts.push(match b.need_string("type")?.as_str() {
            "text" => {
                no_citations(&mut b)?;
                Part::Text(b.need_string("text")?)
            }
            "tool_use" => Part::ToolCall {
                id: b.need_string("id")?,
                name: b.need_string("name")?,
                arguments: b.need("input")?.raw_object()?,
            },
            "thinking" => Part::Thinking {
                text: b.need_string("thinking")?,
                signature: b.take_string("signature")?.filter(|s| !s.is_empty()),
            },
            "redacted_thinking" => Part::Redacted(b.need_string("data")?),
            _ => return Err(block.expected("a block of text, thinking or tool use")),
        });
    }
    reply.finish = o.take("stop_reason").map(|reason| read_finish(&reason)).transpose()?;
    reply.stop_sequence = o.take_string("stop_sequence")?;
    let mut seen = UsageSeen::default();
    if let Some(usage) = o.take_object("usage")? {
        seen.read(usage)?;
        reply.usage = Some(seen.usage());
    }
    Ok(reply)
}

pub(super) fn read_finish(reason: &Value<'_>) -> Result<Finish, DialectError> {
    finish_of(&reason.string()?).ok_or_else(|| reason.expected("a known reason"))
}

/// Citations, which are given to those who ask for them: no translation does.
pub(super) fn no_citations(block: &mut Object<'_>) -> Result<(), DialectError> {
    match block.take("citations") {
        Some(some) if some.raw().as_str() != "[]" => Err(some.expected("no citations")),
        _ => Ok(()),
    }
}

/// Why it ended. `None`: a reason that is not known here, and that may mean anything.
pub(crate) fn finish_of(reason: &str) -> Option<Finish> {
    Some(match reason {
        "end_turn" => Finish::Stop,
        "max_tokens" => Finish::Length,
        "stop_sequence" => Finish::StopSequence,
        "tool_use" => Finish::ToolCalls,
        "pause_turn" => Finish::Pause,
        "refusal" => Finish::Refusal,
        "model_context_window_exceeded" => Finish::ContextLength,
        _ => return None,
    })
}

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::MalformedToolCall => "end_turn",
        Finish::StopSequence => "stop_sequence",
        Finish::Length => "max_tokens",
        Finish::ContextLength => "model_context_window_exceeded",
        Finish::ToolCalls => "tool_use",
        Finish::Refusal | Finish::ContentFilter => "refusal",
        Finish::Pause => "pause_turn",
    }
}

/// Usage as it comes: part of it at the start, the rest, cumulative, at the end.
#[derive(Default, Clone)]
pub(crate) struct UsageSeen {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    output: u64,
    thinking: u64,
}

impl UsageSeen {
    /// Takes what is there in place of what was.
    pub(crate) fn read(&mut self, mut o: Object<'_>) -> Result<(), DialectError> {
        let mut set = |field: &mut u64, name: &str| -> Result<(), DialectError> {
            if let Some(value) = o.take_u64(name)? {
                *field = value;
            }
            Ok(())
        };
        set(&mut self.input, "input_tokens")?;
        set(&mut self.cache_read, "cache_read_input_tokens")?;
        set(&mut self.cache_write, "cache_creation_input_tokens")?;
        set(&mut self.output, "output_tokens")?;
        if let Some(mut details) = o.take_object("output_tokens_details")?
            && let Some(thinking) = details.take_u64("thinking_tokens")?
        {
            self.thinking = thinking;
        }
        Ok(())
    }

    /// In common words: `input_tokens` there leaves out the cache.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            input: self.input.saturating_add(self.cache_read).saturating_add(self.cache_write),
            output: self.output,
            cached_input: self.cache_read,
            cache_write_input: self.cache_write,
            reasoning: self.thinking,
        }
    }
}

pub(super) fn write_usage(usage: &Usage) -> Obj {
    let uncached = usage.input.saturating_sub(usage.cached_input).saturating_sub(usage.cache_write_input);
    let details = (usage.reasoning > 0).then(|| Obj::new().with("thinking_tokens", usage.reasoning));
    Obj::new()
        .with("input_tokens", uncached)
        .with("cache_creation_input_tokens", usage.cache_write_input)
        .with("cache_read_input_tokens", usage.cached_input)
        .with("output_tokens", usage.output)
        .opt("output_tokens_details", details)
}

/// Writes a message.
pub(crate) fn write_reply(reply: &Reply, framing: &Framing) -> String {
    let content: Vec<Json> = reply.parts.iter().map(|part| write_block(part).into()).collect();
    message(framing, reply.model.as_deref(), content)
        .with("stop_reason", finish_name(reply.finish.unwrap_or(Finish::Stop)))
        .with("stop_sequence", reply.stop_sequence.as_ref().map_or(Json::Null, Json::from))
        .with("usage", write_usage(&reply.usage.unwrap_or_default()))
        .text()
}

/// A message up to its reason to stop.
pub(super) fn message(framing: &Framing, model: Option<&str>, content: Vec<Json>) -> Obj {
    Obj::new()
        .with("id", format!("msg_{}", framing.id))
        .with("type", "message")
        .with("role", "assistant")
        .with("model", model.unwrap_or(&framing.model))
        .with("content", content)
}
