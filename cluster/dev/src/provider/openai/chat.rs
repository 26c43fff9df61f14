//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::answer::{Answer, Ask, Tool};
use super::super::catalogue::Catalogue;
use super::super::strict::{Fields, Mistake, Node, What, parse};
use super::super::{Answered, Content};
use super::{
    ApiError, choice, done, find, finish_reason, function, image_url, json_schema, sampling, stops, streamed,
    tools, usage,
};

/// Messages in one conversation.
const MESSAGES_MAX: usize = 2048;

const OPTIONS: &[&str] = &[
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "user",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "metadata",
    "store",
    "service_tier",
    "reasoning_effort",
    "verbosity",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];
const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// A chat completion that is ready to be written out.
pub(super) struct Chat {
    pub(super) answer: Answer,
    model: String,
    usage: Value,
    pub(super) stream: bool,
    include_usage: bool,
}

pub(super) fn answer(catalogue: &Catalogue, body: &[u8], now: u64) -> Result<Answered, ApiError> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(OPTIONS)?;
    let fault = find(catalogue, fields.name("model")?, Catalogue::chats)?;
    let chat = read(catalogue, &fields)?;
    let content =
        if chat.stream { Content::events(chat.events(now)) } else { Content::Json(chat.whole(now)) };
    Ok(Answered { fault, content })
}

fn read(catalogue: &Catalogue, fields: &Fields<'_>) -> Result<Chat, Mistake> {
    let model = fields.name("model")?;
    let (texts, results) = messages(fields)?;
    let (stream, include_usage) = streamed(fields)?;
    sampling(fields)?;
    let limit = match (fields.count("max_tokens", 1)?, fields.count("max_completion_tokens", 1)?) {
        (Some(_), Some(_)) => {
            let message =
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
            let rule = What::Rule("invalid_parameter_combination", message.to_owned());
            return Err(fields.wrong("max_tokens", rule));
        }
        (one, other) => one.or(other),
    };
    let tools = tools(fields, |node| {
        let tool = node.object(&["type", "function"])?;
        tool.need("type")?.word(&["function"])?;
        function(&tool.need("function")?.object(&["name", "description", "parameters", "strict"])?)
    })?;
    let choice = choice(fields, &tools, |node| {
        let named = node.object(&["type", "function"])?;
        named.need("type")?.word(&["function"])?;
        Ok(named.need("function")?.object(&["name"])?.name("name")?.to_owned())
    })?;
    let parallel = parallel(fields, &tools)?;
    let thinking = match fields.get("reasoning_effort") {
        Some(effort) => effort.word(&["none", "minimal", "low", "medium", "high", "xhigh"])? != "none",
        None => false,
    };
    let cached = fields.get("prompt_cache_key").map(|key| key.text()).transpose()?.is_some();
    let ask = Ask {
        tools,
        choice,
        parallel,
        results,
        schema: response_format(fields, &texts)?,
        limit,
        stops: stops(fields)?,
        thinking,
        ..Ask::plain(model, texts)
    };
    let answer = ask.answer(catalogue.tokens);
    let cached = if cached { answer.input_tokens / 2 } else { 0 };
    let usage = usage(answer.input_tokens, cached, answer.output_tokens, answer.thought_tokens);
    Ok(Chat { answer, model: model.to_owned(), usage, stream, include_usage })
}

pub(super) fn parallel(fields: &Fields<'_>, tools: &[Tool]) -> Result<bool, Mistake> {
    let Some(node) = fields.get("parallel_tool_calls") else { return Ok(true) };
    if tools.is_empty() {
        let message = "'parallel_tool_calls' is only allowed when 'tools' are specified.";
        return Err(node.wrong(What::Rule("invalid_value", message.to_owned())));
    }
    node.flag()
}

