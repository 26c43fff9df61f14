//! A whole mesh in memory for tests: members with software TPMs, admins, clients, routes, a policy that names them all, and
//! every command honestly built and signed, so that a test changes one thing and sees what becomes of it.
//!
//! It protects nothing: every key follows from its name. Compiled under this crate's own tests and under the feature
//! `danger-testing`, which other crates name in `dev-dependencies` alone. Time, ids and keys are all deterministic.
//!
//! [`Fleet`] is who there is; [`Log`] is one copy of the log and its state; [`Mesh`] puts both together for tests that need
//! one honest history.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a broken invariant should stop the test, and all inputs are the test's own"
)]
use crate::certificate::{CertifiedCheckpoint, Certifiers};
use crate::command::{
    Authorise, Batch, CheckpointRef, ClientCommand, ClientSigned, Command, Contribution, Ended,
    EvidenceCommand, NodeCommand, NodeSigned, OpenPool, PolicyCommand, ProbeGrant, RecoverCommand, Report,
    Settlement, SignedProbeGrant,
};
use crate::crypto::{BadSignature, Hash, PublicKey, Signature, encode, public_key, sha256};
use crate::ids::{ClientId, ConnectionId, NodeId, PolicyVersion, PoolId, RequestId, RouteId, Timestamp};
use crate::leaf::{Leaf, LeafBody, Outcome};
use crate::policy::{
    AdminDocument, AttestationDocument, ClientDocument, CredentialDocument, CredentialScheme, MemberDocument,
    Policy, PolicyDocument, Route, RouteDocument, SignedPolicy,
};
use crate::proof::{Proof, ProvenEvidence, ProvenLeaf, Receipt};
use crate::refusal::Refusal;
use crate::rendezvous;
use crate::shares::{self, NodeShares, Share, ShareBinding, SharePrivateKey, SplitId};
use crate::sshsig::SshSignature;
use crate::state::{
    Applied, Blobs, RecoveryPlan, State, build_recovery, checkpoint_of, evidence_nonce, genesis_checkpoint,
    plan_recovery, recovery_nonce,
};
use crate::tlog::{
    Cosignature, Frontier, Hash as NodeHash, LeafIndex, NodeReader, TreeSize, leaf_hash, prove_consistency,
    prove_inclusion,
};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::evidence::{BootKeys, Evidence};
use quorate_attest::reference_values::ReferenceValues;
use quorate_attest::testing::TestTpm;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use zeroize::Zeroizing;

/// When tests begin: noon of a day, so that a minute and a day begin at known distances.
pub const START: Timestamp = Timestamp(20_000 * 86_400_000 + 43_200_000);
/// The client of every fleet; its custodian is nobody's who runs a node.
pub const CLIENT: &str = "app";
/// The route of every fleet.
pub const ROUTE: &str = "llm";

thread_local! {
    static VERDICTS: RefCell<Option<HashMap<[u8; 32], bool>>> = const { RefCell::new(None) };
}
/// Verdicts kept; when full, all are forgotten.
const VERDICTS_MAX: usize = 1 << 16;

/// From now on this thread checks each signature once, and remembers the verdict: in a simulation a whole mesh checks the same
/// ones, and most of its time went there.
pub fn remember_verdicts() {
    VERDICTS.with_borrow_mut(|all| _ = all.get_or_insert_default());
}

/// What a check of key, signature and message says, or said.
pub(crate) fn verdict(
    checked: [&[u8]; 3],
    check: impl FnOnce() -> Result<(), BadSignature>,
) -> Result<(), BadSignature> {
    // The first two are of one length each.
    let digest = VERDICTS.with_borrow(|all| all.as_ref().map(|_| sha256(&checked.concat()).0));
    let Some(digest) = digest else { return check() };
    let known = VERDICTS.with_borrow(|all| all.as_ref().and_then(|all| all.get(&digest).copied()));
    let good = known.unwrap_or_else(|| check().is_ok());
    VERDICTS.with_borrow_mut(|all| {
        if let Some(all) = all {
            if all.len() >= VERDICTS_MAX {
                all.clear();
            }
            all.insert(digest, good);
        }
    });
    if good { Ok(()) } else { Err(BadSignature) }
}

/// The key of that name.
pub fn key(name: &str) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&sha256(name.as_bytes()).0).expect("32 bytes are a seed")
}

/// A node's share key.
pub fn share_key(node: u64) -> SharePrivateKey {
    SharePrivateKey::from_seed(Zeroizing::new(sha256(format!("share key {node}").as_bytes()).0))
}

