//! An upstream that a test scripts: no mesh, no sockets.
use crate::upstream::{Answer, Body, Route, Routes, Upstream};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, StatusCode};
use quorate_client::{Attempted, Error, Provenance, Request, Target};
use quorate_core::ids::{NodeId, RequestId, RouteId};
use quorate_dialects::{Dialect, Flavour};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) fn route(name: &str, dialect: Dialect, models: &[&str]) -> Arc<Route> {
    let paths = match dialect {
        Dialect::OpenAi => vec!["/v1/chat/completions", "/v1/embeddings", "/v1/responses"],
        Dialect::Anthropic => vec!["/v1/messages", "/v1/messages/count_tokens"],
        Dialect::Gemini => {
            vec!["/v1beta/models/g:generateContent", "/v1beta/models/g:streamGenerateContent?alt=sse"]
        }
        Dialect::Bedrock => vec!["/model/b/converse", "/model/b/converse-stream"],
    };
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let mut headers: Vec<String> = strings(&["content-type", "accept"]);
    if dialect == Dialect::Anthropic {
        headers.push("anthropic-version".into());
    }
    Arc::new(Route {
        name: name.into(),
        host: ("provider.example".into(), 443),
        dialect,
        models: strings(models),
        paths: strings(&paths),
        headers,
        flavour: Flavour::OpenAi,
        prices: vec![],
    })
}

/// What a route does with one request.
#[derive(Clone)]
pub(crate) enum Act {
    /// An answer: status, headers, pieces of its body, and how it ends.
    Answer(u16, Vec<(&'static str, &'static str)>, Vec<&'static str>, Option<Error>),
    /// The same, after a while.
    Slow(Duration, Box<Act>),
    /// A stream of events, one after each such time.
    Drip(Duration, Vec<&'static str>),
    /// A head, then nothing more.
    Hang(u16),
    /// An error, before or after the request left.
    Fail(Error),
    FailUnsent(Error),
    /// Nothing: before or after the request left.
    Silence,
    Unsent,
}

pub(crate) fn ok(text: &'static str) -> Act {
    Act::Answer(200, vec![("content-type", "application/json")], vec![text], None)
}

pub(crate) fn status(code: u16) -> Act {
    Act::Answer(
        code,
        vec![("content-type", "application/json"), ("retry-after", "7")],
        vec!["{\"error\":{}}"],
        None,
    )
}

pub(crate) fn lost() -> Error {
    Error::NodeLost { node: NodeId(1), reason: "test".into() }
}

pub(crate) fn cut() -> Error {
    Error::Truncated { reason: "test".into() }
}

/// Counts what is open, so that a test sees a cancel.
#[derive(Default)]
pub(crate) struct Open(pub(crate) Arc<AtomicUsize>);

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Plays the mesh.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) routes: Vec<Arc<Route>>,
    /// Acts of each route; the last one is repeated.
    pub(crate) acts: Mutex<HashMap<String, VecDeque<Act>>>,
    /// What was sent: route, path, headers, body.
    pub(crate) sent: Mutex<Vec<(String, Request)>>,
    pub(crate) open: Open,
    /// The client's grant is over.
    pub(crate) over: AtomicBool,
    next: AtomicU8,
}

impl Fake {
    pub(crate) fn new(routes: Vec<Arc<Route>>) -> Self {
        Self { routes, ..Self::default() }
    }

    pub(crate) fn acts(self, route: &str, acts: Vec<Act>) -> Self {
        self.acts.lock().unwrap().insert(route.into(), acts.into());
        self
    }

    pub(crate) fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap().iter().map(|(route, _)| route.clone()).collect()
    }

    pub(crate) fn last(&self) -> Request {
        self.sent.lock().unwrap().last().unwrap().1.clone()
    }

    pub(crate) fn open(&self) -> usize {
        self.open.0.load(Ordering::SeqCst)
    }

    fn act(&self, route: &str) -> Act {
        let mut acts = self.acts.lock().unwrap();
        let of = acts.get_mut(route).unwrap_or_else(|| panic!("no act for {route}"));
        if of.len() > 1 { of.pop_front().unwrap() } else { of.front().unwrap().clone() }
    }
}

