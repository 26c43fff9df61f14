//! `quorate admin approver` and `approve`: which software may open a node's shares.
//!
//! A node's share key is sealed to its TPM, which opens it only for a state of the machine that the approver's key signed. The
//! states are the policy's own reference values: for each member one approval per combination of the values that its PCRs may
//! have. The approver's key is P-256, because TPMs verify that; it stays with the admins, and the policy names its public half.
use super::admin::{DraftArg, edit, load, save};
use super::output::{Failure, Outcome, line, note};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_attest::approval::{
    Approval, ApprovalError, ApprovedPcrs, Approver, ApproverKey, CounterIndex, PKCS8_BYTES_MAX, PolicyRef,
};
use quorate_core::policy::{APPROVALS_MAX, MemberDocument, PolicyDocument};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// PCR of the IMA list, whose value changes with each program that runs.
const IMA_PCR: u8 = 10;
/// Longest PEM file of an approver's key.
const KEY_FILE_BYTES_MAX: u64 = 2 * PKCS8_BYTES_MAX as u64;

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  quorate admin approver --policy policy.toml --key approver.key\n\nThe file is as good as the right to say which software may open shares: keep it where the admins' keys are.\nChanging the approver later means enrolling every member again and splitting every key again."
)]
pub(crate) struct ApproverArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// The approver's private key (P-256, PKCS#8 PEM, mode 0600); made when the file does not exist
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Take the place of another approver
    #[arg(long)]
    replace: bool,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  quorate admin approve --policy next.toml --key approver.key             every member\n  quorate admin approve --policy next.toml --key approver.key n2          one of them\n  quorate admin approve --policy next.toml --key approver.key --withdraw  the old software no more\n\nAn upgrade: `reference-values set --add` with the new values, `approve`, submit; upgrade the nodes; `reference-values set` without the old values, `approve --withdraw`, submit.\n\nA member's share_counter is the highest counter that its approvals ever held up to: leave it in the draft, even when you take out the approvals."
)]
pub(crate) struct ApproveArgs {
    #[command(flatten)]
    draft: DraftArg,
    /// The approver's private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Withdraw what was approved before: new approvals hold up to a higher counter, and the nodes raise theirs to it
    #[arg(long)]
    withdraw: bool,
    /// Names or numbers of members [default: all that have a share key]
    members: Vec<String>,
}

pub(crate) fn approver(args: &ApproverArgs) -> Outcome {
    let mut draft = load(&args.draft.policy)?;
    let key = if args.key.exists() { load_key(&args.key)? } else { make_key(&args.key)? };
    let point = BASE64.encode(key.approver().map_err(failed)?.sec1());
    if let Some(other) = draft.share_approver.as_ref().filter(|other| **other != point) {
        if !args.replace {
            return Err(Failure::new(
                format!("the draft names another approver ({}…)", other.chars().take(16).collect::<String>()),
                "with --replace every member must be enrolled again and every provider key split again",
            ));
        }
        draft.member.iter_mut().for_each(|m| m.approvals.clear());
        note("another approver: enrol every member again, approve, and split every provider key again");
    }
    draft.share_approver = Some(point.clone());
    save(&args.draft.policy, &draft)?;
    note(&format!(
        "{} approves what may open shares; next: `quorate admin enrol` for each node",
        args.key.display()
    ));
    line(&point)
}

pub(crate) fn approve(args: &ApproveArgs) -> Outcome {
    let key = load_key(&args.key)?;
    let own = BASE64.encode(key.approver().map_err(failed)?.sec1());
    edit(&args.draft, |d| {
        if d.share_approver.as_ref() != Some(&own) {
            return Err(Failure::new(
                format!("{} is not the approver's key of the draft", args.key.display()),
                "name the right file, or set the approver: `quorate admin approver`",
            ));
        }
        let chosen = chosen(d, &args.members)?;
        for at in chosen {
            let approved = approve_one(d, at, &key, args.withdraw)?;
            let Some(member) = d.member.get_mut(at) else { continue };
            (member.share_counter, member.approvals) = (Some(approved.limit), approved.approvals);
            line(&format!(
                "{}: {} state(s) approved, up to counter {}",
                member.name,
                member.approvals.len(),
                approved.limit
            ))?;
        }
        Ok(())
    })?;
    note("next: sign and submit the draft; nodes take approvals from the policy in force");
    Ok(())
}

