//! The fuzz targets of this crate on stable Rust. Exploring is `cargo fuzz`'s work; see `tests/fuzz`.

use std::time::Duration;

#[expect(
    unreachable_pub,
    clippy::panic,
    reason = "a crate's functions, which panic when a promise is broken"
)]
#[path = "../../../../tests/fuzz/src/splitkey.rs"]
mod targets;

#[expect(unreachable_pub, reason = "a crate's functions")]
#[path = "../../../../tests/fuzz/src/smoke.rs"]
mod smoke;

const TARGETS: [smoke::Target; 4] = [
    ("watch", targets::watch),
    ("heads", targets::heads),
    ("records", targets::records),
    ("hole", targets::hole),
];
/// For each target, beside its seeds.
const EACH: Duration = Duration::from_secs(3);

#[test]
fn the_targets_hold_over_seeds_mutations_and_noise() {
    smoke::run(&TARGETS, EACH);
}

/// Makes the seeds: real handshakes, canonical heads, real records. `QUORATE_WRITE_SEEDS=1` writes them; review what it wrote.
#[test]
fn what_code_makes_seeds_of_is_committed() {
    use crate::support::{HOST, Leg, Setup, establish};
    use quorate_splitkey::head::{Head, Header, Method};
    use quorate_splitkey::record::{ContentType, RecordSealer, TrafficSecret};

    let write = |target: &str, name: &str, bytes: &[u8]| {
        if smoke::writes_seeds() {
            smoke::write(target, name, bytes);
        }
        let path = smoke::folder(target).join(format!("{name}.seed"));
        assert!(path.is_file(), "{} is missing: write the seeds", path.display());
    };
    let legs = |legs: &[Leg]| {
        let mut out = Vec::new();
        for leg in legs {
            let (side, bytes) = match leg {
                Leg::Client(bytes) => (1, bytes),
                Leg::Provider(bytes) => (0, bytes),
            };
            out.push(side);
            out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend(bytes);
        }
        out
    };
    let groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
    let plain = establish(Setup::default().build(), HOST).unwrap().legs;
    let retry = establish(Setup { server_groups: groups, ..Setup::default() }.build(), HOST).unwrap().legs;
    write("watch", "plain", &legs(&plain));
    write("watch", "retry", &legs(&retry));
    write(
        "watch",
        "with-head",
        &legs(&[&plain[..], &[Leg::Client(b"\x17\x03\x03\x00\x20".to_vec())]].concat()),
    );
    write("watch", "hello-only", &legs(&plain[..1]));

    let headers = vec![Header { name: "content-type".into(), value: "application/json".into() }];
    let post = Head { method: Method::Post, path: "/v1/messages".into(), headers, content_length: 42 };
    let get = Head { method: Method::Get, path: "/v1/models".into(), headers: vec![], content_length: 0 };
    for (at, template) in targets::templates().iter().enumerate() {
        for (name, head) in [("post", &post), ("get", &get)] {
            let parts = template.serialise(head).unwrap();
            let length = u16::try_from(parts.one().len()).unwrap().to_be_bytes();
            let bytes = [&[at as u8], &length[..], parts.one(), parts.two().unwrap_or_default()].concat();
            write("heads", &format!("{name}-{at}"), &bytes);
        }
    }

    let mut sealer = RecordSealer::new(&TrafficSecret::new([1; 32]));
    let mut stream = Vec::new();
    for (inner, content) in [
        (ContentType::ApplicationData, &b"HTTP/1.1 200 OK\r\n"[..]),
        (ContentType::Handshake, &[4, 0, 0, 3, 1, 2, 3]),
        (ContentType::ApplicationData, b"body"),
        (ContentType::Alert, &[1, 0]),
    ] {
        sealer.seal_into(inner, content, &mut stream).unwrap();
    }
    write("records", "stream", &[&[0, 100], &stream[..]].concat());
    write("records", "short-body", &[&[0, 3], &stream[..]].concat());
    write(
        "records",
        "choices",
        b"\x01\x00\x04\x05hello\x03\x04\x02ok\x00\x07\x04\x00\x00\x03abc\x01\x02\x01\x00",
    );

    let pad = [&[0x5a; 32][..], &[0x17]].concat();
    for (at, flip) in [0xff_ff_ff, 40, 900u32].into_iter().enumerate() {
        let flip = flip.to_be_bytes();
        let bytes =
            [&[3; 32][..], &[at as u8], &flip[1..], &[9; 32], b"\x04body", &[5; 32], &[0, 1], &pad].concat();
        write("hole", &format!("flip-{at}"), &bytes);
    }
}
