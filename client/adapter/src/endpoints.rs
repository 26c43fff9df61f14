//! From an HTTP request to an answer: the order of checks, and what each layer is asked.
//!
//! ```text
//! path -> gate -> place among the requests -> body -> plan -> one request for each target -> attempts -> answer
//! ```
use crate::answer::{InFlight, Keep, Live, Reply, Tail, Watch};
use crate::api;
use crate::attempt::{self, Ended, Held, Prepared, Tried};
use crate::cache::{self, Cache, Leave, Meta};
use crate::config::Limits;
use crate::errors::Failure;
use crate::gate::Gate;
use crate::health::Book;
use crate::metrics::{Labels, Metrics};
use crate::receipts::{Chain, Receipts, came_to};
use crate::routing::{Needs, Table, Target};
use crate::upstream::{Answer, Route, Upstream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use quorate_client::{Error, Provenance, Request, Target as Aim};
use quorate_dialects::{
    AnswerTranslator, Call, Dialect, DialectError, Fault, Operation, Stamp, TargetRoute, models,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Longest time in which a request's body must be there.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// Largest whole answer that is translated.
const TRANSLATED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Said to callers beyond the bound of requests at once.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Largest value of a header that goes on; longer ones no route takes.
const HEADER_VALUE_MAX: usize = 1024;
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
}

/// A request that was read.
struct Asked {
    call: Call,
    /// Whose local token it came with.
    who: Option<String>,
    headers: HeaderMap,
}

impl Asked {
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
            (&Method::GET, "/healthz") => return self.health(),
            (&Method::GET, "/metrics") => {
                let text = self.metrics.text(self.book.open_count());
                return plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text);
            }
            _ => {}
        }
        let dialect = api::dialect_of(parts.uri.path(), &parts.headers);
        match self.serve(parts, body).await {
            Ok(response) => response,
            Err((failure, known)) => {
                self.metrics.refused(&failure.code);
                failure.response(known.unwrap_or(dialect)).map(|b| Reply::Whole(Some(b)))
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

    async fn serve<B>(&self, parts: Parts, body: B) -> Result<Response<Reply>, (Failure, Option<Dialect>)>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
    {
        let begun = Instant::now();
        let (path, query) = (parts.uri.path(), parts.uri.query());
        let who = self.gate.check(&parts.headers, query).map_err(|f| (f, None))?.map(str::to_owned);
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
        let in_flight = InFlight::new(self.metrics.clone(), place);
        let body = self.read(&parts.headers, body).await.map_err(known)?;
        let call = Call::read(endpoint, body).map_err(|e| known(of_dialect(&e).0))?;
        let asked = Asked { call, who, headers: parts.headers };
        self.ask(asked, begun, in_flight).await.map_err(known)
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
        let leave = self.cache.as_ref().map(|c| c.leave(&asked.call, &asked.headers));
        if leave.is_some_and(|l| l.read)
            && let Some(response) = self.kept(&asked, &plan.targets).await
        {
            return Ok(response);
        }
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
        let mut throw = dice;
        let outcome = attempt::run(self.upstream.as_ref(), &plan, &prepared, &self.book, &mut throw).await;
        for tried in &outcome.tried {
            let route = prepared.get(tried.target).map_or("", |p| p.target.route.name.as_str());
            self.metrics.attempted(route, came_to(tried.came));
        }
        let target = prepared.get(outcome.target).map(|p| p.target.clone());
        let Some(target) = target else { return Err(Failure::of(&Error::Closed)) };
        let watch = self.watch(&asked, &target, begun, in_flight);
        self.respond(&asked, &target, outcome.ended, &outcome.tried, watch).await
    }

    /// An answer from the cache, by whichever of the targets.
    async fn kept(&self, asked: &Asked, targets: &[Target]) -> Option<Response<Reply>> {
        let cache = self.cache.as_ref()?;
        for target in targets {
            let name = cache.name(asked.who.as_deref(), (&target.route.name, &target.model), &asked.call);
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
            return Some(response);
        }
        self.metrics.cache_misses.inc();
        None
    }

    /// Where an answer is to be kept, if it may be.
    fn keep(&self, asked: &Asked, target: &Target, answer: &Answer, content_type: &str) -> Option<Keep> {
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
        let name = cache.name(asked.who.as_deref(), (&target.route.name, &target.model), &asked.call);
        Some(Keep { cache: cache.clone(), name, meta, body: Vec::new() })
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
        Watch {
            metrics: self.metrics.clone(),
            labels: Some(labels),
            begun,
            first_byte: None,
            tokens: (0, 0),
            receipts: None,
            _in_flight: in_flight,
        }
    }

    async fn respond(
        &self,
        asked: &Asked,
        target: &Target,
        ended: Ended,
        tried: &[Tried],
        mut watch: Watch,
    ) -> Result<Response<Reply>, Failure> {
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
            Ended::Answered(answer) => return self.answered(asked, target, answer, named, watch).await,
            Ended::Held(held) => return held_back(asked, target, held, named, watch),
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
        let mut response = failure.response(asked.dialect()).map(|b| Reply::Whole(Some(b)));
        response.headers_mut().extend(named);
        Ok(response)
    }

    async fn answered(
        &self,
        asked: &Asked,
        target: &Target,
        answer: Answer,
        named: HeaderMap,
        mut watch: Watch,
    ) -> Result<Response<Reply>, Failure> {
        if answer.status.as_u16() >= 400 {
            watch.failed(answer.status.as_str());
        }
        let dialect = asked.dialect();
        let counted = asked.call.stream() && !target.route.prices.is_empty();
        if target.route.dialect == dialect && !counted {
            let is_events = answer.headers.get(header::CONTENT_TYPE).is_some_and(|v| {
                v.as_bytes().get(..17).is_some_and(|v| v.eq_ignore_ascii_case(b"text/event-stream"))
            });
            let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let keep = self.keep(asked, target, &answer, content_type.unwrap_or("application/json"));
            let mut response = Response::new(Reply::Whole(None));
            *response.status_mut() = answer.status;
            *response.headers_mut() = kept(answer.headers);
            response.headers_mut().extend(named);
            let events = is_events.then_some(asked.call.operation());
            *response.body_mut() = live(answer.body, None, events, keep, watch);
            return Ok(response);
        }
        let mut translator = Box::new(translator(asked, target)?);
        let given = pairs(&answer.headers);
        let head = translator.head(answer.status.as_u16(), &given);
        if head.stream {
            let content_type = head.headers.iter().find(|(name, _)| name == "content-type");
            let content_type = content_type.map_or("text/event-stream", |(_, value)| value.as_str());
            let keep = self.keep(asked, target, &answer, content_type);
            let mut response = built(head.status, &head.headers, Reply::Whole(None))?;
            response.headers_mut().extend(named);
            *response.body_mut() =
                live(answer.body, Some(translator), Some(asked.call.operation()), keep, watch);
            return Ok(response);
        }
        let status = answer.status.as_u16();
        let keep = self.keep(asked, target, &answer, "application/json");
        let body = collect(answer).await.map_err(|e| Failure::of(&e))?;
        let whole = translator.whole(status, &given, body).map_err(|e| of_dialect(&e).0)?;
        if let Some(usage) = translator.outcome().usage {
            watch.tokens = (usage.input, usage.output);
        }
        watch.first_byte = Some(Instant::now());
        if let Some(mut keep) = keep {
            keep.push(&whole.body);
            keep.whole();
        }
        let mut response = built(whole.status, &whole.headers, Reply::Whole(Some(whole.body)))?;
        response.headers_mut().extend(named);
        Ok(response)
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

    async fn read<B>(&self, headers: &HeaderMap, body: B) -> Result<Bytes, Failure>
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
        match tokio::time::timeout(BODY_TIME_MAX, gather(body, bound)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(Gather::TooLarge)) => Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body has more than {bound} bytes"),
                "send less, or raise limits.body_bytes_max",
            )),
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
    Ended,
}

