//! The adapter's configuration: read and checked whole, every mistake reported, nothing opened.
//!
//! ```toml
//! listen = "127.0.0.1:4280"
//! token_file = "tokens"        # lines `NAME TOKEN`, mode 0600; beyond loopback it must be there
//!
//! [[model]]
//! name = "gpt-4o"
//! strategy = "priority"        # or weighted, cheapest, fastest
//! routes = [
//!   { route = "openai", model = "gpt-4o-2024-08-06", capabilities = ["tools", "vision"], price_in = 2.5, price_out = 10.0 },
//!   { route = "azure", model = "gpt-4o" },
//! ]
//! ```
use quorate_dialects::Flavour;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest configuration file.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Bounds that keep the tables small enough to look through.
const MODELS_MAX: usize = 1024;
const ROUTES_MAX: usize = 16;
const GUARDS_MAX: usize = 64;

/// Everything that may be set. Every field has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen. Default 127.0.0.1:4280. Beyond loopback tokens are mandatory.
    pub listen: SocketAddr,
    /// File of local bearer tokens, lines `NAME TOKEN`, mode 0600. Default none: whoever reaches the socket is served.
    pub token_file: Option<PathBuf>,
    /// Folder for receipts. Default none.
    pub receipts: Option<PathBuf>,
    /// Bounds of the process.
    pub limits: Limits,
    /// Answers kept for the same request asked again. Default none.
    pub cache: Option<CacheConfig>,
    /// How requests are tried, unless a model says otherwise.
    pub defaults: Tries,
    /// Certificate and key for HTTPS. Default none: plain HTTP, which beyond loopback must be asked for.
    pub tls: Option<TlsConfig>,
    /// Whether plain HTTP may leave this machine. Default no.
    pub plaintext: bool,
    /// Where traces go. Default nowhere.
    pub telemetry: Telemetry,
    /// How guards treat streams.
    pub guards: Guarding,
    /// Guards, in the order they look. Default none.
    #[serde(rename = "guard")]
    pub rules: Vec<GuardConfig>,
    /// Models by name; any other goes where the policy's routes say.
    #[serde(rename = "model")]
    pub models: Vec<Model>,
}

/// Bounds of the process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests at once; more are refused with 503. Default 256.
    pub requests_max: usize,
    /// Connections at once; more wait in the kernel. Default 1024.
    pub connections_max: usize,
    /// Largest request body, bytes. Default 16 MiB. A route may allow less.
    pub body_bytes_max: usize,
    /// How long a stop waits for answers under way, ms. Default 30,000.
    pub drain_ms: u64,
    /// Bytes of request bodies, and of answers held whole, of all requests together. More are refused with 503. Default 512 MiB.
    pub buffers_bytes_max: usize,
}

/// HTTPS: TLS 1.3 and nothing older.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate and its chain, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key_file: PathBuf,
    /// CAs of client certificates, PEM. With it, who has no certificate of theirs is not heard. Default none.
    pub client_ca_file: Option<PathBuf>,
}

/// Where traces go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Base URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Default none.
    pub otlp: Option<String>,
    /// CAs of its certificate, PEM. Default the system's.
    pub ca_file: Option<PathBuf>,
}

/// How guards treat streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guarding {
    /// What becomes of a stream whose answer a rule is for. Default refuse.
    pub streams: StreamsUnder,
}

/// What becomes of a stream whose answer a rule is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamsUnder {
    /// The request is refused.
    #[default]
    Refuse,
    /// The answer is held until it is whole, and then sent at once.
    Buffer,
}