/// A credential for a route of this document, split for its members: the mask of node n is n repeated, the secret is zeros.
pub fn credential_document(d: &PolicyDocument, route: &str, share_epoch: u32) -> CredentialDocument {
    let (scheme, public_prefix, secret_bytes) = (CredentialScheme::Bearer, "sk-test-", 32);
    let route = d.route.iter().find(|r| r.name == route).expect("a route of the document");
    let binding = ShareBinding {
        cluster: d.cluster.clone(),
        route: RouteId::new(route.name.as_str()).unwrap(),
        host: route.host.clone(),
        port: route.port,
        scheme,
        public_prefix: public_prefix.into(),
        secret_bytes,
        share_epoch,
        members: d.member.iter().map(|m| NodeId(m.id)).collect(),
    };
    let share = |n: NodeId| Share::new(Zeroizing::new(vec![n.0 as u8; secret_bytes.into()]));
    let sealed = binding.members.iter().map(|node| {
        let others = binding.members.iter().filter(|n| *n != node);
        let shares = NodeShares {
            split: SplitId([share_epoch as u8; 16]),
            mask: share(*node),
            complements: others.map(|n| (*n, share(*n))).collect(),
        };
        let entropy =
            Zeroizing::new(std::array::from_fn(|i| (i as u8) ^ (node.0 as u8) ^ (share_epoch as u8)));
        let key = share_key(node.0).public();
        (*node, shares::seal(&binding, *node, &key, &shares, entropy).unwrap())
    });
    CredentialDocument::new(scheme, public_prefix, secret_bytes, share_epoch, &sealed.collect())
}

/// Gives [`ROUTE`] a credential, in share epoch 1.
pub fn keyed(d: &mut PolicyDocument) {
    let credential = credential_document(d, ROUTE, 1);
    d.route.iter_mut().filter(|r| r.name == ROUTE).for_each(|r| r.credential = Some(credential.clone()));
}

/// `ssh-keygen -Y sign -n quorate` (openssh PROTOCOL.sshsig) by a plain Ed25519 key.
pub fn ssh_sign(key: &Ed25519KeyPair, message: &[u8]) -> SshSignature {
    ssh_sign_in(key, crate::sshsig::NAMESPACE, message)
}

/// As [`ssh_sign`], in another namespace.
pub fn ssh_sign_in(key: &Ed25519KeyPair, namespace: &str, message: &[u8]) -> SshSignature {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, message);
    let envelope: [&[u8]; 4] = [namespace.as_bytes(), b"", b"sha512", digest.as_ref()];
    let mut signed = b"SSHSIG".to_vec();
    envelope.iter().for_each(|part| signed.extend(ssh_string(part)));
    let signature = [ssh_string(b"ssh-ed25519"), ssh_string(key.sign(&signed).as_ref())].concat();
    let mut blob = b"SSHSIG\0\0\0\x01".to_vec();
    for part in [&ssh_public(key)[..], envelope[0], envelope[1], envelope[2], &signature] {
        blob.extend(ssh_string(part));
    }
    SshSignature(blob)
}

/// The key's OpenSSH public key line.
pub fn ssh_line(key: &Ed25519KeyPair) -> String {
    format!("ssh-ed25519 {}", BASE64.encode(ssh_public(key)))
}

fn ssh_public(key: &Ed25519KeyPair) -> Vec<u8> {
    [ssh_string(b"ssh-ed25519"), ssh_string(&public_key(key).0)].concat()
}

fn ssh_string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// Blobs in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryBlobs(pub BTreeMap<Hash, Vec<u8>>);

impl MemoryBlobs {
    /// Keeps a blob.
    pub fn put(&mut self, bytes: impl Into<Vec<u8>>) -> Hash {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.0.insert(digest, bytes);
        digest
    }
}

impl Blobs for MemoryBlobs {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        self.0.get(digest).cloned()
    }
}

/// Every perfect subtree of a log, in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryTree {
    frontier: Frontier,
    nodes: BTreeMap<(u8, u64), NodeHash>,
}

impl MemoryTree {
    /// Appends a leaf's bytes.
    pub fn push(&mut self, leaf: &[u8]) {
        let nodes = &mut self.nodes;
        self.frontier.push_with(leaf_hash(leaf), |level, index, hash| {
            nodes.insert((level, index), hash);
        });
    }
    /// Leaves in it.
    pub fn size(&self) -> TreeSize {
        self.frontier.size()
    }
}

impl NodeReader for MemoryTree {
    type Error = Infallible;
    fn node(&self, level: u8, index: u64) -> Result<NodeHash, Infallible> {
        Ok(self.nodes[&(level, index)])
    }
}

/// A machine and the process on it.
pub struct TestNode {
    /// Its number.
    pub id: NodeId,
    /// Its TPM.
    pub tpm: TestTpm,
    starts: u32,
    cosign: Ed25519KeyPair,
}