fn failed(error: ApprovalError) -> Failure {
    Failure::new(format!("the approver's key: {error}"), "make one with `quorate admin approver`")
}

/// Positions of the members named; all that can hold shares when none is.
fn chosen(draft: &PolicyDocument, names: &[String]) -> Outcome<Vec<usize>> {
    let holds = |m: &MemberDocument| m.share_key.is_some();
    if names.is_empty() {
        let all: Vec<usize> = (0..).zip(&draft.member).filter(|(_, m)| holds(m)).map(|(at, _)| at).collect();
        if all.is_empty() {
            return Err(Failure::new(
                "no member of the draft has a share key",
                "enrol them again, now that there is an approver: `quorate admin enrol`",
            ));
        }
        return Ok(all);
    }
    let find = |name: &String| {
        let named = |m: &MemberDocument| m.name == *name || m.id.to_string() == *name;
        match draft.member.iter().position(named) {
            Some(at) if draft.member.get(at).is_some_and(holds) => Ok(at),
            Some(_) => {
                Err(Failure::new(format!("{name} has no share key"), "enrol it again: `quorate admin enrol`"))
            }
            None => {
                Err(Failure::new(format!("the draft has no member {name}"), "see its [[member]] stanzas"))
            }
        }
    };
    names.iter().map(find).collect()
}

struct Approved {
    limit: u64,
    approvals: Vec<String>,
}

/// A member's approvals for the reference values as they are. What stands there and is still right stays, byte for byte.
fn approve_one(draft: &PolicyDocument, at: usize, key: &ApproverKey, withdraw: bool) -> Outcome<Approved> {
    let Some(member) = draft.member.get(at) else { return Err(Failure::new("no such member", "")) };
    let approver = key.approver().map_err(failed)?;
    let policy_ref = PolicyRef::for_node(&draft.cluster, member.id);
    let old: Vec<(Approval, &String)> = member
        .approvals
        .iter()
        .filter_map(|text| Some((Approval::from_bytes(&BASE64.decode(text).ok()?).ok()?, text)))
        .collect();
    let counter = member.share_counter.ok_or_else(|| {
        Failure::new(format!("{} has no share_counter", member.name), "enrol it again: `quorate admin enrol`")
    })?;
    let highest = old.iter().map(|(a, _)| a.limit()).fold(counter, u64::max);
    // A node whose approvals were all taken out has raised its counter by one above them; whether there were any, the draft does
    // not tell.
    let limit = if withdraw || old.is_empty() { highest.saturating_add(1) } else { highest };
    let approvals = states(draft, member)?
        .into_iter()
        .map(|pcrs| {
            let same = |(a, _): &&(Approval, &String)| {
                *a.pcrs() == pcrs
                    && a.limit() == limit
                    && a.counter() == CounterIndex::DEFAULT
                    && a.verify(&approver, &policy_ref).is_ok()
            };
            match old.iter().find(same) {
                Some((_, text)) => Ok((*text).clone()),
                None => Approval::sign(key, &policy_ref, pcrs, CounterIndex::DEFAULT, limit)
                    .map(|a| BASE64.encode(a.to_bytes()))
                    .map_err(failed),
            }
        })
        .collect::<Outcome<_>>()?;
    Ok(Approved { limit, approvals })
}

/// Every combination of the values that a member's quoted PCRs may have.
fn states(draft: &PolicyDocument, member: &MemberDocument) -> Outcome<Vec<ApprovedPcrs>> {
    let set = &member.reference_values;
    let values = draft.reference_values.get(set).ok_or_else(|| {
        Failure::new(
            format!("the draft has no reference values {set:?}, which {} names", member.name),
            "set them: `quorate admin reference-values set`",
        )
    })?;
    let mut states: Vec<Vec<(u8, [u8; 32])>> = vec![vec![]];
    for pcr in &draft.attestation.pcrs {
        if *pcr == IMA_PCR && values.ima.is_some() {
            // What ran since the start is appraised from the list, quote by quote; no TPM could.
            continue;
        }
        let good = values.pcrs.get(pcr).filter(|good| !good.is_empty()).ok_or_else(|| {
            Failure::new(
                format!("the reference values {set:?} have none for PCR {pcr}"),
                "set them: `quorate admin reference-values set`",
            )
        })?;
        if states.len() * good.len() > APPROVALS_MAX {
            return Err(Failure::new(
                format!("the reference values {set:?} allow more than {APPROVALS_MAX} combinations"),
                "take out values that no machine has any more: `quorate admin reference-values set` without --add",
            ));
        }
        states = states
            .iter()
            .flat_map(|state| good.iter().map(move |value| [state.as_slice(), &[(*pcr, *value)]].concat()))
            .collect();
    }
    let checked = states.iter().map(|state| ApprovedPcrs::new(state));
    checked
        .collect::<Result<_, _>>()
        .map_err(|e| Failure::new(e.to_string(), "set attestation.pcrs in the draft"))
}

