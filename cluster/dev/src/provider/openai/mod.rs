//! OpenAI's formats, as a pure function of a request body: what is asked, whether it is well formed, and the answer.
//!
//! It refuses what the API refuses (wrong types, unknown names, values out of range, tool calls without results, schemas that
//! `strict` does not allow) in the API's own error form. It accepts and ignores known sampling options.
//!
//! Follows OpenAI's API reference: chat completions and their chunks, responses and their events, completions, embeddings,
//! models, errors.

mod chat;
mod responses;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Ask, Choice, Finish, Tool, embedding, embedding_words};
use super::catalogue::{Catalogue, DIMENSIONS, Fault};
use super::strict::{Fields, Mistake, Node, What, parse};
use super::{Answered, Content, Refusal};

/// Inputs in one embeddings request, as in the real API.
const INPUTS_MAX: usize = 2048;
/// Tools in one request, as in the real API.
const TOOLS_MAX: usize = 128;

const EMBED_OPTIONS: &[&str] = &["model", "input", "encoding_format", "dimensions", "user"];
const COMPLETION_OPTIONS: &[&str] = &[
    "model",
    "prompt",
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
];

/// What was asked, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    Chat,
    Responses,
    Completions,
    Embeddings,
    Models,
    Model(&'a str),
}

impl<'a> Endpoint<'a> {
    /// The endpoint of a path, if it is one of OpenAI's.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/responses" => Self::Responses,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/models" => Self::Models,
            _ => Self::Model(path.strip_prefix("/v1/models/").filter(|model| !model.is_empty())?),
        })
    }

    pub(super) fn is_get(self) -> bool {
        matches!(self, Self::Models | Self::Model(_))
    }
}

/// A refusal in the API's error form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    /// Something is wrong with the request as a whole.
    fn request(status: u16, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind: "invalid_request_error", code, param: None, message: message.into() }
    }

    fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<Mistake> for ApiError {
    fn from(mistake: Mistake) -> Self {
        let at = mistake.bracketed();
        let (code, message) = match mistake.what {
            What::NotJson => {
                let text = "We could not parse the JSON body of your request: it must be one JSON object.";
                return Self::request(400, None, text);
            }
            What::Missing => ("missing_required_parameter", format!("Missing required parameter: '{at}'.")),
            What::Unknown => ("unknown_parameter", format!("Unknown parameter: '{at}'.")),
            What::Type(expected) => {
                ("invalid_type", format!("Invalid type for '{at}': expected {expected}."))
            }
            What::Range(range) => ("invalid_value", format!("Invalid value for '{at}': must be {range}.")),
            What::Rule(code, message) => (code, message),
        };
        Self { param: Some(at), ..Self::request(400, Some(code), message) }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::new(error.status, &error.body())
    }
}

/// Answers a request whose path and method are right.
pub(super) fn answer(
    catalogue: &Catalogue,
    endpoint: Endpoint<'_>,
    body: &[u8],
    now: u64,
) -> Result<Answered, Refusal> {
    let answered = match endpoint {
        Endpoint::Chat => chat::answer(catalogue, body, now),
        Endpoint::Responses => responses::answer(catalogue, body, now),
        Endpoint::Completions => completion(catalogue, body, now),
        Endpoint::Embeddings => embed(catalogue, body),
        Endpoint::Models => Ok(Answered::json(None, &models(catalogue))),
        Endpoint::Model(name) => {
            find(catalogue, name, Catalogue::knows).map(|_| Answered::json(None, &model_object(name)))
        }
    };
    answered.map_err(Refusal::from)
}

/// The refusal that a fault answers with, if it answers with one in the API's form.
pub(super) fn fault(fault: Fault) -> Option<Refusal> {
    let error = |status, kind, code, message: &str| {
        Some(ApiError { status, kind, code: Some(code), param: None, message: message.to_owned() }.into())
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
        Fault::Overloaded => error(
            503,
            "service_unavailable_error",
            "server_overloaded",
            "The engine is currently overloaded, please try again later.",
        ),
        _ => None,
    }
}

