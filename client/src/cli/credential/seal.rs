//! Splitting a secret on the admin's own machine, and sealing each share to its node. What leaves this module is the policy's
//! table, which holds nothing that any one node, or anyone else, could read a key from.
use super::shape::Key;
use crate::Error;
use crate::cli::output::{Failure, Outcome};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_core::ids::{NodeId, RouteId};
use quorate_core::policy::{CredentialDocument, CredentialScheme, PolicyDocument, RouteDocument};
use quorate_core::shares::{
    NodeShares, SEAL_ENTROPY_BYTES, Share, ShareBinding, SharePublicKey, SplitId, seal,
};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// The share keys of a draft's members; every member must have one.
pub(crate) fn share_keys(draft: &PolicyDocument) -> Outcome<BTreeMap<NodeId, SharePublicKey>> {
    let mut keys = BTreeMap::new();
    let mut without = Vec::new();
    for member in &draft.member {
        let key = member.share_key.as_ref().and_then(|k| BASE64.decode(k).ok());
        match key.and_then(|k| SharePublicKey::from_bytes(&k).ok()) {
            Some(key) => drop(keys.insert(NodeId(member.id), key)),
            None => without.push(member.name.as_str()),
        }
    }
    if draft.member.is_empty() {
        return Err(Failure::new("the draft has no members to split a key for", "enrol nodes first"));
    }
    if without.is_empty() {
        return Ok(keys);
    }
    Err(Failure {
        message: format!("{} cannot hold a share: no share key in the draft", without.join(", ")),
        hints: vec![
            "make the approver first: `quorate admin approver`, then enrol each of them again: `quorate admin enrol`"
                .into(),
        ],
    })
}

/// The share epoch of a new splitting. Versions of the policy only rise, so one that is at least the version was never used by
/// an earlier one, not even for a credential that was removed since.
pub(crate) fn next_epoch(draft: &PolicyDocument, route: &RouteDocument) -> u32 {
    let version = u32::try_from(draft.version).unwrap_or(u32::MAX);
    let above = route.credential.as_ref().map_or(1, |c| c.share_epoch.saturating_add(1));
    above.max(version)
}

