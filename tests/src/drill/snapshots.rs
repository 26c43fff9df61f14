//! A member that poses as the leader, and sends a snapshot of its own making.
use super::{Detect, Held, Outside, SHOWS};
use crate::hostile::Taken;
use crate::lab::{Lab, WHOLE};
use crate::wait_for;
use anyhow::{Context as _, ensure};
use quorated::raft::SnapshotStore;
use std::time::{Duration, Instant};
use tonic::Code;

pub(super) const ROWS: [Outside; 1] = [("poisoned-snapshot", poisoned)];
/// Batches between two snapshots, instead of thousands: the fewest that the state machine allows.
const BATCHES: &str = "\n[raft]\nsnapshot_batches = 256\n";
/// For so many batches.
const KEPT: Duration = Duration::from_secs(90);

/// One that the node itself kept, with a byte changed in the middle of its state; and, unchanged, to who needs none.
fn poisoned(lab: &Lab) -> anyhow::Result<Held> {
    for site in &lab.mesh.sites {
        let config = std::fs::read_to_string(site.config())?;
        if !config.contains(BATCHES) {
            std::fs::write(site.config(), config + BATCHES)?;
            lab.mesh.stop_node(site.id)?;
            lab.mesh.start_node(site.id)?;
            lab.mesh.wait_all_healthy(WHOLE)?;
        }
    }
    let client = lab.client("app")?;
    wait_for("requests for so many batches", WHOLE, || Ok(lab.ask(&client)?))?;
    let leader = lab.leader(&client)?;
    let node = leader % lab.mesh.sites.len() as u64 + 1;
    let site = lab.mesh.site(node)?.clone();
    let data = site.dir.join("data");
    let kept = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(data.join("snapshots"))?.count()) };
    wait_for("the node keeps a snapshot", KEPT, || {
        lab.ask(&client)?;
        ensure!(kept()? > 0, "none yet");
        Ok(())
    })?;
    lab.mesh.kill_node(node)?;
    let stored = SnapshotStore::open(&data)?.load()?.newest.context("no snapshot on its disk")?;
    let directory = client.directory();
    let verified = directory.verified();
    let taken = Taken::machine(&site, verified.cluster, &verified.policy)?;
    let target = lab.mesh.site(leader % 4 + 2).or_else(|_| lab.mesh.site(1))?.clone();
    ensure!(target.id != node, "the target is the sender");
    let link = lab.block(async {
        let link = taken.connect(&target.grpc).await?;
        let proof = taken.proof(&link, target.id).await?;
        taken.admit(&link, proof).await.context("the twin")?;
        anyhow::Ok(link)
    })?;
    let mut poisoned = stored.content.clone();
    let middle = poisoned.len() / 2;
    *poisoned.get_mut(middle).context("an empty snapshot")? ^= 1;
    let why = |content: Vec<u8>, term: u64| -> anyhow::Result<(String, Instant)> {
        let traced = lab.trace(target.id)?.len();
        let begun = Instant::now();
        let reply = lab.block(taken.snapshot(&link, term, stored.meta.clone(), content));
        ensure!(reply.as_ref().is_err_and(|s| s.code() == Code::FailedPrecondition), "{reply:?}");
        let why = wait_for("its trace says why", SHOWS, || {
            let trace = lab.trace(target.id)?.split_off(traced);
            let line = trace.lines().find(|l| l.contains("a snapshot was refused")).context("not yet")?;
            Ok(line.split("why=").nth(1).unwrap_or(line).trim().trim_matches('"').to_owned())
        })?;
        Ok((why, begun))
    };
    let (unchanged, _) = why(stored.content.clone(), 1_000_000)?;
    ensure!(unchanged.contains("no more than this node's own tree"), "the twin: {unchanged}");
    let (stopped, begun) = why(poisoned, 1_000_001)?;
    let detect = Detect::since(begun);
    ensure!(stopped != unchanged, "{stopped}");
    // The sender was killed: what the client still has open through it ends with an error that it may retry.
    wait_for("requests go on without it", SHOWS, || Ok(lab.ask(&client)?))?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let held = Held::new(
        format!("the receiver: {stopped}; a snapshot counts only if its digest is a certified leaf"),
        format!("trace of {}: a snapshot was refused, why={stopped}", target.name),
        detect,
    );
    let bites = "the same bytes unchanged pass that check; node/src/snapshots.rs: a_snapshot_that_no_leaf_certifies_is_refused";
    Ok(held.twin(format!("unchanged it is found good, and not needed: {unchanged}")).bites(bites))
}
