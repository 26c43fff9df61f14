//! TPM2_Quote, together with the PCR values it signs the digest of.
use crate::{Tpm, TpmError, error::During, tpm::Open};
use aws_lc_rs::digest::{Context as Hasher, SHA256};
use quorate_attest::evidence::Evidence;
use tss_esapi::{
    abstraction::pcr,
    handles::{KeyHandle, PersistentTpmHandle, TpmHandle as RawHandle},
    interface_types::{algorithm::HashingAlgorithm, session_handles::AuthSession},
    structures::{AttestInfo, Data, PcrSelectionList, PcrSlot, SignatureScheme},
    traits::Marshall,
};

/// PCRs that a PC Client TPM has (TCG PC Client Platform TPM Profile: 24).
const PCR_COUNT: u8 = 24;
/// How often a quote is repeated when a PCR is extended between quoting and reading.
const ATTEMPTS: u32 = 4;

/// A quote and the PCR values under it. The signature is for the Verifier to check, not for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// `TPMS_ATTEST`, marshalled.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` by the AK over `attest`, marshalled.
    pub signature: Vec<u8>,
    /// Index and value of each selected PCR in the SHA-256 bank, ascending.
    pub pcrs: Vec<(u8, [u8; 32])>,
}

impl Quoted {
    /// Adds the digests of the logs that explain the PCRs.
    pub fn into_evidence(self, event_log: [u8; 32], ima_log: Option<[u8; 32]>) -> Evidence {
        let Self { attest, signature, pcrs } = self;
        Evidence { attest, signature, pcrs, event_log, ima_log }
    }
}

impl Tpm {
    /// Quotes `selection` (ascending indices, SHA-256 bank) with `qualifying` as the qualifying data.
    ///
    /// The quote carries only a digest of the PCRs, so their values are read too, again until they match.
    pub fn quote(&mut self, selection: &[u8], qualifying: [u8; 32]) -> Result<Quoted, TpmError> {
        let list = selection_list(selection)?;
        let ak_handle = self.ak_handle();
        self.repeatable(|open| {
            let ak = open.ak(ak_handle)?;
            for _ in 0..ATTEMPTS {
                if let Some(quoted) = open.quote_once(ak, selection, &list, qualifying)? {
                    return Ok(quoted);
                }
            }
            Err(TpmError::PcrsUnstable { attempts: ATTEMPTS })
        })
    }

    /// The values of `selection` (ascending indices) in the SHA-256 bank.
    pub fn pcr_values(&mut self, selection: &[u8]) -> Result<Vec<(u8, [u8; 32])>, TpmError> {
        let list = selection_list(selection)?;
        self.repeatable(|open| open.pcr_values(selection, &list))
    }
}

impl Open {
    /// The persistent AK.
    pub(crate) fn ak(&mut self, handle: PersistentTpmHandle) -> Result<KeyHandle, TpmError> {
        if let Some(ak) = self.ak {
            return Ok(ak);
        }
        if !self.exists(RawHandle::Persistent(handle))? {
            return Err(TpmError::AkAbsent { handle: handle.into() });
        }
        let object = self
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(handle.into()))
            .during("TPM2_ReadPublic")?;
        let ak = KeyHandle::from(object);
        self.ak = Some(ak);
        Ok(ak)
    }

    /// One quote; `None` when a PCR was extended between quoting and reading.
    fn quote_once(
        &mut self,
        ak: KeyHandle,
        selection: &[u8],
        list: &PcrSelectionList,
        qualifying: [u8; 32],
    ) -> Result<Option<Quoted>, TpmError> {
        const COMMAND: &str = "TPM2_Quote";
        let qualifying = Data::try_from(qualifying.to_vec()).during(COMMAND)?;
        let (attest, signature) = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.quote(ak, qualifying, SignatureScheme::Null, list.clone())
            })
            .during(COMMAND)?;
        let AttestInfo::Quote { info } = attest.attested() else {
            return Err(TpmError::Nonsense { command: COMMAND, what: "another kind of attestation" });
        };
        let pcrs = self.pcr_values(selection, list)?;
        let mut hasher = Hasher::new(&SHA256);
        for (_, value) in &pcrs {
            hasher.update(value);
        }
        if hasher.finish().as_ref() != info.pcr_digest().as_slice() {
            return Ok(None);
        }
        let attest = attest.marshall().during(COMMAND)?;
        let signature = signature.marshall().during(COMMAND)?;
        Ok(Some(Quoted { attest, signature, pcrs }))
    }

    fn pcr_values(
        &mut self,
        selection: &[u8],
        list: &PcrSelectionList,
    ) -> Result<Vec<(u8, [u8; 32])>, TpmError> {
        const COMMAND: &str = "TPM2_PCR_Read";
        let data = self
            .context
            .execute_without_session(|context| pcr::read_all(context, list.clone()))
            .during(COMMAND)?;
        let bank = data
            .pcr_bank(HashingAlgorithm::Sha256)
            .ok_or(TpmError::Nonsense { command: COMMAND, what: "no SHA-256 bank" })?;
        selection
            .iter()
            .map(|&index| {
                slot(index)
                    .and_then(|slot| bank.get_digest(slot))
                    .and_then(|digest| <[u8; 32]>::try_from(digest.as_slice()).ok())
                    .map(|value| (index, value))
                    .ok_or(TpmError::Nonsense { command: COMMAND, what: "a PCR missing" })
            })
            .collect()
    }
}

/// Checks a selection and puts it into the TPM's form.
pub(crate) fn selection_list(selection: &[u8]) -> Result<PcrSelectionList, TpmError> {
    let refuse = || TpmError::SelectionInvalid(selection.to_vec());
    if selection.is_empty() || !selection.is_sorted_by(|a, b| a < b) {
        return Err(refuse());
    }
    let slots = selection.iter().map(|&index| slot(index)).collect::<Option<Vec<_>>>().ok_or_else(refuse)?;
    PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
        .during("TPML_PCR_SELECTION")
}

fn slot(index: u8) -> Option<PcrSlot> {
    if index >= PCR_COUNT {
        return None;
    }
    1u32.checked_shl(index.into()).and_then(|bit| PcrSlot::try_from(bit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_ascending_and_in_range() {
        assert!(selection_list(&[0, 2, 4, 7, 11, 23]).is_ok());
        for bad in [&[][..], &[24], &[1, 1], &[2, 1], &[0, 255]] {
            assert!(matches!(selection_list(bad), Err(TpmError::SelectionInvalid(_))), "{bad:?}");
        }
    }
}
