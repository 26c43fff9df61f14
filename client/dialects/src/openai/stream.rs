//! Streamed answers.
use crate::common::{Block, Blocks, Delta, Encode, Framing, Part};
use crate::dialect::{Dialect, Operation};
use crate::error::DialectError;
use crate::errors;
use crate::json::{Json, Obj, Object, Value};
use crate::limits::{BLOCKS_MAX, PENDING_BYTES_MAX};
use crate::openai::answer::{
    finish_name, no_media, read_finish, read_texts, read_usage, redacted_block, thinking_block, write_usage,
};
use crate::outcome::{Finish, Usage};
use crate::sse::{self, Meaning};
use std::collections::BTreeMap;

/// Reads chunks of a chat completion.
#[derive(Default)]
pub(crate) struct Decoder {
    blocks: Blocks,
    begun: bool,
    refused: bool,
    finish: Option<Finish>,
    /// Usage came, which is asked for: nothing but `[DONE]` can follow.
    counted: bool,
    /// The tool call that is open.
    open: Option<OpenCall>,
    held: HeldCalls,
    /// For tool calls without an id.
    stamp: String,
    unnamed: usize,
}

struct OpenCall {
    index: u64,
    id: String,
    extent: Extent,
}

impl Decoder {
    pub(crate) fn new(stamp: &str) -> Self {
        Self { stamp: stamp.to_owned(), ..Self::default() }
    }
}

impl Meaning for Decoder {
    fn event(&mut self, data: &str, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if data == "[DONE]" {
            return self.done(out);
        }
        let root = Value::root(data.as_bytes())?;
        let mut o = root.object()?;
        // vLLM: {"object": "error", "message": ...}
        let failed = o.take("object").is_some_and(|object| object.text() == "\"error\"");
        if o.take("error").is_some() || failed {
            out.push(Delta::Error(errors::read_event(Dialect::OpenAi, data.as_bytes())));
            return Ok(());
        }
        if !self.begun {
            self.begun = true;
            // Azure's first event is about the prompt, and names no model
            out.push(Delta::Begin { model: o.take_string("model")?.filter(|model| !model.is_empty()) });
        }
        for choice in o.take_array("choices")? {
            self.choice(choice.object()?, out)?;
        }
        if let Some(usage) = o.take_object("usage")? {
            self.counted = true;
            out.push(Delta::Usage(read_usage(usage)?));
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        // some servers end without [DONE]; without usage too, it may have been cut off
        if self.counted { self.done(out) } else { Err(DialectError::Truncated) }
    }
}

impl Decoder {
    fn choice(&mut self, mut choice: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if choice.take_u64("index")?.is_some_and(|index| index > 0) {
            return Err(choice.expected("one choice"));
        }
        if let Some(mut delta) = choice.take_object("delta")? {
            no_media(&mut delta)?;
            let plain = delta.take("reasoning_content");
            let plain = plain.or(delta.take("reasoning")).filter(Value::is_string);
            let blocks = delta.take_array("thinking_blocks")?;
            for block in &blocks {
                let mut b = block.object()?;
                if let Some(data) = b.take_string("data")? {
                    self.blocks.redacted(data, out)?;
                    continue;
                }
                self.blocks.thinking(b.take_string("thinking")?.unwrap_or_default(), out)?;
                self.blocks.signature(b.take_string("signature")?.unwrap_or_default(), out)?;
            }
            if let (true, Some(plain)) = (blocks.is_empty(), plain) {
                self.blocks.thinking(plain.string()?, out)?;
            }
            let mut thoughts = Vec::new();
            let texts = read_texts(&mut delta, &mut thoughts)?;
            for thought in thoughts {
                if let Part::Thinking { text, .. } = thought {
                    self.blocks.thinking(text, out)?;
                }
            }
            for text in texts {
                self.blocks.text(text, out)?;
            }
            if let Some(refusal) = delta.take_string("refusal")?.filter(|r| !r.is_empty()) {
                self.refused = true;
                self.blocks.text(refusal, out)?;
            }
            for (nth, call) in delta.take_array("tool_calls")?.iter().enumerate() {
                self.call(nth, call.object()?, out)?;
            }
        }
        if let Some(reason) = choice.take("finish_reason").filter(|reason| reason.text() != "\"\"") {
            self.finish = Some(read_finish(&reason)?);
        }
        Ok(())
    }

