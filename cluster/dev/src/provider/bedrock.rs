//! Amazon Bedrock's Converse and ConverseStream, with bearer API keys. A pure function of a request.
//!
//! A stream is in the `application/vnd.amazon.eventstream` encoding: each message has a prelude of two lengths with their
//! CRC, headers, a JSON payload, and a CRC of it all.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Ask, Choice, Finish, Tool, signature};
use super::catalogue::{Catalogue, Fault};
use super::strict::{Fields, Mistake, Node, What, parse};
use super::{Answered, Content, Refusal};

const OPTIONS: &[&str] = &[
    "messages",
    "system",
    "inferenceConfig",
    "toolConfig",
    "guardrailConfig",
    "additionalModelRequestFields",
    "additionalModelResponseFieldPaths",
    "promptVariables",
    "requestMetadata",
    "performanceConfig",
];

/// What was asked, by path: the model, and whether it is a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    model: String,
    stream: bool,
}

impl Endpoint {
    /// The endpoint of a path, if it is one of Bedrock's.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (model, verb) = path.strip_prefix("/model/")?.rsplit_once('/')?;
        let stream = match verb {
            "converse" => false,
            "converse-stream" => true,
            _ => return None,
        };
        Some(Self { model: model.replace("%3A", ":").replace("%2F", "/"), stream })
    }
}

/// A refusal in the API's error form: its kind stands in a header.
pub(super) fn refusal(status: u16, kind: &'static str, message: &str) -> Refusal {
    let mut refusal = Refusal::new(status, &json!({ "message": message }));
    refusal.headers.push(("x-amzn-errortype", kind.to_owned()));
    refusal
}

struct Wrong(Mistake);

impl From<Mistake> for Wrong {
    fn from(mistake: Mistake) -> Self {
        Self(mistake)
    }
}

impl From<Wrong> for Refusal {
    fn from(Wrong(mistake): Wrong) -> Self {
        let at = mistake.dotted();
        let message = match mistake.what {
            What::NotJson => {
                return refusal(400, "SerializationException", "The request is no JSON object.");
            }
            What::Missing => format!(
                "1 validation error detected: Value at '{at}' failed to satisfy constraint: Member must not be null"
            ),
            What::Unknown => format!("The request has an unknown member: {at}"),
            What::Type(expected) => {
                return refusal(400, "SerializationException", &format!("{at}: expected {expected}"));
            }
            What::Range(range) => format!(
                "1 validation error detected: Value at '{at}' failed to satisfy constraint: Member must be {range}"
            ),
            What::Rule(_, message) => message,
        };
        refusal(400, "ValidationException", &message)
    }
}

/// The refusal of a wrong or missing key.
pub(super) fn wrong_key() -> Refusal {
    refusal(403, "AccessDeniedException", "Authentication failed: Please make sure your API Key is valid.")
}

/// The refusal that a fault answers with, if it answers with one in the API's form.
pub(super) fn fault(fault: Fault) -> Option<Refusal> {
    match fault {
        Fault::BadRequest => Some(refusal(400, "ValidationException", "This model refuses every request.")),
        Fault::Unauthorized => Some(wrong_key()),
        Fault::RateLimited => {
            Some(refusal(429, "ThrottlingException", "Too many requests, please wait before trying again."))
        }
        Fault::ServerError => {
            Some(refusal(500, "InternalServerException", "The system encountered an unexpected error."))
        }
        Fault::Overloaded => {
            Some(refusal(503, "ServiceUnavailableException", "Bedrock is unable to process your request."))
        }
        _ => None,
    }
}

/// An error in the middle of a stream.
pub(super) fn error_event() -> Bytes {
    let payload = json!({"message": "The model is overloaded."});
    message(
        &[
            (":exception-type", "modelStreamErrorException"),
            (":content-type", "application/json"),
            (":message-type", "exception"),
        ],
        &payload,
    )
}

/// Answers a request whose path and method are right.
pub(super) fn answer(catalogue: &Catalogue, endpoint: &Endpoint, body: &[u8]) -> Result<Answered, Refusal> {
    let fault = Fault::of_model(&endpoint.model);
    if fault.is_none() && !catalogue.chats(&endpoint.model) {
        return Err(refusal(400, "ValidationException", "The provided model identifier is invalid."));
    }
    let answer = read(catalogue, &endpoint.model, body).map_err(Refusal::from)?;
    let content = if endpoint.stream {
        Content::Stream("application/vnd.amazon.eventstream", events(&answer))
    } else {
        Content::Json(whole(&answer).to_string().into_bytes())
    };
    Ok(Answered { fault, content })
}

