//! The TPM on a thread of its own, and deadlines for whoever waits for it.
//!
//! tpm2-tss blocks, at worst for ever. So one thread owns the [`Tpm`]; callers queue for it in a bounded queue and
//! wait no longer than their deadline. A thread stuck in a hung TPM goes on as soon as that answers or dies, and
//! skips the work of callers who gave up. No second thread is started beside it: two would speak at once.
use crate::{AK_HANDLE_DEFAULT, EkKind, EnrolmentRequest, Quoted, SealedBlob, Tcti, Tpm, TpmError};
use quorate_attest::{
    approval::{Approval, Approver, CounterIndex, PolicyRef},
    credential::CredentialBlob,
};
use std::{sync::mpsc, thread, time::Duration};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// Operations that may wait for the TPM before callers are told that it is busy.
const QUEUE_MAX: usize = 8;
/// Key creation on real hardware takes this much longer than a quote.
const ENROLMENT_FACTOR: u32 = 12;

/// How to reach a TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmConfig {
    /// Where it is.
    pub tcti: Tcti,
    /// Persistent handle of the AK.
    pub ak_handle: u32,
    /// How long a caller waits for a quote; enrolment may take twelve times as long.
    pub timeout: Duration,
}

impl TpmConfig {
    /// The TPM at `tcti`, with the default AK handle and five seconds for a quote.
    pub fn new(tcti: &str) -> Result<Self, TpmError> {
        Ok(Self { tcti: tcti.parse()?, ak_handle: AK_HANDLE_DEFAULT, timeout: Duration::from_secs(5) })
    }
}

type Job = Box<dyn FnOnce(&mut Tpm) + Send>;

/// A TPM for use from async code. Clones share the one thread, which ends with the last of them.
#[derive(Clone)]
pub struct TpmHandle {
    jobs: mpsc::SyncSender<Job>,
    timeout: Duration,
}

impl TpmHandle {
    /// Starts the thread. The TPM itself is opened on first use, so one that is absent now may come later.
    pub fn spawn(config: TpmConfig) -> Result<Self, TpmError> {
        let mut tpm = Tpm::closed(config.tcti, config.ak_handle)?;
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE_MAX);
        thread::Builder::new()
            .name("tpm".into())
            .spawn(move || {
                for job in queue {
                    job(&mut tpm);
                }
            })
            .map_err(TpmError::Thread)?;
        Ok(Self { jobs, timeout: config.timeout })
    }

    /// See [`Tpm::quote`].
    pub async fn quote(&self, selection: &[u8], qualifying: [u8; 32]) -> Result<Quoted, TpmError> {
        let selection = selection.to_vec();
        self.run(self.timeout, move |tpm| tpm.quote(&selection, qualifying)).await
    }

    /// See [`Tpm::ek_kinds`].
    pub async fn ek_kinds(&self) -> Result<Vec<EkKind>, TpmError> {
        self.run(self.timeout, Tpm::ek_kinds).await
    }

    /// See [`Tpm::ak_public`].
    pub async fn ak_public(&self) -> Result<Vec<u8>, TpmError> {
        self.run(self.timeout, Tpm::ak_public).await
    }

    /// See [`Tpm::enrol`].
    pub async fn enrol(&self, ek: EkKind) -> Result<EnrolmentRequest, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.enrol(ek)).await
    }

    /// See [`Tpm::activate`].
    pub async fn activate(
        &self,
        ek: EkKind,
        credential: CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.activate(ek, &credential)).await
    }

    /// See [`Tpm::seal`].
    pub async fn seal(
        &self,
        approver: Approver,
        policy_ref: PolicyRef,
        secret: Zeroizing<Vec<u8>>,
    ) -> Result<SealedBlob, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.seal(&approver, &policy_ref, &secret)).await
    }

    /// See [`Tpm::unseal`].
    pub async fn unseal(&self, blob: SealedBlob, approval: Approval) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.unseal(&blob, &approval)).await
    }

    /// See [`Tpm::provision_counter`].
    pub async fn provision_counter(&self, index: CounterIndex) -> Result<u64, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.provision_counter(index)).await
    }

    /// See [`Tpm::counter`].
    pub async fn counter(&self, index: CounterIndex) -> Result<u64, TpmError> {
        self.run(self.timeout, move |tpm| tpm.counter(index)).await
    }

    /// See [`Tpm::raise_counter`].
    pub async fn raise_counter(&self, index: CounterIndex, to: u64) -> Result<u64, TpmError> {
        self.run(self.enrolment_timeout(), move |tpm| tpm.raise_counter(index, to)).await
    }

    /// Runs `operation` on the TPM's thread and waits for at most `timeout`. Needs tokio's timer.
    pub async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        operation: impl FnOnce(&mut Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Box::new(move |tpm| {
            if !reply.is_closed() {
                // The caller may have given up meanwhile.
                let _ = reply.send(operation(tpm));
            }
        }))?;
        match tokio::time::timeout(timeout, answer).await {
            Err(_) => Err(TpmError::TimedOut(timeout)),
            Ok(Err(_)) => Err(TpmError::Closed),
            Ok(Ok(outcome)) => outcome,
        }
    }

    /// Like [`Self::run`], for callers without async: blocks this thread for at most `timeout`.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        timeout: Duration,
        operation: impl FnOnce(&mut Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.enqueue(Box::new(move |tpm| {
            let _ = reply.send(operation(tpm));
        }))?;
        answer.recv_timeout(timeout).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => TpmError::TimedOut(timeout),
            mpsc::RecvTimeoutError::Disconnected => TpmError::Closed,
        })?
    }

    fn enqueue(&self, job: Job) -> Result<(), TpmError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => TpmError::Busy,
            mpsc::TrySendError::Disconnected(_) => TpmError::Closed,
        })
    }

    fn enrolment_timeout(&self) -> Duration {
        self.timeout.saturating_mul(ENROLMENT_FACTOR)
    }
}
