//! A mesh in one process: real ledgers, relay and keyer on two nodes, a leader that orders at once, a TLS provider, a client.
use super::super::*;
use crate::blobs::BlobStore;
use crate::directory::{Directory, PolicyChain, RequestIndex};
use crate::keyer::Keyer;
use crate::ledger::{Applier, Certified, Start};
use crate::shares::Vault;
use crate::tilestore::TileStore;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use quorate_core::command::{Alarm, Batch, ClientSigned, NodeCommand, OpenPool, Settlement};
use quorate_core::crypto::{encode, public_key};
use quorate_core::leaf::Leaf;
use quorate_core::policy::SignedPolicy;
use quorate_core::policy::{CredentialDocument, CredentialScheme, Policy, PolicyDocument};
use quorate_core::shares::{
    NodeShares, SEAL_ENTROPY_BYTES, Share, ShareBinding, SharePublicKey, SplitId, seal,
};
use quorate_core::testing::{CLIENT, Mesh, key, share_key};
use quorate_core::token::{SignedToken, Token, TokenLimits};
use quorate_proto::v1::{tunnel_down::Frame as DownFrame, tunnel_up::Frame as UpFrame};
use quorate_splitkey::client::{BodySealer, ClientConnection, KEY_LOG_CLIENT, KEY_LOG_SERVER};
use quorate_splitkey::head::{Head, HeadTemplate, Header, Method};
use quorate_splitkey::record::{Event, RecordOpener, RecordReader, TrafficSecret};
use quorate_splitkey::share::Secret;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CipherSuite, KeyLog};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use zeroize::Zeroizing;

/// Who holds a token, and the name of its key.
pub(crate) const AGENT: &str = "agent-7";

type Secrets = Arc<Mutex<HashMap<String, Vec<u8>>>>;

#[derive(Debug, Default)]
struct Log(Secrets);

impl KeyLog for Log {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().insert(label.to_owned(), secret.to_vec());
    }
}

/// What the provider read as application data, over all its connections.
pub(crate) type Seen = Arc<Mutex<Vec<u8>>>;

/// The secret part of the keyed lab's provider key.
pub(crate) const SECRET: &str = "0123456789abcdefghijklmnopqrstuv";
/// What stands before it, in public.
pub(crate) const PREFIX: &str = "sk-test-";

/// A TLS server that answers by what the body says: `big`, `hang`, anything else; without its key, if it has one, by 401. It
/// closes every connection when told.
async fn provider(seen: Seen, keyed: bool, close: watch::Receiver<bool>) -> (u16, CertificateDer<'static>) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = own.cert.der().clone();
    let private = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let builder =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], private)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, seen, mut close) = (acceptor.clone(), seen.clone(), close.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut got = Vec::new();
                let mut chunk = [0; 4096];
                loop {
                    let closing = async { close.wait_for(|close| *close).await.is_ok() };
                    let read = tokio::select! {
                        read = tls.read(&mut chunk) => read,
                        true = closing => {
                            let _gone = tls.shutdown().await;
                            return;
                        }
                    };
                    let Ok(count @ 1..) = read else { return };
                    seen.lock().unwrap().extend_from_slice(&chunk[..count]);
                    got.extend_from_slice(&chunk[..count]);
                    let text = String::from_utf8_lossy(&got).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                    if body.len() < length.parse().unwrap() {
                        continue;
                    }
                    let answer = match body {
                        "hang" => continue,
                        "big" => "x".repeat(200_000),
                        _ => "fine".to_owned(),
                    };
                    let key = format!("\r\nauthorization: Bearer {PREFIX}{SECRET}\r\n");
                    let status = if keyed && !head.contains(&key) { "401 Unauthorized" } else { "200 OK" };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                        answer.len()
                    );
                    let _gone = tls.write_all(answer.as_bytes()).await;
                    let _gone = tls.shutdown().await;
                    return;
                }
            });
        }
    });
    (port, certificate)
}

/// Hands heads to the keyer in this process.
pub(crate) struct Port {
    keyer: Keyer,
    from: NodeId,
    pub(crate) silent: AtomicBool,
    /// Alters what the keyer says.
    pub(crate) tamper: Mutex<Option<fn(&mut v1::CheckHeadReply)>>,
    /// The keyer's answer waits for this.
    pub(crate) open: watch::Sender<bool>,
}

