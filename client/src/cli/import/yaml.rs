//! YAML as a tree of values with their lines, so that a report can name each. Keys are strings; anchors, merge keys and tags
//! beyond the core schema are read as far as LiteLLM's own loader reads them.

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};

/// How deep a configuration may nest.
const DEPTH_MAX: usize = 64;

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
}

pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    let documents = MarkedYaml::load_from_str(text)
        .map_err(|e| YamlError::Syntax { line: e.marker().line(), reason: e.info().to_owned() })?;
    let [document] = documents.as_slice() else { return Err(YamlError::NoMapping) };
    let node = convert(document, DEPTH_MAX)?;
    if matches!(node.value, Value::Map(_)) { Ok(node) } else { Err(YamlError::NoMapping) }
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
            let mut entries = Vec::new();
            for (key, node) in map {
                let at = key.span.start.line();
                let key = match &key.data {
                    YamlData::Value(Scalar::String(key)) => key.to_string(),
                    YamlData::Value(Scalar::Integer(key)) => key.to_string(),
                    _ => continue,
                };
                let node = convert(node, depth - 1)?;
                // `<<: *defaults`: what stands here itself goes before what is merged in.
                if key == "<<" {
                    if let Value::Map(merged) = node.value {
                        entries.extend(merged);
                    }
                    continue;
                }
                entries.push(Entry { key, line: at, node });
            }
            let mut own: Vec<Entry> = Vec::new();
            for entry in entries {
                own.retain(|known| known.key != entry.key);
                own.push(entry);
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
