//! Real TLS endpoints (rustls) in memory, and the bytes of their handshakes.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use hmac::{Hmac, Mac};
use quorate_splitkey::client::{ClientConnection, KEY_LOG_CLIENT, KEY_LOG_SERVER};
use quorate_splitkey::head::{
    CredentialScheme, CredentialSlot, HeadTemplate, HeadTemplateSpec, Method, PathRule,
};
use quorate_splitkey::host::ServerHost;
use quorate_splitkey::record::{RecordReader, TrafficSecret};
use quorate_splitkey::watch::{HandshakeRefusal, HandshakeWatch};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{CipherSuite, KeyLog, SupportedCipherSuite};
use sha2::Sha256;

pub(crate) const HOST: &str = "provider.example";

#[derive(Debug, Default)]
pub(crate) struct Secrets(Mutex<HashMap<String, Vec<u8>>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().insert(label.to_owned(), secret.to_vec());
    }
}

impl Secrets {
    pub(crate) fn take(&self, label: &str) -> TrafficSecret {
        self.0.lock().unwrap()[label].as_slice().try_into().unwrap()
    }
}

/// How a test's endpoints are set up; the default is what production uses.
pub(crate) struct Setup {
    pub(crate) server_groups: Vec<&'static dyn SupportedKxGroup>,
    pub(crate) server_suites: Vec<CipherSuite>,
    pub(crate) server_alpn: Vec<&'static [u8]>,
    pub(crate) server_wants_certificate: bool,
    pub(crate) client_suites: Vec<CipherSuite>,
    pub(crate) client_alpn: Vec<&'static [u8]>,
    pub(crate) client_trusts: bool,
    pub(crate) name: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            server_groups: aws_lc_rs::default_provider().kx_groups,
            server_suites: vec![
                CipherSuite::TLS13_AES_256_GCM_SHA384,
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            server_alpn: vec![b"http/1.1"],
            server_wants_certificate: false,
            client_suites: vec![CipherSuite::TLS13_CHACHA20_POLY1305_SHA256],
            client_alpn: vec![b"http/1.1"],
            client_trusts: true,
            name: HOST,
        }
    }
}

pub(crate) struct Endpoints {
    pub(crate) client: rustls::ClientConnection,
    pub(crate) server: rustls::ServerConnection,
    pub(crate) secrets: Arc<Secrets>,
}

fn suites(wanted: &[CipherSuite]) -> Vec<SupportedCipherSuite> {
    aws_lc_rs::ALL_CIPHER_SUITES.iter().copied().filter(|suite| wanted.contains(&suite.suite())).collect()
}

fn alpn(names: &[&[u8]]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.to_vec()).collect()
}

