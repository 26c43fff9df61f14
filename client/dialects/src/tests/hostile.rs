//! Arbitrary and bent bytes: an error or an answer, never a panic, and no more memory than the bounds.
use super::{call, endpoint, stamp, upstream};
use crate::eventstream;
use crate::limits::EVENT_BYTES_MAX;
use crate::{AnswerTranslator, Call, Dialect, DialectError, Endpoint, Operation, TargetRoute};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn golden(kind: &str) -> Vec<(Dialect, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(kind);
    let mut all = Vec::new();
    for dialect in Dialect::ALL {
        for ending in ["json", "sse"] {
            all.extend(fs::read(root.join(format!("{dialect}.{ending}"))).ok().map(|bytes| (dialect, bytes)));
        }
    }
    all
}

fn everything(body: &[u8]) {
    let operations = [
        Operation::Chat,
        Operation::Responses,
        Operation::Completions,
        Operation::Embeddings,
        Operation::Messages,
        Operation::CountTokens,
        Operation::GenerateContent { stream: true },
        Operation::CountContent,
        Operation::EmbedContent,
        Operation::BatchEmbedContents,
        Operation::Converse { stream: false },
    ];
    for operation in operations {
        let own = matches!(operation.dialect(), Dialect::Gemini | Dialect::Bedrock);
        let endpoint = Endpoint { operation, model: own.then(|| "a".into()), json_array: false };
        let Ok(call) = Call::read(endpoint, Bytes::copy_from_slice(body)) else { continue };
        for to in Dialect::ALL {
            let target = TargetRoute { meter: true, ..TargetRoute::new(to, upstream(to)) };
            if let Ok(request) = call.for_route(&target) {
                serde_json::from_slice::<serde::de::IgnoredAny>(&request.body).unwrap();
            }
        }
    }
}

