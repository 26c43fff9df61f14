//! What a provider answers, and what an application asks: HTTP heads and bodies, and the dialects in them.
use crate::input::Input;
use bytes::Bytes;
use quorate_client::http1::{Event, HEADERS_MAX, ResponseParser};
use quorate_dialects::{
    AnswerTranslator, Call, Dialect, DialectError, Endpoint, Operation, Stamp, TargetRoute, headers,
};

/// What a parser read.
#[derive(Debug, PartialEq)]
struct Read {
    status: Option<u16>,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    end: bool,
    error: Option<quorate_client::http1::HttpError>,
    closed: bool,
}

fn read(bytes: &[u8], piece: usize, orderly: bool) -> Read {
    let mut parser = ResponseParser::new();
    let mut seen =
        Read { status: None, headers: vec![], body: vec![], end: false, error: None, closed: false };
    'pieces: for chunk in bytes.chunks(piece) {
        parser.feed(chunk.to_vec());
        loop {
            match parser.next() {
                Ok(Some(Event::Head(head))) => {
                    assert!(seen.status.is_none() && !seen.end, "one head");
                    assert!(head.headers.len() <= HEADERS_MAX);
                    seen.status = Some(head.status.as_u16());
                    seen.headers =
                        head.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect();
                }
                Ok(Some(Event::Body(piece))) => {
                    assert!(!piece.is_empty() && !seen.end && seen.status.is_some());
                    seen.body.extend_from_slice(&piece);
                }
                Ok(Some(Event::End)) => {
                    assert!(!seen.end, "one end");
                    seen.end = true;
                }
                Ok(None) => break,
                Err(error) => {
                    seen.error = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    if seen.error.is_none() {
        seen.closed = parser.close(orderly).is_ok();
    }
    seen
}

/// Input: whether the connection ends in order (1), then what a provider sends.
pub fn http(data: &[u8]) -> bool {
    let mut input = Input(data);
    let orderly = input.byte() & 1 == 1;
    let bytes = input.0;
    let whole = read(bytes, usize::MAX, orderly);
    assert_eq!(read(bytes, 1 + data.len() % 61, orderly), whole, "the cut changes nothing");
    assert!(whole.body.len() <= bytes.len(), "no more than came");
    let headers: Vec<(String, String)> = whole
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    let _any = headers::retry_after_ms(&headers);
    if let Some(length) = whole.headers.iter().find(|(name, _)| name == "content-length")
        && whole.end
        && !matches!(whole.status, Some(204 | 304))
    {
        assert_eq!(String::from_utf8_lossy(&length.1).parse().ok(), Some(whole.body.len() as u64));
    }
    whole.status.is_some()
}

/// The operations whose bodies are read.
const OPERATIONS: [Operation; 14] = [
    Operation::Chat,
    Operation::Responses,
    Operation::Completions,
    Operation::Embeddings,
    Operation::Messages,
    Operation::CountTokens,
    Operation::GenerateContent { stream: false },
    Operation::GenerateContent { stream: true },
    Operation::CountContent,
    Operation::EmbedContent,
    Operation::BatchEmbedContents,
    Operation::Converse { stream: false },
    Operation::Converse { stream: true },
    Operation::Models(Dialect::OpenAi),
];

fn endpoint(operation: Operation) -> Endpoint {
    let named = matches!(operation.dialect(), Dialect::Gemini | Dialect::Bedrock);
    Endpoint { operation, model: named.then(|| "alias".into()), json_array: false }
}

/// Input: which operation (1), then an application's body; a path for the last of them.
pub fn requests(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = usize::from(input.byte());
    let body = Bytes::copy_from_slice(input.0);
    if choice == 255 {
        let Some(text) = crate::input::text(&body) else { return false };
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        let found = ["GET", "POST"].map(|method| Endpoint::of(method, path, query, false));
        return found.iter().any(Option::is_some);
    }
    let Some(operation) = OPERATIONS.get(choice % OPERATIONS.len()) else { return false };
    let Ok(call) = Call::read(endpoint(*operation), body.clone()) else { return false };
    for to in Dialect::ALL {
        for model in ["up", call.model()] {
            let target = TargetRoute { meter: model == "up", ..TargetRoute::new(to, model) };
            let Ok(request) = call.for_route(&target) else { continue };
            assert!(
                request.body.len() <= 16 * body.len() + 65_536,
                "{} bytes of {}",
                request.body.len(),
                body.len()
            );
            if matches!(operation, Operation::Models(_)) {
                continue;
            }
            let valid = serde_json::from_slice::<serde::de::IgnoredAny>(&request.body);
            assert!(valid.is_ok(), "a body that is no JSON");
            if request.passthrough && !target.meter {
                assert!(to == operation.dialect() && request.body == body, "byte for byte");
            }
        }
    }
    true
}

/// The smallest call of a dialect.
fn call(dialect: Dialect, stream: bool) -> Call {
    let (operation, body) = match dialect {
        Dialect::OpenAi => {
            (Operation::Chat, format!(r#"{{"model":"alias","messages":[],"stream":{stream}}}"#))
        }
        Dialect::Anthropic => (
            Operation::Messages,
            format!(r#"{{"model":"alias","max_tokens":9,"messages":[],"stream":{stream}}}"#),
        ),
        Dialect::Gemini => (Operation::GenerateContent { stream }, r#"{"contents":[]}"#.to_owned()),
        Dialect::Bedrock => (Operation::Converse { stream }, r#"{"messages":[]}"#.to_owned()),
    };
    let Ok(call) = Call::read(endpoint(operation), Bytes::from(body)) else {
        unreachable!("the smallest call")
    };
    call
}

fn streamed(
    call: &Call,
    target: &TargetRoute,
    bytes: &[u8],
    piece: usize,
) -> (Vec<u8>, Result<(), DialectError>) {
    let stamp = Stamp { id: "s1".into(), created: 1_700_000_000 };
    let mut translator = AnswerTranslator::new(call, target, stamp);
    let mut out = Vec::new();
    for piece in bytes.chunks(piece) {
        match translator.feed(piece) {
            Ok(more) => out.extend_from_slice(&more),
            Err(error) => {
                assert!(translator.feed(b"x").is_err(), "an error is final");
                return (out, Err(error));
            }
        }
    }
    let end = translator.finish().map(|more| out.extend_from_slice(&more));
    (out, end)
}

/// Input: from which dialect to which (1), whether it is an answer, an error or a stream (1), then what the provider sends.
pub fn answers(data: &[u8]) -> bool {
    let mut input = Input(data);
    let pair = usize::from(input.byte());
    let kind = input.byte();
    let bytes = input.0;
    let all = Dialect::ALL;
    let (Some(from), Some(to)) = (all.get(pair % all.len()), all.get(pair / all.len() % all.len())) else {
        return false;
    };
    let target = TargetRoute::new(*from, "up");
    let call = call(*to, kind & 1 == 1);
    if kind & 6 != 0 {
        let (out, end) = streamed(&call, &target, bytes, usize::MAX);
        let (cut, cut_end) = streamed(&call, &target, bytes, 1 + data.len() % 53);
        assert!(end == cut_end, "the cut changes nothing: {end:?} and {cut_end:?}");
        if from == to {
            // What passes unread passes as it comes: of a piece that ends the stream nothing.
            assert!(bytes.starts_with(&out) && bytes.starts_with(&cut) && (end.is_err() || out == cut));
        } else {
            assert!(out == cut, "the cut changes nothing");
        }
        assert!(out.len() <= 64 * bytes.len() + 65_536, "{} bytes of {}", out.len(), bytes.len());
        return end.is_ok() || !out.is_empty();
    }
    let stamp = Stamp { id: "s1".into(), created: 1_700_000_000 };
    let mut good = false;
    for status in [200, 429, 500] {
        let mut translator = AnswerTranslator::new(&call, &target, stamp.clone());
        let answer = translator.whole(status, &[], Bytes::copy_from_slice(bytes));
        let Ok(answer) = answer else {
            assert_eq!(status, 200, "an error is always told");
            continue;
        };
        assert!(answer.body.len() <= 64 * bytes.len() + 65_536);
        let json = answer.headers.iter().any(|(n, v)| n == "content-type" && v == "application/json");
        if json && from != to {
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body).is_ok(), "no JSON");
        }
        good |= status == 200;
    }
    good
}

/// Where recorded requests and answers of each dialect stand.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../client/dialects/golden");

/// Real structures, as inputs of the targets here.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let golden = |file: String| {
        // the crate that has this file as a module may stand one folder higher
        let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../client/dialects/golden");
        std::fs::read(format!("{GOLDEN}/{file}")).or_else(|_| std::fs::read(format!("{other}/{file}"))).ok()
    };
    let mut all = Vec::new();
    for (at, dialect) in Dialect::ALL.into_iter().enumerate() {
        let operation = match dialect {
            Dialect::OpenAi => 0,
            Dialect::Anthropic => 4,
            Dialect::Gemini => 6,
            Dialect::Bedrock => 11,
        };
        for case in ["tools", "format", "thinking"] {
            if let Some(body) = golden(format!("requests/{case}/{dialect}.json")) {
                all.push(("requests", format!("{dialect}-{case}"), [&[operation], &body[..]].concat()));
            }
        }
        for case in ["tools", "thinking"] {
            let to = ((at + 1) % 4 * 4 + at) as u8;
            if let Some(body) = golden(format!("answers/{case}/{dialect}.json")) {
                all.push(("answers", format!("{dialect}-{case}"), [&[to, 0], &body[..]].concat()));
            }
            // Bedrock's frames stand there as text, which is no stream of theirs.
            if let Some(body) = golden(format!("streams/{case}/{dialect}.sse")) {
                all.push(("answers", format!("{dialect}-{case}-stream"), [&[to, 3], &body[..]].concat()));
            }
        }
    }
    if let Some(body) = golden("responses/request.json".to_owned()) {
        all.push(("requests", "responses".to_owned(), [&[1], &body[..]].concat()));
    }
    all.push((
        "requests",
        "path".to_owned(),
        b"\xff/v1beta/models/gemini-2.0%2Fx:streamGenerateContent?alt=sse".to_vec(),
    ));
    let fixed =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{\"usage\":{}} \r\n";
    let chunked =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\ntrailer: t\r\n\r\n";
    let closed = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nretry-after-ms: 20\r\n\r\nuntil the close";
    for (name, text) in [("fixed", fixed), ("chunked", chunked), ("closed", closed)] {
        all.push(("http", name.to_owned(), [&[1], text.as_bytes()].concat()));
    }
    all.push(("http", "empty".to_owned(), b"\x00HTTP/1.1 204 No Content\r\n\r\n".to_vec()));
    all
}
