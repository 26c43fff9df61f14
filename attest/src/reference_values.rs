//! Reference Values (RFC 9334 §8.3): what admins signed as good. Written in TOML as hex:
//!
//! ```toml
//! firmware_versions = ["2024012500120000"]   # optional: TPM firmware, 16 hex digits
//! ima = ["9f86…"]                            # optional: SHA-256 of every file that may be measured into PCR 10
//! [pcrs]
//! 4 = ["3d45…", "6520…"]                     # any of these
//! ```
//!
//! Text is turned into bytes here and refused if it is not hex of the right length. That a value is there at all for
//! each PCR of the policy is [`crate::appraisal`]'s to demand: a missing expectation is a refusal there.
use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::eventlog::PCRS;

/// Values that a healthy machine shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct ReferenceValues {
    /// The values each PCR may have in the SHA-256 bank.
    pub pcrs: BTreeMap<u8, Vec<[u8; 32]>>,
    /// SHA-256 of each file that may stand in the IMA list; `None` where IMA is not used.
    pub ima: Option<BTreeSet<[u8; 32]>>,
    /// TPM firmware versions that are good; `None` leaves the version unchecked, and the result says so.
    pub firmware_versions: Option<BTreeSet<u64>>,
}

/// A reference value that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceValueError {
    /// The key of a PCR list is not the index of one.
    #[error("`{index}` is not a PCR index from 0 to 23")]
    NotAPcr {
        /// What stands there.
        index: String,
    },
    /// A digest is not 64 hex digits.
    #[error("`{text}` is not a SHA-256 digest in hex")]
    NotADigest {
        /// What stands there.
        text: String,
    },
    /// A firmware version is not 16 hex digits.
    #[error("`{text}` is not a TPM firmware version of 16 hex digits")]
    NotAVersion {
        /// What stands there.
        text: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    firmware_versions: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ima: Option<Vec<String>>,
    pcrs: BTreeMap<String, Vec<String>>,
}

fn digest(text: &str) -> Result<[u8; 32], ReferenceValueError> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out)
        .map_err(|_| ReferenceValueError::NotADigest { text: text.to_owned() })?;
    Ok(out)
}

fn version(text: &str) -> Result<u64, ReferenceValueError> {
    let mut out = [0; 8];
    hex::decode_to_slice(text, &mut out)
        .map_err(|_| ReferenceValueError::NotAVersion { text: text.to_owned() })?;
    Ok(u64::from_be_bytes(out))
}

impl TryFrom<Text> for ReferenceValues {
    type Error = ReferenceValueError;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        let mut pcrs = BTreeMap::new();
        for (index, values) in text.pcrs {
            // "4" and "04" would be one PCR with two lists, of which one would silently win
            let pcr = index.parse().ok().filter(|pcr: &u8| *pcr < PCRS && pcr.to_string() == index);
            let pcr = pcr.ok_or(ReferenceValueError::NotAPcr { index })?;
            pcrs.insert(pcr, values.iter().map(|v| digest(v)).collect::<Result<_, _>>()?);
        }
        let ima =
            text.ima.map(|list| list.iter().map(|v| digest(v)).collect::<Result<_, _>>()).transpose()?;
        let versions = text.firmware_versions;
        let firmware_versions =
            versions.map(|list| list.iter().map(|v| version(v)).collect::<Result<_, _>>()).transpose()?;
        Ok(Self { pcrs, ima, firmware_versions })
    }
}

impl From<ReferenceValues> for Text {
    fn from(rv: ReferenceValues) -> Self {
        Self {
            firmware_versions: rv.firmware_versions.map(|l| l.iter().map(|v| format!("{v:016x}")).collect()),
            ima: rv.ima.map(|l| l.iter().map(hex::encode).collect()),
            pcrs: rv
                .pcrs
                .iter()
                .map(|(pcr, values)| (pcr.to_string(), values.iter().map(hex::encode).collect()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_round_trip() {
        let rv = ReferenceValues {
            pcrs: BTreeMap::from([(4, vec![[1; 32], [2; 32]]), (11, vec![[3; 32]])]),
            ima: Some(BTreeSet::from([[4; 32]])),
            firmware_versions: Some(BTreeSet::from([0x2024_0125_0012_0000])),
        };
        let text = toml::to_string(&rv).unwrap();
        assert!(text.contains("2024012500120000"), "{text}");
        assert_eq!(toml::from_str::<ReferenceValues>(&text).unwrap(), rv);
    }

    #[test]
    fn refuses_what_is_no_reference_value() {
        for (text, expected) in [
            ("[pcrs]\n24 = []", "not a PCR index"),
            ("[pcrs]\n04 = []", "not a PCR index"),
            ("[pcrs]\n4 = [\"00\"]", "not a SHA-256 digest"),
            ("ima = [\"zz\"]\n[pcrs]", "not a SHA-256 digest"),
            ("firmware_versions = [\"1\"]\n[pcrs]", "not a TPM firmware version"),
            ("other = 1\n[pcrs]", "unknown field"),
        ] {
            let error = toml::from_str::<ReferenceValues>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
