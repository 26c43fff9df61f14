//! `quorate serve`: flags, the ready line, signals.
use crate::config::{Config, ConfigError};
use crate::gate::{Gate, TokenError};
use crate::server::Server;
use crate::upstream::Mesh;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use quorate_client::cli::Failure;
use quorate_client::{PoolOptions, TrustFile, chain};
use quorate_telemetry::lines::BoundedLines;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Serve OpenAI's, Anthropic's and Gemini's HTTP APIs on this machine, through the mesh
///
/// Change an application's base URL and nothing else. Prompts leave this process only inside TLS that ends at the provider;
/// the provider's key is the mesh's, so whatever key the SDK insists on stays here.
#[derive(Parser)]
#[command(name = "serve", max_term_width = 110, after_help = HELP)]
struct Serve {
    /// Trust file: genesis digest, nodes, client name and key file
    #[arg(long, env = "QUORATE_TRUST", value_name = "FILE")]
    trust: PathBuf,
    /// Where to listen; port 0 takes a free one, named in the ready line [default: 127.0.0.1:4280]. Others than this machine
    /// are served only with a token file
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Models, routes, limits (TOML); without it each model goes to the route that the policy has for it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Applications that may use this adapter, lines `NAME TOKEN`, mode 0600; the token is the SDK's API key
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Write each request's receipt here, and a chain that names all its attempts
    #[arg(long, value_name = "DIR")]
    receipts: Option<PathBuf>,
    /// How long a stop waits for answers under way [default: 30000]
    #[arg(long, value_name = "MS")]
    drain_ms: Option<u64>,
    /// Speak plain HTTP beyond this machine, where something else does the TLS
    #[arg(long)]
    plaintext: bool,
    /// Check configuration, tokens and trust file, and end
    #[arg(long)]
    check: bool,
}

