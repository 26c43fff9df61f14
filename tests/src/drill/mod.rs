//! The drill: one party of a real mesh is hostile at a time, as a real process, and each attack is a row: what stopped or exposed
//! it, which leaf or alarm proves that, and how long it took; its unmutated twin; and what happens with the check off.
//!
//! The end-to-end tests and `cluster/drill` call the same functions: what CI proves is what the user sees.
//!
//! Order matters. First the product's binary runs everywhere and machines, disks and TPMs are attacked from outside; then two of
//! four nodes run the hostile build ([`crate::hostile_build`]); at last all do, since a check of the replicated state is off in
//! every node or in none.
mod clients;
pub mod keyed;
mod leaders;
pub mod machines;
#[cfg(test)]
mod named;
pub mod payload;
mod snapshots;
mod table;

use crate::lab::{Key, Lab, Make};
use anyhow::ensure;
use std::time::{Duration, Instant};
pub use table::{ATTACKS, Attack, Phase};

/// How the mesh of a drill is made.
pub const MAKE: Make = Make { name: "drill", provider: &[], key: Key::Made };

/// For something to show in the log.
pub(crate) const SHOWS: Duration = Duration::from_secs(20);

/// When it was noticed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Detect {
    /// It never took place.
    Prevented,
    /// So long after the attack began the proof stood where others can read it.
    After(Duration),
}

impl Detect {
    /// As long as it took until now.
    pub(crate) fn since(begun: Instant) -> Self {
        Self::After(begun.elapsed())
    }
}

impl std::fmt::Display for Detect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prevented => f.write_str("prevented"),
            Self::After(time) => write!(f, "{:.2} s", time.as_secs_f64()),
        }
    }
}

/// What a row found.
#[derive(Debug, Clone)]
pub struct Held {
    /// What stopped or exposed the attack.
    pub stopped: String,
    /// The leaf, alarm, metric or trace line that proves it.
    pub proof: String,
    /// When.
    pub detect: Detect,
    /// What the same did without the mutation.
    pub twin: String,
    /// What shows that the check is what stops it.
    pub bites: String,
}

impl Held {
    pub(crate) fn new(stopped: impl Into<String>, proof: impl Into<String>, detect: Detect) -> Self {
        let (stopped, proof) = (stopped.into(), proof.into());
        Self { stopped, proof, detect, twin: String::new(), bites: String::new() }
    }
    pub(crate) fn twin(mut self, twin: impl Into<String>) -> Self {
        self.twin = twin.into();
        self
    }
    pub(crate) fn bites(mut self, bites: impl Into<String>) -> Self {
        self.bites = bites.into();
        self
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which attack.
    pub attack: &'static Attack,
    /// What became of it, or why the row does not hold.
    pub outcome: Result<Held, String>,
    /// How long the row took.
    pub took: Duration,
}

/// What a drill found so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Only rows whose name contains one of these; all, if empty.
    pub only: Vec<String>,
    /// Phases that ran: each wanted row of theirs must be there.
    pub phases: Vec<Phase>,
    /// Rows that ran.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether an attack is to be run.
    pub fn wants(&self, attack: &Attack) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| attack.name.contains(o.as_str()))
    }

    /// Whether any of a phase is.
    pub fn wants_any(&self, phase: Phase) -> bool {
        ATTACKS.iter().any(|a| a.phase == phase && self.wants(a))
    }

    /// Runs an attack and keeps what became of it; says so on stderr.
    pub fn row(&mut self, name: &str, found: impl FnOnce() -> anyhow::Result<Held>) {
        let Some(attack) = ATTACKS.iter().find(|a| a.name == name) else {
            eprintln!("{name} is not in the list of attacks");
            return;
        };
        if !self.wants(attack) {
            return;
        }
        eprintln!("   … {name}: {}", attack.what);
        let begun = Instant::now();
        let outcome = found().map_err(|error| format!("{error:#}"));
        let took = begun.elapsed();
        match &outcome {
            Ok(held) => {
                eprintln!("     {} ({:.1} s; noticed: {})", held.stopped, took.as_secs_f64(), held.detect)
            }
            Err(error) => eprintln!("     DOES NOT HOLD: {error}"),
        }
        self.rows.push(Row { attack, outcome, took });
    }

    /// What each row's check does when it is off, where that comes later than the row.
    pub(crate) fn bites_later(&mut self, names: &[&str], bites: &str) {
        for row in self.rows.iter_mut().filter(|r| names.contains(&r.attack.name)) {
            if let Ok(held) = &mut row.outcome {
                bites.clone_into(&mut held.bites);
            }
        }
    }

    /// Counts a failure against rows whose proof came later than they.
    pub(crate) fn fails_later(&mut self, names: &[&str], why: &str) {
        for row in self.rows.iter_mut().filter(|r| names.contains(&r.attack.name) && r.outcome.is_ok()) {
            row.outcome = Err(why.to_owned());
        }
    }

    /// Whether every row held, and there was one.
    pub fn check(&self) -> anyhow::Result<()> {
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter_map(|r| r.outcome.as_ref().err().map(|e| format!("{}: {e}", r.attack.name)))
            .collect();
        ensure!(
            failed.is_empty(),
            "{} of {} rows do not hold:\n{}",
            failed.len(),
            self.rows.len(),
            failed.join("\n")
        );
        ensure!(!self.rows.is_empty(), "no row ran");
        let ran = |a: &&Attack| self.rows.iter().any(|r| r.attack.name == a.name);
        let due = ATTACKS.iter().filter(|a| self.phases.contains(&a.phase) && self.wants(a));
        let missing: Vec<&str> = due.filter(|a| !ran(a)).map(|a| a.name).collect();
        ensure!(missing.is_empty(), "rows that did not run: {missing:?}");
        let blank = |h: &Held| h.twin.is_empty() || h.bites.is_empty() || h.proof.is_empty();
        let blank: Vec<&str> =
            self.rows.iter().filter(|r| r.outcome.as_ref().is_ok_and(blank)).map(|r| r.attack.name).collect();
        ensure!(blank.is_empty(), "rows without proof, twin or bite: {blank:?}");
        Ok(())
    }
}

