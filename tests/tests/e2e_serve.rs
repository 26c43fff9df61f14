//! `quorate serve` as an application meets it: plain HTTP to a real process, through a real mesh, to a provider that insists on
//! its key.
//!
//! Real processes and software TPMs; needs the binaries. What the SDKs make of it is tested elsewhere; here are bytes.
//!
//! **These bite**: the provider answers 401 to any key but its own, so that a served request shows that the application's was
//! left out and the mesh's put in; a receipt with one byte changed is refused; a whole stream has the end that a broken one lacks.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, ensure};
use quorate_tests::lab::{Key, Make};
use quorate_tests::{Lab, Shared, run, wait_for};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

static LAB: Shared = Shared::new(Make {
    name: "serve",
    provider: &["--slow-ms", "3000", "--chunk-delay-ms", "20"],
    key: Key::Made,
});

const SHOWS: Duration = Duration::from_secs(30);
const CHAT: &str = "/v1/chat/completions";

const CONFIG: &str = r#"
[defaults]
first_byte_ms = 20000

[[model]]
name = "ladder"
routes = [{ route = "provider", model = "fault-500" }, { route = "provider", model = "demo-chat" }]

[[model]]
name = "hasty"
tries = { first_byte_ms = 700 }
routes = [{ route = "provider", model = "fault-slow" }]

[[model]]
name = "guarded"
routes = [{ route = "provider", model = "demo-chat" }]

[[guard]]
name = "keys"
kind = "secrets"
models = ["guarded"]
"#;

/// An adapter of its own for one test. Ends with it.
struct Adapter {
    child: Child,
    address: String,
    receipts: PathBuf,
    started: Instant,
}

impl Adapter {
    fn start(lab: &Lab, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let (receipts, config) =
            (lab.mesh.dir.join(format!("{name}.receipts")), lab.mesh.dir.join("serve.toml"));
        fs::write(&config, CONFIG)?;
        let mut command = lab.mesh.quorate(&["serve", "--listen", "127.0.0.1:0", "--config"]);
        command.arg(&config).arg("--receipts").arg(&receipts).args(flags).stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().context("cannot start quorate serve")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let address = line.strip_prefix("quorate serve: ready http://").and_then(|l| l.split(' ').next());
        let address = address.with_context(|| format!("said {line:?}"))?.to_owned();
        Ok(Self { child, address, receipts, started })
    }

    fn open(&self, path: &str, body: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(SHOWS))?;
        let (address, length) = (&self.address, body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer sk-the-applications-own\r\ncontent-type: application/json\r\nuser-agent: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes())?;
        Ok(stream)
    }

    fn post(&self, path: &str, body: &str) -> anyhow::Result<Got> {
        Got::read(self.open(path, body)?)
    }

    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        quorate_tests::http_get(&self.address, path)
    }

    fn signal(&self, name: &str) -> anyhow::Result<()> {
        run(Command::new("kill").args([name, &self.child.id().to_string()])).map(drop)
    }

    /// The chain of attempts of an answer, once it is written.
    fn chain(&self, got: &Got) -> anyhow::Result<serde_json::Value> {
        let path = self.receipts.join(format!("{}.chain.json", got.header("x-quorate-request")?));
        let text = wait_for("the receipts are written", SHOWS, || Ok(fs::read_to_string(&path)?))?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

struct Got {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
    /// Whether the body has the end that HTTP asks for.
    whole: bool,
}

impl Got {
    fn read(mut stream: TcpStream) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        // A connection that is cut may be reset.
        let _cut = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no head")?;
        let head = String::from_utf8(bytes[..end].to_vec())?;
        let rest = &bytes[end + 4..];
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let headers: HashMap<String, String> = head
            .lines()
            .filter_map(|l| l.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let (body, whole) = match headers.get("content-length") {
            Some(length) => (rest.to_vec(), rest.len() == length.parse::<usize>()?),
            None => dechunk(rest)?,
        };
        Ok(Self { status, headers, body, whole })
    }

    fn header(&self, name: &str) -> anyhow::Result<&str> {
        self.headers.get(name).map(String::as_str).with_context(|| format!("no {name} in {:?}", self.headers))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }
}

fn dechunk(mut rest: &[u8]) -> anyhow::Result<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else { return Ok((body, false)) };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16)?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Ok((body, true));
        }
        if rest.len() < length + 2 {
            return Ok((body, false));
        }
        body.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
    }
}

