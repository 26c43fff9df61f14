//! OpenAI's formats, as a pure function of a request body: what is asked, whether it is well formed, and the
//! answer. No clock and no randomness: the caller gives the time, and the text comes from SHA-256 of the request.
//!
//! It refuses what the API refuses (wrong types, unknown names, values out of range) in the API's own error
//! form. It accepts and ignores known sampling options. A *token* here is a word.
//!
//! Follows OpenAI's API reference: chat completions, chat completion chunks, embeddings, models, errors.

use std::collections::VecDeque;
use std::fmt::Write as _;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The chat model that is always there.
pub(super) const CHAT_MODEL: &str = "demo-chat";
/// The embedding model.
pub(super) const EMBED_MODEL: &str = "demo-embed";

/// Messages in one conversation.
const MESSAGES_MAX: usize = 2048;
/// Inputs in one embeddings request, as in the real API.
const INPUTS_MAX: usize = 2048;
/// Length of an embedding unless the request says less.
const DIMENSIONS: usize = 256;
/// Words of the last message that an answer repeats.
const ECHO_WORDS: usize = 12;
/// Bytes of a repeated word.
const ECHO_WORD_BYTES: usize = 24;

const CHAT_OPTIONS: &[&str] = &[
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
    "safety_identifier",
    "prompt_cache_key",
];
const EMBED_OPTIONS: &[&str] = &["model", "input", "encoding_format", "dimensions", "user"];
const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// Sentences are made of one of each. They are about nothing, so that nobody takes them for a model's opinion.
const SUBJECTS: [&str; 8] = [
    "A heron",
    "The old bridge",
    "Every lantern",
    "The ferry",
    "A quiet orchard",
    "The north wind",
    "One small boat",
    "The clockmaker",
];
const VERBS: [&str; 8] =
    ["watches", "waits for", "remembers", "passes", "follows", "leans toward", "outlasts", "is older than"];
const OBJECTS: [&str; 8] = [
    "the river.",
    "a slow morning.",
    "the far shore.",
    "the harbour at noon.",
    "its own shadow.",
    "the first snow.",
    "a field of barley.",
    "the evening train.",
];

/// A fault, asked for by the model's name in a chat or embeddings request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `fault-close-mid-stream`: half of the answer, then a close without an end.
    CloseMidStream,
    /// `fault-close`: a close instead of an answer.
    Close,
    /// `fault-slow`: the answer after `--slow-ms`.
    Slow,
    /// `fault-400`: a refusal in the API's form, as for bad input.
    BadRequest,
    /// `fault-401`: as for a wrong key.
    Unauthorized,
    /// `fault-429`: a rate limit with `retry-after`.
    RateLimited,
    /// `fault-500`: the provider's own failure.
    ServerError,
    /// `fault-502-html`: a front end's page, not in the API's form.
    BadGatewayHtml,
}

impl Fault {
    const ALL: [(&str, Self); 8] = [
        ("fault-close-mid-stream", Self::CloseMidStream),
        ("fault-close", Self::Close),
        ("fault-slow", Self::Slow),
        ("fault-400", Self::BadRequest),
        ("fault-401", Self::Unauthorized),
        ("fault-429", Self::RateLimited),
        ("fault-500", Self::ServerError),
        ("fault-502-html", Self::BadGatewayHtml),
    ];

    /// The fault of a model name, if it is one.
    pub fn of_model(model: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == model).map(|(_, fault)| *fault)
    }
}

/// A refusal in the API's error form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) param: Option<String>,
    pub(super) message: String,
}

impl ApiError {
    /// Something is wrong with the request as a whole.
    pub(super) fn request(status: u16, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind: "invalid_request_error", code, param: None, message: message.into() }
    }

    fn param(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        let code = Some(code);
        Self {
            status: 400,
            kind: "invalid_request_error",
            code,
            param: Some(param.into()),
            message: message.into(),
        }
    }

    fn wrong_type(param: impl Into<String>, expected: &str) -> Self {
        let param = param.into();
        let message = format!("Invalid type for '{param}': expected {expected}.");
        Self::param(param, "invalid_type", message)
    }

    fn out_of_range(param: &str, range: &str) -> Self {
        Self::param(param, "invalid_value", format!("Invalid value for '{param}': must be {range}."))
    }

    /// The JSON body.
    pub(super) fn body(&self) -> Vec<u8> {
        let error =
            json!({"message": self.message, "type": self.kind, "param": self.param, "code": self.code});
        json!({ "error": error }).to_string().into_bytes()
    }
}

