//! What requests go to: the mesh, or in tests something that plays it.
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use http::{HeaderMap, StatusCode};
use quorate_client::{Client, Error, PoolOptions, Provenance, Request, ResponseBody, Target, TrustFile};
use quorate_core::ids::{ClientId, PolicyVersion, PriceId, RequestId, RouteId, Timestamp};
use quorate_core::policy::Price;
use quorate_dialects::{Dialect, Flavour};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Headers that every route takes.
const HEADERS_ALWAYS: [&str; 2] = ["content-type", "accept"];
/// How long a request that comes before the mesh was found waits for it.
const FOUND_WAIT: Duration = Duration::from_secs(10);
/// Between tries to find it.
const FIND_PAUSE: Duration = Duration::from_millis(500);
const FIND_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Before the log is asked once more for a request that came to nothing.
const RECEIPT_PAUSE: Duration = Duration::from_secs(1);
/// Routes whose connections are opened ahead at start.
const WARM_ROUTES_MAX: usize = 8;

/// A granted route, as far as requests are made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Name.
    pub name: String,
    /// Its provider's host and port.
    pub host: (String, u16),
    /// Whose API its provider speaks.
    pub dialect: Dialect,
    /// Models it names; `*` for any.
    pub models: Vec<String>,
    /// Paths it lists.
    pub paths: Vec<String>,
    /// Headers that may be set.
    pub headers: Vec<String>,
    /// Whose server it likely is.
    pub flavour: Flavour,
    /// Rows of the policy's price table that are for it.
    pub prices: Vec<Price>,
}

impl Route {
    /// Whether the policy names the model for this route.
    pub fn names(&self, model: &str) -> bool {
        self.models.iter().any(|m| m == model)
    }

    /// The row that a request for this model is paid by; where the client finds it itself, none.
    pub fn price(&self, model: &str) -> Option<PriceId> {
        self.prices.iter().find(|p| p.is_for(model)).map(|p| p.id.clone())
    }

    /// Whether it takes any model.
    pub fn takes_any(&self) -> bool {
        self.names("*")
    }
}

/// All granted routes, shared.
pub type Routes = Arc<Vec<Arc<Route>>>;

/// An answer's body as it arrives; dropping it cancels the request.
pub trait Body: Stream<Item = Result<Bytes, Error>> + Send {
    /// Tokens in and out as far as known by now.
    fn tokens(&self) -> (u64, u64);
}

impl Body for ResponseBody {
    fn tokens(&self) -> (u64, u64) {
        Self::tokens(self)
    }
}

/// An answer whose head has arrived.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers, as the provider sent them.
    pub headers: HeaderMap,
    /// How it came.
    pub provenance: Provenance,
    /// The rest.
    pub body: Pin<Box<dyn Body>>,
}

/// What carries requests. Dropping a future, or an answer, cancels the request.
pub trait Upstream: Send + Sync + 'static {
    /// Granted routes by the policy in force, in the grant's order.
    fn routes(&self) -> BoxFuture<'_, Result<Routes, Error>>;
    /// Sends one request and gives its answer as soon as the answer's head is there.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, Error>>;
    /// The verified receipt of a request, as text, and whether the request is settled: one whose relay was lost is not, for minutes.
    /// Waits for that only if it was `answered`: of others the log may never hear.
    fn receipt(&self, request: RequestId, answered: bool) -> BoxFuture<'_, Result<(String, bool), Error>>;
    /// Why requests cannot be served now, if so.
    fn health(&self) -> Result<(), Error>;
    /// Why a request of this client would be refused now, so far as is known without asking: what is known is too old, or says that
    /// the client's grant or token is over.
    fn may_ask(&self) -> Result<(), Error> {
        self.health()
    }
    /// Waits until reports of ended requests have gone out.
    fn flush(&self) -> BoxFuture<'_, ()>;
}

type Found = Option<Result<Client, Error>>;

/// The mesh. It is looked for in the background from the start, for as long as it takes.
pub struct Mesh {
    found: watch::Receiver<Found>,
    who: (ClientId, Option<Timestamp>),
    routes: Mutex<Option<(PolicyVersion, Routes)>>,
    warmed: OnceLock<()>,
}

impl Mesh {
    /// Begins to look for the mesh of a trust file.
    pub fn find(trust: TrustFile, options: PoolOptions) -> Self {
        let (tell, found) = watch::channel(None);
        let who = (trust.client.clone(), trust.token.as_ref().map(|t| t.token.expires));
        tokio::spawn(async move {
            let mut pause = FIND_PAUSE;
            loop {
                let outcome = Client::connect_with(trust.clone(), options.clone()).await;
                let done = outcome.is_ok();
                if let Err(error) = &outcome {
                    let error = quorate_client::chain(error);
                    tracing::warn!(error, "the mesh was not found; it is looked for again");
                }
                if tell.send(Some(outcome)).is_err() || done {
                    // Keeps the last value readable.
                    tell.closed().await;
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FIND_PAUSE_MAX);
            }
        });
        Self { found, who, routes: Mutex::default(), warmed: OnceLock::new() }
    }

