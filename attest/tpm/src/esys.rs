//! The ESYS calls for sealing. tss-esapi 7.7 does not do for it: it has no TPM2_PolicyNV, and lends nobody its
//! `ESYS_CONTEXT`, so that every command of such a session has to be sent from here.
//!
//! The one module with pointers. Each function is one ESYS call: it takes ordinary values, and what ESYS allocates is
//! copied and freed before it returns. Decides nothing, and flushes only through [`Esys::with`].
use crate::{Tcti, TpmError};
use std::{
    ffi::CString,
    ptr::{null, null_mut},
};
use tss_esapi::{
    Error,
    constants::{response_code::Tss2ResponseCode, tss::*},
    tss2_esys::*,
};
use zeroize::{Zeroize, Zeroizing};

/// Secrets larger than this are not sealed: every TPM takes this much (Part 2, MAX_SYM_DATA).
pub const SECRET_BYTES_MAX: usize = 128;

/// An ESYS context of its own.
pub(crate) struct Esys {
    context: *mut ESYS_CONTEXT,
    tcti: *mut TSS2_TCTI_CONTEXT,
}

/// An object or session in the TPM, by ESYS's own number.
#[derive(Clone, Copy)]
pub(crate) struct Object(ESYS_TR);

/// Kinds of session that are started here.
#[derive(Clone, Copy)]
pub(crate) enum Session {
    /// Authorises the use of an object; its commands' first parameters are encrypted.
    HmacEncryptingCommands,
    /// Collects a policy; its responses' first parameters are encrypted.
    PolicyEncryptingResponses,
}

/// The response code of a failed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    command: &'static str,
    code: TSS2_RC,
}

impl Failed {
    /// Whether the TPM answered with this code, given without the number of the parameter at fault.
    pub(crate) fn is(self, code: TPM2_RC) -> bool {
        /// Number and format of a format-one response code (Part 2, "TPM_RC"), beside what ESYS passes on.
        const FORMAT_ONE: TPM2_RC = 0xffff_f0bf;
        self.code == code || (code & TPM2_RC_FMT1 != 0 && self.code & FORMAT_ONE == code)
    }

    /// Whether the TPM itself found fault with what it was given, rather than the way to it.
    pub(crate) fn is_about_arguments(self) -> bool {
        self.code & !0xfff == 0 && self.code & TPM2_RC_FMT1 != 0
    }
}

impl From<Failed> for TpmError {
    fn from(Failed { command, code }: Failed) -> Self {
        Self::Command { command, source: Error::Tss2Error(Tss2ResponseCode::from(code)) }
    }
}

/// What ESYS allocated: freed on drop.
struct Allocated<T>(*mut T);

impl<T> Allocated<T> {
    const NOTHING: Self = Self(null_mut());

    fn value(&self) -> Option<&T> {
        // SAFETY: the pointer is null, or ESYS set it to a T that it allocated and initialised; nobody else has it, and
        // it is freed only by drop.
        unsafe { self.0.as_ref() }
    }

    fn value_mut(&mut self) -> Option<&mut T> {
        // SAFETY: as in `value`, and `self` is borrowed mutably.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Allocated<T> {
    fn drop(&mut self) {
        // SAFETY: Esys_Free takes what ESYS allocated, once, or null. No reference outlives `self`.
        unsafe { Esys_Free(self.0.cast()) };
    }
}

impl Esys {
    pub(crate) fn open(tcti: &Tcti) -> Result<Self, TpmError> {
        let unreachable = |code| TpmError::Unreachable {
            tcti: tcti.to_string(),
            source: Error::Tss2Error(Tss2ResponseCode::from(code)),
        };
        let name = CString::new(tcti.to_string())
            .map_err(|_| TpmError::Nonsense { command: "Tss2_TctiLdr_Initialize", what: "a zero byte" })?;
        let mut esys = Self { context: null_mut(), tcti: null_mut() };
        // SAFETY: `name` is a C string that outlives the call; `tcti` is a place for one pointer.
        match unsafe { Tss2_TctiLdr_Initialize(name.as_ptr(), &mut esys.tcti) } {
            0 => {}
            code => return Err(unreachable(code)),
        }
        // SAFETY: `tcti` was just initialised, and outlives the context (see drop). No ABI version is asked for.
        match unsafe { Esys_Initialize(&mut esys.context, esys.tcti, null_mut()) } {
            0 => Ok(esys),
            code => Err(unreachable(code)),
        }
    }

