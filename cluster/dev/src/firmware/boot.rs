//! One boot: the firmware's events go into the TPM, then the digest of the node's binary into PCR 11.
//!
//! The measured log is what the recorded one says plus that last event. While the TPM stays on it is not measured
//! again, as on a real machine: a node started anew after its binary changed shows the PCRs of the old one.
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use aws_lc_rs::digest::{Context as Hasher, SHA256};
use quorate_attest::{
    eventlog::{self, EV_IPL, Replay},
    reference_values::ReferenceValues,
};
use quorate_attest_tpm::{Tpm, TpmHandle, danger_firmware};

/// The PCRs that show a boot: firmware code, option ROMs, boot loader, Secure Boot policy, and what a unified kernel
/// image and the launcher measure (TCG PC Client Platform Firmware Profile r1.06; PCR 11 is systemd-stub's use).
pub const PCRS: [u8; 5] = [0, 2, 4, 7, 11];
/// Where the node's binary is measured.
const BINARY_PCR: u8 = 11;
/// Every static PCR: the dynamic ones above are not the firmware's.
const STATIC_PCRS: std::ops::Range<u8> = 0..16;
/// How long the TPM may take for a whole boot.
const PATIENCE: Duration = Duration::from_secs(60);

/// The digest of a program, and what the event says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    digest: [u8; 32],
    name: String,
}

/// What happened to the TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// It was just powered on: events were played and the binary measured.
    Played {
        /// How many PCR extensions.
        events: usize,
    },
    /// It had booted before, with this firmware and binary.
    AlreadyBooted,
    /// It had booted before, with another firmware or binary: its PCRs are still theirs.
    BootedOtherwise,
    /// It had booted before, and these PCRs are not what the measured log says.
    Unexplained(Vec<u8>),
}

impl Measurement {
    /// Measures a file.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let hash = || {
            let mut file = File::open(path)?;
            let mut hasher = Hasher::new(&SHA256);
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => return io::Result::Ok(hasher.finish()),
                    read => hasher.update(buffer.get(..read).unwrap_or_default()),
                }
            }
        };
        let digest = hash().with_context(|| format!("cannot measure {}", path.display()))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { digest: digest.as_ref().try_into()?, name })
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The recorded log with this measurement at its end.
    fn append_to(&self, recorded: &[u8]) -> Vec<u8> {
        let mut log = recorded.to_vec();
        eventlog::append_event(&mut log, BINARY_PCR, EV_IPL, &self.digest, self.name.as_bytes());
        log
    }
}

