//! Linux IMA's measurement list: replayed to the prefix that explains a quoted PCR 10, every file of which must be allowed.
//!
//! Implements the kernel's `Documentation/security/IMA-templates.rst`: templates `ima-ng` and `ima-sig`, in the binary form
//! (`binary_runtime_measurements`, SHA-1 or SHA-256 variant) or the ASCII one. The list grows while a node reads it, so it
//! may be longer than what was quoted: entries after the matching prefix are neither trusted nor judged, the next quote
//! covers them. What it refuses: other templates (a SHA-1 file digest proves nothing), entries for another PCR, violations
//! (a file changed while it was measured), files whose digest is not SHA-256 or not allowed, and a list no prefix of which
//! gives the quoted value. It assumes a kernel of 5.8 or later, which extends the SHA-256 bank with SHA-256 of the entry;
//! the recorded template digests are not used, because what counts is recomputed. Signatures in `ima-sig` are not verified.
use std::collections::BTreeSet;

use crate::eventlog::{extend, sha256};
use crate::read::{ReadError, Reader};

/// Largest list read. An entry has about 100 bytes, so this is a busy server's boot.
pub const IMA_BYTES_MAX: usize = 8 << 20;
/// Most entries in one list.
pub const IMA_ENTRIES_MAX: usize = 65_536;
/// The PCR that IMA extends.
pub const IMA_PCR: u8 = 10;
/// Longest template name, `ima-sig` being the longest read.
const NAME_BYTES_MAX: usize = 16;
/// Largest template data: a path of 4096 bytes and a signature.
const DATA_BYTES_MAX: usize = 16 << 10;

/// Why a list does not explain a quoted PCR 10.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImaError {
    /// More bytes or entries than are read, or a length inside beyond its bound.
    #[error("the IMA list, or a length in it, exceeds its bound")]
    TooLong,
    /// An entry is not one.
    #[error("entry {entry} of the IMA list is malformed")]
    Malformed {
        /// Which entry, from 0.
        entry: usize,
    },
    /// A template other than `ima-ng` and `ima-sig`.
    #[error("entry {entry} of the IMA list has a template that is not supported")]
    Template {
        /// Which entry.
        entry: usize,
    },
    /// An entry for a PCR other than 10.
    #[error("entry {entry} of the IMA list is for PCR {pcr}")]
    NotPcr10 {
        /// Which entry.
        entry: usize,
        /// The PCR it names.
        pcr: u32,
    },
    /// The kernel recorded that a file changed while it was measured.
    #[error("entry {entry} of the IMA list records a violation")]
    Violation {
        /// Which entry.
        entry: usize,
    },
    /// A file in the prefix whose digest is not in the allowed list.
    #[error("entry {entry} of the IMA list is a file that is not allowed")]
    FileNotAllowed {
        /// Which entry.
        entry: usize,
    },
    /// No nonempty prefix of the list gives the quoted value.
    #[error("no prefix of the IMA list gives the quoted PCR 10")]
    NoPrefixMatches,
}

/// How much of a list a quote covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImaPrefix {
    /// Entries in the prefix that gives the quoted value.
    pub entries: usize,
}

/// A file that a list says was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// SHA-256 of the file, as the kernel took it.
    pub file: [u8; 32],
    /// Its path at that moment, for people: whoever names files chooses it.
    pub path: String,
}

/// The files that a quote says were measured: those in the prefix of `list` that takes PCR 10 from `start` to `quoted`, good
/// or not. For who asks afterwards what ran; it admits nobody.
pub fn measured(list: &[u8], start: &[u8; 32], quoted: &[u8; 32]) -> Result<Vec<Measured>, ImaError> {
    if list.len() > IMA_BYTES_MAX {
        return Err(ImaError::TooLong);
    }
    let mut entries = Entries::new(list);
    let mut value = *start;
    let mut files = Vec::new();
    let mut number = 0;
    while let Some(entry) = entries.next(number)? {
        if number == IMA_ENTRIES_MAX {
            return Err(ImaError::TooLong);
        }
        value = extend(&value, if entry.violation { &[0xff; 32] } else { &entry.extended });
        files.extend(entry.file.map(|file| Measured { file, path: entry.path }));
        number += 1;
        if value == *quoted {
            return Ok(files);
        }
    }
    Err(ImaError::NoPrefixMatches)
}

