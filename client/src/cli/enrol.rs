//! `quorate admin enrol`: the admin's half of enrolment. The node's half is a child command (often over ssh) that speaks JSON
//! lines on its standard input and output:
//!
//! ```text
//! node  -> admin  {"enrolment": {"ek_certs": [b64], "ek_public": b64, "ak_public": b64, "manufacturer": …, "firmware": …}}
//! admin -> node   {"credential": {"id_object": b64, "encrypted_secret": b64}}
//! node  -> admin  {"secret": b64}
//! ```
//!
//! Nothing the node says is believed: the EK's certificate must lead to a root the admin named, and only the TPM that holds
//! both that EK and this AK can give the secret back. Then the AK is written into the draft of the policy.
use super::admin::{DraftArg, edit};
use super::output::{Failure, Outcome, line, note, printable, read};
use crate::directory::now;
use crate::error::chain;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::endorsement::{EkPolicy, Enrolment, Validity, verify_ek};
use quorate_core::policy::MemberDocument;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// Longest line of the node's half: a few certificates in base64.
const LINE_BYTES_MAX: u64 = 256 * 1024;
/// Largest file of roots.
const ROOTS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A TPM makes a key in seconds at worst; a human may have to log in first.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  quorate admin enrol --policy policy.toml --id 1 --name n1 --custodian ops-a --address n1:7101 --http n1:7201 \\\n    --reference-values prod --ek-roots tpm-vendor-roots.pem -- ssh n1 quorated --config /etc/quorate/node.toml enrol"
)]
pub(crate) struct EnrolArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// Number of the node; never reused
    #[arg(long)]
    id: u64,
    /// Its short name
    #[arg(long)]
    name: String,
    /// Who has root there
    #[arg(long)]
    custodian: String,
    /// host:port of its gRPC service
    #[arg(long)]
    address: String,
    /// host:port of its HTTP service
    #[arg(long)]
    http: String,
    /// Set of reference values that fits the machine
    #[arg(long, value_name = "NAME")]
    reference_values: String,
    /// PEM file of TPM vendors' certificates to trust; repeat for each
    #[arg(long, value_name = "PEM", required = true)]
    ek_roots: Vec<PathBuf>,
    /// PEM file of intermediates between them and the EK; repeat for each
    #[arg(long, value_name = "PEM")]
    ek_intermediates: Vec<PathBuf>,
    /// Take an EK certificate outside its validity: many expire before their TPM does, and none can be renewed
    #[arg(long)]
    allow_expired_ek: bool,
    /// Command that runs the node's half
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Deserialize)]
struct FromNode {
    enrolment: Claim,
}

/// Claims only; fields that this program does not need are ignored.
#[derive(Deserialize)]
struct Claim {
    ek_certs: Vec<String>,
    ek_public: String,
    ak_public: String,
    #[serde(default)]
    manufacturer: String,
}

#[derive(Serialize)]
struct ToNode {
    credential: Credential,
}

#[derive(Serialize)]
struct Credential {
    id_object: String,
    encrypted_secret: String,
}

#[derive(Deserialize)]
struct Secret {
    secret: String,
}

fn pem(paths: &[PathBuf]) -> Outcome<Vec<Vec<u8>>> {
    let mut certificates = Vec::new();
    for path in paths {
        let bytes = read(path, ROOTS_BYTES_MAX)?;
        certificates.append(&mut pem_certificates(path, &bytes)?);
    }
    Ok(certificates)
}

fn pem_certificates(path: &Path, bytes: &[u8]) -> Outcome<Vec<Vec<u8>>> {
    let parsed: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(bytes).map(|c| c.map(|c| c.to_vec())).collect();
    let wrong =
        |e: String| Failure::new(format!("{}: {e}", path.display()), "name a PEM file of certificates");
    let certificates = parsed.map_err(|e| wrong(e.to_string()))?;
    if certificates.is_empty() { Err(wrong("no certificate in it".into())) } else { Ok(certificates) }
}

fn decode(what: &str, text: &str) -> Outcome<Vec<u8>> {
    BASE64.decode(text).map_err(|_| {
        Failure::new(format!("the node's {what} is not base64"), "are node and admin of one version?")
    })
}