    /// Runs `operation` with an object or session and flushes it, whatever happened.
    pub(crate) fn with<T, E: From<Failed>>(
        &mut self,
        object: Object,
        operation: impl FnOnce(&mut Self, Object) -> Result<T, E>,
    ) -> Result<T, E> {
        let outcome = operation(self, object);
        // SAFETY: the context is open; a number that is not an object's is refused by ESYS.
        let flushed = check("TPM2_FlushContext", unsafe { Esys_FlushContext(self.context, object.0) });
        let value = outcome?;
        flushed?;
        Ok(value)
    }

    /// TPM2_CreatePrimary under the owner, whose authorisation value is empty.
    pub(crate) fn create_primary(&mut self, template: &TPM2B_PUBLIC) -> Result<Object, Failed> {
        let (mut public, mut data, mut hash, mut ticket) =
            (Allocated::NOTHING, Allocated::NOTHING, Allocated::NOTHING, Allocated::NOTHING);
        let mut object = ESYS_TR_NONE;
        // SAFETY: the context is open; inputs are initialised and outlive the call; each output is a place for one
        // pointer to a value of its type, which `Allocated` frees.
        check("TPM2_CreatePrimary", unsafe {
            Esys_CreatePrimary(
                self.context,
                ESYS_TR_RH_OWNER,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &TPM2B_SENSITIVE_CREATE::default(),
                template,
                &TPM2B_DATA::default(),
                &TPML_PCR_SELECTION::default(),
                &mut object,
                &mut public.0,
                &mut data.0,
                &mut hash.0,
                &mut ticket.0,
            )
        })?;
        Ok(Object(object))
    }

    /// The Name of an object or index, which ESYS computed from its public area.
    pub(crate) fn name(&mut self, object: Object) -> Result<Vec<u8>, Failed> {
        let mut name: Allocated<TPM2B_NAME> = Allocated::NOTHING;
        // SAFETY: the context is open; the output is a place for one pointer, which `Allocated` frees.
        check("Esys_TR_GetName", unsafe { Esys_TR_GetName(self.context, object.0, &mut name.0) })?;
        Ok(name.value().map(|name| prefix(&name.name, name.size)).unwrap_or_default())
    }

    /// What the TPM has at `handle` already: an NV index or a session.
    pub(crate) fn existing(&mut self, handle: u32) -> Result<Object, Failed> {
        let mut object = ESYS_TR_NONE;
        // SAFETY: the context is open; the output is a place for one number.
        check("Esys_TR_FromTPMPublic", unsafe {
            Esys_TR_FromTPMPublic(self.context, handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &mut object)
        })?;
        Ok(Object(object))
    }

