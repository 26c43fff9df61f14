//! Prints an answer as it arrives, then where its time went.
use futures::StreamExt;
use quorate_client::{Chat, Client, TrustFile};
use std::io::Write;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "demo-chat".into());
    let trust = TrustFile::load(std::env::var("QUORATE_TRUST")?.as_ref())?;

    let client = Client::connect(trust).await?;
    let mut stream = client.chat_stream(&Chat::new(model, "Count to ten.")).await?;
    // An item that is an error means that what was printed is not the whole answer.
    while let Some(delta) = stream.next().await {
        print!("{}", delta?);
        std::io::stdout().flush()?;
    }
    let timings = stream.provenance.authorised.timings;
    println!("\ncertified after {} us, released after {} us", timings.certified_us, timings.released_us);
    drop(stream);
    client.flush().await;
    Ok(())
}
