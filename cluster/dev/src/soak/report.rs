//! What a soak found, for people and as JSON, and which promises it broke.
use super::memory::Growth;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Growth of a process after the warm-up may be so much, KiB per ten minutes.
pub const GROWTH_KIB_MAX: f64 = 1024.0;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The seed of everything that was drawn.
    pub seed: u64,
    /// How long load ran, seconds.
    pub seconds: f64,
    /// When memory was judged from, seconds.
    pub warm_up_s: f64,
    /// Requests, by what they came to.
    pub ends: BTreeMap<String, u64>,
    /// Ends that no program could name, the first of them in full.
    pub untyped: Vec<String>,
    /// How many there were.
    pub untyped_count: u64,
    /// Requests that did not end.
    pub hung: u64,
    /// Bodies cut off, and failures after an answer's head that the adapter's metrics name.
    pub cut_off: (u64, u64),
    /// Nodes restarted: by SIGTERM, by SIGKILL, and how often it was the leader.
    pub restarts: (u32, u32, u32),
    /// Receipts.
    pub receipts: Receipts,
    /// Memory.
    pub growth: Vec<Growth>,
    /// What should have been seen and was not.
    pub not_seen: Vec<String>,
    /// What else went wrong.
    pub broken: Vec<String>,
}

/// What became of receipts.
#[derive(Debug, Default, Serialize)]
pub struct Receipts {
    /// Requests whose answer named them: each must have one.
    pub answered: u64,
    /// Receipts that were verified, of all attempts.
    pub verified: u64,
    /// Answered requests that their relay settled.
    pub settled: u64,
    /// Answered requests that the log closed, since their relay was lost.
    pub closed_by_the_log: u64,
    /// Answered requests without a receipt, or with one that proves nothing.
    pub lost: u64,
    /// Further attempts without one, by reason: they were refused.
    pub attempts_without: BTreeMap<String, u64>,
    /// The first failures.
    pub failures: Vec<String>,
}

impl Report {
    /// The promises that do not hold. Memory is one only if the run was long enough to tell.
    pub fn violations(&self) -> Vec<String> {
        let mut broken = self.broken.clone();
        if self.untyped_count > 0 {
            broken.push(format!("{} failures were not typed", self.untyped_count));
        }
        if self.hung > 0 {
            broken.push(format!("{} requests hung", self.hung));
        }
        let (cut, named) = self.cut_off;
        if cut > named {
            broken.push(format!("{cut} answers were cut off, and the adapter names {named} reasons"));
        }
        let r = &self.receipts;
        if r.lost > 0 || r.settled + r.closed_by_the_log != r.answered || r.answered == 0 {
            broken.push(format!("{} of {} receipts were lost", r.lost, r.answered));
        }
        for growth in &self.growth {
            if let Some(slope) = growth.resident.filter(|s| s.kib_per_10_min > GROWTH_KIB_MAX) {
                broken.push(format!(
                    "{} grew by {:.0} KiB in ten minutes ({})",
                    growth.process, slope.kib_per_10_min, growth.by
                ));
            }
        }
        broken.extend(self.not_seen.iter().map(|what| format!("not seen: {what}")));
        broken
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.ends.values().sum();
        writeln!(f, "soak: {:.1} minutes, seed {}, {total} requests", self.seconds / 60.0, self.seed)?;
        let mut ends: Vec<_> = self.ends.iter().collect();
        ends.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (end, count) in ends {
            writeln!(f, "  {count:>8}  {end}")?;
        }
        for (at, end) in self.untyped.iter().enumerate() {
            writeln!(f, "  untyped {}: {end}", at + 1)?;
        }
        writeln!(
            f,
            "cut off: {}; failures after a head that the adapter names: {}",
            self.cut_off.0, self.cut_off.1
        )?;
        let (term, kill, leader) = self.restarts;
        writeln!(f, "restarts: {term} by SIGTERM, {kill} by SIGKILL; {leader} of the leader")?;
        let r = &self.receipts;
        writeln!(
            f,
            "receipts: {} answered; {} settled by their relay, {} closed by the log, {} lost; {} verified in all",
            r.answered, r.settled, r.closed_by_the_log, r.lost, r.verified
        )?;
        for (reason, count) in &r.attempts_without {
            writeln!(f, "  {count:>8}  further attempts without one: {reason}")?;
        }
        for failure in &r.failures {
            writeln!(f, "  lost: {failure}")?;
        }
        writeln!(
            f,
            "memory after minute {:.1}, KiB per 10 minutes (bound {GROWTH_KIB_MAX}):",
            self.warm_up_s / 60.0
        )?;
        for g in &self.growth {
            let (from, to) = g.from_to_kib;
            write!(f, "  {:<16}{from:>8} -> {to:>8} KiB  ", g.process)?;
            match (g.resident, g.anonymous) {
                (Some(r), Some(a)) => writeln!(
                    f,
                    "resident {:+7.0} ± {:.0}, not of files {:+7.0} ± {:.0}, {} samples; {}",
                    r.kib_per_10_min, r.error, a.kib_per_10_min, a.error, r.samples, g.by
                )?,
                _ => writeln!(f, "too few samples; {}", g.by)?,
            }
        }
        let broken = self.violations();
        if broken.is_empty() {
            write!(f, "every promise held")
        } else {
            write!(f, "broken: {}", broken.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Slope;
    use super::*;

    fn good() -> Report {
        Report {
            seed: 1,
            seconds: 60.0,
            warm_up_s: 20.0,
            ends: BTreeMap::from([("answered".into(), 5)]),
            untyped: vec![],
            untyped_count: 0,
            hung: 0,
            cut_off: (1, 1),
            restarts: (1, 1, 1),
            receipts: Receipts { answered: 5, settled: 4, closed_by_the_log: 1, ..Default::default() },
            growth: vec![],
            not_seen: vec![],
            broken: vec![],
        }
    }

    #[test]
    fn each_promise_can_break() {
        assert!(good().violations().is_empty(), "{}", good());
        type Break = fn(&mut Report);
        let breaks: [(&str, Break); 7] = [
            ("not typed", |r| r.untyped_count = 1),
            ("hung", |r| r.hung = 1),
            ("cut off", |r| r.cut_off = (2, 1)),
            ("receipts", |r| r.receipts.lost = 1),
            ("receipts", |r| r.receipts.settled -= 1),
            ("not seen", |r| r.not_seen.push("x".into())),
            ("grew", |r| {
                let slope = Some(Slope { kib_per_10_min: 1025.0, error: 1.0, samples: 99 });
                let (process, by) = ("adapter".into(), "");
                r.growth.push(Growth { process, by, from_to_kib: (1, 2), resident: slope, anonymous: slope });
            }),
        ];
        for (what, break_it) in breaks {
            let mut report = good();
            break_it(&mut report);
            let violations = report.violations();
            assert!(violations.len() == 1 && violations[0].contains(what), "{what}: {violations:?}");
        }
    }
}
