//! The tlog as any C2SP client reads it over HTTP, and what is asked of it here.
use anyhow::{Context as _, ensure};
use quorate_cluster::mesh::{http_get_bytes, wait_for};
use quorate_core::command::{
    Batch, CheckpointRef, ClientCommand, Command, NodeCommand, NodeSigned, Report, Settlement,
};
use quorate_core::ids::RequestId;
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::tlog::{
    Checkpoint, Frontier, Hash, Note, TILE_WIDTH, TileKind, TilePath, decode_bundle, leaf_hash,
};
use std::time::Duration;

/// Leaves from the first on.
pub struct Tlog {
    /// Their bytes.
    pub bytes: Vec<Vec<u8>>,
    /// What they say.
    pub leaves: Vec<Leaf>,
}

/// The certified checkpoint that a node serves, and its note. For a moment after a start, or after a cosigner's keys have changed,
/// there is none.
pub fn checkpoint(http: &str) -> anyhow::Result<(CheckpointRef, Note)> {
    let body = wait_for("a checkpoint", Duration::from_secs(10), || {
        let (status, body) = http_get_bytes(http, "/checkpoint")?;
        ensure!(status == 200, "{http}/checkpoint: {status}");
        Ok(body)
    })?;
    let note = Note::parse(&body)?;
    let checkpoint = Checkpoint::parse(note.text())?;
    Ok((CheckpointRef { size: checkpoint.size, root: checkpoint.root }, note))
}

/// Names of the nodes whose cosignatures a note bears.
pub fn cosigners(note: &Note) -> Vec<String> {
    let name = |s: &quorate_core::tlog::NoteSignature| {
        s.name.as_str().rsplit('/').next().unwrap_or_default().to_owned()
    };
    note.signatures().iter().map(name).collect()
}

impl Tlog {
    /// Everything that a node serves under its certified checkpoint, checked against that root.
    pub fn read(http: &str) -> anyhow::Result<Self> {
        let (certified, _) = checkpoint(http)?;
        let tlog = Self::read_to(http, certified.size.0)?;
        ensure!(
            tlog.root(certified.size.0)? == certified.root,
            "{http}: the leaves are not those of the checkpoint"
        );
        Ok(tlog)
    }

    /// The first `size` leaves.
    pub fn read_to(http: &str, size: u64) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        for index in 0..size.div_ceil(TILE_WIDTH) {
            let width = u16::try_from((size - index * TILE_WIDTH).min(TILE_WIDTH))?;
            let path = TilePath::of_width(TileKind::Entries, index, width)?;
            let (status, body) = http_get_bytes(http, &format!("/{path}"))?;
            ensure!(status == 200, "{http}/{path}: {status}");
            bytes.extend(decode_bundle(&body, width)?.into_iter().map(<[u8]>::to_vec));
        }
        let leaves = bytes.iter().map(|b| borsh::from_slice(b)).collect::<Result<_, _>>()?;
        Ok(Self { bytes, leaves })
    }

    /// Root of the first `size` leaves.
    pub fn root(&self, size: u64) -> anyhow::Result<Hash> {
        let mut tree = Frontier::new();
        for leaf in self.bytes.get(..usize::try_from(size)?).context("the log is shorter")? {
            tree.push(leaf_hash(leaf));
        }
        Ok(tree.root())
    }

    /// What the leaves from `from` on say.
    pub fn bodies(&self, from: u64) -> impl Iterator<Item = &LeafBody> {
        self.leaves.iter().skip(usize::try_from(from).unwrap_or(usize::MAX)).map(|Leaf::V1 { body, .. }| body)
    }

    /// Whether this very command stands there, refused with this code.
    pub fn refuses(&self, from: u64, command: &Command, code: &str) -> bool {
        self.bodies(from).any(|body| match body {
            LeafBody::Decided { command: c, outcome: Outcome::Refused(refusal) } => {
                c == command && refusal.code() == code
            }
            _ => false,
        })
    }

    /// The client's report on a request.
    pub fn report(&self, request: RequestId) -> Option<&Report> {
        self.bodies(0).find_map(|body| match body {
            LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Reported(_) } => match &c.body
            {
                ClientCommand::Report(reports) => reports.iter().find(|r| r.request == request),
                _ => None,
            },
            _ => None,
        })
    }

    /// The relay's settlement of a request.
    pub fn settlement(&self, request: RequestId) -> Option<&Settlement> {
        self.bodies(0).find_map(|body| match body {
            LeafBody::Decided {
                command: Command::Node(NodeSigned { body: NodeCommand::Settle(all), .. }),
                ..
            } => all.iter().find(|s| s.request == request),
            _ => None,
        })
    }

    /// The log entries that made these leaves. A command that left no leaf changed nothing, so it is not missed.
    pub fn batches(&self) -> anyhow::Result<Vec<Batch>> {
        let mut batches = Vec::new();
        let mut commands = Vec::new();
        for Leaf::V1 { time, body } in &self.leaves {
            match body {
                LeafBody::Decided { command, .. } => commands.push(command.clone()),
                LeafBody::BatchEnd(end) => {
                    batches.push(Batch {
                        time: *time,
                        proposer: end.proposer,
                        commands: std::mem::take(&mut commands),
                    });
                }
                LeafBody::Undecodable { .. } => anyhow::bail!("an entry did not decode: a node lied"),
                LeafBody::Genesis { .. }
                | LeafBody::Lapsed { .. }
                | LeafBody::Unsettled { .. }
                | LeafBody::Anomaly { .. }
                | LeafBody::PairSuspended { .. }
                | LeafBody::CredentialFrozen { .. }
                | LeafBody::StateDigest { .. } => {}
            }
        }
        Ok(batches)
    }
}
