//! One mesh and everything around it.
use crate::byzantine::Adversary;
use crate::client::CHECKER;
use crate::clock::SimClock;
use crate::disk::{Crash, Disk};
use crate::giveup;
use crate::keyer::FROM_CLIENT;
use crate::mutation::Mutation;
use crate::network::{Net, call};
use crate::node::{self, Node};
use crate::note;
use crate::oracle::Oracle;
use crate::peer::Message;
use crate::rng::Rng;
use crate::rogue::{REQUESTS_PER_MINUTE, ROGUE};
use crate::schedule::Plan;
use crate::trace::Trace;
use quorate_attest::evidence::BootKeys;
use quorate_core::ids::NodeId;
use quorate_core::policy::ClientDocument;
use quorate_core::testing::{Fleet, client_document};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a commit takes on a good disk.
const COMMIT: Duration = Duration::from_micros(800);

/// What outlives a process.
pub struct Machine {
    /// Raft's log is here.
    pub disk: Disk,
    /// Its idea of time.
    pub clock: SimClock,
    starts: AtomicU32,
    power_cut: AtomicBool,
    quote_us: AtomicU64,
    /// The sign lock as it last reached the platter.
    lock: Mutex<Vec<u8>>,
    /// Never to be started again: its disk is damaged.
    broken: Mutex<Option<String>>,
}

impl Machine {
    /// How often a process was started here.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }
    /// Whether its memory was ever lost: the lock on its disk may be older than what it signed.
    pub fn lost_power(&self) -> bool {
        self.power_cut.load(Ordering::Relaxed)
    }
    /// How long its TPM takes.
    pub fn quote_takes(&self) -> Duration {
        Duration::from_micros(self.quote_us.load(Ordering::Relaxed))
    }
    /// See [`Self::quote_takes`].
    pub fn set_quote(&self, took: Duration) {
        self.quote_us.store(took.as_micros() as u64, Ordering::Relaxed);
    }
    /// What a power cut leaves of the lock.
    pub fn older_lock(&self) -> Vec<u8> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Why it cannot be started.
    pub fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All of it.
pub struct World {
    /// Everything follows from it.
    pub seed: u64,
    /// Links.
    pub net: Net,
    /// What happened.
    pub trace: Trace,
    /// What must be true.
    pub oracle: Oracle,
    /// Whether clients pause for less.
    pub busy: bool,
    /// Who lies.
    pub adversary: Adversary,
    /// The bug put back.
    pub mutation: Mutation,
    /// Clients agree on the time.
    pub clients_clock: SimClock,
    fleet: Mutex<Fleet>,
    machines: BTreeMap<NodeId, Arc<Machine>>,
    running: Mutex<BTreeMap<NodeId, Arc<Node>>>,
    rng: Mutex<Rng>,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Machines, none of them started.
    pub fn new(plan: &Plan, mutation: Mutation, print: bool) -> anyhow::Result<Arc<Self>> {
        let began = Instant::now();
        let mut fleet = Fleet::new(plan.nodes, plan.hostile_max, |d| {
            d.attestation.evidence_interval_ms = plan.evidence_ms;
            d.attestation.lapse_ms = plan.evidence_ms * 3;
            d.client.push(client_document(CHECKER));
            d.client
                .push(ClientDocument { requests_per_minute: REQUESTS_PER_MINUTE, ..client_document(ROGUE) });
        });
        fleet.document.version = 1;
        let shm = PathBuf::from("/dev/shm");
        let folder = match shm.is_dir() {
            true => tempfile::Builder::new().prefix("quorate-sim-").tempdir_in(shm)?,
            false => tempfile::tempdir()?,
        };
        let mut machines = BTreeMap::new();
        for id in fleet.nodes.keys() {
            let machine = Machine {
                disk: Disk::default(),
                clock: SimClock::new(began),
                starts: AtomicU32::new(1),
                quote_us: AtomicU64::new(20_000),
                lock: Mutex::default(),
                power_cut: AtomicBool::new(false),
                broken: Mutex::default(),
            };
            machine.disk.set_commit(COMMIT);
            node::init(&folder.path().join(format!("n{}", id.0)), &machine)?;
            if mutation.syncs_late() {
                machine.disk.set_syncs_late();
            }
            machines.insert(*id, Arc::new(machine));
        }
        let quorum = fleet.genesis().0.policy().quorum();
        Ok(Arc::new(Self {
            seed: plan.seed,
            net: Net::new(Rng::stream(plan.seed, "net")),
            trace: Trace::new(began, print),
            oracle: Oracle::new(plan.adversary.hostile.clone(), quorum),
            busy: plan.busy,
            adversary: plan.adversary.clone(),
            mutation,
            clients_clock: SimClock::new(began),
            fleet: Mutex::new(fleet),
            machines,
            running: Mutex::default(),
            rng: Mutex::new(Rng::stream(plan.seed, "world")),
            root: folder.path().to_owned(),
            _folder: folder,
        }))
    }

