//! What somebody should look at: kinds, how bad they are, and what they mean. An alarm has an id that follows from its cause, so
//! that the same one is never told twice.
use quorate_core::ids::Timestamp;
use quorate_core::tlog::LeafIndex;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What was seen. The JSON name is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Two signed checkpoints of one log that do not fit together.
    SplitView,
    /// A certified history that is not what the state machine does.
    RulesBroken,
    /// The log holds two cosignatures of one node over two roots at one size.
    Equivocation,
    /// The witness has cosigned a history that is not this one.
    WitnessOtherHistory,
    /// A node serves as checkpoint what no quorum certified.
    Uncertified,
    /// A node serves as checkpoint what is none of this log.
    BadCheckpoint,
    /// A node serves a checkpoint, and not what is under it.
    Unserved,
    /// A node's evidence became too old.
    Lapsed,
    /// A node's evidence was refused.
    AppraisalRefused,
    /// A node did not prove itself to another in the channel.
    AdmissionRefused,
    /// Admins changed the policy.
    PolicyChanged,
    /// A route leads to a host that no earlier policy named.
    NewDestination,
    /// A provider answered with a status that an inference request should not get.
    OddStatus,
    /// The state machine flagged a request.
    Anomaly,
    /// A request's time does not fit: a detour, or a settlement that was held back.
    Detour,
    /// A request was authorised and never settled.
    Unsettled,
    /// A leader did not commit what a node signed.
    Withheld,
    /// A keyer refused a request's head.
    HeadRefused,
    /// A pair was suspended, or a provider's key frozen.
    CredentialStopped,
    /// Fewer than a quorum of nodes are attested: nothing is forwarded.
    Dark,
    /// The mesh came back from the dark.
    Recovered,
    /// A leader proposed bytes that are no entry.
    Undecodable,
    /// A node does not answer.
    Unreachable,
    /// A node's certified checkpoint stays behind the others'.
    NodeBehind,
    /// No node has a recent certified checkpoint.
    Stale,
    /// The witness's cosignature stays behind the log, or the log behind what the witness has seen.
    WitnessBehind,
    /// The witness does not answer, or not as it should.
    WitnessFailing,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; may be all right.
    Notice,
    /// Somebody should look.
    Warning,
    /// Somebody is proven to have lied.
    Proven,
}

