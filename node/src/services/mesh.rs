//! The public service: size checks and identities, then the relay, the keyer, the ledger or the directory.
//!
//! The caller's identity is the key its connection proved. For Register and Tunnel it must be the key of the client that owns
//! the pool, judged per call; commands prove themselves by their signatures, so Submit needs that only for a client's own.
//! Directory, Receipt and Status tell what the public tlog tells, to anyone; Usage to whom it concerns.
use crate::directory::Directory;
use crate::keyer::{Keyer, id};
use crate::ledger::Ledger;
use crate::relay::{Down, Relay};
use crate::services::rate::Places;
use crate::services::status::Problem;
use crate::services::usage::{self, UsageRates};
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{ClientCommand, Command, OpenPool};
use quorate_core::crypto::{self, Hash, encode, sha256};
use quorate_core::ids::{NodeId, RequestId, TokenId};
use quorate_core::policy::{Grant, POLICY_BYTES_MAX};
use quorate_core::refusal::Refusal;
use quorate_core::state::{NodeStatus, State, presentable};
use quorate_core::tlog::TreeSize;
use quorate_proto::v1::mesh_server::{Mesh, MeshServer};
use quorate_proto::{CLIENT_MESSAGE_BYTES_MAX, COMMAND_BYTES_MAX, v1};
use quorate_transport::{Channel, PublicKey};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status, Streaming};

/// Commands of one key that are being decided through this node at a time. The leader's lanes count by node; this keeps one client
/// from filling its node's part of them, proven or not. Requests come through tunnels, which have a bound of their own.
const SUBMITTED_PER_KEY_MAX: usize = 64;
/// A command is decided within this or refused.
const SUBMIT_WAIT: Duration = Duration::from_millis(2_000);

/// What the node knows of itself besides the ledger.
pub trait NodeFacts: Send + Sync + 'static {
    /// Raft's leader.
    fn leader(&self) -> Option<NodeId>;
    /// Keys of this start of the node.
    fn boot(&self) -> &BootKeys;
    /// Raft's term.
    fn term(&self) -> u64;
    /// Why the node stopped acknowledging, if it did.
    fn failed(&self) -> Option<String>;
    /// Whether there is a live connection to that peer.
    fn connected(&self, node: NodeId) -> bool;
}

/// The service's parts.
pub struct MeshService {
    /// This node's view.
    pub ledger: Ledger,
    /// Tunnels.
    pub relay: Relay,
    /// Registrations.
    pub keyer: Keyer,
    /// Proofs.
    pub directory: Directory,
    /// Raft and links.
    pub facts: Arc<dyn NodeFacts>,
    /// What callers may ask of usage.
    pub(crate) usage_rates: UsageRates,
    /// Commands of each key that are being decided.
    pub(crate) submitting: Places<[u8; 32]>,
    /// The last state digest computed, for status: one caller computes.
    pub digest: tokio::sync::Mutex<Option<(TreeSize, Hash)>>,
}

impl MeshService {
    /// Puts the parts together.
    pub fn new(
        ledger: Ledger,
        relay: Relay,
        keyer: Keyer,
        directory: Directory,
        facts: Arc<dyn NodeFacts>,
    ) -> Self {
        Self {
            ledger,
            relay,
            keyer,
            directory,
            facts,
            usage_rates: UsageRates::default(),
            submitting: Places::new(SUBMITTED_PER_KEY_MAX),
            digest: tokio::sync::Mutex::new(None),
        }
    }

    /// As a tonic service that refuses larger messages than any call takes.
    pub fn into_server(self) -> MeshServer<Self> {
        MeshServer::new(self)
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(quorate_core::proof::PROOF_BYTES_MAX + 1024)
    }

