//! Every way a provider may end, frame or garble an answer, and shake hands: straight from the SDK, and through real nodes. An
//! answer is whole or an error; nothing else.
//!
//! Real processes and software TPMs; needs the binaries. `quorate_tests::contrary` lists which detail is tested where.
//!
//! **These bite**: each cut answer has its whole twin in the same framing, and the provider counts its handshakes by kind.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "test code")]
use anyhow::{Context as _, bail, ensure};
use quorate_client::http1::HttpError;
use quorate_client::{Client, DangerDirect, Error, PoolOptions, Request, Target};
use quorate_core::command::{ClientCommand, Command, Ended};
use quorate_core::ids::RequestId;
use quorate_core::leaf::{LeafBody, Outcome};
use quorate_core::policy::RouteDocument;
use quorate_tests::contrary::{ALERT, Contrary, Handshake, Play, TOO_LARGE, content};
use quorate_tests::lab::{Key, Make};
use quorate_tests::{Lab, Shared, Tlog, wait_for};
use rustls::HandshakeKind;
use std::time::Duration;

static LAB: Shared = Shared::new(Make { name: "tls", provider: &[], key: Key::None });

/// For one answer on loopback, with a busy machine around it.
const PATIENCE: Duration = Duration::from_secs(30);
const SHOWS: Duration = Duration::from_secs(20);

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Came {
    Whole(u16, Vec<u8>),
    Failed(&'static str),
}

/// Where a request goes: straight, or through the mesh.
enum Way {
    Direct(Box<DangerDirect>),
    Mesh(Client, String),
}

impl Way {
    fn direct(lab: &Lab, route: &RouteDocument) -> anyhow::Result<Self> {
        let direct = lab.block(async { DangerDirect::new(route, PoolOptions::default()) });
        Ok(Self::Direct(Box::new(direct?)))
    }

    async fn ask(&self, play: Play) -> anyhow::Result<Came> {
        let target = |name: &str| Target::Route(name.to_owned());
        let request = |name| Request::post_json(target(name), "/v1/chat/completions", play.request());
        let came = async {
            let response = match self {
                Self::Direct(direct) => direct.request(&request("any")).await?,
                Self::Mesh(client, route) => client.request(request(route)).await?,
            };
            let status = response.status.as_u16();
            Ok::<_, Error>(Came::Whole(status, response.body.bytes(1 << 20).await?.to_vec()))
        };
        let came = tokio::time::timeout(PATIENCE, came).await;
        match came.with_context(|| format!("{play:?}: nothing in {PATIENCE:?}"))? {
            Ok(came) => Ok(came),
            Err(error) => Ok(Came::Failed(kind(&error)?)),
        }
    }
}

fn kind(error: &Error) -> anyhow::Result<&'static str> {
    Ok(match error {
        Error::Truncated { .. } | Error::ProviderHttp(HttpError::Truncated) => "truncated",
        Error::ProviderAlert { code } if *code == ALERT => "alert",
        Error::ProviderRecords(error) => {
            let error = format!("{error:?}");
            let known = [
                "PlaintextTooLong",
                "TooLong",
                "NotAuthentic",
                "NotProtected",
                "HandshakeMessage",
                "CertificateRequested",
            ];
            known.into_iter().find(|k| error.contains(k)).with_context(|| error.clone())?
        }
        Error::ProviderSuite { .. } => "suite",
        Error::ProviderWantsCertificate { .. } => "certificate request",
        Error::ProviderCertificate { .. } => "certificate",
        other => bail!("{other:?}"),
    })
}

fn expected(play: Play) -> Came {
    use Play as P;
    match play {
        P::Chunked
        | P::Length
        | P::Close
        | P::BareChunked
        | P::BareLength
        | P::KeyUpdates
        | P::TicketBetween
        | P::EmptyRecords
        | P::Padded
        | P::UserCanceled => Came::Whole(200, content()),
        P::Drips => Came::Whole(200, content().into_iter().take(300).collect()),
        P::EarlyReads | P::EarlyStops => Came::Whole(413, TOO_LARGE.into()),
        P::CutChunked
        | P::CutLength
        | P::CutHead
        | P::Nothing
        | P::BareClose
        | P::TornChunked
        | P::TornLength
        | P::TornClose
        | P::TornRecord
        | P::ResetAmid => Came::Failed("truncated"),
        P::AlertFirst | P::AlertAmid => Came::Failed("alert"),
        P::PlaintextTooLong => Came::Failed("PlaintextTooLong"),
        P::RecordTooLong => Came::Failed("TooLong"),
        P::Forged | P::Repeated => Came::Failed("NotAuthentic"),
        P::LateCompatibility => Came::Failed("NotProtected"),
        P::SecondFinished => Came::Failed("HandshakeMessage"),
        P::CertificateRequest => Came::Failed("CertificateRequested"),
    }
}