/// An error in the middle of a stream.
pub(super) fn error_event(endpoint: Endpoint<'_>) -> Bytes {
    let message = "The server had an error while processing your request. Sorry about that!";
    if endpoint == Endpoint::Responses {
        let event = json!({"type": "error", "code": "server_error", "message": message, "param": null, "sequence_number": 1000});
        return responses::event(&event);
    }
    let error = ApiError {
        status: 500,
        kind: "server_error",
        code: Some("internal_error"),
        param: None,
        message: message.to_owned(),
    };
    data(&error.body())
}

/// The refusal of a wrong API key. It does not repeat the key, as some providers do.
pub(super) fn wrong_key() -> Refusal {
    ApiError::request(401, Some("invalid_api_key"), "Incorrect API key provided.").into()
}

/// Something is wrong with the HTTP request.
pub(super) fn refusal(status: u16, code: Option<&'static str>, message: &str) -> Refusal {
    ApiError::request(status, code, message).into()
}

/// A server-sent event without a name.
fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

fn find(
    catalogue: &Catalogue,
    model: &str,
    known: impl Fn(&Catalogue, &str) -> bool,
) -> Result<Option<Fault>, ApiError> {
    let fault = Fault::of_model(model);
    if fault.is_some() || known(catalogue, model) {
        return Ok(fault);
    }
    let message = format!("The model `{model}` does not exist or you do not have access to it.");
    Err(ApiError::request(404, Some("model_not_found"), message))
}

fn models(catalogue: &Catalogue) -> Value {
    json!({"object": "list", "data": catalogue.all().map(model_object).collect::<Vec<_>>()})
}

fn model_object(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "quorate-demo"})
}

/// Sampling options that chat and completions share; they change nothing.
fn sampling(fields: &Fields<'_>) -> Result<(), Mistake> {
    fields.number("temperature", 0.0, 2.0)?;
    fields.number("top_p", 0.0, 1.0)?;
    fields.number("presence_penalty", -2.0, 2.0)?;
    fields.number("frequency_penalty", -2.0, 2.0)?;
    if let Some(n) = fields.get("n")
        && n.count(1)? != 1
    {
        return Err(n.range("1 at this provider"));
    }
    Ok(())
}

/// Whether it is a stream, and whether that ends with a usage chunk.
fn streamed(fields: &Fields<'_>) -> Result<(bool, bool), Mistake> {
    let stream = fields.flag("stream")?;
    let Some(options) = fields.get("stream_options") else { return Ok((stream, false)) };
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(options.wrong(What::Rule("invalid_value", message.to_owned())));
    }
    let options = options.object(&["include_usage", "include_obfuscation"])?;
    options.flag("include_obfuscation")?;
    Ok((stream, options.flag("include_usage")?))
}

fn stops(fields: &Fields<'_>) -> Result<Vec<String>, Mistake> {
    let Some(stop) = fields.get("stop") else { return Ok(Vec::new()) };
    let stops = if stop.value.is_array() { stop.texts()? } else { vec![stop.text()?.to_owned()] };
    if stops.len() > 4 { Err(stop.range("at most 4 sequences")) } else { Ok(stops) }
}

/// A function as chat's `function` and responses' tools have it.
fn function(fields: &Fields<'_>) -> Result<Tool, Mistake> {
    let name = fields.name("name")?;
    let fits = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !fits {
        return Err(fields.wrong("name", What::Range("up to 64 of a-z, A-Z, 0-9, _ and -".to_owned())));
    }
    if let Some(text) = fields.get("description") {
        text.text()?;
    }
    let schema = match fields.get("parameters") {
        Some(schema) => {
            schema.open_object()?;
            if fields.flag("strict")? {
                check_strict(&schema, schema.value, &format!("function '{name}'"))?;
            }
            schema.value.clone()
        }
        None => json!({"type": "object", "properties": {}}),
    };
    Ok(Tool { name: name.to_owned(), schema })
}

