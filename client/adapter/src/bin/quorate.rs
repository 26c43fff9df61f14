//! The `quorate` command: [`quorate_client::cli`], and [`quorate_adapter::serve`] beside it.
#![forbid(unsafe_code)]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    quorate_client::cli::main_with(quorate_adapter::serve::command(), quorate_adapter::serve::run).await
}
