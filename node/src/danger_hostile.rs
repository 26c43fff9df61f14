//! Only in a deliberately hostile build, which no release can contain: what a node does whose host is owned, and single
//! defences switched off, so that a test can show that they are what stops an attack.
//!
//! Which of it stands in the file `danger-hostile` beside the node's configuration, a word a line, read anew each time:
//!
//! ```text
//! off:NAME              the defence that refuses with this name is off
//! relay:elsewhere=ADDR  connects there instead of the route's host
//! relay:no-leaf         forwards without asking for a leaf: asks the keyer alone
//! relay:withhold        keeps an authorised request from its keyer, and the request's id
//! relay:other-request   as no-leaf, and names the request it withheld
//! relay:ask-twice       asks the keyer again after its answer
//! relay:flip            flips a bit of the key
//! relay:replay-hole     puts the hole of the last connection in the place of this one's
//! relay:hole-twice      sends the hole twice
//! relay:reorder         sends the hole before the head
//! relay:alter-up        flips a bit of the body, after it was approved
//! relay:alter-down      flips a bit of the answer
//! relay:delay=MS        takes the request on a detour of so long, and says so in its settlement
//! relay:delay-unsaid=MS the same, and hides it from its settlement
//! keyer:no-leaf         answers without a leaf
//! keyer:flip            flips a bit of the key
//! keyer:false-key       answers with a false one-time key
//! keyer:longer-body     says that the body is a MiB longer
//! leader:campaign       campaigns until it leads
//! leader:withhold       puts nothing that clients signed into its batches
//! cosign:two-roots      signs another root, too, at each size
//! clock:ahead=MS        its clock is so far ahead
//! ```
//! What stands in the file `danger-hostile-inject` beside it (borsh: commands, each with its blobs) goes into the log as soon as
//! the node leads, whoever signed it or did not; then the file is removed.
//!
//! Without those files it is an honest node. Every place that looks here says `danger-hostile`.
use crate::pool::PoolFacts;
use bytes::Bytes;
use quorate_core::command::Command;
use quorate_core::ids::{ConnectionId, RequestId};
use quorate_proto::v1;
use quorate_splitkey::danger_hostile::name_of;
use quorate_splitkey::record::{HEADER_LEN, SECRET_LEN, TrafficSecret};
use quorate_splitkey::share::Complement;
use std::collections::HashMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// The bit of the key that is flipped: it stays visible ASCII.
const FLIPPED: usize = 3;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// What it keeps of what it saw.
#[derive(Default)]
struct Kept {
    secrets: HashMap<ConnectionId, (PoolFacts, [u8; SECRET_LEN])>,
    withheld: Option<RequestId>,
    hole: Option<Vec<u8>>,
}

/// Arms the node: what it shall do stands in this folder.
pub fn arm(folder: &Path) {
    let _armed_before = FOLDER.set(folder.to_owned());
    quorate_splitkey::danger_hostile::arm(off);
    quorate_core::danger_hostile::arm(off);
}

/// What stands behind `WORD=`.
pub(crate) fn value(word: &str) -> Option<String> {
    let words = std::fs::read_to_string(FOLDER.get()?.join("danger-hostile")).ok()?;
    words.lines().find_map(|line| Some(line.strip_prefix(word)?.strip_prefix('=')?.to_owned()))
}

/// Whether it shall do this.
pub(crate) fn is(word: &str) -> bool {
    let words = FOLDER.get().and_then(|folder| std::fs::read_to_string(folder.join("danger-hostile")).ok());
    words.is_some_and(|words| words.lines().any(|line| line == word))
}

/// Whether the defence that refuses with this name is off.
pub(crate) fn off(check: &str) -> bool {
    is(&format!("off:{check}"))
}

/// Whether the defence that refused so is off.
pub(crate) fn waives(refusal: &impl Debug) -> bool {
    off(&name_of(refusal))
}

fn kept() -> MutexGuard<'static, Option<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A keyer that keeps what it should forget.
pub(crate) fn remember(connection: ConnectionId, pool: &PoolFacts, secret: &TrafficSecret) {
    if FOLDER.get().is_none() {
        return;
    }
    let mut kept = kept();
    let secrets = &mut kept.get_or_insert_default().secrets;
    secrets.insert(connection, (pool.clone(), *secret.expose_bytes()));
}