/// What `strict` demands of every object in a schema.
fn check_strict(at: &Node<'_>, schema: &Value, of: &str) -> Result<(), Mistake> {
    let refuse = |what: String| {
        at.wrong(What::Rule("invalid_function_parameters", format!("Invalid schema for {of}: {what}")))
    };
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Err(refuse("'additionalProperties' is required to be supplied and to be false.".into()));
        }
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        if let Some(missing) = properties.keys().find(|name| !required.contains(&name.as_str())) {
            return Err(refuse(format!(
                "'required' is required to be supplied and to be an array including every key in properties. Missing '{missing}'."
            )));
        }
        properties.values().try_for_each(|inner| check_strict(at, inner, of))?;
    }
    for name in ["$defs", "definitions"] {
        if let Some(defs) = schema.get(name).and_then(Value::as_object) {
            defs.values().try_for_each(|inner| check_strict(at, inner, of))?;
        }
    }
    if let Some(list) = schema.get("anyOf").and_then(Value::as_array) {
        list.iter().try_for_each(|inner| check_strict(at, inner, of))?;
    }
    schema.get("items").map_or(Ok(()), |inner| check_strict(at, inner, of))
}

/// `json_schema`'s fields, or those of responses' format.
fn json_schema(fields: &Fields<'_>) -> Result<Value, Mistake> {
    let name = fields.name("name")?;
    let schema = fields.need("schema")?;
    schema.open_object()?;
    if fields.flag("strict")? {
        check_strict(&schema, schema.value, &format!("response_format '{name}'"))?;
    }
    Ok(schema.value.clone())
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::Tools => "tool_calls",
    }
}

fn usage(prompt: usize, cached: usize, completion: usize, reasoning: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })
}

/// `POST /v1/completions`.
fn completion(catalogue: &Catalogue, body: &[u8], now: u64) -> Result<Answered, ApiError> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(COMPLETION_OPTIONS)?;
    let model = fields.name("model")?;
    let fault = find(catalogue, model, Catalogue::chats)?;
    let prompt = fields.need("prompt")?;
    let prompts = if prompt.value.is_array() { prompt.texts()? } else { vec![prompt.text()?.to_owned()] };
    let [text] = prompts.as_slice() else { return Err(prompt.range("one prompt at this provider").into()) };
    let (stream, include_usage) = streamed(&fields)?;
    sampling(&fields)?;
    let ask = Ask {
        limit: Some(fields.count("max_tokens", 1)?.unwrap_or(16)),
        stops: stops(&fields)?,
        ..Ask::plain(model, vec![text.clone()])
    };
    let answer = ask.answer(catalogue.tokens);
    let id = format!("cmpl-{}", answer.id);
    let usage = usage(answer.input_tokens, 0, answer.output_tokens, 0);
    let object = |text: &str, finish: Option<&str>| {
        json!({"id": id, "object": "text_completion", "created": now, "model": model, "system_fingerprint": "fp_demo",
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]})
    };
    let finish = finish_reason(&answer.finish);
    if !stream {
        let mut whole = object(&answer.pieces.concat(), Some(finish));
        if let Some(map) = whole.as_object_mut() {
            map.insert("usage".to_owned(), usage);
        }
        return Ok(Answered::json(fault, &whole));
    }
    let mut events: VecDeque<Bytes> = answer.pieces.iter().map(|piece| data(&object(piece, None))).collect();
    events.push_back(data(&object("", Some(finish))));
    if include_usage {
        events
            .push_back(data(&json!({"id": id, "object": "text_completion", "created": now, "model": model,
            "system_fingerprint": "fp_demo", "choices": [], "usage": usage})));
    }
    events.push_back(done());
    Ok(Answered { fault, content: Content::events(events) })
}

