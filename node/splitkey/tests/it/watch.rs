//! The handshake watch: real hellos of rustls, each with exactly one thing changed.

use std::io::Write;

use proptest::prelude::*;
use quorate_splitkey::host::ServerHost;
use quorate_splitkey::record::{ContentType, Event, RecordError, RecordSealer, split_records};
use quorate_splitkey::watch::{HandshakeRefusal as R, HandshakeWatch, HelloField, Party};
use rustls::CipherSuite;

use crate::support::{HOST, Leg, Setup, client_writes, establish, server_reads, server_writes};

/// A hello taken apart, to be changed and put together again.
#[derive(Clone, Debug)]
struct Hello {
    record_type: u8,
    record_version: [u8; 2],
    message: u8,
    version: [u8; 2],
    random: Vec<u8>,
    session_id: Vec<u8>,
    /// ClientHello: the list with its length; ServerHello: the suite.
    suites: Vec<u8>,
    /// ClientHello: the list with its length; ServerHello: the method.
    compression: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn len16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}

impl Hello {
    /// Takes the first record apart; the rest of `bytes` is ignored.
    fn parse(bytes: &[u8]) -> Self {
        let end = 5 + u16_at(bytes, 3);
        let session_end = 44 + usize::from(bytes[43]);
        let (suites_end, compression_end) = if bytes[5] == 1 {
            let suites_end = session_end + 2 + u16_at(bytes, session_end);
            (suites_end, suites_end + 1 + usize::from(bytes[suites_end]))
        } else {
            (session_end + 2, session_end + 3)
        };
        let mut extensions = Vec::new();
        let mut at = compression_end + 2;
        while at < end {
            let length = u16_at(bytes, at + 2);
            extensions.push((u16_at(bytes, at) as u16, bytes[at + 4..at + 4 + length].to_vec()));
            at += 4 + length;
        }
        let hello = Self {
            record_type: bytes[0],
            record_version: [bytes[1], bytes[2]],
            message: bytes[5],
            version: [bytes[9], bytes[10]],
            random: bytes[11..43].to_vec(),
            session_id: bytes[44..session_end].to_vec(),
            suites: bytes[session_end..suites_end].to_vec(),
            compression: bytes[suites_end..compression_end].to_vec(),
            extensions,
        };
        assert_eq!(hello.record(), &bytes[..end], "taking apart and putting together changes nothing");
        hello
    }

    fn body(&self) -> Vec<u8> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(number, data)| [&number.to_be_bytes()[..], &len16(data.len()), data].concat())
            .collect();
        let session_len = [u8::try_from(self.session_id.len()).unwrap()];
        [
            &self.version[..],
            &self.random,
            &session_len,
            &self.session_id,
            &self.suites,
            &self.compression,
            &len16(extensions.len()),
            &extensions,
        ]
        .concat()
    }

    fn record_of(&self, body: &[u8]) -> Vec<u8> {
        self.wrap(&[&[self.message, 0][..], &len16(body.len()), body].concat())
    }

    fn wrap(&self, fragment: &[u8]) -> Vec<u8> {
        [&[self.record_type], &self.record_version[..], &len16(fragment.len()), fragment].concat()
    }

    fn record(&self) -> Vec<u8> {
        self.record_of(&self.body())
    }

    fn extension(&mut self, number: u16) -> &mut Vec<u8> {
        &mut self.extensions.iter_mut().find(|(own, _)| *own == number).unwrap().1
    }

    fn without(&mut self, number: u16) {
        self.extensions.retain(|(own, _)| *own != number);
    }

    fn with(&mut self, number: u16, data: &[u8]) {
        self.extensions.push((number, data.to_vec()));
    }
}

fn legs(setup: Setup) -> Vec<Leg> {
    establish(setup.build(), HOST).unwrap().legs
}

fn retry() -> Setup {
    Setup { server_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1], ..Setup::default() }
}

