//! Whole answers.
use crate::common::{At, Framing, Part, Reply};
use crate::error::DialectError;
use crate::gemini::request::{Parts, add_thought};
use crate::json::{Json, Obj, Object, Raw, Value};
use crate::outcome::{Finish, Usage};

/// Reads a response. `stamp`: for calls without an id.
pub(crate) fn read_reply(body: &Value<'_>, stamp: &str) -> Result<Reply, DialectError> {
    let mut o = body.object()?;
    let mut reply = Reply { model: o.take_string("modelVersion")?, ..Reply::default() };
    reply.usage = o.take_object("usageMetadata")?.map(read_usage).transpose()?;
    let candidates = o.take_array("candidates")?;
    let candidate = match candidates.as_slice() {
        [one] => one,
        [] if is_blocked(&mut o)? => {
            reply.finish = Some(Finish::ContentFilter);
            return Ok(reply);
        }
        _ => return Err(o.expected("one candidate")),
    };
    let mut candidate = candidate.object()?;
    let mut parts: Vec<At<Part>> = Vec::new();
    let mut calls = 0_usize;
    if let Some(mut content) = candidate.take_object("content")? {
        for part in content.take_array("parts")? {
            let read = read_part(&part)?;
            if read.thought {
                add_thought(read.text.unwrap_or_default(), read.signature.as_deref(), "", &mut parts);
                continue;
            }
            if read.signature.is_some() {
                add_thought(String::new(), read.signature.as_deref(), "", &mut parts);
            }
            if let Some(text) = read.text.filter(|t| !t.is_empty()) {
                parts.push(At::new(Part::Text(text), ""));
            }
            if let Some(call) = read.call {
                calls += 1;
                let id = call.id.unwrap_or_else(|| format!("call_{stamp}_{calls}"));
                parts.push(At::new(Part::ToolCall { id, name: call.name, arguments: call.arguments }, ""));
            }
        }
    }
    reply.parts = parts.into_iter().map(|p| p.v).collect();
    let finish = candidate.take("finishReason").map(|reason| read_finish(&reason)).transpose()?;
    let finish = finish.unwrap_or(Finish::Stop);
    reply.finish = Some(if finish == Finish::Stop && calls > 0 { Finish::ToolCalls } else { finish });
    Ok(reply)
}

/// Whether the prompt was refused: feedback alone may be ratings of one that was not.
pub(super) fn is_blocked(response: &mut Object<'_>) -> Result<bool, DialectError> {
    let feedback = response.take_object("promptFeedback")?;
    Ok(feedback.is_some_and(|mut feedback| feedback.take("blockReason").is_some()))
}

/// A part of an answer.
pub(super) struct ReadPart {
    pub(super) thought: bool,
    pub(super) signature: Option<String>,
    pub(super) text: Option<String>,
    pub(super) call: Option<ReadCall>,
}

pub(super) struct ReadCall {
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) arguments: Raw,
}

pub(super) fn read_part(part: &Value<'_>) -> Result<ReadPart, DialectError> {
    let mut o = part.object()?;
    let thought = o.take_bool("thought")?.unwrap_or(false);
    let signature = o.take_string("thoughtSignature")?;
    let text = o.take_string("text")?;
    let call = match o.take_object("functionCall")? {
        None => None,
        Some(mut f) => Some(ReadCall {
            id: f.take_string("id")?.filter(|id| !id.is_empty()),
            name: f.need_string("name")?,
            arguments: f.take("args").map(|a| a.raw_object()).transpose()?.unwrap_or_else(Raw::empty_object),
        }),
    };
    let other = MEDIA.iter().any(|key| o.take(key).is_some());
    if other || (text.is_none() && call.is_none() && signature.is_none()) {
        return Err(part.expected("text or a function call"));
    }
    Ok(ReadPart { thought, signature, text, call })
}

/// What else a part of an answer can be, and no other dialect can say.
const MEDIA: [&str; 4] = ["inlineData", "fileData", "executableCode", "codeExecutionResult"];

pub(super) fn read_finish(reason: &Value<'_>) -> Result<Finish, DialectError> {
    finish_of(&reason.string()?).ok_or_else(|| reason.expected("a known reason"))
}

/// Why it ended. `None`: a reason that is not known here, or says nothing (`OTHER`).
/// <https://ai.google.dev/api/generate-content#FinishReason>
pub(crate) fn finish_of(reason: &str) -> Option<Finish> {
    Some(match reason {
        "STOP" => Finish::Stop,
        "MAX_TOKENS" => Finish::Length,
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "LANGUAGE"
        | "MODEL_ARMOR"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => Finish::ContentFilter,
        "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" => Finish::MalformedToolCall,
        _ => return None,
    })
}

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopSequence | Finish::ToolCalls | Finish::Pause => "STOP",
        Finish::Length | Finish::ContextLength => "MAX_TOKENS",
        Finish::Refusal | Finish::ContentFilter => "SAFETY",
        Finish::MalformedToolCall => "MALFORMED_FUNCTION_CALL",
    }
}

/// `usageMetadata`: thoughts stand beside the candidates, the cache within the prompt.
pub(crate) fn read_usage(mut o: Object<'_>) -> Result<Usage, DialectError> {
    let mut count = |name: &str| o.take_u64(name).map(Option::unwrap_or_default);
    let thoughts = count("thoughtsTokenCount")?;
    Ok(Usage {
        input: count("promptTokenCount")?.saturating_add(count("toolUsePromptTokenCount")?),
        output: count("candidatesTokenCount")?.saturating_add(thoughts),
        cached_input: count("cachedContentTokenCount")?,
        cache_write_input: 0,
        reasoning: thoughts,
    })
}

pub(super) fn write_usage(usage: &Usage) -> Obj {
    let some = |n: u64| (n > 0).then_some(n);
    Obj::new()
        .with("promptTokenCount", usage.input)
        .with("candidatesTokenCount", usage.output.saturating_sub(usage.reasoning))
        .with("totalTokenCount", usage.input.saturating_add(usage.output))
        .opt("cachedContentTokenCount", some(usage.cached_input))
        .opt("thoughtsTokenCount", some(usage.reasoning))
}

/// Writes a response.
pub(crate) fn write_reply(reply: &Reply, framing: &Framing) -> String {
    let mut parts = Parts::default();
    reply.parts.iter().for_each(|part| parts.part(part));
    let finish = finish_name(reply.finish.unwrap_or(Finish::Stop));
    response(framing, reply.model.as_deref(), parts.finish(), Some(finish), reply.usage.as_ref()).text()
}

/// A response, whole or a piece.
pub(super) fn response(
    framing: &Framing,
    model: Option<&str>,
    parts: Vec<Json>,
    finish: Option<&'static str>,
    usage: Option<&Usage>,
) -> Obj {
    let content = Obj::new().with("parts", parts).with("role", "model");
    let candidate = Obj::new().with("content", content).opt("finishReason", finish).with("index", 0_u64);
    Obj::new()
        .with("candidates", vec![Json::from(candidate)])
        .opt("usageMetadata", usage.map(write_usage))
        .with("modelVersion", model.unwrap_or(&framing.model))
        .with("responseId", &framing.id)
}
