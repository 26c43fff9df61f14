//! Resident memory of every process, and how fast it grows.
//!
//! A process that is never restarted gets a straight line through its samples after the warm-up. A node lives for minutes only:
//! what grows with the mesh (its log, its state) shows when lives are compared **at the same age**, so samples are grouped by node
//! and age, and one slope over the wall's time is fitted to all groups. What grows with a life shows in a node that is left alone
//! from some time on, **when it is as old itself as the warm-up is long**: one slope over age, with a level for each life. Both are
//! the same least squares with a level for each group.
use crate::mesh::Mesh;
use anyhow::Context as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Ages are compared in steps of this.
const AGE_STEP: Duration = Duration::from_secs(10);
/// How a node that was left alone was judged.
pub(super) const LONG_LIVED: &str = "in one life after its own warm-up";
/// Fewer samples beyond their groups' levels say nothing.
const FREEDOM_MIN: usize = 12;

/// One process at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Which process.
    pub process: String,
    /// How often it was started before.
    pub life: u32,
    /// Seconds since the soak began.
    pub at_s: f64,
    /// Seconds since the process started.
    pub age_s: f64,
    /// Resident, KiB.
    pub resident_kib: u64,
    /// Of these, memory that no file backs.
    pub anonymous_kib: u64,
}

/// A slope, KiB per ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slope {
    /// The estimate.
    pub kib_per_10_min: f64,
    /// Its standard error.
    pub error: f64,
    /// Samples it rests on.
    pub samples: usize,
}

/// How a process fared.
#[derive(Debug, Clone, Serialize)]
pub struct Growth {
    /// Which process.
    pub process: String,
    /// How it was found.
    pub by: &'static str,
    /// Resident memory at the first sample after the warm-up and at the last, KiB.
    pub from_to_kib: (u64, u64),
    /// Growth of resident memory; `None` if too few samples.
    pub resident: Option<Slope>,
    /// Growth of what no file backs.
    pub anonymous: Option<Slope>,
}

/// Reads one process.
pub(super) fn read(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {name}"))
    };
    Ok((field("VmRSS")?, field("RssAnon")?))
}

/// The processes of a mesh by name, as far as they run.
pub(super) fn processes(mesh: &Mesh) -> Vec<(String, u32)> {
    let nodes = mesh.sites.iter().filter(|s| s.runs()).filter_map(|s| Some((s.name.clone(), s.pid()?)));
    let provider = fs::read_to_string(mesh.provider_pid_file()).ok().and_then(|p| p.trim().parse().ok());
    nodes.chain(provider.map(|pid| ("provider".to_owned(), pid))).collect()
}

/// Least squares with a level for each group: groups, then x and y of each sample. `None` if there is nothing to fit.
fn fit<G: Ord>(samples: impl IntoIterator<Item = (G, f64, f64)>) -> Option<Slope> {
    let mut groups: BTreeMap<G, Vec<(f64, f64)>> = BTreeMap::new();
    for (group, x, y) in samples {
        groups.entry(group).or_default().push((x, y));
    }
    let (mut xx, mut xy, mut yy, mut count, mut freedom) = (0.0, 0.0, 0.0, 0_usize, 0_usize);
    for group in groups.values().filter(|g| g.len() > 1) {
        let n = group.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| group.iter().map(of).sum::<f64>() / n;
        let (mx, my) = (mean(|s| s.0), mean(|s| s.1));
        for (x, y) in group {
            xx += (x - mx) * (x - mx);
            xy += (x - mx) * (y - my);
            yy += (y - my) * (y - my);
        }
        count += group.len();
        freedom += group.len() - 1;
    }
    let freedom = freedom.checked_sub(1).filter(|f| *f + 1 >= FREEDOM_MIN && xx > 0.0)?;
    let slope = xy / xx;
    let error = ((yy - slope * xy).max(0.0) / freedom as f64 / xx).sqrt();
    Some(Slope { kib_per_10_min: slope * 600.0, error: error * 600.0, samples: count })
}