/// Splits a key for a draft's members.
pub(crate) fn split(
    draft: &PolicyDocument,
    route: &RouteDocument,
    scheme: CredentialScheme,
    key: &Key,
    share_epoch: u32,
) -> Outcome<CredentialDocument> {
    let keys = share_keys(draft)?;
    let bad = |what: String| Failure::new(what, "report this as a bug");
    let id = RouteId::new(route.name.as_str())
        .map_err(|e| Failure::new(format!("route {:?}: {e}", route.name), "rename the route"))?;
    let secret_bytes = u16::try_from(key.secret.len()).map_err(|_| bad("a secret that long".into()))?;
    let binding = ShareBinding {
        cluster: draft.cluster.clone(),
        route: id,
        host: route.host.clone(),
        port: route.port,
        scheme,
        public_prefix: key.public_prefix.clone(),
        secret_bytes,
        share_epoch,
        members: keys.keys().copied().collect(),
    };
    let mut random = Zeroizing::new(vec![0; keys.len() * key.secret.len()]);
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::NoRandomness)?;
    let mut split = [0; 16];
    aws_lc_rs::rand::fill(&mut split).map_err(|_| Error::NoRandomness)?;
    let pairs = key.secret.split(keys.len(), random).map_err(|e| bad(e.to_string()))?;
    let share = |bytes: &[u8]| Share::new(Zeroizing::new(bytes.to_vec()));
    let pairs: Vec<_> = keys.keys().copied().zip(&pairs).collect();
    let mut sealed = BTreeMap::new();
    for (node, pair) in &pairs {
        let shares = NodeShares {
            split: SplitId(split),
            mask: share(pair.mask.expose_bytes()),
            // Of every other keyer, never its own: with the mask beside it that would be the key.
            complements: pairs
                .iter()
                .filter(|(other, _)| other != node)
                .map(|(other, pair)| (*other, share(pair.complement.expose_bytes())))
                .collect(),
        };
        let mut entropy = Zeroizing::new([0; SEAL_ENTROPY_BYTES]);
        aws_lc_rs::rand::fill(entropy.as_mut_slice()).map_err(|_| Error::NoRandomness)?;
        let Some(to) = keys.get(node) else { continue };
        let bytes = seal(&binding, *node, to, &shares, entropy).map_err(|e| bad(e.to_string()))?;
        sealed.insert(*node, bytes);
    }
    Ok(CredentialDocument::new(scheme, key.public_prefix.clone(), secret_bytes, share_epoch, &sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::policy::Policy;
    use quorate_core::shares::{OpenError, SealedShares, open};
    use quorate_core::testing::{Fleet, ROUTE, share_key};

    const SECRET: &str = "Zq7Kp2Vx9Lm4Rt8Wc3Nb6Yd1";

    fn key() -> Key {
        Key::parse(&Zeroizing::new(format!("sk-ant-api03-{SECRET}").into_bytes()), None).ok().unwrap()
    }

    fn draft() -> PolicyDocument {
        let mut draft = Fleet::new(4, 1, |_| ()).document;
        let credential = split(&draft, &draft.route[0], CredentialScheme::XApiKey, &key(), 7).unwrap();
        draft.route[0].credential = Some(credential);
        draft
    }

    #[test]
    fn each_member_opens_its_own_and_any_two_make_the_secret() {
        let draft = draft();
        let policy = Policy::parse(toml::to_string(&draft).unwrap().as_bytes()).unwrap();
        let route = RouteId::new(ROUTE).unwrap();
        let binding = ShareBinding::of(&policy, &route).unwrap();
        let sealed = &policy.routes[&route].credential.as_ref().unwrap().shares;
        let opened: BTreeMap<_, _> =
            sealed.iter().map(|(n, s)| (*n, open(&binding, *n, &share_key(n.0), s).ok().unwrap())).collect();
        for (keyer, own) in &opened {
            assert!(!own.complements.contains_key(keyer), "no node has both halves");
            for (relay, other) in opened.iter().filter(|(n, _)| *n != keyer) {
                assert_eq!(own.split, other.split);
                let joined: Vec<u8> = own
                    .mask
                    .expose_bytes()
                    .iter()
                    .zip(other.complements[keyer].expose_bytes())
                    .map(|(a, b)| a ^ b)
                    .collect();
                assert_eq!(joined, SECRET.as_bytes(), "keyer {keyer}, relay {relay}");
            }
        }
        let (one, two) = (NodeId(1), NodeId(2));
        let refused = |node, key, sealed: &SealedShares| open(&binding, node, &share_key(key), sealed).err();
        assert_eq!(refused(one, 2, &sealed[&one]), Some(OpenError::NotForThis));
        assert_eq!(refused(two, 2, &sealed[&one]), Some(OpenError::NotForThis));
    }

    #[test]
    fn the_draft_holds_nothing_of_the_secret() {
        let text = toml::to_string(&draft()).unwrap();
        assert!(text.contains("sk-ant-api03-"), "the prefix is public");
        let forms = [SECRET.to_owned(), BASE64.encode(SECRET), hex::encode(SECRET)];
        for form in &forms {
            for part in form.as_bytes().windows(8) {
                assert!(!text.as_bytes().windows(8).any(|w| w == part));
            }
        }
        assert!(!format!("{:?}", draft()).contains(SECRET));
    }

    #[test]
    fn two_splittings_share_nothing() {
        let (one, two) = (draft(), draft());
        let shares = |d: &PolicyDocument| d.route[0].credential.as_ref().unwrap().shares.clone();
        assert!(shares(&one).iter().all(|(n, s)| shares(&two)[n] != *s));
    }

    #[test]
    fn a_member_without_a_share_key_is_named() {
        let mut draft = Fleet::new(4, 1, |_| ()).document;
        draft.member[2].share_key = None;
        let failure = share_keys(&draft).err().unwrap();
        assert!(failure.message.contains(&draft.member[2].name), "{failure:?}");
        assert!(failure.hints[0].contains("admin enrol"));
    }

    #[test]
    fn an_epoch_rises_with_each_splitting_and_with_the_version() {
        let mut draft = draft();
        let mut epoch = |version, credential: Option<u32>| {
            draft.version = version;
            let route = &mut draft.route[0];
            match (credential, &mut route.credential) {
                (Some(epoch), Some(c)) => c.share_epoch = epoch,
                (_, c) => *c = None,
            }
            next_epoch(&draft, &draft.route[0])
        };
        assert_eq!(epoch(1, Some(1)), 2);
        assert_eq!(epoch(9, Some(2)), 9, "a rotation");
        assert_eq!(epoch(9, Some(9)), 10, "again in the same draft");
        assert_eq!(epoch(12, None), 12, "after a removal: above whatever was used before version 12");
    }
}
