//! Spans of requests: one for what the application asked, below its own (`traceparent`), and one for each attempt, linked to the trace
//! that nodes keep of it. By [`quorate_telemetry`] nothing that was said fits in.
use crate::attempt::Tried;
use crate::receipts::came_to;
use crate::routing::Target;
use http::HeaderMap;
use quorate_telemetry::{
    Attribute, Kind, Name, Parent, Role, Span, SpanId, TraceId, Traces, mesh_span, mesh_trace,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// How much of an answer is looked through for the model that it names.
const SNIFF_BYTES_MAX: usize = 4096;

/// A request that is traced.
#[derive(Clone)]
pub(crate) struct Tracing {
    traces: Traces,
    trace: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    begun: (SystemTime, Instant),
    told: Arc<AtomicBool>,
}

impl Tracing {
    /// Begins, if somebody wants to hear of it.
    pub(crate) fn begin(traces: &Traces, headers: &HeaderMap) -> Option<Self> {
        if !traces.is_on() {
            return None;
        }
        let parent = headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(Parent::parse);
        if parent.is_some_and(|p| !p.sampled) {
            return None;
        }
        Some(Self {
            traces: traces.clone(),
            trace: match parent {
                Some(parent) => parent.trace,
                None => TraceId::random()?,
            },
            id: SpanId::random()?,
            parent: parent.map(|p| p.span),
            begun: (SystemTime::now(), Instant::now()),
            told: Arc::default(),
        })
    }

    /// Tells how it ended, once.
    pub(crate) fn end(&self, operation: &'static str, model: &str, more: Vec<Attribute>) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let model = Name::new(model);
        let mut attributes = vec![Attribute::Operation(operation), Attribute::RequestModel(model.clone())];
        attributes.extend(more);
        self.traces.export(Span {
            trace: self.trace,
            id: self.id,
            parent: self.parent,
            links: vec![],
            name: operation,
            of: Some(model),
            kind: Kind::Client,
            begun: self.begun.0,
            took: self.begun.1.elapsed(),
            attributes,
        });
    }

    /// Tells of one attempt.
    pub(crate) fn attempt(&self, target: &Target, tried: &Tried) {
        let Some(id) = SpanId::random() else { return };
        let attempts = tried.trail.attempts();
        let links = attempts.iter().map(|a| (mesh_trace(a.request.0), mesh_span(a.request.0, Role::Relay)));
        let route = Name::new(&target.route.name);
        let mut attributes = vec![
            Attribute::Route(route.clone()),
            Attribute::Provider(target.route.dialect.name()),
            Attribute::RequestModel(Name::new(&target.model)),
            Attribute::ServerAddress(Name::new(&target.route.host.0)),
            Attribute::ServerPort(target.route.host.1),
            Attribute::Outcome(came_to(tried.came)),
        ];
        if let Some(last) = attempts.last() {
            attributes.extend([
                Attribute::Request(last.request.0),
                Attribute::Relay(last.relay.0),
                Attribute::Keyer(last.keyer.0),
            ]);
        }
        match tried.came {
            crate::attempt::Came::Status(status) => {
                attributes
                    .extend([Attribute::Status(status), Attribute::Error(Name::new(&status.to_string()))]);
            }
            crate::attempt::Came::Answered | crate::attempt::Came::Outrun => {}
            came => attributes.push(Attribute::Error(Name::new(came_to(came)))),
        }
        self.traces.export(Span {
            trace: self.trace,
            id,
            parent: Some(self.id),
            links: links.collect(),
            name: "attempt",
            of: Some(route),
            kind: Kind::Client,
            begun: tried.began.0,
            took: tried.took.unwrap_or_else(|| tried.began.1.elapsed()),
            attributes,
        });
    }
}

/// Finds the model that an answer names, in its first bytes: a key of the JSON, for within a text its quotes would be escaped.
#[derive(Default)]
pub(crate) struct Sniff {
    first: Vec<u8>,
    done: bool,
}

impl Sniff {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.done {
            let room = SNIFF_BYTES_MAX.saturating_sub(self.first.len());
            self.first.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            self.done = self.first.len() >= SNIFF_BYTES_MAX;
        }
    }

    pub(crate) fn model(&self) -> Option<Name> {
        let text = String::from_utf8_lossy(&self.first);
        let at =
            ["\"model\":", "\"modelVersion\":"].iter().find_map(|key| Some(text.find(key)? + key.len()))?;
        let value = text.get(at..)?.trim_start().strip_prefix('"')?;
        let (value, _) = value.split_once('"')?;
        Some(Name::new(value)).filter(|name| name.as_str() == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_model_is_found_and_nothing_said_is() {
        let model = |pieces: &[&str]| {
            let mut sniff = Sniff::default();
            pieces.iter().for_each(|p| sniff.push(p.as_bytes()));
            sniff.model().map(|name| name.as_str().to_owned())
        };
        assert_eq!(model(&["{\"id\":\"x\",\"mod", "el\": \"gpt-4o-2024\"}"]).as_deref(), Some("gpt-4o-2024"));
        assert_eq!(model(&["{\"modelVersion\":\"gemini-2.5\"}"]).as_deref(), Some("gemini-2.5"));
        assert_eq!(model(&["{\"content\":\"{\\\"model\\\":\\\"secret\\\"}\"}"]), None);
        assert_eq!(model(&["{\"model\":\"what somebody said\"}"]), None);
        assert_eq!(model(&["{\"x\":\"", &"y".repeat(5000), "\",\"model\":\"m\"}"]), None);
    }
}
