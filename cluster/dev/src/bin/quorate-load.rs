//! `quorate-load`: an application that asks without pause until its standard input ends, then says how that went. A process of
//! its own, so that a search of its memory for a key is a search of an application's.
#![forbid(unsafe_code)]

use clap::Parser;
use futures::StreamExt as _;
use quorate_client::{Chat, Client, Retry, TrustFile};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Once;
use std::time::Duration;
use tokio::sync::watch;

/// Errors whose text is kept.
const ERRORS_MAX: usize = 8;

/// Once more after this, as applications do.
const AGAIN: Duration = Duration::from_millis(50);
/// In a row, before it is an error.
const AGAIN_MAX: u32 = 20;

/// The first answer.
static FIRST: Once = Once::new();

/// Asks a mesh without pause until standard input ends. Prints `running` at the first answer; at the end the count of answers
/// and the first errors, as JSON.
#[derive(Parser)]
struct Args {
    /// Trust file.
    #[arg(long)]
    trust: PathBuf,
    /// Model to ask for; repeat for more, asked in turn.
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// Requests at once. Every second one is streamed.
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 24)]
    max_tokens: u32,
}

#[derive(Default, serde::Serialize)]
struct Outcome {
    answered: u64,
    /// Refusals after which the SDK says to try again, as during a change of policy.
    again: u64,
    errors: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match load(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-load: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn load(args: Args) -> anyhow::Result<()> {
    let client = Client::connect(TrustFile::load(&args.trust)?).await?;
    let (stop, stopped) = watch::channel(false);
    let workers: Vec<_> = (0..args.at_once)
        .map(|number| {
            let (client, stopped) = (client.clone(), stopped.clone());
            let model = args.models.get(number % args.models.len()).cloned().unwrap_or_default();
            let mut chat = Chat::new(model, "Say what a quorum is.");
            chat.max_tokens = Some(args.max_tokens);
            tokio::spawn(async move { work(&client, &chat, number % 2 == 1, &stopped).await })
        })
        .collect();
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    stop.send_replace(true);
    let mut total = Outcome::default();
    for worker in workers {
        let of = worker.await?;
        total.answered += of.answered;
        total.again += of.again;
        total.errors.extend(of.errors);
    }
    total.errors.truncate(ERRORS_MAX);
    client.flush().await;
    println!("{}", serde_json::to_string(&total)?);
    Ok(())
}

async fn work(client: &Client, chat: &Chat, streams: bool, stopped: &watch::Receiver<bool>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut again = 0;
    while !*stopped.borrow() && outcome.errors.len() < ERRORS_MAX {
        let asked = if streams { stream(client, chat).await } else { client.chat(chat).await.map(drop) };
        match asked {
            Ok(()) => {
                outcome.answered += 1;
                FIRST.call_once(|| println!("running"));
            }
            Err(error) if matches!(error.retry(), Retry::Now | Retry::Later) && again < AGAIN_MAX => {
                outcome.again += 1;
                again += 1;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => outcome.errors.push(quorate_client::chain(&error)),
        }
        again = 0;
    }
    outcome
}

async fn stream(client: &Client, chat: &Chat) -> Result<(), quorate_client::Error> {
    let mut stream = client.chat_stream(chat).await?;
    while let Some(piece) = stream.next().await {
        piece?;
    }
    Ok(())
}
