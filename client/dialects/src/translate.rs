//! A route's answer, said to the caller.
use crate::call::{Call, TargetRoute};
use crate::common::{Block, Decode, Delta, Encode, Framing, Part, Reply};
use crate::dialect::{Dialect, Operation};
use crate::error::DialectError;
use crate::errors::ErrorKind;
use crate::eventstream::Frames;
use crate::gemini::Form;
use crate::json::Value;
use crate::observe::Observer;
use crate::outcome::{Finish, Outcome};
use crate::sse::{Events, Reader};
use crate::{anthropic, bedrock, embeddings, errors, gemini, headers, openai, responses};
use bytes::Bytes;

/// What a translated answer needs from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Unique among all answers, of letters, digits, `_` and `-`: ids of messages and tool calls are made from it where
    /// the provider gave none.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// Status and headers of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Status.
    pub status: u16,
    /// Headers for the caller, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// The body is a stream: feed it. Otherwise collect it and call [`AnswerTranslator::whole`].
    pub stream: bool,
}

/// A whole answer for the caller. Holds content: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
}

/// Translates one answer of one route.
pub struct AnswerTranslator {
    operation: Operation,
    stream: bool,
    /// The caller wants its stream as one JSON array.
    array: bool,
    from: Dialect,
    framing: Framing,
    mode: Mode,
    outcome: Outcome,
    /// What ended the stream, to be told after the bytes before it.
    failed: Option<DialectError>,
    /// What the caller got so far ends where an event does.
    border: bool,
}

enum Mode {
    /// The same operation: bytes pass, and are watched.
    Pass { observer: Observer, watch: Watch },
    /// Another dialect.
    Translate { decoder: Box<dyn Decode>, encoder: Box<dyn Encode> },
    /// Embeddings of another dialect, and what was asked for.
    Embeddings { asked: Bytes },
}

/// What a stream that is one JSON array is.
const ARRAY_TYPE: &str = "application/json; charset=UTF-8";

/// What one call of [`AnswerTranslator::feed`] comes to: bytes, and perhaps why there are no more.
type Step = (Vec<u8>, Result<(), DialectError>);

enum Watch {
    Events(Events),
    Frames(Frames),
    /// Events, of which the one with nothing but usage is kept from the caller.
    Metered(Events),
    /// Events, told as items of one JSON array.
    Array(Events, Form),
}

impl AnswerTranslator {
    /// For the answer to `call.for_route(target)`.
    pub fn new(call: &Call, target: &TargetRoute, stamp: Stamp) -> Self {
        let operation = call.operation();
        let framing = Framing {
            id: stamp.id,
            created: stamp.created,
            model: call.model().to_owned(),
            usage_in_stream: call.usage_in_stream(),
        };
        let mode = if operation.dialect() == target.dialect {
            let watch = match operation {
                Operation::Converse { .. } => Watch::Frames(Frames::default()),
                _ if call.is_json_array() => Watch::Array(Events::default(), Form::new(true)),
                _ if call.is_metered(target) => Watch::Metered(Events::keeping_bytes()),
                _ => Watch::Events(Events::default()),
            };
            Mode::Pass { observer: Observer::new(operation, call.candidates()), watch }
        } else if operation.is_conversation() {
            let decoder: Box<dyn Decode> = match target.dialect {
                Dialect::OpenAi => Box::new(Reader::new(openai::Decoder::new(&framing.id))),
                Dialect::Anthropic => Box::new(Reader::new(anthropic::Decoder::default())),
                Dialect::Gemini => Box::new(Reader::new(gemini::Decoder::new(&framing.id))),
                Dialect::Bedrock => Box::new(bedrock::Decoder::default()),
            };
            let encoder: Box<dyn Encode> = match operation.dialect() {
                Dialect::OpenAi if operation == Operation::Responses => {
                    Box::new(responses::Encoder::new(framing.clone()))
                }
                Dialect::OpenAi => Box::new(openai::Encoder::new(framing.clone())),
                Dialect::Anthropic => Box::new(anthropic::Encoder::new(framing.clone())),
                Dialect::Gemini => {
                    Box::new(gemini::Encoder::new(framing.clone(), Form::new(call.is_json_array())))
                }
                Dialect::Bedrock => Box::new(bedrock::Encoder::default()),
            };
            Mode::Translate { decoder, encoder }
        } else {
            Mode::Embeddings { asked: call.expose_body().clone() }
        };
        let (stream, array, from) = (call.stream(), call.is_json_array(), target.dialect);
        Self {
            operation,
            stream,
            array,
            from,
            framing,
            mode,
            outcome: Outcome::default(),
            failed: None,
            border: true,
        }
    }

