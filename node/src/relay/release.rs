//! The only ways by which bytes reach a provider, as types: handshake records that the watch placed, then nothing, then a
//! released head and its metered body. Whoever holds the socket's write half holds one of these.
//!
//! ```text
//! Handshake ──hold(head)──┬► HeldWhole ──release(&CertifiedAuthorisation, WholeApproval, Standing)──────────────► Released
//!                         └► HeldAround ──release(&CertifiedAuthorisation, HoleApproval, &Complement, Standing)──► Released
//! ```
//! The head of a route with a credential lies around a hole. It is another type than a whole one, and can only be released
//! with a keyer's answer for that hole and this node's own share, which fill it.
use super::KeyerPort;
#[cfg(feature = "danger-hostile")]
use crate::danger_hostile;
use crate::pool::Standing;
use crate::services::status::Problem;
use bytes::Bytes;
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::command::Authorise;
use quorate_core::ids::{ConnectionId, NodeId, RequestId};
use quorate_proto::v1::{self, check_head_reply::Answer};
use quorate_splitkey::framing::{BodyMeter, FramingRefusal, HeadRecords};
use quorate_splitkey::head::{CredentialSlot, HeadTemplate};
use quorate_splitkey::hole::{FilledHole, HoleAnswer};
use quorate_splitkey::host::ServerHost;
use quorate_splitkey::share::Complement;
use quorate_splitkey::watch::{HandshakeRefusal, HandshakeWatch};
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

/// What a provider may have to say to a client that has asked nothing yet: tickets, a farewell.
const LOOK_BYTES_MAX: usize = 64 * 1024;

/// A keyer's yes to one head. Only [`KeyerApproval::ask`] makes one.
pub(super) enum KeyerApproval {
    /// To a whole head.
    Whole(WholeApproval),
    /// To a head around a hole, with its half of what goes there.
    Hole(HoleApproval),
}

/// See [`KeyerApproval::Whole`].
pub(super) struct WholeApproval {
    request: RequestId,
    content_length: u64,
}

/// See [`KeyerApproval::Hole`].
pub(super) struct HoleApproval {
    request: RequestId,
    answer: HoleAnswer,
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
        #[cfg(feature = "danger-hostile")]
        let again = question.clone();
        let reply = port.check_head(keyer, question).await.map_err(|status| {
            tracing::debug!(%keyer, code = ?status.code(), "the keyer did not answer");
            Problem::KeyerUnavailable
        })?;
        #[cfg(feature = "danger-hostile")]
        if danger_hostile::is("relay:ask-twice") {
            let again = port.check_head(keyer, again).await.ok().and_then(|reply| reply.answer);
            let given = match again {
                Some(Answer::Refused(refused)) => refused.code,
                Some(Answer::Hole(_)) => "given".to_owned(),
                other => format!("{other:?}"),
            };
            tracing::warn!(%request, "danger-hostile: second answer: {given}");
        }
        match reply.answer {
            Some(Answer::ContentLength(content_length)) => {
                Ok(Self::Whole(WholeApproval { request, content_length }))
            }
            Some(Answer::Hole(hole)) => {
                let answer = HoleAnswer::from_parts(&hole.pad, &hole.one_time_key, hole.content_length);
                let answer = answer.map_err(|_| Problem::KeyerAnswer)?;
                Ok(Self::Hole(HoleApproval { request, answer }))
            }
            Some(Answer::Refused(refused)) => Err(Problem::from_keyer(refused)),
            None => Err(Problem::KeyerUnavailable),
        }
    }
}

/// During the handshake: what the watch places goes out, nothing else.
pub(super) struct Handshake<W = OwnedWriteHalf> {
    provider: W,
    watch: HandshakeWatch,
    out: Vec<u8>,
    #[cfg(feature = "danger-hostile")]
    unwatched: bool,
}

impl<W: AsyncWrite + Unpin> Handshake<W> {
    pub(super) fn new(provider: W, host: ServerHost) -> Self {
        Self {
            provider,
            watch: HandshakeWatch::new(host),
            out: Vec::new(),
            #[cfg(feature = "danger-hostile")]
            unwatched: false,
        }
    }

    /// Takes the client's bytes and writes what may go out; what is left in `input` lies beyond the handshake.
    pub(super) async fn client_bytes(
        &mut self,
        input: &mut &[u8],
    ) -> Result<io::Result<()>, HandshakeRefusal> {
        self.out.clear();
        #[cfg(feature = "danger-hostile")]
        let whole = *input;
        let placed = self.watch.client_bytes(input, &mut self.out);
        #[cfg(feature = "danger-hostile")]
        let placed = match placed {
            Err(refusal) if danger_hostile::waives(&refusal) => {
                self.unwatched = true;
                *input = &[];
                self.out = whole.to_vec();
                Ok(())
            }
            Ok(()) if danger_hostile::off("BytesAfterFinished") => {
                self.out.extend_from_slice(std::mem::take(input));
                Ok(())
            }
            placed => placed,
        };
        placed?;
        Ok(self.provider.write_all(&self.out).await)
    }

    /// Takes the provider's bytes and appends what may go to the client.
    pub(super) fn provider_bytes(
        &mut self,
        input: &[u8],
        forward: &mut Vec<u8>,
    ) -> Result<(), HandshakeRefusal> {
        #[cfg(feature = "danger-hostile")]
        if self.unwatched {
            forward.extend_from_slice(input);
            return Ok(());
        }
        self.watch.provider_bytes(input, forward)
    }

    /// The client's Finished has passed: its next record is the head.
    pub(super) fn is_done(&self) -> bool {
        #[cfg(feature = "danger-hostile")]
        if self.unwatched {
            return true;
        }
        self.watch.is_done()
    }

