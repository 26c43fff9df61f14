//! One hostile party at a time, as real processes: a client, a relay, a keyer whose host is owned. What reached the provider
//! is asked of the provider, which keeps every byte it decrypted.
//!
//! Two of four nodes run the hostile build (`quorated::danger_hostile`), approved by the admins and attested like any other;
//! the other two are the product's own binary. An attack meets the product's binary first, and is stopped. Then, where a check
//! of ours is what stopped it, the same attack meets a hostile build in which that check alone is off, **and succeeds**: so
//! each row can fail in both directions. Where nothing of ours stands behind a row (the provider's TLS refuses an altered
//! record), it says so.
//!
//! Real processes and software TPMs; builds `quorated-hostile`. The table at the end is this test's report.
use super::{ATTACKS, Detect, Held, Phase, Report, SHOWS};
use crate::hostile_build::{self, order};
use crate::raw::{RawClient, Verdict, random_id};
use crate::recorder::{Recorder, Seen};
use crate::rogue::{CLOSE_NOTIFY, Fate, Hello, KEY_UPDATE, Link, Sealer, Way, inner};
use crate::{Lab, Tlog, http_get, run, wait_for};
use anyhow::{Context as _, bail, ensure};
use quorate_core::command::{Alarm, Authorise, ClientCommand, Command, NodeCommand, OpenPool};
use quorate_core::ids::{Custodian, NodeId, PolicyVersion, RequestId, RouteId};
use quorate_core::leaf::{LeafBody, Outcome};
use quorate_core::policy::RouteDocument;
use quorate_core::rendezvous;
use quorate_proto::v1::tunnel_up;
use quorate_splitkey::record::TrafficSecret;
use quorate_transport::Connected;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path as File;
use std::time::{Duration, Instant};

/// Routes to the recorder, each with shares and a meter of its own.
const ROUTES: usize = 7;
/// Clients beside the lab's own.
const CLIENTS: [&str; 3] = ["ada", "bo", "cy"];
/// What a hostile client puts before the head: all that follows is its body.
const OWN: &[u8] = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000\r\n\r\n";
const BODY: &[u8] = b"{}";

/// A client and its connections.
struct Party {
    raw: RawClient,
    links: BTreeMap<u64, Connected>,
}

/// A pool and its route.
struct Path {
    pool: OpenPool,
    route: RouteDocument,
}

pub(super) struct Field<'a> {
    pub(super) lab: &'a Lab,
    provider: Recorder,
    elsewhere: Recorder,
    secret: Vec<u8>,
    policy: PolicyVersion,
    directory: std::sync::Arc<quorate_client::Directory>,
    parties: BTreeMap<&'static str, Party>,
    /// The hostile build's nodes: as relay, as keyer.
    owned: (u64, u64),
    /// The product's node that is a keyer for both first routes through the owned relay.
    keyer: u64,
    /// How long it took until the proof of the attack at hand stood there.
    noticed: Cell<Option<Duration>>,
}

fn route_name(number: usize) -> String {
    format!("rec-{number}")
}

/// What a row found: what stopped the attack, the evidence, and what happened with the check off.
type Found = anyhow::Result<(String, String, String)>;

impl Field<'_> {
    /// A row whose twin is an honest request over the same pair, just before or just after.
    fn row(&self, report: &mut Report, party: &str, attack: &str, found: impl FnOnce() -> Found) {
        let what = format!("{party}: {attack}");
        let name = ATTACKS.iter().find(|a| a.what == what).map_or(attack, |a| a.name);
        self.noticed.set(None);
        report.row(name, || {
            let (stopped, evidence, off) = found()?;
            let detect = self.noticed.get().map_or(Detect::Prevented, Detect::After);
            Ok(Held::new(stopped, evidence, detect).twin("200 over the same route").bites(off))
        });
    }
}

/// Routes to the recorder, clients that may use them, and the hostile build approved: one change of policy.
fn prepare(lab: &Lab, provider: &Recorder) -> anyhow::Result<()> {
    lab.change_policy(|mesh| {
        let ca = mesh.dir.join("provider/ca.pem");
        let names: Vec<String> = (0..ROUTES).map(route_name).collect();
        let port = provider.port.to_string();
        for name in &names {
            let model = format!("{name}-chat");
            let flags = ["route", "add", "--name", name, "--host", "localhost", "--port", &port];
            mesh.admin(&[&flags[..], &["--model", &model, "--ca"]].concat(), &[&ca])?;
        }
        hostile_build::approve(lab)?;
        for name in &names {
            mesh.set_credential(name, mesh.key_file.as_deref().context("no key")?)?;
        }
        let all = names.iter().map(|n| format!(", \"{n}\"")).collect::<String>();
        mesh.edit_policy(|text| {
            text.replace("routes = [\"provider\"", &format!("routes = [\"provider\"{all}"))
        })?;
        for name in CLIENTS {
            let key = mesh.dir.join(format!("{name}.key"));
            let public = run(mesh.command("quorate").arg("keygen").arg(&key))?.trim().to_owned();
            let trust = fs::read_to_string(mesh.trust())?
                .replace("client = \"app\"", &format!("client = \"{name}\""))
                .replace("client.key", &format!("{name}.key"));
            fs::write(mesh.dir.join(format!("{name}.toml")), trust)?;
            let mut flags =
                vec!["client", "add", "--name", name, "--key", &public, "--custodian", "developers"];
            for name in &names {
                flags.extend(["--route", name]);
            }
            mesh.admin(&flags, &[] as &[&File])?;
        }
        Ok(())
    })
}

/// The clients, each with a connection to every node.
fn parties(lab: &Lab) -> anyhow::Result<BTreeMap<&'static str, Party>> {
    let mut parties = BTreeMap::new();
    for name in CLIENTS.into_iter().chain(["app"]) {
        let raw = RawClient::new(lab.trust(name)?)?;
        let mut links = BTreeMap::new();
        for site in &lab.mesh.sites {
            links.insert(site.id, lab.block(raw.connect(&site.grpc))?);
        }
        parties.insert(name, Party { raw, links });
    }
    Ok(parties)
}

impl<'a> Field<'a> {
    fn new(lab: &'a Lab) -> anyhow::Result<Self> {
        let provider = Recorder::start(&lab.mesh, "recorder", true)?;
        let elsewhere = Recorder::start(&lab.mesh, "elsewhere", false)?;
        prepare(lab, &provider)?;
        let (owned, keyer) = cast(&lab.client("app")?.directory())?;
        hostile_build::take_over(lab, &[owned.0, owned.1])?;
        ensure!(hostile_build::runs(lab, owned.0)? && hostile_build::runs(lab, owned.1)?);
        ensure!(!hostile_build::runs(lab, keyer)?);
        let client = lab.client("app")?;
        wait_for("all nodes hold their shares", SHOWS, || {
            for status in lab.statuses(&client) {
                let held = status.shares.iter().filter(|s| s.held).count();
                ensure!(held > ROUTES, "{}: {:?}", status.node, status.shares);
            }
            Ok(())
        })?;
        let (directory, parties) = (lab.client("app")?.directory(), parties(lab)?);
        let secret = lab.mesh.secret()?.to_vec();
        let policy = directory.verified().policy.version;
        let noticed = Cell::new(None);
        Ok(Self { lab, provider, elsewhere, secret, policy, directory, parties, owned, keyer, noticed })
    }

    /// The nodes that run the hostile build.
    pub(super) fn owned(&self) -> (u64, u64) {
        self.owned
    }

