//! Everything that can go wrong for a caller. Each error says whose fault it is ([`Error::fault`]), whether to try again
//! ([`Error::retry`]) and what to do next ([`Error::hint`]); each of the three is one exhaustive `match` in this file.
//!
//! No variant holds a prompt, a completion or a secret, except [`Error::Provider`], which hands the provider's own
//! error answer to the caller who asked for it.
use crate::http1::HttpError;
use crate::trust::TrustError;
use quorate_core::ids::{NodeId, RequestId};
use quorate_core::proof::ProofError;
use quorate_proto::v1;
use quorate_splitkey::client::{BodyError, SealRequestError};
use quorate_splitkey::record::OpenError;
use std::sync::Arc;

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The application, its configuration or its client key.
    Client,
    /// The organisation's policy or its admins.
    Operator,
    /// A node of the mesh, or the way to it.
    Mesh,
    /// The provider.
    Provider,
}

/// Whether the same request can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once, as a new request. Nothing was forwarded.
    Now,
    /// After a while.
    Later,
    /// Only after somebody changed something.
    Never,
    /// The provider may have seen the request already: the caller decides.
    Unknown,
}

/// A refusal by a node, with its stable code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MeshRefusal {
    /// Stable, snake_case.
    pub code: String,
    /// What is refused, as the node says it.
    pub message: String,
    /// What to do next, as the node says it.
    pub hint: String,
    /// Whether to try again.
    pub retry: Retry,
    /// Whose fault.
    pub fault: Fault,
}

/// Longest text taken from a node's refusal.
const REFUSAL_TEXT_MAX: usize = 512;

impl From<v1::Refused> for MeshRefusal {
    fn from(r: v1::Refused) -> Self {
        let (retry, fault) = (r.retry(), r.fault());
        // The text comes from one node and goes to a terminal: plain and bounded.
        let plain =
            |s: &str| s.chars().filter(|c| !c.is_control()).take(REFUSAL_TEXT_MAX).collect::<String>();
        Self {
            code: plain(&r.code),
            message: plain(&r.message),
            hint: plain(&r.hint),
            retry: match retry {
                v1::Retry::Now => Retry::Now,
                v1::Retry::Later => Retry::Later,
                v1::Retry::Never | v1::Retry::Unspecified => Retry::Never,
            },
            fault: match fault {
                v1::Fault::Client => Fault::Client,
                v1::Fault::Operator => Fault::Operator,
                v1::Fault::Provider => Fault::Provider,
                v1::Fault::Mesh | v1::Fault::Unspecified => Fault::Mesh,
            },
        }
    }
}

/// Why no node of the trust file could be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFailure {
    /// The address, as in the trust file.
    pub address: String,
    /// What happened there, with its causes.
    pub reason: String,
}