    /// Ends the handshake. From here on the provider gets nothing until the head is released.
    pub(super) fn hold(
        self,
        connection: ConnectionId,
        head: HeadRecords,
        template: &HeadTemplate,
    ) -> Result<Held<W>, Problem> {
        if !self.is_done() {
            return Err(Problem::OutOfTurn("the request came before the end of the handshake"));
        }
        let waits = Waits { provider: self.provider, connection, head };
        Ok(match template.credential() {
            Some(slot) => Held::Around(HeldAround { waits, slot: slot.clone() }),
            None => Held::Whole(HeldWhole(waits)),
        })
    }
}

/// A head that waits.
pub(super) enum Held<W = OwnedWriteHalf> {
    /// Of a route without a credential.
    Whole(HeldWhole<W>),
    /// Of a route with one.
    Around(HeldAround<W>),
}

/// A head that is all there is to send.
pub(super) struct HeldWhole<W = OwnedWriteHalf>(Waits<W>);

/// A head around a hole.
pub(super) struct HeldAround<W = OwnedWriteHalf> {
    waits: Waits<W>,
    slot: CredentialSlot,
}

struct Waits<W> {
    provider: W,
    connection: ConnectionId,
    head: HeadRecords,
}

impl<W: AsyncWrite + Unpin> HeldWhole<W> {
    /// Lets this head go: its leaf is certified over this node's own root, its keyer approved, its pool stands.
    pub(super) fn release(
        self,
        authorisation: &CertifiedAuthorisation,
        approval: WholeApproval,
        _standing: Standing,
    ) -> Result<Released<W>, Problem> {
        let a = authorisation.request();
        self.0.check(a, approval.request, approval.content_length)?;
        self.0.release(None, approval.content_length)
    }
}

impl<W: AsyncWrite + Unpin> HeldAround<W> {
    /// The same, and the hole is filled: by the keyer's answer and this node's own share of the keyer's pair.
    pub(super) fn release(
        self,
        authorisation: &CertifiedAuthorisation,
        approval: HoleApproval,
        complement: &Complement,
        _standing: Standing,
    ) -> Result<Released<W>, Problem> {
        let Self { waits, slot } = self;
        #[cfg(feature = "danger-hostile")]
        let flipped = danger_hostile::flipped(complement);
        #[cfg(feature = "danger-hostile")]
        let complement = flipped.as_ref().unwrap_or(complement);
        let content_length = approval.answer.content_length();
        waits.check(authorisation.request(), approval.request, content_length)?;
        let hole = approval.answer.fill(&slot, complement).map_err(|refusal| {
            tracing::warn!(%refusal, "a keyer's answer was refused");
            Problem::KeyerAnswer
        })?;
        waits.release(Some(hole), content_length)
    }
}

#[cfg(feature = "danger-hostile")]
impl<W: AsyncWrite + Unpin> HeldAround<W> {
    /// Lets it go on the keyer's answer alone.
    pub(super) fn danger_release(
        self,
        approval: HoleApproval,
        complement: &Complement,
    ) -> Result<Released<W>, Problem> {
        let Self { waits, slot } = self;
        let content_length = approval.answer.content_length();
        let hole = approval.answer.fill(&slot, complement).map_err(|_| Problem::KeyerAnswer)?;
        waits.release(Some(hole), content_length)
    }
}

impl<W: AsyncWrite + Unpin> Waits<W> {
    fn check(&self, a: &Authorise, approved: RequestId, content_length: u64) -> Result<(), Problem> {
        if a.connection != self.connection || a.request != approved {
            return Err(Problem::Internal("an authorisation of another request"));
        }
        if a.head_digest.0 != self.head.digest().0 {
            return Err(Problem::HeadDigest);
        }
        let above = content_length > a.body_bytes_max;
        #[cfg(feature = "danger-hostile")]
        let above = above && !danger_hostile::off("BodyAboveCeiling");
        if above {
            return Err(Problem::BodyAboveCeiling);
        }
        Ok(())
    }

    fn release(self, hole: Option<FilledHole>, content_length: u64) -> Result<Released<W>, Problem> {
        let mut pending = Vec::new();
        let released = self.head.release_into(hole, &mut pending);
        released.map_err(|_| Problem::Internal("a head of another shape than its route's"))?;
        #[cfg(feature = "danger-hostile")]
        danger_hostile::rearrange(&mut pending);
        let meter = BodyMeter::new(content_length);
        Ok(Released { provider: self.provider, meter, pending, written: 0, sent: 0 })
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
        #[cfg(feature = "danger-hostile")]
        if danger_hostile::off("BodyTooLong") {
            self.pending.extend_from_slice(bytes);
            return Ok(());
        }
        #[cfg(feature = "danger-hostile")]
        {
            let before = self.pending.len();
            let metered = self.meter.body_bytes(bytes, &mut self.pending);
            danger_hostile::alter("relay:alter-up", &mut self.pending, before);
            metered
        }
        #[cfg(not(feature = "danger-hostile"))]
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

/// Looks at a socket without asking the runtime, which may not have heard yet: takes what came, up to [`LOOK_BYTES_MAX`], and
/// says whether the other side is still open.
pub(super) fn look(socket: &TcpStream, came: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    while came.len() < LOOK_BYTES_MAX {
        match rustix::io::read(socket, &mut buffer) {
            Ok(count @ 1..) => came.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(rustix::io::Errno::AGAIN) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return false,
        }
    }
    // Whoever has so much to say before it was asked has not gone.
    true
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
