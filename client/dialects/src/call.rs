//! A caller's request: what it needs, and how it is said to a route.
use crate::dialect::{Dialect, Endpoint, Flavour, Operation};
use crate::error::DialectError;
use bytes::Bytes;

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
}

impl TargetRoute {
    /// A route of one dialect; OpenAI's own flavour, not metered.
    pub fn new(dialect: Dialect, upstream_model: impl Into<String>) -> Self {
        Self { dialect, flavour: Flavour::default(), upstream_model: upstream_model.into(), meter: false }
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
    body: Bytes,
}

impl Call {
    /// Reads a body, as far as routing and budgets need it.
    pub fn read(endpoint: Endpoint, body: Bytes) -> Result<Self, DialectError> {
        let model = endpoint.model.clone().unwrap_or_default();
        Ok(Self { endpoint, model, stream: false, needs: Needs::default(), max_output_tokens: None, body })
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

    /// Says the call to a route.
    pub fn for_route(&self, target: &TargetRoute) -> Result<UpstreamRequest, DialectError> {
        Err(DialectError::NoSuchOperation { operation: self.operation(), target: target.dialect })
    }
}
