//! Sealing: an approved state opens, and each single difference from one is refused for its own reason.
use crate::support::{Swtpm, swtpm_missing};
use quorate_attest::approval::{Approval, ApprovedPcrs, Approver, ApproverKey, CounterIndex, PolicyRef};
use quorate_attest_tpm::{SECRET_BYTES_MAX, SealedBlob, Tpm, TpmError, danger_firmware};

const PCRS: [u8; 3] = [4, 7, 11];
const SECRET: [u8; 32] = *b"a seed that only this TPM opens.";
const COUNTER: CounterIndex = CounterIndex::DEFAULT;

/// One TPM with one sealed secret.
struct Node {
    swtpm: Swtpm,
    tpm: Tpm,
    key: ApproverKey,
    policy_ref: PolicyRef,
    blob: SealedBlob,
    counter: u64,
}

fn key() -> ApproverKey {
    ApproverKey::from_pkcs8(&ApproverKey::generate_pkcs8().unwrap()).unwrap()
}

impl Node {
    fn new() -> Self {
        let swtpm = Swtpm::new();
        let mut tpm = swtpm.tpm();
        let (key, policy_ref) = (key(), PolicyRef::for_node("test", 1));
        let counter = tpm.provision_counter(COUNTER).unwrap();
        let blob = tpm.seal(&key.approver().unwrap(), &policy_ref, &SECRET).unwrap();
        Self { swtpm, tpm, key, policy_ref, blob, counter }
    }

    /// Approves the PCRs as they are, until the counter is raised.
    fn approve(&mut self) -> Approval {
        let pcrs = ApprovedPcrs::new(&self.tpm.pcr_values(&PCRS).unwrap()).unwrap();
        Approval::sign(&self.key, &self.policy_ref, pcrs, COUNTER, self.counter).unwrap()
    }

    fn approver(&self) -> Approver {
        self.key.approver().unwrap()
    }

    fn assert_opens(&mut self, approval: &Approval) {
        assert_eq!(self.tpm.unseal(&self.blob, approval).unwrap().as_slice(), SECRET);
    }

    fn refusal(&mut self, approval: &Approval) -> TpmError {
        self.tpm.unseal(&self.blob, approval).unwrap_err()
    }
}

#[test]
fn an_approved_state_opens_and_after_a_power_cycle_still_does() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    node.assert_opens(&approval);

    // The blob as the file has it, and a TPM that lost its power without notice.
    let bytes = node.blob.to_bytes().unwrap();
    assert!(bytes.len() < 600, "{}", bytes.len());
    node.blob = SealedBlob::from_bytes(&bytes).unwrap();
    for _ in 0..6 {
        node.swtpm.cut_power();
        node.swtpm.switch_on();
        node.assert_opens(&approval);
    }

    for size in [1, SECRET_BYTES_MAX] {
        let secret = vec![0xa5; size];
        node.blob = node.tpm.seal(&node.approver(), &node.policy_ref, &secret).unwrap();
        assert_eq!(node.tpm.unseal(&node.blob, &approval).unwrap().as_slice(), secret);
    }
    for bytes in [0, SECRET_BYTES_MAX + 1] {
        let refused = node.tpm.seal(&node.approver(), &node.policy_ref, &vec![0; bytes]);
        assert!(matches!(refused, Err(TpmError::SecretSize { bytes: got }) if got == bytes));
    }
}

#[test]
fn a_changed_pcr_is_refused_until_a_new_approval() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    // A PCR that the approval is not about changes nothing.
    danger_firmware::extend_pcr(&mut node.tpm, 12, [1; 32]).unwrap();
    node.assert_opens(&approval);

    danger_firmware::extend_pcr(&mut node.tpm, 11, [1; 32]).unwrap();
    let refusal = node.refusal(&approval);
    assert!(matches!(&refusal, TpmError::ApprovalDoesNotFitPcrs { pcrs } if *pcrs == PCRS), "{refusal:?}");
    let renewed = node.approve();
    node.assert_opens(&renewed);
}

