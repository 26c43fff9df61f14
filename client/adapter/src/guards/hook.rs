//! An external guard: texts go to one configured URL, a verdict comes back.
//!
//! ```text
//! POST {"version":1,"rule":"…","side":"prompt","model":"…","operation":"chat","texts":["…",…]}
//!  200 {"action":"allow" | "block" | "flag"} or {"action":"redact","texts":["…",…]}   as many as were sent
//! ```
//! **Refuses** plain HTTP but to this machine, redirects (none is followed), more than the bounds either way, any other answer.
//! Without a verdict in time the document is blocked, unless the rule says `fail = "open"`.
use super::Of;
use super::scan::Text;
use crate::config::{Fail, GuardConfig};
use quorate_telemetry::post::{Post, is_local};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest verdict beyond the texts that it may repeat.
const VERDICT_BYTES_MAX: usize = 64 * 1024;

/// A rule's external guard.
pub(super) struct Hook {
    post: Post,
    timeout: Duration,
    bytes_max: usize,
    fail: Fail,
}

/// Its verdict.
pub(super) enum Answer {
    Allow,
    Block,
    Flag,
    Redact(Vec<String>),
}

#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    rule: &'a str,
    side: &'static str,
    model: &'a str,
    operation: &'static str,
    texts: Vec<&'a str>,
}

#[derive(Deserialize)]
struct Verdict {
    action: String,
    texts: Option<Vec<String>>,
}

impl Hook {
    pub(super) fn new(config: &GuardConfig) -> Result<Self, String> {
        let url = config.url.as_deref().ok_or("url is missing")?;
        let post = Post::to(url, config.ca_file.as_deref()).map_err(|e| quorate_client::chain(&e))?;
        if !post.is_tls() && !is_local(post.host()) {
            return Err("url: prompts leave this machine through https only".into());
        }
        let timeout = Duration::from_millis(config.timeout_ms);
        Ok(Self { post, timeout, bytes_max: config.bytes_max, fail: config.fail })
    }

    /// Whether a document passes when there is no verdict.
    pub(super) fn fails_open(&self) -> bool {
        self.fail == Fail::Open
    }

    /// Asks for a verdict.
    pub(super) async fn ask(
        &self,
        rule: &str,
        of: Of<'_>,
        side: &'static str,
        texts: &[Text],
    ) -> Result<Answer, &'static str> {
        let operation = of.operation.name();
        let texts: Vec<&str> = texts.iter().map(|t| t.text.as_str()).collect();
        let count = texts.len();
        let question = Question { version: 1, rule, side, model: of.model, operation, texts };
        let question = serde_json::to_vec(&question).map_err(|_| "the question could not be written")?;
        if question.len() > self.bytes_max {
            return Err("it is larger than the external guard is asked about");
        }
        let bound = question.len() * 2 + VERDICT_BYTES_MAX;
        let asked = self.post.send("application/json", question.into(), bound);
        let (status, body) = match tokio::time::timeout(self.timeout, asked).await {
            Err(_) => return Err("the external guard did not answer in time"),
            Ok(Err(_)) => return Err("the external guard could not be asked"),
            Ok(Ok(answer)) => answer,
        };
        let bad = "the external guard's answer is no verdict";
        if status != http::StatusCode::OK {
            return Err(bad);
        }
        let verdict: Verdict = serde_json::from_slice(&body).map_err(|_| bad)?;
        match (verdict.action.as_str(), verdict.texts) {
            ("allow", None) => Ok(Answer::Allow),
            ("block", None) => Ok(Answer::Block),
            ("flag", None) => Ok(Answer::Flag),
            ("redact", Some(texts)) if texts.len() == count => Ok(Answer::Redact(texts)),
            _ => Err(bad),
        }
    }
}
