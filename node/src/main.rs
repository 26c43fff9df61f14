//! The daemon. Everything that decides is in the library.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use quorate_telemetry::lines::BoundedLines;
use quorated::config::{Config, LogFormat};
use quorated::node::{Ended, Node};
use quorated::{enrol, init};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit code of a node that must be started again (EX_TEMPFAIL).
const START_ME_AGAIN: u8 = 75;

/// A node of a quorate mesh.
///
/// A node is made once (`enrol`, then `init` with the genesis policy that the admins signed) and then just runs.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  quorated --config /etc/quorate/node.toml enrol\n  quorated --config /etc/quorate/node.toml init --policy policy.toml --signature policy.toml.sig\n  quorated --config /etc/quorate/node.toml"
)]
struct Args {
    /// The node's configuration (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Job>,
}

#[derive(Subcommand)]
enum Job {
    /// Makes the data folder from a signed genesis policy. Never overwrites one.
    Init {
        /// The policy document, version 1.
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// Admins' signatures (`ssh-keygen -Y sign -n quorate`), as many as its threshold.
        #[arg(long = "signature", value_name = "FILE", required = true)]
        signatures: Vec<PathBuf>,
        /// The node was added by a later version of the policy
        #[arg(long)]
        joins: bool,
    },
    /// Proves this machine's TPM to `quorate admin enrol`, by JSON lines on standard input and output.
    Enrol,
    /// Reads the configuration, says what is wrong with it, and ends.
    Check,
}

pub(crate) fn main() -> ExitCode {
    // First of all: tpm2-tss reads its own environment, which may change only while there is one thread.
    quorate_attest_tpm::silence_c_library();
    // Before anything secret is in memory.
    let hardened = quorated::hardening::harden().map_err(anyhow::Error::from);
    let runtime =
        hardened.and_then(|()| quorate_transport::runtime().context("cannot start the async runtime"));
    match runtime.and_then(|r| r.block_on(run(Args::parse()))) {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::GaveUp) => start_over(),
        Err(error) => {
            eprintln!("quorated: error: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("quorated: hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The same program again, in the same process: nothing in memory may outlive the tail that was given up. Where that fails,
/// whoever supervises the node starts it again.
fn start_over() -> ExitCode {
    use std::os::unix::process::CommandExt as _;
    let error = std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    eprintln!("quorated: error: cannot start over: {error}");
    ExitCode::from(START_ME_AGAIN)
}

async fn run(args: Args) -> anyhow::Result<Ended> {
    let config = Config::load(&args.config)?;
    match args.command {
        Some(Job::Check) => {
            println!("{}: ok", args.config.display());
            Ok(Ended::Stopped)
        }
        Some(Job::Enrol) => {
            enrol::enrol(&config, std::io::stdin().lock(), std::io::stdout()).await?;
            Ok(Ended::Stopped)
        }
        Some(Job::Init { policy, signatures, joins }) => {
            let genesis = init::init(&config, &policy, &signatures, joins)?;
            println!("{}: made {}, genesis {genesis}", config.node, config.data_dir.display());
            Ok(Ended::Stopped)
        }
        None => {
            trace(&config)?;
            let node = Node::build(config).await?;
            node.run(stop_signal()?).await
        }
    }
}

fn trace(config: &Config) -> anyhow::Result<()> {
    let filter = config.log.filter.clone().unwrap_or_else(|| "info,openraft=off".into());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Peers and clients trigger lines as fast as they send.
    let bounded = BoundedLines::start().context("cannot start the thread that counts trace lines")?;
    match config.log.format {
        LogFormat::Text => lines.with_ansi(false).finish().with(bounded).init(),
        LogFormat::Json => lines.json().finish().with(bounded).init(),
    }
    Ok(())
}

/// Completes on SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    use quorated::init::InitError;
    match error.downcast_ref::<InitError>()? {
        InitError::Missing(_) => {
            Some("make it with `quorated --config FILE init --policy POLICY --signature SIG`")
        }
        InitError::Exists(_) => Some("start the node, or choose another data_dir"),
        InitError::Signature(..) => {
            Some("sign with `quorate admin sign` or `ssh-keygen -Y sign -n quorate -f KEY FILE`")
        }
        InitError::NotAMember(_) => Some(
            "compare `node` in the configuration with the policy's members; a node that a later version added is made with --joins",
        ),
        InitError::Genesis(_) => Some("`quorate admin check FILE` lists every mistake of a policy"),
        InitError::Damaged(_)
        | InitError::Disk(..)
        | InitError::Unreadable(..)
        | InitError::Log(_)
        | InitError::Tiles(_) => None,
    }
}