    /// Status and headers, as soon as they are there. Says whether the body is a stream.
    pub fn head(&self, status: u16, headers: &[(String, String)]) -> Head {
        let content_type = header(headers, "content-type").unwrap_or_default();
        let json = content_type.starts_with("application/json");
        let stream = self.stream && (200..300).contains(&status) && !json;
        let content_type = match (&self.mode, stream) {
            (_, true) if self.array => self.stream_type(),
            (Mode::Pass { .. }, _) => content_type,
            (_, true) => self.stream_type(),
            (_, false) => "application/json",
        };
        Head { status, headers: self.headers(headers, content_type), stream }
    }

    fn stream_type(&self) -> &'static str {
        match self.operation.dialect() {
            _ if self.array => ARRAY_TYPE,
            Dialect::Bedrock => "application/vnd.amazon.eventstream",
            Dialect::OpenAi | Dialect::Anthropic | Dialect::Gemini => "text/event-stream; charset=utf-8",
        }
    }

    fn headers(&self, from: &[(String, String)], content_type: &str) -> Vec<(String, String)> {
        let mut out = headers::for_caller(self.from, self.operation.dialect(), from, self.framing.created);
        if !content_type.is_empty() {
            out.push(("content-type".into(), content_type.into()));
        }
        out
    }

    /// A whole body, good or error. Exclusive with [`Self::feed`].
    pub fn whole(
        &mut self,
        status: u16,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Answer, DialectError> {
        if !(200..300).contains(&status) {
            return Ok(self.error(status, headers, body));
        }
        let upstream_type = header(headers, "content-type").unwrap_or("application/json");
        let (content_type, body) = match &mut self.mode {
            Mode::Pass { observer, .. } => {
                observer.whole(&body, &mut self.outcome);
                // the provider did not stream
                if self.array { (ARRAY_TYPE, as_array(body)) } else { (upstream_type, body) }
            }
            Mode::Translate { encoder, .. } => {
                let root = Value::root(&body).map_err(DialectError::in_answer)?;
                let stamp = &self.framing.id;
                let reply = match self.from {
                    Dialect::OpenAi => openai::read_reply(&root),
                    Dialect::Anthropic => anthropic::read_reply(&root),
                    Dialect::Gemini => gemini::read_reply(&root, stamp),
                    Dialect::Bedrock => bedrock::read_reply(&root),
                };
                let reply = reply.map_err(DialectError::in_answer)?;
                sayable(reply.finish, self.operation.dialect())?;
                self.outcome.usage = reply.usage;
                self.outcome.finish = reply.finish;
                self.outcome.model = reply.model.clone();
                self.outcome.complete = true;
                if self.stream {
                    // the provider did not stream: the caller gets a short one
                    let mut out = Vec::new();
                    deltas(reply).into_iter().try_for_each(|delta| encoder.write(delta, &mut out))?;
                    (self.stream_type(), out.into())
                } else {
                    let framing = &self.framing;
                    let text = match self.operation.dialect() {
                        Dialect::OpenAi if self.operation == Operation::Responses => {
                            responses::write_reply(&reply, framing)
                        }
                        Dialect::OpenAi => openai::write_reply(&reply, framing),
                        Dialect::Anthropic => anthropic::write_reply(&reply, framing),
                        Dialect::Gemini => gemini::write_reply(&reply, framing),
                        Dialect::Bedrock => bedrock::write_reply(&reply),
                    };
                    ("application/json", Bytes::from(text))
                }
            }
            Mode::Embeddings { asked } => {
                let text =
                    embeddings::write_reply(self.operation, asked, &body, &self.framing, &mut self.outcome)
                        .map_err(DialectError::in_answer)?;
                ("application/json", Bytes::from(text))
            }
        };
        let headers = self.headers(headers, content_type);
        Ok(Answer { status, headers, body })
    }

    fn error(&mut self, status: u16, headers: &[(String, String)], body: Bytes) -> Answer {
        let error = errors::read(self.from, status, headers, &body);
        self.outcome.error = Some(error.kind);
        self.outcome.complete = true;
        if let Mode::Pass { .. } = self.mode {
            let content_type = header(headers, "content-type").unwrap_or("application/json");
            let mut out = self.headers(headers, content_type);
            // the SDK finds the error's name there
            out.extend(headers.iter().filter(|(name, _)| name == "x-amzn-errortype").cloned());
            return Answer { status, headers: out, body: if self.array { as_array(body) } else { body } };
        }
        let answer = errors::error_answer(self.operation.dialect(), error.kind, &error.message);
        let mut out = self.headers(headers, "");
        if let (Some(seconds), None) = (error.retry_after, header(headers, "retry-after")) {
            out.push(("retry-after".into(), seconds.to_string()));
        }
        out.extend(answer.headers);
        let body = if self.array { as_array(answer.body) } else { answer.body };
        Answer { status: answer.status, headers: out, body }
    }

    /// The next bytes of a stream, cut anywhere; the bytes for the caller, perhaps none. What was whole before an error is
    /// given first: the error is the next call's answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Bytes, DialectError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (out, end) = self.step(Some(bytes));
        if let Err(error) = end {
            self.failed = Some(error.clone());
            if out.is_empty() {
                return Err(error);
            }
        }
        Ok(out.into())
    }

    /// The stream is over: the last bytes, or [`DialectError::Truncated`].
    pub fn finish(&mut self) -> Result<Bytes, DialectError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (out, end) = self.step(None);
        end?;
        if self.outcome.complete { Ok(out.into()) } else { Err(DialectError::Truncated) }
    }

    /// An error of ours, as the last bytes of a stream that has begun; none where the stream has ended and can hold no more.
    pub fn error_event(&mut self, kind: ErrorKind, message: &str) -> Bytes {
        if self.array {
            let text = errors::object(Dialect::Gemini, kind, message).text();
            return self.last_item(&text).unwrap_or_default();
        }
        errors::error_event(self.operation, kind, message)
    }

    /// Ends a stream that is one JSON array by an item of the adapter's. `None`: it is no array, or has ended.
    pub fn last_item(&mut self, json: &str) -> Option<Bytes> {
        let mut out = Vec::new();
        let open = match &mut self.mode {
            Mode::Pass { watch: Watch::Array(_, form), .. } => {
                let open = form.is_open();
                form.item(json, &mut out);
                form.end(&mut out);
                open
            }
            Mode::Translate { encoder, .. } => encoder.last_item(json, &mut out),
            Mode::Pass { .. } | Mode::Embeddings { .. } => false,
        };
        (self.array && open).then(|| out.into())
    }

    /// Bytes, or the end of them.
    fn step(&mut self, bytes: Option<&[u8]>) -> Step {
        let (outcome, border) = (&mut self.outcome, &mut self.border);
        let asker = self.operation.dialect();
        let mut out = Vec::new();
        let end = match &mut self.mode {
            Mode::Pass { observer, watch: Watch::Frames(frames) } => {
                let mut seen = Vec::new();
                let end = match bytes {
                    Some(bytes) => frames.feed(bytes, &mut seen),
                    None => frames.finish(),
                };
                seen.iter().for_each(|frame| observer.frame(frame, outcome));
                if end.is_ok() {
                    out.extend_from_slice(bytes.unwrap_or_default());
                    *border = frames.is_border();
                }
                end
            }
            Mode::Pass { observer, watch: Watch::Events(events) } => {
                let (seen, end) = cut(events, bytes);
                let some = seen.iter().filter(|event| !event.data.is_empty());
                some.for_each(|event| observer.event(&event.data, outcome));
                if end.is_ok() && bytes.is_some() {
                    out.extend_from_slice(bytes.unwrap_or_default());
                    *border = events.is_border();
                }
                end
            }
            Mode::Pass { observer, watch: Watch::Metered(events) } => {
                let (seen, end) = cut(events, bytes);
                for event in seen {
                    if !event.data.is_empty() {
                        observer.event(&event.data, outcome);
                    }
                    if !is_usage_only(&event.data) {
                        out.extend_from_slice(&event.bytes);
                    } else if event.bytes.starts_with(b"\n") {
                        // it ends the line of the event before, whose CR came first
                        out.push(b'\n');
                    }
                }
                end
            }
            Mode::Pass { observer, watch: Watch::Array(events, form) } => {
                let (seen, mut end) = cut(events, bytes);
                for event in seen.iter().filter(|event| !event.data.is_empty()) {
                    if let Err(error) = Value::root(event.data.as_bytes()) {
                        // half an event at the end is a stream cut short, anywhere else it is no JSON
                        end = Err(if bytes.is_none() { DialectError::Truncated } else { error.in_answer() });
                        break;
                    }
                    observer.event(&event.data, outcome);
                    form.item(&event.data, &mut out);
                }
                if bytes.is_none() && outcome.complete {
                    form.end(&mut out);
                }
                end
            }
            Mode::Translate { decoder, encoder } => {
                let mut deltas = Vec::new();
                let end = match bytes {
                    Some(bytes) => decoder.feed(bytes, &mut deltas),
                    None => decoder.finish(&mut deltas),
                };
                let told = deltas.into_iter().try_for_each(|delta| {
                    if let Delta::Finish { finish, .. } = &delta {
                        sayable(Some(*finish), asker)?;
                    }
                    note(&delta, outcome);
                    encoder.write(delta, &mut out)
                });
                told.and(end)
            }
            Mode::Embeddings { .. } => Ok(()),
        };
        (out, end)
    }

    /// Whether an event of ours may follow what the caller got so far: it would be read as part of one that is half there.
    pub fn is_border(&self) -> bool {
        self.border
    }

    /// What was observed so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

