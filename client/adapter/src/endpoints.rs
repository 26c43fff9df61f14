//! From an HTTP request to an answer: the order of checks, and what each layer is asked.
//!
//! ```text
//! path -> gate -> place among the requests -> body -> guards -> plan -> one request for each target -> cache -> attempts
//!      -> answer -> guards
//! ```
use crate::answer::{InFlight, Keep, Live, NoRoom, Reply, Silence, Tail, Watch};
use crate::api;
use crate::attempt::{self, Ended, Held, Prepared, Tried};
use crate::cache::{self, Cache, Leave, Meta};
use crate::config::{Limits, StreamsUnder};
use crate::errors::Failure;
use crate::gate::Gate;
use crate::guards::{self, Blocked, Guards, Note, Passed};
use crate::health::Book;
use crate::metrics::{Labels, Metrics};
use crate::receipts::{Chain, Receipts, came_to};
use crate::routing::{Needs, Table, Target};
use crate::trace::{Sniff, Tracing};
use crate::upstream::{Answer, Route, Upstream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use quorate_client::{Error, Provenance, Request, Target as Aim};
use quorate_dialects::errors::ErrorKind;
use quorate_dialects::{
    AnswerTranslator, Call, Dialect, DialectError, Fault, Operation, Stamp, TargetRoute, headers, models,
};
use quorate_telemetry::{Attribute, Name, Traces};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Longest time in which a request's body must be there.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// How much is taken of a body that was refused already, and for how long.
const DRAIN_BYTES_MAX: u64 = 256 * 1024 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Characters of a header's value that an error repeats.
const VALUE_CHARS_MAX: usize = 64;
/// Largest whole answer that is translated.
const TRANSLATED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Said to callers beyond the bound of requests at once.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Largest value of a header that goes on; longer ones no route takes.
const HEADER_VALUE_MAX: usize = 1024;
/// Refusals after which nothing is served from the cache either, until a request is answered again.
const UNWELCOME: [&str; 6] = [
    "client_revoked",
    "client_expired",
    "unknown_client",
    "wrong_client_key",
    "token_revoked",
    "token_expired",
];
/// Headers of an answer that concern one connection, or a browser, and stay here.
const DROPPED: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "set-cookie",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Everything that serves requests.
pub(crate) struct Adapter {
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) table: Table,
    pub(crate) gate: Gate,
    pub(crate) limits: Limits,
    pub(crate) book: Book,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) receipts: Option<Arc<Receipts>>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) places: Arc<Semaphore>,
    /// Steps of bytes that all requests together may hold.
    pub(crate) buffers: Arc<Semaphore>,
    pub(crate) guards: Guards,
    /// The mesh's last word was that this client, or its token, may ask no more.
    pub(crate) unwelcome: AtomicBool,
    pub(crate) traces: Traces,
}

/// A request that was read.
struct Asked {
    call: Call,
    /// Whose local token it came with.
    who: Option<String>,
    headers: HeaderMap,
    tracing: Option<Tracing>,
    /// What guards did with the prompt.
    notes: Vec<Note>,
    /// Over HTTP/1.0, where the end of a connection is all that ends a body of no announced length.
    old: bool,
}

impl Asked {
    fn of(&self) -> guards::Of<'_> {
        let (model, operation) = (self.call.model(), self.call.operation());
        guards::Of { model, operation, request: self.call.expose_body() }
    }

    fn dialect(&self) -> Dialect {
        self.call.dialect()
    }
}

