//! `monitor`: follows every node and a witness, and raises what somebody should look at.
//!
//! ```text
//! every node's /checkpoint ─► the largest that verifies: leaves through the state machine, certified? ─► into the mirror, alarms
//!                          └► all others: of the same history? if not, both notes and a proof are kept ─► split view
//! witness ─► fed with what was verified, or read; of the same history, and not far behind?
//! ```
//! A history counts when it replays and a quorum certified it; so with at most f hostile nodes the first one followed is the one
//! there is. With more, whoever is followed first is only one of two: the alarm names both, and the evidence decides nothing but
//! that there are two.
//!
//! | module | |
//! |---|---|
//! | [`poll`] | one look at everybody |
//! | [`follow`] | history as far as verified, and its next part |
//! | [`grow`] | the mirror, appended to |
//! | [`compare`] | whether two checkpoints fit together; the proof where not |
//! | [`watch`] | rules over leaves |
//! | [`memory`] | alarms and conditions on disk |
//! | [`alarm`] | kinds, and what they mean |
//!
//! **Left to others**: what a node says only on its own metrics page, and whether a provider is well.
pub mod alarm;
pub mod compare;
mod follow;
mod grow;
mod memory;
pub mod poll;
#[cfg(test)]
mod tests;
mod watch;

use crate::cli::{Exit, Failure, GenesisArg, Outcome, chain, findings, say, say_json};
use crate::finding::Error;
use crate::witness::{WitnessOptions, stopped};
use crate::words;
use alarm::{Alarm, Severity, Turn};
use poll::{Monitor, OpenError, Settings, TellError};
use quorate_core::ids::Timestamp;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const AFTER_HELP: &str = "\
Name every node: who is not asked cannot be caught telling another history.

  export QUORATE_LOG_URLS=\"http://node-1.example:7102 http://node-2.example:7102 …\"
  quorate-audit monitor log --genesis 0606c2e3…                       # until it is stopped
  quorate-audit monitor log --genesis 0606c2e3… --once --json         # from cron
  quorate-audit monitor log --genesis 0606c2e3… --webhook https://alerts.example/hook

DIR is a mirror: one that `mirror` made is taken over, and what the monitor keeps there can be verified, explained, \
mirrored. Beside it, DIR/monitor holds every alarm (alarms.jsonl), evidence that convinces others, and what a restart needs: \
no alarm is missed, and none is raised twice. An alarm has a stable `id`; a webhook may see one twice after a crash.

Alarms that prove that somebody lied: split_view, rules_broken, equivocation, witness_other_history.
Warnings: uncertified, bad_checkpoint, unserved, lapsed, appraisal_refused, admission_refused, new_destination, odd_status, \
anomaly, detour, unsettled, withheld, head_refused, credential_stopped, dark, undecodable, unreachable, node_behind, stale, \
witness_behind, witness_failing.
Notices: policy_changed, recovered.

Exit codes of --once: 0 all is well, or a notice; 3 somebody is proven to have lied; 4 another alarm was raised, or still \
stands; 1 it could not look (disk).";

/// Follow all nodes: compare what they sign, verify what is new, raise what somebody should look at
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct MonitorArgs {
    /// The mirror's folder; made if there is none
    dir: PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    /// A node's HTTP address, such as http://node-1.example:7102; repeatable, or several with spaces between them
    #[arg(
        long = "node",
        env = "QUORATE_LOG_URLS",
        value_name = "URL",
        value_delimiter = ' ',
        required = true
    )]
    nodes: Vec<String>,
    /// Look once and exit
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// Post each alarm there, as JSON; what fails is posted with the next look
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    #[command(flatten)]
    witness: WitnessOptions,
    /// Seconds that a node or the witness may fail before it is an alarm; default 30, with --once 0
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u64>,
    /// Seconds that a node may be behind the others
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    behind: u64,
    /// Seconds that the whole log may stand still
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    stale: u64,
    /// Seconds that the witness may be behind
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    witness_behind: u64,
}

/// The subcommand.
pub fn run(args: MonitorArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Failure::new(format!("cannot start: {e}"), ""))?.block_on(monitor(args))
}

