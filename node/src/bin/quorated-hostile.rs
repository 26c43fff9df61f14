//! The node as it would be if its host were owned: the product's own program, with the attacks of
//! [`quorated::danger_hostile`] at hand. For tests; it does not build for release.
#![forbid(unsafe_code)]

#[path = "../main.rs"]
mod node;

fn main() -> std::process::ExitCode {
    // What it shall do stands beside its configuration.
    let mut arguments = std::env::args_os().skip_while(|argument| argument != "--config").skip(1);
    let config = arguments.next().map(std::path::PathBuf::from).unwrap_or_default();
    if let Some(folder) = config.parent() {
        quorated::danger_hostile::arm(folder);
    }
    eprintln!("quorated-hostile: a deliberately hostile build, for tests");
    node::main()
}
