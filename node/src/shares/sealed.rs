//! The node's private share key at rest: a 32-byte seed that the TPM sealed, beside its public half in clear, as files of the
//! data folder. A file says nothing secret; without its own TPM in an approved state it opens nothing.
//!
//! A new enrolment never destroys an older key: the newest stands in `share-key.sealed`, older ones beside it under a number,
//! and whichever the policy names is used.
use crate::init::write_durably;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::approval::{Approval, ApprovalError, Approver, CounterIndex, PolicyRef};
use quorate_attest_tpm::{BLOB_BYTES_MAX, SealedBlob, TpmError, TpmHandle};
use quorate_core::policy::{Member, Policy};
use quorate_core::shares::{SHARE_PUBLIC_KEY_BYTES, SHARE_SEED_BYTES, SharePrivateKey, SharePublicKey};
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const FILE: &str = "share-key.sealed";
/// Older keys kept; more enrolments of one machine than that are a mistake.
const OLDER_MAX: u32 = 64;
/// First byte of the file.
const VERSION: u8 = 1;
const FILE_BYTES_MAX: u64 = (SHARE_PUBLIC_KEY_BYTES + BLOB_BYTES_MAX + 64) as u64;

#[derive(BorshSerialize, BorshDeserialize)]
struct File {
    version: u8,
    public: Vec<u8>,
    blob: Vec<u8>,
}

/// Why there is no new share key.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] crate::boot::NoRandomness),
    /// The TPM.
    #[error("the TPM did not seal the share key")]
    Tpm(#[from] TpmError),
    /// The disk.
    #[error("cannot write {0}")]
    Disk(PathBuf, #[source] io::Error),
    /// Too many older ones.
    #[error("{0} holds too many older share keys: remove those that no policy names")]
    TooMany(PathBuf),
}

/// Why the private share key is not to be had. [`Self::is_passing`] tells what may be otherwise in a moment.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// The policy gives this member no share key.
    #[error("the policy names no share key of this node: enrol it again")]
    NotInPolicy,
    /// No file with that public key.
    #[error("{0} holds no sealed share key that is the policy's: enrol the node again, or restore the file")]
    NoSuchKey(PathBuf),
    /// The disk.
    #[error("cannot read {0}")]
    Disk(PathBuf, #[source] io::Error),
    /// A file that is none of ours.
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    /// No approval for this node at all.
    #[error("the policy holds no approval for this node: an admin must sign one")]
    NotApproved,
    /// None of the approvals counts; what was wrong with the last one.
    #[error("none of the policy's {0} approval(s) opens the share key")]
    Refused(usize, #[source] ApprovalRefused),
    /// The TPM failed.
    #[error("the TPM did not answer")]
    Tpm(#[source] TpmError),
}

/// What was wrong with an approval.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalRefused {
    /// Not an approval, or not by the approver to whom the key was sealed.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// The TPM says no.
    #[error(transparent)]
    Tpm(TpmError),
}

impl UnsealError {
    /// Whether the same may succeed later without anybody's doing.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Tpm(_) | Self::Disk(..) => true,
            Self::NotInPolicy
            | Self::NoSuchKey(_)
            | Self::Damaged(_)
            | Self::NotApproved
            | Self::Refused(..) => false,
        }
    }
}

/// Makes a share key, seals it to the TPM and keeps it; returns its public half.
pub async fn provision(
    tpm: &TpmHandle,
    data_dir: &Path,
    approver: Approver,
    policy_ref: PolicyRef,
) -> Result<SharePublicKey, ProvisionError> {
    let key = SharePrivateKey::from_seed(Zeroizing::new(crate::boot::random()?));
    let public = key.public();
    let blob = tpm.seal(approver, policy_ref, Zeroizing::new(key.expose_seed().to_vec())).await?;
    let file = File { version: VERSION, public: public.as_bytes().to_vec(), blob: blob.to_bytes()? };
    let newest = data_dir.join(FILE);
    let disk = |e| ProvisionError::Disk(newest.clone(), e);
    std::fs::create_dir_all(data_dir).map_err(disk)?;
    if newest.exists() {
        let older = (1..=OLDER_MAX).map(|n| older(data_dir, n)).find(|path| !path.exists());
        std::fs::rename(&newest, older.ok_or_else(|| ProvisionError::TooMany(data_dir.into()))?)
            .map_err(disk)?;
    }
    let bytes = borsh::to_vec(&file).map_err(disk)?;
    write_durably(&newest, &bytes).map_err(disk)?;
    Ok(public)
}

