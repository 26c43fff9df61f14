//! `prune DIR --before …`: cuts a prefix off a mirror, as C2SP tlog-tiles ("Pruning") describes.
//!
//! Deleted are full tiles and entry bundles whose end index is at or below the **minimum index**, and blobs that no leaf which
//! remains rests on. Everything else stays: checkpoints, the tiles of higher levels, partial tiles, policies and the bundles that
//! hold their signatures. The tree, its name and its roots do not change. `DIR/pruned` notes what was cut; it is the auditor's
//! own, `mirror` never fetches one.
//!
//! | afterwards | |
//! |---|---|
//! | any leaf from the minimum index on | is there, with its inclusion proof to any checkpoint that holds it |
//! | consistency of any two checkpoints larger than the minimum index | can be proven |
//! | the evidence that requests from the minimum index on rest on, and its logs | are there: the cut is moved back until they are |
//! | proofs that were made before | hold as they did |
//! | [`check`] (`prune DIR --check`) | every leaf that remains is under the certified root, every proof that can be made from here is good |
//! | `prove` and `explain` | of requests from the minimum index on: as before |
//! | `verify` | replays from the first batch after the cut, with the state that was verified up to there and is kept as `DIR/pruned-state`. In a copy that somebody else cut, that state is their word: `prove` still rests on genesis alone |
//! | `report`, `blast-radius` | cannot run: they tell of all of history. Run them first and keep what they say, or keep one whole mirror |
//! | `mirror` into this folder | would fetch again what was cut off; mirror into another one |
//!
//! **Refuses** to cut what does not verify: after the cut nobody can find out from this copy. **Assumes** that somebody decided
//! how long history is kept; the cut cannot be undone here, only by mirroring again.
use crate::cli::{self, Exit, Failure, GenesisArg};
use crate::finding::{Error, Fault, Finding, Place};
use crate::replay::{Options, Replay};
use crate::store::{Mirror, tile_paths};
use crate::witness::disk::Disk;
use quorate_core::command::Command;
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::state::State;
use quorate_core::tlog::{
    LeafIndex, TILE_HEIGHT, TILE_WIDTH, TileKind, TilePath, TreeSize, root_at, tree_root,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// `prune`'s arguments.
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// The mirror's folder
    dir: PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    /// First leaf to keep, by number, or a moment (RFC 3339, UTC): what is older may go
    #[arg(long, value_name = "LEAF|TIME", required_unless_present = "check")]
    before: Option<Before>,
    /// Say what would go, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Check what an earlier cut left: leaves, tiles and checkpoint against each other
    #[arg(long, conflicts_with_all = ["before", "dry_run"])]
    check: bool,
}

/// Where to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// This leaf stays.
    Leaf(LeafIndex),
    /// Batches from this moment on stay.
    Time(Timestamp),
}

impl std::str::FromStr for Before {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(leaf) = text.parse() {
            return Ok(Self::Leaf(LeafIndex(leaf)));
        }
        let long = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        let time = long.parse::<toml::value::Datetime>().ok().and_then(|d| unix_ms(&d));
        time.map(Self::Time).ok_or("a leaf's number, or a moment such as 2026-01-31 or 2026-01-31T12:00:00Z")
    }
}

fn unix_ms(d: &toml::value::Datetime) -> Option<Timestamp> {
    let (date, time) = (d.date?, d.time?);
    if d.offset? != toml::value::Offset::Z {
        return None;
    }
    // Howard Hinnant's day count of a civil date.
    let (y, m) = (i64::from(date.year) - i64::from(date.month <= 2), i64::from(date.month));
    let era = y.div_euclid(400);
    let of_year = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(date.day) - 1;
    let of_era = y.rem_euclid(400) * 365 + y.rem_euclid(400) / 4 - y.rem_euclid(400) / 100 + of_year;
    let days = u64::try_from(era * 146_097 + of_era - 719_468).ok()?;
    let seconds =
        u64::from(time.hour) * 3600 + u64::from(time.minute) * 60 + u64::from(time.second.unwrap_or(0));
    Some(Timestamp(days.checked_mul(86_400)?.checked_add(seconds)?.checked_mul(1000)?))
}