impl TestNode {
    /// A machine whose AK follows from `seed`, freshly started.
    pub fn new(id: u64, seed: u64) -> Self {
        let mut node = Self { id: NodeId(id), tpm: TestTpm::new(seed), starts: 0, cosign: key("") };
        node.restart_process();
        node
    }
    /// New boot keys; the machine goes on.
    pub fn restart_process(&mut self) {
        self.starts += 1;
        self.cosign = key(&format!("cosign {:?} {}", self.tpm.ak_public(), self.starts));
    }
    /// A power cycle: new boot keys, and the TPM's counters show it.
    pub fn reset_machine(&mut self) {
        self.tpm.power_cycle();
        self.restart_process();
    }
    /// The boot's cosigning key.
    pub fn cosign_key(&self) -> &Ed25519KeyPair {
        &self.cosign
    }
    /// The boot's TLS key.
    pub fn tls_key(&self) -> Ed25519KeyPair {
        key(&format!("tls {:?} {}", self.tpm.ak_public(), self.starts))
    }
    /// The boot's public keys.
    pub fn boot(&self) -> BootKeys {
        BootKeys { tls: public_key(&self.tls_key()).0, cosign: public_key(&self.cosign).0 }
    }
    /// Cosigns, without any lock.
    pub fn cosign(&self, state: &State, checkpoint: CheckpointRef) -> Cosignature {
        let time_s = state.time().0 / 1000;
        Cosignature::sign(&self.cosign, &checkpoint_of(state.origin(), checkpoint), time_s).unwrap()
    }
}

/// Machines, people and the policy over them.
pub struct Fleet {
    /// By number.
    pub nodes: BTreeMap<NodeId, TestNode>,
    /// Three, of whom two must sign.
    pub admins: Vec<Ed25519KeyPair>,
    /// The newest policy; a change starts from it.
    pub document: PolicyDocument,
    /// Every version so far.
    pub chain: Vec<SignedPolicy>,
    /// Event logs and documents.
    pub blobs: MemoryBlobs,
    ids: u64,
}

fn document_of(
    nodes: &BTreeMap<NodeId, TestNode>,
    admins: &[Ed25519KeyPair],
    hostile_nodes_max: u32,
) -> PolicyDocument {
    let attestation = AttestationDocument { allow_software_tpm: true, ..AttestationDocument::default() };
    let machine = &nodes.values().next().unwrap().tpm;
    let values = machine.reference_values(&attestation.pcrs);
    PolicyDocument {
        format: 1,
        cluster: "test".into(),
        version: 1,
        previous: String::new(),
        expires: "2100-01-01T00:00:00Z".parse().unwrap(),
        hostile_nodes_max,
        admin_threshold: 2,
        share_approver: None,
        admin: admins
            .iter()
            .enumerate()
            .map(|(i, k)| AdminDocument { name: format!("admin-{i}"), key: ssh_line(k) })
            .collect(),
        attestation,
        member: nodes.values().map(Fleet::member_document).collect(),
        reference_values: BTreeMap::from([("plain".to_owned(), values)]),
        releases: BTreeMap::new(),
        currency: String::new(),
        price: vec![],
        team: vec![],
        route: vec![route_document(ROUTE)],
        client: vec![client_document(CLIENT)],
    }
}

/// A route like [`ROUTE`] of another name.
pub fn route_document(name: &str) -> RouteDocument {
    RouteDocument {
        name: name.into(),
        host: "api.example.com".into(),
        port: 443,
        base_path: String::new(),
        paths: vec!["/v1/chat/completions".into()],
        dialect: "openai".into(),
        headers: Vec::new(),
        models: vec!["*".into()],
        ca_pem: String::new(),
        body_bytes_max: 1 << 20,
        response_bytes_max: 1 << 22,
        duration_ms_max: 600_000,
        credential: None,
    }
}

/// A client like [`CLIENT`] of another name; its key is [`key`] of the name.
pub fn client_document(name: &str) -> ClientDocument {
    let expires = "2100-01-01T00:00:00Z".parse().unwrap();
    ClientDocument {
        requests_per_minute: 1000,
        requests_per_day: 100_000,
        bytes_per_day: 1 << 40,
        ..ClientDocument::new(
            name,
            BASE64.encode(public_key(&key(name)).0),
            "developers",
            vec![ROUTE.into()],
            expires,
        )
    }
}

