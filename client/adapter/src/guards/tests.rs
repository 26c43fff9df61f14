//! Evasions, one at a time: each has a twin that is left alone.
use super::*;
use crate::config::Config;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn guards(rules: &str) -> Guards {
    let config: Config = toml::from_str(&format!("guard = [{rules}]")).unwrap();
    config.check().unwrap();
    Guards::new(&config.rules, config.guards.streams).unwrap()
}

async fn prompt(guards: &Guards, body: &str) -> Result<(String, Vec<String>), String> {
    let request = Bytes::copy_from_slice(body.as_bytes());
    let of = Of { model: "m", operation: Operation::Chat, request: &request };
    match guards.prompt(of).await {
        Ok(passed) => {
            let notes = passed.notes.iter().map(|n| format!("{}={}", n.rule, n.did)).collect();
            Ok((String::from_utf8(passed.body.to_vec()).unwrap(), notes))
        }
        Err(blocked) => {
            assert_eq!(blocked.failure.code, "guard_blocked");
            assert!(!blocked.failure.message.contains("AKIA"));
            Err(blocked.notes.last().unwrap().did.to_owned())
        }
    }
}

const BLOCK: &str = r#"{ name = "keys", kind = "secrets", detect = ["aws"] }"#;
const REDACT: &str = r#"{ name = "keys", kind = "secrets", detect = ["aws"], action = "redact" }"#;

