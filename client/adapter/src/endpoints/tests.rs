//! Requests as applications send them, against a scripted upstream.
use super::*;
use crate::config::Config;
use crate::testing::{Act, Fake, cut, ok, route, status};
use http_body::Full;
use hyper::body::Body as _;

mod http_body {
    use bytes::Bytes;
    use hyper::body::{Body, Frame, SizeHint};
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// A body of pieces.
    pub(super) struct Full(pub(super) std::collections::VecDeque<Bytes>);

    impl Body for Full {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|b| Ok(Frame::data(b))))
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }
    }
}

struct Bench {
    adapter: Arc<Adapter>,
    fake: Arc<Fake>,
}

struct Got {
    status: u16,
    headers: HeaderMap,
    /// `Err` if the body broke off.
    body: Result<String, String>,
}

impl Got {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.body.as_ref().unwrap()).unwrap()
    }
    fn code(&self) -> &str {
        self.headers.get("x-quorate-code").map_or("", |v| v.to_str().unwrap())
    }
}

impl Bench {
    fn new(config: &str, fake: Fake) -> Self {
        let config: Config = toml::from_str(config).unwrap();
        let fake = Arc::new(fake);
        let adapter = Arc::new(Adapter {
            upstream: fake.clone(),
            table: Table::new(&config),
            gate: Gate::Local,
            places: Arc::new(Semaphore::new(config.limits.requests_max)),
            limits: config.limits,
            book: Book::default(),
            metrics: Arc::new(Metrics::default()),
            receipts: None,
            cache: None,
        });
        Self { adapter, fake }
    }

    fn request(method: &str, uri: &str, headers: &[(&str, &str)], body: &[&str]) -> http::Request<Full> {
        let pieces = body.iter().map(|b| Bytes::copy_from_slice(b.as_bytes())).collect();
        let mut request = http::Request::builder().method(method).uri(uri).header("host", "127.0.0.1:4280");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full(pieces)).unwrap()
    }

    async fn get(&self, request: http::Request<Full>) -> Got {
        let (parts, mut body) = self.adapter.clone().answer(request).await.into_parts();
        let mut all = Ok(String::new());
        while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            match (frame, &mut all) {
                (Ok(frame), Ok(text)) => {
                    text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap())
                }
                (Err(error), _) => all = Err(error.code().to_owned()),
                (Ok(_), Err(_)) => panic!("more after an error"),
            }
        }
        Got { status: parts.status.as_u16(), headers: parts.headers, body: all }
    }

    async fn post(&self, uri: &str, body: &str) -> Got {
        self.get(Self::request("POST", uri, &[("content-type", "application/json")], &[body])).await
    }
}

