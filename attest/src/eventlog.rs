//! The firmware's event log: parsed, and replayed to the PCR values that it explains.
//!
//! Implements the crypto-agile format of TCG "PC Client Platform Firmware Profile r1.06", "Event Logging". What it decides
//! is only which SHA-256 PCR values follow from the log; whether those are good is for [`crate::reference_values`]. It
//! refuses logs of SHA-1 digests alone, events without a SHA-256 digest, digest algorithms the Spec ID header does not
//! declare, and anything cut short. It assumes nothing of the event *data*, which no digest here is checked against: in most
//! event types data and digest are different things, so data explains a log to people and proves nothing.
use std::collections::BTreeMap;

use crate::read::{ReadError, Reader};
use crate::tpm::HashAlg;

/// Largest log read. Those of real machines have 10 to 80 KB; certificate revocation lists can add a few hundred.
pub const EVENT_LOG_BYTES_MAX: usize = 1 << 20;
/// Most events in one log. Real ones have 20 to 200.
pub const EVENTS_MAX: usize = 8192;
/// Most digest algorithms one header may declare.
const ALGORITHMS_MAX: u32 = 16;
/// Largest digest: SHA-512.
const DIGEST_BYTES_MAX: u16 = 64;
/// PCRs of a PC: 0 to 23.
pub const PCRS: u8 = 24;

/// The event type that informs and is not extended.
pub const EV_NO_ACTION: u32 = 0x0000_0003;
/// A separator between firmware and what it starts.
pub const EV_SEPARATOR: u32 = 0x0000_0004;
/// Something measured by software after the firmware (Initial Program Loader).
pub const EV_IPL: u32 = 0x0000_000d;

const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
const ALG_SHA256: u16 = 0x000b;

/// Why a log explains nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// More than [`EVENT_LOG_BYTES_MAX`] bytes, or a length inside beyond its bound.
    #[error("the event log, or a length in it, exceeds its bound")]
    TooLong,
    /// More than [`EVENTS_MAX`] events.
    #[error("the event log has more than {EVENTS_MAX} events")]
    TooManyEvents,
    /// The log ends inside an event, or has no event at all.
    #[error("the event log is cut short in event {event}")]
    Short {
        /// Which event, from 0, the header.
        event: usize,
    },
    /// The log has no `Spec ID Event03` header: it is of the legacy format, whose digests are SHA-1 only.
    #[error("the event log is not crypto-agile: it holds SHA-1 digests only, or is no event log")]
    NotCryptoAgile,
    /// The header declares no SHA-256 digests, or of a wrong size.
    #[error("the event log has no SHA-256 bank")]
    NoSha256,
    /// The header contradicts itself.
    #[error("the event log's Spec ID header is malformed")]
    Header,
    /// An event has a digest of an algorithm that the header does not declare, or one twice.
    #[error("event {event} has digests the header does not announce, or one twice")]
    Digests {
        /// Which event.
        event: usize,
    },
    /// An event that is extended has no SHA-256 digest.
    #[error("event {event} has no SHA-256 digest")]
    EventWithoutSha256 {
        /// Which event.
        event: usize,
    },
    /// An event is extended into a PCR that does not exist.
    #[error("event {event} is for PCR {pcr}, which does not exist")]
    NoSuchPcr {
        /// Which event.
        event: usize,
        /// The PCR it names.
        pcr: u32,
    },
    /// A second StartupLocality event, one after PCR 0 was extended, or with a locality that starts no TPM.
    #[error("event {event} states a startup locality that cannot be")]
    StartupLocality {
        /// Which event.
        event: usize,
    },
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// PCR index; any number where nothing is extended.
    pub pcr: u32,
    /// TCG event type.
    pub event_type: u32,
    /// The digest for the SHA-256 bank.
    pub sha256: Option<[u8; 32]>,
    /// Event data, for people.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// Whether the firmware extended a PCR for it.
    pub fn is_extended(&self) -> bool {
        self.event_type != EV_NO_ACTION
    }
}

/// What a log explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    values: BTreeMap<u8, [u8; 32]>,
}

impl Replay {
    /// The value of `pcr` after the last event; its reset value where no event touched it.
    pub fn value(&self, pcr: u8) -> [u8; 32] {
        self.values.get(&pcr).copied().unwrap_or_else(|| reset_value(pcr))
    }

