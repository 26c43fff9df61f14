//! `quorate admin enrol`: the admin's half of enrolment. The node's half is a child command (often over ssh) that speaks JSON
//! lines on its standard input and output:
//!
//! ```text
//! node  -> admin  {"enrolment": {"ek_certs": [b64], "ek_public": b64, "ak_public": b64, "manufacturer": …, "firmware": …}}
//! admin -> node   {"credential": {"id_object": b64, "encrypted_secret": b64},
//!                  "share": {"cluster": …, "node": …, "approver": b64, "pcrs": […]}}
//! node  -> admin  {"secret": b64, "share": {"share_key": b64, "share_counter": …, "quote": b64, "signature": b64, …}}
//! ```
//!
//! The `share` is there when the draft names an approver. Then the node makes the key to which shares of provider keys will be
//! sealed; a quote by the AK that was just proved, over node and key, says that it comes from that machine.
//!
//! Nothing the node says is believed: the EK's certificate must lead to a root the admin named, and only the TPM that holds
//! both that EK and this AK can give the secret back. Then the AK is written into the draft of the policy.
use super::admin::{DraftArg, edit, load};
use super::approve::approver_of;
use super::output::{Failure, Outcome, line, note, printable, read};
use crate::directory::now;
use crate::error::chain;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::endorsement::{EkPolicy, EnrolledAk, Enrolment, Validity, verify_ek};
use quorate_attest::qualifying::for_share_key;
use quorate_attest::tpm::{Quote, TpmSignature};
use quorate_core::policy::MemberDocument;
use quorate_core::shares::SharePublicKey;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<ShareRequest>,
}

#[derive(Serialize)]
struct ShareRequest {
    cluster: String,
    node: u64,
    approver: String,
    pcrs: Vec<u8>,
}

#[derive(Serialize)]
struct Credential {
    id_object: String,
    encrypted_secret: String,
}

#[derive(Deserialize)]
struct Secret {
    secret: String,
    #[serde(default)]
    share: Option<ShareAnswer>,
}

/// Its PCR values are not read: what is approved are the policy's reference values.
#[derive(Deserialize)]
struct ShareAnswer {
    share_key: String,
    share_counter: u64,
    quote: String,
    signature: String,
}

/// A share key whose origin is proved.
struct ShareKey {
    key: SharePublicKey,
    counter: u64,
}

