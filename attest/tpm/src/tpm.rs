//! One TPM, one ESYS context, blocking. Reopens after a failure.
//!
//! Assumes nothing about who else uses the TPM, except that behind `swtpm:` nobody does at the same time: there
//! is no resource manager, so objects that a killed process left behind are flushed when the TPM is opened.
use crate::{Tcti, TpmError, error::During, esys::Esys};
use tss_esapi::{
    Context,
    constants::{CapabilityType, PropertyTag},
    handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, TpmHandle as RawHandle},
    structures::CapabilityData,
};

/// Where the AK is kept unless configured otherwise.
pub const AK_HANDLE_DEFAULT: u32 = 0x8101_0010;
/// First persistent handle, and the last one of the owner's half.
const PERSISTENT_OWNER: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;
/// First transient handle.
const TRANSIENT_FIRST: u32 = 0x8000_0000;
/// First session handle, as TPM2_GetCapability takes it: it lists sessions of every kind.
const SESSION_FIRST: u32 = 0x0200_0000;
/// More objects or sessions than any TPM without a resource manager holds at a time.
const LEFTOVERS_MAX: u32 = 16;

/// A TPM. Blocking, and without deadlines: use [`crate::TpmHandle`] unless the process has nothing else to do.
pub struct Tpm {
    tcti: Tcti,
    ak_handle: PersistentTpmHandle,
    /// Dropped after any error: a fresh one costs under a millisecond, a stale one lies.
    open: Option<Open>,
}

/// An open context and what belongs to it.
pub(crate) struct Open {
    pub(crate) context: Context,
    /// The AK's ESYS handle, once it was needed.
    pub(crate) ak: Option<KeyHandle>,
}

impl Tpm {
    /// Opens the TPM at `tcti` (`device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=N`) with the default AK handle.
    pub fn open(tcti: &str) -> Result<Self, TpmError> {
        let mut tpm = Self::closed(tcti.parse()?, AK_HANDLE_DEFAULT)?;
        tpm.reopen()?;
        Ok(tpm)
    }

    /// A TPM that is opened on first use.
    pub fn closed(tcti: Tcti, ak_handle: u32) -> Result<Self, TpmError> {
        let refuse = TpmError::AkHandleInvalid { handle: ak_handle };
        if !PERSISTENT_OWNER.contains(&ak_handle) {
            return Err(refuse);
        }
        let ak_handle = PersistentTpmHandle::new(ak_handle).map_err(|_| refuse)?;
        Ok(Self { tcti, ak_handle, open: None })
    }

    /// Where this TPM is.
    pub fn tcti(&self) -> &Tcti {
        &self.tcti
    }

    /// Closes the connection, flushing what was made through it; the next use opens it again.
    pub fn close(&mut self) {
        self.open = None;
    }

    pub(crate) fn ak_handle(&self) -> PersistentTpmHandle {
        self.ak_handle
    }

    /// Runs `operation`, which must be safe to repeat: when it fails on a context from an earlier call, the TPM may
    /// have been restarted since, and it is tried once more on a fresh one.
    pub(crate) fn repeatable<T>(
        &mut self,
        mut operation: impl FnMut(&mut Open) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let reused = self.open.is_some();
        match self.once(&mut operation) {
            Err(error) if reused && !error.is_final() => {
                tracing::debug!(%error, "reopening the TPM");
                self.once(operation)
            }
            outcome => outcome,
        }
    }

    /// Runs `operation` once. Any error closes the context, which also flushes what it left in the TPM.
    pub(crate) fn once<T>(
        &mut self,
        operation: impl FnOnce(&mut Open) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        if self.open.is_none() {
            self.reopen()?;
        }
        let Some(open) = self.open.as_mut() else { return Err(TpmError::Closed) };
        let outcome = operation(open);
        if outcome.is_err() {
            self.open = None;
        }
        outcome
    }

    /// Runs `operation` once with a context that is not tss-esapi's. The usual one is closed first: a TPM without a
    /// resource manager speaks to one at a time.
    pub(crate) fn raw<T>(
        &mut self,
        operation: impl FnOnce(&mut Esys) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        // Opened once more, since that flushes what a killed process left.
        self.reopen()?;
        self.close();
        operation(&mut Esys::open(&self.tcti)?)
    }

