//! What was found, for people and for machines.
use super::trace::{Affected, Certainty, Exposure, Radius, Role};
use super::{BlastRadiusArgs, Target};
use crate::cli::Failure;
use crate::manifest::{Release, Voucher};
use crate::store::{Mirror, Tree};
use crate::words;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use quorate_core::tlog::{LeafIndex, ProveError, TILE_WIDTH, TreeSize, prove_inclusion};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Requests listed in text; JSON has them all.
const LISTED_MAX: usize = 40;

/// Sums over what was found.
struct Sums {
    shown: u64,
    possible: u64,
    clients: BTreeMap<String, u64>,
    routes: BTreeMap<String, u64>,
    leaves: Option<(LeafIndex, LeafIndex)>,
}

/// Who served; certifiers only where asked for.
fn counted<'a>(
    args: &'a BlastRadiusArgs,
    found: &'a Radius,
) -> impl Iterator<Item = (LeafIndex, &'a Affected)> {
    let served = |a: &Affected| a.by.keys().any(|(_, role)| *role != Role::Certifier);
    found.affected.iter().filter(move |(_, a)| args.certified || served(a)).map(|(at, a)| (*at, a))
}

fn sums(args: &BlastRadiusArgs, found: &Radius) -> Sums {
    let mut sums =
        Sums { shown: 0, possible: 0, clients: BTreeMap::new(), routes: BTreeMap::new(), leaves: None };
    for (at, affected) in counted(args, found) {
        match affected.certainty() {
            Certainty::Shown => sums.shown += 1,
            Certainty::Possible => sums.possible += 1,
        }
        *sums.clients.entry(affected.served.client.to_string()).or_default() += 1;
        *sums.routes.entry(affected.served.route.to_string()).or_default() += 1;
        sums.leaves = Some((sums.leaves.map_or(at, |(first, _)| first), at));
    }
    sums
}

/// For people.
pub(super) fn text(args: &BlastRadiusArgs, target: &Target, releases: &[Release], found: &Radius) -> String {
    let mut t = String::new();
    // Writing to a String does not fail.
    let _never = write_text(&mut t, args, target, releases, found);
    t
}

fn write_text(
    t: &mut String,
    args: &BlastRadiusArgs,
    target: &Target,
    releases: &[Release],
    found: &Radius,
) -> std::fmt::Result {
    for release in releases {
        let by = match release.voucher() {
            Voucher::Policy => "named by policy".to_owned(),
            Voucher::Signer(name) => format!("signed by {}", name.escape_debug()),
        };
        writeln!(
            t,
            "release       {} ({by}), manifest {}",
            release.signed().name(),
            release.signed().digest()
        )?;
    }
    for (digest, what) in target.digests() {
        writeln!(t, "binary        {digest} ({what})")?;
    }
    let evidence = words::count(found.evidence);
    writeln!(t, "searched      {} leaves, {evidence} pieces of evidence\n", words::count(found.size.0))?;
    if found.exposures.is_empty() {
        writeln!(t, "No evidence in this log shows it.")?;
        return Ok(());
    }
    for exposure in &found.exposures {
        write_exposure(t, exposure)?;
    }
    let sums = sums(args, found);
    let total = sums.shown + sums.possible;
    write!(t, "requests      {}", words::count(total))?;
    if let Some((first, last)) = sums.leaves {
        write!(
            t,
            " ({} shown, {} possible), leaves {first} to {last}",
            words::count(sums.shown),
            words::count(sums.possible)
        )?;
    }
    writeln!(t)?;
    for (name, counts) in [("clients", &sums.clients), ("routes", &sums.routes)] {
        let list: Vec<String> =
            counts.iter().map(|(name, n)| format!("{name} ({})", words::count(*n))).collect();
        if !list.is_empty() {
            writeln!(t, "{name:<14}{}", list.join(", "))?;
        }
    }
    if total > 0 {
        writeln!(t)?;
    }
    for (at, affected) in counted(args, found).take(LISTED_MAX) {
        let served = &affected.served;
        let roles: Vec<String> = affected
            .by
            .iter()
            .filter(|((_, role), _)| args.certified || *role != Role::Certifier)
            .map(|((node, role), certainty)| {
                let perhaps = if *certainty == Certainty::Possible { " (possible)" } else { "" };
                format!("{node} as {}{perhaps}", role.word())
            })
            .collect();
        writeln!(
            t,
            "  leaf {at}  {}  {}  {} over {}: {}",
            words::date(served.time),
            served.request,
            served.client,
            served.route,
            roles.join(", ")
        )?;
    }
    if total > LISTED_MAX as u64 {
        writeln!(t, "  and {} more: --json lists all, with proofs", words::count(total - LISTED_MAX as u64))?;
    }
    Ok(())
}

