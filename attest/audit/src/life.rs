//! `explain REQUEST`: the life of one request, from the first signature to the last, each part proven from the genesis digest.
//!
//! The request, how it ended and the checkpoint stand in a verified receipt ([`crate::prove`]). What the nodes ran at that moment
//! is the evidence that the end of the request's own batch names, appraised again here against the policy of that version.
//! Not decided here: whether the history around it holds. [`crate::verify`] does that.
use crate::cli::{Exit, GenesisArg, Outcome, say, say_json};
use crate::finding::{Error, Fault, Finding, Place};
use crate::prove::{Desk, NoProof, Proven};
use crate::store::Mirror;
use crate::words;
use quorate_attest::evidence::Evidence;
use quorate_core::command::{Alarm, ClientCommand, Command, NodeCommand};
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, RequestId, Timestamp};
use quorate_core::leaf::{BatchEnd, Leaf, LeafBody};
use quorate_core::policy::Policy;
use quorate_core::state::{Blobs, appraise_member, evidence_nonce};
use quorate_core::tlog::{LeafIndex, TreeSize};
use serde::Serialize;
use std::path::PathBuf;

/// How many leaves after a request its batch's end is looked for: a batch has 1024 commands and what they flag.
const BATCH_LEAVES_MAX: u64 = 1 << 20;

/// Tells the life of one request: who asked, through whom, on which measured software, what it cost, how it ended.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// A folder that `mirror` made
    dir: PathBuf,
    /// The request's id, 32 hex digits
    request: RequestId,
    #[command(flatten)]
    genesis: GenesisArg,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// A node as it stood when the request was authorised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attested {
    /// Number.
    pub node: NodeId,
    /// Name in the policy.
    pub name: String,
    /// Who has root there.
    pub custodian: String,
    /// Its part in the request: relay, keyer, or neither.
    pub part: &'static str,
    /// Leaf with its evidence.
    pub leaf: LeafIndex,
    /// Age of the evidence when the request was authorised.
    pub evidence_age_ms: u64,
    /// A software TPM: proves nothing about a machine.
    pub software_tpm: bool,
    /// TPM firmware version.
    pub firmware: String,
    /// Name of the reference values that the evidence met, appraised again.
    pub reference_values: String,
    /// Quoted PCRs in the SHA-256 bank.
    pub pcrs: Vec<(u8, String)>,
    /// SHA-256 of the event log.
    pub event_log: Hash,
    /// SHA-256 of the IMA list, where PCR 10 is quoted.
    pub ima_log: Option<Hash>,
    /// Boot cosigning key, hex.
    pub cosign_key: String,
}

/// Something that happened to the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Leaf.
    pub leaf: LeafIndex,
    /// Entry time.
    pub time: Timestamp,
    /// What, for machines.
    pub kind: &'static str,
    /// What, for people.
    pub what: String,
}

/// The relay's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// How it ended.
    pub ended: &'static str,
    /// Bytes to the provider, rounded up.
    pub bytes_up: u64,
    /// Bytes from it, rounded up.
    pub bytes_down: u64,
    /// From release to the first byte.
    pub first_byte_ms: u32,
    /// From release to the end.
    pub total_ms: u32,
}

/// The client's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// How it ended.
    pub ended: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Tokens, as the provider counted.
    pub tokens_in: u64,
    /// Likewise.
    pub tokens_out: u64,
}

/// The life of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Life {
    /// Id.
    pub request: String,
    /// Cluster and genesis.
    pub cluster: (String, Hash),
    /// Client.
    pub client: String,
    /// Who has root there, by the policy of the moment.
    pub client_custodian: Option<String>,
    /// Route.
    pub route: String,
    /// Host and port of its provider, by the policy of the moment.
    pub destination: Option<String>,
    /// Relay.
    pub relay: NodeId,
    /// Keyer.
    pub keyer: NodeId,
    /// Share epoch of the provider's key; 0 on a route without one.
    pub share_epoch: u32,
    /// Policy version of the moment, its digest, and whether its admins' signatures chain to genesis: they do.
    pub policy: (u64, Hash),
    /// SHA-256 of the sealed head.
    pub head_digest: Hash,
    /// Salted SHA-256 of the body.
    pub body_digest: Hash,
    /// Ceilings that were signed: body bytes, response bytes, ms.
    pub ceilings: (u64, u64, u64),
    /// When it was authorised, by entry time.
    pub authorised: Timestamp,
    /// Leaf of the authorisation.
    pub leaf: LeafIndex,
    /// Nodes attested at that moment, evidence appraised again.
    pub nodes: Vec<Attested>,
    /// The oldest certificate in the log that covers it: size, when it was in the log, and who cosigned.
    pub first_certificate: Option<(TreeSize, Timestamp, Vec<NodeId>)>,
    /// The checkpoint it is proven under: size, root, who cosigned.
    pub proven_under: (TreeSize, Hash, Vec<NodeId>),
    /// The relay's word on how it ended.
    pub settled: Option<Settled>,
    /// The client's word.
    pub reported: Option<Reported>,
    /// Everything that happened to it, in order.
    pub events: Vec<Event>,
    /// What was flagged.
    pub anomalies: Vec<String>,
}

