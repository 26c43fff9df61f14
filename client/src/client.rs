//! The client: first contact, the verified directory and its refresh, reports and receipts.
use crate::directory::{Directory, now};
use crate::error::{Darkness, Error, NodeFailure, Retry, chain, status_text};
use crate::pool::{Lane, PoolOptions, RouteLanes, lock};
use crate::request::{Request, Target};
use crate::response::Response;
use crate::shun::Shunned;
use crate::trust::{ClientKey, TrustError, TrustFile};
use crate::wire::{mesh_client, random_id};
use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::command::{
    ClientCommand, ClientSigned, Command, NodeCommand, NodeSigned, REPORTS_MAX, Report,
};
use quorate_core::crypto::encode;
use quorate_core::ids::{NodeId, RequestId, RouteId, TokenId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::proof::{LeafCertificate, Proof, Receipt, Verified};
use quorate_core::state::{FaultKind, Pair};
use quorate_core::token::Token;
use quorate_proto::v1;
use quorate_transport::{Address, Connected, Expect};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// First contact, over all nodes at once.
const CONTACT_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Asking why, when nobody could be used.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_millis(400);
/// A later connection to a known node.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// One unary call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A receipt: the node itself waits some seconds for the settlement.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a request waits for a connection before it asks whether the mesh has a quorum at all.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// How long a request whose certificate falls short may look for a receipt: the mesh is certifying again by then.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(3);
/// Bounds on the directory's refresh.
const REFRESH_MS: std::ops::RangeInclusive<u64> = 500..=30_000;
/// At most one refresh on demand in this time.
const REFRESH_SOON: Duration = Duration::from_millis(100);
/// How long reports wait for company.
const REPORTS_WAIT: Duration = Duration::from_millis(50);
/// Reports that may wait; more are lost, and their requests flagged as never settled.
const REPORTS_WAITING_MAX: usize = 16_384;
/// How long a process that ends waits for them.
const FLUSH: Duration = Duration::from_secs(5);
/// Repetitions of refused requests on their way at once; each holds its body.
const REPEATS_MAX: usize = 16;
/// How long to wait for a settlement, and how often to ask.
const SETTLE_WAIT: Duration = Duration::from_secs(20);
const SETTLE_POLL: Duration = Duration::from_millis(150);

/// A client of one mesh. Cheap to clone; the last clone ends its background tasks.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

/// Held while a connection is being opened, so that one is enough for all who ask.
type LinkSlot = Arc<tokio::sync::Mutex<Option<Arc<Connected>>>>;

pub(crate) struct Inner {
    pub(crate) trust: TrustFile,
    pub(crate) key: ClientKey,
    /// Of the token in the trust file, if there is one.
    token: Option<TokenId>,
    pub(crate) options: PoolOptions,
    directory: ArcSwap<Directory>,
    /// One connection per node, pinned to its verified boot key.
    links: Mutex<HashMap<NodeId, LinkSlot>>,
    routes: Mutex<HashMap<RouteId, Arc<RouteLanes>>>,
    pub(crate) cooling: Mutex<HashMap<NodeId, Instant>>,
    refresh: Notify,
    refreshing: tokio::sync::Mutex<Instant>,
    /// Reports that wait for company, and who waits for them to go out.
    reports: Mutex<Vec<(Report, oneshot::Sender<()>)>>,
    pub(crate) shunned: Mutex<Shunned>,
    pub(crate) repeats: Arc<Semaphore>,
    /// Requests that were answered with 400 and wait for their repetition, and over which pair that was. At most
    /// [`REPEATS_MAX`].
    pub(crate) disputes: Mutex<Vec<(RouteId, Pair, RequestId)>>,
    pub(crate) repeating: tokio::sync::Mutex<()>,
    pub(crate) repeated: Notify,
    /// Goodbyes and reports of ended requests.
    pub(crate) tasks: TaskTracker,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("client", &self.inner.trust.client).finish_non_exhaustive()
    }
}

impl Client {
    /// Finds a node, verifies the directory against the trust file's genesis, and keeps it fresh from then on.
    pub async fn connect(trust: TrustFile) -> Result<Self, Error> {
        Self::connect_with(trust, PoolOptions::default()).await
    }

