//! YAML as a tree of values with their lines, so that a report can name each. Keys are strings; anchors, merge keys and tags
//! beyond the core schema are read as far as LiteLLM's own loader reads them.
//!
//! A small file can stand for a huge one. The loader bounds how many values aliases come to; what each of them may hold, and
//! how deep a line alone can nest, is looked at before.

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// How deep a configuration may nest.
const DEPTH_MAX: usize = 64;
/// Longest text of a file with aliases. The loader copies a hundred thousand values at most.
const ALIASED_BYTES_MAX: usize = 1024;

/// A value and its line. No `Debug`: a configuration holds keys.
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

pub(super) enum Value {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// Why a file cannot be read; it repeats nothing of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum YamlError {
    #[error("line {line}: not YAML: {reason}")]
    Syntax { line: usize, reason: String },
    #[error("not one document with a mapping")]
    NoMapping,
    #[error("line {line}: nested deeper than {DEPTH_MAX}")]
    TooDeep { line: usize },
    #[error("line {line}: a text of more than {ALIASED_BYTES_MAX} bytes in a file with aliases")]
    TooLong { line: usize },
}

pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    if let Some(line) = text.lines().position(is_deep) {
        return Err(YamlError::TooDeep { line: line + 1 });
    }
    if let Cow::Owned(plain) = without_aliases(text) {
        load(&plain)?.iter().try_for_each(short)?;
    }
    let documents = load(text)?;
    let [document] = documents.as_slice() else { return Err(YamlError::NoMapping) };
    let node = convert(document, DEPTH_MAX)?;
    if matches!(node.value, Value::Map(_)) { Ok(node) } else { Err(YamlError::NoMapping) }
}

fn load(text: &str) -> Result<Vec<MarkedYaml<'_>>, YamlError> {
    MarkedYaml::load_from_str(text)
        .map_err(|e| YamlError::Syntax { line: e.marker().line(), reason: e.info().to_owned() })
}

/// `- - - x` nests without indentation, which a file's length would bound.
fn is_deep(line: &str) -> bool {
    let marks = line.bytes().take_while(|b| b" \t-?:".contains(b)).filter(|b| b"-?:".contains(b));
    marks.count() > DEPTH_MAX
}

/// The file with words in place of its aliases, for a look at each value where it stands. Borrowed: it has none.
fn without_aliases(text: &str) -> Cow<'_, str> {
    let mut bytes = text.bytes().peekable();
    let mut out = Vec::new();
    let mut any = false;
    while let Some(byte) = bytes.next() {
        let alias = byte == b'*' && bytes.peek().is_some_and(|next| !next.is_ascii_whitespace());
        any |= alias;
        out.push(if alias { b'_' } else { byte });
    }
    if any && text.contains('&') {
        Cow::Owned(String::from_utf8(out).unwrap_or_default())
    } else {
        Cow::Borrowed(text)
    }
}

/// Whether all texts are short.
fn short(yaml: &MarkedYaml<'_>) -> Result<(), YamlError> {
    match &yaml.data {
        YamlData::Value(Scalar::String(text)) if text.len() > ALIASED_BYTES_MAX => {
            Err(YamlError::TooLong { line: yaml.span.start.line() })
        }
        YamlData::Sequence(items) => items.iter().try_for_each(short),
        YamlData::Mapping(map) => map.iter().try_for_each(|(key, value)| short(key).and(short(value))),
        YamlData::Tagged(_, inner) => short(inner),
        _ => Ok(()),
    }
}

fn convert(yaml: &MarkedYaml<'_>, depth: usize) -> Result<Node, YamlError> {
    let line = yaml.span.start.line();
    if depth == 0 {
        return Err(YamlError::TooDeep { line });
    }
    let value = match &yaml.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(flag)) => Value::Flag(*flag),
        #[expect(clippy::cast_precision_loss, reason = "limits and prices are far below 2^53")]
        YamlData::Value(Scalar::Integer(number)) => Value::Number(*number as f64),
        YamlData::Value(Scalar::FloatingPoint(number)) => Value::Number(number.into_inner()),
        YamlData::Value(Scalar::String(text)) => Value::Text(text.to_string()),
        YamlData::Sequence(items) => {
            Value::List(items.iter().map(|item| convert(item, depth - 1)).collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(map) => {
            let (mut own, mut merged) = (Vec::new(), Vec::new());
            for (key, node) in map {
                let at = key.span.start.line();
                let key = match &key.data {
                    YamlData::Value(Scalar::String(key)) => key.to_string(),
                    YamlData::Value(Scalar::Integer(key)) => key.to_string(),
                    YamlData::Value(Scalar::Boolean(key)) => key.to_string(),
                    _ => "(a key that is no text)".to_owned(),
                };
                let node = convert(node, depth - 1)?;
                match (key.as_str(), node.value) {
                    ("<<", Value::Map(entries)) => merged.extend(entries),
                    ("<<", Value::List(maps)) => {
                        for map in maps {
                            if let Value::Map(entries) = map.value {
                                merged.extend(entries);
                            }
                        }
                    }
                    (_, value) => own.push(Entry { key, line: at, node: Node { line: node.line, value } }),
                }
            }
            // `<<: *defaults`: what stands here itself goes before what is merged in, and of that the first.
            let mut known: BTreeSet<String> = own.iter().map(|e: &Entry| e.key.clone()).collect();
            for entry in merged {
                if known.insert(entry.key.clone()) {
                    own.push(entry);
                }
            }
            Value::Map(own)
        }
        YamlData::Tagged(_, inner) => return convert(inner, depth - 1),
        _ => Value::Null,
    };
    Ok(Node { line, value })
}

impl Node {
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number, also one that stands in quotes.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
        .filter(|number: &f64| number.is_finite())
    }

    pub(super) fn flag(&self) -> Option<bool> {
        match &self.value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }
}
