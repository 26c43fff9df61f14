//! Errors, in each dialect's form: the provider's, and the adapter's own.
//!
//! <https://platform.openai.com/docs/guides/error-codes>, <https://docs.anthropic.com/en/api/errors>,
//! <https://cloud.google.com/apis/design/errors> (Gemini), and "Errors" of
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html>.
use crate::dialect::{Dialect, Operation};
use crate::json::{Json, Obj, Value};
use crate::limits::ERROR_MESSAGE_BYTES_MAX;
use crate::{eventstream, sse};
use bytes::Bytes;

/// What went wrong, as all dialects can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong. 400
    InvalidRequest,
    /// No or a wrong credential. 401
    Authentication,
    /// Not allowed. 403
    Permission,
    /// No such model or path. 404
    NotFound,
    /// Too large. 413
    TooLarge,
    /// Too many requests or tokens. 429
    RateLimited,
    /// Budget or quota is spent; waiting does not help soon. 429 (402 at Anthropic, 400 at Bedrock)
    QuotaExhausted,
    /// The provider, or we, have too much to do. 503 (529 at Anthropic)
    Overloaded,
    /// No answer in time. 504 (408 at Bedrock)
    Timeout,
    /// The provider's answer is not usable. 502 (424 at Bedrock)
    BadGateway,
    /// A fault of the server. 500
    Internal,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::InvalidRequest,
        Self::Authentication,
        Self::Permission,
        Self::NotFound,
        Self::TooLarge,
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Overloaded,
        Self::Timeout,
        Self::BadGateway,
        Self::Internal,
    ];

    /// What a status alone says.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 => Self::Authentication,
            402 => Self::QuotaExhausted,
            403 => Self::Permission,
            404 => Self::NotFound,
            408 | 504 => Self::Timeout,
            413 => Self::TooLarge,
            429 => Self::RateLimited,
            424 | 502 => Self::BadGateway,
            503 | 529 => Self::Overloaded,
            400..=499 => Self::InvalidRequest,
            _ => Self::Internal,
        }
    }

    /// Whether another attempt or another route may do better with the same request.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimited
            | Self::QuotaExhausted
            | Self::Overloaded
            | Self::Timeout
            | Self::BadGateway
            | Self::Internal => true,
            Self::InvalidRequest
            | Self::Authentication
            | Self::Permission
            | Self::NotFound
            | Self::TooLarge => false,
        }
    }

    /// The status that a dialect gives it.
    pub fn status(self, dialect: Dialect) -> u16 {
        match (self, dialect) {
            (Self::InvalidRequest, _) => 400,
            (Self::Authentication, Dialect::Bedrock) => 403,
            (Self::Authentication, _) => 401,
            (Self::Permission, _) => 403,
            (Self::NotFound, _) => 404,
            (Self::TooLarge, _) => 413,
            (Self::QuotaExhausted, Dialect::Anthropic) => 402,
            (Self::QuotaExhausted, Dialect::Bedrock) => 400,
            (Self::RateLimited | Self::QuotaExhausted, _) => 429,
            (Self::Overloaded, Dialect::Anthropic) => 529,
            (Self::Overloaded, _) => 503,
            (Self::Timeout, Dialect::Bedrock) => 408,
            (Self::Timeout, _) => 504,
            (Self::BadGateway, Dialect::Bedrock) => 424,
            (Self::BadGateway, _) => 502,
            (Self::Internal, _) => 500,
        }
    }

    /// OpenAI's `type` and `code`.
    fn openai(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::InvalidRequest => ("invalid_request_error", None),
            Self::Authentication => ("invalid_request_error", Some("invalid_api_key")),
            Self::Permission => ("permission_error", Some("permission_denied")),
            Self::NotFound => ("invalid_request_error", Some("model_not_found")),
            Self::TooLarge => ("invalid_request_error", Some("request_too_large")),
            Self::RateLimited => ("rate_limit_error", Some("rate_limit_exceeded")),
            Self::QuotaExhausted => ("insufficient_quota", Some("insufficient_quota")),
            Self::Overloaded => ("server_error", Some("server_overloaded")),
            Self::Timeout => ("server_error", Some("timeout")),
            Self::BadGateway => ("server_error", Some("bad_gateway")),
            Self::Internal => ("server_error", None),
        }
    }

    /// Anthropic's `type`.
    fn anthropic(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimited => "rate_limit_error",
            Self::QuotaExhausted => "billing_error",
            Self::Overloaded => "overloaded_error",
            Self::Timeout => "timeout_error",
            Self::BadGateway | Self::Internal => "api_error",
        }
    }

    /// google.rpc.Code.
    fn gemini(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::TooLarge => "INVALID_ARGUMENT",
            Self::Authentication => "UNAUTHENTICATED",
            Self::Permission => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::RateLimited | Self::QuotaExhausted => "RESOURCE_EXHAUSTED",
            Self::Overloaded | Self::BadGateway => "UNAVAILABLE",
            Self::Timeout => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
    }

    /// Bedrock's exception.
    fn bedrock(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::TooLarge => "ValidationException",
            Self::Authentication => "UnrecognizedClientException",
            Self::Permission => "AccessDeniedException",
            Self::NotFound => "ResourceNotFoundException",
            Self::RateLimited => "ThrottlingException",
            Self::QuotaExhausted => "ServiceQuotaExceededException",
            Self::Overloaded => "ServiceUnavailableException",
            Self::Timeout => "ModelTimeoutException",
            Self::BadGateway => "ModelErrorException",
            Self::Internal => "InternalServerException",
        }
    }

    /// What any dialect's word for an error means. `None`: the status knows better.
    fn of_word(word: &str) -> Option<Self> {
        // Bedrock writes `ThrottlingException:http://...` in its header, and starts lower case in streams
        let word = word.split(':').next().unwrap_or(word);
        let word = word.rsplit('#').next().unwrap_or(word);
        let exception = |kind: &Self| word.eq_ignore_ascii_case(kind.bedrock());
        Some(match word {
            "insufficient_quota" | "billing_error" => Self::QuotaExhausted,
            "rate_limit_exceeded" | "rate_limit_error" | "RESOURCE_EXHAUSTED" => Self::RateLimited,
            "invalid_api_key" | "authentication_error" | "UNAUTHENTICATED" => Self::Authentication,
            "permission_error" | "PERMISSION_DENIED" => Self::Permission,
            "model_not_found" | "not_found_error" | "NOT_FOUND" => Self::NotFound,
            "request_too_large" => Self::TooLarge,
            "overloaded_error" | "server_overloaded" | "UNAVAILABLE" => Self::Overloaded,
            "timeout_error" | "DEADLINE_EXCEEDED" => Self::Timeout,
            "invalid_request_error" | "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => {
                Self::InvalidRequest
            }
            "api_error" | "server_error" | "INTERNAL" => Self::Internal,
            "ModelNotReadyException" => Self::Overloaded,
            "modelStreamErrorException" | "ModelStreamErrorException" => Self::BadGateway,
            _ => return Self::ALL.into_iter().find(exception),
        })
    }
}

