//! Whole answers.
use crate::common::{Framing, Part, Reply};
use crate::error::DialectError;
use crate::json::{Json, Obj, Object, Value};
use crate::openai::request::{arguments_of, write_call};
use crate::outcome::{Finish, Usage};

/// Reads a chat completion.
pub(crate) fn read_reply(body: &Value<'_>) -> Result<Reply, DialectError> {
    let mut o = body.object()?;
    let choices = o.need("choices")?.array()?;
    let [choice] = choices.as_slice() else { return Err(o.expected("one choice")) };
    let mut choice = choice.object()?;
    let mut message = choice.need("message")?.object()?;
    let mut reply = Reply { model: o.take_string("model")?, ..Reply::default() };
    no_media(&mut message)?;
    read_thinking(&mut message, &mut reply.parts)?;
    for text in read_texts(&mut message, &mut reply.parts)? {
        if !text.is_empty() {
            reply.parts.push(Part::Text(text));
        }
    }
    let mut refused = false;
    if let Some(refusal) = message.take_string("refusal")?.filter(|r| !r.is_empty()) {
        reply.parts.push(Part::Text(refusal));
        refused = true;
    }
    let mut called = false;
    for call in message.take_array("tool_calls")? {
        let mut call = call.object()?;
        let mut f = call.need("function")?.object()?;
        let arguments = f.take("arguments");
        let text =
            arguments.as_ref().map(|a| if a.is_object() { Ok(a.text().to_owned()) } else { a.string() });
        let text = text.transpose()?.unwrap_or_default();
        let arguments = arguments_of(&text).ok_or_else(|| f.expected("arguments that are a JSON object"))?;
        let (id, name) = (call.take_string("id")?.unwrap_or_default(), f.need_string("name")?);
        reply.parts.push(Part::ToolCall { id, name, arguments });
        called = true;
    }
    let reason = choice.take("finish_reason").map(|reason| read_finish(&reason)).transpose()?;
    reply.finish = Some(match (reason, refused, called) {
        (_, true, _) => Finish::Refusal,
        (Some(Finish::Stop) | None, _, true) => Finish::ToolCalls,
        (Some(finish), ..) => finish,
        (None, ..) => Finish::Stop,
    });
    reply.usage = o.take_object("usage")?.map(read_usage).transpose()?;
    Ok(reply)
}

/// What an answer can hold besides, and no other dialect can say.
pub(super) fn no_media(message: &mut Object<'_>) -> Result<(), DialectError> {
    for key in ["audio", "images", "annotations", "function_call"] {
        if let Some(media) = message.take(key)
            && media.raw().as_str() != "[]"
        {
            return Err(media.expected("text, thinking and tool calls alone"));
        }
    }
    Ok(())
}

fn read_thinking(message: &mut Object<'_>, parts: &mut Vec<Part>) -> Result<(), DialectError> {
    let plain = message.take("reasoning_content");
    let plain = plain.or(message.take("reasoning")).filter(Value::is_string);
    let blocks = message.take_array("thinking_blocks")?;
    for block in &blocks {
        let mut b = block.object()?;
        parts.push(match b.need_string("type")?.as_str() {
            "thinking" => Part::Thinking {
                text: b.need_string("thinking")?,
                signature: b.take_string("signature")?.filter(|s| !s.is_empty()),
            },
            "redacted_thinking" => Part::Redacted(b.need_string("data")?),
            _ => return Err(block.expected("thinking or redacted_thinking")),
        });
    }
    if let (true, Some(plain)) = (blocks.is_empty(), plain) {
        let text = plain.string()?;
        if !text.is_empty() {
            parts.push(Part::Thinking { text, signature: None });
        }
    }
    Ok(())
}

/// Texts; Mistral's reasoning models answer with chunks of thinking and text.
/// <https://docs.mistral.ai/capabilities/reasoning/>
pub(super) fn read_texts(
    message: &mut Object<'_>,
    parts: &mut Vec<Part>,
) -> Result<Vec<String>, DialectError> {
    let Some(content) = message.take("content") else { return Ok(Vec::new()) };
    if content.is_string() {
        return Ok(vec![content.string()?]);
    }
    let mut texts = Vec::new();
    for chunk in content.array()? {
        let mut c = chunk.object()?;
        match c.need_string("type")?.as_str() {
            "text" => texts.push(c.need_string("text")?),
            "thinking" => {
                let thinking = c.need("thinking")?;
                let text = if thinking.is_string() {
                    thinking.string()?
                } else {
                    let parts = thinking.array()?;
                    let texts: Result<Vec<_>, _> =
                        parts.iter().map(|p| p.object()?.need_string("text")).collect();
                    texts?.concat()
                };
                parts.push(Part::Thinking { text, signature: None });
            }
            _ => return Err(chunk.expected("text or thinking")),
        }
    }
    Ok(texts)
}

pub(super) fn read_finish(reason: &Value<'_>) -> Result<Finish, DialectError> {
    finish_of(&reason.string()?).ok_or_else(|| reason.expected("a known reason"))
}

