//! JSON as this crate reads and writes it.
//!
//! Reading: an [`Object`]'s fields are taken one by one, and [`Object::finish`] refuses what nobody took, by name: so
//! nothing is dropped by oversight. A key that appears twice is refused. `null` counts as absent.
//!
//! Carrying: numbers, schemas and tool arguments stay the bytes they came in ([`Raw`]), but for white space: no number
//! loses digits and no object its order, and what is carried never holds a line break that could end a line of an event.
use crate::common::At;
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::limits::{ITEMS_MAX, PATH_BYTES_MAX};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

/// A valid JSON text without white space outside strings.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Raw(String);

impl Raw {
    /// Reads a text that holds one JSON value.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str::<&RawValue>(text).ok().map(|raw| Self(compact(raw.get())))
    }

    pub(crate) fn empty_object() -> Self {
        Self("{}".into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_object(&self) -> bool {
        self.0.starts_with('{')
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.parse::<f64>().is_ok_and(|n| n == 0.0)
    }

    /// Whether it is a number above another.
    pub(crate) fn is_above(&self, most: f64) -> bool {
        self.0.parse::<f64>().is_ok_and(|n| n > most)
    }

    /// As a value, to be read.
    pub(crate) fn value<'a>(&'a self, at: &str) -> Value<'a> {
        Value { text: &self.0, at: at.to_owned() }
    }
}

/// Drops white space outside strings of a valid text.
fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut string, mut escaped) = (false, false);
    for char in text.chars() {
        if string {
            out.push(char);
            if escaped {
                escaped = false;
            } else if char == '\\' {
                escaped = true;
            } else if char == '"' {
                string = false;
            }
        } else if !matches!(char, ' ' | '\t' | '\r' | '\n') {
            string = char == '"';
            out.push(char);
        }
    }
    out
}

/// One value within a text, and where.
#[derive(Clone)]
pub(crate) struct Value<'a> {
    text: &'a str,
    at: String,
}