const HELP: &str = "\
Point an SDK at it (any word will do as the key, or one of your tokens):
  OpenAI       OPENAI_BASE_URL=http://127.0.0.1:4280/v1  OPENAI_API_KEY=local
               OpenAI(base_url=\"http://127.0.0.1:4280/v1\", api_key=\"local\")
  Anthropic    ANTHROPIC_BASE_URL=http://127.0.0.1:4280  ANTHROPIC_API_KEY=local
               Anthropic(base_url=\"http://127.0.0.1:4280\", api_key=\"local\")
  Gemini       genai.Client(api_key=\"local\", http_options={\"base_url\": \"http://127.0.0.1:4280\"})
  LangChain    ChatOpenAI(base_url=\"http://127.0.0.1:4280/v1\", api_key=\"local\", model=...)
  curl         curl http://127.0.0.1:4280/v1/chat/completions -H 'content-type: application/json' -d '{...}'

Endpoints:
  POST /v1/chat/completions  /v1/responses  /v1/completions  /v1/embeddings        OpenAI
  POST /v1/messages  /v1/messages/count_tokens                                     Anthropic
  POST /v1beta/models/MODEL:generateContent  :streamGenerateContent (events with   Gemini
       ?alt=sse, else an array)  :countTokens  :embedContent  :batchEmbedContents
  POST /model/MODEL/converse  /model/MODEL/converse-stream                         Bedrock
  GET  /v1/models  /v1beta/models  /healthz  /metrics

Answers say how they came: x-quorate-request (ask a receipt for it), x-quorate-attempts (all that were made, each
authorised on its own), x-quorate-route, -relay, -keyer. Errors of ours carry x-quorate-code; a provider's own errors
pass through as they are, unless a guard is for answers. What a route cannot be told is refused, never dropped: a field that
another provider's API has no word for, or a header that changes what is asked (anthropic-beta, openai-organization, ...) and
that the route does not list.

Configuration (all of it may be left out):
  [[model]]
  name = \"gpt-4o\"                 # what applications ask for
  strategy = \"priority\"           # or weighted, cheapest, fastest (as measured here)
  routes = [ { route = \"openai\", model = \"gpt-4o-2024-08-06\" }, { route = \"azure\" } ]
  hedge_after_ms = 800            # ask the second too when the first has not begun to answer
  repeat_unanswered = false       # may what perhaps reached a provider be sent again?
  [cache]                         # only if it is there: answers for the same request asked again, sealed
  dir = \"answers\"
  key_file = \"cache.key\"          # made when missing
  [defaults]
  attempts_max = 3
  connect_ms = 10000
  first_byte_ms = 120000
  idle_ms = 120000                # longest silence within an answer: `stream_idle`
  total_ms = 600000
  [limits]
  requests_max = 256
  connections_max = 1024
  body_bytes_max = 16777216
  buffers_bytes_max = 536870912   # bodies of all requests together
  [tls]                           # HTTPS, TLS 1.3; beyond loopback this, or plaintext = true
  cert_file = \"cert.pem\"
  key_file = \"key.pem\"
  client_ca_file = \"ca.pem\"       # only if clients must have certificates
  [telemetry]
  otlp = \"http://127.0.0.1:4318\" # OpenTelemetry spans of requests and attempts, without content
  [guards]
  streams = \"refuse\"            # or buffer: what becomes of streams whose answers a guard is for
  [[guard]]                       # each looks in turn; errors, headers and metrics name it
  name = \"keys\"
  kind = \"secrets\"              # or personal, deny, allow, schema, http
  action = \"block\"              # or redact, flag
  on = \"prompt\"                 # or answer, both
  models = [\"gpt-4o\"]           # default all
  detect = [\"aws\", \"github\"]    # default all of: aws github gitlab slack google anthropic openai stripe
                                  # private_key jwt assignment; personal: email iban card national_id phone
  except = [\"AKIA.*EXAMPLE\"]    # not meant
  [[guard]]
  name = \"projects\"
  kind = \"deny\"                 # patterns: regular expressions; allow: one of them must be there
  patterns = [\"(?i)project x\"]
  [[guard]]
  name = \"shape\"
  kind = \"schema\"               # answers are JSON of schema_file, or else of the schema that the request asks for
  [[guard]]
  name = \"outside\"
  kind = \"http\"                 # POSTs {\"texts\": [...]} and hears {\"action\": \"allow\" | \"block\" | \"flag\"}
  url = \"https://guard.example/v1\"
  timeout_ms = 2000
  fail = \"closed\"               # or open: what becomes of texts without a verdict

On SIGTERM it takes no more connections, lets answers under way end, and sends its reports.";

/// The subcommand's grammar.
pub fn command() -> clap::Command {
    Serve::command()
}

/// Lines of trace, as QUORATE_LOG says. Applications trigger them as fast as they ask.
fn trace() -> Result<(), Failure> {
    let bounded = BoundedLines::start().map_err(|e| {
        Failure::new(format!("cannot start a thread: {e}"), "end other processes, or raise the limit")
    })?;
    let filter = EnvFilter::try_from_env("QUORATE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody else's stay where there are some.
    drop(lines.finish().with(bounded).try_init());
    Ok(())
}

/// Runs it until a signal ends it.
pub async fn run(matches: clap::ArgMatches) -> Result<(), Failure> {
    let args =
        Serve::from_arg_matches(&matches).map_err(|e| Failure::new(e.to_string(), "quorate serve --help"))?;
    trace()?;
    let config = configured(&args)?;
    let gate = match &config.token_file {
        Some(path) => Gate::load(path)?,
        None => Gate::Local,
    };
    let trust = TrustFile::load(&args.trust)?;
    trust.load_key()?;
    if args.check {
        say(&format!("quorate serve: the configuration is good: {} models", config.models.len()))?;
        return Ok(());
    }
    let (mut terminate, mut interrupt) =
        (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let client = trust.client.to_string();
    let mesh = Arc::new(Mesh::find(trust, PoolOptions::default()));
    let server = Server::bind(&config, gate, mesh.clone()).await.map_err(|e| {
        Failure::new(
            format!("cannot serve on {}: {e}", config.listen),
            "choose another port with --listen, or end what holds this one",
        )
    })?;
    let scheme = if server.is_tls() { "https" } else { "http" };
    let address =
        server.address().map_err(|e| Failure::new(format!("the socket has no address: {e}"), ""))?;
    let ready = tokio::spawn(async move {
        mesh.wait().await;
        // What is not read by anybody is no reason to stop.
        let _ = say(&format!("quorate serve: ready {scheme}://{address} (client {client})"));
        mesh.warm_up().await;
    });
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        ready.abort();
    };
    if server.run(stop).await {
        Ok(())
    } else {
        let hint = "raise --drain-ms if answers take longer";
        Err(Failure::new("some answers did not end in time and were cut off", hint))
    }
}

fn configured(args: &Serve) -> Result<Config, Failure> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(receipts) = &args.receipts {
        config.receipts = Some(receipts.clone());
    }
    if let Some(tokens) = &args.token_file {
        config.token_file = Some(tokens.clone());
    }
    if let Some(drain_ms) = args.drain_ms {
        config.limits.drain_ms = drain_ms;
    }
    config.plaintext |= args.plaintext;
    config.check()?;
    Ok(config)
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind)
        .map_err(|e| Failure::new(format!("cannot listen for signals: {e}"), "check the system's limits"))
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| Failure::new(format!("cannot write to standard output: {e}"), ""))
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(chain(&error), "`quorate serve --help` shows the configuration")
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Self::new(chain(&error), error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Serve, clap::Error> {
        Serve::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_grammar_is_sound_beside_the_other_commands() {
        quorate_client::cli::with(command()).debug_assert();
        let whole = quorate_client::cli::with(command());
        assert!(whole.try_get_matches_from("quorate serve --trust t".split(' ')).is_ok());
    }

    #[test]
    fn beyond_loopback_only_with_tokens() {
        let open = parse("serve --trust t --listen 0.0.0.0:80").unwrap();
        assert!(configured(&open).unwrap_err().message.contains("token_file must name"));
        let plain = parse("serve --trust t --listen 0.0.0.0:80 --token-file f").unwrap();
        assert!(configured(&plain).unwrap_err().message.contains("tls must name"));
        let tokens = parse("serve --trust t --listen 0.0.0.0:80 --token-file f --plaintext").unwrap();
        assert_eq!(configured(&tokens).unwrap().token_file, Some("f".into()));
        let local = parse("serve --trust t --listen [::1]:0 --receipts r --drain-ms 5").unwrap();
        let config = configured(&local).unwrap();
        assert_eq!((config.receipts, config.limits.drain_ms), (Some("r".into()), 5));
        assert_eq!(configured(&parse("serve --trust t").unwrap()).unwrap().listen.port(), 4280);
    }

    /// What stands in the help is what the reader takes.
    #[test]
    fn the_configuration_in_the_help_is_good() {
        let text = HELP.split("Configuration (all of it may be left out):\n").nth(1).unwrap();
        let text = text.split("\n\n").next().unwrap();
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!((config.models[0].routes.len(), config.rules.len()), (2, 4));
        assert_eq!((&config.defaults, &config.limits), (&Default::default(), &Default::default()));
    }
}
