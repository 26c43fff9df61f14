//! Makes a large log as a mirror: the real state machine, real signatures, quotes of test TPMs. Streams to disk.
//!
//! A stand-in for years of traffic: requests come in batches of some tens, each is settled by its relay and reported by its client in
//! batches, nodes quote every 20 seconds of entry time, a node lapses once, at half time the policy changes and node 3 boots
//! another build, and snapshot points come as nodes make them.
use quorate_audit::testing::{LogWriter, note_of};
use quorate_core::certificate::CertifiedCheckpoint;
use quorate_core::command::{Batch, ClientCommand, Command, NodeCommand, OpenPool};
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, RequestId, Timestamp};
use quorate_core::leaf::Outcome;
use quorate_core::state::{Applied, checkpoint_of};
use quorate_core::testing::{CLIENT, Fleet, Mesh, START};
use quorate_core::tlog::TreeSize;
use std::collections::BTreeSet;
use std::path::Path;

/// Requests in one batch: what some hundred at once come to.
const PER_BATCH: usize = 32;
/// Entry time between batches, ms: 1,600 requests a second.
const SPACING_MS: u64 = 20;
/// Requests a pool carries before the next one is opened.
const PER_POOL: usize = 2_000;
/// Batches between snapshot points.
const SNAPSHOT_BATCHES: u64 = 5_000;
/// Checkpoints that earlier runs of a mirror would have kept.
const OLDER_EVERY: u64 = 100_000;
/// What node 3 runs from half time on, measured into PCR 11.
pub(crate) const OTHER_BUILD: &[u8] = b"another build";

/// What was made.
pub(crate) struct Made {
    /// Digest of the first policy.
    pub(crate) genesis: Hash,
    /// Leaves.
    pub(crate) leaves: TreeSize,
    /// Commands that somebody signed.
    pub(crate) signed: u64,
}

/// Makes a log of so many requests in a new folder.
pub(crate) fn make(dir: &Path, requests: u64) -> Made {
    let mut maker = Maker::new(dir);
    let signed = maker.fill(requests);
    Made { genesis: maker.mesh.fleet.cluster(), leaves: maker.writer.size(), signed }
}

struct Maker {
    mesh: Mesh,
    writer: LogWriter,
    blobs: BTreeSet<Hash>,
    certified: CertifiedCheckpoint,
    last_older: u64,
    silent: Option<NodeId>,
}

impl Maker {
    fn new(dir: &Path) -> Self {
        // The mesh's own history up to here: recovered, everybody attested.
        let mesh = Mesh::new(4, 1, |d| {
            for client in &mut d.client {
                client.requests_per_minute = u64::MAX >> 1;
                client.requests_per_day = u64::MAX >> 1;
                client.bytes_per_day = u64::MAX >> 1;
            }
            for route in &mut d.route {
                route.duration_ms_max = 600_000;
            }
        });
        let mut writer = LogWriter::new(dir, mesh.fleet.chain.first().expect("genesis"));
        mesh.log.leaves.iter().for_each(|leaf| writer.push(leaf));
        let certified = mesh.certified.values().next_back().expect("certified").clone();
        let mut maker = Self { mesh, writer, blobs: BTreeSet::new(), certified, last_older: 0, silent: None };
        maker.keep_blobs();
        maker
    }

    fn keep_blobs(&mut self) {
        for (digest, blob) in &self.mesh.fleet.blobs.0 {
            if self.blobs.insert(*digest) {
                self.writer.blob(blob);
            }
        }
    }

    /// One entry. The mesh keeps no copy of leaves: they go to disk.
    fn apply(&mut self, ms: u64, commands: Vec<Command>) -> Applied {
        self.mesh.time = self.mesh.time.plus_ms(ms);
        let batch = Batch { time: self.mesh.time, proposer: NodeId(1), commands };
        let applied = self.mesh.log.state.apply_batch(batch, &self.mesh.fleet.blobs);
        applied.leaf_bytes.iter().for_each(|leaf| self.writer.push(leaf));
        applied
    }

    /// Cosigns as a quorum of nodes would.
    fn certify(&mut self, applied: &Applied) {
        let state = self.mesh.state();
        let able =
            applied.certifiers.keys.keys().filter(|n| Some(**n) != self.silent).take(state.policy().quorum());
        let cosignatures: Vec<_> = able
            .map(|n| (*n, self.mesh.fleet.nodes.get(n).expect("a member").cosign(state, applied.checkpoint)))
            .collect();
        let checkpoint = checkpoint_of(state.origin(), applied.checkpoint);
        self.certified = applied.certifiers.certify(checkpoint, &cosignatures).expect("a quorum");
        let size = applied.checkpoint.size.0;
        if size - self.last_older >= OLDER_EVERY {
            self.last_older = size;
            self.writer.older(&self.note(), TreeSize(size));
        }
    }

