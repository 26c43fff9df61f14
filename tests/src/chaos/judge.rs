//! What must not be, and whether it was.
use super::Dice;
use super::load::{Asked, Load};
use super::report::{Episode, Report};
use crate::Tlog;
use crate::tlog::checkpoint;
use anyhow::Context as _;
use quorate_client::Client;
use quorate_cluster::mesh::Mesh;
use quorate_core::command::{ClientCommand, Command};
use quorate_core::crypto::Hash;
use quorate_core::ids::RequestId;
use quorate_core::leaf::{LeafBody, Outcome};
use quorated::directory::RECALLED;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Broken promises that are named; further ones are counted.
const NAMED: usize = 12;

/// One disturbance.
pub(super) fn episode(episode: &Episode, back: Duration, broken: &mut Vec<String>) {
    let bound = back.as_secs_f64();
    let what = format!("{} ({}) at {:.0} s", episode.fault, episode.to, episode.at_s);
    if episode.back_s.is_none_or(|s| s > bound) {
        broken.push(format!("{what}: no service within {bound} s of the heal"));
    }
    if episode.survivable && episode.silent_s > bound {
        broken
            .push(format!("{what}: no answer for {:.1} s, though the mesh survives this", episode.silent_s));
    }
    if episode.whole_s.is_none() {
        broken.push(format!("{what}: a node did not come back"));
    }
}

/// The log, what the applications were told, and what the provider saw.
pub(super) fn aftermath(
    mesh: &Mesh,
    client: &Client,
    runtime: &Runtime,
    load: &Load,
    dice: &mut Dice,
    receipts: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut logs = Vec::new();
    for site in &mesh.sites {
        let (certified, _) = checkpoint(&site.http)?;
        let log = Tlog::read(&site.http).with_context(|| format!("the log of {}", site.name))?;
        logs.push((site.name.clone(), certified.size.0, log));
    }
    let common = logs.iter().map(|(_, size, _)| *size).min().unwrap_or_default();
    let mut first: Option<(&str, Hash)> = None;
    for (name, _, log) in &logs {
        let root = log.root(common)?;
        let (other, expected) = *first.get_or_insert((name, root));
        if root != expected {
            report.broken.push(format!("{name} and {other} have different logs"));
        }
    }
    report.leaves = common;
    let (_, _, longest) = logs.into_iter().max_by_key(|(_, size, _)| *size).context("no nodes")?;
    let authorised = authorised_from(&longest, 0);
    let access = fs::read_to_string(mesh.dir.join("provider.access"))?;
    let forwarded = forwarded(&access)?;
    report.forwarded = forwarded.values().sum();
    load.read(|asked| {
        report.answered = asked.iter().filter(|a| a.outcome.is_ok()).count();
        compare(asked, &authorised, &forwarded, &mut report.broken);
    });
    report.errors = load.errors();
    // Of older ones a node that restarted has the leaves, and no longer their places.
    let newest: BTreeSet<RequestId> = authorised_from(&longest, common.saturating_sub(RECALLED));
    let answered: Vec<RequestId> = load.read(|asked| {
        let answered = asked.iter().filter_map(|a| a.outcome.as_ref().ok());
        answered.filter(|id| newest.contains(id)).copied().collect()
    });
    for _ in 0..receipts.min(answered.len()) {
        let at = usize::try_from(dice.below(answered.len() as u64))?;
        let Some(id) = answered.get(at) else { continue };
        match runtime.block_on(client.receipt_so_far(*id)) {
            Ok(_) => report.receipts += 1,
            Err(error) => report.broken.push(format!("no receipt for {id}: {error}")),
        }
    }
    if report.broken.len() > NAMED {
        let more = report.broken.len() - NAMED;
        report.broken.truncate(NAMED);
        report.broken.push(format!("and {more} more"));
    }
    Ok(())
}

/// Requests with a leaf, `from` this one on, that authorises them.
fn authorised_from(log: &Tlog, from: u64) -> BTreeSet<RequestId> {
    let of = |body: &LeafBody| match body {
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => match &c.body {
            ClientCommand::Authorise(a) => Some(a.request),
            _ => None,
        },
        _ => None,
    };
    log.bodies(from).filter_map(of).collect()
}

