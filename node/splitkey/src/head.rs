//! Request heads in one canonical form (a subset of RFC 9112), and the template a route prescribes for them.
//!
//! The keyer decides from the head alone whether a request may be sent, so a head must have one reading. It therefore
//! does not parse HTTP as it is found in the wild: it reads the one form below, re-serialises what it read from the
//! route's template and requires the same bytes. What a lenient server might read differently (bare LF, folded or
//! repeated headers, `transfer-encoding`, two lengths, absolute targets) has no spelling here.
//!
//! ```text
//! POST /v1/chat/completions HTTP/1.1 CRLF       method, base path and path: one of the template's rules
//! host: api.openai.com CRLF                     template; with port unless 443
//! content-type: application/json CRLF           allowed headers, in the template's order, each at most once
//! authorization: Bearer sk-                     keyed routes only; part one ends here, before the hole
//!   <the hole: the credential's secret>         not the client's; see DESIGN.md section 3
//! CRLF                                          part two begins here
//! content-length: 123 CRLF                      POST only, canonical decimal
//! connection: close CRLF CRLF                   one request, one connection
//! ```
//!
//! GET has no content-length line and no body; POST always has one. An unkeyed head is a single part.
//!
//! **Why each bound.** A part fits one record ([`PART_MAX`]), because the relay counts records. Targets and values are
//! held to [`PATH_MAX`] and [`HEADER_VALUE_MAX`], below what common servers accept in one line (nginx: 8 KiB), so
//! that a head we approve is not one the provider must refuse. Values are visible ASCII and inner spaces: no control
//! byte to end a line, no byte whose meaning depends on a charset, no space that a parser would trim. Names that
//! frame, route or authenticate ([`FORBIDDEN_HEADERS`]) cannot be put into a template: only the template writes those.
//! Under a prefix rule the client chooses the rest of the path from unreserved characters, without empty, `.` and
//! `..` segments, `%` or `?`: nothing that a server could normalise into another path.
//!
//! **Decides**: which head is allowed. **Leaves to the caller**: which template, and that the bytes are authentic.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::framing::HeadShape;
use crate::host::{HostError, ServerHost};
use crate::record::PLAINTEXT_MAX;

/// Longest head part: one record.
pub const PART_MAX: usize = PLAINTEXT_MAX;
/// Longest target (base path and path together).
pub const PATH_MAX: usize = 2048;
/// Longest header value.
pub const HEADER_VALUE_MAX: usize = 4096;
/// Longest header name in a template.
pub const HEADER_NAME_MAX: usize = 64;
/// Most headers a template allows.
pub const HEADERS_MAX: usize = 32;
/// Most path rules in a template.
pub const PATH_RULES_MAX: usize = 64;
/// Largest content-length, 1 GiB: far above any inference request, and small enough to count without overflow.
pub const CONTENT_LENGTH_MAX: u64 = 1 << 30;
/// Shortest secret that is split; a shorter one could be guessed through metered failures.
pub const SECRET_LEN_MIN: u16 = 16;
/// Longest secret.
pub const SECRET_LEN_MAX: u16 = 1024;
/// Longest public prefix of a credential.
pub const PUBLIC_PREFIX_MAX: usize = 64;

/// Headers no template may let a client choose: they frame the message, route it, or carry a credential. Names that
/// begin with `proxy-` or `x-forwarded-` are refused as well.
pub const FORBIDDEN_HEADERS: [&str; 23] = [
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "host",
    "content-length",
    "transfer-encoding",
    "content-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "forwarded",
    "via",
    "http2-settings",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// A request method. Inference needs no other.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Without body.
    Get,
    /// With a body of known length.
    Post,
}

impl Method {
    /// As on the request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// One permitted method and path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// The method.
    pub method: Method,
    /// The path after the base path, such as `/v1/chat/completions`; an exact one may have a query.
    pub path: String,
    /// Whether `path`, ending in `/`, is a beginning rather than the whole. Default: false.
    #[serde(default)]
    pub prefix: bool,
}

/// How a credential is written.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialScheme {
    /// `authorization: Bearer KEY`
    Bearer,
    /// `x-api-key: KEY`
    XApiKey,
    /// `api-key: KEY`
    ApiKey,
    /// `x-goog-api-key: KEY`
    XGoogApiKey,
}

impl CredentialScheme {
    /// As written in a policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::XApiKey => "x-api-key",
            Self::ApiKey => "api-key",
            Self::XGoogApiKey => "x-goog-api-key",
        }
    }

    /// The scheme a policy names, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == name)
    }

    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bearer, Self::XApiKey, Self::ApiKey, Self::XGoogApiKey];

    /// What stands on the line before the key.
    pub const fn opening(self) -> &'static str {
        match self {
            Self::Bearer => "authorization: Bearer ",
            Self::XApiKey => "x-api-key: ",
            Self::ApiKey => "api-key: ",
            Self::XGoogApiKey => "x-goog-api-key: ",
        }
    }
}

/// Where a route's credential goes. It says nothing about the secret but its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialSlot {
    /// How it is written.
    pub scheme: CredentialScheme,
    /// The public beginning of the key, such as `sk-ant-api03-`. Default: none.
    #[serde(default)]
    pub public_prefix: String,
    /// Bytes of the secret: the length of the hole.
    pub secret_len: u16,
}

/// A template as it is written in a policy, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadTemplateSpec {
    /// The route's host: SNI, certificate name and `host` header.
    pub host: String,
    /// The route's port. Default: 443.
    #[serde(default = "https_port")]
    pub port: u16,
    /// What precedes every path, such as `/openai`; empty or without a trailing `/`. Default: empty.
    #[serde(default)]
    pub base_path: String,
    /// Permitted methods and paths.
    pub paths: Vec<PathRule>,
    /// Headers a client may set, lower case, in the order they are written in. Default: none.
    #[serde(default)]
    pub headers: Vec<String>,
    /// The credential; none for a route without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialSlot>,
}