/// `POST /v1/embeddings`.
fn embed(catalogue: &Catalogue, body: &[u8]) -> Result<Answered, ApiError> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(EMBED_OPTIONS)?;
    let model = fields.name("model")?;
    let fault = find(catalogue, model, Catalogue::embeds)?;
    let inputs = embedding_inputs(&fields.need("input")?)?;
    let dimensions = fields.count("dimensions", 1)?.unwrap_or(DIMENSIONS);
    if dimensions > DIMENSIONS {
        return Err(fields.wrong("dimensions", What::Range("at most 256".to_owned())).into());
    }
    let packed = match fields.get("encoding_format") {
        None => false,
        Some(format) => format.word(&["float", "base64"])? == "base64",
    };
    let object = |(index, input): (usize, &Vec<String>)| {
        let vector = embedding(input, dimensions);
        let value = if packed {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Value::String(STANDARD.encode(bytes))
        } else {
            json!(vector)
        };
        json!({"object": "embedding", "index": index, "embedding": value})
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(object).collect();
    let tokens: usize = inputs.iter().map(|input| input.len().max(1)).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Answered::json(fault, &json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

/// One embedding input as the words, or token numbers, that it consists of.
fn embedding_inputs(input: &Node<'_>) -> Result<Vec<Vec<String>>, Mistake> {
    let wrong = || input.wrong(What::Type("a string, an array of strings, or tokens"));
    let numbers = |tokens: &[Value]| {
        tokens
            .iter()
            .map(|token| token.as_u64().map(|t| t.to_string()).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()
    };
    match input.value {
        Value::String(text) if !text.is_empty() => Ok(vec![embedding_words(text)]),
        Value::Array(items) if items.len() <= INPUTS_MAX => match items.first() {
            Some(Value::Number(_)) => Ok(vec![numbers(items)?]),
            Some(_) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) if !text.is_empty() => Ok(embedding_words(text)),
                    Value::Array(tokens) if !tokens.is_empty() => numbers(tokens),
                    _ => Err(wrong()),
                })
                .collect(),
            None => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

/// Tools and which of them may be called; the shapes differ between endpoints, the rules do not.
fn choice(
    fields: &Fields<'_>,
    tools: &[Tool],
    named: impl Fn(&Node<'_>) -> Result<String, Mistake>,
) -> Result<Choice, Mistake> {
    let Some(node) = fields.get("tool_choice") else { return Ok(Choice::Auto) };
    let choice = if node.value.is_string() {
        match node.word(&["auto", "none", "required"])? {
            "none" => Choice::None,
            "required" => Choice::Any,
            _ => Choice::Auto,
        }
    } else {
        Choice::Named(named(&node)?)
    };
    match &choice {
        _ if tools.is_empty() && choice != Choice::None && choice != Choice::Auto => {
            let message = "'tool_choice' is only allowed when 'tools' are specified.";
            Err(node.wrong(What::Rule("invalid_value", message.to_owned())))
        }
        Choice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            let message = format!("Tool choice '{name}' not found in 'tools' parameter.");
            Err(node.wrong(What::Rule("invalid_value", message)))
        }
        _ => Ok(choice),
    }
}

/// The tools of a request: how one is wrapped is the endpoint's.
fn tools(
    fields: &Fields<'_>,
    one: impl Fn(&Node<'_>) -> Result<Tool, Mistake>,
) -> Result<Vec<Tool>, Mistake> {
    let Some(list) = fields.get("tools") else { return Ok(Vec::new()) };
    let nodes = list.list()?;
    if nodes.len() > TOOLS_MAX {
        return Err(list.range(format!("at most {TOOLS_MAX} tools")));
    }
    nodes.iter().map(one).collect()
}

/// `data:` or `https:`; other URLs are refused by the API too.
fn image_url(node: &Node<'_>) -> Result<(), Mistake> {
    let url = node.text()?;
    if url.starts_with("https://") || url.starts_with("http://") || url.starts_with("data:image/") {
        return Ok(());
    }
    let message = "Invalid image URL: it must be an https URL or a data URL of an image.".to_owned();
    Err(node.wrong(What::Rule("invalid_image_url", message)))
}
