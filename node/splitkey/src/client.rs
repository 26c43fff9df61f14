//! The client's side of one connection, after a TLS library has made the handshake.
//!
//! The handshake, and with it the provider's certificate check, is the library's (rustls). Then this module takes
//! over both directions at sequence 0: the library could neither leave a sequence number out nor promise that the
//! head is one record.
//!
//! **How to hand over.** Give the library the provider's bytes one record at a time (cut with
//! [`crate::record::RecordReader`]) until it reports that the handshake is complete; flush what it wants to write (its
//! Finished is the last of it); take [`KEY_LOG_CLIENT`] and [`KEY_LOG_SERVER`] from its key log; drop it. The next
//! record from the provider is sequence 0 of its application secret, tickets included, and belongs to
//! [`ClientRequest::response`]. Giving it more than one record could let it swallow one of those. Resumption, early
//! data and client certificates must be off; if the library is asked for a certificate, give the connection up.
//!
//! **One request, one connection, by type**: [`ClientConnection::seal_request`] consumes the connection.
//!
//! **The client never holds a provider key.** On a keyed route it seals part one at sequence 0, leaves 1 to the relay, and
//! goes on at 2. It knows the hole's keystream and never sees the hole.
//!
//! **Never sent**: KeyUpdate, close_notify, alerts. The relay would count them as body, and the sequence numbers they
//! use are not to be used twice. A client that is done closes the transport.

use crate::framing::{FramingRefusal, HeadRecords, HeadShape};
use crate::head::{Head, HeadRefusal, HeadTemplate};
use crate::record::{ContentType, PLAINTEXT_MAX, RecordOpener, RecordSealer, SealError, TrafficSecret};

/// The key log's label of the client's application secret (NSS key log format).
pub const KEY_LOG_CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
/// The key log's label of the server's application secret.
pub const KEY_LOG_SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// A connection whose handshake is complete and which has carried nothing yet.
pub struct ClientConnection {
    client: TrafficSecret,
    server: TrafficSecret,
}

/// A request under way.
pub struct ClientRequest {
    /// The sealed head, for the relay and the digest to sign.
    pub head: HeadRecords,
    /// Seals the body.
    pub body: BodySealer,
    /// Reads the provider's records.
    pub response: RecordOpener,
}

/// Why a request cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealRequestError {
    /// The route's template does not allow the head.
    #[error("head is not allowed on this route")]
    Head(#[from] HeadRefusal),
    /// A record could not be sealed.
    #[error("head was not sealed")]
    Seal(#[from] SealError),
    /// The sealed records are not a head.
    #[error("sealed head is malformed")]
    Framing(#[from] FramingRefusal),
}

impl ClientConnection {
    /// A connection with the secrets its handshake gave.
    pub fn new(client: TrafficSecret, server: TrafficSecret) -> Self {
        Self { client, server }
    }

    /// The secret to register with the keyer.
    pub fn client_secret(&self) -> &TrafficSecret {
        &self.client
    }

    /// Seals the head, at sequence 0, and for keyed routes 2.
    pub fn seal_request(
        self,
        template: &HeadTemplate,
        head: &Head,
    ) -> Result<ClientRequest, SealRequestError> {
        let parts = template.serialise(head)?;
        let mut sealer = RecordSealer::new(&self.client);
        let mut bytes = Vec::new();
        sealer.seal_into(ContentType::ApplicationData, parts.one(), &mut bytes)?;
        let shape = match parts.two() {
            Some(two) => {
                sealer.skip()?;
                sealer.seal_into(ContentType::ApplicationData, two, &mut bytes)?;
                HeadShape::AroundHole
            }
            None => HeadShape::Whole,
        };
        Ok(ClientRequest {
            head: HeadRecords::from_bytes(&bytes, shape)?,
            body: BodySealer { sealer, remaining: head.content_length },
            response: RecordOpener::new(self.server),
        })
    }
}

/// Why body bytes are not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the content-length announced; the relay would cut the connection.
    #[error("body is {excess} bytes longer than its content-length")]
    TooLong {
        /// Bytes too many.
        excess: u64,
    },
    /// A record could not be sealed.
    #[error("body was not sealed")]
    Seal(#[from] SealError),
}

/// Seals a body of known length.
pub struct BodySealer {
    sealer: RecordSealer,
    remaining: u64,
}

impl BodySealer {
    /// Appends records with this much more of the body to `out`, each as full as it can be.
    pub fn seal_chunk(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), BodyError> {
        let length = chunk.len() as u64;
        let Some(remaining) = self.remaining.checked_sub(length) else {
            return Err(BodyError::TooLong { excess: length - self.remaining });
        };
        for plaintext in chunk.chunks(PLAINTEXT_MAX) {
            self.sealer.seal_into(ContentType::ApplicationData, plaintext, out)?;
        }
        self.remaining = remaining;
        Ok(())
    }

    /// Bytes of body still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}
