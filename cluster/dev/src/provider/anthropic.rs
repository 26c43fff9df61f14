//! Anthropic's formats: Messages, its events, count_tokens, models, errors. A pure function of a request.
//!
//! It refuses what the API refuses: a missing `anthropic-version`, unknown fields, roles out of turn, tool results that
//! answer no call, calls without results, a thought whose signature is not its own, calls in a thinking turn that do not
//! begin with their thought.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Ask, Choice, Finish, Tool, count_tokens, signature};
use super::catalogue::{Catalogue, Fault};
use super::strict::{Fields, Mistake, Node, What, parse};
use super::{Answered, Content, Refusal};

/// Smallest thinking budget, as in the real API.
const BUDGET_MIN: u64 = 1024;

const COUNTED: &[&str] =
    &["model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control"];
const OPTIONS: &[&str] = &[
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "cache_control",
    "max_tokens",
    "metadata",
    "service_tier",
    "stop_sequences",
    "stream",
    "temperature",
    "top_k",
    "top_p",
    "inference_geo",
];

/// What was asked, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    Messages,
    CountTokens,
    Models,
    Model(&'a str),
}

impl<'a> Endpoint<'a> {
    /// The endpoint of a path, if it is one of Anthropic's.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/models" => Self::Models,
            _ => Self::Model(path.strip_prefix("/v1/models/").filter(|model| !model.is_empty())?),
        })
    }

    pub(super) fn is_get(self) -> bool {
        matches!(self, Self::Models | Self::Model(_))
    }
}

/// A refusal in the API's error form.
pub(super) fn refusal(status: u16, kind: &str, message: &str) -> Refusal {
    let error =
        json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_demo"});
    Refusal::new(status, &error)
}

impl From<Mistake> for Refusal {
    fn from(mistake: Mistake) -> Self {
        let at = mistake.dotted();
        let message = match mistake.what {
            What::NotJson => "The request body is not valid JSON: it must be one object.".to_owned(),
            What::Missing => format!("{at}: Field required"),
            What::Unknown => format!("{at}: Extra inputs are not permitted"),
            What::Type(expected) => format!("{at}: Input should be {expected}"),
            What::Range(range) => format!("{at}: Input should be {range}"),
            What::Rule(_, message) => format!("{at}: {message}"),
        };
        refusal(400, "invalid_request_error", &message)
    }
}

/// The refusal of a wrong or missing key.
pub(super) fn wrong_key(given: bool) -> Refusal {
    let message = if given { "invalid x-api-key" } else { "x-api-key header is required" };
    refusal(401, "authentication_error", message)
}

/// Checks `anthropic-version`, and that a body says nothing which that version has no more.
/// <https://platform.claude.com/docs/en/api/versioning>
pub(super) fn check_version(given: Option<&http::HeaderValue>, body: &[u8]) -> Result<(), Refusal> {
    let has =
        |name: &&&str| serde_json::from_slice::<Value>(body).is_ok_and(|body| body.get(**name).is_some());
    match given.map(http::HeaderValue::as_bytes) {
        Some(b"2023-06-01") => Ok(()),
        Some(b"2026-10-21") => match ["temperature", "top_p", "top_k"].iter().find(has) {
            None => Ok(()),
            Some(name) => {
                let message = format!("{name}: Extra inputs are not permitted");
                Err(refusal(400, "invalid_request_error", &message))
            }
        },
        Some(_) => Err(refusal(400, "invalid_request_error", "anthropic-version: unknown version")),
        None => Err(refusal(400, "invalid_request_error", "anthropic-version: header is required")),
    }
}

/// The refusal that a fault answers with, if it answers with one in the API's form.
pub(super) fn fault(fault: Fault) -> Option<Refusal> {
    match fault {
        Fault::BadRequest => Some(refusal(400, "invalid_request_error", "This model refuses every request.")),
        Fault::Unauthorized => Some(wrong_key(true)),
        Fault::RateLimited => Some(refusal(
            429,
            "rate_limit_error",
            "This request would exceed your organization's rate limit.",
        )),
        Fault::ServerError => Some(refusal(500, "api_error", "Internal server error")),
        Fault::Overloaded => Some(refusal(529, "overloaded_error", "Overloaded")),
        _ => None,
    }
}

/// An error in the middle of a stream.
pub(super) fn error_event() -> Bytes {
    event(&json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}))
}

