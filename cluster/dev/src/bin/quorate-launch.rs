//! `quorate-launch`: see `quorate_cluster::firmware`.
#![forbid(unsafe_code)]

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use quorate_cluster::firmware::{
    WARNING,
    boot::{self, Boot, Measurement},
    event_log,
    swtpm::{self, Swtpm},
};

/// Development only: runs software TPMs and plays the firmware that measures a node. Measurements made here prove
/// nothing about this machine.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make a software TPM, power it on or off
    #[command(subcommand)]
    Tpm(TpmTask),
    /// Start a node on a TPM: measure it if the TPM was just powered on, then become it
    ///
    /// Powers the TPM on if it is off. While the TPM stays on, starting the node again measures nothing: a restarted
    /// process is not a restarted machine.
    Node(NodeOptions),
    /// Write a made-up event log of a machine's firmware and boot loader
    EventLog {
        /// Where to write it
        #[arg(long)]
        out: PathBuf,
        /// Version of the made-up firmware; another one gives another PCR 0
        #[arg(long, default_value = "1.0")]
        firmware: String,
    },
    /// Print the PCR values of a machine that boots with this event log and this binary, as TOML
    ReferenceValues {
        /// The event log before the binary is measured
        #[arg(long)]
        event_log: PathBuf,
        /// The node's binary; each one given is another allowed value
        #[arg(long, required = true)]
        binary: Vec<PathBuf>,
        /// PCRs to print
        #[arg(long, value_delimiter = ',', default_values_t = boot::PCRS)]
        pcrs: Vec<u8>,
    },
}

#[derive(Subcommand)]
enum TpmTask {
    /// Make a TPM with EK certificates, and the local CA that signs them, where they do not exist yet
    Setup {
        /// Folder of the TPM
        #[arg(long)]
        dir: PathBuf,
        /// Folder of the CA; its root certificate is swtpm-localca-rootca-cert.pem, the intermediate issuercert.pem
        #[arg(long)]
        ca_dir: PathBuf,
        /// Name in the EK certificates
        #[arg(long)]
        name: String,
    },
    /// Power it on; it stays on until it is stopped or killed
    Start(Place),
    /// Power it off in order
    Stop(Place),
    /// Cut its power
    Kill(Place),
    /// Power it off in order and on again, like a machine that reboots; its PCRs are at their reset values then
    PowerCycle(Place),
}

#[derive(Args)]
struct Place {
    /// Folder of the TPM
    #[arg(long)]
    dir: PathBuf,
    /// Its port at 127.0.0.1; the one after it is its control channel
    #[arg(long)]
    port: u16,
}

#[derive(Args)]
struct NodeOptions {
    /// Folder of the TPM
    #[arg(long)]
    tpm_dir: PathBuf,
    /// The TPM's port at 127.0.0.1
    #[arg(long)]
    port: u16,
    /// The firmware's event log to play
    #[arg(long)]
    event_log: PathBuf,
    /// Where to write that log with the node's measurement at its end, for the node to send as evidence
    #[arg(long)]
    log_out: PathBuf,
    /// Measure this file instead of the program that is started
    #[arg(long)]
    measure: Option<PathBuf>,
    /// Also extend this PCR with something the event log does not mention, so that no log explains it
    #[arg(long)]
    danger_extra_extend: Option<u8>,
    /// The node's program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    quorate_attest_tpm::silence_c_library();
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-launch: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Tpm(task) => tpm(task),
        Task::Node(options) => node(options),
        Task::EventLog { out, firmware } => fs::write(&out, event_log::demo(&firmware)?)
            .with_context(|| format!("cannot write {}", out.display())),
        Task::ReferenceValues { event_log, binary, pcrs } => reference_values(&event_log, &binary, &pcrs),
    }
}

fn tpm(task: TpmTask) -> anyhow::Result<()> {
    let at = |place: Place| Swtpm::new(&place.dir, place.port);
    let say =
        |happened, done: &str, otherwise: &str| println!("tpm: {}", if happened { done } else { otherwise });
    match task {
        TpmTask::Setup { dir, ca_dir, name } => {
            say(swtpm::set_up(&dir, &ca_dir, &name)?, "made", "exists already");
        }
        TpmTask::Start(place) => say(at(place)?.start()?, "on", "on already"),
        TpmTask::Stop(place) => say(at(place)?.stop()?, "off", "off already"),
        TpmTask::Kill(place) => say(at(place)?.kill()?, "power cut", "off already"),
        TpmTask::PowerCycle(place) => {
            let tpm = at(place)?;
            let was_on = tpm.stop()?;
            tpm.start()?;
            say(was_on, "off and on again", "on");
        }
    }
    Ok(())
}

fn node(options: NodeOptions) -> anyhow::Result<()> {
    let NodeOptions { tpm_dir, port, event_log, log_out, measure, danger_extra_extend, command } = options;
    let (program, arguments) = command.split_first().context("no program to start")?;
    // Resolved once, so that what is measured is what is started, wherever PATH points.
    let program = Path::new(program)
        .canonicalize()
        .with_context(|| format!("no program at {}", Path::new(program).display()))?;
    let tpm = Swtpm::new(&tpm_dir, port)?;
    tpm.start()?;
    eprintln!("quorate-launch: {WARNING}");
    let recorded = fs::read(&event_log).with_context(|| format!("cannot read {}", event_log.display()))?;
    let measured = measure.unwrap_or_else(|| program.clone());
    let measurement = Measurement::of_file(&measured)?;
    match boot::boot(&tpm.connect()?, &recorded, &measurement, &log_out, danger_extra_extend)? {
        Boot::Played { events } => {
            eprintln!("quorate-launch: played {events} events, measured {}", measured.display());
        }
        Boot::AlreadyBooted => eprintln!("quorate-launch: this machine has booted already, nothing measured"),
        Boot::BootedOtherwise => eprintln!(
            "quorate-launch: warning: this machine booted with another firmware or binary; `tpm power-cycle` boots anew"
        ),
        Boot::Unexplained(pcrs) => eprintln!(
            "quorate-launch: warning: PCRs {pcrs:?} are not what {} says; `tpm power-cycle` boots anew",
            log_out.display()
        ),
    }
    // Becoming the node gives it this process id, these signals, and whoever waits for us its exit status.
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot start {}", program.display()))
}

fn reference_values(log: &Path, binaries: &[PathBuf], pcrs: &[u8]) -> anyhow::Result<()> {
    let recorded = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let binaries = binaries.iter().map(|file| Measurement::of_file(file)).collect::<Result<Vec<_>, _>>()?;
    print!("{}", toml::to_string(&boot::reference_values(&recorded, &binaries, pcrs)?)?);
    Ok(())
}