    fn reopen(&mut self) -> Result<(), TpmError> {
        // First, since dropping it flushes what it made, and that must not hit what the new one makes.
        self.open = None;
        let unreachable = |source| TpmError::Unreachable { tcti: self.tcti.to_string(), source };
        let connect = || self.tcti.name_conf().and_then(Context::new).map_err(unreachable);
        let mut context = connect()?;
        match self.tcti {
            Tcti::Swtpm { .. } => {
                flush_leftovers(&mut context)?;
                let sessions = leftover_sessions(&mut context)?;
                if !sessions.is_empty() {
                    drop(context);
                    let mut esys = Esys::open(&self.tcti)?;
                    for session in sessions {
                        let session = esys.existing(session.into())?;
                        esys.with(session, |_, _| Ok::<_, TpmError>(()))?;
                    }
                    drop(esys);
                    context = connect()?;
                }
            }
            // The kernel gives every opener its own objects.
            Tcti::Device(_) => {}
        }
        self.open = Some(Open { context, ak: None });
        Ok(())
    }
}

impl Open {
    /// Whether the TPM has an object or index at this handle.
    pub(crate) fn exists(&mut self, handle: RawHandle) -> Result<bool, TpmError> {
        Ok(handles(&mut self.context, u32::from(handle), 1)?.first() == Some(&handle))
    }

    /// The TPM's manufacturer (four ASCII characters, e.g. `IBM`) and firmware version.
    pub(crate) fn identity(&mut self) -> Result<(String, u64), TpmError> {
        const COMMAND: &str = "TPM2_GetCapability";
        let mut property = |tag| self.context.get_tpm_property(tag).during(COMMAND);
        let manufacturer = property(PropertyTag::Manufacturer)?
            .ok_or(TpmError::Nonsense { command: COMMAND, what: "no manufacturer" })?
            .to_be_bytes();
        let high = property(PropertyTag::FirmwareVersion1)?.unwrap_or(0);
        let low = property(PropertyTag::FirmwareVersion2)?.unwrap_or(0);
        let name = manufacturer.iter().filter(|b| b.is_ascii_graphic()).map(|b| char::from(*b)).collect();
        Ok((name, u64::from(high) << 32 | u64::from(low)))
    }

    /// Runs `operation` with a transient object or session and flushes it, whatever happened.
    pub(crate) fn with_transient<T>(
        &mut self,
        object: ObjectHandle,
        operation: impl FnOnce(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let outcome = operation(self);
        let flushed = self.context.flush_context(object).during("TPM2_FlushContext");
        let value = outcome?;
        flushed?;
        Ok(value)
    }
}

impl TpmError {
    /// True where a second attempt on a fresh context cannot end differently.
    fn is_final(&self) -> bool {
        match self {
            Self::Command { .. }
            | Self::Unreachable { .. }
            | Self::Nonsense { .. }
            | Self::AkAbsent { .. } => false,
            Self::TctiUnsupported { .. }
            | Self::AkHandleOccupied { .. }
            | Self::AkHandleInvalid { .. }
            | Self::SelectionInvalid(_)
            | Self::PcrsUnstable { .. }
            | Self::ApprovalNotSigned
            | Self::ApprovalDoesNotFitPcrs { .. }
            | Self::ApprovalWithdrawn { .. }
            | Self::WrongTpm
            | Self::BlobDamaged(_)
            | Self::SecretSize { .. }
            | Self::CounterAbsent { .. }
            | Self::CounterOccupied { .. }
            | Self::CounterTooFar { .. }
            | Self::TimedOut(_)
            | Self::Busy
            | Self::Closed
            | Self::Thread(_) => true,
        }
    }
}

/// The handles in use from `first` on.
fn handles(context: &mut Context, first: u32, count: u32) -> Result<Vec<RawHandle>, TpmError> {
    const COMMAND: &str = "TPM2_GetCapability";
    let (data, _) = context
        .execute_without_session(|context| context.get_capability(CapabilityType::Handles, first, count))
        .during(COMMAND)?;
    match data {
        CapabilityData::Handles(list) => Ok(list.into_inner()),
        _ => Err(TpmError::Nonsense { command: COMMAND, what: "another capability" }),
    }
}

/// Flushes transient objects that a killed process left in a TPM without a resource manager: there is room for
/// three only, and nobody else would ever free them.
fn flush_leftovers(context: &mut Context) -> Result<(), TpmError> {
    for handle in handles(context, TRANSIENT_FIRST, LEFTOVERS_MAX)? {
        if !matches!(handle, RawHandle::Transient(_)) {
            continue;
        }
        let object = context.tr_from_tpm_public(handle).during("TPM2_ReadPublic")?;
        context.flush_context(object).during("TPM2_FlushContext")?;
    }
    Ok(())
}

/// Sessions that it left: as scarce, but tss-esapi does not flush what it did not start.
fn leftover_sessions(context: &mut Context) -> Result<Vec<RawHandle>, TpmError> {
    let mut found = handles(context, SESSION_FIRST, LEFTOVERS_MAX)?;
    found.retain(|handle| matches!(handle, RawHandle::HmacSession(_) | RawHandle::PolicySession(_)));
    Ok(found)
}
