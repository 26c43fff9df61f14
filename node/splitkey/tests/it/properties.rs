//! Properties over arbitrary bytes and cuts.

use std::sync::LazyLock;

use proptest::prelude::*;
use quorate_splitkey::framing::{BodyMeter, HeadCollector, HeadRecords, HeadShape};
use quorate_splitkey::head::{Head, Header, Method};
use quorate_splitkey::record::{
    ContentType, Event, RecordOpener, RecordReader, RecordSealer, TrafficSecret, split_records,
};
use quorate_splitkey::watch::{HandshakeRefusal, HandshakeWatch};

use crate::support::{HOST, Leg, Setup, establish, template};

/// Two real handshakes: plain, and with a retry.
static TRANSCRIPTS: LazyLock<[Vec<Leg>; 2]> = LazyLock::new(|| {
    let retry =
        Setup { server_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1], ..Setup::default() };
    [Setup::default(), retry].map(|setup| establish(setup.build(), HOST).unwrap().legs)
});

/// What a watch handed out, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    to_provider: Vec<u8>,
    to_client: Vec<u8>,
    left: Vec<u8>,
    done: bool,
    refused: Option<HandshakeRefusal>,
}

fn run(legs: &[Leg], piece: usize) -> Outcome {
    let mut watch = HandshakeWatch::new(HOST.parse().unwrap());
    let (mut to_provider, mut to_client, mut left) = (Vec::new(), Vec::new(), Vec::new());
    let mut refused = None;
    'legs: for leg in legs {
        let bytes = match leg {
            Leg::Client(bytes) | Leg::Provider(bytes) => bytes,
        };
        for mut input in bytes.chunks(piece) {
            let result = match leg {
                Leg::Client(_) => {
                    let result = watch.client_bytes(&mut input, &mut to_provider);
                    left.extend_from_slice(if result.is_ok() { input } else { &[] });
                    result
                }
                Leg::Provider(_) => watch.provider_bytes(input, &mut to_client),
            };
            if let Err(refusal) = result {
                refused = Some(refusal);
                break 'legs;
            }
        }
    }
    let done = watch.is_done();
    Outcome { to_provider, to_client, left, done, refused }
}

fn side(legs: &[Leg], client: bool) -> Vec<u8> {
    legs.iter()
        .filter_map(|leg| match leg {
            Leg::Client(bytes) if client => Some(bytes.as_slice()),
            Leg::Provider(bytes) if !client => Some(bytes.as_slice()),
            Leg::Client(_) | Leg::Provider(_) => None,
        })
        .collect::<Vec<_>>()
        .concat()
}

