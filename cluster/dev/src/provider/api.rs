//! HTTP in, HTTP out: which dialect a path is of, the key, the body's bound, faults, and access lines for each request.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use zeroize::Zeroizing;

use super::access::{self, AccessLog, Exchange, FirstHead, Line};
use super::catalogue::{CHAT_MODEL, Catalogue, Fault};
use super::reply::{CutShort, Reply};
use super::{Answered, Content, Options, Refusal, anthropic, bedrock, gemini, openai};

/// Bytes of a request body; a larger one gets 413. Real providers take some tens of megabytes, for images.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The pace of the model `fault-slow-stream`.
const SLOW_PACE: Duration = Duration::from_millis(200);

/// The service behind every connection.
pub(super) struct Api {
    catalogue: Catalogue,
    key: Option<Zeroizing<Vec<u8>>>,
    key_path: String,
    delay: Duration,
    slow: Duration,
    pace: Option<Duration>,
    /// Where all that is said goes.
    exchanges: Option<AccessLog>,
}

/// What was asked, by path: its dialect decides how the key is given and what a refusal looks like.
enum Endpoint<'a> {
    OpenAi(openai::Endpoint<'a>),
    Anthropic(anthropic::Endpoint<'a>),
    Gemini(gemini::Endpoint<'a>),
    Bedrock(bedrock::Endpoint),
}

/// An answer before it is an HTTP response.
enum Answer {
    Content(Content),
    Html(StatusCode),
    Refused(Refusal),
}

impl<'a> Endpoint<'a> {
    /// The lists of models of three vendors share a path: the headers of their SDKs say which is meant.
    fn of(path: &'a str, query: Option<&str>, headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key("anthropic-version") || path.starts_with("/v1/messages") {
            anthropic::Endpoint::of(path).map(Self::Anthropic)
        } else if path.starts_with("/v1beta/")
            || path.starts_with("/v1/models/") && path.contains(':')
            || path.starts_with("/v1/models") && headers.contains_key("x-goog-api-client")
        {
            gemini::Endpoint::of(path, query).map(Self::Gemini)
        } else if path.starts_with("/model/") {
            bedrock::Endpoint::of(path).map(Self::Bedrock)
        } else {
            openai::Endpoint::of(path).map(Self::OpenAi)
        }
    }

    fn method(&self) -> Method {
        let get = match self {
            Self::OpenAi(endpoint) => endpoint.is_get(),
            Self::Anthropic(endpoint) => endpoint.is_get(),
            Self::Gemini(endpoint) => endpoint.is_get(),
            Self::Bedrock(_) => false,
        };
        if get { Method::GET } else { Method::POST }
    }

    /// A refusal of the HTTP request in this dialect's form.
    fn refusal(&self, status: u16, code: Option<&'static str>, message: &str) -> Refusal {
        match self {
            Self::OpenAi(_) => openai::refusal(status, code, message),
            Self::Anthropic(_) => {
                let kind = if status == 413 { "request_too_large" } else { "invalid_request_error" };
                anthropic::refusal(status, kind, message)
            }
            Self::Gemini(_) => gemini::refusal(status, "INVALID_ARGUMENT", message),
            Self::Bedrock(_) => bedrock::refusal(status, "ValidationException", message),
        }
    }

    /// The key that a request bears, where this dialect has it.
    fn given_key<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let value = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let bearer = || value("authorization").and_then(|value| value.strip_prefix(b"Bearer "));
        match self {
            Self::OpenAi(_) | Self::Bedrock(_) => bearer(),
            Self::Anthropic(_) => value("x-api-key"),
            Self::Gemini(_) => value("x-goog-api-key"),
        }
    }

    fn wrong_key(&self, given: bool) -> Refusal {
        match self {
            Self::OpenAi(_) => openai::wrong_key(),
            Self::Anthropic(_) => anthropic::wrong_key(given),
            Self::Gemini(_) => gemini::wrong_key(given),
            Self::Bedrock(_) => bedrock::wrong_key(),
        }
    }

    fn fault(&self, fault: Fault) -> Option<Refusal> {
        match self {
            Self::OpenAi(_) => openai::fault(fault),
            Self::Anthropic(_) => anthropic::fault(fault),
            Self::Gemini(_) => gemini::fault(fault),
            Self::Bedrock(_) => bedrock::fault(fault),
        }
    }

    fn error_event(&self) -> Bytes {
        match self {
            Self::OpenAi(endpoint) => openai::error_event(*endpoint),
            Self::Anthropic(_) => anthropic::error_event(),
            Self::Gemini(_) => gemini::error_event(),
            Self::Bedrock(_) => bedrock::error_event(),
        }
    }

    fn answer(&self, catalogue: &Catalogue, body: &[u8]) -> Result<Answered, Refusal> {
        match self {
            Self::OpenAi(endpoint) => openai::answer(catalogue, *endpoint, body, now()),
            Self::Anthropic(endpoint) => anthropic::answer(catalogue, *endpoint, body),
            Self::Gemini(endpoint) => gemini::answer(catalogue, *endpoint, body),
            Self::Bedrock(endpoint) => bedrock::answer(catalogue, endpoint, body),
        }
    }

    /// Headers that every answer of the vendor has.
    fn marks(&self, headers: &mut HeaderMap) {
        let name = match self {
            Self::OpenAi(_) => "x-request-id",
            Self::Anthropic(_) => "request-id",
            Self::Bedrock(_) => "x-amzn-requestid",
            Self::Gemini(_) => return,
        };
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static("req_demo"));
    }
}