/// What a provider serves, and how long its answers are.
pub(super) struct Catalogue {
    pub(super) chat_models: Vec<String>,
    pub(super) tokens: usize,
}

impl Catalogue {
    fn find(&self, model: &str, known: impl Fn(&str) -> bool) -> Result<Option<Fault>, ApiError> {
        let fault = Fault::of_model(model);
        if fault.is_some() || known(model) {
            return Ok(fault);
        }
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        Err(ApiError::request(404, Some("model_not_found"), message))
    }

    /// `GET /v1/models`.
    pub(super) fn models(&self) -> Vec<u8> {
        let names = self.chat_models.iter().map(String::as_str).chain([EMBED_MODEL]);
        json!({"object": "list", "data": names.map(model_object).collect::<Vec<_>>()})
            .to_string()
            .into_bytes()
    }

    /// `GET /v1/models/{model}`.
    pub(super) fn model(&self, model: &str) -> Result<Vec<u8>, ApiError> {
        self.find(model, |name| name == EMBED_MODEL || self.chat_models.iter().any(|known| known == name))?;
        Ok(model_object(model).to_string().into_bytes())
    }

    /// Reads and answers a chat completion.
    pub(super) fn chat(&self, body: &[u8]) -> Result<Chat, ApiError> {
        let request = object(body, CHAT_OPTIONS)?;
        let model = required_str(&request, "model")?;
        let fault = self.find(model, |name| self.chat_models.iter().any(|known| known == name))?;
        let texts = messages(&request)?;
        let stream = optional_bool(&request, "stream")?.unwrap_or(false);
        let include_usage = match request.get("stream_options") {
            None | Some(Value::Null) => false,
            Some(_) if !stream => {
                let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
                return Err(ApiError::param("stream_options", "invalid_value", message));
            }
            Some(Value::Object(options)) => optional_bool(options, "include_usage")?.unwrap_or(false),
            Some(_) => return Err(ApiError::wrong_type("stream_options", "an object")),
        };
        check_number(&request, "temperature", 0.0, 2.0)?;
        check_number(&request, "top_p", 0.0, 1.0)?;
        check_number(&request, "presence_penalty", -2.0, 2.0)?;
        check_number(&request, "frequency_penalty", -2.0, 2.0)?;
        if positive(&request, "n")?.is_some_and(|n| n != 1) {
            return Err(ApiError::out_of_range("n", "1 at this provider"));
        }
        let limit = match (positive(&request, "max_tokens")?, positive(&request, "max_completion_tokens")?) {
            (Some(_), Some(_)) => {
                let message =
                    "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
                return Err(ApiError::param("max_tokens", "invalid_parameter_combination", message));
            }
            (one, other) => one.or(other),
        };

        let mut seed = digest::Context::new(&digest::SHA256);
        seed.update(model.as_bytes());
        for text in &texts {
            seed.update(&(text.len() as u64).to_be_bytes());
            seed.update(text.as_bytes());
        }
        let seed = seed.finish();
        let wanted = limit.map_or(self.tokens, |limit| limit.min(self.tokens));
        let pieces = answer_words(texts.last().map_or("", String::as_str), seed.as_ref(), wanted);
        let finish_reason = if wanted < self.tokens { "length" } else { "stop" };
        let usage = Usage::new(texts.iter().map(|text| count_tokens(text)).sum(), pieces.len());
        let id = format!("chatcmpl-{}", hex::encode(seed.as_ref().get(..12).unwrap_or_default()));
        Ok(Chat { id, model: model.to_owned(), pieces, finish_reason, usage, stream, include_usage, fault })
    }

