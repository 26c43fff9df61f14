//! C2SP tlog-witness, add-checkpoint: the body of the request, read and written. Decides form only.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_core::tlog::note::NOTE_BYTES_MAX;
use quorate_core::tlog::{
    Checkpoint, CheckpointError, ConsistencyProof, Hash, Note, NoteError, ProofError, TreeSize,
};

/// "The client MUST NOT send more than 63 consistency proof lines."
pub const PROOF_LINES_MAX: usize = 63;
/// 32 bytes in base64, and a newline.
const PROOF_LINE_BYTES: usize = 45;
/// `old `, twenty digits, a newline, and the empty line.
const OTHER_LINES_BYTES: usize = 26;
/// Longest body: what a note and a proof can be.
pub const REQUEST_BYTES_MAX: usize = OTHER_LINES_BYTES + PROOF_LINES_MAX * PROOF_LINE_BYTES + NOTE_BYTES_MAX;

/// A request as sent; nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size of the checkpoint that the proof begins at.
    pub old: TreeSize,
    /// From there to the checkpoint.
    pub proof: ConsistencyProof,
    /// The checkpoint, signed.
    pub note: Note,
    /// What its text says.
    pub checkpoint: Checkpoint,
}

/// Why a body is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Beyond [`REQUEST_BYTES_MAX`], or it broke off.
    #[error("the body is longer than {REQUEST_BYTES_MAX} bytes or did not arrive whole")]
    Body,
    /// Lines that are no text.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The first line.
    #[error("the first line is not `old SIZE`")]
    OldSize,
    /// A proof line.
    #[error("line {0} is no hash of 32 bytes in base64")]
    ProofLine(usize),
    /// Too many of them.
    #[error("there are more than {PROOF_LINES_MAX} proof lines")]
    TooManyProofLines,
    /// No end of the proof.
    #[error("no empty line ends the proof")]
    NoEmptyLine,
    /// The note.
    #[error("the checkpoint is no signed note: {0}")]
    Note(NoteError),
    /// Its text.
    #[error("the note's text is no checkpoint: {0}")]
    Checkpoint(CheckpointError),
    /// "The old size MUST be equal to or lower than the checkpoint size."
    #[error("the old size {old} is above the checkpoint's size {size}")]
    OldAboveNew {
        /// Old.
        old: TreeSize,
        /// New.
        size: TreeSize,
    },
}

impl AddCheckpoint {
    /// Reads a request's body.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        if body.len() > REQUEST_BYTES_MAX {
            return Err(Malformed::Body);
        }
        let mut rest = std::str::from_utf8(body).map_err(|_| Malformed::NotUtf8)?;
        let mut line = || {
            let (line, after) = rest.split_once('\n')?;
            rest = after;
            Some(line)
        };
        let old = line().and_then(|l| size(l.strip_prefix("old ")?)).ok_or(Malformed::OldSize)?;
        let mut hashes = Vec::new();
        loop {
            match line().ok_or(Malformed::NoEmptyLine)? {
                "" => break,
                _ if hashes.len() == PROOF_LINES_MAX => return Err(Malformed::TooManyProofLines),
                text => hashes.push(hash(text).ok_or(Malformed::ProofLine(hashes.len() + 2))?),
            }
        }
        let proof =
            ConsistencyProof::try_from(hashes).map_err(|_: ProofError| Malformed::TooManyProofLines)?;
        let note = Note::parse(rest.as_bytes()).map_err(Malformed::Note)?;
        // Extension lines are other logs' business: they are cosigned with the rest.
        let (checkpoint, _) =
            Checkpoint::parse_with_extensions(note.text()).map_err(Malformed::Checkpoint)?;
        Ok(Self { old, proof, note, checkpoint })
    }

    /// The body to send.
    pub fn body(old: TreeSize, proof: &ConsistencyProof, note: &Note) -> String {
        let lines: String = proof.hashes().iter().map(|h| STANDARD.encode(h.0) + "\n").collect();
        format!("old {old}\n{lines}\n{note}")
    }
}

/// ASCII decimal without leading zeroes.
pub fn size(text: &str) -> Option<TreeSize> {
    let size: u64 = text.parse().ok()?;
    (size.to_string() == text).then_some(TreeSize(size))
}

fn hash(text: &str) -> Option<Hash> {
    Hash::try_from(STANDARD.decode(text).ok()?.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of C2SP tlog-witness.md, one of its two signature lines.
    const EXAMPLE: &str = "old 20852014\n\
        PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n\
        jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n\
        5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n\
        /6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\
        \n\
        example.com/behind-the-sofa\n\
        20852163\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\
        \n\
        \u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

    #[test]
    fn the_specifications_example() {
        let request = AddCheckpoint::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!((request.old, request.checkpoint.size), (TreeSize(20_852_014), TreeSize(20_852_163)));
        assert_eq!(request.proof.hashes().len(), 4);
        assert_eq!(request.note.signatures().len(), 1);
        assert_eq!(AddCheckpoint::body(request.old, &request.proof, &request.note), EXAMPLE);
    }

    #[test]
    fn each_departure_has_its_refusal() {
        let first = EXAMPLE.lines().nth(1).unwrap();
        let many = format!("{first}\n").repeat(64);
        for (body, refusal) in [
            (EXAMPLE.replace("old 20852014", "old 020852014"), Malformed::OldSize),
            (EXAMPLE.replace("old 20852014", "old  20852014"), Malformed::OldSize),
            (EXAMPLE.replace("old 20852014", "old -1"), Malformed::OldSize),
            (EXAMPLE.replace("old 20852014", "new 20852014"), Malformed::OldSize),
            (String::new(), Malformed::OldSize),
            (EXAMPLE.replace("PlRNCrw", "PlRNCr"), Malformed::ProofLine(2)),
            (EXAMPLE.replace("3Kj/0=", "3Kj/1="), Malformed::ProofLine(5)),
            (EXAMPLE.replace("old 20852014\n", &format!("old 1\n{many}")), Malformed::TooManyProofLines),
            ("old 1\n".into(), Malformed::NoEmptyLine),
            ("old 1\n\n".into(), Malformed::Note(NoteError::NoBlankLine)),
            (EXAMPLE.replace("\n20852163\n", "\n+1\n"), Malformed::Checkpoint(CheckpointError::Size)),
            (EXAMPLE.replace('\n', "\r\n"), Malformed::OldSize),
        ] {
            assert_eq!(AddCheckpoint::parse(body.as_bytes()), Err(refusal), "{body:?}");
        }
        assert_eq!(AddCheckpoint::parse(b"old 1\n\xff\n"), Err(Malformed::NotUtf8));
        assert_eq!(AddCheckpoint::parse(&vec![b'a'; REQUEST_BYTES_MAX + 1]), Err(Malformed::Body));
    }
}
