//! Requests over time, by route and by client, in bounded memory: bins become coarser as history grows.
use quorate_core::command::{Ended, Report, Settlement};
use quorate_core::ids::{ClientId, RouteId, Timestamp};
use std::collections::BTreeMap;

/// Bins kept at most; a picture has no room for more.
const BINS_MAX: usize = 240;
/// Widths of a bin, ms. Each divides the next, so that bins can be put together.
const WIDTHS: [u64; 14] = [
    1_000,
    5_000,
    15_000,
    60_000,
    300_000,
    900_000,
    3_600_000,
    3 * 3_600_000,
    6 * 3_600_000,
    86_400_000,
    7 * 86_400_000,
    28 * 86_400_000,
    364 * 86_400_000,
    3640 * 86_400_000,
];

/// Requests of one bin.
#[derive(Debug, Clone, Default)]
pub(super) struct Bin {
    pub(super) routes: BTreeMap<RouteId, u64>,
    pub(super) clients: BTreeMap<ClientId, u64>,
}

/// What a route carried, or a client asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) authorised: u64,
    pub(super) refused: u64,
    /// By the relays' word.
    pub(super) settled: u64,
    pub(super) incomplete: u64,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    /// Time to the first byte of the answer.
    pub(super) first_byte: Times,
    /// By the client's word.
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    /// HTTP status by class: none, 1xx to 5xx.
    pub(super) statuses: [u64; 6],
    pub(super) anomalies: u64,
}

/// Milliseconds, in buckets a quarter of their size wide.
#[derive(Debug, Clone, Default)]
pub(super) struct Times(BTreeMap<u32, u64>);

