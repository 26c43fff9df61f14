//! Which requests an application makes, and what it may call the end of one. Requests are a function of a seed.
//!
//! A failure is **typed** if a program can tell what it was: by `x-quorate-code`, by the provider's own error form, or by an error
//! event at the end of a stream. A body that HTTP shows to be cut off is the last resort, where an event had begun; the adapter's
//! metrics must name each of those. An answer that looks whole and is not, a failure without a name, silence: these are untyped.
use super::http::{Got, HangUp};
use serde_json::{Value, json};
use std::time::Duration;

/// What the provider does when the model's name asks for it.
pub(super) const FAULTS: [&str; 11] = [
    "400",
    "401",
    "429",
    "500",
    "503",
    "502-html",
    "slow",
    "slow-stream",
    "close",
    "close-mid-stream",
    "error-mid-stream",
];

/// What stands before a model's name, the route it leads to, and that route's dialect.
pub(super) const WAYS: [(&str, &str, &str); 6] = [
    ("", "openai", "openai"),
    ("anthropic-", "anthropic", "anthropic"),
    ("goog-", "gemini", "gemini"),
    ("bedrock-", "bedrock", "bedrock"),
    ("keyed-", "keyed-openai", "openai"),
    ("keyed-anthropic-", "keyed-anthropic", "anthropic"),
];

/// Those that say nothing about a key.
const KEYED_FAULTS: [&str; 6] = ["429", "500", "503", "slow-stream", "close-mid-stream", "error-mid-stream"];

/// Names of the adapter's configuration that try more than one place.
const LADDERS: [&str; 4] = ["ladder", "hasty", "hedged", "spread"];

/// splitmix64: a run is a function of its seed, and this is no cryptography.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in so many of a hundred.
    pub(super) fn percent(&mut self, of_hundred: u64) -> bool {
        self.below(100) < of_hundred
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T], or: T) -> T {
        usize::try_from(self.below(of.len() as u64)).ok().and_then(|at| of.get(at)).copied().unwrap_or(or)
    }
}

/// Which API an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Responses,
    Completions,
    Embeddings,
    Messages,
    CountTokens,
    Generate,
    Embed,
    Models,
    /// JSON that is none, a model that nobody has, a field that is missing.
    Nonsense,
}

impl Api {
    /// The caller's dialect.
    fn dialect(self) -> &'static str {
        match self {
            Self::Chat
            | Self::Responses
            | Self::Completions
            | Self::Embeddings
            | Self::Models
            | Self::Nonsense => "openai",
            Self::Messages | Self::CountTokens => "anthropic",
            Self::Generate | Self::Embed => "gemini",
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) api: Api,
    pub(super) model: String,
    pub(super) fault: Option<&'static str>,
    pub(super) stream: bool,
    pub(super) hang_up: HangUp,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) headers: &'static str,
    pub(super) body: Vec<u8>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// In full.
    Answered,
    /// By the application.
    HungUp,
    /// With an error of ours, by its code.
    Ours(String),
    /// With the provider's error, by its status.
    Provider(u16),
    /// A stream, with an error event, by its code or type.
    Event(String),
    /// A body without its end.
    CutOff,
    /// In a way that breaks the promise.
    Untyped(String),
}

