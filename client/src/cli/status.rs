//! `quorate status`: what is proven (members, attestation, log) and, marked as such, what nodes say of themselves.
use super::TrustArg;
use super::output::{Outcome, line, note, printable, table, text_out};
use super::verify::date;
use crate::client::status_of_any;
use crate::directory::now;
use crate::error::{Error, chain};
use crate::{Client, TrustFile};
use quorate_core::ids::{NodeId, RouteId};
use quorate_core::policy::{Policy, Route};
use quorate_proto::v1;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    trust: TrustArg,
    /// List routes and models, and which are granted to this client
    #[arg(long)]
    routes: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn status(args: StatusArgs) -> Outcome {
    let trust = TrustFile::load(&args.trust.trust)?;
    let client = match Client::connect(trust.clone()).await {
        Ok(client) => client,
        Err(error) => {
            unproven(&trust, args.json).await?;
            return Err(error.into());
        }
    };
    if args.routes {
        return routes(&client, &trust, args.json).await;
    }
    let directory = client.directory();
    let verified = directory.verified();
    let policy = &verified.policy;
    let answers = client.status().await;
    let leader = answers
        .iter()
        .filter_map(|(_, a)| a.as_ref().ok())
        .map(|s| (s.term, s.leader))
        .max()
        .map_or(0, |(_, l)| l);
    let mut rows = vec![header(&[
        "NODE",
        "CUSTODIAN",
        "ADDRESS",
        "ATTESTED",
        "TPM",
        "QUOTE AGE",
        "LEADER",
        "LEAVES",
        "LAG",
        "SAYS",
    ])];
    let mut members = Vec::new();
    for (node, answer) in &answers {
        let Some(member) = policy.members.get(node) else { continue };
        let proven = verified.nodes.get(node);
        let age = proven.map(|v| now().since_ms(v.evidence_at));
        let lapsed = age.is_some_and(|a| a > policy.attestation.lapse_ms);
        let reason = reason_of(&answers, node.0);
        let said = answer.as_ref().map_err(|e| chain(e));
        let cell = |f: &dyn Fn(&v1::StatusReply) -> String| said.as_ref().map(|s| f(s)).unwrap_or_default();
        let says = match &said {
            Err(error) => printable(error),
            Ok(s) if !s.failed.is_empty() => printable(&s.failed),
            Ok(s) if s.dark => "dark".into(),
            Ok(_) => "ok".into(),
        };
        rows.push(vec![
            member.name.clone(),
            member.custodian.to_string(),
            member.address.clone(),
            match (proven.is_some(), lapsed) {
                (true, false) => "yes".into(),
                (true, true) => "lapsed".into(),
                (false, _) if reason.is_empty() => "no".into(),
                (false, _) => format!("no: {reason}"),
            },
            proven.map_or("", |v| if v.software_tpm { "software" } else { "hardware" }).to_owned(),
            age.map_or(String::new(), |a| format!("{:.1} s", a as f64 / 1000.0)),
            if node.0 == leader { "leader".into() } else { String::new() },
            cell(&|s| s.tree_size.to_string()),
            cell(&|s| s.certified_lag.to_string()),
            says.clone(),
        ]);
        members.push(json!({
            "node": node.0, "name": member.name, "custodian": member.custodian.as_str(), "address": member.address,
            "http": member.http, "attested": proven.is_some() && !lapsed, "reason": reason, "software_tpm": proven.map(|v| v.software_tpm),
            "quote_age_ms": age, "leader": node.0 == leader, "reachable": answer.is_ok(), "says": says,
            "term": answer.as_ref().ok().map(|s| s.term), "tree_size": answer.as_ref().ok().map(|s| s.tree_size),
            "certified_size": answer.as_ref().ok().map(|s| s.certified_size),
            "certified_lag": answer.as_ref().ok().map(|s| s.certified_lag),
            "version": answer.as_ref().ok().map(|s| s.version.clone()),
            "state_digest": answer.as_ref().ok().map(|s| s.state_digest.clone()),
            "shares": answer.as_ref().ok().map(|s| s.shares.iter().map(|s| json!({ "route": s.route,
                "share_epoch": s.share_epoch, "held": s.held, "reason": s.reason })).collect::<Vec<_>>()),
        }));
    }
    let age = now().0.abs_diff(verified.time.0);
    if args.json {
        return line(&json!({
            "cluster": policy.cluster, "genesis": verified.cluster.to_string(), "policy_version": policy.version.0,
            "attested": verified.nodes.len(), "members_count": policy.members.len(), "quorum": policy.quorum(),
            "certified_size": directory.size(), "root": verified.certified.checkpoint().root.to_string(),
            "time": date(verified.time), "age_ms": age, "leader": leader, "members": members,
            "credentials": policy.routes.values().filter_map(|r| Some(json!({ "route": r.id.as_str(),
                "share_epoch": r.share_epoch(), "frozen": r.credential.as_ref()?.frozen,
                "faults": Imposed::of(policy, &answers, r).json() }))).collect::<Vec<_>>(),
        }).to_string());
    }
    let text = format!(
        "cluster     {} (genesis {})\npolicy      version {}, expires {}\nlog         {} certified leaves, root {}, {:.1} s old\n\
         attested    {} of {} members, {} needed\n\n{}\nNODE to QUOTE AGE are proven by the log; the rest is what each node says.\n",
        policy.cluster,
        verified.cluster,
        policy.version,
        date(policy.expires),
        directory.size(),
        verified.certified.checkpoint().root,
        age as f64 / 1000.0,
        verified.nodes.len(),
        policy.members.len(),
        policy.quorum(),
        table(&rows),
    );
    text_out(&text)?;
    note_lacking(policy, &answers);
    note_frozen(policy);
    note_imposed(policy, &answers);
    Ok(())
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// What each node says of itself.
type Answers = [(NodeId, Result<v1::StatusReply, Error>)];

/// Says which nodes lack shares, why, and what to do.
fn note_lacking(policy: &Policy, answers: &Answers) {
    let mut lacking = false;
    for (node, answer) in answers {
        let name = policy.members.get(node).map_or_else(|| node.to_string(), |m| m.name.clone());
        for text in answer.as_ref().map(|s| without_shares(&name, s)).unwrap_or_default() {
            lacking = true;
            note(&text);
        }
    }
    if lacking {
        note(
            "a node without shares serves no route with a credential: approve its software (`quorate admin approve`), or split the key again (`quorate admin credential rotate`)",
        );
    }
}

/// Nodes that say that they lack their shares of this route, and why.
fn lacking(answers: &Answers, route: &RouteId) -> Vec<(NodeId, String)> {
    let of = |(node, answer): &(NodeId, Result<v1::StatusReply, Error>)| {
        let shares = &answer.as_ref().ok()?.shares;
        let lacks = shares.iter().find(|s| s.route == route.as_str() && !s.held)?;
        Some((*node, printable(&lacks.reason).chars().take(160).collect()))
    };
    answers.iter().filter_map(of).collect()
}

/// What faults imposed on a route's credential, and which nodes say so. It follows from the log, but a hostile node says what it
/// likes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Imposed {
    frozen: Vec<NodeId>,
    /// By relay and keyer.
    suspended: BTreeMap<(NodeId, NodeId), Vec<NodeId>>,
}