/// One JSON object as callers who asked for an array get it: Google's answers to them are arrays too, errors among them.
fn as_array(body: Bytes) -> Bytes {
    if Value::root(&body).is_ok_and(|value| value.is_object()) { errors::in_array(&body) } else { body }
}

fn header<'a>(headers: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}

/// The events in bytes, or in what is left of them.
fn cut(events: &mut Events, bytes: Option<&[u8]>) -> (Vec<crate::sse::Event>, Result<(), DialectError>) {
    let mut seen = Vec::new();
    let end = match bytes {
        Some(bytes) => events.feed(bytes, &mut seen),
        None => events.finish(&mut seen),
    };
    (seen, end)
}

/// Refuses a reason that a caller's dialect has no word for: as `stop` or `end_turn` it would pass for a good answer.
fn sayable(finish: Option<Finish>, to: Dialect) -> Result<(), DialectError> {
    let expected = match (finish, to) {
        (Some(Finish::MalformedToolCall), Dialect::OpenAi | Dialect::Anthropic) => {
            "a tool call that is well formed"
        }
        (Some(Finish::Pause), Dialect::OpenAi | Dialect::Gemini | Dialect::Bedrock) => {
            "a turn that is not paused"
        }
        _ => return Ok(()),
    };
    Err(DialectError::Malformed { field: "reason to stop".into(), expected }.in_answer())
}

