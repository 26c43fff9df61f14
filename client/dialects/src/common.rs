//! What all dialects can say, once: a conversation that is asked, an answer, and an answer in pieces. Every pair of
//! dialects translates through it.
//!
//! A canonical form makes round trips exact: adjacent turns of one role are one turn, tool results stand in user turns,
//! and thinking stands before what it led to.
use crate::dialect::{Dialect, Flavour};
use crate::error::DialectError;
use crate::errors::ProviderError;
use crate::json::Raw;
use crate::limits::{BLOCKS_MAX, PATH_BYTES_MAX};
use crate::outcome::{Finish, Usage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

/// Something, and the caller's name of the field it came from.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone)]
pub(crate) struct At<T> {
    pub(crate) v: T,
    pub(crate) at: String,
}

impl<T> At<T> {
    pub(crate) fn new(v: T, at: &str) -> Self {
        Self { v, at: at.chars().take(PATH_BYTES_MAX).collect() }
    }

    /// Refuses the field.
    pub(crate) fn refuse(&self, target: Dialect, why: &'static str) -> DialectError {
        DialectError::Untranslatable { field: self.at.clone(), target, why }
    }
}

/// Refuses a field if it is there.
pub(crate) fn refuse_some<T>(
    field: &Option<At<T>>,
    target: Dialect,
    why: &'static str,
) -> Result<(), DialectError> {
    field.as_ref().map_or(Ok(()), |f| Err(f.refuse(target, why)))
}

/// Refuses ways of sampling that Claude and Bedrock do not know. Elsewhere the highest temperature is 2.
pub(crate) fn refuse_sampling(c: &Conversation, target: Dialect) -> Result<(), DialectError> {
    refuse_some(&c.seed, target, "no seed there")?;
    refuse_some(&c.presence_penalty, target, "no penalties there")?;
    refuse_some(&c.frequency_penalty, target, "no penalties there")?;
    match &c.temperature {
        Some(t) if t.v.is_above(1.0) => Err(t.refuse(target, "the highest temperature there is 1")),
        _ => Ok(()),
    }
}

/// Where a conversation goes, as writers need it.
pub(crate) struct Writing<'a> {
    pub(crate) dialect: Dialect,
    pub(crate) flavour: Flavour,
    pub(crate) model: &'a str,
    /// For a dialect that must have a bound, if the caller set none.
    pub(crate) max_output_default: u64,
}

/// A conversation, asked to be continued.
#[cfg_attr(test, derive(Debug))]
#[derive(Default, Clone)]
pub(crate) struct Conversation {
    /// Text and cache points.
    pub(crate) system: Vec<At<Part>>,
    pub(crate) turns: Vec<Turn>,
    pub(crate) tools: Vec<At<Tool>>,
    pub(crate) tool_choice: Option<At<ToolChoice>>,
    pub(crate) parallel_tools: Option<At<bool>>,
    pub(crate) max_output: Option<At<u64>>,
    pub(crate) temperature: Option<At<Raw>>,
    pub(crate) top_p: Option<At<Raw>>,
    pub(crate) top_k: Option<At<Raw>>,
    pub(crate) seed: Option<At<Raw>>,
    pub(crate) presence_penalty: Option<At<Raw>>,
    pub(crate) frequency_penalty: Option<At<Raw>>,
    pub(crate) stop: Option<At<Vec<String>>>,
    pub(crate) format: Option<At<Format>>,
    pub(crate) effort: Option<At<Effort>>,
    pub(crate) thinking: Option<At<Thinking>>,
    /// Who asks: a hint for the provider's abuse desk.
    pub(crate) user: Option<String>,
    pub(crate) stream: bool,
    /// An OpenAI caller wants usage in its stream.
    pub(crate) usage_in_stream: bool,
}

/// Who speaks.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
}

impl Role {
    /// What every dialect but Gemini's calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) parts: Vec<At<Part>>,
}

/// A piece of a turn.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Image(Image),
    ToolCall { id: String, name: String, arguments: Raw },
    ToolResult(ToolResult),
    Thinking { text: String, signature: Option<String> },
    Redacted(String),
    CachePoint { ttl: Option<String> },
}

/// What a tool answered.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ToolResult {
    pub(crate) id: String,
    /// The tool's name, if the caller's dialect has it here or an earlier call has the id.
    pub(crate) name: Option<String>,
    pub(crate) content: Vec<ResultPart>,
    pub(crate) error: bool,
}

/// A piece of what a tool answered.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ResultPart {
    Text(String),
    Json(Raw),
    Image(Image),
}

/// An image.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Image {
    Base64 { media_type: String, data: String },
    Url(String),
}