fn bytes(leg: &Leg) -> &[u8] {
    match leg {
        Leg::Client(bytes) | Leg::Provider(bytes) => bytes,
    }
}

fn feed(watch: &mut HandshakeWatch, leg: &Leg) -> Result<(), R> {
    let mut forward = Vec::new();
    match leg {
        Leg::Client(bytes) => watch.client_bytes(&mut bytes.as_slice(), &mut forward),
        Leg::Provider(bytes) => watch.provider_bytes(bytes, &mut forward),
    }
}

fn feed_all(legs: &[Leg]) -> Result<(), R> {
    let mut watch = HandshakeWatch::new(HOST.parse().unwrap());
    let outcome = legs.iter().try_for_each(|leg| feed(&mut watch, leg));
    if let Err(refusal) = outcome {
        assert!(!watch.is_done());
        assert_eq!(feed(&mut watch, &legs[0]), Err(refusal), "a refusal is final");
    }
    outcome
}

fn feed_client(bytes: Vec<u8>) -> Result<(), R> {
    feed_all(&[Leg::Client(bytes)])
}

fn client_hello() -> Hello {
    Hello::parse(bytes(&legs(Setup::default())[0]))
}

/// The real first leg, and a real answer to it whose first record is changed.
fn answered(change: impl FnOnce(&mut Hello)) -> Result<(), R> {
    let legs = legs(Setup::default());
    let mut hello = Hello::parse(bytes(&legs[1]));
    change(&mut hello);
    feed_all(&[legs[0].clone(), Leg::Provider(hello.record())])
}

#[test]
fn what_rustls_really_sends() {
    let hello = client_hello();
    let mut numbers: Vec<u16> = hello.extensions.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 5, 10, 11, 13, 16, 23, 43, 45, 51]);
    let legs = legs(Setup::default());
    let lens: Vec<usize> = split_records(bytes(&legs[2]))
        .unwrap()
        .unwrap()
        .iter()
        .map(|record| record.fragment().len())
        .collect();
    assert_eq!(lens, [1, 53], "ChangeCipherSpec, then Finished");
}

