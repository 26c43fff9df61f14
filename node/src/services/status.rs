//! From what went wrong to what a caller sees: the one exhaustive table of stable codes, faults, advice and gRPC codes.
//!
//! No arm is `_`: a new variant here or in [`Refusal`] does not compile until somebody decided what to say. Nothing that
//! a caller sees holds content, and strangers learn no more than that a check failed.
use crate::ledger::DecideError;
use crate::tilestore::StoreError;
use prost::Message;
use quorate_core::refusal::{self, Refusal};
use quorate_proto::{REFUSAL_METADATA, v1};
use quorate_splitkey::framing::FramingRefusal;
use quorate_splitkey::watch::{HandshakeRefusal, Party};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Longest code or message taken over from another node.
const PEER_TEXT_BYTES_MAX: usize = 200;

/// Why a call or a tunnel was refused.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The state machine's reason, or one that this node knows before asking it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not committed, or not certified, in time.
    #[error("no quorum of nodes decided in time")]
    NoQuorum,
    /// Too many commands wait.
    #[error("too many commands are waiting")]
    Overloaded,
    /// Draining.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A field that does not parse.
    #[error("{0} is missing or malformed")]
    Malformed(&'static str),
    /// A field beyond its bound.
    #[error("{what} exceeds {max} bytes")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// Its bound.
        max: usize,
    },
    /// A command that does not belong in this call.
    #[error("this call does not take such a command")]
    WrongCommand,
    /// A policy change without its document, or a document nobody named.
    #[error("the blobs are not those that the command names")]
    WrongBlobs,
    /// The channel's key is not the client's.
    #[error("the key of this connection is not that of the client")]
    NotTheClient,
    /// Everybody's figures, and no admin's word for the key of this connection, or one that is over.
    #[error("no admin lets the key of this connection see everybody's usage")]
    NotAnAdmin,
    /// The pool names another node for this.
    #[error("the pool names another node")]
    WrongNode,
    /// The pool names boot keys of an earlier start of this node.
    #[error("the node has restarted since the pool was opened")]
    Restarted,
    /// Tunnels at their bound.
    #[error("the node has too many open tunnels")]
    TooManyTunnels,
    /// One client's tunnels at their bound.
    #[error("the client has too many open tunnels on this node")]
    TooManyTunnelsOfClient,
    /// Secrets at their bound.
    #[error("too many connections wait for their request at this keyer")]
    TooManyRegistrations,
    /// The connection has its secret, or had it.
    #[error("the connection is registered already")]
    AlreadyRegistered,
    /// The connection has a tunnel already.
    #[error("the connection has a tunnel already")]
    ConnectionInUse,
    /// The policy's route makes no head template.
    #[error("the policy's route cannot be used")]
    RouteInvalid,
    /// No TCP connection.
    #[error("the provider cannot be reached")]
    ProviderUnreachable,
    /// The handshake broke a rule.
    #[error("the TLS handshake was refused: {0}")]
    Handshake(HandshakeRefusal),
    /// The provider closed before the head was released.
    #[error("the provider closed the connection before the request was sent")]
    ProviderClosed,
    /// A tunnel frame in a place where it may not be.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// The tunnel's first frame did not come.
    #[error("the tunnel was not opened in time")]
    NotOpened,
    /// The head's bytes are not one head.
    #[error("the head is refused: {0}")]
    Head(FramingRefusal),
    /// The records are not those whose digest was signed.
    #[error("the head is not the one that the request's signature covers")]
    HeadDigest,
    /// A body record that may not be sent.
    #[error("the body is refused: {0}")]
    Body(FramingRefusal),
    /// The head announces more than the request's ceiling.
    #[error("the content-length exceeds the request's ceiling")]
    BodyAboveCeiling,
    /// No answer from the keyer.
    #[error("the keyer does not answer")]
    KeyerUnavailable,
    /// The keyer refused.
    #[error("the keyer refused the request: {message}")]
    KeyerRefused {
        /// Its stable code.
        code: String,
        /// What it says.
        message: String,
        /// No fault of the head.
        retryable: bool,
    },
    /// The keyer's answer is not one for this route.
    #[error("the keyer's answer does not fit the route")]
    KeyerAnswer,
    /// Shares of the route's key are not to be had on this node. Why stands in its status and trace, not here.
    #[error("the node cannot use its shares of the route's key")]
    SharesMissing,
    /// Nothing known of that request.
    #[error("this node knows of no such request")]
    NoSuchRequest,
    /// Nothing is certified since this node started.
    #[error("this node holds no certified checkpoint yet")]
    NothingCertified,
    /// A broken promise of our own; the cause is in the trace.
    #[error("the node failed: {0}")]
    Internal(&'static str),
}

