//! The Attester against real software TPMs, and its results against the Verifier's own parsers.
use quorate_attest::{
    credential::make_credential,
    tpm::{PublicKey, Quote, TpmPublic, TpmSignature},
};
use quorate_attest_tpm::{AK_HANDLE_DEFAULT, EkKind, Tpm, TpmError, danger_firmware};
use std::time::{Duration, Instant};
use tss_esapi::{
    abstraction::{AsymmetricAlgorithmSelection, DefaultKey, ek},
    interface_types::ecc::EccCurve,
};

use crate::support::{Swtpm, swtpm_missing};

const SELECTION: [u8; 5] = [0, 2, 4, 7, 11];

fn enrolled() -> (Swtpm, Tpm, TpmPublic) {
    let swtpm = Swtpm::new();
    let mut tpm = swtpm.tpm();
    let request = tpm.enrol(EkKind::P384).unwrap();
    let ak = TpmPublic::parse(&request.ak_public).unwrap();
    (swtpm, tpm, ak)
}

fn quote(tpm: &mut Tpm) -> Quote {
    Quote::parse(&tpm.quote(&SELECTION, [7; 32]).unwrap().attest).unwrap()
}

#[test]
fn each_ek_activates_a_credential_for_its_own_ak_only() {
    if swtpm_missing() {
        return;
    }
    let swtpm = Swtpm::new();
    let mut tpm = swtpm.tpm();
    assert_eq!(tpm.ek_kinds().unwrap(), [EkKind::P384, EkKind::Rsa2048]);
    // swtpm stores no certificate for P-256: an admin would have to know the key.
    for kind in [EkKind::P384, EkKind::Rsa2048, EkKind::P256] {
        let request = tpm.enrol(kind).unwrap();
        assert_eq!(request.ek_certs.len(), usize::from(kind != EkKind::P256));
        assert_eq!(request.ak_public, tpm.ak_public().unwrap());
        assert_eq!(request.manufacturer, "IBM");
        let ek = TpmPublic::parse(&request.ek_public).unwrap();
        let ak = TpmPublic::parse(&request.ak_public).unwrap();
        assert_eq!(matches!(ek.key(), PublicKey::Rsa { .. }), kind == EkKind::Rsa2048);

        let secret = [0x5a; 32];
        let credential = make_credential(&ek, &ak.name(), &secret).unwrap();
        assert_eq!(tpm.activate(kind, &credential).unwrap().as_slice(), secret);

        let mut other_ak = ak.name();
        *other_ak.last_mut().unwrap() ^= 1;
        let for_another = make_credential(&ek, &other_ak, &secret).unwrap();
        assert!(is_refused(tpm.activate(kind, &for_another)), "a credential for another AK");
        let mut altered = credential.clone();
        *altered.id_object.last_mut().unwrap() ^= 1;
        assert!(is_refused(tpm.activate(kind, &altered)), "an altered credential");
        // Failures leave nothing behind in the TPM's three slots.
        for _ in 0..4 {
            assert!(is_refused(tpm.activate(kind, &altered)));
        }
        assert_eq!(tpm.activate(kind, &credential).unwrap().as_slice(), secret);
    }
}

fn is_refused<T>(outcome: Result<T, TpmError>) -> bool {
    matches!(outcome, Err(TpmError::Command { command: "TPM2_ActivateCredential", .. }))
}

#[test]
fn enrolling_again_gives_the_same_keys() {
    if swtpm_missing() {
        return;
    }
    let (_swtpm, mut tpm, ak) = enrolled();
    let again = tpm.enrol(EkKind::P384).unwrap();
    assert_eq!(TpmPublic::parse(&again.ak_public).unwrap(), ak);
}

#[test]
fn a_foreign_key_at_the_ak_handle_is_left_alone() {
    if swtpm_missing() {
        return;
    }
    // swtpm_setup keeps its RSA EK at this handle.
    const EK_HANDLE: u32 = 0x8101_0001;
    let swtpm = Swtpm::new();
    let mut tpm = Tpm::closed(swtpm.tcti().parse().unwrap(), EK_HANDLE).unwrap();
    assert!(matches!(tpm.enrol(EkKind::P384), Err(TpmError::AkHandleOccupied { handle: EK_HANDLE })));
    let outside = Tpm::closed(swtpm.tcti().parse().unwrap(), 0x8180_0000);
    assert!(matches!(outside, Err(TpmError::AkHandleInvalid { handle: 0x8180_0000 })));
}

#[test]
fn what_a_killed_process_left_in_the_tpm_does_not_block_the_next() {
    if swtpm_missing() {
        return;
    }
    let swtpm = Swtpm::new();
    let tcti = swtpm.tcti().parse().unwrap();
    let mut killed = tss_esapi::Context::new(tcti).unwrap();
    let kind = AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384);
    let mut create = || ek::create_ek_object_2(&mut killed, kind, None::<DefaultKey>);
    while create().is_ok() {}
    std::mem::forget(killed);
    swtpm.tpm().enrol(EkKind::P384).unwrap();
}

#[test]
fn a_tpm_without_an_ak_says_so() {
    if swtpm_missing() {
        return;
    }
    let swtpm = Swtpm::new();
    assert!(matches!(
        swtpm.tpm().quote(&SELECTION, [0; 32]),
        Err(TpmError::AkAbsent { handle: AK_HANDLE_DEFAULT })
    ));
}

