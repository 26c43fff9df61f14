//! Identifiers as types: a size is not an index, a client is not a node.
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name of a client, route, custodian or model, in bytes: fits a log line and bounds every leaf.
pub const NAME_BYTES_MAX: usize = 64;

/// A member of the mesh, as the policy numbers it (1 or more).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.0)
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later by `ms`, saturating.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
    /// Milliseconds since `earlier`, zero when it is not earlier.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A policy version; versions only rise. Genesis is 1.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct PolicyVersion(pub u64);

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a name was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 64 characters of a-z, A-Z, 0-9, '.', '_', '-', '/', ':' and is not {0:?}")]
pub struct BadName(String);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks length and alphabet.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
                if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b)) {
                    Ok(Self(name))
                } else {
                    Err(BadName(name.chars().take(NAME_BYTES_MAX).collect()))
                }
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl BorshDeserialize for $name {
            fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
                let name = String::deserialize_reader(reader)?;
                Self::new(name).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(<String as Deserialize>::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A client as the policy names it.
    ClientId
);
name!(
    /// A route as the policy names it.
    RouteId
);
name!(
    /// Who has root on a machine.
    Custodian
);
name!(
    /// A model's name as an application asks for it.
    ModelId
);
name!(
    /// Clients that share limits.
    TeamId
);
name!(
    /// A row of the price table.
    PriceId
);

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl std::str::FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut id = [0; $bytes];
                hex::decode_to_slice(s, &mut id)?;
                Ok(Self(id))
            }
        }
    };
}

byte_id!(
    /// 16 random bytes chosen by the client: one authorised request.
    RequestId,
    16
);
byte_id!(
    /// 16 random bytes chosen by the client: one TLS connection through a relay.
    ConnectionId,
    16
);
byte_id!(
    /// 16 random bytes chosen by the client: an authorised set of connections.
    PoolId,
    16
);
byte_id!(
    /// SHA-256 of what an issuer signed: one short-lived client token. Unpredictable, for a token holds random bytes.
    TokenId,
    32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_plain() {
        for bad in ["", " a", "a\n", "ä", &"x".repeat(65)] {
            assert!(ClientId::new(bad).is_err(), "{bad:?}");
        }
        assert!(ClientId::new("team-a/app_1.prod:eu").is_ok());
    }

    #[test]
    fn a_bad_name_does_not_decode() {
        let bytes = borsh::to_vec("no spaces").unwrap();
        assert!(borsh::from_slice::<RouteId>(&bytes).is_err());
    }
}