    /// TPM2_StartAuthSession, SHA-256 and AES-128-CFB, salted to `salt_key`: who does not hold its private part
    /// learns no session key from the bus, and so neither reads nor alters what the session protects.
    pub(crate) fn start_session(&mut self, salt_key: Object, kind: Session) -> Result<Object, Failed> {
        let (kind, encrypt) = match kind {
            Session::HmacEncryptingCommands => (TPM2_SE_HMAC, TPMA_SESSION_DECRYPT),
            Session::PolicyEncryptingResponses => (TPM2_SE_POLICY, TPMA_SESSION_ENCRYPT),
        };
        let symmetric = TPMT_SYM_DEF {
            algorithm: TPM2_ALG_AES,
            keyBits: TPMU_SYM_KEY_BITS { aes: 128 },
            mode: TPMU_SYM_MODE { aes: TPM2_ALG_CFB },
        };
        let mut session = ESYS_TR_NONE;
        // SAFETY: the context is open; `symmetric` has the union members of its algorithm set and outlives the call; a null
        // nonce asks ESYS to make one; the output is a place for one number.
        check("TPM2_StartAuthSession", unsafe {
            Esys_StartAuthSession(
                self.context,
                salt_key.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                null(),
                kind,
                &symmetric,
                TPM2_ALG_SHA256,
                &mut session,
            )
        })?;
        // It stays after use: `with` flushes it in every case, and a second flush would fail.
        let flags = TPMA_SESSION_CONTINUESESSION | encrypt;
        // SAFETY: the context is open and has this session.
        let set = check("Esys_TRSess_SetAttributes", unsafe {
            Esys_TRSess_SetAttributes(self.context, session, flags, TPMA_SESSION::MAX)
        });
        match set {
            Ok(()) => Ok(Object(session)),
            Err(failed) => self.with(Object(session), |_, _| Err(failed)),
        }
    }

    /// TPM2_Create under `parent`, which `session` authorises: a sealed object with this public template.
    pub(crate) fn create_sealed(
        &mut self,
        parent: Object,
        session: Object,
        template: &TPM2B_PUBLIC,
        secret: &[u8],
    ) -> Result<(TPM2B_PUBLIC, Vec<u8>), TpmError> {
        const COMMAND: &str = "TPM2_Create";
        let mut sensitive = TPM2B_SENSITIVE_CREATE::default();
        let data = &mut sensitive.sensitive.data;
        let refuse = || TpmError::SecretSize { bytes: secret.len() };
        if secret.is_empty() || secret.len() > SECRET_BYTES_MAX {
            return Err(refuse());
        }
        data.size = u16::try_from(secret.len()).map_err(|_| refuse())?;
        data.buffer.get_mut(..secret.len()).ok_or_else(refuse)?.copy_from_slice(secret);
        let (mut private, mut public): (Allocated<TPM2B_PRIVATE>, Allocated<TPM2B_PUBLIC>) =
            (Allocated::NOTHING, Allocated::NOTHING);
        let (mut creation, mut hash, mut ticket) =
            (Allocated::NOTHING, Allocated::NOTHING, Allocated::NOTHING);
        // SAFETY: as in `create_primary`.
        let created = check(COMMAND, unsafe {
            Esys_Create(
                self.context,
                parent.0,
                session.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &sensitive,
                template,
                &TPM2B_DATA::default(),
                &TPML_PCR_SELECTION::default(),
                &mut private.0,
                &mut public.0,
                &mut creation.0,
                &mut hash.0,
                &mut ticket.0,
            )
        });
        sensitive.sensitive.data.buffer.zeroize();
        created?;
        match (public.value(), private.value()) {
            (Some(public), Some(private)) => Ok((*public, prefix(&private.buffer, private.size))),
            _ => Err(TpmError::Nonsense { command: COMMAND, what: "no object" }),
        }
    }

    /// TPM2_Load under `parent`, whose authorisation value is empty.
    pub(crate) fn load(
        &mut self,
        parent: Object,
        public: &TPM2B_PUBLIC,
        private: &TPM2B_PRIVATE,
    ) -> Result<Object, Failed> {
        let mut object = ESYS_TR_NONE;
        // SAFETY: the context is open; inputs are initialised and outlive the call; the output is a place for one number.
        check("TPM2_Load", unsafe {
            Esys_Load(
                self.context,
                parent.0,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                private,
                public,
                &mut object,
            )
        })?;
        Ok(Object(object))
    }