impl Adapter {
    /// Answers one request; never fails.
    pub(crate) async fn answer<B>(self: Arc<Self>, request: http::Request<B>) -> Response<Reply>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
    {
        let (parts, body) = request.into_parts();
        match (&parts.method, parts.uri.path()) {
            (&(Method::GET | Method::HEAD), "/healthz") => return self.health(),
            // A page whose name was made to resolve here reads what it is given, without an origin.
            (&Method::GET, "/metrics") if self.gate.knows_host(&parts.headers) => {
                self.metrics.spans(self.traces.counts());
                let text = self.metrics.text(self.book.open_count());
                return plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text);
            }
            _ => {}
        }
        let dialect = api::dialect_of(parts.uri.path(), &parts.headers);
        let array = api::wants_array(&parts);
        // Whoever waits for `100 Continue` has sent nothing yet, and reads the refusal first.
        let waits = parts.headers.contains_key(header::EXPECT);
        let mut body = body;
        let mut told = Told::default();
        match self.serve(parts, &mut body, &mut told).await {
            Ok(response) => response,
            Err((failure, known)) => {
                if !waits && failure.status != StatusCode::REQUEST_TIMEOUT {
                    drain(&mut body).await;
                }
                self.metrics.refused(&failure.code);
                if let Some(tracing) = told.tracing {
                    let code = Attribute::Error(Name::new(&self.metrics.known(&failure.code)));
                    tracing.end(told.operation, &told.model, vec![code]);
                }
                told_to(&failure, known.unwrap_or(dialect), array)
            }
        }
    }

    fn health(&self) -> Response<Reply> {
        match self.upstream.health() {
            Ok(()) => plain(StatusCode::OK, "text/plain", "ok\n".into()),
            Err(error) => {
                let text = format!("{}\n", quorate_client::chain(&error));
                plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
            }
        }
    }

    async fn serve<B>(
        &self,
        parts: Parts,
        body: &mut B,
        told: &mut Told,
    ) -> Result<Response<Reply>, (Failure, Option<Dialect>)>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
    {
        let begun = Instant::now();
        let (path, query) = (parts.uri.path(), parts.uri.query());
        // Browsers send no key with a preflight, which gets nothing but a refusal.
        let preflight = parts.method == Method::OPTIONS && matches!(self.gate, Gate::Tokens(_));
        let who = match preflight {
            true => None,
            false => self.gate.check(&parts.headers, query).map_err(|f| (f, None))?.map(str::to_owned),
        };
        let endpoint = api::endpoint(&parts.method, path, query, &parts.headers).map_err(|f| (f, None))?;
        let dialect = endpoint.operation.dialect();
        let known = |failure| (failure, Some(dialect));
        if let Operation::Models(dialect) = endpoint.operation {
            return self.models(dialect, endpoint.model.as_deref()).await.map_err(known);
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let failure = Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_requests_at_once",
                "this adapter serves as many requests at once as its limits allow",
                "try again in a moment, or raise limits.requests_max",
            );
            known(failure.later(BUSY_RETRY_AFTER))
        })?;
        let mut in_flight = InFlight::new(self.metrics.clone(), place, self.buffers.clone());
        let tracing = Tracing::begin(&self.traces, &parts.headers);
        *told =
            Told { tracing: tracing.clone(), operation: endpoint.operation.name(), model: "other".into() };
        let body = self.read(&parts.headers, body, &mut in_flight).await.map_err(known)?;
        let call = Call::read(endpoint.clone(), body).map_err(|e| known(of_dialect(&e).0))?;
        let old = parts.version < http::Version::HTTP_11;
        let mut asked = Asked { call, who, headers: parts.headers, tracing, notes: vec![], old };
        if self.table.is_configured(asked.call.model()) {
            asked.call.model().clone_into(&mut told.model);
        }
        self.guard_prompt(&mut asked, endpoint).await.map_err(known)?;
        self.ask(asked, begun, in_flight).await.map_err(known)
    }

    /// Has guards look at the prompt, and puts what they changed in its place.
    async fn guard_prompt(
        &self,
        asked: &mut Asked,
        endpoint: quorate_dialects::Endpoint,
    ) -> Result<(), Failure> {
        if asked.call.stream() && self.guards.has_answer_rules(asked.call.model()) {
            let readable = !matches!(asked.call.operation(), Operation::Converse { .. });
            if self.guards.streams == StreamsUnder::Refuse || !readable {
                return Err(Failure::new(
                    StatusCode::BAD_REQUEST,
                    "guard_stream_refused",
                    "answers of this model are guarded, and what was streamed cannot be called back",
                    "ask without streaming, or set guards.streams = \"buffer\" in the adapter's configuration",
                ));
            }
        }
        let passed = self.guards.prompt(asked.of()).await;
        let Passed { body, notes } = self.noted("prompt", passed)?;
        // The same memory: nothing was replaced.
        if body.as_ptr() != asked.call.expose_body().as_ptr() {
            asked.call = Call::read(endpoint, body).map_err(|e| of_dialect(&e).0)?;
        }
        asked.notes = notes;
        Ok(())
    }

    /// Counts what guards did.
    fn noted(&self, side: &'static str, looked: Result<Passed, Box<Blocked>>) -> Result<Passed, Failure> {
        let notes = match &looked {
            Ok(passed) => &passed.notes,
            Err(blocked) => &blocked.notes,
        };
        notes.iter().for_each(|note| self.metrics.guarded(&note.rule, side, note.did));
        looked.map_err(|blocked| {
            let guards = said_of(&blocked.notes).map(String::into_boxed_str);
            Failure { guards, ..blocked.failure }
        })
    }

    /// Has guards look at an answer, held until it is whole. A provider's error is one too: it may quote the prompt.
    async fn guard_answer(
        &self,
        asked: &Asked,
        response: Response<Reply>,
        more: &mut Option<Watch>,
    ) -> Result<Response<Reply>, Failure> {
        let mut response = response;
        let mut notes = asked.notes.clone();
        if self.guards.has_answer_rules(asked.call.model()) {
            let content_type = response.headers().get(header::CONTENT_TYPE);
            let form = match content_type.is_some_and(is_events) {
                _ if response.status().as_u16() >= 400 => guards::Form::Error,
                true => guards::Form::Events,
                false if asked.call.is_json_array() => guards::Form::Items,
                false => guards::Form::Document,
            };
            let body = match response.body_mut() {
                Reply::Whole(body) => body.clone().unwrap_or_default(),
                Reply::Live(live) => {
                    live.whole(TRANSLATED_BYTES_MAX).await.inspect_err(|f| live.watch.failed(&f.code))?
                }
            };
            let looked = self.guards.answer(asked.of(), &body, form).await;
            match self.noted("answer", looked) {
                Ok(passed) => {
                    notes.extend(passed.notes);
                    *response.body_mut() = Reply::Whole(Some(passed.body));
                    response.headers_mut().remove(header::CONTENT_LENGTH);
                }
                Err(failure) if form == guards::Form::Error => {
                    return Ok(kept_back(asked, response, failure));
                }
                Err(failure) => {
                    match response.body_mut() {
                        Reply::Live(live) => live.watch.failed(&failure.code),
                        Reply::Whole(_) => more.iter_mut().for_each(|watch| watch.failed(&failure.code)),
                    }
                    return Err(failure);
                }
            }
        }
        if let Some(Ok(said)) = said_of(&notes).map(|said| HeaderValue::from_str(&said)) {
            response.headers_mut().insert(guards::GUARD_HEADER, said);
        }
        Ok(response)
    }

    async fn ask(
        &self,
        asked: Asked,
        begun: Instant,
        in_flight: InFlight,
    ) -> Result<Response<Reply>, Failure> {
        let routes = self.upstream.routes().await.map_err(|e| Failure::of(&e))?;
        let needs = Needs::of(&asked.call);
        let of = (asked.dialect(), asked.call.model());
        let plan = self.table.plan(of, &routes, &self.book, needs, &mut dice, begun)?;
        let mut prepared = Vec::with_capacity(plan.targets.len());
        let mut refusal = None;
        for target in &plan.targets {
            match prepare(&asked, target, plan.repeat_unanswered) {
                Ok(request) => prepared.push(Prepared { target: target.clone(), request }),
                // What is wrong for every route is wrong.
                Err((failure, true)) => return Err(failure),
                Err((failure, false)) => refusal = refusal.or(Some(failure)),
            }
        }
        if prepared.is_empty() {
            return Err(refusal.unwrap_or_else(|| Failure::of(&Error::Closed)));
        }
        let leave = self.cache.as_ref().map(|c| c.leave(&asked.call, &asked.headers));
        // Who may not ask may not hear again either.
        if leave.is_some_and(|l| l.read)
            && self.upstream.may_ask().is_ok()
            && !self.unwelcome.load(Ordering::Relaxed)
            && let Some((response, target)) = self.kept(&asked, &prepared).await
        {
            let mut watch = Some(self.watch(&asked, target, begun, in_flight));
            let hit = Attribute::CacheHit(true);
            watch.iter_mut().for_each(|w| w.tracing.iter_mut().for_each(|(_, said)| said.push(hit.clone())));
            return self.guard_answer(&asked, response, &mut watch).await;
        }
        let mut throw = dice;
        let outcome = attempt::run(self.upstream.as_ref(), &plan, &prepared, &self.book, &mut throw).await;
        match &outcome.ended {
            // A token that was revoked is known to the nodes alone.
            Ended::Failed(error) if UNWELCOME.contains(&error.code()) => {
                self.unwelcome.store(true, Ordering::Relaxed)
            }
            Ended::Answered(_) => self.unwelcome.store(false, Ordering::Relaxed),
            _ => {}
        }
        for tried in &outcome.tried {
            let target = prepared.get(tried.target).map(|p| &p.target);
            let route = target.map_or("", |t| t.route.name.as_str());
            self.metrics.attempted(route, came_to(tried.came));
            if let Some((tracing, target)) = asked.tracing.as_ref().zip(target) {
                tracing.attempt(target, tried);
            }
        }
        let Some(prepared) = prepared.get(outcome.target) else { return Err(Failure::of(&Error::Closed)) };
        let watch = self.watch(&asked, &prepared.target, begun, in_flight);
        let idle = Duration::from_millis(plan.tries.idle_ms);
        self.respond(&asked, (prepared, idle), outcome.ended, &outcome.tried, watch).await
    }

    /// An answer from the cache, by whichever of the targets.
    async fn kept<'a>(&self, asked: &Asked, all: &'a [Prepared]) -> Option<(Response<Reply>, &'a Target)> {
        let cache = self.cache.as_ref()?;
        for Prepared { target, request } in all {
            let place = (target.route.name.as_str(), target.model.as_str());
            let name = cache.name(asked.who.as_deref(), place, &asked.call, &request.headers);
            let Some((meta, body)) = cache.get(&name).await else { continue };
            let mut response = Response::new(Reply::Whole(Some(body)));
            let mut put = |name: &'static str, value: &str| {
                if let Ok(value) = HeaderValue::from_str(value) {
                    response.headers_mut().insert(HeaderName::from_static(name), value);
                }
            };
            put("content-type", &meta.content_type);
            put("x-quorate-request", &meta.request);
            put("x-quorate-route", &meta.route);
            put("x-quorate-cache", "hit");
            put("age", &cache::now().saturating_sub(meta.created).to_string());
            self.metrics.cache_hits.inc();
            return Some((response, target));
        }
        self.metrics.cache_misses.inc();
        None
    }

    /// Where an answer is to be kept, if it may be.
    fn keep(&self, asked: &Asked, by: &Prepared, answer: &Answer, content_type: &str) -> Option<Keep> {
        let Prepared { target, request } = by;
        let cache = self.cache.as_ref()?;
        let Leave { write, .. } = cache.leave(&asked.call, &asked.headers);
        if !write || answer.status != StatusCode::OK || !cache::may_keep(&answer.headers) {
            return None;
        }
        let meta = Meta {
            created: cache::now(),
            content_type: content_type.to_owned(),
            request: answer.provenance.request.to_string(),
            route: target.route.name.clone(),
        };
        let place = (target.route.name.as_str(), target.model.as_str());
        let name = cache.name(asked.who.as_deref(), place, &asked.call, &request.headers);
        Some(Keep { cache: cache.clone(), name, meta, body: Vec::new(), proof: None })
    }

    fn watch(&self, asked: &Asked, target: &Target, begun: Instant, in_flight: InFlight) -> Watch {
        let model = asked.call.model();
        let named = self.table.is_configured(model) || target.route.names(model);
        let labels = Labels {
            gen_ai_operation_name: asked.call.operation().name(),
            gen_ai_provider_name: target.route.dialect.name(),
            gen_ai_request_model: if named { model.to_owned() } else { "other".into() },
            quorate_route: target.route.name.clone(),
            error_type: String::new(),
        };
        let tracing = asked.tracing.clone().map(|tracing| {
            let (host, port) = &target.route.host;
            let mut said = vec![
                Attribute::Stream(asked.call.stream()),
                Attribute::Route(Name::new(&target.route.name)),
                Attribute::ServerAddress(Name::new(host)),
                Attribute::ServerPort(*port),
            ];
            if !asked.notes.is_empty() {
                said.push(Attribute::Guards(asked.notes.iter().map(|n| Name::new(&n.rule)).collect()));
            }
            (tracing, said)
        });
        Watch {
            metrics: self.metrics.clone(),
            labels: Some(labels),
            begun,
            first_byte: None,
            tokens: (0, 0),
            tracing,
            sniff: Sniff::default(),
            response_model: None,
            receipts: None,
            in_flight,
        }
    }

    async fn respond(
        &self,
        asked: &Asked,
        (by, idle): (&Prepared, Duration),
        ended: Ended,
        tried: &[Tried],
        mut watch: Watch,
    ) -> Result<Response<Reply>, Failure> {
        let target = &by.target;
        if let Some((_, said)) = &mut watch.tracing {
            said.push(Attribute::Attempts(tried.len() as u64));
        }
        let answered = match &ended {
            Ended::Answered(answer) => Some(answer.provenance.clone()),
            Ended::Held(held) => Some(held.provenance.clone()),
            Ended::Failed(_) | Ended::TimedOut(..) | Ended::AllOpen(_) => None,
        };
        let chain = Chain::new(answered.as_ref().map(|p| p.request), tried);
        let named = named(target, answered.as_ref(), &chain);
        if let Some(receipts) = &self.receipts
            && !chain.attempts.is_empty()
        {
            watch.receipts = Some((receipts.clone(), self.upstream.clone(), chain));
        }
        let failure = match ended {
            Ended::Answered(answer) => return self.answered(asked, (by, idle), answer, named, watch).await,
            Ended::Held(held) => {
                let response = held_back(asked, target, held, named, watch)?;
                return self.guard_answer(asked, response, &mut None).await;
            }
            Ended::Failed(error) => Failure::of(&error),
            Ended::TimedOut(what, allowed) => {
                let allowed_ms = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX);
                let mut failure = Failure::of(&Error::TimedOut { what, allowed_ms });
                // Nothing left for a provider.
                failure.again = chain_is_empty(tried);
                failure
            }
            Ended::AllOpen(left) => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "circuit_open",
                "every route of this model failed lately, and one request finds out whether that is over",
                "try again in a moment",
            )
            .later(left),
        };
        watch.failed(&failure.code);
        self.metrics.refused(&failure.code);
        let mut response = told_to(&failure, asked.dialect(), asked.call.is_json_array());
        response.headers_mut().extend(named);
        Ok(response)
    }

    async fn answered(
        &self,
        asked: &Asked,
        (by, idle): (&Prepared, Duration),
        answer: Answer,
        named: HeaderMap,
        mut watch: Watch,
    ) -> Result<Response<Reply>, Failure> {
        let target = &by.target;
        if answer.status.as_u16() >= 400 {
            watch.failed(answer.status.as_str());
        }
        let dialect = asked.dialect();
        let counted = asked.call.stream() && !target.route.prices.is_empty();
        if target.route.dialect == dialect && !counted && !asked.call.is_json_array() {
            let is_events = answer.headers.get(header::CONTENT_TYPE).is_some_and(is_events);
            let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let mut keep = self.keep(asked, by, &answer, content_type.unwrap_or("application/json"));
            if let Some(keep) = keep.as_mut().filter(|_| asked.call.stream()) {
                keep.proof =
                    Some(Box::new(translator(asked, target).inspect_err(|f| watch.failed(&f.code))?));
            }
            let mut response = Response::new(Reply::Whole(None));
            *response.status_mut() = answer.status;
            *response.headers_mut() = kept(answer.headers);
            response.headers_mut().extend(named);
            let events = is_events.then_some(asked.call.operation());
            let length = response.headers().contains_key(header::CONTENT_LENGTH);
            *response.body_mut() = live(answer.body, None, (events, false), idle, keep, watch);
            if let Reply::Live(live) = response.body_mut()
                && asked.old
                && events.is_none()
                && !length
            {
                // One that broke off would look whole.
                let whole =
                    live.whole(TRANSLATED_BYTES_MAX).await.inspect_err(|f| live.watch.failed(&f.code))?;
                *response.body_mut() = Reply::Whole(Some(whole));
            }
            return self.guard_answer(asked, response, &mut None).await;
        }
        let mut translator = Box::new(translator(asked, target).inspect_err(|f| watch.failed(&f.code))?);
        let given = pairs(&answer.headers);
        let head = translator.head(answer.status.as_u16(), &given);
        if head.stream {
            let content_type = head.headers.iter().find(|(name, _)| name == "content-type");
            let content_type = content_type.map_or("text/event-stream", |(_, value)| value.as_str());
            let keep = self.keep(asked, by, &answer, content_type);
            let mut response = built(head.status, &head.headers, Reply::Whole(None))?;
            response.headers_mut().extend(named);
            let events = (Some(asked.call.operation()), asked.call.is_json_array());
            *response.body_mut() = live(answer.body, Some(translator), events, idle, keep, watch);
            return self.guard_answer(asked, response, &mut None).await;
        }
        let status = answer.status.as_u16();
        let content_type = match head.headers.iter().find(|(name, _)| name == "content-type") {
            Some((_, content_type)) if asked.call.stream() => content_type.as_str(),
            _ => "application/json",
        };
        let keep = self.keep(asked, by, &answer, content_type);
        let body =
            collect(answer, idle, &mut watch.in_flight).await.inspect_err(|f| watch.failed(&f.code))?;
        let whole = translator.whole(status, &given, body).map_err(|e| of_dialect(&e).0);
        let whole = whole.inspect_err(|f| watch.failed(&f.code))?;
        if let Some(usage) = translator.outcome().usage {
            watch.tokens = (usage.input, usage.output);
        }
        watch.response_model = translator.outcome().model.as_deref().map(Name::new);
        watch.first_byte = Some(Instant::now());
        if let Some(mut keep) = keep {
            keep.push(&whole.body);
            keep.whole();
        }
        let mut response = built(whole.status, &whole.headers, Reply::Whole(Some(whole.body)))?;
        response.headers_mut().extend(named);
        self.guard_answer(asked, response, &mut Some(watch)).await
    }

    async fn models(&self, dialect: Dialect, one: Option<&str>) -> Result<Response<Reply>, Failure> {
        let routes = self.upstream.routes().await.map_err(|e| Failure::of(&e))?;
        let listed = routes.iter().flat_map(|r| r.models.iter().map(String::as_str)).filter(|m| *m != "*");
        let names: BTreeSet<&str> = listed.chain(self.table.names()).collect();
        let model = |id: &str| models::Model { id: id.to_owned(), created: 0 };
        let body = match one {
            None => models::list(dialect, &names.into_iter().map(model).collect::<Vec<_>>()),
            Some(name) if names.contains(name) || routes.iter().any(|r| r.takes_any()) => {
                models::one(dialect, &model(name))
            }
            Some(name) => return Err(Failure::of(&Error::UnknownModel { model: name.to_owned() })),
        };
        let mut response = Response::new(Reply::Whole(Some(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    async fn read<B>(
        &self,
        headers: &HeaderMap,
        body: &mut B,
        in_flight: &mut InFlight,
    ) -> Result<Bytes, Failure>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
    {
        let bound = self.limits.body_bytes_max;
        let json = headers.get(header::CONTENT_TYPE).is_some_and(|v| {
            let kind = v.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            kind.trim().eq_ignore_ascii_case("application/json")
        });
        if !json {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
                "the content-type is not application/json",
                "send JSON",
            ));
        }
        let plain = headers.get(header::CONTENT_ENCODING).is_none_or(|v| v == "identity");
        if !plain {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "encoding_not_supported",
                "the body is compressed",
                "send it as it is",
            ));
        }
        match tokio::time::timeout(BODY_TIME_MAX, gather(body, bound, in_flight)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(Gather::TooLarge)) => Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body has more than {bound} bytes"),
                "send less, or raise limits.body_bytes_max",
            )),
            Ok(Err(Gather::NoRoom)) => Err(Failure::no_room()),
            Ok(Err(Gather::Ended)) => Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "body_cut_off",
                "the body ended early",
                "send all of it",
            )),
            Err(_) => Err(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                "the body was not there in time",
                "send it at once",
            )),
        }
    }
}