#[test]
fn each_client_hello_mutation_has_its_own_refusal() {
    type Change = Box<dyn Fn(&mut Hello)>;
    let malformed = |at| R::ClientHelloMalformed { at };
    let cases: Vec<(Change, R)> = vec![
        (Box::new(|h| h.record_type = 23), R::ClientRecordType { got: ContentType::ApplicationData }),
        (Box::new(|h| h.record_type = 21), R::ClientGaveUp),
        (Box::new(|h| h.record_type = 20), R::CcsTooEarly),
        (Box::new(|h| h.record_type = 99), R::ClientRecord(RecordError::UnknownType { code: 99 })),
        (Box::new(|h| h.message = 2), R::NotClientHello { got: 2 }),
        (Box::new(|h| h.version = [3, 2]), malformed(HelloField::LegacyVersion)),
        (Box::new(|h| h.session_id = vec![0; 33]), malformed(HelloField::SessionId)),
        (Box::new(|h| h.suites = vec![0, 4, 0x13, 3, 0x13, 1]), R::ClientSuites),
        (Box::new(|h| h.suites = vec![0, 2, 0x13, 1]), R::ClientSuites),
        (Box::new(|h| h.suites = vec![0, 4, 0x13, 3, 0x13, 3]), R::ClientSuites),
        (Box::new(|h| h.suites = vec![0, 0]), R::ClientSuites),
        (Box::new(|h| h.suites = vec![0xff, 0xff]), malformed(HelloField::CipherSuites)),
        (Box::new(|h| h.compression = vec![2, 0, 1]), R::ClientCompression),
        (Box::new(|h| h.compression = vec![0]), R::ClientCompression),
        (Box::new(|h| h.without(43)), R::ClientLacksTls13),
        (Box::new(|h| *h.extension(43) = vec![2, 3, 3]), R::ClientLacksTls13),
        (Box::new(|h| *h.extension(43) = vec![4, 3, 4, 3, 3]), R::ClientVersions),
        (Box::new(|h| *h.extension(43) = vec![3, 3, 4, 3]), malformed(HelloField::SupportedVersions)),
        (Box::new(|h| *h.extension(43) = vec![2, 3, 4, 0]), malformed(HelloField::SupportedVersions)),
        (Box::new(|h| h.without(0)), R::SniMissing),
        (Box::new(|h| h.extension(0)[5] ^= 1), R::SniMismatch),
        (Box::new(|h| h.extension(0)[5] ^= 0x20), R::SniMismatch),
        (Box::new(|h| h.extension(0)[2] = 1), malformed(HelloField::ServerName)),
        (Box::new(|h| h.extension(0).push(0)), malformed(HelloField::ServerName)),
        (Box::new(|h| h.without(16)), R::AlpnMissing),
        (Box::new(|h| *h.extension(16) = b"\x00\x03\x02h2".to_vec()), R::AlpnNotHttp11),
        (Box::new(|h| *h.extension(16) = b"\x00\x0c\x08http/1.1\x02h2".to_vec()), R::AlpnNotHttp11),
        (Box::new(|h| h.with(42, &[])), R::EarlyDataOffered),
        (Box::new(|h| h.with(41, &[0; 40])), R::PskOffered),
        (Box::new(|h| h.with(0xfe0d, &[0; 40])), R::EchOffered),
        (Box::new(|h| h.with(44, &[0, 1, 7])), R::CookieUnasked),
        (Box::new(|h| h.with(49, &[])), R::ClientExtension { extension: 49 }),
        (Box::new(|h| h.with(28, &[1, 0])), R::ClientExtension { extension: 28 }),
        (Box::new(|h| h.with(21, &[0; 9])), R::ClientExtension { extension: 21 }),
        (Box::new(|h| h.with(0x0a0a, &[])), R::ClientExtension { extension: 0x0a0a }),
        (Box::new(|h| h.with(16, b"\x00\x09\x08http/1.1")), R::ClientExtensionRepeated { extension: 16 }),
    ];
    let hello = client_hello();
    assert_eq!(feed_client(hello.record()), Ok(()));
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        let mut changed = hello.clone();
        change(&mut changed);
        assert_eq!(feed_client(changed.record()), Err(expected), "case {number}");
        assert_eq!(expected.fault(), Party::Client);
    }
}

#[test]
fn client_hello_fills_its_record() {
    let hello = client_hello();
    let body = hello.body();
    let whole = hello.record();
    let fragment = &whole[5..];
    assert_eq!(feed_client(hello.wrap(&fragment[..fragment.len() - 1])), Err(R::ClientHelloFragmented));
    assert_eq!(feed_client(hello.wrap(&fragment[..3])), Err(R::ClientHelloFragmented));
    assert_eq!(feed_client(hello.wrap(&[fragment, &[1, 0, 0, 0]].concat())), Err(R::ClientHelloCoalesced));
    // the same cuts, with a length that fits them: the grammar notices
    let malformed = |at| Err(R::ClientHelloMalformed { at });
    let cut = |at: usize| feed_client(hello.record_of(&body[..at]));
    assert_eq!(cut(1), malformed(HelloField::LegacyVersion));
    assert_eq!(cut(33), malformed(HelloField::Random));
    assert_eq!(cut(40), malformed(HelloField::SessionId));
    assert_eq!(cut(70), malformed(HelloField::CipherSuites));
    assert_eq!(cut(71), malformed(HelloField::Compression));
    assert_eq!(cut(body.len() - 1), malformed(HelloField::Extensions));
    assert_eq!(feed_client(hello.record_of(&[&body[..], &[0]].concat())), malformed(HelloField::Extensions));
}