const fn https_port() -> u16 {
    443
}

/// Why a policy's template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The host is not canonical.
    #[error("head template: host {host:?}")]
    Host {
        /// The host given.
        host: String,
        /// What is wrong with it.
        #[source]
        source: HostError,
    },
    /// Port zero.
    #[error("head template: port is 0")]
    Port,
    /// The base path does not begin with `/`, ends with it, or has characters a path may not have.
    #[error("head template: base path {base_path:?}")]
    BasePath {
        /// The base path given.
        base_path: String,
    },
    /// No path, or above [`PATH_RULES_MAX`].
    #[error("head template: {count} paths")]
    PathCount {
        /// How many.
        count: usize,
    },
    /// A path that does not begin with `/`, is too long or has characters that a path may not have.
    #[error("head template: path {path:?}")]
    Path {
        /// The path given.
        path: String,
    },
    /// A prefix that does not end with `/`, or allows every path.
    #[error("head template: prefix {path:?} is not a folder")]
    Prefix {
        /// The prefix given.
        path: String,
    },
    /// Above [`HEADERS_MAX`] headers.
    #[error("head template: {count} headers")]
    HeaderCount {
        /// How many.
        count: usize,
    },
    /// A name that is not a lower-case token.
    #[error("head template: header name {name:?}")]
    HeaderName {
        /// The name given.
        name: String,
    },
    /// One of [`FORBIDDEN_HEADERS`].
    #[error("head template: clients may not choose header {name:?}")]
    HeaderForbidden {
        /// The name given.
        name: String,
    },
    /// A header twice.
    #[error("head template: header {name:?} is repeated")]
    HeaderRepeated {
        /// The name given.
        name: String,
    },
    /// A public prefix with a byte that is not visible ASCII, or too long.
    #[error("head template: public prefix of the credential")]
    PublicPrefix,
    /// A secret outside [`SECRET_LEN_MIN`] to [`SECRET_LEN_MAX`].
    #[error("head template: a secret of {secret_len} bytes")]
    SecretLength {
        /// The length given.
        secret_len: u16,
    },
}

/// A checked template. Reads and writes as its [`HeadTemplateSpec`], and is checked again whenever it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "HeadTemplateSpec", into = "HeadTemplateSpec")]
pub struct HeadTemplate {
    spec: HeadTemplateSpec,
    host: ServerHost,
}

/// One header a client chose.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Lower-case name, one of the template's.
    pub name: String,
    /// Visible ASCII with inner spaces.
    pub value: String,
}

/// What a client asks for. Its `Debug` shows no content: paths and headers are the client's own.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path after the template's base path.
    pub path: String,
    /// Headers, in any order when serialising.
    pub headers: Vec<Header>,
    /// Bytes of body; zero for GET.
    pub content_length: u64,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("content_length", &self.content_length)
            .finish_non_exhaustive()
    }
}

/// A serialised head, cut where the hole goes.
#[derive(Clone, PartialEq, Eq)]
pub struct HeadParts {
    one: Vec<u8>,
    two: Option<Vec<u8>>,
}

impl HeadParts {
    /// The plaintext at sequence 0.
    pub fn one(&self) -> &[u8] {
        &self.one
    }

    /// The plaintext at sequence 2, for keyed routes.
    pub fn two(&self) -> Option<&[u8]> {
        self.two.as_deref()
    }
}

impl std::fmt::Debug for HeadParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadParts").field("one_len", &self.one.len()).finish_non_exhaustive()
    }
}

/// A head that a template allows; only [`HeadTemplate::check`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedHead(Head);

impl CheckedHead {
    /// The head.
    pub fn head(&self) -> &Head {
        &self.0
    }

    /// Bytes of body the relay may let through.
    pub fn content_length(&self) -> u64 {
        self.0.content_length
    }
}

#[cfg(feature = "danger-hostile")]
impl CheckedHead {
    /// Nothing was checked: whatever stands there first as a content-length is believed.
    pub(crate) fn danger_unchecked(one: &[u8], two: Option<&[u8]>) -> Self {
        let text = String::from_utf8_lossy(&[one, two.unwrap_or_default()].concat()).into_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let content_length = length.unwrap_or_default();
        Self(Head { method: Method::Post, path: String::new(), headers: Vec::new(), content_length })
    }
}

/// Why a head is refused. Carries nothing of the head: refusals become leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadRefusal {
    /// One part where the route has a credential, or two where it has none.
    #[error("head has the wrong number of parts")]
    PartCount,
    /// A part above [`PART_MAX`].
    #[error("head part is too long")]
    PartTooLong,
    /// A byte outside visible ASCII, space and CRLF.
    #[error("head has a byte that is not allowed")]
    Byte,
    /// A line without CRLF.
    #[error("head has an unterminated line")]
    LineUnterminated,
    /// Not `METHOD TARGET HTTP/1.1`.
    #[error("request line is malformed")]
    RequestLine,
    /// A method other than GET and POST.
    #[error("method is not allowed")]
    MethodNotAllowed,
    /// A target above [`PATH_MAX`].
    #[error("target is too long")]
    PathTooLong,
    /// No rule of the template has this method and path.
    #[error("path is not one of the route's")]
    PathNotAllowed,
    /// Not the template's host line, or not in second place.
    #[error("host is not the route's")]
    Host,
    /// A header line without `: `.
    #[error("header is malformed")]
    HeaderSyntax,
    /// A header the template does not allow.
    #[error("header is not one of the route's")]
    HeaderNotAllowed,
    /// A header twice.
    #[error("header is repeated")]
    HeaderRepeated,
    /// Headers in another order than the template's.
    #[error("headers are not in the route's order")]
    HeaderOrder,
    /// An empty value, one with outer spaces, or one with a byte that is not visible ASCII.
    #[error("header value is not visible ASCII")]
    HeaderValue,
    /// A value above [`HEADER_VALUE_MAX`].
    #[error("header value is too long")]
    HeaderValueTooLong,
    /// Part one does not end with the credential's opening and public prefix.
    #[error("head does not lead to the credential")]
    CredentialOpening,
    /// POST without content-length in its place.
    #[error("content-length is missing")]
    ContentLengthMissing,
    /// Not the canonical decimal.
    #[error("content-length is not canonical")]
    ContentLengthNotCanonical,
    /// Above [`CONTENT_LENGTH_MAX`].
    #[error("content-length is too large")]
    ContentLengthTooLarge,
    /// GET with a body.
    #[error("GET has a body")]
    GetWithBody,
    /// `connection: close` is not in its place.
    #[error("connection: close is missing")]
    ConnectionClose,
    /// The empty line is missing, or something follows it.
    #[error("head does not end where it must")]
    End,
    /// Every part parsed, yet serialising gives other bytes. No input is known to come this far: the reading above is
    /// exact. This is the rule that would make a mistake in it harmless.
    #[error("head is not in canonical form")]
    NotCanonical,
}

