//! `quorate admin team`, `price`, and what a client may use: limits and prices in the draft, money in decimals.
use super::admin::{DraftArg, edit};
use super::money::{duration_ms, micros};
use super::output::{Failure, Outcome};
use clap::Subcommand;
use quorate_core::policy::{ClientDocument, PriceDocument, TeamDocument};

/// Limits on money, of a client or a team.
#[derive(clap::Args, Default)]
struct MoneyArgs {
    /// Money per minute, decimal; each request then names a price
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    money_per_minute: Option<u64>,
    /// Money per day
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    money_per_day: Option<u64>,
    /// Money per calendar month
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    money_per_month: Option<u64>,
}

/// Limits of a client besides those that every grant has.
#[derive(clap::Args, Default)]
pub(crate) struct ClientLimitArgs {
    /// Team whose limits it shares
    #[arg(long)]
    team: Option<String>,
    /// Requests per calendar month
    #[arg(long, value_name = "N")]
    requests_per_month: Option<u64>,
    /// Bytes per minute
    #[arg(long, value_name = "BYTES")]
    bytes_per_minute: Option<u64>,
    /// Bytes per calendar month
    #[arg(long, value_name = "BYTES")]
    bytes_per_month: Option<u64>,
    #[command(flatten)]
    money: MoneyArgs,
    /// It may mint tokens that live at most so long, such as 15m; at most a day
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    token_lifetime: Option<u64>,
}

impl ClientLimitArgs {
    pub(crate) fn apply(self, client: &mut ClientDocument) {
        client.team = self.team;
        client.requests_per_month = self.requests_per_month;
        (client.bytes_per_minute, client.bytes_per_month) = (self.bytes_per_minute, self.bytes_per_month);
        let MoneyArgs { money_per_minute, money_per_day, money_per_month } = self.money;
        client.money_per_minute = money_per_minute;
        (client.money_per_day, client.money_per_month) = (money_per_day, money_per_month);
        client.token_lifetime_ms_max = self.token_lifetime;
    }
}

#[derive(Subcommand)]
pub(crate) enum TeamCommand {
    /// Set a team's limits; what is not named is not limited
    Set(TeamSetArgs),
    /// Remove a team; its clients must have left it
    Remove {
        #[command(flatten)]
        draft: DraftArg,
        /// Its name
        #[arg(long)]
        name: String,
    },
}

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  quorate admin team set --policy next.toml --name research --client app --money-per-month 900\nThen sign and submit the draft. A request has to fit the limits of its client, its team and its token alike."
)]
pub(crate) struct TeamSetArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// Its name
    #[arg(long)]
    name: String,
    /// Client that is in it, besides those that are already; repeat for each
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// Requests per minute, of all its clients together
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u64>,
    /// Requests per day
    #[arg(long, value_name = "N")]
    requests_per_day: Option<u64>,
    /// Requests per calendar month
    #[arg(long, value_name = "N")]
    requests_per_month: Option<u64>,
    /// Bytes per minute, both directions
    #[arg(long, value_name = "BYTES")]
    bytes_per_minute: Option<u64>,
    /// Bytes per day
    #[arg(long, value_name = "BYTES")]
    bytes_per_day: Option<u64>,
    /// Bytes per calendar month
    #[arg(long, value_name = "BYTES")]
    bytes_per_month: Option<u64>,
    #[command(flatten)]
    money: MoneyArgs,
}