    /// The PCRs that events touched, with their values.
    pub fn touched(&self) -> &BTreeMap<u8, [u8; 32]> {
        &self.values
    }
}

/// The value of a PCR after TPM2_Startup(CLEAR): ones for the dynamic ones 17 to 22, zeros for the rest (TCG "PC Client
/// Platform TPM Profile 1.05", "PCR Attributes").
pub fn reset_value(pcr: u8) -> [u8; 32] {
    if (17..=22).contains(&pcr) { [0xff; 32] } else { [0; 32] }
}

/// TPM2_PCR_Extend in the SHA-256 bank.
pub fn extend(value: &[u8; 32], digest: &[u8; 32]) -> [u8; 32] {
    let mut both = [0; 64];
    let (first, second) = both.split_at_mut(32);
    first.copy_from_slice(value);
    second.copy_from_slice(digest);
    sha256(&both)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(HashAlg::Sha256.digest(bytes).as_ref());
    out
}

/// Reads every event after the header. The log must end where its last event ends.
pub fn events(log: &[u8]) -> Result<Vec<Event<'_>>, EventLogError> {
    if log.len() > EVENT_LOG_BYTES_MAX {
        return Err(EventLogError::TooLong);
    }
    let mut r = Reader::new(log);
    let sizes = header(&mut r)?;
    let mut events = Vec::new();
    while !r.is_empty() {
        if events.len() == EVENTS_MAX {
            return Err(EventLogError::TooManyEvents);
        }
        let number = events.len() + 1;
        events.push(event(&mut r, &sizes, number)?);
    }
    Ok(events)
}

/// Replays a log from the reset values.
pub fn replay(log: &[u8]) -> Result<Replay, EventLogError> {
    let mut values: BTreeMap<u8, [u8; 32]> = BTreeMap::new();
    let mut locality_seen = false;
    for (event, number) in events(log)?.iter().zip(1usize..) {
        if !event.is_extended() {
            // "Event Logging", EV_NO_ACTION: PCR 0 starts from the locality of TPM2_Startup.
            if let Some(locality) = event.data.strip_prefix(STARTUP_LOCALITY) {
                let &[locality @ (0 | 3 | 4)] = locality else {
                    return Err(EventLogError::StartupLocality { event: number });
                };
                if event.pcr != 0 || locality_seen || values.contains_key(&0) {
                    return Err(EventLogError::StartupLocality { event: number });
                }
                locality_seen = true;
                let mut start = [0; 32];
                if let Some(last) = start.last_mut() {
                    *last = locality;
                }
                values.insert(0, start);
            }
            continue;
        }
        let pcr = u8::try_from(event.pcr).ok().filter(|pcr| *pcr < PCRS);
        let pcr = pcr.ok_or(EventLogError::NoSuchPcr { event: number, pcr: event.pcr })?;
        let digest = event.sha256.ok_or(EventLogError::EventWithoutSha256 { event: number })?;
        let value = values.entry(pcr).or_insert_with(|| reset_value(pcr));
        *value = extend(value, &digest);
    }
    Ok(Replay { values })
}

/// TCG_PCClientPCREvent that holds a TCG_EfiSpecIdEvent. Returns each declared algorithm with its digest size.
fn header(r: &mut Reader<'_>) -> Result<BTreeMap<u16, u16>, EventLogError> {
    let cut = |e: ReadError| match e {
        ReadError::Short => EventLogError::Short { event: 0 },
        ReadError::TooLong => EventLogError::TooLong,
    };
    let pcr = r.u32_le().map_err(cut)?;
    let event_type = r.u32_le().map_err(cut)?;
    if pcr != 0 || event_type != EV_NO_ACTION {
        return Err(EventLogError::NotCryptoAgile);
    }
    let _sha1: [u8; 20] = r.array().map_err(cut)?;
    let data = r.sized_le(EVENT_LOG_BYTES_MAX).map_err(cut)?;
    let data = data.strip_prefix(SPEC_ID_03).ok_or(EventLogError::NotCryptoAgile)?;
    spec_id(&mut Reader::new(data)).map_err(|_| EventLogError::Header)?.ok_or(EventLogError::Header).and_then(
        |sizes| match sizes.get(&ALG_SHA256) {
            Some(32) => Ok(sizes),
            _ => Err(EventLogError::NoSha256),
        },
    )
}