impl Api {
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        let key = match &options.key_file {
            None => None,
            Some(path) => {
                let bytes = Zeroizing::new(
                    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
                );
                let key = Zeroizing::new(bytes.trim_ascii().to_vec());
                anyhow::ensure!(!key.is_empty(), "{} holds no key", path.display());
                Some(key)
            }
        };
        let mut chat_models = vec![CHAT_MODEL.to_owned()];
        chat_models.extend(options.models.iter().filter(|name| *name != CHAT_MODEL).cloned());
        let tokens = usize::try_from(options.tokens).context("--tokens is too large")?;
        let exchanges = options.exchanges.then(|| AccessLog::open(&options.dir.join("exchanges.jsonl")));
        Ok(Self {
            catalogue: Catalogue { chat_models, tokens },
            key,
            key_path: options.key_path.clone().unwrap_or_default(),
            delay: Duration::from_millis(options.delay_ms),
            slow: Duration::from_millis(options.slow_ms),
            pace: (options.chunk_delay_ms > 0).then(|| Duration::from_millis(options.chunk_delay_ms)),
            exchanges: exchanges.transpose()?,
        })
    }

    /// Answers one request, or asks for the connection to be closed without an answer. The access line is
    /// written before the answer is, and another if nobody waits for the answer's end.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        access: Option<&Arc<AccessLog>>,
        head: Option<FirstHead>,
    ) -> Result<Response<Reply>, CutShort> {
        let (parts, incoming) = request.into_parts();
        let path = parts.uri.path();
        let (path, keyed) =
            path.strip_prefix(self.key_path.as_str()).map_or((path, false), |path| (path, true));
        let endpoint = Endpoint::of(path, parts.uri.query(), &parts.headers);
        let (fault, answer, body) = match &endpoint {
            None => {
                let message = format!("Invalid URL ({} {path})", parts.method);
                let refusal = openai::refusal(404, Some("unknown_url"), &message);
                (None, Answer::Refused(refusal), Bytes::new())
            }
            Some(endpoint) => match self.read(endpoint, keyed, path, &parts, incoming).await {
                Ok(body) => {
                    let (fault, answer) = self.work(endpoint, &body);
                    (fault, answer, body)
                }
                Err(refusal) => (None, Answer::Refused(refusal), Bytes::new()),
            },
        };
        if let Some(log) = &self.exchanges {
            let (status, content_type, answered) = answer.said();
            let version = parts.headers.get("anthropic-version").and_then(|v| v.to_str().ok());
            let exchange = Exchange {
                path,
                query: parts.uri.query().unwrap_or_default(),
                anthropic_version: version.unwrap_or_default(),
                request: String::from_utf8_lossy(&body).into_owned(),
                status: status.as_u16(),
                content_type,
                answer: BASE64_STANDARD.encode(answered),
            };
            access::log(Some(log), &exchange);
        }
        let wait = if fault == Some(Fault::Slow) { self.slow } else { self.delay };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let pace = if fault == Some(Fault::SlowStream) { Some(SLOW_PACE) } else { self.pace };
        let mut response = match fault {
            Some(Fault::Close) => Err(CutShort),
            Some(Fault::CloseMidStream) => Ok(answer.into_response(pace).map(Reply::cut_short)),
            Some(Fault::ErrorMidStream) => {
                let event = endpoint.as_ref().map(Endpoint::error_event).unwrap_or_default();
                Ok(answer.into_response(pace).map(|reply| reply.ending_with(event)))
            }
            _ => Ok(answer.into_response(pace)),
        };
        if let (Ok(response), Some(endpoint)) = (&mut response, &endpoint) {
            endpoint.marks(response.headers_mut());
            if fault == Some(Fault::RateLimited) {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
        }
        if let Some(access) = access {
            let first_head = head.and_then(|head| head.take());
            let line = Line::Request {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                status: response.as_ref().ok().map(|response| response.status().as_u16()),
                body_bytes: body.len(),
                body_sha256: access::sha256_hex(&body),
                head_bytes: first_head.as_ref().map(Vec::len),
                head_sha256: first_head.map(|head| access::sha256_hex(&head)),
            };
            access::log(Some(access), &line);
            response = response.map(|response| response.map(|reply| reply.noted_by(access.clone())));
        }
        response
    }

    /// Everything that can be refused before the body is understood.
    async fn read(
        &self,
        endpoint: &Endpoint<'_>,
        keyed: bool,
        path: &str,
        parts: &http::request::Parts,
        incoming: Incoming,
    ) -> Result<Bytes, Refusal> {
        if let Some(key) = self.key.as_ref().filter(|_| keyed) {
            let given = endpoint.given_key(&parts.headers);
            verify_slices_are_equal(given.unwrap_or_default(), key)
                .map_err(|_| endpoint.wrong_key(given.is_some()))?;
        }
        let allowed = endpoint.method();
        if parts.method != allowed {
            let message = format!("Not allowed to {} on {path} (HINT: {allowed})", parts.method);
            return Err(endpoint.refusal(405, Some("method_not_supported"), &message));
        }
        let body = read_body(endpoint, incoming).await?;
        if let Endpoint::Anthropic(_) = endpoint {
            anthropic::check_version(parts.headers.get("anthropic-version"), &body)?;
        }
        if allowed == Method::POST && !is_json(parts.headers.get(header::CONTENT_TYPE)) {
            return Err(endpoint.refusal(400, None, "Expected content-type: application/json."));
        }
        Ok(body)
    }

    fn work(&self, endpoint: &Endpoint<'_>, body: &[u8]) -> (Option<Fault>, Answer) {
        match endpoint.answer(&self.catalogue, body) {
            Err(refusal) => (None, Answer::Refused(refusal)),
            Ok(Answered { fault: Some(Fault::BadGatewayHtml), .. }) => {
                (Some(Fault::BadGatewayHtml), Answer::Html(StatusCode::BAD_GATEWAY))
            }
            Ok(Answered { fault: Some(fault), content }) => {
                let refused = endpoint.fault(fault).map(Answer::Refused);
                (Some(fault), refused.unwrap_or(Answer::Content(content)))
            }
            Ok(Answered { fault: None, content }) => (None, Answer::Content(content)),
        }
    }
}

