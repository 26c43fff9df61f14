//! Gemini's formats (Generative Language API, v1 and v1beta alike): generateContent, streamGenerateContent with and without `alt=sse`,
//! countTokens, embedContent, batchEmbedContents, models, errors. A pure function of a request.
//!
//! Google's servers read JSON into protobufs: unknown names are refused with the path to them, names may be written in camel
//! or snake case, and enums are words. A thought signature that comes back must be one of ours.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Ask, Choice, Finish, Tool, count_tokens, embedding, embedding_words, signature};
use super::catalogue::{Catalogue, DIMENSIONS, Fault};
use super::strict::{Fields, Mistake, Node, What, parse};
use super::{Answered, Content, Refusal};

const OPTIONS: &[&str] = &[
    "model",
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "safetySettings",
    "generationConfig",
    "cachedContent",
    "labels",
    "serviceTier",
    "store",
];
const GENERATION: &[&str] = &[
    "stopSequences",
    "responseMimeType",
    "responseSchema",
    "responseJsonSchema",
    "responseModalities",
    "candidateCount",
    "maxOutputTokens",
    "temperature",
    "topP",
    "topK",
    "seed",
    "presencePenalty",
    "frequencyPenalty",
    "responseLogprobs",
    "logprobs",
    "thinkingConfig",
    "mediaResolution",
];
const PART: &[&str] = &[
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "thought",
    "thoughtSignature",
    "videoMetadata",
];

