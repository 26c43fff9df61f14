//! Streamed answers.
use crate::common::{Block, Blocks, Decode, Delta, Encode, Framing, Part};
use crate::error::DialectError;
use crate::errors;
use crate::json::{Json, Obj, Object, Value};
use crate::openai::answer::{
    finish_name, finish_of, read_texts, read_usage, redacted_block, thinking_block, write_usage,
};
use crate::outcome::{Finish, Usage};
use crate::sse::{self, Event, Events};

/// Reads chunks of a chat completion.
#[derive(Default)]
pub(crate) struct Decoder {
    events: Events,
    blocks: Blocks,
    begun: bool,
    refused: bool,
    finish: Option<Finish>,
    /// Index and id of the tool call that is open.
    tool: Option<(u64, String)>,
    done: bool,
    /// For tool calls without an id.
    stamp: String,
    unnamed: usize,
}

impl Decoder {
    pub(crate) fn new(stamp: &str) -> Self {
        Self { stamp: stamp.to_owned(), ..Self::default() }
    }

    fn event(&mut self, event: &Event, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if self.done || event.data.is_empty() {
            return Ok(());
        }
        if event.data == "[DONE]" {
            self.end(out);
            return Ok(());
        }
        let root = Value::root(event.data.as_bytes())?;
        let mut o = root.object()?;
        if o.take("error").is_some() {
            let error = errors::read_event(crate::dialect::Dialect::OpenAi, event.data.as_bytes());
            self.done = true;
            out.push(Delta::Error(error));
            return Ok(());
        }
        if !self.begun {
            self.begun = true;
            out.push(Delta::Begin { model: o.take_string("model")? });
        }
        if let Some(choice) = o.take_array("choices")?.first() {
            self.choice(choice.object()?, out)?;
        }
        if let Some(usage) = o.take_object("usage")? {
            out.push(Delta::Usage(read_usage(usage)?));
        }
        Ok(())
    }

    fn choice(&mut self, mut choice: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if let Some(mut delta) = choice.take_object("delta")? {
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
        if let Some(reason) = choice.take_string("finish_reason")?.filter(|r| !r.is_empty()) {
            self.finish = Some(finish_of(&reason));
        }
        Ok(())
    }

    fn call(&mut self, nth: usize, mut call: Object<'_>, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let index = call.take_u64("index")?.unwrap_or(nth as u64);
        let id = call.take_string("id")?.filter(|id| !id.is_empty());
        let mut f = call.take_object("function")?;
        let name = f.as_mut().map(|f| f.take_string("name")).transpose()?.flatten().filter(|n| !n.is_empty());
        // a call begins with its name; some servers repeat name and id in each fragment, some (Ollama) give each call
        // the index 0, but an id of its own
        let open = self
            .tool
            .as_ref()
            .is_some_and(|(i, open)| *i == index && id.as_ref().is_none_or(|id| id == open));
        if let (Some(name), false) = (name, open) {
            let id = id.unwrap_or_else(|| {
                self.unnamed += 1;
                format!("call_{}_{}", self.stamp, self.unnamed)
            });
            self.tool = Some((index, id.clone()));
            self.blocks.tool(id, name, None, out)?;
        }
        let Some(arguments) = f.as_mut().map(|f| f.take("arguments")).unwrap_or_default() else {
            return Ok(());
        };
        // Ollama's older servers send an object
        let text =
            if arguments.is_object() { arguments.raw().as_str().to_owned() } else { arguments.string()? };
        if !text.is_empty() && self.tool.as_ref().is_none_or(|(open, _)| *open != index) {
            return Err(arguments.expected("fragments of the tool call that began last"));
        }
        self.blocks.arguments(text, out)
    }

    fn end(&mut self, out: &mut Vec<Delta>) {
        self.blocks.end(out);
        let finish = match (self.finish.take(), self.refused) {
            (_, true) => Finish::Refusal,
            (Some(Finish::Stop) | None, _) if self.blocks.any_tool() => Finish::ToolCalls,
            (Some(finish), _) => finish,
            (None, _) => Finish::Stop,
        };
        out.push(Delta::Finish { finish, stop_sequence: None });
        out.push(Delta::Done);
        self.done = true;
    }
}

impl Decode for Decoder {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut events = Vec::new();
        self.events.feed(bytes, &mut events)?;
        events.iter().try_for_each(|event| self.event(event, out)).map_err(DialectError::in_answer)
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut events = Vec::new();
        self.events.finish(&mut events)?;
        // an event without its blank line may be half of one
        events.iter().try_for_each(|event| self.event(event, out)).map_err(|_| DialectError::Truncated)?;
        if !self.done {
            // some servers end without [DONE], none without a reason
            if self.finish.is_none() {
                return Err(DialectError::Truncated);
            }
            self.end(out);
        }
        Ok(())
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
                let operation = crate::dialect::Operation::Chat;
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

    fn calls(deltas: &[&str]) -> Vec<(String, String)> {
        let (mut decoder, mut out) = (Decoder::new("s"), Vec::new());
        for calls in deltas {
            let event = format!("data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{calls}]}}}}]}}\n\n");
            decoder.feed(event.as_bytes(), &mut out).unwrap();
        }
        decoder.feed(b"data: [DONE]\n\n", &mut out).unwrap();
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
    fn fragments_of_a_call_that_is_over_are_refused() {
        let mut decoder = Decoder::new("s");
        let event =
            br#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f"}},
data: {"index":1,"id":"b","function":{"name":"f"}},{"index":0,"function":{"arguments":"{}"}}]}}]}

"#;
        let error = decoder.feed(event, &mut Vec::new()).unwrap_err();
        let expected = "fragments of the tool call that began last";
        let field = "choices[0].delta.tool_calls[2].function.arguments".into();
        assert_eq!(error, DialectError::Answer(Box::new(DialectError::Malformed { field, expected })));
    }
}