#[test]
fn addresses_have_no_server_name() {
    let setup = || Setup { name: "127.0.0.1", ..Setup::default() };
    assert!(establish(setup().build(), "127.0.0.1").is_ok());
    assert_eq!(establish(Setup::default().build(), "127.0.0.1").err(), Some(R::SniUnexpected));
    assert_eq!(establish(setup().build(), HOST).err(), Some(R::SniMissing));
}

#[test]
fn clients_set_up_otherwise_are_refused() {
    let refusal = |setup: Setup| establish(setup.build(), HOST).err();
    let both = vec![CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256];
    assert_eq!(refusal(Setup { client_suites: both, ..Setup::default() }), Some(R::ClientSuites));
    assert_eq!(refusal(Setup { client_alpn: vec![], ..Setup::default() }), Some(R::AlpnMissing));
    assert_eq!(refusal(Setup { client_alpn: vec![b"h2"], ..Setup::default() }), Some(R::AlpnNotHttp11));
    assert_eq!(establish(Setup::default().build(), "other.example").err(), Some(R::SniMismatch));
}

#[test]
fn what_a_provider_lacks_is_named() {
    let refusal = |setup: Setup| {
        let refusal = establish(setup.build(), HOST).err().expect("refused");
        assert_eq!(refusal.fault(), Party::Provider, "{refusal}");
        refusal
    };
    let aes = vec![CipherSuite::TLS13_AES_128_GCM_SHA256];
    assert_eq!(refusal(Setup { server_suites: aes, ..Setup::default() }), R::ProviderLacksSuite);
    assert_eq!(refusal(Setup { server_wants_certificate: true, ..Setup::default() }), R::ClientCertificate);
}

#[test]
fn alerts_in_place_of_server_hello_are_told_apart() {
    let first = legs(Setup::default())[0].clone();
    let alert = |code| feed_all(&[first.clone(), Leg::Provider(vec![21, 3, 3, 0, 2, 2, code])]);
    for (code, expected) in [
        (40, R::ProviderLacksSuite),
        (71, R::ProviderLacksSuite),
        (70, R::ProviderLacksTls13),
        (120, R::ProviderLacksHttp11),
        (80, R::ProviderAlert { code: 80 }),
    ] {
        assert_eq!(alert(code), Err(expected));
    }
    let long = Leg::Provider(vec![21, 3, 3, 0, 3, 2, 40, 0]);
    assert_eq!(feed_all(&[first, long]), Err(R::ProviderRecordType { got: ContentType::Alert }));
}

#[test]
fn a_client_that_distrusts_the_provider_gives_up() {
    let endpoints = Setup { client_trusts: false, ..Setup::default() }.build();
    assert_eq!(establish(endpoints, HOST).err(), Some(R::ClientGaveUp));
}

#[test]
fn each_server_hello_mutation_has_its_own_refusal() {
    assert_eq!(answered(|_| {}), Ok(()));
    let malformed = |at| Err(R::ServerHelloMalformed { at });
    assert_eq!(
        answered(|h| h.record_type = b'H'),
        Err(R::ProviderNotTls(RecordError::UnknownType { code: b'H' }))
    );
    let application_data = ContentType::ApplicationData;
    assert_eq!(answered(|h| h.record_type = 23), Err(R::ProviderRecordType { got: application_data }));
    assert_eq!(answered(|h| h.record_type = 20), Err(R::ProviderCcs));
    assert_eq!(answered(|h| h.record_version = [3, 1]), Err(R::ProviderRecordVersion { got: 0x0301 }));
    assert_eq!(answered(|h| h.message = 8), Err(R::NotServerHello { got: 8 }));
    assert_eq!(answered(|h| h.version = [3, 1]), Err(R::ProviderVersion { got: 0x0301 }));
    assert_eq!(answered(|h| h.version = [3, 4]), malformed(HelloField::LegacyVersion));
    assert_eq!(answered(|h| h.without(43)), Err(R::ProviderVersion { got: 0x0303 }));
    assert_eq!(answered(|h| *h.extension(43) = vec![3, 3]), Err(R::ProviderVersion { got: 0x0303 }));
    assert_eq!(answered(|h| *h.extension(43) = vec![3]), malformed(HelloField::SupportedVersions));
    assert_eq!(answered(|h| h.suites = vec![0x13, 1]), Err(R::ProviderSuite { got: 0x1301 }));
    assert_eq!(answered(|h| h.session_id[0] ^= 1), Err(R::SessionIdEcho));
    assert_eq!(answered(|h| h.session_id.clear()), Err(R::SessionIdEcho));
    assert_eq!(answered(|h| h.session_id = vec![0; 33]), malformed(HelloField::SessionId));
    assert_eq!(answered(|h| h.compression = vec![1]), Err(R::ProviderCompression));
    assert_eq!(answered(|h| h.with(41, &[0, 0])), Err(R::ProviderPsk));
    assert_eq!(answered(|h| h.with(16, &[])), Err(R::ProviderExtension { extension: 16 }));
    assert_eq!(answered(|h| h.with(44, &[0, 1, 7])), Err(R::ProviderExtension { extension: 44 }));
    assert_eq!(answered(|h| h.with(51, &[])), Err(R::ProviderExtensionRepeated { extension: 51 }));
}

