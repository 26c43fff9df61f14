//! One POST to one configured URL: plain HTTP or TLS 1.2 and 1.3, bounded both ways. Follows no redirect, keeps no cookie, sends no
//! header but its own. **Leaves** time limits to the caller.
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest URL.
const URL_BYTES_MAX: usize = 2048;
/// How long a connection that is not used stays open.
const IDLE: Duration = Duration::from_secs(60);
/// How long TCP may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why a request cannot be made, or had no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Not a URL that is understood.
    #[error("{0:?} is not http://HOST… or https://HOST…, without user, password or fragment")]
    Url(String),
    /// The certificates of a CA cannot be read.
    #[error("{}: no PEM certificates", .0.display())]
    Ca(PathBuf),
    /// The system's own CAs cannot be read.
    #[error("the system's certificates cannot be read")]
    NoRoots(#[source] std::io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// No answer came.
    #[error("no answer came")]
    NoAnswer,
    /// The answer is longer than allowed, or broke off.
    #[error("the answer is too long, or broke off")]
    Answer,
}

/// Where requests go.
#[derive(Clone)]
pub struct Post {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
}

/// Whether a URL can be used, without opening anything.
pub fn check(url: &str) -> Result<Uri, PostError> {
    let bad = || PostError::Url(url.chars().take(URL_BYTES_MAX).filter(|c| !c.is_control()).collect());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let good = matches!(uri.scheme_str(), Some("http" | "https"))
        && url.len() <= URL_BYTES_MAX
        && !url.contains('#')
        && uri.host().is_some_and(|host| !host.is_empty())
        && !uri.authority().is_some_and(|a| a.as_str().contains('@'));
    if good { Ok(uri) } else { Err(bad()) }
}

impl Post {
    /// To a URL. For `https` the system's CAs are trusted, or with `ca` those in that file and no other.
    pub fn to(url: &str, ca: Option<&Path>) -> Result<Self, PostError> {
        let uri = check(url)?;
        let secure = uri.scheme_str() == Some("https");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        if secure {
            let found = match ca {
                Some(path) => {
                    let failed = |_| PostError::Ca(path.to_owned());
                    let pem = CertificateDer::pem_file_iter(path).map_err(failed)?;
                    pem.collect::<Result<Vec<_>, _>>().map_err(failed)?
                }
                None => rustls_native_certs::load_native_certs().certs,
            };
            roots.add_parsable_certificates(found);
            if roots.is_empty() {
                return Err(match ca {
                    Some(path) => PostError::Ca(path.to_owned()),
                    None => PostError::NoRoots(std::io::ErrorKind::NotFound.into()),
                });
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(PostError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(4)
            .build(https);
        Ok(Self { client, uri })
    }

    /// The same with more of a path.
    pub fn below(mut self, path: &str) -> Result<Self, PostError> {
        let base = self.uri.to_string();
        let url = format!("{}{path}", base.trim_end_matches('/'));
        self.uri = url.parse().map_err(|_| PostError::Url(url))?;
        Ok(self)
    }

    /// Host of the URL.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// Whether it is `https`.
    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Sends a body and reads an answer of at most so many bytes.
    pub async fn send(
        &self,
        content_type: &'static str,
        body: Bytes,
        bound: usize,
    ) -> Result<(StatusCode, Bytes), PostError> {
        let request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, content_type)
            .body(Full::new(body))
            .map_err(|_| PostError::NoAnswer)?;
        let answer = self.client.request(request).await.map_err(|_| PostError::NoAnswer)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bound).collect().await.map_err(|_| PostError::Answer)?;
        Ok((head.status, body.to_bytes()))
    }
}

/// Whether a URL's host is this machine.
pub fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_whole_and_without_secrets() {
        for good in ["http://127.0.0.1:4318", "http://[::1]/v1/traces?x=1", "http://collector.example/"] {
            assert!(Post::to(good, None).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:4318", "ftp://a", "http://", "http://u:p@host/", "http://a/#f", "/path"] {
            assert!(matches!(Post::to(bad, None), Err(PostError::Url(_))), "{bad}");
        }
        assert!(matches!(Post::to("https://a", Some(Path::new("/nonexistent"))), Err(PostError::Ca(_))));
        let below = Post::to("http://a:1/", None).unwrap().below("/v1/traces").unwrap();
        assert_eq!(below.uri.to_string(), "http://a:1/v1/traces");
        assert!(is_local("[::1]") && is_local("LOCALHOST") && is_local("127.1.2.3"));
        assert!(!is_local("127.0.0.1.example") && !is_local("10.0.0.1"));
    }
}
