//! `quorate-audit`: see [`quorate_audit`].
use quorate_audit::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
