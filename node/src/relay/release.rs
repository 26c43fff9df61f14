//! The only ways by which bytes reach a provider, as types: handshake records that the watch placed, then nothing, then a
//! released head and its metered body. Whoever holds the socket's write half holds one of these three.
//!
//! ```text
//! Handshake ──hold(head)──► Held ──release(&CertifiedAuthorisation, KeyerApproval, Standing)──► Released
//! ```
use super::KeyerPort;
use crate::pool::Standing;
use crate::services::status::Problem;
use bytes::Bytes;
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::ids::{ConnectionId, NodeId, RequestId};
use quorate_proto::v1;
use quorate_splitkey::framing::{BodyMeter, FramingRefusal, HeadRecords};
use quorate_splitkey::host::ServerHost;
use quorate_splitkey::watch::{HandshakeRefusal, HandshakeWatch};
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;

/// A keyer's yes to one head. Only [`KeyerApproval::ask`] makes one.
#[derive(Debug)]
pub(super) struct KeyerApproval {
    request: RequestId,
    content_length: u64,
}

impl KeyerApproval {
    /// Hands the head to the keyer and waits for its answer.
    pub(super) async fn ask(
        port: &dyn KeyerPort,
        keyer: NodeId,
        request: RequestId,
        connection: ConnectionId,
        head: Bytes,
    ) -> Result<Self, Problem> {
        let question = v1::CheckHeadRequest {
            request: Bytes::copy_from_slice(&request.0),
            connection: Bytes::copy_from_slice(&connection.0),
            head,
        };
        let reply = port.check_head(keyer, question).await.map_err(|status| {
            tracing::debug!(%keyer, code = ?status.code(), "the keyer did not answer");
            Problem::KeyerUnavailable
        })?;
        match reply.answer {
            Some(v1::check_head_reply::Answer::ContentLength(content_length)) => {
                Ok(Self { request, content_length })
            }
            Some(v1::check_head_reply::Answer::Refused(refused)) => Err(Problem::from_keyer(refused)),
            Some(v1::check_head_reply::Answer::Hole(_)) | None => Err(Problem::KeyerUnavailable),
        }
    }
}

/// During the handshake: what the watch places goes out, nothing else.
pub(super) struct Handshake<W = OwnedWriteHalf> {
    provider: W,
    watch: HandshakeWatch,
    out: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Handshake<W> {
    pub(super) fn new(provider: W, host: ServerHost) -> Self {
        Self { provider, watch: HandshakeWatch::new(host), out: Vec::new() }
    }

    /// Takes the client's bytes and writes what may go out; what is left in `input` lies beyond the handshake.
    pub(super) async fn client_bytes(
        &mut self,
        input: &mut &[u8],
    ) -> Result<io::Result<()>, HandshakeRefusal> {
        self.out.clear();
        self.watch.client_bytes(input, &mut self.out)?;
        Ok(self.provider.write_all(&self.out).await)
    }

    /// Takes the provider's bytes and appends what may go to the client.
    pub(super) fn provider_bytes(
        &mut self,
        input: &[u8],
        forward: &mut Vec<u8>,
    ) -> Result<(), HandshakeRefusal> {
        self.watch.provider_bytes(input, forward)
    }

    /// The client's Finished has passed: its next record is the head.
    pub(super) fn is_done(&self) -> bool {
        self.watch.is_done()
    }

    /// Ends the handshake. From here on the provider gets nothing until the head is released.
    pub(super) fn hold(self, connection: ConnectionId, head: HeadRecords) -> Result<Held<W>, Problem> {
        if !self.watch.is_done() {
            return Err(Problem::OutOfTurn("the request came before the end of the handshake"));
        }
        Ok(Held { provider: self.provider, connection, head })
    }
}

/// A head that waits.
pub(super) struct Held<W = OwnedWriteHalf> {
    provider: W,
    connection: ConnectionId,
    head: HeadRecords,
}

impl<W: AsyncWrite + Unpin> Held<W> {
    /// Lets this head go: its leaf is certified over this node's own root, its keyer approved, its pool stands.
    pub(super) fn release(
        self,
        authorisation: &CertifiedAuthorisation,
        approval: KeyerApproval,
        _standing: Standing,
    ) -> Result<Released<W>, Problem> {
        let a = authorisation.request();
        if a.connection != self.connection || a.request != approval.request {
            return Err(Problem::Internal("an authorisation of another request"));
        }
        if a.head_digest.0 != self.head.digest().0 {
            return Err(Problem::HeadDigest);
        }
        if approval.content_length > a.body_bytes_max {
            return Err(Problem::BodyAboveCeiling);
        }
        let meter = BodyMeter::new(approval.content_length);
        Ok(Released { provider: self.provider, meter, pending: self.head.to_bytes(), written: 0, sent: 0 })
    }
}

/// A head on its way, and its metered body.
pub(super) struct Released<W = OwnedWriteHalf> {
    provider: W,
    meter: BodyMeter,
    pending: Vec<u8>,
    written: usize,
    sent: u64,
}

impl<W: AsyncWrite + Unpin> Released<W> {
    /// Takes body records; whole ones within the content-length will be written.
    pub(super) fn admit(&mut self, bytes: &[u8]) -> Result<(), FramingRefusal> {
        self.meter.body_bytes(bytes, &mut self.pending)
    }

    /// Whether bytes wait to be written.
    pub(super) fn has_pending(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Writes what the socket takes now. May be dropped at any await without losing or doubling bytes.
    pub(super) async fn write_some(&mut self) -> io::Result<()> {
        let rest = self.pending.get(self.written..).unwrap_or_default();
        let count = self.provider.write(rest).await?;
        if count == 0 && !rest.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += count;
        self.sent = self.sent.saturating_add(count as u64);
        if !self.has_pending() {
            self.pending.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Forgets what waits: the provider no longer reads.
    pub(super) fn discard(&mut self) {
        self.pending.clear();
        self.written = 0;
    }

    /// Whether the whole body was taken.
    pub(super) fn body_complete(&self) -> bool {
        self.meter.is_complete()
    }

    /// Bytes that the socket took, head included.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }
}

/// Counts the provider's records by their lengths, to tell a whole answer from a cut one. Reads nothing else of them.
#[derive(Debug, Default)]
pub(super) struct RecordEdge {
    header: [u8; 5],
    have: usize,
    left: usize,
}

impl RecordEdge {
    /// Follows the stream.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skip = self.left.min(bytes.len());
                self.left -= skip;
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *first;
            }
            self.have += 1;
            bytes = rest;
            if self.have == self.header.len() {
                let [_, _, _, high, low] = self.header;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.have = 0;
            }
        }
    }

    /// Whether the stream stands between two records.
    pub(super) fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}