fn make_key(path: &Path) -> Outcome<ApproverKey> {
    let der = ApproverKey::generate_pkcs8().map_err(failed)?;
    let body = Zeroizing::new(BASE64.encode(der.as_slice()));
    let mut pem = Zeroizing::new(String::with_capacity(body.len() + 128));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    for piece in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(piece).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    let failed_at = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()), "check the folder");
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed_at)?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed_at)?;
    note(&format!("wrote {}", path.display()));
    load_key(path)
}

fn load_key(path: &Path) -> Outcome<ApproverKey> {
    let failed_at = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", path.display()), "make one with `quorate admin approver`")
    };
    let file = std::fs::File::open(path).map_err(failed_at)?;
    let mode = file.metadata().map_err(failed_at)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::new(
            format!("{}: others may read it (mode {:o})", path.display(), mode & 0o777),
            format!("chmod 600 {}", path.display()),
        ));
    }
    let mut pem = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut pem).map_err(failed_at)?;
    let form = || failed(ApprovalError::PrivateKey);
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| form())?;
    let key = ApproverKey::from_pkcs8(der.secret_pkcs8_der());
    der.zeroize();
    key.map_err(failed)
}

/// The approver of a draft, if it has one.
pub(crate) fn approver_of(draft: &PolicyDocument) -> Outcome<Option<Approver>> {
    let Some(text) = &draft.share_approver else { return Ok(None) };
    let point = BASE64.decode(text).map_err(|_| failed(ApprovalError::ApproverKey))?;
    Approver::from_sec1(&point).map(Some).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::testing::Fleet;

    struct Bench {
        dir: tempfile::TempDir,
        draft: DraftArg,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let draft = DraftArg { policy: dir.path().join("policy.toml") };
            save(&draft.policy, &Fleet::new(4, 1, |_| ()).document).unwrap();
            Self { dir, draft }
        }
        fn key(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }
        fn approver(&self, key: &str, replace: bool) -> Outcome {
            approver(&ApproverArgs { draft: self.draft.clone(), key: self.key(key), replace })
        }
        fn approve(&self, members: &[&str], withdraw: bool) -> Outcome {
            let members = members.iter().map(|m| (*m).to_owned()).collect();
            approve(&ApproveArgs { draft: self.draft.clone(), key: self.key("a.key"), withdraw, members })
        }
        fn document(&self) -> PolicyDocument {
            load(&self.draft.policy).unwrap()
        }
        fn approvals(&self, at: usize) -> Vec<Approval> {
            let bytes = |text: &String| BASE64.decode(text).unwrap();
            let texts = &self.document().member[at].approvals;
            texts.iter().map(|t| Approval::from_bytes(&bytes(t)).unwrap()).collect()
        }
    }

    #[test]
    fn an_approver_is_made_once_and_kept_to_its_owner() {
        let bench = Bench::new();
        bench.approver("a.key", false).unwrap();
        let point = bench.document().share_approver.unwrap();
        let key = load_key(&bench.key("a.key")).ok().unwrap();
        assert_eq!(BASE64.encode(key.approver().unwrap().sec1()), point);
        assert_eq!(approver_of(&bench.document()).unwrap(), Some(key.approver().unwrap()));
        bench.approver("a.key", false).unwrap();
        assert_eq!(bench.document().share_approver.unwrap(), point, "the file that is there is used");
        let other = bench.approver("b.key", false).unwrap_err();
        assert!(other.message.contains("another approver"), "{other:?}");
        bench.approver("b.key", true).unwrap();
        assert_ne!(bench.document().share_approver.unwrap(), point);
        let mode = std::fs::metadata(bench.key("a.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(bench.key("a.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_key(&bench.key("a.key")).err().unwrap().message.contains("others may read"));
    }

    #[test]
    fn every_combination_is_approved_for_its_own_node() {
        let bench = Bench::new();
        bench.approver("a.key", false).unwrap();
        edit(&bench.draft, |d| {
            let values = d.reference_values.get_mut("plain").unwrap();
            values.pcrs.get_mut(&4).unwrap().push([7; 32]);
            values.pcrs.get_mut(&7).unwrap().push([8; 32]);
            Ok(())
        })
        .unwrap();
        bench.approve(&[], false).unwrap();
        let document = bench.document();
        let key = load_key(&bench.key("a.key")).ok().unwrap().approver().unwrap();
        for (at, member) in document.member.iter().enumerate() {
            let approvals = bench.approvals(at);
            assert_eq!(approvals.len(), 4);
            for approval in &approvals {
                let reference = |node| PolicyRef::for_node(&document.cluster, node);
                approval.verify(&key, &reference(member.id)).unwrap();
                assert!(approval.verify(&key, &reference(member.id % 4 + 1)).is_err());
                assert_eq!((approval.limit(), approval.counter()), (2, CounterIndex::DEFAULT));
                assert!(approval.pcrs().indices().eq(document.attestation.pcrs.iter().copied()));
            }
        }
        quorate_core::policy::Policy::parse(&std::fs::read(&bench.draft.policy).unwrap()).unwrap();
    }

    #[test]
    fn approving_again_changes_nothing_and_withdrawing_everything() {
        let bench = Bench::new();
        bench.approver("a.key", false).unwrap();
        bench.approve(&[], false).unwrap();
        let first = bench.document().member[0].approvals.clone();
        bench.approve(&["1"], false).unwrap();
        assert_eq!(bench.document().member[0].approvals, first);
        bench.approve(&["1"], true).unwrap();
        assert_ne!(bench.document().member[0].approvals, first);
        assert_eq!(bench.approvals(0)[0].limit(), 3);
        assert_eq!(bench.approvals(1)[0].limit(), 2, "the others are left alone");
        bench.approve(&["1"], false).unwrap();
        assert_eq!(bench.approvals(0)[0].limit(), 3, "a counter never goes back");
    }

    #[test]
    fn who_had_all_approvals_taken_out_is_approved_above_them() {
        let bench = Bench::new();
        bench.approver("a.key", false).unwrap();
        bench.approve(&[], false).unwrap();
        for withdraw in [false, true] {
            let dropped = bench.approvals(0)[0].limit();
            edit(&bench.draft, |d| {
                d.member[0].approvals.clear();
                Ok(())
            })
            .unwrap();
            bench.approve(&["1"], withdraw).unwrap();
            // As far as the node raises its counter, when it sees none.
            assert_eq!(bench.approvals(0)[0].limit(), dropped + 1);
        }
    }

    #[test]
    fn what_cannot_be_approved_is_named() {
        let bench = Bench::new();
        bench.approver("a.key", false).unwrap();
        let said = |members: &[&str]| bench.approve(members, false).unwrap_err().message;
        assert!(said(&["nobody"]).contains("no member nobody"));
        let change = |f: &dyn Fn(&mut PolicyDocument)| {
            edit(&bench.draft, |d| {
                f(d);
                Ok(())
            })
            .unwrap();
        };
        change(&|d| {
            d.reference_values
                .get_mut("plain")
                .unwrap()
                .pcrs
                .insert(4, vec![[1; 32]; 33])
                .map(drop)
                .unwrap_or(())
        });
        assert!(said(&[]).contains("more than 32"));
        change(&|d| drop(d.reference_values.get_mut("plain").unwrap().pcrs.remove(&4)));
        assert!(said(&[]).contains("none for PCR 4"));
        change(&|d| d.member[0].share_key = None);
        assert!(said(&["1"]).contains("has no share key"));
        change(&|d| d.share_approver = None);
        assert!(said(&[]).contains("not the approver's key"));
    }
}
