//! What the caller is told when something fails: an HTTP status, a stable code, and a body in the caller's dialect.
//!
//! A provider's own error answer is not among these: it passes through as it is.
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use quorate_client::{Error, Fault, Retry, chain};
use quorate_dialects::errors::ErrorKind;
use quorate_dialects::{Dialect, Operation};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Header with the stable code of an error of ours.
pub(crate) const CODE_HEADER: &str = "x-quorate-code";
/// Said to a caller whose request may succeed as soon as the mesh has recovered.
const MESH_RETRY_AFTER: Duration = Duration::from_secs(2);

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Stable, snake_case.
    pub(crate) code: Cow<'static, str>,
    /// What failed, one line.
    pub(crate) message: String,
    /// What to do; empty when there is nothing.
    pub(crate) hint: String,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
    /// Whether an SDK's own retries may send it again.
    pub(crate) again: bool,
    /// Which guards did something.
    pub(crate) guards: Option<Box<str>>,
    /// Methods that the path takes, where it does not take this one.
    pub(crate) allow: Allow,
}

/// See there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Allow {
    #[default]
    Unsaid,
    Get,
    Post,
    Both,
}

impl Allow {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Unsaid => "",
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Both => "GET, POST",
        }
    }
}

impl Failure {
    /// One that no repetition cures.
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (message, hint) = (message.into(), hint.into());
        let code = code.into();
        Self {
            status,
            code,
            message,
            hint,
            retry_after: None,
            again: false,
            guards: None,
            allow: Allow::Unsaid,
        }
    }

    /// The path is there, and does not take this method.
    pub(crate) fn method(allow: Allow) -> Self {
        let message = format!("this endpoint takes {}", allow.text());
        let failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, "");
        Self { allow, ..failure }
    }

    /// The same, to be tried again after a while.
    pub(crate) fn later(self, after: Duration) -> Self {
        Self { retry_after: Some(after), again: true, ..self }
    }

    /// A stream that went silent.
    pub(crate) fn idle(allowed: Duration) -> Self {
        let message = format!("nothing of the answer came for {} ms", allowed.as_millis());
        let hint = "ask again, or raise idle_ms if the provider thinks for longer than that";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "stream_idle", message, hint)
    }

    /// All memory for bodies is in use.
    pub(crate) fn no_room() -> Self {
        let message = "this adapter holds as many bytes of requests and answers as its limits allow";
        let hint = "try again in a moment, or raise limits.buffers_bytes_max";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_room", message, hint).later(Duration::from_secs(1))
    }

    /// What an error of the client means over HTTP.
    pub(crate) fn of(error: &Error) -> Self {
        let code = error.code().to_owned();
        let (status, retry_after) = status_of(error, &code);
        let hint = match error {
            // Whoever asks here may have no command line of the mesh's.
            Error::UnknownModel { .. } => "GET /v1/models lists what may be asked for",
            _ => error.hint(),
        };
        Self {
            status,
            code: code.into(),
            message: chain(error),
            hint: hint.to_owned(),
            retry_after,
            again: matches!(error.retry(), Retry::Now | Retry::Later),
            guards: None,
            allow: Allow::Unsaid,
        }
    }

    /// The answer.
    pub(crate) fn response(&self, dialect: Dialect) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.body(dialect).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(code) = HeaderValue::from_str(&self.code) {
            headers.insert(CODE_HEADER, code);
        }
        if let Some(Ok(guards)) = self.guards.as_deref().map(HeaderValue::from_str) {
            headers.insert(crate::guards::GUARD_HEADER, guards);
        }
        if self.allow != Allow::Unsaid {
            headers.insert(header::ALLOW, HeaderValue::from_static(self.allow.text()));
        }
        if dialect == Dialect::Bedrock {
            // AWS's SDKs tell errors apart by it.
            let kind = ErrorKind::of_status(self.status.as_u16());
            for (name, value) in quorate_dialects::errors::error_answer(dialect, kind, "").headers {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            }
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if !self.again {
            // OpenAI's and Anthropic's SDKs obey this; without it they repeat every 5xx, also what may have been charged.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }

    /// The answer to whoever asked for a stream as one JSON array: Google's errors are in one too.
    pub(crate) fn response_in_array(&self) -> Response<Bytes> {
        self.response(Dialect::Gemini).map(|body| quorate_dialects::errors::in_array(&body))
    }

    /// The last event of a stream that broke.
    pub(crate) fn event(&self, operation: Operation) -> Bytes {
        let body = self.body(operation.dialect());
        match operation {
            Operation::Messages => format!("event: error\ndata: {body}\n\n").into(),
            Operation::GenerateContent { .. } => format!("data: {body}\r\n\r\n").into(),
            // Their events of errors have a form of their own.
            Operation::Responses | Operation::Converse { .. } => {
                let kind = ErrorKind::of_status(self.status.as_u16());
                quorate_dialects::errors::error_event(operation, kind, &self.text())
            }
            Operation::Chat
            | Operation::Completions
            | Operation::Embeddings
            | Operation::Models(_)
            | Operation::CountTokens
            | Operation::CountContent
            | Operation::EmbedContent
            | Operation::BatchEmbedContents => format!("data: {body}\n\n").into(),
        }
    }

    fn text(&self) -> String {
        match self.hint.as_str() {
            "" => format!("quorate: {}", self.message),
            hint => format!("quorate: {} ({hint})", self.message),
        }
    }

    /// The error object, also for an event of a stream.
    pub(crate) fn body(&self, dialect: Dialect) -> Value {
        let message = self.text();
        let (openai, anthropic, google) = words(self.status);
        match dialect {
            Dialect::Bedrock => json!({"message": message}),
            Dialect::OpenAi => json!({
                "error": {"message": message, "type": openai, "param": null, "code": self.code}
            }),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic, "message": message, "code": self.code}
            }),
            Dialect::Gemini => json!({
                "error": {
                    "code": self.status.as_u16(),
                    "message": message,
                    "status": google,
                    "details": [{
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": self.code.to_ascii_uppercase(),
                        "domain": "quorate"
                    }]
                }
            }),
        }
    }
}

