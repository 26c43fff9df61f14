//! Fuzz targets of everything that reads bytes from a peer, a client, a provider, a disk or a TPM, as plain functions: each takes
//! any bytes, panics when a promise is broken, and says whether the bytes were what they claim to be.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none TARGET`, in `tests`, explores. Tests run the same functions over the committed
//! corpora, mutations of them and random bytes on stable Rust: `node/splitkey/tests/it/fuzz.rs` those of [`splitkey`],
//! `tests/tests/fuzz.rs` the others. A corpus holds `NAME.seed`, made by code from real structures (`QUORATE_WRITE_SEEDS=1 cargo
//! test … fuzz` writes them anew), which the tests hold to be what they claim, and `found-*.seed`, inputs that exploring found.
//!
//! | target | reads | promise beside not to panic |
//! |---|---|---|
//! | [`watch`](splitkey::watch) | legs of a TLS handshake | hands out only prefixes, alike in every cut; nothing after Finished; a refusal is final |
//! | [`heads`](splitkey::heads) | heads of requests | what passes is what the template writes, and has the hole at the end of one known line |
//! | [`records`](splitkey::records) | a client's and a provider's TLS records | readers take and give what came; a body never exceeds its content-length |
//! | [`hole`](splitkey::hole) | a relay's and a keyer's parts of a record | an approved head and its hole read as the head with the key; altered ones are never approved |
//! | [`apply`](log::apply) | commands, batches, leaves, tokens, state | one form of each; an entry has one outcome, leaves fit a tile, the state can be read again |
//! | [`notes`](log::notes) | checkpoints, cosignatures, tiles, requests to a witness | what is read is written the same |
//! | [`proofs`](log::proofs) | proofs, receipts, certificates | one form; none proves another history than the one there was |
//! | [`policies`](log::policies) | policy documents, SSH signatures and keys, trust files | within bounds; a genesis's state can be read again |
//! | [`tpm`](machine::tpm) | public areas, signatures, quotes, EK certificates, approvals | one form; a signed quote passes only with exactly what was asked |
//! | [`eventlogs`](machine::eventlogs) | event logs and IMA lists | replay is what was extended; the quoted prefix is found; no file passes that is not allowed |
//! | [`raft`](peer::raft) | Raft's messages | one settled form; what the guards let through has no gap, no stranger, no commit beyond it |
//! | [`messages`](peer::messages) | every protobuf message | one settled form |
//! | [`wal`](disk::wal) | a damaged log of Raft's | what is read is what was written there |
//! | [`snapshots`](disk::snapshots) | snapshots, sign locks, edges of tile stores | one form; what verifies opens |
//! | [`http`](provider::http) | HTTP/1.1 answers | the cut changes nothing; a body has its length |
//! | [`requests`](provider::requests) | applications' bodies | what is sent on is JSON and of bounded size, or the same bytes |
//! | [`answers`](provider::answers) | providers' answers and streams | the cut changes nothing; bounded; JSON where that is promised |
//!
//! Explored so far, of this list: each target for one or two minutes of the clock, on a machine so busy that a process got no more than
//! 0.3 to 1.5 seconds of CPU in a minute (17 targets, 16 CPU-seconds in all): half a million inputs of `notes`, some hundreds of
//! `apply`, `tpm` and `eventlogs`. That finds what is near the seeds and no more; a CPU-hour each is still owed. Two promises were
//! stated too widely here (`raft`, `answers`); none was found that the product breaks.
pub mod disk;
pub mod input;
pub mod log;
pub mod machine;
pub mod peer;
pub mod provider;
pub mod splitkey;

pub use disk::{snapshots, wal};
pub use log::{apply, notes, policies, proofs};
pub use machine::{eventlogs, tpm};
pub use peer::{messages, raft};
pub use provider::{answers, http, requests};
pub use splitkey::{heads, hole, records, watch};
