//! What an import comes to, and how it is written down.

use super::super::output::{Failure, Outcome};
use quorate_core::policy::{PriceDocument, RouteDocument, TeamDocument};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// LiteLLM counts in dollars.
pub(super) const CURRENCY: &str = "USD";

/// Everything that is written.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) routes: Vec<RouteDocument>,
    pub(super) keys: Vec<Key>,
    pub(super) models: Vec<Model>,
    pub(super) tries: Tries,
    pub(super) prices: Vec<PriceDocument>,
    pub(super) teams: Vec<TeamDocument>,
    pub(super) requests_per_minute: Option<u64>,
    pub(super) notes: Vec<Note>,
}

/// How a route's key comes into the policy.
pub(super) struct Key {
    pub(super) route: String,
    pub(super) scheme: &'static str,
    pub(super) source: Source,
}

/// Where a key is. Never what it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// In this environment variable of LiteLLM's process.
    Variable(String),
    /// In the file itself, at this line.
    Written(usize),
    /// Nowhere: the server wants none.
    None,
}

/// A model of the adapter.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) strategy: &'static str,
    pub(super) places: Vec<Place>,
}

#[derive(Clone)]
pub(super) struct Place {
    pub(super) route: String,
    pub(super) model: String,
    pub(super) weight: f64,
    pub(super) order: f64,
    pub(super) capabilities: Vec<&'static str>,
    pub(super) context_tokens: Option<u64>,
    pub(super) price_in: Option<f64>,
    pub(super) price_out: Option<f64>,
    pub(super) flavour: Option<&'static str>,
}

/// How requests are tried.
#[derive(Default)]
pub(super) struct Tries {
    pub(super) attempts_max: Option<u64>,
    pub(super) first_byte_ms: Option<u64>,
    pub(super) total_ms: Option<u64>,
}

/// What became of a setting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Carried over, and means something else now.
    Changed,
    /// Not carried over.
    Left,
}

pub(super) struct Note {
    pub(super) line: usize,
    /// Path of keys; no value.
    pub(super) key: String,
    pub(super) kind: Kind,
    pub(super) text: String,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    currency: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    price: &'a Vec<PriceDocument>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    team: &'a Vec<TeamDocument>,
    route: &'a Vec<RouteDocument>,
}

/// A word of a shell command; ours have none that would need more.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Plan {
    pub(super) fn left(&mut self, line: usize, key: impl Into<String>, text: impl Into<String>) {
        self.notes.push(Note { line, key: key.into(), kind: Kind::Left, text: text.into() });
    }

    pub(super) fn changed(&mut self, line: usize, key: impl Into<String>, text: impl Into<String>) {
        self.notes.push(Note { line, key: key.into(), kind: Kind::Changed, text: text.into() });
    }

    /// Stanzas of a policy.
    pub(super) fn policy_part(&self, of: &str) -> Outcome<String> {
        let currency = if self.prices.is_empty() && self.teams.is_empty() { "" } else { CURRENCY };
        let part = Part { currency, price: &self.prices, team: &self.teams, route: &self.routes };
        let text = toml::to_string(&part).map_err(|e| {
            Failure::new(format!("the routes cannot be written: {e}"), "report this as a bug")
        })?;
        Ok(format!(
            "# From {of}: stanzas for a policy draft. They hold no key. `--policy DRAFT` adds them to one.\n{text}"
        ))
    }

    /// The adapter's configuration.
    pub(super) fn serve(&self, of: &str) -> String {
        let mut out = format!("# From {of}, for `quorate serve --config`.\n");
        let tries = [
            ("attempts_max", self.tries.attempts_max),
            ("first_byte_ms", self.tries.first_byte_ms),
            ("total_ms", self.tries.total_ms),
        ];
        if tries.iter().any(|(_, value)| value.is_some()) {
            out += "\n[defaults]\n";
            for (name, value) in tries {
                if let Some(value) = value {
                    let _infallible = writeln!(out, "{name} = {value}");
                }
            }
        }
        for model in &self.models {
            let _infallible = write!(
                out,
                "\n# line {}\n[[model]]\nname = {}\nstrategy = \"{}\"\nroutes = [\n",
                model.line,
                toml_text(&model.name),
                model.strategy
            );
            for place in &model.places {
                out += &place.line(model.strategy == "weighted");
            }
            out += "]\n";
        }
        out
    }

    /// What to do next, and what was not carried over, by line.
    pub(super) fn report(&self, of: &str, draft: &Path) -> String {
        let draft = quoted(&draft.display().to_string());
        let mut out = String::from(
            "Keys: run these where LiteLLM's environment is; each asks nobody but the command\n",
        );
        for key in &self.keys {
            let (route, scheme) = (&key.route, key.scheme);
            let command = format!(
                "  quorate admin credential set {route} --policy {draft} --scheme {scheme} --from-command"
            );
            let _infallible = match &key.source {
                Source::Variable(name) => writeln!(out, "{command} {}", quoted(&format!("printenv {name}"))),
                Source::Written(line) => writeln!(
                    out,
                    "{command} 'COMMAND OF YOUR SECRET MANAGER'   # the key stands in {of}, line {line}: move it out of there, and replace it at the provider, for it was readable"
                ),
                Source::None => writeln!(out, "  # {route}: no key"),
            };
        }
        let routes: Vec<String> = self.routes.iter().map(|route| format!("--route {}", route.name)).collect();
        let rate =
            self.requests_per_minute.map(|rpm| format!(" --requests-per-minute {rpm}")).unwrap_or_default();
        let _infallible = write!(
            out,
            "\nClients: one for each application, in place of a virtual key\n  quorate keygen app.key\n  quorate admin client add --policy {draft} --name app --custodian WHO-HAS-ROOT-THERE --key PUBLIC-HALF{rate} {}\n",
            routes.join(" ")
        );
        let mut notes: Vec<&Note> = self.notes.iter().collect();
        notes.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
        for (kind, title) in [(Kind::Changed, "Means something else now"), (Kind::Left, "Not carried over")] {
            let _infallible = writeln!(out, "\n{title}");
            let mut none = true;
            for note in notes.iter().filter(|note| note.kind == kind) {
                none = false;
                let _infallible = writeln!(out, "  {of}:{}: {}: {}", note.line, note.key, note.text);
            }
            if none {
                out += "  nothing\n";
            }
        }
        out
    }
}

impl Place {
    fn line(&self, weighted: bool) -> String {
        let mut fields = vec![
            format!("route = {}", toml_text(&self.route)),
            format!("model = {}", toml_text(&self.model)),
        ];
        if weighted {
            fields.push(format!("weight = {:?}", self.weight));
        }
        if !self.capabilities.is_empty() {
            let list: Vec<String> = self.capabilities.iter().map(|c| format!("{c:?}")).collect();
            fields.push(format!("capabilities = [{}]", list.join(", ")));
        }
        if let Some(tokens) = self.context_tokens {
            fields.push(format!("context_tokens = {tokens}"));
        }
        for (name, price) in [("price_in", self.price_in), ("price_out", self.price_out)] {
            fields.extend(price.map(|price| format!("{name} = {price:?}")));
        }
        fields.extend(self.flavour.map(|flavour| format!("flavour = \"{flavour}\"")));
        format!("  {{ {} }},\n", fields.join(", "))
    }
}
