//! C2SP tlog-checkpoint: what a log says of itself at one size, as the text of a note.
//!
//! A [`Checkpoint`] is three lines: origin, size, root. Ours never has extension lines, so [`Checkpoint::parse`] refuses
//! them: two texts for one tree would be two things to sign. Who reads other people's logs uses
//! [`Checkpoint::parse_with_extensions`].

use std::{fmt, io};

use base64::{Engine, engine::general_purpose::STANDARD};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::hash::{Hash, TreeSize};

/// Origins are URLs without a scheme; the ML-DSA cosignature leaves a byte for their length.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// Three short lines; more would be extension lines.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;

/// Which log: the first line of its checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

/// A log at one size.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Checkpoint {
    /// which log
    pub origin: Origin,
    /// how many leaves
    pub size: TreeSize,
    /// the RFC 6962 root over them
    pub root: Hash,
}

/// Why a text is not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// longer than [`CHECKPOINT_BYTES_MAX`]
    #[error("a checkpoint of {0} bytes exceeds {CHECKPOINT_BYTES_MAX}")]
    TooLong(usize),
    /// not three newline-terminated lines, none of them empty
    #[error("a checkpoint has three lines, none of them empty")]
    Lines,
    /// empty, too long, or with a control character
    #[error("not an origin")]
    Origin,
    /// not a decimal number without leading zeroes
    #[error("not a tree size")]
    Size,
    /// not 32 bytes in base64
    #[error("not a root hash")]
    Root,
    /// extension lines, where none are expected
    #[error("the checkpoint has extension lines")]
    ExtensionLines,
}

impl Origin {
    /// Checks an origin: not empty, no control character, at most [`ORIGIN_BYTES_MAX`] bytes.
    pub fn new(origin: impl Into<String>) -> Result<Self, CheckpointError> {
        let origin = origin.into();
        if origin.is_empty() || origin.len() > ORIGIN_BYTES_MAX || origin.chars().any(char::is_control) {
            return Err(CheckpointError::Origin);
        }
        Ok(Self(origin))
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Origin {
    type Error = CheckpointError;
    fn try_from(origin: String) -> Result<Self, CheckpointError> {
        Self::new(origin)
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0
    }
}

impl BorshDeserialize for Origin {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        Self::new(String::deserialize_reader(reader)?)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl Checkpoint {
    /// The text that is signed.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.0))
    }

    /// Parses a text without extension lines: then [`Checkpoint::body`] gives the same bytes back.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let (checkpoint, extensions) = Self::parse_with_extensions(text)?;
        if extensions.is_empty() { Ok(checkpoint) } else { Err(CheckpointError::ExtensionLines) }
    }

    /// Parses a text that may have extension lines, which nobody audits and [`Checkpoint::body`] leaves out.
    pub fn parse_with_extensions(text: &str) -> Result<(Self, Vec<&str>), CheckpointError> {
        if text.len() > CHECKPOINT_BYTES_MAX {
            return Err(CheckpointError::TooLong(text.len()));
        }
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Lines)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty()).ok_or(CheckpointError::Lines);
        let (origin, size, root) = (line()?, line()?, line()?);
        let extensions: Vec<_> = lines.collect();
        if extensions.contains(&"") {
            return Err(CheckpointError::Lines);
        }
        let origin = Origin::new(origin)?;
        let size_read: u64 = size.parse().map_err(|_| CheckpointError::Size)?;
        if size_read.to_string() != size {
            return Err(CheckpointError::Size);
        }
        let root = STANDARD.decode(root).ok().and_then(|bytes| Hash::try_from(bytes.as_slice()).ok());
        Ok((Self { origin, size: TreeSize(size_read), root: root.ok_or(CheckpointError::Root)? }, extensions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of C2SP tlog-checkpoint.md.
    const BODY: &str =
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn the_specifications_example() {
        let checkpoint = Checkpoint::parse(BODY).unwrap();
        assert_eq!(checkpoint.size, TreeSize(20_852_163));
        assert_eq!(checkpoint.origin.as_str(), "example.com/behind-the-sofa");
        assert_eq!(checkpoint.body(), BODY);
        assert_eq!(
            borsh::from_slice::<Checkpoint>(&borsh::to_vec(&checkpoint).unwrap()).unwrap(),
            checkpoint
        );
    }

    #[test]
    fn refuses_each_departure() {
        let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for (text, error) in [
            (String::new(), CheckpointError::Lines),
            (format!("o\n1\n{root}"), CheckpointError::Lines),
            ("o\n1\n".to_owned(), CheckpointError::Lines),
            (format!("\n1\n{root}\n"), CheckpointError::Lines),
            (format!("o\n1\n{root}\n\n"), CheckpointError::Lines),
            (format!("o\u{7f}\n1\n{root}\n"), CheckpointError::Origin),
            (format!("{}\n1\n{root}\n", "o".repeat(256)), CheckpointError::Origin),
            (format!("o\n01\n{root}\n"), CheckpointError::Size),
            (format!("o\n+1\n{root}\n"), CheckpointError::Size),
            (format!("o\n18446744073709551616\n{root}\n"), CheckpointError::Size),
            (format!("o\n1\n{root} \n"), CheckpointError::Root),
            // the same 32 bytes in base64 that is not canonical
            (format!("o\n1\n{}\n", root.replace("I=", "J=")), CheckpointError::Root),
            ("o\n1\nAAAA\n".to_owned(), CheckpointError::Root),
            (format!("o\n1\n{root}\nmore\n"), CheckpointError::ExtensionLines),
            ("o".repeat(CHECKPOINT_BYTES_MAX + 1), CheckpointError::TooLong(CHECKPOINT_BYTES_MAX + 1)),
        ] {
            assert_eq!(Checkpoint::parse(&text), Err(error), "{text:?}");
        }
        let text = format!("o\n0\n{root}\nmore\n");
        let (checkpoint, extensions) = Checkpoint::parse_with_extensions(&text).unwrap();
        assert_eq!((checkpoint.size, extensions), (TreeSize::ZERO, vec!["more"]));
        assert_eq!(Origin::new("two\nlines"), Err(CheckpointError::Origin));
        let bytes = borsh::to_vec("two\nlines").unwrap();
        assert!(borsh::from_slice::<Origin>(&bytes).is_err());
    }
}
