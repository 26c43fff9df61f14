//! `quorate admin`: the policy as a file. Commands that change it read the draft, change one thing and write it again; a
//! draft made from the policy in force names it as its predecessor. Nothing takes effect before m of n admins have signed the
//! exact bytes and `submit` has brought them into the log.
use super::TrustArg;
use super::output::{Failure, Outcome, line, note, read, text_out, write};
use super::verify::date;
use crate::{Client, TrustFile};
use clap::Subcommand;
use quorate_attest::reference_values::ReferenceValues;
use quorate_core::command::{Command, PolicyCommand};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::leaf::Outcome as LogOutcome;
use quorate_core::policy::{
    AdminDocument, AttestationDocument, ClientDocument, POLICY_BYTES_MAX, Policy, PolicyDocument,
    RouteDocument, SignedPolicy,
};
use quorate_core::sshsig::{AdminKey, NAMESPACE, SshSignature};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest key or signature file.
const SMALL_BYTES_MAX: u64 = 16 * 1024;

#[derive(Subcommand)]
pub(crate) enum AdminCommand {
    /// Write the draft of a genesis policy
    Init(InitArgs),
    /// Enrol a node: check its TPM's endorsement, activate a credential, and write the member into the draft
    Enrol(super::enrol::EnrolArgs),
    /// Clients in the draft
    #[command(subcommand)]
    Client(ClientCommand),
    /// Routes in the draft
    #[command(subcommand)]
    Route(RouteCommand),
    /// Teams in the draft: limits that clients share
    #[command(subcommand)]
    Team(super::governance::TeamCommand),
    /// The price table in the draft
    #[command(subcommand)]
    Price(super::governance::PriceCommand),
    /// Provider keys: split over the members, so that nobody holds one
    #[command(subcommand)]
    Credential(super::credential::CredentialCommand),
    /// Name the key that approves which software may open a node's shares; makes it when there is none
    Approver(super::approve::ApproverArgs),
    /// Approve the members' software, by their reference values, to open their shares
    Approve(super::approve::ApproveArgs),
    /// Reference values in the draft
    #[command(subcommand)]
    ReferenceValues(ReferenceValuesCommand),
    /// Routes, prices and teams from another gateway's configuration
    #[command(subcommand)]
    Import(super::import::ImportCommand),
    /// Check a policy and print its digest; all mistakes at once
    Check {
        /// Policy file
        file: PathBuf,
    },
    /// Sign a policy with `ssh-keygen -Y sign`: an SSH key file, one in the agent, or a FIDO key
    #[command(
        after_help = "The signature is written to FILE.sig, or to --out. By hand:\n  ssh-keygen -Y sign -n quorate -f KEY FILE"
    )]
    Sign {
        /// Policy file
        file: PathBuf,
        /// SSH private key, or the public key of one in the agent
        #[arg(long, value_name = "SSHKEY")]
        key: PathBuf,
        /// Where to write the signature; needed when several admins sign one file
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Bring a signed policy into the log; waits until it is in force
    Submit {
        #[command(flatten)]
        trust: TrustArg,
        /// Policy file
        file: PathBuf,
        /// Signature of each admin
        #[arg(required = true)]
        signatures: Vec<PathBuf>,
    },
    /// Print the policy in force, as its admins signed it
    Policy {
        #[command(flatten)]
        trust: TrustArg,
        /// Print a draft of its successor instead: next version, naming this one as its predecessor
        #[arg(long)]
        next: bool,
        /// When the successor stops being acceptable as a change
        #[arg(long, value_name = "RFC3339", default_value = "2030-01-01T00:00:00Z", requires = "next")]
        expires: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster; cannot change later
    #[arg(long)]
    cluster: String,
    /// Public SSH key file of an admin (ssh-ed25519 or sk-ssh-ed25519); repeat for each
    #[arg(long = "admin", value_name = "FILE", required = true)]
    admins: Vec<PathBuf>,
    /// How many admins must sign a change
    #[arg(long, default_value_t = 1)]
    threshold: u32,
    /// Accept software TPMs; they prove nothing about a machine
    #[arg(long)]
    allow_software_tpm: bool,
    /// PCRs that a quote must cover
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pcrs: Vec<u8>,
    /// How often a node quotes, ms
    #[arg(long, value_name = "MS")]
    evidence_interval_ms: Option<u64>,
    /// When evidence lapses, ms
    #[arg(long, value_name = "MS")]
    lapse_ms: Option<u64>,
    /// How old a quote's nonce may be, ms; when it is less than --lapse-ms, an outage of all nodes may last until that
    #[arg(long, value_name = "MS")]
    nonce_age_ms: Option<u64>,
    /// When the draft stops being acceptable
    #[arg(long, value_name = "RFC3339", default_value = "2030-01-01T00:00:00Z")]
    expires: String,
    /// File to write
    #[arg(long, default_value = "policy.toml")]
    out: PathBuf,
}

/// The draft to change.
#[derive(clap::Args, Clone)]
pub(crate) struct DraftArg {
    /// The draft
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Grant routes to a client
    Add(Box<ClientAddArgs>),
    /// Revoke a client; it stays listed, so that refusals name the reason
    Revoke {
        #[command(flatten)]
        draft: DraftArg,
        /// Its name
        #[arg(long)]
        name: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct ClientAddArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// Its name, as in its trust file
    #[arg(long)]
    name: String,
    /// Public key, base64, as `quorate keygen` printed it
    #[arg(long)]
    key: String,
    /// Who has root where it runs
    #[arg(long)]
    custodian: String,
    /// Route it may use; repeat for each
    #[arg(long = "route", required = true)]
    routes: Vec<String>,
    /// Requests per minute
    #[arg(long, default_value_t = 600)]
    requests_per_minute: u64,
    /// Requests per day
    #[arg(long, default_value_t = 100_000)]
    requests_per_day: u64,
    /// Bytes per day, both directions; running requests reserve their ceilings
    #[arg(long, default_value_t = 100_000_000_000)]
    bytes_per_day: u64,
    #[command(flatten)]
    limits: super::governance::ClientLimitArgs,
    /// End of the grant
    #[arg(long, value_name = "RFC3339", default_value = "2030-01-01T00:00:00Z")]
    expires: String,
}

#[derive(Subcommand)]
pub(crate) enum RouteCommand {
    /// Add a destination
    Add(RouteAddArgs),
}

#[derive(clap::Args)]
pub(crate) struct RouteAddArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// Its name
    #[arg(long)]
    name: String,
    /// Provider's host name
    #[arg(long)]
    host: String,
    /// Provider's port
    #[arg(long, default_value_t = 443)]
    port: u16,
    /// What stands before every path
    #[arg(long, default_value = "")]
    base_path: String,
    /// Path that may be asked for; repeat for each [default: the dialect's]
    #[arg(long = "path")]
    paths: Vec<String>,
    /// openai, anthropic, gemini or bedrock
    #[arg(long, default_value = "openai")]
    dialect: String,
    /// Header that clients may set; repeat for each
    #[arg(long = "header")]
    headers: Vec<String>,
    /// Model it serves, `*` for any; repeat for each
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// PEM file of the only root that may have signed the provider's certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum ReferenceValuesCommand {
    /// Set the good values of one kind of machine
    Set {
        #[command(flatten)]
        draft: DraftArg,
        /// Name of the set
        #[arg(long)]
        name: String,
        /// A good value, INDEX=HEX; repeat for each, several for one index are alternatives
        #[arg(long = "pcr", value_name = "INDEX=HEX")]
        pcrs: Vec<String>,
        /// TOML file with the whole set, in place of --pcr
        #[arg(long, value_name = "FILE", conflicts_with = "pcrs")]
        file: Option<PathBuf>,
        /// SHA-256 of the signed release manifest that the values are from, as `quorate-audit manifest check` prints it: from
        /// then on auditors know which packages a node with these values runs
        #[arg(long = "release", value_name = "HEX")]
        releases: Vec<Hash>,
        /// Add to the set in place of replacing it
        #[arg(long)]
        add: bool,
    },
}

pub(crate) async fn run(command: AdminCommand) -> Outcome {
    match command {
        AdminCommand::Init(args) => init(args),
        AdminCommand::Enrol(args) => super::enrol::enrol(args).await,
        AdminCommand::Client(ClientCommand::Add(args)) => client_add(*args),
        AdminCommand::Client(ClientCommand::Revoke { draft, name }) => edit(&draft, |d| {
            let Some(client) = d.client.iter_mut().find(|c| c.name == name) else {
                return Err(Failure::new(
                    format!("the draft has no client {name:?}"),
                    "see the [[client]] stanzas",
                ));
            };
            client.revoked = true;
            Ok(())
        }),
        AdminCommand::Route(RouteCommand::Add(args)) => route_add(args),
        AdminCommand::Team(command) => super::governance::team(command),
        AdminCommand::Price(command) => super::governance::price(command),
        AdminCommand::Credential(command) => super::credential::run(command).await,
        AdminCommand::Approver(args) => super::approve::approver(&args),
        AdminCommand::Approve(args) => super::approve::approve(&args),
        AdminCommand::ReferenceValues(ReferenceValuesCommand::Set {
            draft,
            name,
            pcrs,
            file,
            releases,
            add,
        }) => reference_values(&draft, name, &pcrs, file.as_deref(), &releases, add),
        AdminCommand::Import(command) => super::import::run(command),
        AdminCommand::Check { file } => check(&file),
        AdminCommand::Sign { file, key, out } => sign(&file, &key, out).await,
        AdminCommand::Submit { trust, file, signatures } => submit(&trust, &file, &signatures).await,
        AdminCommand::Policy { trust, next, expires } => policy(&trust, next, &expires).await,
    }
}

fn moment(text: &str) -> Outcome<toml::value::Datetime> {
    let parsed: toml::value::Datetime = text.parse().map_err(|e| {
        Failure::new(format!("{text:?} is no date: {e}"), "write it like 2030-01-01T00:00:00Z")
    })?;
    if parsed.date.is_none() || parsed.time.is_none() || parsed.offset.is_none() {
        return Err(Failure::new(
            format!("{text:?} lacks date, time or offset"),
            "write it like 2030-01-01T00:00:00Z",
        ));
    }
    Ok(parsed)
}

fn public_key(path: &Path) -> Outcome<AdminDocument> {
    let bytes = read(path, SMALL_BYTES_MAX)?;
    let line = String::from_utf8_lossy(&bytes).trim().to_owned();
    AdminKey::from_openssh(&line).map_err(|e| {
        Failure::new(
            format!("{}: {e}", path.display()),
            "make one with `ssh-keygen -t ed25519` (or ed25519-sk) and name its .pub",
        )
    })?;
    let comment = line.split_whitespace().nth(2).filter(|c| !c.is_empty()).map(ToOwned::to_owned);
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(AdminDocument { name: comment.unwrap_or(stem), key: line })
}

const HEADER: &str = "\
# The policy of a quorate cluster: who is a member, admin and client, what is a route, what counts as good evidence.
# m of n admins sign its exact bytes:  quorate admin sign FILE --key SSHKEY
# Then:                                 quorate admin submit FILE FILE.sig --trust trust.toml
# (genesis, version 1, is handed to each node's `init` instead). Check it first: quorate admin check FILE
";

fn init(args: InitArgs) -> Outcome {
    if args.out.exists() {
        return Err(Failure::new(
            format!("{} exists", args.out.display()),
            "name another file with --out, or remove it",
        ));
    }
    let mut attestation =
        AttestationDocument { allow_software_tpm: args.allow_software_tpm, ..AttestationDocument::default() };
    if !args.pcrs.is_empty() {
        attestation.pcrs = args.pcrs.into_iter().collect();
    }
    let set = |to: &mut u64, from: Option<u64>| *to = from.unwrap_or(*to);
    set(&mut attestation.evidence_interval_ms, args.evidence_interval_ms);
    set(&mut attestation.lapse_ms, args.lapse_ms);
    set(&mut attestation.nonce_age_ms, args.nonce_age_ms);
    let document = PolicyDocument {
        format: 1,
        cluster: args.cluster,
        version: 1,
        previous: String::new(),
        expires: moment(&args.expires)?,
        hostile_nodes_max: 1,
        admin_threshold: args.threshold,
        share_approver: None,
        admin: args.admins.iter().map(|p| public_key(p)).collect::<Outcome<_>>()?,
        attestation,
        member: vec![],
        reference_values: BTreeMap::new(),
        releases: BTreeMap::new(),
        currency: String::new(),
        route: vec![],
        price: vec![],
        team: vec![],
        client: vec![],
    };
    save(&args.out, &document)?;
    note(&format!(
        "wrote {}; next: `quorate admin reference-values set`, `admin approver` (for provider keys), `admin enrol` for each node, `admin route add`, `admin client add`",
        args.out.display()
    ));
    Ok(())
}

pub(crate) fn load(path: &Path) -> Outcome<PolicyDocument> {
    let bytes = read(path, POLICY_BYTES_MAX as u64)?;
    parse(&bytes).map_err(|e| {
        Failure::new(
            format!("{}: {e}", path.display()),
            "start from `quorate admin init` or `admin policy --next`",
        )
    })
}

fn parse(bytes: &[u8]) -> Result<PolicyDocument, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    toml::from_str(text).map_err(|e| e.to_string())
}