/// What an earlier cut left behind, as `DIR/pruned` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruned {
    /// First leaf that is there (C2SP tlog-tiles, "Pruning").
    pub minimum_index: LeafIndex,
    /// Leaves under the checkpoint up to which everything was verified before the cut.
    pub verified: TreeSize,
    /// Bundles before it that are there all the same: they hold signatures over policies.
    pub kept: BTreeSet<u64>,
    /// Where `DIR/pruned-state` continues: the end of the first batch from the minimum index on.
    pub replayed_from: TreeSize,
}

impl Pruned {
    /// Whether the cut took this bundle.
    pub fn lacks_bundle(&self, number: u64) -> bool {
        number < self.minimum_index.0 / TILE_WIDTH && !self.kept.contains(&number)
    }
    /// Whether the cut took this tile or bundle.
    fn lacks(&self, path: &TilePath) -> bool {
        match path.kind() {
            TileKind::Entries | TileKind::Hashes(0) => path.is_full() && self.lacks_bundle(path.index()),
            TileKind::Hashes(_) => end_of(path).is_some_and(|end| end <= self.minimum_index.0),
        }
    }
}

/// A cut that may be made: all of the log was verified, and what remains can stand alone.
#[derive(Debug)]
pub struct Plan {
    mirror: Mirror,
    pruned: Pruned,
    tiles: Vec<TilePath>,
    blobs: Vec<Hash>,
    /// As history left it at `replayed_from`.
    state: Vec<u8>,
}

/// What was, or would be, deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// First leaf that is kept.
    pub minimum_index: LeafIndex,
    /// Tiles and bundles.
    pub tiles: u64,
    /// Blobs.
    pub blobs: u64,
    /// All of that, bytes.
    pub bytes: u64,
}

/// Verifies a mirror, and finds where it can be cut at or before the place asked for.
pub fn plan(
    mirror: &Mirror,
    genesis: Hash,
    before: Before,
    mut watch: impl FnMut(TreeSize, TreeSize),
) -> Result<Plan, Error> {
    let mut replay = Replay::start(mirror, genesis, Options::default())?;
    let size = replay.newest().size();
    // The batch that the first leaf to keep is in, and what its nodes' evidence rests on when it begins.
    let mut wanted = None;
    let mut rests_on = Rests::default();
    let mut blobs = Blobs::default();
    let mut policies = BTreeSet::new();
    while let Some(step) = replay.step()? {
        let reached = match before {
            Before::Leaf(leaf) => step.checkpoint.size.0 > leaf.0,
            Before::Time(time) => step.time >= time,
        };
        if reached && wanted.is_none() {
            wanted = Some(step.first.0.min(rests_on.first().unwrap_or(u64::MAX)));
        }
        for leaf in &step.leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            match body {
                LeafBody::Decided { command, outcome } => {
                    blobs.named(leaf.index(), command);
                    if matches!(outcome, Outcome::PolicyChanged { .. }) {
                        policies.insert(leaf.index().0 / TILE_WIDTH);
                    }
                    if let Command::Evidence(c) = command {
                        // The nonce is a checkpoint: its consistency with later ones must remain provable.
                        let nonce = c.nonce.size.0.saturating_sub(1);
                        rests_on.nonces.insert(leaf.index(), nonce);
                    }
                }
                LeafBody::BatchEnd(end) => rests_on.attested(&end.attested),
                _ => {}
            }
        }
        watch(replay.position(), size);
    }
    if let Some(finding) = replay.findings().first() {
        return Err(finding.clone().into());
    }
    // A moment after the end keeps what the newest batch rests on.
    let wanted = wanted.unwrap_or_else(|| rests_on.first().unwrap_or(size.0));
    let minimum = wanted / TILE_WIDTH * TILE_WIDTH;
    let kept = policies.into_iter().take_while(|number| *number < minimum / TILE_WIDTH).collect();
    // A second look, as far as what remains: which batch that is was known only at the end.
    let mut again = Replay::start(mirror, genesis, Options::default())?;
    while again.position().0 < minimum && again.step()?.is_some() {}
    let replayed_from = again.position();
    let pruned = Pruned { minimum_index: LeafIndex(minimum), verified: size, kept, replayed_from };
    Ok(Plan {
        state: again.state().to_bytes(),
        mirror: mirror.clone(),
        tiles: tile_paths(size).filter(|path| pruned.lacks(path)).collect(),
        pruned,
        blobs: blobs.last_named_before(LeafIndex(minimum)),
    })
}

