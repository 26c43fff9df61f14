//! Embeddings, between OpenAI's dialect and Gemini's. Anthropic has none; Bedrock's are each model's own.
//! <https://platform.openai.com/docs/api-reference/embeddings>, <https://ai.google.dev/api/embeddings>
use crate::call::{Call, TargetRoute};
use crate::common::Framing;
use crate::dialect::{Dialect, Operation};
use crate::error::DialectError;
use crate::gemini::read_usage as read_gemini_usage;
use crate::json::{Json, Obj, Object, Raw, Value};
use crate::openai::read_usage as read_openai_usage;
use crate::outcome::Outcome;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Operation and body at the other dialect; `None`: it has no embeddings.
pub(crate) fn write_request(
    call: &Call,
    target: &TargetRoute,
) -> Result<Option<(Operation, String)>, DialectError> {
    let body = Value::root(call.expose_body())?;
    let o = body.object()?;
    Ok(match (call.operation(), target.dialect) {
        (Operation::Embeddings, Dialect::Gemini) => {
            Some((Operation::BatchEmbedContents, to_gemini(o, &target.upstream_model)?))
        }
        (Operation::EmbedContent, Dialect::OpenAi) => {
            let mut texts = Vec::new();
            let dimensions = read_content(o, &mut texts)?;
            Some((Operation::Embeddings, to_openai(texts, dimensions, &target.upstream_model)))
        }
        (Operation::BatchEmbedContents, Dialect::OpenAi) => {
            let mut o = o;
            let (mut texts, mut all) = (Vec::new(), None);
            for (nth, request) in o.need("requests")?.array()?.into_iter().enumerate() {
                let dimensions = read_content(request.object()?, &mut texts)?;
                if nth > 0 && all != dimensions {
                    return Err(request.untranslatable(Dialect::OpenAi, "all vectors have one length there"));
                }
                all = dimensions;
            }
            o.finish(Dialect::OpenAi)?;
            Some((Operation::Embeddings, to_openai(texts, all, &target.upstream_model)))
        }
        _ => None,
    })
}

fn to_gemini(mut o: Object<'_>, model: &str) -> Result<String, DialectError> {
    let target = Dialect::Gemini;
    o.ignore(&["model", "user"]);
    o.only("encoding_format", &["\"float\"", "\"base64\""], target, "float or base64")?;
    let dimensions = o.take_u64("dimensions")?;
    let input = o.need("input")?;
    let texts = if input.is_string() {
        vec![input.string()?]
    } else {
        let items = input.array()?;
        if let Some(item) = items.iter().find(|item| !item.is_string()) {
            return Err(item.untranslatable(target, "tokens of one model mean nothing to another"));
        }
        input.strings()?
    };
    o.finish(target)?;
    let name = format!("models/{}", model.trim_start_matches("models/"));
    let requests: Vec<Json> = texts
        .into_iter()
        .map(|text| {
            let parts = vec![Json::from(Obj::new().with("text", text))];
            let request = Obj::new().with("model", &name).with("content", Obj::new().with("parts", parts));
            request.opt("outputDimensionality", dimensions).into()
        })
        .collect();
    Ok(Obj::new().with("requests", requests).text())
}

/// One content to embed; its length of vectors.
fn read_content(mut o: Object<'_>, texts: &mut Vec<String>) -> Result<Option<u64>, DialectError> {
    let target = Dialect::OpenAi;
    o.ignore(&["model"]);
    let dimensions =
        o.take_either("outputDimensionality", "output_dimensionality").map(|v| v.u64()).transpose()?;
    let mut content = o.need("content")?.object()?;
    content.ignore(&["role"]);
    let parts = content.need("parts")?;
    let mut text = String::new();
    for part in parts.array()? {
        let mut p = part.object()?;
        text.push_str(&p.need_string("text")?);
        p.finish(target)?;
    }
    texts.push(text);
    content.finish(target)?;
    o.finish(target)?;
    Ok(dimensions)
}

