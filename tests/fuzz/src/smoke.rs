//! The targets on stable Rust: over their committed seeds, mutations of those, and random bytes. Reproducible: the generator's
//! start is fixed. Exploring is `cargo fuzz`'s work.
//!
//! Crates take this file as a module of their tests.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Mutations of each seed, and random inputs for each target, at most.
const ROUNDS: usize = 200;

/// What code makes seeds of, if somebody asked to have them written.
pub fn writes_seeds() -> bool {
    std::env::var_os("QUORATE_WRITE_SEEDS").is_some()
}

/// A target's corpus.
pub fn folder(target: &str) -> PathBuf {
    // from the folder of a test's crate, wherever that is
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.ancestors().find(|folder| folder.join("tests/fuzz/corpus").is_dir());
    root.unwrap_or(own).join("tests/fuzz/corpus").join(target)
}

/// The committed seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder(target)) else { return vec![] };
    let mut all: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seed"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

/// Writes a seed.
pub fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder(target)).unwrap();
    std::fs::write(folder(target).join(format!("{name}.seed")), bytes).unwrap();
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

/// Runs a target over its seeds, mutations of them and noise, for no longer than this once each seed was seen, or for as long as
/// `QUORATE_FUZZ_SECONDS` says. A seed that code made is what it claims to be.
pub fn run(targets: &[Target], each: Duration) {
    for (name, target) in targets {
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name} has its seeds");
        let mut random = Random(7);
        for (seed, bytes) in &seeds {
            let accepted = target(bytes);
            assert!(
                accepted || seed.starts_with("found-"),
                "{name}/{seed} is not what it claims: write the seeds anew"
            );
        }
        let begun = Instant::now();
        let mut inputs = seeds.len();
        let longer = std::env::var("QUORATE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
        let (each, rounds) = longer.map_or((each, ROUNDS), |s| (Duration::from_secs(s), usize::MAX));
        'rounds: for _ in 0..rounds {
            for (_, bytes) in &seeds {
                let mut mutated = bytes.clone();
                random.mutate(&mut mutated);
                target(&mutated);
                inputs += 1;
            }
            let length = random.below(300);
            let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            target(&noise);
            inputs += 1;
            if begun.elapsed() > each {
                break 'rounds;
            }
        }
        println!("{name}: {} seeds, {inputs} inputs in {:.1} s", seeds.len(), begun.elapsed().as_secs_f64());
    }
}
