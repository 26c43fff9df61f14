//! The targets of `quorate-splitkey`.

use quorate_splitkey::client::ClientConnection;
use quorate_splitkey::framing::{BodyMeter, FramingRefusal, HeadCollector, HeadRecords, HeadShape};
use quorate_splitkey::head::{
    CredentialScheme, CredentialSlot, Head, HeadTemplate, HeadTemplateSpec, Header, Method, PathRule,
};
use quorate_splitkey::hole::HoleAnswer;
use quorate_splitkey::host::ServerHost;
use quorate_splitkey::keyer::KeyerConnection;
use quorate_splitkey::record::{
    ContentType, Ending, Event, OpenError, RecordOpener, RecordReader, RecordSealer, TrafficSecret,
    split_records,
};
use quorate_splitkey::share::{Complement, Mask};
use quorate_splitkey::watch::{HandshakeRefusal, HandshakeWatch};
use zeroize::Zeroizing;

/// The host of every handshake and template here.
pub const HOST: &str = "provider.example";
/// Most bytes a target looks at: beyond it nothing new can happen.
pub const INPUT_MAX: usize = 1 << 17;

/// Reads choices off the front of an input; what is not there is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.byte())
    }
}

/// What a watch did with a list of legs.
#[derive(Debug, PartialEq)]
struct Watched {
    to_provider: Vec<u8>,
    to_client: Vec<u8>,
    left: Vec<u8>,
    done: bool,
    refused: Option<HandshakeRefusal>,
}

/// Input: for each leg, a byte (odd: the client's), a length (2), bytes.
pub fn watch(data: &[u8]) -> bool {
    let mut input = Input(data.get(..INPUT_MAX).unwrap_or(data));
    let mut legs = Vec::new();
    while !input.0.is_empty() {
        let client = input.byte() & 1 == 1;
        let length = usize::from(input.u16());
        legs.push((client, input.bytes(length)));
    }
    let whole = watched(&legs, usize::MAX);
    assert_eq!(watched(&legs, 1 + data.len() % 97), whole, "the cut changes nothing");
    let side = |wanted| legs.iter().filter(move |leg| leg.0 == wanted).flat_map(|leg| leg.1).copied();
    let client: Vec<u8> = side(true).collect();
    assert!(client.starts_with(&whole.to_provider));
    assert!(side(false).collect::<Vec<u8>>().starts_with(&whole.to_client));
    if whole.done {
        let rest = client.get(whole.to_provider.len()..).unwrap_or_default();
        assert_eq!(rest, whole.left, "every byte after Finished is left to the caller");
        let last = split_records(&whole.to_provider).ok().flatten().and_then(|mut all| all.pop());
        assert_eq!(last.map(|finished| finished.fragment().len()), Some(53));
    }
    whole.refused.is_none()
}

fn watched(legs: &[(bool, &[u8])], piece: usize) -> Watched {
    let Ok(host) = HOST.parse::<ServerHost>() else { unreachable!() };
    let mut watch = HandshakeWatch::new(host);
    let mut seen =
        Watched { to_provider: vec![], to_client: vec![], left: vec![], done: false, refused: None };
    for (client, bytes) in legs {
        for mut input in bytes.chunks(piece) {
            let outcome = if *client {
                let outcome = watch.client_bytes(&mut input, &mut seen.to_provider);
                if outcome.is_ok() {
                    seen.left.extend_from_slice(input);
                }
                outcome
            } else {
                watch.provider_bytes(input, &mut seen.to_client)
            };
            if seen.refused.is_some() {
                assert_eq!(outcome.err(), seen.refused, "a refusal is final");
            }
            seen.refused = seen.refused.or(outcome.err());
        }
    }
    seen.done = watch.is_done();
    seen
}