/// Headers that every route allows: what the body is, and what is wanted back.
const HEADERS_ALWAYS: [&str; 2] = ["content-type", "accept"];
/// Headers that Anthropic's dialect cannot do without.
const HEADERS_ANTHROPIC: [&str; 1] = ["anthropic-version"];

impl HeadTemplate {
    /// The template of a route without a credential, from the plain fields of a policy: client and nodes derive it alike.
    ///
    /// A path that ends with `/*` stands for everything below it; any other is exact, with its query if it has one. A path whose last name is `models` is for GET, any
    /// other for POST: inference is asked for, lists are read, and no other use of a path is let through. The route's
    /// headers stand after those every route of the dialect allows.
    pub fn for_route(
        host: &str,
        port: u16,
        base_path: &str,
        paths: &[String],
        dialect: &str,
        headers: &[String],
    ) -> Result<Self, TemplateError> {
        let rule = |path: &String| {
            let (path, prefix) = match path.strip_suffix('*') {
                Some(folder) if folder.ends_with('/') => (folder, true),
                _ => (path.as_str(), false),
            };
            // A fixed query is no part of the name: `?of=/models` makes no list.
            let name = path.split_once('?').map_or(path, |(before, _)| before);
            let lists = name.trim_end_matches('/').rsplit('/').next() == Some("models");
            let method = if lists { Method::Get } else { Method::Post };
            PathRule { method, path: path.to_owned(), prefix }
        };
        let own: &[&str] = if dialect == "anthropic" { &HEADERS_ANTHROPIC } else { &[] };
        let always = HEADERS_ALWAYS.iter().chain(own).map(|name| (*name).to_owned());
        let mut allowed: Vec<String> = always.collect();
        for name in headers {
            if !allowed.contains(name) {
                allowed.push(name.clone());
            }
        }
        Self::try_from(HeadTemplateSpec {
            host: host.to_owned(),
            port,
            base_path: base_path.to_owned(),
            paths: paths.iter().map(rule).collect(),
            headers: allowed,
            credential: None,
        })
    }

    /// The same template around a credential.
    pub fn with_credential(self, slot: CredentialSlot) -> Result<Self, TemplateError> {
        HeadTemplateSpec { credential: Some(slot), ..self.spec }.try_into()
    }

    /// The template as written.
    pub fn spec(&self) -> &HeadTemplateSpec {
        &self.spec
    }

    /// The only host a relay may connect to for this route.
    pub fn host(&self) -> &ServerHost {
        &self.host
    }

    /// The only port.
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// The credential's place, if the route has one.
    pub fn credential(&self) -> Option<&CredentialSlot> {
        self.spec.credential.as_ref()
    }

    /// How many records a head of this route has.
    pub fn shape(&self) -> HeadShape {
        if self.spec.credential.is_some() { HeadShape::AroundHole } else { HeadShape::Whole }
    }

    /// Writes a head in canonical form, refusing what [`Self::check`] would refuse.
    pub fn serialise(&self, head: &Head) -> Result<HeadParts, HeadRefusal> {
        self.check_path(head.method, &head.path)?;
        check_length(head.method, head.content_length)?;
        for (at, header) in head.headers.iter().enumerate() {
            if !self.spec.headers.contains(&header.name) {
                return Err(HeadRefusal::HeaderNotAllowed);
            }
            if head.headers.iter().skip(at + 1).any(|other| other.name == header.name) {
                return Err(HeadRefusal::HeaderRepeated);
            }
            check_value(&header.value)?;
        }

        let mut one = format!("{} {}{} HTTP/1.1\r\n", head.method.as_str(), self.spec.base_path, head.path);
        one += &self.host_line();
        one += "\r\n";
        for name in &self.spec.headers {
            if let Some(header) = head.headers.iter().find(|header| header.name == *name) {
                one += &format!("{name}: {}\r\n", header.value);
            }
        }
        let mut tail = String::new();
        if head.method == Method::Post {
            tail += &format!("content-length: {}\r\n", head.content_length);
        }
        tail += "connection: close\r\n\r\n";

        let two = match &self.spec.credential {
            Some(slot) => {
                one += &credential_opening(slot);
                Some(format!("\r\n{tail}").into_bytes())
            }
            None => {
                one += &tail;
                None
            }
        };
        let one = one.into_bytes();
        if one.len() > PART_MAX || two.as_ref().is_some_and(|two| two.len() > PART_MAX) {
            return Err(HeadRefusal::PartTooLong);
        }
        Ok(HeadParts { one, two })
    }