impl Ask {
    /// What an application with a grant for everything asks next.
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let api = match dice.below(100) {
            0..34 => Api::Chat,
            34..42 => Api::Responses,
            42..45 => Api::Completions,
            45..50 => Api::Embeddings,
            50..72 => Api::Messages,
            72..75 => Api::CountTokens,
            75..92 => Api::Generate,
            92..94 => Api::Embed,
            94..96 => Api::Models,
            _ => Api::Nonsense,
        };
        let (prefix, route, _) = dice.one(&WAYS, ("", "openai", "openai"));
        let mut fault = dice.percent(28).then(|| dice.one(&FAULTS, "500"));
        let stream = dice.percent(45);
        let mut hang_up = match dice.below(100) {
            0..2 => HangUp::MidRequest,
            2..12 => HangUp::After(Duration::from_millis(dice.below(900))),
            12..22 => HangUp::AtByte(usize::try_from(dice.below(2500)).unwrap_or(0)),
            _ => HangUp::Never,
        };
        if route.starts_with("keyed") {
            // What could be a node probing the key counts against its pair, and half an hour of it takes every pair out of use:
            // refused keys, closes, pages of gateways, answers that nobody waited for. That is metering, and other tests' matter.
            fault = fault.filter(|f| KEYED_FAULTS.contains(f));
            if let HangUp::After(_) = hang_up {
                hang_up = HangUp::AtByte(usize::try_from(dice.below(2500)).unwrap_or(0));
            }
        }
        let model = match (api, fault) {
            (Api::Embeddings | Api::Embed, _) => format!("{prefix}demo-embed"),
            (_, Some(fault)) => format!("{prefix}fault-{fault}"),
            (Api::Chat | Api::Messages, None) if dice.percent(10) => dice.one(&LADDERS, "ladder").to_owned(),
            (_, None) => format!("{prefix}demo-chat"),
        };
        Self::new(api, model, fault, stream, hang_up, dice)
    }

    /// What an application asks whose budgets are small: of money with `chat`, of requests without.
    pub(super) fn frugal(dice: &mut Dice) -> Self {
        let (api, model) =
            if dice.percent(50) { (Api::Chat, "demo-chat") } else { (Api::Embeddings, "demo-embed") };
        let stream = dice.percent(30);
        Self::new(api, model.to_owned(), None, stream, HangUp::Never, dice)
    }

    fn new(
        api: Api,
        model: String,
        fault: Option<&'static str>,
        stream: bool,
        hang_up: HangUp,
        dice: &mut Dice,
    ) -> Self {
        let tools = dice.percent(20);
        let text = if tools { "Please use get_weather." } else { "Say what a quorum is." };
        let padding = if dice.percent(10) { dice.below(40_000) } else { dice.below(300) };
        let text = format!("{text} {}", "word ".repeat(usize::try_from(padding / 5).unwrap_or(0)));
        let most = 16 + dice.below(48);
        let schema = json!({
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": false
        });
        let stream = stream
            && matches!(api, Api::Chat | Api::Responses | Api::Completions | Api::Messages | Api::Generate);
        let mut headers = "content-type: application/json\r\n";
        let mut method = "POST";
        let (path, mut body) = match api {
            Api::Chat => {
                let mut body = json!({
                    "model": model,
                    "max_tokens": most,
                    "messages": [{"role": "user", "content": text}]
                });
                if tools {
                    set(
                        &mut body,
                        "tools",
                        json!([{
                            "type": "function",
                            "function": {"name": "get_weather", "description": "Weather", "parameters": schema}
                        }]),
                    );
                }
                ("/v1/chat/completions".to_owned(), body)
            }
            Api::Responses => (
                "/v1/responses".to_owned(),
                json!({"model": model, "max_output_tokens": most, "input": text}),
            ),
            Api::Completions => {
                ("/v1/completions".to_owned(), json!({"model": model, "max_tokens": most, "prompt": text}))
            }
            Api::Embeddings => {
                ("/v1/embeddings".to_owned(), json!({"model": model, "input": [text, "and another"]}))
            }
            Api::Messages | Api::CountTokens => {
                headers = "content-type: application/json\r\nanthropic-version: 2023-06-01\r\n";
                let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
                if api == Api::Messages {
                    set(&mut body, "max_tokens", json!(most));
                }
                if tools {
                    set(
                        &mut body,
                        "tools",
                        json!([{
                            "name": "get_weather",
                            "description": "Weather",
                            "input_schema": schema
                        }]),
                    );
                }
                let path = if api == Api::Messages { "/v1/messages" } else { "/v1/messages/count_tokens" };
                (path.to_owned(), body)
            }
            Api::Generate => {
                let verb = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
                let body = json!({
                    "contents": [{"role": "user", "parts": [{"text": text}]}],
                    "generationConfig": {"maxOutputTokens": most}
                });
                (format!("/v1beta/models/{model}:{verb}"), body)
            }
            Api::Embed => (
                format!("/v1beta/models/{model}:embedContent"),
                json!({"content": {"parts": [{"text": text}]}}),
            ),
            Api::Models => {
                method = "GET";
                ("/v1/models".to_owned(), Value::Null)
            }
            Api::Nonsense => ("/v1/chat/completions".to_owned(), json!({"model": "nobody-has-this"})),
        };
        if stream && api != Api::Generate {
            set(&mut body, "stream", json!(true));
        }
        let body = match api {
            Api::Models => Vec::new(),
            Api::Nonsense => dice
                .one(
                    &[
                        r#"{"model":"nobody-has-this","messages":[]}"#,
                        r#"{"model":"demo-chat""#,
                        r#"{"messages":1}"#,
                    ],
                    "",
                )
                .into(),
            _ => body.to_string().into_bytes(),
        };
        Self { api, model, fault, stream, hang_up, method, path, headers, body }
    }

    /// What the answer comes to.
    pub(super) fn judge(&self, got: &Got, asked: &anyhow::Result<()>) -> End {
        if got.hung_up {
            return End::HungUp;
        }
        if let Err(error) = asked {
            return End::Untyped(format!("no answer: {error:#}"));
        }
        if let Some(code) = got.header("x-quorate-code") {
            let stable = !code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let said = quorate_client::is_own_error_form(self.api.dialect(), &got.body);
            return match (stable, got.status >= 400 && got.whole && said) {
                (true, true) => End::Ours(code.to_owned()),
                _ => End::Untyped(format!("status {} with code {code:?}: {}", got.status, shown(&got.body))),
            };
        }
        if got.status >= 400 {
            // A front end's page is nobody's dialect and passes as it is.
            let page = self.fault == Some("502-html") && got.status == 502;
            let said = page || quorate_client::is_own_error_form(self.api.dialect(), &got.body);
            return if said && got.header("x-quorate-request").is_some() {
                End::Provider(got.status)
            } else if !got.whole {
                End::CutOff
            } else {
                End::Untyped(format!("status {}: {}", got.status, shown(&got.body)))
            };
        }
        if got.status != 200 {
            return End::Untyped(format!("status {}", got.status));
        }
        let text = String::from_utf8_lossy(&got.body);
        if let Some(event) = error_event(&text).filter(|_| self.stream) {
            return End::Event(event);
        }
        if !got.whole {
            return End::CutOff;
        }
        let ends = match self.api {
            _ if !self.stream => serde_json::from_slice::<Value>(&got.body).is_ok(),
            Api::Chat | Api::Completions => text.ends_with("data: [DONE]\n\n"),
            Api::Messages => text.contains("\"type\":\"message_stop\""),
            Api::Responses => {
                text.contains("\"type\":\"response.completed\"")
                    || text.contains("\"type\":\"response.incomplete\"")
            }
            _ => text.contains("\"finishReason\""),
        };
        if ends {
            End::Answered
        } else {
            End::Untyped(format!("looks whole and is not: {}", shown(&got.body)))
        }
    }

    /// For the report: which API, to which model, how.
    pub(super) fn name(&self) -> String {
        let how = if self.stream { "stream" } else { "plain" };
        format!("{:?} {} {how}", self.api, self.model)
    }
}