impl Imposed {
    /// For the share epoch in force, on members of it: what nodes say of others is over, or nonsense.
    fn of(policy: &Policy, answers: &Answers, route: &Route) -> Self {
        let mut imposed = Self::default();
        for (node, answer) in answers {
            let said = answer.as_ref().map(|s| s.credentials.as_slice()).unwrap_or_default();
            let this = |c: &&v1::CredentialStatus| {
                c.route == route.id.as_str() && c.share_epoch == route.share_epoch()
            };
            let Some(said) = said.iter().find(this) else { continue };
            if said.frozen {
                imposed.frozen.push(*node);
            }
            for pair in &said.suspended {
                let pair = (NodeId(pair.relay), NodeId(pair.keyer));
                if pair.0 == pair.1 || ![pair.0, pair.1].iter().all(|n| policy.members.contains_key(n)) {
                    continue;
                }
                let by = imposed.suspended.entry(pair).or_default();
                if by.last() != Some(node) {
                    by.push(*node);
                }
            }
        }
        imposed
    }

    fn json(&self) -> serde_json::Value {
        let ids = |nodes: &[NodeId]| nodes.iter().map(|n| n.0).collect::<Vec<_>>();
        let pair = |((relay, keyer), by): (&(NodeId, NodeId), &Vec<NodeId>)| json!({ "relay": relay.0, "keyer": keyer.0, "said_by": ids(by) });
        json!({ "frozen_said_by": ids(&self.frozen), "suspended": self.suspended.iter().map(pair).collect::<Vec<_>>() })
    }