    /// Reads the plaintext of a head's records; only the exact canonical form passes.
    pub fn check(&self, one: &[u8], two: Option<&[u8]>) -> Result<CheckedHead, HeadRefusal> {
        let one_text = part(one)?;
        let (front, tail) = match (&self.spec.credential, two) {
            (None, None) => (one_text, None),
            (Some(slot), Some(two)) => {
                let front = one_text
                    .strip_suffix(credential_opening(slot).as_str())
                    .ok_or(HeadRefusal::CredentialOpening)?;
                (front, Some(part(two)?.strip_prefix("\r\n").ok_or(HeadRefusal::CredentialOpening)?))
            }
            (None, Some(_)) | (Some(_), None) => return Err(HeadRefusal::PartCount),
        };

        let mut lines = Lines(front);
        let (method, path) = self.request_line(lines.next()?)?;
        if lines.next()? != self.host_line() {
            return Err(HeadRefusal::Host);
        }
        let mut headers = Vec::new();
        let mut last_place = None;
        while !(lines.0.is_empty() || tail.is_none() && starts_tail(lines.0)) {
            let (name, value) = lines.next()?.split_once(": ").ok_or(HeadRefusal::HeaderSyntax)?;
            let place = self.spec.headers.iter().position(|allowed| allowed == name);
            let place = place.ok_or(HeadRefusal::HeaderNotAllowed)?;
            match last_place {
                Some(last) if last == place => return Err(HeadRefusal::HeaderRepeated),
                Some(last) if last > place => return Err(HeadRefusal::HeaderOrder),
                _ => last_place = Some(place),
            }
            check_value(value)?;
            headers.push(Header { name: name.to_owned(), value: value.to_owned() });
        }
        let mut lines = tail.map_or(lines, Lines);
        let content_length = read_tail(&mut lines, method)?;

        let head = Head { method, path, headers, content_length };
        let canonical = self.serialise(&head)?;
        if canonical.one() != one || canonical.two() != two {
            return Err(HeadRefusal::NotCanonical);
        }
        Ok(CheckedHead(head))
    }

    fn request_line(&self, line: &str) -> Result<(Method, String), HeadRefusal> {
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(HeadRefusal::RequestLine);
        };
        let method = match method {
            "GET" => Method::Get,
            "POST" => Method::Post,
            _ => return Err(HeadRefusal::MethodNotAllowed),
        };
        let path = target.strip_prefix(self.spec.base_path.as_str()).ok_or(HeadRefusal::PathNotAllowed)?;
        self.check_path(method, path)?;
        Ok((method, path.to_owned()))
    }

    fn check_path(&self, method: Method, path: &str) -> Result<(), HeadRefusal> {
        if self.spec.base_path.len() + path.len() > PATH_MAX {
            return Err(HeadRefusal::PathTooLong);
        }
        let allowed = self.spec.paths.iter().filter(|rule| rule.method == method).any(|rule| {
            if rule.prefix {
                path.strip_prefix(rule.path.as_str()).is_some_and(segments_ok)
            } else {
                path == rule.path
            }
        });
        if allowed { Ok(()) } else { Err(HeadRefusal::PathNotAllowed) }
    }

    fn host_line(&self) -> String {
        let host = match self.host {
            ServerHost::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            ref host => host.to_string(),
        };
        if self.spec.port == https_port() {
            format!("host: {host}")
        } else {
            format!("host: {host}:{}", self.spec.port)
        }
    }
}

impl TryFrom<HeadTemplateSpec> for HeadTemplate {
    type Error = TemplateError;

    fn try_from(spec: HeadTemplateSpec) -> Result<Self, TemplateError> {
        let host =
            spec.host.parse().map_err(|source| TemplateError::Host { host: spec.host.clone(), source })?;
        if spec.port == 0 {
            return Err(TemplateError::Port);
        }
        let base = &spec.base_path;
        if !base.is_empty() && !base.strip_prefix('/').is_some_and(segments_ok) || base.len() > PATH_MAX / 2 {
            return Err(TemplateError::BasePath { base_path: base.clone() });
        }
        if spec.paths.is_empty() || spec.paths.len() > PATH_RULES_MAX {
            return Err(TemplateError::PathCount { count: spec.paths.len() });
        }
        spec.paths.iter().try_for_each(check_rule)?;
        if spec.headers.len() > HEADERS_MAX {
            return Err(TemplateError::HeaderCount { count: spec.headers.len() });
        }
        for (at, name) in spec.headers.iter().enumerate() {
            check_name(name)?;
            if spec.headers.iter().skip(at + 1).any(|other| other == name) {
                return Err(TemplateError::HeaderRepeated { name: name.clone() });
            }
        }
        if let Some(slot) = &spec.credential {
            let visible = slot.public_prefix.bytes().all(|byte| byte.is_ascii_graphic());
            if !visible || slot.public_prefix.len() > PUBLIC_PREFIX_MAX {
                return Err(TemplateError::PublicPrefix);
            }
            if !(SECRET_LEN_MIN..=SECRET_LEN_MAX).contains(&slot.secret_len) {
                return Err(TemplateError::SecretLength { secret_len: slot.secret_len });
            }
        }
        Ok(Self { spec, host })
    }
}

impl From<HeadTemplate> for HeadTemplateSpec {
    fn from(template: HeadTemplate) -> Self {
        template.spec
    }
}

impl BorshSerialize for HeadTemplate {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        BorshSerialize::serialize(&self.spec, writer)
    }
}

impl BorshDeserialize for HeadTemplate {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let spec = HeadTemplateSpec::deserialize_reader(reader)?;
        Self::try_from(spec).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Lines ended by CRLF, read off the front.
struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, HeadRefusal> {
        let (line, rest) = self.0.split_once("\r\n").ok_or(HeadRefusal::LineUnterminated)?;
        self.0 = rest;
        Ok(line)
    }
}