impl Fleet {
    /// So many machines, and a genesis policy that `edit` may change before it is signed.
    pub fn new(members: u64, hostile_nodes_max: u32, edit: impl FnOnce(&mut PolicyDocument)) -> Self {
        let nodes: BTreeMap<_, _> = (1..=members).map(|i| (NodeId(i), TestNode::new(i, i))).collect();
        let admins: Vec<_> = (0..3).map(|i| key(&format!("admin {i}"))).collect();
        let mut document = document_of(&nodes, &admins, hostile_nodes_max);
        edit(&mut document);
        let mut fleet =
            Self { nodes, admins, document, chain: Vec::new(), blobs: MemoryBlobs::default(), ids: 0 };
        let signed = fleet.sign_policy(fleet.document.clone(), &[0, 1]);
        fleet.chain.push(signed);
        fleet
    }

    /// How policy names a machine.
    pub fn member_document(node: &TestNode) -> MemberDocument {
        let id = node.id.0;
        MemberDocument {
            id,
            name: format!("node-{id}"),
            custodian: format!("custodian-{id}"),
            address: format!("127.0.0.1:{}", 7000 + id),
            http: format!("127.0.0.1:{}", 8000 + id),
            ak: BASE64.encode(node.tpm.ak_public()),
            software_tpm: true,
            reference_values: "plain".into(),
            share_key: Some(share_key(id).public().to_base64()),
            share_counter: Some(1),
            approvals: Vec::new(),
        }
    }

    /// Reference values by which the machines are good as they are.
    pub fn good_values(&self) -> ReferenceValues {
        let machine = &self.nodes.values().next().unwrap().tpm;
        machine.reference_values(&self.document.attestation.pcrs)
    }

    /// A document signed by these admins, kept as a blob.
    pub fn sign_policy(&mut self, document: PolicyDocument, admins: &[usize]) -> SignedPolicy {
        let document = toml::to_string(&document).unwrap().into_bytes();
        self.blobs.put(document.clone());
        let signatures = admins.iter().map(|a| ssh_sign(&self.admins[*a], &document)).collect();
        SignedPolicy { document, signatures }
    }

    /// A state at genesis, and its leaf.
    pub fn genesis(&self) -> (State, Vec<u8>) {
        State::genesis(self.chain[0].clone()).unwrap()
    }

    /// The cluster's identity.
    pub fn cluster(&self) -> Hash {
        sha256(&self.chain[0].document)
    }

    /// A node.
    pub fn node(&mut self, id: u64) -> &mut TestNode {
        self.nodes.get_mut(&NodeId(id)).unwrap()
    }

    /// A successor of the newest policy, changed by `edit` and signed by the first two admins. The fleet follows it.
    pub fn change_policy(&mut self, edit: impl FnOnce(&mut PolicyDocument)) -> Command {
        let mut document = self.document.clone();
        document.previous = hex::encode(sha256(&self.chain.last().unwrap().document).0);
        document.version += 1;
        edit(&mut document);
        self.document = document.clone();
        let signed = self.sign_policy(document, &[0, 1]);
        let command =
            PolicyCommand { document: sha256(&signed.document), signatures: signed.signatures.clone() };
        self.chain.push(signed);
        Command::Policy(command)
    }

    fn fresh(&mut self) -> [u8; 16] {
        self.ids += 1;
        sha256(&self.ids.to_be_bytes()).0[..16].try_into().unwrap()
    }

    /// A quote over this qualifying data, now; the TPM's clock moves.
    pub fn quote(&mut self, policy: &Policy, id: NodeId, expected: &[u8; 32]) -> Evidence {
        let node = self.nodes.get_mut(&id).unwrap();
        node.tpm.clock_ms += 1;
        let evidence = node.tpm.quote(expected, &policy.attestation.pcrs);
        let log = node.tpm.event_log().to_vec();
        self.blobs.put(log);
        evidence
    }

    /// Evidence over a certified checkpoint; `edit` changes it before the boot key signs.
    pub fn evidence_with(
        &mut self,
        state: &State,
        id: NodeId,
        nonce: &CertifiedCheckpoint,
        edit: impl FnOnce(&mut EvidenceCommand),
    ) -> EvidenceCommand {
        let boot = self.nodes[&id].boot();
        let none =
            Evidence { attest: vec![], signature: vec![], pcrs: vec![], event_log: [0; 32], ima_log: None };
        let mut command = EvidenceCommand {
            node: id,
            boot,
            nonce: nonce.reference(),
            certificate: nonce.cosignatures().to_vec(),
            evidence: none,
            signature: Signature([0; 64]),
        };
        let expected = evidence_nonce(state.cluster(), &command);
        command.evidence = self.quote(state.policy(), id, &expected);
        edit(&mut command);
        command.sign(state.cluster(), self.nodes[&id].cosign_key())
    }