    /// [`Client::connect`] with other pools.
    pub async fn connect_with(trust: TrustFile, options: PoolOptions) -> Result<Self, Error> {
        let key = trust.load_key().map_err(Arc::new)?;
        let directory = first_contact(&trust, &key).await?;
        directory.grant(&trust, &key.public())?;
        let inner = Arc::new(Inner {
            token: trust.token_id(),
            trust,
            key,
            options,
            directory: ArcSwap::from_pointee(directory),
            links: Mutex::default(),
            routes: Mutex::default(),
            cooling: Mutex::default(),
            refresh: Notify::new(),
            refreshing: tokio::sync::Mutex::new(Instant::now()),
            reports: Mutex::default(),
            shunned: Mutex::default(),
            repeats: Arc::new(Semaphore::new(REPEATS_MAX)),
            disputes: Mutex::default(),
            repeating: tokio::sync::Mutex::new(()),
            repeated: Notify::new(),
            tasks: TaskTracker::new(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(maintain(Arc::downgrade(&inner), stop.clone()));
        Ok(Self { inner, _stop: Arc::new(stop.drop_guard()) })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The newest verified directory.
    pub fn directory(&self) -> Arc<Directory> {
        self.inner.directory()
    }

    /// The routes granted to this client that the policy in force has.
    pub fn granted_routes(&self) -> Result<Vec<RouteId>, Error> {
        let directory = self.inner.directory();
        let grant = directory.grant(&self.inner.trust, &self.inner.key.public())?;
        Ok(grant.routes.iter().filter(|r| directory.route(r).is_some()).cloned().collect())
    }

    /// Whether what is known of the mesh is recent enough to act on.
    pub fn check_fresh(&self) -> Result<(), Error> {
        self.inner.directory().check_fresh(now(), self.inner.trust.freshness_ms)
    }

    /// Opens pools and connections for a route ahead of its first request.
    pub async fn warm_up(&self, target: &Target) -> Result<(), Error> {
        let route = self.inner.resolve(target)?;
        let lanes = self.inner.lanes(&route);
        // Taking one proves that the whole path works; dropping it costs one handshake.
        lanes.take(&self.inner, &[]).await.map(drop)
    }

    /// Sends one request and gives its answer as soon as the answer's head is there. Refusals and failures that left the
    /// request unforwarded are retried through other nodes, at most three attempts in all.
    pub async fn request(&self, request: Request) -> Result<Response, Error> {
        match self.inner.request(&request).await {
            Err(error) => Err(self.explain(error).await),
            response => response,
        }
    }

    /// Puts names to a lost quorum: who cannot be reached from here, and who is not attested by the others' word.
    async fn explain(&self, error: Error) -> Error {
        match &error {
            Error::Refused(refusal) if matches!(refusal.code.as_str(), "no_quorum" | "dark") => {}
            // Whoever was tried last is lost; that may be one of too many.
            Error::NodeLost { .. } | Error::NoRelay { .. } => {}
            _ => return error,
        }
        // If enough are there by now, the refusal itself says more.
        match self.inner.lost_quorum().await {
            Some(darkness) => Error::Dark(darkness),
            None => error,
        }
    }

    /// The receipt of a request: waits, up to 20 s, until the log settled it, and verifies it. A relay that was lost never settles:
    /// the log closes its requests by itself, some minutes later; until then [`Self::receipt_so_far`] has what is proven.
    pub async fn receipt(&self, request: RequestId) -> Result<Receipt, Error> {
        let deadline = Instant::now() + SETTLE_WAIT;
        loop {
            let outcome = self.inner.fetch_receipt(request, true).await;
            match outcome {
                Ok((receipt, true)) => return Ok(receipt),
                Ok((_, false)) if Instant::now() >= deadline => return Err(Error::NotSettled { request }),
                Err(error) if Instant::now() >= deadline || matches!(error, Error::Receipt { .. }) => {
                    return Err(error);
                }
                Ok(_) | Err(_) => tokio::time::sleep(SETTLE_POLL).await,
            }
        }
    }

    /// The receipt of a request as the log stands, verified, and whether the request is settled there.
    pub async fn receipt_so_far(&self, request: RequestId) -> Result<(Receipt, bool), Error> {
        self.inner.fetch_receipt(request, true).await
    }

    /// Submits a policy change; waits until its outcome is certified.
    pub async fn submit_policy(&self, command: Command, document: Vec<u8>) -> Result<Outcome, Error> {
        let mut last = Error::NoNode(vec![]);
        for (node, link) in self.inner.any_links().await? {
            match self.inner.submit_with((node, &link), &command, vec![document.clone().into()]).await {
                Err(error @ Error::NodeLost { .. }) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Takes a token of this client's back; waits until that is certified.
    pub async fn revoke_token(&self, token: &Token) -> Result<(), Error> {
        let command = self.inner.sign(ClientCommand::RevokeToken(Box::new(token.clone())));
        let mut last = Error::NoNode(vec![]);
        for (node, link) in self.inner.any_links().await? {
            match self.inner.submit((node, &link), command.clone()).await {
                Err(error @ Error::NodeLost { .. }) => last = error,
                outcome => return outcome.map(drop),
            }
        }
        Err(last)
    }

    /// What each node says was used, by policy order; unproven. Whose figures this client may see, see [`v1::UsageRequest`].
    pub async fn usage(&self, request: &v1::UsageRequest) -> Vec<(NodeId, Result<v1::UsageReply, Error>)> {
        let directory = self.inner.directory();
        let asked = directory.verified().policy.members.keys().copied().map(|node| async move {
            let usage = async {
                let link = self.inner.link(node).await?;
                let mut service = mesh_client(&link);
                let reply = timeout(CALL_TIMEOUT, service.usage(request.clone())).await;
                let reply =
                    reply.map_err(|_| Error::NodeLost { node, reason: "no answer in time".into() })?;
                reply.map(tonic::Response::into_inner).map_err(|s| Error::from_status(node, &s))
            };
            (node, usage.await)
        });
        futures::future::join_all(asked).await
    }

    /// Waits, up to five seconds, until the reports of ended requests have gone out. A process that is about to end calls it.
    pub async fn flush(&self) {
        self.inner.tasks.close();
        let _ = timeout(FLUSH, self.inner.tasks.wait()).await;
        self.inner.tasks.reopen();
    }

    /// What each node says of itself, by policy order; unproven.
    pub async fn status(&self) -> Vec<(NodeId, Result<v1::StatusReply, Error>)> {
        let directory = self.inner.directory();
        let asked = directory.verified().policy.members.keys().copied().map(|node| async move {
            let status = async {
                let link = self.inner.link(node).await?;
                let mut client = mesh_client(&link);
                let reply = timeout(CALL_TIMEOUT, client.status(v1::StatusRequest {})).await;
                let reply =
                    reply.map_err(|_| Error::NodeLost { node, reason: "no answer in time".into() })?;
                reply.map(tonic::Response::into_inner).map_err(|s| Error::from_status(node, &s))
            };
            (node, status.await)
        });
        futures::future::join_all(asked).await
    }
}

/// The status of any reachable node of a trust file, unproven: for `quorate status` while nothing can be verified.
pub async fn status_of_any(
    trust: &TrustFile,
    key: &ClientKey,
) -> Vec<(Address, Result<v1::StatusReply, String>)> {
    futures::future::join_all(trust.nodes.iter().map(|address| async move {
        let status = async {
            let connected = quorate_transport::connect(
                address,
                key.identity(),
                Expect::danger_any_key(),
                CONNECT_TIMEOUT,
            )
            .await
            .map_err(|e| chain(&e))?;
            let reply = timeout(CONNECT_TIMEOUT, mesh_client(&connected).status(v1::StatusRequest {})).await;
            let reply = reply.map_err(|_| "no answer in time".to_owned())?;
            reply.map(tonic::Response::into_inner).map_err(|s| status_text(&s))
        };
        (address.clone(), status.await)
    }))
    .await
}

/// Asks all nodes of the trust file at once; the first verified and fresh directory wins.
async fn first_contact(trust: &TrustFile, key: &ClientKey) -> Result<Directory, Error> {
    let mut asked: futures::stream::FuturesUnordered<_> = trust
        .nodes
        .iter()
        .map(|address| async move {
            let answer = timeout(CONTACT_TIMEOUT, ask_directory(address, trust, key)).await;
            (address, answer.unwrap_or_else(|_| Err(Contact::Failed("no answer in time".into()))))
        })
        .collect();
    let mut failures = Vec::new();
    let mut verdict = None;
    while let Some((address, answer)) = futures::StreamExt::next(&mut asked).await {
        match answer {
            Ok(directory) => return Ok(directory),
            Err(Contact::Failed(reason)) => {
                let address = address.to_string();
                // Errors of connecting name the address themselves.
                let reason = reason.strip_prefix(&format!("{address}: ")).unwrap_or(&reason).to_owned();
                failures.push(NodeFailure { address, reason });
            }
            Err(Contact::Judged(error)) => {
                failures.push(NodeFailure { address: address.to_string(), reason: chain(&error) });
                verdict = Some(error);
            }
        }
    }
    if let Some(darkness) = timeout(DIAGNOSE_TIMEOUT, darkness(trust, key)).await.ok().flatten() {
        return Err(Error::Dark(darkness));
    }
    match verdict {
        // Everyone who answered has the same to say.
        Some(error) if failures.len() == 1 || matches!(error, Error::Stale { .. }) => Err(error),
        _ => Err(Error::NoNode(failures)),
    }
}

enum Contact {
    Failed(String),
    Judged(Error),
}

async fn ask_directory(address: &Address, trust: &TrustFile, key: &ClientKey) -> Result<Directory, Contact> {
    // Who answers is unknown; all that is taken from it is a proof.
    let connected =
        quorate_transport::connect(address, key.identity(), Expect::danger_any_key(), CONTACT_TIMEOUT)
            .await
            .map_err(|e| Contact::Failed(chain(&e)))?;
    let reply = mesh_client(&connected).directory(v1::DirectoryRequest {}).await;
    let reply = reply.map_err(|status| match crate::error::refusal_of(&status) {
        Some(refusal) => Contact::Judged(Error::Refused(refusal)),
        None => Contact::Failed(status_text(&status)),
    })?;
    let proof = reply.into_inner().proof;
    let directory =
        verify_off_thread(proof, trust.clone(), address.to_string()).await.map_err(Contact::Judged)?;
    directory.check_fresh(now(), trust.freshness_ms).map_err(Contact::Judged)?;
    Ok(directory)
}

/// Quotes and signatures of a whole mesh take milliseconds: not on a thread that serves requests.
async fn verify_off_thread(proof: Bytes, trust: TrustFile, node: String) -> Result<Directory, Error> {
    tokio::task::spawn_blocking(move || Directory::verify(&proof, &trust, &node))
        .await
        .unwrap_or(Err(Error::Closed))
}

async fn darkness(trust: &TrustFile, key: &ClientKey) -> Option<Darkness> {
    let statuses = status_of_any(trust, key).await;
    // Without a quorum nobody's lapse can be logged: who is cut off counts as missing too.
    let there = |s: &v1::StatusReply, n: &v1::NodeStatus| n.attested && (n.connected || n.node == s.node);
    let count = |s: &v1::StatusReply| s.nodes.iter().filter(|n| there(s, n)).count() as u64;
    let status = statuses.into_iter().filter_map(|(_, s)| s.ok()).find(|s| s.dark || count(s) < s.quorum)?;
    let named = |n: &v1::NodeStatus| match n.reason.as_str() {
        "" if n.attested => format!("{} (no connection)", n.name),
        "" => n.name.clone(),
        reason => format!("{} ({reason})", n.name),
    };
    let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(200).collect();
    Some(Darkness {
        attested: count(&status),
        quorum: status.quorum,
        missing: status.nodes.iter().filter(|n| !there(&status, n)).take(16).map(named).map(plain).collect(),
    })
}

/// Keeps directory and lanes fresh while the client lives.
async fn maintain(inner: Weak<Inner>, stop: CancellationToken) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let interval = strong.directory().verified().policy.attestation.evidence_interval_ms / 2;
        let pause = Duration::from_millis(interval.clamp(*REFRESH_MS.start(), *REFRESH_MS.end()));
        let asked = tokio::select! {
            () = stop.cancelled() => {
                lock(&strong.routes).drain().for_each(|(_, lanes)| lanes.end());
                return;
            }
            () = strong.refresh.notified() => true,
            () = tokio::time::sleep(pause) => false,
        };
        if let Err(error) = strong.refresh().await {
            tracing::warn!(error = chain(&error), "the directory could not be refreshed");
        }
        let lanes: Vec<_> = lock(&strong.routes).values().cloned().collect();
        for lanes in lanes {
            lanes.renew(&strong).await;
        }
        if asked {
            tokio::time::sleep(REFRESH_SOON).await;
        }
    }
}

impl Inner {
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    pub(crate) fn refresh_soon(&self) {
        self.refresh.notify_one();
    }

    /// Refreshes when what we hold is too old to act on.
    pub(crate) async fn fresh_directory(&self) -> Result<(), Error> {
        if self.directory().check_fresh(now(), self.trust.freshness_ms).is_err() {
            self.refresh().await?;
        }
        self.directory().check_fresh(now(), self.trust.freshness_ms)
    }

    /// Fetches and verifies a newer directory. Calls that come while one runs share its result.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let called = Instant::now();
        let mut last = self.refreshing.lock().await;
        if *last > called {
            return Ok(());
        }
        let mut failure = None;
        let known: Vec<NodeId> = self.directory().verified().nodes.keys().copied().collect();
        for node in self.shuffled(known)? {
            match self.refresh_from(node).await {
                Ok(()) => {
                    *last = Instant::now();
                    return Ok(());
                }
                Err(error @ Error::Fork { .. }) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        // Every node may have restarted with new boot keys: begin anew, from the trust file.
        match first_contact(&self.trust, &self.key).await {
            Ok(directory) => {
                self.adopt(directory)?;
                *last = Instant::now();
                Ok(())
            }
            Err(error) => Err(failure.filter(|_| matches!(error, Error::NoNode(_))).unwrap_or(error)),
        }
    }

    async fn refresh_from(&self, node: NodeId) -> Result<(), Error> {
        let link = self.link(node).await?;
        let lost = || Error::NodeLost { node, reason: "no directory in time".into() };
        let reply = timeout(CALL_TIMEOUT, mesh_client(&link).directory(v1::DirectoryRequest {})).await;
        let reply = reply.map_err(|_| lost())?.map_err(|s| Error::from_status(node, &s))?;
        let directory =
            verify_off_thread(reply.into_inner().proof, self.trust.clone(), node.to_string()).await?;
        directory.check_fresh(now(), self.trust.freshness_ms)?;
        self.adopt(directory)
    }

    fn adopt(&self, directory: Directory) -> Result<(), Error> {
        if self.directory().check_succeeded_by(&directory)? {
            self.directory.store(Arc::new(directory));
        }
        Ok(())
    }

    fn shuffled(&self, nodes: Vec<NodeId>) -> Result<Vec<NodeId>, Error> {
        let mut dice = Vec::with_capacity(nodes.len());
        for node in nodes {
            dice.push((random_id()?, node));
        }
        dice.sort_unstable();
        Ok(dice.into_iter().map(|(_, node)| node).collect())
    }

    /// The connection to a node, pinned to the boot key we verified; opened when there is none, or the key changed.
    pub(crate) async fn link(&self, node: NodeId) -> Result<Arc<Connected>, Error> {
        let directory = self.directory();
        let gone = || Error::NodeLost { node, reason: "it is not attested".into() };
        let (member, verified) = directory.node(node).ok_or_else(gone)?;
        let key = quorate_transport::PublicKey::from_bytes(verified.boot.tls);
        let slot = lock(&self.links).entry(node).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(link) = slot.as_ref()
            && link.close_reason().is_none()
            && link.peer_key() == key
        {
            return Ok(link.clone());
        }
        let address: Address = member
            .address
            .parse()
            .map_err(|e: quorate_transport::AddressError| Error::NodeLost { node, reason: e.to_string() })?;
        let connected =
            quorate_transport::connect(&address, self.key.identity(), Expect::Key(key), CONNECT_TIMEOUT)
                .await
                .map_err(|e| Error::from_connect(node, &e))?;
        let connected = Arc::new(connected);
        *slot = Some(connected.clone());
        Ok(connected)
    }

    async fn any_links(&self) -> Result<Vec<(NodeId, Arc<Connected>)>, Error> {
        let nodes: Vec<NodeId> = self.directory().verified().nodes.keys().copied().collect();
        let opened =
            futures::future::join_all(nodes.into_iter().map(|n| async move { (n, self.link(n).await) }))
                .await;
        let mut links = Vec::new();
        let mut failures = Vec::new();
        for (node, link) in opened {
            match link {
                Ok(link) => links.push((node, link)),
                Err(error) => failures.push(NodeFailure { address: node.to_string(), reason: chain(&error) }),
            }
        }
        if links.is_empty() { Err(Error::NoNode(failures)) } else { Ok(links) }
    }

    pub(crate) fn sign(&self, body: ClientCommand) -> Command {
        Command::Client(ClientSigned::sign_as(
            self.trust.genesis,
            self.trust.client.clone(),
            self.token,
            body,
            self.key.pair(),
        ))
    }

    pub(crate) async fn submit(
        &self,
        node: (NodeId, &Connected),
        command: Command,
    ) -> Result<Outcome, Error> {
        self.submit_with(node, &command, vec![]).await
    }

    async fn submit_with(
        &self,
        (node, link): (NodeId, &Connected),
        command: &Command,
        blobs: Vec<Bytes>,
    ) -> Result<Outcome, Error> {
        let request = v1::SubmitRequest { command: encode(command).into(), blobs };
        let reply =
            mesh_client(link).submit(request).await.map_err(|s| Error::from_status(node, &s))?.into_inner();
        let wrong = || Error::NodeMisbehaved { node, what: "an outcome that does not decode".into() };
        match borsh::from_slice(&reply.outcome).map_err(|_| wrong())? {
            Outcome::Refused(refusal) => Err(Error::Refused(core_refusal(refusal))),
            outcome => Ok(outcome),
        }
    }

    /// Reports how a request ended; comes back once the report went out, or could not. One signature covers all reports of a
    /// short while: every node checks it.
    pub(crate) async fn report(&self, lane: &Lane, report: Report) {
        let (done, sent) = oneshot::channel();
        let gathers = {
            let mut waiting = lock(&self.reports);
            if waiting.len() >= REPORTS_WAITING_MAX {
                return;
            }
            waiting.push((report, done));
            waiting.len() == 1
        };
        // Whoever came first takes the others along.
        if !gathers {
            let _gone = sent.await;
            return;
        }
        tokio::time::sleep(REPORTS_WAIT).await;
        let mut waiting = std::mem::take(&mut *lock(&self.reports));
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(REPORTS_MAX));
            let (reports, done): (Vec<Report>, Vec<_>) =
                std::mem::replace(&mut waiting, rest).into_iter().unzip();
            self.send_reports(lane, reports).await;
            for done in done {
                let _gone = done.send(());
            }
        }
    }

    /// To one node, the lane's relay if it is there. What may accuse a node goes to so many that one of them is honest, since the
    /// accused could say that it took it; and so does what tells the price: a relay that swallows it would have us pay for
    /// all that the bytes can have carried.
    async fn send_reports(&self, lane: &Lane, reports: Vec<Report>) {
        let accuses = reports.iter().any(|r| r.status == 0 || FaultKind::of(r).is_some());
        let costs = !self.directory().verified().policy.prices.is_empty();
        let hostile = self.directory().verified().policy.hostile_nodes_max as usize;
        let mut wanted = if accuses || costs { hostile.saturating_add(1) } else { 1 };
        let command = self.sign(ClientCommand::Report(reports));
        let own = lane.link();
        if let Some((node, link)) = &own
            && self.took(*node, link, &command).await
        {
            wanted -= 1;
        }
        if wanted == 0 {
            return;
        }
        for (other, link) in self.any_links().await.unwrap_or_default() {
            if own.as_ref().is_none_or(|(node, _)| other != *node) && self.took(other, &link, &command).await
            {
                wanted -= 1;
            }
            if wanted == 0 {
                return;
            }
        }
    }

    async fn took(&self, node: NodeId, link: &Connected, command: &Command) -> bool {
        timeout(CALL_TIMEOUT, self.submit((node, link), command.clone())).await.is_ok_and(|o| o.is_ok())
    }

    /// The first receipt that a node has; if it is to be settled and is not, what the others have: a node that restarted knows of
    /// no settlement before.
    async fn fetch_receipt(&self, request: RequestId, settle: bool) -> Result<(Receipt, bool), Error> {
        let mut last = Error::NotSettled { request };
        let mut best = None;
        for (node, link) in self.any_links().await? {
            let asked = v1::ReceiptRequest { request: request.0.to_vec().into() };
            let reply = match timeout(RECEIPT_TIMEOUT, mesh_client(&link).receipt(asked)).await {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => {
                    last = Error::from_status(node, &status);
                    continue;
                }
                Err(_) => continue,
            };
            let (genesis, bytes) = (self.trust.genesis, reply.proof);
            let verified = tokio::task::spawn_blocking(move || {
                let mut proof = Proof::from_bytes(&bytes)?;
                // A receipt has its leaves in the log's order, whichever half of the settlement came first.
                proof.leaves.sort_by_key(|leaf| leaf.index);
                let receipt = Receipt(proof);
                let (verified, authorisation) = receipt.verify(genesis)?;
                let settled =
                    settlements(&verified, request).next().is_some() || is_closed(&verified, request);
                Ok((receipt, authorisation.request().request == request, settled))
            });
            let verified = verified.await.map_err(|_| Error::Closed)?;
            let (receipt, ours, settled) =
                verified.map_err(|source| Error::Receipt { request, source: Arc::new(source) })?;
            if !ours {
                last = Error::NodeMisbehaved { node, what: "the receipt of another request".into() };
                continue;
            }
            if settled || !settle {
                return Ok((receipt, settled));
            }
            best = Some((receipt, false));
        }
        best.ok_or(last)
    }

    pub(crate) fn lanes(&self, route: &RouteId) -> Arc<RouteLanes> {
        lock(&self.routes)
            .entry(route.clone())
            .or_insert_with(|| Arc::new(RouteLanes::new(route.clone())))
            .clone()
    }

    pub(crate) fn resolve(&self, target: &Target) -> Result<RouteId, Error> {
        let directory = self.directory();
        let grant = directory.grant(&self.trust, &self.key.public())?;
        match target {
            Target::Route(name) => RouteId::new(name.as_str())
                .ok()
                .filter(|r| grant.routes.contains(r) && directory.route(r).is_some())
                .ok_or_else(|| Error::UnknownRoute { route: name.clone() }),
            Target::Model(model) => directory
                .route_for_model(&grant, model)
                .ok_or_else(|| Error::UnknownModel { model: model.clone() }),
        }
    }

    /// Who is missing, when fewer than a quorum answer as attested.
    async fn lost_quorum(&self) -> Option<Darkness> {
        let directory = self.directory();
        let policy = &directory.verified().policy;
        let asked = policy.members.keys().map(|node| async move {
            let status =
                async { mesh_client(&*self.link(*node).await.ok()?).status(v1::StatusRequest {}).await.ok() };
            (*node, timeout(DIAGNOSE_TIMEOUT, status).await.ok().flatten().map(tonic::Response::into_inner))
        });
        let answers = futures::future::join_all(asked).await;
        let mut missing = Vec::new();
        for (node, member) in &policy.members {
            let answered = answers.iter().any(|(n, a)| n == node && a.is_some());
            let lapsed = answers
                .iter()
                .filter_map(|(_, a)| a.as_ref())
                .flat_map(|a| &a.nodes)
                .any(|n| n.node == node.0 && !n.attested);
            match (answered, lapsed) {
                (false, _) => missing.push(format!("{} (cannot be reached from here)", member.name)),
                (true, true) => missing.push(format!("{} (not attested)", member.name)),
                (true, false) => {}
            }
        }
        let (attested, quorum) =
            (policy.members.len().saturating_sub(missing.len()) as u64, policy.quorum() as u64);
        (attested < quorum).then_some(Darkness { attested, quorum, missing })
    }

    /// Completes only if the mesh turns out to lack its quorum while somebody waits for longer than patience lasts.
    pub(crate) async fn dark_meanwhile(&self) -> Darkness {
        loop {
            tokio::time::sleep(PATIENCE).await;
            if let Some(darkness) = self.lost_quorum().await {
                return darkness;
            }
        }
    }
}

impl Inner {
    /// No leaf, no forward: the client checks on its own that its request's authorisation is a certified leaf, before it
    /// hands on any of the answer. Nodes that restarted since the directory was fetched sign with newer keys: then
    /// by a receipt.
    pub(crate) async fn check_certificate(
        self: &Arc<Self>,
        request: RequestId,
        relay: NodeId,
        certificate: &[u8],
    ) -> Result<(), Error> {
        let misbehaved = |what: &str| Error::NodeMisbehaved { node: relay, what: what.to_owned() };
        let certificate: LeafCertificate = borsh::from_slice(certificate)
            .map_err(|_| misbehaved("it sent no certificate of the authorisation"))?;
        let prove = || self.directory().authorisation(&certificate, &self.trust.client, request);
        if prove().is_ok() {
            return Ok(());
        }
        // A node that restarted in between signed with a key that this directory, or the next, does not name. A receipt
        // brings the evidence of its own checkpoint along, from whichever node has it.
        self.refresh_soon();
        let deadline = tokio::time::Instant::now() + CERTIFICATE_WAIT;
        loop {
            let failed = match self.fetch_receipt(request, false).await {
                Ok(_proven) => return Ok(()),
                Err(error) => error,
            };
            if tokio::time::Instant::now() >= deadline {
                tracing::debug!(error = %failed, "no receipt of an authorisation that the relay claims");
                return Err(misbehaved("its certificate of the authorisation proves nothing"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Settlements of one request among a proof's leaves.
pub fn settlements(
    verified: &Verified,
    request: RequestId,
) -> impl Iterator<Item = (NodeId, &quorate_core::command::Settlement)> {
    verified.leaves.iter().filter_map(move |leaf| {
        let Leaf::V1 { body, .. } = leaf.leaf();
        match body {
            LeafBody::Decided {
                command: Command::Node(NodeSigned { node, body: NodeCommand::Settle(list), .. }),
                ..
            } => list.iter().find(|s| s.request == request).map(|s| (*node, s)),
            _ => None,
        }
    })
}

/// Whether the log says that the relay never settled this request.
fn is_closed(verified: &Verified, request: RequestId) -> bool {
    verified.leaves.iter().any(|leaf| {
        let Leaf::V1 { body, .. } = leaf.leaf();
        matches!(body, LeafBody::Unsettled { request: of, relay: true, .. } if *of == request)
    })
}

fn core_refusal(refusal: quorate_core::refusal::Refusal) -> crate::error::MeshRefusal {
    use quorate_core::refusal::{Fault, Retry as CoreRetry};
    crate::error::MeshRefusal {
        code: refusal.code().to_owned(),
        message: refusal.to_string(),
        hint: refusal.hint().to_owned(),
        retry: match refusal.retry() {
            CoreRetry::Now => Retry::Now,
            CoreRetry::Later => Retry::Later,
            CoreRetry::Never => Retry::Never,
        },
        fault: match refusal.fault() {
            Fault::Client => crate::error::Fault::Client,
            Fault::Operator => crate::error::Fault::Operator,
            Fault::Mesh => crate::error::Fault::Mesh,
        },
    }
}

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Self {
        Self::Trust(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_refusal_keeps_code_retry_and_hint() {
        for refusal in quorate_core::refusal::Refusal::ALL {
            let mapped = core_refusal(*refusal);
            assert_eq!(mapped.code, refusal.code());
            assert_eq!(format!("{:?}", mapped.retry), format!("{:?}", refusal.retry()));
            assert_eq!(format!("{:?}", mapped.fault), format!("{:?}", refusal.fault()));
        }
    }
}
