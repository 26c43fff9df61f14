//! Who may use this process's client key: whoever reaches a loopback socket, or who brings one of the local tokens.
//!
//! A browser reaches loopback too, on behalf of any page. So without tokens a request must name this host in `host` (else a
//! page's own name was made to resolve here), and none may come from a page (`origin`). **Refuses** both clearly. Whatever key
//! an SDK sends is taken here and goes no further: it is a local token, or nothing.
use crate::errors::Failure;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, StatusCode, header};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Largest token file, and the shortest token: 16 characters of base64 are 96 bits.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const TOKEN_BYTES_MIN: usize = 16;
const TOKEN_BYTES_MAX: usize = 512;
const TOKENS_MAX: usize = 4096;

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Cannot be read.
    #[error("{}: cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// Others may read it.
    #[error("{}: readable by others (mode {:o})", .0.display(), .1)]
    Mode(PathBuf, u32),
    /// A line that is no `NAME TOKEN`.
    #[error("{}: line {} is not `NAME TOKEN` with a token of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters", .0.display(), .1)]
    Line(PathBuf, usize),
    /// None, or too many.
    #[error("{}: names {} tokens; 1 to {TOKENS_MAX} are possible", .0.display(), .1)]
    Count(PathBuf, usize),
}

impl TokenError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read(..) => "make it with one line `NAME TOKEN` for each application",
            Self::Mode(..) => "chmod 600 it",
            Self::Line(..) => "`openssl rand -hex 24` makes a token",
            Self::Count(..) => "one line `NAME TOKEN` for each application",
        }
    }
}

/// The check at the door.
pub enum Gate {
    /// Loopback: whoever is on this machine.
    Local,
    /// Whoever has one of these. Digests, so that comparing takes one time for all.
    Tokens(Vec<(String, [u8; 32])>),
}

impl Gate {
    /// Reads a token file.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        use std::io::Read as _;
        use std::os::unix::fs::MetadataExt as _;
        let failed = |e| TokenError::Read(path.to_owned(), e);
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode(path.to_owned(), mode));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let mut tokens = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parts = line.split_once(char::is_whitespace).map(|(name, token)| (name, token.trim()));
            let good = |token: &str| {
                (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len())
                    && token.bytes().all(|b| b.is_ascii_graphic())
            };
            match parts {
                Some((name, token)) if good(token) => {
                    tokens.push((name.to_owned(), sha256(token.as_bytes())))
                }
                _ => return Err(TokenError::Line(path.to_owned(), at + 1)),
            }
        }
        if tokens.is_empty() || tokens.len() > TOKENS_MAX {
            return Err(TokenError::Count(path.to_owned(), tokens.len()));
        }
        Ok(Self::Tokens(tokens))
    }

    /// Whether a request names this machine; with tokens, which no page has, it need not.
    pub(crate) fn knows_host(&self, headers: &HeaderMap) -> bool {
        matches!(self, Self::Tokens(_)) || names_us(headers)
    }

    /// Lets a request in; with tokens, says whose it is.
    pub(crate) fn check(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Option<&str>, Failure> {
        match self {
            Self::Local => check_local(headers).map(|()| None),
            Self::Tokens(tokens) => {
                let given = sha256(presented(headers, query).unwrap_or_default().as_bytes());
                let mut found = None;
                for (name, token) in tokens {
                    if verify_slices_are_equal(token, &given).is_ok() {
                        found = Some(name.as_str());
                    }
                }
                found.map(Some).ok_or_else(|| {
                    Failure::new(
                        StatusCode::UNAUTHORIZED,
                        "invalid_token",
                        "the API key is none of this adapter's tokens",
                        "use a token of the adapter's token_file as the SDK's API key",
                    )
                })
            }
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.iter_mut().zip(digest(&SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// What an SDK sends as its key.
fn presented<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Option<&'a str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let bearer = || {
        let (scheme, token) = text("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    };
    bearer()
        .or_else(|| text("x-api-key"))
        .or_else(|| text("x-goog-api-key"))
        .or_else(|| text("api-key"))
        .or_else(|| query?.split('&').find_map(|pair| pair.strip_prefix("key=")))
}

fn check_local(headers: &HeaderMap) -> Result<(), Failure> {
    let refuse = |code, message| {
        Err(Failure::new(
            StatusCode::FORBIDDEN,
            code,
            message,
            "reach it as 127.0.0.1, or give it a token_file",
        ))
    };
    if headers.contains_key(header::ORIGIN) {
        return refuse("origin_not_allowed", "web pages may not use this adapter without a token");
    }
    if names_us(headers) {
        Ok(())
    } else {
        refuse("host_not_allowed", "the host header is not this machine's")
    }
}

/// Whether `host` is this machine.
fn names_us(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    fn tokens(text: &str, mode: u32) -> Result<Gate, TokenError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Gate::load(&path)
    }

    #[test]
    fn a_token_is_taken_from_wherever_sdks_put_keys() {
        let gate = tokens("# ours\nweb  0123456789abcdef\nbatch fedcba9876543210\n", 0o600).unwrap();
        let who = |headers: &[(&'static str, &str)], query| {
            gate.check(&map(headers), query).map(|n| n.map(str::to_owned)).map_err(|f| f.code.into_owned())
        };
        for header in [
            ("authorization", "Bearer 0123456789abcdef"),
            ("x-api-key", "0123456789abcdef"),
            ("x-goog-api-key", "0123456789abcdef"),
            ("api-key", "0123456789abcdef"),
        ] {
            assert_eq!(who(&[header], None), Ok(Some("web".into())));
        }
        assert_eq!(who(&[], Some("alt=sse&key=fedcba9876543210")), Ok(Some("batch".into())));
        for bad in [
            vec![],
            vec![("authorization", "Bearer 0123456789abcdeF")],
            vec![("authorization", "Bearer ")],
            vec![("authorization", "0123456789abcdef")],
            vec![("x-api-key", "0123456789abcde")],
        ] {
            assert_eq!(who(&bad, None), Err("invalid_token".into()));
        }
    }

    #[test]
    fn a_loose_or_careless_token_file_is_refused() {
        assert!(matches!(tokens("a 0123456789abcdef", 0o640), Err(TokenError::Mode(_, 0o640))));
        assert!(matches!(tokens("a 0123456789abcdef\nb short", 0o600), Err(TokenError::Line(_, 2))));
        assert!(matches!(tokens("0123456789abcdef", 0o600), Err(TokenError::Line(_, 1))));
        assert!(matches!(tokens("# none\n", 0o600), Err(TokenError::Count(_, 0))));
        assert!(matches!(Gate::load(Path::new("/nonexistent")), Err(TokenError::Read(..))));
    }

    #[test]
    fn pages_and_foreign_names_are_turned_away_from_loopback() {
        let check = |headers: &[(&'static str, &str)]| {
            Gate::Local.check(&map(headers), None).map(drop).map_err(|f| f.code.into_owned())
        };
        for host in ["localhost:4280", "127.0.0.1:4280", "[::1]:4280", "127.0.0.2", "app.localhost:1"] {
            assert_eq!(check(&[("host", host), ("authorization", "Bearer any")]), Ok(()), "{host}");
        }
        for host in ["evil.example:4280", "127.0.0.1.evil.example", "[2001:db8::1]:4280", "10.0.0.1"] {
            assert_eq!(check(&[("host", host)]), Err("host_not_allowed".into()), "{host}");
        }
        let page = [("host", "localhost:4280"), ("origin", "https://evil.example")];
        assert_eq!(check(&page), Err("origin_not_allowed".into()));
    }
}