/// Checks that the AK itself quoted this key for this node.
fn share_key(answer: &ShareAnswer, ak: &EnrolledAk, node: u64) -> Outcome<ShareKey> {
    let refused = |what: &str| {
        Failure::new(
            format!("the share key was not proved: {what}"),
            "run `quorated … enrol` on the very machine whose TPM it is; are node and admin of one version?",
        )
    };
    let key = SharePublicKey::from_bytes(&decode("share key", &answer.share_key)?)
        .map_err(|e| refused(&e.to_string()))?;
    let quote = decode("quote", &answer.quote)?;
    let signature = TpmSignature::parse(&decode("signature", &answer.signature)?)
        .map_err(|e| refused(&format!("its signature: {e}")))?;
    ak.public()
        .verify(&quote, &signature)
        .map_err(|_| refused("the quote is not signed by the enrolled AK"))?;
    let quote = Quote::parse(&quote).map_err(|e| refused(&e.to_string()))?;
    if quote.extra_data != for_share_key(node, key.as_bytes()) {
        return Err(refused("the quote is over another key or node"));
    }
    Ok(ShareKey { key, counter: answer.share_counter })
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
    let draft = load(&args.draft.policy)?;
    let share = approver_of(&draft)?.map(|approver| ShareRequest {
        cluster: draft.cluster.clone(),
        node: args.id,
        approver: BASE64.encode(approver.sec1()),
        pcrs: draft.attestation.pcrs.iter().copied().collect(),
    });
    let wanted = share.is_some();
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
    let mut text = serde_json::to_string(&ToNode { credential, share })
        .map_err(|e| Failure::new(format!("the credential: {e}"), "report this as a bug"))?;
    text.push('\n');
    let gone = |e: std::io::Error| {
        Failure::new(format!("the node's command went away: {e}"), "see its own messages above")
    };
    to.write_all(text.as_bytes()).await.map_err(gone)?;
    to.flush().await.map_err(gone)?;
    let Secret { secret, share } = say_and_read(&mut from, "the credential's secret").await?;
    let ak = enrolment.finish(&decode("secret", &secret)?).map_err(refused)?;
    drop(to);
    let _ = tokio::time::timeout(STEP_TIMEOUT, child.wait()).await;
    let share = match (wanted, share) {
        (true, Some(answer)) => Some(share_key(&answer, &ak, args.id)?),
        (true, None) => {
            return Err(Failure::new(
                "the node made no share key, though the draft has an approver",
                "are node and admin of one version?",
            ));
        }
        // Not asked for, so not believed.
        (false, _) => None,
    };

    let mut member = MemberDocument {
        id: args.id,
        name: args.name.clone(),
        custodian: args.custodian,
        address: args.address,
        http: args.http,
        ak: BASE64.encode(ak.public_bytes()),
        software_tpm: ak.software_tpm(),
        reference_values: args.reference_values,
        share_key: share.as_ref().map(|s| s.key.to_base64()),
        share_counter: share.as_ref().map(|s| s.counter),
        approvals: vec![],
    };
    edit(&args.draft, |d| {
        // Approvals of before may have held up to more than this machine's counter: the node raises it above them.
        let before = d.member.iter().find(|m| m.id == member.id).and_then(|m| m.share_counter);
        member.share_counter = member.share_counter.map(|counter| before.map_or(counter, |b| b.max(counter)));
        d.member.retain(|m| m.id != member.id);
        d.member.push(member);
        d.member.sort_by_key(|m| m.id);
        let file = &args.draft.policy;
        for route in d.route.iter().filter(|r| r.credential.is_some()) {
            note(&format!(
                "members changed: split the key of route {} again before this is submitted: `quorate admin credential rotate {} --policy {}`",
                route.name,
                route.name,
                file.display()
            ));
        }
        Ok(())
    })?;
    match share {
        Some(_) => note(&format!(
            "next: `quorate admin approve --policy {} --key APPROVERKEY {}`, or it cannot open its shares",
            args.draft.policy.display(),
            args.name
        )),
        None => note(
            "it can hold no share of a provider key: the draft has no approver (`quorate admin approver`)",
        ),
    }
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

    #[test]
    fn a_share_key_is_the_enrolled_machines_own() {
        use quorate_core::testing::{Fleet, share_key as key_of};
        use std::collections::BTreeSet;
        let fleet = Fleet::new(4, 1, |_| ());
        let tpm = |n: u64| &fleet.nodes[&quorate_core::ids::NodeId(n)].tpm;
        let (ak, pcrs) = (tpm(1).enrolled(true), BTreeSet::from([4, 7]));
        let answer = |machine: u64, node: u64, quoted: u64, key: u64| {
            let qualifying = for_share_key(node, key_of(quoted).public().as_bytes());
            let evidence = tpm(machine).quote(&qualifying, &pcrs);
            ShareAnswer {
                share_key: key_of(key).public().to_base64(),
                share_counter: 4,
                quote: BASE64.encode(evidence.attest),
                signature: BASE64.encode(evidence.signature),
            }
        };
        let good = share_key(&answer(1, 1, 1, 1), &ak, 1).unwrap();
        assert_eq!((good.counter, good.key), (4, key_of(1).public()));
        let refused = |answer: ShareAnswer| share_key(&answer, &ak, 1).err().unwrap().message;
        assert!(refused(answer(2, 1, 1, 1)).contains("not signed by the enrolled AK"));
        for other in [answer(1, 2, 1, 1), answer(1, 1, 2, 1), answer(1, 1, 1, 2)] {
            assert!(refused(other).contains("over another key or node"));
        }
        let short = ShareAnswer { share_key: BASE64.encode([1; 32]), ..answer(1, 1, 1, 1) };
        assert!(refused(short).contains("32 bytes"));
        let boot = tpm(1).quote(&[9; 32], &pcrs);
        let boot = ShareAnswer {
            quote: BASE64.encode(boot.attest),
            signature: BASE64.encode(boot.signature),
            ..answer(1, 1, 1, 1)
        };
        assert!(refused(boot).contains("over another key or node"), "a quote for something else");
    }

    #[tokio::test]
    async fn a_node_that_proves_nothing_is_not_enrolled() {
        let dir = tempfile::tempdir().unwrap();
        let draft = quorate_core::testing::Fleet::new(4, 1, |_| ()).document;
        crate::cli::admin::save(&dir.path().join("policy.toml"), &draft).unwrap();
        let before = std::fs::read(dir.path().join("policy.toml")).unwrap();
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
        assert_eq!(std::fs::read(dir.path().join("policy.toml")).unwrap(), before);
    }
}
