//! From a TPM's own bytes to the Verifier's decision: EK chain, credential activation, quote, appraisal.
use crate::support::{Swtpm, pem_certificate, swtpm_missing};
use quorate_attest::{
    appraisal::{AppraisalPolicy, Appraised, Logs, Rejection, appraise},
    endorsement::{EkError, EkPolicy, EnrolledAk, Enrolment, EnrolmentError, Validity, verify_ek},
    eventlog::{self, EV_IPL},
    reference_values::ReferenceValues,
};
use quorate_attest_tpm::{EkKind, EnrolmentRequest, Tpm, TpmError, danger_firmware};
use std::collections::{BTreeMap, BTreeSet};

const SELECTION: [u8; 3] = [4, 7, 11];
const QUALIFYING: [u8; 32] = [9; 32];
const EK_POLICY: EkPolicy = EkPolicy { validity: Validity::NotChecked, danger_allow_sha1: false };

/// A machine that has booted with `log`.
fn boot(tpm: &mut Tpm) -> Vec<u8> {
    let mut log = eventlog::new_log();
    for (pcr, digest) in [(4, [1; 32]), (7, [2; 32]), (11, [3; 32]), (11, [4; 32])] {
        eventlog::append_event(&mut log, pcr, EV_IPL, &digest, b"test");
        danger_firmware::extend_pcr(tpm, pcr, digest).unwrap();
    }
    log
}

fn enrol(swtpm: &Swtpm, tpm: &mut Tpm, kind: EkKind) -> EnrolledAk {
    let request = tpm.enrol(kind).unwrap();
    let (enrolment, credential) = begin(swtpm, &request).unwrap();
    let secret = tpm.activate(kind, &credential).unwrap();
    enrolment.finish(&secret).unwrap()
}

fn begin(
    swtpm: &Swtpm,
    request: &EnrolmentRequest,
) -> Result<(Enrolment, quorate_attest::credential::CredentialBlob), EnrolmentError> {
    let intermediate = pem_certificate(&swtpm.ca().join("issuercert.pem"));
    let root = pem_certificate(&swtpm.ca().join("swtpm-localca-rootca-cert.pem"));
    let genuine = verify_ek(&request.ek_certs[0], &[&intermediate], &[&root], &EK_POLICY).unwrap();
    assert!(genuine.software_tpm());
    Enrolment::begin(&genuine, &request.ek_public, &request.ak_public)
}

fn appraise_now(
    tpm: &mut Tpm,
    ak: &EnrolledAk,
    log: &[u8],
    rv: &ReferenceValues,
    floor: Option<&Appraised>,
) -> Result<Appraised, Rejection> {
    let policy = AppraisalPolicy { selection: BTreeSet::from(SELECTION), allow_software_tpm: true };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, log);
    let evidence =
        tpm.quote(&SELECTION, QUALIFYING).unwrap().into_evidence(digest.as_ref().try_into().unwrap(), None);
    let floor = floor.map(Appraised::counters);
    appraise(&evidence, Logs { event_log: log, ima: None }, ak, rv, &policy, &QUALIFYING, floor.as_ref())
}

fn reference_values(log: &[u8]) -> ReferenceValues {
    let replay = eventlog::replay(log).unwrap();
    let pcrs: BTreeMap<_, _> = SELECTION.into_iter().map(|pcr| (pcr, vec![replay.value(pcr)])).collect();
    ReferenceValues { pcrs, ..ReferenceValues::default() }
}