fn render(document: &PolicyDocument) -> Outcome<String> {
    let text = toml::to_string(document)
        .map_err(|e| Failure::new(format!("the draft cannot be written: {e}"), "report this as a bug"))?;
    Ok(format!("{HEADER}{text}"))
}

pub(crate) fn save(path: &Path, document: &PolicyDocument) -> Outcome {
    write(path, &render(document)?)
}

/// Changes one thing in a draft.
pub(crate) fn edit(draft: &DraftArg, change: impl FnOnce(&mut PolicyDocument) -> Outcome) -> Outcome {
    let mut document = load(&draft.policy)?;
    change(&mut document)?;
    save(&draft.policy, &document)
}

fn client_add(args: ClientAddArgs) -> Outcome {
    let expires = moment(&args.expires)?;
    let mut client = ClientDocument {
        requests_per_minute: args.requests_per_minute,
        requests_per_day: args.requests_per_day,
        bytes_per_day: args.bytes_per_day,
        ..ClientDocument::new(args.name, args.key, args.custodian, args.routes, expires)
    };
    args.limits.apply(&mut client);
    edit(&args.draft, |d| {
        d.client.retain(|c| c.name != client.name);
        d.client.push(client);
        Ok(())
    })
}

fn route_add(args: RouteAddArgs) -> Outcome {
    let ca_pem = match &args.ca {
        Some(path) => String::from_utf8_lossy(&read(path, POLICY_BYTES_MAX as u64)?).into_owned(),
        None => String::new(),
    };
    let paths = if args.paths.is_empty() { default_paths(&args.dialect, &args.models) } else { args.paths };
    if paths.is_empty() {
        return Err(Failure::new(
            format!("the paths of dialect {} name the model, and --model '*' is none", args.dialect),
            "name each --model, or each --path",
        ));
    }
    // Written and read once, so that defaults stand where the policy's reader has them.
    let stanza = toml::toml! { name = "" host = "" paths = [] models = [] };
    let defaults: RouteDocument = stanza
        .try_into()
        .map_err(|e| Failure::new(format!("the route's defaults: {e}"), "report this as a bug"))?;
    let route = RouteDocument {
        name: args.name,
        host: args.host,
        port: args.port,
        base_path: args.base_path,
        paths,
        dialect: args.dialect,
        headers: args.headers,
        models: args.models,
        ca_pem,
        ..defaults
    };
    crate::head_template(&route)?;
    edit(&args.draft, |d| {
        let mut route = route;
        // Shares are sealed for a destination: with another one they would open nowhere.
        let before = d.route.iter_mut().find(|r| r.name == route.name);
        if let Some(before) = before
            && let Some(credential) = before.credential.take()
        {
            if (&before.host, before.port) == (&route.host, route.port) {
                route.credential = Some(credential);
            } else {
                note(&format!(
                    "route {} goes elsewhere now, and its credential with it is gone: `quorate admin credential set {}`",
                    route.name, route.name
                ));
            }
        }
        d.route.retain(|r| r.name != route.name);
        d.route.push(route);
        Ok(())
    })
}