fn write_exposure(t: &mut String, e: &Exposure) -> std::fmt::Result {
    let perhaps = if e.certain { "" } else { " (perhaps)" };
    writeln!(t, "{:<14}evidence at leaf {} to {}{perhaps}", e.node.to_string(), e.first, e.last)?;
    writeln!(t, "  from        {}", words::date(e.first_time))?;
    writeln!(t, "  until       {}", words::date(e.last_time))?;
    match e.before {
        Some(before) => writeln!(t, "  not yet at  leaf {before}")?,
        None => writeln!(t, "  not yet at  none: its first evidence shows it")?,
    }
    match e.until {
        Some(until) => writeln!(t, "  gone at     leaf {until}")?,
        None => writeln!(t, "  gone at     none: the log ends before")?,
    }
    if e.refused {
        writeln!(t, "  refused     the mesh did not accept that evidence: the node served nothing after it")?;
    }
    for reason in &e.reasons {
        writeln!(t, "  shown by    {reason}")?;
    }
    writeln!(
        t,
        "  certified   {} request(s) may rest on its cosignature; it stands under {} checkpoint(s) of this copy\n",
        words::count(e.certified),
        words::count(e.cosigned)
    )
}

/// For machines: one object after the other. Every leaf that is named comes with its bytes and an inclusion proof to one
/// checkpoint.
pub(super) fn json(
    mirror: &Mirror,
    args: &BlastRadiusArgs,
    target: &Target,
    releases: &[Release],
    found: &Radius,
    mut emit: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let newest = mirror.newest()?;
    let mut prover = Prover { mirror, tree: mirror.tree(newest.size()), size: newest.size(), bundle: None };
    let releases: Vec<Value> = releases
        .iter()
        .map(
            |r| json!({ "name": r.signed().name(), "manifest": r.signed().digest(), "voucher": r.voucher() }),
        )
        .collect();
    let digests: BTreeMap<String, &String> =
        target.digests().iter().map(|(digest, what)| (digest.to_string(), what)).collect();
    emit(&json!({
        "kind": "target", "genesis": args.genesis.genesis, "digests": digests, "releases": releases,
        "checkpoint": newest.note.to_string(), "size": newest.size(), "evidence": found.evidence,
    }))?;
    for exposure in &found.exposures {
        let mut named = vec![exposure.first, exposure.last];
        named.extend(exposure.before.into_iter().chain(exposure.until));
        named.sort_unstable();
        named.dedup();
        let leaves = named.into_iter().map(|at| prover.prove(at)).collect::<Result<Vec<_>, Failure>>()?;
        emit(&json!({ "kind": "exposure", "exposure": exposure, "leaves": leaves }))?;
    }
    for (at, affected) in counted(args, found) {
        let served = &affected.served;
        let by: Vec<Value> = affected
            .by
            .iter()
            .map(|((node, role), certainty)| json!({ "node": node, "as": role, "certainty": certainty }))
            .collect();
        emit(&json!({
            "kind": "request", "request": served.request.to_string(), "time": served.time, "client": served.client,
            "route": served.route, "relay": served.relay, "keyer": served.keyer,
            "certainty": affected.certainty(), "by": by, "leaf": prover.prove(at)?,
        }))?;
    }
    let sums = sums(args, found);
    emit(&json!({
        "kind": "sum", "exposures": found.exposures.len(), "shown": sums.shown, "possible": sums.possible,
        "clients": sums.clients, "routes": sums.routes,
        "first_leaf": sums.leaves.map(|(first, _)| first), "last_leaf": sums.leaves.map(|(_, last)| last),
    }))
}

/// Makes proofs; leaves that stand together are read once.
struct Prover<'m> {
    mirror: &'m Mirror,
    tree: Tree<'m>,
    size: TreeSize,
    bundle: Option<(u64, Vec<Bytes>)>,
}

impl Prover<'_> {
    /// A leaf with everything that it takes to find it under the checkpoint.
    fn prove(&mut self, at: LeafIndex) -> Result<Value, Failure> {
        let inclusion = prove_inclusion(&self.tree, at, self.size).map_err(|e| match e {
            ProveError::Reader(error) => Failure::from(error),
            ProveError::Unprovable(error) => Failure::new(error.to_string(), ""),
        })?;
        let number = at.0 / TILE_WIDTH;
        if self.bundle.as_ref().is_none_or(|(held, _)| *held != number) {
            let leaves = self.mirror.checked_bundle(number, self.size)?.map(|b| b.leaves);
            self.bundle = Some((number, leaves.unwrap_or_default()));
        }
        let place = usize::try_from(at.0 % TILE_WIDTH).unwrap_or(usize::MAX);
        let leaf = self.bundle.as_ref().and_then(|(_, leaves)| leaves.get(place));
        let leaf = leaf.ok_or_else(|| Failure::new(format!("leaf {at} is not in the tree"), ""))?;
        Ok(json!({ "index": at, "bytes": BASE64.encode(leaf), "inclusion": inclusion }))
    }
}