    fn call(&mut self, nth: usize, mut call: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let index = call.take_u64("index")?.unwrap_or(nth as u64);
        let id = call.take_string("id")?.filter(|id| !id.is_empty());
        let mut f = call.take_object("function")?;
        let name = f.as_mut().map(|f| f.take_string("name")).transpose()?.flatten().filter(|n| !n.is_empty());
        let arguments = f.as_mut().and_then(|f| f.take("arguments"));
        // Ollama's older servers send an object
        let text = match &arguments {
            Some(object) if object.is_object() => object.raw().as_str().to_owned(),
            Some(text) => text.string()?,
            None => String::new(),
        };
        // a call begins with its name; some servers repeat name and id in each fragment, some (Ollama) give each call
        // the index 0, but an id of its own
        let same = |other: &str| id.as_ref().is_none_or(|id| id == other);
        if let Some(open) = self.open.as_mut().filter(|open| open.index == index && same(&open.id)) {
            open.extent.push(&text);
            return self.blocks.arguments(text, out);
        }
        if let Some(held) = self.held.get(index).filter(|held| same(&held.id)) {
            held.arguments.push_str(&text);
            return self.held.grow(text.len());
        }
        let Some(name) = name else {
            if text.is_empty() {
                return Ok(());
            }
            return Err(arguments.map_or_else(|| call.expected(BEGUN), |a| a.expected(BEGUN)));
        };
        let id = id.unwrap_or_else(|| {
            self.unnamed += 1;
            format!("call_{}_{}", self.stamp, self.unnamed)
        });
        // more may come of the call that is open, unless its arguments are whole or its place is taken
        let waits = self.open.as_ref().is_some_and(|open| open.index != index && !open.extent.is_whole());
        if waits || !self.held.is_empty() {
            return self.held.push(index, HeldCall { id, name, arguments: text });
        }
        let mut extent = Extent::default();
        extent.push(&text);
        self.open = Some(OpenCall { index, id: id.clone(), extent });
        self.blocks.tool(id, name, None, out)?;
        self.blocks.arguments(text, out)
    }

    fn done(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        for HeldCall { id, name, arguments } in std::mem::take(&mut self.held).calls {
            self.blocks.tool(id, name, None, out)?;
            self.blocks.arguments(arguments, out)?;
        }
        self.blocks.end(out);
        let finish = match (self.finish.take(), self.refused) {
            (None, _) => return Err(DialectError::Truncated),
            (_, true) => Finish::Refusal,
            (Some(Finish::Stop), _) if self.blocks.any_tool() => Finish::ToolCalls,
            (Some(finish), _) => finish,
        };
        out.push(Delta::Finish { finish, stop_sequence: None });
        out.push(Delta::Done);
        Ok(())
    }
}

const BEGUN: &str = "fragments of a tool call that has begun, and not ended";

/// Calls whose fragments come between those of another: in no other dialect do blocks overlap, so that they wait until
/// all is there.
#[derive(Default)]
struct HeldCalls {
    calls: Vec<HeldCall>,
    /// The last call of each index.
    last: BTreeMap<u64, usize>,
    bytes: usize,
}

struct HeldCall {
    id: String,
    name: String,
    arguments: String,
}

impl HeldCalls {
    fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn get(&mut self, index: u64) -> Option<&mut HeldCall> {
        self.calls.get_mut(*self.last.get(&index)?)
    }

    fn push(&mut self, index: u64, call: HeldCall) -> Result<(), DialectError> {
        if self.calls.len() >= BLOCKS_MAX {
            return Err(DialectError::TooLarge { what: "the number of tool calls", max: BLOCKS_MAX });
        }
        let bytes = call.id.len() + call.name.len() + call.arguments.len();
        self.last.insert(index, self.calls.len());
        self.calls.push(call);
        self.grow(bytes)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), DialectError> {
        self.bytes += bytes;
        if self.bytes > PENDING_BYTES_MAX {
            return Err(DialectError::TooLarge { what: "tool calls that overlap", max: PENDING_BYTES_MAX });
        }
        Ok(())
    }
}

/// Whether a JSON object that comes in pieces is all there.
#[derive(Default)]
struct Extent {
    begun: bool,
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Extent {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.string => self.escaped = true,
                b'"' => self.string = !self.string,
                _ if self.string => {}
                b'{' | b'[' => {
                    self.begun = true;
                    self.depth += 1;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.begun && self.depth == 0 && !self.string
    }
}

/// Writes chunks of a chat completion.
pub(crate) struct Encoder {
    framing: Framing,
    model: Option<String>,
    /// Blocks so far, those of thinking among them, and the position that the open one has yet to say: none in front.
    blocks: u64,
    thoughts: u64,
    position: Option<u64>,
    tools: u64,
    finish: Finish,
    usage: Option<Usage>,
}

impl Encoder {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            model: None,
            blocks: 0,
            thoughts: 0,
            position: None,
            tools: 0,
            finish: Finish::Stop,
            usage: None,
        }
    }