/// The growth of each process after the warm-up.
pub(super) fn growth(samples: &[Sample], warm_up: Duration) -> Vec<Growth> {
    let warm: Vec<&Sample> = samples.iter().filter(|s| s.at_s >= warm_up.as_secs_f64()).collect();
    let mut all = Vec::new();
    let mut names: Vec<&str> = warm.iter().map(|s| s.process.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let ends = |of: &[&Sample]| {
        let at = |s: Option<&&Sample>| s.map_or(0, |s| s.resident_kib);
        (at(of.first()), at(of.last()))
    };
    let mut restarted: Vec<&Sample> = Vec::new();
    for name in names {
        let own: Vec<&Sample> = warm.iter().filter(|s| s.process == name).copied().collect();
        if samples.iter().any(|s| s.process == name && s.life > 0) {
            restarted.extend(&own);
            continue;
        }
        let line = |y: fn(&Sample) -> u64| fit(own.iter().map(|s| ((), s.at_s, y(s) as f64)));
        all.push(Growth {
            process: name.to_owned(),
            by: "a line through its samples",
            from_to_kib: ends(&own),
            resident: line(|s| s.resident_kib),
            anonymous: line(|s| s.anonymous_kib),
        });
    }
    if restarted.is_empty() {
        return all;
    }
    let same_age = |y: fn(&Sample) -> u64| {
        let step = |s: &Sample| (s.age_s / AGE_STEP.as_secs_f64()) as u64;
        fit(restarted.iter().map(|s| ((s.process.as_str(), step(s)), s.at_s, y(s) as f64)))
    };
    let late: Vec<&Sample> = restarted.iter().filter(|s| s.age_s >= warm_up.as_secs_f64()).copied().collect();
    let of_a_life = |y: fn(&Sample) -> u64| {
        fit(late.iter().map(|s| ((s.process.as_str(), s.life), s.age_s, y(s) as f64)))
    };
    all.push(Growth {
        process: "nodes".to_owned(),
        by: "lives compared at the same age",
        from_to_kib: ends(&restarted),
        resident: same_age(|s| s.resident_kib),
        anonymous: same_age(|s| s.anonymous_kib),
    });
    all.push(Growth {
        process: "a node".to_owned(),
        by: LONG_LIVED,
        from_to_kib: ends(&late),
        resident: of_a_life(|s| s.resident_kib),
        anonymous: of_a_life(|s| s.anonymous_kib),
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lives of four nodes, 100 s to 400 s long and the last one's last for long, that start high, fall to a level, and grow by the
    /// wall's time and by age.
    fn lives(per_second: f64, per_age: f64) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (at, node) in [(0_u32, "n1"), (7, "n2"), (13, "n3"), (29, "n4")] {
            let (mut life, mut born) = (0, 0);
            for now in (0..1800_u32).step_by(10) {
                if now - born > 100 + (life * 97 + at * 31) % 300 && (node != "n4" || now < 450) {
                    (life, born) = (life + 1, now);
                }
                let age = f64::from(now - born);
                let noise = f64::from((now * 37 + at * 11) % 100) - 50.0;
                let level = 40_000.0 - 3_000.0 * (-age / 40.0).exp();
                let kib = level + per_second * f64::from(now) + per_age * age + noise;
                let sample = Sample {
                    process: node.into(),
                    life,
                    at_s: f64::from(now),
                    age_s: age,
                    resident_kib: kib as u64,
                    anonymous_kib: kib as u64,
                };
                samples.push(Sample { process: "adapter".into(), life: 0, ..sample.clone() });
                samples.push(sample);
            }
        }
        samples
    }

    #[test]
    fn growth_of_the_mesh_and_of_a_life_are_found_apart() {
        let found = |per_second, per_age| {
            let all = growth(&lives(per_second, per_age), Duration::from_secs(600));
            let of = |name: &str| all.iter().find(|g| g.process == name).unwrap().resident.unwrap();
            (of("nodes").kib_per_10_min, of("a node").kib_per_10_min, all)
        };
        let (mesh, life, all) = found(0.0, 0.0);
        assert!(mesh.abs() < 100.0 && life.abs() < 300.0, "{mesh} {life}");
        assert!(all.iter().any(|g| g.process == "adapter" && g.resident.is_some()));
        let (mesh, _, _) = found(2.0, 0.0);
        assert!((mesh - 1200.0).abs() < 100.0, "{mesh}");
        let (mesh, life, _) = found(0.0, 3.0);
        assert!(mesh.abs() < 100.0 && (life - 1800.0).abs() < 300.0, "{mesh} {life}");
    }

    #[test]
    fn too_few_samples_say_nothing() {
        let few = (0..12).map(|x| ((), f64::from(x), 1.0));
        assert_eq!(fit(few), None);
        let same_time = (0..40).map(|_| ((), 1.0, 1.0));
        assert_eq!(fit(same_time), None);
        let alone = (0..40).map(|x| (x, f64::from(x), f64::from(x)));
        assert_eq!(fit(alone), None, "a group of one has only its level");
    }

    #[test]
    fn this_process_is_read() {
        let (resident, anonymous) = read(std::process::id()).unwrap();
        assert!(resident >= anonymous && anonymous > 100);
    }
}