/// End index of a full tile or bundle (C2SP tlog-tiles); partial ones are never pruned.
fn end_of(path: &TilePath) -> Option<u64> {
    let level = match path.kind() {
        TileKind::Hashes(level) => u32::from(level),
        TileKind::Entries => 0,
    };
    let bits = u32::from(TILE_HEIGHT).checked_mul(level.checked_add(1)?)?;
    let end = path.index().checked_add(1)?.checked_shl(bits)?;
    (path.is_full() && end >> bits == path.index() + 1).then_some(end)
}

/// What the attested nodes rest on.
#[derive(Default)]
struct Rests {
    /// First leaf that each attested node's evidence needs.
    evidence: Vec<u64>,
    /// Leaf of evidence, and the last leaf under its nonce.
    nonces: BTreeMap<LeafIndex, u64>,
}

impl Rests {
    fn attested(&mut self, attested: &[(NodeId, LeafIndex)]) {
        let first = attested.iter().map(|(_, leaf)| *leaf).min();
        self.nonces.retain(|leaf, _| first.is_none_or(|first| *leaf >= first));
        let needs =
            |(_, leaf): &(NodeId, LeafIndex)| self.nonces.get(leaf).copied().unwrap_or(leaf.0).min(leaf.0);
        self.evidence = attested.iter().map(needs).collect();
    }
    fn first(&self) -> Option<u64> {
        self.evidence.iter().min().copied()
    }
}

/// Where blobs are last named. Policies are kept for ever: they are few, and every proof begins with them.
#[derive(Default)]
struct Blobs {
    last: BTreeMap<Hash, LeafIndex>,
    policies: BTreeSet<Hash>,
}

impl Blobs {
    fn named(&mut self, at: LeafIndex, command: &Command) {
        for digest in command.blobs() {
            if matches!(command, Command::Policy(_)) {
                self.policies.insert(digest);
            }
            self.last.insert(digest, at);
        }
    }
    fn last_named_before(&self, minimum: LeafIndex) -> Vec<Hash> {
        let old = self.last.iter().filter(|(_, at)| **at < minimum).map(|(digest, _)| *digest);
        old.filter(|digest| !self.policies.contains(digest)).collect()
    }
}

impl Plan {
    /// First leaf that is kept.
    pub fn minimum_index(&self) -> LeafIndex {
        self.pruned.minimum_index
    }

    /// What would go.
    pub fn measure(&self) -> Cut {
        self.files().fold(
            Cut { minimum_index: self.minimum_index(), ..Cut::default() },
            |cut, (file, is_blob)| {
                let Ok(meta) = file.metadata() else { return cut };
                let (tiles, blobs) = if is_blob { (0, 1) } else { (1, 0) };
                Cut {
                    tiles: cut.tiles + tiles,
                    blobs: cut.blobs + blobs,
                    bytes: cut.bytes.saturating_add(meta.len()),
                    ..cut
                }
            },
        )
    }

    /// Cuts. Where it is interrupted, doing it again goes on; the note of the cut is written first.
    pub fn cut(&self) -> Result<Cut, Error> {
        let cut = self.measure();
        let note = serde_json::to_vec(&self.pruned).unwrap_or_default();
        for (path, bytes) in [(state_path(&self.mirror), &self.state), (note_path(&self.mirror), &note)] {
            Disk::default().replace(&path, bytes).map_err(Error::disk("write", &path))?;
        }
        for (file, _) in self.files() {
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::disk("delete", file)(e));
                }
                _ => {}
            }
        }
        Ok(cut)
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, bool)> + '_ {
        let tiles = self.tiles.iter().map(|path| (self.mirror.tile_file(path), false));
        tiles.chain(self.blobs.iter().map(|digest| (self.mirror.blob_path(digest), true)))
    }
}

fn state_path(mirror: &Mirror) -> PathBuf {
    mirror.dir().join("pruned-state")
}