struct MirrorBlobs<'m>(&'m Mirror);

impl Blobs for MirrorBlobs<'_> {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        self.0.blob(digest).ok()
    }
}

/// Tells the life of a request.
pub fn explain(desk: &Desk, request: RequestId, genesis: Hash) -> Result<Life, NoProof> {
    let proven = desk.prove(request, genesis)?;
    let asked = proven.authorisation.request();
    let (end, policy) = moment(desk, &proven)?;
    let time = proven.authorisation.time();
    let mut nodes = Vec::new();
    for (node, leaf) in &end.attested {
        let part = match node {
            n if *n == asked.relay => "relay",
            n if *n == asked.keyer => "keyer",
            _ => "",
        };
        nodes.push(attested(desk, &policy, genesis, (*node, *leaf), part, time)?);
    }
    let first_certificate = match proven.at.first_certificate {
        Some(index) => certificate(desk, index)?,
        None => None,
    };
    let cosigners = proven.verified.certified.cosignatures().iter().map(|(n, _)| *n).collect();
    let under = proven.verified.certified.reference();
    let client = policy.clients.get(proven.authorisation.client());
    let route = policy.routes.get(&asked.route);
    let mut life = Life {
        request: request.to_string(),
        cluster: (policy.cluster.clone(), genesis),
        client: proven.authorisation.client().to_string(),
        client_custodian: client.map(|c| c.custodian.to_string()),
        route: asked.route.to_string(),
        destination: route.map(|r| format!("{}:{}", r.document.host, r.document.port)),
        relay: asked.relay,
        keyer: asked.keyer,
        share_epoch: asked.share_epoch,
        policy: (policy.version.0, policy.digest),
        head_digest: asked.head_digest,
        body_digest: asked.body_digest,
        ceilings: (asked.body_bytes_max, asked.response_bytes_max, asked.duration_ms_max),
        authorised: time,
        leaf: proven.authorisation.index(),
        nodes,
        first_certificate,
        proven_under: (under.size, under.root, cosigners),
        settled: None,
        reported: None,
        events: vec![Event {
            leaf: proven.authorisation.index(),
            time,
            kind: "authorised",
            what: "authorised: signature, scope, rate, budget, nonce, attestation and custodians were found good".into(),
        }],
        anomalies: Vec::new(),
    };
    for leaf in proven.verified.leaves.iter().skip(1) {
        let Leaf::V1 { time, body } = leaf.leaf();
        life.add(request, leaf.index(), *time, body);
    }
    life.look_for_what_is_missing();
    Ok(life)
}

impl Life {
    fn add(&mut self, request: RequestId, leaf: LeafIndex, time: Timestamp, body: &LeafBody) {
        let mut event = |kind, what: String| self.events.push(Event { leaf, time, kind, what });
        match body {
            LeafBody::Decided { command: Command::Node(c), .. } => match &c.body {
                NodeCommand::Settle(list) => {
                    let Some(s) = list.iter().find(|s| s.request == request) else { return };
                    let ended = words::ended(s.ended);
                    event("settled", format!("settled by {}: {ended}", c.node));
                    self.settled = Some(Settled {
                        ended,
                        bytes_up: s.bytes_up,
                        bytes_down: s.bytes_down,
                        first_byte_ms: s.first_byte_ms,
                        total_ms: s.total_ms,
                    });
                }
                NodeCommand::Unanswered(_) => {
                    event("unanswered", format!("{} says as keyer that it never answered for it", c.node));
                }
                NodeCommand::Alarm(alarm @ Alarm::HeadRefused { .. }) => {
                    let what = format!("alarm of {}: {}", c.node, words::alarm(alarm));
                    event("alarm", what.clone());
                    self.anomalies.push(what);
                }
                NodeCommand::Alarm(_) | NodeCommand::Snapshot => {}
            },
            LeafBody::Decided { command: Command::Client(c), .. } => {
                let ClientCommand::Report(list) = &c.body else { return };
                let Some(r) = list.iter().find(|r| r.request == request) else { return };
                let ended = words::ended(r.ended);
                event("reported", format!("reported by the client: {ended}, HTTP {}", r.status));
                let (tokens_in, tokens_out) = (r.tokens_in, r.tokens_out);
                self.reported = Some(Reported { ended, status: r.status, tokens_in, tokens_out });
            }
            body @ (LeafBody::Unsettled { .. } | LeafBody::Anomaly { .. }) => {
                let what = words::leaf(&Leaf::V1 { time, body: body.clone() });
                event("anomaly", what.clone());
                self.anomalies.push(what);
            }
            _ => {}
        }
    }