struct Pieces {
    pieces: VecDeque<Bytes>,
    end: Option<Error>,
    hang: bool,
    every: Option<Duration>,
    next: Option<Pin<Box<tokio::time::Sleep>>>,
    _held: Held,
}

impl futures::Stream for Pieces {
    type Item = Result<Bytes, Error>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(every) = self.every {
            let next = self.next.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
            std::task::ready!(next.as_mut().poll(cx));
            self.next = None;
        }
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None if self.hang => Poll::Pending,
            None => Poll::Ready(self.end.take().map(Err)),
        }
    }
}

impl Body for Pieces {
    fn tokens(&self) -> (u64, u64) {
        (3, 4)
    }
}

impl Upstream for Fake {
    fn routes(&self) -> BoxFuture<'_, Result<Routes, Error>> {
        async { Ok(Arc::new(self.routes.clone())) }.boxed()
    }

    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, Error>> {
        async move {
            let Target::Route(route) = request.target.clone() else { panic!("a model") };
            let trail = request.trail.clone().unwrap();
            let id = RequestId([self.next.fetch_add(1, Ordering::SeqCst); 16]);
            self.open.0.fetch_add(1, Ordering::SeqCst);
            let held = Held(self.open.0.clone());
            self.sent.lock().unwrap().push((route.clone(), request));
            let began = || {
                let route = RouteId::new(route.as_str()).unwrap();
                trail.add(Attempted { request: id, route, relay: NodeId(1), keyer: NodeId(2) });
            };
            let mut act = self.act(&route);
            if let Act::Slow(after, then) = act {
                began();
                tokio::time::sleep(after).await;
                act = *then;
            } else if !matches!(act, Act::Unsent | Act::FailUnsent(_)) {
                began();
            }
            let every = if let Act::Drip(every, _) = &act { Some(*every) } else { None };
            let answer =
                |status, headers: Vec<(&'static str, &'static str)>, pieces: Vec<&'static str>, end, hang| {
                    Answer {
                        status: StatusCode::from_u16(status).unwrap(),
                        headers: headers
                            .into_iter()
                            .map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap()))
                            .collect::<HeaderMap>(),
                        provenance: Provenance {
                            request: id,
                            relay: NodeId(1),
                            keyer: NodeId(2),
                            authorised: Default::default(),
                            body_salt: [0; 32],
                        },
                        body: Box::pin(Pieces {
                            pieces: pieces.into_iter().map(|p| Bytes::from_static(p.as_bytes())).collect(),
                            end,
                            hang,
                            every,
                            next: None,
                            _held: held,
                        }),
                    }
                };
            match act {
                Act::Answer(status, headers, pieces, end) => Ok(answer(status, headers, pieces, end, false)),
                Act::Drip(_, pieces) => {
                    Ok(answer(200, vec![("content-type", "text/event-stream")], pieces, None, false))
                }
                Act::Hang(status) => {
                    let events = vec![("content-type", "text/event-stream")];
                    Ok(answer(status, events, vec!["data: 1\n\n"], None, true))
                }
                Act::Fail(error) | Act::FailUnsent(error) => Err(error),
                // What is held stays so until the future is dropped.
                Act::Silence | Act::Unsent => std::future::pending().await,
                Act::Slow(..) => panic!("slow in slow"),
            }
        }
        .boxed()
    }

    fn receipt(&self, request: RequestId, _: bool) -> BoxFuture<'_, Result<(String, bool), Error>> {
        async move { Ok((format!("receipt of {request}"), true)) }.boxed()
    }

    fn health(&self) -> Result<(), Error> {
        if self.routes.is_empty() { Err(Error::NoNode(vec![])) } else { Ok(()) }
    }

    fn may_ask(&self) -> Result<(), Error> {
        self.health()?;
        if self.over.load(Ordering::SeqCst) { Err(Error::NoNode(vec![])) } else { Ok(()) }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