/// The state at which what remains can be replayed, as the cut left it.
pub fn state(mirror: &Mirror, genesis: Hash) -> Result<State, Error> {
    let damaged = |fault| Finding::at(Place::PrunedState, fault);
    let pruned = pruned(mirror).ok_or_else(|| damaged(Fault::Missing))?;
    let path = state_path(mirror);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(damaged(Fault::Missing).into()),
        Err(e) => return Err(Error::disk("read", path)(e)),
    };
    let state = State::from_bytes(&bytes, genesis).map_err(|_| damaged(Fault::Undecodable))?;
    let size = state.tree().size();
    // Its tree must be a prefix of the one that the checkpoint names.
    let newest = mirror.newest()?.size();
    if size != pruned.replayed_from || size > newest {
        return Err(damaged(Fault::OtherSize(size)).into());
    }
    let (said, computed) = (state.checkpoint().root, root_at(&mirror.tree(newest), size)?);
    if said != computed {
        return Err(damaged(Fault::Root { said, computed }).into());
    }
    Ok(state)
}

fn note_path(mirror: &Mirror) -> PathBuf {
    mirror.dir().join("pruned")
}

/// Where a mirror was cut, if it was.
pub fn pruned(mirror: &Mirror) -> Option<Pruned> {
    serde_json::from_slice(&std::fs::read(note_path(mirror)).ok()?).ok()
}

/// Checks what a cut left: every leaf and tile that must be there is, and leads to the root of the newest checkpoint. Whether that
/// checkpoint is certified was decided before the cut; it is the same one or this gives a finding. Gives the leaves that are there.
pub fn check(mirror: &Mirror) -> Result<u64, Error> {
    let newest = mirror.newest()?;
    let whole = Pruned {
        minimum_index: LeafIndex(0),
        verified: newest.size(),
        kept: BTreeSet::new(),
        replayed_from: TreeSize::ZERO,
    };
    let pruned = pruned(mirror).unwrap_or(whole);
    if newest.size() != pruned.verified {
        return Err(Finding::at(Place::Checkpoint, Fault::OtherSize(newest.size())).into());
    }
    let mut leaves = 0;
    let first = pruned.minimum_index.0 / TILE_WIDTH;
    for number in pruned.kept.iter().copied().chain(first..) {
        let Some(bundle) = mirror.checked_bundle(number, newest.size())? else { break };
        if number >= first {
            leaves += bundle.leaves.len() as u64;
        }
    }
    // From the tiles that are there, each against the one above it.
    for path in tile_paths(newest.size()).filter(|path| !pruned.lacks(path)) {
        let TileKind::Hashes(level) = path.kind() else { continue };
        let hashes = mirror.hashes(&path)?;
        if !path.is_full() {
            continue;
        }
        let over =
            crate::store::tile_path(TileKind::Hashes(level + 1), path.index() / TILE_WIDTH, newest.size());
        // What stands over a bundle that was kept for its policies may be gone.
        let Some(over) = over.filter(|over| !pruned.lacks(over)) else { continue };
        let place = usize::try_from(path.index() % TILE_WIDTH).unwrap_or(usize::MAX);
        if mirror.hashes(&over)?.get(place) != Some(&tree_root(&hashes)) {
            return Err(Finding::at(Place::Tile(path), Fault::TileRoot(over)).into());
        }
    }
    let computed = root_at(&mirror.tree(newest.size()), newest.size())?;
    let said = newest.checkpoint.root;
    if computed != said {
        return Err(Finding::at(Place::Checkpoint, Fault::Root { said, computed }).into());
    }
    Ok(leaves)
}

