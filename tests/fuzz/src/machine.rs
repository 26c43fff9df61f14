//! What a TPM, a firmware and a kernel wrote, as a peer hands it on.
use crate::input::Input;
use quorate_attest::appraisal::{AppraisalPolicy, Logs, appraise};
use quorate_attest::approval::{Approval, Approver, PolicyRef};
use quorate_attest::endorsement::{CERTIFICATE_BYTES_MAX, EkPolicy, EnrolledAk, Validity, verify_ek};
use quorate_attest::eventlog::{self, EV_NO_ACTION, PCRS, append_event, extend, new_log};
use quorate_attest::ima;
use quorate_attest::testing::TestTpm;
use quorate_attest::tpm::{Quote, TpmPublic, TpmSignature};
use std::collections::BTreeSet;

/// The certificates of a software TPM's maker.
const CERTIFICATES: [&[u8]; 4] = [
    include_bytes!("../../../attest/testdata/swtpm/ek-p384.der"),
    include_bytes!("../../../attest/testdata/swtpm/ek-rsa2048.der"),
    include_bytes!("../../../attest/testdata/swtpm/issuer.der"),
    include_bytes!("../../../attest/testdata/swtpm/root.der"),
];
/// Qualifying data of the quotes here.
const EXPECTED: [u8; 32] = [7; 32];

thread_local! {
    // Its keys take long to make.
    static MACHINE: TestTpm = TestTpm::new(1);
}

fn machine() -> (TestTpm, BTreeSet<u8>) {
    (MACHINE.with(Clone::clone), BTreeSet::from([0, 2, 4, 7, 11]))
}

/// Input: a choice (1), then a public area, a signature, a quote (which the machine's key signs, so that all later checks are
/// reached), a certificate, or an approval.
pub fn tpm(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    match choice % 6 {
        0 => {
            let Ok(public) = TpmPublic::parse(data) else { return false };
            assert_eq!(public.as_bytes(), data);
            assert_eq!(public.name().len(), 2 + public.name_alg().len_bytes());
            drop(EnrolledAk::from_policy(data, true));
            true
        }
        1 => {
            let Ok(signature) = TpmSignature::parse(data) else { return false };
            let (machine, _) = machine();
            assert!(machine.enrolled(true).public().verify(b"never signed", &signature).is_err());
            true
        }
        2 => {
            let (machine, selection) = machine();
            let evidence = machine.evidence_over(data.to_vec(), &selection);
            let policy = AppraisalPolicy { selection: selection.clone(), allow_software_tpm: true };
            let values = machine.reference_values(&selection);
            let ak = machine.enrolled(true);
            let appraised = appraise(&evidence, machine.logs(), &ak, &values, &policy, &EXPECTED, None);
            let quote = Quote::parse(data);
            if let Ok(appraised) = appraised {
                let Ok(quote) = &quote else { panic!("accepted what is no quote") };
                assert_eq!(quote.extra_data, EXPECTED);
                let one: Vec<_> = quote.selections.iter().map(|s| (s.bank, s.pcrs.clone())).collect();
                assert_eq!(one, [(0x000b, selection)], "exactly the PCRs that policy asks for");
                assert_eq!(quote.pcr_digest, machine.quote_fields(&EXPECTED, &policy.selection).pcr_digest);
                assert_eq!(appraised.counters().clock_ms, quote.clock_ms);
                assert_eq!(appraised.counters().reset_count, quote.reset_count);
            }
            quote.map(|quote| assert!(begins_as(&quote, data))).is_ok()
        }
        3 => {
            let [_, _, issuer, root] = CERTIFICATES;
            let policy = EkPolicy { validity: Validity::NotChecked, danger_allow_sha1: false };
            let genuine = verify_ek(data, &[issuer], &[root], &policy);
            assert!(genuine.is_err() || data.len() <= CERTIFICATE_BYTES_MAX);
            if genuine.is_ok() {
                assert!(CERTIFICATES.contains(&data), "its maker signed no other");
            }
            // and as what stands between
            drop(verify_ek(CERTIFICATES[0], &[data, issuer], &[root], &policy));
            let rooted = verify_ek(CERTIFICATES[0], &[issuer], &[data], &policy);
            assert!(rooted.is_err() || data == root || data == issuer, "another root");
            genuine.is_ok()
        }
        4 => {
            let Ok(approval) = Approval::from_bytes(data) else { return false };
            assert_eq!(approval.to_bytes(), data);
            if let Ok(approver) = Approver::from_sec1(&[4; 65]) {
                assert!(approval.verify(&approver, &PolicyRef::for_node("c", 1)).is_err());
            }
            true
        }
        _ => Approver::from_sec1(data).map(|approver| assert_eq!(&approver.sec1()[..], data)).is_ok(),
    }
}

