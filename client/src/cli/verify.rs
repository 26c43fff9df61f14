//! `quorate verify`: what a receipt proves, offline, from the genesis digest alone.
use super::output::{Failure, Outcome, read, text_out};
use crate::TrustFile;
use crate::error::chain;
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::command::{ClientCommand, ClientSigned, Command, Ended, NodeCommand, NodeSigned};
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::proof::{PROOF_BYTES_MAX, Receipt, Verified};
use std::fmt::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("root").required(true).multiple(true).args(["trust", "genesis"]))]
pub(crate) struct VerifyArgs {
    /// Trust file that names the genesis digest
    #[arg(long, env = "QUORATE_TRUST", value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The genesis digest itself, 64 hex digits; comes before a trust file
    #[arg(long, value_name = "HEX")]
    genesis: Option<String>,
    /// The receipt
    receipt: PathBuf,
}

pub(crate) fn verify(args: VerifyArgs) -> Outcome {
    let genesis: Hash = match (&args.genesis, &args.trust) {
        (Some(hex), _) => hex.parse().map_err(|_| {
            Failure::new("--genesis is 64 hex digits", "ask an admin for the cluster's genesis digest")
        })?,
        (None, Some(trust)) => TrustFile::load(trust)?.genesis,
        (None, None) => return Err(Failure::new("no genesis digest", "give --trust FILE or --genesis HEX")),
    };
    let bytes = read(&args.receipt, 2 * PROOF_BYTES_MAX as u64)?;
    let invalid = |reason: String| {
        Failure::new(
            format!("{} proves nothing: {reason}", args.receipt.display()),
            "compare it with the original; if it is the original, tell whoever runs the mesh",
        )
    };
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not text".into()))?;
    let receipt = Receipt::from_text(&text).map_err(|e| invalid(chain(&e)))?;
    let (verified, authorisation) = receipt.verify(genesis).map_err(|e| invalid(chain(&e)))?;
    text_out(&describe(&verified, &authorisation))
}