fn openai(acts: Vec<Act>) -> Fake {
    Fake::new(vec![route("r", Dialect::OpenAi, &["*"])]).acts("r", acts)
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn bytes_pass_untouched_and_say_how_they_came() {
    let answer = "{ \"id\" : 1e2,\n\"x\":\"\\u00e9\" }";
    let headers = vec![
        ("content-type", "application/json"),
        ("x-ratelimit-limit-requests", "60"),
        ("set-cookie", "a=b"),
        ("connection", "close"),
    ];
    let bench = Bench::new("", openai(vec![Act::Answer(200, headers, vec![answer], None)]));
    let body = "{\"messages\" :[ ],\t\"model\":\"m\",\"new_field\":[1.50]}";
    let request = Bench::request(
        "POST",
        CHAT,
        &[
            ("content-type", "application/json"),
            ("authorization", "Bearer sk-own"),
            ("accept", "*/*"),
            ("user-agent", "sdk"),
        ],
        &[&body[..9], &body[9..]],
    );
    let got = bench.get(request).await;
    assert_eq!((got.status, got.body.as_deref()), (200, Ok(answer)));
    assert_eq!(got.headers["x-ratelimit-limit-requests"], "60");
    assert!(!got.headers.contains_key("set-cookie") && !got.headers.contains_key("connection"));
    assert_eq!(got.headers["x-quorate-route"], "r");
    assert_eq!(got.headers["x-quorate-request"], got.headers["x-quorate-attempts"]);
    assert_eq!(
        (got.headers["x-quorate-relay"].as_bytes(), got.headers["x-quorate-keyer"].as_bytes()),
        (&b"node-1"[..], &b"node-2"[..])
    );
    let sent = bench.fake.last();
    assert_eq!(&sent.body[..], body.as_bytes());
    let names: Vec<&str> = sent.headers.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(
        (sent.path.as_str(), names),
        (CHAT, vec!["content-type", "accept"]),
        "the SDK's key stays here"
    );
    let text = bench.adapter.metrics.text(0);
    let counted = "gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"openai\",gen_ai_request_model=\"other\",quorate_route=\"r\",error_type=\"\"} 1";
    assert!(text.contains(counted), "{text}");
    assert!(text.contains("gen_ai_token_type=\"output\"} 4"), "{text}");
}

#[tokio::test]
async fn an_alias_changes_the_model_and_nothing_else() {
    let config = r#"model = [{ name = "fast", routes = [{ route = "r", model = "gpt-x" }] }]"#;
    let bench = Bench::new(config, openai(vec![ok("{}")]));
    bench.post(CHAT, "{\"model\": \"fast\" ,\"x\":1.0}").await;
    assert_eq!(&bench.fake.last().body[..], b"{\"model\": \"gpt-x\" ,\"x\":1.0}");
    let routes = Fake::new(vec![route("g", Dialect::Gemini, &["*"])]).acts("g", vec![ok("{}")]);
    let bench =
        Bench::new(r#"model = [{ name = "flash", routes = [{ route = "g", model = "g" }] }]"#, routes);
    let got = bench.post("/v1beta/models/flash:streamGenerateContent?alt=sse", "{\"contents\":[]}").await;
    assert_eq!(
        (got.status, bench.fake.last().path.as_str()),
        (200, "/v1beta/models/g:streamGenerateContent?alt=sse")
    );
}

#[tokio::test]
async fn providers_errors_pass_untouched_and_a_fallback_is_named() {
    let bench = Bench::new("", openai(vec![status(429)]));
    let got = bench.post(CHAT, r#"{"model":"m"}"#).await;
    assert_eq!((got.status, got.body.as_deref(), got.code()), (429, Ok("{\"error\":{}}"), ""));
    assert_eq!(got.headers["retry-after"], "7");
    let fake = Fake::new(vec![route("a", Dialect::OpenAi, &[]), route("b", Dialect::OpenAi, &[])])
        .acts("a", vec![status(500)])
        .acts("b", vec![ok("{}")]);
    let bench = Bench::new(r#"model = [{ name = "m", routes = [{ route = "a" }, { route = "b" }] }]"#, fake);
    let got = bench.post(CHAT, r#"{"model":"m"}"#).await;
    assert_eq!((got.status, got.headers["x-quorate-route"].as_bytes()), (200, &b"b"[..]));
    let attempts = got.headers["x-quorate-attempts"].to_str().unwrap();
    assert_eq!(attempts.split(',').count(), 2);
    assert!(attempts.ends_with(got.headers["x-quorate-request"].to_str().unwrap()));
}

#[tokio::test]
async fn refusals_are_in_the_callers_dialect() {
    let bench =
        Bench::new("[limits]\nbody_bytes_max = 1024", Fake::new(vec![route("r", Dialect::OpenAi, &["m"])]));
    let long = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "y".repeat(2000));
    for (uri, body, status, code) in [
        (CHAT, r#"{"model":"other"}"#, 404, "model_not_found"),
        (CHAT, r#"{"messages":[]}"#, 400, "invalid_request"),
        (CHAT, r#"{"model":"m","model":"n"}"#, 400, "invalid_request"),
        (CHAT, "nonsense", 400, "invalid_request"),
        (CHAT, long.as_str(), 413, "body_too_large"),
        ("/v1/nothing", "{}", 404, "endpoint_not_found"),
        ("/v1/completions", r#"{"model":"m"}"#, 404, "operation_not_on_route"),
    ] {
        let got = bench.post(uri, body).await;
        assert_eq!((got.status, got.code()), (status, code), "{uri}");
        assert_eq!(got.json()["error"]["code"], code, "{uri}");
        assert_eq!(got.headers["x-should-retry"], "false");
    }
    let got = bench.post("/v1/messages", r#"{"model":"other"}"#).await;
    assert_eq!((got.status, got.json()["error"]["type"].as_str()), (404, Some("not_found_error")));
    let got = bench.post("/v1beta/models/x:generateContent", "{}").await;
    assert_eq!((got.status, got.json()["error"]["status"].as_str()), (404, Some("NOT_FOUND")));
    let form = [("content-type", "text/plain")];
    assert_eq!(bench.get(Bench::request("POST", CHAT, &form, &["{}"])).await.code(), "not_json");
    let gzip = [("content-type", "application/json"), ("content-encoding", "gzip")];
    assert_eq!(
        bench.get(Bench::request("POST", CHAT, &gzip, &["{}"])).await.code(),
        "encoding_not_supported"
    );
    let page = [("content-type", "application/json"), ("origin", "https://page.example")];
    assert_eq!(bench.get(Bench::request("POST", CHAT, &page, &["{}"])).await.status, 403);
    let text = bench.adapter.metrics.text(0);
    assert!(text.contains("quorate_adapter_errors_total{code=\"invalid_request\"} 3"), "{text}");
    assert_eq!(bench.fake.sent().len(), 0);
}

#[tokio::test]
async fn a_header_that_the_route_does_not_take_is_refused_not_dropped() {
    let fake = Fake::new(vec![route("r", Dialect::Anthropic, &["*"])]).acts("r", vec![ok("{}")]);
    let bench = Bench::new("", fake);
    let ask = |headers: Vec<(&'static str, &'static str)>| {
        let mut all = vec![("content-type", "application/json"), ("x-api-key", "own")];
        all.extend(headers);
        Bench::request("POST", "/v1/messages?beta=true", &all, &[r#"{"model":"m"}"#])
    };
    let got = bench.get(ask(vec![("anthropic-version", "2023-06-01")])).await;
    assert_eq!(got.status, 200);
    assert!(bench.fake.last().headers.contains(&("anthropic-version".into(), "2023-06-01".into())));
    let got = bench.get(ask(vec![("anthropic-beta", "x")])).await;
    assert_eq!((got.status, got.code()), (400, "header_not_on_route"));
    assert_eq!(got.json()["type"], "error");
}

#[tokio::test]
async fn a_stream_that_breaks_never_looks_whole() {
    let events = |pieces| {
        Act::Answer(200, vec![("content-type", "text/event-stream; charset=utf-8")], pieces, Some(cut()))
    };
    let bench = Bench::new("", openai(vec![events(vec!["data: 1\n\n", "data: 2\n\n"])]));
    let got = bench.post(CHAT, r#"{"model":"m","stream":true}"#).await;
    let text = got.body.unwrap();
    let last = text.strip_prefix("data: 1\n\ndata: 2\n\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "truncated");
    let bench = Bench::new("", openai(vec![events(vec!["data: 1\n\n", "data: 2"])]));
    let got = bench.post(CHAT, r#"{"model":"m","stream":true}"#).await;
    assert_eq!(got.body, Err("truncated".into()), "within an event: cut");
    let json = Act::Answer(200, vec![("content-type", "application/json")], vec!["{"], Some(cut()));
    let bench = Bench::new("", openai(vec![json]));
    assert_eq!(bench.post(CHAT, r#"{"model":"m"}"#).await.body, Err("truncated".into()));
    assert!(bench.adapter.metrics.text(0).contains("error_type=\"truncated\"} 1"));
}

#[tokio::test]
async fn dropping_an_answer_cancels_it() {
    let bench = Bench::new("", openai(vec![Act::Hang(200)]));
    let request =
        Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
    let response = bench.adapter.clone().answer(request).await;
    assert_eq!((bench.fake.open(), response.status().as_u16()), (1, 200));
    drop(response);
    assert_eq!(bench.fake.open(), 0);
    assert!(bench.adapter.metrics.text(0).contains("error_type=\"cancelled\"} 1"));
    assert_eq!(bench.adapter.places.available_permits(), 256);
}

#[tokio::test]
async fn more_at_once_than_the_bound_are_told_to_come_back() {
    let bench = Bench::new("[limits]\nrequests_max = 1", openai(vec![Act::Hang(200)]));
    let request =
        || Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
    let held = bench.adapter.clone().answer(request()).await;
    let got = bench.get(request()).await;
    assert_eq!(
        (got.status, got.code(), got.headers["retry-after"].as_bytes()),
        (503, "too_many_requests_at_once", &b"1"[..])
    );
    assert!(!got.headers.contains_key("x-should-retry"));
    drop(held);
    assert_eq!(bench.adapter.clone().answer(request()).await.status(), 200);
}

#[tokio::test]
async fn models_are_those_of_policy_and_configuration() {
    let fake = Fake::new(vec![route("r", Dialect::OpenAi, &["b", "a"])]);
    let bench = Bench::new(r#"model = [{ name = "alias", routes = [{ route = "r" }] }]"#, fake);
    let get = |uri, headers: &[(&str, &str)]| bench.get(Bench::request("GET", uri, headers, &[]));
    let list = get("/v1/models", &[]).await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "alias", "b"]);
    assert_eq!(get("/v1/models/alias", &[]).await.json()["id"], "alias");
    let none = get("/v1/models/c", &[("anthropic-version", "2023-06-01")]).await;
    assert_eq!((none.status, none.json()["type"].as_str()), (404, Some("error")));
}

#[tokio::test]
async fn health_and_metrics_need_no_key() {
    let bench = Bench::new("", openai(vec![ok("{}")]));
    let get = |uri| bench.get(Bench::request("GET", uri, &[("origin", "https://x")], &[]));
    assert_eq!(get("/healthz").await.body.as_deref(), Ok("ok\n"));
    assert!(get("/metrics").await.body.unwrap().contains("quorate_adapter_in_flight 0"));
    let dark = Bench::new("", Fake::new(vec![]));
    let got = dark.get(Bench::request("GET", "/healthz", &[], &[])).await;
    assert_eq!(got.status, 503);
}

#[tokio::test]
async fn receipts_are_written_for_every_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(vec![route("a", Dialect::OpenAi, &[]), route("b", Dialect::OpenAi, &[])])
        .acts("a", vec![status(500)])
        .acts("b", vec![ok("{}")]);
    let mut bench =
        Bench::new(r#"model = [{ name = "m", routes = [{ route = "a" }, { route = "b" }] }]"#, fake);
    let receipts = Arc::new(Receipts::open(dir.path()).unwrap());
    Arc::get_mut(&mut bench.adapter).unwrap().receipts = Some(receipts.clone());
    let got = bench.post(CHAT, r#"{"model":"m"}"#).await;
    receipts.finish().await;
    let id = got.headers["x-quorate-request"].to_str().unwrap();
    let chain = std::fs::read_to_string(dir.path().join(format!("{id}.chain.json"))).unwrap();
    let chain: serde_json::Value = serde_json::from_str(&chain).unwrap();
    assert_eq!(chain["answered"], id);
    let came: Vec<&str> =
        chain["attempts"].as_array().unwrap().iter().map(|a| a["came_to"].as_str().unwrap()).collect();
    assert_eq!(came, ["error_status", "answered"]);
    for attempt in chain["attempts"].as_array().unwrap() {
        let text = std::fs::read_to_string(dir.path().join(attempt["receipt"].as_str().unwrap())).unwrap();
        assert_eq!(text, format!("receipt of {}", attempt["request"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn a_route_of_another_dialect_is_spoken_to_in_its_own() {
    let answer = r#"{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"hey"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":2}}"#;
    let fake = || Fake::new(vec![route("r", Dialect::Anthropic, &["c"])]);
    let bench = Bench::new("", fake().acts("r", vec![ok(answer)]));
    let body = r#"{"model":"c","messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#;
    let got = bench.post(CHAT, body).await;
    assert_eq!((got.status, got.json()["choices"][0]["message"]["content"].as_str()), (200, Some("hey")));
    assert_eq!(got.json()["usage"]["completion_tokens"], 2);
    let sent = bench.fake.last();
    assert_eq!(sent.path, "/v1/messages");
    assert!(sent.headers.iter().any(|(name, _)| name == "anthropic-version"));
    assert!(bench.adapter.metrics.text(0).contains("gen_ai_token_type=\"input\"} 5"));

    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
    let busy =
        Act::Answer(529, vec![("content-type", "application/json"), ("retry-after", "9")], vec![error], None);
    let bench = Bench::new("", fake().acts("r", vec![busy]));
    let got = bench.post(CHAT, body).await;
    assert_eq!((got.status, got.headers["retry-after"].as_bytes()), (503, &b"9"[..]));
    assert!(got.json()["error"]["message"].as_str().unwrap().contains("busy"));

    let events = vec![
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"c\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\nevent: content_blo",
        "ck_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"hey\"}}\n\n",
    ];
    let sse = vec![("content-type", "text/event-stream")];
    let bench = Bench::new("", fake().acts("r", vec![Act::Answer(200, sse, events, Some(cut()))]));
    let got = bench.post(CHAT, &body.replace("\"max", "\"stream\":true,\"max")).await;
    let text = got.body.unwrap();
    assert!(text.contains("\"content\":\"hey\"") && !text.contains("[DONE]"), "{text}");
    assert!(text.contains("\"code\":\"truncated\""), "{text}");
    // What the other dialect cannot say is refused before anything is sent.
    let bench = Bench::new("", fake().acts("r", vec![ok(answer)]));
    let got = bench.post(CHAT, &body.replace("\"max", "\"logit_bias\":{\"1\":2},\"max")).await;
    assert_eq!((got.status, got.code()), (400, "untranslatable"));
    assert_eq!(bench.fake.sent().len(), 0);
}

#[tokio::test]
async fn the_same_request_is_answered_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::config::CacheConfig {
        dir: dir.path().join("answers"),
        key_file: dir.path().join("key"),
        bytes_max: 1 << 20,
        entry_bytes_max: 1 << 16,
        ttl_s: 60,
        any: false,
    };
    let with_cache = |acts| {
        let mut bench = Bench::new("", openai(acts));
        let cache = Cache::open(&config).unwrap();
        Arc::get_mut(&mut bench.adapter).unwrap().cache = Some(Arc::new(cache));
        bench
    };
    let cold = r#"{"model":"m","messages":[],"temperature":0}"#;
    let bench = with_cache(vec![ok("{\"n\":1}")]);
    let first = bench.post(CHAT, cold).await;
    assert!(!first.headers.contains_key("x-quorate-cache"));
    // It is written behind the answer.
    let endpoint = quorate_dialects::Endpoint { operation: Operation::Chat, model: None, json_array: false };
    let call = Call::read(endpoint, Bytes::copy_from_slice(cold.as_bytes())).unwrap();
    let cache = bench.adapter.cache.clone().unwrap();
    let name = cache.name(None, ("r", "m"), &call);
    let written = async {
        while cache.get(&name).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
    let again = bench.post(CHAT, cold).await;
    assert_eq!((again.headers["x-quorate-cache"].as_bytes(), &again.body), (&b"hit"[..], &first.body));
    assert_eq!(again.headers["x-quorate-request"], first.headers["x-quorate-request"]);
    assert_eq!(again.headers["content-type"], "application/json");
    let sent = bench.fake.sent().len();
    let fresh = [("content-type", "application/json"), ("cache-control", "no-cache")];
    bench.get(Bench::request("POST", CHAT, &fresh, &[cold])).await;
    bench.post(CHAT, &cold.replace("0}", "1}")).await;
    assert_eq!(bench.fake.sent().len(), sent + 2, "asked afresh, and not the same again");
    // What broke off is not kept.
    let cut = Act::Answer(200, vec![("content-type", "application/json")], vec!["{"], Some(cut()));
    let bench = with_cache(vec![cut]);
    for _ in 0..3 {
        assert!(bench.post(CHAT, &cold.replace("[]", "[1]")).await.body.is_err());
    }
    assert_eq!(bench.fake.sent().len(), 3);
}

/// As hyper does when a length was announced: it never asks for the end.
#[tokio::test]
async fn an_answer_that_was_sent_whole_is_no_cancelled_one() {
    let bench = Bench::new("", openai(vec![ok("{}")]));
    let request =
        Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
    let mut body = bench.adapter.clone().answer(request).await.into_body();
    let first = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
    assert_eq!(first.unwrap().unwrap().into_data().unwrap(), "{}");
    drop(body);
    assert!(bench.adapter.metrics.text(0).contains("error_type=\"\"} 1"));
}
