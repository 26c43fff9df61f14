//! LiteLLM's proxy configuration: `model_list`, `router_settings`, `litellm_settings`, `general_settings`.
//!
//! Follows LiteLLM's documentation of the proxy's config.yaml and of its router. Each key of the file is either understood here
//! or named in the report.

use super::super::admin::default_paths;
use super::plan::{Key, Model, Place, Plan, Source};
use super::providers::{Provider, of_model};
use super::yaml::{Entry, Node, Value};
use quorate_core::ids::ModelId;
use quorate_core::policy::{PriceDocument, RouteDocument, TeamDocument};
use std::collections::BTreeMap;

/// The team that holds the whole proxy's budget.
const TEAM: &str = "litellm";

/// Options of a deployment and settings that have no counterpart, and why. What is in no list is reported as unknown.
const REASONS: &[(&str, &str)] = &[
    ("temperature", DEFAULTS),
    ("top_p", DEFAULTS),
    ("max_tokens", DEFAULTS),
    ("max_completion_tokens", DEFAULTS),
    ("presence_penalty", DEFAULTS),
    ("frequency_penalty", DEFAULTS),
    ("seed", DEFAULTS),
    ("stop", DEFAULTS),
    ("extra_body", DEFAULTS),
    (
        "tpm",
        "tokens are inside the body, which no node reads: limit requests, bytes or money of a client or team",
    ),
    ("max_parallel_requests", "the adapter has one bound for all: [limits] requests_max in serve.toml"),
    (
        "global_max_parallel_requests",
        "the adapter has one bound for all: [limits] requests_max in serve.toml",
    ),
    (
        "extra_headers",
        "a route lists the headers that applications may set (admin route add --header); their values come from the application",
    ),
    (
        "headers",
        "a route lists the headers that applications may set (admin route add --header); their values come from the application",
    ),
    (
        "organization",
        "let the application send openai-organization, and allow it: admin route add --header openai-organization",
    ),
    ("api_version", "not needed: the route speaks Azure's v1 API"),
    ("base_model", "LiteLLM prices by it; the price table names models itself"),
    ("mode", "not needed: a route serves every endpoint of its dialect"),
    ("id", "not needed: attempts are named in receipts"),
    ("drop_params", "what cannot be translated is refused, never dropped"),
    ("modify_params", "what cannot be translated is refused, never changed"),
    ("additional_drop_params", "what cannot be translated is refused, never dropped"),
    ("set_verbose", "not needed: `quorate serve` traces no content at any level"),
    ("debug", "not needed: `quorate serve` traces no content at any level"),
    ("json_logs", "not needed: `quorate serve` traces no content at any level"),
    ("cache", "caching is opt-in in the adapter and set up there"),
    ("cache_params", "caching is opt-in in the adapter and set up there"),
    ("cache_responses", "caching is opt-in in the adapter and set up there"),
    ("caching_groups", "caching is opt-in in the adapter and set up there"),
    ("redis_host", REDIS),
    ("redis_port", REDIS),
    ("redis_password", REDIS),
    ("redis_url", REDIS),
    ("database_url", "not needed: clients, limits and usage are in the replicated log"),
    ("database_connection_pool_limit", "not needed: clients, limits and usage are in the replicated log"),
    ("store_model_in_db", "models change by admins' signatures alone"),
    ("store_prompts_in_spend_logs", "no content is ever stored"),
    ("disable_spend_logs", "settlements are leaves of the log and cannot be switched off"),
    (
        "master_key",
        "no key rules all: admins sign changes with keys of their own, applications have client keys",
    ),
    ("salt_key", "no database holds keys to be encrypted"),
    ("alerting", "alert rules for Prometheus are in cluster/deploy"),
    ("alerting_threshold", "alert rules for Prometheus are in cluster/deploy"),
    ("success_callback", CALLBACKS),
    ("failure_callback", CALLBACKS),
    ("callbacks", CALLBACKS),
    ("service_callback", CALLBACKS),
    ("turn_off_message_logging", "not needed: no content is ever logged"),
    ("redact_user_api_key_info", "not needed: no content is ever logged"),
    ("guardrails", "guards are opt-in in the adapter and set up there"),
    (
        "context_window_fallbacks",
        "the adapter chooses by context_tokens before it asks; it does not ask again for a refused length",
    ),
    ("content_policy_fallbacks", "an answer that a provider filtered is passed on, not asked for elsewhere"),
    ("allowed_fails", BREAKER),
    ("cooldown_time", BREAKER),
    ("allowed_fails_policy", BREAKER),
    ("disable_cooldowns", BREAKER),
    ("retry_policy", "which failures are tried again is fixed: those where nothing was answered"),
    ("model_group_retry_policy", "which failures are tried again is fixed: those where nothing was answered"),
    ("retry_after", "a provider's retry-after is obeyed"),
    ("enable_pre_call_checks", "not needed: the adapter always looks at what a route can do"),
    ("provider_budget_config", "a budget is a client's or a team's; a provider's own limit bounds its key"),
    ("max_internal_user_budget", PEOPLE),
    ("default_internal_user_params", PEOPLE),
    ("default_team_settings", PEOPLE),
    ("default_key_generate_params", PEOPLE),
    ("upperbound_key_generate_params", PEOPLE),
    ("custom_auth", "a client proves itself with its key's signature"),
    (
        "enable_jwt_auth",
        "a client proves itself with its key's signature; `quorate token` mints short-lived ones",
    ),
    ("ui_access_mode", "there is no UI that changes anything"),
    ("aws_access_key_id", SIGV4),
    ("aws_secret_access_key", SIGV4),
    ("aws_session_token", SIGV4),
    ("aws_role_name", SIGV4),
    ("aws_profile_name", SIGV4),
    ("vertex_project", "Google Cloud wants OAuth tokens, not a key that can be split"),
    ("vertex_location", "Google Cloud wants OAuth tokens, not a key that can be split"),
    ("vertex_credentials", "Google Cloud wants OAuth tokens, not a key that can be split"),
    ("input_cost_per_second", "prices are by token and request"),
    ("output_cost_per_second", "prices are by token and request"),
    ("tags", "routes are chosen by model, capability, price and speed"),
    (
        "environment_variables",
        "environments are their processes' own; keys among them go through `admin credential set`",
    ),
    ("include", "other files are not read: import each, or join them first"),
    ("mcp_servers", "tools that a gateway runs would see content in the open: applications call their own"),
    ("pass_through_endpoints", "a route serves the endpoints of its dialect and no others"),
    ("user_header_name", PEOPLE),
    ("key_management_system", "keys are split once, by `admin credential set`, from wherever they are kept"),
    ("allowed_routes", "a client's routes are named one by one: admin client add --route"),
    ("enable_tag_filtering", "routes are chosen by model, capability, price and speed"),
];
/// Options that say where a deployment is, and with which key.
const WHERE: [&str; 8] = [
    "model",
    "api_base",
    "base_url",
    "api_key",
    "aws_region_name",
    "region_name",
    "custom_llm_provider",
    "litellm_credential_name",
];
/// Modes of a model that routes have endpoints for.
const SERVED: [&str; 4] = ["chat", "completion", "embedding", "responses"];
const WILD: &str = "a wildcard's models are not listed: name the models that it matters for";
const DEFAULTS: &str = "applications set their own parameters; the adapter adds none";
const REDIS: &str = "not needed: the adapter's routing is its own, limits are in the replicated log";
const CALLBACKS: &str = "telemetry is Prometheus and OpenTelemetry, without content";
const BREAKER: &str = "the adapter's circuit breaker has fixed thresholds";
const PEOPLE: &str =
    "virtual keys, users and teams are in LiteLLM's database: add a client or team for each that matters";
