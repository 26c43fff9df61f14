use super::sealed::{ApprovalRefused, provision, unseal, withdrawal};
use super::swtpm::{self, Swtpm};
use super::*;
use crate::relay::tests::lab::{Lab, SECRET, credential};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::approval::{Approval, ApprovalError, ApprovedPcrs, ApproverKey, CounterIndex, PolicyRef};
use quorate_attest_tpm::{TpmError, danger_firmware};
use quorate_core::policy::PolicyDocument;
use quorate_core::testing::{Mesh, route, share_key};

const PCRS: [u8; 2] = [4, 7];

fn keyed(share_epoch: u32) -> Arc<Policy> {
    let mesh = Mesh::dark(4, 1, |d| d.route[0].credential = Some(credential(d, share_epoch, |_, _| ())));
    mesh.state().policy().clone()
}

#[test]
fn a_vault_holds_what_the_policy_seals_to_its_node() {
    let (one, two) = (Vault::new(NodeId(1)), Vault::new(NodeId(2)));
    let policy = keyed(3);
    assert_eq!(one.mask(&route(), 3).err(), Some(Missing::Opening));
    one.open(&policy, &share_key(1));
    two.open(&policy, &share_key(2));
    // Node 2 as keyer, node 1 as relay: together they have it.
    let (mask, complement) = (two.mask(&route(), 3).ok().unwrap(), one.complement(&route(), 3, NodeId(2)));
    let pairs = mask.expose_bytes().iter().zip(complement.ok().unwrap().expose_bytes().to_vec());
    let joined: Vec<u8> = pairs.map(|(a, b)| a ^ b).collect();
    assert_eq!(joined, SECRET.as_bytes());
    // No node has both halves of its own pair.
    assert_eq!(one.complement(&route(), 3, NodeId(1)).err(), Some(Missing::NotSealed));
    assert_eq!(one.mask(&route(), 2).err(), Some(Missing::Epoch));
    assert_eq!(one.mask(&route(), 4).err(), Some(Missing::Opening));
    assert_eq!(one.status(&policy), [(route(), 3, Ok(()))]);

    one.erase();
    assert_eq!(one.mask(&route(), 3).err(), Some(Missing::Erased));
    one.open(&policy, &share_key(1));
    assert_eq!(one.mask(&route(), 3).err(), Some(Missing::Erased), "a node that stops opens nothing more");
}

#[test]
fn what_is_sealed_to_another_does_not_open() {
    let vault = Vault::new(NodeId(1));
    vault.open(&keyed(1), &share_key(2));
    let missing = Missing::Sealed(OpenError::NotForThis);
    assert_eq!(vault.mask(&route(), 1).err(), Some(missing.clone()));
    assert_eq!(vault.status(&keyed(1)), [(route(), 1, Err(missing))]);
    let outsider = Vault::new(NodeId(9));
    outsider.open(&keyed(1), &share_key(9));
    assert_eq!(outsider.mask(&route(), 1).err(), Some(Missing::NotSealed));
}

#[test]
fn a_tpm_that_is_away_takes_only_what_is_new() {
    let vault = Vault::new(NodeId(1));
    vault.open(&keyed(1), &share_key(1));
    let away = Missing::Locked("away".into());
    vault.retain(&keyed(1), &away);
    assert!(vault.mask(&route(), 1).is_ok());
    vault.retain(&keyed(2), &away);
    assert_eq!(vault.mask(&route(), 2).err(), Some(away.clone()));
    vault.open(&keyed(2), &share_key(1));
    vault.close(&keyed(2), &away);
    assert_eq!(vault.mask(&route(), 2).err(), Some(away));
}

fn approver() -> ApproverKey {
    ApproverKey::from_pkcs8(&ApproverKey::generate_pkcs8().unwrap()).unwrap()
}

fn approval(key: &ApproverKey, value: u8, limit: u64) -> Vec<u8> {
    let pcrs = ApprovedPcrs::new(&[(7, [value; 32])]).unwrap();
    let policy_ref = PolicyRef::for_node("test", 1);
    Approval::sign(key, &policy_ref, pcrs, CounterIndex::DEFAULT, limit).unwrap().to_bytes()
}

