//! Requests: read from callers, written to routes.
use crate::anthropic::{effort_fields, read_effort, read_thinking, thinking_fields};
use crate::common::{
    At, Conversation, Format, Image, Part, ResultPart, Role, Tool, ToolChoice, ToolResult, Turn, Writing,
    base64_canonical, refuse_sampling, refuse_some,
};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::json::{Json, Obj, Raw, Value};

/// Reads a body that is to be said to `target`. Whether it streams stands in the path.
pub(crate) fn read_request(
    body: &Value<'_>,
    stream: bool,
    target: Dialect,
) -> Result<Conversation, DialectError> {
    let mut o = body.object()?;
    let mut c = Conversation { stream, ..Conversation::default() };
    o.ignore(&["requestMetadata", "modelId"]);
    o.only("serviceTier", &["{\"type\":\"default\"}"], target, "no such tiers there")?;
    o.only("performanceConfig", &["{\"latency\":\"standard\"}"], target, "no such setting there")?;
    o.only("additionalModelResponseFieldPaths", &["[]"], target, "no such fields there")?;
    o.only("promptVariables", &["{}"], target, "no prompts are kept there")?;
    if let Some(mut config) = o.take_object("inferenceConfig")? {
        c.max_output = config.take_at("maxTokens", Value::u64)?;
        c.temperature = config.take_at("temperature", Value::number)?;
        c.top_p = config.take_at("topP", Value::number)?;
        if let Some(stop) = config.take("stopSequences") {
            c.stop = stop.some_strings()?;
        }
        config.finish(target)?;
    }
    if let Some(mut more) = o.take_object("additionalModelRequestFields")? {
        c.top_k = more.take_at("top_k", Value::number)?;
        if let Some(thinking) = more.take("thinking") {
            c.thinking = Some(read_thinking(&thinking, target)?);
        }
        if let Some(mut config) = more.take_object("output_config")? {
            c.effort = config.take_at("effort", read_effort)?;
            config.finish(target)?;
        }
        more.finish(target)?;
    }
    if let Some(mut config) = o.take_object("outputConfig")? {
        if let Some(format) = config.take("textFormat") {
            c.format = Some(read_format(&format, target)?);
        }
        config.finish(target)?;
    }
    if let Some(mut config) = o.take_object("toolConfig")? {
        for tool in config.take_array("tools")? {
            read_tool(&tool, target, &mut c.tools)?;
        }
        c.tool_choice = config.take_at("toolChoice", |choice| read_tool_choice(choice, target))?;
        config.finish(target)?;
    }
    for block in o.take_array("system")? {
        c.system.push(read_block(&block, target, Role::User)?);
    }
    for message in o.need("messages")?.array()? {
        let mut m = message.object()?;
        let role = m.need("role")?;
        let role = match role.string()?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(role.expected("user or assistant")),
        };
        let mut parts = Vec::new();
        for block in m.need("content")?.array()? {
            parts.push(read_block(&block, target, role)?);
        }
        m.finish(target)?;
        c.turns.push(Turn { role, parts });
    }
    o.finish(target)?;
    Ok(c.canonical())
}

fn read_format(value: &Value<'_>, target: Dialect) -> Result<At<Format>, DialectError> {
    let mut o = value.object()?;
    o.only("type", &["\"json_schema\""], target, "no such format there")?;
    let mut structure = o.need("structure")?.object()?;
    let mut inner = structure.need("jsonSchema")?.object()?;
    let schema = inner.need("schema")?;
    let raw = Raw::parse(&schema.string()?).filter(Raw::is_object);
    let format = Format::Schema {
        name: inner.take_string("name")?,
        description: inner.take_string("description")?,
        schema: raw.ok_or_else(|| schema.expected("a JSON object in a string"))?,
        strict: Some(true),
    };
    inner.finish(target)?;
    structure.finish(target)?;
    o.finish(target)?;
    Ok(At::new(format, value.at()))
}

fn read_cache_point(value: &Value<'_>, target: Dialect) -> Result<Option<String>, DialectError> {
    let mut o = value.object()?;
    o.only("type", &["\"default\""], target, "no such cache there")?;
    let ttl = o.take_string("ttl")?;
    o.finish(target)?;
    Ok(ttl)
}

