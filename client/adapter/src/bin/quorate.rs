//! The `quorate` command: [`quorate_client::cli`], and [`quorate_adapter::serve`] beside it.
#![forbid(unsafe_code)]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    match quorate_transport::runtime() {
        Ok(runtime) => runtime.block_on(quorate_client::cli::main_with(
            quorate_adapter::serve::command(),
            quorate_adapter::serve::run,
        )),
        Err(error) => {
            eprintln!("quorate: error: cannot start the async runtime: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
