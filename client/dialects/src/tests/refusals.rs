//! What cannot be said is refused, and the refusal names the field.
use super::{call, endpoint, stamp, upstream};
use crate::{
    AnswerTranslator, Call, Dialect, DialectError, Endpoint, Fault, Flavour, Operation, TargetRoute,
};
use bytes::Bytes;

/// The field that stands against a translation; `None`: nothing does.
fn refused(from: Dialect, body: &str, to: Dialect, flavour: Flavour) -> Option<String> {
    let call = Call::read(endpoint(from, false), Bytes::from(body.to_owned())).unwrap();
    let target = TargetRoute { flavour, ..TargetRoute::new(to, upstream(to)) };
    match call.for_route(&target) {
        Ok(_) => None,
        Err(error) => {
            assert_eq!(error.fault(), Fault::Route, "{error}");
            Some(error.field().unwrap().to_owned())
        }
    }
}

#[test]
fn by_name() {
    use Dialect::{Anthropic as A, Bedrock as B, Gemini as G, OpenAi as O};
    let openai =
        |field: &str| format!(r#"{{"model":"a","messages":[{{"role":"user","content":"x"}}],{field}}}"#);
    let anthropic = |field: &str| {
        format!(r#"{{"model":"a","max_tokens":1,"messages":[{{"role":"user","content":"x"}}],{field}}}"#)
    };
    let gemini = |field: &str| format!(r#"{{"contents":[{{"parts":[{{"text":"x"}}]}}],{field}}}"#);
    let bedrock =
        |field: &str| format!(r#"{{"messages":[{{"role":"user","content":[{{"text":"x"}}]}}],{field}}}"#);
    for (from, body, to, field) in [
        (O, openai(r#""n":2"#), A, "n"),
        (O, openai(r#""store":true"#), A, "store"),
        (O, openai(r#""logprobs":true"#), G, "logprobs"),
        (O, openai(r#""logit_bias":{"1":2}"#), G, "logit_bias"),
        (O, openai(r#""audio":{"voice":"x"}"#), G, "audio"),
        (O, openai(r#""seed":1"#), A, "seed"),
        (O, openai(r#""seed":1"#), B, "seed"),
        (O, openai(r#""frequency_penalty":0.1"#), A, "frequency_penalty"),
        (O, openai(r#""temperature":1.5"#), A, "temperature"),
        (O, openai(r#""parallel_tool_calls":false"#), G, "parallel_tool_calls"),
        (O, openai(r#""response_format":{"type":"json_object"}"#), A, "response_format"),
        (O, openai(r#""reasoning_effort":"minimal""#), A, "reasoning_effort"),
        (O, openai(r#""reasoning_effort":"max""#), G, "reasoning_effort"),
        (A, anthropic(r#""thinking":{"type":"between_tools"}"#), O, "thinking"),
        (O, openai(r#""tools":[{"type":"web_search"}]"#), A, "tools[0].type"),
        (O, openai(r#""service_tier":"flex""#), A, "service_tier"),
        (O, openai(r#""x_unknown":{"a":1}"#), A, "x_unknown"),
        (O, openai(r#""max_tokens":5,"max_completion_tokens":6"#), A, "max_completion_tokens"),
        (O, openai(r#""temperature":1.01"#), B, "temperature"),
        (O, openai(r#""prediction":{"type":"content"}"#), A, "prediction"),
        (O, openai(r#""web_search_options":{}"#), G, "web_search_options"),
        (O, openai(r#""modalities":["text","audio"]"#), G, "modalities"),
        (O, openai(r#""functions":[{"name":"f"}]"#), A, "functions"),
        (
            O,
            openai(r#""tools":[{"type":"function","function":{"name":"f","x":1}}]"#),
            A,
            "tools[0].function.x",
        ),
        (O, openai(r#""tool_choice":{"type":"allowed_tools","allowed_tools":{}}"#), A, "tool_choice.type"),
        (A, anthropic(r#""context_management":{}"#), O, "context_management"),
        (
            A,
            anthropic(r#""system":[{"type":"text","text":"s","citations":{"enabled":true}}]"#),
            O,
            "system[0].citations",
        ),
        (A, anthropic(r#""top_k":5"#), O, "top_k"),
        (A, anthropic(r#""thinking":{"type":"enabled","budget_tokens":1024}"#), O, "thinking"),
        (A, anthropic(r#""tools":[{"type":"web_search_20250305","name":"web_search"}]"#), O, "tools[0].type"),
        (A, anthropic(r#""container":"c""#), O, "container"),
        (A, anthropic(r#""mcp_servers":[]"#), G, "mcp_servers"),
        (A, anthropic(r#""output_config":{"effort":"max"}"#), G, "output_config.effort"),
        (
            A,
            anthropic(r#""tools":[{"name":"t","input_schema":{}}],"tool_choice":{"type":"none"}"#),
            B,
            "tool_choice",
        ),
        (G, gemini(r#""safetySettings":[{"category":"x"}]"#), O, "safetySettings"),
        (G, gemini(r#""cachedContent":"c""#), O, "cachedContent"),
        (G, gemini(r#""tools":[{"googleSearch":{}}]"#), O, "tools[0].googleSearch"),
        (G, gemini(r#""generationConfig":{"candidateCount":2}"#), O, "generationConfig.candidateCount"),
        (G, gemini(r#""generationConfig":{"topK":2}"#), O, "generationConfig.topK"),
        (
            G,
            gemini(r#""generationConfig":{"responseModalities":["IMAGE"]}"#),
            A,
            "generationConfig.responseModalities",
        ),
        (B, bedrock(r#""guardrailConfig":{"guardrailIdentifier":"g"}"#), O, "guardrailConfig"),
        (B, bedrock(r#""additionalModelRequestFields":{"x":1}"#), O, "additionalModelRequestFields.x"),
    ] {
        assert_eq!(refused(from, &body, to, Flavour::OpenAi).as_deref(), Some(field), "{body} to {to}");
        let same = TargetRoute::new(from, upstream(from));
        let call = Call::read(endpoint(from, false), Bytes::from(body)).unwrap();
        assert!(call.for_route(&same).is_ok(), "passes to its own dialect");
    }
}

#[test]
fn within_messages() {
    use Dialect::{Anthropic as A, Bedrock as B, Gemini as G, OpenAi as O};
    let openai =
        |message: &str| format!(r#"{{"model":"a","messages":[{{"role":"user","content":"x"}},{message}]}}"#);
    let anthropic = |message: &str| {
        format!(r#"{{"model":"a","max_tokens":1,"messages":[{{"role":"user","content":"x"}},{message}]}}"#)
    };
    for (from, body, to, field) in [
        (O, openai(r#"{"role":"system","content":"late"}"#), A, "messages[1].role"),
        (O, openai(r#"{"role":"user","content":"x","name":"bob"}"#), A, "messages[1].name"),
        (
            O,
            openai(r#"{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}"#),
            A,
            "messages[1].content[0]",
        ),
        (
            O,
            openai(
                r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png","detail":"low"}}]}"#,
            ),
            A,
            "messages[1].content[0].image_url.detail",
        ),
        (
            O,
            openai(
                r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}"#,
            ),
            G,
            "messages[1].content[0]",
        ),
        (
            O,
            openai(
                r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}"#,
            ),
            B,
            "messages[1].content[0]",
        ),
        (O, openai(r#"{"role":"tool","tool_call_id":"none","content":"x"}"#), G, "messages[1]"),
        (
            A,
            anthropic(r#"{"role":"user","content":[{"type":"document","source":{}}]}"#),
            O,
            "messages[1].content[0]",
        ),
        (
            A,
            anthropic(
                r#"{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"}]}"#,
            ),
            O,
            "messages[1].content[0]",
        ),
        (
            A,
            anthropic(
                r#"{"role":"assistant","content":[{"type":"tool_use","id":"i","name":"n","input":{}},{"type":"text","text":"x"}]}"#,
            ),
            O,
            "messages[1].content[1]",
        ),
        (
            A,
            anthropic(
                r#"{"role":"user","content":[{"type":"tool_result","tool_use_id":"i","content":[{"type":"image","source":{"type":"url","url":"https://x"}}]}]}"#,
            ),
            O,
            "messages[1].content[0]",
        ),
    ] {
        assert_eq!(refused(from, &body, to, Flavour::OpenAi).as_deref(), Some(field), "{body} to {to}");
    }
}

/// Who says what is part of what is said.
#[test]
fn within_contents_and_blocks() {
    use Dialect::{Anthropic as A, Bedrock as B, Gemini as G, OpenAi as O};
    for (role, part, to, field) in [
        ("model", r#"{"inlineData":{"mimeType":"image/png","data":"AAAA"}}"#, A, "inlineData"),
        ("model", r#"{"functionResponse":{"name":"f","id":"i","response":{}}}"#, A, "functionResponse"),
        ("user", r#"{"functionCall":{"name":"f"}}"#, A, "functionCall"),
        ("user", r#"{"inlineData":{"mimeType":"application/zip","data":"AAAA"}}"#, A, "inlineData.mimeType"),
        (
            "user",
            r#"{"inlineData":{"mimeType":"image/png","data":"AAAA"},"videoMetadata":{}}"#,
            A,
            "videoMetadata",
        ),
        ("model", r#"{"executableCode":{"code":"1"}}"#, O, "executableCode"),
        ("user", r#"{"text":"x","mediaResolution":{}}"#, B, "mediaResolution"),
    ] {
        let body = format!(r#"{{"contents":[{{"role":"{role}","parts":[{part}]}}]}}"#);
        let seen = refused(G, &body, to, Flavour::OpenAi);
        assert_eq!(seen, Some(format!("contents[0].parts[0].{field}")), "{body} to {to}");
    }
    for (role, block, to, field) in [
        ("assistant", r#"{"image":{"format":"png","source":{"bytes":"AAAA"}}}"#, A, "image"),
        ("user", r#"{"document":{"name":"d"}}"#, A, "document"),
        (
            "assistant",
            r#"{"reasoningContent":{"redactedContent":"AAAA","reasoningText":{"text":"x"}}}"#,
            A,
            "reasoningContent.reasoningText",
        ),
        (
            "assistant",
            r#"{"reasoningContent":{"reasoningText":{"text":"x","y":1}}}"#,
            A,
            "reasoningContent.reasoningText.y",
        ),
        ("user", r#"{"image":{"format":"png","source":{"s3Location":{}}}}"#, A, "image.source"),
    ] {
        let body = format!(r#"{{"messages":[{{"role":"{role}","content":[{block}]}}]}}"#);
        let seen = refused(B, &body, to, Flavour::OpenAi);
        assert_eq!(seen, Some(format!("messages[0].content[0].{field}")), "{body} to {to}");
    }
}

/// An id that was made up for a call without one must stay that call's.
#[test]
fn made_up_ids_are_nobody_elses() {
    let call = |id: &str| format!(r#"{{"functionCall":{{"name":"f"{id},"args":{{}}}}}}"#);
    let body = |first: &str, second: &str| {
        format!(r#"{{"contents":[{{"role":"model","parts":[{},{}]}}]}}"#, call(first), call(second))
    };
    let named = r#","id":"call_1""#;
    let sent = |body: String| {
        let call = Call::read(endpoint(Dialect::Gemini, false), Bytes::from(body)).unwrap();
        call.for_route(&TargetRoute::new(Dialect::Anthropic, "c"))
    };
    let request = sent(body(named, "")).unwrap();
    let text = String::from_utf8(request.body.to_vec()).unwrap();
    assert!(text.contains(r#""id":"call_1""#) && text.contains(r#""id":"call_2""#), "{text}");
    let error = sent(body("", named)).err().unwrap();
    assert_eq!((error.fault(), error.field()), (Fault::Route, Some("contents[0].parts[1].functionCall")));
}

/// Answers that hold what the caller's dialect cannot say, or that ended for a reason it has no word for.
#[test]
fn answers() {
    use Dialect::{Anthropic as A, Bedrock as B, Gemini as G, OpenAi as O};
    let openai = |message: &str, reason: &str| {
        format!(r#"{{"choices":[{{"message":{{"content":"x"{message}}},"finish_reason":"{reason}"}}]}}"#)
    };
    let gemini = |part: &str, reason: &str| {
        format!(r#"{{"candidates":[{{"content":{{"parts":[{{{part}}}]}},"finishReason":"{reason}"}}]}}"#)
    };
    let bedrock = |reason: &str| {
        format!(r#"{{"output":{{"message":{{"content":[{{"text":"x"}}]}}}},"stopReason":"{reason}"}}"#)
    };
    let anthropic = |text: &str, reason: &str| {
        format!(r#"{{"content":[{{"type":"text","text":"x"{text}}}],"stop_reason":"{reason}"}}"#)
    };
    for (from, body, to, field) in [
        (O, openai("", "stop"), A, None),
        (O, openai(r#","annotations":[],"audio":null"#, "eos"), A, None),
        (
            O,
            openai(r#","annotations":[{"type":"url_citation"}]"#, "stop"),
            A,
            Some("choices[0].message.annotations"),
        ),
        (O, openai(r#","audio":{"data":"AAAA"}"#, "stop"), A, Some("choices[0].message.audio")),
        (O, openai(r#","images":[{"type":"image_url"}]"#, "stop"), G, Some("choices[0].message.images")),
        (O, openai(r#","function_call":{"name":"f"}"#, "stop"), B, Some("choices[0].message.function_call")),
        (O, openai("", "error"), A, Some("choices[0].finish_reason")),
        (O, openai("", "insufficient_system_resource"), G, Some("choices[0].finish_reason")),
        (O, r#"{"choices":[{"message":{}},{"message":{}}]}"#.into(), A, Some("")),
        (A, anthropic("", "end_turn"), O, None),
        (A, anthropic(r#","citations":[]"#, "end_turn"), O, None),
        (
            A,
            anthropic(r#","citations":[{"type":"char_location"}]"#, "end_turn"),
            O,
            Some("content[0].citations"),
        ),
        (A, anthropic("", "compaction"), O, Some("stop_reason")),
        (A, anthropic("", "pause_turn"), O, Some("reason to stop")),
        (G, gemini(r#""text":"x""#, "STOP"), O, None),
        (
            G,
            gemini(r#""text":"x","inlineData":{"mimeType":"image/png"}"#, "STOP"),
            O,
            Some("candidates[0].content.parts[0]"),
        ),
        (G, gemini(r#""text":"x""#, "OTHER"), A, Some("candidates[0].finishReason")),
        (G, gemini(r#""text":"x""#, "MALFORMED_FUNCTION_CALL"), O, Some("reason to stop")),
        (G, gemini(r#""text":"x""#, "MALFORMED_FUNCTION_CALL"), B, None),
        (G, r#"{"candidates":[],"promptFeedback":{"safetyRatings":[]}}"#.into(), B, Some("")),
        (G, r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#.into(), B, None),
        (B, bedrock("end_turn"), O, None),
        (B, bedrock("who_knows"), O, Some("stopReason")),
        (B, bedrock("malformed_tool_use"), A, Some("reason to stop")),
    ] {
        let target = TargetRoute::new(from, upstream(from));
        for stream in [false, true] {
            let mut translator = AnswerTranslator::new(&call(to, stream), &target, stamp());
            let error = translator.whole(200, &[], Bytes::from(body.clone())).err();
            assert_eq!(error.as_ref().map(|e| e.field().unwrap()), field, "{body} to {to}");
            assert!(error.is_none_or(|e| e.fault() == Fault::Upstream));
        }
    }
}

#[test]
fn by_flavour() {
    let body = |field: &str| {
        format!(r#"{{"contents":[{{"parts":[{{"text":"x"}}]}}],"generationConfig":{{{field}}}}}"#)
    };
    let schema = r#""responseMimeType":"application/json","responseJsonSchema":{}"#;
    for (field, flavour, refuses) in [
        (r#""topK":2"#, Flavour::Vllm, false),
        (r#""topK":2"#, Flavour::Groq, true),
        (r#""thinkingConfig":{"thinkingLevel":"LOW"}"#, Flavour::Mistral, true),
        (r#""thinkingConfig":{"thinkingLevel":"LOW"}"#, Flavour::Groq, false),
        (r#""thinkingConfig":{"thinkingBudget":2000}"#, Flavour::OpenRouter, false),
        (r#""thinkingConfig":{"thinkingBudget":2000}"#, Flavour::OpenAi, true),
        (schema, Flavour::DeepSeek, true),
        (schema, Flavour::Mistral, false),
    ] {
        let seen = refused(Dialect::Gemini, &body(field), Dialect::OpenAi, flavour);
        assert_eq!(seen.is_some(), refuses, "{field} to {}", flavour.name());
    }
}

#[test]
fn what_is_wrong_in_any_dialect_is_the_callers() {
    for (body, error) in [
        ("", DialectError::NotJson { field: String::new() }),
        ("{\"model\":\"a\"} x", DialectError::NotJson { field: String::new() }),
        ("[]", DialectError::Malformed { field: String::new(), expected: "an object" }),
        ("{}", DialectError::Missing { field: "model".into() }),
        ("{\"model\":1}", DialectError::Malformed { field: "model".into(), expected: "a string" }),
        (
            "{\"model\":\"\"}",
            DialectError::Malformed { field: "model".into(), expected: "a name of 1 to 512 bytes" },
        ),
        ("{\"model\":\"a\",\"model\":\"b\"}", DialectError::Twice { field: "model".into() }),
        (
            "{\"model\":\"a\",\"stream\":1}",
            DialectError::Malformed { field: "stream".into(), expected: "true or false" },
        ),
    ] {
        let seen = Call::read(endpoint(Dialect::OpenAi, false), Bytes::from(body)).err();
        assert_eq!(seen, Some(error.clone()), "{body}");
        assert_eq!(error.fault(), Fault::Caller);
    }
    let call =
        Call::read(endpoint(Dialect::OpenAi, false), Bytes::from_static(b"{\"model\":\"a\"}")).unwrap();
    let error = call.for_route(&TargetRoute::new(Dialect::Anthropic, "b")).err().unwrap();
    let missing = DialectError::Missing { field: "messages".into() };
    assert_eq!(error, DialectError::NotUnderstood(Box::new(missing)));
    // another route's provider may know what we do not
    assert_eq!((error.fault(), error.field()), (Fault::Route, Some("messages")));
}

#[test]
fn responses() {
    for (fields, field) in [
        (r#""previous_response_id":"resp_1""#, "previous_response_id"),
        (r#""conversation":"conv_1""#, "conversation"),
        (r#""store":true"#, "store"),
        (r#""background":true"#, "background"),
        (r#""truncation":"auto""#, "truncation"),
        (r#""include":["web_search_call.results"]"#, "include"),
        (r#""tools":[{"type":"mcp"}]"#, "tools[0].type"),
        (r#""text":{"verbosity":"low"}"#, "text.verbosity"),
        (r#""input":[{"type":"item_reference","id":"x"}]"#, "input[0]"),
        (r#""input":[{"type":"reasoning","id":"rs_1","summary":[]}]"#, "input[0]"),
        (
            r#""input":[{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"t"}]}]"#,
            "input[0].content",
        ),
        (
            r#""input":[{"role":"user","content":[{"type":"input_file","file_id":"x"}]}]"#,
            "input[0].content[0]",
        ),
        (r#""input":[{"role":"user","content":"x"},{"role":"developer","content":"x"}]"#, "input[1].role"),
    ] {
        let input = if fields.contains("\"input\"") { "" } else { r#","input":"x""# };
        let body = format!(r#"{{"model":"a",{fields}{input}}}"#);
        let endpoint = Endpoint { operation: Operation::Responses, model: None, json_array: false };
        let call = Call::read(endpoint, Bytes::from(body)).unwrap();
        assert!(call.for_route(&TargetRoute::new(Dialect::OpenAi, "b")).is_ok());
        let error = call.for_route(&TargetRoute::new(Dialect::Anthropic, "b")).err().unwrap();
        assert_eq!((error.field(), error.fault()), (Some(field), Fault::Route), "{error}");
    }
}

#[test]
fn operations_without_a_counterpart() {
    for operation in [Operation::Completions, Operation::CountTokens, Operation::CountContent] {
        let model = (operation.dialect() == Dialect::Gemini).then(|| "a".to_owned());
        let endpoint = Endpoint { operation, model, json_array: false };
        let call = Call::read(endpoint, Bytes::from_static(b"{\"model\":\"a\"}")).unwrap();
        let error = call.for_route(&TargetRoute::new(Dialect::Bedrock, "b")).err();
        assert_eq!(error, Some(DialectError::NoSuchOperation { operation, target: Dialect::Bedrock }));
    }
    let endpoint = Endpoint { operation: Operation::Embeddings, model: None, json_array: false };
    let call = Call::read(endpoint, Bytes::from_static(b"{\"model\":\"a\",\"input\":[[1,2]]}")).unwrap();
    let error = call.for_route(&TargetRoute::new(Dialect::Gemini, "b")).err().unwrap();
    assert_eq!(error.field(), Some("input[0]"));
}