pub(crate) async fn enrol(args: EnrolArgs) -> Outcome {
    let roots = pem(&args.ek_roots)?;
    let intermediates = pem(&args.ek_intermediates)?;
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::new(
            "no command after --",
            "name the command that runs `quorated … enrol` on the node",
        ));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Failure::new(format!("{program}: {e}"), "check the command after --"))?;
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Failure::new(
            "the node's command has no standard input or output",
            "report this as a bug",
        ));
    };
    let mut from = BufReader::new(from);

    let FromNode { enrolment: claim } = say_and_read(&mut from, "an enrolment").await?;
    let (ek_public, ak_public) = (decode("EK", &claim.ek_public)?, decode("AK", &claim.ak_public)?);
    let certificate = claim.ek_certs.first().ok_or_else(|| {
        Failure::new(
            "the TPM has no EK certificate",
            "its EK must be inventoried by hand; that is not supported here yet",
        )
    })?;
    let certificate = decode("EK certificate", certificate)?;
    let validity = if args.allow_expired_ek {
        Validity::NotChecked
    } else {
        Validity::At(i64::try_from(now().0 / 1000).unwrap_or(i64::MAX))
    };
    let ek = verify_ek(
        &certificate,
        &intermediates.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        &roots.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        &EkPolicy { validity, danger_allow_sha1: false },
    )
    .map_err(|e| {
        Failure::new(
            format!(
                "the TPM of {} (it says: {}) is not genuine: {}",
                args.name,
                printable(&claim.manufacturer),
                chain(&e)
            ),
            "name its vendor's certificates with --ek-roots and --ek-intermediates, if you trust them",
        )
    })?;
    let refused = |e: quorate_attest::endorsement::EnrolmentError| {
        Failure::new(
            format!("{} was not enrolled: {}", args.name, chain(&e)),
            "run `quorated … enrol` on the very machine whose TPM it is",
        )
    };
    let (enrolment, blob) = Enrolment::begin(&ek, &ek_public, &ak_public).map_err(refused)?;
    let credential = Credential {
        id_object: BASE64.encode(&blob.id_object),
        encrypted_secret: BASE64.encode(&blob.encrypted_secret),
    };
    let mut text = serde_json::to_string(&ToNode { credential })
        .map_err(|e| Failure::new(format!("the credential: {e}"), "report this as a bug"))?;
    text.push('\n');
    let gone = |e: std::io::Error| {
        Failure::new(format!("the node's command went away: {e}"), "see its own messages above")
    };
    to.write_all(text.as_bytes()).await.map_err(gone)?;
    to.flush().await.map_err(gone)?;
    let Secret { secret } = say_and_read(&mut from, "the credential's secret").await?;
    let ak = enrolment.finish(&decode("secret", &secret)?).map_err(refused)?;
    drop(to);
    let _ = tokio::time::timeout(STEP_TIMEOUT, child.wait()).await;

    let member = MemberDocument {
        id: args.id,
        name: args.name.clone(),
        custodian: args.custodian,
        address: args.address,
        http: args.http,
        ak: BASE64.encode(ak.public_bytes()),
        software_tpm: ak.software_tpm(),
        reference_values: args.reference_values,
        share_key: None,
        share_counter: None,
        approvals: vec![],
    };
    edit(&args.draft, |d| {
        d.member.retain(|m| m.id != member.id);
        d.member.push(member);
        d.member.sort_by_key(|m| m.id);
        Ok(())
    })?;
    if ak.software_tpm() {
        note("this is a software TPM: it proves nothing about a machine, and the policy must allow it");
    }
    line(&format!("enrolled {} as member {} in {}", args.name, args.id, args.draft.policy.display()))
}

async fn say_and_read<T: serde::de::DeserializeOwned>(
    from: &mut BufReader<tokio::process::ChildStdout>,
    what: &str,
) -> Outcome<T> {
    let mut text = String::new();
    let hint = "see its own messages above; the command must end in `quorated --config FILE enrol`";
    let mut bounded = from.take(LINE_BYTES_MAX);
    let read = tokio::time::timeout(STEP_TIMEOUT, bounded.read_line(&mut text)).await;
    match read {
        Ok(Ok(1..)) => serde_json::from_str(&text)
            .map_err(|_| Failure::new(format!("the node's command did not send {what}"), hint)),
        Ok(Ok(0)) => Err(Failure::new(format!("the node's command ended before it sent {what}"), hint)),
        Ok(Err(e)) => Err(Failure::new(format!("the node's command: {e}"), hint)),
        Err(_) => Err(Failure::new(format!("the node's command did not send {what} in time"), hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, script: &str) -> EnrolArgs {
        let roots = dir.join("roots.pem");
        std::fs::write(&roots, rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem())
            .unwrap();
        EnrolArgs {
            draft: DraftArg { policy: dir.join("policy.toml") },
            id: 1,
            name: "n1".into(),
            custodian: "a".into(),
            address: "h:1".into(),
            http: "h:2".into(),
            reference_values: "dev".into(),
            ek_roots: vec![roots],
            ek_intermediates: vec![],
            allow_expired_ek: false,
            command: ["sh", "-c", script].map(Into::into).into(),
        }
    }

    #[tokio::test]
    async fn a_node_that_proves_nothing_is_not_enrolled() {
        let dir = tempfile::tempdir().unwrap();
        let claim = |certs: &str| {
            format!(
                "echo '{{\"enrolment\":{{\"ek_certs\":[{certs}],\"ek_public\":\"\",\"ak_public\":\"\"}}}}'"
            )
        };
        let table = [
            ("exit 1".to_owned(), "ended before it sent an enrolment"),
            ("echo hello".to_owned(), "did not send an enrolment"),
            (claim(""), "no EK certificate"),
            (claim("\"AAAA\""), "is not genuine"),
        ];
        for (script, expected) in table {
            let failure = enrol(args(dir.path(), &script)).await.unwrap_err();
            assert!(failure.message.contains(expected), "{script}: {failure:?}");
        }
        assert!(!dir.path().join("policy.toml").exists());
    }
}