    /// The command, if its author may submit it here.
    fn check_submission(&self, key: &PublicKey, request: &v1::SubmitRequest) -> Result<Command, Problem> {
        if request.command.len() > COMMAND_BYTES_MAX {
            return Err(Problem::TooLarge { what: "command", max: COMMAND_BYTES_MAX });
        }
        if request.blobs.iter().any(|b| b.len() > POLICY_BYTES_MAX) {
            return Err(Problem::TooLarge { what: "blobs", max: POLICY_BYTES_MAX });
        }
        let command: Command =
            borsh::from_slice(&request.command).map_err(|_| Problem::Malformed("command"))?;
        let view = self.ledger.view();
        match &command {
            Command::Client(c) => {
                let grant = view.policy.clients.get(&c.client).ok_or(Refusal::UnknownClient)?;
                let author = match &c.token {
                    None => grant.key,
                    Some(id) => self.token_key(grant, id, &c.body)?,
                };
                if author.0 != *key.as_bytes() {
                    return Err(Problem::NotTheClient);
                }
                if !request.blobs.is_empty() {
                    return Err(Problem::WrongBlobs);
                }
                match &c.body {
                    ClientCommand::OpenPool(_) | ClientCommand::Report(_) | ClientCommand::RevokeToken(_) => {
                        Ok(command)
                    }
                    ClientCommand::Authorise(_) => Err(Problem::WrongCommand),
                }
            }
            Command::Policy(p) => {
                let [document] = request.blobs.as_slice() else { return Err(Problem::WrongBlobs) };
                if sha256(document) != p.document {
                    return Err(Problem::WrongBlobs);
                }
                // Nobody but the admins of the policy in force may have a document kept.
                view.policy.check_signers(&p.with_document(document.to_vec()))?;
                Ok(command)
            }
            Command::Node(_) | Command::Evidence(_) | Command::Recover(_) => Err(Problem::WrongCommand),
        }
    }

    /// The key that signs for a token. One that nobody used yet proves itself here, before it costs the others anything; by this
    /// node's clock, so that what expired long ago makes no leaves.
    fn token_key(
        &self,
        grant: &Grant,
        id: &TokenId,
        body: &ClientCommand,
    ) -> Result<crypto::PublicKey, Problem> {
        if let ClientCommand::OpenPool(OpenPool { token: Some(shown), route, .. }) = body {
            presentable(grant, self.ledger.cluster(), shown, route, crate::clock::now())?;
            return Ok(shown.token.key);
        }
        let known = self.ledger.read(|state| state.token(id).map(|r| r.token.key));
        Ok(known.ok_or(Refusal::UnknownToken)?)
    }

    /// Digest of the state, with the tree it belongs to.
    async fn state_digest(&self) -> Result<(TreeSize, Hash, Hash), Problem> {
        let mut cached = self.digest.lock().await;
        let now = self.ledger.read(State::checkpoint);
        if let Some((size, digest)) = *cached
            && size == now.size
        {
            return Ok((size, now.root, digest));
        }
        // A copy, so that applying does not wait for the hashing.
        let state = self.ledger.read(State::clone);
        let checkpoint = state.checkpoint();
        let digest =
            tokio::task::spawn_blocking(move || state.digest()).await.map_err(|_| Problem::ShuttingDown)?;
        *cached = Some((checkpoint.size, digest));
        Ok((checkpoint.size, checkpoint.root, digest))
    }

    fn share_status(&self, policy: &quorate_core::policy::Policy) -> Vec<v1::ShareStatus> {
        let status = self.relay.vault().status(policy).into_iter();
        let one =
            |(route, share_epoch, held): (quorate_core::ids::RouteId, u32, Result<(), _>)| v1::ShareStatus {
                route: route.to_string(),
                share_epoch,
                held: held.is_ok(),
                reason: held
                    .err()
                    .map(|missing: crate::shares::Missing| missing.to_string())
                    .unwrap_or_default(),
            };
        status.map(one).collect()
    }

    /// What the metering of faults imposed, by the state as this node has applied it.
    fn credential_status(&self, policy: &quorate_core::policy::Policy) -> Vec<v1::CredentialStatus> {
        let one = |route: &quorate_core::policy::Route, state: &State| {
            let meter = state.meter(&route.id)?;
            let pair =
                |p: quorate_core::state::Pair| v1::SuspendedPair { relay: p.relay.0, keyer: p.keyer.0 };
            let status = v1::CredentialStatus {
                route: route.id.to_string(),
                share_epoch: meter.share_epoch(),
                frozen: meter.is_frozen(),
                suspended: meter.suspended().map(pair).collect(),
            };
            (status.frozen || !status.suspended.is_empty()).then_some(status)
        };
        self.ledger.read(|state| policy.routes.values().filter_map(|route| one(route, state)).collect())
    }

