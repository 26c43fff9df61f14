//! Signatures checked before their entry is applied: while it is being made durable, or on other cores.
//!
//! Whether a signature is a key's does not depend on the state, so a check made early is as good as one made in `apply`;
//! which key it has to be, `apply` alone decides. What is remembered is a command's digest, which covers body, author and
//! signature, together with the key: under another key the same command is checked anew.
use crate::command::{ClientCommand, ClientSigned, Command};
use crate::crypto::{Hash, PublicKey};
use crate::ids::{NodeId, TokenId};
use crate::policy::Policy;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Signatures remembered. An entry that is never applied leaves some behind; when full, all are forgotten, and `apply` checks
/// for itself.
const REMEMBERED_MAX: usize = 16_384;

/// Shared by a state and whoever sees its entries early. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct VerifiedAhead {
    known: Arc<Mutex<HashSet<(Hash, PublicKey)>>>,
}

impl VerifiedAhead {
    /// Checks a command's signature by the key its author has as of now: a client's in `policy`, a token's by `token_key`, a
    /// node's by `boot_key`. Of a token that is shown for the first time, its issuer's signature as well. Nothing comes of one that
    /// does not verify.
    pub fn verify(
        &self,
        cluster: Hash,
        command: &Command,
        policy: &Policy,
        token_key: impl FnOnce(&TokenId) -> Option<PublicKey>,
        boot_key: impl FnOnce(NodeId) -> Option<PublicKey>,
    ) {
        if let Some(key) = self.signer(cluster, command, policy, token_key, boot_key) {
            self.remember(command.digest(), key);
        }
    }

    /// Whether a client that this policy names signed a command.
    pub fn is_by_client(
        cluster: Hash,
        command: &Command,
        policy: &Policy,
        token_key: impl FnOnce(&TokenId) -> Option<PublicKey>,
    ) -> bool {
        Self::default().signer(cluster, command, policy, token_key, |_| None).is_some()
    }

    fn signer(
        &self,
        cluster: Hash,
        command: &Command,
        policy: &Policy,
        token_key: impl FnOnce(&TokenId) -> Option<PublicKey>,
        boot_key: impl FnOnce(NodeId) -> Option<PublicKey>,
    ) -> Option<PublicKey> {
        match command {
            Command::Client(c) => {
                let key = match &c.token {
                    None => policy.clients.get(&c.client).map(|g| g.key),
                    Some(token) => token_key(token).or_else(|| self.shown_key(cluster, c, policy)),
                };
                key.filter(|k| c.is_by(cluster, k))
            }
            Command::Node(c) => boot_key(c.node).filter(|k| c.is_by(cluster, k)),
            // These prove themselves, and are rare.
            Command::Evidence(_) | Command::Recover(_) | Command::Policy(_) => None,
        }
    }

    /// The key of the token that a command shows, if its issuer signed it.
    fn shown_key(&self, cluster: Hash, c: &ClientSigned, policy: &Policy) -> Option<PublicKey> {
        let ClientCommand::OpenPool(p) = &c.body else { return None };
        let (shown, issuer) = (p.token.as_deref()?, policy.clients.get(&c.client)?.key);
        if !shown.is_by(cluster, &issuer) {
            return None;
        }
        self.remember(shown.digest(), issuer);
        Some(shown.token.key)
    }

    fn remember(&self, digest: Hash, key: PublicKey) {
        let mut known = self.known();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert((digest, key));
    }

    /// Whether the command of this digest was signed with this key; forgets it.
    pub(super) fn take(&self, digest: Hash, key: PublicKey) -> bool {
        self.known().remove(&(digest, key))
    }

    fn known(&self) -> MutexGuard<'_, HashSet<(Hash, PublicKey)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ClientCommand, ClientSigned};
    use crate::crypto::Signature;
    use crate::leaf::Outcome;
    use crate::refusal::Refusal;
    use crate::testing::{CLIENT, Mesh, key};

    fn ahead(mesh: &Mesh, command: &Command) {
        mesh.state().verified_ahead().verify(
            mesh.fleet.cluster(),
            command,
            mesh.state().policy(),
            |_| None,
            |_| None,
        );
    }

    fn remembered(mesh: &Mesh) -> usize {
        mesh.state().verified_ahead().known().len()
    }

