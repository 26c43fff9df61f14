//! From a model's name to targets in an order. Pure: what was seen of targets, dice and time are arguments.
//!
//! **Decides** which granted routes may serve a request and in which order they are tried. **Assumes** that the order of a
//! grant's routes is the admins' preference. **Leaves** to the attempts what to do when one fails.
use crate::config::{Capability, Config, Model, Place, Strategy, Tries};
use crate::errors::Failure;
use crate::health::{Book, Verdict};
use crate::upstream::Route;
use http::StatusCode;
use quorate_client::Error;
use quorate_dialects::{Call, Dialect, Flavour};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often `fastest` asks another than the fastest, to notice when that changes.
const EXPLORE: f64 = 0.05;
/// Tokens out that a price is estimated with when the request sets no bound.
const TOKENS_OUT: u64 = 500;

/// Bytes of a token, on average; only for choosing a model that is large or cheap enough.
const BYTES_PER_TOKEN: u64 = 4;

/// What a request asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// What it must be able to do.
    pub(crate) able: quorate_dialects::Needs,
    /// Tokens in, estimated.
    pub(crate) tokens_in: u64,
    /// Tokens out, at most; 0 when the request does not say.
    pub(crate) tokens_out: u64,
}

impl Needs {
    pub(crate) fn of(call: &Call) -> Self {
        let tokens_in = call.expose_body().len() as u64 / BYTES_PER_TOKEN;
        Self { able: call.needs(), tokens_in, tokens_out: call.max_output_tokens().unwrap_or(0) }
    }
}

/// One place that a request may be sent to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    /// What its health is kept under.
    pub(crate) key: String,
    /// The route.
    pub(crate) route: Arc<Route>,
    /// What the model is called there.
    pub(crate) model: String,
    /// Whose server it is.
    pub(crate) flavour: Flavour,
}

/// What to try, first things first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Never empty.
    pub(crate) targets: Vec<Target>,
    /// Bounds.
    pub(crate) tries: Tries,
    /// When to ask a second one at once.
    pub(crate) hedge_after: Option<Duration>,
    /// Whether what may have reached a provider may be sent again.
    pub(crate) repeat_unanswered: bool,
}

/// The configured models, by name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    models: HashMap<String, Model>,
    defaults: Tries,
}

impl Table {
    pub(crate) fn new(config: &Config) -> Self {
        let models = config.models.iter().map(|m| (m.name.clone(), m.clone())).collect();
        Self { models, defaults: config.defaults.clone() }
    }

    /// Names of configured models.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    pub(crate) fn is_configured(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Makes the plan of one request. `dice` gives numbers in 0..1.
    pub(crate) fn plan(
        &self,
        (dialect, model): (Dialect, &str),
        routes: &[Arc<Route>],
        book: &Book,
        needs: Needs,
        dice: &mut dyn FnMut() -> f64,
        now: Instant,
    ) -> Result<Plan, Failure> {
        let Some(configured) = self.models.get(model) else {
            let route = by_policy(dialect, model, routes)?;
            let key = route.name.clone();
            let target = Target { key, model: model.to_owned(), flavour: route.flavour, route };
            let (hedge_after, repeat_unanswered) = (None, false);
            return Ok(Plan {
                targets: vec![target],
                tries: self.defaults.clone(),
                hedge_after,
                repeat_unanswered,
            });
        };
        let granted = |place: &Place| routes.iter().find(|r| r.name == place.route).cloned();
        let mut places: Vec<(&Place, Target)> = Vec::new();
        for place in &configured.routes {
            if let Some(route) = granted(place) {
                let model = place.model.clone().unwrap_or_else(|| model.to_owned());
                let key = format!("{} {model}", place.route);
                let flavour = place.flavour().unwrap_or(route.flavour);
                places.push((place, Target { key, route, model, flavour }));
            }
        }
        if places.is_empty() {
            let route = configured.routes.first().map(|p| p.route.clone()).unwrap_or_default();
            return Err(Failure::of(&Error::UnknownRoute { route }));
        }
        places.retain(|(place, _)| can(place, needs));
        if places.is_empty() {
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "no_capable_route",
                format!("no route of model {model:?} can do what the request needs"),
                "ask for another model, or add a capable route to the adapter's configuration",
            ));
        }
        order(configured.strategy, &mut places, book, needs, dice);
        // A stable sort: among the open and among the closed the order stays.
        places.sort_by_key(|(_, t)| matches!(book.verdict(&t.key, now), Verdict::Open(_)));
        Ok(Plan {
            targets: places.into_iter().map(|(_, target)| target).collect(),
            tries: configured.tries.clone().unwrap_or_else(|| self.defaults.clone()),
            hedge_after: configured.hedge_after_ms.map(Duration::from_millis),
            repeat_unanswered: configured.repeat_unanswered || configured.hedge_after_ms.is_some(),
        })
    }
}