    /// Reads and answers an embeddings request: the fault asked for, and the answer.
    pub(super) fn embed(&self, body: &[u8]) -> Result<(Option<Fault>, Vec<u8>), ApiError> {
        let request = object(body, EMBED_OPTIONS)?;
        let model = required_str(&request, "model")?;
        let fault = self.find(model, |name| name == EMBED_MODEL)?;
        let inputs = embedding_inputs(request.get("input"))?;
        let dimensions = positive(&request, "dimensions")?.unwrap_or(DIMENSIONS);
        if dimensions > DIMENSIONS {
            return Err(ApiError::out_of_range("dimensions", "at most 256"));
        }
        let packed = match request.get("encoding_format").unwrap_or(&Value::Null) {
            Value::Null => false,
            Value::String(format) if format == "float" => false,
            Value::String(format) if format == "base64" => true,
            _ => return Err(ApiError::out_of_range("encoding_format", "'float' or 'base64'")),
        };
        let data: Vec<Value> = inputs
            .iter()
            .enumerate()
            .map(|(index, input)| {
                let vector = embedding(input, dimensions);
                let value = if packed {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Value::String(STANDARD.encode(bytes))
                } else {
                    json!(vector)
                };
                json!({"object": "embedding", "index": index, "embedding": value})
            })
            .collect();
        let tokens: usize = inputs.iter().map(|input| input.len().max(1)).sum();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        Ok((
            fault,
            json!({"object": "list", "data": data, "model": model, "usage": usage}).to_string().into_bytes(),
        ))
    }
}

/// A chat completion that is ready to be written out.
pub(super) struct Chat {
    id: String,
    model: String,
    /// The answer's words, each but the first with its leading space.
    pieces: Vec<String>,
    finish_reason: &'static str,
    usage: Usage,
    pub(super) stream: bool,
    include_usage: bool,
    pub(super) fault: Option<Fault>,
}

#[derive(Clone, Copy, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

impl Chat {
    /// The `chat.completion` object.
    pub(super) fn whole(&self, created: u64) -> Vec<u8> {
        // Written by hand for the order of the real API: people read this, and `id` comes first there.
        let (id, model) = (Value::from(self.id.as_str()), Value::from(self.model.as_str()));
        let (content, usage) = (Value::from(self.pieces.concat()), json!(self.usage));
        let finish_reason = self.finish_reason;
        format!(
            r#"{{"id":{id},"object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null}},"logprobs":null,"finish_reason":"{finish_reason}"}}],"usage":{usage},"system_fingerprint":"fp_demo"}}"#
        )
        .into_bytes()
    }

    /// The `chat.completion.chunk` events, one per token, with `[DONE]` at the end.
    pub(super) fn events(&self, created: u64) -> VecDeque<Bytes> {
        // Only the delta differs between chunks, so the rest is encoded once.
        let (id, model) = (Value::from(self.id.as_str()), Value::from(self.model.as_str()));
        let start = format!(
            r#"data: {{"id":{id},"object":"chat.completion.chunk","created":{created},"model":{model},"system_fingerprint":"fp_demo","choices":["#
        );
        let usage_null = if self.include_usage { r#","usage":null"# } else { "" };
        let chunk = |delta: &str, finish_reason: &str| {
            let mut event = String::with_capacity(start.len() + delta.len() + 96);
            let _infallible = write!(
                event,
                "{start}{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish_reason}}}]{usage_null}}}\n\n"
            );
            Bytes::from(event)
        };
        let mut events = VecDeque::with_capacity(self.pieces.len() + 4);
        events.push_back(chunk(r#"{"role":"assistant","content":"","refusal":null}"#, "null"));
        for piece in &self.pieces {
            events.push_back(chunk(&format!(r#"{{"content":{}}}"#, Value::from(piece.as_str())), "null"));
        }
        events.push_back(chunk("{}", &format!("\"{}\"", self.finish_reason)));
        if self.include_usage {
            let usage = json!(self.usage);
            events.push_back(Bytes::from(format!("{start}],\"usage\":{usage}}}\n\n")));
        }
        events.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        events
    }
}

/// The error that a fault answers with, if it answers with one in the API's form.
pub(super) fn fault_error(fault: Fault) -> Option<ApiError> {
    let error = |status, kind, code, message: &str| {
        Some(ApiError { status, kind, code: Some(code), param: None, message: message.to_owned() })
    };
    match fault {
        Fault::BadRequest => {
            error(400, "invalid_request_error", "invalid_value", "This model refuses every request.")
        }
        Fault::Unauthorized => Some(wrong_key()),
        Fault::RateLimited => {
            error(429, "requests", "rate_limit_exceeded", "Rate limit reached for requests.")
        }
        Fault::ServerError => error(
            500,
            "server_error",
            "internal_error",
            "The server had an error while processing your request. Sorry about that!",
        ),
        Fault::CloseMidStream | Fault::Close | Fault::Slow | Fault::BadGatewayHtml => None,
    }
}

/// The refusal of a wrong API key. It does not repeat the key, as some providers do.
pub(super) fn wrong_key() -> ApiError {
    ApiError::request(401, Some("invalid_api_key"), "Incorrect API key provided.")
}

fn model_object(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "quorate-demo"})
}

fn object(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, ApiError> {
    let not_json = "We could not parse the JSON body of your request: it must be one JSON object.";
    let Ok(Value::Object(request)) = serde_json::from_slice(body) else {
        return Err(ApiError::request(400, None, not_json));
    };
    match request.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(ApiError::param(key, "unknown_parameter", format!("Unknown parameter: '{key}'."))),
        None => Ok(request),
    }
}

fn required_str<'a>(request: &'a Map<String, Value>, name: &str) -> Result<&'a str, ApiError> {
    match request.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null) => {
            let message = format!("Missing required parameter: '{name}'.");
            Err(ApiError::param(name, "missing_required_parameter", message))
        }
        Some(_) => Err(ApiError::wrong_type(name, "a non-empty string")),
    }
}