fn read(catalogue: &Catalogue, model: &str, body: &[u8]) -> Result<Answer, Wrong> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(OPTIONS)?;
    let mut texts = Vec::new();
    if let Some(system) = fields.get("system") {
        for node in system.list()? {
            let block = node.object(&["text", "cachePoint", "guardContent"])?;
            if let Some(text) = block.get("text") {
                texts.push(text.text()?.to_owned());
            }
        }
    }
    let results = messages(&fields, &mut texts)?;
    let (tools, choice) = tools(&fields)?;
    let mut ask = Ask { tools, choice, results, preface: true, ..Ask::plain(model, texts) };
    if let Some(config) = fields.get("inferenceConfig") {
        let config = config.object(&["maxTokens", "temperature", "topP", "stopSequences"])?;
        config.number("temperature", 0.0, 1.0)?;
        config.number("topP", 0.0, 1.0)?;
        ask.limit = config.count("maxTokens", 1)?;
        ask.stops = config.get("stopSequences").map_or(Ok(Vec::new()), |node| node.texts())?;
    }
    if let Some(extra) = fields.get("additionalModelRequestFields") {
        let extra = extra.open_object()?;
        ask.thinking =
            extra.get("thinking").is_some_and(|node| node.value.get("type") == Some(&json!("enabled")));
    }
    Ok(ask.answer(catalogue.tokens))
}

fn messages(fields: &Fields<'_>, texts: &mut Vec<String>) -> Result<bool, Mistake> {
    let list = fields.need("messages")?;
    let nodes = list.list()?;
    let rule = |node: &Node<'_>, message: &str| node.wrong(What::Rule("", message.to_owned()));
    if nodes.is_empty() {
        return Err(rule(
            &list,
            "A conversation must start with a user message. Try again with a conversation that starts with a user message.",
        ));
    }
    let (mut open, mut results, mut before): (Vec<String>, bool, &str) = (Vec::new(), false, "");
    for (index, node) in nodes.iter().enumerate() {
        let message = node.object(&["role", "content"])?;
        let role = message.need("role")?.word(&["user", "assistant"])?;
        if index == 0 && role != "user" {
            return Err(rule(
                node,
                "A conversation must start with a user message. Try again with a conversation that starts with a user message.",
            ));
        }
        if role == before {
            return Err(rule(
                node,
                "A conversation must alternate between user and assistant roles. Make sure the conversation alternates between user and assistant roles and try again.",
            ));
        }
        before = role;
        results = false;
        let (mut text, mut calls, mut answered) = (String::new(), Vec::new(), Vec::new());
        for block in message.need("content")?.list()? {
            let fields = block.object(&[
                "text",
                "image",
                "document",
                "toolUse",
                "toolResult",
                "reasoningContent",
                "cachePoint",
            ])?;
            let Some(kind) = fields.names().next() else {
                return Err(rule(&block, "The content block is empty."));
            };
            let inner = fields.need(kind)?;
            match kind {
                "text" => text += inner.text()?,
                "image" | "document" => {
                    let image = inner.object(&["format", "source", "name"])?;
                    image.need("format")?.text()?;
                    image.need("source")?.object(&["bytes", "s3Location"])?;
                    text += " [image]";
                }
                "toolUse" if role == "assistant" => {
                    let call = inner.object(&["toolUseId", "name", "input", "type"])?;
                    call.name("name")?;
                    call.need("input")?.open_object()?;
                    calls.push(call.name("toolUseId")?.to_owned());
                }
                "toolResult" if role == "user" => {
                    let result = inner.object(&["toolUseId", "content", "status", "type"])?;
                    if let Some(status) = result.get("status") {
                        status.word(&["success", "error"])?;
                    }
                    for part in result.need("content")?.list()? {
                        let part = part.object(&["text", "json", "image", "document"])?;
                        match (part.get("text"), part.get("json")) {
                            (Some(said), _) => text += said.text()?,
                            (_, Some(json)) => text += &json.value.to_string(),
                            _ => {}
                        }
                    }
                    answered.push(result.name("toolUseId")?.to_owned());
                    results = true;
                }
                "reasoningContent" if role == "assistant" => {
                    let inner = inner.object(&["reasoningText", "redactedContent"])?;
                    if let Some(node) = inner.get("reasoningText") {
                        let thought = node.object(&["text", "signature"])?;
                        if thought.need("signature")?.text()? != signature(thought.need("text")?.text()?) {
                            return Err(rule(&node, "Invalid `signature` in `thinking` block"));
                        }
                    }
                }
                "cachePoint" => {}
                _ => {
                    return Err(rule(
                        &block,
                        "A block of this kind does not belong into this role's message.",
                    ));
                }
            }
        }
        if answered.iter().any(|id| !open.contains(id)) {
            return Err(rule(
                node,
                "The number of toolResult blocks exceeds the number of toolUse blocks of previous turn.",
            ));
        }
        if open.iter().any(|id| !answered.contains(id)) {
            return Err(rule(
                node,
                "Expected toolResult blocks for all toolUse blocks of the previous turn.",
            ));
        }
        open = calls;
        texts.push(text);
    }
    Ok(results)
}