const SIGV4: &str =
    "requests that are signed need the key's holder: make a Bedrock API key (bearer) in its place";

/// What one deployment of `model_list` came to.
struct Deployment<'a> {
    provider: &'static Provider,
    upstream: &'a str,
    host: String,
    port: u16,
    base_path: String,
    source: Source,
}

/// Reads a whole configuration.
pub(super) fn read(root: &Node) -> Plan {
    let mut reader = Reader::default();
    for entry in root.entries() {
        match entry.key.as_str() {
            "model_list" if !entry.node.list().is_empty() => {}
            "router_settings" | "litellm_settings" | "general_settings" if entry.node.is_map() => {
                reader.settings(&entry.key, &entry.node);
            }
            "model_list" | "router_settings" | "litellm_settings" | "general_settings" => {
                reader.plan.left(entry.line, &entry.key, "is empty, or of another form than LiteLLM's");
            }
            // looked up by name, where a deployment uses one
            "credential_list" => {}
            _ => reader.leave(&entry.key, entry),
        }
    }
    if let Some(list) = root.get("credential_list") {
        reader.credentials(&list.node);
    }
    if let Some(list) = root.get("model_list") {
        for (index, node) in list.node.list().iter().enumerate() {
            reader.deployment(index, node);
        }
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    plan: Plan,
    /// Destination and key of each route, in the order of `plan.routes`.
    origins: Vec<(String, u16, String, &'static str, Source)>,
    strategy: Option<(usize, String)>,
    fallbacks: Vec<(usize, String, Vec<String>)>,
    default_fallbacks: Vec<String>,
    default_line: usize,
    credentials: BTreeMap<String, Credential>,
    aliases: Vec<(usize, String, String)>,
    budget: Option<(usize, f64)>,
    period: Option<(usize, String)>,
    rpm: f64,
}

/// What `credential_list` has under one name.
struct Credential {
    key: Option<Source>,
    base: Option<(usize, String)>,
}

impl Reader {
    /// Reports a key that is not used.
    fn leave(&mut self, path: &str, entry: &Entry) {
        let reason = REASONS.iter().find(|(key, _)| *key == entry.key).map(|(_, reason)| *reason);
        self.plan.left(
            entry.line,
            path,
            reason.unwrap_or("this importer does not know it: look whether you need it"),
        );
    }

    fn settings(&mut self, section: &str, node: &Node) {
        for entry in node.entries() {
            let path = format!("{section}.{}", entry.key);
            let milliseconds =
                entry.node.number().filter(|s| *s > 0.0).map(|s| (s * 1000.0).min(86_400_000.0) as u64);
            match (entry.key.as_str(), milliseconds) {
                ("num_retries", _) if entry.node.number().is_some_and(|n| n >= 0.0) => {
                    let retries = entry.node.number().unwrap_or_default().min(31.0) as u64;
                    self.plan.tries.attempts_max = Some(retries + 1);
                    self.plan.changed(entry.line, path, "attempts count over all routes, fallbacks included; only what was not answered is tried again");
                }
                ("timeout" | "request_timeout", Some(ms)) => self.plan.tries.total_ms = Some(ms),
                ("stream_timeout", Some(ms)) => {
                    self.plan.tries.first_byte_ms = Some(ms);
                    self.plan.changed(
                        entry.line,
                        path,
                        "bounds the wait for an answer's first byte, streamed or not",
                    );
                }
                ("routing_strategy", _) if entry.node.text().is_some() => {
                    self.strategy = entry.node.text().map(|text| (entry.line, text.to_owned()));
                }
                ("fallbacks", _) => self.fallbacks(&path, entry),
                ("default_fallbacks", _) => {
                    self.default_fallbacks = self.names(&path, entry);
                    self.default_line = entry.line;
                }
                ("model_group_alias", _) => {
                    for alias in entry.node.entries() {
                        match alias.node.text().or_else(|| alias.node.get("model")?.node.text()) {
                            Some(target) => {
                                self.aliases.push((alias.line, alias.key.clone(), target.to_owned()));
                                for more in alias.node.entries().iter().filter(|more| more.key != "model") {
                                    self.leave(&format!("{path}.{}.{}", alias.key, more.key), more);
                                }
                            }
                            None => {
                                self.plan.left(alias.line, format!("{path}.{}", alias.key), "names no model")
                            }
                        }
                    }
                }
                ("max_budget", _) if entry.node.number().is_some() => {
                    self.budget = entry.node.number().map(|amount| (entry.line, amount));
                }
                ("budget_duration", _) if entry.node.text().is_some() => {
                    self.period = entry.node.text().map(|period| (entry.line, period.to_owned()));
                }
                _ => self.leave(&path, entry),
            }
        }
    }

    /// Names of models in a list; whatever else stands there is reported.
    fn names(&mut self, path: &str, entry: &Entry) -> Vec<String> {
        let items = entry.node.list();
        if items.is_empty() {
            self.plan.left(entry.line, path, "names no model");
        }
        for item in items.iter().filter(|item| item.text().is_none()) {
            self.plan.left(
                item.line,
                path,
                "a fallback with parameters of its own: only names are carried over",
            );
        }
        items.iter().filter_map(Node::text).map(Into::into).collect()
    }

    fn fallbacks(&mut self, path: &str, entry: &Entry) {
        let node = &entry.node;
        let rules = if node.is_map() { std::slice::from_ref(node) } else { node.list() };
        if rules.is_empty() {
            self.plan.left(entry.line, path, "names no model");
        }
        for rule in rules {
            if !rule.is_map() {
                self.plan.left(rule.line, path, "names no model");
            }
            for entry in rule.entries() {
                let to = self.names(&format!("{path}.{}", entry.key), entry);
                if !to.is_empty() {
                    self.fallbacks.push((entry.line, entry.key.clone(), to));
                }
            }
        }
    }

    /// Keys that deployments name instead of holding them.
    fn credentials(&mut self, list: &Node) {
        for (index, node) in list.list().iter().enumerate() {
            let at = format!("credential_list[{index}]");
            let Some(name) = node.get("credential_name").and_then(|e| e.node.text()) else {
                self.plan.left(node.line, at, "has no credential_name");
                continue;
            };
            let mut found = Credential { key: None, base: None };
            for entry in node.get("credential_values").map(|e| e.node.entries()).unwrap_or_default() {
                match entry.key.as_str() {
                    "api_key" => found.key = Some(source(entry)),
                    "api_base" => found.base = entry.node.text().map(|url| (entry.line, url.to_owned())),
                    _ => self.leave(&format!("{at}.credential_values.{}", entry.key), entry),
                }
            }
            for entry in node.entries() {
                if !["credential_name", "credential_values", "credential_info"].contains(&entry.key.as_str())
                {
                    self.leave(&format!("{at}.{}", entry.key), entry);
                }
            }
            self.credentials.insert(name.to_owned(), found);
        }
    }

    fn deployment(&mut self, index: usize, node: &Node) {
        let at = format!("model_list[{index}]");
        let Some(name) = node.get("model_name").and_then(|e| e.node.text()) else {
            return self.plan.left(node.line, at, "has no model_name");
        };
        let Some(params) = node.get("litellm_params") else {
            return self.plan.left(node.line, at, "has no litellm_params");
        };
        let params_at = format!("{at}.litellm_params");
        let Some(model) = params.node.get("model").filter(|e| e.node.text().is_some()) else {
            return self.plan.left(params.line, params_at, "has no model");
        };
        let asked = model.node.text().unwrap_or_default();
        let deployment = match self.destination(&params_at, &params.node, asked) {
            Ok(deployment) => deployment,
            Err((line, key, why)) => {
                return self.plan.left(line.unwrap_or(model.line), key, format!("{name}: {why}"));
            }
        };
        let wild = asked.contains('*') || name.contains('*');
        if !wild && (ModelId::new(deployment.upstream).is_err() || ModelId::new(name).is_err()) {
            let why = "a model's name has letters, digits and . _ - / : alone";
            return self.plan.left(model.line, at, format!("{name}: {why}"));
        }
        if wild && ["gemini", "bedrock"].contains(&deployment.provider.dialect) {
            let why = "this dialect's paths hold the model's name, and admins list each: name the models";
            return self.plan.left(model.line, at, format!("{name}: {why}"));
        }
        let route = self.route(&deployment, if wild { "*" } else { deployment.upstream });
        let mut place = Place {
            route: route.clone(),
            model: deployment.upstream.to_owned(),
            weight: 1.0,
            order: 0.0,
            capabilities: Vec::new(),
            context_tokens: None,
            price_in: None,
            price_out: None,
            flavour: (deployment.provider.prefix == "hosted_vllm")
                .then_some("vllm")
                .or_else(|| deployment.provider.prefix.starts_with("ollama").then_some("ollama")),
        };
        let mut prices = (None, None, None);
        let info_at = format!("{at}.model_info");
        let info = node.get("model_info").map(|info| &info.node);
        let both = [(&params_at, Some(&params.node)), (&info_at, info)];
        for (at, node) in both.into_iter().filter_map(|(at, node)| Some((at, node?))) {
            if wild {
                self.wild_options(at, node);
            } else {
                self.options(at, node, &mut place, &mut prices);
            }
        }
        for entry in node.entries() {
            if !["model_name", "litellm_params", "model_info"].contains(&entry.key.as_str()) {
                self.leave(&format!("{at}.{}", entry.key), entry);
            }
        }
        if wild {
            if name != "*" && name != asked {
                self.plan.left(
                    node.line,
                    &at,
                    "an alias with a wildcard: applications name the provider's own model",
                );
            }
            self.plan.changed(
                model.line,
                format!("{params_at}.model"),
                format!("route {route} takes any model by the provider's own name, without a prefix"),
            );
            return;
        }
        self.price(node.line, name, &route, prices);
        place.price_in = prices.0.map(|cost: f64| cost * 1e6);
        place.price_out = prices.1.map(|cost: f64| cost * 1e6);
        match self.plan.models.iter_mut().find(|known| known.name == name) {
            Some(known) => known.places.push(place),
            None => self.plan.models.push(Model {
                name: name.to_owned(),
                line: node.line,
                strategy: "weighted",
                places: vec![place],
            }),
        }
    }

    /// A wildcard's options have no model to belong to.
    fn wild_options(&mut self, at: &str, node: &Node) {
        for entry in node.entries().iter().filter(|e| !WHERE.contains(&e.key.as_str())) {
            let path = format!("{at}.{}", entry.key);
            match entry.key.as_str() {
                "weight" | "order" | "rpm" | "max_input_tokens" => {
                    self.plan.left(entry.line, path, WILD);
                }
                key if key.starts_with("supports_")
                    || key.contains("cost_per")
                    || key.contains("token_cost") =>
                {
                    self.plan.left(entry.line, path, WILD);
                }
                _ => self.leave(&path, entry),
            }
        }
    }

    /// Options of a deployment that bear on routing or price; all others are reported.
    fn options(
        &mut self,
        at: &str,
        node: &Node,
        place: &mut Place,
        prices: &mut (Option<f64>, Option<f64>, Option<f64>),
    ) {
        for entry in node.entries() {
            let number = entry.node.number().filter(|n| *n >= 0.0);
            let path = format!("{at}.{}", entry.key);
            match (entry.key.as_str(), number) {
                (key, _) if WHERE.contains(&key) => {}
                ("weight", Some(weight)) => place.weight = weight,
                ("order", Some(order)) => place.order = order,
                ("rpm", Some(rpm)) => {
                    self.rpm += rpm;
                    if node.get("weight").is_none() {
                        place.weight = rpm;
                    }
                    self.plan.changed(entry.line, path, "a share of the requests, as in LiteLLM's shuffle; as a limit it belongs to a client or team");
                }
                ("timeout" | "stream_timeout" | "max_retries" | "num_retries", _) => {
                    self.plan.left(
                        entry.line,
                        path,
                        "one deployment's own: set tries at its [[model]] in serve.toml",
                    );
                }
                ("mode", _) if entry.node.text().is_some_and(|mode| !SERVED.contains(&mode)) => {
                    self.plan.left(entry.line, path, "no route serves this endpoint");
                }
                ("input_cost_per_token", Some(cost)) => prices.0 = Some(cost),
                ("output_cost_per_token", Some(cost)) => prices.1 = Some(cost),
                ("cache_read_input_token_cost", Some(cost)) => prices.2 = Some(cost),
                ("max_input_tokens", Some(tokens)) => place.context_tokens = Some(tokens as u64),
                ("supports_function_calling", _) if entry.node.flag() == Some(true) => {
                    place.capabilities.push("tools")
                }
                ("supports_vision", _) if entry.node.flag() == Some(true) => {
                    place.capabilities.push("vision")
                }
                _ => self.leave(&path, entry),
            }
        }
    }

    fn price(
        &mut self,
        line: usize,
        name: &str,
        route: &str,
        prices: (Option<f64>, Option<f64>, Option<f64>),
    ) {
        let (Some(input), Some(output), cached) = prices else {
            if prices != (None, None, None) {
                self.plan.left(
                    line,
                    format!("the price of {name}"),
                    "needs a cost of input and one of output",
                );
            }
            return;
        };
        // Dollars a token to micro-dollars a million tokens.
        let micro = |cost: f64| (cost * 1e12).round() as u64;
        if let Some(known) = self.plan.prices.iter_mut().find(|price| price.name == name) {
            let same = (known.input, known.output, known.cached_input)
                == (micro(input), micro(output), cached.map(micro));
            if !same {
                let why = "another deployment of it has another price: add one for this route by hand";
                self.plan.left(line, format!("the price of {name}"), why);
            } else if !known.routes.iter().any(|r| r == route) {
                known.routes.push(route.to_owned());
            }
            return;
        }
        self.plan.prices.push(PriceDocument {
            name: name.to_owned(),
            routes: vec![route.to_owned()],
            models: vec![name.to_owned()],
            input: micro(input),
            cached_input: cached.map(micro),
            output: micro(output),
            request: 0,
            unseen_input: 0,
            unseen_output: 0,
            input_max: None,
            output_max: None,
        });
    }

    /// Where a deployment is; or the line, the key and why it cannot be reached.
    fn destination<'a>(
        &mut self,
        at: &str,
        params: &'a Node,
        asked: &'a str,
    ) -> Result<Deployment<'a>, (Option<usize>, String, String)> {
        let at_model = || format!("{at}.model");
        let custom = params.get("custom_llm_provider").and_then(|e| e.node.text());
        let (provider, upstream) = match custom {
            Some(prefix) if !asked.starts_with(&format!("{prefix}/")) => {
                let (provider, _) =
                    of_model(&format!("{prefix}/x")).map_err(|why| (None, at_model(), why))?;
                (provider, asked)
            }
            _ => of_model(asked).map_err(|why| (None, at_model(), why))?,
        };
        if let Some(signed) =
            params.entries().iter().find(|e| e.key.starts_with("aws_") && e.key != "aws_region_name")
            && params.get("api_key").is_none()
        {
            return Err((Some(signed.line), format!("{at}.{}", signed.key), SIGV4.to_owned()));
        }
        let named = params.get("litellm_credential_name");
        let credential = named.and_then(|entry| self.credentials.get(entry.node.text()?));
        let source = match (params.get("api_key"), credential, named) {
            (Some(entry), ..) => source(entry),
            (None, Some(Credential { key: Some(key), .. }), _) => key.clone(),
            // it is kept where this importer does not look
            (None, _, Some(entry)) => Source::Written(entry.line),
            (None, None, None)
                if provider.key.is_empty()
                    || provider.host.is_none()
                        && provider.prefix != "azure"
                        && provider.prefix != "bedrock" =>
            {
                Source::None
            }
            (None, ..) => Source::Variable(provider.key.to_owned()),
        };
        if let (Some(entry), None) = (named, credential) {
            let key = format!("{at}.{}", entry.key);
            self.plan.left(entry.line, key, "credential_list has no such name: find out which key it is");
        }
        let kept = credential.and_then(|credential| credential.base.clone());
        let base = params.get("api_base").or_else(|| params.get("base_url"));
        let (host, port, base_path) = match (base, provider.host) {
            (Some(entry), _) => {
                let key = format!("{at}.{}", entry.key);
                let url = entry.node.text().unwrap_or_default();
                if url.starts_with("os.environ/") {
                    let why = "stands in an environment variable: write the address itself";
                    return Err((Some(entry.line), key, why.to_owned()));
                }
                if let Some(why) = lost(url, provider) {
                    self.plan.changed(entry.line, &key, why);
                }
                address(url, provider).map_err(|why| (Some(entry.line), key, why))?
            }
            (None, _) if kept.is_some() => {
                let (line, url) = kept.unwrap_or_default();
                address(&url, provider).map_err(|why| (Some(line), "credential_list".to_owned(), why))?
            }
            (None, Some(host)) => (host.to_owned(), 443, provider.base_path.to_owned()),
            (None, None) if provider.prefix == "bedrock" => {
                let region = params.get("aws_region_name").or_else(|| params.get("region_name"));
                let region = region.and_then(|e| e.node.text()).filter(|r| !r.contains("os.environ"));
                let region = region
                    .ok_or_else(|| (None, at_model(), "needs aws_region_name, written out".to_owned()))?;
                (format!("bedrock-runtime.{region}.amazonaws.com"), 443, String::new())
            }
            (None, None) => return Err((None, at_model(), "needs an api_base".to_owned())),
        };
        Ok(Deployment { provider, upstream, host, port, base_path, source })
    }

    /// The route of a destination and key, with this model among its own.
    fn route(&mut self, to: &Deployment<'_>, model: &str) -> String {
        let dialect = to.provider.dialect;
        let origin = (to.host.clone(), to.port, to.base_path.clone(), dialect, to.source.clone());
        let known = self.origins.iter().position(|known| *known == origin);
        let at = known.unwrap_or_else(|| {
            let same = self.plan.routes.iter().filter(|r| {
                r.name == to.provider.prefix
                    || r.name.strip_prefix(to.provider.prefix).is_some_and(|n| n.starts_with('-'))
            });
            let count = same.count();
            let name = if count == 0 {
                to.provider.prefix.to_owned()
            } else {
                format!("{}-{}", to.provider.prefix, count + 1)
            };
            self.plan.keys.push(Key {
                route: name.clone(),
                scheme: to.provider.scheme,
                source: to.source.clone(),
            });
            self.plan.routes.push(RouteDocument {
                name,
                host: to.host.clone(),
                port: to.port,
                base_path: to.base_path.clone(),
                paths: Vec::new(),
                dialect: dialect.to_owned(),
                headers: Vec::new(),
                models: Vec::new(),
                ca_pem: String::new(),
                body_bytes_max: 16 * 1024 * 1024,
                response_bytes_max: 64 * 1024 * 1024,
                duration_ms_max: 600_000,
                credential: None,
            });
            self.origins.push(origin);
            self.plan.routes.len() - 1
        });
        let Some(route) = self.plan.routes.get_mut(at) else { return String::new() };
        if !route.models.iter().any(|m| m == model) {
            route.models.push(model.to_owned());
        }
        route.paths = default_paths(dialect, &route.models);
        route.name.clone()
    }

    fn finish(mut self) -> Plan {
        self.aliases();
        self.strategies();
        self.fall_back();
        self.budget();
        self.plan.requests_per_minute = (self.rpm >= 1.0).then_some(self.rpm as u64);
        self.plan
    }

    fn aliases(&mut self) {
        for (line, alias, target) in std::mem::take(&mut self.aliases) {
            let found = self.plan.models.iter().find(|model| model.name == target);
            match found.map(|model| model.places.clone()) {
                Some(places)
                    if ModelId::new(alias.as_str()).is_ok()
                        && !self.plan.models.iter().any(|m| m.name == alias) =>
                {
                    self.plan.models.push(Model { name: alias, line, strategy: "weighted", places });
                }
                _ => self.plan.left(
                    line,
                    format!("model_group_alias.{alias}"),
                    "its model was not carried over, or the name is taken",
                ),
            }
        }
    }

    fn strategies(&mut self) {
        let (line, name) = self.strategy.clone().unwrap_or_default();
        let mut strategy = match name.as_str() {
            "" | "simple-shuffle" => "weighted",
            "latency-based-routing" => "fastest",
            "cost-based-routing" => "cheapest",
            _ => "",
        };
        if strategy.is_empty() {
            let why = "the adapter does not count what others have under way: requests are spread at random by weight";
            self.plan.changed(line, "router_settings.routing_strategy", why);
            strategy = "weighted";
        }
        for model in &mut self.plan.models {
            model.places.sort_by(|a, b| a.order.total_cmp(&b.order));
            let ordered = model.places.iter().any(|place| place.order > 0.0);
            model.strategy = if model.places.len() == 1 || ordered { "priority" } else { strategy };
        }
    }

    fn fall_back(&mut self) {
        let own: BTreeMap<String, Vec<Place>> =
            self.plan.models.iter().map(|model| (model.name.clone(), model.places.clone())).collect();
        let rules = std::mem::take(&mut self.fallbacks);
        for (line, from, to) in &rules {
            if !own.contains_key(from) {
                self.plan.left(*line, format!("fallbacks.{from}"), "its model was not carried over");
            }
            for name in to.iter().filter(|name| !own.contains_key(*name)) {
                self.plan.left(*line, format!("fallbacks.{from}"), format!("{name} was not carried over"));
            }
        }
        for name in std::mem::take(&mut self.default_fallbacks) {
            if own.contains_key(&name) {
                self.default_fallbacks.push(name);
            } else {
                self.plan.left(
                    self.default_line,
                    "default_fallbacks",
                    format!("{name} was not carried over"),
                );
            }
        }
        let mut notes = Vec::new();
        for model in &mut self.plan.models {
            let rule = rules.iter().find(|(_, from, _)| *from == model.name);
            let line = rule.map_or(model.line, |(line, _, _)| *line);
            let to = rule.map_or(&self.default_fallbacks, |(_, _, to)| to);
            let mut more: Vec<Place> = to
                .iter()
                .filter(|name| **name != model.name)
                .filter_map(|name| own.get(name))
                .flatten()
                .cloned()
                .collect();
            more.retain(|place| {
                !model.places.iter().any(|p| (&p.route, &p.model) == (&place.route, &place.model))
            });
            if more.is_empty() {
                continue;
            }
            if model.strategy != "priority" && model.places.len() > 1 {
                notes.push((line, model.name.clone()));
            }
            model.strategy = "priority";
            model.places.extend(more);
        }
        for (line, name) in notes {
            let why = "with fallbacks its routes are tried in the order listed; LiteLLM would spread requests over the first of them";
            self.plan.changed(line, format!("fallbacks.{name}"), why);
        }
    }

    /// The whole proxy's budget is a team's: put every client into it.
    fn budget(&mut self) {
        let Some((line, dollars)) = self.budget else {
            if let Some((line, _)) = self.period {
                self.plan.left(line, "litellm_settings.budget_duration", "without a max_budget");
            }
            return;
        };
        if dollars <= 0.0 {
            return self.plan.left(line, "litellm_settings.max_budget", "nothing could be asked at all");
        }
        let micro = Some((dollars * 1e6).round() as u64);
        let mut team = TeamDocument { name: TEAM.to_owned(), ..TeamDocument::default() };
        match self.period.as_ref().map(|(_, period)| period.as_str()) {
            Some("1d" | "24h") => team.money_per_day = micro,
            Some("30d" | "1mo" | "31d") => team.money_per_month = micro,
            _ => {
                let why = "budgets are per minute, day or calendar month: give the team one of these";
                return self.plan.left(line, "litellm_settings.max_budget", why);
            }
        }
        self.plan.teams.push(team);
        let why = format!(
            "the budget of team {TEAM}: put each client into it. Windows are the UTC day and the calendar month"
        );
        self.plan.changed(line, "litellm_settings.max_budget", why);
    }
}

