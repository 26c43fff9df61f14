//! Random kills, pauses, partitions, slow links and disk faults against real processes under load. One fault at a time, or several nodes at
//! once; then everything is healed, and the mesh must serve again.
//!
//! What is held against it: an answer that an application got is in the log, on every node; what reached the provider was asked
//! by an application and authorised by a certified leaf, not more often than there are leaves for it; service is back within
//! [`BACK`] of each heal, and goes on meanwhile where no more nodes are hit than the mesh survives; no request hangs.
//!
//! **These bite**: the run itself is refused where a fault could not be made to happen, and [`judge`] has tests that break each.

mod disks;
mod judge;
mod load;
mod net;
mod report;
mod slow;

pub use self::net::Net;
pub use self::report::{Episode, Report};
pub use self::slow::{Through, proxy};

use self::disks::Disk;
use self::load::Load;
use self::slow::Slow;
use anyhow::{Context as _, ensure};
use quorate_client::{Client, TrustFile};
use quorate_cluster::mesh::{Mesh, wait_for};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Service is back within this of each heal.
pub const BACK: Duration = Duration::from_secs(15);
/// Every node is attested again within this: evidence is due every 20 s, and a machine whose clock or disk stood still has to
/// catch up first.
const WHOLE: Duration = Duration::from_secs(90);
/// Between the end of one disturbance and the next.
const CALM: Duration = Duration::from_secs(2);
/// Receipts verified at the end.
const RECEIPTS: usize = 500;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long load runs.
    pub length: Duration,
    /// No more disturbances than this.
    pub faults: usize,
    /// Service is back within this of each heal.
    pub back: Duration,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Applications at once.
    pub at_once: usize,
    /// Their pause between two requests.
    pub think: Duration,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillLeader,
    KillTwo,
    KillAll,
    Pause,
    PauseLeader,
    PauseTwo,
    PauseBeyondLapse,
    Isolate,
    IsolateLeader,
    Split,
    Deaf,
    Mute,
    OneWay,
    NoEgress,
    SlowLinks,
    DiskFull,
    DiskStands,
    DiskBroken,
}

/// Each with its name, whether the mesh must serve meanwhile, and its weight among all.
const FAULTS: [(Fault, &str, bool, u64); 19] = [
    (Fault::Kill, "a node killed", true, 3),
    (Fault::KillLeader, "the leader killed", true, 3),
    (Fault::KillTwo, "two nodes killed", false, 2),
    (Fault::KillAll, "all nodes killed", false, 2),
    (Fault::Pause, "a node paused", true, 3),
    (Fault::PauseLeader, "the leader paused", true, 3),
    (Fault::PauseTwo, "two nodes paused", false, 2),
    (Fault::PauseBeyondLapse, "a node paused beyond its lapse", true, 1),
    (Fault::Isolate, "a node cut off from the others", true, 3),
    (Fault::IsolateLeader, "the leader cut off from the others", true, 3),
    (Fault::Split, "two nodes cut off from two", false, 2),
    (Fault::Deaf, "a node that hears no other", true, 2),
    (Fault::Mute, "a node that no other hears", true, 2),
    (Fault::OneWay, "one link cut one way", true, 3),
    (Fault::NoEgress, "a node without the provider", true, 2),
    (Fault::SlowLinks, "a node with slow, lossy links", true, 3),
    (Fault::DiskFull, "a full disk", true, 2),
    (Fault::DiskStands, "a disk that stands still", true, 2),
    (Fault::DiskBroken, "a disk that broke", true, 2),
];

/// Draws from a seed: splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from * 1000 + self.below((to - from) * 1000))
    }
}

/// A mesh in its network, on its disks.
pub struct Stage {
    mesh: Mesh,
    net: Net,
    disks: Vec<Disk>,
    slow: Mutex<Option<Slow>>,
    runtime: Runtime,
    client: Client,
}

impl Stage {
    /// Puts each node of a mesh that was made and not started on a disk of its own, and starts it.
    pub fn set(mesh: Mesh, net: Net) -> anyhow::Result<Self> {
        let disks = mesh.sites.iter().map(Disk::mount).collect::<Result<_, _>>()?;
        mesh.start_nodes()?;
        mesh.wait_all_healthy(WHOLE)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let client = runtime.block_on(Client::connect(TrustFile::load(&mesh.trust())?))?;
        Ok(Self { mesh, net, disks, slow: Mutex::new(None), runtime, client })
    }