fn chain_is_empty(tried: &[Tried]) -> bool {
    tried.iter().all(|t| t.trail.is_empty())
}

enum Gather {
    TooLarge,
    NoRoom,
    Ended,
}

/// What is told of a request that had no answer.
#[derive(Default)]
struct Told {
    tracing: Option<Tracing>,
    operation: &'static str,
    model: String,
}

/// The value of the header that names guards.
fn said_of(notes: &[Note]) -> Option<String> {
    let each: Vec<String> = notes.iter().map(|note| format!("{}={}", note.rule, note.did)).collect();
    (!each.is_empty()).then(|| each.join(", "))
}

fn is_events(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().get(..17).is_some_and(|v| v.eq_ignore_ascii_case(b"text/event-stream"))
}

async fn gather<B>(body: &mut B, bound: usize, in_flight: &mut InFlight) -> Result<Bytes, Gather>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > bound as u64 {
        return Err(Gather::TooLarge);
    }
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = next_frame(body).await {
        let Ok(data) = frame.map_err(|_| Gather::Ended)?.into_data() else { continue };
        if first.len() + more.len() + data.len() > bound {
            return Err(Gather::TooLarge);
        }
        in_flight.hold(first.len() + more.len() + data.len()).map_err(|NoRoom| Gather::NoRoom)?;
        // Most bodies come in one piece and are not copied.
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

async fn next_frame<B>(body: &mut B) -> Option<Result<hyper::body::Frame<Bytes>, B::Error>>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await
}