/// Where a key is.
fn source(entry: &Entry) -> Source {
    let Some(text) = entry.node.text() else {
        return if matches!(entry.node.value, Value::Null) {
            Source::None
        } else {
            Source::Written(entry.line)
        };
    };
    match text.strip_prefix("os.environ/") {
        Some(name) if variable(name) => Source::Variable(name.to_owned()),
        _ if ["none", "dummy", "fake", "sk-no-key-required", ""].contains(&text.to_lowercase().as_str()) => {
            Source::None
        }
        _ => Source::Written(entry.line),
    }
}

/// What of an address is not in the route. Repeats nothing of it: a query may hold a key.
fn lost(url: &str, provider: &Provider) -> Option<&'static str> {
    let (_, rest) = url.split_once("://")?;
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    if url.contains('?') {
        return Some("its query is left out: no route has one");
    }
    let known = ["", "openai", "openai/v1"].contains(&path.trim_end_matches('/'));
    (provider.prefix == "azure" && !known)
        .then_some("its path is left out: the route speaks Azure's v1 API at /openai/v1")
}

/// The name of an environment variable, fit for a shell.
fn variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Host, port and what stands before `/v1`, of an `api_base`.
fn address(url: &str, provider: &Provider) -> Result<(String, u16, String), String> {
    let rest =
        url.strip_prefix("https://").ok_or("not https: the mesh reaches providers over TLS 1.3 alone")?;
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| "its port is no number")?),
        None => (authority, 443),
    };
    let host = host.to_lowercase();
    if host.is_empty() || host.contains('@') {
        return Err("holds no plain host name".to_owned());
    }
    let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
    if provider.prefix == "azure" {
        return Ok((host, port, provider.base_path.to_owned()));
    }
    // The paths of a dialect begin with /v1 already.
    let path = path.strip_suffix("v1").map_or(path, |path| path.trim_end_matches('/'));
    let base = if path.is_empty() { String::new() } else { format!("/{path}") };
    Ok((host, port, base))
}
