//! The policy: one TOML document that says who is a member, admin, client, what is a route, and what counts as good
//! evidence. A version is signed by m of n admins over its exact bytes (`ssh-keygen -Y sign -n quorate`), names the
//! SHA-256 of the version it replaces, and expires. Version 1 is genesis; its digest is the cluster's identity.
//!
//! Parsing decides everything once: a [`Policy`] cannot contradict itself. It reports *all* mistakes, not the first.
use crate::crypto::{Hash, PublicKey, sha256};
use crate::ids::{ClientId, Custodian, ModelId, NAME_BYTES_MAX, NodeId, PolicyVersion, RouteId, Timestamp};
use crate::sshsig::{AdminKey, SshSignature};
use crate::tlog::Origin;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::reference_values::ReferenceValues;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest policy document: thousands of clients, yet read and hashed in milliseconds.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
/// Most members: certification is all-to-all.
pub const MEMBERS_MAX: usize = 7;
/// Fewest members: below three nothing can fail.
pub const MEMBERS_MIN: usize = 3;
/// Most admins.
pub const ADMINS_MAX: usize = 32;
/// A request's signature may be valid for this long at most; nonces are kept as long.
pub const REQUEST_LIFETIME_MS_MAX: u64 = 120_000;
/// Unsettled requests one client may hold.
pub const IN_FLIGHT_MAX: u32 = 4096;

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

/// A checked member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Custodian.
    pub custodian: Custodian,
    /// gRPC address.
    pub address: String,
    /// HTTP address.
    pub http: String,
    /// `TPMT_PUBLIC` of the AK.
    pub ak: Vec<u8>,
    /// Software TPM.
    pub software_tpm: bool,
    /// Reference values' name.
    pub reference_values: String,
}

/// A checked route; the numbers are the document's.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name.
    pub id: RouteId,
    /// As signed.
    pub document: RouteDocument,
}

/// A checked grant.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Name.
    pub id: ClientId,
    /// Key.
    pub key: PublicKey,
    /// Custodian.
    pub custodian: Custodian,
    /// Routes.
    pub routes: BTreeSet<RouteId>,
    /// Per minute.
    pub requests_per_minute: u64,
    /// Per day.
    pub requests_per_day: u64,
    /// Per day.
    pub bytes_per_day: u64,
    /// End.
    pub expires: Timestamp,
    /// Revoked.
    pub revoked: bool,
}

/// A policy that cannot contradict itself.
#[derive(Debug, Clone)]
pub struct Policy {
    /// SHA-256 of the document's bytes.
    pub digest: Hash,
    /// Name of the cluster.
    pub cluster: String,
    /// Version.
    pub version: PolicyVersion,
    /// Digest of the predecessor; `None` in genesis.
    pub previous: Option<Hash>,
    /// Last moment it may come into force.
    pub expires: Timestamp,
    /// f.
    pub hostile_nodes_max: u32,
    /// m of the admins.
    pub admin_threshold: usize,
    /// Admins by key.
    pub admins: BTreeMap<AdminKey, String>,
    /// Timing and appraisal.
    pub attestation: AttestationDocument,
    /// Members by number.
    pub members: BTreeMap<NodeId, Member>,
    /// Reference values by name.
    pub reference_values: BTreeMap<String, ReferenceValues>,
    /// Routes by name.
    pub routes: BTreeMap<RouteId, Route>,
    /// Grants by name.
    pub clients: BTreeMap<ClientId, Grant>,
}

/// A document and the admins' signatures over its bytes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedPolicy {
    /// The document, exactly as signed.
    pub document: Vec<u8>,
    /// Binary SSH signatures (PROTOCOL.sshsig), at most [`ADMINS_MAX`].
    pub signatures: Vec<SshSignature>,
}

/// Everything that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {} mistake(s): {}", .0.len(), .0.join("; "))]
pub struct PolicyMistakes(pub Vec<String>);

