//! Requests: read from callers, written to routes.
use crate::common::{
    At, Conversation, Effort, Format, Image, Part, ResultPart, Role, Thinking, Tool, ToolChoice, ToolResult,
    Turn, Writing, base64_canonical, described,
};
use crate::dialect::Dialect;
use crate::error::DialectError;
use crate::gemini::schema::json_schema;
use crate::json::{Json, Obj, Object, Raw, Value};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Marks redacted thinking within a signature's bytes.
const REDACTED: &[u8] = b"redacted_thinking:";
/// Marks a signature that is no base64.
const WRAPPED: &[u8] = b"signature:";

/// Reads a body that is to be said to `target`. Whether it streams stands in the path.
pub(crate) fn read_request(
    body: &Value<'_>,
    stream: bool,
    target: Dialect,
) -> Result<Conversation, DialectError> {
    let mut o = body.object()?;
    let mut c = Conversation { stream, ..Conversation::default() };
    o.ignore(&["model"]);
    if let Some(settings) = o.take_either("safetySettings", "safety_settings")
        && !settings.array()?.is_empty()
    {
        return Err(settings.untranslatable(target, "no such filters there"));
    }
    if let Some(config) = o.take_either("generationConfig", "generation_config") {
        read_config(config.object()?, target, &mut c)?;
    }
    for tool in o.take_array("tools")? {
        let mut t = tool.object()?;
        if let Some(functions) = t.take_either("functionDeclarations", "function_declarations") {
            for function in functions.array()? {
                c.tools.push(At::new(read_function(&function, target)?, function.at()));
            }
        }
        t.finish(target)?;
    }
    if let Some(config) = o.take_either("toolConfig", "tool_config") {
        read_tool_config(config.object()?, target, &mut c)?;
    }
    if let Some(system) = o.take_either("systemInstruction", "system_instruction") {
        let mut s = system.object()?;
        s.ignore(&["role"]);
        for part in s.take_array("parts")? {
            let mut p = part.object()?;
            c.system.push(At::new(Part::Text(p.need_string("text")?), part.at()));
            p.finish(target)?;
        }
        s.finish(target)?;
    }
    let mut calls = Calls::default();
    for content in o.need("contents")?.array()? {
        let mut turn = content.object()?;
        let role = match turn.take("role") {
            None => Role::User,
            Some(role) => match role.string()?.as_str() {
                "user" | "function" => Role::User,
                "model" => Role::Assistant,
                _ => return Err(role.expected("user or model")),
            },
        };
        // chats keep each chunk of a stream as a content of its own: one turn, as parts belong together
        if c.turns.last().is_none_or(|last| last.role != role) {
            c.turns.push(Turn { role, parts: Vec::new() });
        }
        let parts = turn.take_array("parts")?;
        turn.finish(target)?;
        if let Some(last) = c.turns.last_mut() {
            for part in parts {
                read_part(&part, target, role, &mut calls, &mut last.parts)?;
            }
        }
    }
    o.finish(target)?;
    Ok(c.canonical())
}