/// The route that the policy has for a model: one that names it before one that takes any, and among those one that speaks the
/// caller's dialect.
fn by_policy(dialect: Dialect, model: &str, routes: &[Arc<Route>]) -> Result<Arc<Route>, Failure> {
    let among = |serves: &dyn Fn(&Route) -> bool| {
        let mut serving = routes.iter().filter(|r| serves(r));
        let first = serving.clone().next();
        serving.find(|r| r.dialect == dialect).or(first).cloned()
    };
    among(&|r| r.names(model))
        .or_else(|| among(&|r| r.takes_any()))
        .ok_or_else(|| Failure::of(&Error::UnknownModel { model: model.to_owned() }))
}

fn can(place: &Place, needs: Needs) -> bool {
    let able = |capability| place.capabilities.as_ref().is_none_or(|c| c.contains(&capability));
    let fits = place.context_tokens.is_none_or(|max| needs.tokens_in.saturating_add(needs.tokens_out) <= max);
    let asked = needs.able;
    fits && (!asked.tools || able(Capability::Tools))
        && (!asked.vision || able(Capability::Vision))
        && (!asked.json_schema || able(Capability::JsonSchema))
        && (!asked.reasoning || able(Capability::Reasoning))
}

fn order(
    strategy: Strategy,
    places: &mut [(&Place, Target)],
    book: &Book,
    needs: Needs,
    dice: &mut dyn FnMut() -> f64,
) {
    match strategy {
        Strategy::Priority => {}
        Strategy::Weighted => {
            // Efraimidis and Spirakis: keys of u^(1/w) draw without replacement by weight.
            let mut keyed: HashMap<String, f64> = HashMap::new();
            for (place, target) in places.iter() {
                let key = if place.weight > 0.0 { dice().powf(1.0 / place.weight) } else { -1.0 };
                keyed.insert(target.key.clone(), key);
            }
            let of = |t: &Target| keyed.get(&t.key).copied().unwrap_or(-1.0);
            places.sort_by(|(_, a), (_, b)| of(b).total_cmp(&of(a)));
        }
        Strategy::Cheapest => {
            let tokens_out = if needs.tokens_out == 0 { TOKENS_OUT } else { needs.tokens_out };
            let price = |p: &Place| match (p.price_in, p.price_out) {
                (None, None) => f64::INFINITY,
                (i, o) => i.unwrap_or(0.0) * needs.tokens_in as f64 + o.unwrap_or(0.0) * tokens_out as f64,
            };
            places.sort_by(|(a, _), (b, _)| price(a).total_cmp(&price(b)));
        }
        Strategy::Fastest => {
            // Who was never asked comes first: otherwise it never would be.
            let speed = |t: &Target| book.first_byte_ms(&t.key).unwrap_or(0.0);
            places.sort_by(|(_, a), (_, b)| speed(a).total_cmp(&speed(b)));
            if places.len() > 1 && dice() < EXPLORE {
                // An index below the length: the cast of a small product of 0..1 cannot leave it.
                let other = 1 + (dice() * (places.len() - 1) as f64) as usize;
                places.swap(0, other.min(places.len() - 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::route;

    fn table(models: &str) -> Table {
        let config: Config = toml::from_str(models).unwrap();
        config.check().unwrap();
        Table::new(&config)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.targets.iter().map(|t| t.route.name.as_str()).collect()
    }

    struct Case {
        routes: Vec<Arc<Route>>,
        book: Book,
        needs: Needs,
        dice: Vec<f64>,
    }

    impl Case {
        fn new(names: &[&str]) -> Self {
            let routes = names.iter().map(|n| route(n, Dialect::OpenAi, &["*"])).collect();
            Self { routes, book: Book::default(), needs: Needs::default(), dice: vec![0.5] }
        }
        fn plan(&self, table: &Table, model: &str) -> Result<Plan, String> {
            let mut at = 0;
            let mut dice = || {
                at += 1;
                self.dice[(at - 1) % self.dice.len()]
            };
            table
                .plan(
                    (Dialect::OpenAi, model),
                    &self.routes,
                    &self.book,
                    self.needs,
                    &mut dice,
                    Instant::now(),
                )
                .map_err(|f| f.code.into_owned())
        }
        fn order(&self, table: &Table) -> Vec<String> {
            names(&self.plan(table, "m").unwrap()).into_iter().map(str::to_owned).collect()
        }
    }

    #[test]
    fn without_configuration_the_policy_says_where() {
        let routes = vec![
            route("any", Dialect::OpenAi, &["*"]),
            route("claude", Dialect::Anthropic, &["c"]),
            route("claude-too", Dialect::OpenAi, &["c"]),
            route("any-anthropic", Dialect::Anthropic, &["*"]),
        ];
        let find = |dialect, model| by_policy(dialect, model, &routes).map(|r| r.name.clone());
        assert_eq!(find(Dialect::OpenAi, "c").unwrap(), "claude-too");
        assert_eq!(find(Dialect::Anthropic, "c").unwrap(), "claude");
        assert_eq!(
            find(Dialect::Gemini, "c").unwrap(),
            "claude",
            "the first that names it; it is translated"
        );
        assert_eq!(find(Dialect::Anthropic, "x").unwrap(), "any-anthropic");
        let none = by_policy(Dialect::OpenAi, "x", &routes[1..3]).unwrap_err();
        assert_eq!((none.status.as_u16(), &*none.code), (404, "model_not_found"));
    }

    #[test]
    fn routes_that_are_not_granted_are_left_out() {
        let table =
            table(r#"model = [{ name = "m", routes = [{ route = "a" }, { route = "b", model = "mb" }] }]"#);
        let case = Case::new(&["b"]);
        let plan = case.plan(&table, "m").unwrap();
        assert_eq!((names(&plan), plan.targets[0].model.as_str()), (vec!["b"], "mb"));
        assert_eq!(Case::new(&["c"]).plan(&table, "m").unwrap_err(), "unknown_route");
    }

    #[test]
    fn strategies_order() {
        let of = |strategy: &str| {
            table(&format!(
                r#"model = [{{ name = "m", strategy = "{strategy}", routes = [
                    {{ route = "a", price_in = 10.0, price_out = 1.0, weight = 1.0 }},
                    {{ route = "b", price_in = 1.0, price_out = 10.0, weight = 3.0 }},
                    {{ route = "c", weight = 0.0 }} ] }}]"#
            ))
        };
        let mut case = Case::new(&["a", "b", "c"]);
        assert_eq!(case.order(&of("priority")), ["a", "b", "c"]);
        case.needs = Needs { tokens_in: 10, tokens_out: 1000, ..Needs::default() };
        assert_eq!(case.order(&of("cheapest")), ["a", "b", "c"]);
        case.needs = Needs { tokens_in: 1000, tokens_out: 10, ..Needs::default() };
        assert_eq!(case.order(&of("cheapest")), ["b", "a", "c"]);
        case.dice = vec![0.9, 0.5];
        assert_eq!(case.order(&of("weighted")), ["a", "b", "c"], "0.9 against the third root of 0.5");
        case.dice = vec![0.7, 0.5];
        assert_eq!(case.order(&of("weighted")), ["b", "a", "c"]);
        let now = Instant::now();
        for (key, ms) in [("a m", 30), ("b m", 20)] {
            case.book.admit(key, now, false).unwrap().answered(now + Duration::from_millis(ms));
        }
        case.dice = vec![0.5];
        assert_eq!(case.order(&of("fastest")), ["c", "b", "a"], "unknown first");
        case.book.admit("c m", now, false).unwrap().answered(now + Duration::from_millis(90));
        assert_eq!(case.order(&of("fastest")), ["b", "a", "c"]);
        case.dice = vec![0.01, 0.9];
        assert_eq!(case.order(&of("fastest")), ["c", "a", "b"], "now and then another");
    }

    #[test]
    fn weights_hold_over_many_requests() {
        let table = table(
            r#"model = [{ name = "m", strategy = "weighted", routes = [{ route = "a" }, { route = "b", weight = 3.0 }] }]"#,
        );
        let mut case = Case::new(&["a", "b"]);
        let mut first_b = 0;
        for n in 0..1000 {
            // Two numbers that are spread evenly.
            let (x, y) = ((n as f64 * 0.618_034).fract(), (n as f64 * 0.754_877_7).fract());
            case.dice = vec![x, y];
            first_b += usize::from(case.order(&table)[0] == "b");
        }
        assert!((700..800).contains(&first_b), "{first_b}");
    }

    #[test]
    fn capabilities_leave_routes_out() {
        let table = table(
            r#"model = [{ name = "m", routes = [
                { route = "a", capabilities = ["tools"], context_tokens = 1000 },
                { route = "b", capabilities = ["tools", "vision"], context_tokens = 100 },
                { route = "c" } ] }]"#,
        );
        let mut case = Case::new(&["a", "b", "c"]);
        assert_eq!(case.order(&table), ["a", "b", "c"]);
        case.needs.able.vision = true;
        assert_eq!(case.order(&table), ["b", "c"], "what says nothing may do anything");
        case.needs = Needs { tokens_in: 500, tokens_out: 600, ..Needs::default() };
        case.needs.able.tools = true;
        assert_eq!(case.order(&table), ["c"]);
        case.routes.pop();
        assert_eq!(case.plan(&table, "m").unwrap_err(), "no_capable_route");
    }

    #[test]
    fn an_open_breaker_comes_last() {
        let table = table(r#"model = [{ name = "m", routes = [{ route = "a" }, { route = "b" }] }]"#);
        let case = Case::new(&["a", "b"]);
        for _ in 0..5 {
            case.book.admit("a m", Instant::now(), false).unwrap().failed(Instant::now());
        }
        assert_eq!(case.order(&table), ["b", "a"]);
    }
}
