//! Shares of a provider key, sealed to the node that may hold them: HPKE (RFC 9180, base mode) with X-Wing
//! (draft-connolly-cfrg-xwing-kem, KEM 0x647a), HKDF-SHA256 and ChaCha20-Poly1305, by the `hpke` crate.
//!
//! For each node there is ONE ciphertext with all its shares of a route: its own mask A_k, and of every *other* keyer j the
//! complement B_j = K XOR A_j. Never B_k: with A_k it would be K. How K is split is `quorate_splitkey::share`'s; here bytes
//! are only carried.
//!
//! `info` binds what the shares are for ([`ShareBinding`]) and whose they are, so a sealed share moved to another cluster,
//! route, destination, scheme, epoch, node or set of members does not open: [`OpenError::NotForThis`], and HPKE cannot say
//! which it was. What was sealed by an admin's machine that made a mistake does open, and is refused by what it holds: other
//! lengths, complements of other nodes, a complement of the node's own.
//!
//! What one node cannot see: whether others got shares of the same splitting, and whether they XOR to the key at all. All
//! shares of one splitting carry its random [`SplitId`], by which relay and keyer can compare; a wrong one shows in
//! `quorate admin credential check`. Randomness is an argument, and whoever seals must draw it anew each time.
use crate::crypto::statement_bytes;
use crate::ids::{NodeId, RouteId};
use crate::policy::{CredentialScheme, MEMBERS_MAX, Policy, SECRET_BYTES_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use borsh::{BorshDeserialize, BorshSerialize};
use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use zeroize::Zeroizing;

const LABEL: &str = "quorate sealed shares v1";

/// Length of a share public key, as X-Wing encodes it.
pub const SHARE_PUBLIC_KEY_BYTES: usize = 1216;
/// Length of a share private key: X-Wing's seed.
pub const SHARE_SEED_BYTES: usize = 32;
/// What a seal draws: 64 bytes for the encapsulation.
pub const SEAL_ENTROPY_BYTES: usize = 64;
const ENC_BYTES: usize = 1120;
const TAG_BYTES: usize = 16;
/// Most bytes inside: split id, and one share of the longest secret per member, with its node id and length.
const PLAIN_BYTES_MAX: usize = 16 + 4 + MEMBERS_MAX * (SECRET_BYTES_MAX as usize + 12);
/// Most bytes of one node's sealed shares.
pub const SEALED_BYTES_MAX: usize = ENC_BYTES + PLAIN_BYTES_MAX + TAG_BYTES;

type SecretKey = <XWing as Kem>::PrivateKey;
type PublicKey = <XWing as Kem>::PublicKey;
type EncappedKey = <XWing as Kem>::EncappedKey;

/// Bytes that are no share key or no sealed shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadShareBytes {
    /// Another length.
    #[error("{0} bytes is not the length of this")]
    Length(usize),
    /// Not an X-Wing public key (FIPS 203 §7.2 modulus check).
    #[error("not an X-Wing public key")]
    PublicKey,
}

/// What shares are sealed to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize)]
pub struct SharePublicKey(Box<[u8; SHARE_PUBLIC_KEY_BYTES]>);

impl SharePublicKey {
    /// Checks length and encoding.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadShareBytes> {
        let array = <[u8; SHARE_PUBLIC_KEY_BYTES]>::try_from(bytes);
        let array = array.map_err(|_| BadShareBytes::Length(bytes.len()))?;
        PublicKey::from_bytes(bytes).map_err(|_| BadShareBytes::PublicKey)?;
        Ok(Self(Box::new(array)))
    }
    /// As enrolment prints and the policy holds it, before base64.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0[..]
    }
    /// As the policy writes it.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }
}

impl fmt::Debug for SharePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharePublicKey({}…)", hex::encode(self.0.get(..8).unwrap_or_default()))
    }
}

/// A node's private share key: the X-Wing seed that its TPM seals.
pub struct SharePrivateKey(Zeroizing<[u8; SHARE_SEED_BYTES]>);

impl SharePrivateKey {
    /// From a seed: 32 random bytes at enrolment, later what the TPM unsealed.
    pub fn from_seed(seed: Zeroizing<[u8; SHARE_SEED_BYTES]>) -> Self {
        Self(seed)
    }
    /// The seed, for sealing it to the TPM.
    pub fn expose_seed(&self) -> &[u8; SHARE_SEED_BYTES] {
        &self.0
    }
    /// Its public half.
    pub fn public(&self) -> SharePublicKey {
        let mut bytes = Box::new([0; SHARE_PUBLIC_KEY_BYTES]);
        XWing::sk_to_pk(&self.key()).write_exact(&mut bytes[..]);
        SharePublicKey(bytes)
    }
    fn key(&self) -> SecretKey {
        // The seed is the private key, and has one length.
        let Ok(key) = SecretKey::from_bytes(&self.0[..]) else { unreachable!("a seed of 32 bytes is a key") };
        key
    }
}

/// One share: as long as the secret, and alone independent of it.
pub struct Share(Zeroizing<Vec<u8>>);