    /// For the cell of a table.
    fn cell(&self) -> String {
        match (self.frozen.is_empty(), self.suspended.len()) {
            (false, _) => ", FROZEN by faults".to_owned(),
            (true, 0) => String::new(),
            (true, 1) => ", 1 pair suspended".to_owned(),
            (true, count) => format!(", {count} pairs suspended"),
        }
    }

    /// What it is, who says so, what to do.
    fn lines(&self, policy: &Policy, route: &RouteId) -> Vec<String> {
        let name = |n: &NodeId| policy.members.get(n).map_or_else(|| n.to_string(), |m| m.name.clone());
        let names = |nodes: &[NodeId]| nodes.iter().map(name).collect::<Vec<_>>().join(", ");
        let mut lines = Vec::new();
        if !self.frozen.is_empty() {
            lines.push(format!(
                "route {route}: faults of several clients froze its key, nothing is authorised on it (says {})",
                names(&self.frozen)
            ));
        }
        for ((relay, keyer), by) in &self.suspended {
            lines.push(format!(
                "route {route}: relay {} with keyer {} is suspended, after faults of several clients (says {})",
                name(relay),
                name(keyer),
                names(by)
            ));
        }
        if !lines.is_empty() {
            lines.push(format!(
                "find out which pairs bring a wrong key with `quorate admin credential check {route}`; then `credential lift {route}`, or `rotate` for another key"
            ));
        }
        lines
    }
}

/// Says what faults imposed, on which routes.
fn note_imposed(policy: &Policy, answers: &Answers) {
    for route in policy.routes.values().filter(|r| r.credential.is_some()) {
        Imposed::of(policy, answers, route).lines(policy, &route.id).iter().for_each(|text| note(text));
    }
}

/// Says which keys admins froze.
fn note_frozen(policy: &Policy) {
    for (route, _) in policy.routes.iter().filter(|(_, r)| r.credential.as_ref().is_some_and(|c| c.frozen)) {
        note(&format!(
            "route {route}: admins froze its key, nothing is authorised on it; `quorate admin credential lift {route}`, or `rotate` for another key"
        ));
    }
}

fn reason_of(answers: &Answers, node: u64) -> String {
    let said = answers.iter().filter_map(|(_, a)| a.as_ref().ok()).flat_map(|s| &s.nodes);
    let reason =
        said.filter(|n| n.node == node && !n.attested).map(|n| printable(&n.reason)).find(|r| !r.is_empty());
    reason.unwrap_or_default().chars().take(80).collect()
}

