//! Nothing a peer can send makes a parser panic or run long.
use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::appraisal::{Logs, appraise};
use crate::endorsement::{EkPolicy, EnrolledAk, Validity, verify_ek};
use crate::evidence::Evidence;
use crate::testing::{TestTpm, policy};
use crate::tpm::{Quote, TpmPublic, TpmSignature};
use crate::{eventlog, ima};

/// Bytes that start well and go wrong: a good structure with some bytes replaced, and perhaps cut.
fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = good.len();
    (proptest::collection::vec((0..len, any::<u8>()), 0..6), 0..=len).prop_map(move |(edits, cut)| {
        let mut bytes = good.clone();
        edits.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        bytes.truncate(cut);
        bytes
    })
}

fn tpm() -> TestTpm {
    TestTpm::new(1)
}

fn evidence() -> Evidence {
    tpm().quote(&[0; 32], &BTreeSet::from([4, 10]))
}

proptest! {
    #[test]
    fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Quote::parse(&bytes);
        let _ = TpmSignature::parse(&bytes);
        let _ = TpmPublic::parse(&bytes);
        let _ = eventlog::replay(&bytes);
        let _ = ima::appraise(&bytes, &[0; 32], &[1; 32], &BTreeSet::new(), None);
        let strict = EkPolicy { validity: Validity::NotChecked, danger_allow_sha1: false };
        let _ = verify_ek(&bytes, &[&bytes], &[&bytes], &strict);
    }

    #[test]
    fn damaged_quotes(bytes in damaged(evidence().attest)) { let _ = Quote::parse(&bytes); }

    #[test]
    fn damaged_signatures(bytes in damaged(evidence().signature)) {
        if let Ok(signature) = TpmSignature::parse(&bytes) {
            let _ = tpm().enrolled(false).public().verify(b"message", &signature);
        }
    }

    #[test]
    fn damaged_keys(bytes in damaged(tpm().ak_public())) {
        if let Ok(ak) = EnrolledAk::from_policy(&bytes, false) {
            let signature = TpmSignature::parse(&evidence().signature).unwrap();
            let _ = ak.public().verify(b"message", &signature);
        }
    }

    #[test]
    fn damaged_event_logs(bytes in damaged(tpm().event_log().to_vec())) { let _ = eventlog::replay(&bytes); }

    #[test]
    fn damaged_certificates(bytes in damaged(include_bytes!("../../testdata/swtpm/ek-p384.der").to_vec())) {
        let strict = EkPolicy { validity: Validity::NotChecked, danger_allow_sha1: false };
        let root: &[u8] = include_bytes!("../../testdata/swtpm/root.der");
        let issuer: &[u8] = include_bytes!("../../testdata/swtpm/issuer.der");
        let _ = verify_ek(&bytes, &[issuer], &[root], &strict);
    }

    #[test]
    fn ascii_lists(text in "(10 [0-9a-f]{38,42} ima-(ng|sig) (sha1|sha256):[0-9a-f]{0,66} [ -~]{0,20}\n?){0,4}") {
        let _ = ima::appraise(text.as_bytes(), &[0; 32], &[1; 32], &BTreeSet::new(), None);
    }

    /// Whatever one byte of honest Evidence becomes, it is refused: no field of it is slack.
    #[test]
    fn no_byte_is_slack(at in 0usize..1000, bit in 0u8..8) {
        let selection = BTreeSet::from([4, 11]);
        let tpm = tpm();
        let honest = tpm.quote(&[0; 32], &selection);
        let mut bytes = borsh::to_vec(&honest).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(changed) = borsh::from_slice::<Evidence>(&bytes) {
            let rv = tpm.reference_values(&selection);
            let logs = Logs { event_log: tpm.event_log(), ima: None };
            let verdict =
                appraise(&changed, logs, &tpm.enrolled(true), &rv, &policy(&selection, true), &[0; 32], None);
            prop_assert!(verdict.is_err(), "byte {at} bit {bit} of the evidence does not matter");
        }
    }
}
