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
            models: vec![],
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_max: 256, connections_max: 1024, body_bytes_max: 16 * 1024 * 1024, drain_ms: 30_000 }
    }
}

impl Default for Tries {
    fn default() -> Self {
        Self { attempts_max: 3, connect_ms: 10_000, first_byte_ms: 120_000, total_ms: 600_000 }
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
        let others = [&mut config.token_file, &mut config.receipts].into_iter().flatten();
        for path in others.chain(cache) {
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
        let limits = &self.limits;
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
    if [tries.connect_ms, tries.first_byte_ms, tries.total_ms].iter().any(|ms| !(1..=86_400_000).contains(ms))
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
