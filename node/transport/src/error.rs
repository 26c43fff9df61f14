//! What can go wrong on a connection, as facts. Each error says whose fault it is, whether trying again may
//! help, and what to do next.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::client::Address;
use crate::identity::PublicKey;
use crate::io::CloseReason;

/// Any error, boxed, where this crate cannot know its type.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The other end said or did something it must not.
    Peer,
    /// The way between us failed; neither end is to blame.
    Network,
    /// A file, an address or a setting is wrong.
    Operator,
    /// This program.
    Us,
}

/// A private key could not be made or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The system's random number generator failed.
    #[error("the random number generator failed")]
    NoRandomness,
    /// The file could not be read or written.
    #[error("key file {path}: cannot be {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// "read", "created".
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Everyone on the machine may read the private key.
    #[error("key file {path} is open to all users (mode {mode:o})")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is too large to be an Ed25519 key.
    #[error("key file {path} is longer than {max} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// The file holds no PEM section `PRIVATE KEY` (PKCS#8).
    #[error("key file {path} has no PEM section PRIVATE KEY")]
    NotPkcs8Pem {
        /// The file.
        path: PathBuf,
    },
    /// The key in the file is not a valid Ed25519 key.
    #[error("key file {path} does not hold an Ed25519 private key")]
    NotEd25519 {
        /// The file.
        path: PathBuf,
    },
}

impl IdentityError {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoRandomness => Fault::Us,
            Self::File { .. }
            | Self::Exposed { .. }
            | Self::TooLong { .. }
            | Self::NotPkcs8Pem { .. }
            | Self::NotEd25519 { .. } => Fault::Operator,
        }
    }

    /// Whether doing the same again may succeed.
    pub fn retriable(&self) -> bool {
        false
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRandomness => "check that the system's random source works; nothing is safe without it",
            Self::File { .. } => "check the path and its permissions",
            Self::Exposed { .. } => "chmod 600 the file; if others could read it, replace the key",
            Self::TooLong { .. } | Self::NotPkcs8Pem { .. } | Self::NotEd25519 { .. } => {
                "make a key with `openssl genpkey -algorithm ed25519`"
            }
        }
    }
}

/// An address that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Longer than any host name and port can be.
    #[error("the address has {got} bytes, more than {max}")]
    TooLong {
        /// Its length.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// The host is missing or has a character that no host has.
    #[error("the address has no valid host; expected host:port")]
    Host,
    /// The port is missing, zero or not a number.
    #[error("the address has no valid port; expected host:port")]
    Port,
}

/// What a peer showed as its key is not an Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerKeyError {
    /// No key was shown.
    #[error("the peer showed no key")]
    Missing,
    /// The encoding has another length than an Ed25519 SubjectPublicKeyInfo.
    #[error("the key's SubjectPublicKeyInfo has {got} bytes, not 44")]
    Length {
        /// Its length.
        got: usize,
    },
    /// The encoding names another algorithm, or is not canonical DER.
    #[error("the key is not Ed25519")]
    Algorithm,
    /// More than one key came in the certificate message.
    #[error("the peer showed {got} more entries beside its key")]
    Extra {
        /// How many.
        got: usize,
    },
}

/// The peer proved a key, but another one than expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected key {expected}, the peer has {got}")]
pub struct KeyMismatch {
    /// The key we asked for.
    pub expected: PublicKey,
    /// The key the peer showed. It has not proved that it holds it: the handshake stopped here.
    pub got: PublicKey,
}

