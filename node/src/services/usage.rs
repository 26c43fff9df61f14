//! What was used, by this node's state: to each client its own, to admins everybody's.
//!
//! Who asks proves itself by the key of its connection: a client's, that of a token the client signed, or one that an admin lets see
//! everybody's figures for a while ([`UsageGrant`](quorate_core::command::UsageGrant)). Strangers get nothing, and cost a look at the
//! policy or, few a second, one signature. It spares the node work and keeps figures from idle eyes, no more: the log is public, and
//! whoever replays it comes to the same.
//!
//! The state is held for the copy of at most [`PAGE`] records; the message is made outside.
use crate::ledger::Ledger;
use crate::services::rate::Rate;
use crate::services::status::Problem;
use quorate_core::command::{SignedUsageGrant, USAGE_GRANT_MS_MAX};
use quorate_core::ids::{ClientId, RouteId, TeamId, Timestamp, TokenId};
use quorate_core::policy::Policy;
use quorate_core::state::{State, TokenRecord, Usage, Window};
use quorate_core::token::SignedToken;
use quorate_proto::v1;
use quorate_transport::PublicKey;
use std::time::Instant;

/// Records in one reply.
const PAGE: usize = 256;
/// Calls of one key at once: all pages of a large mesh.
const CALLS_BURST: u64 = 64;
/// And a second, from then on.
const CALLS_PER_SECOND: u64 = 8;
/// Signatures of anybody that are checked at once.
const CHECKS_BURST: u64 = 256;
/// And a second, from then on: a few ms of one core.
const CHECKS_PER_SECOND: u64 = 64;
/// Longest token or grant: 64 routes of the longest names, a signature by a FIDO key.
const PROOF_BYTES_MAX: usize = 8 * 1024;

/// Bounds on the callers.
#[derive(Debug)]
pub(crate) struct UsageRates {
    calls: Rate<[u8; 32]>,
    checks: Rate<()>,
}

impl Default for UsageRates {
    fn default() -> Self {
        Self {
            calls: Rate::new(CALLS_BURST, CALLS_PER_SECOND),
            checks: Rate::new(CHECKS_BURST, CHECKS_PER_SECOND),
        }
    }
}

/// What the caller may see.
#[derive(Debug, PartialEq, Eq)]
enum Sight {
    /// Of one client, and of its tokens all or this one.
    Own(ClientId, Option<TokenId>),
    /// Everybody's.
    All(v1::UsageBy),
}

/// The reply to whoever has this key.
pub(crate) fn answer(
    ledger: &Ledger,
    rates: &UsageRates,
    caller: &PublicKey,
    request: &v1::UsageRequest,
    now: (Timestamp, Instant),
) -> Result<v1::UsageReply, Problem> {
    let view = ledger.view();
    let sight = sight(ledger, &view.policy, rates, caller, request, now)?;
    if !rates.calls.take(*caller.as_bytes(), 1, now.1) {
        return Err(Problem::Overloaded);
    }
    let after = request.after.as_str();
    let page = match &sight {
        Sight::Own(client, token) => {
            let after = token_after(after)?;
            ledger.read(|state| Page::own(state, client, *token, after))
        }
        Sight::All(v1::UsageBy::Client) => {
            let after = name_after(after, ClientId::new)?;
            ledger.read(|state| Page {
                clients: page(state.usage_by_client(after.as_ref())),
                ..Page::at(state)
            })
        }
        Sight::All(v1::UsageBy::Team) => {
            let after = name_after(after, TeamId::new)?;
            ledger.read(|state| Page { teams: page(state.usage_by_team(after.as_ref())), ..Page::at(state) })
        }
        Sight::All(v1::UsageBy::Route) => {
            let after = name_after(after, RouteId::new)?;
            ledger
                .read(|state| Page { routes: page(state.usage_by_route(after.as_ref())), ..Page::at(state) })
        }
        // Two months at most.
        Sight::All(v1::UsageBy::Day) => ledger.read(|state| Page {
            days: state.usage_by_day().iter().map(|(day, used)| (*day, *used)).collect(),
            ..Page::at(state)
        }),
    };
    Ok(page.reply(ledger.me().0))
}

