//! JSON schemas of answers: the part of JSON Schema 2020-12 that providers' structured outputs are written in.
//!
//! **Decides** whether an answer's text is JSON of a schema: one of the configuration, or the one that the request itself asks for.
//! **Refuses** a schema with an assertion that it does not know: what cannot be checked is not called checked. `format` and `title`
//! and the like are annotations. `$ref` stays within the document. **Departs from** nothing, but knows no `$dynamicRef`, no
//! `unevaluated…`, no `if`. Patterns are the `regex` crate's: linear in the text.
use super::{Of, scan};
use bytes::Bytes;
use quorate_dialects::Operation;
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Largest schema.
const SCHEMA_BYTES_MAX: u64 = 1024 * 1024;
/// Schemas within one another, and references one behind the other.
const DEPTH_MAX: usize = 64;
/// Steps of one check: combinations can multiply.
const STEPS_MAX: usize = 1_000_000;

const ASSERTIONS: [&str; 28] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "dependentRequired",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "prefixItems",
    "properties",
    "required",
    "type",
    "uniqueItems",
];
const ANNOTATIONS: [&str; 16] = [
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "format",
    "readOnly",
    "title",
    "writeOnly",
];

const UNKNOWN: &str = "its schema says more than can be checked";

/// A schema whose every assertion is known.
pub(crate) struct Schema {
    root: Value,
    patterns: HashMap<String, Regex>,
}

impl Schema {
    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        use std::io::Read as _;
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(SCHEMA_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let root = serde_json::from_str(&text).map_err(|_| format!("{}: not JSON", path.display()))?;
        Self::new(root).map_err(|e| format!("{}: {e}", path.display()))
    }

    pub(crate) fn new(root: Value) -> Result<Self, String> {
        let mut schema = Self { root: Value::Null, patterns: HashMap::new() };
        schema.survey(&root, &root, 0)?;
        schema.root = root;
        Ok(schema)
    }

