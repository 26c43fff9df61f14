//! Leaves, outcomes and times in words.
use quorate_core::command::{Alarm, ClientCommand, Command, Ended, NodeCommand};
use quorate_core::ids::Timestamp;
use quorate_core::leaf::{AnomalyRule, Leaf, LeafBody, Outcome};

/// RFC 3339, UTC, with milliseconds.
pub fn date(time: Timestamp) -> String {
    let (days, ms) = (time.0 / 86_400_000, time.0 % 86_400_000);
    // Howard Hinnant's civil date of a day count: eras of 400 years, years from March.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// What a command asks for, and by whom.
pub fn command(command: &Command) -> String {
    match command {
        Command::Client(c) => match &c.body {
            ClientCommand::OpenPool(p) => {
                format!(
                    "pool {} of client {} for {} over {} and {}",
                    p.pool, c.client, p.route, p.relay, p.keyer
                )
            }
            ClientCommand::Authorise(a) => {
                format!(
                    "request {} of client {} for {} over {} and {}",
                    a.request, c.client, a.route, a.relay, a.keyer
                )
            }
            ClientCommand::Report(reports) => format!("{} report(s) of client {}", reports.len(), c.client),
            ClientCommand::RevokeToken(token) => {
                format!("client {} takes back the token of {}", c.client, token.subject)
            }
        },
        Command::Node(c) => match &c.body {
            NodeCommand::Settle(list) => format!("{} settlement(s) of {}", list.len(), c.node),
            NodeCommand::Alarm(a) => format!("an alarm of {}: {}", c.node, alarm(a)),
            NodeCommand::Snapshot => format!("a snapshot point asked for by {}", c.node),
            NodeCommand::Unanswered(list) => {
                format!("{} request(s) that {} never answered", list.len(), c.node)
            }
        },
        Command::Evidence(c) => format!("evidence of {} over the tree of size {}", c.node, c.nonce.size),
        Command::Recover(c) => {
            let nodes: Vec<String> = c.contributions.iter().map(|x| x.node.to_string()).collect();
            format!("a recovery by {}", nodes.join(", "))
        }
        Command::Policy(c) => format!("the policy {}", c.document),
    }
}

/// What an alarm says.
pub fn alarm(alarm: &Alarm) -> String {
    match alarm {
        Alarm::HeadRefused { request, code } => {
            format!("the keyer refused the head of request {request} (code {code})")
        }
        Alarm::Equivocation { accused, size, .. } => format!("{accused} signed two roots at size {size}"),
        Alarm::Withheld { command } => format!("the leader withheld command {command}"),
        Alarm::AdmissionRefused { node, check } => format!("{node} was not admitted: {check}"),
    }
}

/// A decision.
pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::PoolOpened => "pool opened".into(),
        Outcome::Authorised => "authorised".into(),
        Outcome::Reported(refused) if refused.is_empty() => "reported".into(),
        Outcome::Reported(refused) => format!("reported, {} of them refused", refused.len()),
        Outcome::Settled(refused) if refused.is_empty() => "settled".into(),
        Outcome::Settled(refused) => format!("settled, {} of them refused", refused.len()),
        Outcome::AlarmRaised => "alarm raised".into(),
        Outcome::Appraised { firmware, software_tpm } => {
            let kind = if *software_tpm { "software TPM" } else { "hardware TPM" };
            format!("appraised as good ({kind}, firmware {firmware:016x})")
        }
        Outcome::AwaitingCertificate => "good evidence after a reset, awaiting a certificate".into(),
        Outcome::AppraisalRefused { check } => format!("appraisal refused: {check}"),
        Outcome::Recovered => "recovered".into(),
        Outcome::PolicyChanged { version, signers } => {
            format!("policy version {version} in force, signed by {}", signers.join(", "))
        }
        Outcome::SnapshotPoint => "snapshot point".into(),
        Outcome::TokenRevoked => "token revoked".into(),
        Outcome::Refused(refusal) => format!("refused: {refusal} ({})", refusal.code()),
    }
}

/// How a request ended.
pub fn ended(ended: Ended) -> &'static str {
    match ended {
        Ended::Complete => "complete",
        Ended::Cancelled => "cancelled",
        Ended::Unreachable => "provider unreachable",
        Ended::Truncated => "truncated",
        Ended::CeilingReached => "ceiling reached",
        Ended::HeadRefused => "head refused",
        Ended::MeshFailure => "mesh failure",
        Ended::TimedOut => "timed out",
    }
}

/// What a rule that flagged a request found.
pub fn anomaly(rule: AnomalyRule) -> &'static str {
    match rule {
        AnomalyRule::TokensExceedBytes => "more tokens than the bytes could carry",
        AnomalyRule::TokensExceedCeilings => "more tokens than the request's own ceilings",
        AnomalyRule::EndsDiffer => "relay and client tell different ends",
        AnomalyRule::CredentialFault => {
            "it failed as with a wrong key, and counts against its relay and keyer"
        }
        AnomalyRule::FaultOfInterruptedNode => "no answer, while its relay or keyer was interrupted",
        AnomalyRule::FaultElsewhereToo => "no answer, as others over other nodes",
        AnomalyRule::FaultBeforeRelease => "no answer, and by both nodes' word the key was never used",
    }
}

/// A leaf, in one line.
pub fn leaf(leaf: &Leaf) -> String {
    let Leaf::V1 { body, .. } = leaf;
    match body {
        LeafBody::Genesis { policy } => format!("genesis by policy {policy}"),
        LeafBody::Decided { command: c, outcome: o } => format!("{}: {}", command(c), outcome(o)),
        LeafBody::Lapsed { node } => format!("{node} lapsed: its evidence is too old"),
        LeafBody::Unsettled { request, relay, client } => {
            let missing = match (relay, client) {
                (true, true) => "relay and client",
                (true, false) => "the relay",
                (false, _) => "the client",
            };
            format!("request {request} was never settled by {missing}")
        }
        LeafBody::Anomaly { request, rule } => format!("anomaly of request {request}: {}", anomaly(*rule)),
        LeafBody::StateDigest { size, digest } => format!("state {digest} at size {size}"),
        LeafBody::Undecodable { entry } => format!("entry {entry} does not decode"),
        LeafBody::BatchEnd(end) => {
            let nodes: Vec<String> = end.attested.iter().map(|(n, at)| format!("{n} by leaf {at}")).collect();
            let dark = if end.dark { ", dark" } else { "" };
            format!("batch end: policy {}{dark}, attested: {}", end.policy, nodes.join(", "))
        }
        LeafBody::PairSuspended { route, share_epoch, relay, keyer } => {
            format!("{relay} with {keyer} suspended for the key of {route} (share epoch {share_epoch})")
        }
        LeafBody::CredentialFrozen { route, share_epoch } => {
            format!("the key of {route} frozen (share epoch {share_epoch})")
        }
    }
}

/// A count with separators, for people.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_counts_read() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_297_200_123, "2026-11-21T21:40:00.123Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        ] {
            assert_eq!(date(Timestamp(ms)), expected);
        }
        for (n, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), expected);
        }
    }
}
