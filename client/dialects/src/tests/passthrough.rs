//! Where dialects agree, bytes pass: the model's value is spliced, nothing else moves.
use super::{endpoint, stamp};
use crate::{
    AnswerTranslator, Call, Dialect, Endpoint, Finish, Flavour, Needs, Operation, TargetRoute, Usage,
};
use bytes::Bytes;

fn openai(operation: Operation, body: &str) -> Call {
    let endpoint = Endpoint { operation, model: None, json_array: false };
    Call::read(endpoint, Bytes::from(body.to_owned())).unwrap()
}

fn sent(call: &Call, target: &TargetRoute) -> String {
    let request = call.for_route(target).unwrap();
    assert!(request.passthrough);
    String::from_utf8(request.body.to_vec()).unwrap()
}

#[test]
fn only_the_models_value_changes() {
    let body = " {\"x_unknown\" : [1.10, {\"model\": \"inner\"}],\n \"mo\\u0064el\" :  \"ali\\u0061s\" , \"messages\":[]}\n";
    let call = openai(Operation::Chat, body);
    assert_eq!(call.model(), "alias");
    let same = TargetRoute::new(Dialect::OpenAi, "alias");
    assert_eq!(sent(&call, &same), body);
    // no copy, either
    assert_eq!(call.for_route(&same).unwrap().body.as_ptr(), call.expose_body().as_ptr());
    let other = TargetRoute::new(Dialect::OpenAi, "up\"1");
    assert_eq!(sent(&call, &other), body.replace("\"ali\\u0061s\"", "\"up\\\"1\""));
}

