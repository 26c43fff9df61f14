//! Appraisal (RFC 9334 §8.4): Evidence, its logs, the enrolled AK and what admins signed go in; [`Appraised`] or the one
//! fact that speaks against the node comes out.
//!
//! The checks, in this order:
//!
//!  0. The policy itself can be appraised against: it selects something, and nothing that proves nothing.
//!  1. The signature verifies under the *enrolled* AK; nothing before this line came from the TPM.
//!  2. `magic` says that the TPM made the structure.
//!  3. It is a quote, well formed to the last byte.
//!  4. The qualifying data is the expected one: node, boot keys and log position, or a challenge.
//!  5. The PCR selection is exactly the policy's, in the SHA-256 bank alone, and so are the values sent along.
//!  6. The quoted digest is that of these values.
//!  7. The event log is the one the Evidence names.
//!  8. Replaying it gives every quoted PCR; one that no event touched has its reset value.
//!  9. Where IMA is used, a prefix of its list gives PCR 10, and every file in it is allowed.
//! 10. The counters are not below those seen before.
//! 11. Every quoted PCR has one of its reference values. None given is a refusal, never a skipped check.
//! 12. The firmware version is a reference value, where there are any.
//! 13. A TPM in software is permitted.
//!
//! Assumed: the AK is the one of the node in question, the expected qualifying data is fresh, and the policy's signatures
//! were verified. When the result expires is the caller's to say; it knows entry time, this module knows none. What is not
//! checked is a field of the result: [`Appraised::not_checked`].
use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::endorsement::EnrolledAk;
use crate::eventlog::{self, EventLogError, PCRS};
use crate::evidence::Evidence;
use crate::ima::{self, IMA_PCR, ImaError};
use crate::reference_values::ReferenceValues;
use crate::tpm::{ATTEST_BYTES_MAX, Quote, SignatureError, TpmError, TpmSignature};

/// PCR of debuggers, which software may reset at any time.
const PCR_DEBUG: u8 = 16;
/// PCR of applications, which software may reset at any time.
const PCR_APPLICATION: u8 = 23;

/// What policy demands of every node's Evidence.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppraisalPolicy {
    /// The PCRs of the SHA-256 bank that a quote covers, no more and no fewer.
    pub selection: BTreeSet<u8>,
    /// Whether a TPM in software will do: for trials and development, because whoever has root can copy such a TPM.
    #[serde(default)]
    pub allow_software_tpm: bool,
}

/// The blobs that the Evidence names by digest.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// TCG PC Client event log.
    pub event_log: &'a [u8],
    /// IMA measurement list, where PCR 10 is quoted.
    pub ima: Option<&'a [u8]>,
}

/// The TPM's own counters, which only rise. TPM 2.0 Library r1.59 Part 2, TPMS_CLOCK_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Counters {
    /// Milliseconds the TPM has been powered since it was last cleared.
    pub clock_ms: u64,
    /// Power cycles.
    pub reset_count: u32,
    /// Restarts and resumes since the last power cycle.
    pub restart_count: u32,
}

/// Something that an appraisal leaves open, so that nobody takes it for done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotChecked {
    /// What runs now: a quote says what booted.
    RuntimeState,
    /// That the TPM stands in the machine that speaks: a quote can be relayed to a TPM elsewhere.
    Proximity,
    /// Event data: the firmware digests something else for most event types.
    EventData,
    /// The qualified Name of the signer: the AK's enrolment fixed its Name, and its hierarchy is not looked at again.
    QualifiedSigner,
    /// The TPM's firmware version: no reference values were given.
    FirmwareVersion,
    /// IMA's file signatures: files are allowed by digest.
    ImaSignatures,
}

/// Evidence that passed every check of [`appraise`], which alone makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appraised {
    counters: Counters,
    clock_safe: bool,
    firmware_version: u64,
    software_tpm: bool,
    machine_reset: bool,
    ima_entries: Option<usize>,
    not_checked: Vec<NotChecked>,
}