/// What a route of this dialect is asked for, unless admins list it. Gemini's and Bedrock's paths hold the model's name, so
/// that the models are the admins' choice there; `*` gives none.
pub(crate) fn default_paths(dialect: &str, models: &[String]) -> Vec<String> {
    let each = |verbs: &[&str], folder: &str| {
        let named = models.iter().filter(|model| *model != "*");
        named.flat_map(|model| verbs.iter().map(move |verb| format!("{folder}{model}{verb}"))).collect()
    };
    let fixed = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    match dialect {
        "anthropic" => fixed(&["/v1/messages", "/v1/messages/count_tokens", "/v1/models"]),
        "gemini" => each(
            &[
                ":generateContent",
                ":streamGenerateContent?alt=sse",
                ":countTokens",
                ":embedContent",
                ":batchEmbedContents",
            ],
            "/v1beta/models/",
        ),
        "bedrock" => each(&["/converse", "/converse-stream"], "/model/"),
        _ => fixed(&[
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/models",
        ]),
    }
}

fn reference_values(
    draft: &DraftArg,
    name: String,
    pcrs: &[String],
    file: Option<&Path>,
    releases: &[Hash],
    add: bool,
) -> Outcome {
    let values = match file {
        Some(path) => {
            let bytes = read(path, POLICY_BYTES_MAX as u64)?;
            let text = String::from_utf8_lossy(&bytes);
            toml::from_str::<ReferenceValues>(&text).map_err(|e| {
                Failure::new(
                    format!("{}: {e}", path.display()),
                    "see `quorated` for how a node prints its own values",
                )
            })?
        }
        None => ReferenceValues { pcrs: pcr_values(pcrs)?, ima: None, firmware_versions: None },
    };
    edit(draft, |d| {
        if !add {
            d.releases.remove(&name);
        }
        if !releases.is_empty() {
            d.releases.entry(name.clone()).or_default().extend(releases.iter().map(ToString::to_string));
        }
        let into = d.reference_values.entry(name).or_default();
        if !add {
            *into = values;
            return Ok(());
        }
        for (pcr, more) in values.pcrs {
            let list = into.pcrs.entry(pcr).or_default();
            list.extend(more);
            list.sort_unstable();
            list.dedup();
        }
        if let Some(more) = values.ima {
            into.ima.get_or_insert_default().extend(more);
        }
        if let Some(more) = values.firmware_versions {
            into.firmware_versions.get_or_insert_default().extend(more);
        }
        Ok(())
    })
}