#[test]
fn a_booted_machine_is_appraised_and_a_changed_one_is_not() {
    if swtpm_missing() {
        return;
    }
    for kind in [EkKind::P384, EkKind::Rsa2048] {
        let swtpm = Swtpm::new();
        let mut tpm = swtpm.tpm();
        let ak = enrol(&swtpm, &mut tpm, kind);
        let log = boot(&mut tpm);
        let rv = reference_values(&log);
        let appraised = appraise_now(&mut tpm, &ak, &log, &rv, None).unwrap();
        assert!(appraised.software_tpm());
        appraise_now(&mut tpm, &ak, &log, &rv, Some(&appraised)).unwrap();

        danger_firmware::extend_pcr(&mut tpm, 11, [5; 32]).unwrap();
        let unexplained = appraise_now(&mut tpm, &ak, &log, &rv, None);
        assert_eq!(unexplained, Err(Rejection::EventLogDoesNotExplain { pcr: 11 }));
        let mut logged = log.clone();
        eventlog::append_event(&mut logged, 11, EV_IPL, &[5; 32], b"test");
        let other = appraise_now(&mut tpm, &ak, &logged, &rv, None);
        let got = eventlog::replay(&logged).unwrap().value(11);
        assert_eq!(other, Err(Rejection::ReferenceValue { pcr: 11, got }));
    }
}

#[test]
fn a_reboot_shows_in_the_counters_and_an_old_state_is_found_out() {
    if swtpm_missing() {
        return;
    }
    let mut swtpm = Swtpm::new();
    let mut tpm = swtpm.tpm();
    let ak = enrol(&swtpm, &mut tpm, EkKind::P384);
    let log = boot(&mut tpm);
    let rv = reference_values(&log);
    let before = appraise_now(&mut tpm, &ak, &log, &rv, None).unwrap();
    swtpm.save_state();

    swtpm.cut_power();
    swtpm.switch_on();
    assert_eq!(boot(&mut tpm), log);
    let after = appraise_now(&mut tpm, &ak, &log, &rv, Some(&before)).unwrap();
    assert!(after.machine_reset());
    swtpm.cut_power();
    swtpm.switch_on();
    boot(&mut tpm);
    let later = appraise_now(&mut tpm, &ak, &log, &rv, Some(&after)).unwrap();

    swtpm.cut_power();
    swtpm.restore_state();
    swtpm.switch_on();
    boot(&mut tpm);
    let rolled_back = appraise_now(&mut tpm, &ak, &log, &rv, Some(&later));
    assert!(matches!(rolled_back, Err(Rejection::CountersWentBack { .. })), "{rolled_back:?}");
}

#[test]
fn another_tpm_is_not_this_node() {
    if swtpm_missing() {
        return;
    }
    let (swtpm, other) = (Swtpm::new(), Swtpm::new());
    let (mut tpm, mut other_tpm) = (swtpm.tpm(), other.tpm());
    let ak = enrol(&swtpm, &mut tpm, EkKind::P384);
    enrol(&other, &mut other_tpm, EkKind::P384);
    let log = boot(&mut other_tpm);
    let rv = reference_values(&log);
    assert_eq!(appraise_now(&mut other_tpm, &ak, &log, &rv, None), Err(Rejection::SignatureDoesNotVerify));

    // An EK certificate of one TPM with the keys of another; one of a CA that nobody trusts.
    let (mine, theirs) = (tpm.enrol(EkKind::P384).unwrap(), other_tpm.enrol(EkKind::P384).unwrap());
    let mixed = EnrolmentRequest { ek_public: theirs.ek_public.clone(), ..mine.clone() };
    assert_eq!(begin(&swtpm, &mixed).err(), Some(EnrolmentError::AnotherEk));
    let root = pem_certificate(&swtpm.ca().join("swtpm-localca-rootca-cert.pem"));
    let untrusted = verify_ek(&theirs.ek_certs[0], &[], &[&root], &EK_POLICY);
    assert_eq!(untrusted, Err(EkError::NoIssuer { position: 0 }));

    // A credential for this EK and the other's AK: neither TPM opens it.
    let mixed = EnrolmentRequest { ak_public: theirs.ak_public, ..mine };
    let (_, credential) = begin(&swtpm, &mixed).unwrap();
    for tpm in [&mut tpm, &mut other_tpm] {
        assert!(matches!(tpm.activate(EkKind::P384, &credential), Err(TpmError::Command { .. })));
    }
}
