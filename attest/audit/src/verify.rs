//! `verify DIR`: everything that the log claims, decided from the genesis digest alone.
use crate::cli::{Exit, GenesisArg, Outcome, findings, say, say_json};
use crate::finding::{Error, Finding};
use crate::mirror::progress_bar;
use crate::prune;
use crate::replay::{Checked, Options, Replay, Step};
use crate::store::Mirror;
use crate::words;
use quorate_core::command::{Alarm, ClientCommand, Command, NodeCommand};
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, PolicyVersion, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome as Decision};
use quorate_core::tlog::{LeafIndex, TreeSize};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A policy version and who put it into force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyChange {
    /// Number.
    pub version: PolicyVersion,
    /// Leaf; none for genesis, which is leaf 0.
    pub leaf: LeafIndex,
    /// Entry time.
    pub time: Timestamp,
    /// Names of the admins, as the version before has them.
    pub signers: Vec<String>,
}

/// What history holds, by numbers. All of it was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Of the first batch and of the last.
    pub time: Option<(Timestamp, Timestamp)>,
    /// Pools opened.
    pub pools: u64,
    /// Requests authorised.
    pub authorised: u64,
    /// Settlements taken.
    pub settled: u64,
    /// Reports taken.
    pub reported: u64,
    /// Commands refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// Evidence found good, by node.
    pub appraised: BTreeMap<NodeId, u64>,
    /// Evidence refused, by node and check.
    pub appraisals_refused: BTreeMap<String, u64>,
    /// Nodes whose evidence is from a software TPM: it proves nothing about a machine.
    pub software_tpms: Vec<NodeId>,
    /// Lapses, by node.
    pub lapsed: BTreeMap<NodeId, u64>,
    /// Recoveries out of darkness.
    pub recoveries: u64,
    /// Requests that relay or client never settled.
    pub unsettled: u64,
    /// Flagged requests, by rule.
    pub anomalies: BTreeMap<String, u64>,
    /// Alarms, by kind.
    pub alarms: BTreeMap<String, u64>,
    /// Pairs suspended and credentials frozen.
    pub credential_stops: u64,
    /// Entries that did not decode: a lying leader.
    pub undecodable: u64,
    /// Policy versions, genesis first.
    pub policies: Vec<PolicyChange>,
}

impl Summary {
    /// Adds a batch.
    pub fn add(&mut self, step: &Step) {
        self.time = Some((self.time.map_or(step.time, |(first, _)| first), step.time));
        for leaf in &step.leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            match body {
                LeafBody::Decided { command, outcome } => {
                    self.decided(leaf.index(), step.time, command, outcome)
                }
                LeafBody::Lapsed { node } => *self.lapsed.entry(*node).or_default() += 1,
                LeafBody::Unsettled { .. } => self.unsettled += 1,
                LeafBody::Anomaly { rule, .. } => {
                    *self.anomalies.entry(words::anomaly(*rule).to_owned()).or_default() += 1;
                }
                LeafBody::PairSuspended { .. } | LeafBody::CredentialFrozen { .. } => {
                    self.credential_stops += 1
                }
                LeafBody::Undecodable { .. } => self.undecodable += 1,
                LeafBody::Genesis { .. } | LeafBody::StateDigest { .. } | LeafBody::BatchEnd(_) => {}
            }
        }
    }

    fn decided(&mut self, at: LeafIndex, time: Timestamp, command: &Command, outcome: &Decision) {
        match (outcome, command) {
            (Decision::PoolOpened, _) => self.pools += 1,
            (Decision::Authorised, _) => self.authorised += 1,
            (Decision::Settled(refused), Command::Node(c)) => {
                if let NodeCommand::Settle(list) = &c.body {
                    self.settled += (list.len() - refused.len().min(list.len())) as u64;
                }
            }
            (Decision::Reported(refused), Command::Client(c)) => {
                if let ClientCommand::Report(list) = &c.body {
                    self.reported += (list.len() - refused.len().min(list.len())) as u64;
                }
            }
            (Decision::AlarmRaised, Command::Node(c)) => {
                let kind = match &c.body {
                    NodeCommand::Alarm(Alarm::HeadRefused { .. }) => "head refused",
                    NodeCommand::Alarm(Alarm::Equivocation { .. }) => "equivocation",
                    NodeCommand::Alarm(Alarm::Withheld { .. }) => "withheld",
                    NodeCommand::Alarm(Alarm::AdmissionRefused { .. }) => "admission refused",
                    _ => "other",
                };
                *self.alarms.entry(kind.to_owned()).or_default() += 1;
            }
            (Decision::Appraised { software_tpm, .. }, Command::Evidence(c)) => {
                *self.appraised.entry(c.node).or_default() += 1;
                if *software_tpm && !self.software_tpms.contains(&c.node) {
                    self.software_tpms.push(c.node);
                    self.software_tpms.sort_unstable();
                }
            }
            (Decision::AppraisalRefused { check }, Command::Evidence(c)) => {
                *self.appraisals_refused.entry(format!("{}: {check}", c.node)).or_default() += 1;
            }
            (Decision::AppraisalRefused { check }, _) => {
                *self.appraisals_refused.entry(format!("recovery: {check}")).or_default() += 1;
            }
            (Decision::Recovered, _) => self.recoveries += 1,
            (Decision::PolicyChanged { version, signers }, _) => {
                let signers = signers.clone();
                self.policies.push(PolicyChange { version: *version, leaf: at, time, signers });
            }
            (Decision::Refused(refusal), _) => {
                *self.refused.entry(refusal.code().to_owned()).or_default() += 1
            }
            _ => {}
        }
    }
}