/// Runs the command.
pub fn run(args: PruneArgs) -> cli::Outcome {
    let mirror = Mirror::open(&args.dir)?;
    let wrong = |finding: Finding| {
        cli::say(&format!(
            "this copy does not hold, and is left as it is:\n\n{}",
            cli::findings(&[finding])
        ))?;
        Ok(Exit::ProvenWrong)
    };
    let Some(before) = args.before else {
        return match check(&mirror) {
            Ok(leaves) => {
                let from = pruned(&mirror).map_or(LeafIndex(0), |p| p.minimum_index);
                cli::say(&format!("{leaves} leaves from {from} on are under the checkpoint's root\n"))?;
                Ok(Exit::Good)
            }
            Err(Error::Found(finding)) => wrong(*finding),
            Err(error) => Err(error.into()),
        };
    };
    if let Some(pruned) = pruned(&mirror) {
        return Err(Failure::new(
            format!("this mirror begins at leaf {}: it was cut before", pruned.minimum_index),
            "what is gone cannot be verified again; cut a whole mirror further, or `prune DIR --check`",
        ));
    }
    let bar = indicatif::ProgressBar::new(0);
    let planned = plan(&mirror, args.genesis.genesis, before, |done, all| {
        bar.set_length(all.0);
        bar.set_position(done.0);
    });
    bar.finish_and_clear();
    let plan = match planned {
        Err(Error::Found(finding)) => return wrong(*finding),
        other => other?,
    };
    let (cut, word) = if args.dry_run { (plan.measure(), "would delete") } else { (plan.cut()?, "deleted") };
    cli::say(&format!(
        "verified all of it; {word} {} tiles and bundles and {} blobs, {} bytes; leaves from {} on stay\n",
        cut.tiles, cut.blobs, cut.bytes, cut.minimum_index
    ))?;
    Ok(Exit::Good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::explain;
    use crate::prove::{Desk, NoProof};
    use crate::testing::mirror_of;
    use crate::verify::{Verdict, verify};
    use quorate_core::command::ClientCommand;
    use quorate_core::testing::{Mesh, route_document};
    use quorate_core::tlog::{
        leaf_hash, prove_consistency, prove_inclusion, verify_consistency, verify_inclusion,
    };

    /// Ten minutes with evidence, so that old logs can go: some 1,500 leaves.
    fn mesh() -> Mesh {
        let mut mesh = Mesh::four();
        for i in 0..30u64 {
            mesh.wait(20_000);
            if i == 2 {
                let change = mesh.fleet.change_policy(|d| d.route.push(route_document("second")));
                mesh.decide(change);
            }
            for node in 1..=4 {
                // Another event log each time.
                if i % 10 == 9 {
                    mesh.fleet.node(node).tpm.measure(14, 1, &i.to_be_bytes());
                }
            }
            mesh.attest_all();
            let pool = mesh.open_pool();
            for _ in 0..10 {
                let request = mesh.authorise(&pool);
                mesh.settle(&pool, request);
            }
        }
        mesh
    }

    #[test]
    fn what_remains_proves_what_it_proved() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = mesh();
        let mirror = mirror_of(&mesh, dir.path(), &[]);
        let genesis = mesh.fleet.cluster();
        let size = mirror.newest().unwrap().size();
        let root = mirror.newest().unwrap().checkpoint.root;
        let blobs = || std::fs::read_dir(dir.path().join("blob")).unwrap().count();
        let before = blobs();

        let wanted = LeafIndex(size.0 * 2 / 3);
        let plan = plan(&mirror, genesis, Before::Leaf(wanted), |_, _| ()).unwrap();
        let minimum = plan.minimum_index();
        assert!(minimum <= wanted && minimum.0 > 0 && minimum.0 % 256 == 0, "{minimum}");
        let would = plan.measure();
        assert_eq!(
            mirror.leaf(LeafIndex(300), size).unwrap(),
            mesh.log.leaves[300],
            "a plan deletes nothing"
        );
        let cut = plan.cut().unwrap();
        assert_eq!(cut, would);
        // The bundle with the policy's signatures stays, and its tile.
        assert_eq!(cut.tiles, 2 * (minimum.0 / 256 - 1));
        assert_eq!(pruned(&mirror).unwrap().kept, BTreeSet::from([0]));
        assert!(cut.blobs > 0 && blobs() == before - cut.blobs as usize, "{cut:?}");

        // C2SP tlog-tiles, "Pruning": any available entry, its inclusion, consistency of any two available checkpoints.
        let tree = mirror.tree(size);
        for at in (minimum.0..size.0).map(LeafIndex) {
            let leaf = mirror.leaf(at, size).unwrap();
            assert_eq!(leaf, mesh.log.leaves[at.0 as usize]);
            let proof = prove_inclusion(&tree, at, size).unwrap();
            verify_inclusion(leaf_hash(&leaf), at, size, root, &proof).unwrap();
        }
        for old in mesh.certified.values().filter(|c| c.reference().size.0 > minimum.0) {
            let old = old.reference();
            let proof = prove_consistency(&tree, old.size, size).unwrap();
            verify_consistency(old.size, old.root, size, root, &proof).unwrap();
        }
        // What remains rests on evidence that remains, logs included.
        for at in wanted.0..size.0 {
            let Leaf::V1 { body, .. } = borsh::from_slice(&mesh.log.leaves[at as usize]).unwrap();
            if let LeafBody::BatchEnd(end) = body {
                for (_, evidence) in end.attested {
                    let leaf = mirror.leaf(evidence, size).unwrap();
                    let Leaf::V1 { body: LeafBody::Decided { command, .. }, .. } =
                        borsh::from_slice(&leaf).unwrap()
                    else {
                        panic!("evidence is a command")
                    };
                    for digest in command.blobs() {
                        mirror.blob(&digest).unwrap();
                    }
                }
            }
        }
        // Requests from there on have their proofs and their lives; older ones are not in this mirror any more.
        let request = |bytes: &Vec<u8>| match borsh::from_slice(bytes).unwrap() {
            Leaf::V1 { body: LeafBody::Decided { command: Command::Client(c), .. }, .. } => match c.body {
                ClientCommand::Authorise(a) => Some(a.request),
                _ => None,
            },
            _ => None,
        };
        let desk = Desk::open(mirror.clone()).unwrap();
        let later = mesh.log.leaves[wanted.0 as usize..].iter().find_map(request).unwrap();
        assert_eq!(desk.prove(later, genesis).unwrap().receipt.0.chain.len(), 2);
        assert!(explain(&desk, later, genesis).is_ok());
        let older = mesh.log.leaves[..minimum.0 as usize].iter().rev().find_map(request).unwrap();
        assert!(matches!(desk.prove(older, genesis), Err(NoProof::NoSuchRequest(_))));

        assert_eq!(check(&mirror).unwrap(), size.0 - minimum.0);
        // What is gone is gone. What remains is replayed from the state that was verified up to there, and only that.
        assert!(mirror.leaf(LeafIndex(minimum.0 - 1), size).is_err());
        let again = || verify(&mirror, genesis, Options { threads: 1 }, |_, _| ()).unwrap();
        let Verdict::Holds(verified) = again() else { panic!("{:?}", again()) };
        let begins = pruned(&mirror).unwrap().replayed_from;
        assert!(begins.0 >= minimum.0 && begins.0 <= wanted.0, "{minimum} {begins} {wanted}");
        assert_eq!((verified.begins.0, verified.size), (begins.0, size));
        assert_eq!(verified.checked.leaves, size.0 - begins.0);
        assert_eq!((verified.summary.policies.len(), verified.cosigners.len()), (1, 4));
        let whole = crate::report::make(&mirror, genesis, Options { threads: 1 }, |_, _| ());
        assert!(matches!(whole, Err(Error::Pruned(at)) if at == minimum));
        let replay_finds = |path: PathBuf, place: &str, code: &str| {
            let honest = std::fs::read(&path).unwrap();
            for altered in [
                [
                    &honest[..honest.len() / 2],
                    &[honest[honest.len() / 2] ^ 1],
                    &honest[honest.len() / 2 + 1..],
                ]
                .concat(),
                vec![],
            ] {
                std::fs::write(&path, altered).unwrap();
                let Verdict::Fails { findings, .. } = again() else { panic!("{path:?} was altered") };
                assert!(findings[0].place.to_string().starts_with(place), "{}", findings[0]);
                let code =
                    if std::fs::metadata(&path).unwrap().len() > 0 { code } else { findings[0].fault.code() };
                assert_eq!(findings[0].fault.code(), code, "{}", findings[0]);
            }
            std::fs::write(&path, honest).unwrap();
        };
        replay_finds(
            mirror.tile_file(&TilePath::full(TileKind::Entries, minimum.0 / 256).unwrap()),
            "",
            "leaf_hash",
        );
        // A state of another history at that size; one that is none; none.
        let state = std::fs::read(state_path(&mirror)).unwrap();
        let mut other = Mesh::new(4, 1, |_| ());
        while other.log.tree.size() < begins {
            other.apply(Vec::new());
        }
        for (bytes, code) in [
            (
                Some(other.state().to_bytes()),
                if other.log.tree.size() == begins { "root" } else { "other_size" },
            ),
            (Some(state[..state.len() - 1].to_vec()), "undecodable"),
            (None, "missing"),
        ] {
            match bytes {
                Some(bytes) => std::fs::write(state_path(&mirror), bytes).unwrap(),
                None => std::fs::remove_file(state_path(&mirror)).unwrap(),
            }
            let Verdict::Fails { findings, .. } = again() else { panic!("a false state: {code}") };
            assert_eq!((findings[0].place.clone(), findings[0].fault.code()), (Place::PrunedState, code));
        }
        std::fs::write(state_path(&mirror), &state).unwrap();
        assert!(matches!(again(), Verdict::Holds(_)));

        // What remains is still guarded: a leaf, a tile, the checkpoint.
        let fails = |path: PathBuf, code: &str| {
            let honest = std::fs::read(&path).unwrap();
            let mut bytes = honest.clone();
            let at = bytes.len() - 3;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let Err(Error::Found(finding)) = check(&mirror) else { panic!("{path:?} was altered") };
            assert_eq!(finding.fault.code(), code, "{finding}");
            std::fs::write(&path, honest).unwrap();
        };
        let number = minimum.0 / 256;
        fails(mirror.tile_file(&TilePath::full(TileKind::Entries, number).unwrap()), "leaf_hash");
        let level1 = tile_paths(size).find(|p| p.kind() == TileKind::Hashes(1)).unwrap();
        fails(mirror.tile_file(&level1), "tile_root");
        assert_eq!(check(&mirror).unwrap(), size.0 - minimum.0);
    }

    #[test]
    fn the_command_cuts_once_and_checks_after() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = mesh();
        let mirror = mirror_of(&mesh, dir.path(), &[]);
        let args = |before: Option<&str>, dry_run| PruneArgs {
            dir: dir.path().into(),
            genesis: GenesisArg { genesis: mesh.fleet.cluster() },
            before: before.map(|b| b.parse().unwrap()),
            dry_run,
            check: before.is_none(),
        };
        assert_eq!(run(args(Some("900"), true)), Ok(Exit::Good));
        assert_eq!(pruned(&mirror), None, "a dry run changes nothing");
        assert_eq!(run(args(None, false)), Ok(Exit::Good), "it is whole");
        assert_eq!(run(args(Some("900"), false)), Ok(Exit::Good));
        assert!(pruned(&mirror).unwrap().minimum_index.0 >= 512);
        assert_eq!(run(args(None, false)), Ok(Exit::Good));
        assert!(run(args(Some("900"), false)).unwrap_err().message.contains("it was cut before"));
        std::fs::remove_file(note_path(&mirror)).unwrap();
        assert_eq!(run(args(None, false)), Ok(Exit::ProvenWrong), "a cut that nobody noted is damage");
    }

    #[test]
    fn nothing_is_cut_that_does_not_verify() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = mesh();
        let mirror = mirror_of(&mesh, dir.path(), &[]);
        let file = mirror.tile_file(&TilePath::full(TileKind::Entries, 1).unwrap());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let refused = plan(&mirror, mesh.fleet.cluster(), Before::Leaf(LeafIndex(600)), |_, _| ());
        assert!(matches!(refused, Err(Error::Found(_))));
    }

    #[test]
    fn places_to_cut_at_read() {
        let at = |text: &str| text.parse::<Before>().ok();
        assert_eq!(at("600"), Some(Before::Leaf(LeafIndex(600))));
        assert_eq!(at("2026-11-21T21:40:00Z"), Some(Before::Time(Timestamp(1_795_297_200_000))));
        assert_eq!(at("2000-02-29"), Some(Before::Time(Timestamp(951_782_400_000))));
        assert_eq!(at("1970-01-01"), Some(Before::Time(Timestamp(0))));
        for bad in ["", "x", "2026-13-01", "2026-11-21T21:40:00+01:00", "-5"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn ends_of_tiles_are_those_of_the_specification() {
        let tile = |kind, index| TilePath::full(kind, index).unwrap();
        assert_eq!(end_of(&tile(TileKind::Entries, 2)), Some(768));
        assert_eq!(end_of(&tile(TileKind::Hashes(0), 0)), Some(256));
        assert_eq!(end_of(&tile(TileKind::Hashes(1), 1)), Some(131_072));
        assert_eq!(end_of(&TilePath::of_width(TileKind::Entries, 0, 7).unwrap()), None);
    }
}
