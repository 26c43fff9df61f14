//! Keys of this start of the node. They live in memory only; the quote's qualifying data binds them to the machine.
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::Ed25519KeyPair;
use quorate_attest::evidence::BootKeys;
use quorate_core::crypto::public_key;
use quorate_transport::Identity;
use std::sync::Arc;
use zeroize::Zeroizing;

/// TLS and cosigning keys, made anew at each start.
#[derive(Clone)]
pub struct Boot {
    /// TLS.
    pub identity: Identity,
    /// Checkpoints and this node's own commands.
    pub cosign: Arc<Ed25519KeyPair>,
    /// Both public halves.
    pub keys: BootKeys,
}

/// No randomness.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

/// 32 random bytes.
pub fn random() -> Result<[u8; 32], NoRandomness> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

impl Boot {
    /// Makes new keys.
    pub fn new() -> Result<Self, NoRandomness> {
        let identity = Identity::generate().map_err(|_| NoRandomness)?;
        let seed = Zeroizing::new(random()?);
        let cosign = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| NoRandomness)?;
        let keys = BootKeys { tls: *identity.public().as_bytes(), cosign: public_key(&cosign).0 };
        Ok(Self { identity, cosign: Arc::new(cosign), keys })
    }
}