#[test]
fn a_withdrawn_approval_is_refused_for_ever() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    let limit = node.counter;
    // Raising to where it is already withdraws nothing.
    assert_eq!(node.tpm.raise_counter(COUNTER, limit).unwrap(), limit);
    node.assert_opens(&approval);

    assert_eq!(node.tpm.raise_counter(COUNTER, limit + 1).unwrap(), limit + 1);
    assert_eq!(node.tpm.counter(COUNTER).unwrap(), limit + 1);
    let withdrawn =
        |refusal: &TpmError| matches!(refusal, TpmError::ApprovalWithdrawn { limit: got } if *got == limit);
    let refusal = node.refusal(&approval);
    assert!(withdrawn(&refusal), "{refusal:?}");
    node.swtpm.cut_power();
    node.swtpm.switch_on();
    assert!(withdrawn(&node.refusal(&approval)));
    node.counter = limit + 1;
    let renewed = node.approve();
    node.assert_opens(&renewed);

    let far = node.tpm.raise_counter(COUNTER, u64::MAX);
    assert!(matches!(far, Err(TpmError::CounterTooFar { value, asked: u64::MAX }) if value == limit + 1));

    // An owner who deletes the counter and makes it anew gets one that starts above.
    danger_firmware::owner_deletes(&mut node.tpm, COUNTER).unwrap();
    let absent = |refusal: &TpmError| matches!(refusal, TpmError::CounterAbsent { handle } if *handle == COUNTER.handle());
    assert!(absent(&node.refusal(&renewed)));
    assert!(absent(&node.tpm.counter(COUNTER).unwrap_err()));
    assert!(node.tpm.provision_counter(COUNTER).unwrap() > limit + 1);
    assert!(withdrawn(&node.refusal(&approval)));
}

#[test]
fn an_approval_that_the_approver_did_not_sign_for_this_node_is_refused() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let good = node.approve();
    let sign = |key: &ApproverKey, policy_ref: &PolicyRef| {
        Approval::sign(key, policy_ref, *good.pcrs(), COUNTER, good.limit()).unwrap()
    };
    let by_another = sign(&key(), &node.policy_ref);
    let for_another = sign(&node.key, &PolicyRef::for_node("test", 2));
    let mut later = good.to_bytes();
    later[47] += 1; // the limit's last byte
    let later = Approval::from_bytes(&later).unwrap();
    assert_eq!(later.limit(), good.limit() + 1);
    for approval in [by_another, for_another, later] {
        let refusal = node.refusal(&approval);
        assert!(matches!(refusal, TpmError::ApprovalNotSigned), "{refusal:?}");
    }
    node.assert_opens(&good);
}

#[test]
fn another_tpm_does_not_open_it_nor_does_this_one_open_an_altered_blob() {
    if swtpm_missing() {
        return;
    }
    let (mut node, mut other) = (Node::new(), Node::new());
    let approval = node.approve();
    assert_eq!(other.counter, node.counter);
    assert!(matches!(other.tpm.unseal(&node.blob, &approval), Err(TpmError::WrongTpm)));

    let bytes = node.blob.to_bytes().unwrap();
    let mut reasons = std::collections::BTreeMap::new();
    // One bit anywhere. Every 7th byte keeps the test short and meets every field.
    for at in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        let refusal = SealedBlob::from_bytes(&altered)
            .and_then(|blob| node.tpm.unseal(&blob, &approval))
            .expect_err(&format!("byte {at}"));
        let reason = match refusal {
            TpmError::BlobDamaged(reason) => reason,
            TpmError::WrongTpm => "wrong TPM",
            other => panic!("byte {at}: {other:?}"),
        };
        *reasons.entry(reason).or_insert(0) += 1;
    }
    assert!(reasons["the TPM does not load it"] > 10, "{reasons:?}");
    for cut in [0, 1, bytes.len() - 1] {
        assert!(matches!(SealedBlob::from_bytes(&bytes[..cut]), Err(TpmError::BlobDamaged(_))));
    }
    let long = [&bytes[..], &[0; 2048]].concat();
    assert!(matches!(SealedBlob::from_bytes(&long), Err(TpmError::BlobDamaged("it is too long"))));
    node.assert_opens(&approval);
}
