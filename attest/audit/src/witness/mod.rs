//! `witness`: a complete C2SP tlog-witness, and the feeding of one.
//!
//! A witness remembers, for each log it knows, the largest tree it has cosigned, and cosigns nothing that does not extend it. Who
//! demands its cosignature knows that at least this one party saw one history. It survives a hostile log and a hostile network;
//! it does not survive the loss of its own memory, so that is made by explicit commands only and written before every answer.
//!
//! | module | |
//! |---|---|
//! | [`request`] | the body of add-checkpoint |
//! | [`decide`] | what becomes of it |
//! | [`state`], [`disk`] | the memory, replaced durably |
//! | [`http`], [`serve`] | the service, its sockets |
//! | [`feed`] | the other side: submits a mirror's checkpoint |
//! | [`key`], [`config`] | keys as files, logs it knows |
//!
//! **Out of scope**: bastions, ML-DSA cosignatures, TLS (a proxy's work), and limits on how often somebody asks.
pub mod config;
pub mod decide;
pub mod disk;
pub mod feed;
pub mod http;
pub mod key;
pub mod request;
pub mod serve;
pub mod state;
#[cfg(test)]
mod tests;

use crate::cli::{Exit, Failure, GenesisArg, Outcome, chain, findings, say, say_json};
use crate::fetch::Client;
use crate::store::Mirror;
use crate::verify::{Verdict, verify};
use clap::Subcommand;
use config::{Config, LogDocument, WitnessDocument};
use decide::Witness;
use disk::Disk;
use feed::{Fed, WitnessPeer};
use key::SigningKey;
use quorate_core::tlog::{KeyKind, KeyName, Origin, VerifierKey};
use state::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const AFTER_HELP: &str = "\
A witness is a folder: its key, its configuration, and what it cosigned last of each log. Three steps:

  quorate-audit witness init w --name witness.example/w1
  quorate-audit witness add-log w --origin quorate/demo/0606c2e3d4e5f6a7 --key VKEY
  quorate-audit witness serve w

init prints the witness's key: whoever wants its cosignature under a checkpoint is told that line. VKEY is whoever may \
submit: a log's own key, or for a quorate mesh the feeder's, which signs what is submitted:

  quorate-audit witness keygen feeder.key --name quorate/demo/feeder
  quorate-audit witness feed log --genesis 0606c2e3… \\
      --witness http://127.0.0.1:7300 --witness-key VKEY --feed-key feeder.key

`monitor` does the same by itself with the same options. The keys of a mesh's nodes change with each restart; a monitor keeps \
the present ones in DIR/monitor/keys, and a witness beside it may follow those instead (`add-log --keys-file`, with a quorum \
as --threshold). Any C2SP witness can be fed, and any C2SP log can use this one.

Never copy a witness's folder back from a backup: it would cosign sizes a second time. If it is lost, make a new witness with \
a new key. Put a proxy with TLS and rate limits before it if the public is to reach it.";

/// Cosign logs that only grow (C2SP tlog-witness), or feed a mirrored log to a witness
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct WitnessArgs {
    #[command(subcommand)]
    command: WitnessCommand,
}

#[derive(Subcommand)]
enum WitnessCommand {
    /// Make a witness: a new folder with a new key
    Init {
        /// The folder to make
        dir: PathBuf,
        /// The witness's name, such as witness.example/w1: no spaces, no plus
        #[arg(long)]
        name: String,
    },
    /// Let a witness know a log
    AddLog {
        /// The witness's folder
        dir: PathBuf,
        /// First line of the log's checkpoints
        #[arg(long)]
        origin: String,
        /// A verifier key that may have signed them (NAME+ID+BASE64); repeatable
        #[arg(long = "key", value_name = "VKEY")]
        keys: Vec<String>,
        /// A file with further verifier keys, one a line, read again for each request
        #[arg(long, value_name = "FILE")]
        keys_file: Option<PathBuf>,
        /// How many of the keys must have signed
        #[arg(long, default_value_t = 1)]
        threshold: usize,
    },
    /// Serve add-checkpoint
    Serve {
        /// The witness's folder
        dir: PathBuf,
    },
    /// Make a signing key, in the text form of Go's note package; prints its public half
    Keygen {
        /// The file to make; never an existing one
        file: PathBuf,
        /// The key's name, such as quorate/demo/feeder: no spaces, no plus
        #[arg(long)]
        name: String,
        /// A cosigner's key (type 0x04) instead of a log's (0x01)
        #[arg(long)]
        cosigner: bool,
    },
    /// Submit a mirror's newest checkpoint to a witness, and keep what it cosigned under DIR/witnessed
    Feed(FeedArgs),
}

