//! Requests: read from callers, written to routes.
use crate::common::{
    At, Conversation, Effort, Format, Image, Part, ResultPart, Role, Thinking, Tool, ToolChoice, ToolResult,
    Turn, Writing, refuse_some,
};
use crate::dialect::{Dialect, Flavour};
use crate::error::DialectError;
use crate::json::{Json, Obj, Object, Raw, Value};

/// Reads a body that is to be said to `target`.
pub(crate) fn read_request(body: &Value<'_>, target: Dialect) -> Result<Conversation, DialectError> {
    let mut o = body.object()?;
    let mut c = Conversation::default();
    o.ignore(&["model", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"]);
    c.stream = o.take_bool("stream")?.unwrap_or(false);
    if let Some(mut options) = o.take_object("stream_options")? {
        c.usage_in_stream = options.take_bool("include_usage")?.unwrap_or(false);
        options.ignore(&["include_obfuscation"]);
        options.finish(target)?;
    }
    c.max_output = o.take_at("max_tokens", Value::u64)?;
    if let Some(max) = o.take_at("max_completion_tokens", Value::u64)? {
        if c.max_output.is_some_and(|old| old.v != max.v) {
            return Err(max.refuse(target, "max_tokens says another number"));
        }
        c.max_output = Some(max);
    }
    c.temperature = o.take_at("temperature", Value::number)?;
    c.top_p = o.take_at("top_p", Value::number)?;
    c.top_k = o.take_at("top_k", Value::number)?;
    c.seed = o.take_at("seed", Value::number)?;
    c.presence_penalty = o.take_at("presence_penalty", Value::number)?.filter(|n| !n.v.is_zero());
    c.frequency_penalty = o.take_at("frequency_penalty", Value::number)?.filter(|n| !n.v.is_zero());
    if let Some(stop) = o.take("stop") {
        c.stop =
            if stop.is_string() { Some(stop.read(|s| Ok(vec![s.string()?]))?) } else { stop.some_strings()? };
    }
    o.only("n", &["1"], target, "one answer only")?;
    o.only("store", &["false"], target, "nothing is stored there")?;
    o.only("service_tier", &["\"auto\"", "\"default\""], target, "no such tiers there")?;
    o.only("logprobs", &["false"], target, "no log probabilities there")?;
    o.only("top_logprobs", &["0"], target, "no log probabilities there")?;
    o.only("logit_bias", &["{}"], target, "no such bias there")?;
    o.only("modalities", &["[\"text\"]"], target, "text only")?;
    o.only("verbosity", &["\"medium\""], target, "no such setting there")?;
    c.user = o.take_string("user")?;
    c.parallel_tools = o.take_at("parallel_tool_calls", Value::bool)?;
    c.effort = o.take_at("reasoning_effort", read_effort)?;
    if let Some(thinking) = o.take("thinking") {
        c.thinking = Some(crate::anthropic::read_thinking(&thinking, target)?);
    }
    if let Some(format) = o.take("response_format") {
        c.format = read_format(&format, Names::Inside, target)?;
    }
    for tool in o.take_array("tools")? {
        c.tools.push(tool.read(|tool| read_tool(tool, Names::Inside, target))?);
    }
    c.tool_choice = o.take_at("tool_choice", |choice| read_tool_choice(choice, Names::Inside, target))?;
    for message in o.need("messages")?.array()? {
        read_message(&message, target, &mut c)?;
    }
    o.finish(target)?;
    Ok(c.canonical())
}

pub(crate) fn read_effort(value: &Value<'_>) -> Result<Effort, DialectError> {
    Effort::of_name(&value.string()?).ok_or_else(|| value.expected("an effort from none to max"))
}

/// Where what a `type` names stands: chat has it inside an object of that name, responses beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Inside,
    Beside,
}

impl Names {
    /// Reads what the type names, and refuses what is left.
    fn read<'a, T>(
        self,
        mut o: Object<'a>,
        key: &str,
        target: Dialect,
        read: impl FnOnce(&mut Object<'a>) -> Result<T, DialectError>,
    ) -> Result<T, DialectError> {
        let seen = match self {
            Self::Beside => read(&mut o)?,
            Self::Inside => {
                let mut inner = o.need(key)?.object()?;
                let seen = read(&mut inner)?;
                inner.finish(target)?;
                seen
            }
        };
        o.finish(target)?;
        Ok(seen)
    }
}

pub(crate) fn read_format(
    value: &Value<'_>,
    names: Names,
    target: Dialect,
) -> Result<Option<At<Format>>, DialectError> {
    let mut o = value.object()?;
    let format = match o.need_string("type")?.as_str() {
        "text" => {
            o.finish(target)?;
            return Ok(None);
        }
        "json_object" => {
            o.finish(target)?;
            Format::Json
        }
        "json_schema" => names.read(o, "json_schema", target, |schema| {
            Ok(Format::Schema {
                name: schema.take_string("name")?,
                description: schema.take_string("description")?,
                schema: schema.need("schema")?.raw_object()?,
                strict: schema.take_bool("strict")?,
            })
        })?,
        _ => return Err(o.expected("text, json_object or json_schema")),
    };
    Ok(Some(At::new(format, value.at())))
}

pub(crate) fn read_tool(value: &Value<'_>, names: Names, target: Dialect) -> Result<Tool, DialectError> {
    let mut o = value.object()?;
    let kind = o.need("type")?;
    if kind.string()? != "function" {
        return Err(kind.untranslatable(target, "only functions can be declared there"));
    }
    let cache = if names == Names::Inside { read_cache_control(&mut o, target)? } else { None };
    names.read(o, "function", target, |f| {
        Ok(Tool {
            name: f.need_string("name")?,
            description: f.take_string("description")?,
            schema: f.take("parameters").map(|v| v.raw_object()).transpose()?,
            strict: f.take_bool("strict")?,
            cache,
        })
    })
}

/// `{"type": "ephemeral", "ttl": "5m"}`, and its `ttl`.
pub(crate) fn read_cache_control(
    o: &mut Object<'_>,
    target: Dialect,
) -> Result<Option<Option<String>>, DialectError> {
    let Some(mut control) = o.take_object("cache_control")? else { return Ok(None) };
    control.only("type", &["\"ephemeral\""], target, "no such cache there")?;
    let ttl = control.take_string("ttl")?;
    control.finish(target)?;
    Ok(Some(ttl))
}

pub(crate) fn read_tool_choice(
    value: &Value<'_>,
    names: Names,
    target: Dialect,
) -> Result<ToolChoice, DialectError> {
    if value.is_string() {
        return Ok(match value.string()?.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            // Mistral's word
            "required" | "any" => ToolChoice::Required,
            _ => return Err(value.expected("auto, none, required or a function")),
        });
    }
    let mut o = value.object()?;
    let kind = o.need("type")?;
    if kind.string()? != "function" {
        return Err(kind.untranslatable(target, "only one function can be named there"));
    }
    names.read(o, "function", target, |f| Ok(ToolChoice::Named(f.need_string("name")?)))
}

