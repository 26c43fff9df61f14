//! Requests: read from callers, written to routes.
use crate::common::{
    At, Conversation, Effort, Format, Image, Part, ResultPart, Role, Thinking, Tool, ToolChoice, ToolResult,
    Turn, Writing, described, refuse_sampling,
};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::json::{Json, Obj, Object, Raw, Value};
use crate::openai::read_cache_control;

/// Reads a body that is to be said to `target`.
pub(crate) fn read_request(body: &Value<'_>, target: Dialect) -> Result<Conversation, DialectError> {
    let mut o = body.object()?;
    let mut c = Conversation::default();
    o.ignore(&["model"]);
    c.stream = o.take_bool("stream")?.unwrap_or(false);
    c.max_output = Some(o.need("max_tokens")?.read(Value::u64)?);
    c.temperature = o.take_at("temperature", Value::number)?;
    c.top_p = o.take_at("top_p", Value::number)?;
    c.top_k = o.take_at("top_k", Value::number)?;
    if let Some(stop) = o.take("stop_sequences") {
        c.stop = stop.some_strings()?;
    }
    if let Some(mut metadata) = o.take_object("metadata")? {
        c.user = metadata.take_string("user_id")?;
        metadata.finish(target)?;
    }
    o.only("service_tier", &["\"auto\"", "\"standard_only\""], target, "no such tiers there")?;
    if let Some(thinking) = o.take("thinking") {
        c.thinking = Some(read_thinking(&thinking, target)?);
    }
    if let Some(mut config) = o.take_object("output_config")? {
        c.effort = config.take_at("effort", read_effort)?;
        if let Some(format) = config.take("format") {
            c.format = Some(read_format(&format, target)?);
        }
        config.finish(target)?;
    }
    if let Some(format) = o.take("output_format") {
        if c.format.is_some() {
            return Err(format.expected("one format, not two"));
        }
        c.format = Some(read_format(&format, target)?);
    }
    for tool in o.take_array("tools")? {
        c.tools.push(tool.read(|tool| read_tool(tool, target))?);
    }
    if let Some(choice) = o.take("tool_choice") {
        read_tool_choice(&choice, target, &mut c)?;
    }
    if let Some(system) = o.take("system") {
        c.system = read_content(&system, target, Role::User)?;
    }
    for message in o.need("messages")?.array()? {
        let mut m = message.object()?;
        let role = m.need("role")?;
        let role = match role.string()?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(role.expected("user or assistant")),
        };
        let parts = read_content(&m.need("content")?, target, role)?;
        m.finish(target)?;
        c.turns.push(Turn { role, parts });
    }
    if let Some(ttl) = read_cache_control(&mut o, target)?
        && let Some(last) = c.turns.last_mut()
    {
        last.parts.push(At::new(Part::CachePoint { ttl }, "cache_control"));
    }
    o.finish(target)?;
    Ok(c.canonical())
}

/// `thinking`, which callers of OpenAI's and Bedrock's dialect have too.
pub(crate) fn read_thinking(value: &Value<'_>, target: Dialect) -> Result<At<Thinking>, DialectError> {
    let mut o = value.object()?;
    let show = match o.take("display") {
        Some(display) => match display.string()?.as_str() {
            "summarized" => Some(true),
            "omitted" => Some(false),
            _ => return Err(display.expected("summarized or omitted")),
        },
        None => None,
    };
    let thinking = match o.need_string("type")?.as_str() {
        "disabled" => Thinking::Off,
        "adaptive" => Thinking::Adaptive { show },
        "enabled" => Thinking::Budget { max: o.need("budget_tokens")?.u64()?, show },
        _ => return Err(value.untranslatable(target, "this way of thinking cannot be said there")),
    };
    o.finish(target)?;
    Ok(At::new(thinking, value.at()))
}

pub(crate) fn read_effort(value: &Value<'_>) -> Result<Effort, DialectError> {
    let effort = Effort::of_name(&value.string()?).filter(|e| !matches!(e, Effort::None | Effort::Minimal));
    effort.ok_or_else(|| value.expected("an effort from low to max"))
}

