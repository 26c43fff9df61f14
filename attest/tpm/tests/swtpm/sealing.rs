//! Sealing: an approved state opens, and each single difference from one is refused for its own reason.
use crate::support::{Swtpm, swtpm_missing};
use quorate_attest::approval::{Approval, ApprovedPcrs, Approver, ApproverKey, CounterIndex, PolicyRef};
use quorate_attest_tpm::{EkKind, SECRET_BYTES_MAX, SealedBlob, Tpm, TpmError, danger_firmware};
use std::time::Duration;
use tss_esapi::{
    Context,
    attributes::{NvIndexAttributesBuilder, ObjectAttributesBuilder},
    constants::{CapabilityType, NvIndexType, SessionType, Tss2ResponseCodeKind},
    handles::{NvIndexTpmHandle, ObjectHandle},
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm, SymmetricMode},
        ecc::EccCurve,
        key_bits::AesKeyBits,
        resource_handles::{Hierarchy, NvAuth, Provision},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        CapabilityData, Digest, EccParameter, EccPoint, EccScheme, EccSignature, KeyDerivationFunctionScheme,
        MaxNvBuffer, Nonce, NvPublic, PcrSelectionList, PcrSlot, Private, Public, PublicBuilder,
        PublicEccParametersBuilder, Signature, SymmetricDefinition, SymmetricDefinitionObject,
    },
    traits::UnMarshall,
};

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
    owner_deletes_counter(&mut node);
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

#[test]
fn the_thread_of_its_own_seals_and_attests_in_turn() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    node.tpm.enrol(EkKind::P384).unwrap();
    node.tpm.close();
    let handle = node.swtpm.handle(Duration::from_secs(5));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for _ in 0..3 {
            handle.quote(&PCRS, [1; 32]).await.unwrap();
            let secret = zeroize::Zeroizing::new(SECRET.to_vec());
            let blob = handle.seal(node.approver(), node.policy_ref, secret).await.unwrap();
            assert_eq!(handle.unseal(blob, approval.clone()).await.unwrap().as_slice(), SECRET);
            assert_eq!(handle.counter(COUNTER).await.unwrap(), node.counter);
        }
        let raised = handle.raise_counter(COUNTER, node.counter + 1).await.unwrap();
        assert_eq!(handle.provision_counter(COUNTER).await.unwrap(), raised);
        let refused = handle.unseal(node.blob.clone(), approval).await;
        assert!(matches!(refused, Err(TpmError::ApprovalWithdrawn { .. })));
    });
}

fn counter_handle() -> NvIndexTpmHandle {
    NvIndexTpmHandle::new(COUNTER.handle()).unwrap()
}

fn owner_deletes_counter(node: &mut Node) {
    node.tpm.close();
    let mut context = node.swtpm.context();
    let object = context.tr_from_tpm_public(counter_handle().into()).unwrap();
    context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.nv_undefine_space(Provision::Owner, object.into())
        })
        .unwrap();
}

#[test]
fn an_index_that_can_be_set_back_does_not_stand_in_for_the_counter() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    owner_deletes_counter(&mut node);
    // An ordinary index, which can be written with any number again and again.
    let mut context = node.swtpm.context();
    let attributes = NvIndexAttributesBuilder::new()
        .with_owner_write(true)
        .with_nv_index_type(NvIndexType::Ordinary)
        .with_owner_read(true)
        .with_auth_read(true)
        .with_no_da(true)
        .build()
        .unwrap();
    let public = NvPublic::builder()
        .with_nv_index(counter_handle())
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(8)
        .build()
        .unwrap();
    context.execute_with_session(Some(AuthSession::Password), |context| {
        let index = context.nv_define_space(Provision::Owner, None, public).unwrap();
        let zero = MaxNvBuffer::try_from(vec![0; 8]).unwrap();
        context.nv_write(NvAuth::Owner, index, zero, 0).unwrap();
    });
    drop(context);

    let occupied = |refusal: TpmError| {
        assert!(
            matches!(refusal, TpmError::CounterOccupied { handle } if handle == COUNTER.handle()),
            "{refusal:?}"
        );
    };
    occupied(node.refusal(&approval));
    occupied(node.tpm.provision_counter(COUNTER).unwrap_err());
    occupied(node.tpm.raise_counter(COUNTER, 9).unwrap_err());
}

#[test]
fn the_secret_does_not_cross_the_bus_in_the_clear() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    node.tpm.close();
    let tap = node.swtpm.tapped();
    let mut tpm = tap.tpm();
    let blob = tpm.seal(&node.approver(), &node.policy_ref, &SECRET).unwrap();
    assert_eq!(tpm.unseal(&blob, &approval).unwrap().as_slice(), SECRET);
    // The listener does hear what is not secret.
    assert!(tap.heard(node.policy_ref.as_bytes()));
    assert!(tap.heard(&approval.policy_digest()));
    for part in SECRET.windows(8) {
        assert!(!tap.heard(part));
    }
}