    /// Waits until the mesh was found.
    pub async fn wait(&self) {
        let mut found = self.found.clone();
        let _ended = found.wait_for(|f| matches!(f, Some(Ok(_)))).await;
    }

    /// Opens connections ahead for the routes that are granted, each in the background.
    pub async fn warm_up(&self) {
        let Ok(client) = self.client().await else { return };
        if self.warmed.set(()).is_err() {
            return;
        }
        for route in client.granted_routes().unwrap_or_default().into_iter().take(WARM_ROUTES_MAX) {
            let client = client.clone();
            tokio::spawn(async move {
                if let Err(error) = client.warm_up(&Target::Route(route.as_str().to_owned())).await {
                    let error = quorate_client::chain(&error);
                    tracing::warn!(%route, error, "no connection could be opened ahead");
                }
            });
        }
    }

    async fn client(&self) -> Result<Client, Error> {
        if let Some(Ok(client)) = &*self.found.borrow() {
            return Ok(client.clone());
        }
        let mut found = self.found.clone();
        let there = found.wait_for(|f| matches!(f, Some(Ok(_))));
        if let Ok(Ok(found)) = tokio::time::timeout(FOUND_WAIT, there).await
            && let Some(Ok(client)) = &*found
        {
            return Ok(client.clone());
        }
        match &*self.found.borrow() {
            Some(Ok(client)) => Ok(client.clone()),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::NoNode(vec![])),
        }
    }
}

fn route_of(client: &Client, id: &RouteId) -> Option<Route> {
    let directory = client.directory();
    let document = &directory.route(id)?.document;
    let dialect = Dialect::from_name(&document.dialect)?;
    let own: &[&str] = if dialect == Dialect::Anthropic { &["anthropic-version"] } else { &[] };
    let prices = directory.verified().policy.prices.values();
    let always = HEADERS_ALWAYS.iter().chain(own).map(|name| (*name).to_owned());
    Some(Route {
        name: document.name.clone(),
        host: (document.host.clone(), document.port),
        dialect,
        models: document.models.clone(),
        paths: document.paths.clone(),
        headers: always.chain(document.headers.iter().cloned()).collect(),
        flavour: Flavour::of_host(&document.host),
        prices: prices.filter(|p| p.routes.contains(id)).cloned().collect(),
    })
}

impl Upstream for Mesh {
    fn routes(&self) -> BoxFuture<'_, Result<Routes, Error>> {
        async {
            let client = self.client().await?;
            let version = client.directory().verified().policy.version;
            let mut kept = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((of, routes)) = &*kept
                && *of == version
            {
                return Ok(routes.clone());
            }
            let granted = client.granted_routes()?;
            let routes: Vec<_> =
                granted.iter().filter_map(|id| route_of(&client, id)).map(Arc::new).collect();
            let routes = Arc::new(routes);
            *kept = Some((version, routes.clone()));
            Ok(routes)
        }
        .boxed()
    }

    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, Error>> {
        async {
            let response = self.client().await?.request(request).await?;
            Ok(Answer {
                status: response.status,
                headers: response.headers,
                provenance: response.provenance,
                body: Box::pin(response.body),
            })
        }
        .boxed()
    }

    fn receipt(&self, request: RequestId, answered: bool) -> BoxFuture<'_, Result<(String, bool), Error>> {
        async move {
            let client = self.client().await?;
            if answered {
                match client.receipt(request).await {
                    Ok(receipt) => return Ok((receipt.to_text(), true)),
                    Err(Error::NotSettled { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let mut found = client.receipt_so_far(request).await;
            if !answered && found.is_err() {
                // A node that is behind may hear of it yet; most of these were refused.
                tokio::time::sleep(RECEIPT_PAUSE).await;
                found = client.receipt_so_far(request).await;
            }
            found.map(|(receipt, settled)| (receipt.to_text(), settled))
        }
        .boxed()
    }

    fn health(&self) -> Result<(), Error> {
        match &*self.found.borrow() {
            Some(Ok(client)) => client.check_fresh(),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::NoNode(vec![])),
        }
    }

    fn may_ask(&self) -> Result<(), Error> {
        self.health()?;
        let found = self.found.borrow();
        let Some(Ok(client)) = &*found else { return Err(Error::NoNode(vec![])) };
        let (name, token_ends) = &self.who;
        let directory = client.directory();
        let grant = directory.verified().policy.clients.get(name);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = Timestamp(u64::try_from(since).unwrap_or(u64::MAX));
        let stands =
            grant.is_some_and(|g| !g.revoked && g.expires > now) && token_ends.is_none_or(|end| end > now);
        if stands { Ok(()) } else { Err(Error::UnknownClient { name: name.as_str().to_owned() }) }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        async {
            let client = match &*self.found.borrow() {
                Some(Ok(client)) => client.clone(),
                _ => return,
            };
            client.flush().await;
        }
        .boxed()
    }
}
