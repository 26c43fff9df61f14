//! The client: first contact, the verified directory and its refresh, requests and their retries, receipts.
use crate::directory::{Directory, now};
use crate::error::{Darkness, Error, NodeFailure, Retry, chain, status_text};
use crate::http1::ResponseParser;
use crate::pool::{Lane, PoolOptions, RouteLanes, lock};
use crate::request::{Request, Target};
use crate::response::{Exchange, First, Provenance, Reporter, Response, ResponseBody};
use crate::trust::{ClientKey, TrustError, TrustFile};
use crate::usage::UsageTail;
use crate::wire::{Conn, mesh_client, random_id};
use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::command::{
    Authorise, ClientCommand, ClientSigned, Command, Ended, NodeCommand, NodeSigned, Report,
};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{NodeId, RequestId, RouteId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::proof::{LeafCertificate, Proof, Receipt, Verified};
use quorate_proto::v1;
use quorate_splitkey::client::{BodySealer, ClientRequest};
use quorate_splitkey::head::{Head, Header};
use quorate_splitkey::record::{OVERHEAD, PLAINTEXT_MAX};
use quorate_transport::{Address, Connected, Expect};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
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
/// How long a request's signature is valid: covers queues and differing clocks, far below the policy's bound.
const REQUEST_LIFETIME_MS: u64 = 45_000;
/// How long a request waits for a connection before it asks whether the mesh has a quorum at all.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// How long a request whose certificate falls short may look for a receipt: the mesh is certifying again by then.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(3);
/// From sending a request to its authorisation.
const AUTHORISE_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts for one request.
const ATTEMPTS_MAX: usize = 3;
/// Default ceiling on an answer: running requests reserve it in the daily budget.
const RESPONSE_BYTES: u64 = 8 * 1024 * 1024;
/// Bounds on the directory's refresh.
const REFRESH_MS: std::ops::RangeInclusive<u64> = 500..=30_000;
/// At most one refresh on demand in this time.
const REFRESH_SOON: Duration = Duration::from_millis(100);
/// Reports on their way at once.
const REPORTS_MAX: usize = 64;
/// How long a process that ends waits for them.
const FLUSH: Duration = Duration::from_secs(2);
/// Body plaintext in one frame: three full records are below the tunnel's 64 KiB.
const FRAME_PLAINTEXT: usize = 3 * PLAINTEXT_MAX;
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
    pub(crate) options: PoolOptions,
    directory: ArcSwap<Directory>,
    /// One connection per node, pinned to its verified boot key.
    links: Mutex<HashMap<NodeId, LinkSlot>>,
    routes: Mutex<HashMap<RouteId, Arc<RouteLanes>>>,
    pub(crate) cooling: Mutex<HashMap<NodeId, Instant>>,
    refresh: Notify,
    refreshing: tokio::sync::Mutex<Instant>,
    reports: Semaphore,
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
            trust,
            key,
            options,
            directory: ArcSwap::from_pointee(directory),
            links: Mutex::default(),
            routes: Mutex::default(),
            cooling: Mutex::default(),
            refresh: Notify::new(),
            refreshing: tokio::sync::Mutex::new(Instant::now()),
            reports: Semaphore::new(REPORTS_MAX),
            tasks: TaskTracker::new(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(maintain(Arc::downgrade(&inner), stop.clone()));
        Ok(Self { inner, _stop: Arc::new(stop.drop_guard()) })
    }

    /// The newest verified directory.
    pub fn directory(&self) -> Arc<Directory> {
        self.inner.directory()
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

    /// The receipt of a request: waits, up to 20 s, until the log settled it, and verifies it.
    pub async fn receipt(&self, request: RequestId) -> Result<Receipt, Error> {
        let deadline = Instant::now() + SETTLE_WAIT;
        loop {
            let outcome = self.inner.fetch_receipt(request).await;
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

    /// Waits, up to two seconds, until the reports of ended requests have gone out. A process that is about to end calls it.
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
        Command::Client(ClientSigned::sign(
            self.trust.genesis,
            self.trust.client.clone(),
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

    pub(crate) async fn report(&self, lane: &Lane, report: Report) {
        let Ok(_permit) = self.reports.acquire().await else { return };
        let Some((node, link)) = lane.link() else { return };
        let command = self.sign(ClientCommand::Report(report));
        if timeout(CALL_TIMEOUT, self.submit((node, &link), command.clone())).await.is_ok_and(|o| o.is_ok()) {
            return;
        }
        // Its relay is gone or slow; any other node takes the report too.
        for (other, link) in self.any_links().await.unwrap_or_default() {
            if other != node
                && timeout(CALL_TIMEOUT, self.submit((other, &link), command.clone()))
                    .await
                    .is_ok_and(|o| o.is_ok())
            {
                return;
            }
        }
    }

    async fn fetch_receipt(&self, request: RequestId) -> Result<(Receipt, bool), Error> {
        let mut last = Error::NotSettled { request };
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
                let settled = settlements(&verified, request).next().is_some();
                Ok((receipt, authorisation.request().request == request, settled))
            });
            let verified = verified.await.map_err(|_| Error::Closed)?;
            let (receipt, ours, settled) =
                verified.map_err(|source| Error::Receipt { request, source: Arc::new(source) })?;
            if !ours {
                last = Error::NodeMisbehaved { node, what: "the receipt of another request".into() };
                continue;
            }
            return Ok((receipt, settled));
        }
        Err(last)
    }

    fn lanes(&self, route: &RouteId) -> Arc<RouteLanes> {
        lock(&self.routes)
            .entry(route.clone())
            .or_insert_with(|| Arc::new(RouteLanes::new(route.clone())))
            .clone()
    }

    fn resolve(&self, target: &Target) -> Result<RouteId, Error> {
        let directory = self.directory();
        let grant = directory.grant(&self.trust, &self.key.public())?;
        match target {
            Target::Route(name) => RouteId::new(name.as_str())
                .ok()
                .filter(|r| grant.routes.contains(r) && directory.route(r).is_some())
                .ok_or_else(|| Error::UnknownRoute { route: name.clone() }),
            Target::Model(model) => directory
                .route_for_model(grant, model)
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
    async fn dark_meanwhile(&self) -> Darkness {
        loop {
            tokio::time::sleep(PATIENCE).await;
            if let Some(darkness) = self.lost_quorum().await {
                return darkness;
            }
        }
    }

    async fn request(self: &Arc<Self>, request: &Request) -> Result<Response, Error> {
        let deadline = request.deadline.map(|d| Instant::now() + d);
        let mut avoid = Vec::new();
        let mut attempt = 1;
        loop {
            self.fresh_directory().await?;
            // Each time anew: the policy may have changed.
            let route = self.resolve(&request.target)?;
            let lanes = self.lanes(&route);
            // Each lane that is tried waits for an answer of its own: without a quorum none of them can have one.
            let (lane, conn) = tokio::select! {
                taken = lanes.take(self, &avoid) => taken?,
                darkness = self.dark_meanwhile() => return Err(Error::Dark(darkness)),
            };
            let (error, forwarded) = match self.attempt(&route, &lane, conn, request).await {
                Ok(response) => return Ok(response),
                Err(failed) => (failed.error, failed.forwarded),
            };
            tracing::debug!(%error, ?forwarded, attempt, "a request failed");
            let verdict = decide(
                &error,
                forwarded,
                request.idempotent,
                attempt,
                deadline.is_some_and(|d| Instant::now() >= d),
            );
            if matches!(error, Error::NodeLost { .. } | Error::NodeMisbehaved { .. }) {
                lanes.left(self, &lane, &error);
                avoid.push((lane.relay(), lane.keyer()));
            }
            match verdict {
                Verdict::Fail => return Err(error),
                Verdict::OutcomeUnknown => return Err(Error::OutcomeUnknown(Box::new(error))),
                Verdict::Again => {}
            }
            if let Error::Refused(refusal) = &error {
                match refusal.code.as_str() {
                    "stale_policy" => self.refresh().await?,
                    // Only this connection is no use.
                    "connection_used" | "connection_in_use" | "provider_closed" | "expired" | "replayed" => {}
                    // The pool is no use any longer, whatever it was.
                    _ => {
                        lanes.left(self, &lane, &error);
                        avoid.push((lane.relay(), lane.keyer()));
                    }
                }
            }
            attempt += 1;
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        route: &RouteId,
        lane: &Arc<Lane>,
        conn: Conn,
        request: &Request,
    ) -> Result<Response, Failed> {
        let directory = self.directory();
        let unknown = || Error::UnknownRoute { route: route.as_str().to_owned() };
        let document = &directory.route(route).ok_or_else(unknown)?.document;
        let length = request.body.len() as u64;
        if length > document.body_bytes_max {
            return Err(Error::BodyTooLarge { length, bound: document.body_bytes_max }.into());
        }
        let response_bytes_max =
            request.response_bytes_max.unwrap_or(RESPONSE_BYTES).min(document.response_bytes_max);
        let allowed_ms = request
            .duration_max
            .map_or(document.duration_ms_max, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
            .clamp(1, document.duration_ms_max);
        let id = RequestId(random_id()?);
        let (body_salt, body_digest) = salted_digest(&request.body)?;
        let connection = conn.id;
        let (pool, relay, keyer) = (lane.pool(), lane.relay(), lane.keyer());
        let policy = directory.verified().policy.version;
        let sign = |head_digest: Hash| {
            encode(&self.sign(ClientCommand::Authorise(Authorise {
                request: id,
                pool,
                connection,
                route: route.clone(),
                relay,
                keyer,
                share_epoch: 0,
                policy,
                head_digest,
                body_digest,
                body_bytes_max: length,
                response_bytes_max,
                duration_ms_max: allowed_ms,
                expires: now().plus_ms(REQUEST_LIFETIME_MS),
            })))
        };
        let reporter = Reporter { inner: Arc::downgrade(self), lane: lane.clone(), request: id };
        let limits = Limits { response_bytes_max, allowed: Duration::from_millis(allowed_ms) };
        let mut exchange = start(lane, conn, request, sign, limits).await?;
        exchange.report = Some(reporter);
        match timeout(AUTHORISE_TIMEOUT, exchange.wait_authorised()).await {
            Ok(Ok(First::Authorised)) => {}
            Ok(Ok(First::Refused(error))) => {
                // There is no open request to report on.
                exchange.report = None;
                return Err(Failed { error, forwarded: Forwarded::No });
            }
            Ok(Err(error)) => {
                exchange.ended = Some(Ended::MeshFailure);
                return Err(Failed { error, forwarded: Forwarded::Unknown });
            }
            Err(_) => {
                exchange.ended = Some(Ended::MeshFailure);
                let error = Error::NodeLost { node: relay, reason: "no word on a request in time".into() };
                return Err(Failed { error, forwarded: Forwarded::Unknown });
            }
        }
        let authorised = exchange.authorised.unwrap_or_default();
        if let Err(error) = self.check_certificate(id, relay, &exchange.certificate).await {
            exchange.ended = Some(Ended::MeshFailure);
            return Err(Failed { error, forwarded: Forwarded::Unknown });
        }
        let head = exchange.head().await.map_err(|error| Failed { error, forwarded: Forwarded::Yes })?;
        let provenance = Provenance { request: id, relay, keyer, authorised, body_salt };
        Ok(Response {
            status: head.status,
            headers: head.headers,
            provenance,
            body: ResponseBody::new(exchange),
        })
    }
}

impl Inner {
    /// No leaf, no forward: the client checks on its own that its request's authorisation is a certified leaf, before it
    /// hands on any of the answer. Nodes that restarted since the directory was fetched sign with newer keys: then
    /// by a receipt.
    async fn check_certificate(
        self: &Arc<Self>,
        request: RequestId,
        relay: NodeId,
        certificate: &[u8],
    ) -> Result<(), Error> {
        let misbehaved = |what: &str| Error::NodeMisbehaved { node: relay, what: what.to_owned() };
        let certificate: LeafCertificate = borsh::from_slice(certificate)
            .map_err(|_| misbehaved("it sent no certificate of the authorisation"))?;
        let prove = || self.directory().verified().authorisation(&certificate, &self.trust.client, request);
        if prove().is_ok() {
            return Ok(());
        }
        // A node that restarted in between signed with a key that this directory, or the next, does not name. A receipt
        // brings the evidence of its own checkpoint along, from whichever node has it.
        self.refresh_soon();
        let deadline = tokio::time::Instant::now() + CERTIFICATE_WAIT;
        loop {
            let failed = match self.fetch_receipt(request).await {
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

/// Whether the provider may have seen the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forwarded {
    No,
    Unknown,
    Yes,
}

struct Failed {
    error: Error,
    forwarded: Forwarded,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), forwarded: Forwarded::No }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Again,
    Fail,
    OutcomeUnknown,
}

/// A retry needs an error that another try can cure, and either proof that nothing was forwarded or the caller's leave.
fn decide(error: &Error, forwarded: Forwarded, idempotent: bool, attempt: usize, late: bool) -> Verdict {
    let curable = match error.retry() {
        Retry::Now => true,
        Retry::Unknown => forwarded != Forwarded::No && idempotent,
        Retry::Later | Retry::Never => false,
    };
    match forwarded {
        Forwarded::Unknown if curable && !idempotent => Verdict::OutcomeUnknown,
        Forwarded::Yes if !idempotent => Verdict::Fail,
        _ if curable && attempt < ATTEMPTS_MAX && !late => Verdict::Again,
        _ => Verdict::Fail,
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) response_bytes_max: u64,
    pub(crate) allowed: Duration,
}

/// SHA-256 over a fresh salt and the body.
fn salted_digest(body: &[u8]) -> Result<([u8; 32], Hash), Error> {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| Error::NoRandomness)?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(&salt);
    context.update(body);
    let mut digest = [0; 32];
    digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    Ok((salt, Hash(digest)))
}

/// Seals head and body and sends them; `sign` makes the signed authorisation of the head's digest.
pub(crate) async fn start(
    lane: &Lane,
    conn: Conn,
    request: &Request,
    sign: impl FnOnce(Hash) -> Vec<u8>,
    limits: Limits,
) -> Result<Exchange, Error> {
    let Conn { mut up, down, tls, early, .. } = conn;
    let head = Head {
        method: request.method,
        path: request.path.clone(),
        headers: request
            .headers
            .iter()
            .map(|(name, value)| Header { name: name.clone(), value: value.clone() })
            .collect(),
        content_length: request.body.len() as u64,
    };
    let ClientRequest { head, mut body, response } =
        tls.seal_request(&lane.template, &head).map_err(Error::Head)?;
    up.request(sign(Hash(head.digest().0)), head.to_bytes()).await?;
    let mut left = request.body.clone();
    let first = left.split_to(left.len().min(FRAME_PLAINTEXT));
    if !first.is_empty() {
        up.data(seal(&mut body, &first)?).await?;
    }
    let (up, feeder) = if left.is_empty() {
        (Some(up), None)
    } else {
        let feeder = tokio::spawn(async move {
            while !left.is_empty() {
                let piece = left.split_to(left.len().min(FRAME_PLAINTEXT));
                let Ok(records) = seal(&mut body, &piece) else { return };
                if up.data(records).await.is_err() {
                    return;
                }
            }
            // Closing our side early would look like hanging up.
            std::future::pending::<()>().await;
        });
        (None, Some(feeder.abort_handle()))
    };
    Ok(Exchange {
        up,
        down: Some(down),
        opener: response,
        pending: early,
        parser: ResponseParser::new(),
        deadline: Box::pin(tokio::time::sleep(limits.allowed)),
        allowed: limits.allowed,
        left: limits.response_bytes_max,
        bound: limits.response_bytes_max,
        status: 0,
        usage: UsageTail::default(),
        ended: None,
        report: None,
        authorised: None,
        certificate: Bytes::new(),
        feeder,
        orderly: false,
    })
}

fn seal(body: &mut BodySealer, piece: &[u8]) -> Result<Bytes, Error> {
    let records = piece.len().div_ceil(PLAINTEXT_MAX);
    let mut out = Vec::with_capacity(piece.len() + records * (OVERHEAD + 5));
    body.seal_chunk(piece, &mut out)?;
    Ok(out.into())
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

/// The same client code on a TLS connection straight to the provider: no mesh, no log, no policy, no protection. It is
/// the benchmark's baseline and nothing else.
pub struct DangerDirect {
    lane: Arc<Lane>,
    limits: Limits,
}

impl DangerDirect {
    /// Keeps connections to the route's provider ready, as a lane does.
    pub fn new(route: &quorate_core::policy::RouteDocument, options: PoolOptions) -> Result<Self, Error> {
        let limits = Limits {
            response_bytes_max: route.response_bytes_max,
            allowed: Duration::from_millis(route.duration_ms_max),
        };
        Ok(Self { lane: Lane::danger_direct(route, options)?, limits })
    }

    /// Sends one request. The target is not looked at.
    pub async fn request(&self, request: &Request) -> Result<Response, Error> {
        let conn = self.lane.take().await?;
        let mut exchange = start(&self.lane, conn, request, |_| Vec::new(), self.limits).await?;
        let head = exchange.head().await?;
        let provenance = Provenance {
            request: RequestId([0; 16]),
            relay: NodeId(0),
            keyer: NodeId(0),
            authorised: Default::default(),
            body_salt: [0; 32],
        };
        Ok(Response {
            status: head.status,
            headers: head.headers,
            provenance,
            body: ResponseBody::new(exchange),
        })
    }
}

impl Drop for DangerDirect {
    fn drop(&mut self) {
        self.lane.end(Error::Closed);
    }
}

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Self {
        Self::Trust(Arc::new(error))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::{Limits, start};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault, MeshRefusal};

    fn refused(retry: Retry) -> Error {
        let text = String::new;
        Error::Refused(MeshRefusal { code: text(), message: text(), hint: text(), retry, fault: Fault::Mesh })
    }

    #[test]
    fn retries_only_what_was_not_forwarded_or_may_be_repeated() {
        let lost = Error::NodeLost { node: NodeId(1), reason: String::new() };
        let cut = Error::Truncated { reason: String::new() };
        use Forwarded as F;
        use Verdict as V;
        let table = [
            (&lost, F::No, false, 1, V::Again),
            (&lost, F::No, false, 3, V::Fail),
            (&lost, F::Unknown, false, 1, V::OutcomeUnknown),
            (&lost, F::Unknown, true, 1, V::Again),
            (&lost, F::Yes, false, 1, V::Fail),
            (&lost, F::Yes, true, 1, V::Again),
            (&lost, F::Yes, true, 3, V::Fail),
            (&cut, F::Yes, false, 1, V::Fail),
            (&cut, F::Yes, true, 1, V::Again),
            (&refused(Retry::Now), F::No, false, 2, V::Again),
            (&refused(Retry::Later), F::No, true, 1, V::Fail),
            (&refused(Retry::Never), F::No, true, 1, V::Fail),
        ];
        for (error, forwarded, idempotent, attempt, expected) in table {
            assert_eq!(
                decide(error, forwarded, idempotent, attempt, false),
                expected,
                "{error} {forwarded:?} {idempotent} {attempt}"
            );
        }
        assert_eq!(decide(&lost, F::No, false, 1, true), V::Fail, "not past the deadline");
    }

    #[test]
    fn every_core_refusal_keeps_code_retry_and_hint() {
        for refusal in quorate_core::refusal::Refusal::ALL {
            let mapped = core_refusal(*refusal);
            assert_eq!(mapped.code, refusal.code());
            assert_eq!(format!("{:?}", mapped.retry), format!("{:?}", refusal.retry()));
            assert_eq!(format!("{:?}", mapped.fault), format!("{:?}", refusal.fault()));
        }
    }

    #[test]
    fn the_salt_opens_the_digest() {
        let (salt, digest) = salted_digest(b"body").unwrap();
        let joined = [&salt[..], b"body"].concat();
        assert_eq!(quorate_core::crypto::sha256(&joined), digest);
        assert_ne!(salted_digest(b"body").unwrap().1, digest, "a fresh salt each time");
    }
}
