//! `quorate admin credential check`: one small request over every relay and keyer, so that wrong shares show before users do.
use super::{SshKeyArg, TrustArg, probe, shape};
use crate::answer::is_own_error_form;
use crate::cli::admin::ssh_sign;
use crate::cli::output::{Failure, Outcome, note, printable, table, text_out};
use crate::directory::now;
use crate::error::chain;
use crate::pool::PoolOptions;
use crate::request::Request;
use crate::{Client, Error, TrustFile};
use quorate_core::command::{ProbeGrant, SignedProbeGrant};
use quorate_core::crypto::PublicKey;
use quorate_core::ids::{NodeId, RouteId};
use quorate_core::policy::{Policy, Route};

/// How long the grant lasts: enough for every pair of seven members to time out once.
const GRANT_MS: u64 = 30 * 60_000;
/// Most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Name of the route
    route: String,
    #[command(flatten)]
    trust: TrustArg,
    #[command(flatten)]
    key: SshKeyArg,
}

/// A request, and what the provider says to a key that is none.
struct Question {
    request: Request,
    refusal: Option<u16>,
}

pub(crate) async fn check(args: CheckArgs) -> Outcome {
    let trust = TrustFile::load(&args.trust.trust)?;
    // A lane serves one request and goes.
    let options = PoolOptions { pool_size: 0, pool_size_max: 1, lanes: 1 };
    let client = Client::connect_with(trust.clone(), options).await?;
    let directory = client.directory();
    let policy = &directory.verified().policy;
    let route = RouteId::new(args.route.as_str()).ok().and_then(|r| directory.route(&r));
    let route = route.ok_or_else(|| Error::UnknownRoute { route: args.route.clone() })?;
    let credential = route.credential.as_ref().ok_or_else(|| {
        Failure::new(
            format!("route {} has no credential in force", args.route),
            "split one: `quorate admin credential set`, then sign and submit the change",
        )
    })?;
    let pairs = pairs(policy, directory.verified().nodes.keys().copied().collect(), &trust)?;
    let grant = ProbeGrant {
        route: route.id.clone(),
        share_epoch: credential.share_epoch,
        client_key: PublicKey(trust.load_key()?.public()),
        pairs: pairs.clone(),
        expires: now().plus_ms(GRANT_MS),
    };
    let signature = ssh_sign(&args.key.key, &grant.statement(trust.genesis)).await?;
    let grant = SignedProbeGrant { grant, signature };
    let question = question(route).await?;
    let name = |n: &NodeId| policy.members.get(n).map_or_else(|| n.to_string(), |m| m.name.clone());
    let mut rows = vec![["RELAY", "KEYER", "RESULT"].map(str::to_owned).to_vec()];
    let mut failed = 0;
    for (relay, keyer) in &pairs {
        let result = ask(&client, (*relay, *keyer), &grant, &question, &route.document.dialect).await;
        let text = match result {
            Ok(text) => format!("ok: {text}"),
            Err(text) => {
                failed += 1;
                format!("FAILED: {text}")
            }
        };
        rows.push(vec![name(relay), name(keyer), text]);
    }
    client.flush().await;
    text_out(&table(&rows))?;
    if failed == 0 {
        note(&format!("share epoch {}: all {} pairs work", credential.share_epoch, pairs.len()));
        return Ok(());
    }
    Err(Failure {
        message: format!("{failed} of {} pairs failed", pairs.len()),
        hints: hints(failed == pairs.len(), &args.route),
    })
}

fn hints(all: bool, route: &str) -> Vec<String> {
    let first = if all {
        "all pairs fail alike: the key itself is wrong or revoked, or the provider is down"
    } else {
        "one node in all the failing pairs has wrong or no shares, or spoils keys: see its log, and `quorate status --routes`"
    };
    vec![first.into(), format!("to split the key again: `quorate admin credential rotate {route}`")]
}

/// Every relay and keyer that may ever serve this client.
fn pairs(policy: &Policy, attested: Vec<NodeId>, trust: &TrustFile) -> Outcome<Vec<(NodeId, NodeId)>> {
    let own = policy.clients.get(&trust.client).map(|g| &g.custodian);
    let custodian = |n: &NodeId| policy.members.get(n).map(|m| &m.custodian);
    let mut pairs = Vec::new();
    for relay in attested.iter().filter(|n| custodian(n) != own) {
        let apart = |keyer: &&NodeId| custodian(keyer) != own && custodian(keyer) != custodian(relay);
        pairs.extend(attested.iter().filter(apart).map(|keyer| (*relay, *keyer)));
    }
    let missing: Vec<_> =
        policy.members.values().filter(|m| !attested.contains(&m.id)).map(|m| m.name.as_str()).collect();
    if !missing.is_empty() {
        note(&format!("not tried, for they are not attested: {}", missing.join(", ")));
    }
    if pairs.is_empty() {
        return Err(Failure::new(
            "no relay and keyer with custodians apart from this client's are attested",
            "see `quorate status`; check with a client under another custodian",
        ));
    }
    Ok(pairs)
}