    /// TPMs and keys.
    pub fn fleet(&self) -> MutexGuard<'_, Fleet> {
        lock(&self.fleet)
    }
    /// All members.
    pub fn members(&self) -> Vec<NodeId> {
        self.machines.keys().copied().collect()
    }
    /// A machine.
    pub fn machine(&self, id: NodeId) -> Arc<Machine> {
        Arc::clone(&self.machines[&id])
    }
    /// Its folder of plain files.
    pub fn dir(&self, id: NodeId) -> PathBuf {
        self.root.join(format!("n{}", id.0))
    }
    /// The process on it.
    pub fn running(&self, id: NodeId) -> Option<Arc<Node>> {
        lock(&self.running).get(&id).cloned()
    }
    /// All processes.
    pub fn all_running(&self) -> Vec<Arc<Node>> {
        lock(&self.running).values().cloned().collect()
    }
    /// Keys of a machine's present start.
    pub fn boot_of(&self, id: NodeId) -> BootKeys {
        self.fleet().nodes[&id].boot()
    }
    /// Draws.
    pub fn chance<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut lock(&self.rng))
    }

    /// Starts a process, if the machine lets it.
    pub fn start(self: &Arc<Self>, id: NodeId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let world = Arc::clone(self);
        Box::pin(async move { world.start_now(id).await })
    }

    async fn start_now(self: &Arc<Self>, id: NodeId) {
        let machine = self.machine(id);
        if self.running(id).is_some() || machine.broken().is_some() {
            return;
        }
        if let Err(error) = giveup::finish(self, id).await {
            note!(self, "{id} cannot give up its tail: {error:#}");
        }
        match Node::start(self, id).await {
            Ok(node) => {
                note!(self, "{id} starts");
                if self.adversary.hostile.contains(&id) {
                    node.spawn(crate::byzantine::mischief(Arc::clone(&node)));
                }
                lock(&self.running).insert(id, Arc::clone(&node));
                node.join().await;
            }
            Err(error) => {
                note!(self, "{id} does not start: {error:#}");
                // A disk that fails for now damaged nothing: the healing tries again.
                if !machine.disk.is_failing() {
                    *lock(&machine.broken) = Some(format!("{error:#}"));
                }
            }
        }
    }

    /// Ends a process, or the power.
    pub async fn crash(self: &Arc<Self>, id: NodeId, crash: Crash) {
        let Some(node) = lock(&self.running).remove(&id) else { return };
        let machine = self.machine(id);
        note!(self, "{id} crashes: {crash:?}");
        self.chance(|rng| machine.disk.crash(crash, rng));
        node.kill().await;
        drop(node);
        if let Err(error) = node::crash_files(self, id, crash) {
            self.oracle.fail(format!("the simulation itself: {error:#}"));
        }
        if self.mutation.forgets_lock() && crash == Crash::Process {
            drop(std::fs::write(self.dir(id).join("sign.lock"), b""));
        }
        if crash == Crash::Power {
            self.oracle.forget_signed(id);
            machine.power_cut.store(true, Ordering::Relaxed);
        }
        machine.starts.fetch_add(1, Ordering::Relaxed);
        let mut fleet = self.fleet();
        match crash {
            Crash::Process => fleet.node(id.0).restart_process(),
            Crash::Power => fleet.node(id.0).reset_machine(),
        }
    }

    /// Admins change a client's budget, and try until it is in force. One change at a time: each names the one before.
    pub fn change_policy(self: &Arc<Self>) {
        let in_force = |world: &Self, version: u64| {
            let honest = |n: &&Arc<Node>| !world.adversary.hostile.contains(&n.id);
            world.all_running().iter().filter(honest).any(|n| n.ledger.view().policy.version.0 >= version)
        };
        let (command, document, version) = {
            let mut fleet = self.fleet();
            if !in_force(self, fleet.document.version) {
                return;
            }
            let command = fleet.change_policy(|d| d.client[0].requests_per_day += 1);
            let document = fleet.chain.last().expect("a chain has a genesis").document.clone();
            (Arc::new(command), Arc::new(document), fleet.document.version)
        };
        let world = Arc::clone(self);
        tokio::spawn(async move {
            while !in_force(&world, version) {
                let node = world.chance(|rng| *rng.pick(&world.members()));
                let message = Message::Admin(Arc::clone(&command), Arc::clone(&document));
                drop(call(&world, FROM_CLIENT, node, message, Duration::from_secs(6)).await);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        });
    }

    /// The page cache reaches the platter.
    pub fn flush(&self, id: NodeId) {
        self.machines[&id].disk.flush();
        if let Ok(bytes) = std::fs::read(self.dir(id).join("sign.lock")) {
            *lock(&self.machines[&id].lock) = bytes;
        }
    }

    /// Lets go of every process: each holds the world that holds it.
    pub fn end(&self) {
        lock(&self.running).clear();
    }

    /// Every fault ends; whoever was stopped starts again, unless it cannot or is hostile.
    pub async fn heal(self: &Arc<Self>) {
        note!(self, "everything heals");
        if !self.adversary.goes_on {
            for id in self.adversary.hostile.clone() {
                self.crash(id, Crash::Process).await;
                *lock(&self.machine(id).broken) = Some("it is hostile, and silent from now on".to_owned());
            }
        }
        self.net.heal();
        for (id, machine) in &self.machines {
            machine.clock.set_offset(0);
            machine.disk.set_commit(COMMIT);
            machine.disk.set_failing(false);
            machine.set_quote(Duration::from_millis(20));
            if let Some(node) = self.running(*id)
                && let Some(why) = node.failed()
            {
                note!(self, "{id} had failed: {why}");
                self.crash(*id, Crash::Process).await;
            }
            self.start(*id).await;
        }
    }
}