fn read_format(value: &Value<'_>, target: Dialect) -> Result<At<Format>, DialectError> {
    let mut o = value.object()?;
    o.only("type", &["\"json_schema\""], target, "no such format there")?;
    let schema = o.need("schema")?.raw_object()?;
    o.finish(target)?;
    Ok(At::new(Format::Schema { name: None, description: None, schema, strict: Some(true) }, value.at()))
}

fn read_tool(value: &Value<'_>, target: Dialect) -> Result<Tool, DialectError> {
    let mut o = value.object()?;
    o.ignore(&["eager_input_streaming"]);
    o.only("type", &["\"custom\""], target, "tools that the provider runs exist only there")?;
    let tool = Tool {
        name: o.need_string("name")?,
        description: o.take_string("description")?,
        schema: Some(o.need("input_schema")?.raw_object()?),
        strict: o.take_bool("strict")?,
        cache: read_cache_control(&mut o, target)?,
    };
    o.finish(target)?;
    Ok(tool)
}

fn read_tool_choice(value: &Value<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    let mut o = value.object()?;
    let choice = match o.need_string("type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(o.need_string("name")?),
        _ => return Err(value.expected("auto, any, tool or none")),
    };
    if let Some(disable) = o.take("disable_parallel_tool_use") {
        c.parallel_tools = Some(At::new(!disable.bool()?, disable.at()));
    }
    c.tool_choice = Some(At::new(choice, value.at()));
    o.finish(target)
}

fn read_content(content: &Value<'_>, target: Dialect, role: Role) -> Result<Vec<At<Part>>, DialectError> {
    if content.is_string() {
        return Ok(vec![At::new(Part::Text(content.string()?), content.at())]);
    }
    let mut parts = Vec::new();
    for block in content.array()? {
        let mut o = block.object()?;
        let cache = read_cache_control(&mut o, target)?;
        let kind = o.need("type")?;
        let part = match (kind.string()?.as_str(), role) {
            ("text", _) => {
                o.only("citations", &["[]"], target, "citations cannot be said there")?;
                Part::Text(o.need_string("text")?)
            }
            ("image", Role::User) => Part::Image(read_image(&mut o, target)?),
            ("tool_use", Role::Assistant) => {
                o.only("caller", &["{\"type\":\"direct\"}"], target, "only models call tools there")?;
                let arguments = o.need("input")?.raw_object()?;
                Part::ToolCall { id: o.need_string("id")?, name: o.need_string("name")?, arguments }
            }
            ("tool_result", Role::User) => Part::ToolResult(read_result(&mut o, target)?),
            ("thinking", Role::Assistant) => Part::Thinking {
                text: o.need_string("thinking")?,
                signature: o.take_string("signature")?.filter(|s| !s.is_empty()),
            },
            ("redacted_thinking", Role::Assistant) => Part::Redacted(o.need_string("data")?),
            _ => return Err(block.untranslatable(target, "this kind of block cannot be said there")),
        };
        o.finish(target)?;
        parts.push(At::new(part, block.at()));
        if let Some(ttl) = cache {
            parts.push(At::new(Part::CachePoint { ttl }, block.at()));
        }
    }
    Ok(parts)
}

fn read_image(o: &mut Object<'_>, target: Dialect) -> Result<Image, DialectError> {
    let source = o.need("source")?;
    let mut s = source.object()?;
    let image = match s.need_string("type")?.as_str() {
        "base64" => Image::Base64 { media_type: s.need_string("media_type")?, data: s.need_string("data")? },
        "url" => Image::Url(s.need_string("url")?),
        _ => return Err(source.untranslatable(target, "files of one provider are unknown to another")),
    };
    s.finish(target)?;
    Ok(image)
}

fn read_result(o: &mut Object<'_>, target: Dialect) -> Result<ToolResult, DialectError> {
    let mut content = Vec::new();
    if let Some(value) = o.take("content") {
        if value.is_string() {
            content.push(ResultPart::Text(value.string()?));
        } else {
            for block in value.array()? {
                let mut b = block.object()?;
                // a cache point within a result: a hint, as others have none here
                b.ignore(&["cache_control"]);
                content.push(match b.need_string("type")?.as_str() {
                    "text" => {
                        b.only("citations", &["[]"], target, "citations cannot be said there")?;
                        ResultPart::Text(b.need_string("text")?)
                    }
                    "image" => ResultPart::Image(read_image(&mut b, target)?),
                    _ => return Err(block.untranslatable(target, "a result is text or images there")),
                });
                b.finish(target)?;
            }
        }
    }
    let error = o.take_bool("is_error")?.unwrap_or(false);
    Ok(ToolResult { id: o.need_string("tool_use_id")?, name: None, content, error })
}

