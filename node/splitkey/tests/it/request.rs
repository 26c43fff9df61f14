//! One request, end to end: rustls client, watch, head check, body meter, rustls server, and back.

use std::io::Write;

use quorate_splitkey::framing::{BodyMeter, FramingRefusal, HeadCollector, HeadShape};
use quorate_splitkey::head::{Head, Header, Method};
use quorate_splitkey::keyer::{KeyerConnection, KeyerRefusal};
use quorate_splitkey::record::{
    ContentType, Ending, Event, OpenError, RecordOpener, RecordSealer, TrafficSecret,
};

use crate::support::{Established, HOST, Setup, establish, server_reads, server_writes, template};

fn head(content_length: u64) -> Head {
    Head {
        method: Method::Post,
        path: "/v1/chat/completions".into(),
        headers: vec![Header { name: "content-type".into(), value: "application/json".into() }],
        content_length,
    }
}

fn registered(secret: &TrafficSecret) -> KeyerConnection {
    let mut keyer = KeyerConnection::new();
    keyer.register(TrafficSecret::new(*secret.expose_bytes())).unwrap();
    keyer
}

/// Everything the opener says about these bytes, fed in pieces.
fn read_all(opener: &mut RecordOpener, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize), OpenError> {
    let (mut data, mut updates) = (Vec::new(), 0);
    for mut input in bytes.chunks(piece) {
        while let Some(event) = opener.read(&mut input)? {
            match event {
                Event::AppData(bytes) => data.extend_from_slice(&bytes),
                Event::KeyUpdated { .. } => updates += 1,
                Event::CloseNotify | Event::Alert(_) => {}
            }
        }
    }
    Ok((data, updates))
}

fn exchange(established: Established) {
    let Established { connection, mut server, for_opener, .. } = established;
    let template = template();
    let body: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
    let mut keyer = registered(connection.client_secret());
    let mut request = connection.seal_request(&template, &head(body.len() as u64)).unwrap();
    let mut stream = request.head.to_bytes();
    request.body.seal_chunk(&body[..10], &mut stream).unwrap();
    request.body.seal_chunk(&body[10..], &mut stream).unwrap();
    assert_eq!(request.body.remaining(), 0);
    assert!(request.body.seal_chunk(b"x", &mut stream).is_err());

    // relay: the head waits for the keyer, then goes out before the body
    let mut input = stream.as_slice();
    let records = HeadCollector::new(HeadShape::Whole).collect(&mut input).unwrap().unwrap();
    assert_eq!(records.digest(), request.head.digest());
    let checked = keyer.check_head(&template, &records).expect("approved");
    let mut out = records.to_bytes();
    let mut meter = BodyMeter::new(checked.content_length());
    meter.body_bytes(input, &mut out).unwrap();
    assert!(meter.is_complete());
    assert_eq!(out, stream);

    let got = server_reads(&mut server, &out);
    let mut expected = template.serialise(&head(body.len() as u64)).unwrap().one().to_vec();
    expected.extend_from_slice(&body);
    assert_eq!(got, expected, "the provider reads the canonical head, then the body");

    // and back, with a change of keys in the middle
    server.writer().write_all(b"first ").unwrap();
    let mut answer = [for_opener, server_writes(&mut server)].concat();
    server.refresh_traffic_keys().unwrap();
    server.writer().write_all(&[b'x'; 50_000]).unwrap();
    answer.extend(server_writes(&mut server));
    let before_close = answer.len();
    server.send_close_notify();
    answer.extend(server_writes(&mut server));
    let (data, updates) = read_all(&mut request.response, &answer, 1000).unwrap();
    assert_eq!((data.len(), updates), (50_006, 1));
    assert_eq!(request.response.ending(), Ending::CloseNotify);
    assert!(before_close < answer.len());
}

#[test]
fn a_request_and_its_answer_cross() {
    exchange(establish(Setup::default().build(), HOST).unwrap());
}

#[test]
fn a_request_and_its_answer_cross_after_a_retry() {
    // the client's first share is X25519MLKEM768 and X25519; a server that knows only P-384 must ask again
    let setup =
        Setup { server_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1], ..Setup::default() };
    let established = establish(setup.build(), HOST).unwrap();
    assert!(established.watch.retried());
    exchange(established);
}

#[test]
fn a_cut_answer_is_not_an_end() {
    let Established { connection, mut server, for_opener, .. } =
        establish(Setup::default().build(), HOST).unwrap();
    let mut request = connection.seal_request(&template(), &head(0)).unwrap();
    server.writer().write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
    let answer = [for_opener, server_writes(&mut server)].concat();
    let (data, _) = read_all(&mut request.response, &answer, 7).unwrap();
    assert_eq!(data, b"HTTP/1.1 200 OK\r\n");
    assert_eq!(request.response.ending(), Ending::Truncated);
}

#[test]
fn a_provider_that_cannot_read_the_head_says_so() {
    let Established { connection, mut server, for_opener, .. } =
        establish(Setup::default().build(), HOST).unwrap();
    let mut request = connection.seal_request(&template(), &head(0)).unwrap();
    let mut bytes = request.head.to_bytes();
    *bytes.last_mut().unwrap() ^= 1;
    server_reads(&mut server, &bytes);
    let answer = [for_opener, server_writes(&mut server)].concat();
    read_all(&mut request.response, &answer, 100).unwrap();
    assert_eq!(request.response.ending(), Ending::Alert(20), "bad_record_mac");
}

#[test]
fn nothing_follows_the_body() {
    let established = establish(Setup::default().build(), HOST).unwrap();
    let mut request = established.connection.seal_request(&template(), &head(10)).unwrap();
    let mut meter = BodyMeter::new(10);
    let (mut body, mut out) = (Vec::new(), Vec::new());
    request.body.seal_chunk(&[0; 10], &mut body).unwrap();
    meter.body_bytes(&body, &mut out).unwrap();
    // a record of a second request, or a close_notify
    assert_eq!(
        meter.body_bytes(&[23, 3, 3, 0, 19], &mut out),
        Err(FramingRefusal::BodyTooLong { content_length: 10 })
    );
    assert_eq!(out, body);
}

/// A client that says something before the head, under the right key: the relay's count makes it the head.
#[test]
fn bytes_before_the_head_are_the_head() {
    let established = establish(Setup::default().build(), HOST).unwrap();
    let secret = established.connection.client_secret();
    let mut keyer = registered(secret);
    let mut sealer = RecordSealer::new(secret);
    let mut stream = Vec::new();
    sealer.seal_into(ContentType::Handshake, &[24, 0, 0, 1, 0], &mut stream).unwrap();
    let records = HeadCollector::new(HeadShape::Whole).collect(&mut stream.as_slice()).unwrap().unwrap();
    assert_eq!(
        keyer.check_head(&template(), &records).err(),
        Some(KeyerRefusal::InnerType { sequence: 0, code: 22 })
    );
}