/// Why it ended, `stop` by the names that servers have for it. `None`: a reason that is not known here, or a failure
/// (`error` at OpenRouter and Mistral, `abort` of vLLM, `insufficient_system_resource` of DeepSeek).
pub(crate) fn finish_of(reason: &str) -> Option<Finish> {
    Some(match reason {
        "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" => Finish::Stop,
        "length" | "model_length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::ToolCalls,
        "content_filter" => Finish::ContentFilter,
        _ => return None,
    })
}

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopSequence | Finish::Pause => "stop",
        Finish::Length | Finish::ContextLength => "length",
        Finish::ToolCalls => "tool_calls",
        Finish::Refusal | Finish::ContentFilter => "content_filter",
        Finish::MalformedToolCall => "stop",
    }
}

/// `usage` of chat, completions, embeddings and responses.
pub(crate) fn read_usage(mut o: Object<'_>) -> Result<Usage, DialectError> {
    let mut either = |one: &str, other: &str| o.take_either(one, other).map(|v| v.u64()).transpose();
    let input = either("prompt_tokens", "input_tokens")?.unwrap_or(0);
    let mut output = either("completion_tokens", "output_tokens")?.unwrap_or(0);
    let total = o.take_u64("total_tokens")?;
    let mut details = |one: &str, other: &str| o.take_either(one, other).map(|v| v.object()).transpose();
    let (mut cached, mut written, mut reasoning) = (0, 0, 0);
    if let Some(mut d) = details("prompt_tokens_details", "input_tokens_details")? {
        cached = d.take_u64("cached_tokens")?.unwrap_or(0);
        written = d.take_u64("cache_write_tokens")?.unwrap_or(0);
    }
    if let Some(mut d) = details("completion_tokens_details", "output_tokens_details")? {
        reasoning = d.take_u64("reasoning_tokens")?.unwrap_or(0);
    }
    // DeepSeek's own name
    cached = cached.max(o.take_u64("prompt_cache_hit_tokens")?.unwrap_or(0));
    // xAI counts reasoning beside the completion
    if reasoning > 0 && total == input.checked_add(output).and_then(|t| t.checked_add(reasoning)) {
        output += reasoning;
    }
    Ok(Usage { input, output, cached_input: cached, cache_write_input: written, reasoning })
}

pub(super) fn write_usage(usage: &Usage) -> Obj {
    let written = (usage.cache_write_input > 0).then_some(usage.cache_write_input);
    let prompt = Obj::new().with("cached_tokens", usage.cached_input).opt("cache_write_tokens", written);
    Obj::new()
        .with("prompt_tokens", usage.input)
        .with("completion_tokens", usage.output)
        .with("total_tokens", usage.input.saturating_add(usage.output))
        .with("prompt_tokens_details", prompt)
        .with("completion_tokens_details", Obj::new().with("reasoning_tokens", usage.reasoning))
}

/// Writes a chat completion.
pub(crate) fn write_reply(reply: &Reply, framing: &Framing) -> String {
    let (mut texts, mut calls, mut thoughts) = (String::new(), Vec::<Json>::new(), String::new());
    let mut blocks = Vec::<Json>::new();
    for (index, part) in reply.parts.iter().enumerate() {
        let nth = blocks.len();
        let place = (index != nth).then_some(u64::try_from(index).unwrap_or(u64::MAX));
        match part {
            Part::Text(text) => texts.push_str(text),
            Part::ToolCall { id, name, arguments } => calls.push(write_call(id, name, arguments)),
            Part::Thinking { text, signature } => {
                thoughts.push_str(text);
                let block = thinking_block(text, signature.as_deref());
                blocks.push(block.opt("position", place).into());
            }
            Part::Redacted(data) => {
                blocks.push(redacted_block(data).opt("position", place).into());
            }
            Part::Image(_) | Part::ToolResult(_) | Part::CachePoint { .. } => {}
        }
    }
    let content = if texts.is_empty() && !calls.is_empty() { Json::Null } else { Json::from(texts) };
    let message = Obj::new()
        .with("role", "assistant")
        .with("content", content)
        .with("refusal", Json::Null)
        .opt("reasoning_content", (!thoughts.is_empty()).then_some(thoughts))
        .opt("thinking_blocks", (!blocks.is_empty()).then_some(blocks))
        .opt("tool_calls", (!calls.is_empty()).then_some(calls));
    let choice = Obj::new()
        .with("index", 0_u64)
        .with("message", message)
        .with("logprobs", Json::Null)
        .with("finish_reason", finish_name(reply.finish.unwrap_or(Finish::Stop)));
    Obj::new()
        .with("id", format!("chatcmpl-{}", framing.id))
        .with("object", "chat.completion")
        .with("created", framing.created)
        .with("model", reply.model.as_deref().unwrap_or(&framing.model))
        .with("choices", vec![Json::from(choice)])
        .opt("usage", reply.usage.as_ref().map(write_usage))
        .text()
}

pub(super) fn thinking_block(text: &str, signature: Option<&str>) -> Obj {
    Obj::of_type("thinking").with("thinking", text).opt("signature", signature)
}

pub(super) fn redacted_block(data: &str) -> Obj {
    Obj::of_type("redacted_thinking").with("data", data)
}