fn read_config(mut o: Object<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    let mut number = |one: &str, other: &str| -> Result<_, DialectError> {
        o.take_either(one, other).map(|v| v.read(Value::number)).transpose()
    };
    c.temperature = number("temperature", "")?;
    c.top_p = number("topP", "top_p")?;
    c.top_k = number("topK", "top_k")?;
    c.seed = number("seed", "")?;
    c.presence_penalty = number("presencePenalty", "presence_penalty")?.filter(|n| !n.v.is_zero());
    c.frequency_penalty = number("frequencyPenalty", "frequency_penalty")?.filter(|n| !n.v.is_zero());
    if let Some(max) = o.take_either("maxOutputTokens", "max_output_tokens") {
        c.max_output = Some(max.read(Value::proto_u64)?);
    }
    if let Some(stop) = o.take_either("stopSequences", "stop_sequences") {
        c.stop = stop.some_strings()?;
    }
    o.only("candidateCount", &["1"], target, "one answer only")?;
    o.only("responseLogprobs", &["false"], target, "no log probabilities there")?;
    o.only("responseModalities", &["[\"TEXT\"]"], target, "text only")?;
    let mime = o.take_either("responseMimeType", "response_mime_type");
    let openapi = o.take_either("responseSchema", "response_schema");
    let schema = o.take_either("responseJsonSchema", "response_json_schema");
    let openapi_schema = openapi.is_some();
    let schema = match (openapi, schema) {
        (Some(value), None) => Some((json_schema(&value, true, target)?, value)),
        (None, Some(value)) => Some((value.raw_object()?, value)),
        (None, None) => None,
        (Some(value), Some(_)) => return Err(value.expected("one schema, not two")),
    };
    match (mime.map(|m| Ok((m.string()?, m))).transpose()?, schema) {
        (None, None) => {}
        (Some((mime, _)), None) if mime == "text/plain" => {}
        (Some((mime, value)), None) if mime == "application/json" => {
            c.format = Some(At::new(Format::Json, value.at()));
        }
        (Some((mime, _)), Some((schema, value))) if mime == "application/json" => {
            // what OpenAI asks of a strict schema is seen in this; without it, it would refuse the schema
            let strict = schema.value("").object()?.raw("additionalProperties") == Some("false");
            let strict = (strict && !openapi_schema).then_some(true);
            let format = Format::Schema { name: None, description: None, schema, strict };
            c.format = Some(At::new(format, value.at()));
        }
        (Some((_, value)), _) => return Err(value.untranslatable(target, "no such form of answers there")),
        (None, Some((_, value))) => return Err(value.expected("responseMimeType application/json beside it")),
    }
    if let Some(config) = o.take_either("thinkingConfig", "thinking_config") {
        read_thinking(&config, target, c)?;
    }
    o.finish(target)
}

fn read_thinking(config: &Value<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    let mut o = config.object()?;
    let show = o.take_either("includeThoughts", "include_thoughts").map(|v| v.bool()).transpose()?;
    if let Some(level) = o.take_either("thinkingLevel", "thinking_level") {
        let effort = Effort::of_name(&level.string()?).filter(|e| !matches!(e, Effort::None | Effort::Max));
        let effort = effort.ok_or_else(|| level.expected("a level from MINIMAL to XHIGH"))?;
        c.effort = Some(At::new(effort, level.at()));
    }
    let shown = show.unwrap_or(false);
    let thinking = match o.take_either("thinkingBudget", "thinking_budget") {
        Some(budget) if budget.text() == "-1" => Some(Thinking::Adaptive { show: Some(shown) }),
        Some(budget) => match budget.u64()? {
            0 => Some(Thinking::Off),
            max => Some(Thinking::Budget { max, show: Some(shown) }),
        },
        None => show.map(|_| Thinking::Adaptive { show }),
    };
    c.thinking = thinking.map(|t| At::new(t, config.at()));
    o.finish(target)
}

fn read_function(value: &Value<'_>, target: Dialect) -> Result<Tool, DialectError> {
    let mut o = value.object()?;
    let openapi = o.take("parameters").map(|v| json_schema(&v, false, target)).transpose()?;
    let schema = o.take_either("parametersJsonSchema", "parameters_json_schema");
    let schema = schema.map(|v| v.raw_object()).transpose()?;
    let tool = Tool {
        name: o.need_string("name")?,
        description: o.take_string("description")?,
        schema: schema.or(openapi),
        strict: None,
        cache: None,
    };
    o.finish(target)?;
    Ok(tool)
}