    fn party(&self, name: &str) -> anyhow::Result<&Party> {
        self.parties.get(name).context("no such client")
    }

    fn link(&self, party: &str, node: u64) -> anyhow::Result<&Connected> {
        self.party(party)?.links.get(&node).context("no such node")
    }

    /// Pairs that a route may use.
    fn pairs(&self, route: usize) -> anyhow::Result<Vec<(u64, u64)>> {
        pairs(&self.directory, route)
    }

    /// A pair of this route of which these are the relay and the keyer, where they are given; none of the rest is owned.
    fn pair(&self, route: usize, relay: Option<u64>, keyer: Option<u64>) -> anyhow::Result<(u64, u64)> {
        let owned = |node| node == self.owned.0 || node == self.owned.1;
        let fits = |given: Option<u64>, node| given.map_or(!owned(node), |given| given == node);
        let found = self.pairs(route)?.into_iter().find(|(r, k)| fits(relay, *r) && fits(keyer, *k));
        found.with_context(|| format!("{}: no pair of {relay:?} and {keyer:?}", route_name(route)))
    }

    /// A pool over a pair; an inner error is the refusal's code.
    fn pool(
        &self,
        client: &str,
        route: usize,
        (relay, keyer): (u64, u64),
    ) -> anyhow::Result<Result<Path, String>> {
        let (name, party) = (route_name(route), self.party(client)?);
        let pool = party.raw.pool(&self.directory, &name, NodeId(relay), NodeId(keyer))?;
        let command = ClientCommand::OpenPool(pool.clone());
        let route = self.directory.route(&RouteId::new(name)?).context("no route")?.document.clone();
        match self.lab.block(party.raw.submit(self.link(client, relay)?, command))? {
            Verdict::Done(Outcome::PoolOpened, _) => Ok(Ok(Path { pool, route })),
            Verdict::Refused(code) => Ok(Err(code)),
            other => bail!("no pool: {other:?}"),
        }
    }

    fn open(&self, client: &str, route: usize, pair: (u64, u64)) -> anyhow::Result<Path> {
        self.pool(client, route, pair)?.map_err(|code| anyhow::anyhow!("no pool over {pair:?}: {code}"))
    }

    fn way<'p>(&'p self, client: &str, path: &'p Path) -> anyhow::Result<Way<'p>> {
        let relay = self.link(client, path.pool.relay.0)?;
        let keyer = self.link(client, path.pool.keyer.0)?;
        Ok(Way { pool: &path.pool, route: &path.route, relay, keyer })
    }

