//! Routes with a credential: the hole, the share epoch, faults and what the client makes of them. The log is the real state
//! machine; the keyers' masks are those of `quorate_core::testing`, whose secret is zeros.
//!
//! **These bite**: [`a_pair_whose_keyers_answer_does_not_fit_is_left_out`] failed when refused requests were not reported, and with
//! [`a_pair_over_which_a_request_failed_is_left_out`] when what accuses a node went to one node only.
use super::*;
use crate::error::Fault;
use quorate_core::command::{Authorise, Report};
use quorate_core::ids::RequestId;
use quorate_core::testing::{ROUTE, credential_document, keyed};
use quorate_splitkey::head::CredentialSlot;
use quorate_splitkey::hole::FilledHole;
use quorate_splitkey::share::{Complement, Mask};
use zeroize::Zeroizing;

const SECRET_BYTES: usize = 32;

/// What the keyer answers, and the relay makes of it.
pub(super) fn hole(
    connection: KeyerConnection,
    slot: &CredentialSlot,
    keyer: NodeId,
    spoils: bool,
) -> FilledHole {
    let share = |flip: u8| {
        let mut share = vec![keyer.0 as u8; slot.secret_len.into()];
        share[0] ^= flip;
        Zeroizing::new(share)
    };
    let answer = connection.answer(&Mask::new(share(0)).unwrap()).unwrap();
    answer.fill(slot, &Complement::new(share(u8::from(spoils))).unwrap()).unwrap()
}