#[test]
fn server_hello_fills_its_record() {
    let legs = legs(Setup::default());
    let hello = Hello::parse(bytes(&legs[1]));
    let body = hello.body();
    let whole = hello.record();
    let answer = |record: Vec<u8>| feed_all(&[legs[0].clone(), Leg::Provider(record)]);
    assert_eq!(answer(hello.wrap(&whole[5..whole.len() - 1])), Err(R::ServerHelloFragmented));
    assert_eq!(answer(hello.wrap(&[&whole[5..], &[8]].concat())), Err(R::ServerHelloCoalesced));
    let malformed = |at| Err(R::ServerHelloMalformed { at });
    let cut = |at: usize| answer(hello.record_of(&body[..at]));
    assert_eq!(cut(1), malformed(HelloField::LegacyVersion));
    assert_eq!(cut(33), malformed(HelloField::Random));
    assert_eq!(cut(40), malformed(HelloField::SessionId));
    assert_eq!(cut(68), malformed(HelloField::CipherSuites));
    assert_eq!(cut(69), malformed(HelloField::Compression));
    assert_eq!(cut(body.len() - 1), malformed(HelloField::Extensions));
    assert_eq!(cut(70), Err(R::ProviderVersion { got: 0x0303 }), "TLS 1.2 may have no extensions");
}

#[test]
fn everyone_waits_for_their_turn() {
    let legs = legs(Setup::default());
    let ccs = vec![20, 3, 3, 0, 1, 1];
    let more = |extra: &[u8]| Leg::Client([bytes(&legs[0]), extra].concat());
    // in the handshake's shadow
    assert_eq!(feed_all(&[more(bytes(&legs[0]))]), Err(R::ClientOutOfTurn));
    assert_eq!(feed_all(&[more(&ccs)]), Err(R::ClientOutOfTurn));
    assert_eq!(feed_all(&[more(&[23])]), Err(R::ClientOutOfTurn));
    assert_eq!(feed_all(&[more(&[21])]), Err(R::ClientGaveUp));
    assert_eq!(feed_client(ccs.clone()), Err(R::CcsTooEarly));
    assert_eq!(feed_all(&[legs[1].clone()]), Err(R::ProviderOutOfTurn));
    assert_eq!(feed_all(&[Leg::Provider(b"SSH-2.0-x".to_vec())]), Err(R::ProviderOutOfTurn));
    assert_eq!(feed_all(&[legs[0].clone(), Leg::Provider(ccs)]), Err(R::ProviderCcs));
}

