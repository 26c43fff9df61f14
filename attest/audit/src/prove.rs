//! `prove REQUEST`: proofs of one request that others can check without this program and without the mirror.
//!
//! A **receipt** ([`quorate_core::proof`]) encloses everything down to the genesis digest; `quorate verify` reads it. A
//! **tlog-proof** (C2SP tlog-proof v1) proves to any C2SP tool that the leaf is in a tree that these keys cosigned; whose keys
//! those are only the receipt's quotes say.
//!
//! Made from the mirror's tiles without replaying. So each is verified from the genesis digest before it is given out.
use crate::cli::{Exit, Failure, GenesisArg, Outcome, chain, say, say_json};
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{Bundle, Mirror, StoredCheckpoint};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::command::{Alarm, CheckpointRef, ClientCommand, Command, NodeCommand};
use quorate_core::crypto::Hash;
use quorate_core::ids::{NodeId, RequestId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome as Decision};
use quorate_core::policy::{Policy, SignedPolicy};
use quorate_core::proof::{
    Proof, ProofError, ProvenEvidence, ProvenLeaf, Receipt, Verified, taken, verify_chain,
};
use quorate_core::tlog::{
    Cosignature, KeyKind, KeyName, LeafIndex, ProveError, TILE_WIDTH, VerifierKey, prove_consistency,
    prove_inclusion,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// First line of a C2SP tlog-proof.
const TLOG_PROOF: &str = "c2sp.org/tlog-proof@v1";

/// Writes proofs of a request into a folder: a receipt, the leaf, a C2SP tlog-proof and the vkeys of its cosigners.
#[derive(clap::Args)]
pub struct ProveArgs {
    /// A folder that `mirror` made
    dir: PathBuf,
    /// The request's id, 32 hex digits
    request: RequestId,
    #[command(flatten)]
    genesis: GenesisArg,
    /// Where to put them
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum NoProof {
    /// The mirror.
    #[error(transparent)]
    Audit(#[from] Error),
    /// Nothing of that id.
    #[error("no leaf of this mirror names request {0}")]
    NoSuchRequest(RequestId),
    /// It was refused.
    #[error("request {request} was never authorised: {why} (leaf {leaf})")]
    Refused {
        /// Which.
        request: RequestId,
        /// The outcome.
        why: String,
        /// Where that stands.
        leaf: LeafIndex,
    },
    /// What the mirror holds does not prove it.
    #[error("the mirror does not prove it")]
    Unproven(#[from] ProofError),
}

impl From<Finding> for NoProof {
    fn from(finding: Finding) -> Self {
        Self::Audit(finding.into())
    }
}

impl From<ProveError<Error>> for NoProof {
    fn from(error: ProveError<Error>) -> Self {
        match error {
            ProveError::Reader(error) => Self::Audit(error),
            // Positions beyond the tree: the log names leaves that it does not have.
            ProveError::Unprovable(_) => Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into(),
        }
    }
}

/// A mirror at its newest checkpoint, to take proofs from.
#[derive(Debug)]
pub struct Desk {
    mirror: Mirror,
    newest: StoredCheckpoint,
}

/// Where a request stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The authorisation.
    pub authorised: Option<LeafIndex>,
    /// Refusals of a command of this id.
    pub refused: Vec<(LeafIndex, String)>,
    /// What says how it ended: settlement, report, alarms, anomalies; ascending.
    pub after: Vec<LeafIndex>,
    /// Leaves that changed the policy, ascending.
    pub policies: Vec<LeafIndex>,
    /// The first evidence over a certified tree that holds the authorisation.
    pub first_certificate: Option<LeafIndex>,
}

/// What is proven of a request.
#[derive(Debug)]
pub struct Proven {
    /// Where it stands.
    pub at: Whereabouts,
    /// The self-contained proof.
    pub receipt: Receipt,
    /// What it proves.
    pub verified: Verified,
    /// The request.
    pub authorisation: CertifiedAuthorisation,
}

impl Desk {
    /// Opens a mirror.
    pub fn open(mirror: Mirror) -> Result<Self, Error> {
        let newest = mirror.newest()?;
        Ok(Self { mirror, newest })
    }

    /// The mirror.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }
    /// Its newest checkpoint, a claim.
    pub fn checkpoint(&self) -> CheckpointRef {
        CheckpointRef { size: self.newest.size(), root: self.newest.checkpoint.root }
    }

    /// A leaf and its proof to the newest checkpoint.
    pub fn proven(&self, index: LeafIndex) -> Result<ProvenLeaf, NoProof> {
        let size = self.newest.size();
        let bytes = self.mirror.leaf(index, size)?.to_vec();
        Ok(ProvenLeaf { index, bytes, inclusion: prove_inclusion(&self.mirror.tree(size), index, size)? })
    }

    /// What a leaf says.
    pub fn leaf(&self, index: LeafIndex) -> Result<Leaf, Error> {
        let bytes = self.mirror.leaf(index, self.newest.size())?;
        Ok(borsh::from_slice(&bytes).map_err(|_| Finding::at(Place::Leaf(index), Fault::Undecodable))?)
    }

    /// Looks through all leaves for a request, on several threads.
    pub fn find(&self, request: RequestId) -> Result<Whereabouts, Error> {
        let (size, next) = (self.newest.size(), AtomicU64::new(0));
        let cut = crate::prune::pruned(&self.mirror);
        let search = || -> Result<Vec<(LeafIndex, Trace)>, Error> {
            let mut found = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if cut.as_ref().is_some_and(|cut| cut.lacks_bundle(number)) {
                    continue;
                }
                let Some(Bundle { leaves, .. }) = self.mirror.checked_bundle(number, size)? else {
                    return Ok(found);
                };
                for (index, bytes) in (number.saturating_mul(TILE_WIDTH)..).map(LeafIndex).zip(leaves) {
                    let leaf: Leaf = borsh::from_slice(&bytes)
                        .map_err(|_| Finding::at(Place::Leaf(index), Fault::Undecodable))?;
                    found.extend(trace(&leaf, request).map(|trace| (index, trace)));
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let mut found = Vec::new();
        std::thread::scope(|scope| -> Result<(), Error> {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
            for thread in running {
                found.extend(thread.join().map_err(|_| Error::Worker)??);
            }
            Ok(())
        })?;
        found.sort_by_key(|(index, _)| *index);
        let mut at = Whereabouts::default();
        let mut evidence = Vec::new();
        for (index, trace) in found {
            match trace {
                Trace::Authorised => at.authorised = at.authorised.or(Some(index)),
                Trace::Refused(why) => at.refused.push((index, why)),
                Trace::After => at.after.push(index),
                Trace::Policy => at.policies.push(index),
                Trace::Evidence(nonce) => evidence.push((index, nonce)),
            }
        }
        at.first_certificate = at
            .authorised
            .and_then(|asked| evidence.iter().find(|(_, nonce)| *nonce > asked.0).map(|(index, _)| *index));
        Ok(at)
    }

    /// Every policy version up to the newest checkpoint's.
    pub fn chain(&self, policies: &[LeafIndex]) -> Result<Vec<SignedPolicy>, Error> {
        let mut chain = vec![self.mirror.genesis()?];
        for index in policies {
            let Leaf::V1 { body: LeafBody::Decided { command: Command::Policy(c), .. }, .. } =
                self.leaf(*index)?
            else {
                return Err(Finding::at(Place::Leaf(*index), Fault::Undecodable).into());
            };
            chain.push(c.with_document(self.mirror.blob(&c.document)?));
        }
        Ok(chain)
    }

    /// Proves a request, down to the genesis digest.
    pub fn prove(&self, request: RequestId, genesis: Hash) -> Result<Proven, NoProof> {
        let at = self.find(request)?;
        let Some(authorised) = at.authorised else {
            return Err(match at.refused.first() {
                Some((leaf, why)) => NoProof::Refused { request, why: why.clone(), leaf: *leaf },
                None => NoProof::NoSuchRequest(request),
            });
        };
        let leaves = std::iter::once(authorised).chain(at.after.iter().copied());
        let receipt = Receipt(self.proof(&at.policies, leaves, genesis)?);
        let (verified, authorisation) = receipt.verify(genesis)?;
        Ok(Proven { at, receipt, verified, authorisation })
    }

    /// A proof of leaves under the newest checkpoint, not yet verified.
    fn proof(
        &self,
        policies: &[LeafIndex],
        leaves: impl Iterator<Item = LeafIndex>,
        genesis: Hash,
    ) -> Result<Proof, NoProof> {
        let checkpoint = self.checkpoint();
        let size = checkpoint.size;
        let tree = self.mirror.tree(size);
        let chain = self.chain(policies)?;
        let policy = verify_chain(&chain, genesis)?;
        let last = LeafIndex(size.0.saturating_sub(1));
        let end = self.proven(last)?;
        let Ok(Leaf::V1 { body: LeafBody::BatchEnd(batch_end), .. }) = borsh::from_slice(&end.bytes) else {
            return Err(Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into());
        };
        let (mut evidence, mut blobs, mut keys) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (node, index) in &batch_end.attested {
            let leaf = self.proven(*index)?;
            let Ok(Leaf::V1 { body: LeafBody::Decided { command: Command::Evidence(c), .. }, .. }) =
                borsh::from_slice(&leaf.bytes)
            else {
                return Err(Finding::at(Place::Leaf(*index), Fault::Undecodable).into());
            };
            for digest in std::iter::once(c.evidence.event_log).chain(c.evidence.ima_log).map(Hash) {
                blobs.insert(digest, self.mirror.blob(&digest)?);
            }
            keys.insert(*node, c.boot.cosign);
            evidence.push(ProvenEvidence { leaf, nonce: prove_consistency(&tree, c.nonce.size, size)? });
        }
        let cosignatures = self.cosignatures(&policy, &keys);
        let leaves = leaves.map(|index| self.proven(index)).collect::<Result<_, _>>()?;
        Ok(Proof {
            chain,
            checkpoint,
            cosignatures,
            end,
            evidence,
            leaves,
            blobs: blobs.into_values().collect(),
        })
    }

    /// The checkpoint's cosignatures by these boot keys, ascending by node.
    fn cosignatures(&self, policy: &Policy, keys: &BTreeMap<NodeId, [u8; 32]>) -> Vec<(NodeId, Cosignature)> {
        let by = |node: &NodeId, key: &[u8; 32]| {
            let name = self.key_name(policy, *node)?;
            let lines = self.newest.note.signatures().iter();
            lines.filter_map(|line| Cosignature::from_note_signature(line, &name, key).ok()).next()
        };
        keys.iter().filter_map(|(node, key)| Some((*node, by(node, key)?))).collect()
    }

    fn key_name(&self, policy: &Policy, node: NodeId) -> Option<KeyName> {
        let member = policy.members.get(&node)?;
        KeyName::new(format!("{}/{}", self.newest.checkpoint.origin, member.name)).ok()
    }

    /// The vkeys of the newest checkpoint's cosigners, as their quotes prove them.
    pub fn verifier_keys(&self, proven: &Proven) -> Vec<VerifierKey> {
        let key = |(node, _): &(NodeId, Cosignature)| {
            let name = self.key_name(&proven.verified.policy, *node)?;
            let boot = &proven.verified.nodes.get(node)?.boot;
            Some(VerifierKey::new(name, KeyKind::CosignatureV1, boot.cosign))
        };
        proven.verified.certified.cosignatures().iter().filter_map(key).collect()
    }

    /// C2SP tlog-proof: the leaf's position, its inclusion proof, and the checkpoint as served.
    pub fn tlog_proof(&self, leaf: &ProvenLeaf) -> String {
        let mut text = format!("{TLOG_PROOF}\nindex {}\n", leaf.index);
        for hash in leaf.inclusion.hashes() {
            let _infallible = writeln!(text, "{}", BASE64.encode(hash.0));
        }
        let _infallible = write!(text, "\n{}", self.newest.note);
        text
    }
}

enum Trace {
    Authorised,
    Refused(String),
    After,
    Policy,
    /// With the size of its nonce's tree.
    Evidence(u64),
}

/// What a leaf has to do with a request, and the few that any request's story needs.
fn trace(leaf: &Leaf, request: RequestId) -> Option<Trace> {
    let Leaf::V1 { body, .. } = leaf;
    let after = |speaks: bool| speaks.then_some(Trace::After);
    match body {
        LeafBody::Decided { command: Command::Client(c), outcome } => match (&c.body, outcome) {
            (ClientCommand::Authorise(a), outcome) if a.request == request => Some(match outcome {
                Decision::Authorised => Trace::Authorised,
                other => Trace::Refused(crate::words::outcome(other)),
            }),
            (ClientCommand::Report(list), Decision::Reported(refused)) => {
                after(taken(list, refused).any(|r| r.request == request))
            }
            _ => None,
        },
        LeafBody::Decided { command: Command::Node(c), outcome } => match (&c.body, outcome) {
            (NodeCommand::Settle(list), Decision::Settled(refused)) => {
                after(taken(list, refused).any(|s| s.request == request))
            }
            (NodeCommand::Unanswered(list), Decision::Settled(refused)) => {
                after(taken(list, refused).any(|r| *r == request))
            }
            (NodeCommand::Alarm(Alarm::HeadRefused { request: r, .. }), Decision::AlarmRaised) => {
                after(*r == request)
            }
            _ => None,
        },
        LeafBody::Decided { command: Command::Evidence(c), outcome: Decision::Appraised { .. } } => {
            Some(Trace::Evidence(c.nonce.size.0))
        }
        LeafBody::Decided { command: Command::Policy(_), outcome: Decision::PolicyChanged { .. } } => {
            Some(Trace::Policy)
        }
        LeafBody::Unsettled { request: r, .. } | LeafBody::Anomaly { request: r, .. } => after(*r == request),
        _ => None,
    }
}

impl NoProof {
    /// As the program ends with it: a request that is not there is an answer; a mirror that contradicts itself is a finding.
    pub(crate) fn end(self, json: bool) -> Outcome {
        let wrong = |message: String| -> Outcome {
            if json {
                say_json(&serde_json::json!({ "proven": false, "why": message }))?;
            } else {
                say(&format!(
                    "NOT PROVEN: {message}\n\n`quorate-audit verify` says what is wrong and where.\n"
                ))?;
            }
            Ok(Exit::ProvenWrong)
        };
        match self {
            Self::Audit(Error::Found(finding)) => wrong(finding.to_string()),
            Self::Audit(error) => Err(error.into()),
            error @ Self::Unproven(_) => wrong(chain(&error)),
            error @ Self::NoSuchRequest(_) => Err(Failure::new(
                chain(&error),
                "the mirror may end before it: run `mirror` again; ids are 32 hex digits, as in receipts and answers",
            )),
            error @ Self::Refused { .. } => {
                Err(Failure::new(chain(&error), "a request that was refused has no authorisation to prove"))
            }
        }
    }
}

/// The subcommand.
pub fn run(args: ProveArgs) -> Outcome {
    let desk = Desk::open(Mirror::open(&args.dir)?)?;
    let proven = match desk.prove(args.request, args.genesis.genesis) {
        Ok(proven) => proven,
        Err(error) => return error.end(args.json),
    };
    let Some(leaf) = proven.receipt.0.leaves.first() else {
        return NoProof::NoSuchRequest(args.request).end(args.json);
    };
    let keys: String = desk.verifier_keys(&proven).iter().map(|key| format!("{key}\n")).collect();
    let name = |kind: &str| args.out.join(format!("{}.{kind}", args.request));
    let files = [
        (name("receipt"), proven.receipt.to_text().into_bytes()),
        (name("leaf"), leaf.bytes.clone()),
        (name("tlog-proof"), desk.tlog_proof(leaf).into_bytes()),
        (name("vkeys"), keys.into_bytes()),
    ];
    for (path, bytes) in &files {
        write(path, bytes)?;
    }
    let [receipt, leaf_file, tlog_proof, vkeys] = files.map(|(path, _)| path.display().to_string());
    if args.json {
        say_json(&serde_json::json!({
            "proven": true, "request": args.request.to_string(), "leaf_index": leaf.index, "receipt": receipt,
            "leaf": leaf_file, "tlog_proof": tlog_proof, "vkeys": vkeys,
        }))?;
        return Ok(Exit::Good);
    }
    let genesis = args.genesis.genesis;
    say(&format!(
        "{receipt}\n  proves all of it to who knows the genesis digest: quorate verify --genesis {genesis} {receipt}\n\
         {leaf_file}\n  leaf {} as logged: the signed request and the decision\n\
         {tlog_proof}\n  proves to any C2SP tool that this leaf is in the log: c2sp.org/tlog-proof v1\n\
         {vkeys}\n  the keys of that checkpoint's cosigners, one a line; {} of them are a quorum\n",
        leaf.index,
        proven.verified.policy.quorum(),
    ))?;
    Ok(Exit::Good)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder.and_then(|()| std::fs::write(path, bytes)).map_err(|e| {
        Failure::new(format!("cannot write {}: {e}", path.display()), "name another folder with --out")
    })
}