/// The templates that inputs choose from: unkeyed, and keyed under each scheme, with and without a prefix.
pub fn templates() -> Vec<HeadTemplate> {
    let rule = |method, path: &str, prefix| PathRule { method, path: path.into(), prefix };
    let spec = |credential| HeadTemplateSpec {
        host: HOST.into(),
        port: 443,
        base_path: "/base".into(),
        paths: vec![
            rule(Method::Post, "/v1/messages", false),
            rule(Method::Post, "/v1/models/", true),
            rule(Method::Get, "/v1/models", false),
        ],
        headers: vec!["content-type".into(), "accept".into()],
        credential,
    };
    let slots =
        CredentialScheme::ALL.into_iter().zip(["sk-ant-", "", "x", "AIza"]).map(|(scheme, prefix)| {
            Some(CredentialSlot { scheme, public_prefix: prefix.into(), secret_len: 32 })
        });
    let made: Result<Vec<_>, _> =
        std::iter::once(None).chain(slots).map(|slot| HeadTemplate::try_from(spec(slot))).collect();
    let Ok(templates) = made else { unreachable!("the templates above are right") };
    templates
}

/// Input: which template (1), length of part one (2), part one, part two.
pub fn heads(data: &[u8]) -> bool {
    let mut input = Input(data.get(..INPUT_MAX).unwrap_or(data));
    let templates = templates();
    let Some(template) = templates.get(usize::from(input.byte()) % templates.len()) else { return false };
    let length = usize::from(input.u16());
    let one = input.bytes(length);
    let keyed = template.credential().is_some();
    let Ok(checked) = template.check(one, keyed.then_some(input.0)) else {
        build_head(template, &mut Input(data));
        return false;
    };
    let Ok(parts) = template.serialise(checked.head()) else { unreachable!("what passes can be written") };
    assert_eq!((parts.one(), parts.two()), (one, keyed.then_some(input.0)));

    // read as any server would, with a key in the hole
    let text = [one, if keyed { b"KEY" } else { b"" }, if keyed { input.0 } else { b"" }].concat();
    let Ok(text) = String::from_utf8(text) else { unreachable!("visible ASCII") };
    let Some((lines, "")) = text.split_once("\r\n\r\n") else { panic!("one head, nothing after it") };
    let named = |name: &str| lines.split("\r\n").skip(1).filter(|line| line.starts_with(name)).count();
    assert_eq!((named("host: "), named("connection: close"), named("transfer-encoding")), (1, 1, 0));
    let lengths = usize::from(checked.head().method == Method::Post);
    assert_eq!(named("content-length: "), lengths);
    let holding: Vec<&str> = lines.split("\r\n").filter(|line| line.ends_with("KEY")).collect();
    if let Some(slot) = template.credential() {
        let line = format!("{}{}KEY", slot.scheme.opening(), slot.public_prefix);
        assert_eq!(holding.last().copied(), Some(line.as_str()));
        assert_eq!(named(slot.scheme.opening()), 1, "one credential");
    }
    true
}

/// A head made of choices: what the template writes, it accepts.
fn build_head(template: &HeadTemplate, input: &mut Input<'_>) {
    let mut text = |most: usize| {
        let length = usize::from(input.u16()) % most;
        input.bytes(length).iter().map(|byte| char::from(byte & 0x7f)).collect::<String>()
    };
    let paths = ["/v1/messages".to_owned(), "/v1/models".to_owned(), format!("/v1/models/{}", text(100))];
    let values = [("accept", text(5000)), ("content-type", text(100))];
    let headers = values
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| Header { name: name.into(), value })
        .collect();
    let choice = input.byte();
    let method = if choice & 1 == 0 { Method::Post } else { Method::Get };
    let content_length = if choice & 2 == 0 { u64::from(input.u16()) } else { 0 };
    let Some(path) = paths.into_iter().nth(usize::from(choice >> 2) % 3) else { return };
    let head = Head { method, path, headers, content_length };
    if let Ok(parts) = template.serialise(&head) {
        let Ok(checked) = template.check(parts.one(), parts.two()) else { panic!("written and refused") };
        let sorted = |head: &Head| {
            let mut headers: Vec<_> =
                head.headers.iter().map(|h| (h.name.clone(), h.value.clone())).collect();
            headers.sort();
            (head.method, head.path.clone(), headers, head.content_length)
        };
        assert!(sorted(checked.head()) == sorted(&head));
    }
}