/// floor((n + f) / 2) + 1: two such sets share more than f members, so at least one honest one.
pub fn quorum(members: usize, hostile_nodes_max: u32) -> usize {
    (members + hostile_nodes_max as usize) / 2 + 1
}

impl Policy {
    /// Parses and checks a document.
    pub fn parse(document: &[u8]) -> Result<Self, PolicyMistakes> {
        let fail = |m: String| PolicyMistakes(vec![m]);
        if document.len() > POLICY_BYTES_MAX {
            return Err(fail(format!("{} bytes, at most {POLICY_BYTES_MAX}", document.len())));
        }
        let text = std::str::from_utf8(document).map_err(|e| fail(format!("not UTF-8: {e}")))?;
        let parsed: PolicyDocument = toml::from_str(text).map_err(|e| fail(e.to_string()))?;
        Checker::default().policy(parsed, sha256(document))
    }

    /// Cosignatures that certify a checkpoint under this policy.
    pub fn quorum(&self) -> usize {
        quorum(self.members.len(), self.hostile_nodes_max)
    }

    /// Counts distinct admins of *this* policy who signed `document`; refuses any signature that is none of theirs.
    pub fn check_signers(&self, signed: &SignedPolicy) -> Result<Vec<String>, crate::refusal::Refusal> {
        use crate::refusal::Refusal;
        if signed.signatures.len() > ADMINS_MAX {
            return Err(Refusal::Oversized);
        }
        let mut seen = BTreeMap::new();
        for signature in &signed.signatures {
            let key = signature.verify(&signed.document).map_err(|_| Refusal::BadSignature)?;
            let name = self.admins.get(&key).ok_or(Refusal::UnknownSigner)?;
            if seen.insert(key, name.clone()).is_some() {
                return Err(Refusal::UnknownSigner);
            }
        }
        if seen.len() < self.admin_threshold {
            Err(Refusal::TooFewSigners)
        } else {
            Ok(seen.into_values().collect())
        }
    }

    /// The name of the tlog, first line of every checkpoint (C2SP tlog-checkpoint): it names genesis, so that two
    /// clusters of one name are two logs.
    pub fn origin(cluster: &str, genesis: &Hash) -> Origin {
        match Origin::new(format!(
            "quorate/{cluster}/{}",
            hex::encode(genesis.0.get(..8).unwrap_or_default())
        )) {
            Ok(origin) => origin,
            Err(e) => unreachable!("a checked cluster name makes an origin: {e}"),
        }
    }
}

#[derive(Default)]
struct Checker {
    mistakes: Vec<String>,
}

impl Checker {
    fn wrong(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    fn keep<T, E: std::fmt::Display>(&mut self, what: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.wrong(format!("{what}: {e}"))).ok()
    }

    fn policy(mut self, d: PolicyDocument, digest: Hash) -> Result<Policy, PolicyMistakes> {
        if d.format != 1 {
            self.wrong(format!("format {} is not known, only 1", d.format));
        }
        if crate::ids::ClientId::new(d.cluster.as_str()).is_err() || d.cluster.contains('/') {
            self.wrong("cluster: a plain name without '/'");
        }
        let previous = match (d.version, d.previous.as_str()) {
            (0, _) => {
                self.wrong("version: starts at 1");
                None
            }
            (1, "") => None,
            (1, _) => {
                self.wrong("previous: empty in genesis");
                None
            }
            (_, hex) => self.keep(
                "previous",
                hex.parse::<Hash>().map_err(|_| "64 hex digits of the replaced document's SHA-256"),
            ),
        };
        let expires = self.keep("expires", unix_ms(&d.expires)).unwrap_or_default();
        let f = d.hostile_nodes_max;
        if f == 0 || (d.member.len() as u64) < 3 * u64::from(f) {
            self.wrong(format!("hostile_nodes_max: {f} needs at least {} members", 3 * f.max(1)));
        }
        if !(MEMBERS_MIN..=MEMBERS_MAX).contains(&d.member.len()) {
            self.wrong(format!("member: {MEMBERS_MIN} to {MEMBERS_MAX}, not {}", d.member.len()));
        }
        let admins = self.admins(&d);
        let members = self.members(&d);
        self.attestation(&d.attestation, &d.reference_values);
        let routes = self.routes(d.route);
        let clients = self.clients(d.client, &routes);
        if !self.mistakes.is_empty() {
            return Err(PolicyMistakes(self.mistakes));
        }
        Ok(Policy {
            digest,
            cluster: d.cluster,
            version: PolicyVersion(d.version),
            previous,
            expires,
            hostile_nodes_max: f,
            admin_threshold: d.admin_threshold as usize,
            admins,
            attestation: d.attestation,
            members,
            reference_values: d.reference_values,
            routes,
            clients,
        })
    }