/// Opens the share key that the policy names.
pub async fn unseal(
    tpm: &TpmHandle,
    data_dir: &Path,
    policy: &Policy,
    member: &Member,
) -> Result<SharePrivateKey, UnsealError> {
    let public = member.share_key.as_ref().ok_or(UnsealError::NotInPolicy)?;
    let (path, blob) = find(data_dir, public)?;
    let approver = blob.approver().map_err(|_| UnsealError::Damaged(path.clone()))?;
    let policy_ref = PolicyRef::for_node(&policy.cluster, member.id.0);
    let mut refused = None;
    for bytes in &member.approvals {
        match approve(bytes, &approver, &policy_ref) {
            Ok(approval) => match tpm.unseal(blob.clone(), approval).await {
                Ok(seed) => {
                    let seed = <[u8; SHARE_SEED_BYTES]>::try_from(seed.as_slice()).map(Zeroizing::new);
                    let key =
                        SharePrivateKey::from_seed(seed.map_err(|_| UnsealError::Damaged(path.clone()))?);
                    if key.public() != *public {
                        return Err(UnsealError::Damaged(path));
                    }
                    return Ok(key);
                }
                Err(error) if is_refusal(&error) => refused = Some(ApprovalRefused::Tpm(error)),
                Err(error) => return Err(UnsealError::Tpm(error)),
            },
            Err(error) => refused = Some(error.into()),
        }
    }
    Err(match refused {
        Some(refused) => UnsealError::Refused(member.approvals.len(), refused),
        None => UnsealError::NotApproved,
    })
}

/// The counter's value that withdraws what admins withdrew: `dropped` stood in an earlier policy and no longer do. An approval
/// that merely was replaced, and a new one that holds up to the same value, is not withdrawn: a counter never goes back.
pub fn withdrawal<'a>(
    current: impl Iterator<Item = &'a [u8]>,
    dropped: impl Iterator<Item = &'a [u8]>,
) -> Option<(CounterIndex, u64)> {
    let limit = |bytes: &[u8]| {
        let approval = Approval::from_bytes(bytes).ok()?;
        (approval.counter() == CounterIndex::DEFAULT).then(|| approval.limit())
    };
    let above = dropped.filter_map(limit).max()?.saturating_add(1);
    let still = current.filter_map(limit).min();
    Some((CounterIndex::DEFAULT, still.map_or(above, |still| above.min(still))))
}

fn approve(bytes: &[u8], approver: &Approver, policy_ref: &PolicyRef) -> Result<Approval, ApprovalError> {
    let approval = Approval::from_bytes(bytes)?;
    approval.verify(approver, policy_ref)?;
    Ok(approval)
}

/// What a TPM says of an approval or a blob, as opposed to a TPM that does not answer.
fn is_refusal(error: &TpmError) -> bool {
    matches!(
        error,
        TpmError::ApprovalNotSigned
            | TpmError::ApprovalDoesNotFitPcrs { .. }
            | TpmError::ApprovalWithdrawn { .. }
            | TpmError::WrongTpm
            | TpmError::BlobDamaged(_)
            | TpmError::CounterAbsent { .. }
            | TpmError::CounterOccupied { .. }
    )
}

fn older(data_dir: &Path, number: u32) -> PathBuf {
    data_dir.join(format!("{FILE}.{number}"))
}

fn find(data_dir: &Path, public: &SharePublicKey) -> Result<(PathBuf, SealedBlob), UnsealError> {
    use io::Read as _;
    let paths = std::iter::once(data_dir.join(FILE)).chain((1..=OLDER_MAX).map(|n| older(data_dir, n)));
    let mut damaged = None;
    for path in paths {
        let mut bytes = Vec::new();
        match std::fs::File::open(&path).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(UnsealError::Disk(path, e)),
        }
        let file = borsh::from_slice::<File>(&bytes).ok().filter(|f| f.version == VERSION);
        let blob = file.as_ref().and_then(|f| SealedBlob::from_bytes(&f.blob).ok());
        match (file, blob) {
            (Some(file), Some(blob)) if file.public == public.as_bytes() => return Ok((path, blob)),
            (Some(_), Some(_)) => {}
            _ => damaged = Some(path),
        }
    }
    Err(damaged.map_or_else(|| UnsealError::NoSuchKey(data_dir.into()), UnsealError::Damaged))
}