/// What was asked, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    Generate(&'a str),
    /// Whether it is a stream of events; otherwise of an array's items.
    Stream(&'a str, bool),
    Count(&'a str),
    Embed(&'a str),
    EmbedBatch(&'a str),
    Models,
    Model(&'a str),
}

impl<'a> Endpoint<'a> {
    /// The endpoint of a path, if it is one of Gemini's.
    pub(super) fn of(path: &'a str, query: Option<&str>) -> Option<Self> {
        let rest = path.strip_prefix("/v1beta/models").or_else(|| path.strip_prefix("/v1/models"))?;
        if rest.is_empty() {
            return Some(Self::Models);
        }
        let rest = rest.strip_prefix('/').filter(|rest| !rest.is_empty())?;
        let Some((model, verb)) = rest.rsplit_once(':') else { return Some(Self::Model(rest)) };
        let events = query.unwrap_or_default().split('&').any(|pair| pair == "alt=sse");
        Some(match verb {
            "generateContent" => Self::Generate(model),
            "streamGenerateContent" => Self::Stream(model, events),
            "countTokens" => Self::Count(model),
            "embedContent" => Self::Embed(model),
            "batchEmbedContents" => Self::EmbedBatch(model),
            _ => return None,
        })
    }

    pub(super) fn is_get(self) -> bool {
        matches!(self, Self::Models | Self::Model(_))
    }
}

/// A refusal in the API's error form.
pub(super) fn refusal(status: u16, code: &str, message: &str) -> Refusal {
    Refusal::new(status, &json!({"error": {"code": status, "message": message, "status": code}}))
}

/// A mistake in Google's form.
struct Wrong(Mistake);

impl From<Mistake> for Wrong {
    fn from(mistake: Mistake) -> Self {
        Self(mistake)
    }
}

impl From<Wrong> for Refusal {
    fn from(Wrong(mistake): Wrong) -> Self {
        let at = mistake.bracketed();
        let (parent, name) = at.rsplit_once('.').unwrap_or(("", at.as_str()));
        let message = match mistake.what {
            What::NotJson => "Invalid JSON payload received. Expected one object.".to_owned(),
            What::Unknown if parent.is_empty() => {
                format!("Invalid JSON payload received. Unknown name \"{name}\": Cannot find field.")
            }
            What::Unknown => {
                format!(
                    "Invalid JSON payload received. Unknown name \"{name}\" at '{parent}': Cannot find field."
                )
            }
            What::Missing => format!("* GenerateContentRequest.{at}: is required\n"),
            What::Type(expected) => format!("Invalid value at '{at}', expected {expected}"),
            What::Range(range) => format!("Invalid value at '{at}', must be {range}"),
            What::Rule(_, message) => message,
        };
        let mut error = json!({"code": 400, "message": message, "status": "INVALID_ARGUMENT"});
        if let Some(map) = error.as_object_mut() {
            let violations = json!([{"field": at, "description": message}]);
            map.insert("details".to_owned(), json!([{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}]));
        }
        Self::new(400, &json!({ "error": error }))
    }
}

/// The refusal of a wrong or missing key: Google says 400 to the one and 403 to the other.
pub(super) fn wrong_key(given: bool) -> Refusal {
    if !given {
        let message = "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other form of API consumer identity to call this API.";
        return refusal(403, "PERMISSION_DENIED", message);
    }
    let message = "API key not valid. Please pass a valid API key.";
    let details = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
    let error = json!({"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details});
    Refusal::new(400, &json!({ "error": error }))
}

/// The refusal that a fault answers with, if it answers with one in the API's form.
pub(super) fn fault(fault: Fault) -> Option<Refusal> {
    match fault {
        Fault::BadRequest => Some(refusal(400, "INVALID_ARGUMENT", "This model refuses every request.")),
        Fault::Unauthorized => Some(wrong_key(true)),
        Fault::RateLimited => {
            Some(refusal(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota. Please retry in 1s."))
        }
        Fault::ServerError => Some(refusal(500, "INTERNAL", "An internal error has occurred.")),
        Fault::Overloaded => {
            Some(refusal(503, "UNAVAILABLE", "The model is overloaded. Please try again later."))
        }
        _ => None,
    }
}

/// An error in the middle of a stream.
pub(super) fn error_event() -> Bytes {
    let error =
        json!({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}});
    Bytes::from(format!("data: {error}\r\n\r\n"))
}

/// Answers a request whose path and method are right.
pub(super) fn answer(
    catalogue: &Catalogue,
    endpoint: Endpoint<'_>,
    body: &[u8],
) -> Result<Answered, Refusal> {
    match endpoint {
        Endpoint::Models => {
            let models: Vec<Value> = catalogue.all().map(model_object).collect();
            Ok(Answered::json(None, &json!({ "models": models })))
        }
        Endpoint::Model(name) => {
            find(name, catalogue.knows(name))?;
            Ok(Answered::json(None, &model_object(name)))
        }
        Endpoint::Generate(model) => {
            let fault = find(model, catalogue.chats(model))?;
            let generated = generate(catalogue, model, body)?;
            Ok(Answered::json(fault, &generated.whole()))
        }
        Endpoint::Stream(model, events) => {
            let fault = find(model, catalogue.chats(model))?;
            let chunks = generate(catalogue, model, body)?.chunks();
            let content = if events {
                let event = |chunk: &Value| Bytes::from(format!("data: {chunk}\r\n\r\n"));
                Content::events(chunks.iter().map(event).collect())
            } else {
                let open = |at: usize| if at == 0 { "[" } else { ",\r\n" };
                let part = |(at, chunk): (usize, &Value)| Bytes::from(format!("{}{chunk}", open(at)));
                let mut parts: VecDeque<Bytes> = chunks.iter().enumerate().map(part).collect();
                parts.push_back(Bytes::from_static(b"]"));
                Content::Stream("application/json; charset=UTF-8", parts)
            };
            Ok(Answered { fault, content })
        }
        Endpoint::Count(model) => {
            let fault = find(model, catalogue.chats(model))?;
            let total = count(body).map_err(Refusal::from)?;
            let details = json!([{"modality": "TEXT", "tokenCount": total}]);
            Ok(Answered::json(fault, &json!({"totalTokens": total, "promptTokensDetails": details})))
        }
        Endpoint::Embed(model) => {
            let fault = find(model, catalogue.embeds(model))?;
            let value = parse(body).map_err(Wrong)?;
            let values = embed(&Node::root(&value), model).map_err(Refusal::from)?;
            Ok(Answered::json(fault, &json!({"embedding": {"values": values}})))
        }
        Endpoint::EmbedBatch(model) => {
            let fault = find(model, catalogue.embeds(model))?;
            let embeddings = embed_batch(body, model).map_err(Refusal::from)?;
            Ok(Answered::json(fault, &json!({ "embeddings": embeddings })))
        }
    }
}

fn find(model: &str, known: bool) -> Result<Option<Fault>, Refusal> {
    let fault = Fault::of_model(model);
    if fault.is_some() || known {
        return Ok(fault);
    }
    let message = format!(
        "models/{model} is not found for API version v1beta, or is not supported for generateContent. Call ListModels to see the list of available models and their supported methods."
    );
    Err(refusal(404, "NOT_FOUND", &message))
}

fn model_object(name: &str) -> Value {
    let methods = if name == super::catalogue::EMBED_MODEL {
        json!(["embedContent"])
    } else {
        json!(["generateContent", "countTokens"])
    };
    json!({"name": format!("models/{name}"), "baseModelId": name, "version": "1", "displayName": name,
        "inputTokenLimit": 1_000_000, "outputTokenLimit": 65_536, "supportedGenerationMethods": methods})
}

/// The camel case that protobuf's JSON also reads as snake case.
fn camel(value: &Value) -> Value {
    // Only names of the schema are rewritten: what stands below these is somebody's own.
    const OPAQUE: [&str; 7] = [
        "args",
        "response",
        "parameters",
        "parametersJsonSchema",
        "responseSchema",
        "responseJsonSchema",
        "labels",
    ];
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| {
                let mut camel = String::with_capacity(name.len());
                let mut upper = false;
                for c in name.chars() {
                    if c == '_' {
                        upper = true;
                    } else if std::mem::take(&mut upper) {
                        camel.extend(c.to_uppercase());
                    } else {
                        camel.push(c);
                    }
                }
                let inner = if OPAQUE.contains(&camel.as_str()) { value.clone() } else { self::camel(value) };
                (camel, inner)
            })
            .collect(),
        Value::Array(list) => list.iter().map(camel).collect(),
        other => other.clone(),
    }
}

struct Generated {
    answer: Answer,
    model: String,
    /// Thoughts are told, not only counted.
    tell: bool,
}

fn generate(catalogue: &Catalogue, model: &str, body: &[u8]) -> Result<Generated, Refusal> {
    read(catalogue, model, body).map_err(Refusal::from)
}

fn read(catalogue: &Catalogue, model: &str, body: &[u8]) -> Result<Generated, Wrong> {
    let value = camel(&parse(body)?);
    let fields = Node::root(&value).object(OPTIONS)?;
    let mut texts = Vec::new();
    if let Some(system) = fields.get("systemInstruction") {
        texts.push(content(&system, &["user", "system", "model"])?.0);
    }
    let results = contents(&fields, &mut texts)?;
    if let Some(settings) = fields.get("safetySettings") {
        for setting in settings.list()? {
            let setting = setting.object(&["category", "threshold", "method"])?;
            setting.need("category")?.text()?;
            setting.need("threshold")?.text()?;
        }
    }
    let tools = tools(&fields)?;
    let choice = choice(&fields, &tools)?;
    let mut ask = Ask { tools, choice, results, ..Ask::plain(model, texts) };
    let mut tell = false;
    if let Some(node) = fields.get("generationConfig") {
        let config = node.object(GENERATION)?;
        config.number("temperature", 0.0, 2.0)?;
        config.number("topP", 0.0, 1.0)?;
        config.number("topK", 1.0, 1000.0)?;
        config.number("presencePenalty", -2.0, 2.0)?;
        config.number("frequencyPenalty", -2.0, 2.0)?;
        if let Some(count) = config.get("candidateCount")
            && count.count(1)? != 1
        {
            return Err(count.range("1 at this provider").into());
        }
        ask.limit = config.count("maxOutputTokens", 1)?;
        ask.stops = config.get("stopSequences").map_or(Ok(Vec::new()), |node| node.texts())?;
        (ask.thinking, tell) = thinking(&config)?;
        ask.schema = schema(&config)?;
    }
    Ok(Generated { answer: ask.answer(catalogue.tokens), model: model.to_owned(), tell })
}

fn thinking(config: &Fields<'_>) -> Result<(bool, bool), Mistake> {
    let Some(node) = config.get("thinkingConfig") else { return Ok((false, false)) };
    let thinking = node.object(&["includeThoughts", "thinkingBudget", "thinkingLevel"])?;
    if let Some(level) = thinking.get("thinkingLevel") {
        level.word(&[
            "MINIMAL",
            "LOW",
            "MEDIUM",
            "HIGH",
            "THINKING_LEVEL_UNSPECIFIED",
            "minimal",
            "low",
            "medium",
            "high",
        ])?;
    }
    let off = thinking.get("thinkingBudget").is_some_and(|budget| budget.value.as_i64() == Some(0));
    Ok((!off, !off && thinking.flag("includeThoughts")?))
}

fn schema(config: &Fields<'_>) -> Result<Option<Value>, Mistake> {
    let json = match config.get("responseMimeType") {
        None => false,
        Some(mime) => mime.word(&["text/plain", "application/json"])? == "application/json",
    };
    let Some(node) = config.get("responseSchema").or_else(|| config.get("responseJsonSchema")) else {
        let plain = json!({"type": "object", "properties": {"answer": {"type": "string"}}});
        return Ok(json.then_some(plain));
    };
    node.open_object()?;
    if json {
        return Ok(Some(node.value.clone()));
    }
    let message = "response_schema is only supported when response_mime_type is set to application/json.";
    Err(node.wrong(What::Rule("", message.to_owned())))
}

fn contents(fields: &Fields<'_>, texts: &mut Vec<String>) -> Result<bool, Mistake> {
    let list = fields.need("contents")?;
    let nodes = list.list()?;
    if nodes.is_empty() {
        return Err(list.wrong(What::Rule(
            "",
            "* GenerateContentRequest.contents: contents is not specified\n".to_owned(),
        )));
    }
    let (mut results, mut calls) = (false, 0_usize);
    for node in &nodes {
        let (text, called, answered) = content(node, &["user", "model", "function"])?;
        // As many results as calls, right after them.
        if (calls > 0 || answered > 0) && answered != calls {
            let message = "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn.";
            return Err(node.wrong(What::Rule("", message.to_owned())));
        }
        calls = called;
        results = answered > 0;
        texts.push(text);
    }
    Ok(results)
}

/// The text of a content, and how many calls and results stand in it.
fn content(node: &Node<'_>, roles: &[&'static str]) -> Result<(String, usize, usize), Mistake> {
    let content = node.object(&["role", "parts"])?;
    if let Some(role) = content.get("role") {
        role.word(roles)?;
    }
    let parts = content.need("parts")?;
    let (mut text, mut calls, mut results) = (String::new(), 0, 0);
    for node in parts.list()? {
        let part = node.object(PART)?;
        let signed = part.get("thoughtSignature").map(|s| s.text().map(ToOwned::to_owned)).transpose()?;
        let kinds = ["text", "inlineData", "fileData", "functionCall", "functionResponse"];
        let said: Vec<&str> = kinds.into_iter().filter(|kind| part.has(kind)).collect();
        let [kind] = said.as_slice() else {
            let message =
                "Unable to submit request because it must have exactly one data field in each part.";
            return Err(node.wrong(What::Rule("", message.to_owned())));
        };
        let inner = part.need(kind)?;
        match *kind {
            "text" => text += inner.text()?,
            "inlineData" => {
                let blob = inner.object(&["mimeType", "data", "displayName"])?;
                blob.need("mimeType")?.text()?;
                blob.need("data")?.text()?;
                text += " [image]";
            }
            "fileData" => {
                inner.object(&["mimeType", "fileUri", "displayName"])?.need("fileUri")?.text()?;
                text += " [image]";
            }
            "functionCall" => {
                let call = inner.object(&["id", "name", "args"])?;
                let name = call.name("name")?;
                if let Some(args) = call.get("args") {
                    args.open_object()?;
                }
                if signed.is_some_and(|signed| signed != signature(name)) {
                    return Err(node.wrong(What::Rule("", "Thought signature is not valid.".to_owned())));
                }
                calls += 1;
            }
            _ => {
                let result = inner.object(&["id", "name", "response", "willContinue", "scheduling"])?;
                result.name("name")?;
                let response = result.need("response")?;
                response.open_object()?;
                text += &response.value.to_string();
                results += 1;
            }
        }
    }
    Ok((text, calls, results))
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, Mistake> {
    let mut tools = Vec::new();
    let Some(list) = fields.get("tools") else { return Ok(tools) };
    for node in list.list()? {
        let tool = node.object(&["functionDeclarations"])?;
        for node in tool.need("functionDeclarations")?.list()? {
            let known = [
                "name",
                "description",
                "parameters",
                "parametersJsonSchema",
                "response",
                "responseJsonSchema",
                "behavior",
            ];
            let function = node.object(&known)?;
            let name = function.name("name")?;
            let schema = function.get("parameters").or_else(|| function.get("parametersJsonSchema"));
            let schema = match schema {
                Some(schema) => {
                    schema.open_object()?;
                    schema.value.clone()
                }
                None => json!({"type": "OBJECT"}),
            };
            tools.push(Tool { name: name.to_owned(), schema });
        }
    }
    Ok(tools)
}

fn choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<Choice, Mistake> {
    let Some(node) = fields.get("toolConfig") else { return Ok(Choice::Auto) };
    let config = node.object(&["functionCallingConfig", "retrievalConfig"])?;
    let Some(node) = config.get("functionCallingConfig") else { return Ok(Choice::Auto) };
    let calling = node.object(&["mode", "allowedFunctionNames"])?;
    let allowed = calling.get("allowedFunctionNames").map_or(Ok(Vec::new()), |names| names.texts())?;
    if let Some(name) = allowed.iter().find(|name| !tools.iter().any(|tool| tool.name == **name)) {
        return Err(
            node.wrong(What::Rule("", format!("allowed_function_names has no declared function {name}")))
        );
    }
    let mode = calling
        .get("mode")
        .map_or(Ok("AUTO"), |mode| mode.word(&["AUTO", "ANY", "NONE", "VALIDATED", "MODE_UNSPECIFIED"]))?;
    if !allowed.is_empty() && mode != "ANY" && mode != "VALIDATED" {
        let message = "allowed_function_names should only be set when mode is ANY.".to_owned();
        return Err(node.wrong(What::Rule("", message)));
    }
    Ok(match (mode, allowed.first()) {
        ("NONE", _) => Choice::None,
        ("ANY", Some(name)) => Choice::Named(name.clone()),
        ("ANY", None) => Choice::Any,
        _ => Choice::Auto,
    })
}

fn count(body: &[u8]) -> Result<usize, Wrong> {
    let value = camel(&parse(body)?);
    let mut fields = Node::root(&value).object(&["contents", "generateContentRequest"])?;
    if let Some(inner) = fields.get("generateContentRequest") {
        fields = inner.object(OPTIONS)?;
    }
    let mut texts = Vec::new();
    contents(&fields, &mut texts)?;
    Ok(texts.iter().map(|text| count_tokens(text)).sum())
}

fn embed(node: &Node<'_>, model: &str) -> Result<Vec<f32>, Wrong> {
    let value = camel(node.value);
    let fields = Node::root(&value).object(&[
        "model",
        "content",
        "taskType",
        "title",
        "outputDimensionality",
        "embedContentConfig",
    ])?;
    if let Some(named) = fields.get("model")
        && named.text()?.trim_start_matches("models/") != model
    {
        return Err(named.range("the model of the path").into());
    }
    let (text, _, _) = content(&fields.need("content")?, &["user", "model"])?;
    let mut dimensions = fields.count("outputDimensionality", 1)?;
    if let Some(config) = fields.get("embedContentConfig") {
        let config = config.object(&[
            "taskType",
            "title",
            "outputDimensionality",
            "autoTruncate",
            "documentOcr",
            "audioTrackExtraction",
        ])?;
        dimensions = dimensions.or(config.count("outputDimensionality", 1)?);
    }
    let dimensions = dimensions.unwrap_or(DIMENSIONS);
    if dimensions > DIMENSIONS {
        return Err(fields.wrong("outputDimensionality", What::Range("at most 256".to_owned())).into());
    }
    Ok(embedding(&embedding_words(&text), dimensions))
}

fn embed_batch(body: &[u8], model: &str) -> Result<Vec<Value>, Wrong> {
    let value = parse(body)?;
    let fields = Node::root(&value).object(&["requests"])?;
    let one = |node: &Node<'_>| embed(node, model).map(|values| json!({ "values": values }));
    fields.need("requests")?.list()?.iter().map(one).collect()
}

impl Generated {
    fn usage(&self) -> Value {
        let answer = &self.answer;
        json!({
            "promptTokenCount": answer.input_tokens,
            "candidatesTokenCount": answer.output_tokens - answer.thought_tokens,
            "thoughtsTokenCount": answer.thought_tokens,
            "totalTokenCount": answer.input_tokens + answer.output_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": answer.input_tokens}],
        })
    }

    fn finish(&self) -> &'static str {
        if self.answer.finish == Finish::Length { "MAX_TOKENS" } else { "STOP" }
    }

    fn calls(&self) -> Vec<Value> {
        let signs = self.answer.thought_tokens > 0;
        let part = |(at, call): (usize, &super::answer::Call)| {
            let mut part = json!({"functionCall": {"name": call.name, "args": call.arguments}});
            // Of parallel calls only the first is signed.
            if let Some(map) = part.as_object_mut().filter(|_| signs && at == 0) {
                map.insert("thoughtSignature".to_owned(), json!(signature(&call.name)));
            }
            part
        };
        self.answer.calls.iter().enumerate().map(part).collect()
    }

    fn object(&self, parts: &[Value], finish: Option<&str>) -> Value {
        let mut candidate = json!({"content": {"parts": parts, "role": "model"}, "index": 0});
        if let (Some(map), Some(finish)) = (candidate.as_object_mut(), finish) {
            map.insert("finishReason".to_owned(), json!(finish));
        }
        json!({"candidates": [candidate], "usageMetadata": self.usage(), "modelVersion": self.model, "responseId": self.answer.id})
    }

    fn whole(&self) -> Value {
        let mut parts = Vec::new();
        if self.tell && !self.answer.thought.is_empty() {
            parts.push(json!({"text": self.answer.thought.concat(), "thought": true}));
        }
        if !self.answer.pieces.is_empty() {
            parts.push(json!({"text": self.answer.pieces.concat()}));
        }
        parts.extend(self.calls());
        self.object(&parts, Some(self.finish()))
    }

    fn chunks(&self) -> Vec<Value> {
        let mut chunks = Vec::new();
        if self.tell {
            chunks.extend(
                self.answer.thought.iter().map(|t| self.object(&[json!({"text": t, "thought": true})], None)),
            );
        }
        chunks.extend(self.answer.pieces.iter().map(|t| self.object(&[json!({ "text": t })], None)));
        let calls = self.calls();
        if calls.is_empty() {
            chunks.push(self.object(&[json!({"text": ""})], Some(self.finish())));
        } else {
            chunks.push(self.object(&calls, Some(self.finish())));
        }
        chunks
    }
}