fn to_openai(texts: Vec<String>, dimensions: Option<u64>, model: &str) -> String {
    Obj::new()
        .with("model", model)
        .with("input", texts.as_slice())
        .opt("dimensions", dimensions)
        .with("encoding_format", "float")
        .text()
}

const ONE_EACH: &str = "one vector for each text, in their order";

/// The other dialect's answer, for the caller's operation.
pub(crate) fn write_reply(
    operation: Operation,
    asked: &[u8],
    body: &[u8],
    framing: &Framing,
    outcome: &mut Outcome,
) -> Result<String, DialectError> {
    let root = Value::root(body)?;
    let mut o = root.object()?;
    let mut asked = Value::root(asked)?.object()?;
    outcome.complete = true;
    if operation == Operation::Embeddings {
        let base64 = asked.take("encoding_format").is_some_and(|f| f.text() == "\"base64\"");
        let texts = asked
            .take("input")
            .filter(Value::is_array)
            .map_or(Ok::<_, DialectError>(1), |i| Ok(i.array()?.len()))?;
        let usage = o.take_object("usageMetadata")?.map(read_gemini_usage).transpose()?;
        outcome.usage = usage;
        let mut data = Vec::<Json>::new();
        let embeddings = o.need("embeddings")?;
        let all = embeddings.array()?;
        if all.len() != texts {
            return Err(embeddings.expected(ONE_EACH));
        }
        for (index, embedding) in (0_u64..).zip(all) {
            let values = embedding.object()?.need("values")?;
            let vector = if base64 { Json::from(encode(&values)?) } else { Json::from(values.raw()) };
            let item = Obj::new().with("object", "embedding").with("index", index);
            data.push(item.with("embedding", vector).into());
        }
        let tokens = usage.unwrap_or_default().input;
        let usage = Obj::new().with("prompt_tokens", tokens).with("total_tokens", tokens);
        let reply = Obj::new().with("object", "list").with("data", data).with("model", &framing.model);
        return Ok(reply.with("usage", usage).text());
    }
    outcome.usage = o.take_object("usage")?.map(read_openai_usage).transpose()?;
    outcome.model = o.take_string("model")?;
    let data = o.need("data")?;
    let mut vectors: Vec<(u64, Raw)> = Vec::new();
    for (nth, item) in (0_u64..).zip(data.array()?) {
        let mut item = item.object()?;
        let index = item.take_u64("index")?.unwrap_or(nth);
        let values = item.need("embedding")?;
        if !values.is_array() {
            return Err(values.expected("an array of numbers"));
        }
        vectors.push((index, values.raw()));
    }
    vectors.sort_by_key(|(index, _)| *index);
    let texts = if operation == Operation::EmbedContent { 1 } else { asked.take_array("requests")?.len() };
    // a vector that is missing would put each after it to another's text
    if vectors.len() != texts || (0_u64..).zip(&vectors).any(|(nth, (index, _))| nth != *index) {
        return Err(data.expected(ONE_EACH));
    }
    let mut vectors = vectors.into_iter().map(|(_, raw)| Json::from(Obj::new().with("values", raw)));
    let usage = outcome.usage.map(|usage| Obj::new().with("promptTokenCount", usage.input));
    let reply = if operation == Operation::EmbedContent {
        let one = vectors.next().ok_or(DialectError::Missing { field: "data[0]".into() })?;
        Obj::new().with("embedding", one)
    } else {
        Obj::new().with("embeddings", vectors.collect::<Vec<_>>())
    };
    Ok(reply.opt("usageMetadata", usage).text())
}

/// 32-bit floats, little endian, in base64: what OpenAI's Python SDK asks for.
fn encode(values: &Value<'_>) -> Result<String, DialectError> {
    let mut bytes = Vec::new();
    for value in values.array()? {
        let number: f32 = value.number()?.as_str().parse().map_err(|_| value.expected("a number"))?;
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    Ok(STANDARD.encode(bytes))
}