/// One guard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// Stands in errors, headers and metrics: lower-case letters, digits, `_` and `-`.
    pub name: String,
    /// What it looks for.
    pub kind: GuardKind,
    /// What it does about it. Default block. An external guard says so itself.
    pub action: Option<Action>,
    /// Models it is for, as applications say them. Default all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Which way it looks. Default prompt; a schema's is answer.
    pub on: Option<GuardOn>,
    /// For secrets and personal data: kinds of them. Default all.
    pub detect: Option<BTreeSet<String>>,
    /// For lists: regular expressions (the `regex` crate's, so without look-around).
    #[serde(default)]
    pub patterns: Vec<String>,
    /// What is found, but matches one of these from end to end, was not meant.
    #[serde(default)]
    pub except: Vec<String>,
    /// For schemas: a JSON schema. Default the one that the request itself asks for.
    pub schema_file: Option<PathBuf>,
    /// For external guards: where to ask. `https`, or `http` on this machine.
    pub url: Option<String>,
    /// CAs of its certificate, PEM. Default the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a verdict, ms. Default 2,000.
    #[serde(default = "hook_timeout")]
    pub timeout_ms: u64,
    /// Most bytes of a question; a larger one is as good as no verdict. Default 1 MiB.
    #[serde(default = "hook_bytes")]
    pub bytes_max: usize,
    /// What becomes of a document without a verdict. Default closed: it is blocked.
    #[serde(default)]
    pub fail: Fail,
}

fn hook_timeout() -> u64 {
    2_000
}

fn hook_bytes() -> usize {
    1024 * 1024
}

/// What a guard looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardKind {
    /// Keys in well-known forms.
    Secrets,
    /// Personal data; numbers with check digits only where these hold.
    Personal,
    /// Any of its patterns.
    Deny,
    /// None of its patterns.
    Allow,
    /// An answer that is not JSON of a schema.
    Schema,
    /// Whatever an external guard says.
    Http,
}

/// What a guard does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Refuse.
    Block,
    /// Put `[redacted:KIND]` in its place.
    Redact,
    /// Count, and say so in a header.
    Flag,
}

/// Which way a guard looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardOn {
    /// At what goes out.
    Prompt,
    /// At what comes back.
    Answer,
    /// Both ways.
    Both,
}

/// What becomes of a document without a verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    /// It is blocked.
    #[default]
    Closed,
    /// It passes, and is counted.
    Open,
}

impl GuardConfig {
    /// What it does.
    pub(crate) fn action(&self) -> Action {
        self.action.unwrap_or(Action::Block)
    }

    /// Which way it looks.
    pub(crate) fn on(&self) -> GuardOn {
        self.on.unwrap_or(if self.kind == GuardKind::Schema { GuardOn::Answer } else { GuardOn::Prompt })
    }

    fn check(&self, wrong: &mut Vec<String>) {
        let what = format!("guard {:?}", self.name);
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(good) {
            wrong.push(format!("{what}: a name has 1 to 64 lower-case letters, digits, _ and -"));
        }
        let (kind, lists) = (self.kind, matches!(self.kind, GuardKind::Deny | GuardKind::Allow));
        if lists == self.patterns.is_empty() {
            wrong.push(format!("{what}: patterns are for deny and allow, which need some"));
        }
        if self.detect.is_some() && !matches!(kind, GuardKind::Secrets | GuardKind::Personal) {
            wrong.push(format!("{what}: detect is for secrets and personal"));
        }
        if self.schema_file.is_some() && kind != GuardKind::Schema {
            wrong.push(format!("{what}: schema_file is for schema"));
        }
        if (kind == GuardKind::Http) != self.url.is_some() {
            wrong.push(format!("{what}: url is for http, which needs one"));
        }
        if kind == GuardKind::Http && self.action.is_some() {
            wrong.push(format!("{what}: an external guard says itself what to do: leave action out"));
        }
        if self.action == Some(Action::Redact) && matches!(kind, GuardKind::Allow | GuardKind::Schema) {
            wrong.push(format!("{what}: there is nothing to redact"));
        }
        if kind == GuardKind::Schema && self.on() != GuardOn::Answer {
            wrong.push(format!("{what}: a schema is for answers"));
        }
        if !(1..=60_000).contains(&self.timeout_ms) || !(1024..=64 << 20).contains(&self.bytes_max) {
            wrong.push(format!("{what}: timeout_ms is 1 to 60000, bytes_max 1 KiB to 64 MiB"));
        }
        let bad = self.patterns.iter().chain(&self.except).filter_map(|p| crate::guards::pattern(p).err());
        wrong.extend(bad.map(|why| format!("{what}: {why}")));
        wrong.extend(crate::guards::check_kinds(self).err().map(|why| format!("{what}: {why}")));
    }
}