/// A provider's error, read. The message may quote content: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ProviderError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    /// Seconds, from Gemini's `RetryInfo`.
    pub(crate) retry_after: Option<u64>,
}

/// Reads an error body of a dialect. Whatever it is, something comes of it: a proxy's HTML has its status.
pub(crate) fn read(
    dialect: Dialect,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
) -> ProviderError {
    let header = headers.iter().find(|(name, _)| name == "x-amzn-errortype").map(|(_, value)| value.as_str());
    let mut error = read_body(dialect, body).unwrap_or(ProviderError {
        kind: ErrorKind::of_status(status),
        message: format!("the provider answered with status {status}"),
        retry_after: None,
    });
    // the more exact word wins, a mere 4xx or 5xx otherwise
    error.kind = match (header.and_then(ErrorKind::of_word), ErrorKind::of_status(status)) {
        (Some(kind), _) => kind,
        (None, of_status @ (ErrorKind::InvalidRequest | ErrorKind::Internal | ErrorKind::RateLimited)) => {
            match error.kind {
                ErrorKind::InvalidRequest | ErrorKind::Internal => of_status,
                exact => exact,
            }
        }
        (None, of_status) => of_status,
    };
    error
}

/// An error object as it stands in a body or in an event.
fn read_body(dialect: Dialect, body: &[u8]) -> Option<ProviderError> {
    let value = Value::root(body).ok()?;
    // Gemini answers a failed stream without alt=sse with an array of one
    let value = if value.is_array() { value.array().ok()?.into_iter().next()? } else { value };
    let mut object = value.object().ok()?;
    let mut inner = match object.take("error") {
        Some(error) if error.is_object() => error.object().ok()?,
        // some compatible servers: {"error": "text"}; others, and Bedrock: {"message": "text"}
        Some(error) if error.is_string() => return Some(plain(error.string().ok()?)),
        _ => object,
    };
    let mut word = |name: &str| inner.take(name).filter(Value::is_string).and_then(|v| v.string().ok());
    let words = [word("code"), word("status"), word("type"), word("__type")];
    let message = word("message").or_else(|| word("Message")).or_else(|| word("detail"));
    let kind = words.iter().flatten().find_map(|w| ErrorKind::of_word(w));
    let message = message.unwrap_or_else(|| "the provider gave no message".into());
    let retry_after = (dialect == Dialect::Gemini).then(|| retry_info(inner.take("details")?)).flatten();
    Some(ProviderError { kind: kind.unwrap_or(ErrorKind::Internal), message: bounded(message), retry_after })
}

