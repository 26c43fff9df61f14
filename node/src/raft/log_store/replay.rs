//! Opening: from segments to the pointers and places they add up to.
//!
//! Frames are followed by sequence from the oldest segment's head on. The first place without the next frame is the end of
//! the log, unless any header of a later sequence is found behind it: a frame is written only after the one
//! before it was synced, so then a durable frame is lost, and opening refuses ([`LogStoreError::Damaged`]).

use std::sync::Arc;

use super::LogStoreError;
use super::disk::Folder;
use super::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Salt, Spot, read_segment_header};
use super::journal::{self, Pointers, Step};
use super::places::Places;
use super::segment::{DRAFT, SPARE, Segment, remove};

/// What the segments say.
pub(super) struct Replayed {
    pub(super) salt: Salt,
    pub(super) pointers: Pointers,
    pub(super) places: Places,
    /// The segment that is written next, and where.
    pub(super) active: Arc<Segment>,
    pub(super) at: u64,
    /// Of the next frame.
    pub(super) sequence: u64,
    /// The segment after the active one, if it is ready.
    pub(super) next: Option<Segment>,
    /// Whether the last frame says nothing that Raft relies on.
    pub(super) sealed: bool,
}

/// A segment with its bytes.
struct Loaded {
    segment: Segment,
    spot: Spot,
    bytes: Vec<u8>,
}

impl Loaded {
    fn load(folder: &dyn Folder, id: u64, salt: Option<Salt>) -> Result<Self, LogStoreError> {
        let segment = Segment::open(folder, id)?;
        let bytes = segment.read_all()?;
        let found = read_segment_header(id, &bytes)?;
        if salt.is_some_and(|salt| salt != found) {
            return Err(LogStoreError::Damaged { segment: id, offset: 0, what: "it is another log's" });
        }
        Ok(Self { segment, spot: Spot { salt: found, segment: id }, bytes })
    }

    fn damaged(&self, offset: usize, what: &'static str) -> LogStoreError {
        LogStoreError::Damaged { segment: self.segment.id(), offset: offset as u64, what }
    }

    /// Whether its first frame is this one.
    fn begins_with(&self, sequence: u64) -> bool {
        let first = self.spot.read(&self.bytes, SEGMENT_HEADER_BYTES, sequence);
        first.is_some_and(|(found, _)| found == sequence)
    }

    /// Refuses if a frame was written after the one that should be at `lost`.
    fn nothing_later(&self, from: usize, sequence: u64, lost: (u64, u64)) -> Result<(), LogStoreError> {
        match self.spot.find(&self.bytes, from, sequence.saturating_add(1)) {
            None => Ok(()),
            Some(_) => {
                let (segment, offset) = lost;
                Err(LogStoreError::Damaged { segment, offset, what: "a frame is lost that others follow" })
            }
        }
    }
}

/// The frames followed so far.
struct Walk {
    pointers: Pointers,
    places: Places,
    /// Of the next frame.
    sequence: u64,
    sealed: bool,
}

impl Walk {
    /// Begins at the head of the oldest segment.
    fn begin(oldest: &Loaded) -> Result<Self, LogStoreError> {
        let at = SEGMENT_HEADER_BYTES;
        let Some((sequence, body)) = oldest.spot.read(&oldest.bytes, at, 0) else {
            return Err(oldest.damaged(at, "its first frame is lost"));
        };
        let told = journal::read(oldest.segment.id(), at + FRAME_HEADER_BYTES, body)?;
        let pointers = told.pointers.ok_or_else(|| oldest.damaged(at, "its head is missing"))?;
        Ok(Self { pointers, places: Places::starting_at(pointers.end()), sequence, sealed: false })
    }