/// TCG_EfiSpecIdEvent after its signature. `None` where a value cannot be.
fn spec_id(r: &mut Reader<'_>) -> Result<Option<BTreeMap<u16, u16>>, ReadError> {
    let _platform_class = r.u32_le()?;
    let _version_and_uintn_size: [u8; 4] = r.array()?;
    let count = r.u32_le()?;
    if count > ALGORITHMS_MAX {
        return Ok(None);
    }
    let mut sizes = BTreeMap::new();
    for _ in 0..count {
        let algorithm = r.u16_le()?;
        let size = r.u16_le()?;
        if size == 0 || size > DIGEST_BYTES_MAX || sizes.insert(algorithm, size).is_some() {
            return Ok(None);
        }
    }
    let vendor_info = usize::from(r.u8()?);
    r.take(vendor_info)?;
    Ok(r.is_empty().then_some(sizes))
}

/// TCG_PCR_EVENT2.
fn event<'a>(
    r: &mut Reader<'a>,
    sizes: &BTreeMap<u16, u16>,
    number: usize,
) -> Result<Event<'a>, EventLogError> {
    let cut = |e: ReadError| match e {
        ReadError::Short => EventLogError::Short { event: number },
        ReadError::TooLong => EventLogError::TooLong,
    };
    let pcr = r.u32_le().map_err(cut)?;
    let event_type = r.u32_le().map_err(cut)?;
    let count = r.u32_le().map_err(cut)?;
    if usize::try_from(count).is_ok_and(|count| count > sizes.len()) {
        return Err(EventLogError::Digests { event: number });
    }
    let mut seen = Vec::new();
    let mut sha256 = None;
    for _ in 0..count {
        let algorithm = r.u16_le().map_err(cut)?;
        let size = sizes.get(&algorithm).filter(|_| !seen.contains(&algorithm));
        let size = *size.ok_or(EventLogError::Digests { event: number })?;
        seen.push(algorithm);
        if algorithm == ALG_SHA256 {
            sha256 = Some(r.array().map_err(cut)?);
        } else {
            r.take(usize::from(size)).map_err(cut)?;
        }
    }
    let data = r.sized_le(EVENT_LOG_BYTES_MAX).map_err(cut)?;
    Ok(Event { pcr, event_type, sha256, data })
}

/// A log without events: the Spec ID header of a SHA-256 bank alone.
pub fn new_log() -> Vec<u8> {
    let mut spec = SPEC_ID_03.to_vec();
    spec.extend(0u32.to_le_bytes()); // platform class: client
    spec.extend([0, 2, 0, 2]); // version 2.0, UINTN of 8 bytes
    spec.extend(1u32.to_le_bytes());
    spec.extend(ALG_SHA256.to_le_bytes());
    spec.extend(32u16.to_le_bytes());
    spec.push(0);
    let mut log = 0u32.to_le_bytes().to_vec();
    log.extend(EV_NO_ACTION.to_le_bytes());
    log.extend([0; 20]);
    log.extend(u32::try_from(spec.len()).unwrap_or_default().to_le_bytes());
    log.extend(spec);
    log
}

