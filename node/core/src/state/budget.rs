//! What clients, teams and routes use: held when a request is authorised, charged when it is settled. Exact across nodes and under
//! concurrency, because entries apply one after the other.
//!
//! ```text
//! authorise ──► checked against every limit of client, team and token, then held in all of them; or refused, and nothing is
//! settle    ──► the bytes held are released, the bytes that went are charged
//! both words ─► the money held is released, the cost of the tokens reported is charged
//! deadline  ──► what was never settled or reported is charged as it was held, within what bytes allow
//! ```
//! A charge is never more than what was held, so no order of requests, settlements and deadlines brings a window above its limit:
//! in each, charged plus held stays at or below it. A request counts in the windows of its authorisation alone. Once a window is
//! over nothing of it is kept, so what still runs then is charged to it and shows no more; days are the exception, the last
//! [`DAYS_KEPT`] of the whole cluster are there to be looked up, and late charges reach them.
//!
//! **Whose word money rests on.** Tokens are the client's signed word. What can be checked without reading is that they fit the bytes
//! the relay counted: a token has at least a byte, [`SIZE_BUCKET`] allows for what a chat template adds, and a price row may allow for
//! what providers bill and do not send (hidden reasoning, images by reference). More is an anomaly, and charged as said, up to the bound
//! that was held; it is not cut to what the relay's bytes allow, or a relay that counts too few would make its clients' requests
//! cheaper. For the same reason its word that nothing went up counts only where the client saw no answer. A client that gives no tokens
//! of an answer, or never reports, is charged for all that the bytes allow.
//!
//! Not bounded here: a client that says too few tokens, that calls fresh ones cached (no more than there are), or that names the
//! cheaper of two rows that list its route; bytes, which are the relay's word; and a relay that counts too few for a client that does
//! not report. A price per request, a row without a cheaper cached price, a route for each class of model and the provider's own limits
//! are what admins have against the first three.
//!
//! **Refusals** leave leaves, but no more than [`REFUSAL_LEAVES_MAX`] a minute for a client, and as many for its tokens together: who
//! asks in vain without end fills the log of nobody. One that leaves none changes nothing either, so that whoever replays the log from
//! its leaves comes to the same state.
use crate::command::{Ended, Report, SIZE_BUCKET};
use crate::ids::{ClientId, RouteId, TeamId, Timestamp, TokenId};
use crate::policy::{Limits, Moment, Rates, Tokens};
use crate::refusal::Refusal;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;

/// Days of the whole cluster that are kept: two months.
pub const DAYS_KEPT: usize = 62;
/// Leaves that the refused commands of one client leave in a minute; those of its tokens leave as many more, together.
pub const REFUSAL_LEAVES_MAX: u32 = 256;

/// One window's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Window {
    /// Which one; see [`Moment`].
    pub index: u64,
    /// Requests authorised in it.
    pub requests: u64,
    /// Bytes charged to it.
    pub bytes: u64,
    /// Bytes that its running requests may still use.
    pub reserved_bytes: u64,
    /// Micro-units charged to it.
    pub money: u64,
    /// Micro-units that its running requests may still cost.
    pub reserved_money: u64,
    /// Tokens of its requests, as charged.
    pub tokens: Tokens,
}

impl Window {
    fn roll(&mut self, index: u64) {
        if self.index != index {
            // What still runs was reserved in its own window and is charged there.
            *self = Self { index, ..Self::default() };
        }
    }
    pub(super) fn reserve(&mut self, hold: Hold) {
        self.requests = self.requests.saturating_add(1);
        self.reserved_bytes = self.reserved_bytes.saturating_add(hold.bytes);
        self.reserved_money = self.reserved_money.saturating_add(hold.money);
    }
    pub(super) fn charge(&mut self, charge: &Charge) {
        match charge {
            Charge::Bytes { held, used } => {
                self.reserved_bytes = self.reserved_bytes.saturating_sub(*held);
                self.bytes = self.bytes.saturating_add(*used);
            }
            Charge::Money { held, used, tokens } => {
                self.reserved_money = self.reserved_money.saturating_sub(*held);
                self.money = self.money.saturating_add(*used);
                let sum = &mut self.tokens;
                sum.input = sum.input.saturating_add(tokens.input);
                sum.cached = sum.cached.saturating_add(tokens.cached);
                sum.output = sum.output.saturating_add(tokens.output);
            }
        }
    }
    /// What one more request would bring it to: requests, bytes, money.
    pub(super) fn with(&self, hold: Hold) -> [u64; 3] {
        let add = |used: u64, held: u64, more| used.saturating_add(held).saturating_add(more);
        [
            self.requests.saturating_add(1),
            add(self.bytes, self.reserved_bytes, hold.bytes),
            add(self.money, self.reserved_money, hold.money),
        ]
    }
}

/// What a client, a team or a route used: the windows that are running.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Usage {
    /// UTC minute.
    pub minute: Window,
    /// UTC day.
    pub day: Window,
    /// UTC calendar month.
    pub month: Window,
    /// Running requests.
    pub in_flight: u32,
    /// Open pools; of clients only.
    pub pools: u32,
}

