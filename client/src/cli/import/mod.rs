//! `quorate admin import`: another gateway's configuration as routes, prices and teams of a policy and models of an adapter.
//!
//! Nothing that the file holds as a key is written anywhere: for each key a command is printed that takes it from where it
//! is kept. Whatever could not be carried over is reported with its line and why: an option that is silently lost would be
//! found in production.
mod litellm;
mod plan;
mod providers;
mod yaml;

use super::admin::{load, save};
use super::output::{Failure, Outcome, note, read, text_out, write};
use clap::Subcommand;
use plan::{Kind, Plan};
use std::path::{Path, PathBuf};

/// Longest configuration that is read.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum ImportCommand {
    /// A LiteLLM proxy's config.yaml: routes and prices for the policy, models for `quorate serve`
    #[command(
        after_help = "Keys are never copied: for each, the command that splits it is printed. Prints what could not be carried over, by line."
    )]
    Litellm(LitellmArgs),
}

#[derive(clap::Args)]
pub(crate) struct LitellmArgs {
    /// The proxy's configuration
    config: PathBuf,
    /// Folder for policy-part.toml, serve.toml and report.txt
    #[arg(long, value_name = "DIR", default_value = "imported")]
    out: PathBuf,
    /// A draft to add routes, prices and teams to as well; what it has by the same names stays
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

pub(crate) fn run(command: ImportCommand) -> Outcome {
    match command {
        ImportCommand::Litellm(args) => litellm(&args),
    }
}

fn litellm(args: &LitellmArgs) -> Outcome {
    let bytes = read(&args.config, CONFIG_BYTES_MAX)?;
    let name = args.config.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let plan =
        yaml::parse(&String::from_utf8_lossy(&bytes)).map(|root| litellm::read(&root)).map_err(|e| {
            Failure::new(
                format!("{}: {e}", args.config.display()),
                "give a configuration that LiteLLM starts with",
            )
        })?;
    if plan.models.is_empty() {
        return Err(Failure {
            message: format!("{}: no model could be carried over", args.config.display()),
            hints: plan
                .notes
                .iter()
                .map(|note| format!("line {}: {}: {}", note.line, note.key, note.text))
                .collect(),
        });
    }
    std::fs::create_dir_all(&args.out).map_err(|e| {
        Failure::new(format!("{}: {e}", args.out.display()), "name another folder with --out")
    })?;
    let draft = args.policy.clone().unwrap_or_else(|| PathBuf::from("policy.toml"));
    let files = [
        ("policy-part.toml", plan.policy_part(&name)?),
        ("serve.toml", plan.serve(&name)),
        ("report.txt", plan.report(&name, &draft)),
    ];
    for (file, text) in &files {
        let path = args.out.join(file);
        if path.exists() {
            return Err(Failure::new(
                format!("{} exists", path.display()),
                "name another folder with --out, or remove it",
            ));
        }
        write(&path, text)?;
    }
    if let Some(path) = &args.policy {
        merge(path, &plan)?;
    }
    text_out(&plan.report(&name, &draft))?;
    let count = |kind| plan.notes.iter().filter(|note| note.kind == kind).count();
    note(&format!(
        "wrote {}: {} models over {} routes; {} settings changed their meaning, {} were left behind",
        args.out.display(),
        plan.models.len(),
        plan.routes.len(),
        count(Kind::Changed),
        count(Kind::Left)
    ));
    Ok(())
}

/// Adds to a draft what it has not.
fn merge(path: &Path, plan: &Plan) -> Outcome {
    let mut draft = load(path)?;
    for route in &plan.routes {
        match draft.route.iter().find(|r| r.name == route.name) {
            None => draft.route.push(route.clone()),
            Some(there) if (&there.host, there.port) == (&route.host, route.port) => {}
            Some(_) => {
                return Err(Failure::new(
                    format!("{} has a route {} that goes elsewhere", path.display(), route.name),
                    "rename it, or take what you want from policy-part.toml",
                ));
            }
        }
    }
    if draft.currency.is_empty() && !plan.prices.is_empty() {
        draft.currency = plan::CURRENCY.to_owned();
    }
    for price in &plan.prices {
        if !draft.price.iter().any(|p| p.name == price.name) {
            draft.price.push(price.clone());
        }
    }
    for team in &plan.teams {
        if !draft.team.iter().any(|t| t.name == team.name) {
            draft.team.push(team.clone());
        }
    }
    save(path, &draft)
}

#[cfg(test)]
mod tests;
