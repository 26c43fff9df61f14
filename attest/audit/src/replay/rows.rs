//! Every tile above the leaves' own, compared with what the ones below lead to. Nothing in history rests on them, but every
//! proof that is made from this mirror does.
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{Mirror, tile_path};
use quorate_core::crypto::Hash;
use quorate_core::tlog::{LEVEL_MAX, TILE_WIDTH, TileKind, TilePath, TreeSize, tree_root};

pub(super) struct Rows {
    mirror: Mirror,
    size: TreeSize,
    /// The open tile of each level from 1 on, and its number.
    rows: Vec<(u64, Vec<Hash>)>,
    compared: u64,
    findings: Vec<Finding>,
}

impl Rows {
    pub(super) fn new(mirror: Mirror, size: TreeSize) -> Self {
        Self { mirror, size, rows: Vec::new(), compared: 0, findings: Vec::new() }
    }

    /// Takes the next tile of level 0; its leaves were compared with it.
    pub(super) fn push(&mut self, hashes: Vec<Hash>) -> Result<(), Error> {
        self.compared += 1;
        let mut full = hashes;
        for level in 1..=LEVEL_MAX {
            if full.len() as u64 != TILE_WIDTH {
                return Ok(());
            }
            let root = tree_root(&full);
            let at = usize::from(level) - 1;
            if self.rows.len() <= at {
                self.rows.push((0, Vec::new()));
            }
            let Some((number, row)) = self.rows.get_mut(at) else { return Ok(()) };
            row.push(root);
            if (row.len() as u64) < TILE_WIDTH {
                return Ok(());
            }
            let done = *number;
            *number += 1;
            full = std::mem::take(row);
            self.compare(level, done, &full)?;
        }
        Ok(())
    }

    /// Compares what is left open, and gives all that was found.
    pub(super) fn finish(&mut self) -> Result<Vec<Finding>, Error> {
        for (level, (number, row)) in (1..).zip(std::mem::take(&mut self.rows)) {
            if !row.is_empty() {
                self.compare(level, number, &row)?;
            }
        }
        Ok(std::mem::take(&mut self.findings))
    }

    /// Tiles that were compared, those of level 0 included.
    pub(super) fn compared(&self) -> u64 {
        self.compared
    }

    fn compare(&mut self, level: u8, number: u64, row: &[Hash]) -> Result<(), Error> {
        let Some(path) = tile_path(TileKind::Hashes(level), number, self.size) else { return Ok(()) };
        self.compared += 1;
        match self.mirror.hashes(&path) {
            Ok(hashes) if hashes == row => {}
            Ok(hashes) => {
                let at = hashes.iter().zip(row).position(|(a, b)| a != b).unwrap_or_default() as u64;
                let below = number.saturating_mul(TILE_WIDTH).saturating_add(at);
                let below = TilePath::full(TileKind::Hashes(level - 1), below).unwrap_or(path);
                self.findings.push(Finding::at(Place::Tile(path), Fault::TileRoot(below)));
            }
            Err(Error::Found(finding)) => self.findings.push(*finding),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
