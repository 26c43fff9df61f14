//! Raft's members follow the policy's, one change at a time; whoever leads sees to it.
use crate::ledger::Ledger;
use crate::proposer::leads;
use crate::raft::types::Raft;
use openraft::EmptyNode;
use std::collections::BTreeSet;
use std::time::Duration;

/// Runs until the node stops.
pub async fn follow_policy(raft: Raft, ledger: Ledger) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if !leads(&raft, ledger.me()) {
            continue;
        }
        let wanted: BTreeSet<u64> = ledger.view().policy.members.keys().map(|n| n.0).collect();
        let voters: BTreeSet<u64> =
            raft.metrics().borrow().membership_config.membership().voter_ids().collect();
        if wanted == voters {
            continue;
        }
        for added in wanted.difference(&voters) {
            tracing::info!(node = added, "a new member joins Raft");
            if let Err(error) = raft.add_learner(*added, EmptyNode {}, true).await {
                tracing::warn!(node = added, %error, "cannot add a learner");
            }
        }
        match raft.change_membership(wanted.clone(), false).await {
            Ok(_) => tracing::info!(members = ?wanted, "Raft's members follow the policy"),
            Err(error) => tracing::warn!(%error, "cannot change Raft's members yet"),
        }
    }
}