fn pcr_values(list: &[String]) -> Outcome<BTreeMap<u8, Vec<[u8; 32]>>> {
    let mut pcrs: BTreeMap<u8, Vec<[u8; 32]>> = BTreeMap::new();
    for text in list {
        let parsed = text.split_once('=').and_then(|(index, hex)| {
            let mut value = [0; 32];
            hex::decode_to_slice(hex, &mut value).ok()?;
            Some((index.parse().ok().filter(|i: &u8| *i < 24)?, value))
        });
        let (index, value) = parsed.ok_or_else(|| {
            Failure::new(format!("--pcr {text:?} is not INDEX=HEX"), "0 to 23, then 64 hex digits")
        })?;
        pcrs.entry(index).or_default().push(value);
    }
    if pcrs.is_empty() {
        return Err(Failure::new("no values", "give --pcr INDEX=HEX or --file FILE"));
    }
    Ok(pcrs)
}

fn checked(path: &Path) -> Outcome<(Vec<u8>, Policy)> {
    let bytes = read(path, POLICY_BYTES_MAX as u64)?;
    let policy = Policy::parse(&bytes).map_err(|mistakes| {
        let commands = parse(&bytes).map(|d| super::credential::stale_shares(&d, path)).unwrap_or_default();
        Failure {
            message: format!("{} has {} mistake(s)", path.display(), mistakes.0.len()),
            hints: mistakes.0.into_iter().chain(commands).collect(),
        }
    })?;
    Ok((bytes, policy))
}