/// RFC 3339, UTC.
pub(crate) fn date(time: Timestamp) -> String {
    let (days, ms) = (time.0 / 86_400_000, time.0 % 86_400_000);
    // Civil date of a day count, years from March (the inverse of the policy's reader).
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

fn describe(verified: &Verified, authorisation: &CertifiedAuthorisation) -> String {
    let policy = &verified.policy;
    let name = |n: NodeId| match policy.members.get(&n) {
        Some(m) => format!("{} ({n}, custodian {})", m.name, m.custodian),
        None => n.to_string(),
    };
    let request = authorisation.request();
    let mut text = String::new();
    let mut say = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<14}{value}");
    };
    say("proven", "the request below was authorised before it was forwarded".into());
    say("cluster", format!("{} (genesis {})", policy.cluster, verified.cluster));
    say("request", request.request.to_string());
    let custodian =
        policy.clients.get(authorisation.client()).map(|g| format!(" (custodian {})", g.custodian));
    say("asked by", format!("{}{}", authorisation.client(), custodian.unwrap_or_default()));
    if let Some(token) = authorisation.token() {
        say("with token", format!("{token}, whose holder signed it; its issuer answers for it"));
    }
    if let Some(price) = &request.price {
        say("paid by", price.to_string());
    }
    say("authorised", date(authorisation.time()));
    let route =
        policy.routes.get(&request.route).map(|r| format!(" -> {}:{}", r.document.host, r.document.port));
    say("route", format!("{}{}", request.route, route.unwrap_or_default()));
    say("relay", name(request.relay));
    say("keyer", name(request.keyer));
    say("head digest", request.head_digest.to_string());
    say("body digest", format!("{} (salted)", request.body_digest));
    say("leaf", format!("{} of {}", authorisation.index().0, authorisation.under().size.0));
    let root = authorisation.under().root;
    say("checkpoint", format!("size {}, root {root}, {}", authorisation.under().size.0, date(verified.time)));
    let signers = verified.certified.cosignatures();
    say(
        "certified by",
        format!("{} of {} members, {} needed", signers.len(), policy.members.len(), policy.quorum()),
    );
    for (node, _) in signers {
        let tpm = verified.nodes.get(node).map(|v| {
            let kind =
                if v.software_tpm { "software TPM (proves nothing about a machine)" } else { "hardware TPM" };
            format!("{kind}, quote {} ms old", verified.time.since_ms(v.evidence_at))
        });
        say("", format!("{}: {}", name(*node), tpm.unwrap_or_default()));
    }
    for leaf in verified.leaves.iter().skip(1) {
        let Leaf::V1 { body, .. } = leaf.leaf();
        match body {
            LeafBody::Decided {
                command: Command::Node(NodeSigned { node, body: NodeCommand::Settle(list), .. }),
                ..
            } => {
                for s in list.iter().filter(|s| s.request == request.request) {
                    say(
                        "settled",
                        format!(
                            "{} by {}: {} bytes up, {} down (rounded up), first byte {} ms, total {} ms",
                            ended(s.ended),
                            name(*node),
                            s.bytes_up,
                            s.bytes_down,
                            s.first_byte_ms,
                            s.total_ms
                        ),
                    );
                }
            }
            LeafBody::Decided {
                command: Command::Client(ClientSigned { body: ClientCommand::Report(list), .. }),
                ..
            } => {
                for r in list.iter().filter(|r| r.request == request.request) {
                    say(
                        "reported",
                        format!(
                            "{} by the client: HTTP {}, {} tokens in, {} out (its word)",
                            ended(r.ended),
                            r.status,
                            r.tokens_in,
                            r.tokens_out
                        ),
                    );
                }
            }
            LeafBody::Unsettled { relay, client, .. } => {
                say("anomaly", format!("never settled (relay missing: {relay}, client missing: {client})"));
            }
            LeafBody::Anomaly { rule, .. } => say("anomaly", format!("{rule:?}")),
            _ => say("leaf", format!("{}: another decision about this request", leaf.index().0)),
        }
    }
    text
}

fn ended(ended: Ended) -> &'static str {
    match ended {
        Ended::Complete => "complete",
        Ended::Cancelled => "cancelled",
        Ended::Unreachable => "provider unreachable",
        Ended::Truncated => "truncated",
        Ended::CeilingReached => "ceiling reached",
        Ended::HeadRefused => "head refused",
        Ended::MeshFailure => "mesh failure",
        Ended::TimedOut => "timed out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::testing::Mesh;

    #[test]
    fn a_receipt_is_described_and_any_changed_byte_is_refused() {
        let mut mesh = Mesh::four();
        let pool = mesh.open_pool();
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
        let text = mesh.receipt(request).to_text();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.txt");
        let run = |text: &[u8], genesis: Hash| {
            std::fs::write(&file, text).unwrap();
            verify(VerifyArgs { trust: None, genesis: Some(genesis.to_string()), receipt: file.clone() })
        };
        let genesis = mesh.fleet.cluster();
        run(text.as_bytes(), genesis).unwrap();
        assert!(run(text.as_bytes(), Hash([7; 32])).unwrap_err().message.contains("another genesis"));
        // One byte at a time, spread over the file.
        for at in (0..text.len()).step_by(text.len() / 40) {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(run(&changed, genesis).is_err(), "byte {at}");
        }

        let (verified, authorisation) = Receipt::from_text(&text).unwrap().verify(genesis).unwrap();
        let said = describe(&verified, &authorisation);
        for part in [
            "asked by",
            "route",
            "relay",
            "keyer",
            "certified by",
            "software TPM",
            "settled",
            "reported",
            "HTTP 200",
        ] {
            assert!(said.contains(part), "{part} in\n{said}");
        }
    }

    #[test]
    fn dates() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_297_200_123, "2026-11-21T21:40:00.123Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(date(Timestamp(ms)), expected);
        }
    }
}