    /// A hostile node does this from now on.
    fn order(&self, node: u64, words: &[&str]) -> anyhow::Result<()> {
        order(self.lab, node, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    /// Runs something while owned nodes do this, and makes them honest again.
    fn while_ordered<T>(
        &self,
        orders: &[(u64, &[&str])],
        body: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        for (node, words) in orders {
            self.order(*node, words)?;
        }
        let done = body();
        for (node, _) in orders {
            self.order(*node, &[])?;
        }
        done
    }

    fn leaves(&self) -> anyhow::Result<u64> {
        Ok(self.tlog()?.leaves.len() as u64)
    }

    fn tlog(&self) -> anyhow::Result<Tlog> {
        let site = self.lab.mesh.site(self.keyer)?;
        Tlog::read(&site.http)
    }

    /// Waits for the alarm of a keyer about this request; its code.
    fn alarm(&self, request: RequestId) -> anyhow::Result<u16> {
        wait_for("the alarm", SHOWS, || {
            let tlog = self.tlog()?;
            let found = tlog.bodies(0).find_map(|body| match body {
                LeafBody::Decided { command: Command::Node(n), outcome: Outcome::AlarmRaised } => {
                    match &n.body {
                        NodeCommand::Alarm(Alarm::HeadRefused { request: r, code }) if *r == request => {
                            Some(*code)
                        }
                        _ => None,
                    }
                }
                _ => None,
            });
            found.context("no such leaf")
        })
    }

    fn is_authorised(&self, request: RequestId) -> anyhow::Result<bool> {
        let tlog = self.tlog()?;
        Ok(tlog.bodies(0).any(|body| match body {
            LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => {
                matches!(&c.body, ClientCommand::Authorise(a) if a.request == request)
            }
            _ => false,
        }))
    }

    /// Whether nothing came to the provider, from some connection on, that should not have.
    fn proper(&self, from: usize) -> anyhow::Result<()> {
        self.provider.since(from).iter().try_for_each(|seen| {
            seen.is_proper(&self.secret)
                .with_context(|| format!("the provider saw: {}", seen.show(&self.secret)))
        })
    }

    /// Whether no byte of the key came to the provider from some connection on.
    fn no_key(&self, from: usize) -> anyhow::Result<()> {
        self.provider.since(from).iter().try_for_each(|seen| {
            ensure!(seen.secret_at(&self.secret).is_empty(), "the provider saw: {}", seen.show(&self.secret));
            Ok(())
        })
    }

    /// Whether what came to the provider, from some connection on, ended with a request's body.
    fn nothing_beyond(&self, from: usize) -> anyhow::Result<()> {
        self.provider.since(from).iter().try_for_each(|seen| {
            let end = seen.requests.first().map_or(seen.stream.len(), |first| first.body.end);
            ensure!(seen.stream.len() == end && seen.error.is_none(), "the provider saw {seen:?}");
            Ok(())
        })
    }

    /// How often a node counted this.
    fn metric(&self, node: u64, name: &str, code: &str) -> anyhow::Result<u64> {
        let (_, all) = http_get(&self.lab.mesh.site(node)?.http, "/metrics")?;
        let begins = format!("quorate_{name}_total{{code=\"{code}\"}} ");
        Ok(all.lines().find_map(|line| line.strip_prefix(&begins)?.trim().parse().ok()).unwrap_or(0))
    }

    /// Does something, and whether the keyer then counted such an answer once more.
    fn answered<T>(
        &self,
        keyer: u64,
        code: &str,
        body: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, String)> {
        let before = self.metric(keyer, "keyer_answers", code)?;
        let done = body()?;
        let after = self.metric(keyer, "keyer_answers", code)?;
        ensure!(after == before + 1, "keyer_answers of {code}: {before}, then {after}");
        Ok((done, format!("metric keyer_answers of the keyer: {code}")))
    }

    /// Head and body of an honest request over a link, sealed.
    fn honest_parts(&self, way: Way<'_>, secret: &[u8; 32]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let (one, two) = way.parts(BODY.len() as u64)?;
        sealed(secret, one.as_bytes(), two.as_bytes(), BODY)
    }

    /// An honest request.
    fn honest(&self, client: &str, path: &Path) -> anyhow::Result<(Fate, Authorise)> {
        self.altered(client, path, |_| ())
    }

    /// An honest request, but for its authorisation.
    fn altered(
        &self,
        client: &str,
        path: &Path,
        alter: impl FnOnce(&mut Authorise),
    ) -> anyhow::Result<(Fate, Authorise)> {
        let way = self.way(client, path)?;
        self.lab.block(async {
            let mut link = Link::honest(way).await?;
            let (head, body) = self.honest_parts(way, &link.client)?;
            let mut authorise = link.authorise(way, self.policy, &head, BODY.len() as u64)?;
            alter(&mut authorise);
            let fate = link.ask(&self.party(client)?.raw, &authorise, &head, &body).await?;
            Ok((fate, authorise))
        })
    }

    /// Reports as the honest client does that this happened to.
    fn report(&self, client: &str, relay: u64, fate: &Fate, request: RequestId) -> anyhow::Result<()> {
        let raw = &self.party(client)?.raw;
        let verdict = self.lab.block(raw.submit(self.link(client, relay)?, fate.report(request)))?;
        ensure!(
            matches!(&verdict, Verdict::Done(Outcome::Reported(refused), _) if refused.is_empty()),
            "{verdict:?}"
        );
        Ok(())
    }
}

fn pairs(directory: &quorate_client::Directory, route: usize) -> anyhow::Result<Vec<(u64, u64)>> {
    let verified = directory.verified();
    let nodes: Vec<NodeId> = verified.policy.members.keys().copied().collect();
    let route = RouteId::new(route_name(route))?;
    let pairs = rendezvous::pairs(&verified.policy, &nodes, &route, &Custodian::new("developers")?);
    Ok(pairs.into_iter().map(|(relay, keyer)| (relay.0, keyer.0)).collect())
}

/// Who is owned, as relay and as keyer, and the product's keyer of both first routes: so that every attack finds its pairs.
fn cast(directory: &quorate_client::Directory) -> anyhow::Result<((u64, u64), u64)> {
    let all: Vec<Vec<(u64, u64)>> =
        (0..ROUTES).map(|r| pairs(directory, r)).collect::<anyhow::Result<_>>()?;
    let every = || 1..=4u64;
    for (relay, keyer, honest) in
        every().flat_map(|r| every().flat_map(move |k| every().map(move |h| (r, k, h))))
    {
        let owned = |n: u64| n == relay || n == keyer;
        let both = |pair: (u64, u64)| all.iter().take(2).all(|pairs| pairs.contains(&pair));
        let of_product = |pairs: &Vec<(u64, u64)>| pairs.iter().any(|(r, k)| !owned(*r) && !owned(*k));
        let to_keyer = |pairs: &Vec<(u64, u64)>| pairs.iter().any(|(r, k)| !owned(*r) && *k == keyer);
        let fits = relay != keyer
            && !owned(honest)
            && both((relay, keyer))
            && both((relay, honest))
            && all.first().is_some_and(of_product)
            && all.iter().all(to_keyer);
        if fits {
            return Ok(((relay, keyer), honest));
        }
    }
    bail!("no cast in {all:?}")
}

/// A head around its hole, and a body, sealed where they belong.
fn sealed(secret: &[u8; 32], one: &[u8], two: &[u8], body: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let sealer = Sealer::new(secret)?;
    let body = if body.is_empty() { Vec::new() } else { sealer.data(3, body)? };
    Ok(([sealer.data(0, one)?, sealer.data(2, two)?].concat(), body))
}

/// How an attack by a client ended: the fate of its request, and its id.
type Attacked = anyhow::Result<(Fate, RequestId)>;
/// An attack by a client over a way.
type Attack<'f> = &'f dyn Fn(&Field<'_>, Way<'_>) -> Attacked;

/// Where a client's attack is stopped.
#[derive(Clone, Copy, PartialEq)]
enum Stops {
    Relay,
    Keyer,
}

/// Stopped by the product's own nodes, and not by a hostile build with that check off.
fn stopped(
    f: &Field<'_>,
    attack: Attack<'_>,
    (stops, code): (Stops, &str),
    off: &[&str],
    shows: impl Fn(&Seen) -> Option<String>,
) -> Found {
    let (relay, keyer) = f.owned;
    let twin = match stops {
        Stops::Relay => (relay, f.keyer),
        Stops::Keyer => f.pair(0, None, Some(keyer))?,
    };
    stopped_over(f, attack, (stops, code), off, shows, twin)
}

/// The same, over this pair with the check off.
fn stopped_over(
    f: &Field<'_>,
    attack: Attack<'_>,
    (stops, code): (Stops, &str),
    off: &[&str],
    shows: impl Fn(&Seen) -> Option<String>,
    twin: (u64, u64),
) -> Found {
    let pair = f.pair(0, None, None)?;
    let path = f.open("app", 0, pair)?;
    let (from, before) = (f.provider.count(), f.metric(pair.0, "requests_refused", code)?);
    let begun = Instant::now();
    let (fate, request) = attack(f, f.way("app", &path)?)?;
    let ending = fate.ending.clone().with_context(|| format!("not stopped: {}", fate.show()))?;
    ensure!(ending.refused && ending.code == code, "stopped by {ending}, not by {code}");
    ensure!(!fate.released || code == "body_refused", "it was released: {}", fate.show());
    f.proper(from)?;
    let counted = format!("metric requests_refused of the relay: {code}");
    let evidence = match stops {
        Stops::Keyer => {
            f.no_key(from)?;
            let alarm = f.alarm(request)?;
            f.noticed.set(Some(begun.elapsed()));
            format!("leaf HeadRefused({alarm}); the provider decrypted no byte of the key")
        }
        Stops::Relay => {
            let refused = f.metric(pair.0, "requests_refused", code)?;
            ensure!(refused == before + 1, "{counted}: {before}, then {refused}");
            if code == "body_refused" {
                f.nothing_beyond(from)?;
                format!("{counted}; the provider decrypted nothing beyond the body")
            } else {
                f.no_key(from)?;
                format!("{counted}; the provider decrypted no byte of the key")
            }
        }
    };
    let owned = if stops == Stops::Relay { twin.0 } else { twin.1 };
    let path = f.open("app", 0, twin)?;
    let honest = f.honest("app", &path)?.0;
    ensure!(honest.status() == Some(200), "the honest twin: {}", honest.show());
    let from = f.provider.count();
    let seen = f.while_ordered(&[(owned, off)], || {
        let (fate, _) = attack(f, f.way("app", &path)?)?;
        f.provider.wait("the attack shows", from, &shows).with_context(|| {
            let seen: Vec<String> = f.provider.since(from).iter().map(|s| s.show(&f.secret)).collect();
            format!("{off:?} are off, and yet: {}; the provider saw {seen:?}", fate.show())
        })
    })?;
    let stopper = match stops {
        Stops::Relay => format!("relay: {ending}"),
        Stops::Keyer => format!("keyer: {code}"),
    };
    Ok((stopper, evidence, seen))
}

/// The key stands there, at the provider.
fn key_in(f: &Field<'_>, place: &str) -> impl Fn(&Seen) -> Option<String> {
    let (secret, place) = (f.secret.clone(), place.to_owned());
    move |seen| (seen.place_of(&secret)? == place).then(|| format!("the key arrives in {place}"))
}

/// An honest connection, and a head of the client's own making.
fn with_head(f: &Field<'_>, way: Way<'_>, one: &str, two: &str, body: &[u8], announced: u64) -> Attacked {
    f.lab.block(async {
        let mut link = Link::honest(way).await?;
        let (head, body) = sealed(&link.client, one.as_bytes(), two.as_bytes(), body)?;
        let authorise = link.authorise(way, f.policy, &head, announced)?;
        let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
        Ok((fate, authorise.request))
    })
}

/// An honest head under the secret that a KeyUpdate leads to.
async fn after_key_update(f: &Field<'_>, way: Way<'_>, link: &mut Link) -> Attacked {
    let next = *TrafficSecret::new(link.client).next_generation().expose_bytes();
    let refused = way.register(link.connection, &next).await?;
    ensure!(refused.is_none(), "{refused:?}");
    let (head, body) = f.honest_parts(way, &next)?;
    let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
    let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
    Ok((fate, authorise.request))
}

/// A request of the client's own, and a KeyUpdate that begins the count anew.
fn own_request(secret: &[u8; 32]) -> anyhow::Result<Vec<u8>> {
    let sealer = Sealer::new(secret)?;
    Ok([sealer.data(0, OWN)?, sealer.seal(1, &KEY_UPDATE, inner::HANDSHAKE, 0)?].concat())
}

/// A fate of a request that never came to be one.
fn refused(ending: crate::rogue::Ending) -> Attacked {
    Ok((Fate { ending: Some(ending), ..Fate::default() }, RequestId(random_id()?)))
}

fn hostile_clients(f: &Field<'_>, report: &mut Report) {
    let who = "client";
    f.row(
        report,
        who,
        "own request in the handshake's shadow: in one frame with Finished, then a KeyUpdate",
        || {
            let attack: Attack<'_> = &|f, way| {
                f.lab.block(async {
                    let link = Link::open(way, &Hello::new(way.route, true)?, own_request).await?;
                    let mut link = link.map_err(|e| anyhow::anyhow!("{e}"))?;
                    after_key_update(f, way, &mut link).await
                })
            };
            stopped(
                f,
                attack,
                (Stops::Relay, "out_of_turn"),
                &["off:BytesAfterFinished"],
                key_in(f, "the body"),
            )
        },
    );
    f.row(report, who, "own request and a KeyUpdate, after the handshake", || {
        let attack: Attack<'_> = &|f, way| {
            f.lab.block(async {
                let link = Link::open(way, &Hello::new(way.route, true)?, |_| Ok(Vec::new())).await?;
                let mut link = link.map_err(|e| anyhow::anyhow!("{e}"))?;
                let own = own_request(&link.client)?;
                link.tunnel.send(tunnel_up::Frame::Data(own.into())).await;
                after_key_update(f, way, &mut link).await
            })
        };
        stopped(f, attack, (Stops::Relay, "out_of_turn"), &["off:BytesAfterFinished"], key_in(f, "the body"))
    });
    let through = |f: &Field<'_>, way: Way<'_>, hello: &Hello| -> Attacked {
        f.lab.block(async {
            let mut link = match Link::open(way, hello, |_| Ok(Vec::new())).await? {
                Ok(link) => link,
                Err(ending) => return refused(ending),
            };
            way.register(link.connection, &link.client).await?;
            let (head, body) = f.honest_parts(way, &link.client)?;
            let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
            let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
            Ok((fate, authorise.request))
        })
    };
    f.row(report, who, "own request as early data", || {
        let attack: Attack<'_> = &|f, way| {
            let hello = Hello::new(way.route, true)?.with_early_data(f.provider.port, OWN)?;
            through(f, way, &hello)
        };
        let off = ["off:EarlyDataOffered"];
        stopped(f, attack, (Stops::Relay, "handshake_refused"), &off, key_in(f, "the body"))
    });
    f.row(report, who, "another server name at the provider's address", || {
        let attack: Attack<'_> = &|f, way| {
            let mut hello = Hello::new(way.route, true)?;
            hello.name = "other.localhost".to_owned();
            through(f, way, &hello)
        };
        let shows = |seen: &Seen| {
            let there = seen.server_name.as_deref() == Some("other.localhost");
            (there && !seen.secret_at(&f.secret).is_empty())
                .then(|| "the key arrives at the neighbour".to_owned())
        };
        stopped(f, attack, (Stops::Relay, "handshake_refused"), &["off:SniMismatch"], shows)
    });
    aims(f, report);
    framing(f, report);
    registrations(f, report);
}

