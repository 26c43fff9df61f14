//! The hole, end to end: a real TLS server reads the key that neither client, relay nor keyer has.

use proptest::prelude::*;
use quorate_splitkey::framing::{BodyMeter, HeadCollector, HeadRecords, HeadShape, ReleaseRefusal};
use quorate_splitkey::head::{CredentialScheme, CredentialSlot, Head, HeadTemplate, Header, Method};
use quorate_splitkey::hole::{AnswerMalformed, AnswerRefusal, FillRefusal, FilledHole, HoleAnswer};
use quorate_splitkey::keyer::{KeyerConnection, KeyerRefusal};
use quorate_splitkey::record::{Ending, RecordOpener, RecordSealer, TrafficSecret, split_records};
use quorate_splitkey::share::{Complement, Mask, Secret, SharePair};
use quorate_splitkey::watch::HandshakeWatch;
use zeroize::Zeroizing;

use crate::support::{
    Endpoints, Established, HOST, PREFIX, RawKeys, Setup, client_writes, establish, keyed_template,
    server_reads, server_writes, template,
};

const KEY: &str = "q7Zt-0w_XyRkP2mV9sLdJb4nHfUaTcGe";

fn post(content_length: u64) -> Head {
    Head {
        method: Method::Post,
        path: "/v1/chat/completions".into(),
        headers: vec![Header { name: "content-type".into(), value: "application/json".into() }],
        content_length,
    }
}

/// Shares of two keyers, from a fixed stream that stands for a random one.
fn shares(key: &str) -> Vec<SharePair> {
    let random = (0..2 * key.len()).map(|at| (at * 151 + at * at * 13 + 7) as u8).collect();
    let secret = Secret::new(Zeroizing::new(key.as_bytes().to_vec())).ok().unwrap();
    secret.split(2, Zeroizing::new(random)).ok().unwrap()
}

fn slot(template: &HeadTemplate) -> &CredentialSlot {
    template.credential().unwrap()
}

fn registered(secret: &TrafficSecret) -> KeyerConnection {
    let mut keyer = KeyerConnection::new();
    keyer.register(TrafficSecret::new(*secret.expose_bytes())).unwrap();
    keyer
}

/// A connection whose head was sealed and approved, up to the keyer's answer.
struct Approved {
    established_server: rustls::ServerConnection,
    for_opener: Vec<u8>,
    response: RecordOpener,
    head: HeadRecords,
    body: Vec<u8>,
    keyer: KeyerConnection,
}

fn approved(template: &HeadTemplate, body: &[u8]) -> Approved {
    let Established { connection, server, for_opener, .. } =
        establish(Setup::default().build(), HOST).unwrap();
    let mut keyer = registered(connection.client_secret());
    let mut request = connection.seal_request(template, &post(body.len() as u64)).unwrap();
    let mut sealed = Vec::new();
    request.body.seal_chunk(body, &mut sealed).unwrap();
    assert_eq!(request.head.shape(), HeadShape::AroundHole);
    let checked = keyer.check_head(template, &request.head).expect("approved");
    assert_eq!(checked.content_length(), body.len() as u64);
    Approved {
        established_server: server,
        for_opener,
        response: request.response,
        head: request.head,
        body: sealed,
        keyer,
    }
}

/// The keyer's answer as it crosses the wire.
fn over_the_wire(answer: &HoleAnswer) -> HoleAnswer {
    HoleAnswer::from_parts(answer.expose_pad(), answer.expose_one_time_key(), answer.content_length())
        .ok()
        .unwrap()
}

fn filled(keyer: KeyerConnection, template: &HeadTemplate, pair: &SharePair) -> FilledHole {
    let answer = keyer.answer(&pair.mask).ok().unwrap();
    over_the_wire(&answer).fill(slot(template), &pair.complement).ok().unwrap()
}

fn provider_reads(approved: &mut Approved, hole: FilledHole) -> Vec<u8> {
    let mut out = Vec::new();
    approved.head.release_into(Some(hole), &mut out).unwrap();
    out.extend_from_slice(&approved.body);
    server_reads(&mut approved.established_server, &out)
}

