//! `quorate admin credential`: a provider's key into the policy, so that nobody holds it. The key is read on the admin's machine,
//! split for the draft's members, each share sealed to its node, and forgotten; the draft that goes to the other admins for
//! their signatures holds sealed shares alone.
mod check;
mod probe;
mod seal;
mod shape;
mod source;

use super::TrustArg;
use super::admin::{DraftArg, edit, load};
use super::output::{Failure, Outcome, line, note};
use check::CheckArgs;
use clap::Subcommand;
use quorate_core::policy::{CredentialDocument, CredentialScheme, PolicyDocument, RouteDocument};
use shape::Key;
use source::KeySource;
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum CredentialCommand {
    /// Split a provider's key for a route that has none
    #[command(after_help = SET_HELP)]
    Set(SetArgs),
    /// Split a route's key anew: a new key, or the same one after members changed
    #[command(after_help = ROTATE_HELP)]
    Rotate(SetArgs),
    /// Take the key off a route; requests on it carry none from then on
    Remove(RouteArgs),
    /// Stop a key at once, without a new splitting: nothing is authorised with it while it is frozen
    Freeze(RouteArgs),
    /// Lift a freeze, and what failed requests imposed: suspended pairs, barred clients. Each lift lets a hostile node try again
    Lift(RouteArgs),
    /// Try the key in force over every relay and keyer; exit status 1 when one fails
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
}

const SET_HELP: &str = "\
The key is read from the terminal without echo, or from --from-file, or from --from-command; never from an argument or the environment. It is sent nowhere: the probe uses a random key of the same shape. What the draft gets is a share for each member, sealed to its TPM. Then sign and submit the draft like any other change.

Examples:
  quorate admin policy --next --trust trust.toml > next.toml
  quorate admin credential set openai --policy next.toml
  quorate admin credential set openai --policy next.toml --from-command 'pass show openai'
  quorate admin sign next.toml --key ~/.ssh/id_ed25519
  quorate admin submit next.toml next.toml.sig --trust trust.toml
  quorate admin credential check openai --trust trust.toml --key ~/.ssh/id_ed25519

Before: the route (`admin route add`), an approver (`admin approver`), a share key for each member (`admin enrol`) and an approval of its software (`admin approve`).";

const ROTATE_HELP: &str = "\
Do this whenever the provider's key changes, and whenever a member is added, replaced or removed: shares are for exactly the members there are, so a change of members needs the key once more.

Example, with the key in a secret manager:
  quorate admin credential rotate openai --policy next.toml --from-command 'pass show openai'";

const CHECK_HELP: &str = "\
Each relay and keyer hold shares of their own, so each pair is tried, with one small request that is not metered: an admin signs a grant for it with --key. A pair can be tried 8 times in a share epoch.

Example:
  quorate admin credential check openai --trust trust.toml --key ~/.ssh/id_ed25519";

#[derive(clap::Args)]
pub(crate) struct SetArgs {
    /// Name of the route
    route: String,
    #[command(flatten)]
    draft: DraftArg,
    #[command(flatten)]
    source: KeySource,
    /// Header that carries the key [default: x-api-key for dialect anthropic, x-goog-api-key for gemini, else bearer; rotate: as it was]
    #[arg(long, value_name = "SCHEME", value_parser = ["bearer", "x-api-key", "api-key", "x-goog-api-key"])]
    scheme: Option<String>,
    /// The key's public beginning, which is not split; may be empty [default: known ones, such as sk-ant-api03-]
    #[arg(long, value_name = "TEXT")]
    public_prefix: Option<String>,
    /// Go on when the provider repeats parts of keys in its answers; recorded in the policy
    #[arg(long)]
    accept_echo: bool,
    /// Do not probe the provider from here
    #[arg(long)]
    no_probe: bool,
    /// Share epoch, above every one the route had [default: the draft's version, or one more than now]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    share_epoch: Option<u32>,
}

#[derive(clap::Args)]
pub(crate) struct RouteArgs {
    /// Name of the route
    route: String,
    #[command(flatten)]
    draft: DraftArg,
}

pub(crate) async fn run(command: CredentialCommand) -> Outcome {
    match command {
        CredentialCommand::Set(args) => set(args, false).await,
        CredentialCommand::Rotate(args) => set(args, true).await,
        CredentialCommand::Remove(args) => {
            edit(&args.draft, |d| {
                let route = route_of(d, &args.route)?;
                credential_of(route)?;
                route.credential = None;
                Ok(())
            })?;
            note("once this is in force the nodes erase their shares; revoke the key at the provider too");
            next_steps(&args.draft)
        }
        CredentialCommand::Freeze(args) => switch(&args, |c| c.frozen = true),
        CredentialCommand::Lift(args) => switch(&args, |c| {
            c.frozen = false;
            c.lifted = c.lifted.saturating_add(1);
        }),
        CredentialCommand::Check(args) => check::check(args).await,
    }
}

