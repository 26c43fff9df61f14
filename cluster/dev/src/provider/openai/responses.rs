//! `POST /v1/responses`. Nothing is stored: a `previous_response_id` names nothing that is known here.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::answer::{Answer, Ask, Finish};
use super::super::catalogue::Catalogue;
use super::super::strict::{Fields, Mistake, Node, What, parse};
use super::super::{Answered, Content};
use super::chat::parallel;
use super::{ApiError, choice, find, function, image_url, json_schema, tools};

const OPTIONS: &[&str] = &[
    "model",
    "input",
    "instructions",
    "stream",
    "stream_options",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tool_calls",
    "text",
    "reasoning",
    "include",
    "metadata",
    "store",
    "previous_response_id",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "truncation",
    "user",
];

/// A response before it is written out.
struct Response {
    answer: Answer,
    /// What the whole object repeats of the request.
    echo: Value,
    now: u64,
}

pub(super) fn answer(catalogue: &Catalogue, body: &[u8], now: u64) -> Result<Answered, ApiError> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(OPTIONS)?;
    let fault = find(catalogue, fields.name("model")?, Catalogue::chats)?;
    if let Some(previous) = fields.get("previous_response_id") {
        let message = format!("Previous response with id '{}' not found.", previous.text()?);
        return Err(previous.wrong(What::Rule("previous_response_not_found", message)).into());
    }
    let stream = fields.flag("stream")?;
    let response = read(catalogue, &fields, now)?;
    let content = if stream {
        Content::events(response.events())
    } else {
        Content::Json(response.object("completed", &response.output()).to_string().into_bytes())
    };
    Ok(Answered { fault, content })
}