fn response_format(fields: &Fields<'_>, texts: &[String]) -> Result<Option<Value>, Mistake> {
    let Some(node) = fields.get("response_format") else { return Ok(None) };
    let format = node.object(&["type", "json_schema"])?;
    match format.need("type")?.word(&["text", "json_object", "json_schema"])? {
        "text" => Ok(None),
        "json_object" if !texts.iter().any(|text| text.to_lowercase().contains("json")) => {
            let message = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.";
            Err(fields.wrong("messages", What::Rule("invalid_value", message.to_owned())))
        }
        "json_object" => Ok(Some(json!({"type": "object", "properties": {"answer": {"type": "string"}}}))),
        _ => {
            let known = ["name", "description", "schema", "strict"];
            json_schema(&format.need("json_schema")?.object(&known)?).map(Some)
        }
    }
}

/// The text of each message, and whether the last is a tool's result. What a message may hold is checked on the way, and
/// that each call has its result.
fn messages(fields: &Fields<'_>) -> Result<(Vec<String>, bool), Mistake> {
    let list = fields.need("messages")?;
    let nodes = list.list()?;
    if nodes.is_empty() || nodes.len() > MESSAGES_MAX {
        return Err(list.range("an array of 1 to 2048 messages"));
    }
    let mut texts = Vec::with_capacity(nodes.len());
    let mut open: Vec<String> = Vec::new();
    let mut results = false;
    for node in &nodes {
        let message = node.object(&[
            "role",
            "content",
            "name",
            "refusal",
            "annotations",
            "audio",
            "function_call",
            "tool_calls",
            "tool_call_id",
        ])?;
        let role = message.need("role")?.word(ROLES)?;
        results = role == "tool";
        if results {
            let id = message.name("tool_call_id")?;
            let before = open.len();
            open.retain(|call| call != id);
            if open.len() == before {
                let rule =
                    "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.";
                return Err(node.wrong(What::Rule("invalid_value", format!("Invalid parameter: {rule}"))));
            }
        } else if !open.is_empty() {
            return Err(unanswered(node, &open));
        }
        let calls = tool_calls(role, &message)?;
        let has_calls = !calls.is_empty();
        open.extend(calls);
        texts.push(content(role, &message, has_calls)?);
    }
    match nodes.last() {
        Some(last) if !open.is_empty() => Err(unanswered(last, &open)),
        _ => Ok((texts, results)),
    }
}

fn unanswered(node: &Node<'_>, open: &[String]) -> Mistake {
    let message = format!(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: {}",
        open.join(", ")
    );
    node.wrong(What::Rule("invalid_value", message))
}

fn tool_calls(role: &str, message: &Fields<'_>) -> Result<Vec<String>, Mistake> {
    let Some(node) = message.get("tool_calls") else { return Ok(Vec::new()) };
    if role != "assistant" {
        return Err(node.wrong(What::Unknown));
    }
    let calls = node.list()?;
    if calls.is_empty() {
        return Err(node.range("an array of at least one call"));
    }
    let read = |node: &Node<'_>| {
        // some SDKs send back the index of a streamed call
        let call = node.object(&["id", "type", "function", "index"])?;
        call.need("type")?.word(&["function"])?;
        let function = call.need("function")?.object(&["name", "arguments"])?;
        function.name("name")?;
        function.need("arguments")?.text()?;
        Ok(call.name("id")?.to_owned())
    };
    calls.iter().map(read).collect()
}

fn content(role: &str, message: &Fields<'_>, has_calls: bool) -> Result<String, Mistake> {
    let wrong = || message.wrong("content", What::Type("a string or an array of parts"));
    let Some(node) = message.get("content") else {
        let may_be_none = role == "assistant" && (has_calls || message.has("refusal"));
        return if may_be_none { Ok(String::new()) } else { Err(wrong()) };
    };
    match node.value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) if !parts.is_empty() => {
            let part = |node: &Node<'_>| {
                let part = node.object(&["type", "text", "image_url", "refusal"])?;
                let kinds: &[&str] = match role {
                    "user" => &["text", "image_url"],
                    "assistant" => &["text", "refusal"],
                    _ => &["text"],
                };
                match part.need("type")?.word(kinds)? {
                    "text" => part.need("text")?.text().map(ToOwned::to_owned),
                    "refusal" => part.need("refusal")?.text().map(ToOwned::to_owned),
                    _ => {
                        let image = part.need("image_url")?.object(&["url", "detail"])?;
                        image_url(&image.need("url")?)?;
                        if let Some(detail) = image.get("detail") {
                            detail.word(&["auto", "low", "high"])?;
                        }
                        Ok(" [image]".to_owned())
                    }
                }
            };
            Ok(node.list()?.iter().map(part).collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Err(wrong()),
    }
}

