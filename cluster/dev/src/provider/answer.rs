//! What the provider says, whatever the dialect: a pure function of what was asked. No clock and no randomness: all choices
//! come from SHA-256 of the request, so that two runs can be compared. A *token* is a word, or a piece of JSON.
//!
//! A question that names tools is answered with a call of each that it names, in that order (parallel calls); with a tool's
//! result it is answered in words. A schema is answered with a value that it allows.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// Words of the last message that an answer repeats.
const ECHO_WORDS: usize = 12;
/// Bytes of a repeated word.
const ECHO_WORD_BYTES: usize = 24;
/// Words of a thought.
const THOUGHT_WORDS: usize = 8;
/// Bytes of a piece of JSON: small, so that streams cut inside names and numbers.
const JSON_PIECE_BYTES: usize = 7;
/// How deep a schema is followed.
const SCHEMA_DEPTH_MAX: usize = 16;
/// Calls in one answer.
const CALLS_MAX: usize = 8;

/// Sentences are made of one of each. They are about nothing, so that nobody takes them for a model's opinion.
const SUBJECTS: [&str; 8] = [
    "A heron",
    "The old bridge",
    "Every lantern",
    "The ferry",
    "A quiet orchard",
    "The north wind",
    "One small boat",
    "The clockmaker",
];
const VERBS: [&str; 8] =
    ["watches", "waits for", "remembers", "passes", "follows", "leans toward", "outlasts", "is older than"];
const OBJECTS: [&str; 8] = [
    "the river.",
    "a slow morning.",
    "the far shore.",
    "the harbour at noon.",
    "its own shadow.",
    "the first snow.",
    "a field of barley.",
    "the evening train.",
];
const NAMES: [&str; 8] = ["Aare", "Brno", "Cork", "Dole", "Évora", "Fano", "Gent", "Hof"];

/// A tool that may be called.
pub(super) struct Tool {
    pub(super) name: String,
    /// JSON schema of its arguments.
    pub(super) schema: Value,
}

/// Which tools may be called.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Those the question names.
    Auto,
    None,
    /// At least one.
    Any,
    Named(String),
}

/// A request, as far as its answer depends on it.
pub(super) struct Ask {
    pub(super) model: String,
    /// The text of each message, in order.
    pub(super) texts: Vec<String>,
    pub(super) tools: Vec<Tool>,
    pub(super) choice: Choice,
    /// Whether several calls may stand in one answer.
    pub(super) parallel: bool,
    /// Words before calls, as some vendors' models have them.
    pub(super) preface: bool,
    /// The last message brings tools' results.
    pub(super) results: bool,
    /// A value this schema allows is wanted, as JSON.
    pub(super) schema: Option<Value>,
    pub(super) limit: Option<usize>,
    pub(super) stops: Vec<String>,
    pub(super) thinking: bool,
}

/// Why an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    End,
    Length,
    /// At this stop sequence, which is not part of the answer.
    Stop(String),
    Tools,
}

/// A call of a tool.
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Value,
    /// Hex, unlike any other call's of this request.
    pub(super) id: String,
}

impl Call {
    /// Its arguments as JSON text, in pieces.
    pub(super) fn pieces(&self) -> Vec<String> {
        cut(&self.arguments.to_string())
    }
}

/// An answer.
pub(super) struct Answer {
    /// What was thought, if thinking was asked for.
    pub(super) thought: Vec<String>,
    /// Text, each piece but the first with its leading space.
    pub(super) pieces: Vec<String>,
    pub(super) calls: Vec<Call>,
    pub(super) finish: Finish,
    /// Hex of the request's digest; ids are made of it.
    pub(super) id: String,
    pub(super) input_tokens: usize,
    pub(super) thought_tokens: usize,
    /// Thought included.
    pub(super) output_tokens: usize,
}

impl Ask {
    /// A question without tools or wishes.
    pub(super) fn plain(model: &str, texts: Vec<String>) -> Self {
        Self {
            model: model.to_owned(),
            texts,
            tools: Vec::new(),
            choice: Choice::Auto,
            parallel: true,
            preface: false,
            results: false,
            schema: None,
            limit: None,
            stops: Vec::new(),
            thinking: false,
        }
    }

