//! `quorated enrol`: the node's half of enrolment, as JSON lines on standard input and output, so that an admin's tool can run
//! it over ssh. The TPM proves that EK and AK are its own by activating the credential that the admin made for the pair.
//!
//! ```text
//! node  -> admin  {"enrolment": {"ek": …, "ek_certs": [b64], "ek_public": b64, "ak_public": b64, "manufacturer": …, "firmware": …}}
//! admin -> node   {"credential": {"id_object": b64, "encrypted_secret": b64},
//!                  "share": {"cluster": "name", "node": 1, "approver": b64 SEC1 point, "pcrs": [0, 4, 7]}}
//! node  -> admin  {"secret": b64,
//!                  "share": {"share_key": b64, "share_counter": 1, "quote": b64, "signature": b64, "pcrs": [[0, "hex"], …]}}
//! ```
//!
//! **The share key.** When the admin's line has a `share`, the node makes the key to which its shares of provider keys will be
//! sealed. The private half goes into the TPM at once, to be opened by what this approver approves for this node of this cluster;
//! a quote by the AK, whose qualifying data is `quorate_attest::qualifying::for_share_key`, says where the public half comes from.
//! The quote's PCR values are what an approval of this very state names. Without `share`, none is made: such a member can hold no
//! shares. Enrolled again, a node makes a new key and keeps the old one until nobody needs it ([`crate::shares::sealed`]).
use crate::config::Config;
use crate::shares::sealed;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::approval::{Approver, CounterIndex, PolicyRef};
use quorate_attest::credential::CredentialBlob;
use quorate_attest::qualifying::for_share_key;
use quorate_attest_tpm::TpmHandle;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};

/// Longest line of the admin's half.
const LINE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Serialize)]
struct Request {
    enrolment: Enrolment,
}