fn optional_bool(request: &Map<String, Value>, name: &str) -> Result<Option<bool>, ApiError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(ApiError::wrong_type(name, "a boolean")),
    }
}

fn positive(request: &Map<String, Value>, name: &str) -> Result<Option<usize>, ApiError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(Some(number)),
            Some(_) => Err(ApiError::out_of_range(name, "at least 1")),
            None => Err(ApiError::wrong_type(name, "a positive integer")),
        },
    }
}

fn check_number(request: &Map<String, Value>, name: &str, low: f64, high: f64) -> Result<(), ApiError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(value) => match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(()),
            Some(_) => Err(ApiError::out_of_range(name, &format!("from {low} to {high}"))),
            None => Err(ApiError::wrong_type(name, "a number")),
        },
    }
}

/// The text of each message; what a message may contain is checked on the way.
fn messages(request: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let messages = match request.get("messages") {
        None | Some(Value::Null) => {
            let message = "Missing required parameter: 'messages'.";
            return Err(ApiError::param("messages", "missing_required_parameter", message));
        }
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(ApiError::wrong_type("messages", "an array of objects")),
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        return Err(ApiError::out_of_range("messages", "an array of 1 to 2048 messages"));
    }
    messages.iter().enumerate().map(|(index, message)| message_text(index, message)).collect()
}

fn message_text(index: usize, message: &Value) -> Result<String, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(message) = message else { return Err(ApiError::wrong_type(at(""), "an object")) };
    let role = match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
        Some(Value::String(_)) => {
            return Err(ApiError::out_of_range(
                &at(".role"),
                "one of system, developer, user, assistant and tool",
            ));
        }
        _ => return Err(ApiError::wrong_type(at(".role"), "a string")),
    };
    match message.get("content") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) if !parts.is_empty() => {
            let text_part = |part: &Value| match (part.get("type"), part.get("text")) {
                (Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => Ok(text.clone()),
                _ => Err(ApiError::wrong_type(at(".content"), "parts of type 'text'")),
            };
            parts.iter().map(text_part).collect::<Result<Vec<_>, _>>().map(|texts| texts.concat())
        }
        Some(Value::Null) if role == "assistant" && message.contains_key("tool_calls") => Ok(String::new()),
        _ => Err(ApiError::wrong_type(at(".content"), "a string or an array of text parts")),
    }
}

