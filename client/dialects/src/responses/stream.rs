//! Streamed answers, written to callers. The last event holds the whole answer: it is kept until then.
use crate::common::{Block, Delta, Encode, Framing};
use crate::dialect::Operation;
use crate::error::DialectError;
use crate::errors;
use crate::json::{Json, Obj};
use crate::limits::PENDING_BYTES_MAX;
use crate::outcome::{Finish, Usage};
use crate::responses::answer::{
    call, finished, item_id, message, output_text, reasoning, redacted, response, summary_text,
};
use crate::sse;

/// Writes a response's events.
pub(crate) struct Encoder {
    framing: Framing,
    model: Option<String>,
    sequence: u64,
    output: Vec<Json>,
    open: Option<Open>,
    kept: usize,
    finish: Finish,
    usage: Usage,
}

/// The item that is open, and its id.
struct Open {
    id: String,
    text: String,
    kind: Kind,
}

enum Kind {
    Text,
    Thinking { signature: Option<String> },
    Tool { call: String, name: String },
    Redacted { data: String },
}

impl Encoder {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            model: None,
            sequence: 0,
            output: Vec::new(),
            open: None,
            kept: 0,
            finish: Finish::Stop,
            usage: Usage::default(),
        }
    }

    fn event(&mut self, event: Obj, out: &mut Vec<u8>) {
        let name = event.type_name().to_owned();
        sse::write(out, Some(&name), &event.with("sequence_number", self.sequence).text());
        self.sequence += 1;
    }

    /// An event about the open item.
    fn about(&self, name: &'static str) -> Obj {
        let id = self.open.as_ref().map_or("", |open| open.id.as_str());
        Obj::of_type(name).with("item_id", id).with("output_index", self.index())
    }

    fn index(&self) -> u64 {
        u64::try_from(self.output.len()).unwrap_or(u64::MAX)
    }

    fn begin(&mut self, block: Block, out: &mut Vec<u8>) {
        let index = self.output.len();
        let id = |kind| item_id(kind, &self.framing, index);
        let (id, item, kind) = match block {
            Block::Text => {
                let id = id("msg");
                let item = message(&id, "in_progress", None);
                (id, item, Kind::Text)
            }
            Block::Thinking => {
                let id = id("rs");
                let item = reasoning(&id, "", None);
                (id, item, Kind::Thinking { signature: None })
            }
            Block::Redacted(data) => {
                let id = id("rs");
                let item = reasoning(&id, "", None);
                (id, item, Kind::Redacted { data })
            }
            Block::Tool { id: call_id, name } => {
                let id = id("fc");
                let item = call(&id, "in_progress", &call_id, &name, "");
                (id, item, Kind::Tool { call: call_id, name })
            }
        };
        let text = matches!(kind, Kind::Text);
        self.open = Some(Open { id, text: String::new(), kind });
        let added = Obj::of_type("response.output_item.added").with("output_index", self.index());
        self.event(added.with("item", item), out);
        if text {
            let part = self.about("response.content_part.added").with("content_index", 0_u64);
            self.event(part.with("part", output_text("")), out);
        }
    }

    fn delta(&mut self, delta: String, out: &mut Vec<u8>) -> Result<(), DialectError> {
        self.kept += delta.len();
        if self.kept > PENDING_BYTES_MAX {
            return Err(DialectError::TooLarge { what: "the answer", max: PENDING_BYTES_MAX }.in_answer());
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let first = open.text.is_empty();
        open.text.push_str(&delta);
        let event = match open.kind {
            Kind::Text => {
                let event = self.about("response.output_text.delta").with("content_index", 0_u64);
                event.with("delta", delta).with("logprobs", Vec::<Json>::new())
            }
            Kind::Thinking { .. } => {
                if first {
                    let part =
                        self.about("response.reasoning_summary_part.added").with("summary_index", 0_u64);
                    self.event(part.with("part", summary_text("")), out);
                }
                let event = self.about("response.reasoning_summary_text.delta");
                event.with("summary_index", 0_u64).with("delta", delta)
            }
            Kind::Tool { .. } => self.about("response.function_call_arguments.delta").with("delta", delta),
            Kind::Redacted { .. } => return Ok(()),
        };
        self.event(event, out);
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let Some(Open { id, text, kind }) = &self.open else { return };
        let (id, text) = (id.clone(), text.clone());
        let item = match kind {
            Kind::Text => {
                let done = self.about("response.output_text.done").with("content_index", 0_u64);
                let part = self.about("response.content_part.done").with("content_index", 0_u64);
                self.event(done.with("text", &text).with("logprobs", Vec::<Json>::new()), out);
                self.event(part.with("part", output_text(&text)), out);
                message(&id, "completed", Some(&text))
            }
            Kind::Thinking { signature } => {
                let item = reasoning(&id, &text, signature.as_deref());
                if !text.is_empty() {
                    let done =
                        self.about("response.reasoning_summary_text.done").with("summary_index", 0_u64);
                    let part =
                        self.about("response.reasoning_summary_part.done").with("summary_index", 0_u64);
                    self.event(done.with("text", &text), out);
                    self.event(part.with("part", summary_text(&text)), out);
                }
                item
            }
            Kind::Tool { call: call_id, name } => {
                let item = call(&id, "completed", call_id, name, &text);
                let done = self.about("response.function_call_arguments.done");
                self.event(done.with("arguments", &text), out);
                item
            }
            Kind::Redacted { data } => redacted(&id, data),
        };
        let done = Obj::of_type("response.output_item.done").with("output_index", self.index());
        self.event(done.with("item", item.clone()), out);
        self.output.push(item.into());
        self.open = None;
    }
}

impl Encode for Encoder {
    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError> {
        match delta {
            Delta::Begin { model } => {
                self.model = model;
                for name in ["response.created", "response.in_progress"] {
                    let model = self.model.as_deref();
                    let begun =
                        response(&self.framing, model, "in_progress", Json::Null, Vec::new(), Json::Null);
                    self.event(Obj::of_type(name).with("response", begun), out);
                }
            }
            Delta::BlockBegin(block) => self.begin(block, out),
            Delta::Text(text) | Delta::Thinking(text) | Delta::Arguments(text) => self.delta(text, out)?,
            Delta::Signature(text) => {
                if let Some(Open { kind: Kind::Thinking { signature }, .. }) = &mut self.open {
                    *signature = Some(text);
                }
            }
            Delta::BlockEnd => self.end(out),
            Delta::Finish { finish, .. } => self.finish = finish,
            Delta::Usage(usage) => self.usage = usage,
            Delta::Error(error) => {
                out.extend_from_slice(&errors::error_event(Operation::Responses, error.kind, &error.message));
            }
            Delta::Done => {
                let output = std::mem::take(&mut self.output);
                let model = self.model.as_deref();
                let last = finished(&self.framing, model, output, self.finish, &self.usage);
                let incomplete = matches!(
                    self.finish,
                    Finish::Length | Finish::ContextLength | Finish::ContentFilter | Finish::Refusal
                );
                let name = if incomplete { "response.incomplete" } else { "response.completed" };
                self.event(Obj::of_type(name).with("response", last), out);
            }
        }
        Ok(())
    }
}