impl Image {
    /// A URL, or a data URL of an image in base64 (RFC 2397).
    pub(crate) fn of_url(url: String, at: &str) -> Result<Self, DialectError> {
        let Some(rest) = url.strip_prefix("data:") else { return Ok(Self::Url(url)) };
        let bad =
            || DialectError::Malformed { field: at.to_owned(), expected: "a data URL of an image in base64" };
        let (media_type, data) = rest.split_once(";base64,").ok_or_else(bad)?;
        if !media_type.starts_with("image/") || media_type.contains(';') || STANDARD.decode(data).is_err() {
            return Err(bad());
        }
        Ok(Self::Base64 { media_type: media_type.into(), data: data.into() })
    }

    pub(crate) fn into_url(self) -> String {
        match self {
            Self::Url(url) => url,
            Self::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
        }
    }
}

/// A tool that may be called.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) schema: Option<Raw>,
    pub(crate) strict: Option<bool>,
    pub(crate) cache: Option<Option<String>>,
}

#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    Auto,
    Required,
    None,
    Named(String),
}

/// The form of the answer.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone)]
pub(crate) enum Format {
    Json,
    Schema { name: Option<String>, description: Option<String>, schema: Raw, strict: Option<bool> },
}

#[cfg_attr(test, derive(Debug))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

impl Effort {
    pub(crate) const NAMES: [(Self, &'static str); 7] = [
        (Self::None, "none"),
        (Self::Minimal, "minimal"),
        (Self::Low, "low"),
        (Self::Medium, "medium"),
        (Self::High, "high"),
        (Self::XHigh, "xhigh"),
        (Self::Max, "max"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(e, _)| *e == self).map_or("medium", |(_, name)| name)
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, n)| n.eq_ignore_ascii_case(name)).map(|(e, _)| *e)
    }
}

#[cfg_attr(test, derive(Debug))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thinking {
    Off,
    /// As much as the model likes; shown, or not, or as is the model's way.
    Adaptive {
        show: Option<bool>,
    },
    /// At most so many tokens; shown, or not, or as is the model's way.
    Budget {
        max: u64,
        show: Option<bool>,
    },
}

impl Conversation {
    /// Brings the conversation into its canonical form, and gives each tool result the name of its tool.
    pub(crate) fn canonical(mut self) -> Self {
        let mut turns: Vec<Turn> = Vec::new();
        for turn in self.turns {
            match turns.last_mut() {
                Some(last) if last.role == turn.role => last.parts.extend(turn.parts),
                _ => turns.push(turn),
            }
        }
        let mut names = BTreeMap::new();
        for part in turns.iter_mut().flat_map(|t| &mut t.parts) {
            match &mut part.v {
                Part::ToolCall { id, name, .. } => {
                    names.insert(id.clone(), name.clone());
                }
                Part::ToolResult(result) if result.name.is_none() => {
                    result.name = names.get(&result.id).cloned();
                }
                _ => {}
            }
        }
        self.turns = turns;
        self
    }
}

/// A whole answer.
#[cfg_attr(test, derive(Debug))]
#[derive(Default, Clone)]
pub(crate) struct Reply {
    pub(crate) model: Option<String>,
    pub(crate) parts: Vec<Part>,
    pub(crate) finish: Option<Finish>,
    pub(crate) stop_sequence: Option<String>,
    pub(crate) usage: Option<Usage>,
}

/// A step of an answer in pieces. Blocks do not overlap: [`Blocks`] sees to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Delta {
    Begin { model: Option<String> },
    BlockBegin(Block),
    Text(String),
    Thinking(String),
    Signature(String),
    Arguments(String),
    BlockEnd,
    Finish { finish: Finish, stop_sequence: Option<String> },
    Usage(Usage),
    Error(ProviderError),
    Done,
}

/// What kind of block.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Block {
    Text,
    Thinking,
    Redacted(String),
    Tool { id: String, name: String },
}

/// Deltas of a provider, brought into order: each block is opened once, closed once, and a tool without arguments gets
/// the empty object.
#[derive(Default)]
pub(crate) struct Blocks {
    open: Option<Open>,
    count: usize,
    any_tool: bool,
}

enum Open {
    Text,
    Thinking { signed: bool },
    Tool { any: bool, fallback: Option<Raw> },
}

impl Blocks {
    pub(crate) fn any_tool(&self) -> bool {
        self.any_tool
    }

    pub(crate) fn text(&mut self, text: String, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if text.is_empty() {
            return Ok(());
        }
        if !matches!(self.open, Some(Open::Text)) {
            self.begin(Block::Text, Open::Text, out)?;
        }
        out.push(Delta::Text(text));
        Ok(())
    }