/// What each vendor calls errors of a status.
fn words(status: StatusCode) -> (&'static str, &'static str, &'static str) {
    match status.as_u16() {
        401 => ("authentication_error", "authentication_error", "UNAUTHENTICATED"),
        403 => ("permission_error", "permission_error", "PERMISSION_DENIED"),
        404 => ("invalid_request_error", "not_found_error", "NOT_FOUND"),
        413 => ("invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
        429 => ("rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        503 => ("service_unavailable_error", "overloaded_error", "UNAVAILABLE"),
        504 => ("timeout_error", "timeout_error", "DEADLINE_EXCEEDED"),
        500..=599 => ("server_error", "api_error", "INTERNAL"),
        _ => ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    }
}

fn status_of(error: &Error, code: &str) -> (StatusCode, Option<Duration>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let rest_of = |span: u64| Some(Duration::from_secs(span - now % span));
    match (code, error.fault(), error.retry()) {
        ("model_not_found", ..) => (StatusCode::NOT_FOUND, None),
        ("body_too_large", ..) => (StatusCode::PAYLOAD_TOO_LARGE, None),
        ("timed_out", ..) => (StatusCode::GATEWAY_TIMEOUT, None),
        ("rate_exceeded", ..) => (StatusCode::TOO_MANY_REQUESTS, rest_of(60)),
        ("request_budget_exceeded" | "byte_budget_exceeded", ..) => {
            (StatusCode::TOO_MANY_REQUESTS, rest_of(86_400))
        }
        // Budgets and limits of the client, whatever they are called.
        (_, Fault::Client, Retry::Later) => (StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(1))),
        ("no_randomness" | "body_not_sealed" | "trust_file", ..) => (StatusCode::INTERNAL_SERVER_ERROR, None),
        ("closed", ..) => (StatusCode::SERVICE_UNAVAILABLE, Some(MESH_RETRY_AFTER)),
        ("unknown_route" | "out_of_scope" | "client_expired" | "client_revoked" | "unknown_client", ..) => {
            (StatusCode::FORBIDDEN, None)
        }
        (_, Fault::Client, Retry::Now | Retry::Never | Retry::Unknown) => (StatusCode::BAD_REQUEST, None),
        (_, Fault::Operator, Retry::Now | Retry::Later) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(MESH_RETRY_AFTER))
        }
        (_, Fault::Operator, Retry::Never | Retry::Unknown) => (StatusCode::FORBIDDEN, None),
        // A relay that was lost with the request: whether to repeat it is the application's to say.
        ("outcome_unknown", ..) => (StatusCode::BAD_GATEWAY, None),
        (_, Fault::Mesh, Retry::Now | Retry::Later) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(MESH_RETRY_AFTER))
        }
        (_, Fault::Mesh, Retry::Never | Retry::Unknown) => (StatusCode::SERVICE_UNAVAILABLE, None),
        (_, Fault::Provider, Retry::Now | Retry::Later) => (StatusCode::BAD_GATEWAY, Some(MESH_RETRY_AFTER)),
        (_, Fault::Provider, Retry::Never | Retry::Unknown) => (StatusCode::BAD_GATEWAY, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_client::{Darkness, MeshRefusal};

    fn refused(code: &str, fault: Fault, retry: Retry) -> Error {
        let (message, hint) = ("no".to_owned(), "do".to_owned());
        Error::Refused(MeshRefusal { code: code.into(), message, hint, retry, fault })
    }

    #[test]
    fn errors_have_the_status_that_sdks_expect() {
        let dark = Error::Dark(Darkness { attested: 2, quorum: 3, missing: vec![] });
        let table = [
            (Error::UnknownModel { model: "m".into() }, 404, "model_not_found", false),
            (Error::BodyTooLarge { length: 2, bound: 1 }, 413, "body_too_large", false),
            (refused("rate_exceeded", Fault::Client, Retry::Later), 429, "rate_exceeded", true),
            (
                refused("money_budget_exceeded", Fault::Client, Retry::Later),
                429,
                "money_budget_exceeded",
                true,
            ),
            (refused("out_of_scope", Fault::Client, Retry::Never), 403, "out_of_scope", false),
            (refused("no_quorum", Fault::Mesh, Retry::Later), 503, "no_quorum", true),
            (refused("credential_frozen", Fault::Operator, Retry::Never), 403, "credential_frozen", false),
            (dark, 503, "dark", true),
            (Error::TimedOut { what: "x", allowed_ms: 1 }, 504, "timed_out", false),
            (Error::Truncated { reason: "x".into() }, 502, "truncated", false),
            (Error::OutcomeUnknown(Box::new(Error::Closed)), 502, "outcome_unknown", false),
            (Error::NoPairLeft { route: "r".into() }, 503, "no_pair_left", true),
        ];
        for (error, status, code, again) in table {
            let failure = Failure::of(&error);
            assert_eq!(
                (failure.status.as_u16(), &*failure.code, failure.again),
                (status, code, again),
                "{error}"
            );
            assert_eq!(failure.response(Dialect::OpenAi).headers().contains_key("x-should-retry"), !again);
            if status == 429 || status == 503 {
                assert!(failure.retry_after.is_some_and(|d| !d.is_zero()), "{error}");
            }
        }
    }

    #[test]
    fn each_dialect_reads_its_own_form() {
        let failure = Failure::of(&refused("rate_exceeded", Fault::Client, Retry::Later));
        let body = |dialect| failure.body(dialect);
        assert_eq!(body(Dialect::OpenAi)["error"]["code"], "rate_exceeded");
        assert_eq!(body(Dialect::Anthropic)["type"], "error");
        assert_eq!(body(Dialect::Anthropic)["error"]["type"], "rate_limit_error");
        assert_eq!(body(Dialect::Gemini)["error"]["status"], "RESOURCE_EXHAUSTED");
        assert_eq!(body(Dialect::Gemini)["error"]["code"], 429);
        for dialect in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini] {
            let own = quorate_client::is_own_error_form(dialect.name(), body(dialect).to_string().as_bytes());
            assert!(own, "{dialect:?}");
            assert_eq!(failure.response(dialect).headers()[CODE_HEADER], "rate_exceeded");
        }
        let aws = failure.response(Dialect::Bedrock);
        assert_eq!(aws.headers()["x-amzn-errortype"], "ThrottlingException");
        let array: serde_json::Value = serde_json::from_slice(failure.response_in_array().body()).unwrap();
        assert_eq!(array[0], body(Dialect::Gemini));
    }
}
