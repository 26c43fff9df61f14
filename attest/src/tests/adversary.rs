//! The adversary: honest Evidence, exactly one thing changed, signed again wherever the attacker could have that done, and
//! the exact rejection. The unmutated twin passes, so each row shows that its check is what stops it.
use std::collections::BTreeSet;

use crate::appraisal::{AppraisalPolicy, Appraised, Counters, Logs, NotChecked, Rejection, appraise};
use crate::endorsement::EnrolledAk;
use crate::eventlog::{EV_IPL, EventLogError, append_event, new_log, sha256};
use crate::evidence::{BootKeys, Evidence};
use crate::ima::ImaError;
use crate::qualifying;
use crate::reference_values::ReferenceValues;
use crate::testing::{QuoteFields, TestTpm, policy};
use crate::tpm::{HashAlg, TpmError};

const CLUSTER: [u8; 32] = [0xc1; 32];
const ROOT: [u8; 32] = [0x70; 32];
const BOOT: BootKeys = BootKeys { tls: [1; 32], cosign: [2; 32] };
const ALLOWED_FILE: [u8; 32] = [0xaa; 32];
const OTHER_FILE: [u8; 32] = [0xbb; 32];

struct Case {
    tpm: TestTpm,
    evidence: Evidence,
    event_log: Vec<u8>,
    ima: Option<Vec<u8>>,
    ak: EnrolledAk,
    rv: ReferenceValues,
    policy: AppraisalPolicy,
    expected: [u8; 32],
    floor: Option<Counters>,
}

impl Case {
    fn honest() -> Self {
        Self::of(TestTpm::new(7), BTreeSet::from([0, 4, 7, 11]))
    }

    fn of(tpm: TestTpm, selection: BTreeSet<u8>) -> Self {
        let expected = qualifying::for_log(&CLUSTER, 3, &BOOT, &ROOT);
        let floor = Counters {
            clock_ms: tpm.clock_ms - 20_000,
            reset_count: tpm.reset_count,
            restart_count: tpm.restart_count,
        };
        Self {
            evidence: tpm.quote(&expected, &selection),
            event_log: tpm.event_log().to_vec(),
            ima: None,
            ak: tpm.enrolled(false),
            rv: tpm.reference_values(&selection),
            policy: policy(&selection, false),
            expected,
            floor: Some(floor),
            tpm,
        }
    }

    /// The same machine with IMA: two files, of which the last came after the quote.
    fn honest_with_ima() -> Self {
        let mut tpm = TestTpm::new(7);
        let mut list = Vec::new();
        for (pcr, file) in [(10, ALLOWED_FILE), (10, ALLOWED_FILE)] {
            let (entry, template) = ima_entry(&file, "/usr/bin/quorated");
            tpm.extend_unlogged(pcr, &template);
            list.extend(entry);
        }
        let selection = BTreeSet::from([4, 10]);
        let mut case = Self::of(tpm, selection);
        list.extend(ima_entry(&OTHER_FILE, "/usr/bin/later").0);
        case.rv.pcrs.remove(&10);
        case.rv.ima = Some(BTreeSet::from([ALLOWED_FILE]));
        case.set_ima(list);
        case
    }

    fn set_ima(&mut self, list: Vec<u8>) {
        self.evidence.ima_log = Some(sha256(&list));
        self.ima = Some(list);
    }

    /// Quotes anew after `change`, honestly signed: what somebody can have done who owns the machine, but not its TPM.
    fn requote(&mut self, change: impl FnOnce(&mut QuoteFields)) {
        let mut fields = self.tpm.quote_fields(&self.expected, &self.policy.selection);
        change(&mut fields);
        let ima_log = self.evidence.ima_log;
        self.evidence = self.tpm.evidence_over(fields.marshal(), &self.policy.selection);
        self.evidence.ima_log = ima_log;
    }

    /// Claims another event log, consistently.
    fn set_event_log(&mut self, log: Vec<u8>) {
        self.evidence.event_log = sha256(&log);
        self.event_log = log;
    }

