//! Embeds two texts and prints their cosine similarity.
use quorate_client::{Client, TrustFile};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "demo-embed".into());
    let trust = TrustFile::load(std::env::var("QUORATE_TRUST")?.as_ref())?;

    let client = Client::connect(trust).await?;
    let texts = ["a cat sat on the mat".to_owned(), "the mat was sat on by a cat".to_owned()];
    let (vectors, _) = client.embeddings(&model, &texts).await?;
    if let [a, b] = vectors.as_slice() {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        println!("{:.4}", dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
    }
    client.flush().await;
    Ok(())
}