fn chat(model: &str, more: &str) -> String {
    format!("{{\"messages\": [{{\"role\":\"user\",\"content\":\"hello\"}}],\t\"model\":\"{model}\"{more}}}")
}

#[test]
fn an_application_that_only_changed_its_base_url() {
    LAB.run("an_application_that_only_changed_its_base_url", |lab| {
        let adapter = Adapter::start(lab, "plain", &[])?;
        let got = adapter.post(CHAT, &chat("demo-chat", ",\"max_tokens\":4"))?;
        println!("cold start to first answer: {} ms", adapter.started.elapsed().as_millis());
        ensure!(got.status == 200 && got.whole, "{} {}", got.status, got.text());
        ensure!(got.json()?["choices"][0]["message"]["content"].is_string(), "{}", got.text());
        ensure!(got.header("x-quorate-route")? == "provider");
        ensure!(got.header("x-quorate-attempts")? == got.header("x-quorate-request")?);
        ensure!(got.header("x-quorate-relay")? != got.header("x-quorate-keyer")?);

        let stream = adapter.post(CHAT, &chat("demo-chat", ",\"max_tokens\":6,\"stream\":true"))?;
        let text = stream.text();
        ensure!(stream.status == 200 && stream.whole && text.ends_with("data: [DONE]\n\n"), "{text}");
        ensure!(stream.header("content-type")?.starts_with("text/event-stream"));

        // Its receipt proves it to anyone, offline; one byte changed, and it does not.
        let chain = adapter.chain(&got)?;
        ensure!(chain["attempts"].as_array().is_some_and(|a| a.len() == 1), "{chain}");
        let receipt = adapter.receipts.join(chain["attempts"][0]["receipt"].as_str().context("no receipt")?);
        let verify = || run(lab.mesh.command("quorate").args(["verify", "--genesis", &lab.mesh.genesis]).arg(&receipt));
        let said = verify()?;
        ensure!(said.contains(got.header("x-quorate-request")?) && said.contains("complete by the client: HTTP 200"), "{said}");
        let mut bytes = fs::read(&receipt)?;
        let middle = bytes.len() / 2;
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        fs::write(&receipt, bytes)?;
        ensure!(verify().is_err(), "a changed receipt was accepted");

        let (code, list) = adapter.get("/v1/models")?;
        ensure!(code == 200 && list.contains("\"demo-chat\"") && list.contains("\"ladder\""), "{list}");
        ensure!(adapter.get("/healthz")? == (200, "ok\n".to_owned()));
        let (_, metrics) = adapter.get("/metrics")?;
        let counted = "gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"openai\",gen_ai_request_model=\"demo-chat\",quorate_route=\"provider\",error_type=\"\"} 2";
        ensure!(metrics.contains(counted), "{metrics}");
        Ok(())
    });
}