    /// Its answer, `tokens` long where nothing else says how long.
    pub(super) fn answer(&self, tokens: usize) -> Answer {
        let mut seed = digest::Context::new(&digest::SHA256);
        seed.update(self.model.as_bytes());
        for text in &self.texts {
            seed.update(&(text.len() as u64).to_be_bytes());
            seed.update(text.as_bytes());
        }
        let seed = seed.finish();
        let seed = seed.as_ref();
        let question = self.texts.last().map_or("", String::as_str);

        let thought = if self.thinking { thought(seed) } else { Vec::new() };
        let calls = self.calls(question, seed);
        let mut finish = Finish::End;
        let mut pieces = if !calls.is_empty() {
            finish = Finish::Tools;
            let words = ["I", " will", " look", " that", " up."].map(ToOwned::to_owned);
            if self.preface { words.to_vec() } else { Vec::new() }
        } else if let Some(schema) = &self.schema {
            cut(&instance(schema, seed).to_string())
        } else {
            words(question, seed, tokens)
        };
        if finish == Finish::End
            && let Some((kept, stop)) = self.stopped(&pieces.concat())
        {
            pieces = respread(&pieces, kept);
            finish = Finish::Stop(stop);
        }
        if let Some(limit) = self.limit.filter(|limit| *limit < pieces.len() && finish != Finish::Tools) {
            pieces.truncate(limit);
            finish = Finish::Length;
        }
        let call_tokens: usize = calls.iter().map(|call| call.pieces().len()).sum();
        let thought_tokens = thought.len();
        Answer {
            input_tokens: self.texts.iter().map(|text| count_tokens(text)).sum(),
            output_tokens: pieces.len() + call_tokens + thought_tokens,
            thought_tokens,
            thought,
            pieces,
            calls,
            finish,
            id: hex::encode(seed.get(..12).unwrap_or_default()),
        }
    }

    fn calls(&self, question: &str, seed: &[u8]) -> Vec<Call> {
        if self.tools.is_empty() || self.results && matches!(self.choice, Choice::Auto) {
            return Vec::new();
        }
        let mut chosen: Vec<&Tool> = match &self.choice {
            Choice::None => return Vec::new(),
            Choice::Named(name) => self.tools.iter().filter(|tool| tool.name == *name).collect(),
            Choice::Auto | Choice::Any => {
                // One call for each time a tool is named.
                let word = |c: char| !c.is_alphanumeric() && c != '_' && c != '-';
                let named =
                    question.split(word).filter_map(|w| self.tools.iter().find(|tool| tool.name == w));
                named.take(CALLS_MAX).collect()
            }
        };
        if chosen.is_empty() && self.choice == Choice::Any {
            chosen.extend(self.tools.first());
        }
        if !self.parallel {
            chosen.truncate(1);
        }
        let call = |(index, tool): (usize, &Tool)| {
            let own = sha256(&[seed, b"call", &index.to_be_bytes()].concat());
            let id = hex::encode(own.get(..12).unwrap_or_default());
            Call { name: tool.name.clone(), arguments: instance(&tool.schema, &own), id }
        };
        chosen.into_iter().enumerate().map(call).collect()
    }

    /// How many bytes stay when the first stop sequence ends the text, and which it is.
    fn stopped(&self, text: &str) -> Option<(usize, String)> {
        let hits = self.stops.iter().filter(|stop| !stop.is_empty());
        hits.filter_map(|stop| Some((text.find(stop.as_str())?, stop.clone()))).min_by_key(|(at, _)| *at)
    }
}

/// The signature of a thought: what it is of can be checked when it comes back.
pub(super) fn signature(thought: &str) -> String {
    STANDARD.encode(sha256(&[b"quorate demo thought".as_slice(), thought.as_bytes()].concat()))
}

/// The tokens of a text.
pub(super) fn count_tokens(text: &str) -> usize {
    text.split_whitespace().count().max(1)
}

/// Feature hashing: each word adds to one place, so texts that share words are close. Unit length.
pub(super) fn embedding(words: &[String], dimensions: usize) -> Vec<f32> {
    let mut vector = vec![0.0_f32; dimensions];
    for word in words {
        if let Some((head, _)) = sha256(word.as_bytes()).split_first_chunk::<8>() {
            let hash = u64::from_be_bytes(*head);
            let place = usize::try_from((hash >> 1) % dimensions as u64).unwrap_or_default();
            if let Some(slot) = vector.get_mut(place) {
                *slot += if hash & 1 == 0 { 1.0 } else { -1.0 };
            }
        }
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    } else if let Some(first) = vector.first_mut() {
        // Words that cancel out, or none: still a unit vector, as clients expect.
        *first = 1.0;
    }
    vector
}