fn read_tool_config(mut o: Object<'_>, target: Dialect, c: &mut Conversation) -> Result<(), DialectError> {
    if let Some(config) = o.take_either("functionCallingConfig", "function_calling_config") {
        let mut f = config.object()?;
        let names = f.take_either("allowedFunctionNames", "allowed_function_names");
        let names = names.map(|n| n.strings()).transpose()?.unwrap_or_default();
        let mode = f.take_string("mode")?.unwrap_or_else(|| "AUTO".into());
        let choice = match (mode.as_str(), names.as_slice()) {
            ("AUTO" | "MODE_UNSPECIFIED", []) => ToolChoice::Auto,
            ("VALIDATED", []) => {
                c.tools.iter_mut().for_each(|tool| tool.v.strict = Some(true));
                ToolChoice::Auto
            }
            ("NONE", []) => ToolChoice::None,
            ("ANY", []) => ToolChoice::Required,
            ("ANY", [one]) => ToolChoice::Named(one.clone()),
            _ => return Err(config.untranslatable(target, "one function can be named there, or none")),
        };
        f.finish(target)?;
        c.tool_choice = Some(At::new(choice, config.at()));
    }
    o.finish(target)
}

/// Calls so far: numbers those without an id, and finds the call that a result answers.
#[derive(Default)]
struct Calls {
    calls: usize,
    /// The last number that an id was made of.
    count: usize,
    /// Ids that callers gave, and those that were made up.
    given: BTreeSet<String>,
    made: BTreeSet<String>,
    /// Calls without a result, by their number, and their numbers by id and by name.
    open: BTreeMap<usize, String>,
    by_id: BTreeMap<String, usize>,
    by_name: BTreeMap<String, VecDeque<usize>>,
}

impl Calls {
    /// The id of a call. `None`: it was made up before, for another.
    fn call(&mut self, id: Option<String>, name: &str) -> Option<String> {
        let id = match id.filter(|id| !id.is_empty()) {
            Some(id) if self.made.contains(&id) => return None,
            Some(id) => {
                self.given.insert(id.clone());
                id
            }
            None => loop {
                self.count += 1;
                let id = format!("call_{}", self.count);
                if !self.given.contains(&id) {
                    self.made.insert(id.clone());
                    break id;
                }
            },
        };
        let number = self.calls;
        self.calls += 1;
        self.open.insert(number, id.clone());
        self.by_id.insert(id.clone(), number);
        self.by_name.entry(name.to_owned()).or_default().push_back(number);
        Some(id)
    }

    fn result(&mut self, id: Option<String>, name: &str) -> Option<String> {
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            if let Some(number) = self.by_id.remove(&id) {
                self.open.remove(&number);
            }
            return Some(id);
        }
        let numbers = self.by_name.get_mut(name)?;
        while let Some(number) = numbers.pop_front() {
            if let Some(id) = self.open.remove(&number) {
                self.by_id.remove(&id);
                return Some(id);
            }
        }
        None
    }
}

fn read_part(
    part: &Value<'_>,
    target: Dialect,
    role: Role,
    calls: &mut Calls,
    parts: &mut Vec<At<Part>>,
) -> Result<(), DialectError> {
    let mut o = part.object()?;
    let thought = o.take_bool("thought")?.unwrap_or(false);
    let signature = o.take_either("thoughtSignature", "thought_signature").map(|s| s.string()).transpose()?;
    match (role, thought) {
        (Role::Assistant, true) => {
            let text = o.take_string("text")?.unwrap_or_default();
            add_thought(text, signature.as_deref(), part.at(), parts);
            return o.finish(target);
        }
        (Role::Assistant, false) => {
            if signature.is_some() {
                add_thought(String::new(), signature.as_deref(), part.at(), parts);
            }
        }
        (Role::User, _) => {
            if thought || signature.is_some() {
                return Err(part.expected("no thoughts of users"));
            }
        }
    }
    let mut add = |v: Part| parts.push(At::new(v, part.at()));
    let by = |who: Role, what: &Value<'_>| {
        if who == role { Ok(()) } else { Err(what.untranslatable(target, "the other role says this there")) }
    };
    if let Some(text) = o.take_string("text")? {
        // an empty text carries a signature only
        if !(text.is_empty() && signature.is_some()) {
            add(Part::Text(text));
        }
    } else if let Some(data) = o.take_either("inlineData", "inline_data") {
        by(Role::User, &data)?;
        add(Part::Image(read_blob(&data, target)?));
    } else if let Some(file) = o.take_either("fileData", "file_data") {
        by(Role::User, &file)?;
        add(Part::Image(read_file(&file, target)?));
    } else if let Some(call) = o.take_either("functionCall", "function_call") {
        by(Role::Assistant, &call)?;
        let mut f = call.object()?;
        let name = f.need_string("name")?;
        let id = calls.call(f.take_string("id")?, &name);
        let id = id.ok_or_else(|| f.expected("an id that no earlier call without one got"))?;
        let arguments = f.take("args").map(|a| a.raw_object()).transpose()?.unwrap_or_else(Raw::empty_object);
        f.finish(target)?;
        add(Part::ToolCall { id, name, arguments });
    } else if let Some(response) = o.take_either("functionResponse", "function_response") {
        by(Role::User, &response)?;
        add(Part::ToolResult(read_response(&response, target, calls)?));
    } else if signature.is_none() {
        return match o.finish(target) {
            Ok(()) => Err(part.expected("text, data or a function call")),
            refusal => refusal,
        };
    }
    o.finish(target)
}

