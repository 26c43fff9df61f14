//! Streams as they come and as they break: line endings, comments, no last event, errors half way, and one JSON array in
//! place of events.
use super::{call, endpoint, stamp, upstream};
use crate::errors::ErrorKind;
use crate::eventstream;
use crate::{AnswerTranslator, Call, Dialect, DialectError, Endpoint, Finish, Operation, TargetRoute};
use bytes::Bytes;

/// Feeds a stream in two pieces; bytes for the caller, and the first error.
fn run(from: Dialect, asked: &Call, stream: &[u8], cut: usize) -> (Vec<u8>, Result<(), DialectError>) {
    let mut translator = AnswerTranslator::new(asked, &TargetRoute::new(from, upstream(from)), stamp());
    let mut out = Vec::new();
    let (first, second) = stream.split_at(cut);
    for piece in [first, second] {
        match translator.feed(piece) {
            Ok(bytes) => out.extend_from_slice(&bytes),
            Err(error) => return (out, Err(error)),
        }
    }
    let end = translator.finish().map(|last| out.extend_from_slice(&last));
    (out, end)
}

/// The same wherever it is cut.
fn everywhere(from: Dialect, asked: &Call, stream: &str) -> (String, Result<(), DialectError>) {
    let (whole, end) = run(from, asked, stream.as_bytes(), 0);
    for cut in 1..stream.len() {
        let seen = run(from, asked, stream.as_bytes(), cut);
        assert!(seen == (whole.clone(), end.clone()), "{stream} cut at {cut}: {:?}", seen.1);
    }
    (String::from_utf8(whole).unwrap(), end)
}

const OPENAI: [&str; 4] = [
    r#"{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
    r#"{"choices":[{"index":0,"delta":{"content":"hi"}}]}"#,
    r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}"#,
];
const ANTHROPIC: [&str; 6] = [
    r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"cache_read_input_tokens":2}}}"#,
    r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
    r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}"#,
    r#"{"type":"content_block_stop","index":0}"#,
    r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1}}"#,
    r#"{"type":"message_stop"}"#,
];
const GEMINI: [&str; 2] = [
    r#"{"candidates":[{"content":{"parts":[{"text":"hi"}]}}],"modelVersion":"m"}"#,
    r#"{"candidates":[{"content":{"parts":[{"text":""}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1,"cachedContentTokenCount":2}}"#,
];

fn events(list: &[&str]) -> String {
    list.iter().map(|data| format!("data: {data}\n\n")).collect()
}

/// Events of a dialect, and what ends them there.
fn of(dialect: Dialect) -> Vec<&'static str> {
    match dialect {
        Dialect::OpenAi => [OPENAI.as_slice(), &["[DONE]"]].concat(),
        Dialect::Anthropic => ANTHROPIC.to_vec(),
        Dialect::Gemini => GEMINI.to_vec(),
        Dialect::Bedrock => unreachable!("frames"),
    }
}

const EVENTS: [Dialect; 3] = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini];

#[test]
fn line_endings_comments_and_marks_change_nothing() {
    for from in EVENTS {
        for to in Dialect::ALL.into_iter().filter(|to| *to != from) {
            let asked = call(to, true);
            let plain = events(&of(from));
            let expected = run(from, &asked, plain.as_bytes(), 0);
            expected.1.clone().unwrap();
            let bent = [
                plain.replace('\n', "\r\n"),
                plain.replace('\n', "\r"),
                format!("\u{feff}{plain}"),
                format!(": comment\n\n{}", plain.replace("data: ", ": ping\nid: 7\nretry: 3\ndata:")),
                // an event over several lines of data, split between JSON's tokens
                plain.replace(",\"", ",\ndata: \""),
                // no blank line, and no line ending at all, after the last
                plain.trim_end().to_owned() + "\n",
                plain.trim_end().to_owned(),
            ];
            for stream in bent {
                let step = if from == Dialect::OpenAi { 1 } else { 7 };
                for cut in (0..stream.len()).step_by(step) {
                    let seen = run(from, &asked, stream.as_bytes(), cut);
                    assert!(seen == expected, "{from} to {to}, cut at {cut}: {:?}\n{stream}", seen.1);
                }
            }
        }
    }
}

