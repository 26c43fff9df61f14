//! Limits and prices: how much a team, a client or a token may use, and what tokens of a model cost. Integers only.
//!
//! **Money** is in micro-units (millionths) of the one currency that the policy names: 2_500_000 is 2.50. **Prices** are
//! micro-units per million tokens, so that the price list of a provider reads the same here: 2.50 per million tokens is
//! 2_500_000. A cost is rounded up to the next micro-unit, once, at the end; sums are exact up to 2^128 and saturate at
//! `u64::MAX`, which no limit allows.
//!
//! **Windows** are the UTC minute, day and calendar month of an entry's time. A request belongs to the windows in which it was
//! authorised, however long it runs: what it holds and what it is charged counts there and nowhere else.
use crate::ids::{PriceId, RouteId, TeamId, Timestamp};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeSet;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;
const PER_MILLION: u128 = 1_000_000;

/// One value for each window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerWindow<T> {
    /// UTC minute.
    pub minute: T,
    /// UTC day.
    pub day: T,
    /// UTC calendar month.
    pub month: T,
}

/// The windows that a moment lies in, counted from the epoch; months are `year * 12 + month - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Minutes since the epoch.
    pub minute: u64,
    /// Days since the epoch.
    pub day: u64,
    /// Months since year 0.
    pub month: u64,
}

impl Moment {
    /// The windows of a time.
    pub fn of(time: Timestamp) -> Self {
        let day = time.0 / DAY_MS;
        Self { minute: time.0 / MINUTE_MS, day, month: month_of(day) }
    }
}

/// Month of a day since the epoch, in the proleptic Gregorian calendar; years counted from March.
fn month_of(day: u64) -> u64 {
    let day = day.saturating_add(719_468);
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let (month, later) = if from_march < 10 { (from_march + 3, 0) } else { (from_march - 9, 1) };
    (era * 400 + year_of_era + later) * 12 + month - 1
}

/// What may be used in each window; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub requests: PerWindow<Option<u64>>,
    /// Bytes, both directions.
    pub bytes: PerWindow<Option<u64>>,
    /// Micro-units.
    pub money: PerWindow<Option<u64>>,
}

impl Limits {
    /// Whether money is limited: then every request has to name a price.
    pub fn limit_money(&self) -> bool {
        let PerWindow { minute, day, month } = self.money;
        minute.or(day).or(month).is_some()
    }
}

/// Clients that share limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Name.
    pub id: TeamId,
    /// What all of them together may use.
    pub limits: Limits,
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Tokens {
    /// Of the input, those from the provider's cache included.
    pub input: u64,
    /// Of these, from the cache.
    pub cached: u64,
    /// Of the output, hidden reasoning included.
    pub output: u64,
}

impl Tokens {
    /// No more than these of input and output.
    pub fn at_most(self, input: u64, output: u64) -> Self {
        let input = self.input.min(input);
        Self { input, cached: self.cached.min(input), output: self.output.min(output) }
    }
}

/// What a million tokens cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Rates {
    /// Micro-units per million tokens of input that were not cached.
    pub input: u64,
    /// Micro-units per million cached tokens of input.
    pub cached_input: u64,
    /// Micro-units per million tokens of output.
    pub output: u64,
    /// Micro-units per request.
    pub request: u64,
    /// Input tokens that the provider may bill though no byte of the request carries them.
    pub unseen_input: u64,
    /// Output tokens likewise.
    pub unseen_output: u64,
    /// Most tokens of input that one request can have.
    pub input_max: u64,
    /// Most tokens of output.
    pub output_max: u64,
}

impl Rates {
    /// What these tokens cost, rounded up.
    pub fn cost(&self, tokens: Tokens) -> u64 {
        let cached = tokens.cached.min(tokens.input);
        let fresh = tokens.input - cached;
        let parts = [(fresh, self.input), (cached, self.cached_input), (tokens.output, self.output)];
        let sum = parts
            .iter()
            .fold(0u128, |sum, (n, rate)| sum.saturating_add(u128::from(*n).saturating_mul((*rate).into())));
        u64::try_from(sum.div_ceil(PER_MILLION)).unwrap_or(u64::MAX).saturating_add(self.request)
    }