/// How often the provider saw each body.
fn forwarded(access: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for line in access.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let word = |name: &str| line.get(name).and_then(serde_json::Value::as_str);
        if word("event") == Some("request") {
            let body = word("body_sha256").context("an access line without its body's digest")?;
            *seen.entry(body.to_owned()).or_default() += 1;
        }
    }
    Ok(seen)
}

/// Holds what applications were told, and what the provider saw, against the certified log.
fn compare(
    asked: &[Asked],
    authorised: &BTreeSet<RequestId>,
    forwarded: &BTreeMap<String, usize>,
    broken: &mut Vec<String>,
) {
    let mut theirs: BTreeMap<&str, usize> = BTreeMap::new();
    for one in asked {
        let leaves = one.trail.attempts().iter().filter(|a| authorised.contains(&a.request)).count();
        theirs.insert(&one.body, leaves);
        match &one.outcome {
            Ok(id) if !authorised.contains(id) => {
                broken.push(format!("{id} was answered, and no certified leaf authorises it"));
            }
            Err(code) if code == "hang" => broken.push("a request hung".to_owned()),
            Ok(_) | Err(_) => {}
        }
    }
    for (body, times) in forwarded {
        match theirs.get(body.as_str()) {
            None => broken.push(format!("the provider was sent a body that nobody asked for: {body}")),
            Some(leaves) if times > leaves => {
                broken.push(format!("the provider saw {body} {times} times, with {leaves} leaves for it"));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_client::{Attempted, Trail};
    use quorate_core::ids::NodeId;
    use std::time::Instant;

    fn asked(body: &str, attempts: &[u8], outcome: Result<u8, &str>) -> Asked {
        let trail = Trail::default();
        for id in attempts {
            let request = RequestId([*id; 16]);
            trail.add(Attempted {
                request,
                route: quorate_core::ids::RouteId::new("r").unwrap(),
                relay: NodeId(1),
                keyer: NodeId(2),
            });
        }
        let outcome = outcome.map(|id| RequestId([id; 16])).map_err(ToOwned::to_owned);
        Asked { body: body.into(), trail, times: (Instant::now(), Instant::now()), outcome }
    }

    fn found(asked: &[Asked], leaves: &[u8], provider: &[(&str, usize)]) -> Vec<String> {
        let mut broken = Vec::new();
        let leaves = leaves.iter().map(|id| RequestId([*id; 16])).collect();
        let provider = provider.iter().map(|(body, times)| ((*body).to_owned(), *times)).collect();
        compare(asked, &leaves, &provider, &mut broken);
        broken
    }

    #[test]
    fn what_was_answered_stands_in_the_log_and_what_was_sent_was_authorised() {
        let good = [asked("a", &[1, 2], Ok(2)), asked("b", &[3], Err("dark"))];
        assert!(found(&good, &[1, 2], &[("a", 2)]).is_empty());
        assert_eq!(found(&good, &[1], &[("a", 1)]).len(), 1, "an answer without a leaf");
        assert_eq!(found(&good, &[1, 2], &[("a", 3)]).len(), 1, "sent more often than authorised");
        assert_eq!(found(&good, &[1, 2], &[("a", 1), ("b", 1)]).len(), 1, "sent without a leaf");
        assert_eq!(found(&good, &[1, 2], &[("c", 1)]).len(), 1, "sent by nobody");
        assert_eq!(found(&[asked("a", &[], Err("hang"))], &[], &[]).len(), 1, "a hang");
    }

    #[test]
    fn an_episode_is_judged_by_its_bounds() {
        let good = Episode {
            fault: "f".into(),
            to: "n1".into(),
            at_s: 0.0,
            lasted_s: 1.0,
            back_s: Some(15.0),
            silent_s: 15.0,
            survivable: true,
            whole_s: Some(80.0),
        };
        let judged = |of: Episode| {
            let mut broken = Vec::new();
            episode(&of, super::super::BACK, &mut broken);
            broken.len()
        };
        assert_eq!(judged(good.clone()), 0);
        assert_eq!(judged(Episode { back_s: Some(15.1), ..good.clone() }), 1);
        assert_eq!(judged(Episode { back_s: None, ..good.clone() }), 1);
        assert_eq!(judged(Episode { silent_s: 15.1, ..good.clone() }), 1);
        assert_eq!(judged(Episode { silent_s: 15.1, survivable: false, ..good.clone() }), 0);
        assert_eq!(judged(Episode { whole_s: None, ..good }), 1);
    }
}