/// Whether a user says an image, in a turn or in a tool's result.
pub(crate) fn has_images(messages: &Value<'_>) -> Result<bool, DialectError> {
    fn any(content: &Value<'_>, depth: u8) -> Result<bool, DialectError> {
        for block in content.array()? {
            let mut o = block.object()?;
            let kind = o.take("type").filter(Value::is_string).map(|t| t.text());
            match (kind, o.take("content").filter(Value::is_array)) {
                (Some("\"image\""), _) => return Ok(true),
                (Some("\"tool_result\""), Some(inner)) if depth == 0 && any(&inner, 1)? => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }
    for message in messages.array()? {
        if let Some(content) = message.object()?.take("content").filter(Value::is_array)
            && any(&content, 0)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a body.
pub(crate) fn write_request(c: &Conversation, to: &Writing<'_>) -> Result<String, DialectError> {
    let target = Dialect::Anthropic;
    refuse_sampling(c, target)?;
    let max = c.max_output.as_ref().map_or(to.max_output_default, |m| m.v);
    let mut o = Obj::new().with("model", to.model).with("max_tokens", max);
    if !c.system.is_empty() {
        o.put("system", write_content(&c.system)?);
    }
    let mut messages = Vec::<Json>::new();
    for turn in &c.turns {
        messages.push(
            Obj::new().with("role", turn.role.name()).with("content", write_content(&turn.parts)?).into(),
        );
    }
    o.put("messages", messages);
    let value = |field: &Option<At<Raw>>| field.as_ref().map(|f| Json::from(&f.v));
    o = o.opt("temperature", value(&c.temperature));
    o = o.opt("top_p", value(&c.top_p)).opt("top_k", value(&c.top_k));
    o = o.opt("stop_sequences", c.stop.as_ref().map(|s| Json::from(s.v.as_slice())));
    let tools: Vec<Json> = c.tools.iter().map(|t| write_tool(&t.v).into()).collect();
    o = o.opt("tools", (!tools.is_empty()).then_some(tools));
    // a choice without tools is refused there, and one of none or of any says nothing
    let nothing =
        matches!(c.tool_choice.as_ref().map(|t| &t.v), None | Some(ToolChoice::Auto | ToolChoice::None));
    if !(c.tools.is_empty() && nothing) && (c.tool_choice.is_some() || c.parallel_tools.is_some()) {
        o.put("tool_choice", write_tool_choice(c));
    }
    o = o.opt("thinking", thinking_fields(c));
    let mut config = effort_fields(c, target)?;
    if let Some(format) = &c.format {
        let Format::Schema { description, schema, .. } = &format.v else {
            return Err(format.refuse(target, "JSON needs a schema there"));
        };
        let schema = described(schema, description.as_deref(), &format.at, target)?;
        config.put("format", Obj::of_type("json_schema").with("schema", schema));
    }
    o = o.opt("output_config", config.unless_empty());
    o = o.opt("metadata", c.user.as_ref().map(|user| Obj::new().with("user_id", user)));
    if c.stream {
        o.put("stream", true);
    }
    Ok(o.text())
}

/// `thinking`. An effort alone asks to think as much as that takes.
pub(crate) fn thinking_fields(c: &Conversation) -> Option<Obj> {
    let display = |show: Option<bool>| show.map(|show| if show { "summarized" } else { "omitted" });
    match (c.thinking.as_ref().map(|t| t.v), c.effort.as_ref().map(|e| e.v)) {
        (Some(Thinking::Off), _) | (None, Some(Effort::None)) => Some(Obj::of_type("disabled")),
        (Some(Thinking::Adaptive { show }), _) => {
            Some(Obj::of_type("adaptive").opt("display", display(show)))
        }
        (Some(Thinking::Budget { max, show }), _) => {
            Some(Obj::of_type("enabled").with("budget_tokens", max).opt("display", display(show)))
        }
        (None, Some(_)) => Some(Obj::of_type("adaptive")),
        (None, None) => None,
    }
}

/// `output_config`, with its effort.
pub(crate) fn effort_fields(c: &Conversation, target: Dialect) -> Result<Obj, DialectError> {
    match &c.effort {
        None => Ok(Obj::new()),
        Some(effort) => match effort.v {
            Effort::None => Ok(Obj::new()),
            Effort::Minimal => Err(effort.refuse(target, "the lowest effort there is low")),
            other => Ok(Obj::new().with("effort", other.name())),
        },
    }
}

fn write_tool(tool: &Tool) -> Obj {
    let schema = tool.schema.clone().map_or_else(|| Obj::of_type("object").into(), Json::Raw);
    Obj::new()
        .with("name", &tool.name)
        .opt("description", tool.description.as_ref())
        .with("input_schema", schema)
        .opt("strict", tool.strict)
        .opt("cache_control", tool.cache.as_ref().map(|ttl| cache_control(ttl.as_deref())))
}

fn cache_control(ttl: Option<&str>) -> Obj {
    Obj::of_type("ephemeral").opt("ttl", ttl)
}

fn write_tool_choice(c: &Conversation) -> Obj {
    let choice = match c.tool_choice.as_ref().map(|t| &t.v) {
        None | Some(ToolChoice::Auto) => Obj::of_type("auto"),
        Some(ToolChoice::Required) => Obj::of_type("any"),
        Some(ToolChoice::None) => return Obj::of_type("none"),
        Some(ToolChoice::Named(name)) => Obj::of_type("tool").with("name", name),
    };
    choice.opt("disable_parallel_tool_use", c.parallel_tools.as_ref().map(|p| !p.v))
}

/// One text as a string, anything else as blocks. A cache point marks the block before it.
fn write_content(parts: &[At<Part>]) -> Result<Json, DialectError> {
    if let [At { v: Part::Text(text), .. }] = parts {
        return Ok(text.into());
    }
    let mut blocks: Vec<Obj> = Vec::new();
    for part in parts {
        match &part.v {
            Part::CachePoint { ttl } => {
                let last =
                    blocks.last_mut().ok_or_else(|| part.refuse(Dialect::Anthropic, "nothing to cache"))?;
                last.put("cache_control", cache_control(ttl.as_deref()));
            }
            other => blocks.push(write_block(other)),
        }
    }
    Ok(blocks.into_iter().map(Json::from).collect::<Vec<_>>().into())
}

/// A block; of an answer, too.
pub(super) fn write_block(part: &Part) -> Obj {
    match part {
        Part::Text(text) => Obj::of_type("text").with("text", text),
        Part::Image(image) => write_image(image),
        Part::ToolCall { id, name, arguments } => {
            Obj::of_type("tool_use").with("id", id).with("name", name).with("input", arguments)
        }
        Part::ToolResult(result) => {
            let content: Vec<Json> =
                result.content.iter().map(|part| write_result_part(part).into()).collect();
            let content = match result.content.as_slice() {
                [ResultPart::Text(text)] => Json::from(text),
                [ResultPart::Json(raw)] => Json::from(raw.as_str()),
                _ => content.into(),
            };
            let block = Obj::of_type("tool_result").with("tool_use_id", &result.id).with("content", content);
            block.opt("is_error", result.error.then_some(true))
        }
        Part::Thinking { text, signature } => Obj::of_type("thinking")
            .with("thinking", text)
            .with("signature", signature.as_deref().unwrap_or_default()),
        Part::Redacted(data) => Obj::of_type("redacted_thinking").with("data", data),
        Part::CachePoint { .. } => Obj::new(),
    }
}

fn write_result_part(part: &ResultPart) -> Obj {
    match part {
        ResultPart::Text(text) => Obj::of_type("text").with("text", text),
        ResultPart::Json(raw) => Obj::of_type("text").with("text", raw.as_str()),
        ResultPart::Image(image) => write_image(image),
    }
}

fn write_image(image: &Image) -> Obj {
    let source = match image {
        Image::Base64 { media_type, data } => {
            Obj::of_type("base64").with("media_type", media_type).with("data", data)
        }
        Image::Url(url) => Obj::of_type("url").with("url", url),
    };
    Obj::of_type("image").with("source", source)
}
