//! `quorated enrol`: the node's half of enrolment, as JSON lines on standard input and output, so that an admin's tool can run
//! it over ssh. The TPM proves that EK and AK are its own by activating the credential that the admin made for the pair.
use crate::config::Config;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::credential::CredentialBlob;
use quorate_attest_tpm::TpmHandle;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};

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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credential {
    id_object: String,
    encrypted_secret: String,
}

#[derive(Serialize)]
struct Answer {
    secret: String,
}

/// Runs the exchange.
pub async fn enrol(config: &Config, input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    use anyhow::Context as _;
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
    let line = input.lines().next().context("the admin's tool closed before it sent a credential")??;
    let challenge: Challenge = serde_json::from_str(&line).context("not a credential")?;
    let credential = CredentialBlob {
        id_object: BASE64.decode(challenge.credential.id_object)?,
        encrypted_secret: BASE64.decode(challenge.credential.encrypted_secret)?,
    };
    let secret = tpm.activate(ek, credential).await.context("the TPM did not activate the credential")?;
    writeln!(output, "{}", serde_json::to_string(&Answer { secret: BASE64.encode(secret.as_slice()) })?)?;
    output.flush()?;
    Ok(())
}