fn plain(message: String) -> ProviderError {
    ProviderError { kind: ErrorKind::Internal, message: bounded(message), retry_after: None }
}

/// An error event within a stream.
pub(crate) fn read_event(dialect: Dialect, data: &[u8]) -> ProviderError {
    read_body(dialect, data).unwrap_or_else(|| plain("the provider gave no message".into()))
}

/// A frame with an exception.
pub(crate) fn read_exception(frame: &eventstream::Frame) -> ProviderError {
    let mut error = read_event(Dialect::Bedrock, &frame.payload);
    error.kind = ErrorKind::of_word(&frame.kind).unwrap_or(ErrorKind::Internal);
    if !frame.error_message.is_empty() {
        error.message = bounded(frame.error_message.clone());
    }
    error
}

/// google.rpc.RetryInfo: `"retryDelay": "36.2s"`, rounded up.
fn retry_info(details: Value<'_>) -> Option<u64> {
    let delay =
        details.array().ok()?.into_iter().find_map(|detail| detail.object().ok()?.take("retryDelay"))?;
    let text = delay.string().ok()?;
    let (whole, fraction) = match text.strip_suffix('s')?.split_once('.') {
        Some((whole, _)) => (whole, 1),
        None => (text.strip_suffix('s')?, 0),
    };
    whole.parse::<u64>().ok()?.checked_add(fraction)
}