fn set(body: &mut Value, name: &str, value: Value) {
    if let Some(object) = body.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// The end of a body, for a person.
fn shown(body: &[u8]) -> String {
    let from = body.len().saturating_sub(300);
    String::from_utf8_lossy(body.get(from..).unwrap_or_default()).into_owned()
}

/// The code or the type in the last event of a stream, if that is an error.
fn error_event(text: &str) -> Option<String> {
    let last = text.trim_end().rsplit("\n\n").next()?.rsplit("\r\n\r\n").next()?;
    let data = last.lines().find_map(|l| l.strip_prefix("data: "))?;
    let data: Value = serde_json::from_str(data).ok()?;
    let failed = data.pointer("/response/error").filter(|e| e.is_object());
    let flat = (data.get("type").and_then(Value::as_str) == Some("error")).then_some(&data);
    let error = data.get("error").filter(|e| e.is_object()).or(failed).or(flat)?;
    let reason = error.pointer("/details/0/reason").and_then(Value::as_str).map(str::to_ascii_lowercase);
    let word = |name: &str| error.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    reason
        .or_else(|| word("code"))
        .or_else(|| word("status"))
        .or_else(|| word("type"))
        .filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(status: u16, headers: &[(&str, &str)], body: &str, whole: bool) -> Got {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Got { status, headers, body: body.as_bytes().to_vec(), whole, hung_up: false }
    }

    fn ask(api: Api, stream: bool) -> Ask {
        Ask::new(api, "m".into(), None, stream, HangUp::Never, &mut Dice::new(1))
    }

    #[test]
    fn what_is_typed_and_what_is_not() {
        let chat = ask(Api::Chat, true);
        let id = ("x-quorate-request", "r");
        let untyped = |end: End| matches!(end, End::Untyped(_));
        let judge = |got: &Got| chat.judge(got, &Ok(()));
        let done = "data: {}\n\ndata: [DONE]\n\n";
        assert_eq!(judge(&got(200, &[id], done, true)), End::Answered);
        assert_eq!(judge(&got(200, &[id], done, false)), End::CutOff);
        assert!(untyped(judge(&got(200, &[id], "data: {}\n\n", true))), "it looks whole");
        let broken = "data: {}\n\ndata: {\"error\":{\"message\":\"m\",\"code\":\"truncated\"}}\n\n";
        assert_eq!(judge(&got(200, &[id], broken, true)), End::Event("truncated".into()));
        let own = r#"{"error":{"message":"m"}}"#;
        assert_eq!(judge(&got(503, &[("x-quorate-code", "dark")], own, true)), End::Ours("dark".into()));
        assert!(untyped(judge(&got(503, &[("x-quorate-code", "Not stable")], own, true))));
        assert!(untyped(judge(&got(503, &[("x-quorate-code", "dark")], "no", true))));
        assert_eq!(judge(&got(429, &[id], own, true)), End::Provider(429));
        assert!(untyped(judge(&got(429, &[], own, true))), "whose is it?");
        assert!(untyped(judge(&got(502, &[id], "<html>", true))), "nobody asked for that page");
        assert!(untyped(chat.judge(&Got::default(), &Err(anyhow::anyhow!("reset")))));
        let messages = ask(Api::Messages, true);
        let event = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
        assert_eq!(
            messages.judge(&got(200, &[id], event, true), &Ok(())),
            End::Event("overloaded_error".into())
        );
        let gemini = ask(Api::Generate, true);
        let event = "data: {\"error\":{\"code\":502,\"status\":\"INTERNAL\"}}\r\n\r\n";
        assert_eq!(gemini.judge(&got(200, &[id], event, true), &Ok(())), End::Event("INTERNAL".into()));
        let responses = ask(Api::Responses, true);
        let event =
            "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\"}\n\n";
        assert_eq!(
            responses.judge(&got(200, &[id], event, true), &Ok(())),
            End::Event("server_error".into())
        );
    }

    #[test]
    fn a_seed_gives_the_same_requests_and_all_kinds_of_them() {
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            (0..2000).map(|_| Ask::draw(&mut dice)).collect::<Vec<_>>()
        };
        let (one, again) = (draw(7), draw(7));
        assert!(one.iter().zip(&again).all(|(a, b)| a.body == b.body && a.hang_up == b.hang_up));
        assert!(one.iter().zip(&draw(8)).any(|(a, b)| a.body != b.body));
        for fault in FAULTS {
            assert!(one.iter().any(|a| a.fault == Some(fault)), "{fault}");
        }
        for (prefix, ..) in WAYS {
            assert!(one.iter().any(|a| a.model == format!("{prefix}demo-chat")), "{prefix:?}");
        }
        let keyed = |a: &&Ask| a.model.starts_with("keyed");
        assert!(one.iter().filter(keyed).all(|a| a.fault.is_none_or(|f| KEYED_FAULTS.contains(&f))));
    }
}