/// A limit, as refusals name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Client,
    Team,
}

impl Usage {
    /// As of this moment.
    pub(super) fn roll(&mut self, now: Moment) {
        self.minute.roll(now.minute);
        self.day.roll(now.day);
        self.month.roll(now.month);
    }

    /// The windows running at that moment, which is not before the last one seen.
    pub fn at(mut self, now: Moment) -> Self {
        self.roll(now);
        self
    }

    fn check(&self, whose: Whose, limits: &Limits, hold: Hold) -> Result<(), Refusal> {
        let (minute, day, month) = (self.minute.with(hold), self.day.with(hold), self.month.with(hold));
        let allowed = [limits.requests, limits.bytes, limits.money];
        for ((((allowed, minute), day), month), refusals) in
            allowed.iter().zip(minute).zip(day).zip(month).zip(refusals(whose))
        {
            let windows = [(allowed.minute, minute), (allowed.day, day), (allowed.month, month)];
            for ((limit, would), refusal) in windows.into_iter().zip(refusals) {
                if limit.is_some_and(|limit| would > limit) {
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    fn reserve(&mut self, hold: Hold) {
        self.minute.reserve(hold);
        self.day.reserve(hold);
        self.month.reserve(hold);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    fn charge(&mut self, of: Moment, charge: &Charge) {
        let windows = [(&mut self.minute, of.minute), (&mut self.day, of.day), (&mut self.month, of.month)];
        for (window, _) in windows.into_iter().filter(|(window, index)| window.index == *index) {
            window.charge(charge);
        }
        if matches!(charge, Charge::Bytes { .. }) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }
}

/// Requests, bytes, money; each of minute, day, month.
fn refusals(whose: Whose) -> [[Refusal; 3]; 3] {
    use Refusal as R;
    match whose {
        Whose::Client => [
            [R::RateExceeded, R::RequestBudgetExceeded, R::ClientRequestsPerMonth],
            [R::ClientBytesPerMinute, R::ByteBudgetExceeded, R::ClientBytesPerMonth],
            [R::ClientMoneyPerMinute, R::ClientMoneyPerDay, R::ClientMoneyPerMonth],
        ],
        Whose::Team => [
            [R::TeamRequestsPerMinute, R::TeamRequestsPerDay, R::TeamRequestsPerMonth],
            [R::TeamBytesPerMinute, R::TeamBytesPerDay, R::TeamBytesPerMonth],
            [R::TeamMoneyPerMinute, R::TeamMoneyPerDay, R::TeamMoneyPerMonth],
        ],
    }
}

/// What a request holds until it is settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Hold {
    /// Its ceilings.
    pub bytes: u64,
    /// What its tokens may cost.
    pub money: u64,
}

/// What settles a request: each kind once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Charge {
    /// By the relay's word, or for want of it.
    Bytes { held: u64, used: u64 },
    /// By the client's word, or for want of it.
    Money { held: u64, used: u64, tokens: Tokens },
}

/// Who pays for a request, and what for.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Account {
    /// Whose.
    pub client: ClientId,
    /// The token it was signed with.
    pub token: Option<TokenId>,
    /// The client's team at that time.
    pub team: Option<TeamId>,
    /// Destination.
    pub route: RouteId,
    /// Entry time of the authorisation: its windows are the request's.
    pub at: Timestamp,
    /// What it holds.
    pub hold: Hold,
    /// Prices as they were; `None` for a request that names none.
    pub rates: Option<Rates>,
    /// Most tokens of input and output it will be charged for.
    pub ceilings: (u64, u64),
}

impl Account {
    /// What the price allows for beyond bytes.
    fn unseen(&self) -> (u64, u64) {
        self.rates.map_or((0, 0), |r| (r.unseen_input, r.unseen_output))
    }

    /// The most tokens that so many bytes up and down can have carried.
    pub fn tokens_in_bytes(&self, (up, down): (u64, u64)) -> (u64, u64) {
        let (input, output) = self.unseen();
        let most = |bytes: u64, unseen| bytes.saturating_add(SIZE_BUCKET).saturating_add(unseen);
        (most(up, input), most(down, output))
    }

    /// Tokens and money due, by the relay's bytes up and down and the client's word, as far as either has spoken.
    pub fn due(&self, bytes: Option<(u64, u64)>, said: Option<&Said>) -> (Tokens, u64) {
        // Whose client had an answer was sent, whatever its relay says.
        let bytes = bytes.filter(|(up, _)| *up > 0 || !said.is_some_and(|s| s.answered));
        if bytes.is_some_and(|(up, _)| up == 0) {
            // Nothing reached the provider.
            return (Tokens::default(), 0);
        }
        let (mut input, mut output) = self.ceilings;
        let (tokens, cost) = match (said.and_then(|s| s.tokens), &self.rates) {
            (Some(tokens), rates) => {
                let tokens = tokens.at_most(input, output);
                (tokens, rates.map_or(0, |r| r.cost(tokens)))
            }
            (None, Some(rates)) => {
                if let Some(bytes) = bytes {
                    let most = self.tokens_in_bytes(bytes);
                    (input, output) = (input.min(most.0), output.min(most.1));
                }
                (Tokens { input, cached: 0, output }, rates.cost_at_most(input, output))
            }
            (None, None) => (Tokens::default(), 0),
        };
        (tokens, cost.min(self.hold.money))
    }
}

/// A client's word on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Said {
    /// How many it was, if it says so.
    pub tokens: Option<Tokens>,
    /// Whether it saw an answer.
    pub answered: bool,
    /// How it ended.
    pub ended: Ended,
}

impl Said {
    pub(super) fn of(report: &Report) -> Self {
        let Report { tokens_in: input, tokens_cached: cached, tokens_out: output, status, ended, .. } =
            *report;
        let tokens = Tokens { input, cached, output };
        // An answer costs tokens. Who says none of one has not said how many.
        let silent = tokens == Tokens::default() && (200..300).contains(&status);
        let answered = status != 0 || tokens != Tokens::default();
        Self { tokens: (!silent).then_some(tokens), answered, ended }
    }
}

/// Everybody's usage.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Budgets {
    pub(super) clients: BTreeMap<ClientId, Usage>,
    teams: BTreeMap<TeamId, Usage>,
    routes: BTreeMap<RouteId, Usage>,
    /// By day since the epoch, all clients together. At most [`DAYS_KEPT`].
    days: BTreeMap<u64, Window>,
    /// The minute of the last refusal, and how many left leaves in it: a client's own, and its tokens'.
    refusals: (u64, BTreeMap<ClientId, [u32; 2]>),
}

