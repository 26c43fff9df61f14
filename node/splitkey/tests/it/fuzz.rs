//! The fuzz targets on stable Rust: over their committed seeds, mutations of those, and random bytes. Reproducible: the
//! generator's start is fixed. Exploring is `cargo fuzz`'s work; see `tests/fuzz`.

use std::path::PathBuf;

#[expect(
    unreachable_pub,
    clippy::panic,
    reason = "a crate's functions, which panic when a promise is broken"
)]
#[path = "../../../../tests/fuzz/src/lib.rs"]
mod targets;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] = [
    ("watch", targets::watch),
    ("heads", targets::heads),
    ("records", targets::records),
    ("hole", targets::hole),
];
/// Mutations of each seed, and as many random inputs for each target.
const ROUNDS: usize = 200;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seed"))
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.next() as u8),
                _ => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let copied = bytes[at..end].to_vec();
                    bytes.splice(at..at, copied);
                }
            }
        }
    }
}

#[test]
fn the_targets_hold_over_seeds_mutations_and_noise() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name} has its seeds");
        let mut random = Random(7);
        for seed in &seeds {
            target(seed);
            for _ in 0..ROUNDS {
                let mut mutated = seed.clone();
                random.mutate(&mut mutated);
                target(&mutated);
            }
        }
        for _ in 0..ROUNDS {
            let length = random.below(300);
            let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            target(&noise);
        }
    }
}

/// Writes the seeds: real handshakes, canonical heads, real records. Run it after a change of an input's layout, and
/// review what it wrote.
#[test]
#[ignore = "rewrites tests/fuzz/corpus"]
fn write_seeds() {
    use crate::support::{HOST, Leg, Setup, establish};
    use quorate_splitkey::head::{Head, Header, Method};
    use quorate_splitkey::record::{ContentType, RecordSealer, TrafficSecret};

    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(folder(target)).unwrap();
        std::fs::write(folder(target).join(format!("{name}.seed")), bytes).unwrap();
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