    /// The mesh, to stop it.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    fn slow(&self) -> MutexGuard<'_, Option<Slow>> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads; between two leaders it takes a moment until somebody does.
    fn leader(&self) -> anyhow::Result<u64> {
        wait_for("a leader", BACK, || {
            let status = self.runtime.block_on(self.client.status());
            let named = status.into_iter().filter_map(|(_, status)| Some(status.ok()?.leader));
            named.max().filter(|l| *l != 0).context("no leader")
        })
    }

    fn disk(&self, node: u64) -> anyhow::Result<&Disk> {
        let at = self.mesh.sites.iter().position(|s| s.id == node).context("no such node")?;
        self.disks.get(at).context("no such disk")
    }

    /// Disturbs the mesh for the plan's length, and judges what came of it.
    pub fn run(&self, plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
        let begun = Instant::now();
        let mut report = Report { seed: plan.seed, ..Report::default() };
        let mut dice = Dice(plan.seed);
        let _inside = self.runtime.enter();
        let mut load = Load::start(&self.client, &self.mesh.model, plan.at_once, plan.think);
        wait_for("the first answer", plan.back, || load.first_after(begun).context("none yet"))?;
        while begun.elapsed() < plan.length && report.episodes.len() < plan.faults {
            let episode = self.disturb(&mut dice, &load, begun, plan.back)?;
            say(&format!(
                "{:>5.0} s  {} ({}) for {:.1} s: silent {:.1} s, back after {}, whole after {}",
                episode.at_s,
                episode.fault,
                episode.to,
                episode.lasted_s,
                episode.silent_s,
                shown(episode.back_s),
                shown(episode.whole_s)
            ));
            judge::episode(&episode, plan.back, &mut report.broken);
            let lost = episode.back_s.is_none() || episode.whole_s.is_none();
            report.episodes.push(episode);
            if lost {
                break;
            }
            std::thread::sleep(CALM);
        }
        say("load ends; what was answered and what reached the provider is held against the log");
        self.runtime.block_on(load.end());
        self.runtime.block_on(self.client.flush());
        report.seconds = begun.elapsed().as_secs_f64();
        judge::aftermath(&self.mesh, &self.client, &self.runtime, &load, &mut dice, RECEIPTS, &mut report)?;
        Ok(report)
    }

    fn disturb(
        &self,
        dice: &mut Dice,
        load: &Load,
        begun: Instant,
        bound: Duration,
    ) -> anyhow::Result<Episode> {
        let weights: u64 = FAULTS.iter().map(|f| f.3).sum();
        let mut drawn = dice.below(weights);
        let (fault, name, survivable, _) = FAULTS
            .into_iter()
            .find(|f| {
                let here = drawn < f.3;
                drawn = drawn.wrapping_sub(f.3);
                here
            })
            .context("no fault was drawn")?;
        let nodes = self.mesh.sites.len() as u64;
        let one = 1 + dice.below(nodes);
        let two = 1 + (one + dice.below(nodes - 1)) % nodes;
        let leads = matches!(fault, Fault::KillLeader | Fault::PauseLeader | Fault::IsolateLeader);
        let one = if leads { self.leader()? } else { one };
        let lasts = match fault {
            Fault::PauseBeyondLapse => dice.seconds(65, 75),
            _ => dice.seconds(1, 16),
        };
        let at = Instant::now();
        let hit = self.inflict(fault, one, two, dice)?;
        std::thread::sleep(lasts.saturating_sub(at.elapsed()));
        let silent = load.silence(at, Instant::now());
        let lasted = at.elapsed();
        self.heal(fault, &hit)?;
        let healed = Instant::now();
        let back = wait_for("service", bound * 4, || load.first_after(healed).context("no answer"));
        let whole = self.mesh.wait_all_healthy(WHOLE).is_ok().then(|| healed.elapsed().as_secs_f64());
        let names: Vec<String> = hit.iter().map(|n| format!("n{n}")).collect();
        Ok(Episode {
            fault: name.to_owned(),
            to: names.join(" "),
            at_s: at.duration_since(begun).as_secs_f64(),
            lasted_s: lasted.as_secs_f64(),
            back_s: back.ok().map(|at| at.duration_since(healed).as_secs_f64()),
            silent_s: silent.as_secs_f64(),
            survivable,
            whole_s: whole,
        })
    }