#[test]
fn a_stream_without_its_end_is_no_whole_one() {
    for from in EVENTS {
        let all = of(from);
        for to in Dialect::ALL.into_iter().filter(|to| *to != from) {
            let asked = call(to, true);
            for count in 0..all.len() {
                let (.., end) = run(from, &asked, events(&all[..count]).as_bytes(), 0);
                // usage, which is asked for, comes after all else
                let whole = from == Dialect::OpenAi && count == OPENAI.len();
                assert_eq!(end.is_ok(), whole, "{from} to {to}, {count} events");
                if !whole {
                    assert_eq!(end, Err(DialectError::Truncated));
                }
            }
            // within the last event
            let text = events(&all);
            let (.., end) = run(from, &asked, &text.as_bytes()[..text.len() - 6], 0);
            assert!(end.is_err() || from == Dialect::OpenAi, "{from} to {to}");
        }
    }
    // the end without a reason to stop
    let asked = call(Dialect::Gemini, true);
    let bare = events(&[OPENAI[0], OPENAI[1], OPENAI[3], "[DONE]"]);
    assert!(matches!(run(Dialect::OpenAi, &asked, bare.as_bytes(), 0).1, Err(DialectError::Truncated)));
    let bare = events(&[ANTHROPIC[0], ANTHROPIC[5]]);
    let expected = DialectError::Malformed { field: String::new(), expected: "a stop_reason before it" };
    let (.., end) = run(Dialect::Anthropic, &asked, bare.as_bytes(), 0);
    assert_eq!(end, Err(DialectError::Answer(Box::new(expected))));
}

