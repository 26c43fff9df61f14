//! The two rustls configurations and their verifiers.
//!
//! Each verifier makes the peer prove possession of the key it shows: a CertificateVerify signature over the
//! handshake (RFC 8446 §4.4.3), checked with AWS-LC directly, Ed25519 only. The client's verifier also compares
//! the key with the expected one, before anything is sent. The server's accepts every key.

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};

use crate::EXPORTER_LABEL;
use crate::client::Expect;
use crate::error::{KeyMismatch, PeerKeyError};
use crate::identity::{Identity, PublicKey};

/// The only application protocol.
const ALPN_HTTP2: &[u8] = b"h2";

pub(crate) fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(suite())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(AnyClientKey))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified())));
    // A resumed session enters without the verifier: a revoked peer would come back in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(Arc::new(config))
}

pub(crate) fn client_config(identity: &Identity, expect: Expect) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(suite())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerKey { expect }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified())));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(Arc::new(config))
}

/// One way to do each thing; both ends are ours, so there is nothing to negotiate down to.
fn suite() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        // AES where the processor has it; both ends may lack it.
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![provider::kx_group::X25519MLKEM768],
        ..provider::default_provider()
    })
}

/// The key the peer proved, once a handshake is complete.
pub(crate) fn peer_key(connection: &CommonState) -> Result<PublicKey, PeerKeyError> {
    match connection.peer_certificates() {
        Some([key]) => PublicKey::from_spki(key),
        Some([_, more @ ..]) => Err(PeerKeyError::Extra { got: more.len() }),
        Some([]) | None => Err(PeerKeyError::Missing),
    }
}

pub(crate) fn speaks_http2(connection: &CommonState) -> bool {
    connection.alpn_protocol() == Some(ALPN_HTTP2)
}

/// Derives the channel's exporter value; `export` is the connection's `export_keying_material`.
pub(crate) fn exporter(
    export: impl FnOnce([u8; 32], &[u8], Option<&[u8]>) -> Result<[u8; 32], rustls::Error>,
) -> Result<[u8; 32], rustls::Error> {
    export([0; 32], EXPORTER_LABEL.as_bytes(), None)
}

/// The typed cause that our verifier put into rustls's error.
pub(crate) fn verifier_cause<T: std::error::Error + Clone + 'static>(error: &rustls::Error) -> Option<T> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            cause.downcast_ref::<T>().cloned()
        }
        _ => None,
    }
}

fn refuse(cause: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(cause))).into()
}

/// Only TLS 1.3 is configured, so rustls never asks; if it did, this is the answer.
fn tls12_is_off() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".into())
}