/// The words of a text to embed.
pub(super) fn embedding_words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_lowercase).collect()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn thought(seed: &[u8]) -> Vec<String> {
    let mut words = vec!["Hm:".to_owned()];
    sentences(&mut words, &[seed, b"thought".as_slice()].concat(), THOUGHT_WORDS);
    words
}

/// An answer of exactly `wanted` words: some of the question's, then sentences picked by the digest.
fn words(question: &str, seed: &[u8], wanted: usize) -> Vec<String> {
    let mut words: Vec<String> = vec!["You".to_owned(), " asked:".to_owned()];
    words.extend(question.split_whitespace().take(ECHO_WORDS).map(|word| {
        let mut end = word.len().min(ECHO_WORD_BYTES);
        while !word.is_char_boundary(end) {
            end -= 1;
        }
        format!(" {}", word.get(..end).unwrap_or_default())
    }));
    words.push(" —".to_owned());
    sentences(&mut words, seed, wanted);
    words
}

fn sentences(words: &mut Vec<String>, seed: &[u8], wanted: usize) {
    let mut block = 0_u64;
    while words.len() < wanted {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(seed);
        context.update(&block.to_be_bytes());
        let picks = context.finish();
        for pick in picks.as_ref().chunks_exact(3) {
            for (byte, parts) in pick.iter().zip([&SUBJECTS, &VERBS, &OBJECTS]) {
                let part = parts.get(usize::from(*byte) % parts.len()).copied().unwrap_or_default();
                words.extend(part.split(' ').map(|word| format!(" {word}")));
            }
        }
        block += 1;
    }
    words.truncate(wanted);
}

/// A text in small pieces, at characters' boundaries.
fn cut(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for c in text.chars() {
        if piece.len() + c.len_utf8() > JSON_PIECE_BYTES {
            pieces.push(std::mem::take(&mut piece));
        }
        piece.push(c);
    }
    pieces.push(piece);
    pieces
}

/// The first `kept` bytes of the pieces.
fn respread(pieces: &[String], kept: usize) -> Vec<String> {
    let mut left = kept;
    let mut out = Vec::new();
    for piece in pieces {
        let take = left.min(piece.len());
        left -= take;
        if take > 0 {
            out.push(piece.get(..take).unwrap_or_default().to_owned());
        }
    }
    out
}

/// A value that a JSON schema allows: objects with all their properties, two items in arrays, the first alternative.
fn instance(schema: &Value, seed: &[u8]) -> Value {
    Maker { root: schema, seed, drawn: 0 }.make(schema, SCHEMA_DEPTH_MAX)
}

struct Maker<'a> {
    root: &'a Value,
    seed: &'a [u8],
    drawn: usize,
}