#[test]
fn feedback_on_a_prompt_is_the_end_only_if_it_was_blocked() {
    let asked = call(Dialect::OpenAi, true);
    let rated = events(&[r#"{"promptFeedback":{"safetyRatings":[]}}"#]);
    assert_eq!(run(Dialect::Gemini, &asked, rated.as_bytes(), 0).1, Err(DialectError::Truncated));
    for to in [Dialect::OpenAi, Dialect::Gemini] {
        let blocked = events(&[r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#]);
        let target = TargetRoute::new(Dialect::Gemini, "g");
        let mut translator = AnswerTranslator::new(&call(to, true), &target, stamp());
        translator.feed(blocked.as_bytes()).unwrap();
        translator.finish().unwrap();
        assert_eq!(translator.outcome().finish, Some(Finish::ContentFilter));
    }
}

#[test]
fn usage_after_the_reason_counts_and_nothing_after_the_end() {
    for from in EVENTS {
        for to in Dialect::ALL {
            let stream = events(&of(from));
            let asked = call(to, true);
            let target = TargetRoute::new(from, upstream(from));
            let mut translator = AnswerTranslator::new(&asked, &target, stamp());
            translator.feed(stream.as_bytes()).unwrap();
            if from != Dialect::Gemini {
                translator.feed(events(&["{\"choices\":", "[DONE]"]).as_bytes()).unwrap();
            }
            translator.finish().unwrap();
            let usage = translator.outcome().usage.unwrap();
            assert_eq!((usage.input, usage.cached_input, usage.output), (3, 2, 1), "{from} to {to}");
        }
    }
}

#[test]
fn an_error_half_way_is_told_in_the_callers_dialect() {
    let errors = [
        (
            Dialect::OpenAi,
            r#"{"error":{"message":"slow down","type":"rate_limit_error","code":"rate_limit_exceeded"}}"#,
        ),
        (Dialect::OpenAi, r#"{"object":"error","message":"slow down","code":"rate_limit_exceeded"}"#),
        (Dialect::Anthropic, r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#),
        (Dialect::Gemini, r#"{"error":{"code":429,"message":"slow down","status":"RESOURCE_EXHAUSTED"}}"#),
    ];
    for (from, error) in errors {
        let all = of(from);
        for to in Dialect::ALL.into_iter().filter(|to| *to != from) {
            let asked = call(to, true);
            // whatever follows an error is not read
            let stream = events(&[all[0], error, "{", all[1]]);
            let target = TargetRoute::new(from, upstream(from));
            let mut translator = AnswerTranslator::new(&asked, &target, stamp());
            let out = translator.feed(stream.as_bytes()).unwrap();
            translator.finish().unwrap();
            assert_eq!(translator.outcome().error, Some(ErrorKind::RateLimited), "{from} to {to}");
            assert!(out.ends_with(&call(to, true).error_event(ErrorKind::RateLimited, "slow down")));
        }
    }
}

/// What came before the damage reaches the caller, however it was cut; then the error, for as long as anybody asks.
#[test]
fn what_is_whole_is_given_before_an_error() {
    for from in EVENTS {
        let (first, rest) = (of(from)[..1].to_vec(), "data: {\"type\":1}\n\ndata: x\n\n");
        let asked = call(if from == Dialect::OpenAi { Dialect::Anthropic } else { Dialect::OpenAi }, true);
        let target = TargetRoute::new(from, upstream(from));
        let expected =
            AnswerTranslator::new(&asked, &target, stamp()).feed(events(&first).as_bytes()).unwrap();
        let (out, end) = everywhere(from, &asked, &(events(&first) + "data: [1]\n\n" + rest));
        assert!(matches!(end, Err(DialectError::Answer(_))), "{end:?}");
        assert_eq!(out.as_bytes(), expected);
        let mut translator = AnswerTranslator::new(&asked, &TargetRoute::new(from, "m"), stamp());
        let _first = translator.feed(b"data: [1]\n\n").unwrap_err();
        assert!(translator.feed(events(&of(from)).as_bytes()).is_err());
        assert!(translator.finish().is_err());
    }
    let mut frames = Vec::new();
    eventstream::write_event(&mut frames, "messageStart", "{}");
    let good = frames.len();
    eventstream::write_event(&mut frames, "messageStop", r#"{"stopReason":"end_turn"}"#);
    *frames.last_mut().unwrap() ^= 1;
    let asked = call(Dialect::OpenAi, true);
    let target = TargetRoute::new(Dialect::Bedrock, upstream(Dialect::Bedrock));
    let expected = AnswerTranslator::new(&asked, &target, stamp()).feed(&frames[..good]).unwrap();
    for cut in 0..frames.len() {
        let (out, end) = run(Dialect::Bedrock, &asked, &frames, cut);
        assert_eq!(end, Err(DialectError::DamagedFrame { what: "message checksum" }));
        assert!(out == expected, "cut at {cut}");
    }
}

fn array() -> Call {
    let mut endpoint = endpoint(Dialect::Gemini, true);
    endpoint.json_array = true;
    Call::read(endpoint, Bytes::from_static(br#"{"contents":[{"parts":[{"text":"hi"}]}]}"#)).unwrap()
}

#[test]
fn one_json_array_in_place_of_events() {
    let asked = array();
    // a route of the same dialect is asked for events; its items pass as they are
    let request = asked.for_route(&TargetRoute::new(Dialect::Gemini, "g")).unwrap();
    assert_eq!(request.path, "/v1beta/models/g:streamGenerateContent?alt=sse");
    let items = [r#"{"candidates": [{"x_unknown": 1.10}]}"#, GEMINI[1]];
    let (out, end) = everywhere(Dialect::Gemini, &asked, &events(&items));
    end.unwrap();
    assert_eq!(out, format!("[{},\r\n{}]\n", items[0], items[1]));
    // of other dialects, the array holds what the events would
    for from in [Dialect::OpenAi, Dialect::Anthropic] {
        let stream = events(&of(from));
        let (out, end) = everywhere(from, &asked, &stream);
        end.unwrap();
        let (sse, _) = run(from, &call(Dialect::Gemini, true), stream.as_bytes(), 0);
        let sse = String::from_utf8(sse).unwrap();
        let list: Vec<&str> =
            sse.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(out, format!("[{}]\n", list.join(",\r\n")), "{from}");
        serde_json::from_str::<Vec<serde::de::IgnoredAny>>(&out).unwrap();
    }
    let target = TargetRoute::new(Dialect::Gemini, "g");
    let head = AnswerTranslator::new(&asked, &target, stamp())
        .head(200, &[("content-type".into(), "text/event-stream".into())]);
    assert!(head.stream);
    assert_eq!(head.headers, [("content-type".to_owned(), "application/json; charset=UTF-8".to_owned())]);
}

#[test]
fn an_array_ends_with_its_bracket_or_with_an_error() {
    let asked = array();
    for (from, first) in [(Dialect::Gemini, GEMINI[0]), (Dialect::OpenAi, OPENAI[1])] {
        for begun in [false, true] {
            let mut translator = AnswerTranslator::new(&asked, &TargetRoute::new(from, "g"), stamp());
            let mut out = Vec::new();
            if begun {
                out.extend_from_slice(&translator.feed(events(&[first]).as_bytes()).unwrap());
            }
            assert_eq!(translator.finish().err(), Some(DialectError::Truncated), "{from}");
            out.extend_from_slice(&translator.error_event(ErrorKind::BadGateway, "cut \"off\""));
            let items: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
            assert_eq!(items.len(), 1 + usize::from(begun));
            assert_eq!(items.last().unwrap()["error"]["message"], "cut \"off\"");
            assert_eq!(translator.last_item("{}"), None, "nothing follows the bracket");
            assert!(translator.error_event(ErrorKind::BadGateway, "again").is_empty());
        }
    }
    // an event that is no JSON would break the array
    let (out, end) = everywhere(Dialect::Gemini, &asked, &events(&[GEMINI[0], "x", GEMINI[1]]));
    assert!(matches!(end, Err(DialectError::Answer(_))));
    assert_eq!(out, format!("[{}", GEMINI[0]));
    // the provider's own error is an item
    let mut translator = AnswerTranslator::new(&asked, &TargetRoute::new(Dialect::Anthropic, "c"), stamp());
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    let out = translator.feed(events(&[ANTHROPIC[0], ANTHROPIC[1], ANTHROPIC[2], error]).as_bytes()).unwrap();
    let items: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
    assert_eq!(items.last().unwrap()["error"]["status"], "UNAVAILABLE");
}

#[test]
fn a_route_that_answers_whole_makes_an_array_of_one() {
    let mut translator = AnswerTranslator::new(&array(), &TargetRoute::new(Dialect::OpenAi, "m"), stamp());
    let body = br#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
    let answer = translator.whole(200, &[], Bytes::from_static(body)).unwrap();
    let items: Vec<serde_json::Value> = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(items[0]["candidates"][0]["content"]["parts"][0]["text"], "hi");
    assert_eq!(answer.headers[0].1, "application/json; charset=UTF-8");
    // so does one of the same dialect, and what is an array already stays as it is
    let own = TargetRoute::new(Dialect::Gemini, "g");
    let json = [("content-type".to_owned(), "application/json".to_owned())];
    for (body, expected) in
        [(GEMINI[1].to_owned(), format!("[{}]\n", GEMINI[1])), ("[{}]".into(), "[{}]".into())]
    {
        let mut translator = AnswerTranslator::new(&array(), &own, stamp());
        assert!(!translator.head(200, &json).stream);
        let answer = translator.whole(200, &json, Bytes::from(body)).unwrap();
        assert_eq!(std::str::from_utf8(&answer.body).unwrap(), expected);
    }
    // and errors, as Google has them
    for (from, error) in [
        (Dialect::Gemini, r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}"#),
        (Dialect::OpenAi, r#"{"error":{"message":"m","type":"x","code":"rate_limit_exceeded"}}"#),
    ] {
        let mut translator = AnswerTranslator::new(&array(), &TargetRoute::new(from, "g"), stamp());
        let answer = translator.whole(429, &json, Bytes::from(error)).unwrap();
        let items: Vec<serde_json::Value> = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((items.len(), items[0]["error"]["status"].as_str()), (1, Some("RESOURCE_EXHAUSTED")));
    }
}

#[test]
fn responses_are_cut_short_like_all_others() {
    let endpoint = Endpoint { operation: Operation::Responses, model: None, json_array: false };
    let asked =
        Call::read(endpoint, Bytes::from_static(br#"{"model":"a","input":"x","stream":true}"#)).unwrap();
    for count in 0..ANTHROPIC.len() {
        let (out, end) = run(Dialect::Anthropic, &asked, events(&ANTHROPIC[..count]).as_bytes(), 0);
        assert_eq!(end, Err(DialectError::Truncated));
        assert!(!String::from_utf8(out).unwrap().contains("response.completed"), "{count}");
    }
}