#[tonic::async_trait]
impl KeyerPort for Port {
    async fn check_head(
        &self,
        _: NodeId,
        request: v1::CheckHeadRequest,
    ) -> Result<v1::CheckHeadReply, Status> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(Status::unavailable("no link"));
        }
        let mut reply = self.keyer.check_head(self.from, request).await;
        if let Some(tamper) = *self.tamper.lock().unwrap() {
            tamper(&mut reply);
        }
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        Ok(reply)
    }
}

struct OneNode {
    id: NodeId,
    ledger: Ledger,
    applier: Applier<BlobStore>,
}

struct Leader {
    mesh: Mesh,
    nodes: Vec<OneNode>,
    blobs: BlobStore,
    index: u64,
}

impl Leader {
    fn apply(&mut self, commands: Vec<Command>) {
        for blob in self.mesh.fleet.blobs.0.values() {
            self.blobs.put(blob).unwrap();
        }
        self.index += 1;
        let applied = self.mesh.apply(commands.clone());
        let entry = encode(&Batch { time: self.mesh.time, proposer: NodeId(1), commands });
        let certified = self.mesh.certified.get(&applied.checkpoint.size);
        for node in &mut self.nodes {
            node.applier.apply(&entry, self.index).unwrap();
            if let Some(certified) = certified {
                let certified = Certified {
                    certified: certified.clone(),
                    own: applied.checkpoint,
                    log_index: self.index,
                };
                node.ledger.publish(certified);
            }
        }
    }

    fn order(&mut self, from: NodeId, outgoing: Outgoing) {
        let command = match outgoing {
            Outgoing::Command(command, _) | Outgoing::Shown(command) => command,
            Outgoing::Settlement(s) => self.mesh.fleet.node_command(from, NodeCommand::Settle(vec![s])),
            Outgoing::Alarm(a) => self.mesh.fleet.node_command(from, NodeCommand::Alarm(a)),
            Outgoing::Node(n) => self.mesh.fleet.node_command(from, n),
        };
        self.apply(vec![command]);
    }
}

/// The vaults of relay and keyer.
pub(crate) struct Vaults {
    pub(crate) relay: Vault,
    pub(crate) keyer: Vault,
    keyer_id: NodeId,
}

impl Vaults {
    fn new(keyer: NodeId) -> Self {
        Self { relay: Vault::new(NodeId(1)), keyer: Vault::new(keyer), keyer_id: keyer }
    }
    /// Opens what a policy seals to the relay.
    pub(crate) fn open_relay(&self, policy: &Policy) {
        self.relay.open(policy, &share_key(1));
    }
    /// And to the keyer.
    pub(crate) fn open_keyer(&self, policy: &Policy) {
        self.keyer.open(policy, &share_key(self.keyer_id.0));
    }
}

/// A key split for the members of a document as an admin would, after `edit` altered what each node gets.
pub(crate) fn credential(
    d: &PolicyDocument,
    share_epoch: u32,
    edit: impl Fn(NodeId, &mut NodeShares),
) -> CredentialDocument {
    let secret = Secret::new(Zeroizing::new(SECRET.into())).ok().unwrap();
    let random = (0..d.member.len() * SECRET.len()).map(|at| (at as u8).wrapping_mul(37) ^ share_epoch as u8);
    let pairs = secret.split(d.member.len(), Zeroizing::new(random.collect())).ok().unwrap();
    let members: Vec<NodeId> = d.member.iter().map(|m| NodeId(m.id)).collect();
    let (scheme, secret_bytes) = (CredentialScheme::Bearer, SECRET.len() as u16);
    let binding = ShareBinding {
        cluster: d.cluster.clone(),
        route: quorate_core::ids::RouteId::new(d.route[0].name.as_str()).unwrap(),
        host: d.route[0].host.clone(),
        port: d.route[0].port,
        scheme,
        public_prefix: PREFIX.into(),
        secret_bytes,
        share_epoch,
        members: members.iter().copied().collect(),
    };
    let share = |bytes: &[u8]| Share::new(Zeroizing::new(bytes.to_vec()));
    let sealed = members.iter().zip(&pairs).map(|(node, own)| {
        let others = members.iter().zip(&pairs).filter(|(n, _)| *n != node);
        let mut shares = NodeShares {
            split: SplitId([share_epoch as u8; 16]),
            mask: share(own.mask.expose_bytes()),
            complements: others.map(|(n, p)| (*n, share(p.complement.expose_bytes()))).collect(),
        };
        edit(*node, &mut shares);
        let entropy = Zeroizing::new([node.0 as u8 ^ share_epoch as u8; SEAL_ENTROPY_BYTES]);
        let to = d.member.iter().find(|m| m.id == node.0).and_then(|m| m.share_key.as_deref()).unwrap();
        let to = SharePublicKey::from_bytes(&BASE64.decode(to).unwrap()).unwrap();
        (*node, seal(&binding, *node, &to, &shares, entropy).unwrap())
    });
    CredentialDocument::new(scheme, PREFIX, secret_bytes, share_epoch, &sealed.collect())
}