    fn appraise(&self) -> Result<Appraised, Rejection> {
        let logs = Logs { event_log: &self.event_log, ima: self.ima.as_deref() };
        let floor = self.floor.as_ref();
        appraise(&self.evidence, logs, &self.ak, &self.rv, &self.policy, &self.expected, floor)
    }
}

/// One `ima-ng` entry in binary form, and the template digest that IMA extends.
fn ima_entry(file: &[u8; 32], path: &str) -> (Vec<u8>, [u8; 32]) {
    let mut data = 40u32.to_le_bytes().to_vec();
    data.extend(b"sha256:\0");
    data.extend(file);
    data.extend((u32::try_from(path.len()).unwrap() + 1).to_le_bytes());
    data.extend(path.as_bytes());
    data.push(0);
    let template = sha256(&data);
    let mut entry = 10u32.to_le_bytes().to_vec();
    entry.extend([0x11; 20]);
    entry.extend(6u32.to_le_bytes());
    entry.extend(b"ima-ng");
    entry.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    entry.extend(data);
    (entry, template)
}

type Row = (&'static str, fn(&mut Case), Rejection);

fn check(twin: fn() -> Case, rows: Vec<Row>) {
    twin().appraise().expect("the twin passes");
    for (name, mutate, expected) in rows {
        let mut case = twin();
        mutate(&mut case);
        assert_eq!(case.appraise().expect_err(name), expected, "{name}");
    }
}

fn selection(pcrs: &[u8]) -> BTreeSet<u8> {
    pcrs.iter().copied().collect()
}

#[test]
fn quotes() {
    check(
        Case::honest,
        vec![
            (
                "another TPM's AK",
                |c| c.evidence = TestTpm::new(8).quote(&c.expected, &c.policy.selection),
                Rejection::SignatureDoesNotVerify,
            ),
            ("a flipped bit in the quote", |c| c.evidence.attest[60] ^= 1, Rejection::SignatureDoesNotVerify),
            (
                "a flipped bit in the signature",
                |c| c.evidence.signature[20] ^= 1,
                Rejection::SignatureDoesNotVerify,
            ),
            (
                "a signature that says SHA-1",
                |c| c.evidence.signature[3] = 4,
                Rejection::SignatureMalformed(TpmError::Sha1),
            ),
            ("a signature that says SHA-384", |c| c.evidence.signature[3] = 0x0c, Rejection::SignatureScheme),
            (
                "bytes after the signature",
                |c| c.evidence.signature.push(0),
                Rejection::SignatureMalformed(TpmError::Trailing { bytes: 1 }),
            ),
            (
                "a quote larger than any",
                |c| c.evidence.attest = vec![0; 1025],
                Rejection::QuoteMalformed(TpmError::TooLong),
            ),
            (
                "something outside the TPM, signed by a key that signs anything",
                |c| c.requote(|q| q.magic = 0xff54_4348),
                Rejection::NotTpmGenerated { got: 0xff54_4348 },
            ),
            (
                "TPM2_Certify in place of TPM2_Quote",
                |c| c.requote(|q| q.kind = 0x8017),
                Rejection::NotAQuote { got: 0x8017 },
            ),
            (
                "bytes after the quote",
                |c| {
                    let mut attest = c.tpm.quote_fields(&c.expected, &c.policy.selection).marshal();
                    attest.push(0);
                    c.evidence = c.tpm.evidence_over(attest, &c.policy.selection);
                },
                Rejection::QuoteMalformed(TpmError::Trailing { bytes: 1 }),
            ),
            (
                "a safe flag that is neither",
                |c| c.requote(|q| q.safe = 2),
                Rejection::QuoteMalformed(TpmError::Value { field: "safe" }),
            ),
        ],
    );
}

#[test]
fn bindings() {
    fn quoted_for(c: &mut Case, data: [u8; 32]) {
        c.requote(|q| q.extra_data = data.to_vec());
    }
    check(
        Case::honest,
        vec![
            (
                "another node",
                |c| quoted_for(c, qualifying::for_log(&CLUSTER, 4, &BOOT, &ROOT)),
                Rejection::QualifyingData,
            ),
            (
                "another cluster",
                |c| quoted_for(c, qualifying::for_log(&[0; 32], 3, &BOOT, &ROOT)),
                Rejection::QualifyingData,
            ),
            (
                "a stale root",
                |c| quoted_for(c, qualifying::for_log(&CLUSTER, 3, &BOOT, &[0; 32])),
                Rejection::QualifyingData,
            ),
            (
                "another TLS key",
                |c| {
                    let boot = BootKeys { tls: [9; 32], ..BOOT };
                    quoted_for(c, qualifying::for_log(&CLUSTER, 3, &boot, &ROOT));
                },
                Rejection::QualifyingData,
            ),
            (
                "another cosigning key",
                |c| {
                    let boot = BootKeys { cosign: [9; 32], ..BOOT };
                    quoted_for(c, qualifying::for_log(&CLUSTER, 3, &boot, &ROOT));
                },
                Rejection::QualifyingData,
            ),
            (
                "a channel quote in the log",
                |c| quoted_for(c, qualifying::for_channel(&CLUSTER, &ROOT, &[0; 32], 3, 1, &BOOT)),
                Rejection::QualifyingData,
            ),
            ("no qualifying data", |c| c.requote(|q| q.extra_data.clear()), Rejection::QualifyingData),
            (
                "qualifying data with more behind it",
                |c| c.requote(|q| q.extra_data.push(0)),
                Rejection::QualifyingData,
            ),
        ],
    );
}

#[test]
fn selections() {
    check(
        Case::honest,
        vec![
            (
                "one PCR fewer",
                |c| c.requote(|q| q.selections[0].1 = selection(&[0, 4, 7])),
                Rejection::PcrSelection { asked: selection(&[0, 4, 7, 11]), got: selection(&[0, 4, 7]) },
            ),
            (
                "one PCR more",
                |c| c.requote(|q| q.selections[0].1 = selection(&[0, 4, 7, 8, 11])),
                Rejection::PcrSelection {
                    asked: selection(&[0, 4, 7, 11]),
                    got: selection(&[0, 4, 7, 8, 11]),
                },
            ),
            (
                "the SHA-1 bank",
                |c| c.requote(|q| q.selections[0].0 = 4),
                Rejection::PcrSelection { asked: selection(&[0, 4, 7, 11]), got: selection(&[]) },
            ),
            (
                "a second bank, though empty",
                |c| c.requote(|q| q.selections.push((4, BTreeSet::new()))),
                Rejection::PcrSelection { asked: selection(&[0, 4, 7, 11]), got: selection(&[0, 4, 7, 11]) },
            ),
            (
                "no bank",
                |c| c.requote(|q| q.selections.clear()),
                Rejection::PcrSelection { asked: selection(&[0, 4, 7, 11]), got: selection(&[]) },
            ),
            (
                "a value missing",
                |c| {
                    c.evidence.pcrs.pop();
                },
                Rejection::PcrValues,
            ),
            ("values out of order", |c| c.evidence.pcrs.swap(0, 1), Rejection::PcrValues),
            (
                "a value twice",
                |c| {
                    let first = c.evidence.pcrs[0];
                    c.evidence.pcrs.insert(0, first);
                },
                Rejection::PcrValues,
            ),
            ("a value that was not quoted", |c| c.evidence.pcrs[1].1 = [0; 32], Rejection::PcrDigest),
            (
                "a digest of other values",
                |c| c.requote(|q| q.pcr_digest = sha256(b"other").to_vec()),
                Rejection::PcrDigest,
            ),
            ("a policy that selects nothing", |c| c.policy.selection.clear(), Rejection::EmptySelection),
            (
                "a policy with the debug PCR",
                |c| {
                    c.policy.selection.insert(16);
                },
                Rejection::ResettablePcr { pcr: 16 },
            ),
            (
                "a policy with the application PCR",
                |c| {
                    c.policy.selection.insert(23);
                },
                Rejection::ResettablePcr { pcr: 23 },
            ),
            (
                "a policy with a PCR that is none",
                |c| {
                    c.policy.selection.insert(24);
                },
                Rejection::NoSuchPcr { pcr: 24 },
            ),
        ],
    );
}

#[test]
fn event_logs() {
    check(
        Case::honest,
        vec![
            (
                "another log than named",
                |c| append_event(&mut c.event_log, 4, EV_IPL, &[0; 32], b""),
                Rejection::EventLogDigest,
            ),
            (
                "an event that was not extended",
                |c| {
                    let mut log = c.event_log.clone();
                    append_event(&mut log, 4, EV_IPL, &[0; 32], b"");
                    c.set_event_log(log);
                },
                Rejection::EventLogDoesNotExplain { pcr: 4 },
            ),
            (
                "an event left out",
                |c| {
                    c.tpm.extend_unlogged(11, &[5; 32]);
                    c.requote(|_| {});
                },
                Rejection::EventLogDoesNotExplain { pcr: 11 },
            ),
            (
                "an empty log for PCRs that are not at their reset value",
                |c| c.set_event_log(new_log()),
                Rejection::EventLogDoesNotExplain { pcr: 0 },
            ),
            (
                "no log at all",
                |c| c.set_event_log(Vec::new()),
                Rejection::EventLog(EventLogError::Short { event: 0 }),
            ),
        ],
    );
}

#[test]
fn counters() {
    fn moved(c: &mut Case, change: fn(&mut TestTpm)) -> Counters {
        change(&mut c.tpm);
        c.requote(|_| {});
        Counters {
            clock_ms: c.tpm.clock_ms,
            reset_count: c.tpm.reset_count,
            restart_count: c.tpm.restart_count,
        }
    }
    let back = |change: fn(&mut TestTpm)| {
        let mut case = Case::honest();
        case.floor = case.floor.map(|floor| Counters { restart_count: 2, ..floor });
        case.tpm.restart_count = 2;
        case.requote(|_| {});
        case.appraise().expect("the twin passes");
        let got = moved(&mut case, change);
        let floor = case.floor.unwrap();
        assert_eq!(case.appraise(), Err(Rejection::CountersWentBack { floor, got }));
    };
    back(|tpm| tpm.reset_count -= 1);
    back(|tpm| tpm.restart_count -= 1);
    back(|tpm| tpm.clock_ms -= 20_001);
    // A power cycle does not excuse a clock that the TPM itself calls safe.
    back(|tpm| {
        tpm.power_cycle();
        tpm.clock_ms -= 20_001;
    });
    // A higher restart count does not excuse a lower reset count.
    back(|tpm| {
        tpm.reset_count -= 1;
        tpm.restart_count += 5;
    });

    let forward = |change: fn(&mut TestTpm), machine_reset: bool| {
        let mut case = Case::honest();
        let counters = moved(&mut case, change);
        let appraised = case.appraise().unwrap();
        assert_eq!((appraised.counters(), appraised.machine_reset()), (counters, machine_reset));
    };
    forward(|tpm| tpm.clock_ms += 1, false);
    forward(|tpm| tpm.clock_ms -= 20_000, false);
    forward(TestTpm::restart, true);
    forward(TestTpm::power_cycle, true);
    forward(
        |tpm| {
            tpm.power_cycle();
            tpm.clock_ms -= 60_000;
            tpm.safe = false;
        },
        true,
    );
}

#[test]
fn reference_values() {
    check(
        Case::honest,
        vec![
            (
                "no list for a PCR",
                |c| {
                    c.rv.pcrs.remove(&7);
                },
                Rejection::NoReferenceValue { pcr: 7 },
            ),
            (
                "an empty list for a PCR",
                |c| {
                    c.rv.pcrs.insert(7, Vec::new());
                },
                Rejection::NoReferenceValue { pcr: 7 },
            ),
            (
                "other software, honestly measured",
                |c| {
                    c.tpm.measure(11, EV_IPL, b"an implant");
                    c.requote(|_| {});
                    c.set_event_log(c.tpm.event_log().to_vec());
                    // the value is not known beforehand; make it one that the table can name
                    c.rv.pcrs.insert(11, vec![[1; 32]]);
                },
                Rejection::ReferenceValue { pcr: 11, got: implanted() },
            ),
            (
                "other TPM firmware",
                |c| c.rv.firmware_versions = Some(BTreeSet::from([1])),
                Rejection::FirmwareVersion { got: 0x2019_1023_0016_3636 },
            ),
            (
                "no firmware version is good",
                |c| c.rv.firmware_versions = Some(BTreeSet::new()),
                Rejection::FirmwareVersion { got: 0x2019_1023_0016_3636 },
            ),
            ("a TPM in software", |c| c.ak = c.tpm.enrolled(true), Rejection::SoftwareTpm),
        ],
    );
}

fn implanted() -> [u8; 32] {
    let mut tpm = TestTpm::new(7);
    tpm.measure(11, EV_IPL, b"an implant");
    tpm.pcr(11)
}

#[test]
fn ima() {
    check(
        Case::honest_with_ima,
        vec![
            ("no list", |c| c.ima = None, Rejection::ImaMissing),
            ("no list named", |c| c.evidence.ima_log = None, Rejection::ImaMissing),
            (
                "another list than named",
                |c| c.ima = Some(c.ima.clone().unwrap()[1..].to_vec()),
                Rejection::ImaDigest,
            ),
            (
                "an entry left out",
                |c| {
                    let one = ima_entry(&ALLOWED_FILE, "/usr/bin/quorated").0;
                    c.set_ima(one);
                },
                Rejection::Ima(ImaError::NoPrefixMatches),
            ),
            (
                "a file swapped for an allowed one",
                |c| {
                    let (_, template) = ima_entry(&OTHER_FILE, "/usr/bin/implant");
                    c.tpm.extend_unlogged(10, &template);
                    c.requote(|_| {});
                    let list = ima_entry(&ALLOWED_FILE, "/usr/bin/quorated").0.repeat(3);
                    c.set_ima(list);
                },
                Rejection::Ima(ImaError::NoPrefixMatches),
            ),
            (
                "a file that is not allowed",
                |c| {
                    let (entry, template) = ima_entry(&OTHER_FILE, "/usr/bin/implant");
                    c.tpm.extend_unlogged(10, &template);
                    c.requote(|_| {});
                    let mut list = ima_entry(&ALLOWED_FILE, "/usr/bin/quorated").0.repeat(2);
                    list.extend(entry);
                    c.set_ima(list);
                },
                Rejection::Ima(ImaError::FileNotAllowed { entry: 2 }),
            ),
            (
                "a violation",
                |c| {
                    c.tpm.extend_unlogged(10, &[0xff; 32]);
                    c.requote(|_| {});
                    let (mut entry, _) = ima_entry(&ALLOWED_FILE, "/usr/bin/quorated");
                    let mut list = entry.repeat(2);
                    entry[4..24].fill(0);
                    list.extend(entry);
                    c.set_ima(list);
                },
                Rejection::Ima(ImaError::Violation { entry: 2 }),
            ),
            (
                "an entry for another PCR",
                |c| {
                    let mut list = c.ima.clone().unwrap();
                    list[0] = 11;
                    c.set_ima(list);
                },
                Rejection::Ima(ImaError::NotPcr10 { entry: 0, pcr: 11 }),
            ),
            (
                "no file allowed",
                |c| c.rv.ima = Some(BTreeSet::new()),
                Rejection::NoReferenceValue { pcr: 10 },
            ),
            (
                "a list that nothing is expected of",
                |c| {
                    c.rv.ima = None;
                    c.rv.pcrs.insert(10, vec![c.tpm.pcr(10)]);
                    // explained by the event log, so that the list alone is at fault
                    let mut log = c.event_log.clone();
                    for _ in 0..2 {
                        let (_, template) = ima_entry(&ALLOWED_FILE, "/usr/bin/quorated");
                        append_event(&mut log, 10, EV_IPL, &template, b"");
                    }
                    c.set_event_log(log);
                },
                Rejection::ImaNotExpected,
            ),
            (
                "files allowed, but PCR 10 not selected",
                |c| {
                    c.policy.selection.remove(&10);
                },
                Rejection::ImaWithoutPcr10,
            ),
        ],
    );
    let appraised = Case::honest_with_ima().appraise().unwrap();
    assert_eq!(appraised.ima_entries(), Some(2), "the entry after the quote is not judged");
    assert!(appraised.not_checked().contains(&NotChecked::ImaSignatures));
}

#[test]
fn what_is_not_checked_is_said() {
    let mut case = Case::honest();
    assert!(case.appraise().unwrap().not_checked().contains(&NotChecked::FirmwareVersion));
    case.rv.firmware_versions = Some(BTreeSet::from([case.tpm.firmware_version]));
    assert!(!case.appraise().unwrap().not_checked().contains(&NotChecked::FirmwareVersion));
}

#[test]
fn a_software_tpm_is_labelled() {
    let mut case = Case::honest();
    case.ak = case.tpm.enrolled(true);
    case.policy.allow_software_tpm = true;
    assert!(case.appraise().unwrap().software_tpm());
}

/// A P-384 AK hashes with SHA-384 throughout, the digest over the PCR values included.
#[test]
fn an_ak_on_p384() {
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let point = &key.public_key().as_ref()[1..];
    let mut public = vec![0, 0x23, 0, 0x0c];
    public.extend((1u32 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18).to_be_bytes());
    public.extend([0, 0, 0, 0x10, 0, 0x18, 0, 0x0c, 0, 4, 0, 0x10]);
    public.extend(sized(&point[..48]));
    public.extend(sized(&point[48..]));

    let mut case = Case::honest();
    case.ak = EnrolledAk::from_policy(&public, false).unwrap();
    let values: Vec<u8> = case.policy.selection.iter().flat_map(|pcr| case.tpm.pcr(*pcr)).collect();
    for (digest, verdict) in [
        (HashAlg::Sha384.digest(&values).as_ref().to_vec(), None),
        (sha256(&values).to_vec(), Some(Rejection::PcrDigest)),
    ] {
        case.requote(|q| q.pcr_digest = digest);
        let rng = aws_lc_rs::rand::SystemRandom::new();
        let signature = key.sign(&rng, &case.evidence.attest).unwrap();
        let (r, s) = signature.as_ref().split_at(48);
        case.evidence.signature = [&[0, 0x18, 0, 0x0c][..], &sized(r), &sized(s)].concat();
        assert_eq!(case.appraise().err(), verdict);
    }
}

/// IMA's first entry is a digest over PCR 0 to 9: it need not be listed where the quote covers them, and only then.
#[test]
fn boot_aggregate_is_known_from_the_quote() {
    for (pcrs, verdict) in [
        ((0..=10).collect(), None),
        ((1..=10).collect(), Some(Rejection::Ima(ImaError::FileNotAllowed { entry: 0 }))),
    ] {
        let mut tpm = TestTpm::new(7);
        let values: Vec<u8> = (0..10).flat_map(|pcr| tpm.pcr(pcr)).collect();
        let mut list = Vec::new();
        for (file, path) in [(sha256(&values), "boot_aggregate"), (ALLOWED_FILE, "/usr/bin/quorated")] {
            let (entry, template) = ima_entry(&file, path);
            tpm.extend_unlogged(10, &template);
            list.extend(entry);
        }
        let mut case = Case::of(tpm, pcrs);
        case.rv.ima = Some(BTreeSet::from([ALLOWED_FILE]));
        case.set_ima(list);
        assert_eq!(case.appraise().err(), verdict);
    }
}