#[test]
fn every_operation_has_its_path() {
    for (operation, path) in [
        (Operation::Chat, "/v1/chat/completions"),
        (Operation::Responses, "/v1/responses"),
        (Operation::Completions, "/v1/completions"),
        (Operation::Embeddings, "/v1/embeddings"),
        (Operation::Messages, "/v1/messages"),
        (Operation::CountTokens, "/v1/messages/count_tokens"),
    ] {
        let call = openai(operation, r#"{"model":"a","input":"x"}"#);
        let request = call.for_route(&TargetRoute::new(operation.dialect(), "b")).unwrap();
        assert_eq!((request.path.as_str(), &request.body[..]), (path, &br#"{"model":"b","input":"x"}"#[..]));
    }
    let named = |operation| Endpoint { operation, model: Some("a".into()), json_array: false };
    for (operation, path) in [
        (Operation::GenerateContent { stream: false }, "/v1beta/models/g%2F1:generateContent"),
        (Operation::GenerateContent { stream: true }, "/v1beta/models/g%2F1:streamGenerateContent?alt=sse"),
        (Operation::EmbedContent, "/v1beta/models/g%2F1:embedContent"),
        (Operation::Converse { stream: true }, "/model/g%2F1/converse-stream"),
    ] {
        let call = Call::read(named(operation), Bytes::from_static(b"{ }")).unwrap();
        let request = call.for_route(&TargetRoute::new(operation.dialect(), "g/1")).unwrap();
        assert_eq!((request.path.as_str(), &request.body[..]), (path, &b"{ }"[..]));
    }
    let body =
        r#"{"requests":[{"model":"models/a","content":{"parts":[{"text":"x"}]}}, {"model": "models/a"}]}"#;
    let call = Call::read(named(Operation::BatchEmbedContents), Bytes::from(body)).unwrap();
    let request = call.for_route(&TargetRoute::new(Dialect::Gemini, "g")).unwrap();
    assert_eq!(request.body, body.replace("models/a", "models/g"));
}

#[test]
fn a_server_that_knows_only_max_tokens_gets_max_tokens() {
    let body = r#"{"model":"a","messages":[],"max_completion_tokens":7}"#;
    let call = openai(Operation::Chat, body);
    assert_eq!(call.max_output_tokens(), Some(7));
    for flavour in Flavour::ALL {
        let target = TargetRoute { flavour, ..TargetRoute::new(Dialect::OpenAi, "a") };
        let renamed = sent(&call, &target).contains("\"max_tokens\":7");
        let expected = matches!(
            flavour,
            Flavour::Mistral | Flavour::DeepSeek | Flavour::Ollama | Flavour::LlamaCpp | Flavour::Compatible
        );
        assert_eq!(renamed, expected, "{}", flavour.name());
    }
}

#[test]
fn a_meter_asks_for_usage_and_keeps_it_from_the_caller() {
    let target = TargetRoute { meter: true, ..TargetRoute::new(Dialect::OpenAi, "a") };
    for (body, expected) in [
        (
            r#"{"model":"a","stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"model":"a","stream":true}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":null}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{ }}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage":true }}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{"include_usage":null}}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{"x":1,"include_usage":null}}"#,
            r#"{"model":"a","stream":true,"stream_options":{"x":1,"include_usage":true}}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{"x":1}}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage":true,"x":1}}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{"include_usage": false}}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage": true}}"#,
        ),
        (
            r#"{"model":"a","stream":true,"stream_options":{"include_usage": true}}"#,
            r#"{"model":"a","stream":true,"stream_options":{"include_usage": true}}"#,
        ),
        (r#"{"model":"a","stream":false}"#, r#"{"model":"a","stream":false}"#),
    ] {
        let call = openai(Operation::Chat, body);
        assert_eq!(sent(&call, &target), expected);
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";
        let before =
            ": hi\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\r\n\r\n";
        let stream = format!("{before}{usage}data: [DONE]\n\n");
        let hidden = !body.contains("true}}")
            && !body.contains("e\":true}")
            && call.stream()
            && !body.contains(": true}");
        for cut in 0..stream.len() {
            let mut translator = AnswerTranslator::new(&call, &target, stamp());
            let mut out = translator.feed(&stream.as_bytes()[..cut]).unwrap().to_vec();
            out.extend_from_slice(&translator.feed(&stream.as_bytes()[cut..]).unwrap());
            out.extend_from_slice(&translator.finish().unwrap());
            let shown = if hidden { stream.replace(usage, "") } else { stream.clone() };
            assert_eq!(String::from_utf8(out).unwrap(), shown, "{body} at {cut}");
            let seen = translator.outcome().usage.unwrap();
            assert_eq!((seen.input, seen.output), (3, 4));
        }
    }
}

#[test]
fn what_a_call_needs() {
    let all = Needs { tools: true, vision: true, json_schema: true, reasoning: true };
    for (dialect, body, max) in [
        (
            Dialect::OpenAi,
            r#"{"model":"a","n":2,"max_tokens":5,"tools":[{}],"reasoning_effort":"low","response_format":{"type":"json_schema"},
            "messages":[{"role":"user","content":"x"},{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
            10,
        ),
        (
            Dialect::Anthropic,
            r#"{"model":"a","max_tokens":5,"tools":[{}],"thinking":{"type":"adaptive"},"output_config":{"format":{"type":"json_schema"}},
            "messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image"}]}]}]}"#,
            5,
        ),
        (
            Dialect::Gemini,
            r#"{"tools":[{}],"generationConfig":{"maxOutputTokens":5,"thinkingConfig":{},"responseSchema":{}},
            "contents":[{"parts":[{"inline_data":{"mime_type":"image/png"}}]}]}"#,
            5,
        ),
        (
            Dialect::Bedrock,
            r#"{"toolConfig":{"tools":[{}]},"inferenceConfig":{"maxTokens":5},"outputConfig":{"textFormat":{}},
            "additionalModelRequestFields":{"thinking":{}},"messages":[{"content":[{"image":{}}]}]}"#,
            5,
        ),
    ] {
        let call = Call::read(endpoint(dialect, false), Bytes::from(body)).unwrap();
        assert_eq!((call.needs(), call.max_output_tokens()), (all, Some(max)), "{dialect}");
        assert_eq!(super::call(dialect, false).needs(), Needs::default());
    }
}

