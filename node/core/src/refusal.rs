//! Why the state machine refused a command. Every variant is a fact with a stable code; [`Refusal::fault`],
//! [`Refusal::retry`] and [`Refusal::hint`] answer whose it is, whether to try again, and what to do.
use borsh::{BorshDeserialize, BorshSerialize};

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The application or its client key.
    Client,
    /// The organisation's policy or its admins.
    Operator,
    /// A node of the mesh.
    Mesh,
}

/// Whether the same intent can succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once, with a new pool or request.
    Now,
    /// After the window that was exhausted.
    Later,
    /// Only after somebody changed something.
    Never,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident, $code:literal, $fault:ident, $retry:ident, $text:literal, $hint:literal;)*) => {
        /// A refused command. The code is stable: tools may match on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize, thiserror::Error)]
        pub enum Refusal { $($(#[$doc])* #[error($text)] $variant,)* }

        impl Refusal {
            /// Every refusal, for tables and documentation.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant,)*];
            /// The stable code.
            pub fn code(self) -> &'static str { match self { $(Refusal::$variant => $code,)* } }
            /// Who has to act.
            pub fn fault(self) -> Fault { match self { $(Refusal::$variant => Fault::$fault,)* } }
            /// Whether to try again.
            pub fn retry(self) -> Retry { match self { $(Refusal::$variant => Retry::$retry,)* } }
            /// What to do next.
            pub fn hint(self) -> &'static str { match self { $(Refusal::$variant => $hint,)* } }
        }
    };
}

refusals! {
    /// Fewer nodes than a quorum are attested.
    Dark, "dark", Mesh, Later, "fewer than a quorum of nodes are attested, so nothing is forwarded", "wait for the nodes to come back; `quorate status` names the missing ones";
    /// The signature is not the author's.
    BadSignature, "bad_signature", Client, Never, "the signature does not verify", "check which key the trust file names";
    /// The statement names another cluster.
    WrongCluster, "wrong_cluster", Client, Never, "the statement is for another cluster", "use the trust file of this cluster";
    /// No client of that name in the policy.
    UnknownClient, "unknown_client", Client, Never, "the policy knows no such client", "ask an admin to grant it: `quorate admin client add`";
    /// The grant's time is over.
    ClientExpired, "client_expired", Client, Never, "the client's grant has expired", "ask an admin to renew it";
    /// An admin revoked the client.
    ClientRevoked, "client_revoked", Client, Never, "the client is revoked", "ask an admin";
    /// No route of that name in the policy.
    UnknownRoute, "unknown_route", Client, Never, "the policy knows no such route", "`quorate status --routes` lists them";
    /// The grant does not hold this route.
    OutOfScope, "out_of_scope", Client, Never, "the client's grant does not hold this route", "ask an admin to extend the grant";
    /// The relay named is no attested member.
    RelayNotAttested, "relay_not_attested", Mesh, Now, "the relay is not attested with the boot key named", "open a pool through another relay";
    /// The keyer named is no attested member.
    KeyerNotAttested, "keyer_not_attested", Mesh, Now, "the keyer is not attested with the boot key named", "open a pool with the other keyer";
    /// The keyer is not one of the first two in order.
    WrongKeyer, "wrong_keyer", Client, Now, "the keyer is not one of the first two in rendezvous order", "refresh the directory and open a new pool";
    /// Client, relay and keyer do not have three custodians.
    SameCustodian, "same_custodian", Client, Now, "client, relay and keyer must have three different custodians", "choose a relay whose custodian is neither yours nor the keyer's";
    /// The pool lives longer than allowed.
    PoolTooLong, "pool_too_long", Client, Now, "the pool's expiry is beyond the policy's bound", "ask for a shorter pool";
    /// The id is in use.
    DuplicatePool, "duplicate_pool", Client, Now, "a pool of that id exists", "choose a new random id";
    /// No such pool, or it expired.
    UnknownPool, "unknown_pool", Client, Now, "no such pool, or it has expired", "open a new pool";
    /// The request does not match its pool.
    PoolMismatch, "pool_mismatch", Client, Never, "client, route, relay or keyer differ from the pool's", "sign the request for the pool it uses";
    /// The request id was used before.
    Replayed, "replayed", Client, Never, "a request of that id was already decided", "each request needs a new random id";
    /// The connection carried a request already.
    ConnectionUsed, "connection_used", Client, Now, "this connection already carried a request", "one request, one connection: take another from the pool";
    /// The request's own expiry has passed or lies too far ahead.
    Expired, "expired", Client, Now, "the request has expired, or expires too far ahead", "check the client's clock";
    /// The statement names another policy version.
    StalePolicy, "stale_policy", Client, Now, "the request was signed for another policy version", "refresh the directory and sign again";
    /// Requests per minute are used up.
    RateExceeded, "rate_exceeded", Client, Later, "the client's requests per minute are used up", "wait for the next minute";
    /// Requests per day are used up.
    RequestBudgetExceeded, "request_budget_exceeded", Client, Later, "the client's requests per day are used up", "wait for the next day (UTC) or ask an admin";
    /// Bytes per day are used up.
    ByteBudgetExceeded, "byte_budget_exceeded", Client, Later, "the client's bytes per day are used up, counting what running requests reserve", "wait for the next day (UTC), or set lower ceilings";
    /// A ceiling is above the route's bound.
    CeilingTooHigh, "ceiling_too_high", Client, Never, "a ceiling of the request is above the route's bound", "lower the request's ceilings";
    /// Too many requests are unsettled.
    TooManyInFlight, "too_many_in_flight", Client, Later, "too many of the client's requests are in flight", "wait for some to finish";
    /// No request of that id is open.
    UnknownRequest, "unknown_request", Mesh, Never, "no open request of that id", "settle a request once, while it is open";
    /// The author is not the request's relay or client.
    NotYours, "not_yours", Mesh, Never, "only the request's own relay and client may settle it", "nothing to do";
    /// The node is not attested.
    NodeNotAttested, "node_not_attested", Mesh, Later, "the node is not attested", "see `quorate status` for the check that failed";
    /// No member of that id.
    UnknownNode, "unknown_node", Operator, Never, "the policy knows no such node", "enrol it: `quorate admin enrol`";
    /// The nonce is no recent checkpoint of this history.
    StaleNonce, "stale_nonce", Mesh, Now, "the evidence's nonce is not a recent checkpoint", "quote again over a newer checkpoint";
    /// The nonce's cosignatures are no certificate.
    UncertifiedNonce, "uncertified_nonce", Mesh, Now, "the evidence's nonce is not certified", "quote again over a certified checkpoint";
    /// A log named by the evidence is missing.
    MissingBlob, "missing_blob", Mesh, Now, "a log that the evidence names is not there", "send the blob first";
    /// The Verifier rejected the evidence.
    AppraisalFailed, "appraisal_failed", Operator, Later, "the evidence does not meet the appraisal policy", "compare with the reference values, then approve or reprovision the node";
    /// Recovery while a quorum is attested.
    NotDark, "not_dark", Mesh, Never, "recovery is only for a dark mesh", "nothing to do";
    /// Fewer contributions than a quorum.
    TooFewContributions, "too_few_contributions", Mesh, Now, "fewer contributions than a quorum", "wait for more nodes";
    /// A contribution is not its node's own.
    BadContribution, "bad_contribution", Mesh, Now, "a contribution is doubled or not signed by its node's boot key", "collect contributions again";
    /// A lock or certified checkpoint is no prefix of this history.
    LockConflict, "lock_conflict", Mesh, Later, "a contributed lock is not a prefix of this history", "a missing node must return, or admins must sign a checkpoint to go on from";
    /// The base is not the highest contributed checkpoint.
    WrongBase, "wrong_base", Mesh, Now, "the recovery's base is not the highest contributed checkpoint", "collect contributions again";
    /// Fewer valid admin signatures than the threshold.
    TooFewSigners, "too_few_signers", Operator, Never, "fewer valid admin signatures than the policy's threshold", "collect more signatures: `quorate admin sign`";
    /// A signature is of no admin, or an admin signed twice.
    UnknownSigner, "unknown_signer", Operator, Never, "a signature is not an admin's, or an admin's stands twice", "sign with a key that the current policy lists";
    /// The change names another predecessor.
    WrongPredecessor, "wrong_predecessor", Operator, Never, "the policy names another predecessor than the current version", "start from the current policy: `quorate admin policy`";
    /// The document's expiry has passed.
    PolicyExpired, "policy_expired", Operator, Never, "the policy document has expired", "sign a new one";
    /// The document does not parse or contradicts itself.
    PolicyInvalid, "policy_invalid", Operator, Never, "the policy document is not valid", "run `quorate admin check` on it";
    /// More than one member changes.
    TooManyMemberChanges, "too_many_member_changes", Operator, Never, "members change one at a time", "split the change";
    /// Too soon after the last one.
    TooSoon, "too_soon", Mesh, Never, "too soon after the previous one", "nothing to do";
    /// A list or text beyond its bound.
    Oversized, "oversized", Client, Never, "a list or text is beyond its bound", "see the bounds in the .proto files";
    /// A share epoch that the route's credential had before, or one above it.
    ShareEpochUsed, "share_epoch_used", Operator, Never, "the share epoch is not above the highest the route ever had", "split again: `quorate admin credential rotate`";
    /// A credential, its destination or its holders changed, the share epoch did not.
    ShareEpochUnchanged, "share_epoch_unchanged", Operator, Never, "the credential, its destination or its holders changed under the same share epoch", "split again: `quorate admin credential rotate`";
    /// The request names another share epoch than the route's.
    StaleShareEpoch, "stale_share_epoch", Client, Now, "the request was signed for another share epoch of the route's credential", "refresh the directory and sign again";
    /// Requests of three clients failed over this pair.
    PairSuspended, "pair_suspended", Mesh, Now, "this relay and keyer are suspended for the route's credential: requests of several clients failed over them", "use another pair; admins: look at both nodes, then split again or lift it";
    /// The client's own request failed over this pair.
    PairBarred, "pair_barred", Mesh, Now, "an earlier request of this client failed over this relay and keyer, so the pair gets no other try with it", "use another pair";
    /// Requests of several clients failed over several pairs, or admins said so.
    CredentialFrozen, "credential_frozen", Operator, Never, "the route's credential is frozen", "admins: `quorate admin credential check`, then rotate the key or lift the freeze";
    /// A probe grant that does not stand for this pool.
    BadProbeGrant, "bad_probe_grant", Client, Never, "the probe grant is not an admin's, or not for this client, route, share epoch and pair", "make a new one: `quorate admin credential check`";
    /// A probe grant that is over, or lasts too long.
    ProbeGrantExpired, "probe_grant_expired", Client, Now, "the probe grant has expired, or lasts more than an hour", "make a new one: `quorate admin credential check`";
    /// Probes over this pair are used up.
    ProbesExhausted, "probes_exhausted", Operator, Never, "the probes over this pair are used up for the share epoch", "split again: `quorate admin credential rotate`";
    /// Too many of the client's requests over this pair are not reported yet.
    PairBusy, "pair_busy", Client, Now, "as many requests of this client as may be are not reported yet over this relay and keyer", "use another pair, or wait until some of them end";
    /// The client's requests per month are used up.
    ClientRequestsPerMonth, "client_requests_per_month", Client, Later, "the client's requests per month are used up", "wait for the next month (UTC), or ask an admin; `quorate usage` says what is left";
    /// The client's bytes per minute are used up.
    ClientBytesPerMinute, "client_bytes_per_minute", Client, Later, "the client's bytes per minute are used up, counting what running requests hold", "wait for the next minute (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The client's bytes per month are used up.
    ClientBytesPerMonth, "client_bytes_per_month", Client, Later, "the client's bytes per month are used up, counting what running requests hold", "wait for the next month (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The client's money per minute is used up.
    ClientMoneyPerMinute, "client_money_per_minute", Client, Later, "the client's money per minute is used up, counting what running requests hold", "wait for the next minute (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The client's money per day is used up.
    ClientMoneyPerDay, "client_money_per_day", Client, Later, "the client's money per day is used up, counting what running requests hold", "wait for the next day (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The client's money per month is used up.
    ClientMoneyPerMonth, "client_money_per_month", Client, Later, "the client's money per month is used up, counting what running requests hold", "wait for the next month (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's requests per minute are used up.
    TeamRequestsPerMinute, "team_requests_per_minute", Client, Later, "the team's requests per minute are used up", "wait for the next minute (UTC), or ask an admin; `quorate usage` says what is left";
    /// The team's requests per day are used up.
    TeamRequestsPerDay, "team_requests_per_day", Client, Later, "the team's requests per day are used up", "wait for the next day (UTC), or ask an admin; `quorate usage` says what is left";
    /// The team's requests per month are used up.
    TeamRequestsPerMonth, "team_requests_per_month", Client, Later, "the team's requests per month are used up", "wait for the next month (UTC), or ask an admin; `quorate usage` says what is left";
    /// The team's bytes per minute are used up.
    TeamBytesPerMinute, "team_bytes_per_minute", Client, Later, "the team's bytes per minute are used up, counting what running requests hold", "wait for the next minute (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's bytes per day are used up.
    TeamBytesPerDay, "team_bytes_per_day", Client, Later, "the team's bytes per day are used up, counting what running requests hold", "wait for the next day (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's bytes per month are used up.
    TeamBytesPerMonth, "team_bytes_per_month", Client, Later, "the team's bytes per month are used up, counting what running requests hold", "wait for the next month (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's money per minute is used up.
    TeamMoneyPerMinute, "team_money_per_minute", Client, Later, "the team's money per minute is used up, counting what running requests hold", "wait for the next minute (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's money per day is used up.
    TeamMoneyPerDay, "team_money_per_day", Client, Later, "the team's money per day is used up, counting what running requests hold", "wait for the next day (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The team's money per month is used up.
    TeamMoneyPerMonth, "team_money_per_month", Client, Later, "the team's money per month is used up, counting what running requests hold", "wait for the next month (UTC), set lower ceilings, or ask an admin; `quorate usage` says what is left";
    /// The token's requests are used up.
    TokenRequestsUsedUp, "token_requests_used_up", Client, Never, "the token's requests are used up", "ask its issuer for another token: `quorate token mint`";
    /// The token's bytes are used up.
    TokenBytesUsedUp, "token_bytes_used_up", Client, Never, "the token's bytes are used up, counting what running requests hold", "ask its issuer for another token: `quorate token mint`";
    /// The token's money is used up.
    TokenMoneyUsedUp, "token_money_used_up", Client, Never, "the token's money is used up, counting what running requests hold", "ask its issuer for another token: `quorate token mint`";
    /// Money is limited, and the request names no price.
    PriceRequired, "price_required", Client, Never, "money is limited for the client, its team or its token, and the request names no price", "name a price row that fits the route; admins list them in the policy's [[price]] table";
    /// No such price row, or not for this route.
    PriceNotForRoute, "price_not_for_route", Client, Never, "the price named is not in the policy's table, or not for this route", "name a price row that lists the route";
    /// The token is not its issuer's.
    BadToken, "bad_token", Client, Never, "the token is not signed by its issuer's key, or not the one the command is signed for", "ask its issuer for another token";
    /// No token of that digest was shown.
    UnknownToken, "unknown_token", Client, Now, "no token of that digest is known", "open a pool with the token first";
    /// The issuer may not issue.
    MayNotIssue, "may_not_issue", Client, Never, "the token's issuer may not issue tokens", "an admin allows it: `quorate admin client add --token-lifetime`";
    /// A route that the issuer itself may not use.
    TokenTooWide, "token_too_wide", Client, Never, "the token names a route that its issuer may not use", "mint one with fewer routes";
    /// The token lives longer than its issuer may issue.
    TokenTooLong, "token_too_long", Client, Never, "the token lives longer than its issuer may issue", "mint one that expires sooner";
    /// Its time has not come.
    TokenNotYetValid, "token_not_yet_valid", Client, Later, "the token is not valid yet", "wait, or check the issuer's clock";
    /// Its time is over.
    TokenExpired, "token_expired", Client, Never, "the token has expired", "ask its issuer for another token";
    /// Its issuer took it back.
    TokenRevoked, "token_revoked", Client, Never, "the token's issuer has revoked it", "ask its issuer for another token";
    /// As many tokens as may be are alive.
    TooManyTokens, "too_many_tokens", Client, Later, "as many tokens of this issuer as may be are alive", "wait for some to expire";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_snake_case() {
        let codes: BTreeSet<_> = Refusal::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.len(), Refusal::ALL.len());
        assert!(codes.iter().all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
