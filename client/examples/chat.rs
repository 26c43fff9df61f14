//! Asks one question and prints the answer: `QUORATE_TRUST=trust.toml cargo run --example chat -- demo-chat 'Hello'`.
use quorate_client::{Chat, Client, TrustFile};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "demo-chat".into());
    let prompt = args.next().unwrap_or_else(|| "Say hello.".into());
    let trust = TrustFile::load(std::env::var("QUORATE_TRUST")?.as_ref())?;

    let client = Client::connect(trust).await?;
    let answer = client.chat(&Chat::new(model, prompt)).await?;
    println!("{}", answer.text);
    client.flush().await;
    Ok(())
}
