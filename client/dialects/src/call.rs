//! A caller's request: what it needs, and how it is said to a route.
use crate::common::{Conversation, Writing};
use crate::dialect::{Dialect, Endpoint, Flavour, MODEL_BYTES_MAX, Operation, escape};
use crate::error::DialectError;
use crate::errors::{self, ErrorAnswer, ErrorKind};
use crate::json::{Json, Object, Value};
use crate::limits::ITEMS_MAX;
use crate::splice::Splices;
use crate::{anthropic, bedrock, embeddings, gemini, openai, responses};
use bytes::Bytes;

/// Output tokens asked of a provider that must have a bound, if nobody set one: what LiteLLM asks, and every model takes.
const MAX_OUTPUT_DEFAULT: u64 = 4096;

/// The version of Anthropic's API that translations are written in.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// What an answer needs a model to be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Tools.
    pub tools: bool,
    /// Images in the prompt.
    pub vision: bool,
    /// An answer of a JSON schema.
    pub json_schema: bool,
    /// Reasoning that the caller asked for.
    pub reasoning: bool,
}

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRoute {
    /// The route's dialect.
    pub dialect: Dialect,
    /// Whose server it is, if the dialect is OpenAI's.
    pub flavour: Flavour,
    /// The model's name there.
    pub upstream_model: String,
    /// Ask for usage in a stream of OpenAI's dialect even if the caller did not, and keep the extra event from it. The one
    /// exception to "byte for byte", therefore off unless someone must count.
    pub meter: bool,
    /// `max_tokens` for Anthropic, which must have it, if the caller set none. Default 4096.
    pub max_output_default: Option<u64>,
}

impl TargetRoute {
    /// A route of one dialect; OpenAI's own flavour, not metered.
    pub fn new(dialect: Dialect, upstream_model: impl Into<String>) -> Self {
        Self {
            dialect,
            flavour: Flavour::default(),
            upstream_model: upstream_model.into(),
            meter: false,
            max_output_default: None,
        }
    }
}

/// A request for a route. The body is content: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// Path below the route's base path, with a query where the dialect wants one.
    pub path: String,
    /// `content-type`, `accept`, and `anthropic-version` where translated.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Bytes,
    /// The caller's own bytes, but for the model's name.
    pub passthrough: bool,
}

/// What a caller asked for. Holds content: no `Debug`.
#[derive(Clone)]
pub struct Call {
    endpoint: Endpoint,
    model: String,
    stream: bool,
    needs: Needs,
    max_output_tokens: Option<u64>,
    usage_in_stream: bool,
    candidates: u64,
    body: Bytes,
}

impl Call {
    /// Reads a body, as far as routing and budgets need it. Models are listed without one.
    pub fn read(endpoint: Endpoint, body: Bytes) -> Result<Self, DialectError> {
        let mut call = Self {
            endpoint,
            model: String::new(),
            stream: false,
            needs: Needs::default(),
            max_output_tokens: None,
            usage_in_stream: false,
            candidates: 1,
            body,
        };
        if let Operation::Models(_) = call.operation() {
            call.model = call.endpoint.model.clone().unwrap_or_default();
            return Ok(call);
        }
        let body = call.body.clone();
        let mut o = Value::root(&body)?.object()?;
        call.model = match &call.endpoint.model {
            Some(model) => model.clone(),
            None => o.need_string("model")?,
        };
        if call.model.is_empty() || call.model.len() > MODEL_BYTES_MAX {
            let expected = "a name of 1 to 512 bytes";
            return Err(DialectError::Malformed { field: "model".into(), expected });
        }
        call.stream = match call.operation() {
            Operation::GenerateContent { stream } | Operation::Converse { stream } => stream,
            Operation::Chat | Operation::Responses | Operation::Completions | Operation::Messages => {
                o.take_bool("stream")?.unwrap_or(false)
            }
            _ => false,
        };
        call.survey(&mut o)?;
        Ok(call)
    }