impl Answer {
    /// Status, kind and all bytes of it, before any fault.
    fn said(&self) -> (StatusCode, &'static str, Vec<u8>) {
        match self {
            Self::Content(Content::Json(body)) => (StatusCode::OK, "application/json", body.clone()),
            Self::Content(Content::Stream(kind, parts)) => {
                (StatusCode::OK, kind, parts.iter().flat_map(|part| part.to_vec()).collect())
            }
            Self::Html(status) => (*status, "text/html", Vec::new()),
            Self::Refused(refusal) => {
                let status = StatusCode::from_u16(refusal.status);
                let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, "application/json", refusal.body.clone())
            }
        }
    }

    fn into_response(self, pace: Option<Duration>) -> Response<Reply> {
        let mut extra = Vec::new();
        let (status, content_type, body) = match self {
            Self::Content(Content::Json(body)) => (StatusCode::OK, "application/json", Reply::whole(body)),
            Self::Content(Content::Stream(kind, parts)) => (StatusCode::OK, kind, Reply::stream(parts, pace)),
            Self::Html(status) => {
                (status, "text/html", Reply::whole("<html><head><title>Bad gateway</title></head></html>"))
            }
            Self::Refused(refusal) => {
                let status =
                    StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                extra = refusal.headers;
                (status, "application/json", Reply::whole(refusal.body))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        for (name, value) in extra {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read, so nothing may follow it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

async fn read_body(endpoint: &Endpoint<'_>, mut incoming: Incoming) -> Result<Bytes, Refusal> {
    let too_large =
        || endpoint.refusal(413, Some("request_too_large"), "The request body is larger than 4 MiB.");
    if incoming.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut body = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut incoming).poll_frame(cx)).await
    {
        let frame = frame.map_err(|_| endpoint.refusal(400, None, "The request body ended early."))?;
        let Ok(data) = frame.into_data() else { continue };
        if body.len() + more.len() + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        // Most bodies come in one piece and are not copied.
        if body.is_empty() && more.is_empty() {
            body = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut body));
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { body } else { more.freeze() })
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let media_type =
        content_type.and_then(|value| value.to_str().ok()).and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