/// A log that holds.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Genesis digest it was verified against.
    pub genesis: Hash,
    /// Name of the cluster.
    pub cluster: String,
    /// Leaves under the newest checkpoint.
    pub size: TreeSize,
    /// First leaf that was replayed: not 0 where the copy was cut, whose state there is believed.
    pub begins: LeafIndex,
    /// Its root.
    pub root: Hash,
    /// Who cosigned it.
    pub cosigners: Vec<NodeId>,
    /// How many it takes.
    pub quorum: usize,
    /// What was checked.
    pub checked: Checked,
    /// What history holds.
    pub summary: Summary,
    /// How long it took.
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
}

fn seconds<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

/// What came of it.
#[derive(Debug)]
pub enum Verdict {
    /// All of it holds.
    Holds(Box<Verified>),
    /// Something does not; in order of discovery. Nothing after leaf `upto` was looked at where history itself broke.
    Fails {
        /// What is wrong.
        findings: Vec<Finding>,
        /// Leaves that replayed alike before.
        upto: TreeSize,
    },
}

/// Replays a mirror to its end. `watch` is told of each batch's end.
pub fn verify(
    mirror: &Mirror,
    genesis: Hash,
    options: Options,
    mut watch: impl FnMut(TreeSize, TreeSize),
) -> Result<Verdict, Error> {
    let began = Instant::now();
    let fails = |findings, upto| Ok(Verdict::Fails { findings, upto });
    let began_at = match prune::pruned(mirror) {
        Some(_) => Replay::resume(mirror, genesis, options),
        None => Replay::start(mirror, genesis, options),
    };
    let mut replay = match began_at {
        Ok(replay) => replay,
        Err(Error::Found(finding)) => return fails(vec![*finding], TreeSize::ZERO),
        Err(error) => return Err(error),
    };
    let mut summary = Summary::default();
    let begins = match replay.position() {
        TreeSize(1) => LeafIndex(0),
        TreeSize(size) => LeafIndex(size),
    };
    let signers = match begins {
        LeafIndex(0) => replay.state().policy().check_signers(replay.state().signed_policy()),
        // By admins of a version that the state has no more.
        _ => Ok(Vec::new()),
    };
    summary.policies.push(PolicyChange {
        version: replay.state().policy().version,
        leaf: begins,
        time: replay.state().time(),
        signers: signers.unwrap_or_default(),
    });
    let size = replay.newest().size();
    let mut last = None;
    loop {
        match replay.step() {
            Ok(Some(step)) => {
                summary.add(&step);
                watch(replay.position(), size);
                last = Some(step);
            }
            Ok(None) => break,
            Err(Error::Found(finding)) => {
                let findings = replay.findings().iter().cloned().chain([*finding]).collect();
                return fails(findings, replay.position());
            }
            Err(error) => return Err(error),
        }
    }
    if !replay.findings().is_empty() {
        return fails(replay.findings().to_vec(), replay.position());
    }
    let certified = last.and_then(|step| step.certified);
    let state = replay.state();
    Ok(Verdict::Holds(Box::new(Verified {
        genesis,
        cluster: state.policy().cluster.clone(),
        size: state.checkpoint().size,
        begins,
        root: state.checkpoint().root,
        cosigners: certified.iter().flat_map(|c| c.cosignatures()).map(|(n, _)| *n).collect(),
        quorum: state.policy().quorum(),
        checked: replay.checked(),
        summary,
        took: began.elapsed(),
    })))
}