/// Answers kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Folder for sealed answers; made when missing.
    pub dir: PathBuf,
    /// Key that seals them, mode 0600; made when missing.
    pub key_file: PathBuf,
    /// Most bytes in all. Default 256 MiB.
    #[serde(default = "cache_bytes")]
    pub bytes_max: u64,
    /// Largest answer that is kept, bytes. Default 1 MiB.
    #[serde(default = "entry_bytes")]
    pub entry_bytes_max: usize,
    /// How long an answer is good, seconds. Default 3,600.
    #[serde(default = "hour")]
    pub ttl_s: u64,
    /// Keep answers of requests that may be answered in another way each time, too. Default no.
    #[serde(default)]
    pub any: bool,
}

fn cache_bytes() -> u64 {
    256 * 1024 * 1024
}

fn entry_bytes() -> usize {
    1024 * 1024
}

fn hour() -> u64 {
    3_600
}

/// How a request is tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tries {
    /// Most attempts over all routes. Default 3.
    pub attempts_max: usize,
    /// Longest wait for a connection through the mesh, ms. Default 10,000.
    pub connect_ms: u64,
    /// Longest wait for an attempt's answer to begin, ms. Default 120,000.
    pub first_byte_ms: u64,
    /// Longest silence within an answer that has begun, ms. Default 120,000.
    pub idle_ms: u64,
    /// Longest a request may take in all, ms. Default 600,000. A route may allow less.
    pub total_ms: u64,
}

/// One model name that applications use.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// As applications say it.
    pub name: String,
    /// Which of the routes comes first. Default priority.
    #[serde(default)]
    pub strategy: Strategy,
    /// Ask a second route when the first has not answered after this time; the first answer counts, the other request is
    /// cancelled, both may be charged. Default never.
    pub hedge_after_ms: Option<u64>,
    /// Whether a request that perhaps reached a provider, but was not answered, may be sent again. Default no: it may be
    /// charged twice. Hedging implies it.
    #[serde(default)]
    pub repeat_unanswered: bool,
    /// In place of the defaults.
    pub tries: Option<Tries>,
    /// Where it is served.
    pub routes: Vec<Place>,
}

/// One place where a model is served.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Route, by its name in the policy.
    pub route: String,
    /// What the model is called there. Default: as applications call it.
    pub model: Option<String>,
    /// Share of the requests, for `weighted`. Default 1.
    #[serde(default = "one")]
    pub weight: f64,
    /// What it can do, of `tools`, `vision`, `json_schema` and `reasoning`. Default: not stated, so it is asked for anything.
    pub capabilities: Option<BTreeSet<Capability>>,
    /// Tokens in and out together, at most. Default: not stated.
    pub context_tokens: Option<u64>,
    /// Price of a million tokens in, for `cheapest`, in whatever unit. Default: unknown, so it comes last.
    pub price_in: Option<f64>,
    /// Price of a million tokens out.
    pub price_out: Option<f64>,
    /// Whose server it is, where it speaks OpenAI's dialect with an accent, such as `vllm`. Default: by the route's host.
    pub flavour: Option<String>,
}

impl Place {
    /// Whose server it is said to be.
    pub(crate) fn flavour(&self) -> Option<Flavour> {
        self.flavour.as_deref().and_then(Flavour::from_name)
    }
}

/// Which route comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// As listed.
    #[default]
    Priority,
    /// At random by weight.
    Weighted,
    /// By price.
    Cheapest,
    /// By the time to the first byte that this process measured.
    Fastest,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Call tools.
    Tools,
    /// See images.
    Vision,
    /// Answer by a JSON schema.
    #[serde(rename = "json_schema")]
    JsonSchema,
    /// Think first.
    Reasoning,
}