async fn routes(client: &Client, trust: &TrustFile, as_json: bool) -> Outcome {
    let directory = client.directory();
    let policy = &directory.verified().policy;
    let answers = client.status().await;
    let granted = policy.clients.get(&trust.client).map(|g| g.routes.clone()).unwrap_or_default();
    let mut rows = vec![header(&["ROUTE", "GRANTED", "HOST", "DIALECT", "CREDENTIAL", "MODELS", "PATHS"])];
    let mut list = Vec::new();
    for (id, route) in &policy.routes {
        let d = &route.document;
        let yes = granted.contains(id);
        let lacking = lacking(&answers, id);
        let imposed = Imposed::of(policy, &answers, route);
        rows.push(vec![
            id.to_string(),
            if yes { "yes".into() } else { "no".into() },
            format!("{}:{}", d.host, d.port),
            d.dialect.clone(),
            route.credential.as_ref().map_or_else(
                || "none".to_owned(),
                |c| {
                    let state = if c.frozen { ", FROZEN".to_owned() } else { imposed.cell() };
                    let lacking = match lacking.len() {
                        0 => String::new(),
                        count => format!(", {count} without shares"),
                    };
                    format!("{}, epoch {}{state}{lacking}", c.scheme.as_str(), c.share_epoch)
                },
            ),
            d.models.join(" "),
            d.paths.iter().map(|p| format!("{}{p}", d.base_path)).collect::<Vec<_>>().join(" "),
        ]);
        let credential = route.credential.as_ref().map(|c| {
            json!({ "scheme": c.scheme.as_str(), "share_epoch": c.share_epoch, "frozen": c.frozen,
                "accept_echo": c.accept_echo, "lifted": c.lifted, "faults": imposed.json(),
                "without_shares": lacking.iter().map(|(node, reason)| json!({ "node": node.0, "reason": reason })).collect::<Vec<_>>() })
        });
        list.push(json!({ "route": id.as_str(), "granted": yes, "credential": credential, "host": d.host, "port": d.port, "dialect": d.dialect,
            "models": d.models, "paths": d.paths, "base_path": d.base_path }));
    }
    if as_json {
        return line(&json!({ "routes": list }).to_string());
    }
    text_out(&table(&rows))?;
    note_lacking(policy, &answers);
    note_frozen(policy);
    note_imposed(policy, &answers);
    Ok(())
}

/// Nodes that cannot serve a route, for want of their shares: what they say of themselves.
fn without_shares(name: &str, status: &v1::StatusReply) -> Vec<String> {
    let lacking = status.shares.iter().filter(|s| !s.held).take(SHARES_SHOWN_MAX);
    lacking
        .map(|s| {
            let why: String = printable(&s.reason).chars().take(160).collect();
            let why = if why.is_empty() { "no reason given".to_owned() } else { why };
            let route: String = printable(&s.route).chars().take(64).collect();
            format!("{name} has no shares of route {route} (epoch {}): {why}", s.share_epoch)
        })
        .collect()
}

/// Routes shown per node.
const SHARES_SHOWN_MAX: usize = 8;