#[test]
fn failures_as_an_application_sees_them() {
    LAB.run("failures_as_an_application_sees_them", |lab| {
        let adapter = Adapter::start(lab, "failures", &[])?;
        // The provider fails: the next place serves it, and both attempts are named and have receipts.
        let got = adapter.post(CHAT, &chat("ladder", ",\"max_tokens\":4"))?;
        ensure!(got.status == 200, "{} {}", got.status, got.text());
        ensure!(got.header("x-quorate-attempts")?.split(',').count() == 2);
        let chain = adapter.chain(&got)?;
        let attempts = chain["attempts"].as_array().context("no attempts")?;
        ensure!(attempts.len() == 2 && attempts[0]["came_to"] == "error_status", "{chain}");
        for (attempt, ended) in attempts.iter().zip(["HTTP 500", "HTTP 200"]) {
            let receipt = adapter.receipts.join(attempt["receipt"].as_str().context("no receipt")?);
            let said = run(lab
                .mesh
                .command("quorate")
                .args(["verify", "--genesis", &lab.mesh.genesis])
                .arg(receipt))?;
            ensure!(said.contains(ended), "{ended} in {said}");
        }
        // A provider's own error passes as it is.
        let got = adapter.post(CHAT, &chat("fault-429", ""))?;
        ensure!(got.status == 429 && got.header("retry-after").is_ok(), "{} {:?}", got.status, got.headers);
        ensure!(!got.headers.contains_key("x-quorate-code"), "{:?}", got.headers);
        // Ours are in the caller's dialect.
        let got = adapter.post(CHAT, &chat("nobody", ""))?;
        ensure!(got.status == 404 && got.json()?["error"]["code"] == "model_not_found", "{}", got.text());
        let got = adapter.post("/v1/messages", &chat("nobody", ""))?;
        ensure!(got.status == 404 && got.json()?["error"]["type"] == "not_found_error", "{}", got.text());
        let leaky = chat("guarded", "").replace("hello", "\\u0041KIAIOSFODNN7EXAMPLE");
        let got = adapter.post(CHAT, &leaky)?;
        ensure!(got.status == 403 && got.header("x-quorate-code")? == "guard_blocked", "{}", got.text());
        ensure!(
            got.header("x-quorate-guard")? == "keys=blocked"
                && !got.headers.contains_key("x-quorate-attempts")
        );
        ensure!(adapter.post(CHAT, &chat("guarded", ",\"max_tokens\":4"))?.status == 200, "harmless");
        let asked = Instant::now();
        let got = adapter.post(CHAT, &chat("hasty", ""))?;
        ensure!(got.status == 504 && got.json()?["error"]["code"] == "timed_out", "{}", got.text());
        ensure!(asked.elapsed() < Duration::from_millis(2900), "the bound did not hold");
        ensure!(got.header("x-should-retry")? == "false", "it may have been charged");
        // A stream that breaks off does not look whole.
        let got = adapter.post(CHAT, &chat("fault-close-mid-stream", ",\"stream\":true"))?;
        let text = got.text();
        ensure!(!text.contains("[DONE]"), "{text}");
        ensure!(!got.whole || text.contains("\"code\":\"truncated\""), "{text}");
        Ok(())
    });
}

#[test]
fn hanging_up_cancels_and_a_stop_drains() {
    LAB.run("hanging_up_cancels_and_a_stop_drains", |lab| {
        let mut adapter = Adapter::start(lab, "drain", &[])?;
        // Whoever hangs up has its request cancelled at the provider: the log says so.
        let mut stream = adapter.open(CHAT, &chat("demo-chat", ",\"max_tokens\":2000,\"stream\":true"))?;
        let mut some = [0; 600];
        stream.read_exact(&mut some)?;
        let head = String::from_utf8_lossy(&some).into_owned();
        let id =
            head.lines().find_map(|l| l.strip_prefix("x-quorate-request: ")).context("no id")?.to_owned();
        drop(stream);
        let receipt = adapter.receipts.join(format!("{id}.receipt"));
        wait_for("the receipt of a cancelled request", SHOWS, || {
            ensure!(receipt.exists());
            Ok(())
        })?;
        let said =
            run(lab.mesh.command("quorate").args(["verify", "--genesis", &lab.mesh.genesis]).arg(&receipt))?;
        ensure!(said.contains("cancelled by the client"), "{said}");
        wait_for("nothing is in flight", SHOWS, || {
            let (_, metrics) = adapter.get("/metrics")?;
            ensure!(metrics.contains("quorate_adapter_in_flight 0"), "{metrics}");
            Ok(())
        })?;
        // What is under way when it is told to stop is answered whole.
        let mut stream = adapter.open(CHAT, &chat("demo-chat", ",\"max_tokens\":60,\"stream\":true"))?;
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        adapter.signal("-TERM")?;
        wait_for("it takes no more connections", SHOWS, || {
            ensure!(TcpStream::connect(&adapter.address).is_err());
            Ok(())
        })?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        let rest = String::from_utf8_lossy(&rest);
        ensure!(rest.contains("data: [DONE]") && rest.ends_with("0\r\n\r\n"), "{rest}");
        let ended = wait_for("it ends", SHOWS, || adapter.child.try_wait()?.context("it runs"))?;
        ensure!(ended.success(), "{ended}");
        let chains = fs::read_dir(&adapter.receipts)?.filter_map(Result::ok);
        let chains = chains.filter(|e| e.file_name().to_string_lossy().ends_with(".chain.json")).count();
        ensure!(chains == 2, "{chains}: the last receipt was written before the end");
        Ok(())
    });
}
