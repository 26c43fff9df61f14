//! Streamed answers.
use crate::anthropic::answer::{UsageSeen, finish_name, message, no_citations, read_finish, write_usage};
use crate::anthropic::request::write_block;
use crate::common::{Block, Blocks, Delta, Encode, Framing, Part};
use crate::dialect::{Dialect, Operation};
use crate::error::DialectError;
use crate::errors;
use crate::json::{Json, Obj, Object, Raw, Value};
use crate::outcome::{Finish, Usage};
use crate::sse::{self, Meaning};

/// Reads a message's events.
#[derive(Default)]
pub(crate) struct Decoder {
    blocks: Blocks,
    usage: UsageSeen,
    /// Index of the open block.
    open: Option<u64>,
    /// A reason was given.
    stopped: bool,
}

impl Meaning for Decoder {
    fn event(&mut self, data: &str, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let root = Value::root(data.as_bytes())?;
        let mut o = root.object()?;
        match o.need_string("type")?.as_str() {
            "message_start" => {
                let mut m = o.need("message")?.object()?;
                out.push(Delta::Begin { model: m.take_string("model")? });
                if let Some(usage) = m.take_object("usage")? {
                    self.usage.read(usage)?;
                    out.push(Delta::Usage(self.usage.usage()));
                }
            }
            "content_block_start" => {
                self.open = Some(o.need("index")?.u64()?);
                self.start(&o.need("content_block")?, out)?;
            }
            "content_block_delta" => {
                let index = o.need("index")?;
                if self.open != Some(index.u64()?) {
                    return Err(index.expected("the index of the open block"));
                }
                self.delta(o.need("delta")?.object()?, out)?;
            }
            "content_block_stop" => {
                self.open = None;
                self.blocks.end(out);
            }
            "message_delta" => {
                let mut delta = o.need("delta")?.object()?;
                if let Some(reason) = delta.take("stop_reason") {
                    let finish = read_finish(&reason)?;
                    let stop_sequence = delta.take_string("stop_sequence")?;
                    self.blocks.end(out);
                    out.push(Delta::Finish { finish, stop_sequence });
                    self.stopped = true;
                }
                if let Some(usage) = o.take_object("usage")? {
                    self.usage.read(usage)?;
                    out.push(Delta::Usage(self.usage.usage()));
                }
            }
            "message_stop" => {
                if !self.stopped {
                    return Err(o.expected("a stop_reason before it"));
                }
                self.blocks.end(out);
                out.push(Delta::Done);
            }
            "error" => out.push(Delta::Error(errors::read_event(Dialect::Anthropic, data.as_bytes()))),
            // ping, and what the versioning policy says may be added
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _out: &mut Vec<Delta>) -> Result<(), DialectError> {
        Err(DialectError::Truncated)
    }
}

impl Decoder {
    fn start(&mut self, block: &Value<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut b = block.object()?;
        match b.need_string("type")?.as_str() {
            "text" => {
                no_citations(&mut b)?;
                self.blocks.end(out);
                self.blocks.text(b.take_string("text")?.unwrap_or_default(), out)
            }
            "thinking" => {
                self.blocks.end(out);
                self.blocks.thinking(b.take_string("thinking")?.unwrap_or_default(), out)?;
                self.blocks.signature(b.take_string("signature")?.unwrap_or_default(), out)
            }
            "redacted_thinking" => self.blocks.redacted(b.need_string("data")?, out),
            "tool_use" => {
                let input = b.take("input").map(|i| i.raw_object()).transpose()?;
                let input = input.filter(|i| *i != Raw::empty_object());
                self.blocks.tool(b.need_string("id")?, b.need_string("name")?, input, out)
            }
            _ => Err(block.expected("a block of text, thinking or tool use")),
        }
    }

    fn delta(&mut self, mut delta: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        match delta.need_string("type")?.as_str() {
            "text_delta" => self.blocks.text(delta.need_string("text")?, out),
            "thinking_delta" => self.blocks.thinking(delta.need_string("thinking")?, out),
            "signature_delta" => self.blocks.signature(delta.need_string("signature")?, out),
            "input_json_delta" => self.blocks.arguments(delta.need_string("partial_json")?, out),
            _ => Err(delta.expected("a delta of text, thinking, signature or input")),
        }
    }
}

/// Writes a message's events.
pub(crate) struct Encoder {
    framing: Framing,
    index: u64,
    finish: Finish,
    stop_sequence: Option<String>,
    usage: Usage,
}

impl Encoder {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, index: 0, finish: Finish::Stop, stop_sequence: None, usage: Usage::default() }
    }

    fn delta(&self, delta: Obj, out: &mut Vec<u8>) {
        event(Obj::of_type("content_block_delta").with("index", self.index).with("delta", delta), out);
    }
}

/// Writes an event, which is named as its type.
fn event(event: Obj, out: &mut Vec<u8>) {
    let name = event.type_name().to_owned();
    sse::write(out, Some(&name), &event.text());
}

impl Encode for Encoder {
    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError> {
        match delta {
            Delta::Begin { model } => {
                let message = message(&self.framing, model.as_deref(), Vec::new())
                    .with("stop_reason", Json::Null)
                    .with("stop_sequence", Json::Null)
                    .with("usage", write_usage(&Usage::default()));
                event(Obj::of_type("message_start").with("message", message), out);
            }
            Delta::BlockBegin(block) => {
                let block = match block {
                    Block::Text => write_block(&Part::Text(String::new())),
                    Block::Thinking => write_block(&Part::Thinking { text: String::new(), signature: None }),
                    Block::Redacted(data) => write_block(&Part::Redacted(data)),
                    Block::Tool { id, name } => {
                        write_block(&Part::ToolCall { id, name, arguments: Raw::empty_object() })
                    }
                };
                let start = Obj::of_type("content_block_start").with("index", self.index);
                event(start.with("content_block", block), out);
            }
            Delta::Text(text) => self.delta(Obj::of_type("text_delta").with("text", text), out),
            Delta::Thinking(text) => self.delta(Obj::of_type("thinking_delta").with("thinking", text), out),
            Delta::Signature(signature) => {
                self.delta(Obj::of_type("signature_delta").with("signature", signature), out);
            }
            Delta::Arguments(text) => {
                self.delta(Obj::of_type("input_json_delta").with("partial_json", text), out);
            }
            Delta::BlockEnd => {
                event(Obj::of_type("content_block_stop").with("index", self.index), out);
                self.index += 1;
            }
            Delta::Finish { finish, stop_sequence } => {
                self.finish = finish;
                self.stop_sequence = stop_sequence;
            }
            Delta::Usage(usage) => self.usage = usage,
            Delta::Error(error) => {
                out.extend_from_slice(&errors::error_event(Operation::Messages, error.kind, &error.message));
            }
            Delta::Done => {
                let delta = Obj::new()
                    .with("stop_reason", finish_name(self.finish))
                    .with("stop_sequence", self.stop_sequence.as_ref().map_or(Json::Null, Json::from));
                let delta = Obj::of_type("message_delta").with("delta", delta);
                event(delta.with("usage", write_usage(&self.usage)), out);
                event(Obj::of_type("message_stop"), out);
            }
        }
        Ok(())
    }
}