    fn admins(&mut self, d: &PolicyDocument) -> BTreeMap<AdminKey, String> {
        let mut admins = BTreeMap::new();
        for a in &d.admin {
            if a.name.is_empty() || a.name.len() > NAME_BYTES_MAX {
                self.wrong(format!("admin: a name has 1 to {NAME_BYTES_MAX} bytes"));
            }
            if let Some(key) = self.keep(&format!("admin {:?}", a.name), AdminKey::from_openssh(&a.key))
                && admins.insert(key, a.name.clone()).is_some()
            {
                self.wrong(format!("admin {:?}: the key stands twice", a.name));
            }
        }
        let threshold = d.admin_threshold as usize;
        if threshold == 0 || threshold > d.admin.len() || d.admin.len() > ADMINS_MAX {
            self.wrong(format!(
                "admin_threshold: 1 to the number of admins ({}, at most {ADMINS_MAX})",
                d.admin.len()
            ));
        }
        admins
    }

    fn members(&mut self, d: &PolicyDocument) -> BTreeMap<NodeId, Member> {
        let mut members = BTreeMap::new();
        let mut aks = BTreeSet::new();
        let mut names = BTreeSet::new();
        for m in &d.member {
            let what = format!("member {}", m.id);
            if m.id == 0 {
                self.wrong("member: ids start at 1");
            }
            let custodian = self.keep(&format!("{what}: custodian"), Custodian::new(m.custodian.as_str()));
            self.keep(&format!("{what}: name"), ClientId::new(m.name.as_str()));
            let ak = self.keep(&format!("{what}: ak"), BASE64.decode(&m.ak));
            for (field, address) in [("address", &m.address), ("http", &m.http)] {
                let port = address.rsplit_once(':').map(|(_, p)| p.parse::<u16>());
                if !matches!(port, Some(Ok(p)) if p != 0) {
                    self.wrong(format!("{what}: {field} is host:port"));
                }
            }
            if !d.reference_values.contains_key(&m.reference_values) {
                self.wrong(format!("{what}: no reference values named {:?}", m.reference_values));
            }
            if m.software_tpm && !d.attestation.allow_software_tpm {
                self.wrong(format!("{what}: a software TPM, but attestation.allow_software_tpm is false"));
            }
            let (Some(custodian), Some(ak)) = (custodian, ak) else { continue };
            if !aks.insert(ak.clone()) {
                self.wrong(format!("{what}: another member has the same AK"));
            }
            if !names.insert(m.name.clone()) {
                self.wrong(format!("{what}: another member has the same name"));
            }
            let member = Member {
                id: NodeId(m.id),
                name: m.name.clone(),
                custodian,
                address: m.address.clone(),
                http: m.http.clone(),
                ak,
                software_tpm: m.software_tpm,
                reference_values: m.reference_values.clone(),
            };
            if members.insert(member.id, member).is_some() {
                self.wrong(format!("{what}: the id stands twice"));
            }
        }
        members
    }