impl<'a> Value<'a> {
    /// A whole body or event.
    pub(crate) fn root(bytes: &'a [u8]) -> Result<Self, DialectError> {
        let not_json = || DialectError::NotJson { field: String::new() };
        let text = std::str::from_utf8(bytes).map_err(|_| not_json())?;
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| not_json())?;
        Ok(Self { text: raw.get(), at: String::new() })
    }

    /// Its path.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// The bytes it stands in, as a part of the text that was read.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    pub(crate) fn is_string(&self) -> bool {
        self.text.starts_with('"')
    }

    pub(crate) fn is_array(&self) -> bool {
        self.text.starts_with('[')
    }

    pub(crate) fn is_object(&self) -> bool {
        self.text.starts_with('{')
    }

    fn is_null(&self) -> bool {
        self.text == "null"
    }

    /// An error of another form.
    pub(crate) fn expected(&self, expected: &'static str) -> DialectError {
        DialectError::Malformed { field: self.at.clone(), expected }
    }

    /// A refusal of the field.
    pub(crate) fn untranslatable(&self, target: Dialect, why: &'static str) -> DialectError {
        DialectError::Untranslatable { field: self.at.clone(), target, why }
    }

    fn parse<T: Deserialize<'a>>(&self, expected: &'static str) -> Result<T, DialectError> {
        serde_json::from_str(self.text).map_err(|_| self.expected(expected))
    }

    pub(crate) fn string(&self) -> Result<String, DialectError> {
        self.parse("a string")
    }

    pub(crate) fn bool(&self) -> Result<bool, DialectError> {
        self.parse("true or false")
    }

    pub(crate) fn u64(&self) -> Result<u64, DialectError> {
        self.parse("a whole number")
    }

    /// A count in proto JSON, which writes 64-bit integers as strings, and takes `5.0`.
    pub(crate) fn proto_u64(&self) -> Result<u64, DialectError> {
        let text = if self.is_string() { self.string()? } else { self.text.to_owned() };
        let whole = match text.split_once('.') {
            Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole,
            _ => &text,
        };
        whole.parse().map_err(|_| self.expected("a whole number"))
    }

    /// What it holds, and where.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, DialectError>,
    ) -> Result<At<T>, DialectError> {
        Ok(At::new(read(self)?, &self.at))
    }

    /// A list of strings, unless there are none in it.
    pub(crate) fn some_strings(&self) -> Result<Option<At<Vec<String>>>, DialectError> {
        let list = self.read(Value::strings)?;
        Ok((!list.v.is_empty()).then_some(list))
    }

    /// A number, as written.
    pub(crate) fn number(&self) -> Result<Raw, DialectError> {
        if self.text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            return Ok(Raw(self.text.to_owned()));
        }
        Err(self.expected("a number"))
    }

    /// Whatever it is, as written.
    pub(crate) fn raw(&self) -> Raw {
        Raw(compact(self.text))
    }

    /// An object, as written.
    pub(crate) fn raw_object(&self) -> Result<Raw, DialectError> {
        if self.is_object() { Ok(self.raw()) } else { Err(self.expected("an object")) }
    }

    pub(crate) fn array(&self) -> Result<Vec<Value<'a>>, DialectError> {
        let Items { items, cut } = self.parse("an array")?;
        if cut {
            return Err(DialectError::TooLarge { what: "an array", max: ITEMS_MAX });
        }
        let value =
            |(i, raw): (usize, &'a RawValue)| Value { text: raw.get(), at: format!("{}[{i}]", self.at) };
        Ok(items.into_iter().enumerate().map(value).collect())
    }

    pub(crate) fn strings(&self) -> Result<Vec<String>, DialectError> {
        self.array()?.iter().map(Value::string).collect()
    }

    pub(crate) fn object(&self) -> Result<Object<'a>, DialectError> {
        let Entries { entries, cut } = self.parse("an object")?;
        if cut {
            return Err(DialectError::TooLarge { what: "an object", max: ITEMS_MAX });
        }
        let mut seen = BTreeSet::new();
        for (key, _) in &entries {
            if !seen.insert(key.as_ref()) {
                return Err(DialectError::Twice { field: join(&self.at, key) });
            }
        }
        Ok(Object { at: self.at.clone(), entries })
    }
}

/// The path of a key. Keys are the caller's: bounded, and without control characters.
fn join(at: &str, key: &str) -> String {
    let mut path = String::with_capacity(at.len() + key.len() + 1);
    path.push_str(at);
    if !at.is_empty() {
        path.push('.');
    }
    path.extend(key.chars().filter(|c| !c.is_control()).take(PATH_BYTES_MAX / 4));
    path
}

