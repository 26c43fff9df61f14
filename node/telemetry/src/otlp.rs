//! The part of OTLP 1.x that traces use (`opentelemetry/proto/trace/v1`), field by field: messages for `prost`, written by hand
//! because the published crates bring the whole SDK. A test reads them with the published ones.
use crate::span::{Attribute, Kind, Span};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    /// 2: error.
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Array(ArrayValue),
}

#[derive(Clone, PartialEq, Message)]
struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    values: Vec<AnyValue>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(int: u64) -> Self {
        Self::Int(i64::try_from(int).unwrap_or(i64::MAX))
    }
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn attribute(attribute: &Attribute) -> KeyValue {
    use Attribute as A;
    let ms = |time: &std::time::Duration| Value::Double(time.as_secs_f64() * 1000.0);
    match attribute {
        A::Operation(name) => pair("gen_ai.operation.name", (*name).into()),
        A::Provider(name) => pair("gen_ai.provider.name", (*name).into()),
        A::RequestModel(name) => pair("gen_ai.request.model", name.as_str().into()),
        A::ResponseModel(name) => pair("gen_ai.response.model", name.as_str().into()),
        A::InputTokens(count) => pair("gen_ai.usage.input_tokens", (*count).into()),
        A::OutputTokens(count) => pair("gen_ai.usage.output_tokens", (*count).into()),
        A::ServerAddress(name) => pair("server.address", name.as_str().into()),
        A::ServerPort(port) => pair("server.port", u64::from(*port).into()),
        A::Status(status) => pair("http.response.status_code", u64::from(*status).into()),
        A::Error(code) => pair("error.type", code.as_str().into()),
        A::Route(name) => pair("quorate.route", name.as_str().into()),
        A::Request(id) => pair("quorate.request", Value::Text(hex::encode(id))),
        A::Relay(node) => pair("quorate.relay", (*node).into()),
        A::Keyer(node) => pair("quorate.keyer", (*node).into()),
        A::Outcome(word) => pair("quorate.outcome", (*word).into()),
        A::Attempts(count) => pair("quorate.attempts", (*count).into()),
        A::Stream(yes) => pair("quorate.stream", Value::Bool(*yes)),
        A::CacheHit(yes) => pair("quorate.cache_hit", Value::Bool(*yes)),
        A::Guards(names) => {
            let values = names.iter().map(|n| AnyValue { value: Some(n.as_str().into()) }).collect();
            pair("quorate.guards", Value::Array(ArrayValue { values }))
        }
        A::FirstChunk(time) => pair("quorate.time_to_first_chunk_ms", ms(time)),
        A::Decided(time) => pair("quorate.decided_ms", ms(time)),
        A::BytesUp(count) => pair("quorate.bytes_up", (*count).into()),
        A::BytesDown(count) => pair("quorate.bytes_down", (*count).into()),
    }
}

fn wire(span: &Span) -> WireSpan {
    let (start_time_unix_nano, end_time_unix_nano) = span.nanos();
    let failed = span.attributes.iter().any(|a| matches!(a, Attribute::Error(_)));
    WireSpan {
        trace_id: span.trace.0.to_vec(),
        span_id: span.id.0.to_vec(),
        parent_span_id: span.parent.map(|id| id.0.to_vec()).unwrap_or_default(),
        name: match &span.of {
            Some(of) => format!("{} {}", span.name, of.as_str()),
            None => span.name.to_owned(),
        },
        kind: match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano,
        end_time_unix_nano,
        attributes: span.attributes.iter().map(attribute).collect(),
        links: span
            .links
            .iter()
            .map(|(t, s)| Link { trace_id: t.0.to_vec(), span_id: s.0.to_vec() })
            .collect(),
        status: failed.then_some(Status { code: 2 }),
    }
}

/// One batch.
pub(crate) fn encode(service: &str, instance: &str, spans: &[Span]) -> Vec<u8> {
    let attributes = vec![
        pair("service.name", service.into()),
        pair("service.version", env!("CARGO_PKG_VERSION").into()),
        pair("service.instance.id", instance.into()),
    ];
    let scope = Scope { name: "quorate".into(), version: env!("CARGO_PKG_VERSION").into() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.iter().map(wire).collect() }];
    let resource_spans = vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Name, SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Published;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as PublishedValue;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_published_messages_read_ours() {
        let span = Span {
            trace: TraceId([1; 16]),
            id: SpanId([2; 8]),
            parent: Some(SpanId([3; 8])),
            links: vec![(TraceId([4; 16]), SpanId([5; 8]))],
            name: "chat",
            of: Some(Name::new("m")),
            kind: Kind::Client,
            begun: UNIX_EPOCH + Duration::from_secs(7),
            took: Duration::from_millis(5),
            attributes: vec![
                Attribute::Operation("chat"),
                Attribute::InputTokens(3),
                Attribute::Stream(true),
                Attribute::FirstChunk(Duration::from_millis(2)),
                Attribute::Guards(vec![Name::new("keys")]),
                Attribute::Error(Name::new("timed_out")),
            ],
        };
        let read = Published::decode(&encode("adapter", "i", &[span])[..]).unwrap();
        let resource = &read.resource_spans[0];
        assert_eq!(resource.resource.as_ref().unwrap().attributes[0].key, "service.name");
        let spans = &resource.scope_spans[0].spans;
        let span = &spans[0];
        assert_eq!((spans.len(), span.name.as_str(), span.kind), (1, "chat m", 3));
        assert_eq!(
            (&span.trace_id[..], &span.span_id[..], &span.parent_span_id[..]),
            (&[1; 16][..], &[2; 8][..], &[3; 8][..])
        );
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (7_000_000_000, 7_005_000_000));
        assert_eq!((span.links[0].trace_id.len(), span.links[0].span_id.len()), (16, 8));
        assert_eq!(span.status.as_ref().unwrap().code, 2);
        let value = |at: usize| span.attributes[at].value.clone().unwrap().value.unwrap();
        let keys: Vec<&str> = span.attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(keys[..2], ["gen_ai.operation.name", "gen_ai.usage.input_tokens"]);
        assert_eq!(value(1), PublishedValue::IntValue(3));
        assert_eq!(value(2), PublishedValue::BoolValue(true));
        assert_eq!(value(3), PublishedValue::DoubleValue(2.0));
        assert!(matches!(value(4), PublishedValue::ArrayValue(a) if a.values.len() == 1));
        assert_eq!(value(5), PublishedValue::StringValue("timed_out".into()));
    }
}