    /// Honest evidence.
    pub fn evidence(&mut self, state: &State, id: NodeId, nonce: &CertifiedCheckpoint) -> Command {
        Command::Evidence(Box::new(self.evidence_with(state, id, nonce, |_| ())))
    }

    /// What a node brings to a recovery.
    pub fn contribution(
        &mut self,
        id: NodeId,
        certified: CheckpointRef,
        lock: CheckpointRef,
    ) -> Contribution {
        let random = sha256(&self.fresh()).0;
        let node = &self.nodes[&id];
        let unsigned = Contribution {
            node: id,
            boot: node.boot(),
            certified,
            lock,
            random,
            signature: Signature([0; 64]),
        };
        unsigned.sign(self.cluster(), node.cosign_key())
    }

    /// A recovery of this plan, quotes included.
    pub fn recovery(&mut self, state: &State, tree: &MemoryTree, plan: RecoveryPlan) -> RecoverCommand {
        let RecoveryPlan { base, contributions } = plan.clone();
        let unproven =
            RecoverCommand { base, contributions, evidence: vec![], tree: TreeSize(0), proofs: vec![] };
        let evidence: Vec<_> = plan
            .contributions
            .iter()
            .map(|x| (x.node, recovery_nonce(state.cluster(), x.node, &x.boot, &unproven)))
            .collect();
        let evidence = evidence.into_iter().map(|(n, e)| (n, self.quote(state.policy(), n, &e))).collect();
        build_recovery(state, tree, plan, evidence).unwrap()
    }

    /// A relay, and the keyers allowed beside it for [`CLIENT`] and [`ROUTE`].
    pub fn way(&self, state: &State, relay: u64) -> (NodeId, Vec<NodeId>) {
        let custodian = &state.policy().clients[&ClientId::new(CLIENT).unwrap()].custodian;
        let keyers =
            rendezvous::keyers(state.policy(), state.attested_nodes(), &route(), NodeId(relay), custodian);
        (NodeId(relay), keyers)
    }

    /// A pool of [`CLIENT`] through this relay, not signed yet.
    pub fn pool(&mut self, state: &State, relay: u64) -> OpenPool {
        let (relay, keyers) = self.way(state, relay);
        let keyer = keyers[0];
        OpenPool {
            pool: PoolId(self.fresh()),
            route: route(),
            relay,
            relay_boot: self.nodes[&relay].boot(),
            keyer,
            keyer_boot: self.nodes[&keyer].boot(),
            expires: state.time().plus_ms(state.policy().attestation.pool_lifetime_ms),
            probe: None,
            token: None,
        }
    }

    /// A pool over this relay and keyer, not signed yet.
    pub fn pool_over(&mut self, state: &State, (relay, keyer): (NodeId, NodeId)) -> OpenPool {
        let keyer_boot = self.nodes[&keyer].boot();
        OpenPool { keyer, keyer_boot, ..self.pool(state, relay.0) }
    }

    /// A probe grant for a client over these pairs, signed by the first admin.
    pub fn probe_grant(&self, state: &State, client: &str, pairs: Vec<(NodeId, NodeId)>) -> SignedProbeGrant {
        let grant = ProbeGrant {
            route: route(),
            share_epoch: state.policy().routes[&route()].share_epoch(),
            client_key: public_key(&key(client)),
            pairs,
            expires: state.time().plus_ms(600_000),
        };
        self.sign_probe(grant, 0)
    }

    /// A probe grant signed by an admin.
    pub fn sign_probe(&self, grant: ProbeGrant, admin: usize) -> SignedProbeGrant {
        let signature = ssh_sign(&self.admins[admin], &grant.statement(self.cluster()));
        SignedProbeGrant { grant, signature }
    }

    /// A request in a pool, not signed yet.
    pub fn request(&mut self, state: &State, pool: &OpenPool) -> Authorise {
        Authorise {
            request: RequestId(self.fresh()),
            pool: pool.pool,
            connection: ConnectionId(self.fresh()),
            route: pool.route.clone(),
            relay: pool.relay,
            keyer: pool.keyer,
            share_epoch: state.policy().routes.get(&pool.route).map_or(0, Route::share_epoch),
            policy: state.policy().version,
            head_digest: Hash([1; 32]),
            body_digest: Hash([2; 32]),
            body_bytes_max: 1000,
            response_bytes_max: 9000,
            duration_ms_max: 60_000,
            price: None,
            tokens_in_max: u64::MAX,
            tokens_out_max: u64::MAX,
            expires: state.time().plus_ms(30_000),
        }
    }

    /// Signs as the client of that name.
    pub fn client(&self, name: &str, body: ClientCommand) -> Command {
        Command::Client(ClientSigned::sign(self.cluster(), ClientId::new(name).unwrap(), body, &key(name)))
    }