/// An object that is being taken apart.
pub(crate) struct Object<'a> {
    at: String,
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Takes a field out. `null` is absent.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value<'a>> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        let (_, raw) = self.entries.remove(at);
        let value = Value { text: raw.get(), at: join(&self.at, key) };
        (!value.is_null()).then_some(value)
    }

    /// The first of two names of the same field: proto JSON takes both.
    pub(crate) fn take_either(&mut self, one: &str, other: &str) -> Option<Value<'a>> {
        self.take(one).or_else(|| self.take(other))
    }

    /// Takes a field that must be there.
    pub(crate) fn need(&mut self, key: &str) -> Result<Value<'a>, DialectError> {
        self.take(key).ok_or_else(|| DialectError::Missing { field: join(&self.at, key) })
    }

    /// Takes a field, and remembers where it stood.
    pub(crate) fn take_at<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Value<'a>) -> Result<T, DialectError>,
    ) -> Result<Option<At<T>>, DialectError> {
        self.take(key).map(|value| value.read(read)).transpose()
    }

    pub(crate) fn take_string(&mut self, key: &str) -> Result<Option<String>, DialectError> {
        self.take(key).map(|v| v.string()).transpose()
    }

    pub(crate) fn need_string(&mut self, key: &str) -> Result<String, DialectError> {
        self.need(key)?.string()
    }

    pub(crate) fn take_bool(&mut self, key: &str) -> Result<Option<bool>, DialectError> {
        self.take(key).map(|v| v.bool()).transpose()
    }

    pub(crate) fn take_u64(&mut self, key: &str) -> Result<Option<u64>, DialectError> {
        self.take(key).map(|v| v.u64()).transpose()
    }

    pub(crate) fn take_array(&mut self, key: &str) -> Result<Vec<Value<'a>>, DialectError> {
        Ok(self.take(key).map(|v| v.array()).transpose()?.unwrap_or_default())
    }

    pub(crate) fn take_object(&mut self, key: &str) -> Result<Option<Object<'a>>, DialectError> {
        self.take(key).map(|v| v.object()).transpose()
    }

    /// A field's text, `null` too; it stays.
    pub(crate) fn raw(&self, key: &str) -> Option<&'a str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, raw)| raw.get())
    }

    /// A key as it stands in the text; `None` if it is absent or escaped.
    pub(crate) fn key(&self, key: &str) -> Option<&'a str> {
        self.entries.iter().find_map(|(k, _)| match k {
            Cow::Borrowed(text) if *text == key => Some(*text),
            _ => None,
        })
    }

    /// All fields, in their order.
    pub(crate) fn into_fields(self) -> Vec<(String, Value<'a>)> {
        let value = |key: &str, raw: &'a RawValue| Value { text: raw.get(), at: join(&self.at, key) };
        self.entries.iter().map(|(key, raw)| (key.to_string(), value(key, raw))).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes fields that are hints without effect on the answer.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        self.entries.retain(|(key, _)| !keys.contains(&key.as_ref()));
    }

    /// Takes a field that may only have a value that changes nothing.
    pub(crate) fn only(
        &mut self,
        key: &str,
        harmless: &[&str],
        target: Dialect,
        why: &'static str,
    ) -> Result<(), DialectError> {
        match self.take(key) {
            Some(value) if !harmless.contains(&value.raw().as_str()) => {
                Err(value.untranslatable(target, why))
            }
            _ => Ok(()),
        }
    }

    /// An error about the object.
    pub(crate) fn expected(&self, expected: &'static str) -> DialectError {
        DialectError::Malformed { field: self.at.clone(), expected }
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self, target: Dialect) -> Result<(), DialectError> {
        for (key, raw) in &self.entries {
            if raw.get() != "null" {
                let field = join(&self.at, key);
                return Err(DialectError::Untranslatable { field, target, why: "no field there means this" });
            }
        }
        Ok(())
    }
}

/// The fields of an object. What is beyond the bound is read over, and noted.
struct Entries<'a> {
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
    cut: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < ITEMS_MAX {
                    let Some(Key(key)) = map.next_key()? else { return Ok(Entries { entries, cut: false }) };
                    entries.push((key, map.next_value()?));
                }
                let mut cut = false;
                while map.next_entry::<IgnoredAny, &RawValue>()?.is_some() {
                    cut = true;
                }
                Ok(Entries { entries, cut })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The items of an array, likewise.
struct Items<'a> {
    items: Vec<&'a RawValue>,
    cut: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < ITEMS_MAX {
                    let Some(item) = list.next_element()? else { return Ok(Items { items, cut: false }) };
                    items.push(item);
                }
                let mut cut = false;
                // each item is read over without recursion, however deep it is
                while list.next_element::<&RawValue>()?.is_some() {
                    cut = true;
                }
                Ok(Items { items, cut })
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// A value to be written.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(u64),
    Str(String),
    Raw(Raw),
    Arr(Vec<Json>),
    Obj(Obj),
}