/// A thought, or a signature for the one before.
pub(super) fn add_thought(text: String, signature: Option<&str>, at: &str, parts: &mut Vec<At<Part>>) {
    let signature = signature.map(unwrap_signature);
    if let Some(Unwrapped::Redacted(data)) = signature {
        parts.push(At::new(Part::Redacted(data), at));
        return;
    }
    let signature = match signature {
        Some(Unwrapped::Signature(signature)) => Some(signature),
        _ => None,
    };
    if let Some(At { v: Part::Thinking { text: before, signature: unsigned @ None }, .. }) = parts.last_mut()
    {
        before.push_str(&text);
        *unsigned = signature;
    } else if !text.is_empty() || signature.is_some() {
        parts.push(At::new(Part::Thinking { text, signature }, at));
    }
}

pub(super) enum Unwrapped {
    Signature(String),
    Redacted(String),
}

pub(super) fn unwrap_signature(field: &str) -> Unwrapped {
    let Some(canonical) = base64_canonical(field) else { return Unwrapped::Signature(field.to_owned()) };
    let bytes = STANDARD.decode(&canonical).unwrap_or_default();
    let text = |marker: &[u8]| String::from_utf8(bytes.strip_prefix(marker)?.to_vec()).ok();
    match (text(REDACTED), text(WRAPPED)) {
        (Some(data), _) => Unwrapped::Redacted(data),
        (_, Some(signature)) => Unwrapped::Signature(signature),
        _ => Unwrapped::Signature(canonical),
    }
}

fn read_blob(data: &Value<'_>, target: Dialect) -> Result<Image, DialectError> {
    let mut d = data.object()?;
    let mime = d.take_either("mimeType", "mime_type").ok_or_else(|| d.expected("a mimeType"))?;
    let media_type = mime.string()?;
    if !media_type.starts_with("image/") {
        return Err(mime.untranslatable(target, "of all media, only images can be said there"));
    }
    let bytes = d.need("data")?;
    let data = base64_canonical(&bytes.string()?).ok_or_else(|| bytes.expected("base64"))?;
    d.finish(target)?;
    Ok(Image::Base64 { media_type, data })
}

fn read_file(file: &Value<'_>, target: Dialect) -> Result<Image, DialectError> {
    let mut f = file.object()?;
    let mime = f.take_either("mimeType", "mime_type").map(|m| m.string()).transpose()?;
    let uri = f.take_either("fileUri", "file_uri").ok_or_else(|| f.expected("a fileUri"))?;
    let url = uri.string()?;
    if !url.starts_with("https://") || url.starts_with("https://generativelanguage.googleapis.com/") {
        return Err(uri.untranslatable(target, "files of one provider are unknown to another"));
    }
    if !mime.is_some_and(|m| m.starts_with("image/")) {
        return Err(uri.untranslatable(target, "of all media, only images can be said there"));
    }
    f.finish(target)?;
    Ok(Image::Url(url))
}

