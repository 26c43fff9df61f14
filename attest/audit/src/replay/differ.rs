//! Where a batch of the log is not what the state machine makes of its commands, and how.
use crate::finding::{Fault, Finding, Place};
use crate::words;
use bytes::Bytes;
use quorate_core::crypto::Hash;
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::state::Applied;
use quorate_core::tlog::LeafIndex;

/// The first difference, as a fact. There is one.
pub(crate) fn find(first: LeafIndex, said: &[Bytes], applied: &Applied) -> Finding {
    let rules = &applied.leaf_bytes;
    let same = said.iter().zip(rules).take_while(|(a, b)| a.as_ref() == b.as_slice()).count();
    let place = Place::Leaf(LeafIndex(first.0.saturating_add(same as u64)));
    let said: Option<Leaf> = said.get(same).and_then(|bytes| borsh::from_slice(bytes).ok());
    let rules = applied.leaves.get(same).map(|leaf| leaf.leaf());
    let fault = match (&said, rules) {
        (Some(Leaf::V1 { body: LeafBody::Decided { command, outcome }, .. }), rules) => {
            let digest = command.digest();
            match decided(applied, digest) {
                Some((by_rules, forged)) if by_rules != outcome => Fault::Decision {
                    what: words::command(command),
                    said: words::outcome(outcome),
                    rules: words::outcome(by_rules),
                    forged,
                },
                _ => differs(said.as_ref(), rules),
            }
        }
        (said, rules) => differs(said.as_ref(), rules),
    };
    Finding::at(place, fault)
}

/// The state machine's decision on a command, and whether it left no leaf: its author is not proven.
fn decided(applied: &Applied, command: Hash) -> Option<(&Outcome, bool)> {
    let found = applied.outcomes.iter().find(|(digest, ..)| *digest == command);
    found.map(|(_, outcome, leaf)| (outcome, leaf.is_none()))
}

fn differs(said: Option<&Leaf>, rules: Option<&Leaf>) -> Fault {
    match (said, rules) {
        (Some(said), Some(rules)) => Fault::Differs { said: words::leaf(said), rules: words::leaf(rules) },
        (Some(said), None) => Fault::Unfounded(words::leaf(said)),
        (None, Some(rules)) => Fault::Lacking(words::leaf(rules)),
        (None, None) => Fault::Undecodable,
    }
}