/// How the provider refuses: a wrong key with 401 (or 400 when the body says `strict`), a body `bad` in its API's form, a body
/// `gate` as a gateway before it would.
pub(super) fn refusal(head: &[u8], body: &[u8]) -> Option<(u16, &'static str)> {
    let wanted = [&b"\r\nauthorization: Bearer sk-test-"[..], &[0; SECRET_BYTES], b"\r\n"].concat();
    if !head.windows(wanted.len()).any(|w| w == wanted) {
        return Some((if body == b"strict" { 400 } else { 401 }, r#"{"error":{"message":"wrong key"}}"#));
    }
    match body {
        b"bad" => Some((400, r#"{"error":{"message":"no such parameter"}}"#)),
        b"gate" => Some((400, "<h1>400 Bad Request</h1>")),
        b"busy" => Some((429, r#"{"error":{"message":"slow down"}}"#)),
        _ => None,
    }
}

/// Attempts that one request has.
const ATTEMPTS_MAX: usize = 3;

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Keyed {
    mesh: MockMesh,
    client: Client,
}

async fn keyed_mesh() -> Keyed {
    let stage = provider(Provider::Keyed).await;
    let mesh = mesh_with(&stage.route, 0, keyed).await;
    let client = Client::connect(mesh.trust.clone()).await.unwrap();
    Keyed { mesh, client }
}

impl Keyed {
    async fn send(&self, body: &str) -> crate::Response {
        self.client.request(ask(body.into())).await.unwrap()
    }

    async fn status(&self, body: &str) -> u16 {
        let response = self.send(body).await;
        let status = response.status.as_u16();
        drop(response.body.bytes(1 << 20).await.unwrap());
        status
    }

    /// As they were submitted: what accuses a node goes to two, one of whom is honest.
    fn submitted(&self) -> Vec<Report> {
        let of = |c: &Command| match c {
            Command::Client(ClientSigned { body: ClientCommand::Report(all), .. }) => all.clone(),
            _ => vec![],
        };
        self.mesh.log.submitted.lock().unwrap().iter().flat_map(of).collect()
    }

    fn reports(&self) -> Vec<Report> {
        let mut seen = BTreeSet::new();
        self.submitted().into_iter().filter(|r| seen.insert(r.request)).collect()
    }

    fn report(&self, request: RequestId) -> Report {
        self.reports().into_iter().find(|r| r.request == request).unwrap()
    }

    /// Pairs on which this client's faults count.
    fn counted(&self) -> usize {
        let mesh = self.mesh.log.mesh.lock().unwrap();
        let route = quorate_core::ids::RouteId::new(ROUTE).unwrap();
        mesh.as_ref().unwrap().state().meter(&route).unwrap().counted().filter(|(_, n)| *n > 0).count()
    }

    fn pairs(&self) -> Vec<(NodeId, NodeId)> {
        let directory = self.client.directory();
        let grant = directory.verified().policy.clients.values().next().unwrap();
        directory.pairs(grant.routes.first().unwrap(), &grant.custodian)
    }

    fn spoil(&self, pairs: impl IntoIterator<Item = (NodeId, NodeId)>) {
        self.mesh.log.spoiling.lock().unwrap().extend(pairs);
    }

    /// Changes the policy, and what nodes give as the directory.
    fn change(&self, edit: impl FnOnce(&mut quorate_core::policy::PolicyDocument)) {
        self.decide_change(edit);
        self.publish();
    }

    /// What nodes give as the directory is the log as it is now.
    fn publish(&self) {
        let proof = self.mesh.log.mesh.lock().unwrap().as_ref().unwrap().proof(&[]);
        *self.mesh.log.directory.lock().unwrap() = encode(&proof);
    }

    /// Changes the policy, of which no directory tells yet.
    fn decide_change(&self, edit: impl FnOnce(&mut quorate_core::policy::PolicyDocument)) {
        let mut mesh = self.mesh.log.mesh.lock().unwrap();
        let mesh = mesh.as_mut().unwrap();
        let change = mesh.fleet.change_policy(edit);
        mesh.time = mesh.time.max(crate::directory::now());
        assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
    }

    /// Every request that came before the log, and what it decided.
    fn asked(&self) -> Vec<(Authorise, Outcome)> {
        let mesh = self.mesh.log.mesh.lock().unwrap();
        let leaves = mesh.as_ref().unwrap().applied.iter().flat_map(|a| &a.leaf_bytes);
        let of = |bytes: &Vec<u8>| match borsh::from_slice(bytes).unwrap() {
            quorate_core::leaf::Leaf::V1 {
                body:
                    quorate_core::leaf::LeafBody::Decided {
                        command: Command::Client(ClientSigned { body: ClientCommand::Authorise(a), .. }),
                        outcome,
                    },
                ..
            } => Some((a, outcome)),
            _ => None,
        };
        leaves.filter_map(of).collect()
    }

    /// Every request that the log authorised.
    fn authorised(&self) -> Vec<Authorise> {
        self.asked().into_iter().filter(|(_, o)| *o == Outcome::Authorised).map(|(a, _)| a).collect()
    }

    /// How many it refused.
    fn refused(&self) -> usize {
        self.asked().iter().filter(|(_, o)| matches!(o, Outcome::Refused(_))).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_arrives_whole_and_nobody_but_the_provider_has_it() {
    let keyed = keyed_mesh().await;
    for body in ["", "hello", &"x".repeat(100_000)] {
        let response = keyed.send(body).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.body.bytes(1 << 20).await.unwrap(), body);
    }
    assert!(keyed.authorised().iter().all(|a| a.share_epoch == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_brings_a_key_is_stopped_before_anything_is_sent() {
    let keyed = keyed_mesh().await;
    let mut request = ask("x".into());
    request.headers.push(("Authorization".into(), "Bearer mine".into()));
    let error = keyed.client.request(request).await.unwrap_err();
    assert!(matches!(&error, Error::CredentialHeader { name } if name == "authorization"), "{error:?}");
    assert!(keyed.authorised().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_over_which_a_request_failed_is_left_out() {
    let keyed = keyed_mesh().await;
    let spoilt = keyed.pairs();
    keyed.spoil(spoilt[..3].iter().copied());
    let mut refused = BTreeSet::new();
    for _ in 0..40 {
        let response = keyed.send("x").await;
        if response.status == 401 {
            let pair = (response.provenance.relay, response.provenance.keyer);
            assert!(refused.insert(pair), "{pair:?} was tried again");
        }
        drop(response.body.bytes(1 << 20).await.unwrap());
    }
    keyed.client.flush().await;
    let faults: Vec<_> = keyed.submitted().into_iter().filter(|r| r.status == 401).collect();
    assert_eq!(faults.len(), 2 * refused.len(), "the accused relay alone could swallow it");
    assert!(refused.is_subset(&spoilt[..3].iter().copied().collect()));
    for report in keyed.reports().iter().filter(|r| r.status == 401) {
        assert!(report.error_form && report.same_as.is_none(), "{report:?}");
    }
    assert_eq!(keyed.counted(), refused.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bar_that_the_client_does_not_know_of_costs_no_attempt() {
    let keyed = keyed_mesh().await;
    let pairs = keyed.pairs();
    keyed.spoil(pairs[1..].iter().copied());
    // Its memory of the bars goes with the client, the log's does not.
    for _ in 0..pairs.len() {
        let other = Client::connect(keyed.mesh.trust.clone()).await.unwrap();
        let response = other.request(ask("x".into())).await.unwrap();
        drop(response.body.bytes(1 << 20).await);
        other.flush().await;
    }
    // More pairs are barred than a request has attempts, and it finds the one that is left.
    assert!(keyed.counted() > 3, "{}", keyed.counted());
    let mut ok = 0;
    for _ in 0..pairs.len() {
        ok += u32::from(keyed.status("x").await == 200);
        keyed.client.flush().await;
    }
    assert!(ok > 0);
    assert_eq!(keyed.status("x").await, 200, "all others are barred by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_pair_is_left_the_error_says_what_to_do() {
    let keyed = keyed_mesh().await;
    keyed.spoil(keyed.pairs());
    let error = loop {
        match keyed.client.request(ask("x".into())).await {
            Ok(response) => {
                assert_eq!(response.status, 401);
                drop(response.body.bytes(1 << 20).await.unwrap());
                assert!(keyed.reports().len() <= 8);
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoPairLeft { .. }), "{error:?}");
    assert_eq!(error.fault(), Fault::Operator);
    assert!(error.hint().contains("quorate admin credential check"));
    // A new share epoch begins anew.
    keyed.mesh.log.spoiling.lock().unwrap().clear();
    keyed.change(|d| d.route[0].credential = Some(credential_document(d, ROUTE, 2)));
    keyed.client.inner().refresh().await.unwrap();
    assert_eq!(keyed.status("x").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_share_epoch_costs_a_refresh_and_no_request() {
    let keyed = keyed_mesh().await;
    assert_eq!(keyed.status("x").await, 200);
    keyed.change(|d| d.route[0].credential = Some(credential_document(d, ROUTE, 2)));
    assert_eq!(keyed.status("x").await, 200);
    assert_eq!(keyed.authorised().iter().map(|a| a.share_epoch).collect::<Vec<_>>(), [1, 2]);
}

/// Certifying a policy takes a while, in which the log refuses what was signed for the one before; a request looks for the new one
/// more often than it has attempts.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_no_directory_has_yet_is_waited_for() {
    let keyed = keyed_mesh().await;
    assert_eq!(keyed.status("x").await, 200);
    for epoch in 2..4 {
        keyed.decide_change(|d| d.route[0].credential = Some(credential_document(d, ROUTE, epoch)));
        let before = keyed.refused();
        let publish = async {
            until("all are refused", || keyed.refused() >= before + 4).await;
            let looked = || keyed.mesh.log.looked.load(Ordering::SeqCst);
            let first = looked();
            until("they look more often than they have attempts", || looked() > first + ATTEMPTS_MAX).await;
            keyed.publish();
        };
        let asked = futures::future::join_all((0..4).map(|_| keyed.status("x")));
        assert_eq!(futures::join!(asked, publish).0, [200; 4]);
    }
    // And not for ever.
    keyed.decide_change(|d| d.route[0].credential = Some(credential_document(d, ROUTE, 4)));
    let began = std::time::Instant::now();
    let error = keyed.client.request(ask("x".into())).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(r) if r.code == "stale_policy"), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_knows_a_route_that_moved() {
    let keyed = keyed_mesh().await;
    let inner = keyed.client.inner();
    let mut route = inner.directory().verified().policy.routes.values().next().unwrap().clone();
    let (lane, _conn) = inner.lanes(&route.id).take(inner, &[]).await.unwrap();
    assert!(lane.fits(&route));
    route.document.paths.push("/v1/other".into());
    assert!(!lane.fits(&route));
}

/// New clients know of no node that it has no shares: they find those that have some, however many have none.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_shares_cost_no_request() {
    let keyed = keyed_mesh().await;
    let (relay, keyer) = keyed.pairs()[0];
    let without = |keep: &[NodeId]| {
        let mut shareless = keyed.mesh.log.shareless.lock().unwrap();
        *shareless = (1..=4).map(NodeId).filter(|n| !keep.contains(n)).collect();
    };
    for round in 0..4 {
        without(&[relay, keyer]);
        let client = Client::connect(keyed.mesh.trust.clone()).await.unwrap();
        for _ in 0..4 {
            let response = client.request(ask("x".into())).await.unwrap();
            assert_eq!(response.status, 200);
            let by = [response.provenance.relay, response.provenance.keyer];
            assert!(by.iter().all(|n| [relay, keyer].contains(n)), "{round}: {by:?}");
        }
        let route = quorate_core::ids::RouteId::new(ROUTE).unwrap();
        let pair = quorate_core::state::Pair { relay, keyer };
        assert!(!client.inner().is_shunned(&route, pair));
    }
    without(&[]);
    let client = Client::connect(keyed.mesh.trust.clone()).await.unwrap();
    let error = client.request(ask("x".into())).await.unwrap_err();
    assert!(matches!(error, Error::NoPairLeft { .. }), "{error:?}");
    assert!(error.hint().contains("without shares"));
}

/// Neither side can be told from here: the pair is left out, each for its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_whose_keyers_answer_does_not_fit_is_left_out() {
    let keyed = keyed_mesh().await;
    let pairs = keyed.pairs();
    keyed.mesh.log.unfit.lock().unwrap().extend(&pairs[1..]);
    for _ in 0..3 {
        let response = keyed.send("x").await;
        assert_eq!((response.provenance.relay, response.provenance.keyer), pairs[0]);
    }
    let mut tried: Vec<_> = keyed.authorised().iter().map(|a| (a.relay, a.keyer)).collect();
    tried.retain(|pair| *pair != pairs[0]);
    let once: BTreeSet<_> = tried.iter().copied().collect();
    assert_eq!(tried.len(), once.len(), "none is tried twice: {tried:?}");
    assert_eq!(keyed.counted(), 0, "each may still be void");
    // Whoever refuses may have released the request all the same: the log hears of each, from two nodes.
    keyed.client.flush().await;
    let refused: Vec<_> = keyed.authorised().into_iter().filter(|a| (a.relay, a.keyer) != pairs[0]).collect();
    assert!(!refused.is_empty());
    for request in refused.iter().map(|a| a.request) {
        let told: Vec<_> = keyed.submitted().into_iter().filter(|r| r.request == request).collect();
        assert!(
            matches!(&told[..], [one, two] if one == two && (one.status, one.ended) == (0, Ended::MeshFailure)),
            "{told:?}"
        );
    }
}

/// More at once than one pair may have open: the others take them, and nothing is held against a pair.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_pair_is_passed_over_for_the_moment() {
    let keyed = keyed_mesh().await;
    // Answers that nobody has read to their end are not reported, so their requests stay open.
    let mut open = Vec::new();
    for _ in 0..80 {
        open.push(keyed.send("x").await);
    }
    let pairs: BTreeSet<_> = open.iter().map(|r| (r.provenance.relay, r.provenance.keyer)).collect();
    assert!(pairs.len() >= 3, "{pairs:?}");
    let route = quorate_core::ids::RouteId::new(ROUTE).unwrap();
    for (relay, keyer) in pairs {
        assert!(!keyed.client.inner().is_shunned(&route, quorate_core::state::Pair { relay, keyer }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_credential_is_an_error_that_names_the_admins() {
    let keyed = keyed_mesh().await;
    keyed.change(|d| d.route[0].credential.as_mut().unwrap().frozen = true);
    let error = keyed.client.request(ask("x".into())).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(r) if r.code == "credential_frozen"), "{error:?}");
    assert_eq!(error.fault(), Fault::Operator);
    assert!(error.hint().contains("quorate admin credential"));
}

/// The application's own mistake: others bring the same answer, and no fault is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_400_of_the_applications_own_is_confirmed_over_other_nodes() {
    let keyed = keyed_mesh().await;
    for round in 0..4 {
        let response = keyed.send("bad").await;
        assert_eq!(response.status, 400);
        let first = response.provenance.clone();
        let told = response.body.bytes(1 << 20).await.unwrap();
        assert_eq!(told, r#"{"error":{"message":"no such parameter"}}"#, "the answer is handed on whole");
        keyed.client.flush().await;
        let report = keyed.report(first.request);
        assert_eq!((report.status, report.error_form, report.same_as), (400, true, None));
        let Some(again) = keyed.reports().into_iter().find(|r| r.same_as == Some(first.request)) else {
            // Of four nodes some pairs have no disjoint one in the order of keyers.
            assert!(disjoint(&keyed, (first.relay, first.keyer)).is_empty(), "{round}");
            continue;
        };
        assert_eq!((again.status, again.error_form), (400, true));
        let by = keyed.authorised().into_iter().find(|a| a.request == again.request).unwrap();
        assert!(![by.relay, by.keyer].iter().any(|n| [first.relay, first.keyer].contains(n)));
        assert_eq!(keyed.counted(), 0);
        // One repetition, and none of the repetition.
        let others = keyed.reports().into_iter().filter(|r| r.same_as == Some(again.request)).count();
        assert_eq!(others, 0);
        let inner = keyed.client.inner();
        let route = quorate_core::ids::RouteId::new(ROUTE).unwrap();
        for (relay, keyer) in [(first.relay, first.keyer), (by.relay, by.keyer)] {
            let pair = quorate_core::state::Pair { relay, keyer };
            assert!(!inner.is_shunned(&route, pair), "{pair:?} is used again");
        }
    }
}

/// Faster than they can be cleared: others wait for a pair rather than use up the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_bad_requests_leaves_the_client_able_to_work() {
    let keyed = keyed_mesh().await;
    for _ in 0..3 {
        let burst = (0..8).map(|_| keyed.client.request(ask("bad".into())));
        for response in futures::future::join_all(burst).await {
            assert_eq!(response.unwrap().status, 400);
        }
        assert_eq!(keyed.status("x").await, 200);
    }
    keyed.client.flush().await;
    assert_eq!(keyed.status("x").await, 200);
}

fn disjoint(keyed: &Keyed, (relay, keyer): (NodeId, NodeId)) -> Vec<(NodeId, NodeId)> {
    let apart = |(r, k): &(NodeId, NodeId)| ![*r, *k].iter().any(|n| [relay, keyer].contains(n));
    keyed.pairs().into_iter().filter(apart).collect()
}

/// What is not in the API's form is a fault as it stands, and a rate limit in that form is none; neither is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_400_in_the_apis_form_is_repeated() {
    let keyed = keyed_mesh().await;
    let gate = keyed.send("gate").await;
    assert_eq!(gate.status, 400);
    let gate = (gate.provenance.clone(), gate.body.bytes(100).await.unwrap());
    assert_eq!(gate.1, "<h1>400 Bad Request</h1>");
    let busy = keyed.send("busy").await.provenance;
    keyed.client.flush().await;
    let reports = keyed.reports();
    let form = |request| reports.iter().find(|r| r.request == request).map(|r| (r.status, r.error_form));
    assert_eq!(form(gate.0.request), Some((400, false)));
    // The body of this one was not read by the application, and yet it is reported right.
    assert_eq!(form(busy.request), Some((429, true)));
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert_eq!(keyed.counted(), 1);
}

/// A relay that spoils keys so that the provider says 400: others get another answer, and the fault stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_400_that_others_do_not_get_stays_a_fault() {
    let keyed = keyed_mesh().await;
    // One whose lane is open: its turn comes.
    let hostile = keyed.send("x").await.provenance.relay;
    keyed.spoil(keyed.pairs().into_iter().filter(|(relay, _)| *relay == hostile));
    let first = loop {
        let response = keyed.send("strict").await;
        if response.status == 400 {
            break response.provenance.clone();
        }
        // Its lanes are as good as others until one is used.
        drop(response.body.bytes(1 << 20).await.unwrap());
    };
    keyed.client.flush().await;
    assert_eq!(first.relay, hostile);
    assert_eq!(keyed.report(first.request).status, 400);
    if let Some(again) = keyed.reports().into_iter().find(|r| r.same_as == Some(first.request)) {
        // Carried out once, and given up at the head of its answer: the application has another.
        assert_eq!((again.status, again.ended), (200, Ended::Cancelled));
    } else {
        assert!(disjoint(&keyed, (first.relay, first.keyer)).is_empty());
    }
    let route = quorate_core::ids::RouteId::new(ROUTE).unwrap();
    let pair = quorate_core::state::Pair { relay: first.relay, keyer: first.keyer };
    assert!(keyed.client.inner().is_shunned(&route, pair));
    // And the log has not forgotten either.
    let mesh = keyed.mesh.log.mesh.lock().unwrap();
    let client = ClientId::new(quorate_core::testing::CLIENT).unwrap();
    let meter = mesh.as_ref().unwrap().state().meter(&route).unwrap();
    assert_eq!(meter.usable_by(pair, &client), Err(Refusal::PairBarred));
}

/// `credential check`: an admin names the pairs, in whatever order of keyers; nothing is metered, and there is an end to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_admins_grant_lets_every_pair_be_tried_unmetered() {
    let keyed = keyed_mesh().await;
    let nodes: Vec<_> = keyed.client.directory().verified().nodes.keys().copied().collect();
    let pairs: Vec<_> =
        nodes.iter().flat_map(|r| nodes.iter().filter(move |k| *k != r).map(move |k| (*r, *k))).collect();
    let spoilt = *pairs.iter().find(|p| !keyed.pairs().contains(p)).unwrap();
    keyed.spoil([spoilt]);
    let grant = |pairs: &[(NodeId, NodeId)]| {
        let mesh = keyed.mesh.log.mesh.lock().unwrap();
        let mesh = mesh.as_ref().unwrap();
        mesh.fleet.probe_grant(mesh.state(), quorate_core::testing::CLIENT, pairs.to_vec())
    };
    let all = grant(&pairs);
    let probe = ask("bad".into());
    for pair in &pairs {
        let response = keyed.client.probe_pair(*pair, all.clone(), &probe).await.unwrap();
        assert_eq!((response.provenance.relay, response.provenance.keyer), *pair);
        assert_eq!(response.status, if *pair == spoilt { 401 } else { 400 }, "{pair:?}");
    }
    keyed.client.flush().await;
    assert_eq!(keyed.counted(), 0, "not metered");
    assert!(keyed.reports().iter().all(|r| r.same_as.is_none()), "not repeated");
    let code = |error: Error| match error {
        Error::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    let other = grant(&pairs[..1]);
    assert_eq!(code(keyed.client.probe_pair(pairs[1], other, &probe).await.unwrap_err()), "bad_probe_grant");
    for _ in 1..quorate_core::state::PROBES_PER_PAIR_MAX {
        keyed.client.probe_pair(spoilt, all.clone(), &probe).await.unwrap();
    }
    assert_eq!(code(keyed.client.probe_pair(spoilt, all, &probe).await.unwrap_err()), "probes_exhausted");
}
