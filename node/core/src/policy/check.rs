//! What makes a document a policy. Every mistake is reported, not the first.
use super::document::{
    AttestationDocument, ClientDocument, MemberDocument, PolicyDocument, PriceDocument, RouteDocument,
    TeamDocument,
};
use super::limits::{Limits, PerWindow, Price, Rates, Team};
use super::{
    ADMINS_MAX, APPROVAL_BYTES_MAX, APPROVALS_MAX, Grant, MEMBERS_MAX, MEMBERS_MIN, Member, Policy,
    PolicyMistakes, RELEASES_MAX, Route, TOKEN_LIFETIME_MS_MAX,
};
use crate::crypto::{Hash, PublicKey};
use crate::ids::{
    ClientId, Custodian, ModelId, NAME_BYTES_MAX, NodeId, PolicyVersion, PriceId, RouteId, TeamId, Timestamp,
};
use crate::shares::SharePublicKey;
use crate::sshsig::AdminKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::reference_values::ReferenceValues;
use std::collections::{BTreeMap, BTreeSet};

/// Wire dialects that a route may have. Nodes know no more of them than which headers they need; adapters translate.
const DIALECTS: [&str; 4] = ["openai", "anthropic", "gemini", "bedrock"];

#[derive(Default)]
pub(super) struct Checker {
    mistakes: Vec<String>,
}

impl Checker {
    pub(super) fn wrong(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    pub(super) fn keep<T, E: std::fmt::Display>(&mut self, what: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.wrong(format!("{what}: {e}"))).ok()
    }