    #[test]
    fn what_was_checked_early_applies_once_and_alike() {
        let mut mesh = Mesh::four();
        let command = mesh.pool_with(|_| ());
        let mut other = Mesh::four();
        ahead(&mesh, &command);
        assert_eq!(remembered(&mesh), 1);
        assert_eq!(mesh.decide(command.clone()), Outcome::PoolOpened);
        assert_eq!(remembered(&mesh), 0);
        assert_eq!(other.decide(command), Outcome::PoolOpened);
        assert_eq!(mesh.state().digest(), other.state().digest());
    }

    #[test]
    fn a_signature_that_does_not_verify_is_not_remembered() {
        let mut mesh = Mesh::four();
        let Command::Client(mut signed) = mesh.pool_with(|_| ()) else { panic!("not a client's") };
        signed.signature.0[0] ^= 1;
        let forged = Command::Client(signed);
        ahead(&mesh, &forged);
        assert_eq!(remembered(&mesh), 0);
        let good = mesh.pool_with(|_| ());
        let by_client = |c: &Command| {
            VerifiedAhead::is_by_client(mesh.fleet.cluster(), c, mesh.state().policy(), |_| None)
        };
        assert!(!by_client(&forged) && by_client(&good));
        mesh.refuses(forged, Refusal::BadSignature);
    }

    #[test]
    fn a_check_under_one_key_says_nothing_under_another() {
        let mut mesh = Mesh::four();
        let command = mesh.pool_with(|_| ());
        ahead(&mesh, &command);
        // The admins replace the client's key between the check and the entry.
        let replaced = key("replaced");
        let change = mesh.fleet.change_policy(|d| {
            for client in d.client.iter_mut().filter(|c| c.name == CLIENT) {
                use base64::Engine as _;
                let bytes = crate::crypto::public_key(&replaced).0;
                client.key = base64::engine::general_purpose::STANDARD.encode(bytes);
            }
        });
        assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
        assert_eq!(remembered(&mesh), 1);
        mesh.refuses(command, Refusal::BadSignature);
    }

    #[test]
    fn a_token_that_is_shown_is_checked_with_its_command() {
        use crate::ids::{ClientId, Timestamp};
        use crate::token::{SignedToken, Token};
        let mut mesh = Mesh::new(4, 1, |d| d.client[0].token_lifetime_ms_max = Some(900_000));
        let (cluster, issuer) = (mesh.fleet.cluster(), ClientId::new(CLIENT).unwrap());
        let show = |mesh: &mut Mesh, break_it: fn(&mut SignedToken)| {
            let mut pool = mesh.fleet.pool(&mesh.log.state, 1);
            pool.expires = mesh.time.plus_ms(60_000);
            let mut token = Token {
                serial: pool.pool.0,
                issuer: issuer.clone(),
                subject: issuer.clone(),
                key: crate::crypto::public_key(&key("agent")),
                routes: vec![crate::testing::route()],
                limits: Default::default(),
                not_before: mesh.time,
                expires: Timestamp(mesh.time.0 + 900_000),
            }
            .sign(cluster, &key(CLIENT));
            break_it(&mut token);
            let id = Some(token.token.id(cluster));
            pool.token = Some(Box::new(token));
            let body = ClientCommand::OpenPool(pool);
            Command::Client(ClientSigned::sign_as(cluster, issuer.clone(), id, body, &key("agent")))
        };
        let good = show(&mut mesh, |_| ());
        let mut other = mesh.log.clone();
        ahead(&mesh, &good);
        assert_eq!(remembered(&mesh), 2, "the command's and the token's");
        let outcome = mesh.decide(good.clone());
        assert_eq!((outcome, remembered(&mesh)), (Outcome::PoolOpened, 0));
        other.apply(mesh.time, vec![good], &mesh.fleet.blobs);
        assert_eq!(other.state.digest(), mesh.state().digest());
        let forged = show(&mut mesh, |t| t.signature.0[0] ^= 1);
        ahead(&mesh, &forged);
        assert_eq!(remembered(&mesh), 0);
        mesh.refuses(forged, Refusal::BadToken);
    }

    #[test]
    fn the_digest_covers_the_signature() {
        let mut mesh = Mesh::four();
        let command = mesh.pool_with(|_| ());
        ahead(&mesh, &command);
        let Command::Client(ClientSigned { client, token, body, .. }) = command else {
            panic!("not a client's")
        };
        assert!(matches!(body, ClientCommand::OpenPool(_)));
        let unsigned = Command::Client(ClientSigned { client, token, body, signature: Signature([0; 64]) });
        mesh.refuses(unsigned, Refusal::BadSignature);
    }
}
