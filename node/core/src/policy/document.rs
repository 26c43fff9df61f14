//! The document as serde reads and writes it; field docs say default, unit and consequence. Nothing here is checked yet.
use quorate_attest::reference_values::ReferenceValues;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a document looks like to serde; field docs say default, unit and consequence.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// Format of this document; 1.
    pub format: u32,
    /// The cluster's name; part of the tlog's origin. Cannot change after genesis.
    pub cluster: String,
    /// 1 for genesis, then one higher each time.
    pub version: u64,
    /// Hex SHA-256 of the document this one replaces; empty in genesis.
    #[serde(default)]
    pub previous: String,
    /// When this document stops being acceptable as a *change* (RFC 3339, UTC). It goes on ruling once in force.
    pub expires: toml::value::Datetime,
    /// f: how many hostile nodes certification survives. Default 1 (0 is refused).
    #[serde(default = "one")]
    pub hostile_nodes_max: u32,
    /// How many admins must sign a change.
    pub admin_threshold: u32,
    /// Base64 of the SEC1 P-256 point whose approvals let a node's TPM unseal its share key. Default none: then no member can
    /// hold shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_approver: Option<String>,
    /// The admins.
    pub admin: Vec<AdminDocument>,
    /// What counts as good evidence.
    #[serde(default)]
    pub attestation: AttestationDocument,
    /// The nodes.
    pub member: Vec<MemberDocument>,
    /// Reference values by name; a member names the set that fits its machine.
    #[serde(default)]
    pub reference_values: BTreeMap<String, ReferenceValues>,
    /// For each set of reference values, the hex SHA-256 of the signed release manifests it was taken from: so that auditors
    /// know which SBOM a measured node answers to. No decision of the mesh rests on it. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub releases: BTreeMap<String, BTreeSet<String>>,
    /// Where requests may go.
    #[serde(default)]
    pub route: Vec<RouteDocument>,
    /// Who may ask.
    #[serde(default)]
    pub client: Vec<ClientDocument>,
}

fn one() -> u32 {
    1
}

/// An admin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminDocument {
    /// A name for people.
    pub name: String,
    /// OpenSSH public key line (`ssh-ed25519` or `sk-ssh-ed25519@openssh.com`).
    pub key: String,
}

/// Appraisal policy and timing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationDocument {
    /// PCRs a quote must cover, exactly. Default 0, 2, 4, 7, 11.
    pub pcrs: BTreeSet<u8>,
    /// How often a node quotes. Default 20,000 ms.
    pub evidence_interval_ms: u64,
    /// Evidence older than this by entry time is no evidence. Default 60,000 ms.
    pub lapse_ms: u64,
    /// How old a nonce may be by entry time. Default 30,000 ms, also the least unless lapse is shorter.
    pub nonce_age_ms: u64,
    /// Accept evidence from software TPMs. Default false. Only for development: they prove nothing about a machine.
    pub allow_software_tpm: bool,
    /// How far an entry's time may lie from a node's clock. Default 5,000 ms.
    pub clock_skew_ms: u64,
    /// How long a pool of connections stays authorised, at most. Default 300,000 ms.
    pub pool_lifetime_ms: u64,
    /// A request without settlement for this long is an anomaly. Default 600,000 ms.
    pub settle_ms: u64,
}