    /// What no leaf flags, because it has not happened yet or is no rule of the state machine.
    fn look_for_what_is_missing(&mut self) {
        if self.settled.is_none() && self.anomalies.is_empty() {
            self.anomalies.push("the relay has not settled it by the mirror's newest checkpoint".into());
        }
        if let Some(r) = self.reported.as_ref().filter(|r| r.status != 0 && !(200..300).contains(&r.status)) {
            self.anomalies.push(format!("the provider answered HTTP {}", r.status));
        }
    }
}

/// The end of the request's own batch, which must be under the checkpoint, and the policy of that moment.
fn moment(desk: &Desk, proven: &Proven) -> Result<(BatchEnd, Policy), NoProof> {
    let from = proven.authorisation.index();
    for index in (from.0..from.0.saturating_add(BATCH_LEAVES_MAX)).map(LeafIndex) {
        let Leaf::V1 { body: LeafBody::BatchEnd(end), .. } = desk.leaf(index)? else { continue };
        included(desk, proven, index)?;
        let signed =
            usize::try_from(end.policy.0).ok().and_then(|v| proven.receipt.0.chain.get(v.checked_sub(1)?));
        // The chain was verified with the receipt; the digest says which of its versions this is.
        let policy =
            signed.and_then(|s| Policy::parse(&s.document).ok()).filter(|p| p.digest == end.policy_digest);
        let other = || Finding::at(Place::Leaf(index), Fault::OtherDigest(end.policy_digest));
        return Ok((end.clone(), policy.ok_or_else(other)?));
    }
    Err(Finding::at(Place::Leaf(from), Fault::EndlessBatch(from)).into())
}

/// The leaf is under the checkpoint that the receipt proves.
fn included(desk: &Desk, proven: &Proven, index: LeafIndex) -> Result<Leaf, NoProof> {
    let leaf = desk.proven(index)?;
    let wrong = || Finding::at(Place::Leaf(index), Fault::Missing);
    let certified =
        proven.verified.certified.leaf(&leaf.bytes, index, &leaf.inclusion).map_err(|_| wrong())?;
    Ok(certified.leaf().clone())
}

fn attested(
    desk: &Desk,
    policy: &Policy,
    genesis: Hash,
    (node, leaf): (NodeId, LeafIndex),
    part: &'static str,
    at: Timestamp,
) -> Result<Attested, NoProof> {
    let wrong = |fault| NoProof::from(Finding::at(Place::Leaf(leaf), fault));
    let Leaf::V1 { time, body: LeafBody::Decided { command: Command::Evidence(c), .. } } = desk.leaf(leaf)?
    else {
        return Err(wrong(Fault::Undecodable));
    };
    let Evidence { pcrs, event_log, ima_log, .. } = &c.evidence;
    let expected = evidence_nonce(genesis, &c);
    let blobs = MirrorBlobs(desk.mirror());
    let unfit = |rules: String| {
        wrong(Fault::Decision {
            what: format!("evidence of {node}"),
            said: "appraised as good".into(),
            rules,
            forged: false,
        })
    };
    let appraised = appraise_member(policy, node, &c.evidence, &expected, None, &blobs)
        .map_err(|refusal| unfit(refusal.to_string()))?
        .map_err(|check| unfit(format!("appraisal refused: {check}")))?;
    if c.node != node || !c.possesses_key(genesis) {
        return Err(unfit("evidence of another node".into()));
    }
    let member = policy.members.get(&node);
    Ok(Attested {
        node,
        name: member.map(|m| m.name.clone()).unwrap_or_default(),
        custodian: member.map(|m| m.custodian.to_string()).unwrap_or_default(),
        part,
        leaf,
        evidence_age_ms: at.since_ms(time),
        software_tpm: appraised.software_tpm(),
        firmware: format!("{:016x}", appraised.firmware_version()),
        reference_values: member.map(|m| m.reference_values.clone()).unwrap_or_default(),
        pcrs: pcrs.iter().map(|(index, value)| (*index, hex::encode(value))).collect(),
        event_log: Hash(*event_log),
        ima_log: ima_log.map(Hash),
        cosign_key: hex::encode(c.boot.cosign),
    })
}

type Certificate = Option<(TreeSize, Timestamp, Vec<NodeId>)>;

