//! A TPM in software for tests: an AK that follows from a seed, PCRs, an event log and counters, all of which a test may set.
//!
//! It protects nothing. It is compiled only under this crate's own tests and under the feature `danger-testing`, which no
//! release build enables: other crates name it in `dev-dependencies` alone. Everything is deterministic, signatures
//! included (the nonce of ECDSA is derived from key and message), so that a simulation can be replayed from its seed.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a broken invariant should stop the test, and all inputs are the test's own"
)]
use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};

use crate::appraisal::{AppraisalPolicy, Logs};
use crate::endorsement::EnrolledAk;
use crate::eventlog::{self, EV_IPL, EV_SEPARATOR, PCRS, extend, sha256};
use crate::evidence::Evidence;
use crate::reference_values::ReferenceValues;
use crate::tpm::{ST_ATTEST_QUOTE, TPM_GENERATED};

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.
const AK_ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 16 | 1 << 18;

/// The fields of a quote before it is marshalled, so that a test can change one and have it signed.
#[derive(Clone, Debug)]
pub struct QuoteFields {
    /// `TPM_GENERATED_VALUE`
    pub magic: u32,
    /// `TPM_ST_ATTEST_QUOTE`
    pub kind: u16,
    /// Qualifying data.
    pub extra_data: Vec<u8>,
    /// Milliseconds.
    pub clock_ms: u64,
    /// Power cycles.
    pub reset_count: u32,
    /// Restarts since the last power cycle.
    pub restart_count: u32,
    /// 0 or 1.
    pub safe: u8,
    /// The vendor's number.
    pub firmware_version: u64,
    /// `TPM_ALG_ID` and PCRs of each bank.
    pub selections: Vec<(u16, BTreeSet<u8>)>,
    /// SHA-256 of the values.
    pub pcr_digest: Vec<u8>,
}

impl QuoteFields {
    /// `TPMS_ATTEST`.
    pub fn marshal(&self) -> Vec<u8> {
        let mut out = self.magic.to_be_bytes().to_vec();
        out.extend(self.kind.to_be_bytes());
        out.extend(tpm2b(&[&[0, 0x0b], &[0x51; 32][..]].concat()));
        out.extend(tpm2b(&self.extra_data));
        out.extend(self.clock_ms.to_be_bytes());
        out.extend(self.reset_count.to_be_bytes());
        out.extend(self.restart_count.to_be_bytes());
        out.push(self.safe);
        out.extend(self.firmware_version.to_be_bytes());
        out.extend(u32::try_from(self.selections.len()).unwrap().to_be_bytes());
        for (bank, pcrs) in &self.selections {
            let mut bitmap = [0u8; 3];
            pcrs.iter().for_each(|pcr| bitmap[usize::from(pcr / 8)] |= 1 << (pcr % 8));
            out.extend(bank.to_be_bytes());
            out.push(3);
            out.extend(bitmap);
        }
        out.extend(tpm2b(&self.pcr_digest));
        out
    }
}

/// A TPM and the machine around it.
#[derive(Clone)]
pub struct TestTpm {
    scalar: [u8; 32],
    public: Vec<u8>,
    log: Vec<u8>,
    pcrs: BTreeMap<u8, [u8; 32]>,
    /// Milliseconds; tests move it.
    pub clock_ms: u64,
    /// Power cycles; see [`TestTpm::power_cycle`].
    pub reset_count: u32,
    /// Restarts since the last power cycle; see [`TestTpm::restart`].
    pub restart_count: u32,
    /// The clock's `safe` flag.
    pub safe: bool,
    /// The vendor's number.
    pub firmware_version: u64,
}

impl TestTpm {
    /// A machine that booted the same software whatever its seed; the AK alone follows from the seed.
    pub fn new(seed: u64) -> Self {
        let scalar = sha256(&[&b"quorate test tpm "[..], &seed.to_be_bytes()].concat());
        let point = base_point_times(&scalar);
        let mut public = vec![0, 0x23, 0, 0x0b];
        public.extend(AK_ATTRIBUTES.to_be_bytes());
        public.extend([0, 0]); // no policy
        public.extend([0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10]); // no cipher, ECDSA with SHA-256, P-256, no KDF
        public.extend(tpm2b(&point[..32]));
        public.extend(tpm2b(&point[32..]));
        let mut tpm = Self {
            scalar,
            public,
            log: eventlog::new_log(),
            pcrs: (0..PCRS).map(|pcr| (pcr, eventlog::reset_value(pcr))).collect(),
            clock_ms: 1_000_000,
            reset_count: 5,
            restart_count: 0,
            safe: true,
            firmware_version: 0x2019_1023_0016_3636,
        };
        for pcr in 0..8 {
            tpm.measure(pcr, EV_SEPARATOR, &[0; 4]);
        }
        tpm.measure(4, EV_IPL, b"boot loader");
        tpm.measure(11, EV_IPL, b"unified kernel image");
        tpm
    }