/// A part as text: only visible ASCII, spaces, and CR and LF as a pair.
fn part(bytes: &[u8]) -> Result<&str, HeadRefusal> {
    if bytes.len() > PART_MAX {
        return Err(HeadRefusal::PartTooLong);
    }
    let mut before = 0;
    for &byte in bytes {
        let paired = (before == b'\r') == (byte == b'\n');
        if !paired || !(byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n')) {
            return Err(HeadRefusal::Byte);
        }
        before = byte;
    }
    if before == b'\r' {
        return Err(HeadRefusal::Byte);
    }
    std::str::from_utf8(bytes).map_err(|_| HeadRefusal::Byte)
}

/// Whether the template's own lines begin here: no allowed header has these names.
fn starts_tail(rest: &str) -> bool {
    rest.starts_with("content-length:") || rest.starts_with("connection:") || rest.starts_with("\r\n")
}

fn read_tail(lines: &mut Lines<'_>, method: Method) -> Result<u64, HeadRefusal> {
    let length_line = lines.0.starts_with("content-length:").then(|| lines.next()).transpose()?;
    let content_length = match (method, length_line) {
        (Method::Get, Some(_)) => return Err(HeadRefusal::GetWithBody),
        (Method::Get, None) => 0,
        (Method::Post, None) => return Err(HeadRefusal::ContentLengthMissing),
        (Method::Post, Some(line)) => {
            let digits = line.strip_prefix("content-length: ").unwrap_or_default();
            let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
                && !digits.is_empty()
                && (digits == "0" || !digits.starts_with('0'));
            if !canonical {
                return Err(HeadRefusal::ContentLengthNotCanonical);
            }
            digits.parse().map_err(|_| HeadRefusal::ContentLengthTooLarge)?
        }
    };
    check_length(method, content_length)?;
    if lines.next().map_err(|_| HeadRefusal::ConnectionClose)? != "connection: close" {
        return Err(HeadRefusal::ConnectionClose);
    }
    if lines.0 != "\r\n" {
        return Err(HeadRefusal::End);
    }
    Ok(content_length)
}

fn check_length(method: Method, content_length: u64) -> Result<(), HeadRefusal> {
    if content_length > CONTENT_LENGTH_MAX {
        return Err(HeadRefusal::ContentLengthTooLarge);
    }
    if method == Method::Get && content_length > 0 {
        return Err(HeadRefusal::GetWithBody);
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), HeadRefusal> {
    if value.len() > HEADER_VALUE_MAX {
        return Err(HeadRefusal::HeaderValueTooLong);
    }
    let bytes_ok = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if !bytes_ok || value.is_empty() || value.starts_with(' ') || value.ends_with(' ') {
        return Err(HeadRefusal::HeaderValue);
    }
    Ok(())
}

fn credential_opening(slot: &CredentialSlot) -> String {
    format!("{}{}", slot.scheme.opening(), slot.public_prefix)
}

/// Path segments that no server normalises into others.
fn segments_ok(path: &str) -> bool {
    path.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'@')
            })
    })
}

fn check_rule(rule: &PathRule) -> Result<(), TemplateError> {
    let path = || rule.path.clone();
    let Some(rest) = rule.path.strip_prefix('/').filter(|_| rule.path.len() <= PATH_MAX / 2) else {
        return Err(TemplateError::Path { path: path() });
    };
    if rule.prefix {
        let folder = rest.strip_suffix('/').ok_or(TemplateError::Prefix { path: path() })?;
        return if segments_ok(folder) { Ok(()) } else { Err(TemplateError::Prefix { path: path() }) };
    }
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let query_ok = query.is_none_or(|query| {
        query.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:@=&,/%+".contains(&byte))
    });
    if segments_ok(rest) && query_ok { Ok(()) } else { Err(TemplateError::Path { path: path() }) }
}