fn tools(fields: &Fields<'_>) -> Result<(Vec<Tool>, Choice), Mistake> {
    let Some(config) = fields.get("toolConfig") else { return Ok((Vec::new(), Choice::Auto)) };
    let config = config.object(&["tools", "toolChoice"])?;
    let mut tools = Vec::new();
    for node in config.need("tools")?.list()? {
        let Some(spec) = node.object(&["toolSpec", "cachePoint"])?.get("toolSpec") else { continue };
        let spec = spec.object(&["name", "description", "inputSchema", "strict"])?;
        let schema = spec.need("inputSchema")?.object(&["json"])?.need("json")?;
        schema.open_object()?;
        tools.push(Tool { name: spec.name("name")?.to_owned(), schema: schema.value.clone() });
    }
    let Some(node) = config.get("toolChoice") else { return Ok((tools, Choice::Auto)) };
    let choice = node.object(&["auto", "any", "tool"])?;
    let choice = if let Some(tool) = choice.get("tool") {
        Choice::Named(tool.object(&["name"])?.name("name")?.to_owned())
    } else if choice.has("any") {
        Choice::Any
    } else {
        Choice::Auto
    };
    Ok((tools, choice))
}

fn stop_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End => "end_turn",
        Finish::Length => "max_tokens",
        Finish::Stop(_) => "stop_sequence",
        Finish::Tools => "tool_use",
    }
}

fn usage(answer: &Answer) -> Value {
    json!({"inputTokens": answer.input_tokens, "outputTokens": answer.output_tokens,
        "totalTokens": answer.input_tokens + answer.output_tokens})
}

fn whole(answer: &Answer) -> Value {
    let mut content = Vec::new();
    if !answer.thought.is_empty() {
        let thought = answer.thought.concat();
        content.push(json!({"reasoningContent": {"reasoningText": {"text": thought, "signature": signature(&thought)}}}));
    }
    if !answer.pieces.is_empty() {
        content.push(json!({"text": answer.pieces.concat()}));
    }
    content.extend(answer.calls.iter().map(|call| {
        json!({"toolUse": {"toolUseId": format!("tooluse_{}", call.id), "name": call.name, "input": call.arguments}})
    }));
    json!({"output": {"message": {"role": "assistant", "content": content}}, "stopReason": stop_reason(&answer.finish),
        "usage": usage(answer), "metrics": {"latencyMs": 1}})
}

fn events(answer: &Answer) -> VecDeque<Bytes> {
    let mut events = VecDeque::new();
    let mut say = |kind: &str, payload: Value| {
        let headers =
            [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")];
        events.push_back(message(&headers, &payload));
    };
    say("messageStart", json!({"role": "assistant"}));
    let mut index = 0;
    let delta = |index: usize, delta: Value| json!({"contentBlockIndex": index, "delta": delta});
    let stop = |index: usize| json!({"contentBlockIndex": index});
    if !answer.thought.is_empty() {
        for piece in &answer.thought {
            say("contentBlockDelta", delta(index, json!({"reasoningContent": {"text": piece}})));
        }
        let signed = signature(&answer.thought.concat());
        say("contentBlockDelta", delta(index, json!({"reasoningContent": {"signature": signed}})));
        say("contentBlockStop", stop(index));
        index += 1;
    }
    if !answer.pieces.is_empty() {
        for piece in &answer.pieces {
            say("contentBlockDelta", delta(index, json!({ "text": piece })));
        }
        say("contentBlockStop", stop(index));
        index += 1;
    }
    for call in &answer.calls {
        let start = json!({"toolUse": {"toolUseId": format!("tooluse_{}", call.id), "name": call.name}});
        say("contentBlockStart", json!({"contentBlockIndex": index, "start": start}));
        for piece in call.pieces() {
            say("contentBlockDelta", delta(index, json!({"toolUse": {"input": piece}})));
        }
        say("contentBlockStop", stop(index));
        index += 1;
    }
    say("messageStop", json!({"stopReason": stop_reason(&answer.finish)}));
    say("metadata", json!({"usage": usage(answer), "metrics": {"latencyMs": 1}}));
    events
}

/// One message of the event stream.
fn message(headers: &[(&str, &str)], payload: &Value) -> Bytes {
    let payload = payload.to_string();
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).unwrap_or_default());
        head.extend_from_slice(name.as_bytes());
        // 7: a string, its length in two bytes
        head.push(7);
        head.extend_from_slice(&u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or_default().to_be_bytes();
    let mut out = Vec::new();
    out.extend_from_slice(&length(16 + head.len() + payload.len()));
    out.extend_from_slice(&length(head.len()));
    out.extend_from_slice(&crc32(&out).to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(&crc32(&out).to_be_bytes());
    Bytes::from(out)
}

/// CRC-32 as of ISO 3309, bit by bit: messages are small.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_gives_the_check_value_of_its_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_message_says_its_own_length() {
        let bytes = message(&[(":message-type", "event")], &json!({"a": 1}));
        assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(crc32(&bytes[..8]).to_be_bytes(), bytes[8..12]);
        assert_eq!(crc32(&bytes[..bytes.len() - 4]).to_be_bytes(), bytes[bytes.len() - 4..]);
    }
}