async fn gather<B>(mut body: B, bound: usize) -> Result<Bytes, Gather>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > bound as u64 {
        return Err(Gather::TooLarge);
    }
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|_| Gather::Ended)?.into_data() else { continue };
        if first.len() + more.len() + data.len() > bound {
            return Err(Gather::TooLarge);
        }
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

/// The caller's headers that the route takes. One that changes what is asked, but that the route does not take, is refused:
/// the answer would be another than asked for.
fn passed_on(given: &HeaderMap, route: &Route, headers: &mut Vec<(String, String)>) -> Result<(), Failure> {
    for name in quorate_dialects::headers::forwarded(route.dialect) {
        if given.contains_key(*name) && !route.headers.iter().any(|h| h == name) {
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "header_not_on_route",
                format!("route {:?} does not take the header {name}", route.name),
                "leave it out, or ask an admin to add it to the route's headers",
            ));
        }
    }
    for name in &route.headers {
        let values: Vec<&str> = given.get_all(name.as_str()).iter().filter_map(|v| v.to_str().ok()).collect();
        let value = values.join(", ");
        let value = value.trim();
        if !value.is_empty() && value.len() <= HEADER_VALUE_MAX {
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

fn kept(mut headers: HeaderMap) -> HeaderMap {
    for name in DROPPED {
        headers.remove(name);
    }
    headers
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
        {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}

fn live(
    body: std::pin::Pin<Box<dyn crate::upstream::Body>>,
    translator: Option<Box<AnswerTranslator>>,
    events: Option<Operation>,
    keep: Option<Keep>,
    watch: Watch,
) -> Reply {
    Reply::Live(Box::new(Live { body, translator, events, last: Tail::default(), over: false, keep, watch }))
}

async fn collect(mut answer: Answer) -> Result<Bytes, Error> {
    let mut all = BytesMut::new();
    while let Some(piece) = answer.body.next().await {
        let piece = piece?;
        if all.len() + piece.len() > TRANSLATED_BYTES_MAX {
            return Err(Error::CeilingReached { bound: TRANSLATED_BYTES_MAX as u64 });
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
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
    let mut response = if target.route.dialect == asked.dialect() {
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