    pub(crate) fn thinking(&mut self, text: String, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if text.is_empty() {
            return Ok(());
        }
        if !matches!(self.open, Some(Open::Thinking { signed: false })) {
            self.begin(Block::Thinking, Open::Thinking { signed: false }, out)?;
        }
        out.push(Delta::Thinking(text));
        Ok(())
    }

    /// Signs the open thinking, or an empty one of its own.
    pub(crate) fn signature(&mut self, signature: String, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        if signature.is_empty() {
            return Ok(());
        }
        if !matches!(self.open, Some(Open::Thinking { signed: false })) {
            self.begin(Block::Thinking, Open::Thinking { signed: false }, out)?;
        }
        self.open = Some(Open::Thinking { signed: true });
        out.push(Delta::Signature(signature));
        Ok(())
    }

    pub(crate) fn redacted(&mut self, data: String, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        self.begin(Block::Redacted(data), Open::Text, out)?;
        self.open = None;
        out.push(Delta::BlockEnd);
        Ok(())
    }

    /// Opens a tool call. `fallback`: its arguments, if no fragment follows.
    pub(crate) fn tool(
        &mut self,
        id: String,
        name: String,
        fallback: Option<Raw>,
        out: &mut Vec<Delta>,
    ) -> Result<(), DialectError> {
        self.any_tool = true;
        self.begin(Block::Tool { id, name }, Open::Tool { any: false, fallback }, out)
    }

    /// A fragment of the open tool call's arguments.
    pub(crate) fn arguments(&mut self, text: String, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        match &mut self.open {
            _ if text.is_empty() => Ok(()),
            Some(Open::Tool { any, .. }) => {
                *any = true;
                out.push(Delta::Arguments(text));
                Ok(())
            }
            _ => Err(DialectError::Malformed {
                field: "arguments".into(),
                expected: "fragments of the tool call that began last",
            }
            .in_answer()),
        }
    }

    /// Closes the open block.
    pub(crate) fn end(&mut self, out: &mut Vec<Delta>) {
        let Some(open) = self.open.take() else { return };
        if let Open::Tool { any: false, fallback } = open {
            let arguments = fallback.unwrap_or_else(Raw::empty_object);
            out.push(Delta::Arguments(arguments.as_str().to_owned()));
        }
        out.push(Delta::BlockEnd);
    }

    fn begin(&mut self, block: Block, open: Open, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        self.end(out);
        self.count += 1;
        if self.count > BLOCKS_MAX {
            return Err(
                DialectError::TooLarge { what: "the number of content blocks", max: BLOCKS_MAX }.in_answer()
            );
        }
        self.open = Some(open);
        out.push(Delta::BlockBegin(block));
        Ok(())
    }
}

/// What an answer in pieces needs from outside when it is written.
#[derive(Clone)]
pub(crate) struct Framing {
    /// Of the answer: a provider's own id has its dialect's form.
    pub(crate) id: String,
    pub(crate) created: u64,
    /// The model that the caller named, if the provider names none.
    pub(crate) model: String,
    /// An OpenAI caller wants usage in its stream.
    pub(crate) usage_in_stream: bool,
}

/// Reads a provider's stream.
pub(crate) trait Decode: Send {
    /// Bytes, cut anywhere.
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<(), DialectError>;
    /// The end of the bytes. Gives [`Delta::Done`], unless it was given before.
    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError>;
}

/// Writes a caller's stream.
pub(crate) trait Encode: Send {
    /// One delta.
    fn write(&mut self, delta: Delta, out: &mut Vec<u8>) -> Result<(), DialectError>;

    /// Ends a stream that is one JSON array by an item from outside. `false`: it has ended, or is none.
    fn last_item(&mut self, _json: &str, _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// Puts a description into a schema that has none: dialects without a field for it.
pub(crate) fn described(
    schema: &Raw,
    description: Option<&str>,
    at: &str,
    target: Dialect,
) -> Result<Raw, DialectError> {
    let Some(description) = description else { return Ok(schema.clone()) };
    let refuse = |why| DialectError::Untranslatable { field: at.to_owned(), target, why };
    let mut object = schema.value(at).object()?;
    match object.take("description") {
        Some(own) if own.string().as_deref() == Ok(description) => Ok(schema.clone()),
        Some(_) => Err(refuse("the schema has another description")),
        None => {
            let rest = schema.as_str().strip_prefix('{').unwrap_or_default();
            let comma = if rest.starts_with('}') { "" } else { "," };
            let text = format!("{{\"description\":{}{comma}{rest}", crate::json::Json::from(description));
            Raw::parse(&text).ok_or_else(|| refuse("the schema is not an object"))
        }
    }
}

/// Base64 in the one form that all take: standard alphabet, padded. `None`: it is not base64.
pub(crate) fn base64_canonical(text: &str) -> Option<String> {
    let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
    STANDARD.decode(&padded).ok().map(|_| padded)
}