/// Input: content-length (2), then the same bytes as a client's stream, as a provider's, and as choices of what a
/// provider seals.
pub fn records(data: &[u8]) -> bool {
    let mut input = Input(data.get(..INPUT_MAX).unwrap_or(data));
    let content_length = u64::from(input.u16());
    let bytes = input.0;
    let piece = 1 + data.len() % 89;

    if let Ok(Some(records)) = split_records(bytes) {
        let mut again = Vec::new();
        records.iter().for_each(|record| record.write_to(&mut again));
        assert_eq!(again, bytes);
    }
    let mut reader = RecordReader::new();
    let mut rest = bytes;
    while let Ok(Some(_)) = reader.read(&mut rest) {}

    for shape in [HeadShape::Whole, HeadShape::AroundHole] {
        let mut collector = HeadCollector::new(shape);
        let mut rest = bytes;
        let collected = collector.collect(&mut rest);
        if let Ok(Some(head)) = &collected {
            assert_eq!([&head.to_bytes(), rest].concat(), bytes, "what is left is the body");
            assert!(HeadRecords::from_bytes(&head.to_bytes(), shape).as_ref() == Ok(head));
        }
        let mut collector = HeadCollector::new(shape);
        let mut outcome = Ok(None);
        for mut chunk in bytes.chunks(piece) {
            outcome = collector.collect(&mut chunk);
            if !matches!(outcome, Ok(None)) {
                break;
            }
        }
        assert_eq!(outcome, collected, "the cut changes nothing");
    }

    let whole = metered(bytes, content_length, usize::MAX);
    assert_eq!(metered(bytes, content_length, piece), whole, "the cut changes nothing");
    let (forward, _) = whole;
    assert!(bytes.starts_with(&forward));
    let Ok(Some(admitted)) = split_records(&forward) else { panic!("whole records only") };
    let plaintext: usize = admitted.iter().map(|record| record.fragment().len() - 17).sum();
    assert!(plaintext as u64 <= content_length, "a body within its content-length");

    assert_eq!(opened(bytes, piece), opened(bytes, usize::MAX));
    let sealed = sealed_by_choice(Input(bytes));
    assert_eq!(opened(&sealed, piece), opened(&sealed, usize::MAX), "the cut changes nothing");
    split_records(bytes).is_ok_and(|all| all.is_some()) || opened(&sealed, usize::MAX).3.is_none()
}

/// A cut changes neither what is forwarded nor whether and why the stream is refused.
fn metered(bytes: &[u8], content_length: u64, piece: usize) -> (Vec<u8>, Option<FramingRefusal>) {
    let mut meter = BodyMeter::new(content_length);
    let mut forward = Vec::new();
    let mut refused = None;
    for chunk in bytes.chunks(piece) {
        let outcome = meter.body_bytes(chunk, &mut forward);
        if refused.is_some() {
            assert_eq!(outcome.err(), refused, "a refusal is final");
        }
        refused = refused.or(outcome.err());
    }
    (forward, refused)
}

