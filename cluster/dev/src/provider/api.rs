//! HTTP in, HTTP out: path and method, the key, the body's bound, faults, and one access line for each request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use zeroize::Zeroizing;

use super::Options;
use super::access::{self, AccessLog, FirstHead, Line};
use super::openai::{self, ApiError, CHAT_MODEL, Catalogue, Fault};
use super::reply::{CutShort, Reply};

/// Bytes of a request body; a larger one gets 413. Real providers take some tens of megabytes, for images.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The service behind every connection.
pub(super) struct Api {
    catalogue: Catalogue,
    key: Option<Zeroizing<Vec<u8>>>,
    key_path: String,
    delay: Duration,
    slow: Duration,
    pace: Option<Duration>,
}

/// What was asked, by path.
enum Endpoint<'a> {
    Chat,
    Embeddings,
    Models,
    Model(&'a str),
}

/// An answer before it is an HTTP response.
enum Answer {
    Json(Vec<u8>),
    Events(Reply),
    Html(StatusCode),
    Refused(ApiError),
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
        Ok(Self {
            catalogue: Catalogue { chat_models, tokens },
            key,
            key_path: options.key_path.clone().unwrap_or_default(),
            delay: Duration::from_millis(options.delay_ms),
            slow: Duration::from_millis(options.slow_ms),
            pace: (options.chunk_delay_ms > 0).then(|| Duration::from_millis(options.chunk_delay_ms)),
        })
    }

    /// Answers one request, or asks for the connection to be closed without an answer. The access line is
    /// written before the answer is.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        access: Option<&AccessLog>,
        head: Option<FirstHead>,
    ) -> Result<Response<Reply>, CutShort> {
        let (parts, incoming) = request.into_parts();
        let (fault, answer, body) = match self.read(&parts, incoming).await {
            Ok((endpoint, body)) => {
                let (fault, answer) = self.work(&endpoint, &body);
                (fault, answer, body)
            }
            Err(refusal) => (None, Answer::Refused(refusal), Bytes::new()),
        };
        let wait = if fault == Some(Fault::Slow) { self.slow } else { self.delay };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let retry_later = fault == Some(Fault::RateLimited);
        let response = match fault {
            Some(Fault::Close) => Err(CutShort),
            Some(Fault::CloseMidStream) => Ok(answer.into_response(retry_later).map(Reply::cut_short)),
            _ => Ok(answer.into_response(retry_later)),
        };
        if access.is_some() {
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
            access::log(access, &line);
        }
        response
    }

    /// Everything that can be refused before the body is understood.
    async fn read<'a>(
        &self,
        parts: &'a http::request::Parts,
        incoming: Incoming,
    ) -> Result<(Endpoint<'a>, Bytes), ApiError> {
        let path = match parts.uri.path().strip_prefix(&self.key_path) {
            Some(path) => {
                self.check_key(parts.headers.get(header::AUTHORIZATION))?;
                path
            }
            None => parts.uri.path(),
        };
        let (endpoint, allowed) = match path {
            "/v1/chat/completions" => (Endpoint::Chat, Method::POST),
            "/v1/embeddings" => (Endpoint::Embeddings, Method::POST),
            "/v1/models" => (Endpoint::Models, Method::GET),
            _ => match path.strip_prefix("/v1/models/") {
                Some(model) if !model.is_empty() => (Endpoint::Model(model), Method::GET),
                _ => {
                    let message = format!("Invalid URL ({} {path})", parts.method);
                    return Err(ApiError::request(404, Some("unknown_url"), message));
                }
            },
        };
        if parts.method != allowed {
            let message = format!("Not allowed to {} on {path} (HINT: {allowed})", parts.method);
            return Err(ApiError::request(405, Some("method_not_supported"), message));
        }
        let body = read_body(incoming).await?;
        if allowed == Method::POST && !is_json(parts.headers.get(header::CONTENT_TYPE)) {
            return Err(ApiError::request(400, None, "Expected content-type: application/json."));
        }
        Ok((endpoint, body))
    }

    fn check_key(&self, given: Option<&HeaderValue>) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let bearer = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default();
        verify_slices_are_equal(bearer, key).map_err(|_| openai::wrong_key())
    }

    fn work(&self, endpoint: &Endpoint<'_>, body: &[u8]) -> (Option<Fault>, Answer) {
        let asked = match endpoint {
            Endpoint::Models => Ok((None, Answer::Json(self.catalogue.models()))),
            Endpoint::Model(name) => self.catalogue.model(name).map(|model| (None, Answer::Json(model))),
            Endpoint::Embeddings => {
                self.catalogue.embed(body).map(|(fault, body)| (fault, Answer::Json(body)))
            }
            Endpoint::Chat => self.catalogue.chat(body).map(|chat| {
                let answer = if chat.stream {
                    Answer::Events(Reply::stream(chat.events(now()), self.pace))
                } else {
                    Answer::Json(chat.whole(now()))
                };
                (chat.fault, answer)
            }),
        };
        match asked {
            Err(refusal) => (None, Answer::Refused(refusal)),
            Ok((Some(Fault::BadGatewayHtml), _)) => {
                (Some(Fault::BadGatewayHtml), Answer::Html(StatusCode::BAD_GATEWAY))
            }
            Ok((Some(fault), answer)) => {
                (Some(fault), openai::fault_error(fault).map_or(answer, Answer::Refused))
            }
            Ok((None, answer)) => (None, answer),
        }
    }
}

impl Answer {
    fn into_response(self, retry_later: bool) -> Response<Reply> {
        let (status, content_type, body) = match self {
            Self::Json(body) => (StatusCode::OK, "application/json", Reply::whole(body)),
            Self::Events(body) => (StatusCode::OK, "text/event-stream; charset=utf-8", body),
            Self::Html(status) => {
                (status, "text/html", Reply::whole("<html><head><title>Bad gateway</title></head></html>"))
            }
            Self::Refused(error) => {
                let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, "application/json", Reply::whole(error.body()))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if retry_later {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read, so nothing may follow it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

async fn read_body(mut incoming: Incoming) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::request(413, Some("request_too_large"), "The request body is larger than 4 MiB.");
    if incoming.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut body = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut incoming).poll_frame(cx)).await
    {
        let frame = frame.map_err(|_| ApiError::request(400, None, "The request body ended early."))?;
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
