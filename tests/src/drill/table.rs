//! The attacks by name, and the table of what became of them.
use super::{Report, Row};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// When it runs: see the module's docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Every node runs the product's binary.
    Outside,
    /// Some nodes, or all, run the hostile build.
    Inside,
}

/// An attack.
#[derive(Debug)]
pub struct Attack {
    /// Its name on the command line.
    pub name: &'static str,
    /// When it runs.
    pub phase: Phase,
    /// Who does what.
    pub what: &'static str,
    /// What an ordinary LLM gateway would have lost: one process that holds the keys and terminates TLS.
    pub gateway: &'static str,
}

const KEYS: &str = "every provider key in its process or configuration";
const ALL: &str = "every provider key, every prompt and every answer: that process is the gateway";
const NOBODY_CHECKS: &str =
    "nobody looks at what the gateway's machine booted: keys and prompts go on flowing through it";
const THERE_IS_NONE: &str =
    "nothing of this kind: there the gateway holds the key and writes the header itself";
const EDITS: &str = "whoever edits its configuration redirects all traffic, the key in each request's header";
const NO_LOG: &str = "its log is a file or table that its administrator can rewrite; nobody would know";
const ONE_PROCESS: &str = "its one process or database: down, or deciding alone";

const fn outside(name: &'static str, what: &'static str, gateway: &'static str) -> Attack {
    Attack { name, phase: Phase::Outside, what, gateway }
}
const fn inside(name: &'static str, what: &'static str, gateway: &'static str) -> Attack {
    Attack { name, phase: Phase::Inside, what, gateway }
}

/// All of them, in the order in which they run.
pub static ATTACKS: &[Attack] = &[
    outside("tampered-boot", "machine: something was measured that no event log explains", NOBODY_CHECKS),
    outside(
        "tampered-binary",
        "machine: another binary than the admins approved, honestly measured",
        NOBODY_CHECKS,
    ),
    outside("cuckoo-tpm", "machine: quotes come from another genuine TPM of the same maker", NOBODY_CHECKS),
    outside(
        "stolen-disk",
        "machine: a node's disk in another machine",
        "every provider key at rest that the disk can decrypt",
    ),
    outside("replayed-quote", "machine: root plays an earlier proof again in a new channel", NOBODY_CHECKS),
    outside(
        "replayed-evidence",
        "machine: root plays old evidence again, and speaks for a client",
        NOBODY_CHECKS,
    ),
    outside("rolled-back-tpm", "machine: the TPM's state is restored from an older copy", NOBODY_CHECKS),
    outside(
        "rolled-back-disk",
        "machine: the disk is restored from an older copy",
        "budgets, revocations and its log fall back to the copy",
    ),
    outside(
        "self-joining",
        "machine: a node that nobody enrolled joins by itself",
        "where replicas share one secret, a copy of it makes a replica",
    ),
    outside(
        "flooded-term",
        "node: asks for votes in ever higher terms, and in one that no campaign reaches",
        ONE_PROCESS,
    ),
    outside(
        "poisoned-snapshot",
        "node: poses as the leader and sends a snapshot with one byte changed",
        "a replica believes what its primary sends",
    ),
    outside(
        "client-package",
        "client: a malicious package (as LiteLLM 1.82.7 and 1.82.8) takes environment, files and memory",
        KEYS,
    ),
    outside(
        "over-budget",
        "client: spends its budget over three nodes at once",
        "replicas that count each by themselves: the budget times their number",
    ),
    outside(
        "revocation",
        "client: goes on after its revocation, at every node",
        "the key works until each replica's cache expires; the provider key it may have seen works on",
    ),
    inside(
        "client-shadow",
        "client: own request in the handshake's shadow: in one frame with Finished, then a KeyUpdate",
        THERE_IS_NONE,
    ),
    inside("client-key-update", "client: own request and a KeyUpdate, after the handshake", THERE_IS_NONE),
    inside("client-early-data", "client: own request as early data", THERE_IS_NONE),
    inside("client-other-name", "client: another server name at the provider's address", THERE_IS_NONE),
    inside("client-aim-path", "client: hole aimed into the path", THERE_IS_NONE),
    inside(
        "client-aim-query",
        "client: hole aimed into the query, behind the text that opens a credential",
        THERE_IS_NONE,
    ),
    inside("client-aim-header", "client: hole aimed into another header", THERE_IS_NONE),
    inside(
        "client-aim-other-path",
        "client: hole aimed into another path's credential header",
        "a pass-through path of the gateway carries the key to any endpoint",
    ),
    inside("client-aim-body", "client: hole aimed into a body", THERE_IS_NONE),
    inside(
        "client-split-head",
        "client: splits the head: its end, with a header of the client's own, comes as body",
        THERE_IS_NONE,
    ),
    inside(
        "client-three-records",
        "client: splits the head over three records, the last of them with a header of its own",
        THERE_IS_NONE,
    ),
    inside("client-padding", "client: pads a head's record", THERE_IS_NONE),
    inside(
        "client-pipeline",
        "client: pipelines a second request behind the body",
        "request smuggling: a request that no budget saw",
    ),
    inside(
        "client-sequence-reuse",
        "client: closes with the hole's sequence number used again",
        THERE_IS_NONE,
    ),
    inside(
        "client-false-secret",
        "client: registers a false secret, under which the keyer takes the head",
        THERE_IS_NONE,
    ),
    inside("client-second-secret", "client: registers twice, and uses the second secret", THERE_IS_NONE),
    inside(
        "replayed-request",
        "client or network: a request that was served is played again",
        "a bearer key has no nonce: it is served, and billed, again",
    ),
    inside("relay-ask-twice", "relay: asks the keyer twice", ALL),
    inside("relay-other-request", "relay: uses one route's leaf to ask for a head of another route", ALL),
    inside("relay-no-leaf", "relay: forwards without a leaf", ALL),
    inside("relay-elsewhere", "relay: connects elsewhere", EDITS),
    inside("relay-replay-hole", "relay: replays the hole of another connection", ALL),
    inside("relay-reorder", "relay: sends the hole before the head", ALL),
    inside("relay-hole-twice", "relay: sends the hole twice", ALL),
    inside(
        "relay-alter-request",
        "relay: alters bytes of the body after they were approved",
        "it may rewrite any prompt; neither side can tell",
    ),
    inside(
        "relay-alter-response",
        "relay: alters the provider's answer",
        "it may rewrite any answer, tool calls included; neither side can tell",
    ),
    inside(
        "relay-detour",
        "relay: takes requests on a detour of 200 ms",
        "nothing marks the time a request spent elsewhere",
    ),
    inside("relay-flip", "relay: flips a bit of the key", ALL),
    inside("keyer-no-leaf", "keyer: answers for a request that was refused", ALL),
    inside("keyer-longer-body", "keyer: says that the body is longer than what was signed", ALL),
    inside("keyer-approves-all", "keyer: approves whatever it is shown, of an honest client", ALL),
    inside("keyer-false-key", "keyer: answers with a false one-time key", ALL),
    inside("keyer-flip", "keyer: flips a bit of the key", ALL),
    inside("leader-redirect", "leader: proposes another base URL for the route, without the admins", EDITS),
    inside(
        "leader-downgrade",
        "leader: proposes an older policy that admins did sign",
        "an old configuration restored brings back revoked clients and keys",
    ),
    inside(
        "leader-forge",
        "leader: proposes a client's request that it altered, and one that it made up",
        ALL,
    ),
    inside("leader-withhold", "leader: withholds what clients sign from the log", ONE_PROCESS),
    inside("clock-skew", "leader: its clock runs a minute ahead", "budgets and expiries follow that clock"),
    inside("forked-log", "node: signs two histories of the log", NO_LOG),
];

