//! Qualifying data: what a quote is bound to besides the PCRs. Bind, do not merely accompany: every value that the quote
//! is to vouch for is hashed here, under a label that tells the uses apart.
//!
//! SHA-256 over the label and each part, each preceded by its length as 64-bit big-endian, so that no two different
//! lists give the same bytes. Decides nothing; that the log root is recent or the challenge fresh is for the caller.
use aws_lc_rs::digest;

use crate::evidence::BootKeys;

/// Label of a quote that stands in the log.
const LOG: &str = "quorate evidence v1";
/// Label of a quote in a `recover` entry.
const RECOVERY: &str = "quorate recovery v1";
/// Label of a quote that proves a peer in its own channel.
const CHANNEL: &str = "quorate channel v1";
/// Label of a quote that proves, at enrolment, where a node's share key comes from.
const SHARE_KEY: &str = "quorate share key v1";

/// Hashes `label` and `parts`, each with its length before it.
pub fn qualifying_data(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in std::iter::once(label.as_bytes()).chain(parts.iter().copied()) {
        // usize is at most 64 bits wide wherever this builds
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// For evidence in the log: the node's boot keys and the root of a recent certified checkpoint.
pub fn for_log(cluster: &[u8; 32], node: u64, boot: &BootKeys, root: &[u8; 32]) -> [u8; 32] {
    qualifying_data(LOG, &[cluster, &node.to_be_bytes(), &boot.tls, &boot.cosign, root])
}

/// For dark start: the same, and the digest of every node's contribution to the `recover` entry.
pub fn for_recovery(
    cluster: &[u8; 32],
    node: u64,
    boot: &BootKeys,
    root: &[u8; 32],
    contributions_digest: &[u8; 32],
) -> [u8; 32] {
    let node = node.to_be_bytes();
    qualifying_data(RECOVERY, &[cluster, &node, &boot.tls, &boot.cosign, root, contributions_digest])
}

/// For a peer not yet attested in the log: a fresh challenge of the other side, the TLS exporter and both identities.
/// `from` is the node whose quote it is, `to` the one that challenged it.
pub fn for_channel(
    cluster: &[u8; 32],
    challenge: &[u8; 32],
    exporter: &[u8; 32],
    from: u64,
    to: u64,
    boot: &BootKeys,
) -> [u8; 32] {
    let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
    qualifying_data(CHANNEL, &[cluster, challenge, exporter, &from, &to, &boot.tls, &boot.cosign])
}

/// For enrolment: the public key to which the node's shares will be sealed.
pub fn for_share_key(node: u64, share_key: &[u8]) -> [u8; 32] {
    qualifying_data(SHARE_KEY, &[&node.to_be_bytes(), share_key])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootKeys = BootKeys { tls: [1; 32], cosign: [2; 32] };

    #[test]
    fn golden_value_of_version_1() {
        // sha256(len || "quorate evidence v1" || len || cluster ...), computed with another program
        let got = for_log(&[3; 32], 7, &BOOT, &[4; 32]);
        assert_eq!(hex::encode(got), GOLDEN_LOG);
    }
    const GOLDEN_LOG: &str = "90d1054fe66ec5f38028f84a5ba819177140dc9b530b8ea3a0db1f25b6925d73";

    #[test]
    fn every_part_counts_and_boundaries_cannot_move() {
        let base = qualifying_data("l", &[b"ab", b"c"]);
        for other in [
            qualifying_data("l", &[b"a", b"bc"]),
            qualifying_data("l", &[b"ab", b"c", b""]),
            qualifying_data("la", &[b"b", b"c"]),
            qualifying_data("l", &[b"ab", b"d"]),
        ] {
            assert_ne!(base, other);
        }
        let (c, x, e) = ([1; 32], [2; 32], [3; 32]);
        let swapped = BootKeys { tls: BOOT.cosign, cosign: BOOT.tls };
        assert_ne!(for_channel(&c, &x, &e, 1, 2, &BOOT), for_channel(&c, &x, &e, 2, 1, &BOOT));
        assert_ne!(for_channel(&c, &x, &e, 1, 2, &BOOT), for_channel(&c, &e, &x, 1, 2, &BOOT));
        assert_ne!(for_log(&c, 1, &BOOT, &x), for_log(&c, 1, &swapped, &x));
        assert_ne!(for_log(&c, 1, &BOOT, &x), for_recovery(&c, 1, &BOOT, &x, &e));
        assert_ne!(for_share_key(1, &c), for_share_key(2, &c));
        assert_ne!(for_share_key(1, &c), for_share_key(1, &x));
    }
}