fn ending_at_client(approved: &mut Approved) -> Ending {
    let answer = [approved.for_opener.clone(), server_writes(&mut approved.established_server)].concat();
    let mut input = answer.as_slice();
    while approved.response.read(&mut input).unwrap().is_some() {}
    approved.response.ending()
}

fn canonical(scheme: CredentialScheme, key: &str, body: &[u8]) -> Vec<u8> {
    let line = match scheme {
        CredentialScheme::Bearer => "authorization: Bearer ",
        CredentialScheme::XApiKey => "x-api-key: ",
        CredentialScheme::ApiKey => "api-key: ",
        CredentialScheme::XGoogApiKey => "x-goog-api-key: ",
    };
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: provider.example\r\ncontent-type: application/json\r\n\
         {line}{PREFIX}{key}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn a_provider_reads_the_key_for_each_scheme_and_pair() {
    for scheme in CredentialScheme::ALL {
        assert_eq!(CredentialScheme::from_name(scheme.as_str()), Some(scheme));
        let template = keyed_template(scheme, KEY.len());
        for pair in shares(KEY) {
            let mut approved = approved(&template, b"{\"model\":\"x\"}");
            let keyer = std::mem::take(&mut approved.keyer);
            let got = provider_reads(&mut approved, filled(keyer, &template, &pair));
            assert_eq!(got, canonical(scheme, KEY, b"{\"model\":\"x\"}"), "{scheme:?}");
        }
    }
}

/// All of it as the relay sees it: one stream in arbitrary pieces, a retried handshake, a body over several records.
#[test]
fn a_keyed_request_crosses_after_a_retry() {
    let setup =
        Setup { server_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1], ..Setup::default() };
    let Established { connection, mut server, watch, .. } = establish(setup.build(), HOST).unwrap();
    assert!(watch.retried());
    let template = keyed_template(CredentialScheme::Bearer, KEY.len());
    let body: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
    let mut keyer = registered(connection.client_secret());
    let mut request = connection.seal_request(&template, &post(body.len() as u64)).unwrap();
    let mut stream = request.head.to_bytes();
    request.body.seal_chunk(&body, &mut stream).unwrap();

    let mut collector = HeadCollector::new(template.shape());
    let mut input = stream.as_slice();
    let head = collector.collect(&mut input).unwrap().unwrap();
    assert_eq!(head.digest(), request.head.digest());
    keyer.check_head(&template, &head).expect("approved");
    let pair = shares(KEY).remove(0);
    let answer = keyer.answer(&pair.mask).ok().unwrap();
    let mut meter = BodyMeter::new(answer.content_length());
    let mut out = Vec::new();
    head.release_into(answer.fill(slot(&template), &pair.complement).ok(), &mut out).unwrap();
    meter.body_bytes(input, &mut out).unwrap();
    assert!(meter.is_complete());
    assert_eq!(server_reads(&mut server, &out), canonical(CredentialScheme::Bearer, KEY, &body));
}

/// Shares of different pairs make a wrong key in the credential's place, and nothing else.
#[test]
fn mixed_pairs_are_a_wrong_key_in_the_right_place() {
    let template = keyed_template(CredentialScheme::XApiKey, KEY.len());
    let mut approved = approved(&template, b"body");
    let [one, two] = <[SharePair; 2]>::try_from(shares(KEY)).ok().unwrap();
    let answer = std::mem::take(&mut approved.keyer).answer(&one.mask).ok().unwrap();
    let hole = answer.fill(slot(&template), &two.complement).ok().unwrap();
    let got = provider_reads(&mut approved, hole);
    let expected = canonical(CredentialScheme::XApiKey, KEY, b"body");
    let at = expected.windows(KEY.len()).position(|window| window == KEY.as_bytes()).unwrap();
    assert_eq!(got.len(), expected.len());
    assert_eq!((&got[..at], &got[at + KEY.len()..]), (&expected[..at], &expected[at + KEY.len()..]));
    assert_ne!(got, expected);
}

