//! `quorate usage`: what was used, and exactly what is left of this client's own limits. The limits are proven, they stand in the
//! policy; the figures are nodes' word, and what is printed is what most of them say alike. Whoever wants them proven replays the
//! log: `quorate-audit verify`.
//!
//! Nodes tell a client its own figures and its team's; everybody's, to whom an admin's key signs for.
use super::TrustArg;
use super::admin::ssh_sign;
use super::money::decimal;
use super::output::{Failure, Outcome, line, note, printable, table};
use super::verify::date;
use crate::directory::now;
use crate::{Client, TrustFile};
use quorate_core::command::{SignedUsageGrant, UsageGrant};
use quorate_core::crypto::{PublicKey, encode};
use quorate_core::ids::{NodeId, Timestamp, TokenId};
use quorate_core::policy::{Limits, Policy};
use quorate_proto::v1;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Under load nodes answer between different entries: how often they are asked until enough say the same.
const ASKED_MAX: usize = 3;
const PAUSE: Duration = Duration::from_millis(150);
/// Pages of one list: nodes remember no more tokens, and have no more clients, than fit into so many.
const PAGES_MAX: usize = 64;
/// How long an admin's word lasts.
const GRANT_MS: u64 = 10 * 60_000;

#[derive(clap::Args)]
#[command(
    after_help = "Without --by: each limit of this client, its team and its token: used, held by running requests, and left. Windows are the UTC minute, day and calendar month.\n\nExamples:\n  quorate usage --trust trust.toml\n  quorate usage --trust agent.toml\n  quorate usage --trust trust.toml --by team --key ~/.ssh/id_ed25519\n  quorate usage --trust trust.toml --by day --key ~/.ssh/id_ed25519 --json"
)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    trust: TrustArg,
    /// Figures in place of limits: with --key everybody's, without it this client's and its team's
    #[arg(long, value_enum)]
    by: Option<By>,
    /// SSH private key of an admin, or the public key of one in the agent: it signs that this client may see everybody's, for ten
    /// minutes
    #[arg(long, value_name = "SSHKEY", requires = "by")]
    key: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Each client, today and this month
    Client,
    /// Each team
    Team,
    /// Each route
    Route,
    /// Each day, all clients together
    Day,
}

pub(crate) async fn usage(args: UsageArgs) -> Outcome {
    let trust = TrustFile::load(&args.trust.trust)?;
    let client = Client::connect(trust.clone()).await?;
    let directory = client.directory();
    let policy = &directory.verified().policy;
    let request = request(&args, &trust).await?;
    let believed = believed(&client, request, policy).await?;
    let reply = &believed.reply;
    let (text, data) = match args.by {
        None => own(&trust, policy, reply)?,
        Some(By::Client) => windows(&reply.clients),
        Some(By::Team) => windows(&reply.teams),
        Some(By::Route) => windows(&reply.routes),
        Some(By::Day) => days(&reply.days),
    };
    if args.json {
        return line(
            &json!({
                "time_ms": reply.time_ms, "currency": policy.currency, "money_unit": "millionths",
                "agreeing": believed.agree.iter().map(|n| n.0).collect::<Vec<_>>(),
                "asked": policy.members.len(), "usage": data,
            })
            .to_string(),
        );
    }
    super::output::text_out(&table(&text))?;
    let currency = if policy.currency.is_empty() { "the policy's currency" } else { &policy.currency };
    note(&format!(
        "at {}, money in {currency}; by the word of {} of {} nodes{}",
        date(Timestamp(reply.time_ms)),
        believed.agree.len(),
        policy.members.len(),
        if believed.honest { ", of which one at least is honest" } else { ": too few to believe, ask again" }
    ));
    Ok(())
}