/// The hole somewhere else than in the credential header.
fn aims(f: &Field<'_>, report: &mut Report) {
    let host = |way: &Way<'_>| format!("host: localhost:{}\r\n", way.route.port);
    let tail = "content-length: 2\r\nconnection: close\r\n\r\n";
    let opening = |way: &Way<'_>| {
        let prefix = way.route.credential.as_ref().map_or("", |c| c.public_prefix.as_str());
        format!("authorization: Bearer {prefix}")
    };
    f.row(report, "client", "hole aimed into the path", || {
        let attack: Attack<'_> = &|f, way| {
            let two = format!(" HTTP/1.1\r\n{}{tail}", host(&way));
            with_head(f, way, "POST /v1/files/", &two, BODY, 2)
        };
        let code = (Stops::Keyer, "head_credential_opening");
        stopped(f, attack, code, &["off:CredentialOpening"], key_in(f, "the request line"))
    });
    f.row(report, "client", "hole aimed into the query, behind the text that opens a credential", || {
        let attack: Attack<'_> = &|f, way| {
            let one = format!("POST /v1/chat/completions?x={}", opening(&way));
            let two = format!("\r\n HTTP/1.1\r\n{}{tail}", host(&way));
            with_head(f, way, &one, &two, BODY, 2)
        };
        let code = (Stops::Keyer, "head_line_unterminated");
        stopped(f, attack, code, &["off:LineUnterminated"], key_in(f, "the request line"))
    });
    f.row(report, "client", "hole aimed into another header", || {
        let attack: Attack<'_> = &|f, way| {
            let one = format!("POST /v1/chat/completions HTTP/1.1\r\n{}user-agent: ", host(&way));
            with_head(f, way, &one, &format!("\r\n{tail}"), BODY, 2)
        };
        let code = (Stops::Keyer, "head_credential_opening");
        stopped(f, attack, code, &["off:CredentialOpening"], key_in(f, "header user-agent"))
    });
    f.row(report, "client", "hole aimed into another path's credential header", || {
        let attack: Attack<'_> = &|f, way| {
            let one = format!("POST /v1/files HTTP/1.1\r\n{}{}", host(&way), opening(&way));
            with_head(f, way, &one, &format!("\r\n{tail}"), BODY, 2)
        };
        let code = (Stops::Keyer, "head_path_not_allowed");
        let shows = |seen: &Seen| {
            let there = seen.stream.starts_with(b"POST /v1/files ") && !seen.secret_at(&f.secret).is_empty();
            there.then(|| "the key is used on that path".to_owned())
        };
        stopped(f, attack, code, &["off:PathNotAllowed"], shows)
    });
    f.row(report, "client", "hole aimed into a body", || {
        let attack: Attack<'_> = &|f, way| {
            let one = format!(
                "POST /v1/chat/completions HTTP/1.1\r\n{}content-length: 90\r\n\r\n{{\"user\":\"",
                host(&way)
            );
            with_head(f, way, &one, "\"}", b"", 90)
        };
        let code = (Stops::Keyer, "head_credential_opening");
        stopped(f, attack, code, &["off:CredentialOpening"], key_in(f, "the body"))
    });
}

/// The header of the client's own that no keyer saw stands beside the key.
fn smuggled(f: &Field<'_>, seen: &Seen) -> Option<String> {
    let there = seen.stream.windows(18).any(|w| w == b"\r\ncookie: smuggled");
    (there && !seen.secret_at(&f.secret).is_empty()).then(|| "the header stands beside the key".to_owned())
}