/// Appends one event to a log that has a Spec ID header with a SHA-256 bank. An event longer than a log may be
/// ([`EVENT_LOG_BYTES_MAX`]) is cut to that, so that what is written can be read.
pub fn append_event(log: &mut Vec<u8>, pcr: u8, event_type: u32, sha256_digest: &[u8; 32], data: &[u8]) {
    let data = data.get(..EVENT_LOG_BYTES_MAX).unwrap_or(data);
    log.extend(u32::from(pcr).to_le_bytes());
    log.extend(event_type.to_le_bytes());
    log.extend(1u32.to_le_bytes());
    log.extend(ALG_SHA256.to_le_bytes());
    log.extend(sha256_digest);
    log.extend(u32::try_from(data.len()).unwrap_or_default().to_le_bytes());
    log.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(log: &mut Vec<u8>, pcr: u8, locality: &[u8]) {
        append_event(log, pcr, EV_NO_ACTION, &[0; 32], &[STARTUP_LOCALITY, locality].concat());
    }

    #[test]
    fn what_is_appended_is_replayed() {
        let mut log = new_log();
        append_event(&mut log, 4, EV_IPL, &[1; 32], b"one");
        append_event(&mut log, 4, EV_IPL, &[2; 32], b"two");
        append_event(&mut log, 17, EV_IPL, &[3; 32], b"");
        append_event(&mut log, 5, EV_NO_ACTION, &[4; 32], b"not extended");
        let replay = replay(&log).unwrap();
        assert_eq!(replay.value(4), extend(&extend(&[0; 32], &[1; 32]), &[2; 32]));
        assert_eq!(replay.value(17), extend(&[0xff; 32], &[3; 32]), "a dynamic PCR starts from ones");
        assert_eq!((replay.value(5), replay.value(18)), ([0; 32], [0xff; 32]));
        let parsed = events(&log).unwrap();
        assert_eq!(parsed[1].data, b"two");
        assert!(parsed[0].is_extended() && !parsed[3].is_extended());
    }

    #[test]
    fn pcr_0_starts_from_the_startup_locality() {
        let mut log = new_log();
        locality(&mut log, 0, &[3]);
        append_event(&mut log, 0, EV_IPL, &[1; 32], b"");
        let mut start = [0; 32];
        start[31] = 3;
        assert_eq!(replay(&log).unwrap().value(0), extend(&start, &[1; 32]));
    }

    #[test]
    fn each_refusal() {
        let twin = || {
            let mut log = new_log();
            append_event(&mut log, 0, EV_IPL, &[1; 32], b"data");
            log
        };
        replay(&twin()).expect("the twin passes");
        let at = new_log().len();
        type Row = (&'static str, fn(&mut Vec<u8>, usize), EventLogError);
        let rows: Vec<Row> = vec![
            ("no Spec ID header", |l, _| l[32] = b's', EventLogError::NotCryptoAgile),
            ("a header of another type", |l, _| l[4] = 8, EventLogError::NotCryptoAgile),
            ("a header that ends early", |l, _| l.truncate(30), EventLogError::Short { event: 0 }),
            ("two algorithms where one is", |l, _| l[56] = 2, EventLogError::Header),
            ("a hundred algorithms", |l, _| l[56] = 100, EventLogError::Header),
            ("SHA-1 only", |l, _| l[60] = 4, EventLogError::NoSha256),
            ("SHA-256 of 20 bytes", |l, _| l[62] = 20, EventLogError::NoSha256),
            ("vendor data that is not there", |l, _| l[64] = 1, EventLogError::Header),
            ("PCR 24", |l, at| l[at] = 24, EventLogError::NoSuchPcr { event: 1, pcr: 24 }),
            (
                "two digests where one is announced",
                |l, at| l[at + 8] = 2,
                EventLogError::Digests { event: 1 },
            ),
            ("a digest not announced", |l, at| l[at + 12] = 4, EventLogError::Digests { event: 1 }),
            (
                "no digest",
                |l, at| {
                    l[at + 8] = 0;
                    l.drain(at + 12..at + 46);
                },
                EventLogError::EventWithoutSha256 { event: 1 },
            ),
            ("cut in the data", |l, _| l.truncate(l.len() - 1), EventLogError::Short { event: 1 }),
            ("a byte too many", |l, _| l.push(0), EventLogError::Short { event: 2 }),
            ("data of 4 GiB", |l, at| l[at + 46..at + 50].fill(0xff), EventLogError::TooLong),
            ("a huge log", |l, _| l.resize(EVENT_LOG_BYTES_MAX + 1, 0), EventLogError::TooLong),
            (
                "a startup locality after PCR 0 was extended",
                |l, _| locality(l, 0, &[3]),
                EventLogError::StartupLocality { event: 2 },
            ),
            (
                "locality 1 starts no TPM",
                |l, at| {
                    l.truncate(at);
                    locality(l, 0, &[1]);
                },
                EventLogError::StartupLocality { event: 1 },
            ),
            (
                "a startup locality of PCR 1",
                |l, at| {
                    l.truncate(at);
                    locality(l, 1, &[3]);
                },
                EventLogError::StartupLocality { event: 1 },
            ),
            (
                "two startup localities",
                |l, at| {
                    l.truncate(at);
                    locality(l, 0, &[0]);
                    locality(l, 0, &[0]);
                },
                EventLogError::StartupLocality { event: 2 },
            ),
            (
                "too many events",
                |l, _| {
                    for _ in 0..EVENTS_MAX {
                        append_event(l, 1, EV_IPL, &[0; 32], b"");
                    }
                },
                EventLogError::TooManyEvents,
            ),
        ];
        for (name, mutate, expected) in rows {
            let mut log = twin();
            mutate(&mut log, at);
            assert_eq!(replay(&log).expect_err(name), expected, "{name}");
        }
    }
}