async fn monitor(args: MonitorArgs) -> Outcome {
    let patience = args.patience.unwrap_or(if args.once { 0 } else { 30 });
    let urls = args.nodes.iter().map(|url| url.trim_end_matches('/').to_owned());
    let settings = Settings {
        genesis: args.genesis.genesis,
        nodes: urls.filter(|url| !url.is_empty()).collect(),
        patience_ms: patience.saturating_mul(1000),
        behind_ms: args.behind.saturating_mul(1000),
        stale_ms: args.stale.saturating_mul(1000),
        witness_ms: args.witness_behind.saturating_mul(1000),
    };
    let mut monitor = match Monitor::open(&args.dir, settings, args.witness.peer()?).await {
        Ok(monitor) => monitor,
        Err(OpenError::Audit(error)) => return found(error, args.json),
        Err(error @ OpenError::NoGenesis(_)) => {
            return Err(Failure::new(chain(&error), "are these the nodes' HTTP addresses?"));
        }
        Err(error @ OpenError::Behind { .. }) => {
            let hint =
                "bring the mirror back; or remove DIR/monitor/snapshot to verify it from the beginning";
            return Err(Failure::new(chain(&error), hint));
        }
    };
    let mut stop = std::pin::pin!(stopped());
    loop {
        let raised = match monitor.poll(now()).await {
            Ok(raised) => raised,
            Err(error) => return found(error, args.json),
        };
        let said = monitor.tell(args.webhook.as_deref(), |alarm| tell(alarm, args.json)).await;
        match said {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("quorate-audit: not posted yet: {}", chain(&error)),
            Err(TellError::Say(failure)) => return Err(failure),
            Err(TellError::Own(error)) => return Err(error.into()),
        }
        if args.once {
            monitor.keep()?;
            return Ok(exit(&raised, monitor.worst()));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(args.every)) => {}
            () = &mut stop => {
                monitor.keep()?;
                return Ok(Exit::Good);
            }
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What `--once` says by its exit code.
fn exit(raised: &[Alarm], standing: Option<Severity>) -> Exit {
    let raised = raised.iter().filter(|a| a.state == Turn::Raised).map(|a| a.severity);
    match raised.chain(standing).max() {
        None | Some(Severity::Notice) => Exit::Good,
        Some(Severity::Warning) => Exit::Alarmed,
        Some(Severity::Proven) => Exit::ProvenWrong,
    }
}

/// The mirror itself is wrong, or the disk failed.
fn found(error: Error, json: bool) -> Outcome {
    match error {
        Error::Found(finding) if json => {
            say_json(&serde_json::json!({ "findings": [finding.to_json()] }))?;
            Ok(Exit::ProvenWrong)
        }
        Error::Found(finding) => {
            say(&format!("REFUSED: the mirror does not hold\n\n{}", findings(&[*finding])))?;
            Ok(Exit::ProvenWrong)
        }
        other => Err(other.into()),
    }
}

fn tell(alarm: &Alarm, json: bool) -> Result<(), Failure> {
    if json { say_json(alarm) } else { say(&line(alarm)) }
}

/// For people: one line of what, one of what it means, one of where the evidence is.
fn line(alarm: &Alarm) -> String {
    let how = match (alarm.state, alarm.severity) {
        (Turn::Cleared, _) => "over",
        (_, Severity::Proven) => "PROVEN",
        (_, Severity::Warning) => "warning",
        (_, Severity::Notice) => "notice",
    };
    let leaf = alarm.leaf.map_or(String::new(), |leaf| format!(" (leaf {leaf})"));
    let about = alarm.subject.as_ref().map_or(String::new(), |subject| format!(" {subject}"));
    let (when, kind, what) = (words::date(alarm.time), alarm.kind.name(), &alarm.what);
    let mut text = format!("{when}  {how:<7}  {kind}{about}: {what}{leaf}\n");
    if alarm.state == Turn::Raised {
        text.push_str(&format!("    {}\n", alarm.means));
    }
    if let Some(evidence) = &alarm.evidence {
        text.push_str(&format!("    evidence: {}\n", evidence.display()));
    }
    text
}