#[test]
fn neither_success_nor_refusal_nor_a_kill_leaves_anything_in_the_tpm() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    let elsewhere = Approval::sign(
        &node.key,
        &node.policy_ref,
        ApprovedPcrs::new(&[(4, [9; 32])]).unwrap(),
        COUNTER,
        node.counter,
    )
    .unwrap();
    let withdrawn =
        Approval::sign(&node.key, &node.policy_ref, *approval.pcrs(), COUNTER, node.counter - 1).unwrap();
    for _ in 0..8 {
        node.assert_opens(&approval);
        assert!(matches!(node.refusal(&elsewhere), TpmError::ApprovalDoesNotFitPcrs { .. }));
        assert!(matches!(node.refusal(&withdrawn), TpmError::ApprovalWithdrawn { .. }));
        node.tpm.seal(&node.approver(), &node.policy_ref, &SECRET).unwrap();
        node.tpm.counter(COUNTER).unwrap();
    }
    node.tpm.close();
    let mut context = node.swtpm.context();
    assert_eq!(used(&mut context), 0);

    // A process that is killed in the middle, until nothing more fits.
    let mut sessions = 0;
    while sessions < 64 && policy_session(&mut context).is_ok() {
        sessions += 1;
    }
    assert!(sessions >= 3);
    assert_eq!(used(&mut context), sessions);
    std::mem::forget(context);
    node.assert_opens(&approval);
}

/// Transient objects and sessions in the TPM.
fn used(context: &mut Context) -> usize {
    [0x8000_0000, 0x0200_0000]
        .into_iter()
        .map(|first| match context.get_capability(CapabilityType::Handles, first, 64).unwrap().0 {
            CapabilityData::Handles(handles) => {
                handles.into_inner().into_iter().filter(|handle| u32::from(*handle) >> 24 != 0x81).count()
            }
            _ => panic!("another capability"),
        })
        .sum()
}

fn policy_session(context: &mut Context) -> tss_esapi::Result<AuthSession> {
    let session = context.start_auth_session(
        None,
        None,
        None,
        SessionType::Policy,
        SymmetricDefinition::Aes { key_bits: AesKeyBits::Aes128, mode: SymmetricMode::Cfb },
        HashingAlgorithm::Sha256,
    )?;
    Ok(session.unwrap())
}

/// What the code of this crate checks, root on the machine can leave out; this is the TPM's own refusal.
#[test]
fn the_tpm_itself_demands_every_condition() {
    if swtpm_missing() {
        return;
    }
    let mut node = Node::new();
    let approval = node.approve();
    node.tpm.close();
    let mut context = node.swtpm.context();
    let approver = Public::unmarshall(&node.approver().tpmt_public()).unwrap();
    let key = context.load_external_public(approver, Hierarchy::Owner).unwrap();
    let [r, s] = *approval.signature();
    let parameter = |bytes: [u8; 32]| EccParameter::try_from(bytes.to_vec()).unwrap();
    let signature = EccSignature::create(HashingAlgorithm::Sha256, parameter(r), parameter(s)).unwrap();
    let signed = Digest::try_from(approval.signed_digest(&node.policy_ref).to_vec()).unwrap();
    let ticket = context.verify_signature(key, signed, Signature::EcDsa(signature)).unwrap();
    let (_, name, _) = context.read_public(key).unwrap();
    assert_eq!(name.value(), node.approver().name());
    context.flush_context(key.into()).unwrap();

    // The counter's condition left out: the session has not what was approved.
    let session = policy_session(&mut context).unwrap();
    let policy = PolicySession::try_from(session).unwrap();
    let slots = [PcrSlot::Slot4, PcrSlot::Slot7, PcrSlot::Slot11];
    let list = PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build().unwrap();
    let digest = Digest::try_from(approval.pcrs().digest().to_vec()).unwrap();
    context.policy_pcr(policy, digest, list).unwrap();
    let approved = Digest::try_from(approval.policy_digest().to_vec()).unwrap();
    let reference = Nonce::try_from(node.policy_ref.as_bytes().to_vec()).unwrap();
    let refused = context.policy_authorize(policy, approved, reference, &name, ticket);
    assert_eq!(kind(refused), Tss2ResponseCodeKind::Value);

    // That session, an empty one and an empty password do not open the object.
    let sealed = load(&mut context, &node.blob);
    let empty = policy_session(&mut context).unwrap();
    for (session, reason) in [
        (session, Tss2ResponseCodeKind::PolicyFail),
        (empty, Tss2ResponseCodeKind::PolicyFail),
        (AuthSession::Password, Tss2ResponseCodeKind::AuthUnavailable),
    ] {
        let opened = context.execute_with_session(Some(session), |context| context.unseal(sealed));
        assert_eq!(kind(opened), reason);
    }
    drop(context);
    node.assert_opens(&approval);
}

fn kind<T>(refused: tss_esapi::Result<T>) -> Tss2ResponseCodeKind {
    match refused {
        Err(tss_esapi::Error::Tss2Error(code)) => code.kind().unwrap(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Loads what a blob holds, as this crate does.
fn load(context: &mut Context, blob: &SealedBlob) -> ObjectHandle {
    let bytes = blob.to_bytes().unwrap();
    let (_, rest) = bytes.split_at(1 + 65 + 32 + 34);
    let field = |bytes: &[u8]| -> (Vec<u8>, Vec<u8>) {
        let (length, rest) = bytes.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        (rest[..length].to_vec(), rest[length..].to_vec())
    };
    let (public, rest) = field(rest);
    let (private, _) = field(&rest);
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()
        .unwrap();
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()
        .unwrap();
    let template = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
        .unwrap();
    context.execute_with_session(Some(AuthSession::Password), |context| {
        let primary = context.create_primary(Hierarchy::Owner, template, None, None, None, None).unwrap();
        let private = Private::try_from(private).unwrap();
        let public = Public::unmarshall(&public).unwrap();
        context.load(primary.key_handle, private, public).unwrap().into()
    })
}
