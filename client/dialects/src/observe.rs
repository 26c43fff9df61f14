//! Reads usage, finish reason, model and errors from an answer that passes untouched. What it does not understand it
//! leaves alone: such an answer is between the caller and the provider.
use crate::dialect::{Dialect, Operation};
use crate::errors::{self, ErrorKind};
use crate::json::{Object, Value};
use crate::outcome::{Finish, Outcome};
use crate::{anthropic, bedrock, gemini, openai};
use std::collections::BTreeSet;

/// Reads answers of one operation.
pub(crate) struct Observer {
    operation: Operation,
    usage: anthropic::UsageSeen,
    /// How many answers are to come, and those that have ended.
    candidates: u64,
    ended: BTreeSet<u64>,
}

impl Observer {
    pub(crate) fn new(operation: Operation, candidates: u64) -> Self {
        Self { operation, usage: anthropic::UsageSeen::default(), candidates, ended: BTreeSet::new() }
    }

    /// A whole body.
    pub(crate) fn whole(&mut self, body: &[u8], outcome: &mut Outcome) {
        if let Some(object) = object(body) {
            self.object(object, outcome);
        }
        outcome.complete = true;
    }

    /// The data of one event.
    pub(crate) fn event(&mut self, data: &str, outcome: &mut Outcome) {
        if data == "[DONE]" {
            outcome.complete = true;
            return;
        }
        let Some(mut o) = object(data.as_bytes()) else { return };
        let dialect = self.operation.dialect();
        let kind = o.take_string("type").ok().flatten();
        if o.raw("error").is_some_and(|e| e != "null") || kind.as_deref() == Some("error") {
            outcome.error = Some(errors::read_event(dialect, data.as_bytes()).kind);
            outcome.complete = true;
            return;
        }
        match (self.operation, kind.as_deref()) {
            (Operation::Responses, Some(kind)) => {
                if let Some(response) = inner(&mut o, "response") {
                    self.object(response, outcome);
                }
                if matches!(kind, "response.completed" | "response.incomplete" | "response.failed") {
                    outcome.complete = true;
                }
                if kind == "response.failed" {
                    outcome.error = Some(outcome.error.unwrap_or(ErrorKind::Internal));
                }
            }
            (Operation::Messages, Some("message_start")) => {
                if let Some(message) = inner(&mut o, "message") {
                    self.object(message, outcome);
                }
            }
            (Operation::Messages, Some("message_delta")) => {
                if let Some(mut delta) = inner(&mut o, "delta")
                    && let Ok(Some(reason)) = delta.take_string("stop_reason")
                {
                    outcome.finish = anthropic::finish_of(&reason);
                }
                self.object(o, outcome);
            }
            (Operation::Messages, Some("message_stop")) => outcome.complete = true,
            (Operation::Messages, _) => {}
            _ => {
                self.object(o, outcome);
                // a reason is the end, whether or not [DONE] follows; Gemini has nothing else
                let ended = u64::try_from(self.ended.len()).unwrap_or(u64::MAX);
                outcome.complete |= ended >= self.candidates;
            }
        }
    }

    /// One frame of Bedrock's stream.
    pub(crate) fn frame(&mut self, frame: &crate::eventstream::Frame, outcome: &mut Outcome) {
        if frame.message_type != "event" {
            outcome.error = Some(errors::read_exception(frame).kind);
            outcome.complete = true;
        } else if let Some(o) = object(&frame.payload) {
            self.object(o, outcome);
            outcome.complete |= frame.kind == "messageStop";
        }
    }

    fn object(&mut self, mut o: Object<'_>, outcome: &mut Outcome) {
        let mut model = |key: &str| {
            if let Some(model) = o.take_string(key).ok().flatten() {
                outcome.model = Some(model);
            }
        };
        match self.operation.dialect() {
            Dialect::OpenAi => {
                model("model");
                if let Some(usage) = inner(&mut o, "usage") {
                    outcome.usage = openai::read_usage(usage).ok().or(outcome.usage);
                }
                for (index, reason) in reasons(&mut o, "choices", "finish_reason") {
                    self.ended.insert(index);
                    outcome.finish = openai::finish_of(&reason);
                }
                // of a response that failed
                if let Some(error) = o.take("error").filter(|_| self.operation == Operation::Responses) {
                    outcome.error = Some(errors::read_event(Dialect::OpenAi, error.text().as_bytes()).kind);
                }
                if let (Operation::Responses, Ok(Some(status))) = (self.operation, o.take_string("status")) {
                    outcome.finish = match status.as_str() {
                        "completed" => Some(Finish::Stop),
                        "incomplete" => Some(Finish::Length),
                        _ => outcome.finish,
                    };
                }
            }
            Dialect::Anthropic => {
                model("model");
                if let Some(usage) = inner(&mut o, "usage")
                    && self.usage.read(usage).is_ok()
                {
                    outcome.usage = Some(self.usage.usage());
                }
                if let Ok(Some(reason)) = o.take_string("stop_reason") {
                    outcome.finish = anthropic::finish_of(&reason);
                }
            }
            Dialect::Gemini => {
                model("modelVersion");
                if let Some(usage) = inner(&mut o, "usageMetadata") {
                    outcome.usage = gemini::read_usage(usage).ok().or(outcome.usage);
                }
                for (index, reason) in reasons(&mut o, "candidates", "finishReason") {
                    self.ended.insert(index);
                    outcome.finish = gemini::finish_of(&reason);
                }
                if inner(&mut o, "promptFeedback").is_some_and(|mut f| f.take("blockReason").is_some()) {
                    self.candidates = 0;
                    outcome.finish = Some(Finish::ContentFilter);
                }
            }
            Dialect::Bedrock => {
                if let Some(usage) = inner(&mut o, "usage") {
                    outcome.usage = bedrock::read_usage(usage).ok().or(outcome.usage);
                }
                if let Ok(Some(reason)) = o.take_string("stopReason") {
                    outcome.finish = bedrock::finish_of(&reason);
                }
            }
        }
    }
}

fn object(bytes: &[u8]) -> Option<Object<'_>> {
    Value::root(bytes).ok().filter(Value::is_object)?.object().ok()
}

fn inner<'a>(o: &mut Object<'a>, key: &str) -> Option<Object<'a>> {
    o.take(key).filter(Value::is_object)?.object().ok()
}

/// Why each of a list of answers ended, by their indices.
fn reasons(o: &mut Object<'_>, list: &str, key: &str) -> Vec<(u64, String)> {
    let list = o.take(list).filter(Value::is_array).and_then(|list| list.array().ok()).unwrap_or_default();
    let reason = |one: &Value<'_>| {
        let mut one = one.object().ok()?;
        let reason = one.take(key)?.string().ok().filter(|reason| !reason.is_empty())?;
        Some((one.take_u64("index").ok()?.unwrap_or(0), reason))
    };
    list.iter().filter_map(reason).collect()
}