    fn attestation(&mut self, a: &AttestationDocument, rv: &BTreeMap<String, ReferenceValues>) {
        if a.pcrs.is_empty() || a.pcrs.iter().any(|p| *p > 23 || *p == 16 || *p == 23) {
            self.wrong("attestation.pcrs: one or more of 0 to 22 without 16 (16 and 23 can be reset and prove nothing)");
        }
        for (name, values) in rv {
            if values.ima.is_some() && !a.pcrs.contains(&10) {
                self.wrong(format!(
                    "reference_values.{name}: an IMA list needs PCR 10 among attestation.pcrs"
                ));
            }
            for pcr in &a.pcrs {
                if values.pcrs.get(pcr).is_none_or(Vec::is_empty) && !(*pcr == 10 && values.ima.is_some()) {
                    self.wrong(format!("reference_values.{name}: nothing is expected of PCR {pcr}"));
                }
            }
        }
        let interval_fits =
            a.evidence_interval_ms >= 500 && a.evidence_interval_ms.saturating_mul(2) <= a.lapse_ms;
        if !interval_fits {
            self.wrong("attestation: evidence_interval_ms is at least 500 and at most half of lapse_ms");
        }
        if a.nonce_age_ms < a.lapse_ms.min(30_000) {
            self.wrong("attestation.nonce_age_ms: at least 30,000, or lapse_ms where that is shorter");
        }
        if !(100..=60_000).contains(&a.clock_skew_ms) {
            self.wrong("attestation.clock_skew_ms: 100 to 60,000");
        }
        if !(1_000..=3_600_000).contains(&a.pool_lifetime_ms) || !(1_000..=86_400_000).contains(&a.settle_ms)
        {
            self.wrong("attestation: pool_lifetime_ms is 1,000 to 3,600,000, settle_ms 1,000 to 86,400,000");
        }
    }