/// The usage of a name, as of now.
fn of<'m, K: Ord + Clone>(map: &'m mut BTreeMap<K, Usage>, name: &K, now: Moment) -> &'m mut Usage {
    let usage = map.entry(name.clone()).or_default();
    usage.roll(now);
    usage
}

impl Budgets {
    pub(super) fn teams(&self) -> &BTreeMap<TeamId, Usage> {
        &self.teams
    }
    pub(super) fn routes(&self) -> &BTreeMap<RouteId, Usage> {
        &self.routes
    }
    pub(super) fn days(&self) -> &BTreeMap<u64, Window> {
        &self.days
    }

    /// A client's usage, as of now.
    pub(super) fn client(&mut self, client: &ClientId, now: Moment) -> &mut Usage {
        of(&mut self.clients, client, now)
    }

    /// Pools and running requests of a client.
    pub(super) fn open(&self, client: &ClientId) -> (u32, u32) {
        self.clients.get(client).map_or((0, 0), |u| (u.pools, u.in_flight))
    }

    /// Whether client and team may hold this much more. Changes nothing: a refusal may leave no leaf.
    pub(super) fn check(
        &self,
        account: &Account,
        client: &Limits,
        team: Option<&Limits>,
    ) -> Result<(), Refusal> {
        let now = Moment::of(account.at);
        let as_of = |usage: Option<&Usage>| usage.cloned().unwrap_or_default().at(now);
        as_of(self.clients.get(&account.client)).check(Whose::Client, client, account.hold)?;
        if let (Some(team), Some(limits)) = (&account.team, team) {
            as_of(self.teams.get(team)).check(Whose::Team, limits, account.hold)?;
        }
        Ok(())
    }

    /// Whether one more refusal of a client, or of a token of its, leaves a leaf. If not, nothing has changed.
    pub(super) fn refusal_leaf(&mut self, client: &ClientId, by_token: bool, now: Moment) -> bool {
        let (minute, left) = &mut self.refusals;
        if *minute != now.minute {
            *minute = now.minute;
            left.clear();
        }
        let [own, tokens] = left.entry(client.clone()).or_default();
        let count = if by_token { tokens } else { own };
        let one_more = *count < REFUSAL_LEAVES_MAX;
        *count += u32::from(one_more);
        one_more
    }

    /// Holds what a request may use, everywhere. Whoever calls it has checked that it fits.
    pub(super) fn reserve(&mut self, account: &Account) {
        let now = Moment::of(account.at);
        self.client(&account.client, now).reserve(account.hold);
        if let Some(team) = &account.team {
            of(&mut self.teams, team, now).reserve(account.hold);
        }
        of(&mut self.routes, &account.route, now).reserve(account.hold);
        let day = self.days.entry(now.day).or_insert(Window { index: now.day, ..Window::default() });
        day.reserve(account.hold);
        while self.days.len() > DAYS_KEPT {
            self.days.pop_first();
        }
    }

    /// Releases what was held and charges what was used, in the windows of the authorisation that still run.
    pub(super) fn charge(&mut self, account: &Account, charge: &Charge) {
        let of = Moment::of(account.at);
        if let Some(usage) = self.clients.get_mut(&account.client) {
            usage.charge(of, charge);
        }
        if let Some(usage) = account.team.as_ref().and_then(|team| self.teams.get_mut(team)) {
            usage.charge(of, charge);
        }
        if let Some(usage) = self.routes.get_mut(&account.route) {
            usage.charge(of, charge);
        }
        if let Some(day) = self.days.get_mut(&of.day) {
            day.charge(charge);
        }
    }
}

#[cfg(test)]
mod tests;
