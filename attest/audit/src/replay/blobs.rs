//! Blobs as the state machine asks for them, each compared with its digest. One that is missing or altered ends the replay: the
//! state machine would otherwise only say that the evidence is refused.
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::Mirror;
use quorate_core::command::Command;
use quorate_core::crypto::Hash;
use quorate_core::state::Blobs;
use quorate_core::tlog::LeafIndex;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// Bytes of blobs kept at hand: a node's logs are the same for quote after quote.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(super) struct AuditedBlobs {
    mirror: Mirror,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    kept: VecDeque<(Hash, Vec<u8>)>,
    kept_bytes: usize,
    seen: BTreeSet<Hash>,
    failed: Option<Error>,
}

impl AuditedBlobs {
    pub(super) fn new(mirror: Mirror) -> Self {
        Self { mirror, inner: RefCell::default() }
    }

    /// Every blob that a command names is there, whether or not it is looked into.
    pub(super) fn require(&self, command: &Command, at: LeafIndex) -> Result<(), Error> {
        for digest in command.blobs() {
            if !self.inner.borrow().seen.contains(&digest) {
                self.get(&digest).map_err(|error| at_leaf(error, at))?;
            }
        }
        Ok(())
    }

    /// What went wrong inside the state machine.
    pub(super) fn failed(&self) -> Option<Error> {
        self.inner.borrow_mut().failed.take()
    }

    /// How many there were.
    pub(super) fn distinct(&self) -> u64 {
        self.inner.borrow().seen.len() as u64
    }

    fn get(&self, digest: &Hash) -> Result<Vec<u8>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        if let Some((_, bytes)) = inner.kept.iter().find(|(kept, _)| kept == digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.mirror.blob(digest)?;
        inner.seen.insert(*digest);
        inner.kept_bytes += bytes.len();
        inner.kept.push_back((*digest, bytes.clone()));
        while inner.kept_bytes > KEPT_BYTES_MAX
            && let Some((_, old)) = inner.kept.pop_front()
        {
            inner.kept_bytes -= old.len();
        }
        Ok(bytes)
    }
}

impl Blobs for AuditedBlobs {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        match self.get(digest) {
            Ok(bytes) => Some(bytes),
            // Whatever must be there was required before; what the log itself calls missing may be.
            Err(Error::Found(finding)) if finding.fault == Fault::Missing => None,
            Err(error) => {
                let failed = &mut self.inner.borrow_mut().failed;
                failed.get_or_insert(error);
                None
            }
        }
    }
}

fn at_leaf(error: Error, at: LeafIndex) -> Error {
    match error {
        Error::Found(finding) => match *finding {
            Finding { place: Place::Blob(digest, _), fault } => {
                Finding::at(Place::Blob(digest, Some(at)), fault).into()
            }
            finding => finding.into(),
        },
        other => other,
    }
}
