//! The provider's side of TLS: a throw-away CA kept in a folder, and a TLS 1.3 server configuration.
//!
//! The CA key is on disk beside the certificate (mode 0600) so that a restarted provider keeps its identity.
//! That is fit for development only.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Options;

/// The name in the certificate of `--wrong-cert`: reserved, so that no client can have asked for it.
const WRONG_NAME: &str = "wrong.invalid";

/// A certificate authority for one folder of development state.
pub(super) struct DevCa {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl DevCa {
    /// Reads `ca.key` and `ca.pem` from `dir`, or makes them.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        // The key decides: a certificate without its key is of no use, and a key without its certificate only
        // means that an earlier start was cut short.
        let (key, fresh) = if key_path.exists() {
            let pem = fs::read_to_string(&key_path)
                .with_context(|| format!("cannot read {}", key_path.display()))?;
            let key =
                KeyPair::from_pem(&pem).with_context(|| format!("{} holds no key", key_path.display()))?;
            (key, !cert_path.exists())
        } else {
            let key = KeyPair::generate().context("cannot make the CA key")?;
            write_whole(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            (key, true)
        };
        let params = ca_params()?;
        if fresh {
            let cert = params.self_signed(&key).context("cannot sign the CA certificate")?;
            write_whole(&cert_path, cert.pem().as_bytes(), 0o644)?;
        }
        let cert_pem =
            fs::read_to_string(&cert_path).with_context(|| format!("cannot read {}", cert_path.display()))?;
        Ok(Self { issuer: Issuer::new(params, key), cert_pem })
    }

    /// The CA's certificate.
    pub(super) fn cert_pem(&self) -> &str {
        &self.cert_pem
    }
}

/// TLS 1.3 only, `http/1.1` only, with a certificate for the loopback names.
pub(super) fn server_config(ca: &DevCa, options: &Options) -> anyhow::Result<ServerConfig> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(options.names.iter().cloned());
    if options.wrong_cert {
        names = vec![WRONG_NAME.to_owned()];
    }
    let mut params =
        CertificateParams::new(names).context("a --name is neither a DNS name nor an address")?;
    params.distinguished_name = common_name("quorate demo provider");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().context("cannot make the server's key")?;
    let cert = params.signed_by(&key, &ca.issuer).context("cannot sign the server's certificate")?;

    let mut provider = aws_lc_rs::default_provider();
    if options.only_aes {
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    }
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("the suites do not fit TLS 1.3")?
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .context("the certificate does not fit its key")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Session tickets stay on, as at real providers: clients must cope with records after the handshake.
    Ok(config)
}

/// Writes a file so that a reader sees all of it or none.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&part, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn ca_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("cannot describe the CA")?;
    params.distinguished_name = common_name("quorate demo provider CA (development only)");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}