fn one() -> f64 {
    1.0
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4280)),
            token_file: None,
            receipts: None,
            limits: Limits::default(),
            cache: None,
            defaults: Tries::default(),
            tls: None,
            plaintext: false,
            telemetry: Telemetry::default(),
            guards: Guarding::default(),
            rules: vec![],
            models: vec![],
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            connections_max: 1024,
            body_bytes_max: 16 * 1024 * 1024,
            drain_ms: 30_000,
            buffers_bytes_max: 512 * 1024 * 1024,
        }
    }
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            connect_ms: 10_000,
            first_byte_ms: 120_000,
            idle_ms: 120_000,
            total_ms: 600_000,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not the TOML expected.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// All that is wrong with it.
    #[error("the configuration has mistakes: {}", .0.join("; "))]
    Mistakes(Vec<String>),
}

impl Config {
    /// Reads a file; paths in it are relative to it. [`Self::check`] comes after flags were applied.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let syntax = |message| ConfigError::Syntax { path: path.to_owned(), message };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(syntax(format!("larger than {CONFIG_BYTES_MAX} bytes")));
        }
        let mut config: Self = toml::from_str(&text).map_err(|e| syntax(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let cache = config.cache.as_mut().map(|c| [&mut c.dir, &mut c.key_file]).into_iter().flatten();
        let tls = config.tls.as_mut().map(|t| {
            [Some(&mut t.cert_file), Some(&mut t.key_file), t.client_ca_file.as_mut()].into_iter().flatten()
        });
        let guards = config.rules.iter_mut().flat_map(|g| [&mut g.schema_file, &mut g.ca_file]).flatten();
        let others = [&mut config.token_file, &mut config.receipts, &mut config.telemetry.ca_file];
        for path in others.into_iter().flatten().chain(cache).chain(tls.into_iter().flatten()).chain(guards) {
            *path = folder.join(&*path);
        }
        Ok(config)
    }

    /// Names every mistake.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        if !self.listen.ip().is_loopback() && self.token_file.is_none() {
            wrong.push(format!(
                "listen is {}, which others can reach: token_file must name a file of tokens",
                self.listen
            ));
        }
        if !self.listen.ip().is_loopback() && self.tls.is_none() && !self.plaintext {
            wrong.push(format!(
                "listen is {}, which others can reach: tls must name a certificate, or plaintext = true allow plain HTTP",
                self.listen
            ));
        }
        if self.tls.is_some() && self.plaintext {
            wrong.push("tls and plaintext are both set".into());
        }
        let mut guards = BTreeSet::new();
        for guard in &self.rules {
            guard.check(&mut wrong);
            if !guards.insert(&guard.name) {
                wrong.push(format!("guard {:?} stands twice", guard.name));
            }
        }
        if self.rules.len() > GUARDS_MAX {
            wrong.push(format!("at most {GUARDS_MAX} guards"));
        }
        if let Some(Err(error)) = self.telemetry.otlp.as_ref().map(|url| quorate_telemetry::post::check(url))
        {
            wrong.push(format!("telemetry: otlp: {error}"));
        }
        let limits = &self.limits;
        if limits.buffers_bytes_max < limits.body_bytes_max {
            wrong.push("limits: buffers_bytes_max is not below body_bytes_max".into());
        }
        if !(1..=65_536).contains(&limits.requests_max) || !(1..=65_536).contains(&limits.connections_max) {
            wrong.push("limits: requests_max and connections_max are 1 to 65536".into());
        }
        if !(1024..=1 << 30).contains(&limits.body_bytes_max) {
            wrong.push("limits: body_bytes_max is 1024 to 1 GiB".into());
        }
        check_tries("defaults", &self.defaults, &mut wrong);
        if self.models.len() > MODELS_MAX {
            wrong.push(format!("at most {MODELS_MAX} models"));
        }
        let mut names = BTreeSet::new();
        for model in &self.models {
            let what = format!("model {:?}", model.name);
            if model.name.is_empty() || model.name.len() > crate::api::MODEL_BYTES_MAX {
                wrong.push(format!("{what}: a name has 1 to {} bytes", crate::api::MODEL_BYTES_MAX));
            }
            if !names.insert(&model.name) {
                wrong.push(format!("{what} stands twice"));
            }
            if model.routes.is_empty() || model.routes.len() > ROUTES_MAX {
                wrong.push(format!("{what}: routes has 1 to {ROUTES_MAX} entries"));
            }
            if model.hedge_after_ms.is_some() && model.routes.len() < 2 {
                wrong.push(format!("{what}: hedge_after_ms needs a second route"));
            }
            if let Some(tries) = &model.tries {
                check_tries(&what, tries, &mut wrong);
            }
            for place in &model.routes {
                let prices = place.price_in.iter().chain(&place.price_out);
                let good = |n: &f64| n.is_finite() && *n >= 0.0;
                if !good(&place.weight) || !prices.into_iter().all(good) {
                    wrong.push(format!("{what}: weight and prices are 0 or more"));
                }
                if place.flavour.is_some() && place.flavour().is_none() {
                    let names: Vec<_> = Flavour::ALL.iter().map(|f| f.name()).collect();
                    wrong.push(format!("{what}: flavour is one of {}", names.join(", ")));
                }
            }
            if model.strategy == Strategy::Weighted && model.routes.iter().all(|p| p.weight == 0.0) {
                wrong.push(format!("{what}: every weight is 0"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError::Mistakes(wrong)) }
    }
}