#[test]
fn dropped_approvals_are_withdrawn_and_replaced_ones_are_not() {
    let key = approver();
    let approvals = |limits: &[u64]| -> Vec<Vec<u8>> {
        limits.iter().enumerate().map(|(at, limit)| approval(&key, at as u8, *limit)).collect()
    };
    for (current, dropped, to) in [
        (&[][..], &[][..], None),
        (&[1][..], &[][..], None),
        // all of it is taken back
        (&[][..], &[1][..], Some(2)),
        (&[][..], &[1, 5, 2][..], Some(6)),
        // what still counts was signed for a higher value
        (&[2][..], &[1][..], Some(2)),
        (&[9][..], &[1][..], Some(2)),
        // new software under an old value: nothing may be taken from it
        (&[1][..], &[1][..], Some(1)),
        (&[1, 9][..], &[4][..], Some(1)),
    ] {
        let (current, dropped) = (approvals(current), approvals(dropped));
        let got = withdrawal(current.iter().map(Vec::as_slice), dropped.iter().map(Vec::as_slice));
        assert_eq!(got.map(|(_, to)| to), to, "{current:?} {dropped:?}");
    }
}

/// A machine whose TPM sealed a share key, and who approves it.
struct Machine {
    swtpm: Swtpm,
    tpm: TpmHandle,
    folder: tempfile::TempDir,
    key: ApproverKey,
    public: quorate_core::shares::SharePublicKey,
    counter: u64,
}

impl Machine {
    async fn new() -> Self {
        let (swtpm, tpm) = Swtpm::start().await;
        let (folder, key) = (tempfile::tempdir().unwrap(), approver());
        let counter = tpm.provision_counter(CounterIndex::DEFAULT).await.unwrap();
        let approver = key.approver().unwrap();
        let policy_ref = PolicyRef::for_node("test", 1);
        let public = provision(&tpm, folder.path(), approver, policy_ref).await.unwrap();
        Self { swtpm, tpm, folder, key, public, counter }
    }

    /// Approves the machine as it is, up to a value of the counter.
    async fn approve(&self, limit: u64) -> Vec<u8> {
        self.approve_by(&self.key, &PolicyRef::for_node("test", 1), limit).await
    }

    async fn approve_by(&self, key: &ApproverKey, policy_ref: &PolicyRef, limit: u64) -> Vec<u8> {
        let values = self.tpm.run(Duration::from_secs(5), |tpm| tpm.pcr_values(&PCRS)).await.unwrap();
        let pcrs = ApprovedPcrs::new(&values).unwrap();
        Approval::sign(key, policy_ref, pcrs, CounterIndex::DEFAULT, limit).unwrap().to_bytes()
    }

    fn document(&self, d: &mut PolicyDocument, approvals: &[&[u8]]) {
        d.share_approver = Some(BASE64.encode(self.key.approver().unwrap().sec1()));
        d.member[0].share_key = Some(self.public.to_base64());
        d.member[0].share_counter = Some(self.counter);
        d.member[0].approvals = approvals.iter().map(|a| BASE64.encode(a)).collect();
    }

    async fn unseal(&self, approvals: &[&[u8]]) -> Result<(), UnsealError> {
        let mesh = Mesh::dark(4, 1, |d| self.document(d, approvals));
        let policy = mesh.state().policy();
        let key = unseal(&self.tpm, self.folder.path(), policy, &policy.members[&NodeId(1)]).await?;
        assert_eq!(key.public(), self.public);
        Ok(())
    }

    async fn refusal(&self, approvals: &[&[u8]]) -> UnsealError {
        self.unseal(approvals).await.expect_err("it opened")
    }
}