#[test]
fn exactly_one_finished_and_at_most_one_ccs() {
    let legs = legs(Setup::default());
    let last = bytes(&legs[2]);
    let (ccs, finished) = last.split_at(6);
    assert_eq!(ccs, [20, 3, 3, 0, 1, 1]);
    let finish = |bytes: Vec<u8>| feed_all(&[legs[0].clone(), legs[1].clone(), Leg::Client(bytes)]);
    assert_eq!(finish(finished.to_vec()), Ok(()), "ChangeCipherSpec is optional");
    assert_eq!(finish([ccs, ccs, finished].concat()), Err(R::CcsRepeated));
    assert_eq!(finish(vec![20, 3, 3, 0, 1, 2]), Err(R::CcsMalformed));
    assert_eq!(finish(vec![20, 3, 3, 0, 2, 1, 1]), Err(R::CcsMalformed));
    assert_eq!(finish(vec![20, 3, 1, 0, 1, 1]), Err(R::CcsMalformed));
    let record = |kind: u8, length: u8| [vec![kind, 3, 3, 0, length], vec![0; usize::from(length)]].concat();
    for length in [17, 18, 20, 24, 26, 52, 54] {
        assert_eq!(finish(record(23, length)), Err(R::FinishedLength { got: usize::from(length) }));
    }
    assert_eq!(finish(record(23, 19)), Err(R::ClientGaveUp));
    assert_eq!(finish(record(23, 25)), Err(R::ClientCertificate));
    assert_eq!(finish(record(23, 61)), Err(R::ClientCertificate));
    assert_eq!(finish(record(22, 53)), Err(R::FinishedType { got: ContentType::Handshake }));
    assert_eq!(
        finish([&[23, 3, 1, 0, 53][..], &[0; 53]].concat()),
        Err(R::ClientRecordVersion { got: 0x0301 })
    );
}

#[test]
fn a_retry_is_checked_alike() {
    let legs = legs(retry());
    let [first, asked, second, answer, finished, ..] = &legs[..] else { panic!("legs of a retry") };
    let honest = [first, asked, second, answer, finished].map(Clone::clone);
    assert_eq!(feed_all(&honest), Ok(()));

    let (ccs, hello) = bytes(second).split_at(6);
    assert_eq!(ccs, [20, 3, 3, 0, 1, 1]);
    let again = |record: Vec<u8>| feed_all(&[first.clone(), asked.clone(), Leg::Client(record)]);
    let changed = |change: &dyn Fn(&mut Hello)| {
        let mut hello = Hello::parse(hello);
        change(&mut hello);
        again([ccs, &hello.record()].concat())
    };
    assert_eq!(changed(&|_| {}), Ok(()));
    assert_eq!(changed(&|h| h.with(44, &[0, 1, 7])), Ok(()), "a cookie may be new");
    assert_eq!(changed(&|h| h.random[0] ^= 1), Err(R::SecondHelloDiffers));
    assert_eq!(changed(&|h| h.session_id[0] ^= 1), Err(R::SecondHelloDiffers));
    assert_eq!(changed(&|h| h.without(5)), Err(R::SecondHelloDiffers));
    assert_eq!(changed(&|h| h.extension(13)[3] ^= 1), Err(R::SecondHelloDiffers));
    assert_eq!(changed(&|h| h.extension(0)[5] ^= 1), Err(R::SniMismatch));
    assert_eq!(changed(&|h| h.suites = vec![0, 2, 0x13, 1]), Err(R::ClientSuites));
    assert_eq!(changed(&|h| h.with(42, &[])), Err(R::EarlyDataOffered));
    assert_eq!(changed(&|h| h.record_version = [3, 1]), Err(R::ClientRecordVersion { got: 0x0301 }));
    assert_eq!(again([ccs, ccs, hello].concat()), Err(R::CcsRepeated));

    let with_answer =
        |answer: Leg, last: Leg| feed_all(&[first.clone(), asked.clone(), second.clone(), answer, last]);
    let repeated = Leg::Client([ccs, bytes(finished)].concat());
    assert_eq!(with_answer(answer.clone(), repeated), Err(R::CcsRepeated), "one for the whole connection");
    let retry_only = Hello::parse(bytes(asked)).record();
    assert_eq!(with_answer(Leg::Provider(retry_only.clone()), finished.clone()), Err(R::SecondRetry));

    let provider_twice = Leg::Provider([&retry_only[..], ccs, ccs].concat());
    assert_eq!(feed_all(&[first.clone(), provider_twice]), Err(R::ProviderOutOfTurn));
    let provider_bad_ccs = Leg::Provider([&retry_only[..], &[20, 3, 3, 0, 1, 2]].concat());
    assert_eq!(feed_all(&[first.clone(), provider_bad_ccs]), Err(R::ProviderCcs));
    let no_wait = Leg::Provider([&retry_only[..], bytes(answer)].concat());
    assert_eq!(feed_all(&[first.clone(), no_wait]), Err(R::ProviderOutOfTurn));
}