    /// Signs as a node.
    pub fn node_command(&self, id: NodeId, body: NodeCommand) -> Command {
        Command::Node(NodeSigned::sign(self.cluster(), id, body, self.nodes[&id].cosign_key()))
    }

    /// The relay's word on a request that went well.
    pub fn settlement(request: RequestId) -> Settlement {
        let (bytes_up, bytes_down) = (512, 2048);
        Settlement {
            request,
            bytes_up,
            bytes_down,
            first_byte_ms: 100,
            total_ms: 900,
            ended: Ended::Complete,
        }
    }

    /// The client's word on a request that went well.
    pub fn report(request: RequestId) -> Report {
        Report {
            request,
            status: 200,
            ended: Ended::Complete,
            tokens_in: 20,
            tokens_cached: 0,
            tokens_out: 100,
            error_form: false,
            same_as: None,
        }
    }
}

/// [`ROUTE`] as an id.
pub fn route() -> RouteId {
    RouteId::new(ROUTE).unwrap()
}

/// One copy of the log: entries applied, leaves, tree.
#[derive(Clone)]
pub struct Log {
    /// After the last entry.
    pub state: State,
    /// Bytes of each leaf.
    pub leaves: Vec<Vec<u8>>,
    /// Its tree.
    pub tree: MemoryTree,
}

impl Log {
    /// Genesis alone.
    pub fn new(fleet: &Fleet) -> Self {
        let (state, leaf) = fleet.genesis();
        let mut tree = MemoryTree::default();
        tree.push(&leaf);
        Self { state, leaves: vec![leaf], tree }
    }

    /// Applies an entry's bytes.
    pub fn apply_bytes(&mut self, entry: &[u8], blobs: &dyn Blobs) -> Applied {
        let applied = self.state.apply(entry, blobs);
        for leaf in &applied.leaf_bytes {
            assert!(leaf.len() <= crate::tlog::MAX_LEAF_BYTES, "a leaf of {} bytes fits no tile", leaf.len());
            self.tree.push(leaf);
            self.leaves.push(leaf.clone());
        }
        assert_eq!(self.tree.size(), applied.checkpoint.size);
        applied
    }

    /// Applies commands at a time.
    pub fn apply(&mut self, time: Timestamp, commands: Vec<Command>, blobs: &dyn Blobs) -> Applied {
        self.apply_bytes(&encode(&Batch { time, proposer: NodeId(1), commands }), blobs)
    }
}

/// One honest history, certified where its members can.
pub struct Mesh {
    /// Who there is.
    pub fleet: Fleet,
    /// The log.
    pub log: Log,
    /// Time of the next entry.
    pub time: Timestamp,
    /// Nodes that do not cosign.
    pub silent: BTreeSet<NodeId>,
    /// What was certified, by size; genesis is not in it.
    pub certified: BTreeMap<TreeSize, CertifiedCheckpoint>,
    /// What each entry did.
    pub applied: Vec<Applied>,
}

impl Mesh {
    /// At genesis, dark.
    pub fn dark(members: u64, hostile_nodes_max: u32, edit: impl FnOnce(&mut PolicyDocument)) -> Self {
        let fleet = Fleet::new(members, hostile_nodes_max, edit);
        let log = Log::new(&fleet);
        Self {
            fleet,
            log,
            time: START,
            silent: BTreeSet::new(),
            certified: BTreeMap::new(),
            applied: Vec::new(),
        }
    }

    /// Recovered from genesis: everybody attested, everything certified.
    pub fn new(members: u64, hostile_nodes_max: u32, edit: impl FnOnce(&mut PolicyDocument)) -> Self {
        let mut mesh = Self::dark(members, hostile_nodes_max, edit);
        mesh.recover();
        mesh
    }

    /// The usual four nodes.
    pub fn four() -> Self {
        Self::new(4, 1, |_| ())
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.log.state
    }

    /// Lets time pass before the next entry.
    pub fn wait(&mut self, ms: u64) {
        self.time = self.time.plus_ms(ms);
    }

    /// One entry, one millisecond after the last; certified if enough can sign.
    pub fn apply(&mut self, commands: Vec<Command>) -> Applied {
        self.wait(1);
        let applied = self.log.apply(self.time, commands, &self.fleet.blobs);
        self.applied.push(applied.clone());
        let cosignatures = self.cosign(&applied.certifiers, applied.checkpoint);
        let checkpoint = checkpoint_of(self.log.state.origin(), applied.checkpoint);
        if let Ok(certified) = applied.certifiers.certify(checkpoint, &cosignatures) {
            self.certified.insert(applied.checkpoint.size, certified);
        }
        applied
    }

