//! Reads usage, finish reason, model and errors from an answer that passes untouched. What it does not understand it
//! leaves alone: such an answer is between the caller and the provider.
use crate::dialect::{Dialect, Operation};
use crate::errors;
use crate::json::{Object, Value};
use crate::outcome::{Finish, Outcome};
use crate::{anthropic, bedrock, gemini, openai};

/// Reads answers of one operation.
pub(crate) struct Observer {
    operation: Operation,
    usage: anthropic::UsageSeen,
}

impl Observer {
    pub(crate) fn new(operation: Operation) -> Self {
        Self { operation, usage: anthropic::UsageSeen::default() }
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
                    outcome.finish = Some(anthropic::finish_of(&reason));
                }
                self.object(o, outcome);
            }
            (Operation::Messages, Some("message_stop")) => outcome.complete = true,
            (Operation::Messages, _) => {}
            _ => {
                self.object(o, outcome);
                // a reason is the end, whether or not [DONE] follows; Gemini has nothing else
                outcome.complete |= outcome.finish.is_some();
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
                if let Some(reason) = first(&mut o, "choices", "finish_reason") {
                    outcome.finish = Some(openai::finish_of(&reason));
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
                    outcome.finish = Some(anthropic::finish_of(&reason));
                }
            }
            Dialect::Gemini => {
                model("modelVersion");
                if let Some(usage) = inner(&mut o, "usageMetadata") {
                    outcome.usage = gemini::read_usage(usage).ok().or(outcome.usage);
                }
                if let Some(reason) = first(&mut o, "candidates", "finishReason") {
                    outcome.finish = Some(gemini::finish_of(&reason));
                } else if o.raw("promptFeedback").is_some() && outcome.finish.is_none() {
                    outcome.finish = Some(Finish::ContentFilter);
                }
            }
            Dialect::Bedrock => {
                if let Some(usage) = inner(&mut o, "usage") {
                    outcome.usage = bedrock::read_usage(usage).ok().or(outcome.usage);
                }
                if let Ok(Some(reason)) = o.take_string("stopReason") {
                    outcome.finish = Some(bedrock::finish_of(&reason));
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

/// A string of the first of a list of objects.
fn first(o: &mut Object<'_>, list: &str, key: &str) -> Option<String> {
    let list = o.take(list).filter(Value::is_array)?.array().ok()?;
    list.first()?.object().ok()?.take(key)?.string().ok()
}