fn legs() -> impl Strategy<Value = Vec<Leg>> {
    let leg = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(client, bytes)| if client { Leg::Client(bytes) } else { Leg::Provider(bytes) });
    prop::collection::vec(leg, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever either side sends: what is handed out is a prefix of what came in, and the client's share of it
    /// ends at the latest with the one Finished record.
    #[test]
    fn a_watch_hands_out_only_a_prefix(legs in legs(), piece in 1usize..64) {
        let outcome = run(&legs, piece);
        prop_assert!(side(&legs, true).starts_with(&outcome.to_provider));
        prop_assert!(side(&legs, false).starts_with(&outcome.to_client));
        prop_assert!(!outcome.done);
    }

    /// A real handshake with a tail appended and one byte changed, in any cut: never more than the honest handshake's
    /// own client bytes reach the provider, and after Finished not one.
    #[test]
    fn nothing_after_finished_is_handed_out(
        which in 0usize..2,
        at in any::<prop::sample::Index>(),
        flip in any::<u8>(),
        tail in prop::collection::vec(any::<u8>(), 0..300),
        piece in 1usize..4000,
    ) {
        let mut legs = TRANSCRIPTS[which].clone();
        let honest_len = side(&legs, true).len();
        let last_client = legs.iter().rposition(|leg| matches!(leg, Leg::Client(_))).unwrap();
        if let Leg::Client(bytes) = &mut legs[last_client] {
            bytes.extend_from_slice(&tail);
        }
        let leg = at.index(legs.len());
        let (Leg::Client(bytes) | Leg::Provider(bytes)) = &mut legs[leg];
        let byte = at.index(bytes.len());
        bytes[byte] ^= flip;
        let outcome = run(&legs, piece);
        let client = side(&legs, true);
        prop_assert!(client.starts_with(&outcome.to_provider));
        prop_assert!(outcome.to_provider.len() <= honest_len);
        if outcome.done {
            prop_assert_eq!(outcome.to_provider.len(), honest_len);
            prop_assert_eq!(&outcome.left, &client[honest_len..]);
        }
        // the cut changes nothing
        prop_assert_eq!(run(&legs, usize::MAX), outcome);
    }

    #[test]
    fn an_honest_handshake_passes_in_any_cut(which in 0usize..2, piece in 1usize..4000) {
        let legs = &TRANSCRIPTS[which];
        let outcome = run(legs, piece);
        prop_assert_eq!(outcome.refused, None);
        prop_assert!(outcome.done);
        prop_assert_eq!(outcome.to_provider, side(legs, true));
        prop_assert_eq!(outcome.to_client, side(legs, false));
    }

    #[test]
    fn readers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), length in any::<u16>()) {
        let _ = split_records(&bytes);
        let _ = RecordReader::new().read(&mut bytes.as_slice());
        let _ = HeadRecords::from_bytes(&bytes, HeadShape::AroundHole);
        let _ = template().check(&bytes, None);
        let mut opener = RecordOpener::new(TrafficSecret::new([1; 32]));
        let _ = opener.read(&mut bytes.as_slice());
        let mut out = Vec::new();
        let _ = BodyMeter::new(u64::from(length)).body_bytes(&bytes, &mut out);
        prop_assert!(bytes.starts_with(&out));
    }

    /// Body records admitted never carry more than the content-length, whatever the sizes and the cut.
    #[test]
    fn a_meter_admits_at_most_the_content_length(
        sizes in prop::collection::vec(0usize..600, 0..20),
        content_length in 0u64..4000,
        piece in 1usize..700,
    ) {
        let mut sealer = RecordSealer::new(&TrafficSecret::new([2; 32]));
        let mut stream = Vec::new();
        for size in &sizes {
            sealer.seal_into(ContentType::ApplicationData, &vec![0; *size], &mut stream).unwrap();
        }
        let mut meter = BodyMeter::new(content_length);
        let mut out = Vec::new();
        let refused = stream.chunks(piece).any(|chunk| meter.body_bytes(chunk, &mut out).is_err());
        let admitted: usize =
            split_records(&out).unwrap().unwrap().iter().map(|record| record.fragment().len() - 17).sum();
        prop_assert!(admitted as u64 <= content_length);
        prop_assert!(stream.starts_with(&out));
        let wanted: usize = sizes.iter().sum();
        prop_assert_eq!(refused, wanted as u64 > content_length || sizes.contains(&0));
    }

    /// Our two halves agree for any plaintexts and cut (agreement with rustls is in `watch` and `request`).
    #[test]
    fn what_is_sealed_opens(
        plaintexts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 1..6),
        piece in 1usize..3000,
    ) {
        let mut sealer = RecordSealer::new(&TrafficSecret::new([5; 32]));
        let mut stream = Vec::new();
        for plaintext in &plaintexts {
            sealer.seal_into(ContentType::ApplicationData, plaintext, &mut stream).unwrap();
        }
        let mut opener = RecordOpener::new(TrafficSecret::new([5; 32]));
        let mut opened = Vec::new();
        for mut input in stream.chunks(piece) {
            while let Ok(Some(Event::AppData(bytes))) = opener.read(&mut input) {
                opened.push(bytes);
            }
        }
        prop_assert_eq!(opened, plaintexts);
    }

    /// What a template serialises it accepts, and any other bytes near it it refuses.
    #[test]
    fn only_the_canonical_head_passes(
        value in "[!-~]([ -~]{0,40}[!-~])?",
        content_length in 0u64..(1 << 30),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let template = template();
        let headers = vec![Header { name: "content-type".into(), value }];
        let head = Head { method: Method::Post, path: "/v1/chat/completions".into(), headers, content_length };
        let parts = template.serialise(&head).unwrap();
        let checked = template.check(parts.one(), None).unwrap();
        prop_assert!(*checked.head() == head);

        let mut altered = parts.one().to_vec();
        let at = at.index(altered.len());
        altered[at] = byte;
        if let Ok(checked) = template.check(&altered, None) {
            // still canonical: only the value or the length changed
            let again = template.serialise(checked.head()).unwrap();
            prop_assert_eq!(again.one(), altered.as_slice());
            prop_assert_eq!(&checked.head().path, "/v1/chat/completions");
        }
    }

    /// Anything a collector returns is what came in.
    #[test]
    fn a_collector_returns_what_came(piece in 1usize..100, one in 1usize..300, two in 1usize..300) {
        let mut sealer = RecordSealer::new(&TrafficSecret::new([6; 32]));
        let mut stream = Vec::new();
        for size in [one, two] {
            sealer.seal_into(ContentType::ApplicationData, &vec![0; size], &mut stream).unwrap();
        }
        let mut collector = HeadCollector::new(HeadShape::AroundHole);
        let mut found = None;
        for mut chunk in stream.chunks(piece) {
            found = found.or(collector.collect(&mut chunk).unwrap());
        }
        prop_assert_eq!(found.unwrap().to_bytes(), stream);
    }
}
