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
            buffers: Arc::new(Semaphore::new(InFlight::steps(config.limits.buffers_bytes_max))),
            guards: Guards::new(&config.rules, config.guards.streams).unwrap(),
            unwelcome: AtomicBool::new(false),
            traces: Traces::default(),
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

fn caching(dir: &std::path::Path, any: bool) -> crate::config::CacheConfig {
    let (dir, key_file) = (dir.join("answers"), dir.join("key"));
    crate::config::CacheConfig { dir, key_file, bytes_max: 1 << 20, entry_bytes_max: 1 << 16, ttl_s: 60, any }
}

#[tokio::test]
async fn the_same_request_is_answered_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let config = caching(dir.path(), false);
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
    let headers = bench.fake.last().headers;
    let name = cache.name(None, ("r", "m"), &call, &headers);
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

const KEY: &str = "AKIAIOSFODNN7EXAMPLE";

fn guarded(rules: &str, acts: Vec<Act>) -> Bench {
    Bench::new(rules, openai(acts))
}

fn said(text: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

#[tokio::test]
async fn a_blocked_prompt_is_a_typed_error_in_every_dialect_and_goes_nowhere() {
    let bench = guarded(r#"guard = [{ name = "keys", kind = "secrets" }]"#, vec![ok("{}")]);
    let text = format!("my key is {KEY}");
    let gemini = format!(r#"{{"contents":[{{"role":"user","parts":[{{"text":"{text}"}}]}}]}}"#);
    for (uri, body, place) in [
        (CHAT, said(&text), "/error/code"),
        ("/v1/messages", said(&text), "/error/code"),
        ("/v1/responses", format!(r#"{{"model":"m","input":"{text}"}}"#), "/error/code"),
        ("/v1/embeddings", format!(r#"{{"model":"m","input":["a","{text}"]}}"#), "/error/code"),
        ("/v1beta/models/m:generateContent", gemini, "/error/status"),
    ] {
        let got = bench.post(uri, &body).await;
        assert_eq!((got.status, got.code()), (403, "guard_blocked"), "{uri}");
        assert_eq!(got.headers["x-quorate-guard"], "keys=blocked");
        assert_eq!(got.headers["x-should-retry"], "false");
        let code = got.json().pointer(place).unwrap().as_str().unwrap().to_owned();
        assert!(["guard_blocked", "PERMISSION_DENIED"].contains(&code.as_str()), "{code}");
        let everything = format!("{:?} {}", got.headers, got.body.unwrap());
        assert!(
            everything.contains("keys") && !everything.contains(KEY) && !everything.contains("my key"),
            "{everything}"
        );
    }
    assert_eq!(bench.fake.sent().len(), 0);
    let text = bench.adapter.metrics.text(0);
    assert!(
        text.contains("quorate_adapter_guards_total{rule=\"keys\",side=\"prompt\",outcome=\"blocked\"} 5"),
        "{text}"
    );
    assert!(!text.contains("AKIA"));
}

#[tokio::test]
async fn redaction_changes_the_find_and_no_other_byte() {
    let rules = r#"guard = [{ name = "keys", kind = "secrets", action = "redact" }, { name = "who", kind = "personal", action = "flag" }]"#;
    let bench = guarded(rules, vec![ok("{}")]);
    let clean = "{\"messages\" :[ {\"content\":\"caf\\u00e9\"} ],\t\"model\":\"m\",\"top_p\":0.50}";
    let got = bench.post(CHAT, clean).await;
    assert!(!got.headers.contains_key("x-quorate-guard"));
    assert_eq!(&bench.fake.last().body[..], clean.as_bytes(), "byte for byte");
    let dirty = clean.replace("caf\\u00e9", &format!("caf\\u00e9 {KEY} a@b.example"));
    let got = bench.post(CHAT, &dirty).await;
    assert_eq!(got.headers["x-quorate-guard"], "keys=redacted, who=flagged");
    let expected = clean.replace("caf\\u00e9", "café [redacted:aws] a@b.example");
    assert_eq!(std::str::from_utf8(&bench.fake.last().body).unwrap(), expected);
}

#[tokio::test]
async fn rules_are_for_the_models_they_name() {
    let bench = guarded(r#"guard = [{ name = "keys", kind = "secrets", models = ["m"] }]"#, vec![ok("{}")]);
    assert_eq!(bench.post(CHAT, &said(KEY)).await.code(), "guard_blocked");
    assert_eq!(bench.post(CHAT, &said(KEY).replace("\"m\"", "\"n\"")).await.status, 200);
}

fn chat_answer(text: &'static str) -> Act {
    Act::Answer(200, vec![("content-type", "application/json"), ("content-length", "1")], vec![text], None)
}

#[tokio::test]
async fn answers_are_looked_at_whole() {
    let leak =
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"it is AKIAIOSFODNN7EXAMPLE"}}]}"#;
    let rules = |action: &str| {
        format!(r#"guard = [{{ name = "keys", kind = "secrets", on = "answer", action = "{action}" }}]"#)
    };
    let bench = guarded(&rules("block"), vec![chat_answer(leak)]);
    let got = bench.post(CHAT, &said("x")).await;
    assert_eq!((got.status, got.code()), (403, "guard_blocked"));
    assert!(!got.body.unwrap().contains("AKIA"));
    assert!(bench.adapter.metrics.text(0).contains("error_type=\"guard_blocked\"} 1"));
    let bench = guarded(&rules("redact"), vec![chat_answer(leak)]);
    let got = bench.post(CHAT, &said("x")).await;
    assert_eq!(got.json()["choices"][0]["message"]["content"], "it is [redacted:aws]");
    assert!(!got.headers.contains_key("content-length"), "hyper counts again");
    let bench = guarded(&rules("block"), vec![chat_answer("no json")]);
    assert_eq!(bench.post(CHAT, &said("x")).await.code(), "guard_blocked", "what cannot be read is blocked");
    assert_eq!(bench.post(CHAT, &said(KEY)).await.code(), "guard_blocked");
}

#[tokio::test]
async fn a_guarded_stream_is_refused_or_held() {
    let piece = |text: &str| {
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    };
    let stream = |pieces: &[&str]| {
        let text = pieces.iter().map(|p| piece(p)).collect::<String>() + "data: [DONE]\n\n";
        Act::Answer(
            200,
            vec![("content-type", "text/event-stream")],
            vec![Box::leak(text.into_boxed_str())],
            None,
        )
    };
    let rule = r#"guard = [{ name = "keys", kind = "secrets", on = "answer", action = "redact" }]"#;
    let ask = said("x").replace("\"model\"", "\"stream\":true,\"model\"");
    let bench = guarded(rule, vec![stream(&["hi"])]);
    let got = bench.post(CHAT, &ask).await;
    assert_eq!((got.status, got.code(), bench.fake.sent().len()), (400, "guard_stream_refused", 0));
    let held = format!("{rule}\n[guards]\nstreams = \"buffer\"");
    let bench = guarded(&held, vec![stream(&["h", "i"])]);
    let got = bench.post(CHAT, &ask).await;
    assert_eq!(got.body.unwrap(), piece("h") + &piece("i") + "data: [DONE]\n\n");
    let bench = guarded(&held, vec![stream(&["AKIAIOS", "FODNN7", "EXAMPLE"])]);
    let got = bench.post(CHAT, &ask).await;
    assert_eq!((got.status, got.code()), (403, "guard_blocked"), "in pieces, and not to be replaced");
    let broken = vec![Act::Answer(
        200,
        vec![("content-type", "text/event-stream")],
        vec!["data: 1\n\nda"],
        Some(cut()),
    )];
    let bench = guarded(&held, broken);
    let got = bench.post(CHAT, &ask).await;
    assert_eq!((got.status, got.code()), (502, "truncated"), "no head was sent yet");
}

#[tokio::test]
async fn a_kept_answer_passes_the_guards_again_and_not_beyond_a_grant() {
    let dir = tempfile::tempdir().unwrap();
    let config = caching(dir.path(), true);
    let leak = r#"{"choices":[{"message":{"content":"AKIAIOSFODNN7EXAMPLE"}}]}"#;
    let with_cache = |rules: &str| {
        let mut bench = guarded(rules, vec![chat_answer(leak)]);
        Arc::get_mut(&mut bench.adapter).unwrap().cache = Some(Arc::new(Cache::open(&config).unwrap()));
        bench
    };
    let open = with_cache("");
    open.post(CHAT, &said("x")).await;
    let hit = async || {
        while !open.post(CHAT, &said("x")).await.headers.contains_key("x-quorate-cache") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hit()).await.unwrap();
    let strict = with_cache(r#"guard = [{ name = "keys", kind = "secrets", on = "answer" }]"#);
    let got = strict.post(CHAT, &said("x")).await;
    assert_eq!((got.code(), strict.fake.sent().len()), ("guard_blocked", 0));
    // A header that goes on is part of what is asked.
    let other = [("content-type", "application/json"), ("accept", "text/plain")];
    let sent = open.fake.sent().len();
    open.get(Bench::request("POST", CHAT, &other, &[&said("x")])).await;
    assert_eq!(open.fake.sent().len(), sent + 1);
    open.fake.over.store(true, std::sync::atomic::Ordering::SeqCst);
    let got = open.post(CHAT, &said("x")).await;
    assert!(!got.headers.contains_key("x-quorate-cache"), "who may not ask may not hear again either");
    // A token that was revoked is known to the nodes alone: their refusal counts for the cache too.
    open.fake.over.store(false, std::sync::atomic::Ordering::SeqCst);
    let told = |code: &str| {
        let (message, hint) = (String::new(), String::new());
        let (retry, fault) = (quorate_client::Retry::Never, quorate_client::Fault::Client);
        Act::Fail(Error::Refused(quorate_client::MeshRefusal {
            code: code.into(),
            message,
            hint,
            retry,
            fault,
        }))
    };
    for (code, hits) in [("out_of_scope", true), ("token_revoked", false)] {
        open.fake.acts.lock().unwrap().insert("r".into(), vec![told(code)].into());
        assert_eq!(open.post(CHAT, &said("another")).await.code(), code);
        assert_eq!(open.post(CHAT, &said("x")).await.headers.contains_key("x-quorate-cache"), hits, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_within_an_answer_is_typed() {
    let config = "defaults = { idle_ms = 3000 }";
    for (uri, dialect, place) in
        [(CHAT, Dialect::OpenAi, "/error/code"), ("/v1/messages", Dialect::Anthropic, "/error/code")]
    {
        let fake = Fake::new(vec![route("r", dialect, &["*"])]).acts("r", vec![Act::Hang(200)]);
        let bench = Bench::new(config, fake);
        let begun = tokio::time::Instant::now();
        let got = bench.post(uri, r#"{"model":"m","stream":true}"#).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        let text = got.body.unwrap();
        let data = text.rsplit("data: ").next().unwrap();
        let error: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(error.pointer(place).unwrap(), "stream_idle", "{text}");
        assert_eq!(bench.fake.open(), 0);
        assert!(bench.adapter.metrics.text(0).contains("error_type=\"stream_idle\"} 1"));
    }
}

#[tokio::test(start_paused = true)]
async fn each_piece_ends_a_silence() {
    let slow = Act::Drip(Duration::from_millis(700), vec!["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"]);
    let bench = Bench::new("defaults = { idle_ms = 1000 }", openai(vec![slow]));
    let got = bench.post(CHAT, r#"{"model":"m","stream":true}"#).await;
    assert_eq!(got.body.as_deref(), Ok("data: 1\n\ndata: 2\n\ndata: 3\n\n"));
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_read_is_no_silent_provider() {
    let slow = Act::Answer(
        200,
        vec![("content-type", "text/event-stream")],
        vec!["data: 1\n\n", "data: 2\n\n"],
        None,
    );
    let bench = Bench::new("defaults = { idle_ms = 1000 }", openai(vec![slow]));
    let request =
        Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
    let mut body = bench.adapter.clone().answer(request).await.into_body();
    for _ in 0..2 {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame.unwrap().unwrap().into_data().unwrap().starts_with(b"data: "));
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert!(std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await.is_none());
}

fn priced(flavour: quorate_dialects::Flavour) -> Arc<Route> {
    let mut route = Arc::unwrap_or_clone(route("r", Dialect::OpenAi, &["m"]));
    let rates = quorate_core::policy::Rates {
        input: 1,
        cached_input: 1,
        output: 1,
        request: 0,
        unseen_input: 0,
        unseen_output: 0,
        input_max: 1_000_000,
        output_max: 1_000_000,
    };
    let row = |id: &str, models: &[&str]| quorate_core::policy::Price {
        id: quorate_core::ids::PriceId::new(id).unwrap(),
        routes: [quorate_core::ids::RouteId::new("r").unwrap()].into(),
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        rates,
    };
    route.prices = vec![row("large", &["big"]), row("small", &["m"])];
    route.flavour = flavour;
    Arc::new(route)
}

/// What is paid by tokens is counted: usage is asked of the provider, and kept from a caller who did not ask.
#[tokio::test]
async fn a_priced_stream_is_metered_unseen() {
    let pieces = vec![
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n",
        "data: [DONE]\n\n",
    ];
    let stream = || Act::Answer(200, vec![("content-type", "text/event-stream")], pieces.clone(), None);
    let bench = || {
        Bench::new("", Fake::new(vec![priced(quorate_dialects::Flavour::OpenAi)]).acts("r", vec![stream()]))
    };
    let asked = |more: &str| format!(r#"{{"model":"m","messages":[],"stream":true{more}}}"#);
    let quiet = bench();
    let got = quiet.post(CHAT, &asked("")).await.body.unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&quiet.fake.last().body).unwrap();
    assert_eq!(sent["stream_options"]["include_usage"], true);
    assert_eq!(quiet.fake.last().price.unwrap().as_str(), "small", "the row for the model");
    assert_eq!(got, [pieces[0], pieces[2]].concat(), "the extra event is kept back, the rest as it was");
    assert!(quiet.adapter.metrics.text(0).contains("gen_ai_token_type=\"input\"} 7"));
    let loud = bench();
    let body = asked(",\"stream_options\":{\"include_usage\":true}");
    assert_eq!(loud.post(CHAT, &body).await.body.unwrap(), pieces.concat(), "who asked gets it");
    assert_eq!(&loud.fake.last().body[..], body.as_bytes());
    // An answer that is not streamed says its usage anyway.
    let whole =
        Bench::new("", Fake::new(vec![priced(quorate_dialects::Flavour::OpenAi)]).acts("r", vec![ok("{}")]));
    let body = r#"{"model":"m","messages":[]}"#;
    whole.post(CHAT, body).await;
    assert_eq!(&whole.fake.last().body[..], body.as_bytes());
    assert!(whole.fake.last().price.is_some());
}

#[tokio::test]
async fn a_provider_speaks_in_no_name_of_ours_and_no_header_is_lost() {
    let headers = vec![
        ("content-type", "application/json"),
        ("x-quorate-code", "guard_blocked"),
        ("x-quorate-cache", "hit"),
        ("x-quorate-request", "forged"),
        ("x-should-retry", "true"),
    ];
    let bench = Bench::new("", openai(vec![Act::Answer(200, headers, vec!["{}"], None)]));
    let got = bench.post(CHAT, r#"{"model":"m"}"#).await;
    assert_eq!((got.status, got.code()), (200, ""));
    assert!(!got.headers.contains_key("x-quorate-cache") && !got.headers.contains_key("x-should-retry"));
    assert_ne!(got.headers["x-quorate-request"], "forged");
    let long = "x".repeat(1025);
    for value in [long.as_str(), "caf\u{e9}"] {
        let mut request =
            Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
        request.headers_mut().insert("accept", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        assert_eq!(bench.get(request).await.code(), "header_not_allowed");
    }
}

#[tokio::test]
async fn bodies_of_all_requests_together_are_bounded() {
    let limits = "[limits]\nbody_bytes_max = 65536\nbuffers_bytes_max = 65536";
    let bench = Bench::new(limits, openai(vec![Act::Hang(200)]));
    let large = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "y".repeat(60_000));
    let request = || Bench::request("POST", CHAT, &[("content-type", "application/json")], &[&large]);
    let held = bench.adapter.clone().answer(request()).await;
    assert_eq!(held.status(), 200);
    let got = bench.get(request()).await;
    assert_eq!((got.status, got.code(), got.headers["retry-after"].as_bytes()), (503, "no_room", &b"1"[..]));
    drop(held);
    assert_eq!(bench.adapter.clone().answer(request()).await.status(), 200, "and free again");
}

/// A collector that keeps what it is sent.
async fn collector() -> (String, Arc<std::sync::Mutex<Vec<Vec<u8>>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let all = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = all.clone();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let mut some = [0; 4096];
                loop {
                    let read = tcp.read(&mut some).await.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    bytes.extend_from_slice(&some[..read]);
                    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    assert!(head.starts_with("post /v1/traces "), "{head}");
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                    let length: usize = length.parse().unwrap();
                    if bytes.len() < end + 4 + length {
                        continue;
                    }
                    kept.lock().unwrap().push(bytes.clone());
                    bytes.drain(..end + 4 + length);
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (url, all)
}

#[tokio::test]
async fn spans_say_how_it_went_and_nothing_that_was_said() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use prost::Message as _;
    let (url, sent) = collector().await;
    let fake = Fake::new(vec![route("a", Dialect::OpenAi, &[]), route("b", Dialect::OpenAi, &[])])
        .acts("a", vec![status(500)])
        .acts("b", vec![ok(r#"{"model":"gpt-real","choices":[{"message":{"content":"SAID-BACK"}}]}"#)]);
    let config = r#"
        model = [{ name = "m", routes = [{ route = "a" }, { route = "b" }] }]
        guard = [{ name = "keys", kind = "secrets" }]"#;
    let mut bench = Bench::new(config, fake);
    let traces = Traces::to(&url, None, "test", "i".into()).unwrap();
    Arc::get_mut(&mut bench.adapter).unwrap().traces = traces.clone();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let ask = async |body: &str, sampled: &str| {
        let parent = format!("00-{trace}-b7ad6b7169203331-{sampled}");
        let headers =
            [("content-type", "application/json"), ("traceparent", &parent), ("x-api-key", "SAID-KEY")];
        bench.get(Bench::request("POST", CHAT, &headers, &[body])).await
    };
    let got = ask(&said("SAID-OUT"), "01").await;
    assert_eq!(ask(&said(&format!("SAID-OUT {KEY}")), "01").await.code(), "guard_blocked");
    ask(&said("SAID-OUT"), "00").await;
    ask(r#"{"model":"SAID-MODEL in words","messages":[]}"#, "01").await;
    assert!(!bench.fake.last().headers.iter().any(|(name, _)| name == "traceparent"), "it stays here");
    traces.flush(Duration::from_secs(20)).await;
    let bodies = sent.lock().unwrap().clone();
    let (mut spans, mut resource) = (Vec::new(), String::new());
    for bytes in &bodies {
        for word in ["SAID", "AKIA", "0123456789abcdef\""] {
            assert!(!bytes.windows(word.len()).any(|w| w == word.as_bytes()), "{word} went to the collector");
        }
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        for of in ExportTraceServiceRequest::decode(&bytes[end + 4..]).unwrap().resource_spans {
            resource = format!("{:?}", of.resource);
            spans.extend(of.scope_spans.into_iter().flat_map(|s| s.spans));
        }
    }
    assert!(resource.contains("service.name"));
    let value = |span: &opentelemetry_proto::tonic::trace::v1::Span, key: &str| {
        let found = span.attributes.iter().find(|a| a.key == key)?;
        Some(match found.value.clone()?.value? {
            Value::StringValue(text) => text,
            Value::IntValue(int) => int.to_string(),
            Value::BoolValue(yes) => yes.to_string(),
            other => format!("{other:?}"),
        })
    };
    let names: Vec<&str> = spans.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        ["attempt a", "attempt b", "chat m", "chat m", "chat other"],
        "what is not sampled is not told"
    );
    let (first, second, whole, blocked) = (&spans[0], &spans[1], &spans[2], &spans[3]);
    assert_eq!(
        (hex::encode(&whole.trace_id), hex::encode(&whole.parent_span_id)),
        (trace.into(), "b7ad6b7169203331".into())
    );
    assert_eq!((&first.parent_span_id, &second.trace_id), (&whole.span_id, &whole.trace_id));
    for (key, expected) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "gpt-real"),
        ("gen_ai.usage.input_tokens", "3"),
        ("gen_ai.usage.output_tokens", "4"),
        ("server.address", "provider.example"),
        ("server.port", "443"),
        ("quorate.attempts", "2"),
        ("quorate.route", "b"),
        ("quorate.stream", "false"),
    ] {
        assert_eq!(value(whole, key).as_deref(), Some(expected), "{key}");
    }
    assert_eq!(value(whole, "error.type"), None);
    assert_eq!(value(first, "error.type").as_deref(), Some("500"));
    assert_eq!(value(blocked, "error.type").as_deref(), Some("guard_blocked"));
    assert_eq!(blocked.status.as_ref().unwrap().code, 2);
    // An attempt is linked to the trace that the nodes keep: the request's own id, which is in the receipt too.
    let id = got.headers["x-quorate-request"].to_str().unwrap().to_owned();
    assert_eq!(
        (hex::encode(&second.links[0].trace_id), value(second, "quorate.request")),
        (id.clone(), Some(id))
    );
}

const ARRAY: &str = "/v1beta/models/g:streamGenerateContent";
const ITEMS: [&str; 2] = [
    r#"{"candidates": [{"content":{"role":"model","parts":[{"text":"he"}]},"index":0}]}"#,
    r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"y"}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5},"modelVersion":"g-1"}"#,
];
const PARTS: &str = r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}"#;

/// Text that stands in an act for as long as the test runs.
fn events(items: &[&str], end: &str) -> &'static str {
    let text = items.iter().map(|item| format!("data: {item}{end}{end}")).collect::<String>();
    Box::leak(text.into_boxed_str())
}

fn sse(pieces: Vec<&'static str>, end: Option<Error>) -> Act {
    Act::Answer(200, vec![("content-type", "text/event-stream")], pieces, end)
}

fn gemini(acts: Vec<Act>) -> Fake {
    Fake::new(vec![route("r", Dialect::Gemini, &["g"])]).acts("r", acts)
}

#[tokio::test]
async fn a_stream_as_one_json_array_is_asked_for_as_events() {
    let all = events(&ITEMS, "\r\n");
    for cut in [1, 6, 40, all.len() - 1] {
        let (first, second) = all.split_at(cut);
        let bench = Bench::new("", gemini(vec![sse(vec![first, second], None)]));
        let got = bench.post(ARRAY, PARTS).await;
        assert_eq!(got.body.as_deref(), Ok(format!("[{},\r\n{}]\n", ITEMS[0], ITEMS[1]).as_str()));
        assert_eq!(
            (got.status, got.headers["content-type"].as_bytes()),
            (200, &b"application/json; charset=UTF-8"[..])
        );
        assert_eq!(bench.fake.last().path, format!("{ARRAY}?alt=sse"));
        let text = bench.adapter.metrics.text(0);
        assert!(text.contains("gen_ai_token_type=\"input\"} 3"), "{text}");
    }
    let answer = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hey"},"finish_reason":"stop"}]}"#;
    let openai = |act| Fake::new(vec![route("r", Dialect::OpenAi, &["g"])]).acts("r", vec![act]);
    let bench = Bench::new("", openai(ok(answer)));
    let got = bench.post(ARRAY, PARTS).await;
    let list = got.json();
    let text: String = list
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["candidates"][0]["content"]["parts"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        (text.as_str(), bench.fake.last().path.as_str()),
        ("hey", CHAT),
        "of a provider of another dialect"
    );
}

#[tokio::test]
async fn an_array_that_breaks_ends_with_an_error_or_not_at_all() {
    let (first, second) = (events(&ITEMS[..1], "\n"), events(&ITEMS[1..], "\n"));
    for (pieces, items) in
        [(vec![], 1), (vec![first], 2), (vec![first, "data: {\"cand"], 2), (vec![first, second], 3)]
    {
        let bench = Bench::new("", gemini(vec![sse(pieces, Some(cut()))]));
        let list = bench.post(ARRAY, PARTS).await.json();
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), items);
        assert_eq!(list[items - 1]["error"]["details"][0]["reason"], "TRUNCATED");
    }
    // An end that the provider's connection calls a good one, but that comes too early.
    for pieces in [vec![first], vec![first, "data: {\"cand"]] {
        let bench = Bench::new("", gemini(vec![sse(pieces, None)]));
        let list = bench.post(ARRAY, PARTS).await.json();
        assert_eq!(list[1]["error"]["details"][0]["reason"], "PROVIDER_ANSWER");
    }
    // The provider's own error is an item like others.
    let own = r#"{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}"#;
    let bench = Bench::new("", gemini(vec![sse(vec![events(&[ITEMS[0], own], "\n")], None)]));
    assert_eq!(bench.post(ARRAY, PARTS).await.json()[1]["error"]["message"], "busy");
    // Behind the closing bracket nothing can be said: the connection is cut.
    let done = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hey"},"finish_reason":"stop"}]}"#;
    let whole = events(&[done, "[DONE]"], "\n");
    let openai =
        Fake::new(vec![route("r", Dialect::OpenAi, &["g"])]).acts("r", vec![sse(vec![whole], Some(cut()))]);
    let bench = Bench::new("", openai);
    assert_eq!(bench.post(ARRAY, PARTS).await.body, Err("truncated".into()));
}

#[tokio::test]
async fn errors_to_whoever_reads_an_array_are_in_one() {
    let own = r#"{"error":{"code":429,"message":"slow down","status":"RESOURCE_EXHAUSTED"}}"#;
    let limited = || {
        Act::Answer(429, vec![("content-type", "application/json"), ("retry-after", "7")], vec![own], None)
    };
    let bench = Bench::new("", gemini(vec![limited()]));
    let got = bench.post(ARRAY, PARTS).await;
    assert_eq!((got.status, got.json()[0]["error"]["message"].as_str()), (429, Some("slow down")));
    assert_eq!(got.headers["retry-after"], "7");
    let sse = bench.post(&format!("{ARRAY}?alt=sse"), PARTS).await;
    assert_eq!(sse.body.as_deref(), Ok(own), "events: as it is");
    for (uri, body, code) in [
        ("/v1beta/models/other:streamGenerateContent", PARTS, "MODEL_NOT_FOUND"),
        (ARRAY, "nonsense", "INVALID_REQUEST"),
        (&format!("{ARRAY}?fields=x"), PARTS, "QUERY_NOT_ALLOWED"),
    ] {
        let got = bench.post(uri, body).await;
        assert_eq!(got.json()[0]["error"]["details"][0]["reason"], code);
    }
    let bench = Bench::new("", gemini(vec![Act::Fail(crate::testing::lost())]));
    let got = bench.post(ARRAY, PARTS).await;
    assert!(got.status >= 500 && got.json()[0]["error"]["status"].is_string(), "{:?}", got.body);
}

#[tokio::test]
async fn dropping_an_array_cancels_it() {
    let bench = Bench::new("", gemini(vec![Act::Hang(200)]));
    let request = Bench::request("POST", ARRAY, &[("content-type", "application/json")], &[PARTS]);
    let response = bench.adapter.clone().answer(request).await;
    assert_eq!((bench.fake.open(), response.status().as_u16()), (1, 200));
    drop(response);
    assert_eq!(bench.fake.open(), 0);
}

#[tokio::test]
async fn an_array_is_kept_as_one_and_only_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = caching(dir.path(), true);
    let cache = Arc::new(Cache::open(&config).unwrap());
    let with_cache = |act| {
        let mut bench = Bench::new("", gemini(vec![act]));
        Arc::get_mut(&mut bench.adapter).unwrap().cache = Some(cache.clone());
        bench
    };
    let (uri, all) = (format!("{ARRAY}?alt=sse"), events(&ITEMS, "\n"));
    // None of these is an end: half a stream whose connection ended well, one with an error in it.
    let own = r#"{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}"#;
    for broken in [events(&ITEMS[..1], "\n"), events(&[ITEMS[0], own], "\n")] {
        for uri in [uri.as_str(), ARRAY] {
            let bench = with_cache(sse(vec![broken], None));
            for sent in 1..=3 {
                let got = bench.post(uri, PARTS).await;
                assert!(!got.headers.contains_key("x-quorate-cache"), "{uri}");
                assert_eq!(bench.fake.sent().len(), sent);
                // What is written behind an answer is there soon, if it is at all.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    let bench = with_cache(sse(vec![all], None));
    for (uri, kind) in [(ARRAY, "application/json; charset=UTF-8"), (uri.as_str(), "text/event-stream")] {
        let first = bench.post(uri, PARTS).await;
        let sent = bench.fake.sent().len();
        let hit = async {
            loop {
                let again = bench.post(uri, PARTS).await;
                if again.headers.contains_key("x-quorate-cache") {
                    break again;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(20), hit).await.unwrap();
        assert_eq!((again.body, again.headers["content-type"].as_bytes()), (first.body, kind.as_bytes()));
        assert!(bench.fake.sent().len() >= sent);
    }
}

#[tokio::test]
async fn a_guarded_array_is_held_and_looked_at_across_its_items() {
    let item = |text: &str| {
        format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}},"finishReason":"STOP"}}]}}"#)
    };
    let of = |texts: &[&str]| {
        let items: Vec<String> = texts.iter().map(|t| item(t)).collect();
        sse(vec![events(&items.iter().map(String::as_str).collect::<Vec<_>>(), "\n")], None)
    };
    let rule = r#"guard = [{ name = "keys", kind = "secrets", on = "answer" }]"#;
    let bench = Bench::new(rule, gemini(vec![of(&["hi"])]));
    let got = bench.post(ARRAY, PARTS).await;
    assert_eq!((got.status, got.code(), bench.fake.sent().len()), (400, "guard_stream_refused", 0));
    let held = format!("{rule}\n[guards]\nstreams = \"buffer\"");
    let bench = Bench::new(&held, gemini(vec![of(&["h", "i"])]));
    assert_eq!(bench.post(ARRAY, PARTS).await.body.unwrap(), format!("[{},\r\n{}]\n", item("h"), item("i")));
    let bench = Bench::new(&held, gemini(vec![of(&["AKIAIOS", "FODNN7", "EXAMPLE"])]));
    let got = bench.post(ARRAY, PARTS).await;
    assert_eq!((got.status, got.code()), (403, "guard_blocked"));
    assert_eq!(got.json()[0]["error"]["status"], "PERMISSION_DENIED");
}

/// A priced route's stream is watched on its way: its own bytes pass, and what breaks within an event must not get another into it.
#[tokio::test]
async fn a_watched_stream_that_breaks_within_an_event_is_cut() {
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"c\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n";
    for (end, expected) in [
        ("", true),
        (": a comment\n", true),
        ("event: ping\r\ndata: {\"type\":\"ping\"}\r\n\r\n", true),
        ("event: ping\n", false),
        ("event: ping\ndata: {\"type\":\"pi", false),
        ("data: {\n", false),
    ] {
        let mut there = Arc::unwrap_or_clone(route("r", Dialect::Anthropic, &["m"]));
        there.prices = priced(quorate_dialects::Flavour::OpenAi).prices.clone();
        let fake = Fake::new(vec![Arc::new(there)]).acts("r", vec![sse(vec![start, end], Some(cut()))]);
        let bench = Bench::new("", fake);
        let got =
            bench.post("/v1/messages", r#"{"model":"m","max_tokens":9,"messages":[],"stream":true}"#).await;
        match got.body {
            Ok(text) => {
                assert!(expected, "{end:?}: {text}");
                assert!(text.starts_with(&format!("{start}{end}event: error\ndata: {{")), "{text}");
            }
            Err(code) => assert_eq!((code.as_str(), expected), ("truncated", false), "{end:?}"),
        }
    }
}

#[tokio::test]
async fn a_header_that_changes_what_is_asked_goes_on_or_is_refused() {
    let answer = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hey"},"finish_reason":"stop"}]}"#;
    let messages = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
    let openai = || Bench::new("", openai(vec![ok(answer)]));
    let ask = async |bench: &Bench, uri: &str, body: &str, name: &str, value: &str| {
        let headers = [("content-type", "application/json"), (name, value)];
        bench.get(Bench::request("POST", uri, &headers, &[body])).await
    };
    // Translated: what nobody loses passes, all else is named.
    for (name, value, lost) in [
        ("anthropic-version", "2023-06-01", ""),
        ("anthropic-version", "2023-01-01", "anthropic-version: 2023-01-01"),
        ("anthropic-beta", "prompt-caching-2024-07-31", ""),
        ("anthropic-beta", "pdfs-2024-09-25,made-tomorrow", "anthropic-beta: made-tomorrow"),
        ("anthropic-workspace-id", "w", "anthropic-workspace-id: w"),
        ("idempotency-key", "k", "idempotency-key: k"),
        ("x-stainless-lang", "python", ""),
        ("anthropic-dangerous-direct-browser-access", "true", ""),
    ] {
        let bench = openai();
        let got = ask(&bench, "/v1/messages", messages, name, value).await;
        if lost.is_empty() {
            assert_eq!(got.status, 200, "{name}: {value}");
            continue;
        }
        assert_eq!(
            (got.status, got.code(), bench.fake.sent().len()),
            (400, "header_untranslatable", 0),
            "{name}"
        );
        let error = got.json();
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert!(error["error"]["message"].as_str().unwrap().contains(lost), "{error}");
    }
    // Of one dialect: to routes that list it.
    let chat = r#"{"model":"m","messages":[]}"#;
    for (name, hint) in [
        ("openai-organization", "OPENAI_ORG_ID"),
        ("openai-project", "OPENAI_ORG_ID"),
        ("openai-beta", "admin"),
        ("openai-made-tomorrow", "admin"),
        ("x-portkey-config", "admin"),
    ] {
        let bench = openai();
        let got = ask(&bench, CHAT, chat, name, "x").await;
        assert_eq!((got.status, got.code()), (400, "header_not_on_route"), "{name}");
        let error = got.json();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(name) && message.contains(hint), "{message}");
        let mut there = Arc::unwrap_or_clone(route("r", Dialect::OpenAi, &["*"]));
        there.headers.push(name.into());
        let bench = Bench::new("", Fake::new(vec![Arc::new(there)]).acts("r", vec![ok(answer)]));
        assert_eq!(ask(&bench, CHAT, chat, name, "x").await.status, 200, "{name}");
        assert!(bench.fake.last().headers.contains(&(name.to_owned(), "x".to_owned())));
    }
    for (uri, body, name) in
        [("/v1beta/models/m:generateContent", PARTS, "x-goog-user-project"), (CHAT, chat, "anthropic-beta")]
    {
        let got = ask(&openai(), uri, body, name, "prompt-caching-2024-07-31").await;
        assert!(
            ["header_untranslatable", "header_not_on_route"].contains(&got.code()),
            "{name}: {}",
            got.code()
        );
    }
    // Another route may take it.
    let fake = Fake::new(vec![route("a", Dialect::OpenAi, &[]), route("b", Dialect::Anthropic, &[])])
        .acts("a", vec![ok(answer)])
        .acts("b", vec![ok("{}")]);
    let bench = Bench::new(r#"model = [{ name = "m", routes = [{ route = "a" }, { route = "b" }] }]"#, fake);
    assert_eq!(ask(&bench, "/v1/messages", messages, "anthropic-version", "2023-01-01").await.status, 200);
    assert_eq!(bench.fake.sent(), ["b"]);
}

/// A provider's error may quote the prompt, or what it knows.
#[tokio::test]
async fn guards_look_at_providers_errors_too() {
    let quoting =
        r#"{"error":{"message":"bad key AKIAIOSFODNN7EXAMPLE","type":"x","param":null,"code":null}}"#;
    let failing = |status, body, kind| {
        Act::Answer(
            status,
            vec![("content-type", kind), ("retry-after", "7"), ("etag", "x")],
            vec![body],
            None,
        )
    };
    let json = |status, body| failing(status, body, "application/json");
    let rule = |action: &str| {
        format!(r#"guard = [{{ name = "keys", kind = "secrets", on = "answer", action = "{action}" }}]"#)
    };
    let get = async |rule: &str, act| guarded(rule, vec![act]).post(CHAT, &said("x")).await;
    let got = get(&rule("block"), json(429, quoting)).await;
    assert_eq!(
        (got.status, got.code(), got.headers["retry-after"].as_bytes()),
        (429, "guard_blocked", &b"7"[..])
    );
    assert_eq!(got.headers["x-quorate-guard"], "keys=blocked");
    assert!(!got.headers.contains_key("x-should-retry") && !got.headers.contains_key("etag"));
    assert!(got.headers.contains_key("x-quorate-request"), "how it came stays");
    let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("status 429") && !message.contains("AKIA"), "{message}");
    let got = get(&rule("block"), json(400, quoting)).await;
    assert_eq!((got.status, got.headers["x-should-retry"].as_bytes()), (400, &b"false"[..]));
    let got = get(&rule("redact"), json(400, quoting)).await;
    assert_eq!((got.status, got.body.unwrap()), (400, quoting.replace(KEY, "[redacted:aws]")));
    let got = get(&rule("flag"), json(400, quoting)).await;
    assert_eq!(
        (got.body.as_deref(), got.headers["x-quorate-guard"].as_bytes()),
        (Ok(quoting), &b"keys=flagged"[..])
    );
    // What is no JSON is one text; it is left alone where nothing is found.
    let page = "<html>AKIAIOSFODNN7EXAMPLE</html>";
    for (action, body, blocked) in [
        ("block", page, true),
        ("redact", page, true),
        ("block", "<html>busy</html>", false),
        ("block", "", false),
    ] {
        let got = get(&rule(action), failing(502, body, "text/html")).await;
        assert_eq!((got.status, got.code() == "guard_blocked"), (502, blocked), "{action} {body}");
        assert!(blocked || got.body.as_deref() == Ok(body));
    }
    // What says how a good answer is says nothing of an error.
    for other in [
        r#"guard = [{ name = "only", kind = "allow", patterns = ["z"], on = "answer" }]"#,
        r#"guard = [{ name = "shape", kind = "schema" }]"#,
    ] {
        let got = get(other, json(400, quoting)).await;
        assert_eq!((got.status, got.body.as_deref()), (400, Ok(quoting)), "{other}");
    }
    // Rules for prompts alone leave it.
    let got = get(r#"guard = [{ name = "keys", kind = "secrets" }]"#, json(400, quoting)).await;
    assert_eq!(got.body.as_deref(), Ok(quoting));
    // Translated, and too long to be held back: the same.
    let long: &'static str = Box::leak(quoting.replace("bad", &"bad ".repeat(20_000)).into_boxed_str());
    assert_eq!(get(&rule("block"), json(400, long)).await.code(), "guard_blocked");
    let bench = Bench::new(
        &rule("block"),
        Fake::new(vec![route("r", Dialect::OpenAi, &["m"])]).acts("r", vec![json(400, quoting)]),
    );
    let got = bench
        .post("/v1/messages", r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}"#)
        .await;
    assert_eq!((got.code(), got.json()["type"].as_str()), ("guard_blocked", Some("error")));
}

#[tokio::test]
async fn methods_and_paths_that_are_wrong_are_named_in_the_callers_dialect() {
    let bench = Bench::new("", openai(vec![ok("{}")]));
    let ask = |method, uri, headers: &[(&str, &str)]| bench.get(Bench::request(method, uri, headers, &[]));
    let got = ask("DELETE", CHAT, &[]).await;
    assert_eq!(
        (got.status, got.code(), got.headers["allow"].as_bytes()),
        (405, "method_not_allowed", &b"POST"[..])
    );
    let got = ask("GET", "/v1/messages", &[]).await;
    assert_eq!((got.status, got.json()["type"].as_str()), (405, Some("error")));
    let got = ask("POST", "/v1/v1/messages", &[("anthropic-version", "2023-06-01")]).await;
    assert_eq!((got.status, got.json()["error"]["type"].as_str()), (404, Some("not_found_error")));
    let got = ask("GET", "/model/b/converse", &[]).await;
    assert_eq!((got.status, got.headers["x-amzn-errortype"].as_bytes()), (405, &b"ValidationException"[..]));
    for uri in ["/healthz", "/v1/models"] {
        assert_eq!(ask("HEAD", uri, &[]).await.status, 200, "{uri}");
    }
    let preflight = [("origin", "https://page.example"), ("access-control-request-method", "POST")];
    assert_eq!(ask("OPTIONS", CHAT, &preflight).await.code(), "origin_not_allowed");
    let mut open = Bench::new("", openai(vec![ok("{}")]));
    Arc::get_mut(&mut open.adapter).unwrap().gate = Gate::Tokens(vec![]);
    let got = open.get(Bench::request("OPTIONS", CHAT, &preflight, &[])).await;
    assert_eq!((got.status, got.code()), (405, "method_not_allowed"));
    assert!(got.json()["error"]["message"].as_str().unwrap().contains("preflight"));
    assert_eq!(open.get(Bench::request("POST", CHAT, &preflight, &["{}"])).await.code(), "invalid_token");
    let nobody = Bench::new("", Fake::new(vec![route("r", Dialect::OpenAi, &["m"])]));
    let got = nobody.post(CHAT, r#"{"model":"M"}"#).await;
    assert!(got.json()["error"]["message"].as_str().unwrap().contains("GET /v1/models"));
}

/// Over HTTP/1.0 the end of the connection ends a body: one that breaks off must not be there at all.
#[tokio::test]
async fn over_http_1_0_a_document_is_whole_or_an_error() {
    let ask = async |act| {
        let bench = Bench::new("", openai(vec![act]));
        let mut request =
            Bench::request("POST", CHAT, &[("content-type", "application/json")], &[r#"{"model":"m"}"#]);
        *request.version_mut() = http::Version::HTTP_10;
        bench.get(request).await
    };
    let json = |end| Act::Answer(200, vec![("content-type", "application/json")], vec!["{\"a\":", "1}"], end);
    assert_eq!(ask(json(None)).await.body.as_deref(), Ok("{\"a\":1}"));
    let got = ask(json(Some(cut()))).await;
    assert_eq!((got.status, got.code()), (502, "truncated"));
}

/// A body that never comes.
struct Never;

impl hyper::body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let bench = Bench::new("", openai(vec![ok("{}")]));
    let request = http::Request::post(CHAT).header("content-type", "application/json").body(Never).unwrap();
    let begun = tokio::time::Instant::now();
    let (parts, _) = bench.adapter.clone().answer(request).await.into_parts();
    assert_eq!(
        (parts.status.as_u16(), parts.headers["x-quorate-code"].as_bytes()),
        (408, &b"body_too_slow"[..])
    );
    assert_eq!(begun.elapsed(), BODY_TIME_MAX);
    assert_eq!(bench.adapter.places.available_permits(), 256);
}
