//! OpenAPI's subset of schemas, as Gemini has it, said as JSON Schema.
//! <https://ai.google.dev/api/caching#Schema>
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::json::{Json, Raw, Value};

/// Deepest schema that is rewritten: the API's own bound is lower.
const DEPTH_MAX: usize = 64;

/// Types in lower case, `nullable` as a type, counts as numbers. `propertyOrdering` is a hint. `closed`: the schema of an
/// answer, in which Gemini puts no properties but those named; others must be told so.
pub(super) fn json_schema(schema: &Value<'_>, closed: bool, target: Dialect) -> Result<Raw, DialectError> {
    let mut out = String::new();
    write(schema, closed, target, 0, &mut out)?;
    Raw::parse(&out).ok_or_else(|| schema.expected("a schema"))
}

fn write(
    schema: &Value<'_>,
    closed: bool,
    target: Dialect,
    depth: usize,
    out: &mut String,
) -> Result<(), DialectError> {
    if depth > DEPTH_MAX {
        return Err(schema.expected("a schema of at most 64 levels"));
    }
    let mut o = schema.object()?;
    o.take_either("propertyOrdering", "property_ordering");
    let nullable = o.take_bool("nullable")?.unwrap_or(false);
    out.push('{');
    let mut first = true;
    let mut field = |name: &str, out: &mut String| {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        Json::from(name).write(out);
        out.push(':');
    };
    if let Some(kind) = o.take("type") {
        let name = Json::from(kind.string()?.to_ascii_lowercase());
        field("type", out);
        if nullable { Json::Arr(vec![name, Json::from("null")]).write(out) } else { name.write(out) }
    }
    for key in ["title", "description", "format", "pattern"] {
        if let Some(value) = o.take(key) {
            field(key, out);
            Json::from(value.string()?).write(out);
        }
    }
    for key in ["enum", "required", "default", "example", "minimum", "maximum"] {
        if let Some(value) = o.take(key) {
            field(key, out);
            Json::from(value.raw()).write(out);
        }
    }
    let counts = [
        ("minItems", "min_items"),
        ("maxItems", "max_items"),
        ("minLength", "min_length"),
        ("maxLength", "max_length"),
        ("minProperties", "min_properties"),
        ("maxProperties", "max_properties"),
    ];
    for (key, other) in counts {
        if let Some(value) = o.take_either(key, other) {
            // proto JSON writes 64-bit integers as strings
            let text = if value.is_string() { value.string()? } else { value.text().to_owned() };
            let count: u64 = text.parse().map_err(|_| value.expected("a count"))?;
            field(key, out);
            Json::from(count).write(out);
        }
    }
    if let Some(items) = o.take("items") {
        field("items", out);
        write(&items, closed, target, depth + 1, out)?;
    }
    let properties = o.take("properties");
    let named = properties.is_some();
    if let Some(properties) = properties {
        field("properties", out);
        out.push('{');
        for (nth, (name, value)) in properties.object()?.into_fields().into_iter().enumerate() {
            if nth > 0 {
                out.push(',');
            }
            Json::from(name).write(out);
            out.push(':');
            write(&value, closed, target, depth + 1, out)?;
        }
        out.push('}');
    }
    if let Some(any) = o.take_either("anyOf", "any_of") {
        field("anyOf", out);
        out.push('[');
        for (nth, value) in any.array()?.iter().enumerate() {
            if nth > 0 {
                out.push(',');
            }
            write(value, closed, target, depth + 1, out)?;
        }
        out.push(']');
    }
    if let Some(additional) = o.take_either("additionalProperties", "additional_properties") {
        field("additionalProperties", out);
        Json::from(additional.raw()).write(out);
    } else if closed && named {
        field("additionalProperties", out);
        out.push_str("false");
    }
    out.push('}');
    o.finish(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openapi_becomes_json_schema() {
        let schema = br#"{"type":"OBJECT","propertyOrdering":["a"],"properties":{"b":{"type":"STRING","nullable":true},
            "a":{"type":"ARRAY","items":{"type":"INTEGER","format":"int32"},"minItems":"1"}},"required":["a"]}"#;
        let raw = json_schema(&Value::root(schema).unwrap(), false, Dialect::OpenAi).unwrap();
        assert_eq!(
            raw.as_str(),
            r#"{"type":"object","required":["a"],"properties":{"b":{"type":["string","null"]},"a":{"type":"array","minItems":1,"items":{"type":"integer","format":"int32"}}}}"#
        );
        let odd = Value::root(br#"{"type":"OBJECT","properties":{"a":{"x":1}}}"#).unwrap();
        let error = json_schema(&odd, false, Dialect::OpenAi).err().unwrap();
        assert_eq!(error.field(), Some("properties.a.x"));
    }
}