    fn routes(&mut self, documents: Vec<RouteDocument>) -> BTreeMap<RouteId, Route> {
        let mut routes = BTreeMap::new();
        for document in documents {
            let what = format!("route {:?}", document.name);
            let host_fits = !document.host.is_empty()
                && document.host.len() <= 253
                && document
                    .host
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-');
            if !host_fits || document.port == 0 {
                self.wrong(format!("{what}: host is a lower-case DNS name, port is not 0"));
            }
            let path = |p: &String| {
                p.starts_with('/')
                    && p.len() <= 256
                    && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:*".contains(&b))
            };
            if document.paths.is_empty() || document.paths.len() > 64 || !document.paths.iter().all(path) {
                self.wrong(format!("{what}: paths are 1 to 64 plain paths that start with '/'"));
            }
            if !document.base_path.is_empty()
                && (!path(&document.base_path) || document.base_path.ends_with('/'))
            {
                self.wrong(format!(
                    "{what}: base_path is empty, or starts with '/' and does not end with it"
                ));
            }
            if !matches!(document.dialect.as_str(), "openai" | "anthropic") {
                self.wrong(format!("{what}: dialect is openai or anthropic"));
            }
            let header = |h: &String| {
                !h.is_empty()
                    && h.len() <= 64
                    && h.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            if document.headers.len() > 32 || !document.headers.iter().all(header) {
                self.wrong(format!("{what}: headers are up to 32 lower-case names"));
            }
            for m in document.models.iter().filter(|m| *m != "*") {
                self.keep(&format!("{what}: model"), ModelId::new(m.as_str()));
            }
            if document.models.is_empty() {
                self.wrong(format!("{what}: at least one model, or \"*\""));
            }
            if document.duration_ms_max == 0 || document.duration_ms_max > 3_600_000 {
                self.wrong(format!("{what}: duration_ms_max is 1 to 3,600,000"));
            }
            if let Some(id) = self.keep(&what, RouteId::new(document.name.as_str()))
                && routes.insert(id.clone(), Route { id, document }).is_some()
            {
                self.wrong(format!("{what}: the name stands twice"));
            }
        }
        routes
    }

    fn clients(
        &mut self,
        documents: Vec<ClientDocument>,
        routes: &BTreeMap<RouteId, Route>,
    ) -> BTreeMap<ClientId, Grant> {
        let mut clients = BTreeMap::new();
        for c in documents {
            let what = format!("client {:?}", c.name);
            let id = self.keep(&what, ClientId::new(c.name.as_str()));
            let custodian = self.keep(&format!("{what}: custodian"), Custodian::new(c.custodian.as_str()));
            let key = BASE64.decode(&c.key).ok().and_then(|k| <[u8; 32]>::try_from(k).ok());
            let expires = self.keep(&format!("{what}: expires"), unix_ms(&c.expires));
            let mut scope = BTreeSet::new();
            for r in &c.routes {
                match RouteId::new(r.as_str()) {
                    Ok(r) if routes.contains_key(&r) => drop(scope.insert(r)),
                    _ => self.wrong(format!("{what}: no route named {r:?}")),
                }
            }
            let Some(key) = key else {
                self.wrong(format!("{what}: key is base64 of 32 bytes"));
                continue;
            };
            let (Some(id), Some(custodian), Some(expires)) = (id, custodian, expires) else { continue };
            let grant = Grant {
                id: id.clone(),
                key: PublicKey(key),
                custodian,
                routes: scope,
                requests_per_minute: c.requests_per_minute,
                requests_per_day: c.requests_per_day,
                bytes_per_day: c.bytes_per_day,
                expires,
                revoked: c.revoked,
            };
            if clients.insert(id, grant).is_some() {
                self.wrong(format!("{what}: the name stands twice"));
            }
        }
        clients
    }
}

/// Milliseconds since the epoch of an RFC 3339 date-time with offset.
fn unix_ms(d: &toml::value::Datetime) -> Result<Timestamp, &'static str> {
    let (Some(date), Some(time), Some(offset)) = (d.date, d.time, d.offset) else {
        return Err("a date and time with offset, such as 2030-01-01T00:00:00Z");
    };
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    // Days since the epoch in the proleptic Gregorian calendar, years counted from March.
    let year = i64::from(date.year) - i64::from(date.month <= 2);
    let (era, month) = (year.div_euclid(400), i64::from(date.month));
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(date.day) - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400
        + i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0))
        - minutes * 60;
    u64::try_from(seconds).map(|s| Timestamp(s * 1000)).map_err(|_| "before 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_are_those_of_the_design() {
        assert_eq!([(3, 1), (4, 1), (5, 1), (6, 1), (7, 2)].map(|(n, f)| quorum(n, f)), [3, 3, 4, 4, 5]);
    }

    #[test]
    fn two_quorums_share_an_honest_member() {
        for n in 3..=7usize {
            for f in 1..=2u32 {
                let q = quorum(n, f);
                if q <= n {
                    assert!(2 * q - n > f as usize, "n={n} f={f}");
                }
            }
        }
    }

    #[test]
    fn dates_convert() {
        let at = |s: &str| unix_ms(&s.parse().unwrap()).unwrap().0 / 1000;
        assert_eq!(at("1970-01-01T00:00:00Z"), 0);
        assert_eq!(at("2026-11-21T21:40:00Z"), 1_795_297_200);
        assert_eq!(at("2024-02-29T12:00:00+02:00"), 1_709_200_800);
        assert!(unix_ms(&"2024-02-29".parse().unwrap()).is_err());
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "format = 2\ncluster = \"a b\"\nversion = 0\nexpires = 2030-01-01T00:00:00Z\nadmin_threshold = 0\nadmin = []\nmember = []\n";
        let PolicyMistakes(mistakes) = Policy::parse(text.as_bytes()).unwrap_err();
        for part in ["format 2", "cluster:", "version:", "admin_threshold", "member:", "hostile_nodes_max"] {
            assert!(mistakes.iter().any(|m| m.contains(part)), "{part} in {mistakes:?}");
        }
    }
}
