//! This node's evidence, again and again: a quote over the newest certified checkpoint that may serve as nonce, submitted as
//! a command. Quoting takes up to a second on real hardware, so it happens here, never on a request's path.
use crate::attester::Attester;
use crate::boot::Boot;
use crate::clock;
use crate::cosigner::CosignerHandle;
use crate::ledger::{DecideError, Ledger};
use quorate_attest::evidence::Evidence;
use quorate_core::command::{Command, EvidenceCommand};
use quorate_core::crypto::Signature;
use quorate_core::leaf::Outcome;
use quorate_core::state::evidence_nonce;
use std::time::Duration;
use tokio::time::Instant;

/// How often a node that is not attested looks for a nonce it could quote over.
const EAGER: Duration = Duration::from_millis(100);
/// After a refusal or a failed quote.
const RETRY: Duration = Duration::from_millis(500);

/// The task.
pub struct EvidenceTask {
    /// View.
    pub ledger: Ledger,
    /// Keys.
    pub boot: Boot,
    /// TPM.
    pub attester: Attester,
    /// Certificates of anchors.
    pub cosigner: CosignerHandle,
}

/// What one round came to.
enum Round {
    /// Attested, or waiting for a certificate that holds the evidence.
    Submitted,
    /// Nothing to quote over yet.
    NoNonce,
    /// Refused or failed.
    Failed,
}

impl EvidenceTask {
    /// Runs until the node stops.
    pub async fn run(self) {
        let mut last = None::<Instant>;
        // A refusal is logged once, not every half second.
        let mut said = String::new();
        loop {
            let view = self.ledger.view();
            let interval = Duration::from_millis(view.policy.attestation.evidence_interval_ms);
            let attested = view.attested(self.ledger.me()) == Some(&self.boot.keys);
            if attested && last.is_some_and(|l| l.elapsed() < interval) {
                let rest = last.map_or(interval, |l| interval.saturating_sub(l.elapsed()));
                // Wakes early when the node stops counting as attested.
                let mut changed = self.ledger.standing_changed();
                let lost = async {
                    while self.ledger.view().attested(self.ledger.me()) == Some(&self.boot.keys) {
                        if changed.changed().await.is_err() {
                            return;
                        }
                    }
                };
                let _either = tokio::time::timeout(rest, lost).await;
                continue;
            }
            match self.round(&mut said).await {
                Round::Submitted => {
                    last = Some(Instant::now());
                    tokio::time::sleep(EAGER).await;
                }
                Round::NoNonce => tokio::time::sleep(EAGER).await,
                Round::Failed => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn round(&self, said: &mut String) -> Round {
        let view = self.ledger.view();
        let Some(anchor) = self.cosigner.newest_anchor() else { return Round::NoNonce };
        let age = clock::now().since_ms(anchor.seen);
        if age > view.policy.attestation.nonce_age_ms || anchor.checkpoint.size > view.checkpoint.size {
            return Round::NoNonce;
        }
        let mut command = EvidenceCommand {
            node: self.ledger.me(),
            boot: self.boot.keys.clone(),
            nonce: anchor.checkpoint,
            certificate: anchor.cosignatures,
            evidence: Evidence {
                attest: Vec::new(),
                signature: Vec::new(),
                pcrs: Vec::new(),
                event_log: [0; 32],
                ima_log: None,
            },
            signature: Signature([0; 64]),
        };
        let nonce = evidence_nonce(self.ledger.cluster(), &command);
        let attested = match self.attester.quote(&view.policy.attestation.pcrs, nonce).await {
            Ok(attested) => attested,
            Err(error) => {
                let chain = crate::report::chain(&error);
                say(said, chain, |text| tracing::error!(error = text, "no evidence: this node will lapse"));
                return Round::Failed;
            }
        };
        command.evidence = attested.evidence;
        let command = command.sign(self.ledger.cluster(), &self.boot.cosign);
        match self
            .ledger
            .decide_applied(Command::Evidence(Box::new(command)), attested.blobs, Duration::from_secs(3))
            .await
        {
            Ok(Outcome::Appraised { .. }) => {
                if !said.is_empty() || view.attested(self.ledger.me()) != Some(&self.boot.keys) {
                    tracing::info!("this node is attested");
                    said.clear();
                }
                Round::Submitted
            }
            Ok(Outcome::AwaitingCertificate) => {
                say(said, "machine was reset".into(), |_| {
                    tracing::warn!(
                        "the machine was reset: this node counts again once a checkpoint certified without it holds its evidence"
                    );
                });
                Round::NoNonce
            }
            Ok(Outcome::AppraisalRefused { check }) => {
                say(said, check, |check| {
                    tracing::error!(
                        check,
                        "this node's evidence was refused: compare it with the reference values, then approve or reprovision"
                    );
                });
                Round::Failed
            }
            Ok(other) => {
                tracing::error!(?other, "an unexpected outcome for evidence");
                Round::Failed
            }
            Err(DecideError::Refused(refusal)) => {
                tracing::debug!(code = refusal.code(), "evidence refused");
                Round::Failed
            }
            Err(_) => Round::Failed,
        }
    }
}

fn say(said: &mut String, text: String, say: impl FnOnce(&str)) {
    if *said != text {
        say(&text);
        *said = text;
    }
}