#[tokio::test]
async fn the_share_key_opens_under_the_policys_approvals_only() {
    if swtpm::missing() {
        return;
    }
    let mut machine = Machine::new().await;
    let good = machine.approve(machine.counter).await;
    machine.unseal(&[&good]).await.unwrap();
    assert!(matches!(machine.refusal(&[]).await, UnsealError::NotApproved));
    let policy_ref = PolicyRef::for_node("test", 1);
    let elsewhere = PolicyRef::for_node("test", 2);
    for bad in [
        machine.approve_by(&approver(), &policy_ref, machine.counter).await,
        machine.approve_by(&machine.key, &elsewhere, machine.counter).await,
    ] {
        let refused = machine.refusal(&[&bad]).await;
        let not_signed = ApprovalRefused::Approval(ApprovalError::NotSigned);
        assert!(matches!(&refused, UnsealError::Refused(1, r) if r.to_string() == not_signed.to_string()));
        // One good one among them is enough.
        machine.unseal(&[&bad, &good]).await.unwrap();
    }

    // Another enrolment makes another key; whichever the policy names is used.
    let approver = machine.key.approver().unwrap();
    let newer = provision(&machine.tpm, machine.folder.path(), approver, policy_ref).await.unwrap();
    machine.unseal(&[&good]).await.unwrap();
    let older = std::mem::replace(&mut machine.public, newer);
    machine.unseal(&[&good]).await.unwrap();
    machine.public = share_key(7).public();
    assert!(matches!(machine.refusal(&[&good]).await, UnsealError::NoSuchKey(_)));
    machine.public = older;

    // Other software, withdrawn approvals, no TPM.
    machine.tpm.raise_counter(CounterIndex::DEFAULT, machine.counter + 1).await.unwrap();
    let withdrawn = machine.refusal(&[&good]).await;
    assert!(matches!(
        withdrawn,
        UnsealError::Refused(1, ApprovalRefused::Tpm(TpmError::ApprovalWithdrawn { .. }))
    ));
    let good = machine.approve(machine.counter + 1).await;
    machine.unseal(&[&good]).await.unwrap();
    let extend = |tpm: &mut quorate_attest_tpm::Tpm| danger_firmware::extend_pcr(tpm, 7, [9; 32]);
    machine.tpm.run(Duration::from_secs(5), extend).await.unwrap();
    let changed = machine.refusal(&[&good]).await;
    assert!(!changed.is_passing());
    assert!(matches!(
        changed,
        UnsealError::Refused(1, ApprovalRefused::Tpm(TpmError::ApprovalDoesNotFitPcrs { .. }))
    ));
    machine.swtpm.cut_power();
    let away = machine.refusal(&[&good]).await;
    assert!(matches!(away, UnsealError::Tpm(_)) && away.is_passing());
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} never came");
}

/// The whole way: policies come into force, the TPM opens, withdraws and refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_follows_the_policy() {
    if swtpm::missing() {
        return;
    }
    let (lab, mut machine) = (Lab::new().await, Machine::new().await);
    let (vault, route) = (Vault::new(NodeId(1)), route());
    let folder = tempfile::tempdir().unwrap();
    let chain = PolicyChain::open(folder.path(), lab.newest_policy()).unwrap();
    let keeper = Keeper {
        ledger: lab.ledger(),
        vault: vault.clone(),
        tpm: machine.tpm.clone(),
        data_dir: machine.folder.path().into(),
        chain: chain.clone(),
        metrics: Arc::default(),
    };
    let keeper = tokio::spawn(keeper.run());

    let first = machine.approve(machine.counter).await;
    lab.change_policy(|d| {
        machine.document(d, &[&first]);
        d.route[0].credential = Some(credential(d, 1, |_, _| ()));
    });
    chain.push(lab.newest_policy()).unwrap();
    until("the shares", || vault.mask(&route, 1).is_ok()).await;

    // Another approval, signed for a higher value, takes its place: the first is dead for ever.
    let second = machine.approve(machine.counter + 1).await;
    let policy = lab.change_policy(|d| machine.document(d, &[&second]));
    chain.push(lab.newest_policy()).unwrap();
    for _ in 0..500 {
        if machine.tpm.counter(CounterIndex::DEFAULT).await.unwrap() > machine.counter {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let withdrawn = machine.refusal(&[&first]).await;
    assert!(matches!(
        withdrawn,
        UnsealError::Refused(1, ApprovalRefused::Tpm(TpmError::ApprovalWithdrawn { .. }))
    ));
    machine.unseal(&[&second]).await.unwrap();
    assert_eq!(vault.status(&policy), [(route.clone(), 1, Ok(()))]);

    // The TPM is away while a new splitting comes: the node goes on trying.
    machine.swtpm.cut_power();
    lab.change_policy(|d| d.route[0].credential = Some(credential(d, 2, |_, _| ())));
    chain.push(lab.newest_policy()).unwrap();
    until("the refusal", || matches!(vault.mask(&route, 2), Err(Missing::Locked(_)))).await;
    machine.swtpm.switch_on();
    until("the new shares", || vault.mask(&route, 2).is_ok()).await;

    // No approval any more: what is in memory goes as well.
    lab.change_policy(|d| machine.document(d, &[]));
    until("the end", || matches!(vault.mask(&route, 2), Err(Missing::Locked(_)))).await;
    assert!(matches!(machine.refusal(&[&second]).await, UnsealError::Refused(1, ApprovalRefused::Tpm(_))));
    keeper.abort();
}
