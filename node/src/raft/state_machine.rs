//! Raft's view of the state machine: hands entries to the [`Applier`], and turns snapshot points into snapshots.
//!
//! A snapshot is kept only once its digest stands in a certified leaf, and installed only with a proof of that leaf: a lying
//! leader cannot slip in a state. Raft itself never decides when to snapshot.
use super::StoredSnapshot;
use super::types::{
    Applied, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::ledger::Applier;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, StorageIOError,
};
use quorate_core::state::Blobs;
use std::io::Cursor;
use std::sync::Arc;

/// What the snapshot side of a node does; see [`crate::snapshots`].
pub trait Snapshots: Send + Sync + 'static {
    /// The newest snapshot that is certified and durable.
    fn newest(&self) -> Result<Option<StoredSnapshot>, String>;
    /// Verifies a received snapshot and makes it durable; fetches the tiles it stands on.
    fn install(
        &self,
        meta: SnapshotMeta,
        content: Vec<u8>,
    ) -> impl Future<Output = Result<Installed, String>> + Send;
    /// Takes a snapshot point, to be kept once its digest is certified.
    fn captured(&self, captured: Captured);
}

/// What a verified snapshot turns into.
pub struct Installed {
    /// The state.
    pub state: quorate_core::state::State,
    /// Its tree.
    pub tail: crate::tilestore::StoreTail,
}

/// A snapshot point: the moment right after an entry that held one was applied.
pub struct Captured {
    /// Raft's position.
    pub log_id: LogId,
    /// Raft's members.
    pub membership: StoredMembership,
    /// The state's canonical bytes.
    pub state: Vec<u8>,
    /// The tree's tail; what it stands on is durable.
    pub tail: crate::tilestore::StoreTail,
}

/// The adaptor that Raft owns.
pub struct StateMachine<B, S> {
    applier: Applier<B>,
    snapshots: Arc<S>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl<B: Blobs + Send + Sync + 'static, S: Snapshots> StateMachine<B, S> {
    /// Starts from where the applier stands.
    pub fn new(
        applier: Applier<B>,
        snapshots: Arc<S>,
        last_applied: Option<LogId>,
        membership: StoredMembership,
    ) -> Self {
        Self { applier, snapshots, last_applied, membership }
    }
}

fn failed(verb: ErrorVerb, what: impl std::fmt::Display) -> StorageError {
    StorageIOError::new(ErrorSubject::StateMachine, verb, AnyError::error(what)).into()
}

impl<B: Blobs + Send + Sync + 'static, S: Snapshots> RaftStateMachine<TypeConfig> for StateMachine<B, S> {
    type SnapshotBuilder = Builder<S>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            let answer = match entry.payload {
                EntryPayload::Blank => Applied::default(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::default()
                }
                EntryPayload::Normal(batch) => {
                    let index = entry.log_id.index;
                    let (size, snapshot_point) =
                        self.applier.apply(batch.bytes(), index).map_err(|e| failed(ErrorVerb::Write, e))?;
                    if snapshot_point {
                        let (state, tail) =
                            self.applier.content().map_err(|e| failed(ErrorVerb::Write, e))?;
                        let (log_id, membership) = (entry.log_id, self.membership.clone());
                        self.snapshots.captured(Captured { log_id, membership, state, tail });
                    }
                    Applied { tree_size: size.0 }
                }
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder { snapshots: Arc::clone(&self.snapshots) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let installed = self
            .snapshots
            .install(meta.clone(), snapshot.into_inner())
            .await
            .map_err(|e| failed(ErrorVerb::Write, e))?;
        let index = meta.last_log_id.map_or(0, |l| l.index);
        self.applier
            .reset(installed.state, &installed.tail, index)
            .map_err(|e| failed(ErrorVerb::Write, e))?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        current(&*self.snapshots)
    }
}

#[expect(clippy::result_large_err, reason = "openraft's own error type")]
fn current<S: Snapshots>(snapshots: &S) -> Result<Option<Snapshot>, StorageError> {
    let newest = snapshots.newest().map_err(|e| failed(ErrorVerb::Read, e))?;
    Ok(newest.map(|s| Snapshot { meta: s.meta, snapshot: Box::new(Cursor::new(s.content)) }))
}

/// Hands out the newest certified snapshot.
pub struct Builder<S> {
    snapshots: Arc<S>,
}

impl<S: Snapshots> RaftSnapshotBuilder<TypeConfig> for Builder<S> {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        current(&*self.snapshots)?.ok_or_else(|| failed(ErrorVerb::Read, "no snapshot is certified yet"))
    }
}

/// The last applied position and members that a stored snapshot gives.
pub fn position(snapshot: Option<&StoredSnapshot>) -> (Option<LogId>, StoredMembership) {
    snapshot.map_or_else(
        || (None, StoredMembership::default()),
        |s| (s.meta.last_log_id, s.meta.last_membership.clone()),
    )
}