/// A connection it remembers.
pub(crate) fn remembered(connection: &ConnectionId) -> Option<(PoolFacts, TrafficSecret)> {
    let (pool, secret) = kept().as_ref()?.secrets.get(connection)?.clone();
    Some((pool, TrafficSecret::new(secret)))
}

/// Keeps a request from its keyer, for ever.
pub(crate) async fn withhold(request: RequestId) {
    if is("relay:withhold") {
        kept().get_or_insert_default().withheld = Some(request);
        tracing::warn!(%request, "danger-hostile: withheld");
        std::future::pending::<()>().await;
    }
}

/// The request it names to a keyer.
pub(crate) fn named(request: RequestId) -> RequestId {
    let withheld = kept().as_ref().and_then(|k| k.withheld);
    withheld.filter(|_| is("relay:other-request")).unwrap_or(request)
}

/// Its own share with a bit flipped, if it shall.
pub(crate) fn flipped(complement: &Complement) -> Option<Complement> {
    if !is("relay:flip") {
        return None;
    }
    let mut bytes = Zeroizing::new(complement.expose_bytes().to_vec());
    flip(&mut bytes);
    Complement::new(bytes).ok()
}

fn flip(bytes: &mut [u8]) {
    if let Some(byte) = bytes.get_mut(FLIPPED) {
        *byte ^= 1;
    }
}

/// What leaves the keyer instead of its answer.
pub(crate) fn altered(answer: v1::HoleAnswer) -> v1::HoleAnswer {
    let v1::HoleAnswer { pad, one_time_key, mut content_length } = answer;
    let (mut pad, mut one_time_key) = (pad.to_vec(), one_time_key.to_vec());
    if is("keyer:flip") {
        flip(&mut pad);
    }
    if is("keyer:false-key") {
        flip(&mut one_time_key);
    }
    if is("keyer:longer-body") {
        content_length += 1 << 20;
    }
    v1::HoleAnswer { pad: Bytes::from(pad), one_time_key: Bytes::from(one_time_key), content_length }
}

/// Head, hole, head, as the relay sends them.
pub(crate) fn rearrange(pending: &mut Vec<u8>) {
    if FOLDER.get().is_none() {
        return;
    }
    let mut rest = pending.as_slice();
    let mut records = Vec::new();
    while let Some([high, low]) = rest.get(3..HEADER_LEN) {
        let length = HEADER_LEN + usize::from(u16::from_be_bytes([*high, *low]));
        let Some((record, after)) = rest.split_at_checked(length) else { return };
        records.push(record.to_vec());
        rest = after;
    }
    let [one, hole, two] = records.as_slice() else { return };
    let before = kept().get_or_insert_default().hole.replace(hole.clone());
    if is("relay:reorder") {
        *pending = [hole.as_slice(), one, two].concat();
    } else if is("relay:hole-twice") {
        *pending = [one.as_slice(), hole, hole, two].concat();
    } else if let (true, Some(before)) = (is("relay:replay-hole"), before) {
        *pending = [one.as_slice(), &before, two].concat();
    }
}

/// What it puts into the log although nobody may.
pub(crate) fn injected() -> Vec<(Command, Vec<Vec<u8>>)> {
    let Some(file) = FOLDER.get().map(|folder| folder.join("danger-hostile-inject")) else {
        return Vec::new();
    };
    let Ok(bytes) = std::fs::read(&file) else { return Vec::new() };
    let _taken = std::fs::remove_file(&file);
    let injected: Vec<(Command, Vec<Vec<u8>>)> = borsh::from_slice(&bytes).unwrap_or_default();
    tracing::warn!(commands = injected.len(), "danger-hostile: injecting");
    injected
}

/// What a leader that withholds puts into its batch.
pub(crate) fn censored(mut commands: Vec<Command>) -> Vec<Command> {
    if is("leader:withhold") {
        commands.retain(|c| !matches!(c, Command::Client(_)));
    }
    commands
}

/// How far its clock is ahead, ms.
pub(crate) fn ahead_ms() -> u64 {
    value("clock:ahead").and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

/// Flips a bit of what was added to `bytes` from `from` on, if it shall do this.
pub(crate) fn alter(word: &str, bytes: &mut [u8], from: usize) {
    if is(word)
        && bytes.len() > from
        && let Some(last) = bytes.last_mut()
    {
        *last ^= 1;
    }
}

/// Takes its time, if it shall.
pub(crate) async fn detour(word: &str) {
    if let Some(ms) = value(word).and_then(|ms| ms.parse().ok()) {
        tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
    }
}