fn sight(
    ledger: &Ledger,
    policy: &Policy,
    rates: &UsageRates,
    caller: &PublicKey,
    request: &v1::UsageRequest,
    (time, instant): (Timestamp, Instant),
) -> Result<Sight, Problem> {
    let check = || if rates.checks.take((), 1, instant) { Ok(()) } else { Err(Problem::Overloaded) };
    for (what, proof) in [("token", &request.token), ("admin", &request.admin)] {
        if proof.len() > PROOF_BYTES_MAX {
            return Err(Problem::TooLarge { what, max: PROOF_BYTES_MAX });
        }
    }
    if !request.admin.is_empty() {
        let signed: SignedUsageGrant =
            borsh::from_slice(&request.admin).map_err(|_| Problem::Malformed("admin"))?;
        let SignedUsageGrant { grant, signature } = &signed;
        let by = v1::UsageBy::try_from(request.by).map_err(|_| Problem::Malformed("by"))?;
        let lasts = grant.expires > time && grant.expires <= time.plus_ms(USAGE_GRANT_MS_MAX);
        if grant.caller_key.0 != *caller.as_bytes() || !lasts {
            return Err(Problem::NotAnAdmin);
        }
        check()?;
        let signer = signature.verify(&grant.statement(ledger.cluster())).map_err(|_| Problem::NotAnAdmin)?;
        return if policy.admins.contains_key(&signer) {
            Ok(Sight::All(by))
        } else {
            Err(Problem::NotAnAdmin)
        };
    }
    let client = ClientId::new(request.client.as_str()).map_err(|_| Problem::Malformed("client"))?;
    // A stranger learns from it no more than that it is one.
    let grant = policy.clients.get(&client).ok_or(Problem::NotTheClient)?;
    if request.token.is_empty() {
        let own = grant.key.0 == *caller.as_bytes();
        return if own { Ok(Sight::Own(client, None)) } else { Err(Problem::NotTheClient) };
    }
    let signed: SignedToken = borsh::from_slice(&request.token).map_err(|_| Problem::Malformed("token"))?;
    if signed.token.key.0 != *caller.as_bytes() || signed.token.issuer != client {
        return Err(Problem::NotTheClient);
    }
    check()?;
    if !signed.is_by(ledger.cluster(), &grant.key) {
        return Err(Problem::NotTheClient);
    }
    Ok(Sight::Own(client, Some(signed.token.id(ledger.cluster()))))
}

fn name_after<N, E>(name: &str, new: impl FnOnce(String) -> Result<N, E>) -> Result<Option<N>, Problem> {
    if name.is_empty() {
        return Ok(None);
    }
    new(name.to_owned()).map(Some).map_err(|_| Problem::Malformed("after"))
}

fn token_after(name: &str) -> Result<Option<TokenId>, Problem> {
    name_after(name, |text| text.parse())
}

/// What was copied from the state; a list of one more than a page has more.
#[derive(Default)]
struct Page {
    tree_size: u64,
    time: Timestamp,
    clients: Vec<(String, Usage)>,
    teams: Vec<(String, Usage)>,
    routes: Vec<(String, Usage)>,
    days: Vec<(u64, Window)>,
    tokens: Vec<(TokenId, TokenRecord)>,
}

fn page<'s, N: ToString + 's>(of: impl Iterator<Item = (&'s N, Usage)>) -> Vec<(String, Usage)> {
    of.take(PAGE + 1).map(|(name, usage)| (name.to_string(), usage)).collect()
}

impl Page {
    fn at(state: &State) -> Self {
        Self { tree_size: state.checkpoint().size.0, time: state.time(), ..Self::default() }
    }

    fn own(state: &State, client: &ClientId, token: Option<TokenId>, after: Option<TokenId>) -> Self {
        let team = state.policy().clients.get(client).and_then(|grant| grant.team.clone());
        let of_team = |team: TeamId| Some((team.to_string(), state.usage_of_team(&team)?));
        let tokens = match token {
            Some(id) => state.token(&id).map(|record| (id, record.clone())).into_iter().collect(),
            None => state
                .tokens_of(client, after)
                .take(PAGE + 1)
                .map(|(id, record)| (*id, record.clone()))
                .collect(),
        };
        Self {
            clients: state.usage(client).map(|usage| (client.to_string(), usage)).into_iter().collect(),
            teams: team.and_then(of_team).into_iter().collect(),
            tokens,
            ..Self::at(state)
        }
    }

    fn reply(mut self, node: u64) -> v1::UsageReply {
        let more = [self.clients.len(), self.teams.len(), self.routes.len(), self.tokens.len()]
            .into_iter()
            .any(|n| n > PAGE);
        for list in [&mut self.clients, &mut self.teams, &mut self.routes] {
            list.truncate(PAGE);
        }
        self.tokens.truncate(PAGE);
        let list = |all: Vec<(String, Usage)>| all.iter().map(|(name, u)| of(name, u)).collect();
        v1::UsageReply {
            node,
            tree_size: self.tree_size,
            time_ms: self.time.0,
            clients: list(self.clients),
            teams: list(self.teams),
            routes: list(self.routes),
            days: self
                .days
                .iter()
                .map(|(day, used)| v1::DayUsage { day: *day, used: Some(window(used)) })
                .collect(),
            tokens: self
                .tokens
                .iter()
                .map(|(id, record)| v1::TokenUsage {
                    token: id.0.to_vec().into(),
                    subject: record.token.subject.to_string(),
                    revoked: record.revoked,
                    expires_ms: record.token.expires.0,
                    used: Some(window(&record.used)),
                })
                .collect(),
            more,
        }
    }
}

fn of(name: &str, usage: &Usage) -> v1::Usage {
    v1::Usage {
        name: name.to_owned(),
        minute: Some(window(&usage.minute)),
        day: Some(window(&usage.day)),
        month: Some(window(&usage.month)),
        in_flight: usage.in_flight,
    }
}

fn window(window: &Window) -> v1::WindowUsage {
    v1::WindowUsage {
        requests: window.requests,
        bytes: window.bytes,
        reserved_bytes: window.reserved_bytes,
        money: window.money,
        reserved_money: window.reserved_money,
        tokens_in: window.tokens.input,
        tokens_cached: window.tokens.cached,
        tokens_out: window.tokens.output,
    }
}