/// Takes what is left of a body that was refused: many clients read no answer before they have sent all, and would find their
/// connection reset in place of the reason.
async fn drain<B>(body: &mut B)
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > DRAIN_BYTES_MAX {
        return;
    }
    let all = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = next_frame(body).await {
            let taken = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(taken) else { break };
            left = rest;
        }
    };
    let _late = tokio::time::timeout(DRAIN_TIME_MAX, all).await;
}

/// The answer to a request that failed.
fn told_to(failure: &Failure, dialect: Dialect, array: bool) -> Response<Reply> {
    let response = if array { failure.response_in_array() } else { failure.response(dialect) };
    response.map(|body| Reply::Whole(Some(body)))
}

fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Some(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A number in 0..1. Without randomness the first is taken.
fn dice() -> f64 {
    let mut bytes = [0; 4];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// The request for one target; `true` with a failure that no other target mends.
fn prepare(asked: &Asked, target: &Target, repeat: bool) -> Result<Request, (Failure, bool)> {
    let route: &Route = &target.route;
    let said = asked.call.for_route(&aim(target)).map_err(|e| of_dialect(&e))?;
    let mut headers: Vec<_> =
        said.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    heed(&asked.headers, asked.dialect(), route, said.passthrough).map_err(|f| (f, false))?;
    if said.passthrough {
        passed_on(&asked.headers, route, &mut headers).map_err(|f| (f, false))?;
    }
    headers.retain(|(name, _)| route.headers.contains(name));
    let path = api::upstream_path(&route.paths, &said.path).ok_or_else(|| {
        let failure = Failure::new(
            StatusCode::NOT_FOUND,
            "operation_not_on_route",
            format!("route {:?} has no path for this operation", route.name),
            "ask an admin to add the path to the route, or use another model",
        );
        (failure, false)
    })?;
    let mut request = Request::post_json(Aim::Route(route.name.clone()), path, said.body);
    request.headers = headers;
    request.price = route.price(&target.model).or_else(|| route.price(asked.call.model()));
    request.tokens_out_max = asked.call.max_output_tokens();
    request.idempotent = repeat || api::is_pure(asked.call.operation());
    Ok(request)
}

fn aim(target: &Target) -> TargetRoute {
    let mut aim = TargetRoute::new(target.route.dialect, target.model.clone());
    aim.flavour = target.flavour;
    // What is paid by tokens must be counted: a stream without usage would be charged at its bound.
    aim.meter = !target.route.prices.is_empty();
    aim
}

fn translator(asked: &Asked, target: &Target) -> Result<AnswerTranslator, Failure> {
    let mut id = [0; 12];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Failure::of(&Error::NoRandomness))?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(AnswerTranslator::new(&asked.call, &aim(target), Stamp { id: hex::encode(id), created }))
}

/// What a translation that failed means, and whether for every route.
fn of_dialect(error: &DialectError) -> (Failure, bool) {
    let failure = |status, code, hint: &str| Failure::new(status, code, error.to_string(), hint);
    match error.fault() {
        Fault::Caller => (failure(StatusCode::BAD_REQUEST, "invalid_request", "correct the request"), true),
        Fault::Route => {
            let hint = "use a model whose provider speaks this API, or leave that out";
            (failure(StatusCode::BAD_REQUEST, "untranslatable", hint), false)
        }
        Fault::Upstream => {
            (failure(StatusCode::BAD_GATEWAY, "provider_answer", "check the route's dialect"), false)
        }
    }
}

/// Refuses headers that change what is asked and cannot go on: the answer would be another than asked for.
fn heed(given: &HeaderMap, caller: Dialect, route: &Route, passes: bool) -> Result<(), Failure> {
    let on_route = |name: &HeaderName| passes && route.headers.iter().any(|h| name == h.as_str());
    for name in given.keys().filter(|name| headers::bears_meaning(name.as_str()) && !on_route(name)) {
        let hint = match name.as_str() {
            "openai-organization" | "openai-project" => {
                "the provider's key is the mesh's and says who pays: unset OPENAI_ORG_ID and OPENAI_PROJECT_ID"
            }
            "idempotency-key" => "leave it out: nothing here promises that a repetition is not done twice",
            _ if passes => "leave it out, or ask an admin to add it to the route's headers",
            _ => "leave it out, or use a model whose provider speaks this API",
        };
        if passes {
            let message = format!("route {:?} does not take the header {name}", route.name);
            return Err(Failure::new(StatusCode::BAD_REQUEST, "header_not_on_route", message, hint));
        }
        for value in given.get_all(name) {
            let text = value.to_str().unwrap_or("(not ASCII)");
            let Some(lost) = headers::lost(caller, name.as_str(), text) else { continue };
            let (dialect, lost): (_, String) = (route.dialect, lost.chars().take(VALUE_CHARS_MAX).collect());
            let message = format!("{dialect} cannot say the header {name}: {lost}");
            return Err(Failure::new(StatusCode::BAD_REQUEST, "header_untranslatable", message, hint));
        }
    }
    Ok(())
}

/// The caller's headers that the route takes.
fn passed_on(given: &HeaderMap, route: &Route, headers: &mut Vec<(String, String)>) -> Result<(), Failure> {
    for name in &route.headers {
        let values =
            given.get_all(name.as_str()).iter().map(HeaderValue::to_str).collect::<Result<Vec<_>, _>>();
        let value = values.map(|values| values.join(", "));
        let value = value.as_deref().map(str::trim).ok().filter(|value| value.len() <= HEADER_VALUE_MAX);
        let Some(value) = value else {
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "header_not_allowed",
                format!("the header {name} is longer than {HEADER_VALUE_MAX} bytes, or not ASCII"),
                "shorten it, or leave it out",
            ));
        };
        if !value.is_empty() {
            headers.retain(|(n, _)| n != name);
            headers.push((name.clone(), value.to_owned()));
        }
    }
    Ok(())
}