/// The fields before the selections, written again, are what the input begins with.
fn begins_as(quote: &Quote, data: &[u8]) -> bool {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let head = [
        &0xff54_4347u32.to_be_bytes()[..],
        &0x8018u16.to_be_bytes(),
        &sized(&quote.qualified_signer),
        &sized(&quote.extra_data),
        &quote.clock_ms.to_be_bytes(),
        &quote.reset_count.to_be_bytes(),
        &quote.restart_count.to_be_bytes(),
        &[u8::from(quote.safe)],
        &quote.firmware_version.to_be_bytes(),
        &(quote.selections.len() as u32).to_be_bytes(),
    ]
    .concat();
    data.starts_with(&head) && data.ends_with(&sized(&quote.pcr_digest))
}

/// Input: a choice (1), then an event log, an IMA list (with the value that was quoted (32) before it), or choices of what a
/// firmware and a kernel write.
pub fn eventlogs(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    match choice % 4 {
        0 => {
            let data = input.0;
            let Ok(events) = eventlog::events(data) else {
                assert!(eventlog::replay(data).is_err());
                return false;
            };
            let Ok(replay) = eventlog::replay(data) else { return true };
            let extended: BTreeSet<u32> = events.iter().filter(|e| e.is_extended()).map(|e| e.pcr).collect();
            for pcr in replay.touched().keys() {
                assert!(*pcr < PCRS);
                assert!(extended.contains(&u32::from(*pcr)) || *pcr == 0, "only what an event extended");
            }
            // one more event extends one more value, if there was a bank of SHA-256
            let mut longer = data.to_vec();
            append_event(&mut longer, 4, 13, &[3; 32], b"more");
            if let Ok(more) = eventlog::replay(&longer) {
                assert_eq!(more.value(4), extend(&replay.value(4), &[3; 32]));
                assert_eq!(more.value(7), replay.value(7));
            }
            true
        }
        1 => {
            let quoted: [u8; 32] = std::array::from_fn(|_| input.byte());
            let list = input.0;
            let files = ima::measured(list, &[0; 32], &quoted);
            let allowed: BTreeSet<[u8; 32]> = files.iter().flatten().map(|m| m.file).collect();
            let appraised = ima::appraise(list, &[0; 32], &quoted, &allowed, None);
            assert!(appraised.is_err() || files.is_ok());
            // with no file allowed, no list is good
            assert!(ima::appraise(list, &[0; 32], &quoted, &BTreeSet::new(), None).is_err());
            let (machine, selection) = machine();
            let evidence = machine.quote(&EXPECTED, &selection);
            let policy = AppraisalPolicy { selection: selection.clone(), allow_software_tpm: true };
            let logs = Logs { event_log: list, ima: Some(list) };
            let values = machine.reference_values(&selection);
            let accepted =
                appraise(&evidence, logs, &machine.enrolled(true), &values, &policy, &EXPECTED, None);
            assert!(accepted.is_err(), "another log than the one that the evidence names");
            files.is_ok() || list.len() < 60
        }
        2 => {
            let mut log = new_log();
            let mut values: [[u8; 32]; 24] = std::array::from_fn(|pcr| eventlog::reset_value(pcr as u8));
            let mut count = 0;
            while !input.0.is_empty() && count < 300 {
                let pcr = input.byte() % PCRS;
                let kind = u32::from(input.byte());
                let digest = [input.byte(); 32];
                let length = usize::from(input.byte());
                append_event(&mut log, pcr, kind, &digest, input.bytes(length));
                if kind != EV_NO_ACTION
                    && let Some(value) = values.get_mut(usize::from(pcr))
                {
                    *value = extend(value, &digest);
                }
                count += 1;
            }
            // an event without an action may claim a locality, and be refused for it
            let Ok(replay) = eventlog::replay(&log) else { return true };
            assert_eq!(eventlog::events(&log).map(|e| e.len()), Ok(count));
            for (pcr, value) in values.iter().enumerate().skip(1) {
                assert_eq!(&replay.value(pcr as u8), value);
            }
            true
        }
        _ => {
            let quoted_at = usize::from(input.byte() % 16);
            let mut list = Vec::new();
            let mut files = Vec::new();
            while !input.0.is_empty() && files.len() < 16 {
                let file = [input.byte(); 32];
                let length = usize::from(input.byte() % 64);
                let path: Vec<u8> = input.bytes(length).iter().map(|b| b'a' + b % 26).collect();
                let data = [
                    &40u32.to_le_bytes()[..],
                    b"sha256:\0",
                    &file,
                    &(path.len() as u32 + 1).to_le_bytes(),
                    &path,
                    &[0],
                ]
                .concat();
                list.extend([&10u32.to_le_bytes()[..], &[1; 20], &6u32.to_le_bytes(), b"ima-ng"].concat());
                list.extend((data.len() as u32).to_le_bytes());
                list.extend(&data);
                files.push((file, quorate_core::tlog::sha256(&data).0));
            }
            if files.is_empty() {
                return false;
            }
            let prefix = files.get(..=quoted_at.min(files.len() - 1)).unwrap_or_default();
            let quoted = prefix.iter().fold([0; 32], |value, (_, digest)| extend(&value, digest));
            let allowed: BTreeSet<[u8; 32]> = prefix.iter().map(|(file, _)| *file).collect();
            let appraised = ima::appraise(&list, &[0; 32], &quoted, &allowed, None);
            assert_eq!(appraised.map(|p| p.entries), Ok(prefix.len()), "the prefix that was quoted");
            let (last, _) = prefix[prefix.len() - 1];
            let fewer: BTreeSet<[u8; 32]> = allowed.into_iter().filter(|f| *f != last).collect();
            assert!(
                ima::appraise(&list, &[0; 32], &quoted, &fewer, None).is_err(),
                "a file that is not allowed"
            );
            true
        }
    }
}

