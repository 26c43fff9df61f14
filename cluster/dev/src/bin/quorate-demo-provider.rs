//! `quorate-demo-provider`: see `quorate_cluster::provider`.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use quorate_cluster::provider::{Options, Provider};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match serve(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-demo-provider: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(options.threads))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let ca = options.dir.join("ca.pem");
        let provider = Provider::bind(options).await?;
        println!("quorate-demo-provider: ready {} ca {}", provider.base_url(), ca.display());
        std::io::stdout().flush().context("cannot say that it is ready")?;
        provider
            .run(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await;
        anyhow::Ok(())
    });
    runtime.shutdown_background();
    served
}
