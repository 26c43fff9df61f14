//! What an application asks for.
use crate::error::Error;
use crate::pool::lock;
use bytes::Bytes;
use quorate_core::ids::{NodeId, PriceId, RequestId, RouteId};
pub use quorate_splitkey::head::Method;
use quorate_splitkey::head::{Head, Header};
use std::sync::{Arc, Mutex};
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
    /// The row of the policy's price table to pay by. Default: the row for the model asked for, or the only one of the route.
    pub price: Option<PriceId>,
    /// Most tokens of input it is charged for; the price of so many is held of budgets until it is settled. Default as many as
    /// the body has bytes.
    pub tokens_in_max: Option<u64>,
    /// Most tokens of output, likewise. Default what the body asks for at most, or else as many as the answer may have bytes.
    pub tokens_out_max: Option<u64>,
    /// Hears of every attempt as it begins. Default none.
    pub trail: Option<Trail>,
}

/// One try of a request: signed and authorised on its own, with a receipt of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// Its id.
    pub request: RequestId,
    /// Its route.
    pub route: RouteId,
    /// Who carried it.
    pub relay: NodeId,
    /// Who checked its head.
    pub keyer: NodeId,
}

/// Names the attempts of a request, oldest first, whatever becomes of them. Clones share what they know. As long as it is
/// empty nothing has left for a relay.
#[derive(Debug, Clone, Default)]
pub struct Trail(Arc<Mutex<Vec<Attempted>>>);

/// Attempts that a trail keeps: more than any request makes.
const TRAIL_MAX: usize = 256;

impl Trail {
    /// Adds one; beyond a bound it is forgotten.
    pub fn add(&self, attempted: Attempted) {
        let mut all = lock(&self.0);
        if all.len() < TRAIL_MAX {
            all.push(attempted);
        }
    }

    /// All so far.
    pub fn attempts(&self) -> Vec<Attempted> {
        lock(&self.0).clone()
    }

    /// Whether none began yet.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

impl Request {
    /// Its HTTP head, without what the route adds.
    pub(crate) fn head(&self) -> Head {
        let header = |(name, value): &(String, String)| Header { name: name.clone(), value: value.clone() };
        Head {
            method: self.method,
            path: self.path.clone(),
            headers: self.headers.iter().map(header).collect(),
            content_length: self.body.len() as u64,
        }
    }

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
            price: None,
            tokens_in_max: None,
            tokens_out_max: None,
            trail: None,
        }
    }

    /// A GET.
    pub fn get(target: Target, path: impl Into<String>) -> Self {
        Self { method: Method::Get, headers: vec![], ..Self::post_json(target, path, Bytes::new()) }
    }

    /// The mesh puts a route's key into the head; an application that brings one has given it away already.
    pub(crate) fn check_headers(&self) -> Result<(), Error> {
        let carries = |name: &str| CREDENTIAL_HEADERS.iter().any(|h| name.eq_ignore_ascii_case(h));
        match self.headers.iter().find(|(name, _)| carries(name)) {
            Some((name, _)) => Err(Error::CredentialHeader { name: name.to_ascii_lowercase() }),
            None => Ok(()),
        }
    }
}

/// Headers that carry keys, in whatever scheme.
const CREDENTIAL_HEADERS: [&str; 5] =
    ["authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_applications_own_is_refused_and_not_repeated() {
        for name in ["authorization", "Authorization", "X-API-Key", "api-key", "x-goog-api-key"] {
            let mut request = Request::get(Target::Route("r".into()), "/v1/models");
            request.headers.push((name.to_owned(), "Bearer sk-its-own".into()));
            let error = request.check_headers().unwrap_err();
            assert!(matches!(&error, Error::CredentialHeader { name: n } if *n == name.to_ascii_lowercase()));
            assert!(!format!("{error} {error:?} {}", error.hint()).contains("its-own"));
        }
        let request = Request::post_json(Target::Route("r".into()), "/v1/x", "{}");
        assert!(request.check_headers().is_ok());
    }
}