/// Heads and bodies in other records than they belong in.
fn framing(f: &Field<'_>, report: &mut Report) {
    f.row(
        report,
        "client",
        "splits the head: its end, with a header of the client's own, comes as body",
        || {
            let attack: Attack<'_> = &|f, way| {
                let (one, _) = way.parts(2)?;
                let rest = b"cookie: smuggled\r\nconnection: close\r\n\r\n{}";
                let two = format!("\r\ncontent-length: {}\r\n", rest.len());
                with_head(f, way, &one, &two, rest, rest.len() as u64)
            };
            let shows = |seen: &Seen| smuggled(f, seen);
            let code = (Stops::Keyer, "head_connection_close");
            stopped(f, attack, code, &["off:ConnectionClose"], shows)
        },
    );
    f.row(
        report,
        "client",
        "splits the head over three records, the last of them with a header of its own",
        || {
            let attack: Attack<'_> = &|f, way| {
                f.lab.block(async {
                    let mut link = Link::honest(way).await?;
                    let (one, _) = way.parts(2)?;
                    let rest = b"cookie: smuggled\r\nconnection: close\r\n\r\n{}";
                    let two = format!("\r\ncontent-length: {}\r\n", rest.len());
                    let (head, rest) = sealed(&link.client, one.as_bytes(), two.as_bytes(), rest)?;
                    let authorise = link.authorise(way, f.policy, &head, 1000)?;
                    let head = [head, rest.clone()].concat();
                    let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &rest).await?;
                    Ok((fate, authorise.request))
                })
            };
            let (_, keyer) = f.owned;
            let off = ["off:HeadTrailing", "off:ConnectionClose"];
            // Relay and keyer both want two records, and the keyer a whole head in them: three checks.
            f.while_ordered(&[(keyer, &off)], || {
                let shows = |seen: &Seen| smuggled(f, seen);
                stopped_over(f, attack, (Stops::Relay, "head_malformed"), &off, shows, f.owned)
            })
        },
    );
    f.row(report, "client", "pads a head's record", || {
        let attack: Attack<'_> = &|f, way| {
            f.lab.block(async {
                let mut link = Link::honest(way).await?;
                let (one, two) = way.parts(BODY.len() as u64)?;
                let sealer = Sealer::new(&link.client)?;
                let head = [sealer.seal(0, one.as_bytes(), inner::DATA, 7)?, sealer.data(2, two.as_bytes())?]
                    .concat();
                let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
                let body = sealer.data(3, BODY)?;
                let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
                Ok((fate, authorise.request))
            })
        };
        let shows = |seen: &Seen| {
            let taken = seen.requests.first().is_some_and(|r| r.status == 200);
            taken.then(|| {
                "the padded head is taken (no harm is known; its length no longer bounds it)".to_owned()
            })
        };
        stopped(f, attack, (Stops::Keyer, "head_padded"), &["off:Padded"], shows)
    });
    let behind =
        |f: &Field<'_>, way: Way<'_>, more: &dyn Fn(&Sealer) -> anyhow::Result<Vec<u8>>| -> Attacked {
            f.lab.block(async {
                let mut link = Link::honest(way).await?;
                let (head, body) = f.honest_parts(way, &link.client)?;
                let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
                let body = [body, more(&Sealer::new(&link.client)?)?].concat();
                let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
                Ok((fate, authorise.request))
            })
        };
    f.row(report, "client", "pipelines a second request behind the body", || {
        let attack: Attack<'_> = &|f, way| {
            behind(f, way, &|sealer| sealer.data(4, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"))
        };
        let shows = |seen: &Seen| (seen.requests.len() == 2).then(|| "the provider answers both".to_owned());
        stopped(f, attack, (Stops::Relay, "body_refused"), &["off:BodyTooLong"], shows)
    });
    f.row(report, "client", "closes with the hole's sequence number used again", || {
        let attack: Attack<'_> =
            &|f, way| behind(f, way, &|sealer| sealer.seal(1, &CLOSE_NOTIFY, inner::ALERT, 0));
        let shows = |seen: &Seen| {
            seen.error
                .as_ref()
                .map(|error| format!("it leaves the mesh; the provider's TLS refuses it ({error})"))
        };
        stopped(f, attack, (Stops::Relay, "body_refused"), &["off:BodyTooLong"], shows)
    });
}

/// Secrets that are not the connection's, or not the only ones.
fn registrations(f: &Field<'_>, report: &mut Report) {
    f.row(report, "client", "registers a false secret, under which the keyer takes the head", || {
        let path = f.open("app", 0, f.pair(0, None, None)?)?;
        let way = f.way("app", &path)?;
        let from = f.provider.count();
        let fate = f.lab.block(async {
            let link = Link::open(way, &Hello::new(way.route, true)?, |_| Ok(Vec::new())).await?;
            let mut link = link.map_err(|e| anyhow::anyhow!("{e}"))?;
            let other = [7; 32];
            ensure!(way.register(link.connection, &other).await?.is_none());
            let (head, body) = f.honest_parts(way, &other)?;
            let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
            link.ask(&f.party("app")?.raw, &authorise, &head, &body).await
        })?;
        ensure!(fate.released && fate.status().is_none(), "{}", fate.show());
        f.provider.wait("the provider's TLS refuses", from, |s| s.error.clone())?;
        ensure!(f.provider.since(from).iter().all(|s| s.stream.is_empty()), "it decrypted something");
        let evidence = "the provider decrypted not one byte".to_owned();
        Ok((
            format!("the provider's TLS: {}", fate.show()),
            evidence,
            "no check of ours stands behind it".into(),
        ))
    });
    f.row(report, "client", "registers twice, and uses the second secret", || {
        let attack: Attack<'_> = &|f, way| {
            f.lab.block(async {
                let link = Link::open(way, &Hello::new(way.route, true)?, |_| Ok(Vec::new())).await?;
                let mut link = link.map_err(|e| anyhow::anyhow!("{e}"))?;
                ensure!(way.register(link.connection, &[7; 32]).await?.is_none());
                let second = way.register(link.connection, &link.client).await?;
                ensure!(second.as_deref().is_none_or(|code| code == "already_registered"), "{second:?}");
                let (head, body) = f.honest_parts(way, &link.client)?;
                let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
                let fate = link.ask(&f.party("app")?.raw, &authorise, &head, &body).await?;
                Ok((fate, authorise.request))
            })
        };
        let shows = |seen: &Seen| {
            let taken = seen.requests.first().is_some_and(|r| r.status == 200);
            taken.then(|| "the second secret takes the first one's place".to_owned())
        };
        stopped(f, attack, (Stops::Keyer, "head_not_authentic"), &["off:AlreadyRegistered"], shows)
    });
}

/// The last of a node's own words about this.
fn word(f: &Field<'_>, node: u64, request: RequestId, about: &str) -> anyhow::Result<String> {
    wait_for(&format!("{about} in the trace"), SHOWS, || {
        let trace = f.lab.trace(node)?;
        let line = trace.lines().rev().find(|l| l.contains(about) && l.contains(&request.to_string()));
        let (_, word) = line.and_then(|l| l.split_once(about)).context("not there")?;
        Ok(word.split_whitespace().next().unwrap_or_default().to_owned())
    })
}