/// What a hostile relay or keyer can still do: every altered byte is an alert or a wrong key, never another record.
#[test]
fn an_altered_hole_is_seen_by_the_provider() {
    let template = keyed_template(CredentialScheme::Bearer, KEY.len());
    let pair = shares(KEY).remove(0);
    let pad_len = KEY.len() + 1;
    // one bit of: the tag's key, the pad, the closing byte
    for flipped in [pad_len, 3, pad_len - 1] {
        let mut approved = approved(&template, b"body");
        let answer = std::mem::take(&mut approved.keyer).answer(&pair.mask).ok().unwrap();
        let mut bytes = [answer.expose_pad(), answer.expose_one_time_key()].concat();
        bytes[flipped] ^= 1;
        let altered = HoleAnswer::from_parts(&bytes[..pad_len], &bytes[pad_len..], 4).ok().unwrap();
        let hole = altered.fill(slot(&template), &pair.complement).ok().unwrap();
        let got = provider_reads(&mut approved, hole);
        let before = canonical(CredentialScheme::Bearer, "", b"");
        let before = &before[..before.windows(13).position(|w| w == PREFIX.as_bytes()).unwrap() + 13];
        if flipped == 3 {
            assert_eq!(got.len(), canonical(CredentialScheme::Bearer, KEY, b"body").len());
            assert_ne!(got, canonical(CredentialScheme::Bearer, KEY, b"body"));
        } else {
            assert!(before.starts_with(&got), "the provider stops at the hole");
            // rustls gives up a malformed handshake message without an alert
            let silent = flipped == pad_len - 1;
            let ending = if silent { Ending::Truncated } else { Ending::Alert(20) };
            assert_eq!(ending_at_client(&mut approved), ending);
            assert!(approved.established_server.process_new_packets().is_err());
        }
    }
}

#[test]
fn a_hole_is_as_long_as_the_secret() {
    let template = keyed_template(CredentialScheme::Bearer, KEY.len());
    let bytes = |length: usize| Zeroizing::new(vec![0x5a; length]);
    let mask = |length| Mask::new(bytes(length)).ok().unwrap();
    let complement = |length| Complement::new(bytes(length)).ok().unwrap();
    for length in [KEY.len() - 1, KEY.len() + 1] {
        assert_eq!(
            approved(&template, b"").keyer.answer(&mask(length)).err(),
            Some(AnswerRefusal::MaskLength { wanted: 32, got: length })
        );
        let pad = vec![1; length + 1];
        let answer = || HoleAnswer::from_parts(&pad, &[2; 32], 0).ok().unwrap();
        assert_eq!(
            answer().fill(slot(&template), &complement(32)).err(),
            Some(FillRefusal::PadLength { wanted: 33, got: length + 1 })
        );
        assert_eq!(
            answer().fill(slot(&template), &complement(length)).err(),
            Some(FillRefusal::ComplementLength { wanted: 32, got: length })
        );
    }
}

#[test]
fn fields_of_an_answer_are_bounded() {
    let error = |pad: usize, key: usize, length: u64| {
        HoleAnswer::from_parts(&vec![0; pad], &vec![0; key], length).err()
    };
    assert_eq!(error(17, 32, 1 << 30), None);
    assert_eq!(error(1025, 32, 0), None);
    for length in [0, 16, 1026] {
        assert_eq!(error(length, 32, 0), Some(AnswerMalformed::PadLength { length }));
    }
    for length in [0, 31, 33] {
        assert_eq!(error(17, length, 0), Some(AnswerMalformed::KeyLength { length }));
    }
    let content_length = (1 << 30) + 1;
    assert_eq!(error(17, 32, content_length), Some(AnswerMalformed::ContentLength { content_length }));
}