/// An answer of exactly `wanted` words: some of the question's, then sentences picked by the digest.
fn answer_words(question: &str, seed: &[u8], wanted: usize) -> Vec<String> {
    let mut words: Vec<String> = vec!["You".to_owned(), " asked:".to_owned()];
    words.extend(question.split_whitespace().take(ECHO_WORDS).map(|word| {
        let mut end = word.len().min(ECHO_WORD_BYTES);
        while !word.is_char_boundary(end) {
            end -= 1;
        }
        format!(" {}", word.get(..end).unwrap_or_default())
    }));
    words.push(" —".to_owned());
    let mut block = 0_u64;
    while words.len() < wanted {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(seed);
        context.update(&block.to_be_bytes());
        let picks = context.finish();
        for pick in picks.as_ref().chunks_exact(3) {
            for (byte, parts) in pick.iter().zip([&SUBJECTS, &VERBS, &OBJECTS]) {
                let part = parts.get(usize::from(*byte) % parts.len()).copied().unwrap_or_default();
                words.extend(part.split(' ').map(|word| format!(" {word}")));
            }
        }
        block += 1;
    }
    words.truncate(wanted);
    words
}

fn count_tokens(text: &str) -> usize {
    text.split_whitespace().count().max(1)
}

/// One embedding input as the words, or token numbers, that it consists of.
fn embedding_inputs(input: Option<&Value>) -> Result<Vec<Vec<String>>, ApiError> {
    let wrong = || ApiError::wrong_type("input", "a string, an array of strings, or tokens");
    let words = |text: &str| text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
    let numbers = |tokens: &[Value]| {
        tokens
            .iter()
            .map(|token| token.as_u64().map(|t| t.to_string()).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()
    };
    let inputs = match input {
        None | Some(Value::Null) => {
            let message = "Missing required parameter: 'input'.";
            return Err(ApiError::param("input", "missing_required_parameter", message));
        }
        Some(Value::String(text)) if !text.is_empty() => vec![words(text)],
        Some(Value::Array(items)) if items.len() <= INPUTS_MAX => match items.first() {
            Some(Value::Number(_)) => vec![numbers(items)?],
            Some(_) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) if !text.is_empty() => Ok(words(text)),
                    Value::Array(tokens) if !tokens.is_empty() => numbers(tokens),
                    _ => Err(wrong()),
                })
                .collect::<Result<_, _>>()?,
            None => return Err(wrong()),
        },
        Some(_) => return Err(wrong()),
    };
    Ok(inputs)
}