impl Appraised {
    /// The TPM's counters in this quote: the floor for the next.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The TPM's `safe` flag: whether it knows that it never reported a higher clock. Unset after an unorderly stop, until
    /// the TPM has stored its clock again (at most 70 minutes); no reason to refuse, as the counters order quotes without it.
    pub fn clock_safe(&self) -> bool {
        self.clock_safe
    }

    /// The TPM vendor's firmware version.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// Whether the AK lives in a TPM in software, to label the result with.
    pub fn software_tpm(&self) -> bool {
        self.software_tpm
    }

    /// Whether the machine was reset or restarted since the floor: what its memory held then is gone.
    pub fn machine_reset(&self) -> bool {
        self.machine_reset
    }

    /// How many entries of the IMA list the quote covers, where IMA is used.
    pub fn ima_entries(&self) -> Option<usize> {
        self.ima_entries
    }

    /// What was deliberately not checked.
    pub fn not_checked(&self) -> &[NotChecked] {
        &self.not_checked
    }
}

/// The fact that speaks against the Evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The policy selects no PCR: such a quote would prove nothing.
    #[error("the policy selects no PCR")]
    EmptySelection,
    /// The policy selects a PCR that does not exist.
    #[error("the policy selects PCR {pcr}, which does not exist")]
    NoSuchPcr {
        /// Which.
        pcr: u8,
    },
    /// The policy selects a PCR that software may reset.
    #[error("the policy selects PCR {pcr}, which software may reset and which proves nothing")]
    ResettablePcr {
        /// Which.
        pcr: u8,
    },
    /// IMA reference values are given, but PCR 10 is not selected: they would never be looked at.
    #[error("IMA reference values are given but PCR 10 is not in the policy's selection")]
    ImaWithoutPcr10,
    /// The signature is not a structure that is accepted here, SHA-1 for example.
    #[error("the quote's signature is malformed or of a kind that is refused")]
    SignatureMalformed(#[source] TpmError),
    /// The signature is not of the enrolled AK's scheme.
    #[error("the quote's signature is not of the enrolled AK's scheme")]
    SignatureScheme,
    /// The signature is not by the enrolled AK, or not over this quote.
    #[error("the quote's signature does not verify under the enrolled AK")]
    SignatureDoesNotVerify,
    /// The AK signed something that the TPM did not make.
    #[error("the signed structure was not made by the TPM: its magic is {got:#010x}")]
    NotTpmGenerated {
        /// The magic there is.
        got: u32,
    },
    /// The TPM made it, but it is no quote.
    #[error("the signed structure is of type {got:#06x}, not a quote")]
    NotAQuote {
        /// The type there is.
        got: u16,
    },
    /// The quote is not well formed.
    #[error("the quote is malformed")]
    QuoteMalformed(#[source] TpmError),
    /// The quote is bound to another node, other boot keys, another log root or another challenge.
    #[error("the quote is not bound to what was expected")]
    QualifyingData,
    /// The quote covers other PCRs or other banks than the policy selects.
    #[error("the quote covers other PCRs than the policy selects")]
    PcrSelection {
        /// What the policy selects.
        asked: BTreeSet<u8>,
        /// What the quote covers in the SHA-256 bank.
        got: BTreeSet<u8>,
    },
    /// The values sent along are not those of the selection, ascending and each once.
    #[error("the PCR values sent along are not those of the selection")]
    PcrValues,
    /// The quoted digest is not that of the values sent along.
    #[error("the quoted digest is not that of the PCR values sent along")]
    PcrDigest,
    /// The event log is not the one that the Evidence names.
    #[error("the event log is not the one the evidence names")]
    EventLogDigest,
    /// The event log is not one that can be replayed.
    #[error("the event log cannot be replayed")]
    EventLog(#[source] EventLogError),
    /// The event log does not explain a quoted PCR.
    #[error("the event log does not give the quoted value of PCR {pcr}")]
    EventLogDoesNotExplain {
        /// Which.
        pcr: u8,
    },
    /// IMA reference values are given, and the Evidence has no list.
    #[error("no IMA list came with the evidence")]
    ImaMissing,
    /// The Evidence has an IMA list that no reference value asks for.
    #[error("an IMA list came with the evidence, and there is nothing to appraise it against")]
    ImaNotExpected,
    /// The IMA list is not the one that the Evidence names.
    #[error("the IMA list is not the one the evidence names")]
    ImaDigest,
    /// The IMA list does not explain PCR 10, or has a file that is not allowed.
    #[error("the IMA list was not accepted")]
    Ima(#[source] ImaError),
    /// A counter is below what the TPM showed before: its state was restored from a copy, or it was cleared.
    #[error("the TPM's counters went back")]
    CountersWentBack {
        /// What was seen before.
        floor: Counters,
        /// What the quote says.
        got: Counters,
    },
    /// There is no reference value for a PCR of the selection.
    #[error("PCR {pcr} has no reference value")]
    NoReferenceValue {
        /// Which.
        pcr: u8,
    },
    /// A PCR has none of its reference values.
    #[error("PCR {pcr} matches no reference value")]
    ReferenceValue {
        /// Which.
        pcr: u8,
        /// Its quoted value.
        got: [u8; 32],
    },
    /// The TPM's firmware version is none of the reference values.
    #[error("TPM firmware version {got:#018x} matches no reference value")]
    FirmwareVersion {
        /// Which version the quote names.
        got: u64,
    },
    /// The AK lives in a TPM in software, and policy does not permit that.
    #[error("the TPM is software, which the policy does not allow")]
    SoftwareTpm,
}

impl Rejection {
    /// A short code that never changes, for leaves, metrics and messages to peers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptySelection => "empty-selection",
            Self::NoSuchPcr { .. } => "no-such-pcr",
            Self::ResettablePcr { .. } => "resettable-pcr",
            Self::ImaWithoutPcr10 => "ima-without-pcr10",
            Self::SignatureMalformed(_) => "signature-malformed",
            Self::SignatureScheme => "signature-scheme",
            Self::SignatureDoesNotVerify => "signature",
            Self::NotTpmGenerated { .. } => "magic",
            Self::NotAQuote { .. } => "not-a-quote",
            Self::QuoteMalformed(_) => "quote-malformed",
            Self::QualifyingData => "qualifying-data",
            Self::PcrSelection { .. } => "pcr-selection",
            Self::PcrValues => "pcr-values",
            Self::PcrDigest => "pcr-digest",
            Self::EventLogDigest => "event-log-digest",
            Self::EventLog(_) => "event-log",
            Self::EventLogDoesNotExplain { .. } => "event-log-replay",
            Self::ImaMissing => "ima-missing",
            Self::ImaNotExpected => "ima-not-expected",
            Self::ImaDigest => "ima-digest",
            Self::Ima(_) => "ima",
            Self::CountersWentBack { .. } => "counters-went-back",
            Self::NoReferenceValue { .. } => "no-reference-value",
            Self::ReferenceValue { .. } => "reference-value",
            Self::FirmwareVersion { .. } => "firmware-version",
            Self::SoftwareTpm => "software-tpm",
        }
    }
}

/// Appraises Evidence; the checks and their order are in the [module's documentation](self). `expected` is the qualifying
/// data the quote must be bound to ([`crate::qualifying`]); `floor` the counters last accepted from this AK, `None` only
/// where none ever were.
pub fn appraise(
    evidence: &Evidence,
    logs: Logs<'_>,
    ak: &EnrolledAk,
    rv: &ReferenceValues,
    policy: &AppraisalPolicy,
    expected: &[u8; 32],
    floor: Option<&Counters>,
) -> Result<Appraised, Rejection> {
    // 0
    check_policy(policy, rv)?;
    // 1, over no more than a quote can be
    if evidence.attest.len() > ATTEST_BYTES_MAX {
        return Err(Rejection::QuoteMalformed(TpmError::TooLong));
    }
    let signature = TpmSignature::parse(&evidence.signature).map_err(Rejection::SignatureMalformed)?;
    ak.public().verify(&evidence.attest, &signature).map_err(|e| match e {
        SignatureError::SchemeDoesNotFitKey => Rejection::SignatureScheme,
        SignatureError::DoesNotVerify => Rejection::SignatureDoesNotVerify,
    })?;
    // 2, 3
    let quote = Quote::parse(&evidence.attest).map_err(|e| match e {
        TpmError::NotTpmGenerated { got } => Rejection::NotTpmGenerated { got },
        TpmError::NotAQuote { got } => Rejection::NotAQuote { got },
        other => Rejection::QuoteMalformed(other),
    })?;
    // 4
    if quote.extra_data != expected {
        return Err(Rejection::QualifyingData);
    }
    // 5
    check_selection(&quote, &policy.selection)?;
    if !evidence.pcrs.iter().map(|(pcr, _)| pcr).eq(&policy.selection) {
        return Err(Rejection::PcrValues);
    }
    // 6: "TPM 2.0 Library r1.59 Part 3, TPM2_Quote": the digest uses the hash of the signing scheme, lowest PCR first
    let values: Vec<u8> = evidence.pcrs.iter().flat_map(|(_, value)| *value).collect();
    if signature.hash().digest(&values).as_ref() != quote.pcr_digest {
        return Err(Rejection::PcrDigest);
    }
    // 7
    if eventlog::sha256(logs.event_log) != evidence.event_log {
        return Err(Rejection::EventLogDigest);
    }
    // 8
    let replay = eventlog::replay(logs.event_log).map_err(Rejection::EventLog)?;
    let ima_extends = |pcr: u8| pcr == IMA_PCR && rv.ima.is_some();
    for &(pcr, value) in &evidence.pcrs {
        if !ima_extends(pcr) && replay.value(pcr) != value {
            return Err(Rejection::EventLogDoesNotExplain { pcr });
        }
    }
    // 9
    let ima_entries = appraise_ima(evidence, logs.ima, rv, &replay.value(IMA_PCR))?;
    // 10
    let counters = Counters {
        clock_ms: quote.clock_ms,
        reset_count: quote.reset_count,
        restart_count: quote.restart_count,
    };
    let machine_reset = floor.map_or(Ok(false), |floor| compare(floor, &counters, quote.safe))?;
    // 11
    for &(pcr, got) in &evidence.pcrs {
        if ima_extends(pcr) {
            continue; // its reference values are the allowed files, of check 9
        }
        let good = rv.pcrs.get(&pcr).filter(|good| !good.is_empty());
        if !good.ok_or(Rejection::NoReferenceValue { pcr })?.contains(&got) {
            return Err(Rejection::ReferenceValue { pcr, got });
        }
    }
    // 12
    if rv.firmware_versions.as_ref().is_some_and(|good| !good.contains(&quote.firmware_version)) {
        return Err(Rejection::FirmwareVersion { got: quote.firmware_version });
    }
    // 13
    if ak.software_tpm() && !policy.allow_software_tpm {
        return Err(Rejection::SoftwareTpm);
    }

    let mut not_checked = vec![
        NotChecked::RuntimeState,
        NotChecked::Proximity,
        NotChecked::EventData,
        NotChecked::QualifiedSigner,
    ];
    if rv.firmware_versions.is_none() {
        not_checked.push(NotChecked::FirmwareVersion);
    }
    if ima_entries.is_some() {
        not_checked.push(NotChecked::ImaSignatures);
    }
    Ok(Appraised {
        counters,
        clock_safe: quote.safe,
        firmware_version: quote.firmware_version,
        software_tpm: ak.software_tpm(),
        machine_reset,
        ima_entries,
        not_checked,
    })
}

fn check_policy(policy: &AppraisalPolicy, rv: &ReferenceValues) -> Result<(), Rejection> {
    if policy.selection.is_empty() {
        return Err(Rejection::EmptySelection);
    }
    for &pcr in &policy.selection {
        if pcr >= PCRS {
            return Err(Rejection::NoSuchPcr { pcr });
        }
        if pcr == PCR_DEBUG || pcr == PCR_APPLICATION {
            return Err(Rejection::ResettablePcr { pcr });
        }
    }
    if rv.ima.is_some() && !policy.selection.contains(&IMA_PCR) {
        return Err(Rejection::ImaWithoutPcr10);
    }
    Ok(())
}

/// Exactly one bank, SHA-256, and exactly the selection.
fn check_selection(quote: &Quote, asked: &BTreeSet<u8>) -> Result<(), Rejection> {
    match quote.selections.as_slice() {
        [one] if one.is_sha256() && one.pcrs == *asked => Ok(()),
        other => Err(Rejection::PcrSelection {
            asked: asked.clone(),
            got: other.iter().filter(|s| s.is_sha256()).flat_map(|s| &s.pcrs).copied().collect(),
        }),
    }
}

fn appraise_ima(
    evidence: &Evidence,
    list: Option<&[u8]>,
    rv: &ReferenceValues,
    start: &[u8; 32],
) -> Result<Option<usize>, Rejection> {
    let Some(allowed) = &rv.ima else {
        return if evidence.ima_log.is_none() { Ok(None) } else { Err(Rejection::ImaNotExpected) };
    };
    if allowed.is_empty() {
        return Err(Rejection::NoReferenceValue { pcr: IMA_PCR });
    }
    let (Some(named), Some(list)) = (&evidence.ima_log, list) else {
        return Err(Rejection::ImaMissing);
    };
    if eventlog::sha256(list) != *named {
        return Err(Rejection::ImaDigest);
    }
    let value = |wanted: u8| evidence.pcrs.iter().find(|(pcr, _)| *pcr == wanted).map(|(_, value)| value);
    let quoted = value(IMA_PCR).ok_or(Rejection::PcrValues)?;
    // security/integrity/ima/ima_crypto.c, ima_calc_boot_aggregate_tfm: PCR 0 to 9 where the hash is not SHA-1
    let first_ten: Option<Vec<[u8; 32]>> = (0..10).map(|pcr| value(pcr).copied()).collect();
    let boot_aggregate = first_ten.map(|values| eventlog::sha256(values.concat().as_slice()));
    let prefix =
        ima::appraise(list, start, quoted, allowed, boot_aggregate.as_ref()).map_err(Rejection::Ima)?;
    Ok(Some(prefix.entries))
}

/// Whether the machine was reset since `floor`, or a refusal where a counter went back.
///
/// TPM 2.0 Library r1.59 Part 1, "Time": a TPM Reset raises resetCount and zeroes restartCount; a Restart or Resume raises
/// restartCount. The clock is stored only now and then, so after either it may fall behind what was reported, and then
/// `safe` is unset until it cannot.
fn compare(floor: &Counters, got: &Counters, safe: bool) -> Result<bool, Rejection> {
    let machine_reset = (got.reset_count, got.restart_count) > (floor.reset_count, floor.restart_count);
    let went_back = (got.reset_count, got.restart_count) < (floor.reset_count, floor.restart_count);
    let clock_may_fall = machine_reset && !safe;
    if went_back || got.clock_ms < floor.clock_ms && !clock_may_fall {
        return Err(Rejection::CountersWentBack { floor: *floor, got: *got });
    }
    Ok(machine_reset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestTpm, policy};

    const EXPECTED: [u8; 32] = [0x5a; 32];

    #[test]
    fn honest_evidence_passes() {
        let tpm = TestTpm::new(1);
        let selection = BTreeSet::from([0, 4, 7, 11]);
        let evidence = tpm.quote(&EXPECTED, &selection);
        let rv = tpm.reference_values(&selection);
        let appraised = appraise(
            &evidence,
            tpm.logs(),
            &tpm.enrolled(true),
            &rv,
            &policy(&selection, true),
            &EXPECTED,
            None,
        )
        .unwrap();
        assert!(appraised.software_tpm() && !appraised.machine_reset());
        assert_eq!(tpm.quote(&EXPECTED, &selection), evidence, "the test TPM is deterministic");
    }
}