impl From<DecideError> for Problem {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Refused(refusal) => Self::Refused(refusal),
            DecideError::NoQuorum => Self::NoQuorum,
            DecideError::Overloaded => Self::Overloaded,
            DecideError::ShuttingDown => Self::ShuttingDown,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the tlog could not be read");
        Self::Internal("the tlog could not be read")
    }
}

/// A row of the table.
struct Row {
    code: &'static str,
    hint: &'static str,
    retry: v1::Retry,
    fault: v1::Fault,
    grpc: Code,
}

fn row(code: &'static str, fault: v1::Fault, retry: v1::Retry, grpc: Code, hint: &'static str) -> Row {
    Row { code, hint, retry, fault, grpc }
}

impl Problem {
    /// Takes over what a keyer said, without trusting its text.
    pub fn from_keyer(refused: v1::HeadRefused) -> Self {
        let plain = |text: String| -> String {
            text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(PEER_TEXT_BYTES_MAX).collect()
        };
        Self::KeyerRefused {
            code: plain(refused.code),
            message: plain(refused.message),
            retryable: refused.retryable,
        }
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        match self {
            Self::KeyerRefused { code, .. } if !code.is_empty() => code,
            other => other.category(),
        }
    }

    /// The table's own code, whatever a keyer called it: a metric's label.
    pub fn category(&self) -> &'static str {
        self.row().code
    }

    /// What goes to the caller.
    pub fn refused(&self) -> v1::Refused {
        let Row { hint, retry, fault, .. } = self.row();
        v1::Refused {
            code: self.code().to_owned(),
            message: self.to_string(),
            hint: hint.to_owned(),
            retry: retry.into(),
            fault: fault.into(),
        }
    }

    /// The status of a failed unary call, with the refusal in its metadata.
    pub fn status(&self) -> Status {
        let mut status = Status::new(self.row().grpc, self.to_string());
        let detail = MetadataValue::from_bytes(&self.refused().encode_to_vec());
        status.metadata_mut().insert_bin(REFUSAL_METADATA, detail);
        status
    }

    fn row(&self) -> Row {
        use v1::Fault::{Client, Mesh, Operator, Provider};
        use v1::Retry::{Later, Never, Now};
        match self {
            Self::Refused(r) => of_refusal(*r),
            Self::NoQuorum => row(
                "no_quorum",
                Mesh,
                Later,
                Code::Unavailable,
                "fewer nodes than a quorum are reachable and attested: `quorate status` names the missing ones",
            ),
            Self::Overloaded => {
                row("overloaded", Mesh, Later, Code::ResourceExhausted, "slow down, or use another relay")
            }
            Self::ShuttingDown => row("shutting_down", Mesh, Now, Code::Unavailable, "use another node"),
            Self::Malformed(_) => {
                row("malformed", Client, Never, Code::InvalidArgument, "see the .proto files")
            }
            Self::TooLarge { .. } => {
                row("too_large", Client, Never, Code::InvalidArgument, "see the bounds in the .proto files")
            }
            Self::WrongCommand => row(
                "wrong_command",
                Client,
                Never,
                Code::InvalidArgument,
                "see the .proto files for what each call takes",
            ),
            Self::WrongBlobs => row(
                "wrong_blobs",
                Client,
                Never,
                Code::InvalidArgument,
                "send the one document that the command names",
            ),
            Self::NotTheClient => row(
                "not_the_client",
                Client,
                Never,
                Code::PermissionDenied,
                "connect with the client's own key",
            ),
            Self::NotAnAdmin => row(
                "not_an_admin",
                Client,
                Never,
                Code::PermissionDenied,
                "sign with an admin's key: `quorate usage --by client --key SSHKEY`",
            ),
            Self::WrongNode => row(
                "wrong_node",
                Client,
                Never,
                Code::FailedPrecondition,
                "call the relay and the keyer that the pool names",
            ),
            Self::Restarted => row("node_restarted", Mesh, Now, Code::FailedPrecondition, "open a new pool"),
            Self::TooManyTunnels => {
                row("too_many_tunnels", Mesh, Later, Code::ResourceExhausted, "use another relay, or wait")
            }
            Self::TooManyTunnelsOfClient => {
                row("too_many_client_tunnels", Client, Later, Code::ResourceExhausted, "keep a smaller pool")
            }
            Self::TooManyRegistrations => row(
                "too_many_registrations",
                Mesh,
                Later,
                Code::ResourceExhausted,
                "open a new pool, with the other keyer",
            ),
            Self::AlreadyRegistered => row(
                "already_registered",
                Client,
                Now,
                Code::AlreadyExists,
                "use a new connection with a new random id",
            ),
            Self::ConnectionInUse => row(
                "connection_in_use",
                Client,
                Now,
                Code::AlreadyExists,
                "choose a new random id for each connection",
            ),
            Self::RouteInvalid => row(
                "route_invalid",
                Operator,
                Never,
                Code::FailedPrecondition,
                "run `quorate admin check` on the policy",
            ),
            Self::ProviderUnreachable => row(
                "provider_unreachable",
                Provider,
                Later,
                Code::Unavailable,
                "check the route's host and port, and the relay's network",
            ),
            Self::Handshake(refusal) => of_handshake(*refusal),
            Self::ProviderClosed => row(
                "provider_closed",
                Provider,
                Now,
                Code::Unavailable,
                "nothing was sent: try again on a new connection",
            ),
            Self::OutOfTurn(_) => row(
                "out_of_turn",
                Client,
                Never,
                Code::FailedPrecondition,
                "see Tunnel in the .proto files for the order of frames",
            ),
            Self::NotOpened => row(
                "not_opened",
                Client,
                Now,
                Code::DeadlineExceeded,
                "send Open as the tunnel's first frame",
            ),
            Self::Head(_) => row(
                "head_malformed",
                Client,
                Never,
                Code::InvalidArgument,
                "send the head as sealed records, alone",
            ),
            Self::HeadDigest => row(
                "head_digest",
                Client,
                Never,
                Code::InvalidArgument,
                "sign the digest of the very records that are sent",
            ),
            Self::Body(_) => row(
                "body_refused",
                Client,
                Never,
                Code::InvalidArgument,
                "send exactly content-length bytes of body",
            ),
            Self::BodyAboveCeiling => row(
                "body_above_ceiling",
                Client,
                Never,
                Code::InvalidArgument,
                "sign a ceiling that holds the body",
            ),
            Self::KeyerUnavailable => {
                row("keyer_unavailable", Mesh, Now, Code::Unavailable, "open a pool with the other keyer")
            }
            Self::KeyerRefused { retryable: true, .. } => {
                row("keyer_refused", Mesh, Now, Code::Unavailable, "try again on a new connection")
            }
            Self::KeyerRefused { retryable: false, .. } => row(
                "head_refused",
                Client,
                Never,
                Code::PermissionDenied,
                "the route's template says what a head may hold",
            ),
            Self::KeyerAnswer => row(
                "keyer_answer",
                Mesh,
                Now,
                Code::Unavailable,
                "nothing was sent: open a pool with the other keyer",
            ),
            Self::SharesMissing => row(
                "shares_missing",
                Mesh,
                Now,
                Code::Unavailable,
                "use another relay or keyer; `quorate status` of this node says why",
            ),
            Self::NoSuchRequest => row(
                "no_such_request",
                Client,
                Never,
                Code::NotFound,
                "ask the relay of the request, soon after it ended",
            ),
            Self::NothingCertified => {
                row("nothing_certified", Mesh, Later, Code::Unavailable, "wait, or ask another node")
            }
            Self::Internal(_) => row("internal", Mesh, Later, Code::Internal, "see the node's trace"),
        }
    }
}

