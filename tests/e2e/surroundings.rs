//! What the mesh stands on: the demo provider and the software TPMs behave as the other tests assume.

use std::process::Command;
use std::time::Duration;

use quorate_tests::process::run;
use quorate_tests::{Cluster, DemoProvider, Process, Workdir};

const LIMIT: Duration = Duration::from_secs(10);

/// A request through the openssl command line: TLS by another implementation, and no client of ours to trust.
fn ask(provider: &DemoProvider, suite: &str, body: &str) -> anyhow::Result<String> {
    let port = provider
        .url()
        .rsplit(':')
        .next()
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default()
        .to_owned();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // `-quiet` keeps it reading after its own input has ended, until the server closes.
    let script = r#"printf %s "$REQUEST" | openssl s_client -quiet -connect "localhost:$0" -servername localhost \
        -verify_hostname localhost -verify_return_error -tls1_3 -ciphersuites "$1" -CAfile "$2" 2>&1 || true"#;
    let mut command = Command::new("bash");
    run(command.env("REQUEST", request).args(["-c", script]).arg(port).arg(suite).arg(provider.ca_file()))
}

const CHACHA: &str = "TLS_CHACHA20_POLY1305_SHA256";
const HELLO: &str = r#"{"model":"demo-chat","messages":[{"role":"user","content":"hello"}]}"#;

#[test]
fn the_provider_answers_another_tls_implementation_and_comes_back_at_its_address() -> anyhow::Result<()> {
    let work = Workdir::new("provider")?;
    let provider = DemoProvider::start(&work, "provider", &[])?;
    let answer = ask(&provider, CHACHA, HELLO)?;
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("You asked: hello"), "{answer}");
    assert_eq!(provider.requests()?.len(), 1);

    let url = provider.url().to_owned();
    let listen = format!("127.0.0.1:{}", url.trim_end_matches("/v1").rsplit(':').next().unwrap());
    provider.stop()?;
    let mut provider = DemoProvider::start(&work, "provider", &["--listen", &listen])?;
    assert_eq!(provider.url(), url);
    assert!(ask(&provider, CHACHA, HELLO)?.contains("You asked: hello"));
    assert_eq!(provider.requests()?.len(), 2, "the access log was not continued");
    provider.process().kill()?;
    let refused = ask(&provider, CHACHA, HELLO)?;
    assert!(refused.to_lowercase().contains("refused"), "{refused}");
    work.passed();
    Ok(())
}

#[test]
fn the_provider_s_tls_faults_are_what_they_say() -> anyhow::Result<()> {
    let work = Workdir::new("provider-faults")?;
    let wrong = DemoProvider::start(&work, "wrong", &["--wrong-cert"])?;
    let answer = ask(&wrong, CHACHA, HELLO)?;
    assert!(answer.to_lowercase().contains("hostname mismatch"), "{answer}");
    let aes = DemoProvider::start(&work, "aes", &["--only-aes"])?;
    let answer = ask(&aes, CHACHA, HELLO)?;
    assert!(answer.contains("handshake failure"), "{answer}");
    assert!(ask(&aes, "TLS_AES_128_GCM_SHA256", HELLO)?.contains("You asked: hello"));
    assert_eq!(wrong.requests()?.len() + aes.requests()?.len(), 1);
    work.passed();
    Ok(())
}

#[test]
fn a_provider_that_cannot_start_says_why_at_once() -> anyhow::Result<()> {
    let work = Workdir::new("provider-start")?;
    let first = DemoProvider::start(&work, "first", &[])?;
    let listen = first.url().replace("https://localhost", "127.0.0.1").replace("/v1", "");
    let error = DemoProvider::start(&work, "second", &["--listen", &listen]).err().expect("two on one port");
    assert!(format!("{error:#}").contains(&format!("cannot listen on {listen}")), "{error:#}");
    work.passed();
    Ok(())
}

#[test]
fn tpms_are_apart_and_end_with_their_cluster() -> anyhow::Result<()> {
    let cluster = Cluster::surroundings("tpms", 2, &[])?;
    let (one, two) = (cluster.tpms[0].port(), cluster.tpms[1].port());
    let connects = |port: u16| std::net::TcpStream::connect(("127.0.0.1", port + 1)).map(drop);
    connects(one)?;
    connects(two)?;
    cluster.tpms[0].power_cycle()?;
    connects(one)?;
    cluster.tpms[0].kill()?;
    assert!(connects(one).is_err(), "the TPM still listens after its power was cut");
    connects(two)?;
    cluster.passed();
    assert!(connects(two).is_err(), "a TPM outlived its cluster");
    Ok(())
}

#[test]
fn the_launcher_becomes_the_program_it_measured() -> anyhow::Result<()> {
    let cluster = Cluster::surroundings("launch", 1, &[])?;
    let (work, tpm) = (&cluster.work, &cluster.tpms[0]);
    let (firmware, log_out) = (work.join("firmware.bin"), work.join("event-log.bin"));
    run(Command::new(quorate_tests::bins::bin("quorate-launch")?)
        .args(["event-log", "--out"])
        .arg(&firmware))?;
    let mut command = tpm.launch(&firmware, &log_out, "/bin/sleep".as_ref());
    let mut node = Process::spawn("node", command.arg("60"), &work.logs())?;
    work.wait_for("the program", LIMIT, || {
        let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", node.pid()))?;
        anyhow::ensure!(cmdline.starts_with("/bin/sleep"), "still {cmdline:?}");
        Ok(())
    })?;
    let (before, after) = (std::fs::read(&firmware)?, std::fs::read(&log_out)?);
    assert!(
        after.starts_with(&before) && after.len() > before.len(),
        "the measurement is not at the log's end"
    );
    assert!(node.log()?.contains("measurements prove nothing"), "the launcher did not say what it is");
    node.kill()?;
    drop(node);
    cluster.passed();
    Ok(())
}