fn check(path: &Path) -> Outcome {
    let (_, policy) = checked(path)?;
    for route in policy.routes.values() {
        crate::head_template(&route.document)?;
    }
    text_out(&format!(
        "cluster   {}\nversion   {}\ndigest    {}\nexpires   {}\nmembers   {} ({} certify, {} hostile tolerated)\nadmins    {} of {} sign\nroutes    {} ({} with a credential)\nclients   {}\n",
        policy.cluster,
        policy.version,
        policy.digest,
        date(policy.expires),
        policy.members.len(),
        policy.quorum(),
        policy.hostile_nodes_max,
        policy.admin_threshold,
        policy.admins.len(),
        policy.routes.len(),
        policy.routes.values().filter(|r| r.credential.is_some()).count(),
        policy.clients.len(),
    ))?;
    unapproved(&policy);
    Ok(())
}

/// Members that hold shares and yet could not open them.
fn unapproved(policy: &Policy) {
    if policy.routes.values().all(|r| r.credential.is_none()) {
        return;
    }
    let without: Vec<_> =
        policy.members.values().filter(|m| m.approvals.is_empty()).map(|m| m.name.as_str()).collect();
    if !without.is_empty() {
        note(&format!(
            "no software of {} is approved to open shares, so they will serve no route with a credential: `quorate admin approve`",
            without.join(", ")
        ));
    }
}

