//! Split-key TLS without IO: how a client and a provider speak TLS 1.3 through a relay that reads nothing, while a
//! keyer checks the request's head.
//!
//! ```text
//!  client                        relay                                   provider
//!    | TLS handshake (rustls)      | watch::HandshakeWatch                   |
//!    |---------------------------->|---------------------------------------->|
//!    | client::ClientConnection    | framing::HeadRecords: held              |
//!    |--- head records ----------->|------> keyer::KeyerConnection           |
//!    |                             |<------ hole::HoleAnswer                 |
//!    |                             | HoleAnswer::fill(share::Complement)     |
//!    |--- body records ----------->|--- head, then framing::BodyMeter ------>|
//!    |<----------- record::RecordOpener <-- untouched -----------------------|
//! ```
//!
//! Each module's documentation is its specification: wire positions, byte counts, and for each rule the attack it
//! stops. Everything here is a function of its inputs; no clock, no randomness, no sockets, so that all of it can be
//! fuzzed and tested with nothing but bytes.
//!
//! A head is one record at sequence 0. With a credential it is two, at 0 and 2, around the *hole* at 1
//! ([`framing::HeadShape`]), which keyer and relay fill together from the two halves of a secret ([`share`], [`hole`]).
//! No type here holds a whole secret but [`share::Secret`], which is for the admin's own machine.

#![forbid(unsafe_code)]

#[cfg(all(feature = "danger-hostile", not(debug_assertions)))]
compile_error!("danger-hostile switches defences off: it is for tests, and no release can contain it");

pub mod client;
#[cfg(feature = "danger-hostile")]
pub mod danger_hostile;
pub mod framing;
pub mod head;
pub mod hole;
pub mod host;
pub mod keyer;
#[cfg(test)]
mod noninterference;
pub mod record;
pub mod share;
pub mod watch;
