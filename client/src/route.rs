//! What a policy's route means for a connection: the head's template, the TLS configuration.
use crate::error::Error;
use crate::known_chains::KnownChains;
use quorate_core::policy::RouteDocument;
use quorate_splitkey::head::{CredentialScheme, CredentialSlot, HeadTemplate};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, KeyLog, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// The head template of a route, as every node derives it.
pub fn head_template(route: &RouteDocument) -> Result<HeadTemplate, Error> {
    let d = route;
    let bad = |reason: String| Error::BadRoute { route: route.name.clone(), reason };
    let template = HeadTemplate::for_route(&d.host, d.port, &d.base_path, &d.paths, &d.dialect, &d.headers)
        .map_err(|e| bad(crate::error::chain(&e)))?;
    let Some(credential) = &d.credential else { return Ok(template) };
    let scheme = CredentialScheme::from_name(&credential.scheme)
        .ok_or_else(|| bad(format!("no credential scheme {:?}", credential.scheme)))?;
    let slot = CredentialSlot {
        scheme,
        public_prefix: credential.public_prefix.clone(),
        secret_len: credential.secret_bytes,
    };
    template.with_credential(slot).map_err(|e| bad(crate::error::chain(&e)))
}

/// TLS to one route's provider. Each connection gets a key log of its own.
pub(crate) struct RouteTls {
    config: ClientConfig,
    name: ServerName<'static>,
    pub(crate) host: String,
}

impl RouteTls {
    pub(crate) fn new(route: &RouteDocument) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadRoute { route: route.name.clone(), reason };
        let name = ServerName::try_from(route.host.clone()).map_err(|e| bad(format!("host: {e}")))?;
        let roots = if route.ca_pem.is_empty() {
            system_roots().map_err(bad)?
        } else {
            pinned_roots(&route.ca_pem).map_err(bad)?
        };
        let default = rustls::crypto::aws_lc_rs::default_provider();
        let suites = default.cipher_suites.iter().copied();
        let provider = CryptoProvider {
            cipher_suites: suites
                .filter(|s| s.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)
                .collect(),
            ..default
        };
        let provider = Arc::new(provider);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| bad(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(KnownChains::new(verifier)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Self { config, name, host: route.host.clone() })
    }

    /// The settings of one connection, and who watches it.
    pub(crate) fn watched(&self) -> (Arc<ClientConfig>, ServerName<'static>, Arc<Watcher>) {
        let watcher = Arc::new(Watcher::default());
        let mut config = self.config.clone();
        config.key_log = watcher.clone();
        config.client_auth_cert_resolver = watcher.clone();
        (Arc::new(config), self.name.clone(), watcher)
    }

    pub(crate) fn connection(&self) -> Result<(rustls::ClientConnection, Arc<Watcher>), Error> {
        let (config, name, watcher) = self.watched();
        let connection = rustls::ClientConnection::new(config, name)
            .map_err(|e| Error::ProviderTls { host: self.host.clone(), reason: e.to_string() })?;
        Ok((connection, watcher))
    }
}

fn pinned_roots(pem: &str) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("ca_pem: {e}"))?;
        roots.add(certificate).map_err(|e| format!("ca_pem: {e}"))?;
    }
    if roots.is_empty() { Err("ca_pem holds no certificate".into()) } else { Ok(Arc::new(roots)) }
}

/// Read once in a process's life: the files hold hundreds of certificates.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("this system has no root certificates, and the route names no ca_pem".into());
    }
    Ok(roots.clone())
}

type Secret = Zeroizing<Vec<u8>>;

/// Takes the secrets of one connection, and notices when the provider asks for a certificate. `Debug` shows neither.
#[derive(Default)]
pub(crate) struct Watcher {
    client: Mutex<Option<Secret>>,
    server: Mutex<Option<Secret>>,
    asked: AtomicBool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    pub(crate) fn asked_for_certificate(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self) -> Option<(Secret, Secret)> {
        let take = |m: &Mutex<Option<_>>| m.lock().unwrap_or_else(PoisonError::into_inner).take();
        Some((take(&self.client)?, take(&self.server)?))
    }
}

impl KeyLog for Watcher {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let slot = match label {
            quorate_splitkey::client::KEY_LOG_CLIENT => &self.client,
            quorate_splitkey::client::KEY_LOG_SERVER => &self.server,
            _ => return,
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Zeroizing::new(secret.to_vec()));
    }
}

impl ResolvesClientCert for Watcher {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
