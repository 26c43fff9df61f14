//! Streamed answers: events (`alt=sse`) from routes; to callers events, or one JSON array.
use crate::common::{Block, Blocks, Delta, Encode, Framing};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::errors;
use crate::gemini::answer::{finish_name, is_blocked, read_finish, read_part, read_usage, response};
use crate::gemini::request::{Unwrapped, redacted_part, signature_part, unwrap_signature, wrap_signature};
use crate::json::{Json, Obj, Raw, Value};
use crate::limits::PENDING_BYTES_MAX;
use crate::outcome::{Finish, Usage};
use crate::sse::{self, Meaning};

/// Reads responses. There is no last event: the end of the bytes is the end, if a reason was given.
#[derive(Default)]
pub(crate) struct Decoder {
    blocks: Blocks,
    begun: bool,
    finish: Option<Finish>,
    stamp: String,
    calls: usize,
}

impl Decoder {
    pub(crate) fn new(stamp: &str) -> Self {
        Self { stamp: stamp.to_owned(), ..Self::default() }
    }
}

impl Meaning for Decoder {
    fn event(&mut self, data: &str, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let root = Value::root(data.as_bytes())?;
        let mut o = root.object()?;
        if o.take("error").is_some() {
            out.push(Delta::Error(errors::read_event(Dialect::Gemini, data.as_bytes())));
            return Ok(());
        }
        if !self.begun {
            self.begun = true;
            out.push(Delta::Begin { model: o.take_string("modelVersion")? });
        }
        let candidates = o.take_array("candidates")?;
        if candidates.len() > 1 {
            return Err(o.expected("one candidate"));
        }
        if let Some(candidate) = candidates.first() {
            let mut candidate = candidate.object()?;
            if let Some(mut content) = candidate.take_object("content")? {
                for part in content.take_array("parts")? {
                    self.part(&part, out)?;
                }
            }
            if let Some(reason) = candidate.take("finishReason") {
                self.finish = Some(read_finish(&reason)?);
            }
        } else if is_blocked(&mut o)? {
            self.finish = Some(Finish::ContentFilter);
        }
        if let Some(usage) = o.take_object("usageMetadata")? {
            out.push(Delta::Usage(read_usage(usage)?));
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let finish = self.finish.ok_or(DialectError::Truncated)?;
        self.blocks.end(out);
        let called = finish == Finish::Stop && self.blocks.any_tool();
        out.push(Delta::Finish {
            finish: if called { Finish::ToolCalls } else { finish },
            stop_sequence: None,
        });
        out.push(Delta::Done);
        Ok(())
    }
}

impl Decoder {
    fn part(&mut self, part: &Value<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let read = read_part(part)?;
        if read.thought {
            self.blocks.thinking(read.text.unwrap_or_default(), out)?;
            return self.sign(read.signature.as_deref(), out);
        }
        self.sign(read.signature.as_deref(), out)?;
        if let Some(text) = read.text {
            self.blocks.text(text, out)?;
        }
        if let Some(call) = read.call {
            self.calls += 1;
            let id = call.id.unwrap_or_else(|| format!("call_{}_{}", self.stamp, self.calls));
            self.blocks.tool(id, call.name, Some(call.arguments), out)?;
            self.blocks.end(out);
        }
        Ok(())
    }

    fn sign(&mut self, signature: Option<&str>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        match signature.map(unwrap_signature) {
            None => Ok(()),
            Some(Unwrapped::Redacted(data)) => self.blocks.redacted(data, out),
            Some(Unwrapped::Signature(signature)) => {
                self.blocks.signature(signature, out)?;
                self.blocks.end(out);
                Ok(())
            }
        }
    }
}

/// How a caller wants its stream.
pub(crate) enum Form {
    /// `alt=sse`.
    Events,
    /// One JSON array, an item at a time: Google's own way without `alt=sse`.
    Array(Brackets),
}

/// How far an array is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brackets {
    /// Nothing of it is written.
    None,
    /// `[` is.
    Open,
    /// `]` is: nothing may follow.
    Closed,
}

impl Form {
    pub(crate) fn new(array: bool) -> Self {
        if array { Self::Array(Brackets::None) } else { Self::Events }
    }