impl Maker<'_> {
    fn draw(&mut self) -> usize {
        let byte = self.seed.get(self.drawn % self.seed.len().max(1)).copied().unwrap_or_default();
        self.drawn += 1;
        usize::from(byte)
    }

    fn make(&mut self, schema: &Value, depth: usize) -> Value {
        let Value::Object(object) = schema else { return json!({}) };
        if depth == 0 {
            return Value::Null;
        }
        if let Some(pointer) = object.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
            let root = self.root;
            return root.pointer(pointer).map_or(Value::Null, |target| self.make(target, depth - 1));
        }
        if let Some(value) = object.get("const") {
            return value.clone();
        }
        if let Some(values) = object.get("enum").and_then(Value::as_array).filter(|values| !values.is_empty())
        {
            let at = self.draw() % values.len();
            return values.get(at).cloned().unwrap_or_default();
        }
        for many in ["anyOf", "oneOf", "allOf"] {
            if let Some(first) = object.get(many).and_then(Value::as_array).and_then(|list| list.first()) {
                return self.make(first, depth - 1);
            }
        }
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.to_lowercase(),
            Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str).unwrap_or("null").to_owned(),
            _ if object.contains_key("items") => "array".to_owned(),
            _ => "object".to_owned(),
        };
        let bound = |name: &str| object.get(name).and_then(Value::as_i64);
        match kind.as_str() {
            "string" => self.text(object),
            "integer" => {
                let low = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|n| n + 1)).unwrap_or(1);
                let high = bound("maximum").unwrap_or(low + 40).max(low);
                let span = usize::try_from(high - low).unwrap_or_default() + 1;
                json!(low + i64::try_from(self.draw() % span).unwrap_or_default())
            }
            "number" => match (bound("minimum"), bound("maximum")) {
                (None, None) => json!(self.draw() as f64 / 4.0),
                (low, high) => json!(low.or(high)),
            },
            "boolean" => json!(self.draw().is_multiple_of(2)),
            "array" => {
                let count = bound("minItems").unwrap_or(2).min(bound("maxItems").unwrap_or(8)).clamp(0, 64);
                let empty = json!({"type": "string"});
                let items = object.get("items").unwrap_or(&empty);
                (0..count).map(|_| self.make(items, depth - 1)).collect()
            }
            "null" => Value::Null,
            _ => {
                let none = Map::new();
                let properties = object.get("properties").and_then(Value::as_object).unwrap_or(&none);
                let made = properties.iter().map(|(name, inner)| (name.clone(), self.make(inner, depth - 1)));
                Value::Object(made.collect())
            }
        }
    }

    fn text(&mut self, object: &Map<String, Value>) -> Value {
        let drawn = self.draw();
        let text = match object.get("format").and_then(Value::as_str) {
            Some("date-time") => "2026-01-02T03:04:05Z",
            Some("date") => "2026-01-02",
            Some("time") => "03:04:05Z",
            Some("email") => "heron@example.org",
            Some("uuid") => "6f2c2a52-6b3e-4f0e-9d57-0c9d3f7f5a11",
            Some("uri") => "https://example.org/",
            _ => NAMES.get(drawn % NAMES.len()).copied().unwrap_or_default(),
        };
        let least = object.get("minLength").and_then(Value::as_u64).unwrap_or_default();
        let mut text = text.to_owned();
        while (text.chars().count() as u64) < least.min(4096) {
            text.push('o');
        }
        json!(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: &str) -> Ask {
        let tool = |name: &str| Tool {
            name: name.into(),
            schema: json!({"type": "object", "properties": {"city": {"type": "string"}}}),
        };
        let tools = vec![tool("get_weather"), tool("get_time")];
        Ask { tools, ..Ask::plain("m", vec![question.into()]) }
    }

    #[test]
    fn tools_are_called_when_they_are_named_or_demanded() {
        let names = |ask: &Ask| ask.answer(8).calls.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert!(names(&ask("hello")).is_empty());
        let both = ask("call get_time, get_weather and get_time");
        assert_eq!(names(&both), ["get_time", "get_weather", "get_time"]);
        let ids: Vec<_> = both.answer(8).calls.into_iter().map(|c| c.id).collect();
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
        assert_eq!(names(&Ask { parallel: false, ..both }), ["get_time"]);
        assert_eq!(names(&Ask { choice: Choice::Any, ..ask("hello") }), ["get_weather"]);
        assert_eq!(names(&Ask { choice: Choice::Named("get_time".into()), ..ask("x") }), ["get_time"]);
        assert!(names(&Ask { choice: Choice::None, ..ask("get_time") }).is_empty());
        assert!(names(&Ask { results: true, ..ask("get_time") }).is_empty());
    }

    #[test]
    fn an_instance_has_what_its_schema_wants() {
        let schema = json!({
            "type": "object",
            "properties": {
                "kind": {"enum": ["a", "b"]},
                "n": {"type": "integer", "minimum": 3, "maximum": 4},
                "list": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 3},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                "long": {"type": "STRING", "minLength": 9},
            },
            "$defs": {"leaf": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
        });
        let made = instance(&schema, &sha256(b"x"));
        assert!(["a", "b"].contains(&made["kind"].as_str().unwrap()));
        assert!([3, 4].contains(&made["n"].as_i64().unwrap()));
        assert_eq!(made["list"].as_array().unwrap().len(), 3);
        assert!(made["list"][2]["ok"].is_boolean() && made["maybe"].is_null());
        assert!(made["long"].as_str().unwrap().chars().count() >= 9);
        let endless = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
        assert_eq!(instance(&endless, b"x"), Value::Null);
    }

    #[test]
    fn a_stop_sequence_and_a_limit_cut_the_answer() {
        let whole = Ask { tools: vec![], ..ask("one two three four") };
        let text = whole.answer(12).pieces.concat();
        let cut = Ask { stops: vec!["zz".into(), "three".into(), "four".into()], ..whole };
        let answer = cut.answer(12);
        assert_eq!(answer.finish, Finish::Stop("three".into()));
        assert_eq!(text.strip_prefix(&answer.pieces.concat()).unwrap().find("three"), Some(0));
        let short = Ask { limit: Some(3), stops: vec![], ..cut };
        assert_eq!((short.answer(12).finish, short.answer(12).pieces.len()), (Finish::Length, 3));
    }
}