fn read_tool(value: &Value<'_>, target: Dialect, tools: &mut Vec<At<Tool>>) -> Result<(), DialectError> {
    let mut o = value.object()?;
    if let Some(point) = o.take("cachePoint") {
        let ttl = read_cache_point(&point, target)?;
        let last = tools.last_mut().ok_or_else(|| point.expected("a tool before it"))?;
        last.v.cache = Some(ttl);
        return o.finish(target);
    }
    let Some(spec) = o.take("toolSpec") else {
        o.finish(target)?;
        return Err(value.expected("a toolSpec or a cachePoint"));
    };
    let mut s = spec.object()?;
    let mut schema = s.need("inputSchema")?.object()?;
    let tool = Tool {
        name: s.need_string("name")?,
        description: s.take_string("description")?,
        schema: Some(schema.need("json")?.raw_object()?),
        strict: s.take_bool("strict")?,
        cache: None,
    };
    schema.finish(target)?;
    s.finish(target)?;
    tools.push(At::new(tool, value.at()));
    o.finish(target)
}

fn read_tool_choice(value: &Value<'_>, target: Dialect) -> Result<ToolChoice, DialectError> {
    let mut o = value.object()?;
    let choice = if o.take("auto").is_some() {
        ToolChoice::Auto
    } else if o.take("any").is_some() {
        ToolChoice::Required
    } else {
        let mut tool = o.need("tool")?.object()?;
        let name = tool.need_string("name")?;
        tool.finish(target)?;
        ToolChoice::Named(name)
    };
    o.finish(target)?;
    Ok(choice)
}

fn read_block(block: &Value<'_>, target: Dialect, role: Role) -> Result<At<Part>, DialectError> {
    let mut o = block.object()?;
    let part = if let Some(text) = o.take_string("text")? {
        Part::Text(text)
    } else if let Some(point) = o.take("cachePoint") {
        Part::CachePoint { ttl: read_cache_point(&point, target)? }
    } else {
        let kinds = match role {
            Role::User => ["image", "toolResult"],
            Role::Assistant => ["toolUse", "reasoningContent"],
        };
        match kinds.into_iter().find_map(|kind| Some((kind, o.take(kind)?))) {
            Some(("image", image)) => Part::Image(read_image(&image, target)?),
            Some(("toolResult", result)) => Part::ToolResult(read_result(&result, target)?),
            Some(("toolUse", call)) => read_tool_use(&call, target)?,
            Some((_, reasoning)) => read_reasoning(&reasoning, target)?,
            None => {
                o.finish(target)?;
                return Err(block.expected("a block of one of its kinds"));
            }
        }
    };
    o.finish(target)?;
    Ok(At::new(part, block.at()))
}

pub(super) fn read_tool_use(call: &Value<'_>, target: Dialect) -> Result<Part, DialectError> {
    let mut c = call.object()?;
    let part = Part::ToolCall {
        id: c.need_string("toolUseId")?,
        name: c.need_string("name")?,
        arguments: c.need("input")?.raw_object()?,
    };
    c.only("type", &["\"tool_use\""], target, "tools that the provider runs exist only there")?;
    c.finish(target)?;
    Ok(part)
}

pub(super) fn read_reasoning(value: &Value<'_>, target: Dialect) -> Result<Part, DialectError> {
    let mut o = value.object()?;
    let part = if let Some(data) = o.take_string("redactedContent")? {
        Part::Redacted(data)
    } else {
        let mut text = o.need("reasoningText")?.object()?;
        let signature = text.take_string("signature")?.filter(|s| !s.is_empty());
        let part = Part::Thinking { text: text.need_string("text")?, signature };
        text.finish(target)?;
        part
    };
    o.finish(target)?;
    Ok(part)
}

fn read_image(value: &Value<'_>, target: Dialect) -> Result<Image, DialectError> {
    let mut o = value.object()?;
    let format = o.need_string("format")?;
    let source = o.need("source")?;
    let mut s = source.object()?;
    let Some(bytes) = s.take("bytes") else {
        return Err(source.untranslatable(target, "files of one provider are unknown to another"));
    };
    let data = base64_canonical(&bytes.string()?).ok_or_else(|| bytes.expected("base64"))?;
    s.finish(target)?;
    o.finish(target)?;
    Ok(Image::Base64 { media_type: format!("image/{format}"), data })
}