/// Replays the whole history through the state machine that the nodes run: every signature, every decision, every quote against
/// the reference values of its moment, every checkpoint and blob.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// A folder that `mirror` made
    dir: std::path::PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    /// Threads that read and check signatures ahead; by default one for each core
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The subcommand.
pub fn run(args: VerifyArgs) -> Outcome {
    let mirror = Mirror::open(&args.dir)?;
    let options = args.threads.map_or_else(Options::default, |threads| Options { threads });
    let bar = progress_bar("verifying");
    let verdict = verify(&mirror, args.genesis.genesis, options, |done, size| {
        bar.set_length(size.0);
        bar.set_position(done.0);
    });
    bar.finish_and_clear();
    match verdict? {
        Verdict::Holds(verified) => {
            if args.json {
                say_json(&serde_json::json!({ "holds": true, "log": verified }))?;
            } else {
                say(&describe(&verified))?;
            }
            Ok(Exit::Good)
        }
        Verdict::Fails { findings: found, upto } => {
            if args.json {
                let found: Vec<_> = found.iter().map(Finding::to_json).collect();
                say_json(&serde_json::json!({ "holds": false, "findings": found, "leaves_before": upto }))?;
            } else {
                let before = words::count(upto.0);
                say(&format!("FAILED: this log does not hold\n\n{}", findings(&found)))?;
                say(&format!(
                    "{before} leaves replayed alike before that. Nothing after it is vouched for.\n"
                ))?;
            }
            Ok(Exit::ProvenWrong)
        }
    }
}

fn describe(v: &Verified) -> String {
    let (c, s) = (&v.checked, &v.summary);
    let mut text = String::new();
    let mut say = |label: &str, value: String| text.push_str(&format!("{label:<14}{value}\n"));
    let rate = |n: u64| words::count((n as f64 / v.took.as_secs_f64().max(0.001)) as u64);
    let what = if v.begins.0 == 0 { "all of it".into() } else { format!("all from leaf {} on", v.begins) };
    say("holds", format!("{what}, in {:.1} s", v.took.as_secs_f64()));
    if v.begins.0 > 0 {
        say("", "this copy was cut: the state there is believed as the cut left it (`pruned-state`)".into());
    }
    say("cluster", format!("{} (genesis {})", v.cluster, v.genesis));
    let nodes: Vec<String> = v.cosigners.iter().map(ToString::to_string).collect();
    say(
        "certified by",
        format!(
            "{} ({} of {} needed), size {}, root {}",
            nodes.join(", "),
            nodes.len(),
            v.quorum,
            words::count(v.size.0),
            v.root
        ),
    );
    if let Some((first, last)) = s.time {
        say("from, to", format!("{}, {}", words::date(first), words::date(last)));
    }
    say(
        "checked",
        format!("{} leaves in {} batches came out alike", words::count(c.leaves), words::count(c.batches)),
    );
    say(
        "",
        format!(
            "{} signed commands ({} a second), {} quotes",
            words::count(c.commands),
            rate(c.commands),
            words::count(c.quotes)
        ),
    );
    say(
        "",
        format!(
            "{} checkpoints with {} cosignatures, {} tiles, {} blobs",
            c.checkpoints,
            c.cosignatures,
            words::count(c.tiles),
            c.blobs
        ),
    );
    say(
        "requests",
        format!(
            "{} authorised, {} settled by relays, {} reported by clients",
            words::count(s.authorised),
            words::count(s.settled),
            words::count(s.reported)
        ),
    );
    let listed = |counts: &BTreeMap<String, u64>| {
        counts.iter().map(|(what, n)| format!("{} × {what}", words::count(*n))).collect::<Vec<_>>().join("; ")
    };
    let by_node = |counts: &BTreeMap<NodeId, u64>| {
        counts.iter().map(|(node, n)| format!("{node} {}", words::count(*n))).collect::<Vec<_>>().join(", ")
    };
    for policy in &s.policies {
        let when = if policy.version.0 == 1 { "genesis".into() } else { words::date(policy.time) };
        if policy.signers.is_empty() {
            say("policy", format!("version {} was in force at leaf {}", policy.version, policy.leaf));
            continue;
        }
        say(
            "policy",
            format!(
                "version {} (leaf {}, {when}), signed by {}",
                policy.version,
                policy.leaf,
                policy.signers.join(", ")
            ),
        );
    }
    say("attested", format!("evidence found good: {}", by_node(&s.appraised)));
    if !s.software_tpms.is_empty() {
        let nodes: Vec<String> = s.software_tpms.iter().map(ToString::to_string).collect();
        say("", format!("software TPMs, which prove nothing about a machine: {}", nodes.join(", ")));
    }
    let odd = [
        ("refused", listed(&s.refused)),
        ("appraisals", listed(&s.appraisals_refused)),
        ("lapses", by_node(&s.lapsed)),
        ("anomalies", listed(&s.anomalies)),
        ("alarms", listed(&s.alarms)),
    ];
    for (label, what) in odd.into_iter().filter(|(_, what)| !what.is_empty()) {
        say(label, what);
    }
    for (n, what) in [
        (s.unsettled, "request(s) that relay or client never settled"),
        (s.credential_stops, "pair(s) suspended or key(s) frozen"),
        (s.undecodable, "entries that did not decode: the leader of that moment lied"),
    ] {
        if n > 0 {
            say("", format!("{} {what}", words::count(n)));
        }
    }
    say(
        "not checked",
        "whether nodes serve this history to others too: mirror from several, or `monitor`".into(),
    );
    say("", "what ran after a quote: it says what booted; token counts: the client's word".into());
    text
}