/// Headers that say how the answer came.
fn named(target: &Target, answered: Option<&Provenance>, chain: &Chain) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(provenance) = answered {
        put("x-quorate-request", provenance.request.to_string());
        put("x-quorate-relay", provenance.relay.to_string());
        put("x-quorate-keyer", provenance.keyer.to_string());
        put("x-quorate-leaf", provenance.authorised.leaf_index.to_string());
    }
    if !chain.attempts.is_empty() {
        put("x-quorate-attempts", chain.ids());
    }
    put("x-quorate-route", target.route.name.clone());
    headers
}

/// A provider's headers, without those that are not its to set.
fn kept(mut headers: HeaderMap) -> HeaderMap {
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    for name in DROPPED {
        headers.remove(name);
    }
    headers
}

/// Headers that only this process says something by.
fn is_ours(name: &str) -> bool {
    name.starts_with("x-quorate-") || name == "x-should-retry"
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(pair).collect()
}

fn built(status: u16, headers: &[(String, String)], body: Reply) -> Result<Response<Reply>, Failure> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value))
            && name != header::CONTENT_LENGTH
            && !DROPPED.contains(&name.as_str())
            && !is_ours(name.as_str())
        {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}

fn live(
    body: std::pin::Pin<Box<dyn crate::upstream::Body>>,
    translator: Option<Box<AnswerTranslator>>,
    (events, array): (Option<Operation>, bool),
    idle: Duration,
    keep: Option<Keep>,
    watch: Watch,
) -> Reply {
    let (last, silence, over) = (Tail::default(), Silence::default(), false);
    let live = Live { body, translator, events, array, last, over, idle, silence, keep, watch };
    Reply::Live(Box::new(live))
}

