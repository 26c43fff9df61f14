//! The `quorate` command: [`quorate_client::cli`], and [`quorate_adapter::serve`] beside it.
#![forbid(unsafe_code)]

/// Small, short-lived buffers of many requests at once: the system's allocator takes a tenth of the adapter's processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    quorate_client::cli::main_with(quorate_adapter::serve::command(), quorate_adapter::serve::run).await
}