/// For this client's own figures, or with an admin's word for its key, everybody's.
async fn request(args: &UsageArgs, trust: &TrustFile) -> Outcome<v1::UsageRequest> {
    let by = match (&args.key, args.by) {
        (None, Some(By::Route | By::Day)) => {
            return Err(Failure::new(
                "figures by route and day are of all clients together: for admins",
                "add --key SSHKEY, or leave out --by to see your own limits",
            ));
        }
        (None, _) | (_, None) => {
            let token = trust.token.as_deref().map(encode).unwrap_or_default().into();
            return Ok(v1::UsageRequest { client: trust.client.to_string(), token, ..Default::default() });
        }
        (Some(_), Some(By::Client)) => v1::UsageBy::Client,
        (Some(_), Some(By::Team)) => v1::UsageBy::Team,
        (Some(_), Some(By::Route)) => v1::UsageBy::Route,
        (Some(_), Some(By::Day)) => v1::UsageBy::Day,
    };
    let caller_key = PublicKey(trust.load_key()?.public());
    let grant = UsageGrant { caller_key, expires: now().plus_ms(GRANT_MS) };
    let key = args.key.as_deref().unwrap_or(Path::new(""));
    let signature = ssh_sign(key, &grant.statement(trust.genesis)).await?;
    let admin = encode(&SignedUsageGrant { grant, signature }).into();
    Ok(v1::UsageRequest { admin, by: by.into(), ..Default::default() })
}

/// What most nodes say alike.
struct Believed {
    reply: v1::UsageReply,
    agree: Vec<NodeId>,
    /// More than may be hostile.
    honest: bool,
}

/// All pages, each as most nodes have it.
async fn believed(client: &Client, mut request: v1::UsageRequest, policy: &Policy) -> Outcome<Believed> {
    let mut all = page(client, &request, policy).await?;
    for _ in 1..PAGES_MAX {
        let Some(after) = next(&all.reply) else { break };
        request.after = after;
        let Believed { reply, agree, honest } = page(client, &request, policy).await?;
        let sum = &mut all.reply;
        // A client's own figures are on each page of its tokens.
        for (sum, list) in [
            (&mut sum.clients, reply.clients),
            (&mut sum.teams, reply.teams),
            (&mut sum.routes, reply.routes),
        ] {
            sum.retain(|old| list.iter().all(|new| new.name != old.name));
            sum.extend(list);
        }
        sum.tokens.extend(reply.tokens);
        (sum.more, sum.time_ms) = (reply.more, reply.time_ms);
        all.agree.retain(|node| agree.contains(node));
        all.honest &= honest;
    }
    Ok(all)
}

/// Where the next page begins, if there is one.
fn next(reply: &v1::UsageReply) -> Option<String> {
    if !reply.more {
        return None;
    }
    let token = reply.tokens.last().and_then(|t| <[u8; 32]>::try_from(&t.token[..]).ok());
    let name = [&reply.clients, &reply.teams, &reply.routes].into_iter().find_map(|list| list.last());
    token.map(|id| TokenId(id).to_string()).or(name.map(|last| last.name.clone()))
}

async fn page(client: &Client, request: &v1::UsageRequest, policy: &Policy) -> Outcome<Believed> {
    let mut failure = None;
    let mut best: Option<Believed> = None;
    for asked in 0..ASKED_MAX {
        if asked > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let mut answers = Vec::new();
        for (node, answer) in client.usage(request).await {
            match answer {
                Ok(reply) => answers.push((node, reply)),
                Err(error) => failure = Some(error),
            }
        }
        let found = agreed(answers, policy.hostile_nodes_max as usize);
        let better = |b: &Believed| found.as_ref().is_some_and(|f| f.agree.len() > b.agree.len());
        if best.as_ref().is_none_or(better) {
            best = found;
        }
        if best.as_ref().is_some_and(|b| b.honest) {
            break;
        }
    }
    best.ok_or_else(|| match failure {
        Some(error) => error.into(),
        None => Failure::new("no node tells what was used", "see `quorate status`"),
    })
}

/// The answer that most give, the newest of them; when it was given does not matter.
fn agreed(answers: Vec<(NodeId, v1::UsageReply)>, hostile: usize) -> Option<Believed> {
    let figures = |r: &v1::UsageReply| v1::UsageReply { node: 0, tree_size: 0, time_ms: 0, ..r.clone() };
    let alike = |one: &v1::UsageReply| {
        let same = answers.iter().filter(|(_, other)| figures(other) == figures(one));
        same.map(|(node, _)| *node).collect::<Vec<_>>()
    };
    let (_, reply) = answers.iter().max_by_key(|(_, r)| (alike(r).len(), r.tree_size))?;
    let agree = alike(reply);
    let honest = agree.len() > hostile;
    Some(Believed { reply: reply.clone(), agree, honest })
}

