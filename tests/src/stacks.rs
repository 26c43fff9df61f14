//! TLS servers that are none of ours, each checking a provider's key: nginx with OpenSSL, Java's own, and `openssl s_server` as
//! one without the suite. Their certificates are signed by the demo provider's CA, whose folder theirs are in: what is there is
//! the provider's, and may hold the key.
use anyhow::{Context as _, ensure};
use quorate_cluster::mesh::{Mesh, run, wait_for};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A JVM takes a while.
const STARTS: Duration = Duration::from_secs(30);

/// A server; it ends with this.
pub struct Stack {
    child: Child,
    /// Its port on localhost.
    pub port: u16,
    /// Folder with its certificate, configuration and logs.
    pub dir: PathBuf,
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// `nginx`, which checks the key and hands on to the demo provider; `None` where it is not installed.
pub fn nginx(mesh: &Mesh) -> anyhow::Result<Option<Stack>> {
    let Some(program) = installed("nginx") else { return Ok(None) };
    let (dir, port) = place(mesh, "nginx")?;
    let key = key_of(mesh)?;
    let behind = mesh.demo_provider.as_ref().and_then(|f| f.get(1)).context("no demo provider")?;
    let at = dir.display();
    let conf = format!(
        r#"daemon off; master_process off; pid {at}/own.pid; error_log {at}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format status '$status $request_uri';
  access_log {at}/access.log status;
  client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {at}/tls.pem; ssl_certificate_key {at}/tls.key; ssl_protocols TLSv1.3;
    location / {{
      if ($http_authorization != 'Bearer {key}') {{
        return 401 '{{"error":{{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}}}';
      }}
      proxy_pass https://{behind}; proxy_ssl_protocols TLSv1.3; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"#
    );
    fs::write(dir.join("nginx.conf"), conf)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
    start(mesh, "nginx", command, dir, port).map(Some)
}

/// Java's `HttpsServer`, which checks the key and answers by itself; `None` where no JDK is installed.
pub fn java(mesh: &Mesh) -> anyhow::Result<Option<Stack>> {
    let (Some(program), Some(_)) = (installed("java"), installed("javac")) else { return Ok(None) };
    let (dir, port) = place(mesh, "java")?;
    run(Command::new("openssl")
        .args(["pkcs12", "-export", "-passout", "pass:changeit", "-in", "tls.pem", "-inkey", "tls.key"])
        .args(["-out", "tls.p12"])
        .current_dir(&dir))?;
    fs::write(dir.join("Server.java"), JAVA)?;
    fs::write(dir.join("key"), key_of(mesh)?)?;
    let mut command = Command::new(program);
    command.args(["-Xshare:auto", "-XX:+UseSerialGC", "Server.java", &port.to_string()]);
    command.arg(dir.join("key")).current_dir(&dir);
    start(mesh, "java", command, dir, port).map(Some)
}

/// `openssl s_server` with AES-GCM and nothing else.
pub fn only_aes(mesh: &Mesh) -> anyhow::Result<Stack> {
    let (dir, port) = place(mesh, "only-aes")?;
    let mut command = Command::new("openssl");
    command.args([
        "s_server",
        "-accept",
        &format!("127.0.0.1:{port}"),
        "-cert",
        "tls.pem",
        "-key",
        "tls.key",
    ]);
    command.args(["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384", "-www", "-quiet"]).current_dir(&dir);
    start(mesh, "only-aes", command, dir, port)
}

fn key_of(mesh: &Mesh) -> anyhow::Result<String> {
    let path = mesh.key_file.as_ref().context("the mesh's provider has no key")?;
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|f| f.join(program)).find(|p| p.is_file())
}

/// A folder among the provider's, with a certificate for localhost, and a free port.
fn place(mesh: &Mesh, name: &str) -> anyhow::Result<(PathBuf, u16)> {
    let dir = mesh.dir.join("provider").join(name);
    fs::create_dir_all(&dir)?;
    let ca = mesh.dir.join("provider");
    fs::write(dir.join("san"), "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n")?;
    let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(&dir));
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "tls.key",
        "-out",
        "tls.csr",
        "-subj",
        "/CN=localhost",
    ])?;
    let (certificate, key) = (ca.join("ca.pem"), ca.join("ca.key"));
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    openssl(&[
        "x509",
        "-req",
        "-in",
        "tls.csr",
        "-CA",
        &certificate,
        "-CAkey",
        &key,
        "-set_serial",
        "7",
        "-days",
        "30",
        "-extfile",
        "san",
        "-out",
        "tls.pem",
    ])?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok((dir, port))
}

fn start(mesh: &Mesh, name: &str, mut command: Command, dir: PathBuf, port: u16) -> anyhow::Result<Stack> {
    let log = fs::File::create(dir.join("log"))?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
    let mut stack = Stack { child: child.with_context(|| format!("cannot start {name}"))?, port, dir };
    // Where the guardian looks for what it must end.
    fs::write(mesh.dir.join(format!("{name}.pid")), stack.child.id().to_string())?;
    wait_for(&format!("{name} listens"), STARTS, || {
        let ended = stack.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "it ended: {}",
            fs::read_to_string(stack.dir.join("log")).unwrap_or_default()
        );
        TcpStream::connect(("127.0.0.1", port))?;
        Ok(())
    })?;
    Ok(stack)
}

impl Stack {
    /// The server's certificate authority.
    pub fn ca(mesh: &Mesh) -> PathBuf {
        mesh.dir.join("provider/ca.pem")
    }
    /// A file of its folder.
    pub fn read(&self, file: impl AsRef<Path>) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }
}

const JAVA: &str = r#"
import com.sun.net.httpserver.*;
import java.io.*;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.security.KeyStore;
import java.util.concurrent.Executors;
import javax.net.ssl.*;

public class Server {
    public static void main(String[] arguments) throws Exception {
        String key = Files.readString(Path.of(arguments[1])).trim();
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream in = Files.newInputStream(Path.of("tls.p12"))) { store.load(in, "changeit".toCharArray()); }
        KeyManagerFactory keys = KeyManagerFactory.getInstance("SunX509");
        keys.init(store, "changeit".toCharArray());
        SSLContext context = SSLContext.getInstance("TLSv1.3");
        context.init(keys.getKeyManagers(), null, null);
        HttpsServer server = HttpsServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 64);
        server.setHttpsConfigurator(new HttpsConfigurator(context));
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            byte[] body = exchange.getRequestBody().readAllBytes();
            boolean good = ("Bearer " + key).equals(exchange.getRequestHeaders().getFirst("Authorization"));
            String answer = good
                ? "{\"id\":\"j\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"java-chat\",\"choices\":[{\"index\":0,"
                    + "\"message\":{\"role\":\"assistant\",\"content\":\"java read " + body.length + " bytes\"},\"finish_reason\":\"stop\"}]}"
                : "{\"error\":{\"message\":\"wrong key\",\"type\":\"invalid_request_error\",\"code\":\"invalid_api_key\"}}";
            byte[] bytes = answer.getBytes(StandardCharsets.UTF_8);
            exchange.getResponseHeaders().set("content-type", "application/json");
            exchange.sendResponseHeaders(good ? 200 : 401, bytes.length);
            exchange.getResponseBody().write(bytes);
            exchange.close();
        });
        server.start();
    }
}
"#;