fn read_response(value: &Value<'_>, target: Dialect, calls: &mut Calls) -> Result<ToolResult, DialectError> {
    let mut f = value.object()?;
    let name = f.need_string("name")?;
    let id = calls.result(f.take_string("id")?, &name);
    let id = id.ok_or_else(|| f.expected("the name of a function that was called"))?;
    f.only("willContinue", &["false"], target, "results come at once there")?;
    let response = f.need("response")?;
    let mut result = ToolResult { id, name: Some(name), content: Vec::new(), error: false };
    for (key, error) in [("output", false), ("error", true)] {
        let mut r = response.object()?;
        let Some(inner) = r.take(key) else { continue };
        let texts = if inner.is_string() {
            Some(vec![inner.string()?])
        } else {
            inner.is_array().then(|| inner.strings().ok()).flatten()
        };
        if let (Some(texts), Ok(())) = (texts, r.finish(target)) {
            result.content = texts.into_iter().map(ResultPart::Text).collect();
            result.error = error;
        }
    }
    if result.content.is_empty() && response.raw_object()? != empty_output() {
        result.content.push(ResultPart::Json(response.raw_object()?));
    }
    for part in f.take_array("parts")? {
        let mut p = part.object()?;
        let data = p.take_either("inlineData", "inline_data").ok_or_else(|| p.expected("inlineData"))?;
        result.content.push(ResultPart::Image(read_blob(&data, target)?));
        p.finish(target)?;
    }
    f.finish(target)?;
    Ok(result)
}