    fn node_status(&self) -> Vec<v1::NodeStatus> {
        let (view, now) = (self.ledger.view(), crate::clock::now());
        let status = |member: &quorate_core::policy::Member| {
            let record = view.nodes.get(&member.id);
            let (attested, reason, age, software_tpm) = match record.map(|r| &r.status) {
                Some(NodeStatus::Attested { at, software_tpm, .. }) => {
                    (true, String::new(), now.since_ms(*at), *software_tpm)
                }
                Some(NodeStatus::NotAttested(reason)) => (false, reason.to_string(), 0, member.software_tpm),
                None => (false, "no record of it".to_owned(), 0, member.software_tpm),
            };
            v1::NodeStatus {
                node: member.id.0,
                name: member.name.clone(),
                custodian: member.custodian.to_string(),
                address: member.address.clone(),
                http: member.http.clone(),
                attested,
                reason,
                evidence_age_ms: age,
                software_tpm,
                connected: member.id == self.ledger.me() || self.facts.connected(member.id),
            }
        };
        view.policy.members.values().map(status).collect()
    }
}

/// The key that the caller's connection proved.
fn peer_key<T>(request: &Request<T>) -> Result<PublicKey, Status> {
    let channel = request.extensions().get::<Channel>();
    channel.map(Channel::peer_key).ok_or_else(|| Problem::Internal("a connection without a key").status())
}

#[tonic::async_trait]
impl Mesh for MeshService {
    type TunnelStream = Down;

    async fn directory(
        &self,
        _: Request<v1::DirectoryRequest>,
    ) -> Result<Response<v1::DirectoryReply>, Status> {
        let proof = self.directory.directory().await.map_err(|p| p.status())?;
        Ok(Response::new(v1::DirectoryReply { proof }))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitReply>, Status> {
        let key = peer_key(&request)?;
        let request = request.into_inner();
        let place = self.submitting.take(*key.as_bytes());
        let _place = place.ok_or_else(|| Problem::Overloaded.status())?;
        let command = self.check_submission(&key, &request).map_err(|p| p.status())?;
        let view = self.ledger.view();
        let counts = view.counts(self.ledger.me(), self.facts.boot(), crate::clock::now());
        // No leader takes a client's command from a node that does not count: said now, not after a wait.
        if matches!(command, Command::Client(_)) && !view.dark && !counts {
            return Err(Problem::from(Refusal::RelayNotAttested).status());
        }
        drop(view);
        let blobs = request.blobs.iter().map(|b| b.to_vec()).collect();
        let decided =
            self.ledger.decide(command, blobs, SUBMIT_WAIT).await.map_err(|e| Problem::from(e).status())?;
        let leaf_index = decided.leaf.as_ref().map(|leaf| leaf.index().0);
        Ok(Response::new(v1::SubmitReply { outcome: encode(&decided.outcome).into(), leaf_index }))
    }

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        let key = peer_key(&request)?;
        self.keyer.register(&key, request.into_inner()).await.map_err(|p| p.status())?;
        Ok(Response::new(v1::RegisterReply {}))
    }

    async fn tunnel(&self, request: Request<Streaming<v1::TunnelUp>>) -> Result<Response<Down>, Status> {
        let key = peer_key(&request)?;
        let down = self.relay.tunnel(key, request.into_inner()).map_err(|p| p.status())?;
        Ok(Response::new(down))
    }

    async fn receipt(
        &self,
        request: Request<v1::ReceiptRequest>,
    ) -> Result<Response<v1::ReceiptReply>, Status> {
        let request = id(&request.get_ref().request, "request").map_err(|p| p.status())?;
        let request = RequestId(request);
        let ended = !self.relay.is_running(&request);
        let proof = self.directory.receipt(request, ended).await.map_err(|p| p.status())?;
        Ok(Response::new(v1::ReceiptReply { proof }))
    }

