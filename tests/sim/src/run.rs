//! One seed: start, faults, heal, and a request that must succeed.
use crate::client::Client;
use crate::mutation::Mutation;
use crate::note;
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
    /// How long the mesh took to serve after it healed.
    pub healed_in: Option<Duration>,
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
    PANICKED.with(|p| p.borrow_mut().take());
    RUNNING.set(true);
    let runtime = runtime(plan.seed);
    let simulated = std::panic::AssertUnwindSafe(|| runtime.block_on(simulate(plan, mutation, print)));
    let ran = std::panic::catch_unwind(simulated);
    drop(runtime);
    RUNNING.set(false);
    let nothing = || Ran { failure: None, digest: 0, filled: 0, healed_in: None, trace: Vec::new() };
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
    clients.spawn(flush(Arc::clone(&world)));
    schedule::play(&world, plan).await;
    world.heal().await;
    clients.abort_all();
    let healed = tokio::time::Instant::now();
    let mut healed_in = None;
    let mut last = String::new();
    let mut client = Client::new(&world, 99);
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
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    if healed_in.is_none() {
        world
            .oracle
            .fail(format!("wedge: no request succeeded within {HEALS_WITHIN:?} of the healing: {last}"));
    }
    for node in world.all_running() {
        world.oracle.finish(&node);
    }
    Ran {
        failure: world.oracle.failure(),
        digest: world.trace.digest(),
        filled: world.oracle.filled_count(),
        healed_in,
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
