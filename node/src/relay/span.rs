//! A relayed request as a span: the root of the trace that has the request's id. Says what its settlement says.
use super::Relay;
use quorate_core::command::{Authorise, Ended, Settlement};
use quorate_core::ids::RequestId;
use quorate_splitkey::head::HeadTemplate;
use quorate_telemetry::{Attribute, Kind, Name, Role, Span, mesh_span, mesh_trace};
use std::time::{Duration, Instant, SystemTime};

/// One that is under way; dropped without an end it is not told of.
pub(super) struct RelaySpan(Option<Begun>);

struct Begun {
    relay: Relay,
    request: RequestId,
    begun: (SystemTime, Instant),
    route: Name,
    attributes: Vec<Attribute>,
}

impl RelaySpan {
    pub(super) fn begin(relay: &Relay, a: &Authorise, template: &HeadTemplate) -> Self {
        if !relay.inner.metrics.traces().is_on() {
            return Self(None);
        }
        let route = Name::new(a.route.as_str());
        let attributes = vec![
            Attribute::Request(a.request.0),
            Attribute::Route(route.clone()),
            Attribute::Relay(a.relay.0),
            Attribute::Keyer(a.keyer.0),
            Attribute::ServerAddress(Name::new(&template.host().to_string())),
            Attribute::ServerPort(template.port()),
        ];
        let begun = (SystemTime::now(), Instant::now());
        Self(Some(Begun { relay: relay.clone(), request: a.request, begun, route, attributes }))
    }

    pub(super) fn end(self, settlement: &Settlement) {
        let Some(Begun { relay, request, begun, route, mut attributes }) = self.0 else { return };
        let ended = word(settlement.ended);
        attributes.extend([
            Attribute::Outcome(ended),
            Attribute::BytesUp(settlement.bytes_up),
            Attribute::BytesDown(settlement.bytes_down),
            Attribute::FirstChunk(Duration::from_millis(u64::from(settlement.first_byte_ms))),
        ]);
        if !matches!(settlement.ended, Ended::Complete | Ended::Cancelled) {
            attributes.push(Attribute::Error(Name::new(ended)));
        }
        relay.inner.metrics.traces().export(Span {
            trace: mesh_trace(request.0),
            id: mesh_span(request.0, Role::Relay),
            parent: None,
            links: vec![],
            name: "relay",
            of: Some(route),
            kind: Kind::Server,
            begun: begun.0,
            took: begun.1.elapsed(),
            attributes,
        });
    }
}

fn word(ended: Ended) -> &'static str {
    match ended {
        Ended::Complete => "complete",
        Ended::Cancelled => "cancelled",
        Ended::Unreachable => "unreachable",
        Ended::Truncated => "truncated",
        Ended::CeilingReached => "ceiling_reached",
        Ended::HeadRefused => "head_refused",
        Ended::MeshFailure => "mesh_failure",
        Ended::TimedOut => "timed_out",
    }
}