impl Share {
    /// Takes the bytes over; they are erased with this value.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
    /// The bytes.
    pub fn expose_bytes(&self) -> &[u8] {
        &self.0
    }
    /// The bytes, given away.
    pub fn into_exposed_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
    /// Length of the secret it is a share of.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// 16 random bytes that name one splitting; equal in all its shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct SplitId(pub [u8; 16]);

/// All shares of one route's secret that one node holds.
pub struct NodeShares {
    /// Which splitting they are of.
    pub split: SplitId,
    /// Its own mask, share A, for when it is keyer.
    pub mask: Share,
    /// Share B of every other member, by keyer, for when it is relay.
    pub complements: BTreeMap<NodeId, Share>,
}

/// What shares are for. All of it is in the policy, so every node knows it alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareBinding {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the route.
    pub route: RouteId,
    /// Where the key may go.
    pub host: String,
    /// Likewise.
    pub port: u16,
    /// In which header.
    pub scheme: CredentialScheme,
    /// What stands before the secret there.
    pub public_prefix: String,
    /// Length of the secret.
    pub secret_bytes: u16,
    /// Which splitting.
    pub share_epoch: u32,
    /// Who holds shares.
    pub members: BTreeSet<NodeId>,
}

impl ShareBinding {
    /// Of a route in a policy; `None` when it has no credential.
    pub fn of(policy: &Policy, route: &RouteId) -> Option<Self> {
        let route = policy.routes.get(route)?;
        let credential = route.credential.as_ref()?;
        Some(Self {
            cluster: policy.cluster.clone(),
            route: route.id.clone(),
            host: route.document.host.clone(),
            port: route.document.port,
            scheme: credential.scheme,
            public_prefix: credential.public_prefix.clone(),
            secret_bytes: credential.secret_bytes,
            share_epoch: credential.share_epoch,
            members: policy.members.keys().copied().collect(),
        })
    }

    fn info(&self, node: NodeId) -> Vec<u8> {
        let Self { cluster, route, host, port, scheme, public_prefix, secret_bytes, share_epoch, members } =
            self;
        let what = (cluster, route, host, port, scheme, public_prefix);
        statement_bytes(LABEL, &(what, secret_bytes, share_epoch, members, node))
    }

    /// That shares are what a node of this binding must have.
    fn fits(&self, node: NodeId, shares: &NodeShares) -> Result<(), UnfitShares> {
        if !self.members.contains(&node) {
            return Err(UnfitShares::NotAMember(node));
        }
        let others = self.members.iter().filter(|n| **n != node);
        if !shares.complements.keys().eq(others) {
            return Err(UnfitShares::Complements);
        }
        let wanted = usize::from(self.secret_bytes);
        let mut lengths = std::iter::once(&shares.mask).chain(shares.complements.values()).map(Share::len);
        match lengths.find(|len| *len != wanted) {
            Some(got) => Err(UnfitShares::Length { wanted, got }),
            None => Ok(()),
        }
    }
}

/// Shares that are not what the binding says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitShares {
    /// The node is not among the members.
    #[error("{0} is not a member")]
    NotAMember(NodeId),
    /// Not exactly the other members' complements; with its own it would hold the key.
    #[error("the complements are not exactly those of the other members")]
    Complements,
    /// A share of another length than the secret.
    #[error("a share has {got} bytes, the secret {wanted}")]
    Length {
        /// The secret's length by policy.
        wanted: usize,
        /// The share's.
        got: usize,
    },
}

/// Why shares were not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// They are not what the binding says.
    #[error(transparent)]
    Unfit(#[from] UnfitShares),
    /// Longer than any policy allows.
    #[error("longer than any policy allows")]
    TooLong,
    /// HPKE refused.
    #[error("HPKE refused to seal")]
    Hpke,
}

/// Why sealed shares were not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not sealed for this key, node, cluster, route, destination, scheme, prefix, length, epoch and set of members: HPKE
    /// cannot say which of them differs.
    #[error("not sealed for this node's key and this route's credential as the policy has it")]
    NotForThis,
    /// Sealed for this, but not our encoding.
    #[error("what is sealed does not decode")]
    Undecodable,
    /// Sealed for this, but not what the binding says.
    #[error(transparent)]
    Unfit(#[from] UnfitShares),
}

/// HPKE `enc` and ciphertext of one node's shares.
#[derive(Clone, PartialEq, Eq, BorshSerialize)]
pub struct SealedShares(Vec<u8>);

impl SealedShares {
    /// Checks the length; the rest shows when it is opened.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BadShareBytes> {
        if (ENC_BYTES + TAG_BYTES..=SEALED_BYTES_MAX).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(BadShareBytes::Length(bytes.len()))
        }
    }
    /// As it stands in the policy, before base64.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SealedShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedShares({} bytes)", self.0.len())
    }
}