/// One provider for each kind of handshake, and a route to each.
fn providers(lab: &Lab) -> anyhow::Result<Vec<(Handshake, Contrary)>> {
    let started = lab.block(async {
        let mut all = Vec::new();
        for handshake in Handshake::ALL {
            all.push((handshake, Contrary::start(handshake).await?));
        }
        anyhow::Ok(all)
    })?;
    lab.change_policy(|mesh| {
        // A mesh that another test used has routes to providers that are gone.
        mesh.edit_policy(|text| {
            let mut draft: toml::Table = text.parse().unwrap();
            let stale = |name: Option<&str>| Handshake::ALL.iter().any(|h| Some(h.name().as_str()) == name);
            draft.get_mut("route").unwrap().as_array_mut().unwrap().retain(|r| {
                let name = r.get("name");
                !stale(name.and_then(toml::Value::as_str))
            });
            toml::to_string(&draft).unwrap()
        })?;
        for (handshake, provider) in &started {
            let (name, port) = (handshake.name(), provider.port.to_string());
            let ca = mesh.dir.join(format!("{name}.pem"));
            std::fs::write(&ca, &provider.ca_pem)?;
            let flags = ["--name", &name, "--host", "localhost", "--port", &port, "--model", &name, "--ca"];
            mesh.admin(&[&["route", "add"][..], &flags].concat(), &[&ca])?;
        }
        mesh.edit_policy(|text| {
            let mut draft: toml::Table = text.parse().unwrap();
            let client = draft.get_mut("client").unwrap().as_array_mut().unwrap().first_mut().unwrap();
            let all = ["provider".to_owned()].into_iter().chain(Handshake::ALL.map(Handshake::name));
            let all = all.map(toml::Value::String).collect();
            client.as_table_mut().unwrap().insert("routes".to_owned(), toml::Value::Array(all));
            toml::to_string(&draft).unwrap()
        })
    })?;
    Ok(started)
}

fn document(client: &Client, handshake: Handshake) -> anyhow::Result<RouteDocument> {
    let directory = client.directory();
    let mut routes = directory.verified().policy.routes.values();
    let route = routes.find(|r| r.document.name == handshake.name()).context("no such route")?;
    Ok(route.document.clone())
}

fn authorised(tlog: &Tlog, from: usize) -> Vec<RequestId> {
    let id = |body: &LeafBody| match body {
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => match &c.body {
            ClientCommand::Authorise(a) => Some(a.request),
            _ => None,
        },
        _ => None,
    };
    tlog.bodies(from as u64).filter_map(id).collect()
}

#[test]
fn answers_whole_and_cut() {
    LAB.run("answers_whole_and_cut", |lab| {
        let _providers = providers(lab)?;
        let client = lab.client("app")?;
        let http = lab.mesh.sites.first().context("no site")?.http.clone();
        let from = Tlog::read(&http)?.leaves.len();
        let direct = Way::direct(lab, &document(&client, Handshake::Plain)?)?;
        let mesh = Way::Mesh(client.clone(), Handshake::Plain.name());
        let mut wrong = Vec::new();
        for play in Play::ALL {
            for (way, through) in [(&direct, "straight"), (&mesh, "through the mesh")] {
                let came = lab.block(way.ask(play));
                println!("{play:?} {through}: {}", brief(&came));
                if came.as_ref().ok() != Some(&expected(play)) {
                    wrong.push(format!("{play:?} {through}: {}", brief(&came)));
                }
            }
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        // What the application was told is what the log is told: each request once, and none is called complete that was not.
        lab.block(client.flush());
        let ended = wait_for("every request is reported", SHOWS, || {
            let tlog = Tlog::read(&http)?;
            let ids = authorised(&tlog, from);
            ensure!(ids.len() == Play::ALL.len(), "{} requests for {} plays", ids.len(), Play::ALL.len());
            let reports = ids.iter().map(|id| tlog.report(*id).cloned().context("not reported"));
            reports.collect::<anyhow::Result<Vec<_>>>()
        })?;
        for (play, report) in Play::ALL.into_iter().zip(ended) {
            let right = match expected(play) {
                Came::Whole(status, _) => (report.status, report.ended) == (status, Ended::Complete),
                Came::Failed(_) => report.ended == Ended::Truncated,
            };
            ensure!(right, "{play:?} was reported as {report:?}");
        }
        Ok(())
    });
}

fn brief(came: &anyhow::Result<Came>) -> String {
    match came {
        Ok(Came::Whole(status, body)) => format!("{status}, {} bytes", body.len()),
        Ok(Came::Failed(kind)) => (*kind).to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn handshakes_of_all_kinds() {
    LAB.run("handshakes_of_all_kinds", |lab| {
        let providers = providers(lab)?;
        let client = lab.client("app")?;
        for (handshake, provider) in &providers {
            let expected = match handshake {
                Handshake::Plain | Handshake::Retries | Handshake::Tickets | Handshake::SmallRecords => {
                    Came::Whole(200, content())
                }
                Handshake::OnlyAes | Handshake::OnlyHttp2 => Came::Failed("suite"),
                Handshake::WantsCertificate => Came::Failed("certificate request"),
                Handshake::OtherCertificate => Came::Failed("certificate"),
            };
            let direct = Way::direct(lab, &document(&client, *handshake)?)?;
            let mesh = Way::Mesh(client.clone(), handshake.name());
            for (way, through) in [(&direct, "straight"), (&mesh, "through the mesh")] {
                // Twice: the second could resume the first, and never does.
                for _ in 0..2 {
                    let came = lab.block(way.ask(Play::Chunked));
                    println!("{handshake:?} {through}: {}", brief(&came));
                    ensure!(
                        came.as_ref().ok() == Some(&expected),
                        "{handshake:?} {through}: {}",
                        brief(&came)
                    );
                }
            }
            let kind = match handshake {
                Handshake::Retries => HandshakeKind::FullWithHelloRetryRequest,
                _ => HandshakeKind::Full,
            };
            let complete = provider.handshakes();
            ensure!(complete.iter().all(|k| *k == kind), "{handshake:?}: {complete:?}");
            let whole = matches!(expected, Came::Whole(..));
            ensure!(whole == (complete.len() >= 4), "{handshake:?}: {complete:?}");
        }
        Ok(())
    });
}