/// Boots the machine of `tpm` unless it is up already. `extra_extend` puts something into a PCR that no log explains.
pub fn boot(
    tpm: &TpmHandle,
    recorded: &[u8],
    binary: &Measurement,
    log_out: &Path,
    extra_extend: Option<u8>,
) -> anyhow::Result<Boot> {
    ensure!(extra_extend.is_none_or(|pcr| STATIC_PCRS.contains(&pcr)), "only PCRs 0 to 15 can be extended");
    let values = tpm.run_blocking(PATIENCE, |tpm| tpm.pcr_values(&static_pcrs()))?;
    let fresh = values.iter().all(|(pcr, value)| *value == eventlog::reset_value(*pcr));
    let outcome = if fresh {
        let log = binary.append_to(recorded);
        let mut extensions = extensions(&log)?;
        // Before the first extension, so that a launcher that dies leaves PCRs unexplained, never a log of another boot.
        write_atomically(log_out, &log)?;
        let events = extensions.len();
        extensions.extend(extra_extend.map(|pcr| (pcr, *b"not mentioned by any event log..")));
        tpm.run_blocking(PATIENCE, move |tpm: &mut Tpm| {
            extensions.into_iter().try_for_each(|(pcr, digest)| danger_firmware::extend_pcr(tpm, pcr, digest))
        })?;
        Boot::Played { events }
    } else {
        let explained = match fs::read(log_out) {
            Ok(log) => Some(log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", log_out.display())),
        };
        // A log that cannot be read explains nothing, which is what the Verifier will find too.
        let replay = explained.as_ref().and_then(|log| eventlog::replay(log).ok());
        let explains = |pcr: u8, value: [u8; 32]| replay.as_ref().is_some_and(|log| log.value(pcr) == value);
        let unexplained: Vec<u8> =
            values.into_iter().filter(|&(pcr, value)| !explains(pcr, value)).map(|(pcr, _)| pcr).collect();
        if !unexplained.is_empty() {
            Boot::Unexplained(unexplained)
        } else if explained == Some(binary.append_to(recorded)) {
            Boot::AlreadyBooted
        } else {
            Boot::BootedOtherwise
        }
    };
    tpm.run_blocking(PATIENCE, |tpm| {
        tpm.close();
        Ok(())
    })?;
    Ok(outcome)
}

/// The values of `pcrs` after a boot with this log and one of these binaries, computed without a TPM.
pub fn reference_values(
    recorded: &[u8],
    binaries: &[Measurement],
    pcrs: &[u8],
) -> anyhow::Result<ReferenceValues> {
    let mut allowed = ReferenceValues::default();
    for binary in binaries {
        let replay: Replay = eventlog::replay(&binary.append_to(recorded))?;
        for &pcr in pcrs {
            ensure!(pcr < eventlog::PCRS, "there is no PCR {pcr}");
            let values = allowed.pcrs.entry(pcr).or_default();
            let value = replay.value(pcr);
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    Ok(allowed)
}

fn static_pcrs() -> Vec<u8> {
    STATIC_PCRS.collect()
}

/// What a log has the firmware extend.
fn extensions(log: &[u8]) -> anyhow::Result<Vec<(u8, [u8; 32])>> {
    // Refuses what could not be replayed later, before anything is extended.
    eventlog::replay(log)?;
    eventlog::events(log)?
        .iter()
        .filter(|event| event.is_extended())
        .map(|event| {
            let pcr = u8::try_from(event.pcr).ok().filter(|pcr| STATIC_PCRS.contains(pcr));
            let pcr = pcr
                .with_context(|| format!("an event for PCR {}, which firmware does not extend", event.pcr))?;
            Ok((pcr, event.sha256.context("an event without a SHA-256 digest")?))
        })
        .collect()
}

fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut unfinished = path.to_path_buf().into_os_string();
    unfinished.push(".new");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::event_log;

    fn measurement(digest: u8) -> Measurement {
        Measurement { digest: [digest; 32], name: "quorated".into() }
    }

    #[test]
    fn another_binary_changes_pcr_11_and_nothing_else() {
        let log = event_log::demo("1.0").unwrap();
        let one = reference_values(&log, &[measurement(1)], &PCRS).unwrap().pcrs;
        let other = reference_values(&log, &[measurement(2)], &PCRS).unwrap().pcrs;
        let differing: Vec<u8> = PCRS.into_iter().filter(|pcr| one[pcr] != other[pcr]).collect();
        assert_eq!(differing, [BINARY_PCR]);
        let both =
            reference_values(&log, &[measurement(1), measurement(2), measurement(1)], &PCRS).unwrap().pcrs;
        assert_eq!(both[&BINARY_PCR], [one[&BINARY_PCR][0], other[&BINARY_PCR][0]]);
        assert_eq!(both[&4].len(), 1);
        assert!(reference_values(&log, &[measurement(1)], &[24]).is_err());
    }

    #[test]
    fn what_is_extended_is_what_replays() {
        let log = measurement(3).append_to(&event_log::demo("1.0").unwrap());
        let replay = eventlog::replay(&log).unwrap();
        let mut values = [[0; 32]; 16];
        for (pcr, digest) in extensions(&log).unwrap() {
            let value = &mut values[usize::from(pcr)];
            *value = eventlog::extend(value, &digest);
        }
        for pcr in STATIC_PCRS {
            assert_eq!(values[usize::from(pcr)], replay.value(pcr), "PCR {pcr}");
        }
    }

    #[test]
    fn a_file_is_measured_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quorated");
        fs::write(&path, vec![7; 200_000]).unwrap();
        let expected = aws_lc_rs::digest::digest(&SHA256, &vec![7; 200_000]);
        assert_eq!(Measurement::of_file(&path).unwrap().digest(), expected.as_ref());
        assert!(Measurement::of_file(&dir.path().join("absent")).is_err());
    }
}
