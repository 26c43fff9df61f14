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
    /// What money in this document is in, such as `USD`: for people, nothing is converted. All money is in micro-units
    /// (millionths) of it. Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub currency: String,
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
    /// What the tokens of models cost. Default none: nothing is priced, and no money can be limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub price: Vec<PriceDocument>,
    /// Clients that share limits. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub team: Vec<TeamDocument>,
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
    /// How old a nonce may be by entry time. Default 60,000 ms; the least is 30,000, or lapse where that is shorter. Where it is less
    /// than lapse, a mesh whose nodes were all down for longer than this has to wait until their evidence lapses.
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
            nonce_age_ms: 60_000,
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
    /// Paths that may be asked for, below `base_path`. Only inference. One that ends with `/*` stands for all below it; any
    /// other is exact, and may end with a fixed query (`:streamGenerateContent?alt=sse`).
    pub paths: Vec<String>,
    /// Wire dialect: `openai`, `anthropic`, `gemini` or `bedrock`. Default `openai`.
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

/// A row of the price table. All prices are micro-units of the policy's currency: 2.50 per million tokens is 2_500_000.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceDocument {
    /// Name, such as `openai/gpt-4o`; requests name the row they are paid by.
    pub name: String,
    /// Routes it applies to.
    pub routes: Vec<String>,
    /// Names of models, as applications ask for them, that this is the price of. Default: the row's own name, or what follows
    /// its last `/`. No node sees which model a request asks for: clients choose the row, and sign their choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Micro-units per million tokens of input.
    pub input: u64,
    /// Micro-units per million tokens of input that the provider had cached. Default: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Micro-units per million tokens of output.
    pub output: u64,
    /// Micro-units per request that reached the provider, besides. Default 0.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub request: u64,
    /// Input tokens that the provider may bill though no byte of a request carries them: images by reference, stored context.
    /// A report of more tokens than bytes and these is an anomaly, and charged at that bound. Default 0.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub unseen_input: u64,
    /// Output tokens that the provider may bill and not send, such as hidden reasoning; likewise. Default 0.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub unseen_output: u64,
    /// Most tokens of input that the model takes: no request holds more of a budget. Default as many as its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_max: Option<u64>,
    /// Most tokens of output that the model gives in one answer. Set it where money is limited: a request that names no ceiling
    /// of its own holds the price of so many, or else of as many as the answer may have bytes. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_max: Option<u64>,
}

/// Clients that share limits: what all of them together may use. Windows are the UTC minute, day and calendar month of the
/// entry's time; what runs holds its ceilings until it is settled. Default of each limit: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamDocument {
    /// Name of the team.
    pub name: String,
    /// Requests per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Requests per day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_day: Option<u64>,
    /// Requests per month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_month: Option<u64>,
    /// Bytes up and down per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_minute: Option<u64>,
    /// Bytes up and down per day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    /// Bytes up and down per month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_month: Option<u64>,
    /// Micro-units per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_minute: Option<u64>,
    /// Micro-units per day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_day: Option<u64>,
    /// Micro-units per month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_month: Option<u64>,
}

fn is_nothing(n: &u64) -> bool {
    *n == 0
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
    /// Requests per calendar month (UTC). Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_month: Option<u64>,
    /// Bytes per minute. Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_minute: Option<u64>,
    /// Bytes per month. Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_month: Option<u64>,
    /// Micro-units of the policy's currency per minute. Default no limit. A client with any limit on money names a price with
    /// each request, or is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_minute: Option<u64>,
    /// Micro-units per day. Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_day: Option<u64>,
    /// Micro-units per month. Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_per_month: Option<u64>,
    /// The team whose limits it shares. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// It may mint short-lived tokens that live at most so long, ms; at most a day. Default: it may mint none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_lifetime_ms_max: Option<u64>,
    /// End of the grant.
    pub expires: toml::value::Datetime,
    /// Revoked clients stay listed, so that refusals name the reason. Default false.
    #[serde(default)]
    pub revoked: bool,
}

impl ClientDocument {
    /// A grant with the limits that every grant has, and no other.
    pub fn new(
        name: impl Into<String>,
        key: impl Into<String>,
        custodian: impl Into<String>,
        routes: Vec<String>,
        expires: toml::value::Datetime,
    ) -> Self {
        Self {
            name: name.into(),
            key: key.into(),
            custodian: custodian.into(),
            routes,
            requests_per_minute: 600,
            requests_per_day: 100_000,
            bytes_per_day: 100_000_000_000,
            requests_per_month: None,
            bytes_per_minute: None,
            bytes_per_month: None,
            money_per_minute: None,
            money_per_day: None,
            money_per_month: None,
            team: None,
            token_lifetime_ms_max: None,
            expires,
            revoked: false,
        }
    }
}