/// Real structures, as inputs of the targets here.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let (machine, selection) = machine();
    let quote = machine.quote_fields(&EXPECTED, &selection).marshal();
    let mut two = machine.quote_fields(&EXPECTED, &selection);
    two.selections.push((0x000c, BTreeSet::from([1])));
    let mut all = vec![
        ("tpm", "ak".to_owned(), [&[0], &machine.ak_public()[..]].concat()),
        ("tpm", "signature".to_owned(), [&[1], &machine.sign(b"message")[..]].concat()),
        ("tpm", "quote".to_owned(), [&[2], &quote[..]].concat()),
        ("tpm", "two-banks".to_owned(), [&[2], &two.marshal()[..]].concat()),
        ("tpm", "ek-p384".to_owned(), [&[3], CERTIFICATES[0]].concat()),
        ("tpm", "ek-rsa2048".to_owned(), [&[3], CERTIFICATES[1]].concat()),
        ("eventlogs", "boot".to_owned(), [&[0], machine.event_log()].concat()),
        ("eventlogs", "empty".to_owned(), [&[0], &new_log()[..]].concat()),
        (
            "eventlogs",
            "written".to_owned(),
            b"\x02\x00\x0d\x01\x03abc\x04\x0d\x02\x00\x07\x03\x03\x02xy".to_vec(),
        ),
        ("eventlogs", "measured".to_owned(), b"\x03\x01\x05\x04path\x06\x02ab\x07\x00".to_vec()),
        ("eventlogs", "ascii".to_owned(), [&[1], &[9; 32][..], b"10 "].concat()),
    ];
    let data = [&40u32.to_le_bytes()[..], b"sha256:\0", &[5; 32], &7u32.to_le_bytes(), b"/bin/x\0"].concat();
    let entry = [
        &10u32.to_le_bytes()[..],
        &[1; 20],
        &6u32.to_le_bytes(),
        b"ima-ng",
        &(data.len() as u32).to_le_bytes(),
        &data,
    ]
    .concat();
    let quoted = extend(&[0; 32], &quorate_core::tlog::sha256(&data).0);
    all.push(("eventlogs", "list".to_owned(), [&[1], &quoted[..], &entry].concat()));
    all
}