/// `|` would end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

impl Report {
    /// The table, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| attack | what an ordinary gateway would have lost | what stopped or exposed it here | the leaf or alarm that proves it | time to detect | unmutated twin | with that check off |\n|---|---|---|---|---|---|---|\n",
        );
        for Row { attack, outcome, .. } in &self.rows {
            let _infallible = match outcome {
                Ok(h) => writeln!(
                    text,
                    "| **{}** {} | {} | {} | {} | {} | {} | {} |",
                    attack.name,
                    cell(attack.what),
                    cell(attack.gateway),
                    cell(&h.stopped),
                    cell(&h.proof),
                    h.detect,
                    cell(&h.twin),
                    cell(&h.bites)
                ),
                Err(error) => writeln!(
                    text,
                    "| **{}** {} | {} | DOES NOT HOLD: {} | | | | |",
                    attack.name,
                    cell(attack.what),
                    cell(attack.gateway),
                    cell(error)
                ),
            };
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let row = |Row { attack, outcome, took }: &Row| {
            let mut row = json!({
                "name": attack.name,
                "attack": attack.what,
                "gateway_loses": attack.gateway,
                "held": outcome.is_ok(),
                "took_s": took.as_secs_f64(),
            });
            let more = match outcome {
                Ok(h) => json!({
                    "stopped_by": h.stopped,
                    "proof": h.proof,
                    "prevented": h.detect == super::Detect::Prevented,
                    "detect_s": match h.detect {
                        super::Detect::Prevented => None,
                        super::Detect::After(time) => Some(time.as_secs_f64()),
                    },
                    "twin": h.twin,
                    "bites": h.bites,
                }),
                Err(error) => json!({ "error": error }),
            };
            if let (Value::Object(row), Value::Object(more)) = (&mut row, more) {
                row.extend(more);
            }
            row
        };
        let held = self.rows.iter().filter(|r| r.outcome.is_ok()).count();
        json!({ "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "ran": self.rows.len(), "held": held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{Detect, Held};

    #[test]
    fn names_are_unique_and_every_row_says_what_a_gateway_loses() {
        let mut names: Vec<&str> = ATTACKS.iter().map(|a| a.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ATTACKS.len());
        assert!(ATTACKS.iter().all(|a| !a.gateway.is_empty() && !a.what.is_empty()));
    }

    #[test]
    fn a_row_that_does_not_hold_or_proves_nothing_fails_the_drill() {
        let mut report = Report::default();
        assert!(report.check().is_err(), "no row ran");
        let held = Held::new("a check", "a leaf", Detect::Prevented);
        report.row("forked-log", || Ok(held.clone()));
        assert!(report.check().is_err(), "neither twin nor bite");
        report.rows.clear();
        report.row("forked-log", || Ok(held.clone().twin("it is served").bites("it goes through")));
        assert!(report.check().is_ok());
        assert!(report.markdown().contains("| **forked-log** node: signs two"));
        report.row("self-joining", || anyhow::bail!("it joined"));
        assert!(report.check().is_err_and(|e| e.to_string().contains("self-joining: it joined")));
        assert_eq!(report.json().get("held"), Some(&json!(1)));
        report.only = vec!["aim".into()];
        report.row("forked-log", || anyhow::bail!("not wanted"));
        assert_eq!(report.rows.len(), 2);
    }
}