impl Kind {
    /// The stable name.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::SplitView | Self::RulesBroken | Self::Equivocation | Self::WitnessOtherHistory => {
                Severity::Proven
            }
            Self::PolicyChanged | Self::Recovered => Severity::Notice,
            Self::Uncertified
            | Self::BadCheckpoint
            | Self::Unserved
            | Self::Lapsed
            | Self::AppraisalRefused
            | Self::AdmissionRefused
            | Self::NewDestination
            | Self::OddStatus
            | Self::Anomaly
            | Self::Detour
            | Self::Unsettled
            | Self::Withheld
            | Self::HeadRefused
            | Self::CredentialStopped
            | Self::Dark
            | Self::Undecodable
            | Self::Unreachable
            | Self::NodeBehind
            | Self::Stale
            | Self::WitnessBehind
            | Self::WitnessFailing => Severity::Warning,
        }
    }

    /// What it means, and what to do.
    pub fn means(self) -> &'static str {
        match self {
            Self::SplitView => {
                "Whoever signed both checkpoints told two histories. Keep the evidence, compare with other auditors, stop \
                 using the nodes that signed both, and rotate what they could reach."
            }
            Self::RulesBroken => {
                "A quorum certified what the rules do not give: it runs other software, or its keys are in one hand."
            }
            Self::Equivocation => {
                "The accused node signed two histories: both cosignatures stand in that leaf. Remove the node."
            }
            Self::WitnessOtherHistory => {
                "Somebody showed the witness another history of this log, with signatures it accepts. Ask its operator for \
                 the checkpoint that it cosigned."
            }
            Self::Uncertified => {
                "The node calls certified what is not. It is hostile or broken; nothing of it was believed."
            }
            Self::BadCheckpoint => {
                "The node serves another log, or no checkpoint. Nothing of it was believed."
            }
            Self::Unserved => {
                "The node names a tree and withholds its leaves, or serves others than the tree has: whether it tells \
                 another history cannot be seen."
            }
            Self::Lapsed => {
                "The node counts for nothing until it is attested again. A reboot looks like this too."
            }
            Self::AppraisalRefused => {
                "What the node booted, or its TPM's state, is not what admins signed. Compare with its reference values."
            }
            Self::AdmissionRefused => {
                "By that node's word, the other could not prove who it is. If many say so, somebody poses as a member."
            }
            Self::PolicyChanged => "Make sure that the signers meant this change.",
            Self::NewDestination => {
                "Prompts may go to a place where none went before. Make sure that the signers meant this."
            }
            Self::OddStatus => {
                "A wrong key, a redirect or a proxy's error looks like this: over one pair of nodes again and again it may be \
                 an attack on the provider's key."
            }
            Self::Anomaly => {
                "What relay and client say of the request does not fit together, or it failed oddly."
            }
            Self::Detour => {
                "It took another way, waited somewhere, or a node reported it late or wrongly. Compare the relay's requests \
                 with other relays'."
            }
            Self::Unsettled => {
                "Relay or client kept silent about how the request ended: its bytes and outcome are unknown."
            }
            Self::Withheld => {
                "The leader of that time delayed a command, or was overloaded. Again and again is hostile."
            }
            Self::HeadRefused => "The client or its relay sent a head that the route does not allow.",
            Self::CredentialStopped => {
                "Enough requests failed as with a wrong key. An admin should look before lifting it."
            }
            Self::Dark => "No request is forwarded. It ends by itself when enough nodes are attested again.",
            Self::Recovered => {
                "The mesh established its keys anew. After a power cut that is as it should be."
            }
            Self::Undecodable => "A leader proposed nonsense: that node runs other software or is hostile.",
            Self::Unreachable => "It is down, or the way to it is cut; what it would say is unknown.",
            Self::NodeBehind => {
                "It is cut off from its peers, overloaded, or shows this monitor an old state."
            }
            Self::Stale => "The mesh has stopped, or every node shows this monitor an old state.",
            Self::WitnessBehind => "Whoever demands the witness's cosignature does not get recent ones.",
            Self::WitnessFailing => "Whoever demands its cosignature gets no new ones.",
        }
    }
}

/// Whether it began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// It is so.
    Raised,
    /// A condition that was raised is over.
    Cleared,
}

/// One alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Never twice.
    pub id: String,
    /// Of what kind.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// Began or ended.
    pub state: Turn,
    /// When: the leaf's time, or the monitor's own.
    pub time: Timestamp,
    /// The leaf that says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<LeafIndex>,
    /// Who it is about: a node's URL or name, a request, a route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was seen.
    pub what: String,
    /// What it means.
    pub means: String,
    /// A folder that convinces others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<PathBuf>,
}

impl Alarm {
    /// What a leaf says; `nth` tells alarms of one kind and leaf apart.
    pub fn of_leaf(kind: Kind, leaf: LeafIndex, nth: usize, time: Timestamp, what: String) -> Self {
        Self { leaf: Some(leaf), ..Self::new(kind, format!("leaf-{leaf}-{}-{nth}", kind.name()), time, what) }
    }

    /// With an id of the caller's.
    pub fn new(kind: Kind, id: String, time: Timestamp, what: String) -> Self {
        Self {
            id,
            kind,
            severity: kind.severity(),
            state: Turn::Raised,
            time,
            leaf: None,
            subject: None,
            what,
            means: kind.means().to_owned(),
            evidence: None,
        }
    }

    /// About somebody.
    pub fn about(self, subject: impl std::fmt::Display) -> Self {
        Self { subject: Some(subject.to_string()), ..self }
    }
}
