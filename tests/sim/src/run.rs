//! One seed: start, faults, heal, and a request that must succeed.
use crate::client::{CHECKER, Client};
use crate::mutation::Mutation;
use crate::note;
use crate::rogue::Rogue;
use crate::schedule::{self, Plan};
use crate::world::World;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Once};
use std::time::Duration;

/// After everything healed, a request must succeed within this.
pub const HEALS_WITHIN: Duration = Duration::from_secs(120);

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Ran {
    /// What was wrong.
    pub failure: Option<String>,
    /// Of the whole trace.
    pub digest: u64,
    /// Requests that were served.
    pub filled: usize,
    /// Snapshots that were installed.
    pub installed: usize,
    /// How long the mesh took to serve after it healed.
    pub healed_in: Option<Duration>,
    /// A hostile leader had honest nodes sign different tails, which only admins may end: see [`crate::oracle`].
    pub locked: bool,
    /// The last lines.
    pub trace: Vec<String>,
}

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic anywhere in a run is a failure of that run, and is not printed.
fn notice_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !RUNNING.get() {
                return others(info);
            }
            PANICKED.with(|p| {
                p.borrow_mut().get_or_insert(info.to_string());
            });
        }));
    });
}

/// One thread, virtual time. tokio chooses at random who of several waiters wakes first; only with `--cfg tokio_unstable` can that
/// choice follow from a seed too, so only then is a run the same down to the last line.
fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes()));
    #[cfg(not(tokio_unstable))]
    let _unused = seed;
    builder.build().expect("a runtime")
}

/// Runs a plan to its end.
pub fn run(plan: &Plan, mutation: Mutation, print: bool) -> Ran {
    notice_panics();
    quorate_core::testing::remember_verdicts();
    PANICKED.with(|p| p.borrow_mut().take());
    RUNNING.set(true);
    let runtime = runtime(plan.seed);
    let simulated = std::panic::AssertUnwindSafe(|| runtime.block_on(simulate(plan, mutation, print)));
    let ran = std::panic::catch_unwind(simulated);
    drop(runtime);
    RUNNING.set(false);
    let nothing = || Ran {
        failure: None,
        digest: 0,
        filled: 0,
        installed: 0,
        healed_in: None,
        locked: false,
        trace: Vec::new(),
    };
    let mut ran = ran.unwrap_or_else(|_| nothing());
    if let Some(panic) = PANICKED.with(|p| p.borrow_mut().take()) {
        ran.failure.get_or_insert(format!("panic: {panic}"));
    }
    ran
}

async fn simulate(plan: &Plan, mutation: Mutation, print: bool) -> Ran {
    let world = World::new(plan, mutation, print).expect("the machines can be made");
    for node in world.members() {
        world.start(node).await;
    }
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..plan.clients {
        clients.spawn(Client::new(&world, number).run());
    }
    if plan.rogue {
        tokio::spawn(Rogue::new(&world).run());
    }
    clients.spawn(flush(Arc::clone(&world)));
    schedule::play(&world, plan).await;
    world.heal().await;
    clients.abort_all();
    let healed = tokio::time::Instant::now();
    let mut healed_in = None;
    let mut last = String::new();
    let mut client = Client::named(&world, 99, CHECKER);
    while healed.elapsed() < HEALS_WITHIN && world.oracle.failure().is_none() {
        match client.request().await {
            Ok(node) => {
                note!(world, "served by {node} after the healing");
                healed_in = Some(healed.elapsed());
                break;
            }
            Err(why) => {
                if why != last {
                    note!(world, "not served yet: {why}");
                }
                last = why;
                // Nothing but the wait is left of such a run.
                if healed.elapsed() > HEALS_WITHIN / 2 && world.oracle.locks_conflict(&world.all_running()) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    let locked = healed_in.is_none() && world.oracle.locks_conflict(&world.all_running());
    if locked {
        note!(world, "locks conflict: only admins can say which tail goes on");
    } else if healed_in.is_none() {
        world
            .oracle
            .fail(format!("wedge: no request succeeded within {HEALS_WITHIN:?} of the healing: {last}"));
    }
    let nodes = world.all_running();
    for node in &nodes {
        world.oracle.finish(node);
    }
    world.oracle.read_log(&nodes);
    world.end();
    Ran {
        failure: world.oracle.failure(),
        digest: world.trace.digest(),
        filled: world.oracle.filled_count(),
        installed: world.oracle.installed_count(),
        healed_in,
        locked,
        trace: world.trace.last(),
    }
}

/// Unsynced files reach the platter now and then.
async fn flush(world: Arc<World>) {
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        for node in world.members() {
            world.flush(node);
        }
    }
}