struct Entry {
    violation: bool,
    /// SHA-256 of the template data: what the SHA-256 bank is extended with.
    extended: [u8; 32],
    /// The file's digest where it is SHA-256.
    file: Option<[u8; 32]>,
    boot_aggregate: bool,
    path: String,
}

/// Finds the prefix of `list` that takes PCR 10 from `start` to `quoted`, and checks each file in it. `boot_aggregate` is
/// SHA-256 over PCR 0 to 9 where all are known: that is what IMA's first entry holds, beside which it must be allowed.
pub fn appraise(
    list: &[u8],
    start: &[u8; 32],
    quoted: &[u8; 32],
    allowed: &BTreeSet<[u8; 32]>,
    boot_aggregate: Option<&[u8; 32]>,
) -> Result<ImaPrefix, ImaError> {
    if list.len() > IMA_BYTES_MAX {
        return Err(ImaError::TooLong);
    }
    let mut entries = Entries::new(list);
    let mut value = *start;
    // The first fault of the prefix; it only counts if the prefix matches, or nothing about the list is known.
    let mut fault = None;
    let mut number = 0;
    while let Some(entry) = entries.next(number)? {
        if number == IMA_ENTRIES_MAX {
            return Err(ImaError::TooLong);
        }
        // security/integrity/ima/ima_queue.c: a violation is extended as ones
        value = extend(&value, if entry.violation { &[0xff; 32] } else { &entry.extended });
        let aggregate = number == 0 && entry.boot_aggregate && boot_aggregate.is_some();
        let is_allowed = entry.file.is_some_and(|file| {
            allowed.contains(&file) || aggregate && boot_aggregate.is_some_and(|known| *known == file)
        });
        if fault.is_none() && entry.violation {
            fault = Some(ImaError::Violation { entry: number });
        } else if fault.is_none() && !is_allowed {
            fault = Some(ImaError::FileNotAllowed { entry: number });
        }
        number += 1;
        if value == *quoted {
            return fault.map_or(Ok(ImaPrefix { entries: number }), Err);
        }
    }
    Err(ImaError::NoPrefixMatches)
}