    /// The most that so many tokens can cost, whichever of them are cached.
    pub fn cost_at_most(&self, input: u64, output: u64) -> u64 {
        let dearest = Self { input: self.input.max(self.cached_input), ..*self };
        dearest.cost(Tokens { input, cached: 0, output })
    }
}

/// A row of the price table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Name, such as `openai/gpt-4o`.
    pub id: PriceId,
    /// Routes it applies to.
    pub routes: BTreeSet<RouteId>,
    /// Model names, as applications ask for them, that clients name this row for.
    pub models: BTreeSet<String>,
    /// The prices.
    pub rates: Rates,
}

impl Price {
    /// Whether a client that asks for this model names this row: it lists the model, or lists none and is called like it, with
    /// or without what stands before the last `/`.
    pub fn is_for(&self, model: &str) -> bool {
        let name = self.id.as_str();
        let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
        if self.models.is_empty() { name == model || last == model } else { self.models.contains(model) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATES: Rates = Rates {
        input: 2_500_000,
        cached_input: 1_250_000,
        output: 10_000_000,
        request: 0,
        unseen_input: 0,
        unseen_output: 0,
        input_max: u64::MAX,
        output_max: u64::MAX,
    };

    #[test]
    fn costs_are_those_of_a_price_list_rounded_up() {
        let cost = |input, cached, output| RATES.cost(Tokens { input, cached, output });
        assert_eq!(cost(1_000_000, 0, 0), 2_500_000);
        assert_eq!(cost(1_000_000, 1_000_000, 0), 1_250_000);
        assert_eq!(cost(0, 0, 1_000_000), 10_000_000);
        assert_eq!(cost(0, 0, 0), 0);
        assert_eq!(cost(1, 0, 0), 3, "2.5 micro-units are 3");
        assert_eq!(cost(2, 1, 0), 4, "3.75 are 4: rounded once, not twice");
        assert_eq!(cost(5, 9, 0), cost(5, 5, 0), "no more cached than there are");
        assert_eq!(Rates { request: 7, ..RATES }.cost(Tokens::default()), 7);
        assert_eq!(cost(u64::MAX, 0, u64::MAX), u64::MAX, "saturates");
    }

    proptest! {
        #[test]
        fn no_report_within_the_ceilings_costs_more_than_the_reservation(
            rates in [0..1u64 << 40, 0..1u64 << 40, 0..1u64 << 40, 0..1u64 << 20],
            ceilings in [0..1u64 << 40, 0..1u64 << 40],
            said in any::<[u64; 3]>(),
        ) {
            let [input, cached_input, output, request] = rates;
            let rates = Rates { input, cached_input, output, request, ..RATES };
            let tokens = Tokens { input: said[0], cached: said[1], output: said[2] };
            let tokens = tokens.at_most(ceilings[0], ceilings[1]);
            prop_assert!(rates.cost(tokens) <= rates.cost_at_most(ceilings[0], ceilings[1]));
        }

        #[test]
        fn months_follow_days(day in 0..2_000_000u64) {
            let (month, next) = (month_of(day), month_of(day + 1));
            prop_assert!(next == month || next == month + 1);
        }
    }

    #[test]
    fn months_begin_where_calendars_say() {
        let month = |text: &str| {
            let time = super::super::check::unix_ms(&text.parse().unwrap()).unwrap();
            Moment::of(time).month
        };
        assert_eq!(month("1970-01-01T00:00:00Z"), 1970 * 12);
        for (last, first) in [
            ("2026-11-30T23:59:59Z", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59Z", "2024-03-01T00:00:00Z"),
            ("2100-02-28T23:59:59Z", "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(month(last) + 1, month(first), "{first}");
        }
        assert_eq!(month("2026-11-01T00:00:00Z"), 2026 * 12 + 10);
    }

    #[test]
    fn a_row_is_for_the_models_it_names() {
        let row = |name: &str, models: &[&str]| Price {
            id: PriceId::new(name).unwrap(),
            routes: BTreeSet::new(),
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            rates: RATES,
        };
        assert!(
            row("openai/gpt-4o", &[]).is_for("gpt-4o") && row("openai/gpt-4o", &[]).is_for("openai/gpt-4o")
        );
        assert!(!row("openai/gpt-4o", &[]).is_for("4o") && !row("openai/gpt-4o", &[]).is_for("gpt-4o-mini"));
        assert!(row("large", &["a", "b"]).is_for("b") && !row("large", &["a"]).is_for("large"));
    }
}