impl Json {
    pub(crate) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Int(int) => out.push_str(&int.to_string()),
            Self::Str(text) => write_string(text, out),
            Self::Raw(raw) => out.push_str(raw.as_str()),
            Self::Arr(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Obj(Obj(entries)) => {
                out.push('{');
                for (i, (key, value)) in entries.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_string(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out);
        f.write_str(&out)
    }
}

/// A string as RFC 8259 §7 wants it.
fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{0}'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => out.push(char),
        }
    }
    out.push('"');
}

macro_rules! into_json {
    ($($from:ty => |$v:ident| $json:expr),+ $(,)?) => {
        $(impl From<$from> for Json { fn from($v: $from) -> Self { $json } })+
    };
}
into_json!(
    bool => |v| Self::Bool(v),
    u64 => |v| Self::Int(v),
    &str => |v| Self::Str(v.to_owned()),
    String => |v| Self::Str(v),
    &String => |v| Self::Str(v.clone()),
    Raw => |v| Self::Raw(v),
    &Raw => |v| Self::Raw(v.clone()),
    Obj => |v| Self::Obj(v),
    Vec<Json> => |v| Self::Arr(v),
    &[String] => |v| Self::Arr(v.iter().map(Json::from).collect()),
);

/// An object to be written, in the order it was built.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Obj(Vec<(&'static str, Json)>);

impl Obj {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With a `type`, as most blocks and events start.
    pub(crate) fn of_type(name: &'static str) -> Self {
        Self::new().with("type", name)
    }

    pub(crate) fn with(mut self, key: &'static str, value: impl Into<Json>) -> Self {
        self.put(key, value);
        self
    }

    pub(crate) fn opt(mut self, key: &'static str, value: Option<impl Into<Json>>) -> Self {
        if let Some(value) = value {
            self.put(key, value);
        }
        self
    }

    pub(crate) fn put(&mut self, key: &'static str, value: impl Into<Json>) {
        self.0.push((key, value.into()));
    }

    /// Its first field, if that is `type`.
    pub(crate) fn type_name(&self) -> &str {
        match self.0.first() {
            Some(("type", Json::Str(name))) => name,
            _ => "",
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Absent if there is nothing in it.
    pub(crate) fn unless_empty(self) -> Option<Self> {
        (!self.is_empty()).then_some(self)
    }

    pub(crate) fn text(self) -> String {
        Json::Obj(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_named() {
        let value = Value::root(br#" {"a": 1, "b": {"c": [true, {"d": "x"}]}, "n": null} "#).unwrap();
        let mut object = value.object().unwrap();
        assert_eq!(object.take_u64("a").unwrap(), Some(1));
        let mut b = object.take_object("b").unwrap().unwrap();
        let c = b.take_array("c").unwrap();
        let d = c[1].object().unwrap().finish(Dialect::Gemini).unwrap_err();
        let why = "no field there means this";
        assert_eq!(
            d,
            DialectError::Untranslatable { field: "b.c[1].d".into(), target: Dialect::Gemini, why }
        );
        assert_eq!(c[0].u64().unwrap_err().to_string(), "b.c[0]: expected a whole number");
        object.finish(Dialect::Gemini).unwrap();
    }

    #[test]
    fn a_key_twice_is_refused_escaped_or_not() {
        let value = Value::root(br#"{"model":"a","\u006dodel":"b"}"#).unwrap();
        assert_eq!(value.object().err(), Some(DialectError::Twice { field: "model".into() }));
    }

    #[test]
    fn raw_keeps_digits_order_and_strings() {
        let raw =
            Raw::parse("{\n \"z\" : 1.10, \"a\": [ 123456789012345678901234567890 , \"x \\\" y\\n\" ] }")
                .unwrap();
        assert_eq!(raw.as_str(), r#"{"z":1.10,"a":[123456789012345678901234567890,"x \" y\n"]}"#);
        assert!(Raw::parse("{}x").is_none());
    }

    #[test]
    fn strings_are_written_as_serde_json_does() {
        let text: String = (0..0x300).filter_map(char::from_u32).collect();
        let mut out = String::new();
        write_string(&text, &mut out);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
