//! The `quorate` command; everything is in [`quorate_client::cli`].
#![forbid(unsafe_code)]

#[tokio::main]
async fn main() -> std::process::ExitCode {
    quorate_client::cli::main().await
}
