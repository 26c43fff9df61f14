//! Traces of requests, as OpenTelemetry's collectors take them (OTLP/HTTP, protobuf), from adapter and nodes alike.
//!
//! **Decides** what a span may say: an [`Attribute`] is one of a closed set of numbers, categories and [`Name`]s. There is no
//! attribute that a prompt, an answer, a header or an error's text would fit in. **Refuses** to hold anybody up: what does not fit
//! into the queue, and what the collector does not take in time, is dropped and counted.
//!
//! **Nothing travels to the nodes.** A request's id is random, has a trace id's length, and is known to all who carry it: nodes take
//! it for their spans' trace, and the adapter's span of an attempt *links* there ([`mesh_span`]). So an application's own trace
//! id stays in its own trust domain.
//!
//! Beside spans, [`lines`] bounds the lines of trace that a process writes.
#![forbid(unsafe_code)]

mod export;
pub mod lines;
mod otlp;
pub mod post;
mod span;

pub use export::{Counts, Traces};
pub use span::{Attribute, Kind, Name, Parent, Role, Span, SpanId, TraceId, mesh_span, mesh_trace};