fn check_tries(what: &str, tries: &Tries, wrong: &mut Vec<String>) {
    if !(1..=32).contains(&tries.attempts_max) {
        wrong.push(format!("{what}: attempts_max is 1 to 32"));
    }
    if [tries.connect_ms, tries.first_byte_ms, tries.idle_ms, tries.total_ms]
        .iter()
        .any(|ms| !(1..=86_400_000).contains(ms))
    {
        wrong.push(format!("{what}: times are 1 ms to a day"));
    }
}

impl Tries {
    /// Longest a request may take in all.
    pub fn total(&self) -> Duration {
        Duration::from_millis(self.total_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_documented_example_is_good_and_empty_is_too() {
        let doc = include_str!("config.rs");
        let example: String = doc
            .lines()
            .skip_while(|l| *l != "//! ```toml")
            .skip(1)
            .take_while(|l| *l != "//! ```")
            .map(|l| format!("{}\n", l.strip_prefix("//! ").unwrap_or_default()))
            .collect();
        let config = parse(&example).unwrap();
        assert_eq!(config.models[0].routes[0].capabilities.as_ref().unwrap().len(), 2);
        assert_eq!(parse("").unwrap().limits, Limits::default());
    }

    #[test]
    fn every_mistake_is_named() {
        let text = r#"
            listen = "0.0.0.0:4280"
            telemetry = { otlp = "ftp://x" }
            guard = [
                { name = "A b", kind = "secrets", detect = ["nothing"] },
                { name = "x", kind = "deny" },
                { name = "x", kind = "allow", patterns = ["(?=a)"], action = "redact" },
                { name = "y", kind = "http", action = "block" },
                { name = "z", kind = "schema", on = "prompt", timeout_ms = 0 },
            ]
            [limits]
            requests_max = 0
            body_bytes_max = 1
            [defaults]
            attempts_max = 99
            total_ms = 0
            [[model]]
            name = "a"
            strategy = "weighted"
            hedge_after_ms = 5
            routes = [{ route = "r", weight = 0.0 }]
            [[model]]
            name = "a"
            routes = []
            [[model]]
            name = ""
            routes = [{ route = "r", price_in = -1.0, flavour = "vanilla" }]
        "#;
        let wrong = parse(text).unwrap_err();
        for part in [
            "token_file must name",
            "tls must name",
            "telemetry: otlp:",
            "lower-case letters",
            "is none of aws",
            "patterns are for",
            "guard \"x\" stands twice",
            "pattern \"(?=a)\"",
            "nothing to redact",
            "url is for http",
            "leave action out",
            "a schema is for answers",
            "timeout_ms is 1",
            "requests_max and",
            "body_bytes_max is",
            "attempts_max is 1 to 32",
            "times are",
            "every weight is 0",
            "needs a second route",
            "stands twice",
            "1 to 16 entries",
            "a name has 1 to",
            "weight and prices",
            "flavour is one of",
        ] {
            assert!(wrong.contains(part), "{part} in {wrong}");
        }
        for text in ["lsten = 1", "[[model]]\nname = 'a'\nroutes = []\nstrategy = 'best'", "[limits]\nx = 1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
