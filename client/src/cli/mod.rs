//! The command line: what `quorate` says and does. Errors are two lines, `quorate: error: …` and `quorate: hint: …`, written
//! in one place; nothing secret is ever among the arguments or the output.
mod admin;
mod approve;
mod ask;
mod credential;
mod enrol;
mod governance;
mod import;
mod money;
mod output;
mod status;
mod token;
mod usage;
mod verify;

pub use output::Failure;

use clap::{Parser, Subcommand};
use output::Outcome;
use std::path::PathBuf;

/// LLM requests through the quorate mesh: nobody on the way holds the key, sees the prompt or picks the destination.
#[derive(Parser)]
#[command(name = "quorate", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  quorate keygen client.key                                   make a client key; an admin grants its public half
  quorate chat --trust trust.toml --model demo-chat 'Hello'   ask, and stream the answer
  quorate chat --trust trust.toml --model demo-chat --receipt r.txt 'Hello'
  quorate verify --trust trust.toml r.txt                     check, offline, what the receipt proves
  quorate status --trust trust.toml                           who is a member, who is attested

QUORATE_TRUST may name the trust file instead of --trust.";

/// The trust file.
#[derive(clap::Args, Clone)]
pub(crate) struct TrustArg {
    /// Trust file: genesis digest, nodes, client name and key file
    #[arg(long, env = "QUORATE_TRUST", value_name = "FILE")]
    pub(crate) trust: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Ask a chat model; the answer streams to the terminal
    Chat(ask::ChatArgs),
    /// Print the embedding of each text, one JSON array a line
    Embed(ask::EmbedArgs),
    /// Verify a receipt offline and print what it proves; exit status 1 when it proves nothing
    Verify(verify::VerifyArgs),
    /// Show members, attestation, log and routes
    Status(status::StatusArgs),
    /// Show what was used, by whom, and what is left
    Usage(usage::UsageArgs),
    /// Mint, show and revoke short-lived tokens for agents and jobs
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Make a client key and print its public half
    Keygen {
        /// New file for the private key (PKCS#8 PEM, mode 0600); never overwritten
        file: PathBuf,
    },
    /// Write, check, sign and submit the policy; enrol nodes
    #[command(subcommand)]
    Admin(admin::AdminCommand),
}

/// Runs the command line of this process with one more subcommand, which a crate above this one brings, and which sees to its own
/// lines of trace; the result is its exit status.
pub async fn main_with<F>(
    extra: clap::Command,
    run_extra: impl FnOnce(clap::ArgMatches) -> F,
) -> std::process::ExitCode
where
    F: Future<Output = Result<(), Failure>>,
{
    let name = extra.get_name().to_owned();
    let mut matches = with(extra).get_matches();
    let outcome = match matches.remove_subcommand() {
        Some((called, arguments)) if called == name => run_extra(arguments).await,
        _ => {
            init_tracing();
            run(Cli::parse().command).await
        }
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            std::process::ExitCode::FAILURE
        }
    }
}

/// The whole grammar, with a further subcommand.
pub fn with(extra: clap::Command) -> clap::Command {
    <Cli as clap::CommandFactory>::command().subcommand(extra)
}

async fn run(command: Command) -> Outcome {
    match command {
        Command::Chat(args) => ask::chat(args).await,
        Command::Embed(args) => ask::embed(args).await,
        Command::Verify(args) => verify::verify(args),
        Command::Status(args) => status::status(args).await,
        Command::Usage(args) => usage::usage(args).await,
        Command::Token(command) => token::run(command).await,
        Command::Keygen { file } => {
            let public = crate::generate_client_key(&file)?;
            output::line(&public)?;
            output::note(&format!(
                "wrote {}; have an admin grant the public key above: `quorate admin client add`",
                file.display()
            ));
            Ok(())
        }
        Command::Admin(command) => admin::run(command).await,
    }
}

/// As QUORATE_LOG says.
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUORATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_that_others_rely_on_parse() {
        let lines = [
            "quorate chat --trust t --model m hello",
            "quorate chat --trust t --model m --receipt r --no-stream hello",
            "quorate embed --trust t --model m one two",
            "quorate verify --genesis 00 r",
            "quorate verify --trust t r",
            "quorate status --trust t --routes --json",
            "quorate usage --trust t",
            "quorate usage --trust t --by team --json",
            "quorate usage --trust t --by day --key k --json",
            "quorate token mint --trust t --subject agent-7 --routes a,b --money 0.50 --expires 15m --out agent.toml",
            "quorate token show agent.toml",
            "quorate token revoke --trust t agent.toml",
            "quorate admin team set --policy p --name t --money-per-day 5.00 --client c",
            "quorate admin price set --policy p --name v/m --route r --input 2.50 --output 10 --output-max 4096",
            "quorate keygen k",
            "quorate admin init --cluster c --admin a.pub --out p.toml",
            "quorate admin check p.toml",
            "quorate admin sign p.toml --key k",
            "quorate admin submit p.toml a.sig b.sig --trust t",
            "quorate admin policy --trust t",
            "quorate admin client add --policy p --name c --key AAAA --custodian x --route r",
            "quorate admin route add --policy p --name r --host h --model m",
            "quorate admin reference-values set --policy p --name dev --pcr 4=00",
            "quorate admin credential set r --policy p",
            "quorate admin credential set r --policy p --from-file k --scheme x-api-key --public-prefix sk- --accept-echo",
            "quorate admin credential rotate r --policy p --from-command true --no-probe --share-epoch 4",
            "quorate admin credential remove r --policy p",
            "quorate admin credential freeze r --policy p",
            "quorate admin credential lift r --policy p",
            "quorate admin credential check r --trust t --key k",
            "quorate admin approver --policy p --key k",
            "quorate admin approve --policy p --key k",
            "quorate admin approve --policy p --key k --withdraw n1 2",
            "quorate admin enrol --policy p --id 1 --name n1 --custodian a --address h:1 --http h:2 --reference-values dev --ek-roots r -- quorated --config n1.toml enrol",
        ];
        for line in lines {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    /// What stands among the arguments can be read by every process of the machine.
    #[test]
    fn a_key_cannot_be_an_argument() {
        let lines = [
            "quorate admin credential set r sk-key --policy p",
            "quorate admin credential set r --policy p --key sk-key",
            "quorate admin credential set r --policy p --from-file a --from-command b",
            "quorate admin credential set r --policy p --scheme basic",
            "quorate admin credential set r --policy p --share-epoch 0",
            "quorate admin credential set r",
        ];
        for line in lines {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        let mut command = Cli::command();
        command.build();
        let admin = command.find_subcommand("admin").unwrap();
        let credential = admin.find_subcommand("credential").unwrap();
        for command in credential.get_subcommands() {
            for argument in command.get_arguments() {
                let trust = argument.get_id() == "trust";
                assert!(
                    trust || argument.get_env().is_none(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