    /// The AK's marshalled `TPMT_PUBLIC`.
    pub fn ak_public(&self) -> Vec<u8> {
        self.public.clone()
    }

    /// The AK as policy would have it, with the label that policy gives the TPM.
    pub fn enrolled(&self, software_tpm: bool) -> EnrolledAk {
        EnrolledAk::from_policy(&self.public, software_tpm).expect("our own AK is one")
    }

    /// Measures: extends a PCR with the digest of `data` and logs it.
    pub fn measure(&mut self, pcr: u8, event_type: u32, data: &[u8]) {
        let digest = sha256(data);
        eventlog::append_event(&mut self.log, pcr, event_type, &digest, data);
        self.extend_unlogged(pcr, &digest);
    }

    /// Extends a PCR without a word in the log, as IMA does and as an attacker might.
    pub fn extend_unlogged(&mut self, pcr: u8, digest: &[u8; 32]) {
        let value = self.pcrs.get_mut(&pcr).expect("PCR 0 to 23");
        *value = extend(value, digest);
    }

    /// A power cycle into the same software.
    pub fn power_cycle(&mut self) {
        self.reset_count += 1;
        self.restart_count = 0;
    }

    /// A suspend or hibernation and what follows it.
    pub fn restart(&mut self) {
        self.restart_count += 1;
    }

    /// The event log.
    pub fn event_log(&self) -> &[u8] {
        &self.log
    }

    /// The event log as [`crate::appraisal::appraise`] takes it.
    pub fn logs(&self) -> Logs<'_> {
        Logs { event_log: &self.log, ima: None }
    }

    /// The present value of a PCR.
    pub fn pcr(&self, pcr: u8) -> [u8; 32] {
        self.pcrs[&pcr]
    }

    /// Reference values by which this machine is good as it is.
    pub fn reference_values(&self, selection: &BTreeSet<u8>) -> ReferenceValues {
        let pcrs = selection.iter().map(|pcr| (*pcr, vec![self.pcr(*pcr)])).collect();
        ReferenceValues { pcrs, ima: None, firmware_versions: None }
    }

    /// What a quote says now.
    pub fn quote_fields(&self, qualifying: &[u8; 32], selection: &BTreeSet<u8>) -> QuoteFields {
        let values: Vec<u8> = selection.iter().flat_map(|pcr| self.pcr(*pcr)).collect();
        QuoteFields {
            magic: TPM_GENERATED,
            kind: ST_ATTEST_QUOTE,
            extra_data: qualifying.to_vec(),
            clock_ms: self.clock_ms,
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            safe: u8::from(self.safe),
            firmware_version: self.firmware_version,
            selections: vec![(0x000b, selection.clone())],
            pcr_digest: sha256(&values).to_vec(),
        }
    }

    /// Evidence around a structure that this TPM's AK signs, whatever it says.
    pub fn evidence_over(&self, attest: Vec<u8>, selection: &BTreeSet<u8>) -> Evidence {
        Evidence {
            signature: self.sign(&attest),
            attest,
            pcrs: selection.iter().map(|pcr| (*pcr, self.pcr(*pcr))).collect(),
            event_log: sha256(&self.log),
            ima_log: None,
        }
    }

    /// TPM2_Quote and what goes with it: honest Evidence.
    pub fn quote(&self, qualifying: &[u8; 32], selection: &BTreeSet<u8>) -> Evidence {
        self.evidence_over(self.quote_fields(qualifying, selection).marshal(), selection)
    }

    /// `TPMT_SIGNATURE` of the AK: ECDSA on P-256 with SHA-256, its nonce derived from key and message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let digest = sha256(message);
        let nonce = sha256(&[&b"nonce"[..], &self.scalar, &digest].concat());
        let point = base_point_times(&nonce);
        let n = Order;
        let (k, d) = (n.reduce(&nonce), n.reduce(&self.scalar));
        let r = n.reduce(point[..32].try_into().unwrap());
        let s = n.mul(n.inverse(k), n.add(n.reduce(&digest), n.mul(r, d)));
        let mut out = vec![0, 0x18, 0, 0x0b];
        out.extend(tpm2b(&to_bytes(r)));
        out.extend(tpm2b(&to_bytes(s)));
        out
    }
}