fn opened(bytes: &[u8], piece: usize) -> (Vec<u8>, usize, Ending, Option<OpenError>) {
    let mut opener = RecordOpener::new(TrafficSecret::new([1; 32]));
    let (mut data, mut updates, mut failed) = (Vec::new(), 0, None);
    for mut input in bytes.chunks(piece) {
        loop {
            match opener.read(&mut input) {
                Ok(Some(Event::AppData(more))) => data.extend(more),
                Ok(Some(Event::KeyUpdated { .. })) => updates += 1,
                Ok(Some(Event::CloseNotify | Event::Alert(_))) => {}
                Ok(None) => break,
                Err(error) => {
                    assert!(failed.is_none_or(|before| before == error), "an error is final");
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    (data, updates, opener.ending(), failed)
}

/// Records under the opener's secret, so that fuzzing gets past the tag: type (1), length (1), content.
fn sealed_by_choice(mut input: Input<'_>) -> Vec<u8> {
    let mut secret = TrafficSecret::new([1; 32]);
    let mut sealer = RecordSealer::new(&secret);
    let mut out = Vec::new();
    while !input.0.is_empty() {
        let inner = match input.byte() % 5 {
            0 => ContentType::Handshake,
            1 => ContentType::Alert,
            2 => ContentType::ChangeCipherSpec,
            3 => {
                // a change of keys, as a server would make it
                if sealer.seal_into(ContentType::Handshake, &[24, 0, 0, 1, 0], &mut out).is_ok() {
                    secret = secret.next_generation();
                    sealer = RecordSealer::new(&secret);
                }
                continue;
            }
            _ => ContentType::ApplicationData,
        };
        let length = usize::from(input.byte());
        if sealer.seal_into(inner, input.bytes(length), &mut out).is_err() {
            break;
        }
    }
    out
}

/// Input: the connection's secret (32), which template (1), the bit to flip (3; beyond the head none), mask (32), body
/// (up to 255, its length first), then a pad, a one-time key and a content-length as a hostile keyer would send them.
pub fn hole(data: &[u8]) -> bool {
    let mut input = Input(data);
    let traffic = input.array();
    let keyed: Vec<HeadTemplate> =
        templates().into_iter().filter(|template| template.credential().is_some()).collect();
    let Some(template) = keyed.get(usize::from(input.byte()) % keyed.len()) else { return false };
    let Some(slot) = template.credential() else { return false };
    let flip = usize::from(input.byte()) << 16 | usize::from(input.u16());
    let mask = input.array();
    let body_len = usize::from(input.byte());
    let body = input.bytes(body_len);
    let key: [u8; 32] = *b"0123456789abcdef0123456789abcdef";
    let complement: Vec<u8> = mask.iter().zip(&key).map(|(mask, key)| mask ^ key).collect();
    let (Ok(mask), Ok(complement)) =
        (Mask::new(Zeroizing::new(mask.to_vec())), Complement::new(Zeroizing::new(complement)))
    else {
        unreachable!("shares of 32 bytes")
    };

    let head = Head {
        method: Method::Post,
        path: "/v1/messages".into(),
        headers: vec![],
        content_length: body.len() as u64,
    };
    let client = ClientConnection::new(TrafficSecret::new(traffic), TrafficSecret::new([0; 32]));
    let Ok(mut request) = client.seal_request(template, &head) else { unreachable!("an allowed head") };
    let mut bytes = request.head.to_bytes();
    let altered = bytes.get_mut(flip / 8).map(|byte| *byte ^= 1 << (flip % 8)).is_some();

    let mut keyer = KeyerConnection::new();
    assert!(keyer.register(TrafficSecret::new(traffic)).is_ok());
    let records = HeadRecords::from_bytes(&bytes, HeadShape::AroundHole);
    let approved = records.as_ref().is_ok_and(|records| keyer.check_head(template, records).is_ok());
    assert_eq!(approved, !altered, "one altered bit is noticed");
    let answer = keyer.answer(&mask);
    assert_eq!(answer.is_ok(), approved);
    if let (Ok(records), Ok(answer)) = (records, answer) {
        let again = HoleAnswer::from_parts(
            answer.expose_pad(),
            answer.expose_one_time_key(),
            answer.content_length(),
        );
        let Ok(filled) = again.map(|answer| answer.fill(slot, &complement)) else { unreachable!("as sent") };
        let mut released = Vec::new();
        assert!(records.release_into(filled.ok(), &mut released).is_ok());
        assert!(request.body.seal_chunk(body, &mut released).is_ok());
        let mut provider = RecordOpener::new(TrafficSecret::new(traffic));
        let (mut rest, mut read) = (released.as_slice(), Vec::new());
        while let Ok(Some(Event::AppData(more))) = provider.read(&mut rest) {
            read.extend(more);
        }
        let Ok(parts) = template.serialise(&head) else { unreachable!("sealed above") };
        assert_eq!(read, [parts.one(), &key, parts.two().unwrap_or_default(), body].concat());
    }

    // a keyer's word: whatever it says, the relay writes one record of the right length or none
    let one_time_key = input.array();
    let content_length = u64::from(input.u16()) << 20;
    if let Ok(answer) = HoleAnswer::from_parts(input.0, &one_time_key, content_length) {
        let fits = input.0.len() == 33;
        match answer.fill(slot, &complement) {
            Ok(filled) => {
                assert!(fits);
                let Ok(Some(records)) = split_records(filled.as_bytes()) else { panic!("not a record") };
                assert!(records.len() == 1 && filled.as_bytes().len() == 5 + 33 + 16);
            }
            Err(_) => assert!(!fits),
        }
    }
    !data.is_empty()
}