fn read_message(message: &Value<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    let mut o = message.object()?;
    let role = o.need("role")?;
    match role.string()?.as_str() {
        "system" | "developer" => {
            if !c.turns.is_empty() {
                return Err(role.untranslatable(target, "instructions stand before the first turn there"));
            }
            let content = o.need("content")?;
            c.system.extend(read_content(&content, target, false)?);
        }
        "user" => {
            let content = o.need("content")?;
            c.turns.push(Turn { role: Role::User, parts: read_content(&content, target, true)? });
        }
        "assistant" => {
            let parts = read_assistant(&mut o, target)?;
            c.turns.push(Turn { role: Role::Assistant, parts });
        }
        "tool" => {
            let id = o.need_string("tool_call_id")?;
            let content = o.need("content")?;
            let mut result = ToolResult { id, name: None, content: Vec::new(), error: false };
            let mut after = Vec::new();
            for part in read_content(&content, target, false)? {
                match part.v {
                    Part::Text(text) => result.content.push(ResultPart::Text(text)),
                    _ => after.push(part),
                }
            }
            let mut parts = vec![At::new(Part::ToolResult(result), message.at())];
            parts.extend(after);
            c.turns.push(Turn { role: Role::User, parts });
        }
        _ => return Err(role.expected("system, developer, user, assistant or tool")),
    }
    o.finish(target)
}

