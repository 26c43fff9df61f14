//! Memory for shares: pages of their own, kept out of swap where the system allows it (`RLIMIT_MEMLOCK`, mlock(2)) and out of
//! core dumps, erased before they are given back.
use memmap2::{Advice, MmapMut};
use std::io;
use std::ops::Range;
use zeroize::Zeroize;

/// A piece of [`LockedBytes`].
pub(super) type Place = Range<usize>;

/// Secret bytes, written once. No `Debug`.
pub(super) struct LockedBytes {
    pages: MmapMut,
    used: usize,
}

/// No room: whoever asked for the pages counted wrong, or the system has none.
#[derive(Debug, thiserror::Error)]
#[error("no memory for shares")]
pub(super) struct NoRoom(#[source] Option<io::Error>);

impl LockedBytes {
    /// Pages for so many bytes. Whether they are locked is the second of the two.
    pub(super) fn new(bytes: usize) -> Result<(Self, bool), NoRoom> {
        let pages = MmapMut::map_anon(bytes.max(1)).map_err(|e| NoRoom(Some(e)))?;
        let locked = pages.lock().is_ok();
        // Cores are off for the whole process already.
        let _kept_out = pages.advise(Advice::DontDump);
        Ok((Self { pages, used: 0 }, locked))
    }

    /// Takes a copy.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Place, NoRoom> {
        let place = self.used..self.used.saturating_add(bytes.len());
        self.pages.get_mut(place.clone()).ok_or(NoRoom(None))?.copy_from_slice(bytes);
        self.used = place.end;
        Ok(place)
    }

    /// What was put there.
    pub(super) fn expose_bytes(&self, place: &Place) -> &[u8] {
        self.pages.get(place.clone()).unwrap_or_default()
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        self.pages.as_mut().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_apart_and_within_their_room() {
        let (mut bytes, _) = LockedBytes::new(5).unwrap();
        let (one, two) = (bytes.push(&[1, 2]).unwrap(), bytes.push(&[3, 4, 5]).unwrap());
        assert_eq!((bytes.expose_bytes(&one), bytes.expose_bytes(&two)), (&[1, 2][..], &[3, 4, 5][..]));
        // A page is larger than what was asked for.
        assert!(bytes.push(&vec![0; 1 << 20]).is_err());
    }

    #[test]
    fn pages_are_locked_where_the_limit_allows() {
        let (_bytes, locked) = LockedBytes::new(4096).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        assert!(locked || limit.is_some_and(|l| l < 8 * 4096));
    }
}