/// Feature hashing: each word adds to one place, so texts that share words are close. Unit length.
fn embedding(words: &[String], dimensions: usize) -> Vec<f32> {
    let mut vector = vec![0.0_f32; dimensions];
    for word in words {
        let hash = digest::digest(&digest::SHA256, word.as_bytes());
        if let Some((head, _)) = hash.as_ref().split_first_chunk::<8>() {
            let hash = u64::from_be_bytes(*head);
            let place = usize::try_from((hash >> 1) % dimensions as u64).unwrap_or_default();
            if let Some(slot) = vector.get_mut(place) {
                *slot += if hash & 1 == 0 { 1.0 } else { -1.0 };
            }
        }
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    } else if let Some(first) = vector.first_mut() {
        // Words that cancel out, or none: still a unit vector, as clients expect.
        *first = 1.0;
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        Catalogue { chat_models: vec![CHAT_MODEL.to_owned()], tokens: 32 }
    }

    fn chat(body: &Value) -> Result<Chat, ApiError> {
        catalogue().chat(body.to_string().as_bytes())
    }

    fn hello() -> Value {
        json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hello there"}]})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = hello();
        body[name] = value;
        body
    }

    fn content(chat: &Chat) -> String {
        let whole: Value = serde_json::from_slice(&chat.whole(7)).unwrap();
        whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_answer_depends_on_the_request_and_on_nothing_else() {
        let first = content(&chat(&hello()).unwrap());
        assert_eq!(first, content(&chat(&hello()).unwrap()));
        let other = json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hello here"}]});
        assert_ne!(first, content(&chat(&other).unwrap()));
        assert!(first.starts_with("You asked: hello there — "), "{first}");
    }

    #[test]
    fn a_stream_carries_the_same_text_and_usage_as_the_whole() {
        let plain = chat(&hello()).unwrap();
        let mut body = with("stream", json!(true));
        body["stream_options"] = json!({"include_usage": true});
        let streamed = chat(&body).unwrap();
        let events = streamed.events(7);
        assert_eq!(events.back().unwrap(), &Bytes::from_static(b"data: [DONE]\n\n"));
        let parse = |event: &Bytes| -> Value {
            let text = std::str::from_utf8(event).unwrap();
            serde_json::from_str(text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap()).unwrap()
        };
        let chunks: Vec<Value> = events.iter().take(events.len() - 1).map(parse).collect();
        let text: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, content(&plain));
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], json!({"prompt_tokens": 2, "completion_tokens": 32, "total_tokens": 34}));
        assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
        assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }

    #[test]
    fn without_include_usage_no_chunk_mentions_usage() {
        let events = chat(&with("stream", json!(true))).unwrap().events(7);
        assert!(events.iter().all(|event| !String::from_utf8_lossy(event).contains("usage")));
    }

    #[test]
    fn max_tokens_shortens_the_answer() {
        for name in ["max_tokens", "max_completion_tokens"] {
            let whole: Value =
                serde_json::from_slice(&chat(&with(name, json!(5))).unwrap().whole(7)).unwrap();
            assert_eq!(whole["choices"][0]["finish_reason"], "length");
            assert_eq!(whole["usage"]["completion_tokens"], 5);
        }
    }

    #[test]
    fn each_mistake_is_refused_by_name() {
        let cases = [
            (with("model", json!("gpt-9")), 404, Some("model_not_found"), None),
            (with("model", json!(7)), 400, Some("invalid_type"), Some("model")),
            (with("messages", json!([])), 400, Some("invalid_value"), Some("messages")),
            (with("messages", json!("hi")), 400, Some("invalid_type"), Some("messages")),
            (
                with("messages", json!([{"role": "king", "content": ""}])),
                400,
                Some("invalid_value"),
                Some("messages[0].role"),
            ),
            (
                with("messages", json!([{"role": "user"}])),
                400,
                Some("invalid_type"),
                Some("messages[0].content"),
            ),
            (with("stream", json!("yes")), 400, Some("invalid_type"), Some("stream")),
            (with("stream_options", json!({})), 400, Some("invalid_value"), Some("stream_options")),
            (with("temperature", json!(2.5)), 400, Some("invalid_value"), Some("temperature")),
            (with("max_tokens", json!(0)), 400, Some("invalid_value"), Some("max_tokens")),
            (with("max_tokens", json!(1.5)), 400, Some("invalid_type"), Some("max_tokens")),
            (with("n", json!(2)), 400, Some("invalid_value"), Some("n")),
            (with("colour", json!("red")), 400, Some("unknown_parameter"), Some("colour")),
            (json!([]), 400, None, None),
        ];
        for (body, status, code, param) in cases {
            let error = chat(&body).err().unwrap_or_else(|| panic!("{body} was accepted"));
            assert_eq!((error.status, error.code, error.param.as_deref()), (status, code, param), "{body}");
        }
        assert_eq!(catalogue().chat(b"{\"model\":").err().unwrap().status, 400);
    }

    #[test]
    fn embeddings_are_unit_vectors_that_are_close_when_words_are_shared() {
        let body =
            json!({"model": EMBED_MODEL, "input": ["the red house", "the red barn", "quarterly tax form"]});
        let (fault, answer) = catalogue().embed(body.to_string().as_bytes()).unwrap();
        assert_eq!(fault, None);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let vector = |i: usize| -> Vec<f64> {
            answer["data"][i]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
        assert!((dot(&vector(0), &vector(0)) - 1.0).abs() < 1e-5);
        assert!(dot(&vector(0), &vector(1)) > dot(&vector(0), &vector(2)) + 0.3);
        assert_eq!(answer["usage"]["prompt_tokens"], 9);
    }

    #[test]
    fn packed_embeddings_hold_the_same_numbers() {
        let ask = |format: &str| -> Value {
            let body =
                json!({"model": EMBED_MODEL, "input": "a b", "dimensions": 8, "encoding_format": format});
            serde_json::from_slice(&catalogue().embed(body.to_string().as_bytes()).unwrap().1).unwrap()
        };
        let floats = ask("float");
        let packed = STANDARD.decode(ask("base64")["data"][0]["embedding"].as_str().unwrap()).unwrap();
        let unpacked: Vec<f32> =
            packed.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        assert_eq!(floats["data"][0]["embedding"], json!(unpacked));
    }
}