    async fn usage(&self, request: Request<v1::UsageRequest>) -> Result<Response<v1::UsageReply>, Status> {
        let key = peer_key(&request)?;
        let now = (crate::clock::now(), Instant::now());
        let reply = usage::answer(&self.ledger, &self.usage_rates, &key, request.get_ref(), now);
        Ok(Response::new(reply.map_err(|p| p.status())?))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let (size, root, digest) = self.state_digest().await.map_err(|p| p.status())?;
        let view = self.ledger.view();
        let me = self.ledger.me();
        let certified = self.ledger.certified().borrow().as_ref().map_or(0, |c| c.own.size.0);
        Ok(Response::new(v1::StatusReply {
            node: me.0,
            name: view.policy.members.get(&me).map(|m| m.name.clone()).unwrap_or_default(),
            cluster: self.ledger.cluster().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leader: self.facts.leader().map_or(0, |n| n.0),
            term: self.facts.term(),
            policy_version: view.policy.version.0,
            tree_size: size.0,
            root: root.to_string(),
            certified_size: certified,
            certified_lag: size.0.saturating_sub(certified),
            dark: view.dark,
            time_ms: view.time.0,
            nodes: self.node_status(),
            quorum: view.policy.quorum() as u64,
            failed: self.facts.failed().unwrap_or_default(),
            routes: view.policy.routes.keys().map(ToString::to_string).collect(),
            state_digest: digest.to_string(),
            shares: self.share_status(&view.policy),
            credentials: self.credential_status(&view.policy),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::relay::tests::lab::{AGENT, Lab};
    use axum::body::{Body, to_bytes};
    use quorate_core::command::{ClientSigned, NodeCommand, NodeSigned, PolicyCommand, Report};
    use quorate_core::ids::ClientId;
    use quorate_core::testing::{CLIENT, Fleet, key};
    use quorate_core::token::{SignedToken, Token};
    use tower::ServiceExt;

    struct Facts(Option<String>, BootKeys);

    impl NodeFacts for Facts {
        fn leader(&self) -> Option<NodeId> {
            Some(NodeId(3))
        }
        fn boot(&self) -> &BootKeys {
            &self.1
        }
        fn term(&self) -> u64 {
            7
        }
        fn failed(&self) -> Option<String> {
            self.0.clone()
        }
        fn connected(&self, node: NodeId) -> bool {
            node == NodeId(2)
        }
    }

    fn service(lab: &Lab) -> MeshService {
        let (relay, keyer, directory) = (lab.relay.clone(), lab.keyer.clone(), lab.directory.clone());
        MeshService::new(
            lab.ledger(),
            relay,
            keyer,
            directory,
            Arc::new(Facts(None, lab.pool.relay_boot.clone())),
        )
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn submit_takes_a_clients_own_commands_and_admins_documents() {
        let lab = Lab::new().await;
        let service = service(&lab);
        let refused = |key: &PublicKey, command: &[u8], blobs: &[&[u8]]| {
            let blobs = blobs.iter().map(|b| b.to_vec().into()).collect();
            let request = v1::SubmitRequest { command: command.to_vec().into(), blobs };
            service.check_submission(key, &request).err().map(|p| p.code().to_owned()).unwrap_or_default()
        };
        let (me, stranger) = (Lab::client_key(), PublicKey::from_bytes([7; 32]));
        let client = ClientId::new(CLIENT).unwrap();
        let report: Report = Fleet::report(RequestId([1; 16]));
        let sign = |body| {
            encode(&Command::Client(ClientSigned::sign(lab.cluster(), client.clone(), body, &key(CLIENT))))
        };
        let mine = sign(ClientCommand::Report(vec![report]));
        assert_eq!(refused(&me, &mine, &[]), "");
        assert_eq!(refused(&stranger, &mine, &[]), "not_the_client");
        assert_eq!(refused(&me, &mine, &[b"x"]), "wrong_blobs");
        assert_eq!(refused(&me, &[&mine[..], b"x"].concat(), &[]), "malformed");
        assert_eq!(refused(&me, &vec![0; COMMAND_BYTES_MAX + 1], &[]), "too_large");
        assert_eq!(refused(&me, &mine, &[&vec![0; POLICY_BYTES_MAX + 1]]), "too_large");

        let sealed = lab.connect(1).await.seal(&lab.template, "/v1/chat/completions", 0);
        let (_, authorise) = lab.authorise(sealed.id, &sealed.head, |_| ());
        assert_eq!(refused(&me, &encode(&authorise), &[]), "wrong_command");
        let node = NodeSigned::sign(lab.cluster(), NodeId(1), NodeCommand::Snapshot, &key("n"));
        assert_eq!(refused(&me, &encode(&Command::Node(node)), &[]), "wrong_command");

        let document = b"anything".to_vec();
        let change = PolicyCommand { document: sha256(&document), signatures: Vec::new() };
        let change = encode(&Command::Policy(change));
        assert_eq!(refused(&stranger, &change, &[]), "wrong_blobs");
        assert_eq!(refused(&stranger, &change, &[b"other"]), "wrong_blobs");
        assert_eq!(refused(&stranger, &change, &[&document]), "too_few_signers");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn submit_takes_a_holders_commands_by_its_tokens_key() {
        let lab = Lab::of_token().await;
        let service = service(&lab);
        let signed = lab.token.clone().unwrap();
        let (cluster, client) = (lab.cluster(), ClientId::new(CLIENT).unwrap());
        let refused = |key: &PublicKey, token: &SignedToken, body: ClientCommand| {
            let id = Some(token.token.id(cluster));
            let command = ClientSigned::sign_as(cluster, client.clone(), id, body, &self::key(AGENT));
            let command = encode(&Command::Client(command)).into();
            let request = v1::SubmitRequest { command, blobs: vec![] };
            service.check_submission(key, &request).err().map(|p| p.code().to_owned()).unwrap_or_default()
        };
        let report = || ClientCommand::Report(vec![Fleet::report(RequestId([1; 16]))]);
        assert_eq!(refused(&lab.own_key(), &signed, report()), "");
        assert_eq!(refused(&Lab::client_key(), &signed, report()), "not_the_client");
        let shown = |token: &SignedToken| {
            ClientCommand::OpenPool(OpenPool { token: Some(Box::new(token.clone())), ..lab.pool.clone() })
        };
        assert_eq!(refused(&lab.own_key(), &signed, shown(&signed)), "");
        // One that nobody has used yet proves itself before it costs anybody anything.
        let edited = |edit: fn(&mut Token), issuer: &str| {
            let mut token = signed.token.clone();
            edit(&mut token);
            token.sign(cluster, &self::key(issuer))
        };
        let fresh = edited(|t| t.serial = [2; 16], CLIENT);
        assert_eq!(refused(&lab.own_key(), &fresh, report()), "unknown_token");
        assert_eq!(refused(&lab.own_key(), &fresh, shown(&fresh)), "");
        for (edit, issuer, code) in [
            ((|t| t.serial = [3; 16]) as fn(&mut Token), AGENT, "bad_token"),
            (|t| t.expires = t.expires.plus_ms(1), CLIENT, "token_too_long"),
            (|t| (t.not_before.0, t.expires.0) = (1, 2), CLIENT, "token_expired"),
            (|t| t.routes.clear(), CLIENT, "out_of_scope"),
        ] {
            let token = edited(edit, issuer);
            assert_eq!(refused(&lab.own_key(), &token, shown(&token)), code);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn usage_tells_what_the_state_says() {
        let lab = Lab::of_token().await;
        let sealed = lab.connect(1).await.seal(&lab.template, "/v1/chat/completions", 0);
        let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
        lab.order(command);
        let service = service(&lab);
        let ask = |caller: &PublicKey, request: &v1::UsageRequest| {
            let now = (crate::clock::now(), Instant::now());
            let reply = usage::answer(&service.ledger, &service.usage_rates, caller, request, now);
            reply.map_err(|p| p.code().to_owned())
        };
        let own = v1::UsageRequest { client: CLIENT.into(), ..Default::default() };
        let reply = ask(&Lab::client_key(), &own).unwrap();
        let [client] = reply.clients.as_slice() else { panic!("one client") };
        let day = client.day.unwrap();
        assert_eq!((client.name.as_str(), client.in_flight, day.requests), (CLIENT, 1, 1));
        assert_eq!(day.reserved_bytes, 1000 + (1 << 20));
        let [token] = reply.tokens.as_slice() else { panic!("one token") };
        assert_eq!((token.subject.as_str(), token.used.unwrap().requests), (AGENT, 1));
        assert_eq!((reply.routes.len(), reply.days.len(), reply.teams.len()), (0, 0, 0));
        // A token's holder, its own.
        let signed = lab.token.clone().unwrap();
        let of = |t: &SignedToken| v1::UsageRequest { token: encode(t).into(), ..own.clone() };
        assert_eq!(ask(&lab.own_key(), &of(&signed)).unwrap().tokens.len(), 1);
        let mut forged = signed.clone();
        forged.token.limits.money = Some(1);
        let elsewhere = v1::UsageRequest { client: "nobody".into(), ..own.clone() };
        let stranger = PublicKey::from_bytes([7; 32]);
        for (caller, request, code) in [
            (&stranger, own.clone(), "not_the_client"),
            (&lab.own_key(), own.clone(), "not_the_client"),
            (&stranger, of(&signed), "not_the_client"),
            (&lab.own_key(), of(&forged), "not_the_client"),
            (&Lab::client_key(), elsewhere, "not_the_client"),
            (&stranger, v1::UsageRequest::default(), "malformed"),
            (&stranger, v1::UsageRequest { token: vec![0; 9000].into(), ..own.clone() }, "too_large"),
            (&Lab::client_key(), v1::UsageRequest { after: "x".into(), ..own.clone() }, "malformed"),
        ] {
            assert_eq!(ask(caller, &request).unwrap_err(), code, "{request:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_admin_lets_one_key_see_everybodys_usage_for_a_while() {
        use quorate_core::command::{SignedUsageGrant, USAGE_GRANT_MS_MAX, UsageGrant};
        use quorate_core::ids::Timestamp;
        let lab = Lab::new().await;
        let sealed = lab.connect(1).await.seal(&lab.template, "/v1/chat/completions", 0);
        let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
        lab.order(command);
        let (service, now) = (service(&lab), crate::clock::now());
        let caller = PublicKey::from_bytes([7; 32]);
        let granted = |edit: &dyn Fn(&mut UsageGrant), signer: &str| {
            let caller_key = crypto::PublicKey(*caller.as_bytes());
            let mut grant = UsageGrant { caller_key, expires: now.plus_ms(60_000) };
            edit(&mut grant);
            let statement = grant.statement(lab.cluster());
            let signature = quorate_core::testing::ssh_sign(&self::key(signer), &statement);
            encode(&SignedUsageGrant { grant, signature })
        };
        let ask = |caller: &PublicKey, admin: Vec<u8>, by: v1::UsageBy| {
            let request = v1::UsageRequest { admin: admin.into(), by: by.into(), ..Default::default() };
            let now = (now, Instant::now());
            let reply = usage::answer(&service.ledger, &service.usage_rates, caller, &request, now);
            reply.map_err(|p| p.code().to_owned())
        };
        let admin = "admin 0";
        let good = granted(&|_| (), admin);
        let counts = |by| {
            let reply = ask(&caller, good.clone(), by).unwrap();
            [reply.clients.len(), reply.teams.len(), reply.routes.len(), reply.days.len(), reply.tokens.len()]
        };
        assert_eq!(counts(v1::UsageBy::Client), [1, 0, 0, 0, 0]);
        assert_eq!(counts(v1::UsageBy::Team), [0, 0, 0, 0, 0]);
        assert_eq!(counts(v1::UsageBy::Route), [0, 0, 1, 0, 0]);
        assert_eq!(counts(v1::UsageBy::Day), [0, 0, 0, 1, 0]);
        let refused = |caller: &PublicKey, admin| ask(caller, admin, v1::UsageBy::Client).unwrap_err();
        let late = |ms| move |g: &mut UsageGrant| g.expires = ms;
        assert_eq!(refused(&Lab::client_key(), good.clone()), "not_an_admin");
        assert_eq!(refused(&caller, granted(&|_| (), CLIENT)), "not_an_admin");
        assert_eq!(refused(&caller, granted(&late(now), admin)), "not_an_admin");
        let too_late = now.plus_ms(USAGE_GRANT_MS_MAX + 1);
        assert_eq!(refused(&caller, granted(&late(too_late), admin)), "not_an_admin");
        let changed = |g: &mut UsageGrant| g.expires = Timestamp(g.expires.0 + 1);
        let SignedUsageGrant { mut grant, signature } = borsh::from_slice(&good).unwrap();
        changed(&mut grant);
        assert_eq!(refused(&caller, encode(&SignedUsageGrant { grant, signature })), "not_an_admin");
        assert_eq!(refused(&caller, vec![1, 2, 3]), "malformed");
        // And no more than its rate.
        while ask(&caller, good.clone(), v1::UsageBy::Client).is_ok() {}
        assert_eq!(refused(&caller, good.clone()), "overloaded");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn status_names_the_nodes() {
        let lab = Lab::new().await;
        let status = service(&lab).status(Request::new(v1::StatusRequest {})).await.unwrap().into_inner();
        assert_eq!((status.node, status.leader, status.term, status.quorum), (1, 3, 7, 3));
        assert_eq!((status.tree_size, status.certified_lag, status.dark), (status.certified_size, 0, false));
        let nodes: Vec<_> = status.nodes.iter().map(|n| (n.node, n.attested, n.connected)).collect();
        assert_eq!(nodes, [(1, true, true), (2, true, true), (3, true, false), (4, true, false)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn status_says_which_shares_are_missing_and_why() {
        let lab = Lab::keyed().await;
        let shares = async || {
            let status = service(&lab).status(Request::new(v1::StatusRequest {})).await.unwrap().into_inner();
            let [one] = status.shares.try_into().unwrap();
            let v1::ShareStatus { route, share_epoch, held, reason } = one;
            (route, share_epoch, held, reason)
        };
        assert_eq!(shares().await, ("llm".into(), 1, true, String::new()));
        let policy = lab.ledger().view().policy.clone();
        lab.vaults.relay.close(&policy, &crate::shares::Missing::NotSealed);
        let why = "the policy seals no share to this node".to_owned();
        assert_eq!(shares().await, ("llm".into(), 1, false, why));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn status_says_what_faults_imposed() {
        let lab = Lab::keyed().await;
        let credentials = async || {
            let status = service(&lab).status(Request::new(v1::StatusRequest {})).await.unwrap().into_inner();
            status.credentials
        };
        assert_eq!(credentials().await, []);
        let (relay, keyer) = (lab.pool.relay, lab.pool.keyer);
        let clients = ["b", "c", "d"];
        lab.change_policy(|d| {
            d.client.extend(clients.iter().map(|c| quorate_core::testing::client_document(c)))
        });
        for (at, client) in clients.iter().enumerate() {
            assert_eq!(credentials().await, [], "{at} clients do nothing yet");
            lab.refused_key(client, (relay, keyer));
        }
        let pair = v1::SuspendedPair { relay: relay.0, keyer: keyer.0 };
        let mut expected = v1::CredentialStatus {
            route: "llm".into(),
            share_epoch: 1,
            frozen: false,
            suspended: vec![pair],
        };
        assert_eq!(credentials().await, [expected.clone()]);
        let apart = lab.disjoint_pair((relay, keyer));
        lab.refused_key("b", apart);
        expected.frozen = true;
        assert_eq!(credentials().await, [expected]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn http_serves_metrics_and_health() {
        let lab = Lab::new().await;
        let (_publish, checkpoint) = tokio::sync::watch::channel(Arc::from(""));
        let get = async |facts: Facts, path: &str| {
            let metrics = Arc::new(Metrics::new());
            metrics.refused("no_quorum");
            let router = crate::http::router(lab.ledger(), checkpoint.clone(), metrics, Arc::new(facts));
            let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
            let response = router.oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            (
                status,
                String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap(),
            )
        };
        let boot = lab.pool.relay_boot.clone();
        assert_eq!(get(Facts(None, boot.clone()), "/healthz").await, (200, "ok\n".to_owned()));
        let anew = Facts(None, BootKeys { cosign: [9; 32], ..boot.clone() });
        let (status, text) = get(anew, "/healthz").await;
        assert!(status == 503 && text.starts_with("not attested"), "an earlier start's evidence: {text}");
        let failed = get(Facts(Some("disk full".to_owned()), boot.clone()), "/healthz").await;
        assert_eq!(failed, (503, "failed: disk full\n".to_owned()));
        assert_eq!(get(Facts(None, boot.clone()), "/checkpoint").await.0, 404);
        let (status, text) = get(Facts(None, boot), "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "quorate_nodes_attested 4",
            "quorate_raft_leader 3",
            "quorate_certified_lag 0",
            "quorate_requests_refused_total{code=\"no_quorum\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