    fn chunk(&self, choices: Vec<Json>) -> Obj {
        Obj::new()
            .with("id", format!("chatcmpl-{}", self.framing.id))
            .with("object", "chat.completion.chunk")
            .with("created", self.framing.created)
            .with("model", self.model.as_deref().unwrap_or(&self.framing.model))
            .with("choices", choices)
    }

    fn delta(&self, delta: Obj, finish: Json, out: &mut Vec<u8>) {
        let choice = Obj::new().with("index", 0_u64).with("delta", delta);
        let choice = choice.with("logprobs", Json::Null).with("finish_reason", finish);
        sse::write(out, None, &self.chunk(vec![choice.into()]).text());
    }

    fn call(&self, call: Obj, out: &mut Vec<u8>) {
        self.delta(Obj::new().with("tool_calls", vec![Json::from(call)]), Json::Null, out);
    }
}

impl Encode for Encoder {
    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError> {
        if let Delta::BlockBegin(block) = &delta {
            self.position = (self.blocks != self.thoughts).then_some(self.blocks);
            self.blocks += 1;
            self.thoughts += u64::from(matches!(block, Block::Thinking | Block::Redacted(_)));
        }
        let index = self.thoughts.saturating_sub(1);
        let is_thought =
            matches!(delta, Delta::BlockBegin(Block::Redacted(_)) | Delta::Thinking(_) | Delta::Signature(_));
        let position = if is_thought { self.position.take() } else { None };
        let blocks = |block: Obj| vec![Json::from(block.with("index", index).opt("position", position))];
        let thinking = |block: Obj| Obj::new().with("thinking_blocks", blocks(block));
        match delta {
            Delta::Begin { model } => {
                self.model = model;
                let first =
                    Obj::new().with("role", "assistant").with("content", "").with("refusal", Json::Null);
                self.delta(first, Json::Null, out);
            }
            Delta::BlockBegin(Block::Text | Block::Thinking) | Delta::BlockEnd => {}
            Delta::BlockBegin(Block::Redacted(data)) => {
                self.delta(thinking(redacted_block(&data)), Json::Null, out);
            }
            Delta::BlockBegin(Block::Tool { id, name }) => {
                let function = Obj::new().with("name", name).with("arguments", "");
                let call = Obj::new().with("index", self.tools).with("id", id).with("type", "function");
                self.tools += 1;
                self.call(call.with("function", function), out);
            }
            Delta::Text(text) => self.delta(Obj::new().with("content", text), Json::Null, out),
            Delta::Thinking(text) => {
                let delta = Obj::new().with("reasoning_content", &text);
                let block = thinking_block(&text, None);
                self.delta(delta.with("thinking_blocks", blocks(block)), Json::Null, out);
            }
            Delta::Signature(signature) => {
                self.delta(thinking(thinking_block("", Some(&signature))), Json::Null, out);
            }
            Delta::Arguments(text) => {
                let call = Obj::new().with("index", self.tools.saturating_sub(1));
                self.call(call.with("function", Obj::new().with("arguments", text)), out);
            }
            Delta::Finish { finish, .. } => self.finish = finish,
            Delta::Usage(usage) => self.usage = Some(usage),
            Delta::Error(error) => {
                let operation = Operation::Chat;
                out.extend_from_slice(&errors::error_event(operation, error.kind, &error.message));
            }
            Delta::Done => {
                self.delta(Obj::new(), finish_name(self.finish).into(), out);
                if let (Some(usage), true) = (&self.usage, self.framing.usage_in_stream) {
                    let chunk = self.chunk(Vec::new()).with("usage", write_usage(usage));
                    sse::write(out, None, &chunk.text());
                }
                sse::write(out, None, "[DONE]");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Decode;
    use crate::sse::Reader;

    fn begun() -> Reader<Decoder> {
        Reader::new(Decoder::new("s"))
    }

    fn event(calls: &str) -> String {
        format!("data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{calls}]}}}}]}}\n\n")
    }

    fn calls(deltas: &[&str]) -> Vec<(String, String)> {
        let (mut decoder, mut out) = (begun(), Vec::new());
        for calls in deltas {
            decoder.feed(event(calls).as_bytes(), &mut out).unwrap();
        }
        let end = b"data: {\"choices\":[{\"finish_reason\":\"tool_calls\"}]}\n\ndata: [DONE]\n\n";
        decoder.feed(end, &mut out).unwrap();
        let mut seen = Vec::new();
        for delta in out {
            match delta {
                Delta::BlockBegin(Block::Tool { id, .. }) => seen.push((id, String::new())),
                Delta::Arguments(text) => seen.last_mut().unwrap().1.push_str(&text),
                _ => {}
            }
        }
        seen
    }

    #[test]
    fn tool_calls_as_servers_send_them() {
        let pair = |id: &str, arguments: &str| (id.to_owned(), arguments.to_owned());
        let two = [pair("a", r#"{"x":1}"#), pair("b", "{}")];
        // OpenAI
        let openai = [
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":""}}"#,
            r#"{"index":0,"function":{"arguments":"{\"x\":"}}"#,
            r#"{"index":0,"function":{"arguments":"1}"}}"#,
            r#"{"index":1,"id":"b","function":{"name":"g"}}"#,
        ];
        assert_eq!(calls(&openai), two);
        // whole calls in one event, each with the index 0; arguments as an object
        let ollama = [r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}},
data: {"index":0,"id":"b","function":{"name":"f","arguments":{}}}"#];
        assert_eq!(calls(&ollama), two);
        // name and id in each fragment
        let repeated = [
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":"}}"#,
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"1}"}}"#,
            r#"{"index":1,"id":"b","function":{"name":"f","arguments":"{}"}}"#,
        ];
        assert_eq!(calls(&repeated), two);
        // no id, no index
        let bare = [r#"{"function":{"name":"f","arguments":"{}"}}"#];
        assert_eq!(calls(&bare), [pair("call_s_1", "{}")]);
    }

    #[test]
    fn calls_that_overlap_are_told_one_after_the_other() {
        let pair = |id: &str, arguments: &str| (id.to_owned(), arguments.to_owned());
        // both begin before either goes on; the second has a brace and a quote in a string
        let seen = calls(&[
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":""}},
data: {"index":1,"id":"b","function":{"name":"g","arguments":""}}"#,
            r#"{"index":1,"function":{"arguments":"{\"y\":\"}\\\""}}"#,
            r#"{"index":0,"function":{"arguments":"{\"x\":"}},
data: {"index":1,"function":{"arguments":"\"}"}}"#,
            r#"{"index":0,"function":{"arguments":"1}"}}"#,
            r#"{"index":2,"id":"c","function":{"name":"h","arguments":"{}"}}"#,
        ]);
        let expected = [pair("a", r#"{"x":1}"#), pair("b", r#"{"y":"}\""}"#), pair("c", "{}")];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_call_after_a_whole_one_does_not_wait() {
        let (mut decoder, mut out) = (begun(), Vec::new());
        decoder
            .feed(
                event(r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":\"{\"}"}}"#)
                    .as_bytes(),
                &mut out,
            )
            .unwrap();
        decoder.feed(event(r#"{"index":1,"id":"b","function":{"name":"g"}}"#).as_bytes(), &mut out).unwrap();
        assert!(matches!(out.last(), Some(Delta::BlockBegin(Block::Tool { id, .. })) if id == "b"));
    }

    #[test]
    fn calls_that_wait_have_a_bound() {
        let (mut decoder, mut out) = (begun(), Vec::new());
        let two =
            r#"{"index":0,"id":"a","function":{"name":"f"}},{"index":1,"id":"b","function":{"name":"g"}}"#;
        decoder.feed(event(two).as_bytes(), &mut out).unwrap();
        let more = format!(r#"{{"index":1,"function":{{"arguments":"{}"}}}}"#, "x".repeat(1 << 20));
        let error = (0..8).find_map(|_| decoder.feed(event(&more).as_bytes(), &mut out).err()).unwrap();
        let inner = DialectError::TooLarge { what: "tool calls that overlap", max: PENDING_BYTES_MAX };
        assert_eq!(error, DialectError::Answer(Box::new(inner)));
    }

    #[test]
    fn fragments_of_a_call_that_is_over_are_refused() {
        let over = r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}},{"index":1,"id":"b","function":{"name":"f"}},
data: {"index":0,"function":{"arguments":"{}"}}"#;
        let error = begun().feed(event(over).as_bytes(), &mut Vec::new()).unwrap_err();
        let field = "choices[0].delta.tool_calls[2].function.arguments".into();
        assert_eq!(error, DialectError::Answer(Box::new(DialectError::Malformed { field, expected: BEGUN })));
    }
}
