//! `quorate chat` and `quorate embed`.
use super::TrustArg;
use super::output::{Failure, Outcome, line, note, printable, text_out, write};
use crate::{Chat, Client, TrustFile};
use futures::StreamExt;
use quorate_core::ids::RequestId;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest prompt read from standard input.
const PROMPT_BYTES_MAX: u64 = 8 * 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    trust: TrustArg,
    /// Model; the policy says which route serves it
    #[arg(long, env = "QUORATE_MODEL")]
    model: String,
    /// Wait for the log's receipt, verify it and write it here
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Ask for the whole answer at once
    #[arg(long)]
    no_stream: bool,
    /// Most tokens of the answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// The prompt; `-` reads standard input
    prompt: String,
}

#[derive(clap::Args)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    trust: TrustArg,
    /// Embedding model
    #[arg(long)]
    model: String,
    /// Wait for the log's receipt, verify it and write it here
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Texts
    #[arg(required = true)]
    texts: Vec<String>,
}

async fn connect(trust: &TrustArg) -> Outcome<Client> {
    Ok(Client::connect(TrustFile::load(&trust.trust)?).await?)
}

pub(crate) async fn chat(args: ChatArgs) -> Outcome {
    let prompt = if args.prompt == "-" {
        let mut text = String::new();
        let read = std::io::stdin().take(PROMPT_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|e| Failure::new(format!("standard input: {e}"), "the prompt is UTF-8 text"))?;
        text
    } else {
        args.prompt
    };
    let client = connect(&args.trust).await?;
    let mut chat = Chat::new(args.model, prompt);
    chat.max_tokens = args.max_tokens;
    let asked = answer(&client, &chat, args.no_stream, args.receipt.as_deref()).await;
    // The report of how it ended goes out behind the answer, whatever the answer was.
    client.flush().await;
    asked
}

async fn answer(client: &Client, chat: &Chat, whole: bool, receipt: Option<&Path>) -> Outcome {
    let request = if whole {
        let answer = client.chat(chat).await?;
        line(&printable(&answer.text))?;
        answer.provenance.request
    } else {
        let mut stream = client.chat_stream(chat).await?;
        let mut failed = None;
        while let Some(delta) = stream.next().await {
            match delta {
                Ok(text) => text_out(&printable(&text))?,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        line("")?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        stream.provenance.request
    };
    write_receipt(client, request, receipt).await
}

pub(crate) async fn embed(args: EmbedArgs) -> Outcome {
    let client = connect(&args.trust).await?;
    let asked = vectors(&client, &args).await;
    client.flush().await;
    asked
}

async fn vectors(client: &Client, args: &EmbedArgs) -> Outcome {
    let (vectors, provenance) = client.embeddings(&args.model, &args.texts).await?;
    for vector in vectors {
        let text = serde_json::to_string(&vector);
        line(&text.map_err(|e| Failure::new(format!("an embedding that is no JSON: {e}"), "report this"))?)?;
    }
    write_receipt(client, provenance.request, args.receipt.as_deref()).await
}

async fn write_receipt(client: &Client, request: RequestId, path: Option<&Path>) -> Outcome {
    let Some(path) = path else { return Ok(()) };
    let receipt = client.receipt(request).await?;
    write(path, &receipt.to_text())?;
    note(&format!("request {request}: receipt verified and written to {}", path.display()));
    Ok(())
}
