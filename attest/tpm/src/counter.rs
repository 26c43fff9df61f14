//! The counter that withdraws approvals: an NV index of the owner's that only ever rises.
//!
//! [`CounterIndex`] fixes its attributes and why they are such. Assumes that the owner's authorisation value is empty, as
//! enrolment does. Refuses to touch an index at that place which is anything else.
use crate::{Tpm, TpmError, error::During, tpm::Open};
use quorate_attest::approval::CounterIndex;
use tss_esapi::{
    attributes::NvIndexAttributesBuilder,
    constants::NvIndexType,
    handles::{NvIndexHandle, NvIndexTpmHandle, ObjectHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::{NvAuth, Provision},
        session_handles::AuthSession,
    },
    structures::NvPublic,
};

/// Size of a counter.
const COUNTER_BYTES: u16 = 8;
/// Most increments in one call: withdrawing takes one, and a TPM's memory wears out.
const INCREMENTS_MAX: u64 = 64;

impl Tpm {
    /// The counter's value; it is defined first if the TPM has nothing at that index.
    pub fn provision_counter(&mut self, index: CounterIndex) -> Result<u64, TpmError> {
        self.repeatable(|open| {
            let handle = nv_handle(index)?;
            if !open.exists(handle.into())? {
                let public = nv_public(index, false)?;
                let defined = open
                    .context
                    .execute_with_session(Some(AuthSession::Password), |context| {
                        context.nv_define_space(Provision::Owner, None, public)
                    })
                    .during("TPM2_NV_DefineSpace")?;
                open.close_object(ObjectHandle::from(defined))?;
            }
            open.with_counter(index, |open, counter, counts| {
                // Also where the power was cut between definition and this.
                if !counts {
                    open.increment(counter)?;
                }
                open.read_counter(counter)
            })
        })
    }

    /// The counter's value.
    pub fn counter(&mut self, index: CounterIndex) -> Result<u64, TpmError> {
        self.raise_counter(index, 0)
    }

    /// Raises the counter until it is at least `to`, and returns its value: approvals with a limit below `to` are
    /// withdrawn for ever.
    pub fn raise_counter(&mut self, index: CounterIndex, to: u64) -> Result<u64, TpmError> {
        self.repeatable(|open| {
            open.with_counter(index, |open, counter, counts| {
                if !counts {
                    return Err(TpmError::CounterAbsent { handle: index.handle() });
                }
                let value = open.read_counter(counter)?;
                if to.saturating_sub(value) > INCREMENTS_MAX {
                    return Err(TpmError::CounterTooFar { value, asked: to });
                }
                for _ in value..to {
                    open.increment(counter)?;
                }
                open.read_counter(counter)
            })
        })
    }
}

impl Open {
    /// Runs `operation` with the counter and whether it was incremented ever.
    fn with_counter<T>(
        &mut self,
        index: CounterIndex,
        operation: impl FnOnce(&mut Self, NvIndexHandle, bool) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const COMMAND: &str = "TPM2_NV_ReadPublic";
        let raw = nv_handle(index)?.into();
        if !self.exists(raw)? {
            return Err(TpmError::CounterAbsent { handle: index.handle() });
        }
        let object = self
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(raw))
            .during(COMMAND)?;
        let counter = NvIndexHandle::from(object);
        let (found, _) = self
            .context
            .execute_without_session(|context| context.nv_read_public(counter))
            .during(COMMAND)?;
        let outcome = if found == nv_public(index, true)? {
            operation(self, counter, true)
        } else if found == nv_public(index, false)? {
            operation(self, counter, false)
        } else {
            Err(TpmError::CounterOccupied { handle: index.handle() })
        };
        let value = outcome?;
        self.close_object(object)?;
        Ok(value)
    }

    fn increment(&mut self, counter: NvIndexHandle) -> Result<(), TpmError> {
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_increment(NvAuth::Owner, counter)
            })
            .during("TPM2_NV_Increment")
    }

    fn read_counter(&mut self, counter: NvIndexHandle) -> Result<u64, TpmError> {
        const COMMAND: &str = "TPM2_NV_Read";
        let bytes = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_read(NvAuth::Owner, counter, COUNTER_BYTES, 0)
            })
            .during(COMMAND)?;
        <[u8; 8]>::try_from(bytes.as_slice())
            .map(u64::from_be_bytes)
            .map_err(|_| TpmError::Nonsense { command: COMMAND, what: "a counter that has not 8 bytes" })
    }

    fn close_object(&mut self, mut object: ObjectHandle) -> Result<(), TpmError> {
        self.context.tr_close(&mut object).during("Esys_TR_Close")
    }
}

fn nv_handle(index: CounterIndex) -> Result<NvIndexTpmHandle, TpmError> {
    NvIndexTpmHandle::new(index.handle()).during("TPM2_NV_ReadPublic")
}

/// [`CounterIndex::ATTRIBUTES`] in the TPM library's words.
fn nv_public(index: CounterIndex, written: bool) -> Result<NvPublic, TpmError> {
    const COMMAND: &str = "TPM2_NV_DefineSpace";
    let attributes = NvIndexAttributesBuilder::new()
        .with_owner_write(true)
        .with_nv_index_type(NvIndexType::Counter)
        .with_owner_read(true)
        .with_auth_read(true)
        .with_no_da(true)
        .with_written(written)
        .build()
        .during(COMMAND)?;
    NvPublic::builder()
        .with_nv_index(nv_handle(index)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(COUNTER_BYTES.into())
        .build()
        .during(COMMAND)
}