    /// Whether an item may follow.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Array(Brackets::Closed))
    }

    /// Writes one response.
    pub(crate) fn item(&mut self, json: &str, out: &mut Vec<u8>) {
        match self {
            Self::Events => sse::write(out, None, json),
            Self::Array(Brackets::Closed) => {}
            Self::Array(brackets) => {
                let before: &[u8] = if *brackets == Brackets::Open { b",\r\n" } else { b"[" };
                *brackets = Brackets::Open;
                out.extend_from_slice(before);
                out.extend_from_slice(json.as_bytes());
            }
        }
    }

    /// Nothing follows.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        let Self::Array(brackets) = self else { return };
        out.extend_from_slice(match brackets {
            Brackets::None => b"[]\n",
            Brackets::Open => b"]\n",
            Brackets::Closed => b"",
        });
        *brackets = Brackets::Closed;
    }
}

/// Writes responses. Arguments are kept until they are whole: there are no deltas of them.
pub(crate) struct Encoder {
    framing: Framing,
    form: Form,
    model: Option<String>,
    signature: Option<String>,
    call: Option<(String, String, String)>,
    finish: Finish,
    usage: Option<Usage>,
}

impl Encoder {
    pub(crate) fn new(framing: Framing, form: Form) -> Self {
        Self { framing, form, model: None, signature: None, call: None, finish: Finish::Stop, usage: None }
    }

    fn part(&mut self, part: Obj, out: &mut Vec<u8>) {
        let parts = vec![Json::from(part)];
        let text = response(&self.framing, self.model.as_deref(), parts, None, None).text();
        self.form.item(&text, out);
    }

    /// A signature whose thought led to no part that could carry it.
    fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(signature) = self.signature.take() {
            self.part(signature_part(&signature), out);
        }
    }
}

impl Encode for Encoder {
    fn last_item(&mut self, json: &str, out: &mut Vec<u8>) -> bool {
        let open = self.form.is_open();
        self.form.item(json, out);
        self.form.end(out);
        open
    }

    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError> {
        match delta {
            Delta::Begin { model } => self.model = model,
            Delta::BlockBegin(block) => match block {
                Block::Text => {}
                Block::Thinking => self.flush(out),
                Block::Redacted(data) => {
                    self.flush(out);
                    self.part(redacted_part(&data), out);
                }
                Block::Tool { id, name } => self.call = Some((id, name, String::new())),
            },
            Delta::Text(text) => {
                let signature = self.signature.take();
                self.part(Obj::new().with("text", text).opt("thoughtSignature", signature), out);
            }
            Delta::Thinking(text) => self.part(Obj::new().with("text", text).with("thought", true), out),
            Delta::Signature(signature) => self.signature = Some(wrap_signature(&signature)),
            Delta::Arguments(text) => {
                if let Some((.., arguments)) = &mut self.call {
                    if arguments.len() + text.len() > PENDING_BYTES_MAX {
                        let error = DialectError::TooLarge { what: "a tool call", max: PENDING_BYTES_MAX };
                        return Err(error.in_answer());
                    }
                    arguments.push_str(&text);
                }
            }
            Delta::BlockEnd => {
                if let Some((id, name, arguments)) = self.call.take() {
                    let arguments = Raw::parse(&arguments).filter(Raw::is_object).ok_or_else(|| {
                        let expected = "a JSON object";
                        DialectError::Malformed { field: "arguments".into(), expected }.in_answer()
                    })?;
                    let call = Obj::new().with("id", id).with("name", name).with("args", arguments);
                    let signature = self.signature.take();
                    self.part(Obj::new().with("functionCall", call).opt("thoughtSignature", signature), out);
                }
            }
            Delta::Finish { finish, .. } => self.finish = finish,
            Delta::Usage(usage) => self.usage = Some(usage),
            Delta::Error(error) => {
                self.form.item(&errors::object(Dialect::Gemini, error.kind, &error.message).text(), out);
                self.form.end(out);
            }
            Delta::Done => {
                self.flush(out);
                let finish = Some(finish_name(self.finish));
                let parts = vec![Json::from(Obj::new().with("text", ""))];
                let model = self.model.as_deref();
                let last = response(&self.framing, model, parts, finish, self.usage.as_ref());
                self.form.item(&last.text(), out);
                self.form.end(out);
            }
        }
        Ok(())
    }
}
