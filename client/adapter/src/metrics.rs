//! What Prometheus sees, in the names of OpenTelemetry's GenAI conventions where they have one.
//!
//! Labels are names from the policy and the configuration, and categories: what a request says only becomes a label if it is
//! one of those. There is no type here that content would fit in.
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Buckets of the GenAI conventions for `gen_ai.client.operation.duration`.
const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// And for `gen_ai.client.token.usage`.
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];

/// Whose operation it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    pub(crate) gen_ai_operation_name: &'static str,
    /// The dialect of the route: who provides it is the route's name.
    pub(crate) gen_ai_provider_name: &'static str,
    /// Configured or named by the policy; `other` where a route takes any.
    pub(crate) gen_ai_request_model: String,
    pub(crate) quorate_route: String,
    /// Empty when it succeeded.
    pub(crate) error_type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: &'static str,
    gen_ai_request_model: String,
    quorate_route: String,
    gen_ai_token_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRule {
    rule: String,
    side: &'static str,
    outcome: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn tokens() -> Histogram {
    Histogram::new(TOKENS)
}

/// Everything counted.
pub(crate) struct Metrics {
    registry: Registry,
    duration: Histograms<Labels>,
    first_byte: Histograms<Labels>,
    tokens: Histograms<TokenLabels>,
    attempts: Family<ByRoute, Counter>,
    refused: Family<ByCode, Counter>,
    guards: Family<ByRule, Counter>,
    spans: [Gauge; 2],
    codes: Mutex<HashSet<String>>,
    pub(crate) in_flight: Gauge,
    pub(crate) connections: Gauge,
    breakers: Gauge,
    pub(crate) receipts_written: Counter,
    pub(crate) receipts_failed: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
}

/// Codes that are counted by name; anything else a node may say is `other`.
const CODE_BYTES_MAX: usize = 40;
/// Different codes: ours, nodes' and HTTP's are some 150.
const CODES_MAX: usize = 256;

impl Default for Metrics {
    fn default() -> Self {
        let new = |make: fn() -> Histogram| make;
        let metrics = Self {
            registry: Registry::default(),
            duration: Family::new_with_constructor(new(seconds)),
            first_byte: Family::new_with_constructor(new(seconds)),
            tokens: Family::new_with_constructor(new(tokens)),
            attempts: Family::default(),
            refused: Family::default(),
            guards: Family::default(),
            spans: Default::default(),
            codes: Mutex::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            breakers: Gauge::default(),
            receipts_written: Counter::default(),
            receipts_failed: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register_with_unit(
            "gen_ai_client_operation_duration",
            "From the request's head to the end of its answer",
            Unit::Seconds,
            self.duration.clone(),
        );
        r.register_with_unit(
            "gen_ai_client_operation_time_to_first_chunk",
            "From the request's head to the first byte of its answer's body",
            Unit::Seconds,
            self.first_byte.clone(),
        );
        r.register("gen_ai_client_token_usage", "Tokens, on the provider's word", self.tokens.clone());
        r.register(
            "quorate_adapter_attempts",
            "Attempts by route and what came of them",
            self.attempts.clone(),
        );
        r.register("quorate_adapter_errors", "Errors of ours that callers got", self.refused.clone());
        r.register(
            "quorate_adapter_guards",
            "Prompts and answers that a guard flagged, redacted, blocked, or failed to look at",
            self.guards.clone(),
        );
        let [exported, dropped] = &self.spans;
        r.register(
            "quorate_adapter_spans_exported",
            "Spans that the collector took, since the start",
            exported.clone(),
        );
        r.register("quorate_adapter_spans_dropped", "Spans dropped, since the start", dropped.clone());
        r.register("quorate_adapter_in_flight", "Requests being served", self.in_flight.clone());
        r.register("quorate_adapter_connections", "Connections of applications", self.connections.clone());
        r.register("quorate_adapter_breakers_open", "Targets whose breaker is open", self.breakers.clone());
        r.register("quorate_adapter_receipts_written", "Receipts written", self.receipts_written.clone());
        r.register("quorate_adapter_cache_hits", "Answers from the cache", self.cache_hits.clone());
        r.register("quorate_adapter_cache_misses", "Looked for in vain", self.cache_misses.clone());
        r.register(
            "quorate_adapter_receipts_failed",
            "Receipts that could not be fetched or written",
            self.receipts_failed.clone(),
        );
        self
    }

    /// An operation that ended.
    pub(crate) fn ended(
        &self,
        mut labels: Labels,
        took: Duration,
        first_byte: Option<Duration>,
        (tokens_in, tokens_out): (u64, u64),
    ) {
        labels.error_type = self.known(&labels.error_type);
        for (kind, count) in [("input", tokens_in), ("output", tokens_out)] {
            if count > 0 {
                let of = TokenLabels {
                    gen_ai_operation_name: labels.gen_ai_operation_name,
                    gen_ai_provider_name: labels.gen_ai_provider_name,
                    gen_ai_request_model: labels.gen_ai_request_model.clone(),
                    quorate_route: labels.quorate_route.clone(),
                    gen_ai_token_type: kind,
                };
                self.tokens.get_or_create(&of).observe(count as f64);
            }
        }
        if let Some(first_byte) = first_byte {
            self.first_byte.get_or_create(&labels).observe(first_byte.as_secs_f64());
        }
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An attempt.
    pub(crate) fn attempted(&self, route: &str, outcome: &'static str) {
        self.attempts.get_or_create(&ByRoute { route: route.to_owned(), outcome }).inc();
    }

    /// An error of ours.
    pub(crate) fn refused(&self, code: &str) {
        self.refused.get_or_create(&ByCode { code: self.known(code) }).inc();
    }

    /// What a guard did.
    pub(crate) fn guarded(&self, rule: &str, side: &'static str, outcome: &'static str) {
        self.guards.get_or_create(&ByRule { rule: rule.to_owned(), side, outcome }).inc();
    }

    /// A code as a label: nodes, who may be hostile, say some of them, so only so many different ones count by name.
    pub(crate) fn known(&self, code: &str) -> String {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if codes.contains(code) {
            return code.to_owned();
        }
        if code.len() > CODE_BYTES_MAX || !code.bytes().all(good) || codes.len() >= CODES_MAX {
            return "other".to_owned();
        }
        codes.insert(code.to_owned());
        code.to_owned()
    }

    /// What became of spans.
    pub(crate) fn spans(&self, counts: quorate_telemetry::Counts) {
        let [exported, dropped] = &self.spans;
        exported.set(i64::try_from(counts.exported).unwrap_or(i64::MAX));
        dropped.set(i64::try_from(counts.dropped).unwrap_or(i64::MAX));
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn text(&self, breakers_open: usize) -> String {
        self.breakers.set(i64::try_from(breakers_open).unwrap_or(i64::MAX));
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_node_cannot_make_labels_without_end() {
        let metrics = Metrics::default();
        for n in 0..1000 {
            metrics.refused(&format!("code{n}"));
        }
        let text = metrics.text(0);
        assert_eq!(text.matches("quorate_adapter_errors_total{").count(), CODES_MAX + 1);
        assert!(text.contains("quorate_adapter_errors_total{code=\"other\"} 744"));
    }

    #[test]
    fn names_are_those_of_the_conventions() {
        let metrics = Metrics::default();
        let labels = Labels {
            gen_ai_operation_name: "chat",
            gen_ai_provider_name: "openai",
            gen_ai_request_model: "m".into(),
            quorate_route: "r".into(),
            error_type: String::new(),
        };
        metrics.ended(labels, Duration::from_millis(30), Some(Duration::from_millis(5)), (7, 31));
        metrics.attempted("r", "answered");
        metrics.refused("dark");
        metrics.refused("Anything else\n");
        metrics.guarded("keys", "prompt", "blocked");
        let text = metrics.text(2);
        for line in [
            "gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"openai\",gen_ai_request_model=\"m\",quorate_route=\"r\",error_type=\"\"} 1",
            "gen_ai_client_token_usage_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"openai\",gen_ai_request_model=\"m\",quorate_route=\"r\",gen_ai_token_type=\"output\"} 31.0",
            "quorate_adapter_attempts_total{route=\"r\",outcome=\"answered\"} 1",
            "quorate_adapter_errors_total{code=\"dark\"} 1",
            "quorate_adapter_errors_total{code=\"other\"} 1",
            "quorate_adapter_breakers_open 2",
            "quorate_adapter_guards_total{rule=\"keys\",side=\"prompt\",outcome=\"blocked\"} 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