/// Everything a test needs.
pub(crate) struct Lab {
    leader: Arc<Mutex<Leader>>,
    pub(crate) relay: Relay,
    pub(crate) keyer: Keyer,
    pub(crate) port: Arc<Port>,
    pub(crate) directory: Directory,
    pub(crate) seen: Seen,
    pub(crate) pool: OpenPool,
    /// Whose pool it is, where that is not the client itself.
    pub(crate) token: Option<SignedToken>,
    pub(crate) template: HeadTemplate,
    pub(crate) vaults: Vaults,
    /// Has the provider close every connection.
    close: watch::Sender<bool>,
    certificate: CertificateDer<'static>,
    _folder: tempfile::TempDir,
}

impl Lab {
    /// Has the provider close its connections, and waits until it has: each holds a receiver, the listener one.
    pub(crate) async fn close_connections(&self) {
        self.close.send_replace(true);
        while self.close.receiver_count() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Four nodes attested, a pool open, the provider listening.
    pub(crate) async fn new() -> Self {
        Self::with_provider(false, true, |_| None).await
    }

    pub(crate) async fn unreachable() -> Self {
        Self::with_provider(false, false, |_| None).await
    }

    /// The route has a credential, and both nodes their shares.
    pub(crate) async fn keyed() -> Self {
        Self::keyed_with(|_, _| ()).await
    }

    /// The same, with altered shares.
    pub(crate) async fn keyed_with(edit: impl Fn(NodeId, &mut NodeShares)) -> Self {
        let lab = Self::with_provider(true, true, |d| Some(credential(d, 1, edit))).await;
        let policy = lab.ledger().view().policy.clone();
        lab.vaults.open_relay(&policy);
        lab.vaults.open_keyer(&policy);
        lab
    }

    /// The pool is of an agent with a token of the client's.
    pub(crate) async fn of_token() -> Self {
        let mut lab = Self::new().await;
        let mut leader = lab.leader.lock().unwrap();
        let state = leader.mesh.state().clone();
        let not_before = state.time();
        let token = Token {
            serial: [1; 16],
            issuer: ClientId::new(CLIENT).unwrap(),
            subject: ClientId::new(AGENT).unwrap(),
            key: public_key(&key(AGENT)),
            routes: vec![lab.pool.route.clone()],
            limits: TokenLimits { requests: Some(1), ..TokenLimits::default() },
            not_before,
            expires: not_before.plus_ms(600_000),
        };
        let token = token.sign(leader.mesh.fleet.cluster(), &key(CLIENT));
        lab.pool = leader.mesh.fleet.pool(&state, 1);
        lab.pool.token = Some(Box::new(token.clone()));
        lab.token = Some(token);
        let open = ClientCommand::OpenPool(lab.pool.clone());
        let open = lab.as_holder(leader.mesh.fleet.cluster(), open);
        leader.apply(vec![open]);
        assert!(leader.mesh.state().pool(&lab.pool.pool).is_some(), "the token's pool is open");
        drop(leader);
        lab
    }

    /// Signed by whoever the pool belongs to.
    fn as_holder(&self, cluster: quorate_core::crypto::Hash, body: ClientCommand) -> Command {
        let client = ClientId::new(CLIENT).unwrap();
        Command::Client(match &self.token {
            None => ClientSigned::sign(cluster, client, body, &key(CLIENT)),
            Some(t) => ClientSigned::sign_as(cluster, client, Some(t.token.id(cluster)), body, &key(AGENT)),
        })
    }

    /// The key of whoever the pool belongs to.
    pub(crate) fn own_key(&self) -> PublicKey {
        self.token.as_ref().map_or_else(Self::client_key, |t| PublicKey::from_bytes(t.token.key.0))
    }

    async fn with_provider(
        keyed: bool,
        listens: bool,
        split: impl FnOnce(&PolicyDocument) -> Option<CredentialDocument>,
    ) -> Self {
        let (seen, close) = (Seen::default(), watch::Sender::new(false));
        let (mut port, certificate) = provider(seen.clone(), keyed, close.subscribe()).await;
        if !listens {
            port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        }
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(folder.path()).unwrap();
        let mut mesh = Mesh::dark(4, 1, |d| {
            d.route[0].host = "localhost".into();
            d.route[0].port = port;
            d.route[0].credential = split(d);
            d.client[0].token_lifetime_ms_max = Some(600_000);
        });
        mesh.time = crate::clock::now();
        let index = Arc::new(RequestIndex::default());
        let slot: Arc<std::sync::OnceLock<Relay>> = Arc::default();
        let (mut nodes, mut queues) = (Vec::new(), Vec::new());
        // Node 1 is the relay; any of the others may turn out to be the keyer.
        for id in 1..=4 {
            let (state, leaf) = mesh.fleet.genesis();
            let dir = folder.path().join(format!("tiles-{id}"));
            let mut tiles = TileStore::create(&dir).unwrap();
            tiles.append(&[leaf]).unwrap();
            let (index, slot) = (index.clone(), slot.clone());
            let on_leaf: crate::ledger::LeafHook = Box::new(move |leaf| {
                if id == 1 {
                    index.on_leaf(leaf);
                    if let Some(relay) = slot.get() {
                        relay.on_leaf(leaf);
                    }
                }
            });
            let (applied, _) = mpsc::unbounded_channel();
            let (outgoing, queue) = mpsc::channel(1024);
            let me = NodeId(id);
            let start =
                Start { me, state, log_index: 0, tiles, tiles_dir: dir, blobs: blobs.clone(), on_leaf };
            let (ledger, applier) = Ledger::new(start, applied, outgoing);
            nodes.push(OneNode { id: me, ledger, applier });
            queues.push((me, queue));
        }
        let mut leader = Leader { mesh, nodes, blobs: blobs.clone(), index: 0 };
        let recovery = leader.mesh.recovery();
        leader.apply(vec![Command::Recover(Box::new(recovery))]);
        let evidence = (1..=4).map(|n| leader.mesh.evidence(n)).collect();
        leader.apply(evidence);
        let state = leader.mesh.state().clone();
        let pool = leader.mesh.fleet.pool(&state, 1);
        let open = leader.mesh.fleet.client(CLIENT, ClientCommand::OpenPool(pool.clone()));
        leader.apply(vec![open]);
        let ledger_of = |id: NodeId| leader.nodes.iter().find(|n| n.id == id).unwrap().ledger.clone();
        let metrics = Arc::new(Metrics::new());
        let vaults = Vaults::new(pool.keyer);
        let keyer =
            Keyer::new(ledger_of(pool.keyer), pool.keyer_boot.clone(), metrics.clone(), vaults.keyer.clone());
        let port = Arc::new(Port {
            keyer: keyer.clone(),
            from: NodeId(1),
            silent: AtomicBool::new(false),
            tamper: Mutex::default(),
            open: watch::Sender::new(true),
        });
        let relay = Relay::new(
            ledger_of(NodeId(1)),
            pool.relay_boot.clone(),
            port.clone(),
            metrics,
            vaults.relay.clone(),
            8,
        );
        slot.set(relay.clone()).ok().unwrap();
        let chain =
            PolicyChain::open(&folder.path().join("chain"), leader.mesh.fleet.chain[0].clone()).unwrap();
        let directory = Directory::new(ledger_of(NodeId(1)), blobs, chain, index);
        let facts = PoolFacts {
            id: pool.pool,
            client: ClientId::new(CLIENT).unwrap(),
            token: None,
            route: pool.route.clone(),
            relay: (pool.relay, pool.relay_boot.clone()),
            keyer: (pool.keyer, pool.keyer_boot.clone()),
            expires: pool.expires,
        };
        let (_, template) = facts.route(&relay.inner.ledger.view()).unwrap();
        let leader = Arc::new(Mutex::new(leader));
        for (from, mut queue) in queues {
            let leader = leader.clone();
            tokio::spawn(async move {
                while let Some(outgoing) = queue.recv().await {
                    leader.lock().unwrap().order(from, outgoing);
                }
            });
        }
        Self {
            leader,
            relay,
            keyer,
            port,
            directory,
            seen,
            pool,
            token: None,
            template,
            vaults,
            close,
            certificate,
            _folder: folder,
        }
    }

    pub(crate) fn client_key() -> PublicKey {
        PublicKey::from_bytes(public_key(&key(CLIENT)).0)
    }

    /// So many nodes no longer cosign.
    pub(crate) fn silence(&self, nodes: &[u64]) {
        self.leader.lock().unwrap().mesh.silent.extend(nodes.iter().map(|n| NodeId(*n)));
    }

    /// All cosign again; what was decided meanwhile is certified with the next entry.
    pub(crate) fn hear_all(&self) {
        let mut leader = self.leader.lock().unwrap();
        leader.mesh.silent.clear();
        leader.apply(Vec::new());
    }

    pub(crate) fn cluster(&self) -> quorate_core::crypto::Hash {
        self.leader.lock().unwrap().mesh.fleet.cluster()
    }

    /// The relay's ledger.
    pub(crate) fn ledger(&self) -> Ledger {
        self.relay.inner.ledger.clone()
    }

    /// Has the leader order a command.
    pub(crate) fn order(&self, command: Command) {
        self.leader.lock().unwrap().apply(vec![command]);
    }

    /// Has the admins change the policy; returns the new one.
    pub(crate) fn change_policy(&self, edit: impl FnOnce(&mut PolicyDocument)) -> Arc<Policy> {
        let mut leader = self.leader.lock().unwrap();
        let change = leader.mesh.fleet.change_policy(edit);
        leader.apply(vec![change]);
        drop(leader);
        self.ledger().view().policy.clone()
    }

    /// A client asks over this pair, and reports that the provider refused the key.
    pub(crate) fn refused_key(&self, client: &str, way: (NodeId, NodeId)) {
        let mut leader = self.leader.lock().unwrap();
        let state = leader.mesh.state().clone();
        let pool = leader.mesh.fleet.pool_over(&state, way);
        let open = leader.mesh.fleet.client(client, ClientCommand::OpenPool(pool.clone()));
        leader.apply(vec![open]);
        let state = leader.mesh.state().clone();
        let asked = leader.mesh.fleet.request(&state, &pool);
        let report = quorate_core::command::Report {
            status: 401,
            ..quorate_core::testing::Fleet::report(asked.request)
        };
        let ask = leader.mesh.fleet.client(client, ClientCommand::Authorise(asked));
        let report = leader.mesh.fleet.client(client, ClientCommand::Report(vec![report]));
        leader.apply(vec![ask]);
        leader.apply(vec![report]);
    }

    /// A pair that the order of keyers allows and that has no node of this one.
    pub(crate) fn disjoint_pair(&self, (relay, keyer): (NodeId, NodeId)) -> (NodeId, NodeId) {
        let leader = self.leader.lock().unwrap();
        let policy = leader.mesh.state().policy();
        let attested: Vec<NodeId> = leader.mesh.state().attested_nodes().collect();
        let custodian = &policy.clients[&ClientId::new(CLIENT).unwrap()].custodian;
        let all = quorate_core::rendezvous::pairs(policy, &attested, &self.pool.route, custodian);
        let apart = |(r, k): &(NodeId, NodeId)| ![*r, *k].iter().any(|n| [relay, keyer].contains(n));
        all.into_iter().find(apart).unwrap()
    }

    /// The policy in force, as signed.
    pub(crate) fn newest_policy(&self) -> SignedPolicy {
        self.leader.lock().unwrap().mesh.fleet.chain.last().unwrap().clone()
    }

    /// How many alarms like this there are, once there is one.
    pub(crate) async fn alarms(&self, alarm: Alarm) -> usize {
        let like = |body: &LeafBody| matches!(body, LeafBody::Decided { command: Command::Node(n), .. } if n.body == NodeCommand::Alarm(alarm.clone()));
        for _ in 0..500 {
            match self.leaves().iter().filter(|body| like(body)).count() {
                0 => tokio::time::sleep(Duration::from_millis(10)).await,
                count => return count,
            }
        }
        0
    }

    /// The bodies of all leaves so far.
    pub(crate) fn leaves(&self) -> Vec<LeafBody> {
        let leader = self.leader.lock().unwrap();
        let body = |bytes: &Vec<u8>| {
            let Leaf::V1 { body, .. } = borsh::from_slice(bytes).unwrap();
            body
        };
        leader.mesh.log.leaves.iter().map(body).collect()
    }

    /// Every settlement in the log.
    pub(crate) fn settlements(&self) -> Vec<Settlement> {
        let settled = |body| match body {
            LeafBody::Decided { command: Command::Node(n), outcome: Outcome::Settled(refused) } => {
                match n.body {
                    NodeCommand::Settle(s) => {
                        assert!(refused.is_empty(), "{refused:?}");
                        Some(s)
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        self.leaves().into_iter().filter_map(settled).flatten().collect()
    }

    /// Waits for the one settlement there must be.
    pub(crate) async fn settlement(&self) -> Settlement {
        for _ in 0..500 {
            if let [one] = self.settlements().as_slice() {
                return one.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("settlements: {:?}", self.settlements());
    }

    /// An authorisation for this head, changed before it is signed.
    pub(crate) fn authorise(
        &self,
        connection: ConnectionId,
        head: &[u8],
        edit: impl FnOnce(&mut quorate_core::command::Authorise),
    ) -> (RequestId, Command) {
        let mut leader = self.leader.lock().unwrap();
        let records =
            quorate_splitkey::framing::HeadRecords::from_bytes(head, self.template.shape()).unwrap();
        let pool = self.pool.clone();
        let (id, command) = leader.mesh.request_with(&pool, |a| {
            a.connection = connection;
            a.head_digest = quorate_core::crypto::Hash(records.digest().0);
            a.response_bytes_max = 1 << 20;
            edit(a);
        });
        let Command::Client(signed) = command else { panic!("a client's") };
        (id, self.as_holder(leader.mesh.fleet.cluster(), signed.body))
    }

    /// A tunnel without its Open.
    pub(crate) fn tunnel(&self, key: PublicKey) -> Result<Tunnelled, Problem> {
        let (up, stream) = mpsc::channel(64);
        let down = self.relay.tunnel(key, ReceiverStream::new(stream))?;
        Ok(Tunnelled { up, down })
    }

    /// A tunnel whose handshake is done and whose secret the keyer has.
    pub(crate) async fn connect(&self, connection: u8) -> Connected {
        let id = ConnectionId([connection; 16]);
        let mut tunnel = self.tunnel(self.own_key()).unwrap();
        tunnel.open(&self.pool, id).await;
        assert!(matches!(tunnel.next().await, Some(DownFrame::Opened(_))));
        let (secrets, mut tls) = self.tls();
        let mut reader = RecordReader::new();
        let mut early = Vec::new();
        loop {
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out).unwrap();
            }
            if !out.is_empty() {
                tunnel.send(UpFrame::Data(out.into())).await;
            }
            if !tls.is_handshaking() {
                break;
            }
            let Some(DownFrame::Data(bytes)) = tunnel.next().await else { panic!("the handshake ended") };
            let mut input = bytes.as_ref();
            while tls.is_handshaking() {
                let Some(record) = reader.read(&mut input).unwrap() else { break };
                let mut bytes = Vec::new();
                record.write_to(&mut bytes);
                tls.read_tls(&mut bytes.as_slice()).unwrap();
                tls.process_new_packets().unwrap();
            }
            early.extend_from_slice(input);
        }
        let secret =
            |label: &str| -> TrafficSecret { secrets.lock().unwrap()[label].as_slice().try_into().unwrap() };
        let registered = v1::RegisterRequest {
            pool: Bytes::copy_from_slice(&self.pool.pool.0),
            connection: Bytes::copy_from_slice(&id.0),
            traffic_secret: Bytes::copy_from_slice(secret(KEY_LOG_CLIENT).expose_bytes()),
        };
        self.keyer.register(&self.own_key(), registered).await.unwrap();
        let connection = ClientConnection::new(secret(KEY_LOG_CLIENT), secret(KEY_LOG_SERVER));
        Connected { id, tunnel, connection, early }
    }

    fn tls(&self) -> (Secrets, rustls::ClientConnection) {
        let default = rustls::crypto::aws_lc_rs::default_provider();
        let suites = default.cipher_suites.iter().copied();
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: suites
                .filter(|s| s.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)
                .collect(),
            ..default
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        let secrets = Secrets::default();
        config.key_log = Arc::new(Log(secrets.clone()));
        let name = ServerName::try_from("localhost").unwrap();
        (secrets, rustls::ClientConnection::new(Arc::new(config), name).unwrap())
    }
}

/// The client's end of a tunnel.
pub(crate) struct Tunnelled {
    pub(crate) up: mpsc::Sender<Result<v1::TunnelUp, Status>>,
    pub(crate) down: Down,
}

impl Tunnelled {
    /// Sends, unless the relay has ended the tunnel already.
    pub(crate) async fn send(&self, frame: UpFrame) {
        let _ended = self.up.send(Ok(v1::TunnelUp { frame: Some(frame) })).await;
    }
    pub(crate) async fn open(&self, pool: &OpenPool, id: ConnectionId) {
        let (pool, connection) = (Bytes::copy_from_slice(&pool.pool.0), Bytes::copy_from_slice(&id.0));
        self.send(UpFrame::Open(v1::tunnel_up::Open { pool, connection })).await;
    }
    pub(crate) async fn next(&mut self) -> Option<DownFrame> {
        let next =
            tokio::time::timeout(Duration::from_secs(10), self.down.next()).await.expect("nothing came");
        next.map(|message| message.unwrap().frame.unwrap())
    }
    /// The code of the refusal that ends the tunnel.
    pub(crate) async fn refusal(&mut self) -> String {
        loop {
            match self.next().await {
                Some(DownFrame::Refused(refused)) => {
                    assert!(self.next().await.is_none(), "a refusal is the last word");
                    return refused.code;
                }
                Some(DownFrame::Data(_) | DownFrame::Opened(_) | DownFrame::Authorised(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// After the handshake.
pub(crate) struct Connected {
    pub(crate) id: ConnectionId,
    pub(crate) tunnel: Tunnelled,
    pub(crate) connection: ClientConnection,
    early: Vec<u8>,
}

/// A request's parts, sealed.
pub(crate) struct Sealed {
    pub(crate) id: ConnectionId,
    pub(crate) tunnel: Tunnelled,
    pub(crate) head: Vec<u8>,
    pub(crate) body: BodySealer,
    response: RecordOpener,
    early: Vec<u8>,
}

impl Connected {
    /// Seals the head of a request with such a body.
    pub(crate) fn seal(self, template: &HeadTemplate, path: &str, content_length: u64) -> Sealed {
        let headers = vec![Header { name: "content-type".into(), value: "application/json".into() }];
        let head = Head { method: Method::Post, path: path.into(), headers, content_length };
        let request = self.connection.seal_request(template, &head).unwrap();
        let (head, body, response) = (request.head.to_bytes(), request.body, request.response);
        Sealed { id: self.id, tunnel: self.tunnel, head, body, response, early: self.early }
    }
}

impl Sealed {
    pub(crate) async fn request(&self, command: &Command, head: &[u8]) {
        let (command, head) = (encode(command).into(), Bytes::copy_from_slice(head));
        self.tunnel.send(UpFrame::Request(v1::tunnel_up::Request { command, head })).await;
    }
    pub(crate) async fn body(&mut self, body: &[u8]) {
        let mut records = Vec::new();
        self.body.seal_chunk(body, &mut records).unwrap();
        self.tunnel.send(UpFrame::Data(records.into())).await;
    }
    /// Ends the client's direction.
    pub(crate) fn half_close(&mut self) {
        self.tunnel.up = mpsc::channel(1).0;
    }
    /// Reads to the end: what the provider said, the authorisation, and how the relay says it ended.
    pub(crate) async fn answer(&mut self) -> (String, Option<v1::tunnel_down::Authorised>, String) {
        let (mut text, mut authorised) = (Vec::new(), None);
        let mut input = std::mem::take(&mut self.early);
        loop {
            let mut bytes = input.as_slice();
            while let Some(event) = self.response.read(&mut bytes).unwrap() {
                if let Event::AppData(data) = event {
                    text.extend_from_slice(&data);
                }
            }
            match self.tunnel.next().await {
                Some(DownFrame::Data(bytes)) => input = bytes.to_vec(),
                Some(DownFrame::Authorised(a)) => {
                    authorised = Some(a);
                    input = Vec::new();
                }
                Some(DownFrame::Closed(closed)) => {
                    return (String::from_utf8(text).unwrap(), authorised, closed.reason);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