    /// TPM2_LoadExternal: a public key, in the owner's hierarchy: with the null hierarchy its tickets would be empty.
    pub(crate) fn load_external(&mut self, public: &TPM2B_PUBLIC) -> Result<Object, Failed> {
        let mut object = ESYS_TR_NONE;
        // SAFETY: as in `load`; a null private part means that there is none. The hierarchy is ESYS's number of it, as
        // Esys_LoadExternal expects since 2.4 (it translates both).
        check("TPM2_LoadExternal", unsafe {
            Esys_LoadExternal(
                self.context,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                null(),
                public,
                ESYS_TR_RH_OWNER,
                &mut object,
            )
        })?;
        Ok(Object(object))
    }

    /// TPM2_PolicyPCR: fails unless the digest of these PCRs is `digest` now.
    pub(crate) fn policy_pcr(
        &mut self,
        session: Object,
        selection: &TPML_PCR_SELECTION,
        digest: &[u8; 32],
    ) -> Result<(), Failed> {
        // SAFETY: the context is open; inputs are initialised and outlive the call.
        check("TPM2_PolicyPCR", unsafe {
            Esys_PolicyPCR(
                self.context,
                session.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &sized(digest),
                selection,
            )
        })
    }

    /// TPM2_PolicyNV, TPM_EO_UNSIGNED_LE: fails unless `index` (whose authorisation value is empty) holds at most `limit`.
    pub(crate) fn policy_nv_at_most(
        &mut self,
        session: Object,
        index: Object,
        limit: u64,
    ) -> Result<(), Failed> {
        // SAFETY: the context is open; inputs are initialised and outlive the call.
        check("TPM2_PolicyNV", unsafe {
            Esys_PolicyNV(
                self.context,
                index.0,
                index.0,
                session.0,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &sized(&limit.to_be_bytes()),
                0,
                TPM2_EO_UNSIGNED_LE,
            )
        })
    }

    /// TPM2_VerifySignature: the ticket for `digest`, signed by `key` with ECDSA and SHA-256.
    pub(crate) fn verify_ecdsa(
        &mut self,
        key: Object,
        digest: &[u8; 32],
        r: &[u8; 32],
        s: &[u8; 32],
    ) -> Result<TPMT_TK_VERIFIED, TpmError> {
        const COMMAND: &str = "TPM2_VerifySignature";
        let signature = TPMT_SIGNATURE {
            sigAlg: TPM2_ALG_ECDSA,
            signature: TPMU_SIGNATURE {
                ecdsa: TPMS_SIGNATURE_ECDSA {
                    hash: TPM2_ALG_SHA256,
                    signatureR: coordinate(r),
                    signatureS: coordinate(s),
                },
            },
        };
        let mut ticket: Allocated<TPMT_TK_VERIFIED> = Allocated::NOTHING;
        // SAFETY: the context is open; inputs are initialised, the union in its member for ECDSA, and outlive the call; the
        // output is a place for one pointer, which `Allocated` frees.
        check(COMMAND, unsafe {
            Esys_VerifySignature(
                self.context,
                key.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &sized(digest),
                &signature,
                &mut ticket.0,
            )
        })
        .map_err(|failed| {
            if failed.is(TPM2_RC_SIGNATURE) { TpmError::ApprovalNotSigned } else { failed.into() }
        })?;
        ticket.value().copied().ok_or(TpmError::Nonsense { command: COMMAND, what: "no ticket" })
    }

    /// TPM2_PolicyAuthorize: what the session has collected becomes what `key_name` approves for `policy_ref`.
    pub(crate) fn policy_authorize(
        &mut self,
        session: Object,
        approved: &[u8; 32],
        policy_ref: &[u8; 32],
        key_name: &[u8; 34],
        ticket: &TPMT_TK_VERIFIED,
    ) -> Result<(), Failed> {
        let mut name = TPM2B_NAME { size: 34, ..TPM2B_NAME::default() };
        name.name.iter_mut().zip(key_name).for_each(|(to, from)| *to = *from);
        // SAFETY: the context is open; inputs are initialised and outlive the call.
        check("TPM2_PolicyAuthorize", unsafe {
            Esys_PolicyAuthorize(
                self.context,
                session.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &sized(approved),
                &sized(policy_ref),
                &name,
                ticket,
            )
        })
    }