fn bounded(mut message: String) -> String {
    if message.len() > ERROR_MESSAGE_BYTES_MAX {
        let end = (0..=ERROR_MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

/// A whole error answer. The message may quote content: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// Status.
    pub status: u16,
    /// `content-type` and what the dialect adds.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
}

/// An error of the adapter's own in the caller's dialect, with the dialect's usual status.
pub fn error_answer(dialect: Dialect, kind: ErrorKind, message: &str) -> ErrorAnswer {
    let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    if dialect == Dialect::Bedrock {
        headers.push(("x-amzn-errortype".into(), kind.bedrock().into()));
    }
    let status = kind.status(dialect);
    ErrorAnswer { status, headers, body: object(dialect, kind, message).text().into() }
}

/// The error alone, as answers and events hold it.
pub(crate) fn object(dialect: Dialect, kind: ErrorKind, message: &str) -> Obj {
    match dialect {
        Dialect::OpenAi => {
            let (name, code) = kind.openai();
            let code = code.map_or(Json::Null, Json::from);
            let error = Obj::new().with("message", message).with("type", name).with("param", Json::Null);
            Obj::new().with("error", error.with("code", code))
        }
        Dialect::Anthropic => {
            Obj::of_type("error").with("error", Obj::of_type(kind.anthropic()).with("message", message))
        }
        Dialect::Gemini => {
            let error = Obj::new().with("code", u64::from(kind.status(dialect))).with("message", message);
            Obj::new().with("error", error.with("status", kind.gemini()))
        }
        Dialect::Bedrock => Obj::new().with("message", message),
    }
}

/// An object as the one item of an array: what those get who asked Gemini for a stream without `alt=sse`, errors included.
pub fn in_array(object: &[u8]) -> Bytes {
    [b"[", object, b"]\n"].concat().into()
}

/// An error as the last event of a stream that has begun, in the form of the caller's operation.
pub fn error_event(operation: Operation, kind: ErrorKind, message: &str) -> Bytes {
    let dialect = operation.dialect();
    let object = object(dialect, kind, message);
    let mut out = Vec::new();
    match dialect {
        Dialect::OpenAi if operation == Operation::Responses => {
            let (name, code) = kind.openai();
            let event = Obj::of_type("error").with("code", code.unwrap_or(name)).with("message", message);
            sse::write(&mut out, Some("error"), &event.with("param", Json::Null).text());
        }
        Dialect::OpenAi | Dialect::Gemini => sse::write(&mut out, None, &object.text()),
        Dialect::Anthropic => sse::write(&mut out, Some("error"), &object.text()),
        Dialect::Bedrock => {
            let name = match kind {
                ErrorKind::RateLimited | ErrorKind::QuotaExhausted => "throttlingException",
                ErrorKind::InvalidRequest | ErrorKind::TooLarge => "validationException",
                ErrorKind::Overloaded => "serviceUnavailableException",
                ErrorKind::Internal => "internalServerException",
                ErrorKind::Authentication
                | ErrorKind::Permission
                | ErrorKind::NotFound
                | ErrorKind::Timeout
                | ErrorKind::BadGateway => "modelStreamErrorException",
            };
            eventstream::write_exception(&mut out, name, &object.text());
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_dialect_says_it_reads_again() {
        for dialect in Dialect::ALL {
            for kind in ErrorKind::ALL {
                let answer = error_answer(dialect, kind, "no \"good\"");
                let read = read(dialect, answer.status, &answer.headers, &answer.body);
                let expected = match (dialect, kind) {
                    // no word of its own there, nor a status
                    (Dialect::Bedrock, ErrorKind::TooLarge) => ErrorKind::InvalidRequest,
                    (Dialect::Gemini, ErrorKind::QuotaExhausted) => ErrorKind::RateLimited,
                    _ => kind,
                };
                assert_eq!(
                    (read.kind, read.message.as_str()),
                    (expected, "no \"good\""),
                    "{dialect} {kind:?}"
                );
            }
        }
    }

    #[test]
    fn what_no_dialect_says_has_its_status() {
        for (status, body, kind) in [
            (502, "<html>bad gateway</html>", ErrorKind::BadGateway),
            (429, "", ErrorKind::RateLimited),
            (429, r#"{"error":{"code":"insufficient_quota"}}"#, ErrorKind::QuotaExhausted),
            (404, r#"{"error":"model not found"}"#, ErrorKind::NotFound),
            (400, r#"{"object":"error","message":"bad","code":400}"#, ErrorKind::InvalidRequest),
            (400, r#"[{"error":{"code":400,"status":"INVALID_ARGUMENT"}}]"#, ErrorKind::InvalidRequest),
        ] {
            assert_eq!(read(Dialect::OpenAi, status, &[], body.as_bytes()).kind, kind, "{body}");
        }
    }

    #[test]
    fn geminis_retry_delay() {
        let body =
            br#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED","details":[{"@type":"x"},
            {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"36.2s"}]}}"#;
        assert_eq!(read(Dialect::Gemini, 429, &[], body).retry_after, Some(37));
    }

    #[test]
    fn messages_have_a_bound() {
        let body = Obj::new().with("message", "é".repeat(9000)).text();
        let message = read(Dialect::Bedrock, 400, &[], body.as_bytes()).message;
        assert_eq!(message.len(), ERROR_MESSAGE_BYTES_MAX);
    }
}