/// Answers a request whose path, method and version are right.
pub(super) fn answer(
    catalogue: &Catalogue,
    endpoint: Endpoint<'_>,
    body: &[u8],
) -> Result<Answered, Refusal> {
    match endpoint {
        Endpoint::Models => {
            let data: Vec<Value> = catalogue.all().map(model_object).collect();
            let ends = (data.first().map(|m| m["id"].clone()), data.last().map(|m| m["id"].clone()));
            let list = json!({"data": data, "has_more": false, "first_id": ends.0, "last_id": ends.1});
            Ok(Answered::json(None, &list))
        }
        Endpoint::Model(name) => {
            if !catalogue.knows(name) {
                return Err(unknown(name));
            }
            Ok(Answered::json(None, &model_object(name)))
        }
        Endpoint::CountTokens => {
            let value = parse(body)?;
            let fields = Node::root(&value).object(COUNTED)?;
            let fault = find(catalogue, fields.name("model")?)?;
            let read = read(&fields)?;
            let tokens: usize = read.texts.iter().map(|text| count_tokens(text)).sum();
            let tools: usize = read.tools.iter().map(|tool| count_tokens(&tool.schema.to_string())).sum();
            Ok(Answered::json(fault, &json!({"input_tokens": tokens + tools})))
        }
        Endpoint::Messages => messages(catalogue, body),
    }
}

fn unknown(model: &str) -> Refusal {
    refusal(404, "not_found_error", &format!("model: {model}"))
}

fn find(catalogue: &Catalogue, model: &str) -> Result<Option<Fault>, Refusal> {
    let fault = Fault::of_model(model);
    if fault.is_some() || catalogue.chats(model) { Ok(fault) } else { Err(unknown(model)) }
}

fn model_object(name: &str) -> Value {
    json!({"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active", "deprecated_at": null, "retires_at": null, "max_input_tokens": 200_000, "max_tokens": 64_000})
}

fn messages(catalogue: &Catalogue, body: &[u8]) -> Result<Answered, Refusal> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(OPTIONS)?;
    let model = fields.name("model")?;
    let fault = find(catalogue, model)?;
    let limit = fields.need("max_tokens")?.count(1)?;
    let stream = fields.flag("stream")?;
    fields.number("temperature", 0.0, 1.0)?;
    fields.number("top_p", 0.0, 1.0)?;
    fields.count("top_k", 0)?;
    if let Some(metadata) = fields.get("metadata") {
        metadata.object(&["user_id"])?;
    }
    if let Some(tier) = fields.get("service_tier") {
        tier.word(&["auto", "standard_only"])?;
    }
    let read = read(&fields)?;
    if let Some(budget) = read.budget
        && budget >= limit
    {
        let message = "`max_tokens` must be greater than `thinking.budget_tokens`".to_owned();
        return Err(fields.wrong("max_tokens", What::Rule("", message)).into());
    }
    if read.thinking && fields.get("temperature").is_some_and(|t| t.value.as_f64() != Some(1.0)) {
        let message = "`temperature` may only be set to 1 when thinking is enabled".to_owned();
        return Err(fields.wrong("temperature", What::Rule("", message)).into());
    }
    let cached = read.cached;
    let ask = Ask {
        tools: read.tools,
        choice: read.choice,
        parallel: read.parallel,
        preface: true,
        results: read.results,
        schema: read.schema,
        limit: Some(limit),
        stops: fields.get("stop_sequences").map_or(Ok(Vec::new()), |node| node.texts())?,
        thinking: read.thinking,
        ..Ask::plain(model, read.texts)
    };
    let message = Message { answer: ask.answer(catalogue.tokens), model: model.to_owned(), cached };
    let content = if stream {
        Content::events(message.events())
    } else {
        Content::Json(message.whole().to_string().into_bytes())
    };
    Ok(Answered { fault, content })
}

/// What `messages` and `count_tokens` share.
struct Read {
    texts: Vec<String>,
    tools: Vec<Tool>,
    choice: Choice,
    parallel: bool,
    results: bool,
    schema: Option<Value>,
    thinking: bool,
    budget: Option<usize>,
    /// Tokens of blocks that ask to be cached.
    cached: usize,
}