/// An answer needs an approved keyed head, and there is one only.
#[test]
fn only_an_approved_keyed_head_is_answered() {
    let keyed = keyed_template(CredentialScheme::Bearer, KEY.len());
    let mask = || Mask::new(Zeroizing::new(vec![1; KEY.len()])).ok().unwrap();
    let secret = || TrafficSecret::new([8; 32]);
    let none = Some(AnswerRefusal::NoHole);
    assert_eq!(KeyerConnection::new().answer(&mask()).err(), none, "vacant");
    assert_eq!(registered(&secret()).answer(&mask()).err(), none, "not checked");

    let sealed = |template: &HeadTemplate| {
        let connection = quorate_splitkey::client::ClientConnection::new(secret(), secret());
        connection.seal_request(template, &post(0)).unwrap().head
    };
    let mut unkeyed = registered(&secret());
    unkeyed.check_head(&template(), &sealed(&template())).expect("approved");
    assert_eq!(unkeyed.answer(&mask()).err(), none, "no hole in an unkeyed head");

    let mut refused = registered(&secret());
    let elsewhere = keyed_template(CredentialScheme::XApiKey, KEY.len());
    assert!(refused.check_head(&keyed, &sealed(&elsewhere)).is_err());
    assert_eq!(refused.answer(&mask()).err(), none, "a refused head");

    let mut asked_twice = registered(&secret());
    asked_twice.check_head(&keyed, &sealed(&keyed)).expect("approved");
    assert_eq!(asked_twice.check_head(&keyed, &sealed(&keyed)).err(), Some(KeyerRefusal::AlreadyAnswered));
    assert!(asked_twice.register(secret()).is_err());
    assert_eq!(asked_twice.answer(&mask()).err(), none, "asking twice spoils the answer");

    let mut honest = registered(&secret());
    honest.check_head(&keyed, &sealed(&keyed)).expect("approved");
    assert!(!honest.is_registered());
    assert!(honest.register(secret()).is_err());
    assert!(honest.answer(&mask()).is_ok(), "the unmutated twin");
}

#[test]
fn a_hole_goes_into_a_keyed_head_and_no_other() {
    let keyed = keyed_template(CredentialScheme::Bearer, KEY.len());
    let mut approved = approved(&keyed, b"");
    let mut out = Vec::new();
    assert_eq!(approved.head.release_into(None, &mut out), Err(ReleaseRefusal::HoleMissing));
    let hole = filled(std::mem::take(&mut approved.keyer), &keyed, &shares(KEY)[0]);
    let whole = HeadRecords::from_bytes(&[&[23, 3, 3, 0, 18][..], &[0; 18]].concat(), HeadShape::Whole);
    let whole = whole.unwrap();
    assert_eq!(whole.release_into(Some(hole), &mut out), Err(ReleaseRefusal::HoleUnexpected));
    assert!(out.is_empty());
    whole.release_into(None, &mut out).unwrap();
    assert_eq!(out, whole.to_bytes());
}

/// A client that registers another secret than the connection's gets a hole that opens nowhere.
#[test]
fn a_false_secret_fills_a_hole_that_no_one_opens() {
    let keyed = keyed_template(CredentialScheme::Bearer, KEY.len());
    let Established { mut server, .. } = establish(Setup::default().build(), HOST).unwrap();
    let connection = quorate_splitkey::client::ClientConnection::new(
        TrafficSecret::new([8; 32]),
        TrafficSecret::new([9; 32]),
    );
    let mut keyer = registered(connection.client_secret());
    let head = connection.seal_request(&keyed, &post(0)).unwrap().head;
    keyer.check_head(&keyed, &head).expect("the keyer cannot tell");
    let mut out = Vec::new();
    head.release_into(Some(filled(keyer, &keyed, &shares(KEY)[0])), &mut out).unwrap();
    assert_eq!(server_reads(&mut server, &out), b"");
}