    /// Does it; says to whom.
    fn inflict(&self, fault: Fault, one: u64, two: u64, dice: &mut Dice) -> anyhow::Result<Vec<u64>> {
        let all: Vec<u64> = self.mesh.sites.iter().map(|s| s.id).collect();
        let others: Vec<u64> = all.iter().copied().filter(|n| *n != one).collect();
        Ok(match fault {
            Fault::Kill | Fault::KillLeader => {
                self.mesh.kill_node(one)?;
                vec![one]
            }
            Fault::KillTwo => {
                self.mesh.kill_node(one)?;
                self.mesh.kill_node(two)?;
                vec![one, two]
            }
            Fault::KillAll => {
                all.iter().try_for_each(|n| self.mesh.kill_node(*n))?;
                all
            }
            Fault::Pause | Fault::PauseLeader | Fault::PauseBeyondLapse => {
                self.mesh.pause_node(one, true)?;
                vec![one]
            }
            Fault::PauseTwo => {
                self.mesh.pause_node(one, true)?;
                self.mesh.pause_node(two, true)?;
                vec![one, two]
            }
            Fault::Isolate | Fault::IsolateLeader => {
                self.net.split(&[one], &others)?;
                vec![one]
            }
            Fault::Split => {
                let rest: Vec<u64> = others.into_iter().filter(|n| *n != two).collect();
                self.net.split(&[one, two], &rest)?;
                vec![one, two]
            }
            Fault::Deaf => {
                others.iter().try_for_each(|n| self.net.cut(*n, one))?;
                vec![one]
            }
            Fault::Mute => {
                others.iter().try_for_each(|n| self.net.cut(one, *n))?;
                vec![one]
            }
            Fault::OneWay => {
                self.net.cut(one, two)?;
                vec![one, two]
            }
            Fault::NoEgress => {
                // The applications are there too: the node cannot answer them either.
                self.net.cut(one, 0)?;
                vec![one]
            }
            Fault::SlowLinks => {
                let port = |node: u64| -> anyhow::Result<(u64, u16)> {
                    let (_, port) = self.mesh.site(node)?.grpc.rsplit_once(':').context("no port")?;
                    Ok((node, port.parse()?))
                };
                let peers = others.iter().map(|n| port(*n)).collect::<anyhow::Result<Vec<_>>>()?;
                let program = std::env::current_exe()?;
                *self.slow() = Some(Slow::make(&program, one, &peers, dice.next())?);
                vec![one]
            }
            Fault::DiskFull => {
                self.disk(one)?.fill()?;
                vec![one]
            }
            Fault::DiskStands => {
                self.disk(one)?.freeze(true)?;
                vec![one]
            }
            Fault::DiskBroken => {
                self.disk(one)?.break_down(true)?;
                vec![one]
            }
        })
    }

    fn heal(&self, fault: Fault, hit: &[u64]) -> anyhow::Result<()> {
        match fault {
            Fault::Kill | Fault::KillLeader | Fault::KillTwo | Fault::KillAll => {
                hit.iter().try_for_each(|n| self.mesh.start_node(*n))
            }
            Fault::Pause | Fault::PauseLeader | Fault::PauseTwo | Fault::PauseBeyondLapse => {
                hit.iter().try_for_each(|n| self.mesh.pause_node(*n, false))
            }
            Fault::Isolate
            | Fault::IsolateLeader
            | Fault::Split
            | Fault::Deaf
            | Fault::Mute
            | Fault::OneWay
            | Fault::NoEgress => self.net.heal(),
            Fault::SlowLinks => {
                drop(self.slow().take());
                self.net.heal()
            }
            Fault::DiskStands => hit.iter().try_for_each(|n| self.disk(*n)?.freeze(false)),
            Fault::DiskFull => hit.iter().try_for_each(|n| {
                self.disk(*n)?.free()?;
                self.restart(*n)
            }),
            Fault::DiskBroken => hit.iter().try_for_each(|n| {
                self.end(*n)?;
                self.disk(*n)?.break_down(false)?;
                self.mesh.start_node(*n)
            }),
        }
    }

    /// What an operator does with a node that acknowledges nothing any more.
    fn restart(&self, node: u64) -> anyhow::Result<()> {
        self.end(node)?;
        self.mesh.start_node(node)
    }

    fn end(&self, node: u64) -> anyhow::Result<()> {
        if self.mesh.site(node)?.runs() { self.mesh.kill_node(node) } else { Ok(()) }
    }
}

fn shown(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |s| format!("{s:.1} s"))
}

/// A run of less than this says little.
pub const SHORTEST: Duration = Duration::from_secs(30);

impl Plan {
    /// Whether it can be done.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.length >= SHORTEST, "a run lasts at least {} s", SHORTEST.as_secs());
        ensure!(self.at_once > 0, "somebody has to ask");
        Ok(())
    }
}