/// A string, or parts of text and, for users, images.
fn read_content(content: &Value<'_>, target: Dialect, images: bool) -> Result<Vec<At<Part>>, DialectError> {
    if content.is_string() {
        return Ok(vec![At::new(Part::Text(content.string()?), content.at())]);
    }
    let mut parts = Vec::new();
    for value in content.array()? {
        let mut o = value.object()?;
        let kind = o.need("type")?;
        let cache = read_cache_control(&mut o, target)?;
        match kind.string()?.as_str() {
            "text" => parts.push(At::new(Part::Text(o.need_string("text")?), value.at())),
            "refusal" if !images => parts.push(At::new(Part::Text(o.need_string("refusal")?), value.at())),
            "image_url" if images => {
                let mut image = o.need("image_url")?.object()?;
                let url = image.need("url")?;
                let read = Image::of_url(url.string()?, url.at())?;
                image.only("detail", &["\"auto\""], target, "images have no level of detail there")?;
                image.finish(target)?;
                parts.push(At::new(Part::Image(read), value.at()));
            }
            _ => return Err(value.untranslatable(target, "only text and images can be said there")),
        }
        if let Some(ttl) = cache {
            parts.push(At::new(Part::CachePoint { ttl }, value.at()));
        }
        o.finish(target)?;
    }
    Ok(parts)
}

fn read_assistant(o: &mut Object<'_>, target: Dialect) -> Result<Vec<At<Part>>, DialectError> {
    o.only("annotations", &["[]"], target, "citations cannot be said there")?;
    let mut parts = match o.take("content") {
        Some(content) if !(content.is_string() && content.text() == "\"\"") => {
            read_content(&content, target, false)?
        }
        _ => Vec::new(),
    };
    if let Some(refusal) = o.take("refusal") {
        parts.push(At::new(Part::Text(refusal.string()?), refusal.at()));
    }
    for call in o.take_array("tool_calls")? {
        let mut t = call.object()?;
        t.ignore(&["index"]);
        t.only("type", &["\"function\""], target, "only functions can be called there")?;
        let id = t.need_string("id")?;
        let mut f = t.need("function")?.object()?;
        let name = f.need_string("name")?;
        let arguments = f.need("arguments")?;
        let raw = arguments_of(&arguments.string()?)
            .ok_or_else(|| arguments.expected("a JSON object in a string"))?;
        f.finish(target)?;
        t.finish(target)?;
        parts.push(At::new(Part::ToolCall { id, name, arguments: raw }, call.at()));
    }
    let plain = o.take("reasoning_content");
    let plain = plain.or(o.take("reasoning"));
    match o.take("thinking_blocks") {
        Some(blocks) => {
            // each goes to its place among all pieces, or else in front: places ascend
            let mut rest = std::mem::take(&mut parts).into_iter();
            for (nth, block) in blocks.array()?.iter().enumerate() {
                let mut b = block.object()?;
                b.ignore(&["index"]);
                let place = b.take_u64("position")?.and_then(|i| usize::try_from(i).ok()).unwrap_or(nth);
                let part = match b.need_string("type")?.as_str() {
                    "thinking" => Part::Thinking {
                        text: b.need_string("thinking")?,
                        signature: b.take_string("signature")?.filter(|s| !s.is_empty()),
                    },
                    "redacted_thinking" => Part::Redacted(b.need_string("data")?),
                    _ => return Err(block.expected("thinking or redacted_thinking")),
                };
                b.finish(target)?;
                parts.extend(rest.by_ref().take(place.saturating_sub(parts.len())));
                parts.push(At::new(part, block.at()));
            }
            parts.extend(rest);
        }
        None => {
            if let Some(plain) = plain {
                let text = plain.string()?;
                if !text.is_empty() {
                    parts.insert(0, At::new(Part::Thinking { text, signature: None }, plain.at()));
                }
            }
        }
    }
    Ok(parts)
}

/// Arguments as models write them. Some say nothing where there are none.
pub(crate) fn arguments_of(text: &str) -> Option<Raw> {
    if text.trim().is_empty() {
        return Some(Raw::empty_object());
    }
    Raw::parse(text).filter(Raw::is_object)
}