impl Default for AttestationDocument {
    fn default() -> Self {
        Self {
            pcrs: BTreeSet::from([0, 2, 4, 7, 11]),
            evidence_interval_ms: 20_000,
            lapse_ms: 60_000,
            nonce_age_ms: 30_000,
            allow_software_tpm: false,
            clock_skew_ms: 5_000,
            pool_lifetime_ms: 300_000,
            settle_ms: 600_000,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberDocument {
    /// Number of the node, 1 or more, never reused.
    pub id: u64,
    /// Short name, used in cosignature lines.
    pub name: String,
    /// Who has root there.
    pub custodian: String,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// `host:port` of its HTTP service (tiles, checkpoint, metrics).
    pub http: String,
    /// Base64 of the AK's `TPMT_PUBLIC`, as enrolment printed it.
    pub ak: String,
    /// Set by enrolment when the EK belongs to a software TPM.
    #[serde(default)]
    pub software_tpm: bool,
    /// Which set of reference values applies.
    pub reference_values: String,
    /// Base64 of the HPKE public key (X-Wing) that shares are sealed to, as enrolment printed it. Default none: such a member
    /// can hold no shares, so no route can have a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_key: Option<String>,
    /// Value of the member's NV counter at enrolment; approvals name the counter they hold up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_counter: Option<u64>,
    /// Base64 of the approver's signatures, one per allowed combination of PCR values. Default none: nothing is unsealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDocument {
    /// Name of the route.
    pub name: String,
    /// Provider's host name: SNI, certificate name and `host` header.
    pub host: String,
    /// Provider's port. Default 443.
    #[serde(default = "https_port")]
    pub port: u16,
    /// What stands before every path, such as `/openai`. Default empty.
    #[serde(default)]
    pub base_path: String,
    /// Paths that may be asked for, below `base_path`. Only inference.
    pub paths: Vec<String>,
    /// Wire dialect, `openai` or `anthropic`.
    #[serde(default = "openai")]
    pub dialect: String,
    /// Headers a client may set, lower case, besides those the head always has.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Model names that resolve to this route; `*` for any.
    pub models: Vec<String>,
    /// PEM of the only root that may have signed the provider's certificate. Default: the client's system roots.
    #[serde(default)]
    pub ca_pem: String,
    /// Largest request body, bytes. Default 16 MiB.
    #[serde(default = "body_bytes")]
    pub body_bytes_max: u64,
    /// Largest response, bytes. Default 64 MiB.
    #[serde(default = "response_bytes")]
    pub response_bytes_max: u64,
    /// Longest a request may run, ms. Default 600,000.
    #[serde(default = "duration")]
    pub duration_ms_max: u64,
    /// The provider's key, split. Default none: a self-hosted model that wants no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialDocument>,
}

/// A provider's key: how it looks, and its shares. Written by `quorate admin credential`, never by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialDocument {
    /// Header that carries the key: `bearer`, `x-api-key`, `api-key` or `x-goog-api-key`.
    pub scheme: String,
    /// The key's public beginning, such as `sk-ant-api03-`; it stands in the head. Default empty.
    #[serde(default)]
    pub public_prefix: String,
    /// Length of the rest, the secret, in bytes.
    pub secret_bytes: u16,
    /// Which splitting these shares are of: 1 or more, higher with each, never used again.
    pub share_epoch: u32,
    /// The provider echoes keys in its errors, and admins accept that whoever sees them may. Default false.
    #[serde(default)]
    pub accept_echo: bool,
    /// Admins stopped the credential: nothing is authorised with it. Default false. May change within a share epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// Raised by admins to lift what the metering imposed in this share epoch (pairs suspended, clients barred, the freeze);
    /// counting starts anew, so each lift lets a hostile node try as much again. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lifted: u32,
    /// Node id to base64 of that node's sealed shares; exactly the members.
    pub shares: BTreeMap<String, String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn https_port() -> u16 {
    443
}
fn openai() -> String {
    "openai".into()
}
fn body_bytes() -> u64 {
    16 * 1024 * 1024
}
fn response_bytes() -> u64 {
    64 * 1024 * 1024
}
fn duration() -> u64 {
    600_000
}

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientDocument {
    /// Name of the client.
    pub name: String,
    /// Base64 of the client's Ed25519 public key (32 bytes).
    pub key: String,
    /// Who has root where the client runs.
    pub custodian: String,
    /// Routes it may use.
    pub routes: Vec<String>,
    /// Requests per minute (UTC minute of the entry's time).
    pub requests_per_minute: u64,
    /// Requests per day (UTC).
    pub requests_per_day: u64,
    /// Bytes up and down per day (UTC); running requests reserve their ceilings.
    pub bytes_per_day: u64,
    /// End of the grant.
    pub expires: toml::value::Datetime,
    /// Revoked clients stay listed, so that refusals name the reason. Default false.
    #[serde(default)]
    pub revoked: bool,
}