type Told = (Vec<Vec<String>>, Value);

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Each limit of client, team and token: used, held by running requests, and left.
fn own(trust: &TrustFile, policy: &Policy, reply: &v1::UsageReply) -> Outcome<Told> {
    let unknown = || {
        Failure::new(
            format!("the policy knows no client {:?}", trust.client.as_str()),
            "compare the trust file",
        )
    };
    let grant = policy.clients.get(&trust.client).ok_or_else(unknown)?;
    let none = v1::Usage::default();
    let find = |all: &[v1::Usage], name: &str| all.iter().find(|u| u.name == name).cloned();
    let mut rows = vec![cells(["WHOSE", "LIMIT", "USED", "HELD", "OF", "LEFT"])];
    let mut data = Vec::new();
    let mut tell = |whose: String, what: &str, per: &str, (used, held): (u64, u64), limit: u64| {
        let left = limit.saturating_sub(used).saturating_sub(held);
        let show = |n: u64| if what == "money" { decimal(n) } else { n.to_string() };
        let name = if per.is_empty() { what.to_owned() } else { format!("{what} per {per}") };
        rows.push(vec![whose.clone(), name, show(used), show(held), show(limit), show(left)]);
        data.push(json!({
            "whose": whose, "what": what, "per": per, "used": used, "held": held, "limit": limit, "left": left,
        }));
    };
    let mut limits = |whose: String, usage: &v1::Usage, limits: &Limits| {
        let windows = [("minute", &usage.minute), ("day", &usage.day), ("month", &usage.month)];
        let each = |of: quorate_core::policy::PerWindow<Option<u64>>| [of.minute, of.day, of.month];
        for (what, of) in [("requests", limits.requests), ("bytes", limits.bytes), ("money", limits.money)] {
            for ((per, window), limit) in windows.iter().zip(each(of)) {
                let window = (*window).unwrap_or_default();
                if let Some(limit) = limit {
                    tell(whose.clone(), what, per, amounts(what, &window), limit);
                }
            }
        }
    };
    let name = trust.client.as_str();
    limits(
        format!("client {name}"),
        &find(&reply.clients, name).unwrap_or_else(|| none.clone()),
        &grant.limits,
    );
    if let Some(team) = policy.team_of(grant) {
        let usage = find(&reply.teams, team.id.as_str()).unwrap_or(none);
        limits(format!("team {}", team.id), &usage, &team.limits);
    }
    if let (Some(id), Some(signed)) = (trust.token_id(), &trust.token) {
        let record = reply.tokens.iter().find(|t| t.token.as_ref() == id.0);
        let used = record.and_then(|t| t.used).unwrap_or_default();
        let limits = &signed.token.limits;
        for (what, limit) in [("requests", limits.requests), ("bytes", limits.bytes), ("money", limits.money)]
        {
            if let Some(limit) = limit {
                tell(format!("token {}", signed.token.subject), what, "", amounts(what, &used), limit);
            }
        }
    }
    Ok((rows, json!(data)))
}

/// Used and held.
fn amounts(what: &str, window: &v1::WindowUsage) -> (u64, u64) {
    match what {
        "requests" => (window.requests, 0),
        "bytes" => (window.bytes, window.reserved_bytes),
        _ => (window.money, window.reserved_money),
    }
}

const FIGURES: [&str; 6] = ["REQUESTS", "BYTES", "TOKENS IN", "CACHED", "OUT", "MONEY"];

fn figures(window: &v1::WindowUsage) -> Vec<String> {
    let numbers = [window.requests, window.bytes, window.tokens_in, window.tokens_cached, window.tokens_out];
    numbers.iter().map(u64::to_string).chain([decimal(window.money)]).collect()
}

fn object(w: &v1::WindowUsage) -> Value {
    json!({
        "requests": w.requests, "bytes": w.bytes, "reserved_bytes": w.reserved_bytes,
        "tokens_in": w.tokens_in, "tokens_cached": w.tokens_cached, "tokens_out": w.tokens_out,
        "money": w.money, "reserved_money": w.reserved_money,
    })
}