/// Runs everything that is wanted on meshes of its own.
pub fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut lab: Option<Lab> = None;
    if report.wants_any(Phase::Outside) {
        report.phases.push(Phase::Outside);
        for (name, attack) in all_outside(report) {
            let lab = whole(&mut lab)?;
            report.row(name, || attack(lab));
            if report.rows.last().is_some_and(|r| r.outcome.is_err()) {
                kept(lab);
            }
        }
    }
    if report.wants_any(Phase::Inside) {
        eprintln!(
            "== building the hostile node: the product's program with attacks in it, which no release can contain"
        );
        crate::hostile_build::build()?;
        let lab = whole(&mut lab)?;
        let ran = keyed::rows(lab, report);
        if report.check().is_err() {
            kept(lab);
        }
        ran?;
    }
    Ok(())
}

/// Traces and data stay where a row did not hold.
fn kept(lab: &Lab) {
    let dir = &lab.mesh.dir;
    if std::fs::write(dir.join("keep"), "").is_ok() {
        eprintln!("   kept: {}", dir.display());
    }
}

/// The mesh, whole: a new one where there is none, or where a row left it so that it does not heal.
pub(crate) fn whole(lab: &mut Option<Lab>) -> anyhow::Result<&Lab> {
    if let Some(made) = lab.take() {
        match made.make_whole() {
            Ok(()) => *lab = Some(made),
            Err(error) => eprintln!("   the mesh did not heal, a new one: {error:#}"),
        }
    }
    if lab.is_none() {
        eprintln!("== starting a mesh: four nodes with a software TPM each, a provider, one client");
        *lab = Some(Lab::make(&MAKE)?);
    }
    lab.as_ref().ok_or_else(|| anyhow::anyhow!("no mesh"))
}

/// An attack on one mesh from outside of its nodes.
pub(crate) type Outside = (&'static str, fn(&Lab) -> anyhow::Result<Held>);

/// Those that are wanted.
fn all_outside(report: &Report) -> Vec<Outside> {
    let all = machines::ROWS.into_iter().chain(snapshots::ROWS).chain(clients::ROWS);
    all.filter(|(name, _)| ATTACKS.iter().any(|a| a.name == *name && report.wants(a))).collect()
}

/// Runs what is wanted of the attacks from outside on this mesh, which is whole before each.
pub fn outside(lab: &Lab, report: &mut Report) -> anyhow::Result<()> {
    report.phases.push(Phase::Outside);
    for (name, attack) in all_outside(report) {
        lab.make_whole()?;
        report.row(name, || attack(lab));
    }
    Ok(())
}