/// A client that stays in the handshake: half of Finished, padded to the one length that passes, then a head under the
/// *handshake* secret, which it registers. Relay and keyer cannot tell; but the provider counts the half as sequence 0,
/// and the head was sealed and checked at 0 too. The other way round, the other half of Finished is no head.
#[test]
fn a_handshake_that_goes_on_has_no_room_for_a_head() {
    let Endpoints { mut client, mut server, secrets } = Setup::default().build();
    let mut watch = HandshakeWatch::new(HOST.parse().unwrap());
    let mut forward = Vec::new();
    watch.client_bytes(&mut client_writes(&mut client).as_slice(), &mut forward).unwrap();
    server_reads(&mut server, &forward);
    let flight = server_writes(&mut server);
    watch.provider_bytes(&flight, &mut Vec::new()).unwrap();
    client.read_tls(&mut flight.as_slice()).unwrap();
    client.process_new_packets().unwrap();
    let finished = split_records(&client_writes(&mut client)).unwrap().unwrap().pop().unwrap();

    let secret = || secrets.take("CLIENT_HANDSHAKE_TRAFFIC_SECRET");
    let finished = RawKeys::new(&secret()).xor(0, &finished.fragment()[..36]);
    assert_eq!(finished[..4], [20, 0, 0, 32], "Finished in clear");
    let half = RawKeys::new(&secret()).seal(0, &[&finished[..20], &[22], &[0; 16]].concat());
    let rest = RawKeys::new(&secret()).seal(1, &[&finished[20..], &[22]].concat());
    let mut to_provider = Vec::new();
    watch.client_bytes(&mut half.as_slice(), &mut to_provider).unwrap();
    assert!(watch.is_done(), "by its length it is Finished");

    let keyed = keyed_template(CredentialScheme::Bearer, KEY.len());
    let connection = quorate_splitkey::client::ClientConnection::new(secret(), secret());
    let head = connection.seal_request(&keyed, &post(0)).unwrap().head;
    let mut keyer = registered(&secret());
    keyer.check_head(&keyed, &head).expect("the keyer cannot tell");
    assert_eq!(server_reads(&mut server, &to_provider), b"");
    assert!(server.process_new_packets().is_ok(), "the provider waits for the other half");
    let mut released = Vec::new();
    head.release_into(Some(filled(keyer, &keyed, &shares(KEY)[0])), &mut released).unwrap();
    assert_eq!(server_reads(&mut server, &released), b"");
    assert!(server.process_new_packets().is_err());
    assert!(server.is_handshaking());

    let rest = HeadRecords::from_bytes(&rest, HeadShape::Whole).unwrap();
    assert!(matches!(
        registered(&secret()).check_head(&template(), &rest),
        Err(KeyerRefusal::NotAuthentic { sequence: 0, .. })
    ));
}

/// Part two that does not begin with the end of the credential's line, or is not where it belongs.
#[test]
fn a_hole_cannot_be_aimed() {
    let keyed = keyed_template(CredentialScheme::Bearer, KEY.len());
    let parts = keyed.serialise(&post(7)).unwrap();
    let (one, two) = (parts.one().to_vec(), parts.two().unwrap().to_vec());
    let seal = |secret: &TrafficSecret, one: &[u8], two: &[u8], skipped: u64| {
        // a sealer that leaves numbers out by sealing what it throws away
        let mut sealer = RecordSealer::new(secret);
        let app = quorate_splitkey::record::ContentType::ApplicationData;
        let (mut bytes, mut lost) = (Vec::new(), Vec::new());
        sealer.seal_into(app, one, &mut bytes).unwrap();
        for _ in 0..skipped {
            sealer.seal_into(app, b"x", &mut lost).unwrap();
        }
        sealer.seal_into(app, two, &mut bytes).unwrap();
        HeadRecords::from_bytes(&bytes, HeadShape::AroundHole).unwrap()
    };
    let check =
        |secret: &TrafficSecret, head: &HeadRecords| registered(secret).check_head(&keyed, head).err();
    use quorate_splitkey::head::HeadRefusal as H;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (one_text, two_text) = (text(&one), text(&two));
    let secret = TrafficSecret::new([8; 32]);
    assert_eq!(check(&secret, &seal(&secret, &one, &two, 1)), None, "the unmutated twin");
    let head = |refusal| Some(KeyerRefusal::Head(refusal));
    let cases: [(String, String, Option<KeyerRefusal>); 12] = [
        // into the target, its query, another header, the body
        ("POST /v1/chat/".into(), two_text.clone(), head(H::CredentialOpening)),
        ("POST /v1/chat/completions?k=".into(), two_text.clone(), head(H::CredentialOpening)),
        (
            one_text.replace("authorization: Bearer", "content-type: Bearer"),
            two_text.clone(),
            head(H::CredentialOpening),
        ),
        (
            one_text.replace("\r\nauthorization", "\r\n\r\nauthorization"),
            two_text.clone(),
            head(H::HeaderSyntax),
        ),
        // the credential twice, or its opening inside a value
        (
            one_text
                .replace("\r\nauthorization", "\r\nauthorization: Bearer sk-ant-api03-x\r\nauthorization"),
            two_text.clone(),
            head(H::HeaderNotAllowed),
        ),
        (one_text.replace("json\r\n", "json; "), two_text.clone(), head(H::LineUnterminated)),
        // the key's line goes on after the hole
        (one_text.clone(), two_text[2..].into(), head(H::CredentialOpening)),
        (one_text.clone(), format!("tail{two_text}"), head(H::CredentialOpening)),
        (one_text.clone(), format!("\n{}", &two_text[1..]), head(H::Byte)),
        (one_text.clone(), format!("\r\n {}", &two_text[2..]), head(H::ContentLengthMissing)),
        // more than the head says
        (one_text.clone(), two_text.replace(": 7", ": 07"), head(H::ContentLengthNotCanonical)),
        (one_text.clone(), format!("{two_text}POST / HTTP/1.1\r\n\r\n"), head(H::End)),
    ];
    for (aimed_one, aimed_two, expected) in cases {
        let Established { connection, mut server, .. } = establish(Setup::default().build(), HOST).unwrap();
        let secret = connection.client_secret();
        let aimed = seal(secret, aimed_one.as_bytes(), aimed_two.as_bytes(), 1);
        assert_eq!(check(secret, &aimed), expected, "{aimed_one} ... {aimed_two}");

        // with the check switched off (a keyer that looked at another head) the key goes where it was aimed
        let mut careless = registered(secret);
        careless.check_head(&keyed, &seal(secret, &one, &two, 1)).expect("the head it was shown");
        let mut out = Vec::new();
        aimed.release_into(Some(filled(careless, &keyed, &shares(KEY)[0])), &mut out).unwrap();
        let read = String::from_utf8(server_reads(&mut server, &out)).unwrap();
        assert_eq!(read, format!("{aimed_one}{KEY}{aimed_two}"));
    }
    for skipped in [0, 2] {
        let refusal = check(&secret, &seal(&secret, &one, &two, skipped));
        assert!(matches!(refusal, Some(KeyerRefusal::NotAuthentic { sequence: 2, .. })));
    }
}