/// The event that `include_usage` adds: no choices, and usage.
fn is_usage_only(data: &str) -> bool {
    let object = Value::root(data.as_bytes()).ok().filter(Value::is_object).and_then(|v| v.object().ok());
    object.is_some_and(|mut o| {
        let none = o.take("choices").is_some_and(|c| c.raw().as_str() == "[]");
        none && o.take("usage").is_some()
    })
}

fn note(delta: &Delta, outcome: &mut Outcome) {
    match delta {
        Delta::Begin { model } => outcome.model = model.clone(),
        Delta::Finish { finish, .. } => outcome.finish = Some(*finish),
        Delta::Usage(usage) => outcome.usage = Some(*usage),
        Delta::Error(error) => {
            outcome.error = Some(error.kind);
            outcome.complete = true;
        }
        Delta::Done => outcome.complete = true,
        _ => {}
    }
}

/// A whole answer as the pieces that a stream of it would have.
fn deltas(reply: Reply) -> Vec<Delta> {
    let mut out = vec![Delta::Begin { model: reply.model }];
    for part in reply.parts {
        match part {
            Part::Text(text) => out.extend([Delta::BlockBegin(Block::Text), Delta::Text(text)]),
            Part::Thinking { text, signature } => {
                out.extend([Delta::BlockBegin(Block::Thinking), Delta::Thinking(text)]);
                out.extend(signature.map(Delta::Signature));
            }
            Part::Redacted(data) => out.push(Delta::BlockBegin(Block::Redacted(data))),
            Part::ToolCall { id, name, arguments } => {
                out.push(Delta::BlockBegin(Block::Tool { id, name }));
                out.push(Delta::Arguments(arguments.as_str().to_owned()));
            }
            Part::Image(_) | Part::ToolResult(_) | Part::CachePoint { .. } => continue,
        }
        out.push(Delta::BlockEnd);
    }
    let finish = reply.finish.unwrap_or(Finish::Stop);
    out.push(Delta::Finish { finish, stop_sequence: reply.stop_sequence });
    out.extend(reply.usage.map(Delta::Usage));
    out.push(Delta::Done);
    out
}