/// The cheapest request to which the provider does not say yes with a wrong key, if it can be asked from here.
async fn question(route: &Route) -> Outcome<Question> {
    let document = &route.document;
    let mut requests = probe::requests(document);
    let Some(credential) = &route.credential else { return Err(no_path()) };
    let stranger = shape::stranger(usize::from(credential.secret_bytes))?;
    let mut accepts_all = false;
    for request in &requests {
        let prefix = &credential.public_prefix;
        match probe::ask(document, credential.scheme, prefix, &stranger, request).await {
            Ok(answer) if (200..300).contains(&answer.status) => accepts_all = true,
            Ok(answer) => return Ok(Question { request: request.clone(), refusal: Some(answer.status) }),
            Err(error) => {
                accepts_all = false;
                note(&format!(
                    "the provider cannot be asked from here ({}), so what it says to a wrong key is not known",
                    chain(&error)
                ));
                break;
            }
        }
    }
    if requests.is_empty() {
        return Err(no_path());
    }
    if accepts_all {
        return Err(Failure::new(
            "the provider says yes to a wrong key as well, so nothing shows whether shares are right",
            "give the route a path that needs the key, such as /v1/chat/completions",
        ));
    }
    Ok(Question { request: requests.remove(0), refusal: None })
}

fn no_path() -> Failure {
    Failure::new("the route has no exact path to try", "add one to it, such as /v1/models")
}

async fn ask(
    client: &Client,
    pair: (NodeId, NodeId),
    grant: &SignedProbeGrant,
    question: &Question,
    dialect: &str,
) -> Result<String, String> {
    let short = |text: &str| printable(text).chars().take(160).collect::<String>();
    let response =
        client.probe_pair(pair, grant.clone(), &question.request).await.map_err(|e| short(&chain(&e)))?;
    let status = response.status.as_u16();
    let body = response.body.bytes(ANSWER_BYTES_MAX).await.map_err(|e| short(&chain(&e)))?;
    judge(status, is_own_error_form(dialect, &body), question.refusal)
}

/// An answer means that the key was good when it is a success, or an error of the API's that a wrong key does not get.
fn judge(status: u16, own_form: bool, refusal: Option<u16>) -> Result<String, String> {
    match status {
        200..=299 => Ok(status.to_string()),
        401 | 403 => Err(format!("the provider refused the key ({status})")),
        _ if Some(status) == refusal => Err(format!("{status}, as a wrong key gets")),
        500.. => Err(format!("the provider answered {status}")),
        _ if own_form => Ok(format!("{status}, the API's own error: the key was accepted")),
        _ => Err(format!("{status}, and not in the API's own form")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_what_a_wrong_key_gets() {
        let good = [(200, false, Some(401)), (200, false, None), (400, true, Some(401)), (404, true, None)];
        for (status, form, refusal) in good {
            assert!(judge(status, form, refusal).is_ok(), "{status} {form} {refusal:?}");
        }
        let bad = [
            (401, true, None),
            (403, true, Some(400)),
            (400, true, Some(400)),
            (400, false, Some(401)),
            (503, true, None),
        ];
        for (status, form, refusal) in bad {
            assert!(judge(status, form, refusal).is_err(), "{status} {form} {refusal:?}");
        }
    }

    #[test]
    fn pairs_are_all_that_may_serve_this_client() {
        use quorate_core::testing::{CLIENT, Fleet};
        let fleet = Fleet::new(4, 1, |_| ());
        let policy = Policy::parse(toml::to_string(&fleet.document).unwrap().as_bytes()).unwrap();
        let trust = TrustFile {
            genesis: policy.digest,
            nodes: vec![],
            client: quorate_core::ids::ClientId::new(CLIENT).unwrap(),
            key: "unused".into(),
            freshness_ms: 0,
            token: None,
        };
        let all: Vec<_> = policy.members.keys().copied().collect();
        assert_eq!(pairs(&policy, all.clone(), &trust).unwrap().len(), 12);
        assert_eq!(pairs(&policy, all[..3].to_vec(), &trust).unwrap().len(), 6);
        assert!(pairs(&policy, all[..1].to_vec(), &trust).is_err());
    }
}