    /// Follows the frames of a segment. Returns where the last one is and where it ends.
    fn follow(&mut self, loaded: &Loaded) -> Result<(usize, usize), LogStoreError> {
        let (mut last, mut at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        while let Some((sequence, body)) = loaded.spot.read(&loaded.bytes, at, self.sequence)
            && sequence == self.sequence
        {
            let told = journal::read(loaded.segment.id(), at + FRAME_HEADER_BYTES, body)?;
            match (at == SEGMENT_HEADER_BYTES, told.pointers) {
                (true, Some(pointers)) if pointers == self.pointers => {}
                (true, Some(_)) => return Err(loaded.damaged(at, "its head contradicts what precedes it")),
                (true, None) => return Err(loaded.damaged(at, "its head is missing")),
                (false, None) => {}
                (false, Some(_)) => return Err(loaded.damaged(at, "a head is in its middle")),
            }
            for step in &told.steps {
                self.pointers.apply(step)?;
                self.places.apply(step);
            }
            self.sealed = told.pointers.is_none() && told.steps.iter().all(Step::is_hint);
            self.sequence = self.sequence.saturating_add(1);
            last = at;
            at += FRAME_HEADER_BYTES + body.len();
        }
        Ok((last, at))
    }

    fn whole(&self) -> Result<(), LogStoreError> {
        let (first, end) = (self.pointers.first, self.pointers.end());
        let (placed, count) = self.places.extent();
        match count == end.saturating_sub(first) && (count == 0 || placed == first) {
            true => Ok(()),
            false => Err(LogStoreError::Hole { first, last: end.saturating_sub(1), count }),
        }
    }
}

/// Reads the log in a folder.
pub(super) fn replay(folder: &dyn Folder) -> Result<Replayed, LogStoreError> {
    let names = folder.names().map_err(LogStoreError::file("list", folder.path()))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| Segment::id_in(name)).collect();
    ids.sort_unstable();
    for pair in ids.windows(2) {
        if let [before, after] = pair
            && before.saturating_add(1) != *after
        {
            return Err(LogStoreError::MissingSegment { segment: before.saturating_add(1) });
        }
    }
    let mut ids = ids.into_iter();
    let oldest = ids.next().ok_or(LogStoreError::UnknownFormat { got: None })?;
    let mut current = Loaded::load(folder, oldest, None)?;
    let salt = current.spot.salt;
    let mut walk = Walk::begin(&current)?;

    let (mut unused, mut later) = (Vec::new(), None);
    let (last, at) = loop {
        let (last, at) = walk.follow(&current)?;
        let Some(id) = ids.next() else { break (last, at) };
        let next = Loaded::load(folder, id, Some(salt))?;
        if !next.begins_with(walk.sequence) {
            later = Some(next);
            break (last, at);
        }
        walk.places.add_segment(Arc::new(current.segment));
        current = next;
    };
    let lost = (current.segment.id(), at as u64);
    current.nothing_later(at, walk.sequence, lost)?;
    while let Some(loaded) = later {
        loaded.nothing_later(SEGMENT_HEADER_BYTES, walk.sequence, lost)?;
        unused.push(loaded.segment);
        later = ids.next().map(|id| Loaded::load(folder, id, Some(salt))).transpose()?;
    }
    walk.whole()?;
    if current.spot.find(&current.bytes, at, walk.sequence) == Some(at) {
        let (segment, offset) = lost;
        tracing::warn!(segment, offset, "the Raft log ends with a write that a crash tore; it is dropped");
    }

    for name in [DRAFT, SPARE] {
        remove(folder, name)?;
    }
    // more than one is never ready; newest first, so that no gap remains
    while unused.len() > 1
        && let Some(segment) = unused.pop()
    {
        remove(folder, &Segment::name(segment.id()))?;
    }
    // Names and the last frame were perhaps never synced; or a sync failed, and only the page cache has them.
    folder.sync().map_err(LogStoreError::file("sync", folder.path()))?;
    current.segment.write_durably(last as u64, current.bytes.get(last..at).unwrap_or_default())?;
    let active = Arc::new(current.segment);
    walk.places.add_segment(Arc::clone(&active));
    Ok(Replayed {
        salt,
        pointers: walk.pointers,
        places: walk.places,
        active,
        at: at as u64,
        sequence: walk.sequence,
        next: unused.pop(),
        sealed: walk.sealed,
    })
}