impl Times {
    fn add(&mut self, ms: u32) {
        // The two bits below the highest one tell four buckets of an octave apart.
        let octave = ms.max(4).ilog2();
        let bucket = (octave << 2) | ((ms.max(4) >> (octave - 2)) & 3);
        *self.0.entry(bucket).or_default() += 1;
    }
    /// The bucket's upper end below which this part of them lies, per mille.
    pub(super) fn quantile(&self, per_mille: u64) -> Option<u32> {
        let total: u64 = self.0.values().sum();
        let wanted = (total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        self.0.iter().find_map(|(bucket, count)| {
            seen += count;
            let (octave, quarter) = (bucket >> 2, bucket & 3);
            (seen >= wanted).then(|| (5 + quarter) << (octave - 2))
        })
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Volume {
    width: usize,
    pub(super) bins: BTreeMap<u64, Bin>,
    pub(super) routes: BTreeMap<RouteId, Tally>,
    pub(super) clients: BTreeMap<ClientId, Tally>,
    pub(super) uses: BTreeMap<(ClientId, RouteId), u64>,
}

impl Volume {
    /// How wide a bin is.
    pub(super) fn bin_ms(&self) -> u64 {
        WIDTHS.get(self.width).copied().unwrap_or(u64::MAX)
    }

    pub(super) fn authorised(&mut self, time: Timestamp, client: &ClientId, route: &RouteId) {
        let bin = self.bins.entry(time.0 / self.bin_ms()).or_default();
        add(&mut bin.routes, route, 1);
        add(&mut bin.clients, client, 1);
        self.coarsen();
        self.both(client, route, |tally| tally.authorised += 1);
        *self.uses.entry((client.clone(), route.clone())).or_default() += 1;
    }

    pub(super) fn refused(&mut self, client: &ClientId, route: &RouteId) {
        // A route that no policy knows is a name that the client made up: it must not fill the table.
        if self.routes.contains_key(route) {
            tally(&mut self.routes, route).refused += 1;
        }
        tally(&mut self.clients, client).refused += 1;
    }

    pub(super) fn settled(&mut self, client: &ClientId, route: &RouteId, s: &Settlement) {
        self.both(client, route, |tally| {
            tally.settled += 1;
            tally.incomplete += u64::from(s.ended != Ended::Complete);
            tally.bytes_up = tally.bytes_up.saturating_add(s.bytes_up);
            tally.bytes_down = tally.bytes_down.saturating_add(s.bytes_down);
            if s.ended == Ended::Complete {
                tally.first_byte.add(s.first_byte_ms);
            }
        });
    }

    pub(super) fn reported(&mut self, client: &ClientId, route: &RouteId, report: &Report) {
        self.both(client, route, |tally| {
            tally.tokens_in = tally.tokens_in.saturating_add(report.tokens_in);
            tally.tokens_out = tally.tokens_out.saturating_add(report.tokens_out);
            let class = usize::from(report.status / 100);
            let class = if class < tally.statuses.len() { class } else { 0 };
            tally.statuses.get_mut(class).into_iter().for_each(|n| *n += 1);
        });
    }

    pub(super) fn anomaly(&mut self, client: &ClientId, route: &RouteId) {
        self.both(client, route, |tally| tally.anomalies += 1);
    }

    fn both(&mut self, client: &ClientId, route: &RouteId, change: impl Fn(&mut Tally)) {
        change(tally(&mut self.routes, route));
        change(tally(&mut self.clients, client));
    }

    /// Wider bins while history does not fit.
    fn coarsen(&mut self) {
        while let (Some((first, _)), Some((last, _))) =
            (self.bins.first_key_value(), self.bins.last_key_value())
            && last - first >= BINS_MAX as u64
            && self.width + 1 < WIDTHS.len()
        {
            let old = self.bin_ms();
            self.width += 1;
            let factor = self.bin_ms() / old;
            let mut wider: BTreeMap<u64, Bin> = BTreeMap::new();
            for (at, bin) in std::mem::take(&mut self.bins) {
                let into = wider.entry(at / factor).or_default();
                bin.routes.iter().for_each(|(route, n)| add(&mut into.routes, route, *n));
                bin.clients.iter().for_each(|(client, n)| add(&mut into.clients, client, *n));
            }
            self.bins = wider;
        }
    }
}

fn add<K: Ord + Clone>(counts: &mut BTreeMap<K, u64>, key: &K, n: u64) {
    match counts.get_mut(key) {
        Some(count) => *count += n,
        None => drop(counts.insert(key.clone(), n)),
    }
}

fn tally<'a, K: Ord + Clone>(tallies: &'a mut BTreeMap<K, Tally>, key: &K) -> &'a mut Tally {
    if !tallies.contains_key(key) {
        tallies.insert(key.clone(), Tally::default());
    }
    tallies.entry(key.clone()).or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_grow_and_lose_nothing() {
        let mut volume = Volume::default();
        let client = ClientId::new("a").unwrap();
        for i in 0..10_000u64 {
            let route = RouteId::new(if i % 3 == 0 { "x" } else { "y" }).unwrap();
            volume.authorised(Timestamp(86_400_000 + i * 7_000), &client, &route);
        }
        assert_eq!(volume.bin_ms(), 300_000);
        assert!(volume.bins.len() <= BINS_MAX);
        assert_eq!(volume.bins.values().flat_map(|b| b.routes.values()).sum::<u64>(), 10_000);
        assert_eq!(volume.bins.values().flat_map(|b| b.clients.values()).sum::<u64>(), 10_000);
        assert_eq!(volume.routes.values().map(|t| t.authorised).sum::<u64>(), 10_000);
    }

    #[test]
    fn quantiles_are_near() {
        let mut times = Times::default();
        (1..=1000).for_each(|ms| times.add(ms));
        for (per_mille, expected) in [(500, 500f64), (950, 950.), (10, 10.)] {
            let got = f64::from(times.quantile(per_mille).unwrap());
            assert!((got / expected - 1.).abs() < 0.3, "{per_mille}: {got}");
        }
        assert_eq!(Times::default().quantile(500), None);
    }
}
