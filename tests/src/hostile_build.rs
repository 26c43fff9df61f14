//! The hostile build: nodes whose host is owned, although the admins approved their software and their TPM quotes it.
//!
//! `quorated-hostile` is the product's program with attacks in it (`danger-hostile`, a feature that release builds refuse). It
//! is built by a cargo of its own, for that name alone: nothing that others use is built with the feature.
use crate::Lab;
use anyhow::{Context as _, ensure};
use quorate_cluster::mesh::{bin_dir, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Its name.
pub const PROGRAM: &str = "quorated-hostile";

/// Builds it, once in a process's life; where it is.
pub fn build() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| compile().map_err(|e| format!("{e:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// Checks that the lowest crate with hooks, which all others bring in, does not build without debug assertions: no release
/// profile has them.
pub fn refuses_release() -> anyhow::Result<()> {
    let package = "quorate-splitkey";
    let mut check = cargo(&["check", "--locked", "--package", package, "--features", "danger-hostile"])?;
    check.arg("--config").arg(format!("profile.dev.package.{package}.debug-assertions=false"));
    let refused = run(&mut check).err().context("it builds without debug assertions")?;
    ensure!(format!("{refused:#}").contains("no release can contain it"), "{refused:#}");
    Ok(())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let target = bin_dir()?.parent().context("no target folder")?.to_owned();
    cargo.args(arguments).arg("--target-dir").arg(target);
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    Ok(cargo)
}

fn compile() -> anyhow::Result<PathBuf> {
    // Features as in the build of the whole workspace, so that only the crates with hooks are built anew. Always the dev
    // profile: with another it does not build.
    let arguments = ["build", "--quiet", "--locked", "--workspace", "--bin", PROGRAM];
    let mut build = cargo(&[&arguments[..], &["--features", "quorated/danger-hostile"]].concat())?;
    run(&mut build)?;
    Ok(bin_dir()?.with_file_name("debug").join(PROGRAM))
}

/// Admins approve it beside the product's own: reference values, and the approvals under which its TPMs open shares.
pub fn approve(lab: &Lab) -> anyhow::Result<()> {
    let mesh = &lab.mesh;
    let program = mesh.bin.join(PROGRAM);
    fs::copy(build()?, &program)?;
    let marked = |file: &Path| -> anyhow::Result<bool> {
        Ok(fs::read(file)?.windows(b"danger-hostile".len()).any(|w| w == b"danger-hostile"))
    };
    ensure!(marked(&program)?, "{} has no attack in it", program.display());
    ensure!(!marked(&mesh.bin.join("quorated"))?, "the product's own program has attacks in it");
    let values = mesh.dir.join("hostile-values.toml");
    let mut launch = mesh.command("quorate-launch");
    launch
        .arg("reference-values")
        .arg("--event-log")
        .arg(mesh.dir.join("events"))
        .arg("--binary")
        .arg(&program);
    fs::write(&values, run(&mut launch)?)?;
    mesh.admin(&["reference-values", "set", "--name", "demo", "--add", "--file"], &[&values])?;
    mesh.approve(&[])
}

/// Starts these nodes' machines anew with the hostile build, and waits until all count again.
pub fn take_over(lab: &Lab, nodes: &[u64]) -> anyhow::Result<()> {
    for node in nodes {
        let site = lab.mesh.site(*node)?.clone();
        lab.mesh.kill_node(*node)?;
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node_with(*node, &lab.mesh.bin.join(PROGRAM), &[])?;
        // One at a time: a mesh of four bears one that is down.
        lab.mesh.wait_all_healthy(crate::lab::WHOLE)?;
    }
    Ok(())
}

/// What a hostile node shall do from now on, a word each; nothing, and it is honest. See `quorated::danger_hostile`.
pub fn order(lab: &Lab, node: u64, words: &[String]) -> anyhow::Result<()> {
    let file = lab.mesh.site(node)?.dir.join("danger-hostile");
    let part = file.with_extension("part");
    fs::write(&part, words.join("\n"))?;
    Ok(fs::rename(part, file)?)
}

/// Whether the node runs it.
pub fn runs(lab: &Lab, node: u64) -> anyhow::Result<bool> {
    let pid = lab.mesh.site(node)?.pid().context("it does not run")?;
    Ok(fs::read_link(format!("/proc/{pid}/exe"))?.file_name().is_some_and(|name| name == PROGRAM))
}