#[test]
fn after_server_hello_the_provider_passes_unparsed() {
    let legs = legs(Setup::default());
    let mut watch = HandshakeWatch::new(HOST.parse::<ServerHost>().unwrap());
    feed(&mut watch, &legs[0]).unwrap();
    feed(&mut watch, &legs[1]).unwrap();
    let mut forward = Vec::new();
    watch.provider_bytes(b"anything at all", &mut forward).unwrap();
    assert_eq!(forward, b"anything at all");
}

#[test]
fn the_head_is_left_to_the_caller() {
    let legs = legs(Setup::default());
    let mut watch = HandshakeWatch::new(HOST.parse().unwrap());
    feed(&mut watch, &legs[0]).unwrap();
    feed(&mut watch, &legs[1]).unwrap();
    let stream = [bytes(&legs[2]), b"head"].concat();
    let mut input = stream.as_slice();
    let mut forward = Vec::new();
    watch.client_bytes(&mut input, &mut forward).unwrap();
    assert!(watch.is_done());
    assert_eq!((input, forward.as_slice()), (&b"head"[..], bytes(&legs[2])));
    watch.client_bytes(&mut input, &mut forward).unwrap();
    assert_eq!(input, b"head", "nothing more is ever taken");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Agreement with rustls's record layer: its records are ours byte for byte, it reads what we seal, we read what
    /// it seals.
    #[test]
    fn our_records_are_rustls_records(
        up in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5000), 1..4),
        down in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40000), 1..4),
    ) {
        let mut established = establish(Setup::default().build(), HOST).unwrap();
        let mut sealer = RecordSealer::new(established.connection.client_secret());
        let mut stream = Vec::new();
        for plaintext in &up {
            sealer.seal_into(ContentType::ApplicationData, plaintext, &mut stream).unwrap();
        }
        let mut theirs = Vec::new();
        for plaintext in &up {
            established.library.writer().write_all(plaintext).unwrap();
            theirs.extend(client_writes(&mut established.library));
        }
        prop_assert!(theirs == stream);
        let got = server_reads(&mut established.server, &stream);
        prop_assert_eq!(got, up.concat());

        let template = crate::support::template();
        let head = quorate_splitkey::head::Head {
            method: quorate_splitkey::head::Method::Post,
            path: "/v1/chat/completions".into(),
            headers: vec![],
            content_length: 0,
        };
        let mut opener = established.connection.seal_request(&template, &head).unwrap().response;
        let mut stream = established.for_opener;
        for plaintext in &down {
            established.server.writer().write_all(plaintext).unwrap();
            stream.extend(server_writes(&mut established.server));
        }
        let mut got = Vec::new();
        let mut input = stream.as_slice();
        while let Some(event) = opener.read(&mut input).unwrap() {
            if let Event::AppData(bytes) = event {
                got.extend(bytes);
            }
        }
        prop_assert_eq!(got, down.concat());
    }
}

/// The client side alone: without a provider, a hello passes and nothing else happens.
#[test]
fn a_hello_passes_before_any_answer() {
    let mut client = Setup::default().build().client;
    assert_eq!(feed_client(client_writes(&mut client)), Ok(()));
}