    /// What the body asks for. Whatever is odd in it is left to the provider, or to the translation, to refuse.
    fn survey(&mut self, o: &mut Object<'_>) -> Result<(), DialectError> {
        let kind_is = |value: Option<Value<'_>>, wanted: &str| {
            value.filter(Value::is_object).and_then(|v| v.object().ok()?.take("type")?.string().ok())
                == Some(wanted.to_owned())
        };
        let filled = |value: Option<Value<'_>>| value.is_some_and(|v| v.raw().as_str() != "[]");
        let images = |value: Option<Value<'_>>, has: fn(&Value<'_>) -> Result<bool, DialectError>| {
            value.is_some_and(|v| has(&v).unwrap_or(false))
        };
        match self.operation() {
            Operation::Chat | Operation::Completions => {
                let n = o.take_u64("n")?.unwrap_or(1).max(1);
                // each prompt of a list is answered, and the best of many are all paid for
                let prompts = o.take("prompt").filter(Value::is_array).map_or(1, |prompt| prompts(&prompt));
                let made = o.take_u64("best_of")?.unwrap_or(1).max(n).saturating_mul(prompts);
                self.candidates = n.saturating_mul(prompts);
                // servers differ in which of the two they heed
                let max = o.take_u64("max_tokens")?.max(o.take_u64("max_completion_tokens")?);
                self.max_output_tokens = max.map(|max| max.saturating_mul(made));
                if let Some(mut options) = inner(o.take("stream_options")) {
                    self.usage_in_stream = options.take_bool("include_usage")?.unwrap_or(false);
                }
                self.needs.tools = filled(o.take("tools"));
                self.needs.json_schema = kind_is(o.take("response_format"), "json_schema");
                self.needs.reasoning = o.take("reasoning_effort").is_some_and(|e| e.text() != "\"none\"");
                self.needs.vision = images(o.take("messages"), openai::has_images);
            }
            Operation::Responses => {
                self.max_output_tokens = o.take_u64("max_output_tokens")?;
                self.needs.tools = filled(o.take("tools"));
                if let Some(mut text) = inner(o.take("text")) {
                    self.needs.json_schema = kind_is(text.take("format"), "json_schema");
                }
                self.needs.reasoning = o.take("reasoning").is_some();
                self.needs.vision = o.take("input").is_some_and(|i| i.text().contains("\"input_image\""));
            }
            Operation::Messages => {
                self.max_output_tokens = o.take_u64("max_tokens")?;
                self.needs.tools = filled(o.take("tools"));
                let config = inner(o.take("output_config")).and_then(|mut c| c.take("format"));
                self.needs.json_schema = kind_is(config.or(o.take("output_format")), "json_schema");
                let thinking = o.take("thinking");
                self.needs.reasoning = thinking.is_some() && !kind_is(thinking, "disabled");
                self.needs.vision = images(o.take("messages"), anthropic::has_images);
            }
            Operation::GenerateContent { .. } => {
                if let Some(mut config) = inner(o.take_either("generationConfig", "generation_config")) {
                    let mut count =
                        |one, other| config.take_either(one, other).map(|v| v.proto_u64()).transpose();
                    let n = count("candidateCount", "candidate_count")?.unwrap_or(1).max(1);
                    let max = count("maxOutputTokens", "max_output_tokens")?;
                    self.candidates = n;
                    self.max_output_tokens = max.map(|max| max.saturating_mul(n));
                    let schema = config.take_either("responseSchema", "response_schema");
                    let schema = schema.or(config.take_either("responseJsonSchema", "response_json_schema"));
                    self.needs.json_schema = schema.is_some();
                    self.needs.reasoning = config.take_either("thinkingConfig", "thinking_config").is_some();
                }
                self.needs.tools = filled(o.take("tools"));
                self.needs.vision = images(o.take("contents"), gemini::has_images);
            }
            Operation::Converse { .. } => {
                if let Some(mut config) = inner(o.take("inferenceConfig")) {
                    self.max_output_tokens = config.take_u64("maxTokens")?;
                }
                self.needs.tools = inner(o.take("toolConfig")).is_some_and(|mut c| filled(c.take("tools")));
                let config = inner(o.take("outputConfig"));
                self.needs.json_schema = config.is_some_and(|mut c| c.take("textFormat").is_some());
                let more = inner(o.take("additionalModelRequestFields"));
                self.needs.reasoning = more.is_some_and(|mut m| m.take("thinking").is_some());
                self.needs.vision = images(o.take("messages"), bedrock::has_images);
            }
            Operation::Embeddings
            | Operation::Models(_)
            | Operation::CountTokens
            | Operation::CountContent
            | Operation::EmbedContent
            | Operation::BatchEmbedContents => {}
        }
        Ok(())
    }

    /// The operation.
    pub fn operation(&self) -> Operation {
        self.endpoint.operation
    }

    /// The caller's dialect.
    pub fn dialect(&self) -> Dialect {
        self.endpoint.operation.dialect()
    }

    /// The model or alias that it names.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the answer is to be streamed.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// What the model must be able to do.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Most output tokens that it asks for, over all candidates. `None`: it sets no bound.
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.max_output_tokens
    }

    /// The caller's bytes.
    pub fn expose_body(&self) -> &Bytes {
        &self.body
    }

    /// An error of ours, in place of an answer.
    pub fn error_answer(&self, kind: ErrorKind, message: &str) -> ErrorAnswer {
        errors::error_answer(self.dialect(), kind, message)
    }

    /// An error of ours, as the last bytes of a stream that has begun.
    pub fn error_event(&self, kind: ErrorKind, message: &str) -> Bytes {
        errors::error_event(self.operation(), kind, message)
    }

    /// Whether the answer is to be streamed as one JSON array: Gemini's streams without `alt=sse`. Routes are asked for
    /// events all the same, so that the answer goes through an [`crate::AnswerTranslator`] even where dialects agree.
    pub fn is_json_array(&self) -> bool {
        self.endpoint.json_array
    }

    /// How many answers it asks for at once.
    pub(crate) fn candidates(&self) -> u64 {
        self.candidates
    }

    pub(crate) fn usage_in_stream(&self) -> bool {
        self.usage_in_stream
    }

    /// Whether usage is asked for that the caller did not ask for.
    pub(crate) fn is_metered(&self, target: &TargetRoute) -> bool {
        let asks = matches!(self.operation(), Operation::Chat | Operation::Completions);
        // Mistral gives it unasked, within the last event
        let gives = target.dialect == Dialect::OpenAi && target.flavour != Flavour::Mistral;
        target.meter && self.stream && asks && gives && !self.usage_in_stream
    }

    /// Says the call to a route.
    pub fn for_route(&self, target: &TargetRoute) -> Result<UpstreamRequest, DialectError> {
        let operation = self.operation();
        let none = || DialectError::NoSuchOperation { operation, target: target.dialect };
        let passthrough = operation.dialect() == target.dialect;
        let (asked, body) = if passthrough {
            if let Operation::Models(_) = operation {
                return Err(none());
            }
            (operation, self.spliced(target)?)
        } else if operation.is_conversation() {
            let body = self.translated(target).map_err(DialectError::in_translation)?;
            (conversation_at(target.dialect, self.stream), body)
        } else {
            let (asked, body) = embeddings::write_request(self, target)
                .map_err(DialectError::in_translation)?
                .ok_or_else(none)?;
            (asked, Bytes::from(body))
        };
        let mut headers = vec![("content-type", "application/json".to_owned())];
        let accept = match (self.stream, target.dialect) {
            (true, Dialect::Bedrock) => "application/vnd.amazon.eventstream",
            (true, _) => "text/event-stream",
            (false, _) => "application/json",
        };
        headers.push(("accept", accept.to_owned()));
        if target.dialect == Dialect::Anthropic && !passthrough {
            headers.push(("anthropic-version", ANTHROPIC_VERSION.to_owned()));
        }
        Ok(UpstreamRequest { path: path(asked, &target.upstream_model)?, headers, body, passthrough })
    }

    /// The conversation in common words.
    pub(crate) fn conversation(&self, target: Dialect) -> Result<Conversation, DialectError> {
        let body = Value::root(&self.body)?;
        match self.dialect() {
            Dialect::OpenAi if self.operation() == Operation::Responses => {
                responses::read_request(&body, target)
            }
            Dialect::OpenAi => openai::read_request(&body, target),
            Dialect::Anthropic => anthropic::read_request(&body, target),
            Dialect::Gemini => gemini::read_request(&body, self.stream, target),
            Dialect::Bedrock => bedrock::read_request(&body, self.stream, target),
        }
    }

    fn translated(&self, target: &TargetRoute) -> Result<Bytes, DialectError> {
        let conversation = self.conversation(target.dialect)?;
        let to = Writing {
            dialect: target.dialect,
            flavour: target.flavour,
            model: &target.upstream_model,
            max_output_default: target.max_output_default.unwrap_or(MAX_OUTPUT_DEFAULT),
        };
        let text = match target.dialect {
            Dialect::OpenAi => openai::write_request(&conversation, &to),
            Dialect::Anthropic => anthropic::write_request(&conversation, &to),
            Dialect::Gemini => gemini::write_request(&conversation, &to),
            Dialect::Bedrock => bedrock::write_request(&conversation, &to),
        };
        text.map(Bytes::from)
    }

    /// The caller's bytes, but for the model's name, and what a flavour or a meter must have.
    fn spliced(&self, target: &TargetRoute) -> Result<Bytes, DialectError> {
        let mut splices = Splices::of(&self.body);
        let upstream = &target.upstream_model;
        let root = Value::root(&self.body)?;
        let mut o = root.object()?;
        match self.operation() {
            Operation::EmbedContent | Operation::BatchEmbedContents | Operation::CountContent => {
                // the path's model once more, as a resource
                let name = format!("models/{}", upstream.trim_start_matches("models/"));
                let mut models = vec![o.take("model")];
                for request in o.take_array("requests")? {
                    models.push(request.object()?.take("model"));
                }
                if let Some(mut request) = o.take_object("generateContentRequest")? {
                    models.push(request.take("model"));
                }
                for model in models.into_iter().flatten() {
                    if model.string()? != name {
                        splices.replace(model.text(), Json::from(&name).to_string());
                    }
                }
            }
            Operation::GenerateContent { .. } | Operation::Converse { .. } => {}
            _ if self.model != *upstream => {
                splices.replace(o.need("model")?.text(), Json::from(upstream).to_string());
            }
            _ => {}
        }
        let only_max_tokens = matches!(
            target.flavour,
            Flavour::Mistral | Flavour::DeepSeek | Flavour::Ollama | Flavour::LlamaCpp | Flavour::Compatible
        );
        if self.operation() == Operation::Chat && only_max_tokens && o.raw("max_tokens").is_none() {
            // these servers would not know it, or not heed it
            if let Some(key) = o.key("max_completion_tokens") {
                splices.replace(key, "max_tokens".into());
            }
        }
        if self.is_metered(target) {
            let asked = "{\"include_usage\":true}";
            match o.raw("stream_options") {
                None => splices.after_brace(root.text(), &format!("\"stream_options\":{asked},")),
                Some(text) if text.starts_with('{') => {
                    let options = Value::root(text.as_bytes())?.object()?;
                    match options.raw("include_usage") {
                        Some(no) => splices.replace(no, "true".into()),
                        None => {
                            let comma = if options.is_empty() { "" } else { "," };
                            splices.after_brace(text, &format!("\"include_usage\":true{comma}"));
                        }
                    }
                }
                Some(null) => splices.replace(null, asked.into()),
            }
        }
        Ok(splices.apply())
    }
}

