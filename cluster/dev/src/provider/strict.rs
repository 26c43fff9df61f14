//! Request bodies read strictly: every field is known and well typed, or the reader says which is not.
//!
//! One reader for all dialects; each dialect writes a [`Mistake`] in its vendor's own words. `null` counts as absent, as
//! the vendors' SDKs send it for options that were not set.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// What is wrong with a body, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) at: Vec<Step>,
    pub(super) what: What,
}

/// One step into a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Name(String),
    Index(usize),
}

/// The kind of a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The body is no JSON object.
    NotJson,
    Missing,
    Unknown,
    /// The expected type, with its article.
    Type(&'static str),
    /// What would be allowed: "must be" stands before it.
    Range(String),
    /// A rule between fields, with the vendor's code for it where it has one.
    Rule(&'static str, String),
}

impl Mistake {
    /// `messages[0].role`
    pub(super) fn bracketed(&self) -> String {
        let mut path = String::new();
        for step in &self.at {
            let _infallible = match step {
                Step::Name(name) if path.is_empty() => write!(path, "{name}"),
                Step::Name(name) => write!(path, ".{name}"),
                Step::Index(index) => write!(path, "[{index}]"),
            };
        }
        path
    }

    /// `messages.0.role`
    pub(super) fn dotted(&self) -> String {
        let step = |step: &Step| match step {
            Step::Name(name) => name.clone(),
            Step::Index(index) => index.to_string(),
        };
        self.at.iter().map(step).collect::<Vec<_>>().join(".")
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Node<'a> {
    pub(super) value: &'a Value,
    at: Vec<Step>,
}

/// An object whose names are all known.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: Vec<Step>,
}

/// Reads a body.
pub(super) fn parse(body: &[u8]) -> Result<Value, Mistake> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(Mistake { at: vec![], what: What::NotJson }),
    }
}

impl<'a> Node<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, at: Vec::new() }
    }

    pub(super) fn wrong(&self, what: What) -> Mistake {
        Mistake { at: self.at.clone(), what }
    }

    pub(super) fn range(&self, allowed: impl Into<String>) -> Mistake {
        self.wrong(What::Range(allowed.into()))
    }

    /// An object with no other names than these.
    pub(super) fn object(&self, known: &[&str]) -> Result<Fields<'a>, Mistake> {
        let fields = self.open_object()?;
        match fields.map.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(fields.below(name, What::Unknown)),
            None => Ok(fields),
        }
    }

    /// An object with any names.
    pub(super) fn open_object(&self) -> Result<Fields<'a>, Mistake> {
        match self.value {
            Value::Object(map) => Ok(Fields { map, at: self.at.clone() }),
            _ => Err(self.wrong(What::Type("an object"))),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str, Mistake> {
        self.value.as_str().ok_or_else(|| self.wrong(What::Type("a string")))
    }

    /// One of some words.
    pub(super) fn word(&self, allowed: &[&'static str]) -> Result<&'static str, Mistake> {
        let text = self.text()?;
        allowed
            .iter()
            .find(|word| **word == text)
            .copied()
            .ok_or_else(|| self.range(format!("one of {}", allowed.join(", "))))
    }

    pub(super) fn flag(&self) -> Result<bool, Mistake> {
        self.value.as_bool().ok_or_else(|| self.wrong(What::Type("a boolean")))
    }

    pub(super) fn number(&self, low: f64, high: f64) -> Result<f64, Mistake> {
        match self.value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(number),
            Some(_) => Err(self.range(format!("from {low} to {high}"))),
            None => Err(self.wrong(What::Type("a number"))),
        }
    }

    /// A whole number from `low`.
    pub(super) fn count(&self, low: u64) -> Result<usize, Mistake> {
        match self.value.as_i64() {
            Some(number) => u64::try_from(number)
                .ok()
                .filter(|number| *number >= low)
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| self.range(format!("at least {low}"))),
            None => Err(self.wrong(What::Type("an integer"))),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<Node<'a>>, Mistake> {
        let Value::Array(items) = self.value else { return Err(self.wrong(What::Type("an array"))) };
        let item = |(index, value)| {
            let mut at = self.at.clone();
            at.push(Step::Index(index));
            Node { value, at }
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A list of strings.
    pub(super) fn texts(&self) -> Result<Vec<String>, Mistake> {
        self.list()?.iter().map(|node| node.text().map(ToOwned::to_owned)).collect()
    }
}

impl<'a> Fields<'a> {
    fn below(&self, name: &str, what: What) -> Mistake {
        let mut at = self.at.clone();
        at.push(Step::Name(name.to_owned()));
        Mistake { at, what }
    }

    /// A mistake at one field.
    pub(super) fn wrong(&self, name: &str, what: What) -> Mistake {
        self.below(name, what)
    }

    /// A field, unless it is absent or `null`.
    pub(super) fn get(&self, name: &str) -> Option<Node<'a>> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        let mut at = self.at.clone();
        at.push(Step::Name(name.to_owned()));
        Some(Node { value, at })
    }

    pub(super) fn need(&self, name: &str) -> Result<Node<'a>, Mistake> {
        self.get(name).ok_or_else(|| self.below(name, What::Missing))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Mistake> {
        self.get(name).map_or(Ok(false), |node| node.flag())
    }

    /// Checks a number if it is there.
    pub(super) fn number(&self, name: &str, low: f64, high: f64) -> Result<(), Mistake> {
        self.get(name).map_or(Ok(()), |node| node.number(low, high).map(drop))
    }

    pub(super) fn count(&self, name: &str, low: u64) -> Result<Option<usize>, Mistake> {
        self.get(name).map(|node| node.count(low)).transpose()
    }

    /// A text that is not empty.
    pub(super) fn name(&self, name: &str) -> Result<&'a str, Mistake> {
        let node = self.need(name)?;
        let text = node.text()?;
        if text.is_empty() { Err(node.wrong(What::Type("a non-empty string"))) } else { Ok(text) }
    }
}
