//! Requests, read from callers.
use crate::common::{At, Conversation, Image, Part, ResultPart, Role, ToolResult, Turn};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::json::{Object, Value};
use crate::openai::{Names, arguments_of, read_effort, read_format, read_tool, read_tool_choice};
use crate::responses::REDACTED;

/// Reads a body that is to be said to `target`.
pub(crate) fn read_request(body: &Value<'_>, target: Dialect) -> Result<Conversation, DialectError> {
    let mut o = body.object()?;
    let mut c = Conversation::default();
    o.ignore(&["model", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"]);
    c.stream = o.take_bool("stream")?.unwrap_or(false);
    if let Some(mut options) = o.take_object("stream_options")? {
        options.ignore(&["include_obfuscation"]);
        options.finish(target)?;
    }
    o.only("store", &["false"], target, "nothing is stored there")?;
    o.only("background", &["false"], target, "nothing is stored there")?;
    o.only("truncation", &["\"disabled\""], target, "nothing is cut off there")?;
    o.only("service_tier", &["\"auto\"", "\"default\""], target, "no such tiers there")?;
    o.only("top_logprobs", &["0"], target, "no log probabilities there")?;
    o.only("include", &["[]", "[\"reasoning.encrypted_content\"]"], target, "nothing of this is there")?;
    c.max_output = o.take_at("max_output_tokens", Value::u64)?;
    c.temperature = o.take_at("temperature", Value::number)?;
    c.top_p = o.take_at("top_p", Value::number)?;
    c.user = o.take_string("user")?;
    c.parallel_tools = o.take_at("parallel_tool_calls", Value::bool)?;
    if let Some(mut reasoning) = o.take_object("reasoning")? {
        reasoning.ignore(&["summary", "generate_summary"]);
        c.effort = reasoning.take_at("effort", read_effort)?;
        reasoning.finish(target)?;
    }
    if let Some(mut text) = o.take_object("text")? {
        text.only("verbosity", &["\"medium\""], target, "no such setting there")?;
        if let Some(format) = text.take("format") {
            c.format = read_format(&format, Names::Beside, target)?;
        }
        text.finish(target)?;
    }
    for tool in o.take_array("tools")? {
        c.tools.push(tool.read(|tool| read_tool(tool, Names::Beside, target))?);
    }
    c.tool_choice = o.take_at("tool_choice", |choice| read_tool_choice(choice, Names::Beside, target))?;
    c.system.extend(o.take_at("instructions", |text| Ok(Part::Text(text.string()?)))?);
    let input = o.need("input")?;
    if input.is_string() {
        let text = At::new(Part::Text(input.string()?), input.at());
        c.turns.push(Turn { role: Role::User, parts: vec![text] });
    } else {
        for item in input.array()? {
            read_item(&item, target, &mut c)?;
        }
    }
    o.finish(target)?;
    Ok(c.canonical())
}

fn read_item(item: &Value<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    let mut o = item.object()?;
    o.ignore(&["id", "status", "phase"]);
    let kind = o.take("type");
    let name = kind.as_ref().map(|k| k.string()).transpose()?.unwrap_or_else(|| "message".into());
    let (role, parts) = match name.as_str() {
        "message" => {
            let role = o.need("role")?;
            let content = o.need("content")?;
            match role.string()?.as_str() {
                "user" => (Role::User, read_content(&content, target)?),
                "assistant" => (Role::Assistant, read_content(&content, target)?),
                "system" | "developer" => {
                    if !c.turns.is_empty() {
                        let why = "instructions stand before the first turn there";
                        return Err(role.untranslatable(target, why));
                    }
                    c.system.extend(read_content(&content, target)?);
                    return o.finish(target);
                }
                _ => return Err(role.expected("user, assistant, system or developer")),
            }
        }
        "function_call" => {
            let arguments = o.need("arguments")?;
            let raw = arguments_of(&arguments.string()?);
            let raw = raw.ok_or_else(|| arguments.expected("a JSON object in a string"))?;
            let (id, name) = (o.need_string("call_id")?, o.need_string("name")?);
            (Role::Assistant, vec![At::new(Part::ToolCall { id, name, arguments: raw }, item.at())])
        }
        "function_call_output" => (Role::User, vec![At::new(read_output(&mut o, target)?, item.at())]),
        "reasoning" => (Role::Assistant, vec![At::new(read_reasoning(&mut o, item, target)?, item.at())]),
        _ => return Err(item.untranslatable(target, "this kind of item cannot be said there")),
    };
    o.finish(target)?;
    c.turns.push(Turn { role, parts });
    Ok(())
}

fn read_content(content: &Value<'_>, target: Dialect) -> Result<Vec<At<Part>>, DialectError> {
    if content.is_string() {
        return Ok(vec![At::new(Part::Text(content.string()?), content.at())]);
    }
    let mut parts = Vec::new();
    for value in content.array()? {
        let mut o = value.object()?;
        let part = match o.need_string("type")?.as_str() {
            "input_text" => Part::Text(o.need_string("text")?),
            "output_text" => {
                o.ignore(&["logprobs"]);
                o.only("annotations", &["[]"], target, "citations cannot be said there")?;
                Part::Text(o.need_string("text")?)
            }
            "refusal" => Part::Text(o.need_string("refusal")?),
            "input_image" => {
                o.only("detail", &["\"auto\""], target, "images have no level of detail there")?;
                let Some(url) = o.take("image_url") else {
                    return Err(value.untranslatable(target, "files of one provider are unknown to another"));
                };
                Part::Image(Image::of_url(url.string()?, url.at())?)
            }
            _ => return Err(value.untranslatable(target, "only text and images can be said there")),
        };
        o.finish(target)?;
        parts.push(At::new(part, value.at()));
    }
    Ok(parts)
}

fn read_output(o: &mut Object<'_>, target: Dialect) -> Result<Part, DialectError> {
    let output = o.need("output")?;
    let mut content = Vec::new();
    for part in read_content(&output, target)? {
        content.push(match part.v {
            Part::Text(text) => ResultPart::Text(text),
            Part::Image(image) => ResultPart::Image(image),
            _ => return Err(part.refuse(target, "a result is text or images there")),
        });
    }
    let id = o.need_string("call_id")?;
    Ok(Part::ToolResult(ToolResult { id, name: None, content, error: false }))
}

fn read_reasoning(o: &mut Object<'_>, item: &Value<'_>, target: Dialect) -> Result<Part, DialectError> {
    o.only("content", &["[]"], target, "only the summary of reasoning can be said there")?;
    let mut text = String::new();
    for summary in o.take_array("summary")? {
        text.push_str(&summary.object()?.need_string("text")?);
    }
    let signature = o.take_string("encrypted_content")?.filter(|s| !s.is_empty());
    match signature.as_deref().and_then(|s| s.strip_prefix(REDACTED)) {
        Some(data) => Ok(Part::Redacted(data.to_owned())),
        None if text.is_empty() && signature.is_none() => {
            Err(item.untranslatable(target, "reasoning that one provider keeps is unknown to another"))
        }
        None => Ok(Part::Thinking { text, signature }),
    }
}