async fn collect(mut answer: Answer, idle: Duration, in_flight: &mut InFlight) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    let begun = in_flight.bytes();
    while let Some(piece) =
        tokio::time::timeout(idle, answer.body.next()).await.map_err(|_| Failure::idle(idle))?
    {
        let piece = piece.map_err(|e| Failure::of(&e))?;
        if all.len() + piece.len() > TRANSLATED_BYTES_MAX {
            return Err(Failure::of(&Error::CeilingReached { bound: TRANSLATED_BYTES_MAX as u64 }));
        }
        in_flight.hold(begun + all.len() + piece.len()).map_err(|NoRoom| Failure::no_room())?;
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// A provider's error without what it said, which guards do not let through: its status and when to come back stay.
fn kept_back(asked: &Asked, response: Response<Reply>, failure: Failure) -> Response<Reply> {
    let (mut parts, _) = response.into_parts();
    let message = format!("the provider answered with status {}; {}", parts.status.as_u16(), failure.message);
    let again = ErrorKind::of_status(parts.status.as_u16()).is_retryable();
    let failure = Failure { status: parts.status, message, again, ..failure };
    let (own, body) = told_to(&failure, asked.dialect(), asked.call.is_json_array()).into_parts();
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::ETAG] {
        parts.headers.remove(name);
    }
    // Later entries of one name take the place of earlier ones.
    parts.headers.extend(own.headers);
    Response::from_parts(parts, body)
}

/// A provider's error answer, whole.
fn held_back(
    asked: &Asked,
    target: &Target,
    held: Held,
    named: HeaderMap,
    mut watch: Watch,
) -> Result<Response<Reply>, Failure> {
    watch.failed(held.status.as_str());
    let mut response = if target.route.dialect == asked.dialect() && !asked.call.is_json_array() {
        let mut response = Response::new(Reply::Whole(Some(held.body)));
        *response.status_mut() = held.status;
        *response.headers_mut() = kept(held.headers);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response
    } else {
        let mut translator = translator(asked, target)?;
        let given = pairs(&held.headers);
        let whole =
            translator.whole(held.status.as_u16(), &given, held.body).map_err(|e| of_dialect(&e).0)?;
        built(whole.status, &whole.headers, Reply::Whole(Some(whole.body)))?
    };
    response.headers_mut().extend(named);
    Ok(response)
}

#[cfg(test)]
mod tests;