fn hostile_relays(f: &Field<'_>, report: &mut Report) {
    let who = "relay";
    let (relay, keyer) = f.owned;
    f.row(report, who, "asks the keyer twice", || {
        let about = "second answer: ";
        let ask = |keyer: u64, orders: &[(u64, &[&str])]| {
            let path = f.open("app", 0, (relay, keyer))?;
            let from = f.provider.count();
            let (fate, a) = f.while_ordered(orders, || f.honest("app", &path))?;
            ensure!(fate.status() == Some(200), "{}", fate.show());
            f.proper(from)?;
            word(f, relay, a.request, about)
        };
        let twice: (u64, &[&str]) = (relay, &["relay:ask-twice"]);
        let (stopped, counted) = f.answered(f.keyer, "unknown_connection", || ask(f.keyer, &[twice]))?;
        ensure!(stopped == "unknown_connection", "{stopped}");
        let given = ask(keyer, &[twice, (keyer, &["off:UnknownConnection"])])?;
        ensure!(given == "given", "{given}");
        Ok((format!("keyer: {stopped}"), counted, "a second answer".into()))
    });
    f.row(report, who, "uses one route's leaf to ask for a head of another route", || {
        let attack = |keyer: u64, orders: &[(u64, &[&str])]| -> anyhow::Result<(Fate, RequestId, usize)> {
            let (first, second) = (f.open("app", 0, (relay, keyer))?, f.open("app", 1, (relay, keyer))?);
            let (fate, a) = f.while_ordered(&[(relay, &["relay:withhold"])], || f.honest("app", &first))?;
            ensure!(!fate.released && f.is_authorised(a.request)?, "{}", fate.show());
            let from = f.provider.count();
            let all = [&[(relay, &["relay:other-request"][..])], orders].concat();
            let (fate, a) = f.while_ordered(&all, || f.honest("app", &second))?;
            ensure!(!f.is_authorised(a.request)?, "it asked for a leaf");
            Ok((fate, a.request, from))
        };
        let code = "authorisation_mismatch";
        let ((fate, _, from), counted) = f.answered(f.keyer, code, || attack(f.keyer, &[]))?;
        let ending = fate.ending.context("not stopped")?;
        ensure!(ending.code == code, "{ending}");
        f.no_key(from)?;
        let (_, _, from) = attack(keyer, &[(keyer, &["off:Mismatch"])])?;
        let shows = |seen: &Seen| (!seen.secret_at(&f.secret).is_empty()).then_some(());
        f.provider.wait("the key arrives", from, shows)?;
        let off = "the key is used for a request without a leaf".into();
        let evidence = format!("{counted}; the provider decrypted no byte of the key");
        Ok((format!("keyer: {code}"), evidence, off))
    });
    f.row(report, who, "forwards without a leaf", || {
        let attack = |keyer: u64, orders: &[(u64, &[&str])]| -> anyhow::Result<(Fate, usize)> {
            let path = f.open("app", 0, (relay, keyer))?;
            let from = f.provider.count();
            let all = [&[(relay, &["relay:no-leaf"][..])], orders].concat();
            let (fate, a) = f.while_ordered(&all, || f.honest("app", &path))?;
            ensure!(!f.is_authorised(a.request)?, "it asked for a leaf");
            Ok((fate, from))
        };
        let ((fate, from), counted) = f.answered(f.keyer, "no_quorum", || attack(f.keyer, &[]))?;
        let ending = fate.ending.context("not stopped")?;
        ensure!(ending.refused && ending.code == "no_quorum", "{ending}");
        f.no_key(from)?;
        let (_, from) = attack(keyer, &[(keyer, &["keyer:no-leaf"])])?;
        let shows = |seen: &Seen| (!seen.secret_at(&f.secret).is_empty()).then_some(());
        f.provider.wait("the key arrives", from, shows)?;
        let off = "the key is used without a leaf".into();
        let evidence = format!("{counted}; the provider decrypted no byte of the key");
        Ok(("keyer: no such leaf is certified".into(), evidence, off))
    });
    f.row(report, who, "connects elsewhere", || {
        let address = format!("relay:elsewhere=127.0.0.1:{}", f.elsewhere.port);
        let path = f.open("app", 0, (relay, f.keyer))?;
        let (from, elsewhere) = (f.provider.count(), f.elsewhere.count());
        let orders: &[(u64, &[&str])] = &[(relay, &[&address])];
        let error = f.while_ordered(orders, || f.honest("app", &path)).err().context("it went through")?;
        let error = format!("{error:#}");
        ensure!(error.contains("certificate"), "{error}");
        ensure!(
            f.elsewhere.since(elsewhere).iter().all(|s| s.stream.is_empty()) && f.provider.count() == from
        );
        // A client that does not look at certificates.
        let path = f.open("app", 0, (relay, f.keyer))?;
        let elsewhere = f.elsewhere.count();
        f.while_ordered(orders, || {
            let way = f.way("app", &path)?;
            f.lab.block(async {
                let link = Link::open(way, &Hello::new(way.route, false)?, |_| Ok(Vec::new())).await?;
                let mut link = link.map_err(|e| anyhow::anyhow!("{e}"))?;
                ensure!(way.register(link.connection, &link.client).await?.is_none());
                let (head, body) = f.honest_parts(way, &link.client)?;
                let authorise = link.authorise(way, f.policy, &head, BODY.len() as u64)?;
                link.ask(&f.party("app")?.raw, &authorise, &head, &body).await
            })
        })?;
        let shows = |seen: &Seen| (!seen.secret_at(&f.secret).is_empty()).then_some(());
        f.elsewhere.wait("the key arrives there", elsewhere, shows)?;
        let stopped = format!("the client's TLS: {error}");
        Ok((stopped, "nothing was decrypted there".into(), "the key arrives there".into()))
    });
    for (attack, words, route) in [
        ("replays the hole of another connection", "relay:replay-hole", 2),
        ("sends the hole before the head", "relay:reorder", 3),
        ("sends the hole twice", "relay:hole-twice", 4),
    ] {
        f.row(report, who, attack, || {
            let pair = f.pair(route, Some(relay), None)?;
            let path = f.open("ada", route, pair)?;
            let (fate, _) = f.honest("ada", &path)?;
            ensure!(fate.status() == Some(200), "the honest twin: {}", fate.show());
            not_tls(f, "ada", route, pair, (relay, words))
        });
    }
    bytes_in_between(f, report);
    f.row(report, who, "flips a bit of the key", || {
        let pair = f.pair(5, Some(relay), None)?;
        flips(f, 5, pair, (relay, "relay:flip"))
    });
}