async fn sign(path: &Path, key: &Path, out: Option<PathBuf>) -> Outcome {
    let (document, policy) = checked(path)?;
    let mut default = path.as_os_str().to_owned();
    default.push(".sig");
    let default = PathBuf::from(default);
    if default.exists() && out.is_none() {
        return Err(Failure::new(
            format!("{} exists", default.display()),
            "write this signature elsewhere with --out FILE",
        ));
    }
    let pem = ssh_keygen_sign(key, &document).await?;
    let signer = signature(&pem, key)?
        .verify(&document)
        .map_err(|e| Failure::new(e.to_string(), "sign with an Ed25519 key"))?;
    match policy.admins.get(&signer) {
        Some(name) => note(&format!("signed as {name}")),
        None => note(
            "this key is no admin's in the new policy; that is right only if it is one's in the policy now in force",
        ),
    }
    let out = out.unwrap_or(default);
    write(&out, &pem)?;
    line(&out.display().to_string())
}

/// `ssh-keygen -Y sign` over these bytes, as PEM.
async fn ssh_keygen_sign(key: &Path, document: &[u8]) -> Outcome<String> {
    // From standard input, so that ssh-keygen writes no file of its own; passphrase and touch prompts use the terminal.
    let mut child = tokio::process::Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|e| Failure::new(format!("ssh-keygen: {e}"), "install OpenSSH's ssh-keygen"))?;
    let failed = |e: std::io::Error| {
        Failure::new(format!("ssh-keygen: {e}"), "sign by hand: see `quorate admin sign --help`")
    };
    if let Some(mut stdin) = child.stdin.take() {
        tokio::io::AsyncWriteExt::write_all(&mut stdin, document).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        return Err(Failure::new(
            "ssh-keygen did not sign",
            "is --key an Ed25519 key of yours, and the FIDO key plugged in?",
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An admin's signature over bytes that are no policy.
pub(crate) async fn ssh_sign(key: &Path, bytes: &[u8]) -> Outcome<SshSignature> {
    signature(&ssh_keygen_sign(key, bytes).await?, key)
}

fn signature(pem: &str, path: &Path) -> Outcome<SshSignature> {
    SshSignature::from_pem(pem)
        .map_err(|e| Failure::new(format!("{}: {e}", path.display()), "make it with `quorate admin sign`"))
}

async fn submit(trust: &TrustArg, path: &Path, signatures: &[PathBuf]) -> Outcome {
    let (document, new) = checked(path)?;
    let mut read_signatures = Vec::new();
    for path in signatures {
        let bytes = read(path, SMALL_BYTES_MAX)?;
        read_signatures.push(signature(&String::from_utf8_lossy(&bytes), path)?);
    }
    let client = Client::connect(TrustFile::load(&trust.trust)?).await?;
    let directory = client.directory();
    let current = &directory.verified().policy;
    if new.previous != Some(current.digest) {
        return Err(Failure::new(
            format!("{} does not follow version {}, which is in force", path.display(), current.version),
            "start again from `quorate admin policy --next`",
        ));
    }
    // The nodes check the same; here the reason is clearer.
    let signed = SignedPolicy { document: document.clone(), signatures: read_signatures.clone() };
    let signers = current.check_signers(&signed).map_err(|r| Failure::new(r.to_string(), r.hint()))?;
    note(&format!("signed by {}", signers.join(", ")));
    let command = Command::Policy(PolicyCommand { document: sha256(&document), signatures: read_signatures });
    match client.submit_policy(command, document).await? {
        LogOutcome::PolicyChanged { version, .. } => line(&format!("policy version {version} is in force")),
        other => Err(Failure::new(
            format!("an outcome that was not expected: {other:?}"),
            "see `quorate admin policy`",
        )),
    }
}

async fn policy(trust: &TrustArg, next: bool, expires: &str) -> Outcome {
    let client = Client::connect(TrustFile::load(&trust.trust)?).await?;
    let directory = client.directory();
    let document = directory.policy_document();
    if !next {
        return text_out(&String::from_utf8_lossy(document));
    }
    let draft = successor(document, moment(expires)?)?;
    text_out(&render(&draft)?)
}

fn successor(document: &[u8], expires: toml::value::Datetime) -> Outcome<PolicyDocument> {
    let mut draft = parse(document)
        .map_err(|e| Failure::new(format!("the policy in force: {e}"), "update this program"))?;
    draft.version += 1;
    draft.previous = sha256(document).to_string();
    draft.expires = expires;
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFRlc3RUZXN0VGVzdFRlc3RUZXN0VGVzdFRlc3RUZXN0 alice";

    fn draft(dir: &Path) -> DraftArg {
        let key = dir.join("alice.pub");
        std::fs::write(&key, KEY).unwrap();
        let out = dir.join("policy.toml");
        init(InitArgs {
            cluster: "dev".into(),
            admins: vec![key],
            threshold: 1,
            allow_software_tpm: true,
            pcrs: vec![4],
            evidence_interval_ms: Some(2_000),
            lapse_ms: Some(8_000),
            nonce_age_ms: Some(8_000),
            expires: "2030-01-01T00:00:00Z".into(),
            out: out.clone(),
        })
        .unwrap();
        DraftArg { policy: out }
    }

    #[test]
    fn a_draft_grows_into_a_policy_that_checks() {
        let dir = tempfile::tempdir().unwrap();
        let draft = draft(dir.path());
        reference_values(&draft, "dev".into(), &[format!("4={}", "ab".repeat(32))], None, &[], false)
            .unwrap();
        reference_values(&draft, "dev".into(), &[format!("4={}", "cd".repeat(32))], None, &[], true).unwrap();
        route_add(RouteAddArgs {
            draft: draft.clone(),
            name: "demo".into(),
            host: "localhost".into(),
            port: 8443,
            base_path: String::new(),
            paths: vec![],
            dialect: "openai".into(),
            headers: vec![],
            models: vec!["*".into()],
            ca: None,
        })
        .unwrap();
        client_add(ClientAddArgs {
            draft: draft.clone(),
            name: "app".into(),
            key: "A".repeat(43) + "=",
            custodian: "apps".into(),
            routes: vec!["demo".into()],
            requests_per_minute: 1,
            requests_per_day: 2,
            bytes_per_day: 3,
            limits: Default::default(),
            expires: "2030-01-01T00:00:00Z".into(),
        })
        .unwrap();
        for id in 1..=4 {
            edit(&draft, |d| {
                d.member.push(quorate_core::policy::MemberDocument {
                    id,
                    name: format!("n{id}"),
                    custodian: format!("c{id}"),
                    address: format!("127.0.0.1:{}", 7100 + id),
                    http: format!("127.0.0.1:{}", 7200 + id),
                    ak: format!("AAA{id}"),
                    software_tpm: true,
                    reference_values: "dev".into(),
                    share_key: None,
                    share_counter: None,
                    approvals: vec![],
                });
                Ok(())
            })
            .unwrap();
        }
        let (bytes, policy) = checked(&draft.policy).unwrap();
        assert_eq!(policy.reference_values["dev"].pcrs[&4].len(), 2);
        assert_eq!((policy.quorum(), policy.version.0, policy.routes.len()), (3, 1, 1));
        assert!(bytes.starts_with(b"# The policy"));

        let next = successor(&bytes, moment("2031-01-01T00:00:00Z").unwrap()).unwrap();
        let text = render(&next).unwrap();
        let next = Policy::parse(text.as_bytes()).unwrap();
        assert_eq!((next.version.0, next.previous), (2, Some(policy.digest)));
    }

    #[test]
    fn paths_that_hold_the_model_are_listed_for_each() {
        let models = ["gemini-2.5-pro".to_owned(), "*".to_owned()];
        assert!(
            default_paths("gemini", &models)
                .contains(&"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse".to_owned())
        );
        assert_eq!(
            default_paths("bedrock", &models),
            ["/model/gemini-2.5-pro/converse", "/model/gemini-2.5-pro/converse-stream"]
        );
        assert!(default_paths("gemini", &["*".to_owned()]).is_empty());
        assert!(default_paths("openai", &["*".to_owned()]).contains(&"/v1/responses".to_owned()));
    }

    #[test]
    fn check_names_every_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let failure = check(&draft(dir.path()).policy).unwrap_err();
        assert!(failure.hints.iter().any(|h| h.starts_with("member:")), "{failure:?}");
    }

    #[test]
    fn values_that_are_none_are_refused() {
        for bad in ["4", "24=00", "4=zz", "x=00"] {
            assert!(pcr_values(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(moment("2030-01-01").is_err());
    }
}
