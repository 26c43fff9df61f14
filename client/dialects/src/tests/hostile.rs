//! Arbitrary and bent bytes: an error or an answer, never a panic, and no more memory than the bounds.
use super::{call, endpoint, stamp, upstream};
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
