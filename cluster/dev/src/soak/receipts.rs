//! Whether every answered request left a receipt that proves it, and what settled it.
use super::report::Receipts;
use anyhow::{Context as _, ensure};
use quorate_client::Client;
use quorate_core::command::{ClientCommand, ClientSigned, Command};
use quorate_core::crypto::Hash;
use quorate_core::ids::RequestId;
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::proof::Receipt;
use serde_json::Value;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The adapter writes a receipt when the log settled the request, or after 20 s without: a relay that was killed never settles.
/// Several may wait before this one.
const PATIENCE: Duration = Duration::from_secs(120);
/// The log closes by itself what nobody settles: after the longest request and the policy's `settle_ms`. Not asked before, and
/// not much later: nodes that restarted know the requests of some time only.
const CLOSES: Duration = Duration::from_secs(40);
/// Failures whose text is kept.
const SHOWN: usize = 8;

/// A request whose answer named it.
pub(super) struct Awaited {
    pub(super) request: String,
    pub(super) folder: PathBuf,
    pub(super) asked: String,
    pub(super) since: Instant,
}

/// How a request stands in the log.
#[derive(PartialEq, Eq)]
enum Settled {
    /// By its relay.
    ByRelay,
    /// By nobody: the log says that the relay's half is missing.
    Closed,
    /// Not yet; its client's report is there or not.
    Open { reported: bool },
}

/// Verifies what the adapter wrote.
pub(super) struct Checker {
    genesis: Hash,
    waiting: VecDeque<Awaited>,
    /// Proven, and not settled when the adapter wrote them.
    open: VecDeque<Awaited>,
    pub(super) found: Receipts,
}

impl Checker {
    pub(super) fn new(genesis: Hash) -> Self {
        Self { genesis, waiting: VecDeque::new(), open: VecDeque::new(), found: Receipts::default() }
    }

    pub(super) fn push(&mut self, awaited: Awaited) {
        self.found.answered += 1;
        self.waiting.push_back(awaited);
    }

    /// Looks at all that wait, once. At the end of the run nothing more will come.
    pub(super) fn look(&mut self, over: bool) {
        for _ in 0..self.waiting.len() {
            let Some(awaited) = self.waiting.pop_front() else { break };
            let chain = awaited.folder.join(format!("{}.chain.json", awaited.request));
            let Ok(text) = fs::read_to_string(&chain) else {
                if over || awaited.since.elapsed() > PATIENCE {
                    self.lost(&awaited, "no chain was written");
                } else {
                    self.waiting.push_back(awaited);
                }
                continue;
            };
            match self.check(&awaited, &text) {
                Ok(Settled::ByRelay) => self.found.settled += 1,
                Ok(Settled::Closed) => self.found.closed_by_the_log += 1,
                Ok(Settled::Open { .. }) => self.open.push_back(awaited),
                Err(error) => self.lost(&awaited, &format!("{error:#}")),
            }
        }
    }

    /// How many the adapter has not written.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many were not settled when last looked at.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Asks the mesh, once, about those that were open and by now must be settled by a relay that was slow, or closed by the log.
    pub(super) async fn close(&mut self, clients: &[(PathBuf, Client)]) {
        for _ in 0..self.open.len() {
            let Some(awaited) = self.open.pop_front() else { break };
            let age = awaited.since.elapsed();
            if age < CLOSES {
                self.open.push_back(awaited);
                continue;
            }
            let client = clients.iter().find(|(folder, _)| *folder == awaited.folder);
            let (Some((_, client)), Ok(id)) = (client, awaited.request.parse::<RequestId>()) else {
                self.lost(&awaited, "nobody to ask about it");
                continue;
            };
            let settled = match client.receipt_so_far(id).await {
                Ok((receipt, _)) => self.verify(id, &receipt.to_text()),
                Err(error) => Err(error.into()),
            };
            match settled {
                Ok(Settled::ByRelay) => self.found.settled += 1,
                Ok(Settled::Closed) => self.found.closed_by_the_log += 1,
                _ if age < PATIENCE => self.open.push_back(awaited),
                Ok(Settled::Open { reported }) => {
                    self.lost(&awaited, &format!("it stays open; reported by its client: {reported}"));
                }
                Err(error) => self.lost(&awaited, &format!("{error:#}")),
            }
        }
    }

    fn lost(&mut self, awaited: &Awaited, why: &str) {
        self.found.lost += 1;
        if self.found.failures.len() < SHOWN {
            self.found.failures.push(format!("{} ({}): {why}", awaited.request, awaited.asked));
        }
    }

    /// The files of a request that is proven are removed: a long run has many.
    fn check(&mut self, awaited: &Awaited, chain: &str) -> anyhow::Result<Settled> {
        let id: RequestId = awaited.request.parse().ok().context("no request's number")?;
        let chain: Value = serde_json::from_str(chain).context("the chain")?;
        let attempts = chain.get("attempts").and_then(Value::as_array).context("a chain without attempts")?;
        let word = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        ensure!(
            attempts.iter().filter(|a| word(a, "request").as_ref() == Some(&awaited.request)).count() == 1,
            "its chain does not name it once: {chain}"
        );
        let mut settled = None;
        let mut files = vec![awaited.folder.join(format!("{}.chain.json", awaited.request))];
        for attempt in attempts {
            let own = word(attempt, "request").as_ref() == Some(&awaited.request);
            let Some(file) = word(attempt, "receipt") else {
                let reason = word(attempt, "missing").unwrap_or_default();
                ensure!(!own, "no receipt: {reason}");
                // An attempt that the mesh refused is in no log.
                *self.found.attempts_without.entry(reason).or_default() += 1;
                continue;
            };
            let file = awaited.folder.join(file);
            let text = fs::read_to_string(&file).context("the receipt")?;
            if own {
                let found = self.verify(id, &text)?;
                let said = attempt.get("settled").and_then(Value::as_bool) != Some(false);
                ensure!(said != matches!(found, Settled::Open { .. }), "the chain says settled: {said}");
                settled = Some(found);
            } else {
                Receipt::from_text(&text)?.verify(self.genesis)?;
            }
            self.found.verified += 1;
            files.push(file);
        }
        files.iter().try_for_each(fs::remove_file).context("cannot remove what is proven")?;
        settled.context("the chain has no receipt of it")
    }

    fn verify(&self, id: RequestId, text: &str) -> anyhow::Result<Settled> {
        let (verified, authorisation) = Receipt::from_text(text)?.verify(self.genesis)?;
        ensure!(authorisation.request().request == id, "the receipt of another request");
        let closed = verified.leaves.iter().any(|leaf| {
            let Leaf::V1 { body, .. } = leaf.leaf();
            matches!(body, LeafBody::Unsettled { request, relay: true, .. } if *request == id)
        });
        let reported = verified.leaves.iter().any(|leaf| {
            let Leaf::V1 { body, .. } = leaf.leaf();
            matches!(body, LeafBody::Decided {
                command: Command::Client(ClientSigned { body: ClientCommand::Report(list), .. }), ..
            } if list.iter().any(|r| r.request == id))
        });
        let relay = authorisation.request().relay;
        let settled = quorate_client::settlements(&verified, id).any(|(node, _)| node == relay);
        Ok(match (settled, closed) {
            (true, _) => Settled::ByRelay,
            (false, true) => Settled::Closed,
            (false, false) => Settled::Open { reported },
        })
    }
}