    pub(super) fn policy(mut self, d: PolicyDocument, digest: Hash) -> Result<Policy, PolicyMistakes> {
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
        let share_approver = d.share_approver.as_deref().and_then(|point| {
            let bytes = BASE64.decode(point).ok().filter(|p| is_sec1_point(p));
            self.keep("share_approver", bytes.ok_or("base64 of a SEC1 P-256 point"))
        });
        let members = self.members(&d);
        self.attestation(&d.attestation, &d.reference_values);
        let releases = self.releases(&d);
        let routes = self.routes(d.route, &members);
        if !d.currency.is_empty() {
            self.keep("currency", ClientId::new(d.currency.as_str()));
        }
        let prices = self.prices(d.price, &routes);
        let teams = self.teams(d.team);
        let clients = self.clients(d.client, &routes, &teams);
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
            share_approver,
            attestation: d.attestation,
            members,
            reference_values: d.reference_values,
            releases,
            routes,
            clients,
            currency: d.currency,
            prices,
            teams,
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
            let share_key = m.share_key.as_deref().and_then(|key| {
                let key = BASE64.decode(key).ok().and_then(|k| SharePublicKey::from_bytes(&k).ok());
                self.keep(&format!("{what}: share_key"), key.ok_or("base64 of an X-Wing public key"))
            });
            if share_key.is_some() && m.share_counter.is_none() {
                self.wrong(format!("{what}: share_key without share_counter; enrolment prints both"));
            }
            let approvals = self.approvals(&what, d, m);
            let member = Member {
                id: NodeId(m.id),
                name: m.name.clone(),
                custodian,
                address: m.address.clone(),
                http: m.http.clone(),
                ak,
                software_tpm: m.software_tpm,
                reference_values: m.reference_values.clone(),
                share_key,
                share_counter: m.share_counter,
                approvals,
            };
            if members.insert(member.id, member).is_some() {
                self.wrong(format!("{what}: the id stands twice"));
            }
        }
        members
    }

    fn approvals(&mut self, what: &str, d: &PolicyDocument, m: &MemberDocument) -> Vec<Vec<u8>> {
        if m.approvals.is_empty() {
            return Vec::new();
        }
        if d.share_approver.is_none() || m.share_key.is_none() {
            self.wrong(format!("{what}: approvals need a share_approver and the member's share_key"));
        }
        let decode = |a: &String| BASE64.decode(a).ok().filter(|a| a.len() <= APPROVAL_BYTES_MAX);
        let decoded: Option<Vec<_>> = m.approvals.iter().map(decode).collect();
        let Some(decoded) = decoded.filter(|a| a.len() <= APPROVALS_MAX) else {
            self.wrong(format!(
                "{what}: approvals are up to {APPROVALS_MAX} of base64, {APPROVAL_BYTES_MAX} bytes"
            ));
            return Vec::new();
        };
        decoded
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

    fn releases(&mut self, d: &PolicyDocument) -> BTreeMap<String, BTreeSet<Hash>> {
        let mut releases = BTreeMap::new();
        for (name, digests) in &d.releases {
            let what = format!("releases.{name}");
            if !d.reference_values.contains_key(name) {
                self.wrong(format!("{what}: no reference values named {name:?}"));
            }
            if digests.is_empty() || digests.len() > RELEASES_MAX {
                self.wrong(format!("{what}: 1 to {RELEASES_MAX} manifests"));
            }
            let manifest = |hex: &String| {
                hex.parse::<Hash>().map_err(|_| "64 hex digits of a release manifest's SHA-256")
            };
            let digests = digests.iter().map(manifest).collect();
            releases.extend(self.keep(&what, digests).map(|digests| (name.clone(), digests)));
        }
        releases
    }

    fn routes(
        &mut self,
        documents: Vec<RouteDocument>,
        members: &BTreeMap<NodeId, Member>,
    ) -> BTreeMap<RouteId, Route> {
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
            // A query is part of an exact path: the whole of it is admins' word, and no client may choose another.
            let listed = |p: &String| match p.split_once('?') {
                None => path(p),
                Some((before, query)) => {
                    p.len() <= 256
                        && path(&before.to_owned())
                        && !before.contains('*')
                        && !query.is_empty()
                        && query.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~=&".contains(&b))
                }
            };
            if document.paths.is_empty() || document.paths.len() > 64 || !document.paths.iter().all(listed) {
                self.wrong(format!(
                    "{what}: paths are 1 to 64 plain paths that start with '/'; an exact one may end with a fixed query"
                ));
            }
            if !document.base_path.is_empty()
                && (!path(&document.base_path) || document.base_path.ends_with('/'))
            {
                self.wrong(format!(
                    "{what}: base_path is empty, or starts with '/' and does not end with it"
                ));
            }
            if !DIALECTS.contains(&document.dialect.as_str()) {
                self.wrong(format!("{what}: dialect is one of {}", DIALECTS.join(", ")));
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
            let credential = self.credential(&document, members);
            if let Some(id) = self.keep(&what, RouteId::new(document.name.as_str()))
                && routes.insert(id.clone(), Route { id, document, credential }).is_some()
            {
                self.wrong(format!("{what}: the name stands twice"));
            }
        }
        routes
    }

    fn prices(
        &mut self,
        documents: Vec<PriceDocument>,
        routes: &BTreeMap<RouteId, Route>,
    ) -> BTreeMap<PriceId, Price> {
        let mut prices = BTreeMap::new();
        for p in documents {
            let what = format!("price {:?}", p.name);
            let scope = self.scope(&what, &p.routes, routes);
            if scope.is_empty() {
                self.wrong(format!("{what}: at least one route"));
            }
            for model in &p.models {
                self.keep(&format!("{what}: model"), ModelId::new(model.as_str()));
            }
            let Some(id) = self.keep(&what, PriceId::new(p.name.as_str())) else { continue };
            let rates = Rates {
                input: p.input,
                cached_input: p.cached_input.unwrap_or(p.input),
                output: p.output,
                request: p.request,
                unseen_input: p.unseen_input,
                unseen_output: p.unseen_output,
                input_max: p.input_max.unwrap_or(u64::MAX),
                output_max: p.output_max.unwrap_or(u64::MAX),
            };
            let price =
                Price { id: id.clone(), routes: scope, models: p.models.into_iter().collect(), rates };
            if prices.insert(id, price).is_some() {
                self.wrong(format!("{what}: the name stands twice"));
            }
        }
        prices
    }

    fn teams(&mut self, documents: Vec<TeamDocument>) -> BTreeMap<TeamId, Team> {
        let mut teams = BTreeMap::new();
        for t in documents {
            let what = format!("team {:?}", t.name);
            let Some(id) = self.keep(&what, TeamId::new(t.name.as_str())) else { continue };
            let limits = Limits {
                requests: per_window(t.requests_per_minute, t.requests_per_day, t.requests_per_month),
                bytes: per_window(t.bytes_per_minute, t.bytes_per_day, t.bytes_per_month),
                money: per_window(t.money_per_minute, t.money_per_day, t.money_per_month),
            };
            if teams.insert(id.clone(), Team { id, limits }).is_some() {
                self.wrong(format!("{what}: the name stands twice"));
            }
        }
        teams
    }

    /// Those of the names that are routes.
    fn scope(
        &mut self,
        what: &str,
        names: &[String],
        routes: &BTreeMap<RouteId, Route>,
    ) -> BTreeSet<RouteId> {
        let mut scope = BTreeSet::new();
        for r in names {
            match RouteId::new(r.as_str()) {
                Ok(r) if routes.contains_key(&r) => drop(scope.insert(r)),
                _ => self.wrong(format!("{what}: no route named {r:?}")),
            }
        }
        scope
    }

    fn clients(
        &mut self,
        documents: Vec<ClientDocument>,
        routes: &BTreeMap<RouteId, Route>,
        teams: &BTreeMap<TeamId, Team>,
    ) -> BTreeMap<ClientId, Grant> {
        let mut clients = BTreeMap::new();
        for c in documents {
            let what = format!("client {:?}", c.name);
            let id = self.keep(&what, ClientId::new(c.name.as_str()));
            let custodian = self.keep(&format!("{what}: custodian"), Custodian::new(c.custodian.as_str()));
            let key = BASE64.decode(&c.key).ok().and_then(|k| <[u8; 32]>::try_from(k).ok());
            let expires = self.keep(&format!("{what}: expires"), unix_ms(&c.expires));
            let scope = self.scope(&what, &c.routes, routes);
            let team = c.team.as_ref().and_then(|name| {
                let team = TeamId::new(name.as_str()).ok().filter(|t| teams.contains_key(t));
                self.keep(&what, team.ok_or_else(|| format!("no team named {name:?}")))
            });
            if c.token_lifetime_ms_max.is_some_and(|ms| !(1_000..=TOKEN_LIFETIME_MS_MAX).contains(&ms)) {
                self.wrong(format!("{what}: token_lifetime_ms_max is 1,000 to {TOKEN_LIFETIME_MS_MAX}"));
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
                limits: Limits {
                    requests: per_window(
                        Some(c.requests_per_minute),
                        Some(c.requests_per_day),
                        c.requests_per_month,
                    ),
                    bytes: per_window(c.bytes_per_minute, Some(c.bytes_per_day), c.bytes_per_month),
                    money: per_window(c.money_per_minute, c.money_per_day, c.money_per_month),
                },
                team,
                token_lifetime_ms_max: c.token_lifetime_ms_max,
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

fn per_window(minute: Option<u64>, day: Option<u64>, month: Option<u64>) -> PerWindow<Option<u64>> {
    PerWindow { minute, day, month }
}

/// Milliseconds since the epoch of an RFC 3339 date-time with offset.
pub(super) fn unix_ms(d: &toml::value::Datetime) -> Result<Timestamp, &'static str> {
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

/// SEC 1, 2.3.3: an uncompressed or compressed point of P-256. Whether it is on the curve is for whoever verifies with it.
fn is_sec1_point(bytes: &[u8]) -> bool {
    matches!((bytes.first(), bytes.len()), (Some(4), 65) | (Some(2 | 3), 33))
}

#[cfg(test)]
mod tests {
    use crate::policy::{Policy, PolicyMistakes, RouteDocument};

    fn checked(change: impl Fn(&mut RouteDocument)) -> Result<(), String> {
        let mut document = crate::testing::Fleet::new(4, 1, |_| ()).document;
        change(&mut document.route[0]);
        let parsed = Policy::parse(toml::to_string(&document).unwrap().as_bytes());
        parsed.map(drop).map_err(|PolicyMistakes(mistakes)| mistakes.join("; "))
    }

    #[test]
    fn a_path_may_have_a_fixed_query_and_nothing_loose() {
        let with = |path: &str| checked(|route| route.paths = vec![path.into()]);
        for good in [
            "/v1beta/models/gemini-2.5-pro:generateContent",
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            "/openai/deployments/x/chat/completions?api-version=2024-10-21",
            "/v1/models/*",
        ] {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        for bad in [
            "/v1/x?",
            "/v1/*?alt=sse",
            "/v1/x?alt=*",
            "/v1/x?a=%2e",
            "/v1/x?a=/models",
            "/v1/x?a=b?c",
            "/v1/x?a b",
            "/v1/x#a",
            "x?a=b",
            "?a=b",
        ] {
            let error = with(bad).unwrap_err();
            assert!(error.contains("paths are 1 to 64 plain paths"), "{bad}: {error}");
        }
        let base = checked(|route| route.base_path = "/a?b=c".into()).unwrap_err();
        assert!(base.contains("base_path is empty"), "{base}");
    }

    #[test]
    fn a_dialect_is_one_that_adapters_speak() {
        for dialect in super::DIALECTS {
            assert_eq!(checked(|route| route.dialect = dialect.into()), Ok(()));
        }
        let error = checked(|route| route.dialect = "cohere".into()).unwrap_err();
        assert!(error.contains("dialect is one of openai, anthropic, gemini, bedrock"), "{error}");
    }
}