#[tokio::test]
async fn a_secret_is_found_however_it_is_written_down() {
    let (block, redact) = (guards(BLOCK), guards(REDACT));
    let cases = [
        ("plain", r#"{"content":"AKIAIOSFODNN7EXAMPLE"}"#, Some(r#"{"content":"[redacted:aws]"}"#)),
        (
            "escaped",
            r#"{"content":"\u0041KIA\u0049OSFODNN7EXAMPLE"}"#,
            Some(r#"{"content":"[redacted:aws]"}"#),
        ),
        (
            "in two messages",
            r#"{"messages":[{"role":"user","content":"a AKIAIOSF"},{"role":"user","content":"ODNN7EXAMPLE b"}]}"#,
            Some(
                r#"{"messages":[{"role":"user","content":"a [redacted:aws]"},{"role":"user","content":" b"}]}"#,
            ),
        ),
        (
            "in three parts",
            r#"{"content":[{"text":"AKIAIOSF"},{"text":"ODN"},{"text":"N7EXAMPLE"}]}"#,
            Some(r#"{"content":[{"text":"[redacted:aws]"},{"text":""},{"text":""}]}"#),
        ),
        (
            "across an answer",
            r#"{"messages":[{"content":"AKIAIOSF","role":"user"},{"role":"assistant","content":"ok."},{"role":"user","content":"ODNN7EXAMPLE"}]}"#,
            Some(
                r#"{"messages":[{"content":"[redacted:aws]","role":"user"},{"role":"assistant","content":"ok."},{"role":"user","content":""}]}"#,
            ),
        ),
        (
            "with invisible characters",
            "{\"content\":\"x AKIA\u{200b}IOSFODNN7\u{ad}EXAMPLE y\"}",
            Some(r#"{"content":"x [redacted:aws] y"}"#),
        ),
        (
            "full-width",
            "{\"content\":\"x \u{ff21}\u{ff2b}IAIOSFODNN7EXAMPL\u{ff25} y\"}",
            Some(r#"{"content":"x [redacted:aws] y"}"#),
        ),
        (
            "in a tool's arguments",
            r#"{"function":{"arguments":"{\"k\":\"AKIAIOSFODNN7EXAMPLE\"}"}}"#,
            Some(r#"{"function":{"arguments":"{\"k\":\"[redacted:aws]\"}"}}"#),
        ),
        (
            "escaped in a tool's arguments",
            r#"{"function":{"arguments":"{\"k\":\"\\u0041KIAIOSFODNN7EXAMPLE\"}"}}"#,
            None,
        ),
        (
            "twice escaped there",
            r#"{"function":{"arguments":"{\"k\":\"\\\\u0041KIAIOSFODNN7EXAMPLE\"}"}}"#,
            None,
        ),
        (
            "as a key of free-form input",
            r#"{"messages":[{"content":[{"input":{"AKIAIOSFODNN7EXAMPLE":1}}]}]}"#,
            None,
        ),
        (
            "where ids stand, but free",
            r#"{"messages":[{"content":[{"input":{"id":"AKIAIOSFODNN7EXAMPLE"}}]}]}"#,
            Some(r#"{"messages":[{"content":[{"input":{"id":"[redacted:aws]"}}]}]}"#),
        ),
        (
            "in a file of text",
            r#"{"source":{"type":"base64","media_type":"text/plain","data":"QUtJQUlPU0ZPRE5ON0VYQU1QTEU="}}"#,
            None,
        ),
        ("in metadata", r#"{"metadata":{"AKIAIOSFODNN7EXAMPLE":""}}"#, None),
    ];
    for (case, body, redacted) in cases {
        assert_eq!(prompt(&block, body).await.unwrap_err(), "blocked", "{case}");
        let became = prompt(&redact, body).await;
        match redacted {
            Some(expected) => {
                assert_eq!(became.unwrap(), (expected.to_owned(), vec!["keys=redacted".to_owned()]), "{case}")
            }
            None => assert_eq!(became.unwrap_err(), "blocked", "{case}: it cannot be replaced there"),
        }
    }
    for (case, body) in [
        ("an id", r#"{"tool_call_id":"AKIAIOSFODNN7EXAMPLE"}"#),
        ("an image", r#"{"image_url":{"url":"data:image/png;base64,AKIAIOSFODNN7EXAMPLE/AA=="}}"#),
        ("part of a word", r#"{"content":"XAKIAIOSFODNN7EXAMPLES"}"#),
        (
            "two messages that do not go on",
            r#"{"messages":[{"role":"user","content":"AKIAIOSF "},{"role":"user","content":"ODNN7EXAMPLE"}]}"#,
        ),
    ] {
        assert_eq!(prompt(&block, body).await, Ok((body.to_owned(), vec![])), "{case}");
    }
}

#[tokio::test]
async fn lists_and_exceptions() {
    let deny =
        guards(r#"{ name = "no", kind = "deny", patterns = ["(?i)project x", "^$"], action = "redact" }"#);
    assert_eq!(
        prompt(&deny, r#"{"content":"on Project X"}"#).await.unwrap().0,
        r#"{"content":"on [redacted:denied]"}"#
    );
    assert_eq!(prompt(&deny, r#"{"content":""}"#).await.unwrap().1, Vec::<String>::new());
    let allow = guards(r#"{ name = "only", kind = "allow", patterns = ["(?i)invoice"] }"#);
    assert!(prompt(&allow, r#"{"a":"hello","b":"the Invoice"}"#).await.is_ok());
    assert_eq!(prompt(&allow, r#"{"a":"hello"}"#).await.unwrap_err(), "blocked");
    let except = guards(r#"{ name = "keys", kind = "secrets", detect = ["aws"], except = [".*EXAMPLE"] }"#);
    assert!(prompt(&except, r#"{"a":"AKIAIOSFODNN7EXAMPLE"}"#).await.unwrap().1.is_empty());
    assert_eq!(prompt(&except, r#"{"a":"AKIAIOSFODNN7EXAMPLF"}"#).await.unwrap_err(), "blocked");
}

#[tokio::test]
async fn rules_see_what_those_before_them_left() {
    let both = guards(
        r#"{ name = "a", kind = "personal", action = "redact" }, { name = "b", kind = "deny", patterns = ["redacted:email"], action = "flag" }, { name = "c", kind = "personal" }"#,
    );
    let (body, notes) = prompt(&both, r#"{"content":"a@b.example"}"#).await.unwrap();
    assert_eq!(
        (body.as_str(), notes),
        (r#"{"content":"[redacted:email]"}"#, vec!["a=redacted".into(), "b=flagged".into()])
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_blocked() {
    let deep = "[".repeat(200) + &"]".repeat(200);
    assert_eq!(prompt(&guards(BLOCK), &deep).await.unwrap_err(), "failed");
    let flag = guards(r#"{ name = "keys", kind = "secrets", action = "flag" }"#);
    assert_eq!(prompt(&flag, &deep).await.unwrap_err(), "failed", "a flag would say that it had looked");
}

/// A guard somewhere else that gives one answer, and keeps what it was asked.
async fn outside(answer: &'static str) -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/check", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(String::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            let mut some = [0; 4096];
            while !all.ends_with(b"}") {
                let read = tcp.read(&mut some).await.unwrap();
                all.extend_from_slice(&some[..read]);
            }
            *heard.lock().unwrap() = String::from_utf8(all).unwrap();
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, asked)
}

#[tokio::test]
async fn an_external_guards_verdict_counts_and_none_is_a_no() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
    let hook = |url: &str, more: &str| {
        guards(&format!(r#"{{ name = "out", kind = "http", url = "{url}", timeout_ms = 300{more} }}"#))
    };
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"action\":\"allow\"}", Ok("")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"action\":\"flag\"}", Ok("out=flagged")),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 35\r\n\r\n{\"action\":\"redact\",\"texts\":[\"bye\"]}",
            Ok("out=redacted"),
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"action\":\"block\"}", Err("blocked")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n{\"action\":\"redact\",\"texts\":[]}", Err("failed")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Err("failed")),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 18\r\n\r\n{\"action\":\"allow\"}",
            Err("failed"),
        ),
        ("HTTP/1.1 500 No\r\ncontent-length: 18\r\n\r\n{\"action\":\"allow\"}", Err("failed")),
        ("", Err("failed")),
    ] {
        let (url, asked) = outside(answer).await;
        let became = prompt(&hook(&url, ""), body).await;
        let notes = became.as_ref().map(|(_, notes)| notes.join(",")).map_err(String::as_str);
        assert_eq!(notes.as_deref().map_err(|e| *e), expected, "{answer}");
        let asked = asked.lock().unwrap().clone();
        assert!(
            asked
                .contains(r#""rule":"out","side":"prompt","model":"m","operation":"chat","texts":["hello"]"#),
            "{asked}"
        );
        if let Ok((body, _)) = became {
            assert_eq!(body.contains("\"bye\""), answer.contains("bye"));
        }
        let open = prompt(&hook(&url, r#", fail = "open""#), body).await;
        assert_eq!(open.is_err(), expected == Err("blocked"), "{answer}");
    }
    // One that is not there at all; one that is too much to ask.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(prompt(&hook(&format!("http://127.0.0.1:{port}"), ""), body).await.unwrap_err(), "failed");
    let (url, asked) = outside("").await;
    let large = format!(r#"{{"content":"{}"}}"#, "x".repeat(2000));
    assert_eq!(prompt(&hook(&url, ", bytes_max = 1024"), &large).await.unwrap_err(), "failed");
    assert_eq!(*asked.lock().unwrap(), "", "it did not go out");
}

#[test]
fn prompts_leave_through_tls_only() {
    let rule = |url: &str| {
        let config: Config =
            toml::from_str(&format!(r#"guard = [{{ name = "o", kind = "http", url = "{url}" }}]"#)).unwrap();
        Guards::new(&config.rules, config.guards.streams).err()
    };
    assert!(rule("http://guard.example/").unwrap().contains("https only"));
    assert!(rule("ftp://guard.example/").is_some());
    assert_eq!(rule("http://localhost:1/"), None);
}