#[derive(Subcommand)]
pub(crate) enum PriceCommand {
    /// Set a row of the price table
    Set(PriceSetArgs),
    /// Remove a row
    Remove {
        #[command(flatten)]
        draft: DraftArg,
        /// Its name
        #[arg(long)]
        name: String,
    },
}

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  quorate admin price set --policy next.toml --name openai/gpt-4o --route openai --input 2.50 --cached-input 1.25 --output 10 --output-max 16384 --currency USD\nWhich row of a route's applies, and how many tokens were cached, is the client's word: give classes of models that differ in price a route each."
)]
pub(crate) struct PriceSetArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// Its name, such as openai/gpt-4o
    #[arg(long)]
    name: String,
    /// Route it applies to; repeat for each
    #[arg(long = "route", required = true)]
    routes: Vec<String>,
    /// Model it is the price of; repeat for each [default: what follows the last / of its name]
    #[arg(long = "model")]
    models: Vec<String>,
    /// Price of a million tokens of input, decimal
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    input: u64,
    /// Of a million cached tokens of input [default: as input]
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    cached_input: Option<u64>,
    /// Of a million tokens of output
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    output: u64,
    /// Of a request, besides
    #[arg(long, value_name = "AMOUNT", value_parser = micros, default_value = "0")]
    request: u64,
    /// Most tokens of input that the model takes
    #[arg(long, value_name = "TOKENS")]
    input_max: Option<u64>,
    /// Most tokens of output that it gives: what a request holds that names no ceiling of its own
    #[arg(long, value_name = "TOKENS")]
    output_max: Option<u64>,
    /// Tokens of input that may be billed though no byte carries them (images by reference, stored context)
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    unseen_input: u64,
    /// Tokens of output likewise (hidden reasoning)
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    unseen_output: u64,
    /// What all money in the policy is in, such as USD: for people
    #[arg(long, value_name = "NAME")]
    currency: Option<String>,
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure::new(format!("the draft has no {what} {name:?}"), format!("see the [[{what}]] stanzas"))
}

/// Takes the one of that name out of a list of the draft.
fn remove<T>(list: &mut Vec<T>, what: &str, name: &str, of: impl Fn(&T) -> &String) -> Outcome {
    let before = list.len();
    list.retain(|one| of(one) != name);
    if list.len() == before { Err(unknown(what, name)) } else { Ok(()) }
}

pub(crate) fn team(command: TeamCommand) -> Outcome {
    match command {
        TeamCommand::Set(args) => {
            let team = TeamDocument {
                name: args.name,
                requests_per_minute: args.requests_per_minute,
                requests_per_day: args.requests_per_day,
                requests_per_month: args.requests_per_month,
                bytes_per_minute: args.bytes_per_minute,
                bytes_per_day: args.bytes_per_day,
                bytes_per_month: args.bytes_per_month,
                money_per_minute: args.money.money_per_minute,
                money_per_day: args.money.money_per_day,
                money_per_month: args.money.money_per_month,
            };
            edit(&args.draft, |d| {
                for name in &args.clients {
                    let client = d.client.iter_mut().find(|c| c.name == *name);
                    client.ok_or_else(|| unknown("client", name))?.team = Some(team.name.clone());
                }
                d.team.retain(|t| t.name != team.name);
                d.team.push(team);
                Ok(())
            })
        }
        TeamCommand::Remove { draft, name } => edit(&draft, |d| {
            if let Some(client) = d.client.iter().find(|c| c.team.as_ref() == Some(&name)) {
                return Err(Failure::new(
                    format!("client {:?} is in team {name:?}", client.name),
                    "put it into another with `quorate admin team set --client`, or take its team out of the draft",
                ));
            }
            remove(&mut d.team, "team", &name, |t| &t.name)
        }),
    }
}

pub(crate) fn price(command: PriceCommand) -> Outcome {
    match command {
        PriceCommand::Set(args) => {
            let price = PriceDocument {
                name: args.name,
                routes: args.routes,
                models: args.models,
                input: args.input,
                cached_input: args.cached_input,
                output: args.output,
                request: args.request,
                unseen_input: args.unseen_input,
                unseen_output: args.unseen_output,
                input_max: args.input_max,
                output_max: args.output_max,
            };
            edit(&args.draft, |d| {
                d.currency = args.currency.unwrap_or(std::mem::take(&mut d.currency));
                d.price.retain(|p| p.name != price.name);
                d.price.push(price);
                Ok(())
            })
        }
        PriceCommand::Remove { draft, name } => {
            edit(&draft, |d| remove(&mut d.price, "price", &name, |p| &p.name))
        }
    }
}