/// A policy of this selection.
pub fn policy(selection: &BTreeSet<u8>, allow_software_tpm: bool) -> AppraisalPolicy {
    AppraisalPolicy { selection: selection.clone(), allow_software_tpm }
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Coordinates of a multiple of the base point of P-256.
fn base_point_times(scalar: &[u8; 32]) -> [u8; 64] {
    let key = PrivateKey::from_private_key(&ECDH_P256, scalar)
        .expect("a digest is below the order but once in 2^32");
    key.compute_public_key().unwrap().as_ref()[1..].try_into().unwrap()
}

/// Numbers modulo the order of P-256, slow and not in constant time; least significant limb first.
struct Order;
type Limbs = [u64; 4];

/// FIPS 186-5, P-256: n.
const N: Limbs = [0xf3b9_cac2_fc63_2551, 0xbce6_faad_a717_9e84, 0xffff_ffff_ffff_ffff, 0xffff_ffff_0000_0000];

impl Order {
    fn reduce(&self, bytes: &[u8; 32]) -> Limbs {
        let mut limbs = [0; 4];
        for (limb, chunk) in limbs.iter_mut().zip(bytes.rchunks_exact(8)) {
            *limb = u64::from_be_bytes(chunk.try_into().unwrap());
        }
        self.subtract_once(limbs, false)
    }

    /// Subtracts n where the number, with its carry, is not below it.
    fn subtract_once(&self, a: Limbs, carry: bool) -> Limbs {
        let mut out = [0; 4];
        let mut borrow = false;
        for i in 0..4 {
            let (low, b1) = a[i].overflowing_sub(N[i]);
            let (low, b2) = low.overflowing_sub(u64::from(borrow));
            (out[i], borrow) = (low, b1 || b2);
        }
        if carry || !borrow { out } else { a }
    }

    fn add(&self, a: Limbs, b: Limbs) -> Limbs {
        let mut out = [0; 4];
        let mut carry = false;
        for i in 0..4 {
            let (low, c1) = a[i].overflowing_add(b[i]);
            let (low, c2) = low.overflowing_add(u64::from(carry));
            (out[i], carry) = (low, c1 || c2);
        }
        self.subtract_once(out, carry)
    }

    fn mul(&self, a: Limbs, b: Limbs) -> Limbs {
        let mut out = [0; 4];
        for i in (0..256).rev() {
            out = self.add(out, out);
            if b[i / 64] >> (i % 64) & 1 == 1 {
                out = self.add(out, a);
            }
        }
        out
    }

    /// Half of a number, modulo n.
    fn half(&self, a: Limbs) -> Limbs {
        let (mut sum, mut carry) = (a, false);
        if a[0] & 1 == 1 {
            for i in 0..4 {
                let (low, c1) = a[i].overflowing_add(N[i]);
                let (low, c2) = low.overflowing_add(u64::from(carry));
                (sum[i], carry) = (low, c1 || c2);
            }
        }
        let above = [sum[1], sum[2], sum[3], u64::from(carry)];
        std::array::from_fn(|i| sum[i] >> 1 | above[i] << 63)
    }

    fn subtract(&self, a: Limbs, b: Limbs) -> Limbs {
        let (mut out, mut borrow) = ([0; 4], false);
        for i in 0..4 {
            let (low, b1) = a[i].overflowing_sub(b[i]);
            let (low, b2) = low.overflowing_sub(u64::from(borrow));
            (out[i], borrow) = (low, b1 || b2);
        }
        match borrow {
            false => out,
            // Past the end of the four limbs and back.
            true => {
                let mut carry = false;
                for i in 0..4 {
                    let (low, c1) = out[i].overflowing_add(N[i]);
                    let (low, c2) = low.overflowing_add(u64::from(carry));
                    (out[i], carry) = (low, c1 || c2);
                }
                out
            }
        }
    }

    /// Euclid's algorithm by halves; simulations sign much.
    fn inverse(&self, a: Limbs) -> Limbs {
        const ONE: Limbs = [1, 0, 0, 0];
        let above = |a: &Limbs, b: &Limbs| a.iter().rev().ge(b.iter().rev());
        let plain_half =
            |a: Limbs| [0, 1, 2, 3].map(|i| a[i] >> 1 | a.get(i + 1).copied().unwrap_or(0) << 63);
        let (mut u, mut v, mut x, mut y) = (a, N, ONE, [0; 4]);
        while u != ONE && v != ONE {
            while u[0] & 1 == 0 {
                (u, x) = (plain_half(u), self.half(x));
            }
            while v[0] & 1 == 0 {
                (v, y) = (plain_half(v), self.half(y));
            }
            // The difference of two that are in order borrows nothing.
            if above(&u, &v) {
                (u, x) = (self.subtract(u, v), self.subtract(x, y));
            } else {
                (v, y) = (self.subtract(v, u), self.subtract(y, x));
            }
        }
        if u == ONE { x } else { y }
    }
}

fn to_bytes(limbs: Limbs) -> Vec<u8> {
    limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect()
}