/// How many prompts a list holds: texts, lists of tokens, or the tokens of one.
fn prompts(list: &Value<'_>) -> u64 {
    let Ok(items) = list.array() else { return ITEMS_MAX as u64 };
    let all = items.iter().filter(|item| item.is_string() || item.is_array()).count();
    u64::try_from(all).unwrap_or(u64::MAX).max(1)
}

fn inner(value: Option<Value<'_>>) -> Option<Object<'_>> {
    value.filter(Value::is_object).and_then(|v| v.object().ok())
}

fn conversation_at(dialect: Dialect, stream: bool) -> Operation {
    match dialect {
        Dialect::OpenAi => Operation::Chat,
        Dialect::Anthropic => Operation::Messages,
        Dialect::Gemini => Operation::GenerateContent { stream },
        Dialect::Bedrock => Operation::Converse { stream },
    }
}

/// Where a route takes an operation.
fn path(operation: Operation, model: &str) -> Result<String, DialectError> {
    let gemini = |verb: &str| {
        let (kind, name) = match model.split_once('/') {
            Some((kind @ ("models" | "tunedModels"), name)) => (kind, name),
            _ => ("models", model),
        };
        Ok(format!("/v1beta/{kind}/{}:{verb}", escape(name, "")?))
    };
    Ok(match operation {
        Operation::Chat => "/v1/chat/completions".into(),
        Operation::Responses => "/v1/responses".into(),
        Operation::Completions => "/v1/completions".into(),
        Operation::Embeddings => "/v1/embeddings".into(),
        Operation::Models(_) => "/v1/models".into(),
        Operation::Messages => "/v1/messages".into(),
        Operation::CountTokens => "/v1/messages/count_tokens".into(),
        Operation::GenerateContent { stream: false } => return gemini("generateContent"),
        Operation::GenerateContent { stream: true } => return gemini("streamGenerateContent?alt=sse"),
        Operation::CountContent => return gemini("countTokens"),
        Operation::EmbedContent => return gemini("embedContent"),
        Operation::BatchEmbedContents => return gemini("batchEmbedContents"),
        Operation::Converse { stream: false } => format!("/model/{}/converse", escape(model, "")?),
        Operation::Converse { stream: true } => format!("/model/{}/converse-stream", escape(model, "")?),
    })
}