fn answers(bytes: &[u8], cut: usize) {
    for from in Dialect::ALL {
        for to in Dialect::ALL {
            let target = TargetRoute::new(from, upstream(from));
            let translator = || AnswerTranslator::new(&call(to, true), &target, stamp());
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut streamed = translator();
            let _ = streamed.feed(first).and_then(|_| streamed.feed(second)).and_then(|_| streamed.finish());
            for status in [200, 400, 500] {
                let _ = translator().whole(status, &[], Bytes::copy_from_slice(bytes));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn arbitrary_bytes(bytes in vec(any::<u8>(), 0..200), cut in 0..200_usize) {
        everything(&bytes);
        answers(&bytes, cut);
    }

    #[test]
    fn jsonish(text in "[\\[\\]{}:,\"a-c0-2 \\\\nulltrue]{0,60}", cut in 0..60_usize) {
        everything(text.as_bytes());
        answers(text.as_bytes(), cut);
        answers(format!("data: {text}\n\n").as_bytes(), cut);
    }

    #[test]
    fn bent_requests(
        case in prop_oneof![Just("requests/tools"), Just("requests/format"), Just("requests/thinking")],
        at in any::<prop::sample::Index>(), byte in any::<u8>(), drop in 0..8_usize,
    ) {
        for (_, mut body) in golden(case) {
            let at = at.index(body.len());
            let end = (at + drop).min(body.len());
            body.splice(at..end, [byte]);
            everything(&body);
        }
    }

    #[test]
    fn bent_streams(
        case in prop_oneof![Just("streams/tools"), Just("streams/thinking"), Just("answers/tools")],
        at in any::<prop::sample::Index>(), byte in any::<u8>(), drop in 0..8_usize, cut in 0..3000_usize,
    ) {
        for (_, mut bytes) in golden(case) {
            let at = at.index(bytes.len());
            let end = (at + drop).min(bytes.len());
            bytes.splice(at..end, [byte]);
            answers(&bytes, cut);
        }
    }
}

#[test]
fn nothing_is_deeper_than_the_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let body =
            format!(r#"{{"model":"a","max_tokens":1,"messages":{deep},"contents":{deep},"tools":{deep}}}"#);
        everything(body.as_bytes());
        let schema = format!(
            r#"{{"contents":[],"generationConfig":{{"responseMimeType":"application/json","responseSchema":{deep}}}}}"#
        );
        everything(schema.as_bytes());
        answers(format!("data: {deep}\n\n").as_bytes(), 7);
    }
    let mut schema = String::from("{}");
    for _ in 0..1000 {
        schema = format!(r#"{{"type":"ARRAY","items":{schema}}}"#);
    }
    let body = format!(
        r#"{{"contents":[],"generationConfig":{{"responseMimeType":"application/json","responseSchema":{schema}}}}}"#
    );
    let call = Call::read(endpoint(Dialect::Gemini, false), Bytes::from(body)).unwrap();
    let error = call.for_route(&TargetRoute::new(Dialect::OpenAi, "a")).err().unwrap();
    let DialectError::NotUnderstood(inner) = error else { panic!("{error}") };
    let deep = "a schema of at most 64 levels";
    assert!(matches!(*inner, DialectError::Malformed { expected, .. } if expected == deep), "{inner}");
}

#[test]
fn an_endless_event_is_refused_by_every_reader() {
    let piece = vec![b'a'; 1 << 20];
    for from in Dialect::ALL {
        for to in Dialect::ALL {
            let target = TargetRoute::new(from, upstream(from));
            let mut translator = AnswerTranslator::new(&call(to, true), &target, stamp());
            let refused = (0..2 + EVENT_BYTES_MAX / piece.len()).find_map(|_| translator.feed(&piece).err());
            let error = refused.unwrap_or(DialectError::Truncated);
            let large = DialectError::TooLarge { what: "an event", max: EVENT_BYTES_MAX };
            let bent = DialectError::DamagedFrame { what: "prelude checksum" };
            let expected =
                if from == Dialect::Bedrock { bent } else { DialectError::Answer(Box::new(large)) };
            assert_eq!(error, expected, "{from} to {to}");
        }
    }
}

/// A provider's error that is nested in arrays is no error of any dialect; looking for one must not follow it down.
#[test]
fn an_error_nested_in_arrays_is_read_to_its_first_level() {
    let deep = |n: usize| Bytes::from(format!("{}{{\"message\":\"m\"}}{}", "[".repeat(n), "]".repeat(n)));
    for from in Dialect::ALL {
        for to in Dialect::ALL {
            let target = TargetRoute::new(from, upstream(from));
            let mut translator = AnswerTranslator::new(&call(to, false), &target, stamp());
            let answer = translator.whole(429, &[], deep(1_000_000)).unwrap();
            assert!(answer.status >= 400, "{from} to {to}");
            let passes = from == to;
            let one = translator.whole(429, &[], deep(1)).unwrap();
            assert!(passes || String::from_utf8_lossy(&one.body).contains("\"m\""), "{from} to {to}");
        }
    }
}

/// Bodies of 16 MiB, each of another shape that a reader could look at once for each of its parts.
fn shapes() -> Vec<(&'static str, Operation, Vec<u8>)> {
    const MOST: usize = 16 << 20;
    let fill = |piece: &str| piece.repeat(MOST / piece.len());
    let openai = |messages: &str| format!(r#"{{"model":"a","max_tokens":1,"messages":[{messages}]}}"#);
    let user = |content: &str| openai(&format!(r#"{{"role":"user","content":{content}}}"#));
    let list = |piece: &str, most: usize| {
        let all = piece.repeat((MOST / piece.len()).min(most));
        all.trim_end_matches(',').to_owned()
    };
    let contents = |parts: &[String]| {
        let all: Vec<_> = parts.iter().map(|p| format!(r#"{{"parts":[{p}]}}"#)).collect();
        format!(r#"{{"contents":[{}]}}"#, all.join(","))
    };
    let keys: String = (0..1_000_000).map(|n| format!("\"k{n}\":0,")).collect();
    let calls: String =
        (0..99_000).map(|n| format!(r#"{{"functionCall":{{"name":"f","id":"i{n}"}}}},"#)).collect();
    let call_turn = format!(r#"{{"role":"model","parts":[{}]}}"#, calls.trim_end_matches(','));
    let results = |result: &str| format!(r#"{{"parts":[{}]}}"#, list(result, 99_000));
    let unmatched = format!(
        r#"{{"contents":[{call_turn},{0},{0}]}}"#,
        results(r#"{"functionResponse":{"name":"g","id":"x","response":{}}},"#)
    );
    let nameless = format!(
        r#"{{"contents":[{{"role":"model","parts":[{}]}},{}]}}"#,
        list(r#"{"functionCall":{"name":"f"}},"#, 99_000),
        results(r#"{"functionResponse":{"name":"f","response":{}}},"#)
    );
    let thoughts = list(r#"{"type":"thinking","thinking":"t","signature":"s","position":0},"#, 99_000);
    let assistant = format!(r#"{{"role":"assistant","content":"x","thinking_blocks":[{thoughts}]}}"#);
    let mut schema = format!(r#"{{"type":"STRING","description":"{}"}}"#, "x".repeat(MOST));
    for _ in 0..60 {
        schema = format!(r#"{{"type":"ARRAY","items":{schema}}}"#);
    }
    let schema = format!(
        r#"{{"contents":[],"generationConfig":{{"responseMimeType":"application/json","responseSchema":{schema}}}}}"#
    );
    let generate = Operation::GenerateContent { stream: false };
    let converse = Operation::Converse { stream: false };
    let text = |body: String| body.into_bytes();
    vec![
        ("one text", Operation::Chat, text(user(&format!("\"{}\"", fill("x"))))),
        ("escapes", Operation::Chat, text(user(&format!("\"{}\"", fill("\\u00e9"))))),
        (
            "texts",
            Operation::Messages,
            text(user(&format!("[{}]", list(r#"{"type":"text","text":""},"#, 99_000)))),
        ),
        ("messages", Operation::Chat, text(openai(&list(r#"{"role":"user","content":"x"},"#, 99_000)))),
        ("numbers", Operation::Chat, text(user(&format!("[{}0]", fill("0,"))))),
        ("keys", Operation::Chat, text(format!("{{\"model\":\"a\",{}\"messages\":[]}}", keys))),
        (
            "brackets",
            Operation::Chat,
            text(user(&format!("{}{}", "[".repeat(MOST / 2), "]".repeat(MOST / 2)))),
        ),
        ("thoughts", Operation::Chat, text(openai(&assistant))),
        (
            "arguments",
            Operation::Chat,
            text(openai(&format!(
                r#"{{"role":"assistant","tool_calls":[{{"id":"i","function":{{"name":"f","arguments":"{{\"a\":[{}0]}}"}}}}]}}"#,
                fill("0,")
            ))),
        ),
        ("contents", generate, text(contents(&vec![r#"{"text":"x"}"#.to_owned(); 99_000]))),
        ("results of no call", generate, text(unmatched)),
        ("results without ids", generate, text(nameless)),
        ("schema", generate, text(schema)),
        ("blocks", converse, text(user(&format!("[{}]", list(r#"{"text":"x"},"#, 99_000))))),
        (
            "input",
            Operation::Responses,
            text(format!(
                r#"{{"model":"a","input":[{}]}}"#,
                list(r#"{"role":"user","content":"x"},"#, 99_000)
            )),
        ),
        (
            "texts to embed",
            Operation::Embeddings,
            text(format!(r#"{{"model":"a","input":[{}]}}"#, list("\"\",", 99_000))),
        ),
    ]
}

/// A reader that looks at each part once for each other would need hours. `--nocapture` shows what each needs.
#[test]
fn sixteen_mebibytes_of_any_shape() {
    let deadline = std::time::Duration::from_secs(120);
    for (shape, operation, body) in shapes() {
        let begun = std::time::Instant::now();
        let own = matches!(operation.dialect(), Dialect::Gemini | Dialect::Bedrock);
        let endpoint = Endpoint { operation, model: own.then(|| "a".into()), json_array: false };
        let call = match Call::read(endpoint, Bytes::from(body)) {
            Ok(call) => call,
            Err(DialectError::TooLarge { .. }) if shape == "keys" => continue,
            Err(error) => panic!("{shape}: {error}"),
        };
        let read = begun.elapsed();
        for to in Dialect::ALL {
            let begun = std::time::Instant::now();
            let said = call.for_route(&TargetRoute { meter: true, ..TargetRoute::new(to, upstream(to)) });
            println!("{shape}: read {read:?}, to {to} {:?}, said {}", begun.elapsed(), said.is_ok());
            assert!(begun.elapsed() < deadline, "{shape} to {to}");
        }
    }
}

#[test]
fn sixteen_mebibytes_of_any_stream() {
    let deadline = std::time::Duration::from_secs(120);
    let fill = |piece: &str| piece.repeat((16 << 20) / piece.len());
    let delta = |delta: &str| format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
    let call = |n: u32, text: &str| {
        delta(&format!(
            r#"{{"tool_calls":[{{"index":{n},"id":"i{n}","function":{{"name":"f","arguments":"{text}"}}}}]}}"#
        ))
    };
    let text = delta(r#"{"content":"x"}"#);
    let streams = [
        ("texts", Dialect::OpenAi, fill(&text)),
        ("calls", Dialect::OpenAi, (0..150_000).map(|n| call(n, "{}")).collect()),
        (
            "calls that overlap",
            Dialect::OpenAi,
            call(0, "") + &call(1, "") + &fill(&(call(1, " ") + &call(0, " "))),
        ),
        ("lines", Dialect::OpenAi, fill("data\n")),
        ("comments", Dialect::Gemini, fill(":\n")),
        ("empty", Dialect::Anthropic, fill("\n")),
        ("one line", Dialect::Anthropic, fill("x")),
        ("numbers", Dialect::Gemini, format!("data: [{}0]\n\n", fill("0,"))),
    ];
    for (shape, from, stream) in &streams {
        for to in [*from, Dialect::Gemini, Dialect::Bedrock] {
            for piece in [stream.len(), 61] {
                let begun = std::time::Instant::now();
                let target = TargetRoute { meter: true, ..TargetRoute::new(*from, upstream(*from)) };
                let mut translator = AnswerTranslator::new(&super::call(to, true), &target, stamp());
                let end =
                    stream.as_bytes().chunks(piece).try_for_each(|bytes| translator.feed(bytes).map(drop));
                println!("{shape}, {piece} at once, {from} to {to}: {:?}, {}", begun.elapsed(), end.is_ok());
                assert!(begun.elapsed() < deadline, "{shape} {from} to {to}");
            }
        }
    }
    let mut frames = Vec::new();
    while frames.len() < 16 << 20 {
        eventstream::write_event(
            &mut frames,
            "contentBlockDelta",
            r#"{"contentBlockIndex":0,"delta":{"text":"x"}}"#,
        );
    }
    for piece in [frames.len(), 7] {
        let begun = std::time::Instant::now();
        let target = TargetRoute::new(Dialect::Bedrock, "b");
        let mut translator = AnswerTranslator::new(&super::call(Dialect::OpenAi, true), &target, stamp());
        frames.chunks(piece).try_for_each(|bytes| translator.feed(bytes).map(drop)).unwrap();
        println!("frames, {piece} at once: {:?}", begun.elapsed());
        assert!(begun.elapsed() < deadline);
    }
}