fn check_name(name: &str) -> Result<(), TemplateError> {
    let token = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if name.is_empty() || name.len() > HEADER_NAME_MAX || !name.bytes().all(token) {
        return Err(TemplateError::HeaderName { name: name.to_owned() });
    }
    // some servers read `_` as `-`
    let dashed = name.replace('_', "-");
    if FORBIDDEN_HEADERS.contains(&dashed.as_str())
        || dashed.starts_with("proxy-")
        || dashed.starts_with("x-forwarded-")
    {
        return Err(TemplateError::HeaderForbidden { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> HeadTemplateSpec {
        let rule = |method, path: &str, prefix| PathRule { method, path: path.into(), prefix };
        HeadTemplateSpec {
            host: "api.example".into(),
            port: 8443,
            base_path: "/openai".into(),
            paths: vec![
                rule(Method::Post, "/v1/chat/completions", false),
                rule(Method::Get, "/v1/models", false),
                rule(Method::Post, "/v1beta/models/", true),
            ],
            headers: vec!["accept".into(), "content-type".into()],
            credential: None,
        }
    }

    fn template() -> HeadTemplate {
        spec().try_into().unwrap()
    }

    fn keyed() -> HeadTemplate {
        let slot =
            CredentialSlot { scheme: CredentialScheme::Bearer, public_prefix: "sk-".into(), secret_len: 48 };
        HeadTemplateSpec { credential: Some(slot), ..spec() }.try_into().unwrap()
    }

    fn post() -> Head {
        let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
        Head {
            method: Method::Post,
            path: "/v1/chat/completions".into(),
            headers: vec![
                header("content-type", "application/json"),
                header("accept", "text/event-stream, */*"),
            ],
            content_length: 42,
        }
    }

    const POST: &str = "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: api.example:8443\r\n\
                        accept: text/event-stream, */*\r\ncontent-type: application/json\r\n\
                        content-length: 42\r\nconnection: close\r\n\r\n";

    fn refusal(bytes: impl AsRef<[u8]>) -> HeadRefusal {
        template().check(bytes.as_ref(), None).expect_err("refused")
    }

    #[test]
    fn the_canonical_form() {
        let parts = template().serialise(&post()).unwrap();
        assert_eq!(std::str::from_utf8(parts.one()), Ok(POST));
        assert_eq!(parts.two(), None);
        let checked = template().check(parts.one(), None).unwrap();
        assert_eq!((checked.content_length(), checked.head().path.as_str()), (42, "/v1/chat/completions"));

        let get = Head { method: Method::Get, path: "/v1/models".into(), headers: vec![], content_length: 0 };
        let parts = template().serialise(&get).unwrap();
        assert_eq!(
            std::str::from_utf8(parts.one()),
            Ok("GET /openai/v1/models HTTP/1.1\r\nhost: api.example:8443\r\nconnection: close\r\n\r\n")
        );
        assert!(template().check(parts.one(), None).is_ok());
    }

    #[test]
    fn the_keyed_form_is_cut_at_the_hole() {
        let parts = keyed().serialise(&post()).unwrap();
        assert_eq!(
            std::str::from_utf8(parts.one()),
            Ok("POST /openai/v1/chat/completions HTTP/1.1\r\nhost: api.example:8443\r\n\
                accept: text/event-stream, */*\r\ncontent-type: application/json\r\nauthorization: Bearer sk-")
        );
        let two = parts.two().unwrap();
        assert_eq!(two, b"\r\ncontent-length: 42\r\nconnection: close\r\n\r\n");
        assert!(keyed().check(parts.one(), Some(two)).is_ok());

        let check = |one: &str, two: &str| keyed().check(one.as_bytes(), Some(two.as_bytes())).err();
        let one = std::str::from_utf8(parts.one()).unwrap();
        let two = std::str::from_utf8(two).unwrap();
        assert_eq!(keyed().check(parts.one(), None).err(), Some(HeadRefusal::PartCount));
        assert_eq!(template().check(POST.as_bytes(), Some(b"")).err(), Some(HeadRefusal::PartCount));
        // the hole aimed elsewhere: another header, a path, a value that only looks like the credential's line
        for aimed in [
            one.replace("authorization: Bearer sk-", "accept: Bearer sk-"),
            "POST /openai/v1beta/models/".to_owned(),
            one.replace("Bearer sk-", "Bearer sk"),
        ] {
            assert_eq!(check(&aimed, two), Some(HeadRefusal::CredentialOpening));
        }
        let inside = one.replace("\r\nauthorization", "; authorization");
        assert_eq!(check(&inside, two), Some(HeadRefusal::LineUnterminated));
        assert_eq!(check(one, &two[2..]), Some(HeadRefusal::CredentialOpening));
        assert_eq!(check(one, &format!("x{two}")), Some(HeadRefusal::CredentialOpening));
        assert_eq!(check(one, &two.replace("42", "042")), Some(HeadRefusal::ContentLengthNotCanonical));
        assert_eq!(check(one, &format!("{two}GET")), Some(HeadRefusal::End));
    }

    #[test]
    fn each_mutation_has_its_own_refusal() {
        use HeadRefusal as R;
        let cases: Vec<(String, HeadRefusal)> = vec![
            (POST.replace("42\r\n", "42\n"), R::Byte),
            (POST.replace("json\r\n", "json\r"), R::Byte),
            (POST.replace("json", "js\ton"), R::Byte),
            (POST.replace("json", "js\u{e9}on"), R::Byte),
            (POST.replace(" HTTP/1.1", ""), R::RequestLine),
            (POST.replace("HTTP/1.1", "HTTP/1.0"), R::RequestLine),
            (POST.replace("POST /", "POST  /"), R::RequestLine),
            (POST.replace("POST", "PUT"), R::MethodNotAllowed),
            (POST.replace("POST", "post"), R::MethodNotAllowed),
            (POST.replace("/openai/v1", "/v1"), R::PathNotAllowed),
            (POST.replace("completions ", "completions?x=1 "), R::PathNotAllowed),
            (POST.replace("POST", "GET"), R::PathNotAllowed),
            (POST.replace("/v1/chat", "/v1/files"), R::PathNotAllowed),
            (POST.replace("/openai/v1", "https://api.example/openai/v1"), R::PathNotAllowed),
            (POST.replace("completions ", &format!("{} ", "a".repeat(PATH_MAX))), R::PathTooLong),
            (POST.replace("host: api.example", "host: evil.example"), R::Host),
            (POST.replace("host:", "Host:"), R::Host),
            (POST.replace(":8443", ""), R::Host),
            (POST.replace("accept: ", "accept:"), R::HeaderSyntax),
            (POST.replace("accept: ", "x-evil: "), R::HeaderNotAllowed),
            (POST.replace("accept: ", "accept : "), R::HeaderNotAllowed),
            (POST.replace("accept: ", "Accept: "), R::HeaderNotAllowed),
            (POST.replace("accept: ", "transfer-encoding: "), R::HeaderNotAllowed),
            (POST.replace("accept: ", "authorization: "), R::HeaderNotAllowed),
            (POST.replace("accept: ", "accept: a\r\naccept: "), R::HeaderRepeated),
            (
                POST.replace("content-type: ", "content-type: a\r\naccept: b\r\ncontent-type: "),
                R::HeaderOrder,
            ),
            (POST.replace("*/*", "*/* "), R::HeaderValue),
            (POST.replace("accept: text", "accept:  text"), R::HeaderValue),
            (POST.replace("*/*", &"a".repeat(HEADER_VALUE_MAX)), R::HeaderValueTooLong),
            (POST.replace("content-length: 42\r\n", ""), R::ContentLengthMissing),
            (POST.replace("42", "+42"), R::ContentLengthNotCanonical),
            (POST.replace("42", "042"), R::ContentLengthNotCanonical),
            (POST.replace("42", ""), R::ContentLengthNotCanonical),
            (POST.replace("42", "42, 42"), R::ContentLengthNotCanonical),
            (POST.replace("length: 42", "length:42"), R::ContentLengthNotCanonical),
            (POST.replace("42", "1073741825"), R::ContentLengthTooLarge),
            (POST.replace("42", "99999999999999999999"), R::ContentLengthTooLarge),
            (POST.replace("connection: close\r\n", ""), R::ConnectionClose),
            (POST.replace("close", "keep-alive"), R::ConnectionClose),
            (POST.replace("close\r\n", "close\r\nx: y\r\n"), R::End),
            (POST.replace("42\r\n", "42\r\ncontent-length: 43\r\n"), R::ConnectionClose),
            (POST[..POST.len() - 2].to_owned(), R::End),
            (format!("{POST}GET / HTTP/1.1\r\n\r\n"), R::End),
            (POST.replace("\r\nhost", ""), R::RequestLine),
            ("POST / HTTP/1.1".to_owned(), R::LineUnterminated),
            ("a".repeat(PART_MAX + 1), R::PartTooLong),
        ];
        for (text, expected) in cases {
            assert_ne!(text, POST, "a mutation that changed nothing");
            assert_eq!(refusal(&text), expected, "{text:.200}");
        }
        let get = "GET /openai/v1/models HTTP/1.1\r\nhost: api.example:8443\r\ncontent-length: 0\r\n\
                   connection: close\r\n\r\n";
        assert_eq!(refusal(get), R::GetWithBody);
    }

    #[test]
    fn a_prefix_gives_no_way_out() {
        let path = |path: &str| template().check_path(Method::Post, path);
        assert_eq!(path("/v1beta/models/gemini-2.5-pro:generateContent"), Ok(()));
        assert_eq!(path("/v1beta/models/org/model:x"), Ok(()));
        for out in
            ["", "..", "../x", "a/../../files", "a//b", "a/", "a/./b", "a%2e", "a?b", "a#b", "a;b", "a\\b"]
        {
            let full = format!("/v1beta/models/{out}");
            assert_eq!(path(&full), Err(HeadRefusal::PathNotAllowed), "{full}");
        }
    }

    #[test]
    fn a_listed_query_is_exact() {
        let listed = "/v1beta/models/demo:streamGenerateContent?alt=sse";
        let paths = [listed.to_owned(), "/v1/x?of=/models".to_owned(), "/v1/models?limit=9".to_owned()];
        let template = HeadTemplate::for_route("h.example", 443, "", &paths, "gemini", &[]).unwrap();
        let head = |path: &str| Head { path: path.into(), headers: vec![], ..post() };
        let parts = template.serialise(&head(listed)).unwrap();
        let line = format!("POST {listed} HTTP/1.1\r\n");
        assert!(parts.one().starts_with(line.as_bytes()));
        assert_eq!(template.check(parts.one(), None).unwrap().head().path, listed);
        for other in [
            "/v1beta/models/demo:streamGenerateContent",
            "/v1beta/models/demo:streamGenerateContent?",
            "/v1beta/models/demo:streamGenerateContent?alt=json",
            "/v1beta/models/demo:streamGenerateContent?alt=sse&key=x",
            "/v1beta/models/demo:streamGenerateContent?Alt=sse",
            "/v1beta/models/other:streamGenerateContent?alt=sse",
            "/v1beta/models/demo:generateContent?alt=sse",
        ] {
            assert_eq!(template.serialise(&head(other)).err(), Some(HeadRefusal::PathNotAllowed), "{other}");
            let bytes = String::from_utf8(parts.one().to_vec()).unwrap().replace(listed, other);
            let refusal = template.check(bytes.as_bytes(), None).err();
            assert_eq!(refusal, Some(HeadRefusal::PathNotAllowed), "{other}");
        }
        // the method comes from the path's name alone, whatever its query says
        assert_eq!(template.check_path(Method::Post, "/v1/x?of=/models"), Ok(()));
        assert_eq!(template.check_path(Method::Get, "/v1/models?limit=9"), Ok(()));
        // a prefix has no query
        let prefix = ["/v1/models?x=/*".to_owned()];
        assert!(HeadTemplate::for_route("h.example", 443, "", &prefix, "gemini", &[]).is_err());
    }

    #[test]
    fn serialising_refuses_what_checking_would() {
        let refusal = |change: &dyn Fn(&mut Head)| {
            let mut head = post();
            change(&mut head);
            template().serialise(&head).expect_err("refused")
        };
        assert_eq!(refusal(&|head| head.path = "/admin".into()), HeadRefusal::PathNotAllowed);
        assert_eq!(refusal(&|head| head.headers[0].name = "cookie".into()), HeadRefusal::HeaderNotAllowed);
        assert_eq!(refusal(&|head| head.headers[0].name = "accept".into()), HeadRefusal::HeaderRepeated);
        assert_eq!(refusal(&|head| head.headers[0].value = "a\r\nb: c".into()), HeadRefusal::HeaderValue);
        assert_eq!(refusal(&|head| head.headers[0].value = String::new()), HeadRefusal::HeaderValue);
        assert_eq!(refusal(&|head| head.content_length = 1 << 31), HeadRefusal::ContentLengthTooLarge);
        let get = Head { method: Method::Get, path: "/v1/models".into(), headers: vec![], content_length: 1 };
        assert_eq!(template().serialise(&get).err(), Some(HeadRefusal::GetWithBody));

        let many: Vec<String> = (0..8).map(|n| format!("x-{n}")).collect();
        let wide: HeadTemplate = HeadTemplateSpec { headers: many.clone(), ..spec() }.try_into().unwrap();
        let value = "v".repeat(HEADER_VALUE_MAX);
        let headers = many.into_iter().map(|name| Header { name, value: value.clone() }).collect();
        assert_eq!(wide.serialise(&Head { headers, ..post() }).err(), Some(HeadRefusal::PartTooLong));
    }

    #[test]
    fn a_plain_route_has_one_template() {
        let paths = ["/v1/messages".to_owned(), "/v1/models".to_owned(), "/v1/models/*".to_owned()];
        let headers = ["x-trace".to_owned(), "accept".to_owned()];
        let template = HeadTemplate::for_route("h.example", 443, "", &paths, "anthropic", &headers).unwrap();
        let spec = template.spec();
        assert_eq!(spec.headers, ["content-type", "accept", "anthropic-version", "x-trace"]);
        let rules: Vec<_> = spec.paths.iter().map(|r| (r.method, r.path.as_str(), r.prefix)).collect();
        let expected = [
            (Method::Post, "/v1/messages", false),
            (Method::Get, "/v1/models", false),
            (Method::Get, "/v1/models/", true),
        ];
        assert_eq!(rules, expected);
        let forbidden = ["authorization".to_owned()];
        assert_eq!(
            HeadTemplate::for_route("h.example", 443, "", &paths, "openai", &forbidden),
            Err(TemplateError::HeaderForbidden { name: "authorization".to_owned() })
        );
    }

    #[test]
    fn templates_are_checked_wherever_they_are_read() {
        let toml = r#"
            host = "api.anthropic.com"
            paths = [{ method = "POST", path = "/v1/messages" }]
            headers = ["content-type", "anthropic-version"]
            credential = { scheme = "x-api-key", public_prefix = "sk-ant-api03-", secret_len = 95 }
        "#;
        let template: HeadTemplate = toml::from_str(toml).unwrap();
        assert_eq!((template.port(), template.shape()), (443, HeadShape::AroundHole));
        let bytes = borsh::to_vec(&template).unwrap();
        assert_eq!(borsh::from_slice::<HeadTemplate>(&bytes).unwrap(), template);
        let again: HeadTemplate = toml::from_str(&toml::to_string(&template).unwrap()).unwrap();
        assert_eq!(again, template);

        assert!(toml::from_str::<HeadTemplate>(&toml.replace("headers", "haeders")).is_err());
        assert!(toml::from_str::<HeadTemplate>(&toml.replace("anthropic-version", "host")).is_err());
        let mut bad = template.spec().clone();
        bad.headers = vec!["host".into()];
        assert!(borsh::from_slice::<HeadTemplate>(&borsh::to_vec(&bad).unwrap()).is_err());
    }

    #[test]
    fn each_bad_template_has_its_own_error() {
        use TemplateError as E;
        let error = |change: &dyn Fn(&mut HeadTemplateSpec)| {
            let mut spec = spec();
            change(&mut spec);
            HeadTemplate::try_from(spec).expect_err("refused")
        };
        let host = HostError::Spelling;
        assert_eq!(error(&|s| s.host = "A.b".into()), E::Host { host: "A.b".into(), source: host });
        assert_eq!(error(&|s| s.port = 0), E::Port);
        for base_path in ["v1", "/v1/", "/", "/a/../b", "/a?b"] {
            assert_eq!(
                error(&|s| s.base_path = base_path.into()),
                E::BasePath { base_path: base_path.into() }
            );
        }
        assert_eq!(error(&|s| s.paths.clear()), E::PathCount { count: 0 });
        for path in ["", "v1", "/", "/a b", "/a\r\nb", "/a/../b", "/a?b#c"] {
            assert_eq!(error(&|s| s.paths[0].path = path.into()), E::Path { path: path.into() }, "{path}");
        }
        for path in ["/", "/v1", "/a/../", "//"] {
            assert_eq!(error(&|s| s.paths[2].path = path.into()), E::Prefix { path: path.into() }, "{path}");
        }
        let many = |s: &mut HeadTemplateSpec| s.headers = (0..33).map(|n| format!("x-{n}")).collect();
        assert_eq!(error(&many), E::HeaderCount { count: 33 });
        for name in ["", "Accept", "a b", "a:"] {
            assert_eq!(error(&|s| s.headers[0] = name.into()), E::HeaderName { name: name.into() });
        }
        let prefixed = ["proxy-x", "x-forwarded-host", "content_length", "x_api_key"];
        for name in FORBIDDEN_HEADERS.into_iter().chain(prefixed) {
            assert_eq!(error(&|s| s.headers[0] = name.into()), E::HeaderForbidden { name: name.into() });
        }
        assert_eq!(
            error(&|s| s.headers[0] = "content-type".into()),
            E::HeaderRepeated { name: "content-type".into() }
        );
        let slot = |public_prefix: &str, secret_len| {
            let public_prefix = public_prefix.to_owned();
            Some(CredentialSlot { scheme: CredentialScheme::ApiKey, public_prefix, secret_len })
        };
        assert_eq!(error(&|s| s.credential = slot("a b", 32)), E::PublicPrefix);
        assert_eq!(error(&|s| s.credential = slot("", 15)), E::SecretLength { secret_len: 15 });
    }

    #[test]
    fn addresses_and_ports_in_the_host_line() {
        let line = |host: &str, port| {
            HeadTemplate::try_from(HeadTemplateSpec { host: host.into(), port, ..spec() })
                .unwrap()
                .host_line()
        };
        assert_eq!(line("a.example", 443), "host: a.example");
        assert_eq!(line("127.0.0.1", 8443), "host: 127.0.0.1:8443");
        assert_eq!(line("::1", 443), "host: [::1]");
    }
}