#[derive(clap::Args)]
struct FeedArgs {
    /// A mirror, as `mirror` or `monitor` keeps it
    dir: PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    #[command(flatten)]
    witness: WitnessOptions,
    /// Submit without replaying the mirror first. A witness can never take back what it cosigned: only for a mirror that you
    /// have just verified
    #[arg(long)]
    danger_unverified: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Which witness, as `feed` and `monitor` take it.
#[derive(clap::Args)]
pub struct WitnessOptions {
    /// The witness's submission prefix, such as https://witness.example
    #[arg(long = "witness", value_name = "URL", requires = "witness_key")]
    url: Option<String>,
    /// Its verifier key (NAME+ID+BASE64, type 0x04)
    #[arg(long, value_name = "VKEY", requires = "url")]
    witness_key: Option<VerifierKey>,
    /// A signing key (`witness keygen`) that the witness knows for this log
    #[arg(long, value_name = "FILE", requires = "url")]
    feed_key: Option<PathBuf>,
    /// Submit checkpoints without a key of your own: the witness follows the nodes' keys (`add-log --keys-file`)
    #[arg(long, requires = "url")]
    feed: bool,
}

impl WitnessOptions {
    /// The witness, if one was named.
    pub fn peer(&self) -> Result<Option<WitnessPeer>, Failure> {
        let (Some(url), Some(key)) = (&self.url, &self.witness_key) else { return Ok(None) };
        if key.kind() != KeyKind::CosignatureV1 {
            return Err(Failure::new(format!("{key} is no cosigner's key (type 0x04)"), "ask its operator"));
        }
        let feeder = self.feed_key.as_ref().map(|path| SigningKey::read(path, KeyKind::Ed25519));
        let feeder = feeder.transpose().map_err(|e| {
            Failure::new(chain(&e), "make one: `quorate-audit witness keygen FILE --name NAME`")
        })?;
        let feeds = self.feed || feeder.is_some();
        Ok(Some(WitnessPeer { url: url.trim_end_matches('/').to_owned(), key: key.clone(), feeder, feeds }))
    }
}

/// The subcommand.
pub fn run(args: WitnessArgs) -> Outcome {
    match args.command {
        WitnessCommand::Init { dir, name } => init(&dir, name),
        WitnessCommand::AddLog { dir, origin, keys, keys_file, threshold } => {
            add_log(&dir, LogDocument { origin, keys, keys_file, threshold })
        }
        WitnessCommand::Serve { dir } => runtime()?.block_on(listen(&dir)),
        WitnessCommand::Keygen { file, name, cosigner } => {
            let kind = if cosigner { KeyKind::CosignatureV1 } else { KeyKind::Ed25519 };
            let key = SigningKey::generate(key_name(name)?, kind).map_err(failed(""))?;
            key.write_new(&file).map_err(failed("a key is never overwritten: name another file"))?;
            say(&format!("{}\n", key.verifier_key())).map(|()| Exit::Good)
        }
        WitnessCommand::Feed(args) => feed_once(&args),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Failure::new(format!("cannot start: {e}"), ""))
}

fn failed<E: std::error::Error + 'static>(hint: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(chain(&error), hint)
}

fn key_name(name: String) -> Result<KeyName, Failure> {
    KeyName::new(name).map_err(failed("a name has no spaces and no plus: `witness.example/w1`"))
}

fn config_path(dir: &Path) -> PathBuf {
    dir.join("witness.toml")
}

fn init(dir: &Path, name: String) -> Outcome {
    let name = key_name(name)?;
    let disk = |what: &str, e: std::io::Error| {
        Failure::new(format!("cannot {what} {}: {e}", dir.display()), "a witness begins in a new folder")
    };
    std::fs::create_dir(dir).map_err(|e| disk("create", e))?;
    let key = SigningKey::generate(name, KeyKind::CosignatureV1).map_err(failed(""))?;
    key.write_new(&dir.join("key")).map_err(failed(""))?;
    write_config(dir, &WitnessDocument { listen: "127.0.0.1:7300".into(), log: Vec::new() })?;
    say(&format!("{}\n", key.verifier_key())).map(|()| Exit::Good)
}

