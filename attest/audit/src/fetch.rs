//! Plain requests to nodes and mirrors, over HTTP or HTTPS. Every answer has a bound and a deadline; nothing that comes back is
//! believed here.
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// For one answer, its body included.
const ANSWER: Duration = Duration::from_secs(60);
/// A connection that failed is tried again so often.
const TRIES: u32 = 4;
/// Before the second try; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL.
    #[error("{0:?} is not a URL such as http://node-1.example:7102")]
    Url(String),
    /// Refused, reset, not resolved, TLS.
    #[error("cannot reach {url}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What came of it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too slow.
    #[error("{0} did not answer in time")]
    TooSlow(String),
    /// Another status than 200.
    #[error("{url} answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// What came of it.
        status: StatusCode,
    },
    /// A body beyond the bound, or cut off.
    #[error("{url}: the answer is longer than {bytes_max} bytes, or was cut off")]
    Body {
        /// What was asked for.
        url: String,
        /// The bound.
        bytes_max: usize,
    },
}

impl FetchError {
    /// The other side has no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND, .. })
    }
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooSlow(_) => true,
            Self::Status { status, .. } => status.is_server_error(),
            Self::Url(_) | Self::Body { .. } => false,
        }
    }
}

/// Keeps connections open between requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    inner: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// Believes the system's certificates, as far as transport goes.
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        // Without any certificates on the machine, HTTPS fails by itself and HTTP goes on.
        let tls = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => builder,
            Err(_) => HttpsConnectorBuilder::new().with_tls_config(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        Self { inner: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// The body of a 200. Transient failures are tried again.
    pub async fn get(&self, url: &str, bytes_max: usize) -> Result<Bytes, FetchError> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.get_once(url, bytes_max).await {
                Err(error) if error.is_transient() => {}
                other => return other,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.get_once(url, bytes_max).await
    }

    async fn get_once(&self, url: &str, bytes_max: usize) -> Result<Bytes, FetchError> {
        let (status, body) = self.send(Method::GET, url, None, Bytes::new(), bytes_max).await?;
        match status {
            StatusCode::OK => Ok(body),
            status => Err(FetchError::Status { url: url.to_owned(), status }),
        }
    }

    /// Sends a body, once; whatever the status.
    pub async fn post(
        &self,
        url: &str,
        content_type: &str,
        body: Bytes,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        self.send(Method::POST, url, Some(content_type), body, bytes_max).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        content_type: Option<&str>,
        body: Bytes,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        let bad = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad());
        }
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(Full::new(body)).map_err(|_| bad())?;
        let answer = async {
            let response = self
                .inner
                .request(request)
                .await
                .map_err(|e| FetchError::Unreachable { url: url.to_owned(), source: e.into() })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), bytes_max).collect().await;
            let body = body.map_err(|_| FetchError::Body { url: url.to_owned(), bytes_max })?;
            Ok((status, body.to_bytes()))
        };
        let in_time = tokio::time::timeout(ANSWER, answer).await;
        in_time.map_err(|_| FetchError::TooSlow(url.to_owned()))?
    }
}