impl Chat {
    fn id(&self) -> String {
        format!("chatcmpl-{}", self.answer.id)
    }

    /// The `chat.completion` object.
    pub(super) fn whole(&self, created: u64) -> Vec<u8> {
        // Written by hand for the order of the real API: people read this, and `id` comes first there.
        let (id, model) = (Value::from(self.id()), Value::from(self.model.as_str()));
        let text = self.answer.pieces.concat();
        let content = if self.answer.calls.is_empty() { Value::from(text) } else { Value::Null };
        let call = |call: &super::super::answer::Call| {
            json!({"id": format!("call_{}", call.id), "type": "function",
                "function": {"name": call.name, "arguments": call.arguments.to_string()}})
        };
        let calls: Vec<Value> = self.answer.calls.iter().map(call).collect();
        let calls =
            if calls.is_empty() { String::new() } else { format!(",\"tool_calls\":{}", Value::from(calls)) };
        let (usage, finish_reason) = (&self.usage, finish_reason(&self.answer.finish));
        format!(
            r#"{{"id":{id},"object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":{content}{calls},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{finish_reason}"}}],"usage":{usage},"service_tier":"default","system_fingerprint":"fp_demo"}}"#
        )
        .into_bytes()
    }

    /// The `chat.completion.chunk` events, one per token, with `[DONE]` at the end.
    pub(super) fn events(&self, created: u64) -> VecDeque<Bytes> {
        // Only the delta differs between chunks, so the rest is encoded once.
        let (id, model) = (Value::from(self.id()), Value::from(self.model.as_str()));
        let start = format!(
            r#"{{"id":{id},"object":"chat.completion.chunk","created":{created},"model":{model},"system_fingerprint":"fp_demo","choices":["#
        );
        let usage_null = if self.include_usage { r#","usage":null"# } else { "" };
        let chunk = |delta: &str, finish_reason: &str| {
            let mut event = String::with_capacity(start.len() + delta.len() + 96);
            let _infallible = write!(
                event,
                "data: {start}{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish_reason}}}]{usage_null}}}\n\n"
            );
            Bytes::from(event)
        };
        let mut events = VecDeque::with_capacity(self.answer.pieces.len() + 4);
        let content = if self.answer.calls.is_empty() { "\"\"" } else { "null" };
        events.push_back(chunk(
            &format!(r#"{{"role":"assistant","content":{content},"refusal":null}}"#),
            "null",
        ));
        for piece in &self.answer.pieces {
            events.push_back(chunk(&format!(r#"{{"content":{}}}"#, Value::from(piece.as_str())), "null"));
        }
        for (index, call) in self.answer.calls.iter().enumerate() {
            let opening = json!({"tool_calls": [{"index": index, "id": format!("call_{}", call.id), "type": "function",
                "function": {"name": call.name, "arguments": ""}}]});
            events.push_back(chunk(&opening.to_string(), "null"));
            for piece in call.pieces() {
                let delta = json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]});
                events.push_back(chunk(&delta.to_string(), "null"));
            }
        }
        events.push_back(chunk("{}", &format!("\"{}\"", finish_reason(&self.answer.finish))));
        if self.include_usage {
            let usage = &self.usage;
            events.push_back(Bytes::from(format!("data: {start}],\"usage\":{usage}}}\n\n")));
        }
        events.push_back(done());
        events
    }
}
