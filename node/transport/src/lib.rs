//! How nodes and clients speak: mutual TLS 1.3 with raw Ed25519 keys, and gRPC over it.
//!
//! **Decides** that the peer of a connection holds the private half of the key it shows (RFC 8446 §4.4.3,
//! with the key sent bare as RFC 7250 has it), and, on the side that opens the connection, that this key is
//! the one expected. There is no CA and no certificate, so there is no name, chain or expiry to get wrong.
//!
//! **Leaves to the caller** who that key *is*. A server accepts any Ed25519 key and hands it to each request as
//! a [`Channel`]; the request is judged against the set attested *now*, because an open connection outlives a
//! revocation. A client that connects with [`Expect::danger_any_key`] knows nothing yet: it must verify a quote
//! over the key it was shown and the channel's exporter before it believes a word.
//!
//! **Refuses** everything but one protocol version, one key exchange (X25519 with ML-KEM-768), one signature
//! scheme, and HTTP/2. There is no session resumption, no ticket and no early data: a resumed session would
//! enter without the peer proving its key again.
//!
//! ```text
//! Identity ──► connect(Address, Expect) ──► Connected ─── .channel() ──► tonic client
//!    │                                          ▲
//!    │            Link (reconnects, admits) ────┘
//!    └───────► Incoming (accepts, handshakes) ──► ServerIo ──► tonic server ──► request extension Channel
//! ```
//!
//! One [`Connected`] is one TCP connection, for ever. When it dies its channel fails at once and stays failed;
//! [`Link`] is what reconnects, so that every new connection passes through admission again.

#![forbid(unsafe_code)]

mod client;
mod error;
mod identity;
mod io;
mod link;
mod runtime;
mod server;
mod tls;

pub use client::{Address, Connected, Expect, connect, is_transport_failure};
pub use error::{
    AddressError, AdmissionError, ConnectError, Fault, IdentityError, KeyMismatch, LinkError, PeerKeyError,
    Stage,
};
pub use identity::{Identity, PublicKey};
pub use io::CloseReason;
pub use link::{Link, LinkOptions, LinkState, Target};
pub use runtime::runtime;
pub use server::{Channel, Incoming, Limits, ListenerStats, ServerIo, grpc_server};

/// The label under which both ends of a connection derive its exporter value (RFC 8446 §7.5).
pub const EXPORTER_LABEL: &str = "EXPORTER-quorate-channel-v1";