fn read(fields: &Fields<'_>) -> Result<Read, Mistake> {
    let mut cached = 0;
    let mut texts = Vec::new();
    if let Some(system) = fields.get("system") {
        if let Value::String(text) = system.value {
            texts.push(text.clone());
        } else {
            for node in system.list()? {
                let block = node.object(&["type", "text", "cache_control", "citations"])?;
                block.need("type")?.word(&["text"])?;
                texts.push(text_of(&block, &mut cached)?);
            }
        }
    }
    let (thinking, budget) = thinking(fields)?;
    let results = conversation(fields, thinking, &mut texts, &mut cached)?;
    let tools = tools(fields)?;
    let (choice, parallel) = tool_choice(fields, &tools)?;
    if thinking && matches!(choice, Choice::Any | Choice::Named(_)) {
        let message = "Thinking may not be enabled when tool_choice forces tool use.".to_owned();
        return Err(fields.wrong("tool_choice", What::Rule("", message)));
    }
    Ok(Read {
        texts,
        tools,
        choice,
        parallel,
        results,
        schema: output_schema(fields)?,
        thinking,
        budget,
        cached,
    })
}

fn thinking(fields: &Fields<'_>) -> Result<(bool, Option<usize>), Mistake> {
    let Some(node) = fields.get("thinking") else { return Ok((false, None)) };
    let thinking = node.object(&["type", "budget_tokens", "display"])?;
    match thinking.need("type")?.word(&["enabled", "disabled", "adaptive"])? {
        "disabled" => Ok((false, None)),
        "adaptive" => Ok((true, None)),
        _ => Ok((true, Some(thinking.need("budget_tokens")?.count(BUDGET_MIN)?))),
    }
}

fn output_schema(fields: &Fields<'_>) -> Result<Option<Value>, Mistake> {
    let Some(node) = fields.get("output_config") else { return Ok(None) };
    let config = node.object(&["effort", "format"])?;
    if let Some(effort) = config.get("effort") {
        effort.word(&["low", "medium", "high", "xhigh", "max"])?;
    }
    let Some(format) = config.get("format") else { return Ok(None) };
    let format = format.object(&["type", "schema"])?;
    format.need("type")?.word(&["json_schema"])?;
    let schema = format.need("schema")?;
    schema.open_object()?;
    Ok(Some(schema.value.clone()))
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, Mistake> {
    let Some(list) = fields.get("tools") else { return Ok(Vec::new()) };
    let one = |node: &Node<'_>| {
        let known = [
            "type",
            "name",
            "description",
            "input_schema",
            "cache_control",
            "strict",
            "eager_input_streaming",
            "allowed_callers",
            "defer_loading",
            "input_examples",
        ];
        let tool = node.object(&known)?;
        if let Some(kind) = tool.get("type") {
            kind.word(&["custom"])?;
        }
        let name = tool.name("name")?;
        let fits = name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !fits {
            let message = "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'".to_owned();
            return Err(tool.wrong("name", What::Rule("", message)));
        }
        if let Some(text) = tool.get("description") {
            text.text()?;
        }
        let schema = tool.need("input_schema")?;
        schema.open_object()?.need("type")?.word(&["object"])?;
        Ok(Tool { name: name.to_owned(), schema: schema.value.clone() })
    };
    list.list()?.iter().map(one).collect()
}

fn tool_choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<(Choice, bool), Mistake> {
    let Some(node) = fields.get("tool_choice") else { return Ok((Choice::Auto, true)) };
    let choice = node.object(&["type", "name", "disable_parallel_tool_use"])?;
    let parallel = !choice.flag("disable_parallel_tool_use")?;
    let chosen = match choice.need("type")?.word(&["auto", "any", "none", "tool"])? {
        "any" => Choice::Any,
        "none" => Choice::None,
        "tool" => {
            let name = choice.name("name")?;
            if !tools.iter().any(|tool| tool.name == name) {
                return Err(node.wrong(What::Rule("", format!("Tool '{name}' not found in provided tools"))));
            }
            Choice::Named(name.to_owned())
        }
        _ => Choice::Auto,
    };
    if tools.is_empty() && chosen != Choice::None {
        let message = "tool_choice may only be specified while providing tools.".to_owned();
        return Err(node.wrong(What::Rule("", message)));
    }
    Ok((chosen, parallel))
}

fn text_of(block: &Fields<'_>, cached: &mut usize) -> Result<String, Mistake> {
    let node = block.need("text")?;
    let text = node.text()?;
    if text.is_empty() {
        return Err(node.wrong(What::Rule("", "text content blocks must be non-empty".to_owned())));
    }
    if let Some(control) = block.get("cache_control") {
        let control = control.object(&["type", "ttl"])?;
        control.need("type")?.word(&["ephemeral"])?;
        *cached += count_tokens(text);
    }
    Ok(text.to_owned())
}