/// How far an attempt to connect had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Looking up the host.
    Resolve,
    /// Waiting for TCP.
    Tcp,
    /// In the TLS handshake.
    Tls,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name lookup",
            Self::Tcp => "TCP connect",
            Self::Tls => "TLS handshake",
        })
    }
}

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host's name could not be looked up.
    #[error("{address}: name lookup failed")]
    Resolve {
        /// Where we wanted to go.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The host's name has no address.
    #[error("{address}: the name has no address")]
    NoAddress {
        /// Where we wanted to go.
        address: Address,
    },
    /// TCP was refused or failed.
    #[error("{address}: TCP connect failed")]
    Tcp {
        /// Where we wanted to go.
        address: Address,
        /// The system's reason (of the last address tried).
        source: io::Error,
    },
    /// The time for the whole attempt ran out.
    #[error("{address}: {stage} did not finish within {} ms", allowed.as_millis())]
    TimedOut {
        /// Where we wanted to go.
        address: Address,
        /// What it was waiting for.
        stage: Stage,
        /// The time the attempt had in all.
        allowed: Duration,
    },
    /// The peer has another key than expected.
    #[error("{address}: wrong key")]
    WrongKey {
        /// Where we wanted to go.
        address: Address,
        /// Both keys.
        source: KeyMismatch,
    },
    /// What the peer showed is not an Ed25519 key.
    #[error("{address}: unusable key")]
    PeerKey {
        /// Where we wanted to go.
        address: Address,
        /// What is wrong with it.
        source: PeerKeyError,
    },
    /// TLS failed otherwise: the peer speaks something else, or refused us.
    #[error("{address}: TLS handshake failed")]
    Tls {
        /// Where we wanted to go.
        address: Address,
        /// rustls's reason.
        source: rustls::Error,
    },
    /// The connection broke in the middle of the handshake.
    #[error("{address}: the connection broke during the TLS handshake")]
    Broken {
        /// Where we wanted to go.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer did not agree to speak HTTP/2.
    #[error("{address}: the peer does not speak HTTP/2")]
    NotHttp2 {
        /// Where we wanted to go.
        address: Address,
    },
    /// HTTP/2 could not be started over the finished handshake.
    #[error("{address}: HTTP/2 did not start")]
    Http2 {
        /// Where we wanted to go.
        address: Address,
        /// tonic's reason.
        source: tonic::transport::Error,
    },
    /// The listening socket is unusable.
    #[error("the listening socket is unusable")]
    Listener {
        /// The system's reason.
        source: io::Error,
    },
    /// Our own TLS set-up was refused by the library.
    #[error("TLS cannot be set up")]
    Setup {
        /// rustls's reason.
        source: rustls::Error,
    },
}

impl ConnectError {
    /// Whose fault this is, as far as this end can tell.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Resolve { .. } | Self::NoAddress { .. } => Fault::Operator,
            Self::Tcp { .. } | Self::TimedOut { .. } | Self::Broken { .. } => Fault::Network,
            Self::WrongKey { .. }
            | Self::PeerKey { .. }
            | Self::Tls { .. }
            | Self::NotHttp2 { .. }
            | Self::Http2 { .. } => Fault::Peer,
            Self::Listener { .. } | Self::Setup { .. } => Fault::Us,
        }
    }

    /// Whether the same attempt may succeed later.
    ///
    /// A wrong key counts: a peer that restarted has a new one, and the directory learns it a moment later.
    pub fn retriable(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Tcp { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::WrongKey { .. }
            | Self::Tls { .. }
            | Self::Http2 { .. } => true,
            Self::PeerKey { .. } | Self::NotHttp2 { .. } | Self::Listener { .. } | Self::Setup { .. } => {
                false
            }
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Resolve { .. } | Self::NoAddress { .. } => "check the host name and the resolver",
            Self::Tcp { .. } => "check that the node runs and that the port is reachable",
            Self::TimedOut { .. } => "check for a firewall that drops packets, or raise the timeout",
            Self::WrongKey { .. } => {
                "the node restarted (refresh the directory), or something else answers at its address"
            }
            Self::PeerKey { .. } | Self::Tls { .. } | Self::NotHttp2 { .. } => {
                "check that the address and port are those of a quorated node of this version"
            }
            Self::Broken { .. } | Self::Http2 { .. } => "retry; if it persists, read the node's log",
            Self::Listener { .. } | Self::Setup { .. } => "this is a bug: please report it",
        }
    }
}

/// Admission on a fresh connection failed; decided by the caller's hook, not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// The peer does not admit us.
    #[error("the peer refused us")]
    Refused(#[source] BoxError),
    /// We do not admit the peer: what it proved is not enough.
    #[error("the peer was not admitted")]
    Rejected(#[source] BoxError),
    /// No verdict: a call failed or a needed fact is not known yet.
    #[error("admission could not be completed")]
    Incomplete(#[source] BoxError),
}

/// Why a link is down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No connection could be opened.
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    /// The connection opened and admission failed.
    #[error("not admitted")]
    Admission(#[from] AdmissionError),
    /// Admission did not finish in time.
    #[error("admission took more than {} ms", allowed.as_millis())]
    AdmissionTimedOut {
        /// The time it had.
        allowed: Duration,
    },
    /// The connection was up and ended.
    #[error("the connection ended: {0}")]
    Lost(CloseReason),
    /// The link was shut down, or the owner of its target is gone.
    #[error("the link was shut down")]
    Shutdown,
}

impl LinkError {
    /// Whose fault this is, as far as this end can tell.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Connect(e) => e.fault(),
            Self::Admission(AdmissionError::Refused(_)) => Fault::Us,
            Self::Admission(AdmissionError::Rejected(_) | AdmissionError::Incomplete(_))
            | Self::AdmissionTimedOut { .. } => Fault::Peer,
            Self::Lost(reason) => match reason {
                CloseReason::Cut => Fault::Us,
                CloseReason::PeerClosed | CloseReason::Ended | CloseReason::Silent => Fault::Peer,
                CloseReason::Broken(_) => Fault::Network,
            },
            Self::Shutdown => Fault::Us,
        }
    }

    /// Whether the link keeps trying.
    pub fn retriable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Admission(_) | Self::AdmissionTimedOut { .. } | Self::Lost(_) => true,
            Self::Shutdown => false,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connect(e) => e.hint(),
            Self::Admission(AdmissionError::Refused(_)) => "read the peer's log: it says which check failed",
            Self::Admission(AdmissionError::Rejected(_)) => {
                "compare the peer's evidence with the reference values, then approve or reprovision it"
            }
            Self::Admission(AdmissionError::Incomplete(_)) | Self::AdmissionTimedOut { .. } => {
                "wait: it is retried; if it persists, check the peer's TPM"
            }
            Self::Lost(_) => "wait: the link reconnects by itself",
            Self::Shutdown => "nothing: it was asked for",
        }
    }
}
