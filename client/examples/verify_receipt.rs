//! Makes a request, fetches its receipt, and verifies it as an outsider would: from its text and the genesis digest alone.
use quorate_client::{Chat, Client, TrustFile, settlements};
use quorate_core::proof::Receipt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "demo-chat".into());
    let trust = TrustFile::load(std::env::var("QUORATE_TRUST")?.as_ref())?;
    let genesis = trust.genesis;

    let client = Client::connect(trust).await?;
    let answer = client.chat(&Chat::new(model, "Say hello.")).await?;
    let text = client.receipt(answer.provenance.request).await?.to_text();

    let (verified, authorisation) = Receipt::from_text(&text)?.verify(genesis)?;
    let request = authorisation.request();
    println!(
        "{} asked for {} through {} and {}",
        authorisation.client(),
        request.route,
        request.relay,
        request.keyer
    );
    println!(
        "leaf {} of {}, cosigned by {}",
        authorisation.index().0,
        authorisation.under().size.0,
        verified.certified.cosignatures().len()
    );
    for (node, settlement) in settlements(&verified, request.request) {
        println!("{node} settled it as {:?} after {} ms", settlement.ended, settlement.total_ms);
    }
    client.flush().await;
    Ok(())
}