/// The two forms of a list.
enum Entries<'a> {
    Binary { rest: Reader<'a>, digest_bytes: usize },
    Ascii { lines: std::slice::Split<'a, u8, fn(&u8) -> bool> },
}

impl<'a> Entries<'a> {
    fn new(list: &'a [u8]) -> Self {
        // In the binary form the first byte is 10, the low byte of the PCR; in the other one it is the digit 1.
        if list.first() == Some(&b'1') {
            let newline: fn(&u8) -> bool = |b| *b == b'\n';
            return Self::Ascii { lines: list.split(newline) };
        }
        // The kernel offers the list with SHA-1 template digests, and since 6.x one for each bank: the template's name,
        // after the digest, tells them apart.
        let is_long = |skip: usize| list.get(skip + 4..).is_some_and(|name| name.starts_with(b"ima-"));
        let digest_bytes = if is_long(4 + 32) && !is_long(4 + 20) { 32 } else { 20 };
        Self::Binary { rest: Reader::new(list), digest_bytes }
    }

    fn next(&mut self, number: usize) -> Result<Option<Entry>, ImaError> {
        match self {
            Self::Binary { rest, digest_bytes } => {
                if rest.is_empty() {
                    return Ok(None);
                }
                binary(rest, *digest_bytes, number).map(Some)
            }
            Self::Ascii { lines } => match lines.next() {
                None => Ok(None),
                // what follows the last newline
                Some([]) if lines.clone().next().is_none() => Ok(None),
                Some(line) => ascii(line, number).map(Some),
            },
        }
    }
}

fn binary(r: &mut Reader<'_>, digest_bytes: usize, entry: usize) -> Result<Entry, ImaError> {
    let cut = |e: ReadError| match e {
        ReadError::Short => ImaError::Malformed { entry },
        ReadError::TooLong => ImaError::TooLong,
    };
    let pcr = r.u32_le().map_err(cut)?;
    if pcr != u32::from(IMA_PCR) {
        return Err(ImaError::NotPcr10 { entry, pcr });
    }
    let violation = r.take(digest_bytes).map_err(cut)?.iter().all(|b| *b == 0);
    let name = r.sized_le(NAME_BYTES_MAX).map_err(cut)?;
    let is_sig = match name {
        b"ima-ng" => false,
        b"ima-sig" => true,
        _ => return Err(ImaError::Template { entry }),
    };
    let data = r.sized_le(DATA_BYTES_MAX).map_err(cut)?;
    let mut fields = Reader::new(data);
    let digest = fields.sized_le(DATA_BYTES_MAX).map_err(cut)?;
    let path = fields.sized_le(DATA_BYTES_MAX).map_err(cut)?;
    if is_sig {
        fields.sized_le(DATA_BYTES_MAX).map_err(cut)?;
    }
    let path = path.strip_suffix(&[0]).filter(|_| fields.is_empty()).ok_or(ImaError::Malformed { entry })?;
    let file = digest.strip_prefix(b"sha256:\0").and_then(|d| <[u8; 32]>::try_from(d).ok());
    Ok(Entry {
        violation,
        extended: sha256(data),
        file,
        boot_aggregate: path == b"boot_aggregate",
        path: String::from_utf8_lossy(path).into_owned(),
    })
}

/// `10 <template digest> ima-ng <algorithm>:<digest> <path>`, and for `ima-sig` one more field, perhaps empty. The kernel
/// writes spaces in paths as underscores, so a path that has one is not recoverable from this form and will not match.
fn ascii(line: &[u8], entry: usize) -> Result<Entry, ImaError> {
    let malformed = ImaError::Malformed { entry };
    if line.len() > 2 * DATA_BYTES_MAX {
        return Err(ImaError::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| malformed.clone())?;
    let mut fields = line.split(' ');
    let mut field = || fields.next().ok_or(malformed.clone());
    let pcr: u32 = field()?.parse().map_err(|_| malformed.clone())?;
    if pcr != u32::from(IMA_PCR) {
        return Err(ImaError::NotPcr10 { entry, pcr });
    }
    let recorded = hex::decode(field()?).map_err(|_| malformed.clone())?;
    let is_sig = match field()? {
        "ima-ng" => false,
        "ima-sig" => true,
        _ => return Err(ImaError::Template { entry }),
    };
    let (algorithm, digest) = field()?.split_once(':').ok_or(malformed.clone())?;
    let digest = hex::decode(digest).map_err(|_| malformed.clone())?;
    let path = field()?;
    let signature = if is_sig { field().unwrap_or_default() } else { "" };
    let signature = hex::decode(signature).map_err(|_| malformed.clone())?;
    if fields.next().is_some() || !matches!(recorded.len(), 20 | 32) {
        return Err(malformed);
    }
    // What the kernel hashed: each field with its length before it.
    let mut data = Vec::new();
    let mut put = |parts: &[&[u8]]| {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        data.extend(u32::try_from(len).unwrap_or_default().to_le_bytes());
        parts.iter().for_each(|p| data.extend_from_slice(p));
    };
    put(&[algorithm.as_bytes(), b":\0", &digest]);
    put(&[path.as_bytes(), &[0]]);
    if is_sig {
        put(&[&signature]);
    }
    let file = <[u8; 32]>::try_from(digest.as_slice()).ok().filter(|_| algorithm == "sha256");
    Ok(Entry {
        violation: recorded.iter().all(|b| *b == 0),
        extended: sha256(&data),
        file,
        boot_aggregate: path == "boot_aggregate",
        path: path.to_owned(),
    })
}
