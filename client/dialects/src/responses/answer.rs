//! Whole answers, written to callers.
use crate::common::{Framing, Part, Reply};
use crate::json::{Json, Obj, Raw};
use crate::outcome::{Finish, Usage};
use crate::responses::REDACTED;

/// Writes a response.
pub(crate) fn write_reply(reply: &Reply, framing: &Framing) -> String {
    let mut output = Vec::<Json>::new();
    for (index, part) in reply.parts.iter().enumerate() {
        let item = match part {
            Part::Text(text) => message(&item_id("msg", framing, index), "completed", Some(text)),
            Part::ToolCall { id, name, arguments } => {
                call(&item_id("fc", framing, index), "completed", id, name, arguments.as_str())
            }
            Part::Thinking { text, signature } => {
                reasoning(&item_id("rs", framing, index), text, signature.as_deref())
            }
            Part::Redacted(data) => redacted(&item_id("rs", framing, index), data),
            Part::Image(_) | Part::ToolResult(_) | Part::CachePoint { .. } => continue,
        };
        output.push(item.into());
    }
    let (finish, usage) = (reply.finish.unwrap_or(Finish::Stop), reply.usage.unwrap_or_default());
    finished(framing, reply.model.as_deref(), output, finish, &usage).text()
}

pub(super) fn item_id(kind: &str, framing: &Framing, index: usize) -> String {
    format!("{kind}_{}_{index}", framing.id)
}

/// A message; without a text, one that has just begun.
pub(super) fn message(id: &str, status: &'static str, text: Option<&str>) -> Obj {
    let content: Vec<Json> = text.iter().map(|text| output_text(text).into()).collect();
    let item = Obj::of_type("message").with("id", id).with("status", status);
    item.with("role", "assistant").with("content", content)
}

pub(super) fn output_text(text: &str) -> Obj {
    let empty = || Json::Arr(Vec::new());
    Obj::of_type("output_text").with("text", text).with("annotations", empty()).with("logprobs", empty())
}

pub(super) fn call(id: &str, status: &'static str, call: &str, name: &str, arguments: &str) -> Obj {
    let item = Obj::of_type("function_call").with("id", id).with("status", status);
    item.with("call_id", call).with("name", name).with("arguments", arguments)
}

pub(super) fn reasoning(id: &str, text: &str, signature: Option<&str>) -> Obj {
    let summary = if text.is_empty() { Vec::new() } else { vec![Json::from(summary_text(text))] };
    let item = Obj::of_type("reasoning").with("id", id).with("summary", summary);
    item.opt("encrypted_content", signature)
}

pub(super) fn summary_text(text: &str) -> Obj {
    Obj::of_type("summary_text").with("text", text)
}

pub(super) fn redacted(id: &str, data: &str) -> Obj {
    reasoning(id, "", Some(&format!("{REDACTED}{data}")))
}

/// A response that has ended.
pub(super) fn finished(
    framing: &Framing,
    model: Option<&str>,
    output: Vec<Json>,
    finish: Finish,
    usage: &Usage,
) -> Obj {
    let incomplete = match finish {
        Finish::Length | Finish::ContextLength => Some("max_output_tokens"),
        Finish::ContentFilter | Finish::Refusal => Some("content_filter"),
        Finish::Stop
        | Finish::StopSequence
        | Finish::ToolCalls
        | Finish::Pause
        | Finish::MalformedToolCall => None,
    };
    let status = if incomplete.is_some() { "incomplete" } else { "completed" };
    let details = incomplete.map_or(Json::Null, |reason| Obj::new().with("reason", reason).into());
    let cached = Obj::new().with("cached_tokens", usage.cached_input);
    let usage = Obj::new()
        .with("input_tokens", usage.input)
        .with("input_tokens_details", cached.with("cache_write_tokens", usage.cache_write_input))
        .with("output_tokens", usage.output)
        .with("output_tokens_details", Obj::new().with("reasoning_tokens", usage.reasoning))
        .with("total_tokens", usage.input.saturating_add(usage.output));
    response(framing, model, status, details, output, usage.into())
}

/// A response; what the SDKs want in it stands in it.
pub(super) fn response(
    framing: &Framing,
    model: Option<&str>,
    status: &'static str,
    incomplete_details: Json,
    output: Vec<Json>,
    usage: Json,
) -> Obj {
    let metadata = Json::from(Raw::empty_object());
    Obj::new()
        .with("id", format!("resp_{}", framing.id))
        .with("object", "response")
        .with("created_at", framing.created)
        .with("status", status)
        .with("error", Json::Null)
        .with("incomplete_details", incomplete_details)
        .with("instructions", Json::Null)
        .with("metadata", metadata)
        .with("model", model.unwrap_or(&framing.model))
        .with("output", output)
        .with("parallel_tool_calls", true)
        .with("previous_response_id", Json::Null)
        .with("tool_choice", "auto")
        .with("tools", Vec::<Json>::new())
        .with("usage", usage)
}
