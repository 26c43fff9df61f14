//! What an application asks for.
use bytes::Bytes;
pub use quorate_splitkey::head::Method;
use std::time::Duration;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A route by its name in the policy.
    Route(String),
    /// Whichever granted route serves this model.
    Model(String),
}

/// One request. No `Debug`: it holds the prompt.
#[derive(Clone)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// GET or POST.
    pub method: Method,
    /// Path below the route's base path, such as `/v1/chat/completions`.
    pub path: String,
    /// Headers the route allows, lower case.
    pub headers: Vec<(String, String)>,
    /// The body; empty for GET.
    pub body: Bytes,
    /// Whether it may reach the provider twice. Then a failure after it was forwarded, but before an answer's head, is
    /// retried too. Default false.
    pub idempotent: bool,
    /// Ceiling on the answer's bytes. Default 8 MiB; never above the route's.
    pub response_bytes_max: Option<u64>,
    /// Longest the request may run, in all. Default the route's bound.
    pub duration_max: Option<Duration>,
    /// No further attempt begins after this. Default none.
    pub deadline: Option<Duration>,
}

impl Request {
    /// A POST of JSON.
    pub fn post_json(target: Target, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            target,
            method: Method::Post,
            path: path.into(),
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.into(),
            idempotent: false,
            response_bytes_max: None,
            duration_max: None,
            deadline: None,
        }
    }

    /// A GET.
    pub fn get(target: Target, path: impl Into<String>) -> Self {
        Self { method: Method::Get, headers: vec![], ..Self::post_json(target, path, Bytes::new()) }
    }
}