    /// TPM2_Unseal, which `session` authorises.
    pub(crate) fn unseal(&mut self, object: Object, session: Object) -> Result<Zeroizing<Vec<u8>>, Failed> {
        let mut data: Allocated<TPM2B_SENSITIVE_DATA> = Allocated::NOTHING;
        // SAFETY: the context is open; the output is a place for one pointer, which `Allocated` frees.
        check("TPM2_Unseal", unsafe {
            Esys_Unseal(self.context, object.0, session.0, ESYS_TR_NONE, ESYS_TR_NONE, &mut data.0)
        })?;
        let Some(data) = data.value_mut() else { return Ok(Zeroizing::default()) };
        let secret = Zeroizing::new(prefix(&data.buffer, data.size));
        data.buffer.zeroize();
        Ok(secret)
    }

    /// TPM2_ReadPublic of `object`, for its side effect alone: the answer overwrites the one before it in ESYS's buffer,
    /// which ESYS frees without clearing. It is longer than the answer to TPM2_Unseal.
    pub(crate) fn overwrite_buffer(&mut self, object: Object) -> Result<(), Failed> {
        let (mut public, mut name, mut qualified) =
            (Allocated::NOTHING, Allocated::NOTHING, Allocated::NOTHING);
        // SAFETY: the context is open; each output is a place for one pointer, which `Allocated` frees.
        check("TPM2_ReadPublic", unsafe {
            Esys_ReadPublic(
                self.context,
                object.0,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &mut public.0,
                &mut name.0,
                &mut qualified.0,
            )
        })
    }
}

impl Drop for Esys {
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: initialised by `open`, and used by nobody from here on.
            unsafe { Esys_Finalize(&mut self.context) };
        }
        if !self.tcti.is_null() {
            // SAFETY: as above; the context that used it is gone.
            unsafe { Tss2_TctiLdr_Finalize(&mut self.tcti) };
        }
    }
}

fn check(command: &'static str, code: TSS2_RC) -> Result<(), Failed> {
    if code == 0 { Ok(()) } else { Err(Failed { command, code }) }
}

/// A `TPM2B_DIGEST` and its kin, of at most 32 bytes.
fn sized<const N: usize>(bytes: &[u8; N]) -> TPM2B_DIGEST {
    const { assert!(N <= 32) };
    let mut out = TPM2B_DIGEST { size: N as u16, ..TPM2B_DIGEST::default() };
    out.buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    out
}

fn coordinate(bytes: &[u8; 32]) -> TPM2B_ECC_PARAMETER {
    let mut out = TPM2B_ECC_PARAMETER { size: 32, ..TPM2B_ECC_PARAMETER::default() };
    out.buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    out
}

/// The first `size` bytes; all of them if `size` says more than there are.
fn prefix(buffer: &[u8], size: u16) -> Vec<u8> {
    buffer.get(..usize::from(size)).unwrap_or(buffer).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_code_is_recognised_without_its_parameter() {
        let failed = |code| Failed { command: "test", code };
        // TPM_RC_VALUE of parameter 1, as TPM2_PolicyPCR answers.
        assert!(failed(0x1c4).is(TPM2_RC_VALUE));
        assert!(!failed(0x1c4).is(TPM2_RC_SIGNATURE));
        assert!(failed(0x126).is(TPM2_RC_POLICY));
        assert!(!failed(0x9d).is(TPM2_RC_POLICY));
        // ESYS's own "bad value" is not the TPM's.
        assert!(!failed(0x0007_000b).is_about_arguments());
        assert!(!failed(0x0007_01c4).is(TPM2_RC_VALUE));
        assert!(failed(0x2df).is_about_arguments());
    }
}