fn read_result(value: &Value<'_>, target: Dialect) -> Result<ToolResult, DialectError> {
    let mut o = value.object()?;
    let mut content = Vec::new();
    for block in o.need("content")?.array()? {
        let mut b = block.object()?;
        content.push(if let Some(text) = b.take_string("text")? {
            ResultPart::Text(text)
        } else if let Some(json) = b.take("json") {
            ResultPart::Json(json.raw())
        } else if let Some(image) = b.take("image") {
            ResultPart::Image(read_image(&image, target)?)
        } else {
            b.finish(target)?;
            return Err(block.expected("text, json or an image"));
        });
        b.finish(target)?;
    }
    let error = match o.take("status") {
        None => false,
        Some(status) => match status.string()?.as_str() {
            "success" => false,
            "error" => true,
            _ => return Err(status.expected("success or error")),
        },
    };
    let result = ToolResult { id: o.need_string("toolUseId")?, name: None, content, error };
    o.finish(target)?;
    Ok(result)
}

/// Whether the messages hold an image.
pub(crate) fn has_images(messages: &Value<'_>) -> Result<bool, DialectError> {
    for message in messages.array()? {
        for block in message.object()?.take_array("content")? {
            let mut b = block.object()?;
            if b.take("image").is_some() {
                return Ok(true);
            }
            let Some(result) = b.take("toolResult").filter(Value::is_object) else { continue };
            for inner in result.object()?.take_array("content")? {
                if inner.is_object() && inner.object()?.take("image").is_some() {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Writes a body.
pub(crate) fn write_request(c: &Conversation, to: &Writing<'_>) -> Result<String, DialectError> {
    let target = Dialect::Bedrock;
    refuse_sampling(c, target)?;
    if let Some(parallel) = c.parallel_tools.as_ref().filter(|p| !p.v) {
        return Err(parallel.refuse(target, "parallel calls cannot be forbidden there"));
    }
    let mut o = Obj::new();
    let mut messages = Vec::<Json>::new();
    for turn in &c.turns {
        messages.push(
            Obj::new().with("role", turn.role.name()).with("content", write_blocks(&turn.parts)?).into(),
        );
    }
    o.put("messages", messages);
    if !c.system.is_empty() {
        o.put("system", write_blocks(&c.system)?);
    }
    let value = |field: &Option<At<Raw>>| field.as_ref().map(|f| Json::from(&f.v));
    let config = Obj::new()
        .opt("maxTokens", c.max_output.as_ref().map(|m| m.v))
        .opt("temperature", value(&c.temperature))
        .opt("topP", value(&c.top_p))
        .opt("stopSequences", c.stop.as_ref().map(|s| Json::from(s.v.as_slice())));
    o = o.opt("inferenceConfig", config.unless_empty());
    let mut tools = Vec::<Json>::new();
    for tool in &c.tools {
        let schema = tool.v.schema.clone().map_or_else(|| Obj::of_type("object").into(), Json::Raw);
        let spec = Obj::new()
            .with("name", &tool.v.name)
            .opt("description", tool.v.description.as_ref())
            .with("inputSchema", Obj::new().with("json", schema))
            .opt("strict", tool.v.strict.filter(|strict| *strict));
        tools.push(Obj::new().with("toolSpec", spec).into());
        if let Some(ttl) = &tool.v.cache {
            tools.push(cache_point(ttl.as_deref()).into());
        }
    }
    if tools.is_empty() {
        refuse_some(
            &c.tool_choice.clone().filter(|t| t.v != ToolChoice::None),
            target,
            "there are no tools",
        )?;
    } else {
        let config = Obj::new().with("tools", tools).opt("toolChoice", write_tool_choice(c)?);
        o.put("toolConfig", config);
    }
    if let Some(format) = &c.format {
        let Format::Schema { name, description, schema, .. } = &format.v else {
            return Err(format.refuse(target, "JSON needs a schema there"));
        };
        let inner = Obj::new()
            .with("schema", schema.as_str())
            .opt("name", name.as_ref())
            .opt("description", description.as_ref());
        let structure = Obj::new().with("jsonSchema", inner);
        let format = Obj::of_type("json_schema").with("structure", structure);
        o.put("outputConfig", Obj::new().with("textFormat", format));
    }
    Ok(o.opt("additionalModelRequestFields", write_more(c, to)?.unless_empty()).text())
}

/// What Claude takes beside the fields of all models.
fn write_more(c: &Conversation, to: &Writing<'_>) -> Result<Obj, DialectError> {
    let target = Dialect::Bedrock;
    if !to.model.contains("claude") && !to.model.contains("anthropic") {
        refuse_some(&c.top_k, target, "only Claude's is known")?;
        refuse_some(&c.effort, target, "only Claude's is known")?;
        refuse_some(&c.thinking, target, "only Claude's is known")?;
    }
    Ok(Obj::new()
        .opt("top_k", c.top_k.as_ref().map(|k| &k.v))
        .opt("thinking", thinking_fields(c))
        .opt("output_config", effort_fields(c, target)?.unless_empty()))
}

fn cache_point(ttl: Option<&str>) -> Obj {
    Obj::new().with("cachePoint", Obj::of_type("default").opt("ttl", ttl))
}

fn write_tool_choice(c: &Conversation) -> Result<Option<Obj>, DialectError> {
    let Some(choice) = &c.tool_choice else { return Ok(None) };
    Ok(Some(match &choice.v {
        ToolChoice::Auto => Obj::new().with("auto", Obj::new()),
        ToolChoice::Required => Obj::new().with("any", Obj::new()),
        ToolChoice::Named(name) => Obj::new().with("tool", Obj::new().with("name", name)),
        ToolChoice::None => {
            return Err(choice.refuse(Dialect::Bedrock, "calls cannot be forbidden where there are tools"));
        }
    }))
}

fn write_blocks(parts: &[At<Part>]) -> Result<Json, DialectError> {
    let mut blocks = Vec::<Json>::new();
    for part in parts {
        blocks.push(write_block(&part.v).map_err(|why| part.refuse(Dialect::Bedrock, why))?.into());
    }
    Ok(blocks.into())
}

/// A block; of an answer, too.
pub(super) fn write_block(part: &Part) -> Result<Obj, &'static str> {
    Ok(match part {
        Part::Text(text) => Obj::new().with("text", text),
        Part::Image(image) => Obj::new().with("image", write_image(image)?),
        Part::ToolCall { id, name, arguments } => {
            let call = Obj::new().with("toolUseId", id).with("name", name).with("input", arguments);
            Obj::new().with("toolUse", call)
        }
        Part::ToolResult(result) => {
            let mut content = Vec::<Json>::new();
            for part in &result.content {
                content.push(
                    match part {
                        ResultPart::Text(text) => Obj::new().with("text", text),
                        ResultPart::Json(raw) => Obj::new().with("json", raw),
                        ResultPart::Image(image) => Obj::new().with("image", write_image(image)?),
                    }
                    .into(),
                );
            }
            let block = Obj::new().with("toolUseId", &result.id).with("content", content);
            Obj::new().with("toolResult", block.opt("status", result.error.then_some("error")))
        }
        Part::Thinking { text, signature } => {
            let text = Obj::new().with("text", text).opt("signature", signature.as_ref());
            Obj::new().with("reasoningContent", Obj::new().with("reasoningText", text))
        }
        Part::Redacted(data) => Obj::new().with("reasoningContent", Obj::new().with("redactedContent", data)),
        Part::CachePoint { ttl } => cache_point(ttl.as_deref()),
    })
}

fn write_image(image: &Image) -> Result<Obj, &'static str> {
    let Image::Base64 { media_type, data } = image else {
        return Err("images are not fetched from URLs there");
    };
    let format = match media_type.as_str() {
        "image/png" => "png",
        "image/jpeg" | "image/jpg" => "jpeg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        _ => return Err("images are png, jpeg, gif or webp there"),
    };
    Ok(Obj::new().with("format", format).with("source", Obj::new().with("bytes", data)))
}