/// One named server-sent event.
pub(super) fn event(value: &Value) -> Bytes {
    let name = value.get("type").and_then(Value::as_str).unwrap_or("message");
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

fn read(catalogue: &Catalogue, fields: &Fields<'_>, now: u64) -> Result<Response, Mistake> {
    let model = fields.name("model")?;
    fields.number("temperature", 0.0, 2.0)?;
    fields.number("top_p", 0.0, 1.0)?;
    fields.flag("store")?;
    let (mut texts, results) = input(fields)?;
    if let Some(instructions) = fields.get("instructions") {
        texts.insert(0, instructions.text()?.to_owned());
    }
    let tools = tools(fields, |node| {
        let tool = node.object(&["type", "name", "description", "parameters", "strict"])?;
        tool.need("type")?.word(&["function"])?;
        function(&tool)
    })?;
    let choice = choice(fields, &tools, |node| {
        let named = node.object(&["type", "name"])?;
        named.need("type")?.word(&["function"])?;
        Ok(named.name("name")?.to_owned())
    })?;
    let thinking = match fields.get("reasoning") {
        Some(node) => {
            let reasoning = node.object(&["effort", "summary", "generate_summary"])?;
            let words = &["none", "minimal", "low", "medium", "high", "xhigh"];
            reasoning.get("effort").map_or(Ok("medium"), |effort| effort.word(words))? != "none"
        }
        None => false,
    };
    let parallel = parallel(fields, &tools)?;
    let limit = fields.count("max_output_tokens", 16)?;
    let (format, schema) = text_format(fields)?;
    let raw = |name: &str| fields.get(name).map_or(Value::Null, |node| node.value.clone());
    let echo = json!({
        "model": model,
        "instructions": raw("instructions"),
        "max_output_tokens": raw("max_output_tokens"),
        "metadata": fields.get("metadata").map_or_else(|| json!({}), |node| node.value.clone()),
        "parallel_tool_calls": parallel,
        "temperature": fields.get("temperature").map_or_else(|| json!(1.0), |node| node.value.clone()),
        "top_p": fields.get("top_p").map_or_else(|| json!(1.0), |node| node.value.clone()),
        "tool_choice": fields.get("tool_choice").map_or_else(|| json!("auto"), |node| node.value.clone()),
        "tools": fields.get("tools").map_or_else(|| json!([]), |node| node.value.clone()),
        "text": {"format": format},
        "reasoning": {"effort": fields.get("reasoning").and_then(|r| r.value.get("effort").cloned()), "summary": null},
        "truncation": "disabled",
        "previous_response_id": null,
        "service_tier": "default",
        "user": raw("user"),
    });
    let ask = Ask { tools, choice, parallel, results, schema, limit, thinking, ..Ask::plain(model, texts) };
    Ok(Response { answer: ask.answer(catalogue.tokens), echo, now })
}

fn text_format(fields: &Fields<'_>) -> Result<(Value, Option<Value>), Mistake> {
    let plain = || (json!({"type": "text"}), None);
    let Some(text) = fields.get("text") else { return Ok(plain()) };
    let Some(node) = text.object(&["format", "verbosity"])?.get("format") else { return Ok(plain()) };
    let format = node.object(&["type", "name", "description", "schema", "strict"])?;
    Ok(match format.need("type")?.word(&["text", "json_object", "json_schema"])? {
        "text" => plain(),
        "json_object" => {
            let schema = json!({"type": "object", "properties": {"answer": {"type": "string"}}});
            (node.value.clone(), Some(schema))
        }
        _ => (node.value.clone(), Some(json_schema(&format)?)),
    })
}

/// The text of each item, and whether the last is a function's output.
fn input(fields: &Fields<'_>) -> Result<(Vec<String>, bool), Mistake> {
    let node = fields.need("input")?;
    if let Value::String(text) = node.value {
        return Ok((vec![text.clone()], false));
    }
    let items = node.list()?;
    if items.is_empty() {
        return Err(node.range("a string or an array of at least one item"));
    }
    let (mut texts, mut results, mut calls) = (Vec::new(), false, Vec::new());
    for item in &items {
        let kind = item.open_object()?.get("type").map_or(Ok("message"), |kind| kind.text())?;
        results = kind == "function_call_output";
        match kind {
            "message" => texts.push(message(item)?),
            "function_call" => {
                let call = item.object(&["type", "id", "call_id", "name", "arguments", "status"])?;
                call.name("name")?;
                call.need("arguments")?.text()?;
                calls.push(call.name("call_id")?.to_owned());
            }
            "function_call_output" => {
                let output = item.object(&["type", "id", "call_id", "output", "status"])?;
                let id = output.name("call_id")?;
                if !calls.iter().any(|call| call == id) {
                    let message = format!("No tool call found for function call output with call_id {id}.");
                    return Err(item.wrong(What::Rule("invalid_value", message)));
                }
                texts.push(output.need("output")?.text()?.to_owned());
            }
            "reasoning" => {
                item.object(&["type", "id", "summary", "content", "encrypted_content", "status"])?;
            }
            _ => {
                let kinds = "one of message, function_call, function_call_output, reasoning";
                return Err(item.range(kinds));
            }
        }
    }
    Ok((texts, results))
}

fn message(item: &Node<'_>) -> Result<String, Mistake> {
    let message = item.object(&["type", "id", "role", "content", "status", "phase"])?;
    let role = message.need("role")?.word(&["system", "developer", "user", "assistant"])?;
    let content = message.need("content")?;
    if let Value::String(text) = content.value {
        return Ok(text.clone());
    }
    let part = |node: &Node<'_>| {
        let part =
            node.object(&["type", "text", "annotations", "logprobs", "image_url", "detail", "refusal"])?;
        let kinds: &[&str] =
            if role == "assistant" { &["output_text", "refusal"] } else { &["input_text", "input_image"] };
        match part.need("type")?.word(kinds)? {
            "input_image" => {
                image_url(&part.need("image_url")?)?;
                Ok(" [image]".to_owned())
            }
            "refusal" => part.need("refusal")?.text().map(ToOwned::to_owned),
            _ => part.need("text")?.text().map(ToOwned::to_owned),
        }
    };
    Ok(content.list()?.iter().map(part).collect::<Result<Vec<_>, _>>()?.concat())
}

impl Response {
    fn message_id(&self) -> String {
        format!("msg_{}", self.answer.id)
    }

