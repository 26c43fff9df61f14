//! Whole commands against a provider of our own.
use super::*;
use crate::cli::admin::save;
use crate::tests::{Provider, provider};
use quorate_core::policy::Policy;
use quorate_core::testing::Fleet;

const SECRET: &str = "Zq7Kp2Vx9Lm4Rt8Wc3Nb6Yd1";

struct Desk {
    dir: tempfile::TempDir,
    draft: DraftArg,
}

impl Desk {
    /// A draft whose one route leads to such a provider.
    async fn new(kind: Provider) -> Self {
        let route = provider(kind).await.route;
        let dir = tempfile::tempdir().unwrap();
        let draft = DraftArg { policy: dir.path().join("policy.toml") };
        let fleet = Fleet::new(4, 1, |d| {
            let name = d.route[0].name.clone();
            d.route[0] = RouteDocument { name, ..route };
        });
        save(&draft.policy, &fleet.document).unwrap();
        std::fs::write(dir.path().join("key"), format!("sk-proj-{SECRET}\n")).unwrap();
        Self { dir, draft }
    }

    fn args(&self) -> SetArgs {
        SetArgs {
            route: "llm".into(),
            draft: self.draft.clone(),
            source: KeySource::file_for_tests(self.dir.path().join("key")),
            scheme: None,
            public_prefix: None,
            accept_echo: false,
            no_probe: false,
            share_epoch: None,
        }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.draft.policy).unwrap()
    }

    fn credential(&self) -> Option<CredentialDocument> {
        Policy::parse(self.text().as_bytes()).unwrap();
        load(&self.draft.policy).unwrap().route[0].credential.clone()
    }

    fn route(&self) -> RouteArgs {
        RouteArgs { route: "llm".into(), draft: self.draft.clone() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_set_rotated_frozen_lifted_and_removed() {
    let desk = Desk::new(Provider::Keyed).await;
    let rotate = || run(CredentialCommand::Rotate(desk.args()));
    assert!(rotate().await.unwrap_err().hints[0].contains("credential set"));
    run(CredentialCommand::Set(desk.args())).await.unwrap();
    let first = desk.credential().unwrap();
    assert_eq!((first.scheme.as_str(), first.public_prefix.as_str()), ("bearer", "sk-proj-"));
    assert_eq!((usize::from(first.secret_bytes), first.share_epoch), (SECRET.len(), 1));
    assert!(!first.accept_echo && !desk.text().contains(SECRET));
    let again = run(CredentialCommand::Set(desk.args())).await.unwrap_err();
    assert!(again.hints[0].contains("credential rotate"), "{again:?}");

    run(CredentialCommand::Rotate(SetArgs { scheme: Some("api-key".into()), ..desk.args() })).await.unwrap();
    rotate().await.unwrap();
    let last = desk.credential().unwrap();
    assert_eq!((last.scheme.as_str(), last.share_epoch), ("api-key", 3), "the scheme stays as it was");
    assert!(last.shares.iter().all(|(node, share)| first.shares[node] != *share));

    run(CredentialCommand::Freeze(desk.route())).await.unwrap();
    assert!(desk.credential().unwrap().frozen);
    run(CredentialCommand::Lift(desk.route())).await.unwrap();
    let lifted = desk.credential().unwrap();
    assert_eq!((lifted.frozen, lifted.lifted, lifted.shares == last.shares), (false, 1, true));
    run(CredentialCommand::Remove(desk.route())).await.unwrap();
    assert_eq!(desk.credential(), None);
    assert!(run(CredentialCommand::Remove(desk.route())).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_is_wrong_and_nothing_is_written() {
    let table = [
        (Provider::Echoes, "repeats 8 or more bytes", "--accept-echo"),
        (Provider::Good, "accepted a random key (200)", "needs no credential"),
        (Provider::NoSuite, "TLS_CHACHA20_POLY1305_SHA256", "must offer TLS_CHACHA20_POLY1305_SHA256"),
        (Provider::WantsCertificate, "client certificate", "turn client certificates off"),
    ];
    for (kind, message, hint) in table {
        let desk = Desk::new(kind).await;
        let before = desk.text();
        let failure = run(CredentialCommand::Set(desk.args())).await.unwrap_err();
        assert!(failure.message.contains(message), "{failure:?}");
        assert!(failure.hints.iter().any(|h| h.contains(hint)), "{failure:?}");
        assert!(!failure.lines().join("\n").contains(SECRET));
        assert_eq!(desk.text(), before);
        // Without the probe nobody looks.
        run(CredentialCommand::Set(SetArgs { no_probe: true, ..desk.args() })).await.unwrap();
        assert!(!desk.credential().unwrap().accept_echo);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_can_be_accepted_and_the_policy_says_so() {
    let desk = Desk::new(Provider::Echoes).await;
    run(CredentialCommand::Set(SetArgs { accept_echo: true, ..desk.args() })).await.unwrap();
    assert!(desk.credential().unwrap().accept_echo);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_never_carries_the_key() {
    let desk = Desk::new(Provider::Echoes).await;
    let route = load(&desk.draft.policy).unwrap().route[0].clone();
    let key = Key::parse(&desk.args().source.read("llm").unwrap(), None).ok().unwrap();
    let twin = shape::twin(&key.secret).unwrap();
    let request = &probe::requests(&route)[0];
    let answer = probe::ask(&route, CredentialScheme::Bearer, "sk-proj-", &twin, request).await.unwrap();
    let head = String::from_utf8(answer.body).unwrap();
    let line = format!("\r\nauthorization: Bearer sk-proj-{}\r\n", std::str::from_utf8(&twin).unwrap());
    assert!(head.contains(&line), "{head}");
    assert!(!shape::echoes(head.as_bytes(), SECRET.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_asks_for_the_key_and_names_the_command() {
    let desk = Desk::new(Provider::Keyed).await;
    run(CredentialCommand::Set(desk.args())).await.unwrap();
    let fits = load(&desk.draft.policy).unwrap();
    assert_eq!(stale_shares(&fits, &desk.draft.policy), Vec::<String>::new());
    edit(&desk.draft, |d| {
        d.member[3].id = 5;
        Ok(())
    })
    .unwrap();
    let draft = load(&desk.draft.policy).unwrap();
    let said = stale_shares(&draft, "p.toml".as_ref());
    assert!(said[0].contains("quorate admin credential rotate llm --policy p.toml"), "{said:?}");
    run(CredentialCommand::Rotate(desk.args())).await.unwrap();
    desk.credential().unwrap();
}

#[test]
fn the_cheapest_request_comes_first() {
    let of = |dialect: &str, paths: &[&str]| {
        let mut route = quorate_core::testing::route_document("r");
        route.dialect = dialect.into();
        route.paths = paths.iter().map(|p| (*p).to_owned()).collect();
        let requests = probe::requests(&route);
        for request in &requests {
            let template = crate::head_template(&route).unwrap();
            let headers = request.headers.iter();
            let head = quorate_splitkey::head::Head {
                method: request.method,
                path: request.path.clone(),
                headers: headers
                    .map(|(n, v)| quorate_splitkey::head::Header { name: n.clone(), value: v.clone() })
                    .collect(),
                content_length: request.body.len() as u64,
            };
            assert!(template.serialise(&head).is_ok(), "the route allows it");
        }
        requests.into_iter().map(|r| (r.method.as_str(), r.path)).collect::<Vec<_>>()
    };
    let get = |path: &str| ("GET", path.to_owned());
    let post = |path: &str| ("POST", path.to_owned());
    assert_eq!(
        of("openai", &["/v1/chat/completions", "/v1/models"]),
        [get("/v1/models"), post("/v1/chat/completions")]
    );
    assert_eq!(of("anthropic", &["/v1/messages", "/v1/models"]), [get("/v1/models"), post("/v1/messages")]);
    assert_eq!(of("openai", &["/v1/files/*", "/v1/embeddings"]), [post("/v1/embeddings")]);
    assert!(of("openai", &["/v1/files/*"]).is_empty());
}