    /// The outcome of one command in an entry of its own.
    pub fn decide(&mut self, command: Command) -> Outcome {
        self.apply(vec![command]).outcomes.remove(0).1
    }

    /// Asserts that a command is refused, exactly so.
    #[track_caller]
    pub fn refuses(&mut self, command: Command, refusal: Refusal) {
        assert_eq!(self.decide(command), Outcome::Refused(refusal));
    }

    fn cosign(&self, certifiers: &Certifiers, checkpoint: CheckpointRef) -> Vec<(NodeId, Cosignature)> {
        let able = |n: &&TestNode| {
            !self.silent.contains(&n.id) && certifiers.keys.get(&n.id) == Some(&PublicKey(n.boot().cosign))
        };
        self.fleet
            .nodes
            .values()
            .filter(able)
            .map(|n| (n.id, n.cosign(&self.log.state, checkpoint)))
            .collect()
    }

    /// The newest certified checkpoint that evidence may name.
    pub fn nonce(&self) -> CertifiedCheckpoint {
        let anchors = self.log.state.anchors();
        let found = anchors.iter().rev().find_map(|a| self.certified.get(&a.checkpoint.size));
        found.expect("nothing certified to quote over").clone()
    }

    /// Honest evidence over the newest nonce.
    pub fn evidence(&mut self, id: u64) -> Command {
        let nonce = self.nonce();
        self.fleet.evidence(&self.log.state, NodeId(id), &nonce)
    }

    /// Honest evidence, changed before it is signed.
    pub fn evidence_with(&mut self, id: u64, edit: impl FnOnce(&mut EvidenceCommand)) -> Command {
        let nonce = self.nonce();
        Command::Evidence(Box::new(self.fleet.evidence_with(&self.log.state, NodeId(id), &nonce, edit)))
    }

    /// Evidence of every member that does not stay silent.
    pub fn attest_all(&mut self) -> Applied {
        let members: Vec<u64> = self.log.state.policy().members.keys().map(|n| n.0).collect();
        let speaking = members.into_iter().filter(|n| !self.silent.contains(&NodeId(*n)));
        let commands = speaking.collect::<Vec<_>>().into_iter().map(|n| self.evidence(n)).collect();
        self.apply(commands)
    }

    /// What members bring to a recovery: the newest certified checkpoint, and the tree as it is for a lock.
    pub fn contributions(&mut self) -> Vec<Contribution> {
        let genesis = genesis_checkpoint(self.fleet.cluster());
        let certified = self.certified.values().next_back().map_or(genesis, CertifiedCheckpoint::reference);
        let lock = self.log.state.checkpoint();
        let members: Vec<NodeId> = self.log.state.policy().members.keys().copied().collect();
        let speaking = members.into_iter().filter(|n| !self.silent.contains(n));
        speaking
            .collect::<Vec<_>>()
            .into_iter()
            .map(|n| self.fleet.contribution(n, certified, lock))
            .collect()
    }

    /// The honest recovery.
    pub fn recovery(&mut self) -> RecoverCommand {
        let contributions = self.contributions();
        let Ok(plan) = plan_recovery(&self.log.state, &self.log.tree, contributions);
        let plan = plan.expect("nothing conflicts here");
        self.fleet.recovery(&self.log.state, &self.log.tree, plan)
    }

    /// Out of the dark: a recovery, then everybody's evidence.
    pub fn recover(&mut self) {
        let recovery = self.recovery();
        assert_eq!(self.decide(Command::Recover(Box::new(recovery))), Outcome::Recovered);
        self.attest_all();
        assert!(!self.log.state.is_dark(), "{:?}", self.log.state.nodes());
    }

    /// A pool that stands, through node 1.
    pub fn open_pool(&mut self) -> OpenPool {
        let pool = self.fleet.pool(&self.log.state, 1);
        let command = self.fleet.client(CLIENT, ClientCommand::OpenPool(pool.clone()));
        assert_eq!(self.decide(command), Outcome::PoolOpened);
        pool
    }

    /// A pool, changed before it is signed by that client.
    pub fn pool_with(&mut self, edit: impl FnOnce(&mut OpenPool)) -> Command {
        let mut pool = self.fleet.pool(&self.log.state, 1);
        edit(&mut pool);
        self.fleet.client(CLIENT, ClientCommand::OpenPool(pool))
    }

    /// A request, changed before it is signed.
    pub fn request_with(
        &mut self,
        pool: &OpenPool,
        edit: impl FnOnce(&mut Authorise),
    ) -> (RequestId, Command) {
        let mut request = self.fleet.request(&self.log.state, pool);
        request.expires = self.time.plus_ms(30_000);
        edit(&mut request);
        (request.request, self.fleet.client(CLIENT, ClientCommand::Authorise(request)))
    }

