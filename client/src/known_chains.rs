//! Remembers which certificate chains of a provider were verified a moment ago.
//!
//! Every request has a connection of its own, so the same chain comes hundreds of times a second, and verifying it anew each time
//! is one signature check for each certificate in it. What is remembered is only that **these bytes, for this name**, under this
//! route's roots, were good less than [`GOOD_FOR`] ago; that the server holds the certificate's key is proven on every connection.
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A certificate that expires meanwhile is believed for so long; clocks differ by more.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// A provider's machines may show different certificates.
const CHAINS_MAX: usize = 8;

/// Verifies as `inner` does, and not again what it verified.
#[derive(Debug)]
pub(crate) struct KnownChains<V> {
    inner: Arc<V>,
    known: Mutex<VecDeque<Known>>,
}

#[derive(Debug)]
struct Known {
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
    since: UnixTime,
}

impl Known {
    fn is(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], name: &ServerName<'_>) -> bool {
        self.name == *name
            && self.chain.len() == others.len() + 1
            && self.chain.iter().zip(std::iter::once(leaf).chain(others)).all(|(a, b)| a == b)
    }

    /// A clock that was put back makes nothing good for longer.
    fn is_good(&self, now: UnixTime) -> bool {
        now.as_secs().checked_sub(self.since.as_secs()).is_some_and(|age| age < GOOD_FOR.as_secs())
    }
}

impl<V> KnownChains<V> {
    pub(crate) fn new(inner: Arc<V>) -> Self {
        Self { inner, known: Mutex::default() }
    }
}

impl<V: ServerCertVerifier> ServerCertVerifier for KnownChains<V> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().iter().any(|k| k.is_good(now) && k.is(leaf, others, name)) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.inner.verify_server_cert(leaf, others, name, ocsp, now)?;
        let chain = std::iter::once(leaf).chain(others).map(|c| c.clone().into_owned()).collect();
        let mut known = lock();
        known.retain(|k| k.is_good(now) && !k.is(leaf, others, name));
        known.truncate(CHAINS_MAX - 1);
        known.push_front(Known { chain, name: name.to_owned(), since: now });
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::SignatureScheme;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Takes what begins with 1, and counts.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl ServerCertVerifier for Counting {
        fn verify_server_cert(
            &self,
            leaf: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match leaf.first() {
                Some(1) => Ok(ServerCertVerified::assertion()),
                _ => Err(rustls::Error::General("not good".into())),
            }
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("not asked".into()))
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("no signature".into()))
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![]
        }
    }

    #[test]
    fn only_the_same_bytes_for_the_same_name_a_moment_later_are_known() {
        let inner = Arc::new(Counting::default());
        let chains = KnownChains::new(inner.clone());
        let ask = |leaf: u8, others: &[u8], name: &str, now: u64| {
            let [leaf, others] = [&[leaf][..], others]
                .map(|d| d.iter().map(|b| CertificateDer::from(vec![*b])).collect::<Vec<_>>());
            let name = ServerName::try_from(name).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let good = chains.verify_server_cert(&leaf[0], &others, &name, &[], now).is_ok();
            (good, inner.0.swap(0, Ordering::Relaxed))
        };
        assert_eq!(ask(1, &[7], "a.test", 1000), (true, 1));
        assert_eq!(ask(1, &[7], "a.test", 1059), (true, 0), "known");
        // One thing differs at a time.
        for (leaf, others, name, now) in [
            (1, &[7_u8][..], "b.test", 1059),
            (1, &[8], "a.test", 1059),
            (1, &[], "a.test", 1059),
            (1, &[7, 7], "a.test", 1059),
        ] {
            assert_eq!(ask(leaf, others, name, now), (true, 1));
        }
        assert_eq!(ask(1, &[7], "a.test", 1060), (true, 1), "too long ago");
        assert_eq!(ask(1, &[7], "a.test", 999), (true, 1), "the clock was put back");
        // What is refused is asked again each time.
        for _ in 0..2 {
            assert_eq!(ask(2, &[7], "a.test", 1000), (false, 1));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let chains = KnownChains::new(Arc::new(Counting::default()));
        let (leaf, now) = (CertificateDer::from(vec![1]), UnixTime::since_unix_epoch(Duration::from_secs(9)));
        for n in 0..40_u8 {
            let others = [CertificateDer::from(vec![n])];
            let name = ServerName::try_from("a.test").unwrap();
            chains.verify_server_cert(&leaf, &others, &name, &[], now).unwrap();
        }
        assert_eq!(chains.known.lock().unwrap().len(), CHAINS_MAX);
    }
}