#[test]
fn a_quote_verifies_under_the_ak_and_covers_the_values_beside_it() {
    if swtpm_missing() {
        return;
    }
    let (_swtpm, mut tpm, ak) = enrolled();
    danger_firmware::extend_pcr(&mut tpm, 11, [0xab; 32]).unwrap();
    let mut previous = None;
    // Signatures whose numbers have leading zeros must survive marshalling: one in 128 has one.
    for round in 0..400u16 {
        let mut qualifying = [7; 32];
        qualifying[..2].copy_from_slice(&round.to_be_bytes());
        let quoted = tpm.quote(&SELECTION, qualifying).unwrap();
        let signature = TpmSignature::parse(&quoted.signature).unwrap();
        ak.verify(&quoted.attest, &signature).unwrap();
        let mut altered = quoted.attest.clone();
        *altered.last_mut().unwrap() ^= 1;
        assert!(ak.verify(&altered, &signature).is_err());

        let quote = Quote::parse(&quoted.attest).unwrap();
        assert_eq!(quote.extra_data, qualifying);
        assert_eq!(quote.selections.len(), 1);
        assert!(quote.selections[0].is_sha256());
        assert!(quote.selections[0].pcrs.iter().eq(&SELECTION));
        let values: Vec<u8> = quoted.pcrs.iter().flat_map(|(_, value)| *value).collect();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &values);
        assert_eq!(quote.pcr_digest, digest.as_ref());
        assert!(quoted.pcrs.iter().map(|(index, _)| index).eq(&SELECTION));
        assert_eq!(quoted.pcrs[0].1, [0; 32]);
        // PCR_Extend: H(32 zero bytes, digest).
        let extended = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[[0; 32], [0xab; 32]].concat());
        assert_eq!(quoted.pcrs[4].1, extended.as_ref());
        assert_ne!(previous.replace(quoted.signature.clone()), Some(quoted.signature));
    }
}

#[test]
fn a_power_cycle_raises_the_reset_count_and_keeps_the_ak() {
    if swtpm_missing() {
        return;
    }
    let (mut swtpm, mut tpm, ak) = enrolled();
    let before = quote(&mut tpm);
    danger_firmware::extend_pcr(&mut tpm, 4, [1; 32]).unwrap();

    danger_firmware::shutdown(&mut tpm).unwrap();
    swtpm.cut_power();
    swtpm.switch_on();
    let orderly = quote(&mut tpm);
    assert_eq!(orderly.reset_count, before.reset_count + 1);
    assert_eq!(tpm.pcr_values(&[4]).unwrap(), [(4, [0; 32])]);

    swtpm.cut_power();
    swtpm.switch_on();
    let quoted = tpm.quote(&SELECTION, [7; 32]).unwrap();
    ak.verify(&quoted.attest, &TpmSignature::parse(&quoted.signature).unwrap()).unwrap();
    let cut = Quote::parse(&quoted.attest).unwrap();
    assert_eq!(cut.reset_count, before.reset_count + 2);
}

#[test]
fn power_cuts_do_not_lock_the_ak_or_the_ek_out() {
    if swtpm_missing() {
        return;
    }
    let (mut swtpm, mut tpm, _) = enrolled();
    for _ in 0..6 {
        quote(&mut tpm);
        swtpm.cut_power();
        swtpm.switch_on();
    }
    quote(&mut tpm);
    let request = tpm.enrol(EkKind::Rsa2048).unwrap();
    let ek = TpmPublic::parse(&request.ek_public).unwrap();
    let ak = TpmPublic::parse(&request.ak_public).unwrap();
    let credential = make_credential(&ek, &ak.name(), &[1; 32]).unwrap();
    assert_eq!(tpm.activate(EkKind::Rsa2048, &credential).unwrap().as_slice(), [1; 32]);
}

#[test]
fn a_dead_tpm_is_an_error_in_bounded_time_and_comes_back() {
    if swtpm_missing() {
        return;
    }
    let (mut swtpm, tpm, _) = enrolled();
    drop(tpm);
    let timeout = Duration::from_secs(2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let handle = swtpm.handle(timeout);
    let quote = || {
        let asked = Instant::now();
        let outcome = runtime.block_on(handle.quote(&SELECTION, [1; 32]));
        assert!(asked.elapsed() < timeout * 2, "took {:?}", asked.elapsed());
        outcome
    };
    quote().unwrap();

    swtpm.cut_power();
    assert!(matches!(quote(), Err(TpmError::Unreachable { .. })));
    swtpm.switch_on();
    quote().unwrap();

    // One that hangs: every caller has its deadline, then the queue is full, and nobody waits at all.
    swtpm.signal("STOP");
    assert!(matches!(quote(), Err(TpmError::TimedOut(_))));
    let impatient = handle.run_blocking(Duration::from_millis(10), |tpm| tpm.pcr_values(&[0]));
    assert!(matches!(impatient, Err(TpmError::TimedOut(_))));
    let mut busy = false;
    for _ in 0..16 {
        let outcome = handle.run_blocking(Duration::ZERO, |tpm| tpm.pcr_values(&[0]));
        busy |= matches!(outcome, Err(TpmError::Busy));
    }
    assert!(busy);
    swtpm.signal("CONT");
    // What is queued goes first; it takes milliseconds, but the queue may still be full right now.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = quote() {
        assert!(matches!(error, TpmError::Busy), "{error}");
        assert!(Instant::now() < deadline);
    }

    // One that hangs and is then killed.
    swtpm.signal("STOP");
    assert!(matches!(quote(), Err(TpmError::TimedOut(_))));
    swtpm.cut_power();
    swtpm.switch_on();
    quote().unwrap();
}
