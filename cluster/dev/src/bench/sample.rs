//! Samples and their quantiles.
use serde::Serialize;
use std::time::Duration;

/// Durations, in the order they were taken.
#[derive(Debug, Default, Clone)]
pub(super) struct Sample(Vec<Duration>);

/// What is shown of a sample, milliseconds.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Quantiles {
    /// Half are below.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of a hundred are below.
    pub p99: f64,
}

impl Quantiles {
    /// Quantile by quantile; not the quantiles of differences, which no two requests have.
    pub fn minus(self, other: Self) -> Self {
        Self { p50: self.p50 - other.p50, p90: self.p90 - other.p90, p99: self.p99 - other.p99 }
    }
}

impl Sample {
    pub(super) fn push(&mut self, value: Duration) {
        self.0.push(value);
    }
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |q: f64| {
            let rank = (q * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
        };
        Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// The middle of some numbers; NaN of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_sample() {
        let mut sample = Sample::default();
        (1..=100).rev().for_each(|ms| sample.push(Duration::from_millis(ms)));
        let q = sample.quantiles();
        assert_eq!((q.p50, q.p90, q.p99), (50.0, 90.0, 99.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(Sample::default().quantiles().p50.is_nan());
    }
}
