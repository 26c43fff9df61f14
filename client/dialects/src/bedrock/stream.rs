//! Streamed answers, in frames.
use crate::bedrock::answer::{finish_name, metrics, read_finish, read_usage, write_usage};
use crate::common::{Block, Blocks, Decode, Delta, Encode};
use crate::dialect::Operation;
use crate::error::DialectError;
use crate::errors;
use crate::eventstream::{self, Frame, Frames};
use crate::json::{Obj, Object, Value};
use crate::outcome::{Finish, Usage};

/// Reads frames. `metadata` with usage comes after `messageStop`, and is the last.
#[derive(Default)]
pub(crate) struct Decoder {
    frames: Frames,
    blocks: Blocks,
    /// Index of the open block. Text blocks begin with their first delta.
    open: Option<u64>,
    stopped: bool,
    done: bool,
}

impl Decoder {
    fn frame(&mut self, frame: &Frame, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if self.done {
            return Ok(());
        }
        if frame.message_type != "event" {
            self.done = true;
            out.push(Delta::Error(errors::read_exception(frame)));
            return Ok(());
        }
        let root = Value::root(&frame.payload)?;
        let mut o = root.object()?;
        match frame.kind.as_str() {
            "messageStart" => out.push(Delta::Begin { model: None }),
            "contentBlockStart" => {
                self.at(o.need("contentBlockIndex")?.u64()?, out);
                if let Some(mut start) = o.take_object("start")?
                    && let Some(call) = start.take("toolUse")
                {
                    let mut c = call.object()?;
                    self.blocks.tool(c.need_string("toolUseId")?, c.need_string("name")?, None, out)?;
                }
            }
            "contentBlockDelta" => {
                self.at(o.need("contentBlockIndex")?.u64()?, out);
                self.delta(o.need("delta")?.object()?, out)?;
            }
            "contentBlockStop" => {
                self.open = None;
                self.blocks.end(out);
            }
            "messageStop" => {
                self.blocks.end(out);
                let finish = read_finish(&o.need("stopReason")?)?;
                out.push(Delta::Finish { finish, stop_sequence: None });
                self.stopped = true;
            }
            "metadata" => {
                if let Some(usage) = o.take_object("usage")? {
                    out.push(Delta::Usage(read_usage(usage)?));
                }
                if self.stopped {
                    self.end(out);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn at(&mut self, index: u64, out: &mut Vec<Delta>) {
        if self.open.is_some_and(|open| open != index) {
            self.blocks.end(out);
        }
        self.open = Some(index);
    }

    fn delta(&mut self, mut delta: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if let Some(text) = delta.take_string("text")? {
            return self.blocks.text(text, out);
        }
        if let Some(mut call) = delta.take_object("toolUse")? {
            return self.blocks.arguments(call.take_string("input")?.unwrap_or_default(), out);
        }
        let mut reasoning = delta.need("reasoningContent")?.object()?;
        if let Some(data) = reasoning.take_string("redactedContent")? {
            return self.blocks.redacted(data, out);
        }
        if let Some(text) = reasoning.take_string("text")? {
            self.blocks.thinking(text, out)?;
        }
        match reasoning.take_string("signature")? {
            Some(signature) => self.blocks.signature(signature, out),
            None => Ok(()),
        }
    }

    fn end(&mut self, out: &mut Vec<Delta>) {
        out.push(Delta::Done);
        self.done = true;
    }
}

impl Decode for Decoder {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut frames = Vec::new();
        let cut = self.frames.feed(bytes, &mut frames);
        frames.iter().try_for_each(|frame| self.frame(frame, out)).map_err(DialectError::in_answer)?;
        cut
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        self.frames.finish()?;
        if !self.done {
            if !self.stopped {
                return Err(DialectError::Truncated);
            }
            self.end(out);
        }
        Ok(())
    }
}

/// Writes frames.
#[derive(Default)]
pub(crate) struct Encoder {
    index: u64,
    usage: Option<Usage>,
    finish: Option<Finish>,
}

impl Encoder {
    fn delta(&self, delta: Obj, out: &mut Vec<u8>) {
        let payload = Obj::new().with("contentBlockIndex", self.index).with("delta", delta).text();
        eventstream::write_event(out, "contentBlockDelta", &payload);
    }

    fn reasoning(&self, content: Obj, out: &mut Vec<u8>) {
        self.delta(Obj::new().with("reasoningContent", content), out);
    }
}

impl Encode for Encoder {
    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError> {
        match delta {
            Delta::Begin { .. } => {
                eventstream::write_event(out, "messageStart", &Obj::new().with("role", "assistant").text());
            }
            Delta::BlockBegin(Block::Text | Block::Thinking) => {}
            Delta::BlockBegin(Block::Redacted(data)) => {
                self.reasoning(Obj::new().with("redactedContent", data), out);
            }
            Delta::BlockBegin(Block::Tool { id, name }) => {
                let call = Obj::new().with("toolUseId", id).with("name", name);
                let start = Obj::new().with("contentBlockIndex", self.index);
                let start = start.with("start", Obj::new().with("toolUse", call));
                eventstream::write_event(out, "contentBlockStart", &start.text());
            }
            Delta::Text(text) => self.delta(Obj::new().with("text", text), out),
            Delta::Thinking(text) => self.reasoning(Obj::new().with("text", text), out),
            Delta::Signature(signature) => self.reasoning(Obj::new().with("signature", signature), out),
            Delta::Arguments(text) => {
                self.delta(Obj::new().with("toolUse", Obj::new().with("input", text)), out);
            }
            Delta::BlockEnd => {
                let payload = Obj::new().with("contentBlockIndex", self.index).text();
                eventstream::write_event(out, "contentBlockStop", &payload);
                self.index += 1;
            }
            Delta::Finish { finish, .. } => self.finish = Some(finish),
            Delta::Usage(usage) => self.usage = Some(usage),
            Delta::Error(error) => {
                let operation = Operation::Converse { stream: true };
                out.extend_from_slice(&errors::error_event(operation, error.kind, &error.message));
            }
            Delta::Done => {
                let reason = finish_name(self.finish.unwrap_or(Finish::Stop));
                eventstream::write_event(out, "messageStop", &Obj::new().with("stopReason", reason).text());
                let usage = write_usage(&self.usage.unwrap_or_default());
                eventstream::write_event(
                    out,
                    "metadata",
                    &Obj::new().with("usage", usage).with("metrics", metrics()).text(),
                );
            }
        }
        Ok(())
    }
}