/// Seals one node's shares to it. `entropy` is fresh from a cryptographic generator for this very call: two seals with one
/// entropy to one key share keystream.
pub fn seal(
    binding: &ShareBinding,
    node: NodeId,
    to: &SharePublicKey,
    shares: &NodeShares,
    entropy: Zeroizing<[u8; SEAL_ENTROPY_BYTES]>,
) -> Result<SealedShares, SealError> {
    binding.fits(node, shares)?;
    let plain = plaintext(shares);
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(SealError::TooLong);
    }
    let key = PublicKey::from_bytes(to.as_bytes()).map_err(|_| SealError::Hpke)?;
    let mut once = Once { entropy, left: 1 };
    let (enc, ciphertext) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeS::Base,
        &key,
        &binding.info(node),
        &plain,
        b"",
        &mut once,
    )
    .map_err(|_| SealError::Hpke)?;
    let mut bytes = enc.to_bytes().to_vec();
    bytes.extend_from_slice(&ciphertext);
    Ok(SealedShares(bytes))
}

/// Opens one node's shares and checks that they are what its policy says.
pub fn open(
    binding: &ShareBinding,
    node: NodeId,
    key: &SharePrivateKey,
    sealed: &SealedShares,
) -> Result<NodeShares, OpenError> {
    let (enc, rest) = sealed.0.split_at_checked(ENC_BYTES).ok_or(OpenError::NotForThis)?;
    let split = rest.len().checked_sub(TAG_BYTES).and_then(|at| rest.split_at_checked(at));
    let (ciphertext, tag) = split.ok_or(OpenError::NotForThis)?;
    let enc = EncappedKey::from_bytes(enc).map_err(|_| OpenError::NotForThis)?;
    let tag = AeadTag::<ChaCha20Poly1305>::from_bytes(tag).map_err(|_| OpenError::NotForThis)?;
    // In place, so that no other copy of the plaintext is made.
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    hpke::single_shot_open_inout_detached::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeR::Base,
        &key.key(),
        &enc,
        &binding.info(node),
        InOutBuf::from(plain.as_mut_slice()),
        b"",
        &tag,
    )
    .map_err(|_| OpenError::NotForThis)?;
    let shares = parse(&plain).ok_or(OpenError::Undecodable)?;
    binding.fits(node, &shares)?;
    Ok(shares)
}

/// borsh's form of (split id, mask, map of node id to complement), into one buffer that is erased.
fn plaintext(shares: &NodeShares) -> Zeroizing<Vec<u8>> {
    let complements = shares.complements.values().map(|s| s.len() + 12).sum::<usize>();
    let mut plain = Zeroizing::new(Vec::with_capacity(16 + 4 + shares.mask.len() + 4 + complements));
    let share = |plain: &mut Vec<u8>, share: &Share| {
        plain.extend_from_slice(&(share.len() as u32).to_le_bytes());
        plain.extend_from_slice(share.expose_bytes());
    };
    plain.extend_from_slice(&shares.split.0);
    share(&mut plain, &shares.mask);
    plain.extend_from_slice(&(shares.complements.len() as u32).to_le_bytes());
    for (node, complement) in &shares.complements {
        plain.extend_from_slice(&node.0.to_le_bytes());
        share(&mut plain, complement);
    }
    plain
}

/// Reads that form by hand: borsh's own reader would leave copies behind that nobody erases.
fn parse(plain: &[u8]) -> Option<NodeShares> {
    fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
        let (head, tail) = rest.split_at_checked(n)?;
        *rest = tail;
        Some(head)
    }
    fn number(rest: &mut &[u8]) -> Option<usize> {
        Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) as usize)
    }
    fn share(rest: &mut &[u8]) -> Option<Share> {
        let len = number(rest).filter(|len| *len <= usize::from(SECRET_BYTES_MAX))?;
        Some(Share(Zeroizing::new(take(rest, len)?.to_vec())))
    }
    let rest = &mut &plain[..];
    let split = SplitId(take(rest, 16)?.try_into().ok()?);
    let mask = share(rest)?;
    let mut complements = BTreeMap::new();
    for _ in 0..number(rest).filter(|count| *count <= MEMBERS_MAX)? {
        let node = NodeId(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?));
        // Ascending, as borsh writes a map: one form for one value.
        if complements.last_key_value().is_some_and(|(last, _)| *last >= node) {
            return None;
        }
        complements.insert(node, share(rest)?);
    }
    rest.is_empty().then_some(NodeShares { split, mask, complements })
}

/// A generator of exactly the caller's 64 bytes. X-Wing draws once; a second draw would be a change of the library and a
/// reason to stop: the same bytes twice would give a key away.
struct Once {
    entropy: Zeroizing<[u8; SEAL_ENTROPY_BYTES]>,
    left: u8,
}

impl TryRng for Once {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("an encapsulation draws 64 bytes at once")
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("an encapsulation draws 64 bytes at once")
    }
    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        assert!(self.left == 1 && to.len() == SEAL_ENTROPY_BYTES, "an encapsulation draws 64 bytes once");
        self.left = 0;
        to.copy_from_slice(&self.entropy[..]);
        Ok(())
    }
}

impl TryCryptoRng for Once {}

#[cfg(test)]
mod tests;