/// Whether a user says an image: for routing, where nothing else is read.
pub(crate) fn has_images(messages: &Value<'_>) -> Result<bool, DialectError> {
    for message in messages.array()? {
        let Some(content) = message.object()?.take("content").filter(Value::is_array) else { continue };
        for part in content.array()? {
            if part.is_object() && part.object()?.take("image_url").is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Writes a body.
pub(crate) fn write_request(c: &Conversation, to: &Writing<'_>) -> Result<String, DialectError> {
    use Flavour as F;
    let target = Dialect::OpenAi;
    let flavour = to.flavour;
    let mut messages = Vec::new();
    if !c.system.is_empty() {
        messages.push(Obj::new().with("role", "system").with("content", write_system(&c.system, to)?).into());
    }
    for turn in &c.turns {
        match turn.role {
            Role::User => write_user(turn, to, &mut messages)?,
            Role::Assistant => messages.push(write_assistant(turn, to)?.into()),
        }
    }
    let mut o = Obj::new().with("model", to.model).with("messages", messages);
    if let Some(max) = &c.max_output {
        let name = match flavour {
            F::OpenAi | F::Azure | F::Groq | F::Xai => "max_completion_tokens",
            F::Vllm | F::LlamaCpp | F::Ollama | F::Mistral | F::DeepSeek | F::OpenRouter | F::Compatible => {
                "max_tokens"
            }
        };
        o.put(name, max.v);
    }
    let value = |field: &Option<At<Raw>>| field.as_ref().map(|f| Json::from(&f.v));
    o = o.opt("temperature", value(&c.temperature)).opt("top_p", value(&c.top_p));
    match flavour {
        F::Vllm | F::LlamaCpp | F::OpenRouter => o = o.opt("top_k", value(&c.top_k)),
        _ => refuse_some(&c.top_k, target, "this server has no top_k")?,
    }
    o = o.opt(if flavour == F::Mistral { "random_seed" } else { "seed" }, value(&c.seed));
    o = o.opt("presence_penalty", value(&c.presence_penalty));
    o = o.opt("frequency_penalty", value(&c.frequency_penalty));
    o = o.opt("stop", c.stop.as_ref().map(|s| Json::from(s.v.as_slice())));
    let tools: Vec<Json> = c.tools.iter().map(|t| write_tool(&t.v).into()).collect();
    o = o.opt("tools", (!tools.is_empty()).then_some(tools));
    if let Some(choice) = &c.tool_choice {
        let written = match &choice.v {
            ToolChoice::Auto => Json::from("auto"),
            ToolChoice::None => Json::from("none"),
            ToolChoice::Required if flavour == F::Ollama => {
                return Err(choice.refuse(target, "Ollama does not force a call"));
            }
            ToolChoice::Named(_) if flavour == F::Ollama => {
                return Err(choice.refuse(target, "Ollama does not force a call"));
            }
            ToolChoice::Required if flavour == F::Mistral => Json::from("any"),
            ToolChoice::Required => Json::from("required"),
            ToolChoice::Named(name) => {
                Obj::of_type("function").with("function", Obj::new().with("name", name)).into()
            }
        };
        o.put("tool_choice", written);
    }
    if let Some(parallel) = &c.parallel_tools {
        if matches!(flavour, F::Ollama | F::DeepSeek) && !parallel.v {
            return Err(parallel.refuse(target, "this server does not forbid parallel calls"));
        }
        if !matches!(flavour, F::Ollama | F::DeepSeek) {
            o.put("parallel_tool_calls", parallel.v);
        }
    }
    if let Some(format) = &c.format {
        o.put("response_format", write_format(format, flavour)?);
    }
    write_reasoning(c, flavour, &mut o)?;
    if matches!(flavour, F::OpenAi | F::Azure | F::OpenRouter | F::Xai | F::Groq) {
        o = o.opt("user", c.user.as_ref().map(Json::from));
    }
    if c.stream {
        o.put("stream", true);
        // Mistral's last event has usage unasked, and it refuses fields it does not know
        if flavour != F::Mistral {
            o.put("stream_options", Obj::new().with("include_usage", true));
        }
    }
    Ok(o.text())
}

fn write_reasoning(c: &Conversation, flavour: Flavour, o: &mut Obj) -> Result<(), DialectError> {
    use Flavour as F;
    let target = Dialect::OpenAi;
    let takes_effort =
        matches!(flavour, F::OpenAi | F::Azure | F::Groq | F::Xai | F::OpenRouter | F::Ollama | F::Vllm);
    if let Some(effort) = &c.effort {
        if !takes_effort {
            return Err(effort.refuse(target, "this server takes no effort"));
        }
        o.put("reasoning_effort", effort.v.name());
    }
    let Some(thinking) = &c.thinking else { return Ok(()) };
    match thinking.v {
        // a model that reasons does so there as much as it likes, unless told otherwise
        Thinking::Adaptive { .. } => {}
        Thinking::Off if c.effort.as_ref().is_some_and(|e| e.v == Effort::None) => {}
        Thinking::Off if takes_effort && c.effort.is_none() => o.put("reasoning_effort", "none"),
        Thinking::Budget { max, .. } if flavour == F::OpenRouter && c.effort.is_none() => {
            o.put("reasoning", Obj::new().with("max_tokens", max));
        }
        Thinking::Off => return Err(thinking.refuse(target, "this server cannot be told not to think")),
        Thinking::Budget { .. } => {
            return Err(thinking.refuse(target, "thinking has an effort there, no budget"));
        }
    }
    Ok(())
}

fn write_format(format: &At<Format>, flavour: Flavour) -> Result<Obj, DialectError> {
    match &format.v {
        Format::Json => Ok(Obj::of_type("json_object")),
        Format::Schema { .. } if flavour == Flavour::DeepSeek => {
            Err(format.refuse(Dialect::OpenAi, "DeepSeek has no JSON schema"))
        }
        Format::Schema { name, description, schema, strict } => {
            let inner = Obj::new()
                .with("name", name.as_deref().unwrap_or("response"))
                .opt("description", description.as_ref())
                .with("schema", schema)
                .opt("strict", *strict);
            Ok(Obj::of_type("json_schema").with("json_schema", inner))
        }
    }
}

fn write_tool(tool: &Tool) -> Obj {
    let function = Obj::new()
        .with("name", &tool.name)
        .opt("description", tool.description.as_ref())
        .opt("parameters", tool.schema.as_ref())
        .opt("strict", tool.strict);
    Obj::of_type("function").with("function", function)
}

fn text_part(text: &str) -> Obj {
    Obj::of_type("text").with("text", text)
}

/// Marks the part before a cache point. OpenRouter hands it to the providers that know it; OpenAI caches prefixes unasked.
/// <https://openrouter.ai/docs/features/prompt-caching>
fn mark(content: &mut [Obj], ttl: Option<&str>, flavour: Flavour) -> bool {
    match content.last_mut() {
        Some(last) if flavour == Flavour::OpenRouter && last.type_name() == "text" => {
            last.put("cache_control", Obj::of_type("ephemeral").opt("ttl", ttl));
            true
        }
        _ => false,
    }
}

/// One text as a string, anything else as parts.
fn one_or_parts(content: Vec<Obj>, only_text: Option<&str>) -> Json {
    match (content.len(), only_text) {
        (1, Some(text)) => Json::from(text),
        _ => content.into_iter().map(Json::from).collect::<Vec<_>>().into(),
    }
}

fn write_system(parts: &[At<Part>], to: &Writing<'_>) -> Result<Json, DialectError> {
    let mut content: Vec<Obj> = Vec::new();
    let mut only_text: Option<&str> = None;
    for part in parts {
        match &part.v {
            Part::Text(text) => {
                only_text = content.is_empty().then_some(text);
                content.push(text_part(text));
            }
            Part::CachePoint { ttl } => {
                if mark(&mut content, ttl.as_deref(), to.flavour) {
                    only_text = None;
                }
            }
            _ => return Err(part.refuse(to.dialect, "only text can stand here")),
        }
    }
    Ok(one_or_parts(content, only_text))
}

fn one_or_many(texts: &[&str]) -> Json {
    match texts {
        [one] => Json::from(*one),
        many => many.iter().map(|t| text_part(t).into()).collect::<Vec<Json>>().into(),
    }
}

fn write_user(turn: &Turn, to: &Writing<'_>, messages: &mut Vec<Json>) -> Result<(), DialectError> {
    let target = Dialect::OpenAi;
    let mut content: Vec<Obj> = Vec::new();
    let mut only_text: Option<&str> = None;
    let flush = |content: &mut Vec<Obj>, only_text: &mut Option<&str>, messages: &mut Vec<Json>| {
        if content.is_empty() {
            return;
        }
        let content = one_or_parts(std::mem::take(content), only_text.take());
        messages.push(Obj::new().with("role", "user").with("content", content).into());
    };
    for part in &turn.parts {
        match &part.v {
            Part::Text(text) => {
                only_text = content.is_empty().then_some(text);
                content.push(text_part(text));
            }
            Part::Image(image) => {
                only_text = None;
                let url = Obj::new().with("url", image.clone().into_url());
                content.push(Obj::of_type("image_url").with("image_url", url));
            }
            Part::ToolResult(result) => {
                flush(&mut content, &mut only_text, messages);
                let content = write_result(result)
                    .ok_or_else(|| part.refuse(target, "a tool's result is text there, no image"))?;
                let message = Obj::new().with("role", "tool").with("tool_call_id", &result.id);
                messages.push(message.with("content", content).into());
            }
            Part::CachePoint { ttl } => {
                if mark(&mut content, ttl.as_deref(), to.flavour) {
                    only_text = None;
                }
            }
            _ => return Err(part.refuse(to.dialect, "users cannot say this there")),
        }
    }
    flush(&mut content, &mut only_text, messages);
    Ok(())
}

/// A tool's result as text. An error, for which there is no field, is said in it, as Gemini does.
fn write_result(result: &ToolResult) -> Option<Json> {
    let mut texts = Vec::new();
    for part in &result.content {
        match part {
            ResultPart::Text(text) => texts.push(text.as_str()),
            ResultPart::Json(raw) => texts.push(raw.as_str()),
            ResultPart::Image(_) => return None,
        }
    }
    if result.error {
        return Some(Obj::new().with("error", one_or_many_strings(&texts)).text().into());
    }
    Some(if texts.is_empty() { Json::from("") } else { one_or_many(&texts) })
}

fn one_or_many_strings(texts: &[&str]) -> Json {
    match texts {
        [one] => Json::from(*one),
        many => many.iter().map(|t| Json::from(*t)).collect::<Vec<_>>().into(),
    }
}

fn write_assistant(turn: &Turn, to: &Writing<'_>) -> Result<Obj, DialectError> {
    let target = Dialect::OpenAi;
    let (mut texts, mut calls, mut thoughts) = (Vec::new(), Vec::<Json>::new(), String::new());
    for part in &turn.parts {
        match &part.v {
            Part::Text(text) if calls.is_empty() => texts.push(text.as_str()),
            Part::Text(_) => return Err(part.refuse(target, "text stands before tool calls there")),
            Part::ToolCall { id, name, arguments } => calls.push(write_call(id, name, arguments)),
            Part::Thinking { text, signature: None }
                if thinking_field(to.flavour).is_some() && texts.is_empty() && calls.is_empty() =>
            {
                thoughts.push_str(text);
            }
            Part::Thinking { .. } | Part::Redacted(_) => {
                return Err(part.refuse(target, "thinking of another provider cannot be handed over"));
            }
            Part::CachePoint { .. } => {}
            _ => return Err(part.refuse(target, "assistants cannot say this there")),
        }
    }
    let mut o = Obj::new().with("role", "assistant");
    match texts.as_slice() {
        [] if calls.is_empty() => o.put("content", ""),
        [] => o.put("content", Json::Null),
        texts => o.put("content", one_or_many(texts)),
    }
    if let (false, Some(field)) = (thoughts.is_empty(), thinking_field(to.flavour)) {
        o.put(field, thoughts);
    }
    Ok(o.opt("tool_calls", (!calls.is_empty()).then_some(calls)))
}

pub(super) fn write_call(id: &str, name: &str, arguments: &Raw) -> Json {
    let function = Obj::new().with("name", name).with("arguments", arguments.as_str());
    Obj::new().with("id", id).with("type", "function").with("function", function).into()
}

/// Where a server takes its own model's thinking back.
fn thinking_field(flavour: Flavour) -> Option<&'static str> {
    match flavour {
        Flavour::DeepSeek | Flavour::Vllm | Flavour::LlamaCpp => Some("reasoning_content"),
        Flavour::OpenRouter => Some("reasoning"),
        Flavour::OpenAi
        | Flavour::Azure
        | Flavour::Ollama
        | Flavour::Mistral
        | Flavour::Groq
        | Flavour::Xai
        | Flavour::Compatible => None,
    }
}