fn empty_output() -> Raw {
    Raw::parse(r#"{"output":[]}"#).unwrap_or_else(Raw::empty_object)
}

/// Whether the contents hold an image.
pub(crate) fn has_images(contents: &Value<'_>) -> Result<bool, DialectError> {
    for content in contents.array()? {
        for part in content.object()?.take_array("parts")? {
            let mut p = part.object()?;
            for (one, other) in [("inlineData", "inline_data"), ("fileData", "file_data")] {
                let Some(data) = p.take_either(one, other).filter(Value::is_object) else { continue };
                let mime = data.object()?.take_either("mimeType", "mime_type");
                if mime.is_some_and(|m| m.text().starts_with("\"image/")) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Writes a body.
pub(crate) fn write_request(c: &Conversation, _to: &Writing<'_>) -> Result<String, DialectError> {
    let target = Dialect::Gemini;
    if let Some(parallel) = c.parallel_tools.as_ref().filter(|p| !p.v) {
        return Err(parallel.refuse(target, "parallel calls cannot be forbidden there"));
    }
    let mut o = Obj::new();
    let mut system = Vec::<Json>::new();
    for part in &c.system {
        match &part.v {
            Part::Text(text) => system.push(Obj::new().with("text", text).into()),
            Part::CachePoint { .. } => {}
            _ => return Err(part.refuse(target, "only text can stand here")),
        }
    }
    if !system.is_empty() {
        o.put("systemInstruction", Obj::new().with("parts", system));
    }
    let mut contents = Vec::<Json>::new();
    for turn in &c.turns {
        let role = if turn.role == Role::User { "user" } else { "model" };
        let parts = write_parts(turn)?;
        contents.push(Obj::new().with("role", role).with("parts", parts).into());
    }
    o.put("contents", contents);
    let functions: Vec<Json> = c.tools.iter().map(|t| write_function(&t.v).into()).collect();
    if !functions.is_empty() {
        o.put("tools", vec![Json::from(Obj::new().with("functionDeclarations", functions))]);
    }
    if let Some(config) = write_tool_config(c) {
        o.put("toolConfig", Obj::new().with("functionCallingConfig", config));
    }
    o = o.opt("generationConfig", write_config(c)?.unless_empty());
    Ok(o.text())
}

fn write_config(c: &Conversation) -> Result<Obj, DialectError> {
    let target = Dialect::Gemini;
    let value = |field: &Option<At<Raw>>| field.as_ref().map(|f| Json::from(&f.v));
    let mut o = Obj::new()
        .opt("temperature", value(&c.temperature))
        .opt("topP", value(&c.top_p))
        .opt("topK", value(&c.top_k))
        .opt("maxOutputTokens", c.max_output.as_ref().map(|m| m.v))
        .opt("stopSequences", c.stop.as_ref().map(|s| Json::from(s.v.as_slice())))
        .opt("seed", value(&c.seed))
        .opt("presencePenalty", value(&c.presence_penalty))
        .opt("frequencyPenalty", value(&c.frequency_penalty));
    if let Some(format) = &c.format {
        o.put("responseMimeType", "application/json");
        if let Format::Schema { description, schema, .. } = &format.v {
            o.put("responseJsonSchema", described(schema, description.as_deref(), &format.at, target)?);
        }
    }
    let mut thinking = Obj::new();
    let budget = match c.thinking.as_ref().map(|t| t.v) {
        None => None,
        Some(Thinking::Off) => Some(0),
        Some(Thinking::Adaptive { show }) => {
            thinking.put("includeThoughts", show.unwrap_or(true));
            None
        }
        Some(Thinking::Budget { max, show }) => {
            thinking.put("includeThoughts", show.unwrap_or(true));
            Some(max)
        }
    };
    match &c.effort {
        None => {}
        Some(effort) if effort.v == Effort::Max => {
            return Err(effort.refuse(target, "the highest level there is xhigh"));
        }
        Some(effort) if effort.v == Effort::None => {
            thinking.put("thinkingBudget", 0_u64);
        }
        Some(effort) if budget.is_some() => {
            return Err(effort.refuse(target, "thinking has a level or a budget there, not both"));
        }
        Some(effort) => thinking.put("thinkingLevel", effort.v.name().to_ascii_uppercase()),
    }
    if !c.effort.as_ref().is_some_and(|e| e.v == Effort::None) {
        thinking = thinking.opt("thinkingBudget", budget);
    }
    Ok(o.opt("thinkingConfig", thinking.unless_empty()))
}

fn write_function(tool: &Tool) -> Obj {
    Obj::new()
        .with("name", &tool.name)
        .opt("description", tool.description.as_ref())
        .opt("parametersJsonSchema", tool.schema.as_ref())
}

fn write_tool_config(c: &Conversation) -> Option<Obj> {
    let strict = c.tools.iter().any(|tool| tool.v.strict == Some(true));
    Some(match c.tool_choice.as_ref().map(|choice| &choice.v) {
        None | Some(ToolChoice::Auto) if strict => Obj::new().with("mode", "VALIDATED"),
        None => return None,
        Some(ToolChoice::Auto) => Obj::new().with("mode", "AUTO"),
        Some(ToolChoice::None) => Obj::new().with("mode", "NONE"),
        Some(ToolChoice::Required) => Obj::new().with("mode", "ANY"),
        Some(ToolChoice::Named(name)) => {
            Obj::new().with("mode", "ANY").with("allowedFunctionNames", vec![Json::from(name)])
        }
    })
}

fn write_parts(turn: &Turn) -> Result<Vec<Json>, DialectError> {
    let mut parts = Parts::default();
    for part in &turn.parts {
        match &part.v {
            Part::ToolResult(result) => {
                let name = result.name.as_deref().ok_or_else(|| {
                    part.refuse(
                        Dialect::Gemini,
                        "a result names its function there, and no earlier call has its id",
                    )
                })?;
                parts.add(write_result(result, name).map_err(|why| part.refuse(Dialect::Gemini, why))?);
            }
            Part::Redacted(_) => {
                return Err(part.refuse(Dialect::Gemini, "only the provider that redacted it can read it"));
            }
            Part::Image(Image::Url(_)) => {
                return Err(part.refuse(Dialect::Gemini, "images are not fetched from URLs there"));
            }
            other => parts.part(other),
        }
    }
    Ok(parts.finish())
}

/// Parts of one content; hands signatures on.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Json>,
    signature: Option<String>,
}

impl Parts {
    /// A part that is not a result or an image's URL.
    pub(super) fn part(&mut self, part: &Part) {
        match part {
            Part::Text(text) => {
                let signature = self.signature.take();
                self.parts.push(Obj::new().with("text", text).opt("thoughtSignature", signature).into());
            }
            Part::Thinking { text, signature } => {
                self.flush();
                if !text.is_empty() {
                    self.parts.push(Obj::new().with("text", text).with("thought", true).into());
                }
                self.signature = signature.as_deref().map(wrap_signature);
            }
            Part::Redacted(data) => self.add(redacted_part(data)),
            Part::ToolCall { id, name, arguments } => {
                let call = Obj::new().with("id", id).with("name", name).with("args", arguments);
                let signature = self.signature.take();
                self.parts
                    .push(Obj::new().with("functionCall", call).opt("thoughtSignature", signature).into());
            }
            Part::Image(Image::Base64 { media_type, data }) => self.add(write_blob(media_type, data)),
            Part::Image(Image::Url(_)) | Part::ToolResult(_) | Part::CachePoint { .. } => {}
        }
    }

    fn add(&mut self, part: Obj) {
        self.flush();
        self.parts.push(part.into());
    }

    /// A signature whose thought led to no part that could carry it.
    fn flush(&mut self) {
        if let Some(signature) = self.signature.take() {
            self.parts.push(signature_part(&signature).into());
        }
    }

    pub(super) fn finish(mut self) -> Vec<Json> {
        self.flush();
        self.parts
    }
}

/// A thought of nothing but a signature.
pub(super) fn signature_part(signature: &str) -> Obj {
    Obj::new().with("text", "").with("thought", true).with("thoughtSignature", signature)
}

pub(super) fn redacted_part(data: &str) -> Obj {
    signature_part(&STANDARD.encode([REDACTED, data.as_bytes()].concat()))
}

/// A signature as bytes in base64.
pub(super) fn wrap_signature(signature: &str) -> String {
    match base64_canonical(signature) {
        Some(canonical) if canonical == signature => canonical,
        _ => STANDARD.encode([WRAPPED, signature.as_bytes()].concat()),
    }
}

fn write_blob(media_type: &str, data: &str) -> Obj {
    Obj::new().with("inlineData", Obj::new().with("mimeType", media_type).with("data", data))
}

fn write_result(result: &ToolResult, name: &str) -> Result<Obj, &'static str> {
    let (mut texts, mut images) = (Vec::<Json>::new(), Vec::<Json>::new());
    let mut object = None;
    for part in &result.content {
        match part {
            ResultPart::Text(text) => texts.push(text.into()),
            ResultPart::Json(raw) if raw.is_object() && !result.error && result.content.len() == 1 => {
                object = Some(raw.clone());
            }
            ResultPart::Json(raw) => texts.push(raw.as_str().into()),
            ResultPart::Image(Image::Base64 { media_type, data }) => {
                images.push(write_blob(media_type, data).into());
            }
            ResultPart::Image(Image::Url(_)) => return Err("images are not fetched from URLs there"),
        }
    }
    let response = match object {
        Some(object) => Json::from(object),
        None => {
            let output = if texts.len() == 1 { texts.swap_remove(0) } else { texts.into() };
            Obj::new().with(if result.error { "error" } else { "output" }, output).into()
        }
    };
    let response = Obj::new().with("id", &result.id).with("name", name).with("response", response);
    let response = response.opt("parts", (!images.is_empty()).then_some(images));
    Ok(Obj::new().with("functionResponse", response))
}