/// What is reserved before an answer is asked for must hold for all that it may cost.
#[test]
fn all_that_may_be_generated_is_counted() {
    for (operation, body, max) in [
        (Operation::Completions, r#"{"model":"a","max_tokens":5,"prompt":["x","y","z"]}"#, 15),
        (Operation::Completions, r#"{"model":"a","max_tokens":5,"prompt":[1,2,3]}"#, 5),
        (Operation::Completions, r#"{"model":"a","max_tokens":5,"prompt":[[1,2],[3]],"n":2}"#, 20),
        (Operation::Completions, r#"{"model":"a","max_tokens":5,"prompt":"x","n":2,"best_of":4}"#, 20),
        (Operation::Chat, r#"{"model":"a","max_tokens":500,"max_completion_tokens":5}"#, 500),
        (Operation::Chat, r#"{"model":"a","max_tokens":18446744073709551615,"n":2}"#, u64::MAX),
    ] {
        assert_eq!(openai(operation, body).max_output_tokens(), Some(max), "{body}");
    }
    for (config, max) in [
        (r#"{"maxOutputTokens":5,"candidateCount":3}"#, 15),
        (r#"{"max_output_tokens":5,"candidate_count":3}"#, 15),
        (r#"{"maxOutputTokens":"5","candidateCount":3.0}"#, 15),
    ] {
        let body = format!(r#"{{"contents":[],"generationConfig":{config}}}"#);
        let call = Call::read(endpoint(Dialect::Gemini, false), Bytes::from(body)).unwrap();
        assert_eq!(call.max_output_tokens(), Some(max), "{config}");
    }
}

#[test]
fn a_stream_of_several_answers_ends_with_the_last() {
    let target = TargetRoute::new(Dialect::OpenAi, "a");
    let call = openai(Operation::Chat, r#"{"model":"a","stream":true,"n":2}"#);
    let ends =
        |index| format!("data: {{\"choices\":[{{\"index\":{index},\"finish_reason\":\"stop\"}}]}}\n\n");
    for (stream, whole) in [
        (ends(0), false),
        (ends(0) + &ends(0), false),
        (ends(1) + &ends(0), true),
        ("data: [DONE]\n\n".into(), true),
    ] {
        let mut translator = AnswerTranslator::new(&call, &target, stamp());
        assert_eq!(translator.feed(stream.as_bytes()).unwrap(), stream);
        assert_eq!(translator.finish().is_ok(), whole, "{stream}");
    }
}

#[test]
fn a_response_that_failed_is_an_error() {
    let call = openai(Operation::Responses, r#"{"model":"a","input":"x","stream":true}"#);
    let mut translator = AnswerTranslator::new(&call, &TargetRoute::new(Dialect::OpenAi, "a"), stamp());
    let failed = r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"rate_limit_exceeded","message":"m"}}}"#;
    translator.feed(format!("event: response.failed\ndata: {failed}\n\n").as_bytes()).unwrap();
    translator.finish().unwrap();
    assert_eq!(translator.outcome().error, Some(crate::errors::ErrorKind::RateLimited));
}

#[test]
fn responses_are_observed() {
    let call =
        openai(Operation::Responses, r#"{"model":"a","input":"x","stream":true,"max_output_tokens":9}"#);
    assert_eq!(call.max_output_tokens(), Some(9));
    let stream = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"up\",\"status\":\"in_progress\",\"usage\":null}}\n\n\
        event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"usage\":{\"input_tokens\":5,\
        \"input_tokens_details\":{\"cached_tokens\":2},\"output_tokens\":7,\"output_tokens_details\":{\"reasoning_tokens\":3},\"total_tokens\":12}}}\n\n";
    let target = TargetRoute::new(Dialect::OpenAi, "a");
    for cut in 0..stream.len() {
        let mut translator = AnswerTranslator::new(&call, &target, stamp());
        let mut out = translator.feed(&stream.as_bytes()[..cut]).unwrap().to_vec();
        out.extend_from_slice(&translator.feed(&stream.as_bytes()[cut..]).unwrap());
        out.extend_from_slice(&translator.finish().unwrap());
        assert_eq!(out, stream.as_bytes());
        let outcome = translator.outcome();
        let usage = Usage { input: 5, output: 7, cached_input: 2, cache_write_input: 0, reasoning: 3 };
        assert_eq!(
            (outcome.usage, outcome.finish, outcome.model.as_deref()),
            (Some(usage), Some(Finish::Stop), Some("up"))
        );
    }
}

#[test]
fn embeddings_between_openai_and_gemini() {
    let body = r#"{"model":"a","input":["x","y"],"dimensions":2,"encoding_format":"base64"}"#;
    let call = openai(Operation::Embeddings, body);
    let target = TargetRoute::new(Dialect::Gemini, "g");
    let request = call.for_route(&target).unwrap();
    assert_eq!(request.path, "/v1beta/models/g:batchEmbedContents");
    assert_eq!(
        request.body,
        r#"{"requests":[{"model":"models/g","content":{"parts":[{"text":"x"}]},"outputDimensionality":2},{"model":"models/g","content":{"parts":[{"text":"y"}]},"outputDimensionality":2}]}"#
    );
    let mut translator = AnswerTranslator::new(&call, &target, stamp());
    let body = Bytes::from_static(br#"{"embeddings":[{"values":[1,-0.5]},{"values":[0.25,2]}]}"#);
    let answer = translator.whole(200, &[], body).unwrap();
    assert_eq!(
        answer.body,
        r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPwAAAL8="},{"object":"embedding","index":1,"embedding":"AACAPgAAAEA="}],"model":"a","usage":{"prompt_tokens":0,"total_tokens":0}}"#
    );
    let endpoint =
        Endpoint { operation: Operation::EmbedContent, model: Some("a".into()), json_array: false };
    let call = Call::read(endpoint, Bytes::from_static(br#"{"content":{"parts":[{"text":"x"}]}}"#)).unwrap();
    let target = TargetRoute::new(Dialect::OpenAi, "e");
    let request = call.for_route(&target).unwrap();
    assert_eq!(request.body, r#"{"model":"e","input":["x"],"encoding_format":"float"}"#);
    let mut translator = AnswerTranslator::new(&call, &target, stamp());
    let body = br#"{"object":"list","data":[{"index":0,"embedding":[1.0,2]}],"model":"e","usage":{"prompt_tokens":1,"total_tokens":1}}"#;
    let answer = translator.whole(200, &[], Bytes::from_static(body)).unwrap();
    assert_eq!(answer.body, r#"{"embedding":{"values":[1.0,2]},"usageMetadata":{"promptTokenCount":1}}"#);
}

/// A vector too few would put each after it to another's text.
#[test]
fn embeddings_are_as_many_as_texts() {
    let gemini = |body: &'static str| {
        let call = openai(Operation::Embeddings, r#"{"model":"a","input":["x","y"]}"#);
        let mut translator = AnswerTranslator::new(&call, &TargetRoute::new(Dialect::Gemini, "g"), stamp());
        translator.whole(200, &[], Bytes::from_static(body.as_bytes()))
    };
    let openai = |body: &'static str| {
        let endpoint =
            Endpoint { operation: Operation::BatchEmbedContents, model: Some("a".into()), json_array: false };
        let asked = r#"{"requests":[{"content":{"parts":[]}},{"content":{"parts":[]}}]}"#;
        let call = Call::read(endpoint, Bytes::from(asked)).unwrap();
        let mut translator = AnswerTranslator::new(&call, &TargetRoute::new(Dialect::OpenAi, "g"), stamp());
        translator.whole(200, &[], Bytes::from_static(body.as_bytes()))
    };
    assert!(gemini(r#"{"embeddings":[{"values":[1]},{"values":[2]}]}"#).is_ok());
    assert!(openai(r#"{"data":[{"index":1,"embedding":[1]},{"index":0,"embedding":[2]}]}"#).is_ok());
    for (answer, field) in [
        (gemini(r#"{"embeddings":[{"values":[1]}]}"#), "embeddings"),
        (openai(r#"{"data":[{"index":0,"embedding":[1]}]}"#), "data"),
        (openai(r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#), "data"),
        (openai(r#"{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]}"#), "data"),
    ] {
        let Err(crate::DialectError::Answer(inner)) = answer else { panic!("{field} passed") };
        assert_eq!(inner.field(), Some(field));
    }
}

#[test]
fn a_provider_that_does_not_stream_is_streamed_for() {
    let call = super::call(Dialect::Anthropic, true);
    let target = TargetRoute::new(Dialect::OpenAi, "a");
    let mut translator = AnswerTranslator::new(&call, &target, stamp());
    let headers = [("content-type".to_owned(), "application/json".to_owned())];
    assert!(!translator.head(200, &headers).stream);
    let body = br#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
    let answer = translator.whole(200, &headers, Bytes::from_static(body)).unwrap();
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert!(
        text.starts_with("event: message_start\n") && text.ends_with("{\"type\":\"message_stop\"}\n\n"),
        "{text}"
    );
    assert_eq!(answer.headers[0].1, "text/event-stream; charset=utf-8");
}