fn of_handshake(refusal: HandshakeRefusal) -> Row {
    use v1::Fault::{Client, Provider};
    use v1::Retry::{Never, Now};
    let code = match refusal {
        HandshakeRefusal::ProviderLacksSuite => "provider_lacks_suite",
        HandshakeRefusal::ProviderLacksTls13 | HandshakeRefusal::ProviderVersion { .. } => {
            "provider_lacks_tls13"
        }
        HandshakeRefusal::ProviderLacksHttp11 => "provider_lacks_http11",
        HandshakeRefusal::ProviderSuite { .. } => "provider_lacks_suite",
        HandshakeRefusal::ProviderNotTls(_) => "provider_not_tls",
        HandshakeRefusal::ClientCertificate => "provider_wants_certificate",
        // The client refused the provider's certificate, or went away: it knows why.
        HandshakeRefusal::ClientGaveUp => {
            return row(
                "client_gave_up",
                Client,
                Now,
                Code::Aborted,
                "the client's own error says why it gave up",
            );
        }
        other => match other.fault() {
            Party::Client => "handshake_refused",
            Party::Provider => "provider_handshake_refused",
        },
    };
    match refusal.fault() {
        Party::Client => row(code, Client, Never, Code::InvalidArgument, "use the SDK's own TLS settings"),
        Party::Provider => {
            let hint = "the provider must speak TLS 1.3 with TLS_CHACHA20_POLY1305_SHA256 and http/1.1, without client certificates";
            row(code, Provider, Never, Code::FailedPrecondition, hint)
        }
    }
}