/// Bytes that a relay alters, holds up, or that are played again.
fn bytes_in_between(f: &Field<'_>, report: &mut Report) {
    let (relay, _) = f.owned;
    report.row("relay-alter-request", || {
        let pair = f.pair(2, Some(relay), None)?;
        let path = f.open("bo", 2, pair)?;
        ensure!(f.honest("bo", &path)?.0.status() == Some(200), "the honest twin");
        let begun = Instant::now();
        let (stopped, evidence, off) = not_tls(f, "bo", 2, pair, (relay, "relay:alter-up"))?;
        let held = Held::new(stopped, evidence, Detect::since(begun));
        Ok(held.twin("200 over the same pair").bites(format!("by crypto: {off}")))
    });
    report.row("relay-alter-response", || {
        let pair = f.pair(3, Some(relay), None)?;
        let path = f.open("cy", 3, pair)?;
        ensure!(f.honest("cy", &path)?.0.status() == Some(200), "the honest twin");
        let (path, begun) = (f.open("cy", 3, pair)?, Instant::now());
        let (fate, a) = f.while_ordered(&[(relay, &["relay:alter-down"])], || f.honest("cy", &path))?;
        let failed = fate.failed.clone().context("the client took it")?;
        ensure!(fate.status().is_none(), "{}", fate.show());
        f.report("cy", pair.0, &fate, a.request)?;
        let rule = wait_for("the log flags it", SHOWS, || {
            let tlog = f.tlog()?;
            let rule = tlog.bodies(0).find_map(|body| match body {
                LeafBody::Anomaly { request, rule } if *request == a.request => Some(format!("{rule:?}")),
                _ => None,
            });
            rule.context("no such leaf")
        })?;
        let held = Held::new(
            format!("the client's TLS: {failed}"),
            format!("leaf Anomaly({rule}): client and relay tell its end differently"),
            Detect::since(begun),
        );
        Ok(held.twin("200 over the same pair").bites("by crypto: the client's own record keys"))
    });
    report.row("relay-detour", || detour(f, relay));
    report.row("replayed-request", || {
        let pair = f.pair(0, None, None)?;
        let path = f.open("app", 0, pair)?;
        let (fate, a) = f.honest("app", &path)?;
        ensure!(fate.status() == Some(200), "the honest twin: {}", fate.show());
        let (from, leaf, begun) = (f.provider.count(), f.leaves()?, Instant::now());
        // On another connection the signature does not cover it; signed again by the client's own hand, its id is used.
        let (fate, _) = f.altered("app", &path, |other| other.connection = a.connection)?;
        let ending = fate.ending.context("it was taken")?;
        ensure!(ending.refused && ending.code == "pool_mismatch", "{ending}");
        let (fate, _) = f.altered("app", &path, |other| other.request = a.request)?;
        let ending = fate.ending.context("it was taken")?;
        ensure!(ending.refused && ending.code == "replayed", "{ending}");
        f.no_key(from)?;
        wait_for("a leaf of the refusal", SHOWS, || {
            let tlog = f.tlog()?;
            let refused = tlog.bodies(leaf).any(|body| match body {
                LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Refused(refusal) } => {
                    let same = matches!(&c.body, ClientCommand::Authorise(o) if o.request == a.request);
                    same && refusal.code() == "replayed"
                }
                _ => false,
            });
            ensure!(refused, "no such leaf");
            Ok(())
        })?;
        let held = Held::new(
            "relay: pool_mismatch on another connection; state machine: replayed",
            "leaf Refused(replayed); the provider decrypted no byte of the key",
            Detect::since(begun),
        );
        let bites = "state test authorisations_are_refused_for_one_thing_at_a_time; relay: a_replayed_request_reaches_nobody";
        Ok(held.twin("200 at its first use").bites(bites))
    });
}

/// A detour reads nothing; whoever has a clock sees it.
fn detour(f: &Field<'_>, relay: u64) -> anyhow::Result<Held> {
    const DETOUR: Duration = Duration::from_millis(200);
    let pair = f.pair(4, Some(relay), None)?;
    let asked = |order: &str| -> anyhow::Result<(Duration, Duration)> {
        let path = f.open("app", 4, pair)?;
        let begun = Instant::now();
        let orders: &[&str] = if order.is_empty() { &[] } else { &[order] };
        let (fate, a) = f.while_ordered(&[(relay, orders)], || f.honest("app", &path))?;
        let took = begun.elapsed();
        ensure!(fate.status() == Some(200), "{}", fate.show());
        f.report("app", pair.0, &fate, a.request)?;
        let said = wait_for("its settlement", SHOWS, || {
            let tlog = f.tlog()?;
            let settled = tlog.settlement(a.request).context("not yet")?;
            Ok(Duration::from_millis(u64::from(settled.total_ms)))
        })?;
        Ok((took, said))
    };
    let median = |order: &str| -> anyhow::Result<(Duration, Duration)> {
        let mut all: Vec<(Duration, Duration)> =
            (0..5).map(|_| asked(order)).collect::<anyhow::Result<_>>()?;
        all.sort_unstable();
        all.get(2).copied().context("no request")
    };
    let (usual, usual_said) = median("")?;
    let begun = Instant::now();
    let (_, said) = median("relay:delay=200")?;
    let once = begun.elapsed() / 5;
    let (hidden_took, hidden) = median("relay:delay-unsaid=200")?;
    // A busy machine adds to either; most of the detour must show.
    let shows = DETOUR * 3 / 4;
    ensure!(said >= usual_said + shows, "its settlements say {said:?}, usually {usual_said:?}");
    ensure!(hidden_took >= usual + shows, "the client waited {hidden_took:?}, usually {usual:?}");
    ensure!(hidden < usual_said + shows, "it did not hide it: {hidden:?}");
    let (unexplained, usually) = (hidden_took.saturating_sub(hidden), usual.saturating_sub(usual_said));
    ensure!(unexplained >= usually + shows, "{unexplained:?} unexplained, usually {usually:?}");
    let held = Held::new(
        "not stopped, and it reads nothing: client and provider hold the TLS keys. Exposed by the client's clock beside the relay's signed time",
        format!(
            "leaf Settle says {} ms instead of {}; hidden there, the client waited {} ms of which the settlement explains {}",
            said.as_millis(),
            usual_said.as_millis(),
            hidden_took.as_millis(),
            hidden.as_millis()
        ),
        Detect::After(once),
    );
    let bites = "the same five requests without the detour differ by less; the monitor's alarm `detour` begins at two seconds: each_kind_of_leaf_has_its_alarm";
    Ok(held.twin(format!("{} ms in the median", usual.as_millis())).bites(bites))
}

/// Stands in a row whose twin comes last: it takes all nodes.
const NOT_YET: &str = "";
/// Tries of one client over one pair, where the second is refused otherwise.
const TRIES: usize = 8;

/// From here on all nodes run the hostile build: what is of the state machine is off in every node or in none.
fn own_all(f: &mut Field<'_>) -> anyhow::Result<()> {
    let others: Vec<u64> =
        f.lab.mesh.sites.iter().map(|s| s.id).filter(|n| *n != f.owned.0 && *n != f.owned.1).collect();
    hostile_build::take_over(f.lab, &others)?;
    f.directory = f.lab.client("app")?.directory();
    f.parties = parties(f.lab)?;
    Ok(())
}

/// The metering off.
fn metering_off(f: &Field<'_>, report: &mut Report) -> anyhow::Result<()> {
    let all: Vec<u64> = f.lab.mesh.sites.iter().map(|s| s.id).collect();
    let (relay, route) = (f.owned.0, ROUTES - 1);
    let from = f.leaves()?;
    let pair = f.pair(route, Some(relay), None)?;
    for node in all {
        f.order(node, if node == relay { &["off:Metering", "relay:flip"] } else { &["off:Metering"] })?;
    }
    for number in 1..=TRIES {
        let path = f.open("ada", route, pair).with_context(|| format!("try {number}"))?;
        let (fate, a) = f.honest("ada", &path)?;
        ensure!(fate.status() == Some(401), "try {number}: {}", fate.show());
        f.report("ada", pair.0, &fate, a.request)?;
    }
    let tlog = f.tlog()?;
    let metered = |body: &LeafBody| matches!(body, LeafBody::PairSuspended { .. } | LeafBody::Anomaly { .. });
    ensure!(!tlog.bodies(from).any(metered), "metered all the same");
    report.bites_later(
        &FLIPS,
        &format!("off in all nodes: one client's {TRIES} tries over one pair all reach the provider"),
    );
    Ok(())
}