/// Nothing can be verified: say what nodes say, and that it proves nothing.
async fn unproven(trust: &TrustFile, as_json: bool) -> Outcome {
    let key = trust.load_key()?;
    let answers = status_of_any(trust, &key).await;
    if answers.iter().all(|(_, a)| a.is_err()) {
        return Ok(());
    }
    let mut rows = vec![header(&["ANSWERED BY", "NODE", "ATTESTED", "REASON", "LEADER"])];
    let mut list = Vec::new();
    for (address, answer) in &answers {
        let Ok(status) = answer else { continue };
        for n in &status.nodes {
            rows.push(vec![
                address.to_string(),
                printable(&n.name),
                if n.attested { "yes".into() } else { "no".into() },
                printable(&n.reason),
                if n.node == status.leader { "leader".into() } else { String::new() },
            ]);
            list.push(json!({ "answered_by": address.as_str(), "node": n.node, "name": n.name, "attested": n.attested,
                "reason": n.reason, "dark": status.dark }));
        }
    }
    if as_json {
        return line(&json!({ "proven": false, "nodes": list }).to_string());
    }
    note("nothing could be verified; this is what the nodes say of themselves:");
    text_out(&table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::testing::{Mesh, keyed, route};

    /// A node, and what it says of a route's credential: route, share epoch, frozen, suspended.
    type Said<'a> = (u64, &'a str, u32, bool, &'a [(u64, u64)]);

    fn answers(said: &[Said<'_>]) -> Vec<(NodeId, Result<v1::StatusReply, Error>)> {
        let one = |(node, route, share_epoch, frozen, pairs): &Said<'_>| {
            let pair = |(relay, keyer): &(u64, u64)| v1::SuspendedPair { relay: *relay, keyer: *keyer };
            let credential = v1::CredentialStatus {
                route: (*route).to_owned(),
                share_epoch: *share_epoch,
                frozen: *frozen,
                suspended: pairs.iter().map(pair).collect(),
            };
            (NodeId(*node), Ok(v1::StatusReply { credentials: vec![credential], ..Default::default() }))
        };
        said.iter().map(one).collect()
    }

    #[test]
    fn what_faults_imposed_is_shown_with_who_says_so() {
        let mesh = Mesh::new(4, 1, keyed);
        let policy = mesh.state().policy();
        let (id, own) = (route(), route().to_string());
        let of = |answers: &Answers| Imposed::of(policy, answers, &policy.routes[&id]);

        let nothing = of(&answers(&[(1, &own, 1, false, &[])]));
        assert_eq!((nothing.cell(), nothing.lines(policy, &id)), (String::new(), vec![]));

        let mut said = answers(&[(1, &own, 1, false, &[(1, 2), (3, 1)]), (2, &own, 1, false, &[(1, 2)])]);
        said.push((NodeId(3), Err(Error::Closed)));
        let suspended = of(&said);
        assert_eq!(suspended.cell(), ", 2 pairs suspended");
        let lines = suspended.lines(policy, &id);
        let name = |n: u64| &policy.members[&NodeId(n)].name;
        let (one, two, three) = (name(1), name(2), name(3));
        assert!(lines[0].contains(&format!("relay {one} with keyer {two} is suspended")), "{lines:?}");
        assert!(lines[0].ends_with(&format!("(says {one}, {two})")), "{lines:?}");
        assert!(lines[1].contains(&format!("relay {three} with keyer {one}")), "{lines:?}");
        assert!(lines[2].contains("quorate admin credential check"), "{lines:?}");
        let expected = json!({ "frozen_said_by": [], "suspended": [
            { "relay": 1, "keyer": 2, "said_by": [1, 2] }, { "relay": 3, "keyer": 1, "said_by": [1] } ] });
        assert_eq!(suspended.json(), expected);

        let frozen = of(&answers(&[(4, &own, 1, true, &[(1, 2)])]));
        assert_eq!(frozen.cell(), ", FROZEN by faults");
        assert!(frozen.lines(policy, &id)[0].contains("froze its key"));
        assert_eq!(frozen.json()["frozen_said_by"], json!([4]));
    }

    #[test]
    fn what_a_node_says_of_other_shares_or_of_strangers_is_not_shown() {
        let mesh = Mesh::new(4, 1, keyed);
        let policy = mesh.state().policy();
        let own = route().to_string();
        let of = |answers: &Answers| Imposed::of(policy, answers, &policy.routes[&route()]);
        for (what, said) in [
            ("an epoch that is over", answers(&[(1, &own, 2, true, &[(1, 2)])])),
            ("another route", answers(&[(1, "other", 1, true, &[(1, 2)])])),
            ("no members", answers(&[(1, &own, 1, false, &[(1, 9), (9, 1)])])),
            ("no pair", answers(&[(1, &own, 1, false, &[(2, 2)])])),
        ] {
            assert_eq!(of(&said), Imposed::default(), "{what}");
        }
        let twice = of(&answers(&[(1, &own, 1, false, &[(1, 2), (1, 2)])]));
        assert_eq!(twice.json()["suspended"], json!([{ "relay": 1, "keyer": 2, "said_by": [1] }]));
    }
}
