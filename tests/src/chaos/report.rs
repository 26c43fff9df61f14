//! What a run found.
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// One disturbance.
#[derive(Debug, Clone, Serialize)]
pub struct Episode {
    /// What was done.
    pub fault: String,
    /// To whom.
    pub to: String,
    /// When it began, s from the run's start.
    pub at_s: f64,
    /// How long it lasted, s.
    pub lasted_s: f64,
    /// From its end to the first answer of a request begun after it, s; nothing when there was none in time.
    pub back_s: Option<f64>,
    /// The longest time without an answer while it lasted, s.
    pub silent_s: f64,
    /// Whether the mesh had to serve throughout: no more were down or cut off than it survives.
    pub survivable: bool,
    /// From its end until every node was attested again, s; nothing when one was not in time.
    pub whole_s: Option<f64>,
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Of everything that was drawn.
    pub seed: u64,
    /// How long load ran, s.
    pub seconds: f64,
    /// What was done.
    pub episodes: Vec<Episode>,
    /// Requests that were answered whole.
    pub answered: usize,
    /// Those that were not, by the error's code.
    pub errors: BTreeMap<String, usize>,
    /// Leaves in the certified log at the end.
    pub leaves: u64,
    /// Requests that reached the provider.
    pub forwarded: usize,
    /// Receipts that were asked for at the end, drawn at random, and verified from genesis.
    pub receipts: usize,
    /// What must not be.
    pub broken: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<34} times   back after, s      silent meanwhile, s   whole after, s", "fault")?;
        writeln!(f, "{:<34}         median    worst                 worst            worst", "")?;
        let mut by: BTreeMap<&str, Vec<&Episode>> = BTreeMap::new();
        for episode in &self.episodes {
            by.entry(&episode.fault).or_default().push(episode);
        }
        for (fault, all) in by {
            let mut back: Vec<f64> = all.iter().map(|e| e.back_s.unwrap_or(f64::INFINITY)).collect();
            back.sort_by(f64::total_cmp);
            let median = back.get(back.len() / 2).copied().unwrap_or_default();
            let worst = |of: &dyn Fn(&Episode) -> f64| all.iter().map(|e| of(e)).fold(0.0, f64::max);
            let silent = worst(&|e| if e.survivable { e.silent_s } else { 0.0 });
            let silent =
                if all.iter().any(|e| e.survivable) { format!("{silent:.1}") } else { "no quorum".into() };
            writeln!(
                f,
                "{fault:<34} {:>5} {median:>8.1} {:>8.1} {silent:>21} {:>16.1}",
                all.len(),
                worst(&|e| e.back_s.unwrap_or(f64::INFINITY)),
                worst(&|e| e.whole_s.unwrap_or(f64::INFINITY)),
            )?;
        }
        let failed: usize = self.errors.values().sum();
        writeln!(
            f,
            "\n{:.0} s, seed {}: {} requests answered, {failed} not:",
            self.seconds, self.seed, self.answered
        )?;
        for (code, times) in &self.errors {
            writeln!(f, "  {times:>7}  {code}")?;
        }
        writeln!(
            f,
            "{} requests reached the provider; {} leaves are certified, the same on every node; {} receipts, drawn at random, verified",
            self.forwarded, self.leaves, self.receipts
        )?;
        for broken in &self.broken {
            writeln!(f, "BROKEN: {broken}")?;
        }
        Ok(())
    }
}