/// RFC 7250 §4.1: the certificate entry is the SubjectPublicKeyInfo itself, and there is only one.
fn only_key(end_entity: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<PublicKey, PeerKeyError> {
    if !rest.is_empty() {
        return Err(PeerKeyError::Extra { got: rest.len() });
    }
    PublicKey::from_spki(end_entity)
}

fn check_possession(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let key = PublicKey::from_spki(key).map_err(refuse)?;
    UnparsedPublicKey::new(&ED25519, key.as_bytes())
        .verify(message, signed.signature())
        .map(|()| HandshakeSignatureValid::assertion())
        .map_err(|_| CertificateError::BadSignature.into())
}

/// The client's check of the server.
#[derive(Debug)]
struct ServerKey {
    expect: Expect,
}

impl ServerCertVerifier for ServerKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = only_key(end_entity, intermediates).map_err(refuse)?;
        match self.expect.pinned() {
            Some(expected) if expected != got => Err(refuse(KeyMismatch { expected, got })),
            Some(_) | None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_possession(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's check of a client: that it holds some Ed25519 key. Whose it is, each request asks anew.
#[derive(Debug)]
struct AnyClientKey;

impl ClientCertVerifier for AnyClientKey {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        only_key(end_entity, intermediates).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_possession(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::client::ClientSessionMemoryCache;
    use rustls::sign::{CertifiedKey, Signer, SigningKey};
    use rustls::{AlertDescription, ClientConnection, HandshakeKind, ServerConnection, SignatureAlgorithm};

    use super::*;

    type Ends = (ClientConnection, ServerConnection);

    fn name() -> ServerName<'static> {
        ServerName::try_from("quorate.invalid").unwrap()
    }

    /// Carries bytes between the two ends until both are done, or one objects.
    fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Ends, rustls::Error> {
        let mut client = ClientConnection::new(client, name())?;
        let mut server = ServerConnection::new(server)?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }

    fn two() -> (Identity, Identity) {
        (Identity::generate().unwrap(), Identity::generate().unwrap())
    }

    #[test]
    fn both_ends_prove_their_keys_and_share_an_exporter() {
        let (a, b) = two();
        let (client, server) =
            handshake(client_config(&a, Expect::Key(b.public())).unwrap(), server_config(&b).unwrap())
                .unwrap();
        assert_eq!(peer_key(&client), Ok(b.public()));
        assert_eq!(peer_key(&server), Ok(a.public()));
        let at_client = exporter(|o, l, c| client.export_keying_material(o, l, c)).unwrap();
        let at_server = exporter(|o, l, c| server.export_keying_material(o, l, c)).unwrap();
        assert_eq!(at_client, at_server);
        assert_ne!(at_client, [0; 32]);
        assert_eq!(
            client.negotiated_key_exchange_group().unwrap().name(),
            rustls::NamedGroup::X25519MLKEM768
        );
        assert!(speaks_http2(&client) && speaks_http2(&server));
        // another connection has another value
        let (other, _) =
            handshake(client_config(&a, Expect::Key(b.public())).unwrap(), server_config(&b).unwrap())
                .unwrap();
        assert_ne!(at_client, exporter(|o, l, c| other.export_keying_material(o, l, c)).unwrap());
    }

    #[test]
    fn the_wrong_key_is_refused_by_name() {
        let (a, b) = two();
        let expected = Identity::generate().unwrap().public();
        let error = handshake(client_config(&a, Expect::Key(expected)).unwrap(), server_config(&b).unwrap())
            .err()
            .unwrap();
        assert_eq!(verifier_cause::<KeyMismatch>(&error), Some(KeyMismatch { expected, got: b.public() }));
    }

    /// Shows one key and signs with another.
    #[derive(Debug)]
    struct Thief(Arc<dyn SigningKey>);

    impl SigningKey for Thief {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            self.0.choose_scheme(offered)
        }
        fn algorithm(&self) -> SignatureAlgorithm {
            SignatureAlgorithm::ED25519
        }
    }

    fn stolen(victim: &Identity, thief: &Identity) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(
            victim.certified().cert.clone(),
            Arc::new(Thief(thief.certified().key.clone())),
        ))
    }

    #[test]
    fn a_server_without_the_private_key_is_refused() {
        let (a, b) = two();
        let thief = Identity::generate().unwrap();
        let mut server = (*server_config(&b).unwrap()).clone();
        server.cert_resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(stolen(&b, &thief)));
        let error =
            handshake(client_config(&a, Expect::Key(b.public())).unwrap(), Arc::new(server)).err().unwrap();
        assert_eq!(error, CertificateError::BadSignature.into());
    }

    #[test]
    fn a_client_without_the_private_key_is_refused() {
        let (a, b) = two();
        let thief = Identity::generate().unwrap();
        let mut client = (*client_config(&a, Expect::Key(b.public())).unwrap()).clone();
        client.client_auth_cert_resolver =
            Arc::new(AlwaysResolvesClientRawPublicKeys::new(stolen(&a, &thief)));
        let error = handshake(Arc::new(client), server_config(&b).unwrap()).err().unwrap();
        assert_eq!(error, CertificateError::BadSignature.into());
    }

    #[test]
    fn a_client_without_a_key_is_refused() {
        let (_, b) = two();
        let mut client = ClientConfig::builder_with_provider(suite())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerKey { expect: Expect::Key(b.public()) }))
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        let error = handshake(Arc::new(client), server_config(&b).unwrap()).err().unwrap();
        // rustls finds that this client cannot show raw keys, or that it showed none
        assert!(
            matches!(
                error,
                rustls::Error::NoCertificatesPresented
                    | rustls::Error::PeerIncompatible(_)
                    | rustls::Error::AlertReceived(AlertDescription::CertificateRequired)
            ),
            "{error:?}"
        );
    }

    /// Counts how often the server looks at a client's key.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl ClientCertVerifier for Counting {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
        fn verify_client_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            now: UnixTime,
        ) -> Result<ClientCertVerified, rustls::Error> {
            self.0.fetch_add(1, Ordering::SeqCst);
            AnyClientKey.verify_client_cert(end_entity, intermediates, now)
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            AnyClientKey.verify_tls12_signature(message, cert, dss)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            AnyClientKey.verify_tls13_signature(message, cert, dss)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            AnyClientKey.supported_verify_schemes()
        }
        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    }

    #[test]
    fn nothing_is_resumed_even_by_a_client_that_would_like_to() {
        let (a, b) = two();
        let seen = Arc::new(Counting::default());
        let ours = server_config(&b).unwrap();
        let mut server = ServerConfig::builder_with_provider(suite())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(seen.clone())
            .with_cert_resolver(ours.cert_resolver.clone());
        server.session_storage = ours.session_storage.clone();
        server.send_tls13_tickets = ours.send_tls13_tickets;
        server.ticketer = ours.ticketer.clone();
        server.max_early_data_size = ours.max_early_data_size;
        server.alpn_protocols = ours.alpn_protocols.clone();
        let server = Arc::new(server);

        let mut client = (*client_config(&a, Expect::Key(b.public())).unwrap()).clone();
        client.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(16)));
        client.enable_early_data = true;
        let client = Arc::new(client);
        for round in 1..=2 {
            let (at_client, at_server) = handshake(client.clone(), server.clone()).unwrap();
            assert_eq!(at_client.tls13_tickets_received(), 0);
            assert_eq!(at_client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(at_server.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(seen.0.load(Ordering::SeqCst), round);
        }
    }
}