/// What a dark mesh lacks, by the word of the nodes that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Darkness {
    /// Attested nodes.
    pub attested: u64,
    /// Nodes needed.
    pub quorum: u64,
    /// Names of those missing, with reasons.
    pub missing: Vec<String>,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The trust file or the key file.
    #[error("the trust file cannot be used")]
    Trust(#[from] Arc<TrustError>),
    /// No node gave a verified directory.
    #[error("no node of the trust file could be used: {}", join(.0))]
    NoNode(Vec<NodeFailure>),
    /// Fewer than a quorum attested.
    #[error("the mesh lacks a quorum: {} of the {} nodes it needs are there{}", .0.attested, .0.quorum, missing(&.0.missing))]
    Dark(Darkness),
    /// A proof that does not verify.
    #[error("{node} sent a directory that proves nothing")]
    Directory {
        /// Who sent it: an address or a node.
        node: String,
        /// The failed check.
        #[source]
        source: Arc<ProofError>,
    },
    /// The newest certified state is too old.
    #[error(
        "the newest certified state is {age_ms} ms away from this machine's clock, more than {bound_ms} ms"
    )]
    Stale {
        /// Difference in either direction.
        age_ms: u64,
        /// Bound of the trust file.
        bound_ms: u64,
    },
    /// Two certified histories. Keep both proofs.
    #[error(
        "two certified checkpoints of size {size} have different roots: more than the tolerated nodes are hostile"
    )]
    Fork {
        /// Size of both.
        size: u64,
    },
    /// Not in the policy.
    #[error("the policy has no client {name:?}")]
    UnknownClient {
        /// Name in the trust file.
        name: String,
    },
    /// The grant is for another key.
    #[error("the policy grants client {name:?} to another key than the key file's")]
    WrongClientKey {
        /// Name in the trust file.
        name: String,
    },
    /// No route serves the model.
    #[error("no route granted to this client serves the model {model:?}")]
    UnknownModel {
        /// As asked.
        model: String,
    },
    /// No such route in the grant.
    #[error("this client has no route {route:?}")]
    UnknownRoute {
        /// As asked.
        route: String,
    },
    /// The route itself is unusable.
    #[error("route {route:?} cannot be used: {reason}")]
    BadRoute {
        /// Name.
        route: String,
        /// What is wrong.
        reason: String,
    },
    /// Too few nodes with different custodians.
    #[error(
        "no relay and keyer for route {route:?}: client, relay and keyer need three different custodians, all attested"
    )]
    NoRelay {
        /// Name.
        route: String,
    },
    /// Every pair of nodes is barred or suspended for the route's credential.
    #[error(
        "route {route:?}: every relay and keyer lack their shares of the key, or are barred to this client or suspended because requests failed over them"
    )]
    NoPairLeft {
        /// Name.
        route: String,
    },
    /// The application set a header that only the mesh may fill in.
    #[error("the application set the header {name:?}, but the route's key is the mesh's to supply")]
    CredentialHeader {
        /// Which, lower case.
        name: String,
    },
    /// A node refused.
    #[error(transparent)]
    Refused(#[from] MeshRefusal),
    /// A node could not be reached, or was lost.
    #[error("{node}: {reason}")]
    NodeLost {
        /// Which.
        node: NodeId,
        /// What happened, with its causes.
        reason: String,
    },
    /// A node answered with what it should not.
    #[error("{node} answered wrongly: {what}")]
    NodeMisbehaved {
        /// Which.
        node: NodeId,
        /// What.
        what: String,
    },
    /// The head is not allowed by the route.
    #[error("the request is not allowed on this route: {0}")]
    Head(SealRequestError),
    /// Body larger than allowed.
    #[error("the body has {length} bytes, the route allows {bound}")]
    BodyTooLarge {
        /// Offered.
        length: u64,
        /// Allowed.
        bound: u64,
    },
    /// Body could not be sealed.
    #[error("the body could not be sealed")]
    Body(#[from] BodyError),
    /// No TCP connection to the provider.
    #[error("{host}: the provider cannot be reached from the relay ({reason})")]
    ProviderUnreachable {
        /// The route's host.
        host: String,
        /// As the relay puts it.
        reason: String,
    },
    /// The provider's certificate is not the route's.
    #[error("{host}: the provider's certificate was refused: {reason}")]
    ProviderCertificate {
        /// The route's host.
        host: String,
        /// rustls's reason.
        reason: String,
    },
    /// No common cipher suite.
    #[error("{host}: the provider does not offer TLS 1.3 with TLS_CHACHA20_POLY1305_SHA256 and HTTP/1.1")]
    ProviderSuite {
        /// The route's host.
        host: String,
    },
    /// The provider wants a client certificate.
    #[error("{host}: the provider asks for a client certificate, which a split-key connection cannot give")]
    ProviderWantsCertificate {
        /// The route's host.
        host: String,
    },
    /// Another TLS failure.
    #[error("{host}: the TLS handshake with the provider failed: {reason}")]
    ProviderTls {
        /// The route's host.
        host: String,
        /// rustls's reason.
        reason: String,
    },
    /// The provider's records are not good.
    #[error("the provider's TLS records were refused")]
    ProviderRecords(#[from] OpenError),
    /// A fatal alert in place of an answer.
    #[error("the provider gave up with TLS alert {code}")]
    ProviderAlert {
        /// RFC 8446 §6.
        code: u8,
    },
    /// The answer is not HTTP/1.1.
    #[error("the provider's answer is not valid HTTP/1.1")]
    ProviderHttp(#[from] HttpError),
    /// The stream ended before the answer.
    #[error("the answer was cut off ({reason}): it is not complete")]
    Truncated {
        /// How it ended, as the relay puts it.
        reason: String,
    },
    /// A ceiling was reached.
    #[error("the answer reached the request's ceiling of {bound} bytes")]
    CeilingReached {
        /// Bytes.
        bound: u64,
    },
    /// The time is over.
    #[error("{what} took longer than {} ms", .allowed_ms)]
    TimedOut {
        /// What.
        what: &'static str,
        /// Allowed.
        allowed_ms: u64,
    },
    /// The relay was lost after it had the request.
    #[error("the relay was lost before it said whether the request was forwarded")]
    OutcomeUnknown(#[source] Box<Error>),
    /// The provider's own error answer.
    #[error("the provider answered {status}: {}", body_text(.body))]
    Provider {
        /// HTTP status.
        status: u16,
        /// At most 64 KiB of its body.
        body: bytes::Bytes,
    },
    /// The provider's answer is not what the API promises.
    #[error("the provider's answer is not what its API promises: {0}")]
    ProviderAnswer(String),
    /// A receipt that does not verify.
    #[error("the receipt of {request} does not verify")]
    Receipt {
        /// Whose.
        request: RequestId,
        /// The failed check.
        #[source]
        source: Arc<ProofError>,
    },
    /// No settlement in time.
    #[error("request {request} has no settlement in the log yet")]
    NotSettled {
        /// Whose.
        request: RequestId,
    },
    /// The system's randomness failed.
    #[error("the operating system gave no randomness")]
    NoRandomness,
    /// The client is closed.
    #[error("the client was closed")]
    Closed,
}

fn join(failures: &[NodeFailure]) -> String {
    failures.iter().map(|f| format!("{}: {}", f.address, f.reason)).collect::<Vec<_>>().join("; ")
}

fn missing(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; missing: {}", names.join(", ")) }
}

fn body_text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(600).collect()
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Trust(_)
            | Self::UnknownModel { .. }
            | Self::UnknownRoute { .. }
            | Self::CredentialHeader { .. }
            | Self::Head(_)
            | Self::Body(_)
            | Self::BodyTooLarge { .. }
            | Self::CeilingReached { .. }
            | Self::NoRandomness
            | Self::Closed => Fault::Client,
            Self::UnknownClient { .. }
            | Self::WrongClientKey { .. }
            | Self::BadRoute { .. }
            | Self::NoPairLeft { .. } => Fault::Operator,
            Self::NoNode(_)
            | Self::Dark(_)
            | Self::Directory { .. }
            | Self::Stale { .. }
            | Self::Fork { .. }
            | Self::NoRelay { .. }
            | Self::NodeLost { .. }
            | Self::NodeMisbehaved { .. }
            | Self::OutcomeUnknown(_)
            | Self::Receipt { .. }
            | Self::NotSettled { .. } => Fault::Mesh,
            Self::ProviderUnreachable { .. }
            | Self::ProviderCertificate { .. }
            | Self::ProviderSuite { .. }
            | Self::ProviderWantsCertificate { .. }
            | Self::ProviderTls { .. }
            | Self::ProviderRecords(_)
            | Self::ProviderAlert { .. }
            | Self::ProviderHttp(_)
            | Self::Truncated { .. }
            | Self::TimedOut { .. }
            | Self::Provider { .. }
            | Self::ProviderAnswer(_) => Fault::Provider,
            Self::Refused(refusal) => refusal.fault,
        }
    }

    /// Whether to try again. [`crate::Client::request`] has already retried what is [`Retry::Now`].
    pub fn retry(&self) -> Retry {
        match self {
            Self::NodeLost { .. } | Self::NodeMisbehaved { .. } => Retry::Now,
            Self::NoNode(_)
            | Self::Dark(_)
            | Self::Stale { .. }
            | Self::NoRelay { .. }
            | Self::NoPairLeft { .. }
            | Self::ProviderUnreachable { .. }
            | Self::Directory { .. }
            | Self::NotSettled { .. } => Retry::Later,
            Self::Provider { status, .. } if *status == 429 || *status >= 500 => Retry::Later,
            Self::ProviderRecords(_)
            | Self::ProviderAlert { .. }
            | Self::ProviderHttp(_)
            | Self::Truncated { .. }
            | Self::TimedOut { .. }
            | Self::OutcomeUnknown(_)
            | Self::ProviderAnswer(_) => Retry::Unknown,
            Self::Trust(_)
            | Self::Fork { .. }
            | Self::UnknownClient { .. }
            | Self::WrongClientKey { .. }
            | Self::UnknownModel { .. }
            | Self::UnknownRoute { .. }
            | Self::BadRoute { .. }
            | Self::CredentialHeader { .. }
            | Self::Head(_)
            | Self::Body(_)
            | Self::BodyTooLarge { .. }
            | Self::ProviderCertificate { .. }
            | Self::ProviderSuite { .. }
            | Self::ProviderWantsCertificate { .. }
            | Self::ProviderTls { .. }
            | Self::CeilingReached { .. }
            | Self::Provider { .. }
            | Self::Receipt { .. }
            | Self::NoRandomness
            | Self::Closed => Retry::Never,
            Self::Refused(refusal) => refusal.retry,
        }
    }

    /// A stable name for programs: snake_case; a node's own code where a node refused.
    pub fn code(&self) -> &str {
        match self {
            Self::Trust(_) => "trust_file",
            Self::NoNode(_) => "no_node",
            Self::Dark(_) => "dark",
            Self::Directory { .. } => "directory_unproven",
            Self::Stale { .. } => "directory_stale",
            Self::Fork { .. } => "fork",
            Self::UnknownClient { .. } => "unknown_client",
            Self::WrongClientKey { .. } => "wrong_client_key",
            Self::UnknownModel { .. } => "model_not_found",
            Self::UnknownRoute { .. } => "unknown_route",
            Self::BadRoute { .. } => "bad_route",
            Self::NoRelay { .. } => "no_relay",
            Self::NoPairLeft { .. } => "no_pair_left",
            Self::CredentialHeader { .. } => "credential_header",
            Self::Refused(refusal) => &refusal.code,
            Self::NodeLost { .. } => "node_lost",
            Self::NodeMisbehaved { .. } => "node_misbehaved",
            Self::Head(_) => "head_not_allowed",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::Body(_) => "body_not_sealed",
            Self::ProviderUnreachable { .. } => "provider_unreachable",
            Self::ProviderCertificate { .. } => "provider_certificate",
            Self::ProviderSuite { .. } => "provider_suite",
            Self::ProviderWantsCertificate { .. } => "provider_wants_certificate",
            Self::ProviderTls { .. } => "provider_tls",
            Self::ProviderRecords(_) => "provider_records",
            Self::ProviderAlert { .. } => "provider_alert",
            Self::ProviderHttp(_) => "provider_http",
            Self::Truncated { .. } => "truncated",
            Self::CeilingReached { .. } => "ceiling_reached",
            Self::TimedOut { .. } => "timed_out",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::Provider { .. } => "provider_error",
            Self::ProviderAnswer(_) => "provider_answer",
            Self::Receipt { .. } => "receipt_unproven",
            Self::NotSettled { .. } => "not_settled",
            Self::NoRandomness => "no_randomness",
            Self::Closed => "closed",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &str {
        match self {
            Self::Trust(source) => source.hint(),
            Self::NoNode(_) => {
                "check the addresses in the trust file, and on each node whether `quorated` runs"
            }
            Self::Dark(_) => {
                "start the missing nodes; the mesh comes back by itself. `quorate status` names them"
            }
            Self::Directory { .. } => {
                "compare the trust file's genesis with your admin's; if it is right, report that node"
            }
            Self::Stale { .. } => {
                "check this machine's clock; if it is right, the mesh makes no progress: see `quorate status`"
            }
            Self::Fork { .. } => "stop; keep both proofs and call your security team",
            Self::UnknownClient { .. } => "ask an admin to grant it: `quorate admin client add`",
            Self::WrongClientKey { .. } => "use the granted key file, or ask an admin to grant this key",
            Self::UnknownModel { .. } | Self::UnknownRoute { .. } => {
                "`quorate status --routes` lists routes and models"
            }
            Self::BadRoute { .. } => "ask an admin to correct the route in the policy",
            Self::NoRelay { .. } => {
                "wait for more nodes to be attested (`quorate status`), or add nodes under another custodian"
            }
            Self::NoPairLeft { .. } => {
                "try again in a minute; if it stays so, `quorate status` names nodes without shares; if there are none, the provider may refuse the key itself: admins try each pair with `quorate admin credential check`, then `credential rotate`, or `credential lift` once the cause is gone"
            }
            Self::CredentialHeader { .. } => {
                "leave the key out of the application and its environment: where the SDK insists on one, any word will do with `quorate serve`"
            }
            Self::Refused(refusal) => &refusal.hint,
            Self::NodeLost { .. } => "nothing to do: the next request goes through another node",
            Self::NodeMisbehaved { .. } => "report that node to its custodian",
            Self::Head(_) => "use a path and headers that the route allows: `quorate status --routes`",
            Self::BodyTooLarge { .. } => "send less, or ask an admin to raise the route's body_bytes_max",
            Self::Body(_) => "report this as a bug",
            Self::ProviderUnreachable { .. } => {
                "check that the provider is up and that the relays may reach it"
            }
            Self::ProviderCertificate { .. } => {
                "check the route's host and ca_pem; if both are right, somebody may be intercepting the connection"
            }
            Self::ProviderSuite { .. } => {
                "the provider must offer TLS_CHACHA20_POLY1305_SHA256 in TLS 1.3: enable it there, or route to another provider"
            }
            Self::ProviderWantsCertificate { .. } => {
                "turn client certificates off at the provider for this host"
            }
            Self::ProviderTls { .. } => "check the provider's TLS settings and the route's port",
            Self::ProviderRecords(_) | Self::ProviderAlert { .. } | Self::ProviderHttp(_) => {
                "the provider or something before it garbles the connection; send again if the request may be repeated"
            }
            Self::Truncated { .. } => {
                "do not use the partial answer; send again if the request may be repeated"
            }
            Self::CeilingReached { .. } => "raise the request's response_bytes_max, up to the route's",
            Self::TimedOut { .. } => "raise the request's duration, or ask for less",
            Self::OutcomeUnknown(_) => {
                "send again if the request may be repeated; mark it idempotent to have that done for you"
            }
            Self::Provider { status: 401 | 403, .. } => {
                "the provider refused the route's credential: tell your admins"
            }
            Self::Provider { status: 429, .. } => "wait: the provider limits the rate",
            Self::Provider { .. } => "see the provider's own message",
            Self::ProviderAnswer(_) => "check that the route's dialect is the provider's",
            Self::Receipt { .. } => "keep the receipt and the trust file, and tell your security team",
            Self::NotSettled { .. } => "ask again in a moment",
            Self::NoRandomness => "check the operating system",
            Self::Closed => "keep the client alive while requests run",
        }
    }

    pub(crate) fn from_connect(node: NodeId, error: &quorate_transport::ConnectError) -> Self {
        Self::NodeLost { node, reason: chain(error) }
    }

    pub(crate) fn from_status(node: NodeId, status: &tonic::Status) -> Self {
        match refusal_of(status) {
            Some(refusal) => Self::Refused(refusal),
            None => Self::NodeLost { node, reason: status_text(status) },
        }
    }
}

/// The typed refusal a unary call's status carries.
pub(crate) fn refusal_of(status: &tonic::Status) -> Option<MeshRefusal> {
    let value = status.metadata().get_bin(quorate_proto::REFUSAL_METADATA)?.to_bytes().ok()?;
    <v1::Refused as prost::Message>::decode(value).ok().map(MeshRefusal::from)
}

/// A status in one plain line.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let text: String = status.message().chars().filter(|c| !c.is_control()).take(REFUSAL_TEXT_MAX).collect();
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(retry: v1::Retry, fault: v1::Fault) -> MeshRefusal {
        v1::Refused {
            code: "dark".into(),
            message: "a\x1b[31mb".into(),
            hint: "h".into(),
            retry: retry.into(),
            fault: fault.into(),
        }
        .into()
    }

    #[test]
    fn refusals_map_and_lose_control_characters() {
        let r = refused(v1::Retry::Now, v1::Fault::Provider);
        assert_eq!((r.retry, r.fault, r.message.as_str()), (Retry::Now, Fault::Provider, "a[31mb"));
        // What a node leaves open is not retried and is the mesh's.
        let r = refused(v1::Retry::Unspecified, v1::Fault::Unspecified);
        assert_eq!((r.retry, r.fault), (Retry::Never, Fault::Mesh));
    }

    #[test]
    fn every_error_answers_the_three_questions() {
        let request = RequestId([1; 16]);
        let (route, host, reason) = ("r".to_owned(), "h".to_owned(), "x".to_owned());
        let node = NodeId(1);
        let proof = Arc::new(ProofError::Malformed);
        let table: Vec<(Error, Fault, Retry)> = vec![
            (Error::NoNode(vec![]), Fault::Mesh, Retry::Later),
            (Error::Dark(Darkness { attested: 2, quorum: 3, missing: vec![] }), Fault::Mesh, Retry::Later),
            (Error::Directory { node: "a".into(), source: proof.clone() }, Fault::Mesh, Retry::Later),
            (Error::Stale { age_ms: 2, bound_ms: 1 }, Fault::Mesh, Retry::Later),
            (Error::Fork { size: 1 }, Fault::Mesh, Retry::Never),
            (Error::UnknownClient { name: "c".into() }, Fault::Operator, Retry::Never),
            (Error::WrongClientKey { name: "c".into() }, Fault::Operator, Retry::Never),
            (Error::UnknownModel { model: "m".into() }, Fault::Client, Retry::Never),
            (Error::UnknownRoute { route: route.clone() }, Fault::Client, Retry::Never),
            (Error::BadRoute { route: route.clone(), reason: reason.clone() }, Fault::Operator, Retry::Never),
            (Error::NoPairLeft { route: route.clone() }, Fault::Operator, Retry::Later),
            (Error::CredentialHeader { name: "x".into() }, Fault::Client, Retry::Never),
            (Error::NoRelay { route }, Fault::Mesh, Retry::Later),
            (Error::Refused(refused(v1::Retry::Later, v1::Fault::Client)), Fault::Client, Retry::Later),
            (Error::NodeLost { node, reason: reason.clone() }, Fault::Mesh, Retry::Now),
            (Error::NodeMisbehaved { node, what: reason.clone() }, Fault::Mesh, Retry::Now),
            (Error::BodyTooLarge { length: 2, bound: 1 }, Fault::Client, Retry::Never),
            (
                Error::ProviderUnreachable { host: host.clone(), reason: reason.clone() },
                Fault::Provider,
                Retry::Later,
            ),
            (
                Error::ProviderCertificate { host: host.clone(), reason: reason.clone() },
                Fault::Provider,
                Retry::Never,
            ),
            (Error::ProviderSuite { host: host.clone() }, Fault::Provider, Retry::Never),
            (Error::ProviderWantsCertificate { host: host.clone() }, Fault::Provider, Retry::Never),
            (Error::ProviderTls { host, reason: reason.clone() }, Fault::Provider, Retry::Never),
            (Error::ProviderAlert { code: 80 }, Fault::Provider, Retry::Unknown),
            (Error::ProviderHttp(HttpError::HeadTooLong), Fault::Provider, Retry::Unknown),
            (Error::Truncated { reason }, Fault::Provider, Retry::Unknown),
            (Error::CeilingReached { bound: 1 }, Fault::Client, Retry::Never),
            (Error::TimedOut { what: "x", allowed_ms: 1 }, Fault::Provider, Retry::Unknown),
            (Error::OutcomeUnknown(Box::new(Error::Closed)), Fault::Mesh, Retry::Unknown),
            (Error::Provider { status: 400, body: "{}".into() }, Fault::Provider, Retry::Never),
            (Error::Provider { status: 429, body: "{}".into() }, Fault::Provider, Retry::Later),
            (Error::Provider { status: 503, body: "{}".into() }, Fault::Provider, Retry::Later),
            (Error::ProviderAnswer("x".into()), Fault::Provider, Retry::Unknown),
            (Error::Receipt { request, source: proof }, Fault::Mesh, Retry::Never),
            (Error::NotSettled { request }, Fault::Mesh, Retry::Later),
            (Error::NoRandomness, Fault::Client, Retry::Never),
            (Error::Closed, Fault::Client, Retry::Never),
        ];
        for (error, fault, retry) in table {
            assert_eq!((error.fault(), error.retry()), (fault, retry), "{error}");
            assert!(!error.hint().is_empty() && !error.hint().ends_with('.'), "{error}");
            assert!(error.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_missing_suite_names_its_cure() {
        assert!(Error::ProviderSuite { host: "h".into() }.hint().contains("TLS_CHACHA20_POLY1305_SHA256"));
    }

    #[test]
    fn darkness_names_the_lost_quorum() {
        let dark = Error::Dark(Darkness { attested: 2, quorum: 3, missing: vec!["n3 (lapsed)".into()] });
        assert_eq!(
            dark.to_string(),
            "the mesh lacks a quorum: 2 of the 3 nodes it needs are there; missing: n3 (lapsed)"
        );
    }
}