    fn note(&self) -> quorate_core::tlog::Note {
        note_of(self.certified.checkpoint(), self.certified.cosignatures(), |node| {
            let boot = self.mesh.fleet.nodes.get(&node).expect("a member").boot();
            (format!("node-{}", node.0), boot.cosign)
        })
    }

    /// Evidence of everybody who speaks, over a fresh certificate.
    fn attest(&mut self) -> u64 {
        let applied = self.apply(1000, Vec::new());
        self.certify(&applied);
        let nodes: Vec<NodeId> =
            self.mesh.fleet.nodes.keys().copied().filter(|n| Some(*n) != self.silent).collect();
        let commands: Vec<Command> = nodes
            .into_iter()
            .map(|n| self.mesh.fleet.evidence(&self.mesh.log.state, n, &self.certified))
            .collect();
        let signed = commands.len() as u64;
        let applied = self.apply(1, commands);
        assert!(
            applied.outcomes.iter().all(|(_, o, _)| matches!(o, Outcome::Appraised { .. })),
            "{applied:?}"
        );
        self.certify(&applied);
        self.keep_blobs();
        signed
    }

    fn pool(&mut self, relay: u64) -> (OpenPool, Command) {
        let pool = self.mesh.fleet.pool(&self.mesh.log.state, relay);
        (pool.clone(), self.mesh.fleet.client(CLIENT, ClientCommand::OpenPool(pool)))
    }

    fn fill(&mut self, requests: u64) -> u64 {
        let (mut signed, mut done, mut changed, mut lapsed) = (0, 0, false, false);
        let (mut quoted, mut relays) = (self.mesh.time, (1..=3u64).cycle());
        let mut ended: Vec<(NodeId, RequestId)> = Vec::new();
        let mut snapshot = 0;
        while done < requests {
            if self.mesh.time.since_ms(quoted) >= 18_000 {
                signed += self.attest();
                quoted = self.mesh.time;
            }
            if !changed && done * 2 >= requests {
                changed = true;
                self.mesh.fleet.node(3).tpm.measure(11, 1, OTHER_BUILD);
                let value = self.mesh.fleet.node(3).tpm.pcr(11);
                let change = self.mesh.fleet.change_policy(|d| {
                    let values = d.reference_values.get_mut("plain").expect("the fleet's own");
                    values.pcrs.get_mut(&11).expect("it is quoted").push(value);
                });
                let applied = self.apply(1, vec![change]);
                assert!(matches!(applied.outcomes.first(), Some((_, Outcome::PolicyChanged { .. }, _))));
                self.keep_blobs();
                self.certify(&applied);
                signed += 1;
            }
            if !lapsed && done * 4 >= requests {
                lapsed = true;
                self.silent = Some(NodeId(4));
                for _ in 0..4 {
                    self.apply(16_000, Vec::new());
                    signed += self.attest();
                }
                self.silent = None;
                signed += self.attest();
                quoted = self.mesh.time;
            }
            let (pool, command) = self.pool(relays.next().expect("cycles"));
            self.apply(1, vec![command]);
            signed += 1;
            for _ in 0..PER_POOL / PER_BATCH {
                let mut commands = Vec::with_capacity(PER_BATCH + 2);
                // The relay's and the client's word on those of the batch before.
                if let Some((relay, _)) = ended.first().copied() {
                    let ids: Vec<RequestId> = ended.drain(..).map(|(_, id)| id).collect();
                    let settlements = ids.iter().map(|id| Fleet::settlement(*id)).collect();
                    commands.push(self.mesh.fleet.node_command(relay, NodeCommand::Settle(settlements)));
                    let reports = ids.into_iter().map(Fleet::report).collect();
                    commands.push(self.mesh.fleet.client(CLIENT, ClientCommand::Report(reports)));
                }
                for _ in 0..PER_BATCH.min((requests - done) as usize) {
                    let mut request = self.mesh.fleet.request(&self.mesh.log.state, &pool);
                    request.expires = Timestamp(self.mesh.time.0 + 30_000);
                    ended.push((pool.relay, request.request));
                    commands.push(self.mesh.fleet.client(CLIENT, ClientCommand::Authorise(request)));
                    done += 1;
                }
                snapshot += 1;
                if snapshot % SNAPSHOT_BATCHES == 0 {
                    commands.push(self.mesh.fleet.node_command(pool.relay, NodeCommand::Snapshot));
                }
                signed += commands.len() as u64;
                let applied = self.apply(SPACING_MS, commands);
                let refused = applied.outcomes.iter().find(|(_, o, _)| matches!(o, Outcome::Refused(_)));
                assert!(refused.is_none(), "{refused:?} at {}", self.mesh.time.since_ms(START));
                if done >= requests {
                    break;
                }
            }
        }
        signed += self.attest();
        self.writer.finish(&self.note());
        signed
    }
}