/// What the provider's TLS refuses; its client reports that, and uses the pair no more.
fn not_tls(f: &Field<'_>, client: &str, route: usize, pair: (u64, u64), (node, words): (u64, &str)) -> Found {
    let path = f.open(client, route, pair)?;
    let from = f.provider.count();
    let (fate, a) = f.while_ordered(&[(node, &[words])], || f.honest(client, &path))?;
    ensure!(fate.status().is_none(), "{}", fate.show());
    let error = f.provider.wait("the provider's TLS refuses", from, |s| s.error.clone())?;
    f.proper(from)?;
    ensure!(f.provider.since(from).iter().all(|s| s.requests.is_empty()), "a whole request came");
    f.report(client, pair.0, &fate, a.request)?;
    let refused = f.pool(client, route, pair)?.err().context("the pair is not barred")?;
    ensure!(refused == "pair_barred", "{refused}");
    let stopped = format!("the provider's TLS: {error}");
    Ok((
        stopped,
        "metered: report leaf, the pair is barred for that client".into(),
        "no check of ours stands behind it".into(),
    ))
}

/// A flipped bit is a wrong key: the provider's 401 counts, and three clients suspend the pair.
fn flips(f: &Field<'_>, route: usize, pair: (u64, u64), (node, words): (u64, &str)) -> Found {
    let (from, attacked) = (f.leaves()?, Instant::now());
    let suspended = |f: &Field<'_>| -> anyhow::Result<bool> {
        let route = RouteId::new(route_name(route))?;
        Ok(f.tlog()?.bodies(from).any(|body| match body {
            LeafBody::PairSuspended { route: r, relay, keyer, .. } => {
                (r, relay.0, keyer.0) == (&route, pair.0, pair.1)
            }
            _ => false,
        }))
    };
    for (number, client) in CLIENTS.into_iter().enumerate() {
        ensure!(!suspended(f)?, "suspended after {number} clients");
        let path = f.open(client, route, pair)?;
        let begun = f.provider.count();
        let (fate, a) = f.while_ordered(&[(node, &[words])], || f.honest(client, &path))?;
        ensure!(fate.status() == Some(401), "{}", fate.show());
        f.proper(begun)?;
        let whole = |seen: &Seen| seen.stream.windows(f.secret.len()).any(|w| w == f.secret);
        ensure!(!f.provider.since(begun).iter().any(whole), "the key was not altered");
        f.report(client, pair.0, &fate, a.request)?;
        let refused = f.pool(client, route, pair)?.err().context("the pair is not barred")?;
        ensure!(["pair_barred", "pair_suspended"].contains(&refused.as_str()), "{refused}");
    }
    wait_for("the pair is suspended", SHOWS, || {
        ensure!(suspended(f)?);
        Ok(())
    })?;
    f.noticed.set(Some(attacked.elapsed()));
    let refused = f.pool("app", route, pair)?.err().context("it is still used")?;
    ensure!(refused == "pair_suspended", "{refused}");
    let evidence =
        "the provider saw an altered key in the credential header, three times; leaf PairSuspended".into();
    Ok(("metering: three 401 of three clients".into(), evidence, NOT_YET.into()))
}

fn hostile_keyers(f: &Field<'_>, report: &mut Report) {
    let who = "keyer";
    let (relay, keyer) = f.owned;
    f.row(report, who, "answers for a request that was refused", || {
        let attack = |pair: (u64, u64), orders: &[(u64, &[&str])]| -> anyhow::Result<(Fate, usize)> {
            let path = f.open("app", 0, pair)?;
            let from = f.provider.count();
            let all = [&[(keyer, &["keyer:no-leaf"][..])], orders].concat();
            let (fate, a) =
                f.while_ordered(&all, || f.altered("app", &path, |a| a.response_bytes_max = u64::MAX >> 1))?;
            ensure!(!f.is_authorised(a.request)?);
            Ok((fate, from))
        };
        let (fate, from) = attack(f.pair(0, None, Some(keyer))?, &[])?;
        let ending = fate.ending.context("not stopped")?;
        ensure!(ending.code == "ceiling_too_high", "{ending}");
        f.no_key(from)?;
        let (_, from) = attack((relay, keyer), &[(relay, &["relay:no-leaf"])])?;
        let shows = |seen: &Seen| (!seen.secret_at(&f.secret).is_empty()).then_some(());
        f.provider.wait("the key arrives", from, shows)?;
        let off = "the key is used without a leaf".into();
        Ok((format!("relay: {ending}"), "the provider decrypted no byte of the key".into(), off))
    });
    f.row(report, who, "says that the body is longer than what was signed", || {
        let attack = |pair: (u64, u64), orders: &[(u64, &[&str])]| {
            let path = f.open("app", 0, pair)?;
            let all = [&[(keyer, &["keyer:longer-body"][..])], orders].concat();
            f.while_ordered(&all, || f.honest("app", &path))
        };
        let from = f.provider.count();
        let ending = attack(f.pair(0, None, Some(keyer))?, &[])?.0.ending.context("not stopped")?;
        ensure!(ending.code == "body_above_ceiling", "{ending}");
        f.no_key(from)?;
        let (fate, _) = attack((relay, keyer), &[(relay, &["off:BodyAboveCeiling"])])?;
        ensure!(fate.status() == Some(200), "{}", fate.show());
        let off = "the relay lets a MiB more through than was signed".into();
        Ok((format!("relay: {ending}"), "the provider decrypted no byte of the key".into(), off))
    });
    f.row(report, who, "approves whatever it is shown, of an honest client", || {
        let path = f.open("app", 0, f.pair(0, None, Some(keyer))?)?;
        let from = f.provider.count();
        let off = ["off:CredentialOpening", "off:LineUnterminated", "off:PathNotAllowed", "off:Padded"];
        let (fate, _) = f.while_ordered(&[(keyer, &off)], || f.honest("app", &path))?;
        ensure!(fate.status() == Some(200), "{}", fate.show());
        f.proper(from)?;
        let evidence = "the head arrives as the client sealed it, the key in its place".into();
        let off = "with a client that writes a bad head, two parties: the rows above".into();
        Ok(("it has no head but the client's".into(), evidence, off))
    });
    f.row(report, who, "answers with a false one-time key", || {
        not_tls(f, "ada", 0, f.pair(0, None, Some(keyer))?, (keyer, "keyer:false-key"))
    });
    f.row(report, who, "flips a bit of the key", || {
        flips(f, 1, f.pair(1, None, Some(keyer))?, (keyer, "keyer:flip"))
    });
}

/// Rows whose twin comes last.
const FLIPS: [&str; 2] = ["relay-flip", "keyer-flip"];

/// Runs all of it. What is left of the mesh is not one that anybody should use: its last policy nobody signed.
pub fn rows(lab: &Lab, report: &mut Report) -> anyhow::Result<()> {
    report.phases.push(Phase::Inside);
    let mut f = Field::new(lab)?;
    hostile_clients(&f, report);
    hostile_relays(&f, report);
    hostile_keyers(&f, report);
    super::leaders::rows(&f, report);
    let wanted = |report: &Report, names: &[&str]| report.rows.iter().any(|r| names.contains(&r.attack.name));
    if wanted(report, &FLIPS) || wanted(report, &super::leaders::SIGNED) {
        own_all(&mut f)?;
    }
    if wanted(report, &FLIPS)
        && let Err(error) = metering_off(&f, report)
    {
        report.fails_later(&FLIPS, &format!("the metering off: {error:#}"));
    }
    if wanted(report, &super::leaders::SIGNED)
        && let Err(error) = super::leaders::signatures_off(&f, report)
    {
        report.fails_later(&super::leaders::SIGNED, &format!("the admins' signatures off: {error:#}"));
    }
    Ok(())
}