fn write_config(dir: &Path, document: &WitnessDocument) -> Result<(), Failure> {
    let text = toml::to_string(document).map_err(failed(""))?;
    Disk::default()
        .replace(&config_path(dir), text.as_bytes())
        .map_err(|e| Failure::new(format!("cannot write {}: {e}", config_path(dir).display()), ""))
}

fn add_log(dir: &Path, log: LogDocument) -> Outcome {
    let origin = Origin::new(log.origin.as_str())
        .map_err(failed("the origin is the first line of the log's checkpoint"))?;
    let before = WitnessDocument::read(&config_path(dir))
        .map_err(failed("make a witness first: `quorate-audit witness init DIR --name NAME`"))?;
    let store = Store::open(dir, Disk::default()).map_err(failed("stop the witness first"))?;
    let mut after = before.clone();
    after.log.push(log);
    write_config(dir, &after)?;
    let begun = Config::load(&config_path(dir))
        .map_err(|e| failed("correct what it says")(e))
        .and_then(|_| store.begin(&origin).map_err(failed("a log's memory is never begun twice")));
    if let Err(failure) = begun {
        write_config(dir, &before)?;
        return Err(failure);
    }
    let id = state::log_id(&origin);
    say(&format!("log {origin}\nread what was cosigned last at /{id}/checkpoint\n")).map(|()| Exit::Good)
}

async fn listen(dir: &Path) -> Outcome {
    let key = SigningKey::read(&dir.join("key"), KeyKind::CosignatureV1)
        .map_err(failed("make a witness first: `quorate-audit witness init DIR --name NAME`"))?;
    let config = Config::load(&config_path(dir)).map_err(failed("correct what it says"))?;
    let witness = Witness::open(dir, key, &config, Disk::default()).map_err(failed(
        "a new log: `quorate-audit witness add-log`; if its memory was lost, retire this key and make a new witness",
    ))?;
    let listener = tokio::net::TcpListener::bind(&config.listen).await;
    let listener = listener.map_err(|e| {
        Failure::new(format!("cannot listen on {}: {e}", config.listen), "`listen` in witness.toml")
    })?;
    let at = listener.local_addr().map_or(config.listen, |a| a.to_string());
    say(&format!("listening on http://{at}\nkey {}\n", witness.key().verifier_key()))?;
    serve::serve(listener, http::router(Arc::new(witness)), serve::Bounds::default(), stopped()).await;
    Ok(Exit::Good)
}

/// SIGINT or SIGTERM.
pub(crate) async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            let _either = tokio::signal::ctrl_c().await;
        }
    }
}

fn feed_once(args: &FeedArgs) -> Outcome {
    let Some(peer) = args.witness.peer()? else {
        return Err(Failure::new("no witness was named", "--witness URL --witness-key VKEY"));
    };
    let mirror = Mirror::open(&args.dir)?;
    if !args.danger_unverified {
        let verdict = verify(&mirror, args.genesis.genesis, Default::default(), |_, _| ())?;
        if let Verdict::Fails { findings: found, .. } = verdict {
            say(&findings(&found))?;
            return Ok(Exit::ProvenWrong);
        }
    }
    let stored = mirror.newest()?;
    let fed = runtime()?.block_on(feed::submit(&Client::new(), &peer, &mirror, &stored));
    let fed = fed.map_err(failed("what it says is the witness's word, not the log's"))?;
    let (what, size) = match &fed {
        Fed::Cosigned(_) => ("cosigned", stored.size()),
        Fed::Ahead(size) => ("ahead", *size),
        Fed::OtherRoot(size) => ("other_root", *size),
        Fed::Inconsistent(size) => ("inconsistent", *size),
    };
    let path = feed::kept_path(&peer, &mirror);
    if args.json {
        say_json(&serde_json::json!({ "witness": peer.url, "outcome": what, "size": size, "note": path }))?;
    } else {
        say(&match &fed {
            Fed::Cosigned(_) => format!("cosigned at size {size}: {}\n", path.display()),
            Fed::Ahead(_) => {
                format!("the witness has cosigned a larger tree, of size {size}: mirror again\n")
            }
            Fed::OtherRoot(_) | Fed::Inconsistent(_) => {
                format!(
                    "REFUSED: the witness has cosigned another history at size {size}: somebody signed two\n"
                )
            }
        })?;
    }
    Ok(match fed {
        Fed::Cosigned(_) | Fed::Ahead(_) => Exit::Good,
        Fed::OtherRoot(_) | Fed::Inconsistent(_) => Exit::ProvenWrong,
    })
}