#[derive(Serialize)]
struct Enrolment {
    ek: String,
    ek_certs: Vec<String>,
    ek_public: String,
    ak_public: String,
    manufacturer: String,
    firmware: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Challenge {
    credential: Credential,
    #[serde(default)]
    share: Option<ShareRequest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credential {
    id_object: String,
    encrypted_secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareRequest {
    cluster: String,
    node: u64,
    approver: String,
    pcrs: Vec<u8>,
}

#[derive(Serialize)]
struct Answer {
    secret: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<ShareAnswer>,
}

#[derive(Serialize)]
struct ShareAnswer {
    share_key: String,
    share_counter: u64,
    quote: String,
    signature: String,
    pcrs: Vec<(u8, String)>,
}

/// Runs the exchange.
pub async fn enrol(config: &Config, input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    let tpm = TpmHandle::spawn(config.tpm()?).context("cannot start the TPM's thread")?;
    let kinds = tpm.ek_kinds().await.context("cannot ask the TPM for its endorsement keys")?;
    let ek = *kinds.first().context("the TPM holds no EK certificate: an admin must inventory its EK")?;
    let request = tpm.enrol(ek).await.context("cannot create or find the AK")?;
    let enrolment = Enrolment {
        ek: ek.to_string(),
        ek_certs: request.ek_certs.iter().map(|c| BASE64.encode(c)).collect(),
        ek_public: BASE64.encode(&request.ek_public),
        ak_public: BASE64.encode(&request.ak_public),
        manufacturer: request.manufacturer,
        firmware: request.firmware,
    };
    writeln!(output, "{}", serde_json::to_string(&Request { enrolment })?)?;
    output.flush()?;
    let line = input.take(LINE_BYTES_MAX).lines().next();
    let line = line.context("the admin's tool closed before it sent a credential")??;
    let challenge: Challenge = serde_json::from_str(&line).context("not a credential")?;
    let credential = CredentialBlob {
        id_object: BASE64.decode(challenge.credential.id_object)?,
        encrypted_secret: BASE64.decode(challenge.credential.encrypted_secret)?,
    };
    let secret = tpm.activate(ek, credential).await.context("the TPM did not activate the credential")?;
    let share = match challenge.share {
        Some(request) => Some(share_key(config, &tpm, &request).await?),
        None => None,
    };
    let answer = Answer { secret: BASE64.encode(secret.as_slice()), share };
    writeln!(output, "{}", serde_json::to_string(&answer)?)?;
    output.flush()?;
    Ok(())
}

async fn share_key(config: &Config, tpm: &TpmHandle, request: &ShareRequest) -> anyhow::Result<ShareAnswer> {
    let node = config.node.0;
    if request.node != node {
        anyhow::bail!("the admin enrols node {}, this node's configuration says {node}", request.node);
    }
    let approver = BASE64.decode(&request.approver).context("the approver's key is not base64")?;
    let approver = Approver::from_sec1(&approver)?;
    let policy_ref = PolicyRef::for_node(&request.cluster, node);
    let share_counter = tpm.provision_counter(CounterIndex::DEFAULT).await;
    let share_counter = share_counter.context("cannot make the counter that withdraws approvals")?;
    let public = sealed::provision(tpm, &config.data_dir, approver, policy_ref).await?;
    let quoted = tpm.quote(&request.pcrs, for_share_key(node, public.as_bytes())).await;
    let quoted = quoted.context("the TPM gave no quote over the share key")?;
    Ok(ShareAnswer {
        share_key: public.to_base64(),
        share_counter,
        quote: BASE64.encode(&quoted.attest),
        signature: BASE64.encode(&quoted.signature),
        pcrs: quoted.pcrs.iter().map(|(index, value)| (*index, hex::encode(value))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::swtpm::{Swtpm, missing};
    use quorate_attest::approval::{Approval, ApprovedPcrs, ApproverKey};
    use quorate_core::ids::NodeId;
    use quorate_core::policy::Policy;
    use quorate_core::shares::SharePublicKey;
    use quorate_core::testing::Mesh;
    use std::sync::Arc;

    fn config(dir: &std::path::Path, tcti: &str) -> Config {
        let path = dir.join("node.toml");
        let text = format!(
            "node = 1\ndata_dir = \"data\"\nlisten = \"127.0.0.1:1\"\nhttp_listen = \"127.0.0.1:2\"\n[tpm]\ntcti = \"{tcti}\"\n"
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    /// What enrolment prints is enough for an admin to write a policy under which the node opens its key.
    #[tokio::test]
    async fn a_share_key_is_proven_and_opens_under_the_policy_made_from_it() {
        if missing() {
            return;
        }
        let (swtpm, tpm) = Swtpm::start().await;
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), &swtpm.tcti());
        let key = ApproverKey::from_pkcs8(&ApproverKey::generate_pkcs8().unwrap()).unwrap();
        let approver = BASE64.encode(key.approver().unwrap().sec1());
        let request = |node| ShareRequest {
            cluster: "test".into(),
            node,
            approver: approver.clone(),
            pcrs: vec![4, 7],
        };
        let wrong = share_key(&config, &tpm, &request(2)).await.err().unwrap();
        assert_eq!(wrong.to_string(), "the admin enrols node 2, this node's configuration says 1");
        assert!(!config.data_dir.exists(), "nothing is made for another node");

        let share = share_key(&config, &tpm, &request(1)).await.unwrap();
        let public = SharePublicKey::from_bytes(&BASE64.decode(&share.share_key).unwrap()).unwrap();
        let bound = for_share_key(1, public.as_bytes());
        let quote = BASE64.decode(&share.quote).unwrap();
        assert!(quote.windows(32).any(|window| window == bound), "the quote is over this key");

        let value = |hex: &str| <[u8; 32]>::try_from(hex::decode(hex).unwrap()).unwrap();
        let pcrs: Vec<_> = share.pcrs.iter().map(|(index, hex)| (*index, value(hex))).collect();
        let pcrs = ApprovedPcrs::new(&pcrs).unwrap();
        let policy_ref = PolicyRef::for_node("test", 1);
        let approval =
            Approval::sign(&key, &policy_ref, pcrs, CounterIndex::DEFAULT, share.share_counter).unwrap();
        let mesh = Mesh::dark(4, 1, |d| {
            d.share_approver = Some(approver.clone());
            d.member[0].share_key = Some(share.share_key.clone());
            d.member[0].share_counter = Some(share.share_counter);
            d.member[0].approvals = vec![BASE64.encode(approval.to_bytes())];
        });
        let policy: Arc<Policy> = mesh.state().policy().clone();
        let member = &policy.members[&NodeId(1)];
        let opened = sealed::unseal(&tpm, &config.data_dir, &policy, member).await.unwrap();
        assert_eq!(opened.public(), public);
    }

    #[test]
    fn the_admins_line_may_leave_the_share_out_and_nothing_else() {
        let parse = |line: String| serde_json::from_str::<Challenge>(&line);
        let credential = r#""credential":{"id_object":"","encrypted_secret":""}"#;
        let share = r#""share":{"cluster":"c","node":1,"approver":"","pcrs":[0]}"#;
        assert!(parse(format!("{{{credential}}}")).unwrap().share.is_none());
        assert!(parse(format!("{{{credential},{share}}}")).unwrap().share.is_some());
        assert!(parse(format!("{{{share}}}")).is_err());
        assert!(parse(format!("{{{credential},\"shares\":1}}")).is_err());
    }
}
