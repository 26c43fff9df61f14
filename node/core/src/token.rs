//! Short-lived client tokens: what a client that may issue hands to an agent or a job, made offline and bound to a key.
//!
//! A token says whose it is, which key it belongs to, and what may be done with it: some of the issuer's routes, so many
//! requests, bytes and micro-units in all, from a moment to a moment. The issuer's key signs it; its holder signs its own
//! commands with its own key, so that the issuer's key stays where it is. What it allows is never wider than what the issuer
//! itself may do at the time of use: that, and that it is charged to the issuer as well, is for
//! [`state`](crate::state) to decide.
//!
//! The issuer answers for its holders: for the custodian rule, the metering of faults, and who is revoked together, a holder
//! *is* its issuer. A holder whose machine another custodian runs is a promise that the issuer makes.
use crate::crypto::{Hash, PublicKey, Signature, sha256, sign, statement_bytes};
use crate::ids::{ClientId, RouteId, Timestamp, TokenId};
use aws_lc_rs::signature::Ed25519KeyPair;
use borsh::{BorshDeserialize, BorshSerialize};

const LABEL: &str = "quorate client token v1";
const DIGEST_LABEL: &str = "quorate signed client token v1";
/// Most routes of a token: a command that carries one stays small.
pub const TOKEN_ROUTES_MAX: usize = 64;

/// What an issuer signs.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Token {
    /// Random: two tokens of the same terms are two tokens.
    pub serial: [u8; 16],
    /// Whose grant it draws on.
    pub issuer: ClientId,
    /// A name for people; it decides nothing.
    pub subject: ClientId,
    /// Who may use it.
    pub key: PublicKey,
    /// Routes, at most [`TOKEN_ROUTES_MAX`].
    pub routes: Vec<RouteId>,
    /// What may be used in all.
    pub limits: TokenLimits,
    /// Not before this entry time.
    pub not_before: Timestamp,
    /// Nor from this one on.
    pub expires: Timestamp,
}

/// What may be used in all; `None` leaves it to the issuer's own limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TokenLimits {
    /// Requests.
    pub requests: Option<u64>,
    /// Bytes, both directions.
    pub bytes: Option<u64>,
    /// Micro-units.
    pub money: Option<u64>,
}

impl Token {
    fn statement(&self, cluster: Hash) -> Vec<u8> {
        statement_bytes(LABEL, &(cluster, self))
    }
    /// Its identity: a digest of what is signed, not of the signature, so that signing twice makes no second token.
    pub fn id(&self, cluster: Hash) -> TokenId {
        TokenId(sha256(&self.statement(cluster)).0)
    }
    /// Signs it with the issuer's key.
    pub fn sign(self, cluster: Hash, issuer: &Ed25519KeyPair) -> SignedToken {
        let signature = sign(issuer, &self.statement(cluster));
        SignedToken { token: self, signature }
    }
    /// How long it lives.
    pub fn lifetime_ms(&self) -> u64 {
        self.expires.since_ms(self.not_before)
    }
}

/// A token and its issuer's signature.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedToken {
    /// The token.
    pub token: Token,
    /// By the issuer's key.
    pub signature: Signature,
}

impl SignedToken {
    /// Digest of token and signature, under which a check of the signature is remembered.
    pub fn digest(&self) -> Hash {
        sha256(&statement_bytes(DIGEST_LABEL, self))
    }
    /// Whether the signature is `issuer`'s, for this cluster.
    pub fn is_by(&self, cluster: Hash, issuer: &PublicKey) -> bool {
        issuer.verify(&self.token.statement(cluster), &self.signature).is_ok()
    }
}