/// Reads the conversation; true when its last message brings results.
fn conversation(
    fields: &Fields<'_>,
    thinking: bool,
    texts: &mut Vec<String>,
    cached: &mut usize,
) -> Result<bool, Mistake> {
    let list = fields.need("messages")?;
    let nodes = list.list()?;
    if nodes.is_empty() {
        return Err(list.wrong(What::Rule("", "at least one message is required".to_owned())));
    }
    let mut open: Vec<String> = Vec::new();
    let mut results = false;
    for (index, node) in nodes.iter().enumerate() {
        let message = node.object(&["role", "content"])?;
        // Since version 2026-10-21 a conversation may have system messages in its course.
        let role = message.need("role")?.word(&["user", "assistant", "system"])?;
        let content = message.need("content")?;
        let rule = |text: String| node.wrong(What::Rule("", text));
        if index == 0 && role == "assistant" {
            return Err(rule("first message must use the \"user\" role".to_owned()));
        }
        results = false;
        let mut answered = Vec::new();
        let mut calls = Vec::new();
        let mut text = String::new();
        if let Value::String(plain) = content.value {
            if plain.is_empty() {
                return Err(rule("all messages must have non-empty content".to_owned()));
            }
            text.push_str(plain);
        } else {
            let blocks = content.list()?;
            if blocks.is_empty() {
                return Err(rule("all messages must have non-empty content".to_owned()));
            }
            for (at, block) in blocks.iter().enumerate() {
                match block_kind(role, block)? {
                    "text" => {
                        let known = ["type", "text", "cache_control", "citations"];
                        text += &text_of(&block.object(&known)?, cached)?;
                    }
                    "image" | "document" => {
                        image(block)?;
                        text += " [image]";
                    }
                    "thinking" => signed(block)?,
                    "tool_use" => {
                        if thinking && at == 0 && index + 2 >= nodes.len() {
                            let message = "Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` is enabled, a final `assistant` message must start with a thinking block.";
                            return Err(block.wrong(What::Rule("", message.to_owned())));
                        }
                        let call = block.object(&[
                            "type",
                            "id",
                            "name",
                            "input",
                            "cache_control",
                            "caller",
                            "toolset_name",
                        ])?;
                        call.name("name")?;
                        call.need("input")?.open_object()?;
                        calls.push(call.name("id")?.to_owned());
                    }
                    _ => {
                        let (id, said) = result(block, cached)?;
                        if !open.contains(&id) {
                            let message = format!(
                                "unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                            );
                            return Err(block.wrong(What::Rule("", message)));
                        }
                        results = true;
                        answered.push(id);
                        text += &said;
                    }
                }
            }
        }
        open.retain(|id| !answered.contains(id));
        if !open.is_empty() {
            return Err(rule(format!(
                "`tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block must have a corresponding `tool_result` block in the next message.",
                open.join(", ")
            )));
        }
        open = calls;
        texts.push(text);
    }
    Ok(results)
}

fn block_kind(role: &str, block: &Node<'_>) -> Result<&'static str, Mistake> {
    let kinds: &[&str] = if role == "user" {
        &["text", "image", "document", "tool_result"]
    } else if role == "system" {
        &["text"]
    } else {
        &["text", "thinking", "tool_use"]
    };
    block.open_object()?.need("type")?.word(kinds)
}

/// A thought that comes back must be one of ours.
fn signed(block: &Node<'_>) -> Result<(), Mistake> {
    let thinking = block.object(&["type", "thinking", "signature"])?;
    if thinking.need("signature")?.text()? == signature(thinking.need("thinking")?.text()?) {
        return Ok(());
    }
    Err(block.wrong(What::Rule("", "Invalid `signature` in `thinking` block".to_owned())))
}

fn image(block: &Node<'_>) -> Result<(), Mistake> {
    let image = block.object(&["type", "source", "cache_control", "title", "context", "citations"])?;
    let source = image.need("source")?.object(&["type", "media_type", "data", "url", "file_id"])?;
    match source.need("type")?.word(&["base64", "url", "text"])? {
        "url" => source.need("url")?.text().map(drop),
        _ => {
            let types =
                ["image/jpeg", "image/png", "image/gif", "image/webp", "application/pdf", "text/plain"];
            source.need("media_type")?.word(&types)?;
            source.need("data")?.text().map(drop)
        }
    }
}

fn result(block: &Node<'_>, cached: &mut usize) -> Result<(String, String), Mistake> {
    let result = block.object(&["type", "tool_use_id", "content", "is_error", "cache_control"])?;
    result.flag("is_error")?;
    let id = result.name("tool_use_id")?.to_owned();
    let Some(content) = result.get("content") else { return Ok((id, String::new())) };
    if let Value::String(text) = content.value {
        return Ok((id, text.clone()));
    }
    let mut text = String::new();
    for part in content.list()? {
        match part.open_object()?.need("type")?.word(&["text", "image"])? {
            "image" => image(&part)?,
            _ => text += &text_of(&part.object(&["type", "text", "cache_control", "citations"])?, cached)?,
        }
    }
    Ok((id, text))
}

struct Message {
    answer: Answer,
    model: String,
    cached: usize,
}

fn event(value: &Value) -> Bytes {
    let name = value.get("type").and_then(Value::as_str).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

impl Message {
    fn stop(&self) -> (&'static str, Value) {
        match &self.answer.finish {
            Finish::End => ("end_turn", Value::Null),
            Finish::Length => ("max_tokens", Value::Null),
            Finish::Stop(stop) => ("stop_sequence", json!(stop)),
            Finish::Tools => ("tool_use", Value::Null),
        }
    }

    fn usage(&self, output: usize) -> Value {
        json!({
            "input_tokens": self.answer.input_tokens.saturating_sub(self.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached,
            "output_tokens": output,
            "service_tier": "standard",
        })
    }

    /// The blocks, each with the deltas that make it in a stream.
    fn blocks(&self) -> Vec<(Value, Value, Vec<Value>)> {
        let mut blocks = Vec::new();
        let answer = &self.answer;
        if !answer.thought.is_empty() {
            let (thought, signature) = (answer.thought.concat(), signature(&answer.thought.concat()));
            let mut deltas: Vec<Value> =
                answer.thought.iter().map(|t| json!({"type": "thinking_delta", "thinking": t})).collect();
            deltas.push(json!({"type": "signature_delta", "signature": signature}));
            blocks.push((
                json!({"type": "thinking", "thinking": thought, "signature": signature}),
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                deltas,
            ));
        }
        if !answer.pieces.is_empty() {
            let deltas = answer.pieces.iter().map(|t| json!({"type": "text_delta", "text": t})).collect();
            blocks.push((
                json!({"type": "text", "text": answer.pieces.concat()}),
                json!({"type": "text", "text": ""}),
                deltas,
            ));
        }
        for call in &answer.calls {
            let block = |input: &Value| json!({"type": "tool_use", "id": format!("toolu_{}", call.id), "name": call.name, "input": input});
            // The real API begins with an empty piece.
            let pieces = std::iter::once(String::new()).chain(call.pieces());
            let deltas = pieces.map(|p| json!({"type": "input_json_delta", "partial_json": p})).collect();
            blocks.push((block(&call.arguments), block(&json!({})), deltas));
        }
        blocks
    }

    fn object(&self, content: &[Value], stop: &Value, sequence: &Value, usage: &Value) -> Value {
        json!({"id": format!("msg_{}", self.answer.id), "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": stop, "stop_sequence": sequence, "usage": usage})
    }

    fn whole(&self) -> Value {
        let content: Vec<Value> = self.blocks().into_iter().map(|(whole, _, _)| whole).collect();
        let (stop, sequence) = self.stop();
        self.object(&content, &json!(stop), &sequence, &self.usage(self.answer.output_tokens))
    }

    fn events(&self) -> VecDeque<Bytes> {
        let mut events = VecDeque::new();
        let mut say = |value: Value| events.push_back(event(&value));
        let opening = self.object(&[], &Value::Null, &Value::Null, &self.usage(1));
        say(json!({"type": "message_start", "message": opening}));
        say(json!({"type": "ping"}));
        for (index, (_, opening, deltas)) in self.blocks().into_iter().enumerate() {
            say(json!({"type": "content_block_start", "index": index, "content_block": opening}));
            for delta in deltas {
                say(json!({"type": "content_block_delta", "index": index, "delta": delta}));
            }
            say(json!({"type": "content_block_stop", "index": index}));
        }
        let (stop, sequence) = self.stop();
        say(json!({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": sequence},
            "usage": {"output_tokens": self.answer.output_tokens}}));
        say(json!({"type": "message_stop"}));
        events
    }
}