/// No secret can be printed by mistake: were one `Debug`, this would not compile (two implementations would fit).
#[test]
fn secrets_have_no_debug() {
    trait AmbiguousIfDebug<Marker> {
        fn passes() {}
    }
    impl<T> AmbiguousIfDebug<()> for T {}
    impl<T: std::fmt::Debug> AmbiguousIfDebug<u8> for T {}
    <Secret as AmbiguousIfDebug<_>>::passes();
    <SharePair as AmbiguousIfDebug<_>>::passes();
    <Mask as AmbiguousIfDebug<_>>::passes();
    <Complement as AmbiguousIfDebug<_>>::passes();
    <HoleAnswer as AmbiguousIfDebug<_>>::passes();
    <FilledHole as AmbiguousIfDebug<_>>::passes();
    <KeyerConnection as AmbiguousIfDebug<_>>::passes();
    <TrafficSecret as AmbiguousIfDebug<_>>::passes();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the key, the shares and the body, rustls reads the head with the key, then the body.
    #[test]
    fn any_key_reaches_a_provider_whole(
        key in "[!-~]{16,1024}",
        seed in any::<u64>(),
        keyers in 1usize..5,
        chosen in any::<prop::sample::Index>(),
        body in prop::collection::vec(any::<u8>(), 0..20_000),
    ) {
        let mut state = seed | 1;
        let random: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        }).take(keyers * key.len()).collect();
        let secret = Secret::new(Zeroizing::new(key.as_bytes().to_vec())).ok().unwrap();
        let pairs = secret.split(keyers, Zeroizing::new(random)).ok().unwrap();
        let template = keyed_template(CredentialScheme::Bearer, key.len());
        let mut approved = approved(&template, &body);
        let keyer = std::mem::take(&mut approved.keyer);
        let hole = filled(keyer, &template, &pairs[chosen.index(keyers)]);
        let got = provider_reads(&mut approved, hole);
        prop_assert!(got == canonical(CredentialScheme::Bearer, &key, &body));
    }
}