fn switch(args: &RouteArgs, change: impl FnOnce(&mut CredentialDocument)) -> Outcome {
    edit(&args.draft, |d| {
        change(credential_of(route_of(d, &args.route)?)?);
        Ok(())
    })?;
    next_steps(&args.draft)
}

fn route_of<'a>(draft: &'a mut PolicyDocument, name: &str) -> Outcome<&'a mut RouteDocument> {
    let known: Vec<String> = draft.route.iter().map(|r| r.name.clone()).collect();
    draft.route.iter_mut().find(|r| r.name == name).ok_or_else(|| {
        Failure::new(
            format!("the draft has no route {name:?}"),
            match known.is_empty() {
                true => "add it first: `quorate admin route add`".to_owned(),
                false => format!("it has {}", known.join(", ")),
            },
        )
    })
}

fn credential_of(route: &mut RouteDocument) -> Outcome<&mut CredentialDocument> {
    let name = route.name.clone();
    route.credential.as_mut().ok_or_else(|| {
        Failure::new(format!("route {name} has no credential"), "split one: `quorate admin credential set`")
    })
}

async fn set(args: SetArgs, again: bool) -> Outcome {
    let mut draft = load(&args.draft.policy)?;
    // Everything that can be wrong without the key is said before it is asked for.
    seal::share_keys(&draft)?;
    let route = route_of(&mut draft, &args.route)?.clone();
    if route.credential.is_some() && !again {
        return Err(Failure::new(
            format!("route {} has a credential", route.name),
            "for another key, or the same after a change of members: `quorate admin credential rotate`",
        ));
    }
    let before = route.credential.as_ref();
    if again && before.is_none() {
        return Err(Failure::new(
            format!("route {} has no credential to rotate", route.name),
            "split its first one: `quorate admin credential set`",
        ));
    }
    let named = args.scheme.as_deref().or(before.map(|c| c.scheme.as_str()));
    let scheme = match named {
        Some(name) => {
            name.parse::<CredentialScheme>().map_err(|e| Failure::new(e.to_string(), "see --help"))?
        }
        None => shape::default_scheme(&route.dialect),
    };
    let share_epoch = args.share_epoch.unwrap_or_else(|| seal::next_epoch(&draft, &route));
    let key = Key::parse(&args.source.read(&route.name)?, args.public_prefix.as_deref())?;
    if args.no_probe {
        note("not probed: try it with `quorate admin credential check` once it is in force");
    } else {
        let twin = shape::twin(&key.secret)?;
        let bare = RouteDocument { credential: None, ..route.clone() };
        note(&probe::probe(&bare, scheme, &key.public_prefix, &twin, args.accept_echo).await?);
    }
    let (prefix, secret_bytes) = (key.public_prefix.clone(), key.secret.len());
    edit(&args.draft, |d| {
        let route = route_of(d, &args.route)?.clone();
        let mut credential = seal::split(d, &route, scheme, &key, share_epoch)?;
        credential.accept_echo = args.accept_echo;
        route_of(d, &args.route)?.credential = Some(credential);
        Ok(())
    })?;
    // The key has done its work.
    drop(key);
    line(&format!(
        "route {}: {} bytes of secret behind {} in {}, split for {} members, share epoch {share_epoch}",
        args.route,
        secret_bytes,
        if prefix.is_empty() { "no public prefix".to_owned() } else { format!("the public prefix {prefix}") },
        scheme.as_str(),
        draft.member.len(),
    ))?;
    next_steps(&args.draft)
}

fn next_steps(draft: &DraftArg) -> Outcome {
    let file = draft.policy.display();
    note(&format!("next: `quorate admin check {file}`, then `admin sign` and `admin submit`"));
    Ok(())
}

/// Routes whose shares no longer fit a draft's members, and the command that mends it.
pub(crate) fn stale_shares(draft: &PolicyDocument, file: &std::path::Path) -> Vec<String> {
    let members: Vec<String> = {
        let mut ids: Vec<u64> = draft.member.iter().map(|m| m.id).collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| id.to_string()).collect()
    };
    let fits = |c: &CredentialDocument| {
        c.shares.len() == members.len() && members.iter().all(|id| c.shares.contains_key(id))
    };
    let stale = draft.route.iter().filter(|r| r.credential.as_ref().is_some_and(|c| !fits(c)));
    stale
        .map(|r| {
            format!(
                "route {}: its shares are for other members; split the key again: `quorate admin credential rotate {} --policy {}`",
                r.name,
                r.name,
                file.display()
            )
        })
        .collect()
}

/// What `credential check` and others sign with.
#[derive(clap::Args, Clone)]
pub(crate) struct SshKeyArg {
    /// SSH private key of an admin, or the public key of one in the agent
    #[arg(long, value_name = "SSHKEY")]
    pub(crate) key: PathBuf,
}

#[cfg(test)]
mod tests;