    /// Finds what is not known, wherever it stands.
    fn survey(&mut self, root: &Value, schema: &Value, depth: usize) -> Result<(), String> {
        let object = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(object) if depth < DEPTH_MAX => object,
            _ => return Err("a schema is no object, or too deep".into()),
        };
        for (key, value) in object {
            let bad = || format!("{key}: not of the form that is understood");
            let known = ASSERTIONS.contains(&key.as_str()) || ANNOTATIONS.contains(&key.as_str());
            match key.as_str() {
                "properties" | "$defs" | "definitions" => {
                    for schema in value.as_object().ok_or_else(bad)?.values() {
                        self.survey(root, schema, depth + 1)?;
                    }
                }
                "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                    for schema in value.as_array().ok_or_else(bad)? {
                        self.survey(root, schema, depth + 1)?;
                    }
                }
                "additionalProperties" | "items" | "not" | "contains" => {
                    self.survey(root, value, depth + 1)?
                }
                "pattern" => {
                    let text = value.as_str().ok_or_else(bad)?;
                    self.patterns.insert(text.to_owned(), super::pattern(text)?);
                }
                "$ref" => {
                    let to = value.as_str().and_then(|r| r.strip_prefix('#')).ok_or_else(bad)?;
                    root.pointer(to).ok_or_else(|| format!("$ref: there is no #{to}"))?;
                }
                "type" => {
                    let one = |v: &Value| v.as_str().is_some_and(|t| kind_is(t, &Value::Null).is_some());
                    let good = one(value) || value.as_array().is_some_and(|all| all.iter().all(one));
                    if !good {
                        return Err(bad());
                    }
                }
                "required" | "enum" => drop(value.as_array().ok_or_else(bad)?),
                "dependentRequired" => drop(value.as_object().ok_or_else(bad)?),
                "maxItems" | "minItems" | "maxLength" | "minLength" | "maxProperties" | "minProperties" => {
                    value.as_u64().ok_or_else(bad)?;
                }
                "maximum" | "minimum" | "exclusiveMaximum" | "exclusiveMinimum" | "multipleOf" => {
                    value.as_f64().ok_or_else(bad)?;
                }
                _ if known => {}
                _ => return Err(format!("{key}: not understood, so it could not be checked")),
            }
        }
        Ok(())
    }

    /// Whether a value is of the schema.
    pub(crate) fn is_met(&self, value: &Value) -> Result<bool, &'static str> {
        let mut steps = 0;
        self.check(&self.root, value, 0, &mut steps)
    }

    fn check(
        &self,
        schema: &Value,
        value: &Value,
        depth: usize,
        steps: &mut usize,
    ) -> Result<bool, &'static str> {
        *steps += 1;
        if depth > DEPTH_MAX || *steps > STEPS_MAX {
            return Err("checking its schema takes too long");
        }
        let object = match schema {
            Value::Bool(all) => return Ok(*all),
            Value::Object(object) => object,
            _ => return Err(UNKNOWN),
        };
        for (key, by) in object {
            let met = match (key.as_str(), value) {
                ("$ref", _) => {
                    let to =
                        by.as_str().and_then(|r| self.root.pointer(r.strip_prefix('#')?)).ok_or(UNKNOWN)?;
                    self.check(to, value, depth + 1, steps)?
                }
                ("type", _) => match by {
                    Value::String(kind) => kind_is(kind, value) == Some(true),
                    kinds => {
                        list(kinds).iter().filter_map(Value::as_str).any(|k| kind_is(k, value) == Some(true))
                    }
                },
                ("enum", _) => list(by).iter().any(|one| equal(one, value)),
                ("const", _) => equal(by, value),
                ("allOf", _) => self.count(list(by), value, depth, steps)? == list(by).len(),
                ("anyOf", _) => self.count(list(by), value, depth, steps)? > 0,
                ("oneOf", _) => self.count(list(by), value, depth, steps)? == 1,
                ("not", _) => !self.check(by, value, depth + 1, steps)?,
                (_, Value::Object(fields)) => self.fields(object, (key, by), fields, depth, steps)?,
                (_, Value::Array(items)) => self.items(object, (key, by), items, depth, steps)?,
                (_, Value::String(text)) => match key.as_str() {
                    "minLength" => by.as_u64().is_none_or(|min| text.chars().count() as u64 >= min),
                    "maxLength" => by.as_u64().is_none_or(|max| text.chars().count() as u64 <= max),
                    "pattern" => {
                        by.as_str().and_then(|p| self.patterns.get(p)).ok_or(UNKNOWN)?.is_match(text)
                    }
                    _ => true,
                },
                (_, Value::Number(number)) => {
                    let (number, by) = (number.as_f64().unwrap_or(f64::NAN), by.as_f64().unwrap_or(f64::NAN));
                    match key.as_str() {
                        "minimum" => number >= by,
                        "maximum" => number <= by,
                        "exclusiveMinimum" => number > by,
                        "exclusiveMaximum" => number < by,
                        "multipleOf" => (number / by).fract() == 0.0,
                        _ => true,
                    }
                }
                (_, Value::Null | Value::Bool(_)) => true,
            };
            if !met {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn count(
        &self,
        all: &[Value],
        value: &Value,
        depth: usize,
        steps: &mut usize,
    ) -> Result<usize, &'static str> {
        let mut count = 0;
        for schema in all {
            count += usize::from(self.check(schema, value, depth + 1, steps)?);
        }
        Ok(count)
    }

    fn fields(
        &self,
        schema: &Map<String, Value>,
        (key, by): (&str, &Value),
        fields: &Map<String, Value>,
        depth: usize,
        steps: &mut usize,
    ) -> Result<bool, &'static str> {
        let has = |name: &Value| name.as_str().is_some_and(|name| fields.contains_key(name));
        Ok(match key {
            "required" => list(by).iter().all(has),
            "minProperties" => by.as_u64().is_none_or(|min| fields.len() as u64 >= min),
            "maxProperties" => by.as_u64().is_none_or(|max| fields.len() as u64 <= max),
            "dependentRequired" => {
                let asked =
                    by.as_object().into_iter().flatten().filter(|(name, _)| fields.contains_key(*name));
                asked.flat_map(|(_, names)| list(names)).all(has)
            }
            "properties" => {
                for (name, schema) in by.as_object().into_iter().flatten() {
                    if let Some(field) = fields.get(name)
                        && !self.check(schema, field, depth + 1, steps)?
                    {
                        return Ok(false);
                    }
                }
                true
            }
            "additionalProperties" => {
                let named = schema.get("properties").and_then(Value::as_object);
                for (_, field) in
                    fields.iter().filter(|(name, _)| !named.is_some_and(|n| n.contains_key(*name)))
                {
                    if !self.check(by, field, depth + 1, steps)? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => true,
        })
    }

    fn items(
        &self,
        schema: &Map<String, Value>,
        (key, by): (&str, &Value),
        items: &[Value],
        depth: usize,
        steps: &mut usize,
    ) -> Result<bool, &'static str> {
        let prefix = schema.get("prefixItems").map_or(0, |p| list(p).len());
        let each = |schemas: &mut dyn Iterator<Item = (&Value, &Value)>, steps: &mut usize| {
            for (schema, item) in schemas {
                if !self.check(schema, item, depth + 1, steps)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match key {
            "prefixItems" => each(&mut list(by).iter().zip(items), steps),
            "items" => each(&mut items.iter().skip(prefix).map(|item| (by, item)), steps),
            "contains" => {
                let mut any = false;
                for item in items {
                    any |= self.check(by, item, depth + 1, steps)?;
                }
                Ok(any)
            }
            "minItems" => Ok(by.as_u64().is_none_or(|min| items.len() as u64 >= min)),
            "maxItems" => Ok(by.as_u64().is_none_or(|max| items.len() as u64 <= max)),
            "uniqueItems" if by == &Value::Bool(true) => {
                *steps += items.len() * items.len();
                if *steps > STEPS_MAX {
                    return Err("checking its schema takes too long");
                }
                let twice =
                    |(at, item): (usize, &Value)| items.iter().skip(at + 1).any(|other| equal(item, other));
                Ok(!items.iter().enumerate().any(twice))
            }
            _ => Ok(true),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// `None`: no such type.
fn kind_is(kind: &str, value: &Value) -> Option<bool> {
    Some(match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => return None,
    })
}

/// Numbers are equal by value, JSON Schema core §4.2.2.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Whether an answer meets a schema: the given one, or the one that the request asks for, if it does.
pub(super) fn appraise(
    given: Option<&Schema>,
    of: Of<'_>,
    answer: &Bytes,
    events: bool,
) -> Result<bool, &'static str> {
    let asked;
    let schema = match given {
        Some(schema) => schema,
        None => match schema_of(of.request) {
            None => return Ok(true),
            Some(schema) => {
                asked = Schema::new(schema).map_err(|_| UNKNOWN)?;
                &asked
            }
        },
    };
    let said = said(of.operation, answer, events).ok_or("the answer could not be read")?;
    let mut met = !said.texts.is_empty() || said.calls;
    for text in said.texts.values() {
        // Besides a call of a tool there need be no text.
        if said.calls && text.trim().is_empty() {
            continue;
        }
        met &= match serde_json::from_str(text) {
            Ok(value) => schema.is_met(&value)?,
            Err(_) => false,
        };
    }
    Ok(met)
}

/// The schema that a request asks for.
fn schema_of(request: &[u8]) -> Option<Value> {
    let request: Value = serde_json::from_slice(request).ok()?;
    let places = [
        "/response_format/json_schema/schema",
        "/text/format/schema",
        "/output_config/format/schema",
        "/output_format/schema",
        "/generationConfig/responseJsonSchema",
        "/generation_config/response_json_schema",
        "/generationConfig/responseSchema",
        "/generation_config/response_schema",
        "/outputConfig/textFormat/structure/jsonSchema/schema",
    ];
    let found = places.iter().find_map(|place| request.pointer(place))?;
    match found {
        Value::String(text) => serde_json::from_str(text).ok().or(Some(Value::Null)),
        schema => Some(schema.clone()),
    }
}

/// What an answer says to the person: one text for each candidate.
#[derive(Default)]
struct SaidText {
    texts: BTreeMap<u64, String>,
    calls: bool,
}

fn said(operation: Operation, answer: &[u8], events: bool) -> Option<SaidText> {
    let mut said = SaidText::default();
    if !events {
        said.whole(operation, &serde_json::from_slice(answer).ok()?);
        return Some(said);
    }
    for data in scan::events(std::str::from_utf8(answer).ok()?) {
        said.event(operation, &serde_json::from_str(&data).ok()?);
    }
    Some(said)
}

impl SaidText {
    fn add(&mut self, candidate: u64, text: Option<&str>) {
        if let Some(text) = text {
            self.texts.entry(candidate).or_default().push_str(text);
        }
    }

    fn whole(&mut self, operation: Operation, answer: &Value) {
        let array = |value: &Value, key: &str| list(value.get(key).unwrap_or(&Value::Null)).to_vec();
        let text = |value: &Value| value.get("text").and_then(Value::as_str).map(str::to_owned);
        let is = |value: &Value, kind: &str| value.get("type").and_then(Value::as_str) == Some(kind);
        match operation {
            Operation::Chat | Operation::Completions => {
                for choice in array(answer, "choices") {
                    let at = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
                    let message =
                        ["message", "delta"].iter().find_map(|key| choice.get(key)).unwrap_or(&choice);
                    self.calls |= message.get("tool_calls").is_some_and(|c| !list(c).is_empty());
                    let content = message.get("content").or(message.get("text"));
                    self.add(at, content.and_then(Value::as_str));
                }
            }
            Operation::Responses => {
                for item in array(answer, "output") {
                    self.calls |= !is(&item, "message") && !is(&item, "reasoning");
                    let parts = array(&item, "content").into_iter().filter(|part| is(part, "output_text"));
                    parts.for_each(|part| self.add(0, text(&part).as_deref()));
                }
            }
            Operation::Messages => {
                for block in array(answer, "content") {
                    self.calls |= is(&block, "tool_use");
                    if is(&block, "text") {
                        self.add(0, text(&block).as_deref());
                    }
                }
            }
            Operation::GenerateContent { .. } => {
                for (at, candidate) in array(answer, "candidates").into_iter().enumerate() {
                    let at = candidate.get("index").and_then(Value::as_u64).unwrap_or(at as u64);
                    for part in candidate.get("content").map(|c| array(c, "parts")).unwrap_or_default() {
                        self.calls |= part.get("functionCall").is_some();
                        if part.get("thought") != Some(&Value::Bool(true)) {
                            self.add(at, text(&part).as_deref());
                        }
                    }
                }
            }
            Operation::Converse { .. } => {
                for part in list(answer.pointer("/output/message/content").unwrap_or(&Value::Null)) {
                    self.calls |= part.get("toolUse").is_some();
                    self.add(0, text(part).as_deref());
                }
            }
            Operation::Embeddings
            | Operation::Models(_)
            | Operation::CountTokens
            | Operation::CountContent
            | Operation::EmbedContent
            | Operation::BatchEmbedContents => {}
        }
    }

    fn event(&mut self, operation: Operation, event: &Value) {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        match operation {
            Operation::Messages => {
                self.calls |=
                    event.pointer("/content_block/type").and_then(Value::as_str) == Some("tool_use");
                self.add(0, event.pointer("/delta/text").and_then(Value::as_str));
            }
            Operation::Responses if matches!(kind, "response.completed" | "response.incomplete") => {
                self.whole(operation, event.get("response").unwrap_or(&Value::Null));
            }
            Operation::Responses => {}
            _ => self.whole(operation, event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_assertion_holds_and_fails() {
        for (schema, good, bad) in [
            (json!({"type": "object", "required": ["a"]}), json!({"a": 1}), json!({"b": 1})),
            (json!({"properties": {"a": {"type": "integer"}}}), json!({"a": 1.0}), json!({"a": 1.5})),
            (
                json!({"properties": {"a": {}}, "additionalProperties": false}),
                json!({"a": 1}),
                json!({"b": 1}),
            ),
            (json!({"type": ["string", "null"]}), json!(null), json!(1)),
            (json!({"enum": ["a", 1]}), json!(1.0), json!("b")),
            (json!({"const": {"a": [1]}}), json!({"a": [1]}), json!({"a": [1, 2]})),
            (
                json!({"items": {"type": "string"}, "prefixItems": [{"type": "null"}]}),
                json!([null, "a"]),
                json!([null, 1]),
            ),
            (json!({"minItems": 1, "maxItems": 2, "uniqueItems": true}), json!([1, 2]), json!([1, 1])),
            (json!({"contains": {"const": 1}}), json!([2, 1]), json!([2])),
            (json!({"minLength": 2, "maxLength": 3, "pattern": "^é"}), json!("éa"), json!("é")),
            (json!({"minimum": 1, "exclusiveMaximum": 3, "multipleOf": 0.5}), json!(1.5), json!(3)),
            (json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}), json!(5), json!(4)),
            (json!({"oneOf": [{"minimum": 1}, {"minimum": 5}]}), json!(4), json!(5)),
            (json!({"allOf": [{"minimum": 1}, {"maximum": 5}]}), json!(4), json!(6)),
            (json!({"not": {"type": "string"}}), json!(1), json!("a")),
            (json!({"dependentRequired": {"a": ["b"]}}), json!({"b": 1}), json!({"a": 1})),
            (json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}), json!(1), json!("1")),
            (
                json!({"properties": {"next": {"$ref": "#"}, "v": {"type": "null"}}}),
                json!({"next": {"v": null}}),
                json!({"next": {"v": 1}}),
            ),
            (json!(true), json!(1), json!(null)),
        ] {
            let compiled = Schema::new(schema.clone()).unwrap();
            assert_eq!(compiled.is_met(&good), Ok(true), "{schema} {good}");
            let all_met = schema == json!(true);
            assert_eq!(compiled.is_met(&bad), Ok(all_met), "{schema} {bad}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_loops_end() {
        for (schema, why) in [
            (json!({"unevaluatedProperties": false}), "unevaluatedProperties: not understood"),
            (json!({"properties": {"a": {"if": true}}}), "if: not understood"),
            (json!({"$ref": "https://example.org/s"}), "$ref: not of the form"),
            (json!({"$ref": "#/$defs/none"}), "there is no"),
            (json!({"pattern": "(?=a)"}), "pattern"),
            (json!({"type": "STRING"}), "type: not of the form"),
            (json!([]), "no object"),
        ] {
            let error = Schema::new(schema).err().unwrap();
            assert!(error.contains(why), "{error}");
        }
        let loops = Schema::new(json!({"$ref": "#"})).unwrap();
        assert_eq!(loops.is_met(&json!(1)), Err("checking its schema takes too long"));
    }

    #[test]
    fn answers_of_every_dialect_are_read() {
        let text = r#"{\"n\":1}"#;
        let (o, m, g) = (Operation::Chat, Operation::Messages, Operation::GenerateContent { stream: false });
        let cases = [
            (o, format!(r#"{{"choices":[{{"index":0,"message":{{"content":"{text}"}}}}]}}"#), false),
            (
                o,
                "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"{\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"n\\\":1}\"}}]}\n\ndata: [DONE]\n\n"
                    .to_owned(),
                true,
            ),
            (
                m,
                format!(
                    r#"{{"content":[{{"type":"thinking","thinking":"h"}},{{"type":"text","text":"{text}"}}]}}"#
                ),
                false,
            ),
            (
                m,
                format!(
                    "event: x\ndata: {{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
                ),
                true,
            ),
            (
                g,
                format!(
                    r#"{{"candidates":[{{"content":{{"parts":[{{"thought":true,"text":"h"}},{{"text":"{text}"}}]}}}}]}}"#
                ),
                false,
            ),
            (
                Operation::Responses,
                format!(
                    r#"{{"output":[{{"type":"reasoning"}},{{"type":"message","content":[{{"type":"output_text","text":"{text}"}}]}}]}}"#
                ),
                false,
            ),
            (
                Operation::Responses,
                format!(
                    "data: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{{\"type\":\"message\",\"content\":[{{\"type\":\"output_text\",\"text\":\"{text}\"}}]}}]}}}}\n\n"
                ),
                true,
            ),
            (
                Operation::Converse { stream: false },
                format!(r#"{{"output":{{"message":{{"content":[{{"text":"{text}"}}]}}}}}}"#),
                false,
            ),
        ];
        let good = Schema::new(json!({"required": ["n"]})).unwrap();
        let bad = Schema::new(json!({"required": ["m"]})).unwrap();
        let request = Bytes::from_static(b"{}");
        for (operation, answer, events) in cases {
            let of = Of { model: "m", operation, request: &request };
            let answer = Bytes::from(answer);
            assert_eq!(appraise(Some(&good), of, &answer, events), Ok(true), "{operation:?} {events}");
            assert_eq!(appraise(Some(&bad), of, &answer, events), Ok(false), "{operation:?} {events}");
        }
    }

    #[test]
    fn a_requests_own_schema_counts_and_calls_need_no_text() {
        let of = |request: &'static str| Bytes::from_static(request.as_bytes());
        let asks = of(r#"{"response_format":{"json_schema":{"schema":{"type":"object"}}}}"#);
        let odd = of(r#"{"text":{"format":{"schema":{"if":{}}}}}"#);
        let answer = |content: &str| Bytes::from(format!(r#"{{"choices":[{{"message":{content}}}]}}"#));
        let ask = |request: &Bytes, content: &str| {
            appraise(None, Of { model: "m", operation: Operation::Chat, request }, &answer(content), false)
        };
        assert_eq!(ask(&of("{}"), r#"{"content":"hello"}"#), Ok(true), "none asked for");
        assert_eq!(ask(&asks, r#"{"content":"{}"}"#), Ok(true));
        assert_eq!(ask(&asks, r#"{"content":"hello"}"#), Ok(false));
        assert_eq!(ask(&asks, r#"{"content":null}"#), Ok(false), "a refusal is no object");
        assert_eq!(ask(&asks, r#"{"content":null,"tool_calls":[{}]}"#), Ok(true));
        assert_eq!(ask(&odd, r#"{"content":"{}"}"#), Err(UNKNOWN));
    }
}