    /// A request that was authorised.
    pub fn authorise(&mut self, pool: &OpenPool) -> RequestId {
        let (id, command) = self.request_with(pool, |_| ());
        assert_eq!(self.decide(command), Outcome::Authorised);
        id
    }

    /// Settled by relay and client.
    pub fn settle(&mut self, pool: &OpenPool, request: RequestId) {
        let settle =
            self.fleet.node_command(pool.relay, NodeCommand::Settle(vec![Fleet::settlement(request)]));
        let report = self.fleet.client(CLIENT, ClientCommand::Report(vec![Fleet::report(request)]));
        let outcomes = self.apply(vec![settle, report]).outcomes;
        assert_eq!((&outcomes[0].1, &outcomes[1].1), (&Outcome::Settled(vec![]), &Outcome::Reported(vec![])));
    }

    /// A leaf and its proof to a checkpoint.
    pub fn proven_leaf(&self, index: LeafIndex, size: TreeSize) -> ProvenLeaf {
        let inclusion = prove_inclusion(&self.log.tree, index, size).unwrap();
        ProvenLeaf { index, bytes: self.log.leaves[index.0 as usize].clone(), inclusion }
    }

    /// A proof of these leaves under the newest checkpoint, which must be certified.
    pub fn proof(&self, leaves: &[LeafIndex]) -> Proof {
        let (size, certified) = self.certified.last_key_value().expect("nothing is certified");
        let size = *size;
        assert_eq!(
            certified.reference(),
            self.log.state.checkpoint(),
            "the newest checkpoint is not certified"
        );
        let end = self.proven_leaf(LeafIndex(size.0 - 1), size);
        let Leaf::V1 { body: LeafBody::BatchEnd(batch_end), .. } = borsh::from_slice(&end.bytes).unwrap()
        else {
            unreachable!("every batch has an end")
        };
        let mut blobs = BTreeMap::new();
        let mut evidence = Vec::new();
        for (_, index) in &batch_end.attested {
            let leaf = self.proven_leaf(*index, size);
            let Leaf::V1 { body: LeafBody::Decided { command: Command::Evidence(c), .. }, .. } =
                borsh::from_slice(&leaf.bytes).unwrap()
            else {
                unreachable!("attested by evidence")
            };
            let nonce = prove_consistency(&self.log.tree, c.nonce.size, size).unwrap();
            for digest in std::iter::once(c.evidence.event_log).chain(c.evidence.ima_log) {
                blobs.insert(Hash(digest), self.fleet.blobs.0[&Hash(digest)].clone());
            }
            evidence.push(ProvenEvidence { leaf, nonce });
        }
        let version = self.log.state.policy().version.0 as usize;
        // A removed member may have agreed to its removal, but nothing proves its key to a client.
        let attested: BTreeSet<NodeId> = batch_end.attested.iter().map(|(n, _)| *n).collect();
        let cosignatures =
            certified.cosignatures().iter().filter(|(n, _)| attested.contains(n)).copied().collect();
        Proof {
            chain: self.fleet.chain[..version].to_vec(),
            checkpoint: certified.reference(),
            cosignatures,
            end,
            evidence,
            leaves: leaves.iter().map(|l| self.proven_leaf(*l, size)).collect(),
            blobs: blobs.into_values().collect(),
        }
    }

    /// The receipt of a request: its authorisation, and every leaf that says how it ended.
    pub fn receipt(&self, request: RequestId) -> Receipt {
        let speaks = |bytes: &Vec<u8>| {
            let Leaf::V1 { body, .. } = borsh::from_slice(bytes).unwrap();
            match body {
                LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => {
                    matches!(c.body, ClientCommand::Authorise(a) if a.request == request)
                }
                LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Reported(_) } => {
                    matches!(c.body, ClientCommand::Report(r) if r.iter().any(|r| r.request == request))
                }
                LeafBody::Decided { command: Command::Node(c), outcome: Outcome::Settled(_) } => {
                    matches!(c.body, NodeCommand::Settle(s) if s.iter().any(|s| s.request == request))
                }
                _ => false,
            }
        };
        let leaves =
            self.log.leaves.iter().enumerate().filter(|(_, b)| speaks(b)).map(|(i, _)| LeafIndex(i as u64));
        Receipt(self.proof(&leaves.collect::<Vec<_>>()))
    }

    /// The policy version in force.
    pub fn version(&self) -> PolicyVersion {
        self.log.state.policy().version
    }
}