/// The certificate inside evidence.
fn certificate(desk: &Desk, index: LeafIndex) -> Result<Certificate, Error> {
    let Leaf::V1 { time, body: LeafBody::Decided { command: Command::Evidence(c), .. } } =
        desk.leaf(index)?
    else {
        return Ok(None);
    };
    Ok(Some((c.nonce.size, time, c.certificate.iter().map(|(node, _)| *node).collect())))
}

/// The subcommand.
pub fn run(args: ExplainArgs) -> Outcome {
    let desk = Desk::open(Mirror::open(&args.dir)?)?;
    match explain(&desk, args.request, args.genesis.genesis) {
        Ok(life) if args.json => say_json(&life)?,
        Ok(life) => say(&describe(&life))?,
        Err(error) => return error.end(args.json),
    }
    Ok(Exit::Good)
}

fn describe(life: &Life) -> String {
    let mut text = String::new();
    let mut say = |label: &str, value: String| {
        text.push_str(format!("{label:<14}{value}").trim_end());
        text.push('\n');
    };
    let name = |n: NodeId| match life.nodes.iter().find(|a| a.node == n) {
        Some(a) => format!("{} ({n}, custodian {})", a.name, a.custodian),
        None => n.to_string(),
    };
    let list = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    say("request", life.request.clone());
    say("cluster", format!("{} (genesis {})", life.cluster.0, life.cluster.1));
    let custodian = life.client_custodian.as_ref().map(|c| format!(" (custodian {c})")).unwrap_or_default();
    say("asked by", format!("{}{custodian}, by its own signature", life.client));
    let to = life.destination.as_ref().map(|d| format!(" -> {d}")).unwrap_or_default();
    say("route", format!("{}{to}, by policy version {} ({})", life.route, life.policy.0, life.policy.1));
    say("relay", name(life.relay));
    say("keyer", name(life.keyer));
    let key = match life.share_epoch {
        0 => "none on this route".to_owned(),
        epoch => format!("split for its nodes, share epoch {epoch}; no node had it"),
    };
    say("provider key", key);
    say("head", format!("{} (SHA-256 of the sealed records)", life.head_digest));
    say("body", format!("{} (salted: only the client can open it)", life.body_digest));
    let (body, response, ms) = life.ceilings;
    say(
        "ceilings",
        format!("{} bytes up, {} bytes down, {ms} ms", words::count(body), words::count(response)),
    );
    say("", String::new());
    for event in &life.events {
        say(&format!("leaf {}", event.leaf), format!("{}  {}", words::date(event.time), event.what));
    }
    say("", String::new());
    if let Some(s) = &life.settled {
        say(
            "bytes",
            format!(
                "{} up, {} down, rounded up (the relay's word)",
                words::count(s.bytes_up),
                words::count(s.bytes_down)
            ),
        );
        say(
            "timing",
            format!(
                "first byte after {} ms, end after {} ms (the relay's word)",
                s.first_byte_ms, s.total_ms
            ),
        );
    }
    if let Some(r) = &life.reported {
        say(
            "cost",
            format!(
                "{} tokens in, {} out (the client's word; prices are not in the log)",
                r.tokens_in, r.tokens_out
            ),
        );
    }
    let flagged = if life.anomalies.is_empty() { "none".to_owned() } else { life.anomalies.join("; ") };
    say("anomalies", flagged);
    say("", String::new());
    say("attested then", format!("{} node(s), evidence appraised again now", life.nodes.len()));
    for node in &life.nodes {
        let part =
            if node.part.is_empty() { String::new() } else { format!(", {} of this request", node.part) };
        let kind =
            if node.software_tpm { "software TPM (proves nothing about a machine)" } else { "hardware TPM" };
        say(
            &format!("  {}", node.node),
            format!(
                "{}{part}: {kind}, firmware {}, quote {} ms old (leaf {})",
                node.name, node.firmware, node.evidence_age_ms, node.leaf
            ),
        );
        let pcrs: Vec<String> =
            node.pcrs.iter().map(|(i, v)| format!("{i}={}…", v.get(..12).unwrap_or(v))).collect();
        say("", format!("meets reference values {:?}: PCR {}", node.reference_values, pcrs.join(" ")));
        let ima = node.ima_log.map(|d| format!(", measurement list {d}")).unwrap_or_default();
        say("", format!("event log {}{ima}", node.event_log));
    }
    say("", String::new());
    if let Some((size, time, nodes)) = &life.first_certificate {
        say("certified", format!("by {} at size {size}, at the latest {}", list(nodes), words::date(*time)));
    }
    let (size, root, nodes) = &life.proven_under;
    say(
        "proven under",
        format!("the checkpoint of size {size} with root {root}, cosigned by {}", list(nodes)),
    );
    say("for others", format!("quorate-audit prove DIR {}", life.request));
    text
}