    fn status(&self) -> &'static str {
        if self.answer.finish == Finish::Length { "incomplete" } else { "completed" }
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.answer.pieces.concat(), "annotations": [], "logprobs": []})
    }

    fn message(&self) -> Value {
        json!({"type": "message", "id": self.message_id(), "role": "assistant", "status": self.status(), "content": [self.part()]})
    }

    fn reasoning(&self) -> Option<Value> {
        let thought = !self.answer.thought.is_empty();
        thought.then(|| json!({"type": "reasoning", "id": format!("rs_{}", self.answer.id), "summary": []}))
    }

    fn call(call: &super::super::answer::Call, arguments: &str, status: &str) -> Value {
        json!({"type": "function_call", "id": format!("fc_{}", call.id), "call_id": format!("call_{}", call.id),
            "name": call.name, "arguments": arguments, "status": status})
    }

    fn output(&self) -> Vec<Value> {
        let mut output: Vec<Value> = self.reasoning().into_iter().collect();
        if !self.answer.pieces.is_empty() {
            output.push(self.message());
        }
        let calls = self.answer.calls.iter();
        output.extend(calls.map(|call| Self::call(call, &call.arguments.to_string(), "completed")));
        output
    }

    /// The `response` object, with what of its output is there so far.
    fn object(&self, status: &str, output: &[Value]) -> Value {
        let over = status == "completed";
        let answer = &self.answer;
        let usage = json!({
            "input_tokens": answer.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
            "total_tokens": answer.input_tokens + answer.output_tokens,
        });
        let cut = over && answer.finish == Finish::Length;
        let mut object = json!({
            "id": format!("resp_{}", answer.id),
            "object": "response",
            "created_at": self.now,
            "status": if over { self.status() } else { status },
            "error": null,
            "incomplete_details": if cut { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "output": output,
            "usage": if over { usage } else { Value::Null },
        });
        if let (Some(to), Some(from)) = (object.as_object_mut(), self.echo.as_object()) {
            to.extend(from.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        object
    }

    fn events(&self) -> VecDeque<Bytes> {
        let mut list: Vec<Value> = Vec::new();
        for kind in ["created", "in_progress"] {
            list.push(
                json!({"type": format!("response.{kind}"), "response": self.object("in_progress", &[])}),
            );
        }
        let mut index = 0;
        if let Some(reasoning) = self.reasoning() {
            for kind in ["added", "done"] {
                list.push(json!({"type": format!("response.output_item.{kind}"), "output_index": index, "item": reasoning}));
            }
            index += 1;
        }
        if !self.answer.pieces.is_empty() {
            self.message_events(index, &mut list);
            index += 1;
        }
        for call in &self.answer.calls {
            let item = format!("fc_{}", call.id);
            let whole = call.arguments.to_string();
            list.push(json!({"type": "response.output_item.added", "output_index": index, "item": Self::call(call, "", "in_progress")}));
            list.extend(call.pieces().into_iter().map(|delta| {
                json!({"type": "response.function_call_arguments.delta", "item_id": item, "output_index": index, "delta": delta})
            }));
            list.push(json!({"type": "response.function_call_arguments.done", "item_id": item, "output_index": index,
                "arguments": whole}));
            list.push(json!({"type": "response.output_item.done", "output_index": index, "item": Self::call(call, &whole, "completed")}));
            index += 1;
        }
        let end =
            if self.answer.finish == Finish::Length { "response.incomplete" } else { "response.completed" };
        list.push(json!({"type": end, "response": self.object("completed", &self.output())}));
        for (number, value) in list.iter_mut().enumerate() {
            if let Some(map) = value.as_object_mut() {
                map.insert("sequence_number".to_owned(), json!(number));
            }
        }
        list.iter().map(event).collect()
    }

    fn message_events(&self, index: usize, list: &mut Vec<Value>) {
        let item = self.message_id();
        let part = |kind: &str, part: Value| {
            json!({"type": format!("response.content_part.{kind}"), "item_id": item,
            "output_index": index, "content_index": 0, "part": part})
        };
        list.push(json!({"type": "response.output_item.added", "output_index": index,
            "item": {"type": "message", "id": item, "role": "assistant", "status": "in_progress", "content": []}}));
        list.push(part(
            "added",
            json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
        ));
        list.extend(self.answer.pieces.iter().map(|piece| {
            json!({"type": "response.output_text.delta", "item_id": item, "output_index": index, "content_index": 0,
                "delta": piece, "logprobs": []})
        }));
        list.push(json!({"type": "response.output_text.done", "item_id": item, "output_index": index, "content_index": 0,
            "text": self.answer.pieces.concat(), "logprobs": []}));
        list.push(part("done", self.part()));
        list.push(
            json!({"type": "response.output_item.done", "output_index": index, "item": self.message()}),
        );
    }
}
