//! Spans, and the closed set of what they say. Names are those of OpenTelemetry's GenAI conventions (1.37) where they have one.
use aws_lc_rs::digest::{SHA256, digest};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Binds span ids to this use.
const LABEL: &[u8] = b"quorate trace span v1";
/// Longest name: of a model, a route, a host.
const NAME_BYTES_MAX: usize = 128;

/// W3C trace id; never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// W3C parent id; never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// At random; `None` without randomness.
    pub fn random() -> Option<Self> {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).ok()?;
        Some(Self(id)).filter(|id| id.0 != [0; 16])
    }
}

impl SpanId {
    /// At random; `None` without randomness.
    pub fn random() -> Option<Self> {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).ok()?;
        Some(Self(id)).filter(|id| id.0 != [0; 8])
    }
}

/// Who a span of a request in the mesh is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its relay, the root of the trace.
    Relay,
    /// Its keyer, below the relay.
    Keyer,
}

/// The trace of a request in the mesh.
pub fn mesh_trace(request: [u8; 16]) -> TraceId {
    TraceId(request)
}

/// The span of one role in it: known to everybody who knows the request.
pub fn mesh_span(request: [u8; 16], role: Role) -> SpanId {
    let role: &[u8] = match role {
        Role::Relay => b"relay",
        Role::Keyer => b"keyer",
    };
    let hash = digest(&SHA256, &[LABEL, &request, role].concat());
    let mut id = [0; 8];
    id.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    SpanId(id)
}

/// A caller's span: W3C Trace Context, `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its trace.
    pub trace: TraceId,
    /// It.
    pub span: SpanId,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl Parent {
    /// Reads the header. `None`: it is not one, so a new trace begins (W3C Trace Context §3.2.2.3).
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !lower(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        if !lower(trace, 32) || !lower(span, 16) || !lower(flags, 2) {
            return None;
        }
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        hex::decode_to_slice(trace, &mut trace_id).ok()?;
        hex::decode_to_slice(span, &mut span_id).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let good = trace_id != [0; 16] && span_id != [0; 8];
        good.then_some(Self { trace: TraceId(trace_id), span: SpanId(span_id), sampled: flags & 1 == 1 })
    }
}

/// A short word of a configuration, a policy or a protocol: a model, a route, a host, an error's code. Without spaces: prose does
/// not fit. What is none becomes `other`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Of a text.
    pub fn new(text: &str) -> Self {
        let fits =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'/' | b'@' | b'+');
        let good = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(fits);
        Self(if good { text.to_owned() } else { "other".to_owned() })
    }

    /// It.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// All that a span can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// `gen_ai.operation.name`.
    Operation(&'static str),
    /// `gen_ai.provider.name`.
    Provider(&'static str),
    /// `gen_ai.request.model`.
    RequestModel(Name),
    /// `gen_ai.response.model`.
    ResponseModel(Name),
    /// `gen_ai.usage.input_tokens`.
    InputTokens(u64),
    /// `gen_ai.usage.output_tokens`.
    OutputTokens(u64),
    /// `server.address`.
    ServerAddress(Name),
    /// `server.port`.
    ServerPort(u16),
    /// `http.response.status_code`.
    Status(u16),
    /// `error.type`: a code of ours or an HTTP status.
    Error(Name),
    /// `quorate.route`.
    Route(Name),
    /// `quorate.request`: the id that its receipt is asked by.
    Request([u8; 16]),
    /// `quorate.relay`: a node's number.
    Relay(u64),
    /// `quorate.keyer`: a node's number.
    Keyer(u64),
    /// `quorate.outcome`: a category.
    Outcome(&'static str),
    /// `quorate.attempts`.
    Attempts(u64),
    /// `quorate.stream`.
    Stream(bool),
    /// `quorate.cache_hit`.
    CacheHit(bool),
    /// `quorate.guards`: rules that did something.
    Guards(Vec<Name>),
    /// `quorate.time_to_first_chunk_ms`.
    FirstChunk(Duration),
    /// `quorate.decided_ms`: until the authorisation was certified.
    Decided(Duration),
    /// `quorate.bytes_up`.
    BytesUp(u64),
    /// `quorate.bytes_down`.
    BytesDown(u64),
}

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Neither.
    Internal,
    /// Who serves it.
    Server,
    /// Who makes it.
    Client,
}

/// Something that took time, over.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// It.
    pub id: SpanId,
    /// The span around.
    pub parent: Option<SpanId>,
    /// Spans of other traces that it belongs to.
    pub links: Vec<(TraceId, SpanId)>,
    /// What kind of thing, such as `chat`.
    pub name: &'static str,
    /// Which one of that kind, such as a model.
    pub of: Option<Name>,
    /// Which side.
    pub kind: Kind,
    /// When it began.
    pub begun: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What is known of it. An [`Attribute::Error`] makes it a failed one.
    pub attributes: Vec<Attribute>,
}

impl Span {
    pub(crate) fn nanos(&self) -> (u64, u64) {
        let begun = self.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        (nanos(begun), nanos(begun.saturating_add(self.took)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_w3c_says() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Parent::parse(good).unwrap();
        assert!(parent.sampled && parent.span.0 == [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        assert!(!Parent::parse(&good.replace("-01", "-00")).unwrap().sampled);
        assert!(Parent::parse(&good.replacen("00", "cc", 1).replace("-01", "-01-later")).is_some());
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333é-01",
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn prose_is_no_name() {
        for good in ["gpt-4o", "models/gemini-2.5", "arn:aws:x/y", "provider_unreachable", "529"] {
            assert_eq!(Name::new(good).as_str(), good);
        }
        for bad in ["", "my secret", "a\nb", "é", "{\"a\":1}", &"x".repeat(129)] {
            assert_eq!(Name::new(bad).as_str(), "other", "{bad}");
        }
    }

    #[test]
    fn spans_of_a_request_are_apart_and_always_the_same() {
        let of = |request, role| mesh_span([request; 16], role);
        assert_eq!(of(1, Role::Relay), of(1, Role::Relay));
        assert_ne!(of(1, Role::Relay), of(1, Role::Keyer));
        assert_ne!(of(1, Role::Relay), of(2, Role::Relay));
    }
}