fn windows(all: &[v1::Usage]) -> Told {
    let header = [&["NAME", "WINDOW"][..], &FIGURES, &["RUNNING"]].concat();
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    let mut data = BTreeMap::new();
    for usage in all {
        let (day, month) = (usage.day.unwrap_or_default(), usage.month.unwrap_or_default());
        let name = printable(&usage.name);
        for (window, of, running) in
            [("today", day, usage.in_flight.to_string()), ("month", month, String::new())]
        {
            let row = [name.clone(), window.to_owned()].into_iter();
            rows.push(row.chain(figures(&of)).chain([running]).collect());
        }
        let minute = usage.minute.unwrap_or_default();
        data.insert(
            name,
            json!({
                "minute": object(&minute), "day": object(&day), "month": object(&month),
                "in_flight": usage.in_flight,
            }),
        );
    }
    (rows, json!(data))
}

fn days(all: &[v1::DayUsage]) -> Told {
    let header = [&["DAY"][..], &FIGURES].concat();
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    let mut data = BTreeMap::new();
    for day in all {
        let used = day.used.unwrap_or_default();
        let moment = date(Timestamp(day.day.saturating_mul(86_400_000)));
        let name: String = moment.chars().take(10).collect();
        rows.push([name.clone()].into_iter().chain(figures(&used)).collect());
        data.insert(name, object(&used));
    }
    (rows, json!(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(requests: u64, tree_size: u64) -> v1::UsageReply {
        let day = Some(v1::WindowUsage { requests, ..Default::default() });
        let clients = vec![v1::Usage { name: "app".into(), day, ..Default::default() }];
        v1::UsageReply { tree_size, time_ms: tree_size, clients, ..Default::default() }
    }

    #[test]
    fn what_most_nodes_say_alike_is_believed() {
        let answers = |list: &[(u64, u64)]| {
            let one = |(at, (requests, size)): (usize, &(u64, u64))| {
                (NodeId(at as u64 + 1), says(*requests, *size))
            };
            list.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        // A liar, and one that is behind.
        let believed = agreed(answers(&[(0, 99), (5, 10), (4, 9), (5, 12)]), 1).unwrap();
        assert_eq!((believed.agree, believed.honest), (vec![NodeId(2), NodeId(4)], true));
        assert_eq!(believed.reply.tree_size, 12);
        let apart = agreed(answers(&[(1, 9), (2, 10), (3, 8)]), 1).unwrap();
        assert_eq!((apart.agree.len(), apart.honest), (1, false));
        assert!(agreed(vec![], 1).is_none());
    }

    #[test]
    fn what_is_left_is_what_is_neither_used_nor_held() {
        use quorate_core::testing::{CLIENT, Fleet};
        let fleet = Fleet::new(4, 1, |d| {
            d.client[0].money_per_day = Some(5_000_000);
            d.team.push(quorate_core::policy::TeamDocument {
                name: "t".into(),
                bytes_per_minute: Some(100),
                ..Default::default()
            });
            d.client[0].team = Some("t".into());
        });
        let policy = Policy::parse(toml::to_string(&fleet.document).unwrap().as_bytes()).unwrap();
        let trust = TrustFile {
            genesis: policy.digest,
            nodes: vec![],
            client: quorate_core::ids::ClientId::new(CLIENT).unwrap(),
            key: "unused".into(),
            freshness_ms: 0,
            token: None,
        };
        let day = Some(v1::WindowUsage { money: 1_250_000, reserved_money: 500_000, ..Default::default() });
        let mut reply = v1::UsageReply::default();
        reply.clients.push(v1::Usage { name: CLIENT.into(), day, ..Default::default() });
        let minute = Some(v1::WindowUsage { bytes: 70, reserved_bytes: 40, ..Default::default() });
        reply.teams.push(v1::Usage { name: "t".into(), minute, ..Default::default() });
        let (rows, data) = own(&trust, &policy, &reply).unwrap();
        let row = |whose: &str, limit: &str| {
            rows.iter().find(|r| r[0] == whose && r[1] == limit).map(|r| r[2..].join(" ")).unwrap()
        };
        assert_eq!(row(&format!("client {CLIENT}"), "money per day"), "1.25 0.50 5.00 3.25");
        assert_eq!(row("team t", "bytes per minute"), "70 40 100 0");
        assert!(data.as_array().unwrap().iter().any(|d| d["left"] == 3_250_000));
    }

    #[test]
    fn days_are_dates() {
        let used = Some(v1::WindowUsage { requests: 3, money: 1, ..Default::default() });
        let (rows, _) = days(&[v1::DayUsage { day: 20_000, used }]);
        assert_eq!(rows[1].join(" "), "2024-10-04 3 0 0 0 0 0.000001");
    }
}