fn of_refusal(refusal: Refusal) -> Row {
    use Refusal as R;
    let grpc = match refusal {
        R::Dark | R::RelayNotAttested | R::KeyerNotAttested | R::NodeNotAttested => Code::Unavailable,
        R::BadSignature | R::UnknownClient | R::ClientExpired | R::ClientRevoked => Code::Unauthenticated,
        R::BadToken | R::UnknownToken | R::TokenNotYetValid | R::TokenExpired | R::TokenRevoked => {
            Code::Unauthenticated
        }
        R::OutOfScope
        | R::NotYours
        | R::SameCustodian
        | R::TooFewSigners
        | R::UnknownSigner
        | R::AppraisalFailed
        | R::MayNotIssue
        | R::TokenTooWide
        | R::TokenTooLong
        | R::BadProbeGrant => Code::PermissionDenied,
        R::UnknownRoute | R::UnknownRequest | R::UnknownNode => Code::NotFound,
        R::DuplicatePool | R::Replayed | R::ConnectionUsed => Code::AlreadyExists,
        R::RateExceeded
        | R::RequestBudgetExceeded
        | R::ByteBudgetExceeded
        | R::ClientRequestsPerMonth
        | R::ClientBytesPerMinute
        | R::ClientBytesPerMonth
        | R::ClientMoneyPerMinute
        | R::ClientMoneyPerDay
        | R::ClientMoneyPerMonth
        | R::TeamRequestsPerMinute
        | R::TeamRequestsPerDay
        | R::TeamRequestsPerMonth
        | R::TeamBytesPerMinute
        | R::TeamBytesPerDay
        | R::TeamBytesPerMonth
        | R::TeamMoneyPerMinute
        | R::TeamMoneyPerDay
        | R::TeamMoneyPerMonth
        | R::TokenRequestsUsedUp
        | R::TokenBytesUsedUp
        | R::TokenMoneyUsedUp
        | R::TooManyTokens
        | R::TooManyInFlight
        | R::PairBusy
        | R::ProbesExhausted => Code::ResourceExhausted,
        R::WrongCluster
        | R::PoolTooLong
        | R::PoolMismatch
        | R::CeilingTooHigh
        | R::PriceRequired
        | R::PriceNotForRoute
        | R::PolicyInvalid
        | R::TooManyMemberChanges
        | R::Oversized => Code::InvalidArgument,
        R::WrongKeyer
        | R::UnknownPool
        | R::Expired
        | R::StalePolicy
        | R::StaleNonce
        | R::UncertifiedNonce
        | R::MissingBlob
        | R::NotDark
        | R::TooFewContributions
        | R::BadContribution
        | R::LockConflict
        | R::WrongBase
        | R::WrongPredecessor
        | R::PolicyExpired
        | R::ShareEpochUsed
        | R::ShareEpochUnchanged
        | R::StaleShareEpoch
        | R::PairSuspended
        | R::PairBarred
        | R::CredentialFrozen
        | R::ProbeGrantExpired
        | R::TooSoon => Code::FailedPrecondition,
    };
    let fault = match refusal.fault() {
        refusal::Fault::Client => v1::Fault::Client,
        refusal::Fault::Operator => v1::Fault::Operator,
        refusal::Fault::Mesh => v1::Fault::Mesh,
    };
    let retry = match refusal.retry() {
        refusal::Retry::Now => v1::Retry::Now,
        refusal::Retry::Later => v1::Retry::Later,
        refusal::Retry::Never => v1::Retry::Never,
    };
    row(refusal.code(), fault, retry, grpc, refusal.hint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_travels_whole_in_the_status() {
        for refusal in Refusal::ALL {
            let status = Problem::from(*refusal).status();
            let detail = status.metadata().get_bin(REFUSAL_METADATA).unwrap().to_bytes().unwrap();
            let refused = v1::Refused::decode(detail).unwrap();
            assert_eq!((refused.code.as_str(), refused.hint.as_str()), (refusal.code(), refusal.hint()));
            assert_ne!(status.code(), Code::Ok);
        }
    }

    #[test]
    fn a_keyers_text_is_bounded_and_plain() {
        let refused =
            v1::HeadRefused { code: "path\n".into(), message: "x\u{1b}".repeat(500), retryable: false };
        let Problem::KeyerRefused { code, message, .. } = Problem::from_keyer(refused) else {
            panic!("keyer's")
        };
        assert_eq!((code.as_str(), message.len()), ("path", PEER_TEXT_BYTES_MAX));
    }

    #[test]
    fn the_providers_lack_of_the_suite_is_named() {
        let refused = Problem::Handshake(HandshakeRefusal::ProviderLacksSuite).refused();
        assert_eq!(
            (refused.code.as_str(), refused.fault),
            ("provider_lacks_suite", v1::Fault::Provider.into())
        );
    }
}