impl Setup {
    pub(crate) fn build(&self) -> Endpoints {
        let own = rcgen::generate_simple_self_signed([HOST.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(if self.client_trusts { &own } else { &other }.cert.der().clone()).unwrap();
        let roots = Arc::new(roots);

        let provider = CryptoProvider {
            kx_groups: self.server_groups.clone(),
            cipher_suites: suites(&self.server_suites),
            ..aws_lc_rs::default_provider()
        };
        let provider = Arc::new(provider);
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = if self.server_wants_certificate {
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
                    .allow_unauthenticated()
                    .build()
                    .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        config.alpn_protocols = alpn(&self.server_alpn);
        let server = rustls::ServerConnection::new(Arc::new(config)).unwrap();

        let provider =
            CryptoProvider { cipher_suites: suites(&self.client_suites), ..aws_lc_rs::default_provider() };
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn(&self.client_alpn);
        config.resumption = rustls::client::Resumption::disabled();
        let secrets = Arc::new(Secrets::default());
        config.key_log = secrets.clone();
        let name = ServerName::try_from(self.name).unwrap();
        let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        Endpoints { client, server, secrets }
    }
}

/// What crossed the relay, in each direction, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    Client(Vec<u8>),
    Provider(Vec<u8>),
}

/// A connection whose handshake crossed a [`HandshakeWatch`].
pub(crate) struct Established {
    pub(crate) watch: HandshakeWatch,
    pub(crate) connection: ClientConnection,
    /// The library's own end, which a real client drops: to compare its records with ours.
    pub(crate) library: rustls::ClientConnection,
    pub(crate) server: rustls::ServerConnection,
    /// Bytes of the provider after the client's library was done: the opener's.
    pub(crate) for_opener: Vec<u8>,
    pub(crate) legs: Vec<Leg>,
}

pub(crate) fn drain(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

pub(crate) fn client_writes(client: &mut rustls::ClientConnection) -> Vec<u8> {
    drain(|out| {
        while client.wants_write() {
            client.write_tls(out).unwrap();
        }
    })
}

pub(crate) fn server_writes(server: &mut rustls::ServerConnection) -> Vec<u8> {
    drain(|out| {
        while server.wants_write() {
            server.write_tls(out).unwrap();
        }
    })
}

/// Gives the server these bytes; what it read as application data.
pub(crate) fn server_reads(server: &mut rustls::ServerConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    let mut chunk = [0; 4096];
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        if server.process_new_packets().is_err() {
            break;
        }
        while let Ok(read @ 1..) = server.reader().read(&mut chunk) {
            plaintext.extend_from_slice(&chunk[..read]);
        }
    }
    plaintext
}

/// Runs a handshake through a watch for `host`, handing over as the client module prescribes.
pub(crate) fn establish(endpoints: Endpoints, host: &str) -> Result<Established, HandshakeRefusal> {
    let Endpoints { mut client, mut server, secrets } = endpoints;
    let mut watch = HandshakeWatch::new(host.parse::<ServerHost>().unwrap());
    let mut reader = RecordReader::new();
    let mut for_opener = Vec::new();
    let mut legs = Vec::new();
    for _ in 0..8 {
        let from_client = client_writes(&mut client);
        let mut input = from_client.as_slice();
        let mut forward = Vec::new();
        watch.client_bytes(&mut input, &mut forward)?;
        assert!(input.is_empty(), "the library writes nothing after Finished");
        assert_eq!(forward, from_client, "what is allowed passes unaltered");
        if !from_client.is_empty() {
            legs.push(Leg::Client(from_client));
        }
        server_reads(&mut server, &forward);

        let from_provider = server_writes(&mut server);
        let mut forward = Vec::new();
        watch.provider_bytes(&from_provider, &mut forward)?;
        assert_eq!(forward, from_provider, "what is allowed passes unaltered");
        if !from_provider.is_empty() {
            legs.push(Leg::Provider(from_provider));
        }
        let mut input = forward.as_slice();
        while client.is_handshaking() {
            let Some(record) = reader.read(&mut input).unwrap() else { break };
            let mut bytes = Vec::new();
            record.write_to(&mut bytes);
            let mut bytes = bytes.as_slice();
            client.read_tls(&mut bytes).unwrap();
            if client.process_new_packets().is_err() {
                break;
            }
        }
        for_opener.extend_from_slice(input);
        if watch.is_done() {
            break;
        }
    }
    assert!(watch.is_done() && !client.is_handshaking() && !server.is_handshaking());
    let connection = ClientConnection::new(secrets.take(KEY_LOG_CLIENT), secrets.take(KEY_LOG_SERVER));
    Ok(Established { watch, connection, library: client, server, for_opener, legs })
}

pub(crate) fn template() -> HeadTemplate {
    HeadTemplateSpec {
        host: HOST.into(),
        port: 443,
        base_path: String::new(),
        paths: vec![PathRule { method: Method::Post, path: "/v1/chat/completions".into(), prefix: false }],
        headers: vec!["content-type".into()],
        credential: None,
    }
    .try_into()
    .unwrap()
}

pub(crate) const PREFIX: &str = "sk-ant-api03-";

/// The same route with a credential.
pub(crate) fn keyed_template(scheme: CredentialScheme, secret_len: usize) -> HeadTemplate {
    let secret_len = u16::try_from(secret_len).unwrap();
    let slot = CredentialSlot { scheme, public_prefix: PREFIX.into(), secret_len };
    template().with_credential(slot).unwrap()
}

/// What a hostile client computes for itself: any bytes under any sequence number of a secret, padding included.
pub(crate) struct RawKeys {
    cipher: ChaCha20Poly1305,
    iv: Vec<u8>,
}

impl RawKeys {
    pub(crate) fn new(secret: &TrafficSecret) -> Self {
        let expand = |label: &str, length: u8| {
            let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.expose_bytes()).unwrap();
            mac.update(&[0, length, 6 + label.len() as u8]);
            mac.update(format!("tls13 {label}").as_bytes());
            mac.update(&[0, 1]);
            mac.finalize().into_bytes()[..usize::from(length)].to_vec()
        };
        Self { cipher: ChaCha20Poly1305::new_from_slice(&expand("key", 32)).unwrap(), iv: expand("iv", 12) }
    }

    fn nonce(&self, sequence: u8) -> Vec<u8> {
        let mut nonce = self.iv.clone();
        nonce[11] ^= sequence;
        nonce
    }

    /// The record around these inner bytes.
    pub(crate) fn seal(&self, sequence: u8, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, high, low];
        let payload = Payload { msg: inner, aad: &header };
        let nonce = self.nonce(sequence);
        [&header[..], &self.cipher.encrypt(nonce.as_slice().into(), payload).unwrap()].concat()
    }

    /// Encrypts or decrypts, without a tag.
    pub(crate) fn xor(&self, sequence: u8, bytes: &[u8]) -> Vec<u8> {
        let keystream = self.seal(sequence, &vec![0; bytes.len()]);
        bytes.iter().zip(&keystream[5..]).map(|(byte, key)| byte ^ key).collect()
    }
}
