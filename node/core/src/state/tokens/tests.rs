//! Each attack on a token, by one change to something honest; its unchanged twin passes.
use crate::command::*;
use crate::crypto::public_key;
use crate::ids::{ClientId, PriceId, RequestId, RouteId, Timestamp, TokenId};
use crate::leaf::Outcome;
use crate::policy::{PolicyDocument, PriceDocument};
use crate::refusal::Refusal;
use crate::state::{REVOKED_PER_ISSUER_MAX, TOKENS_PER_ISSUER_MAX, TokenRecord};
use crate::testing::*;
use crate::token::{SignedToken, Token};

const AGENT: &str = "agent-7";
const LIFETIME: u64 = 900_000;

fn name(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn other_route() -> RouteId {
    RouteId::new("other").unwrap()
}

/// The client may issue; there is a route that it may use and one that it may not, and a client that may not issue.
fn issuing(d: &mut PolicyDocument) {
    d.route.extend([route_document("other"), route_document("forbidden")]);
    d.client[0].routes.push("other".into());
    d.client[0].token_lifetime_ms_max = Some(LIFETIME);
    d.client.push(client_document("mate"));
    d.price.push(PriceDocument {
        name: "p".into(),
        routes: vec![ROUTE.into()],
        input: 1_000_000,
        output: 1_000_000,
        ..PriceDocument::default()
    });
}

fn mesh() -> Mesh {
    Mesh::new(4, 1, issuing)
}

fn terms(mesh: &Mesh) -> Token {
    Token {
        serial: [7; 16],
        issuer: name(CLIENT),
        subject: name(AGENT),
        key: public_key(&key(AGENT)),
        routes: vec![route()],
        limits: Default::default(),
        not_before: mesh.time,
        expires: mesh.time.plus_ms(LIFETIME),
    }
}

fn minted(mesh: &Mesh, edit: impl FnOnce(&mut Token)) -> SignedToken {
    let mut token = terms(mesh);
    edit(&mut token);
    token.sign(mesh.fleet.cluster(), &key(CLIENT))
}

fn id_of(mesh: &Mesh, token: &SignedToken) -> TokenId {
    token.token.id(mesh.fleet.cluster())
}

/// A command of whoever holds the token.
fn by(mesh: &Mesh, token: &SignedToken, body: ClientCommand) -> Command {
    let id = Some(id_of(mesh, token));
    Command::Client(ClientSigned::sign_as(mesh.fleet.cluster(), name(CLIENT), id, body, &key(AGENT)))
}

fn pool_of(mesh: &mut Mesh, token: &SignedToken) -> OpenPool {
    let mut pool = mesh.fleet.pool(&mesh.log.state, 1);
    pool.expires = pool.expires.min(token.token.expires);
    pool.token = Some(Box::new(token.clone()));
    pool
}

fn open(mesh: &mut Mesh, token: &SignedToken) -> (OpenPool, Outcome) {
    let pool = pool_of(mesh, token);
    let command = by(mesh, token, ClientCommand::OpenPool(pool.clone()));
    (pool, mesh.decide(command))
}

fn opened(mesh: &mut Mesh, token: &SignedToken) -> OpenPool {
    let (pool, outcome) = open(mesh, token);
    assert_eq!(outcome, Outcome::PoolOpened);
    pool
}

fn request(mesh: &mut Mesh, pool: &OpenPool) -> Authorise {
    let mut a = mesh.fleet.request(&mesh.log.state, pool);
    a.expires = mesh.time.plus_ms(30_000);
    a
}

fn ask(mesh: &mut Mesh, token: &SignedToken, pool: &OpenPool) -> (RequestId, Outcome) {
    let a = request(mesh, pool);
    let id = a.request;
    let command = by(mesh, token, ClientCommand::Authorise(a));
    (id, mesh.decide(command))
}

fn record<'m>(mesh: &'m Mesh, token: &SignedToken) -> &'m TokenRecord {
    mesh.state().token(&id_of(mesh, token)).unwrap()
}

#[test]
fn what_a_token_uses_is_charged_to_it_and_to_its_issuer() {
    let mut mesh = mesh();
    let token = minted(&mesh, |_| ());
    let pool = opened(&mut mesh, &token);
    let (id, outcome) = ask(&mut mesh, &token, &pool);
    assert_eq!(outcome, Outcome::Authorised);
    let issuer = |m: &Mesh| m.state().usage(&name(CLIENT)).unwrap();
    assert_eq!((record(&mesh, &token).used.reserved_bytes, record(&mesh, &token).in_flight), (10_000, 1));
    assert_eq!((issuer(&mesh).day.reserved_bytes, issuer(&mesh).in_flight), (10_000, 1));
    let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![Fleet::settlement(id)]));
    let report = by(&mesh, &token, ClientCommand::Report(vec![Fleet::report(id)]));
    let outcomes = mesh.apply(vec![settle, report]).outcomes;
    assert_eq!((&outcomes[0].1, &outcomes[1].1), (&Outcome::Settled(vec![]), &Outcome::Reported(vec![])));
    let used = record(&mesh, &token).used;
    assert_eq!((used.requests, used.bytes, used.reserved_bytes, used.tokens.output), (1, 2560, 0, 100));
    assert_eq!((issuer(&mesh).day.requests, issuer(&mesh).day.bytes, issuer(&mesh).in_flight), (1, 2560, 0));
    // The receipt names both.
    let receipt = mesh.receipt(id);
    let (_, authorisation) = receipt.verify(mesh.fleet.cluster()).unwrap();
    assert_eq!((authorisation.client(), authorisation.token()), (&name(CLIENT), Some(id_of(&mesh, &token))));
}

#[test]
fn tokens_are_refused_for_one_thing_at_a_time() {
    type Case = (&'static str, fn(&mut Token), Refusal);
    let cases: &[Case] = &[
        ("a wider route", |t| t.routes.push(RouteId::new("forbidden").unwrap()), Refusal::TokenTooWide),
        ("no such route", |t| t.routes.push(RouteId::new("none").unwrap()), Refusal::TokenTooWide),
        ("not for this route", |t| t.routes = vec![other_route()], Refusal::OutOfScope),
        ("for no route", |t| t.routes.clear(), Refusal::OutOfScope),
        ("a longer life", |t| t.expires = t.expires.plus_ms(1), Refusal::TokenTooLong),
        ("a life that began earlier", |t| t.not_before.0 -= 1, Refusal::TokenTooLong),
        (
            "not yet",
            |t| (t.not_before, t.expires) = (t.not_before.plus_ms(2), t.expires),
            Refusal::TokenNotYetValid,
        ),
        ("over", |t| t.expires = t.not_before.plus_ms(1), Refusal::PoolTooLong),
        ("another issuer that may not issue", |t| t.issuer = name("mate"), Refusal::BadToken),
        ("too many routes", |t| t.routes = vec![route(); 65], Refusal::Oversized),
    ];
    for (what, edit, refusal) in cases {
        let mut mesh = mesh();
        let token = minted(&mesh, edit);
        assert_eq!(open(&mut mesh, &token).1, Outcome::Refused(*refusal), "{what}");
        assert!(mesh.state().token(&id_of(&mesh, &token)).is_none(), "{what}: nothing is remembered");
        let honest = minted(&mesh, |_| ());
        assert_eq!(open(&mut mesh, &honest).1, Outcome::PoolOpened, "{what}: its twin");
    }
}

#[test]
fn a_token_ends_at_its_time_and_its_pools_before() {
    let mut mesh = mesh();
    let token = minted(&mesh, |t| t.expires = t.not_before.plus_ms(10_000));
    let mut pool = pool_of(&mut mesh, &token);
    pool.expires = token.token.expires.plus_ms(1);
    let command = by(&mesh, &token, ClientCommand::OpenPool(pool));
    mesh.refuses(command, Refusal::PoolTooLong);
    let pool = opened(&mut mesh, &token);
    let (id, _) = ask(&mut mesh, &token, &pool);
    mesh.time = Timestamp(token.token.expires.0 - 2);
    assert_eq!(ask(&mut mesh, &token, &pool).1, Outcome::Authorised, "the last millisecond");
    assert_eq!(ask(&mut mesh, &token, &pool).1, Outcome::Refused(Refusal::UnknownPool));
    let mut late = mesh.fleet.pool(&mesh.log.state, 1);
    late.token = Some(Box::new(token.clone()));
    let command = by(&mesh, &token, ClientCommand::OpenPool(late.clone()));
    mesh.refuses(command, Refusal::TokenExpired);
    // It can still report, and is remembered until the last request is over: then it is a stranger, and expired.
    let report = by(&mesh, &token, ClientCommand::Report(vec![Fleet::report(id)]));
    assert_eq!(mesh.decide(report), Outcome::Reported(vec![]));
    assert_eq!(record(&mesh, &token).in_flight, 2);
    mesh.time = mesh.state().request(&id).unwrap().deadline.plus_ms(700_000);
    mesh.apply(vec![]);
    assert!(mesh.state().token(&id_of(&mesh, &token)).is_none());
    mesh.recover();
    late.expires = mesh.time.plus_ms(1000);
    let command = by(&mesh, &token, ClientCommand::OpenPool(late));
    mesh.refuses(command, Refusal::TokenExpired);
}

#[test]
fn a_token_belongs_to_its_key_and_its_issuer() {
    let mut mesh = mesh();
    let cluster = mesh.fleet.cluster();
    let token = minted(&mesh, |_| ());
    let id = Some(id_of(&mesh, &token));
    let pool = ClientCommand::OpenPool(pool_of(&mut mesh, &token));
    let sign = |client: &str, id, body: &ClientCommand, k: &str| {
        Command::Client(ClientSigned::sign_as(cluster, name(client), id, body.clone(), &key(k)))
    };
    let before = mesh.log.leaves.len();
    // Other keys, the issuer's own among them; another author; another digest; none.
    mesh.refuses(sign(CLIENT, id, &pool, CLIENT), Refusal::BadSignature);
    mesh.refuses(sign(CLIENT, id, &pool, "thief"), Refusal::BadSignature);
    mesh.refuses(sign("mate", id, &pool, AGENT), Refusal::BadToken);
    mesh.refuses(sign(CLIENT, Some(TokenId([1; 32])), &pool, AGENT), Refusal::BadToken);
    mesh.refuses(sign(CLIENT, None, &pool, AGENT), Refusal::BadSignature);
    // Signed by somebody else, or changed since.
    let forge = |mesh: &mut Mesh, token: SignedToken| {
        let outcome = open(mesh, &token).1;
        assert_eq!(outcome, Outcome::Refused(Refusal::BadToken));
    };
    let by_another = terms(&mesh).sign(cluster, &key("mate"));
    forge(&mut mesh, by_another);
    let own = terms(&mesh).sign(cluster, &key(AGENT));
    forge(&mut mesh, own);
    let elsewhere = terms(&mesh).sign(crate::crypto::Hash([0; 32]), &key(CLIENT));
    forge(&mut mesh, elsewhere);
    let edits: [fn(&mut Token); 6] = [
        |t| t.serial[0] ^= 1,
        |t| t.limits.money = Some(u64::MAX),
        |t| t.routes.push(other_route()),
        |t| t.subject = name("other"),
        |t| t.not_before.0 -= 1,
        |t| t.expires.0 -= 1,
    ];
    for edit in edits {
        let mut changed = token.clone();
        edit(&mut changed.token);
        forge(&mut mesh, changed);
    }
    assert_eq!(mesh.log.leaves.len(), before + 14, "what anybody can make up leaves nothing but batch ends");
    // A client of its own shows no token, and a token probes nothing.
    mesh.refuses(sign(CLIENT, None, &pool, CLIENT), Refusal::BadToken);
    assert_eq!(mesh.decide(sign(CLIENT, id, &pool, AGENT)), Outcome::PoolOpened);
}

#[test]
fn a_client_that_may_not_issue_issues_nothing() {
    let mut mesh = mesh();
    let token = terms(&mesh);
    let token = Token { issuer: name("mate"), ..token }.sign(mesh.fleet.cluster(), &key("mate"));
    let pool = pool_of(&mut mesh, &token);
    let id = Some(id_of(&mesh, &token));
    let body = ClientCommand::OpenPool(pool);
    let command =
        Command::Client(ClientSigned::sign_as(mesh.fleet.cluster(), name("mate"), id, body, &key(AGENT)));
    mesh.refuses(command, Refusal::MayNotIssue);
}

#[test]
fn a_token_probes_nothing() {
    let mut mesh = Mesh::new(4, 1, |d| {
        issuing(d);
        keyed(d);
    });
    let token = minted(&mesh, |_| ());
    let mut pool = pool_of(&mut mesh, &token);
    let pair = (pool.relay, pool.keyer);
    let mut grant = mesh.fleet.probe_grant(mesh.state(), CLIENT, vec![pair]).grant;
    grant.client_key = token.token.key;
    pool.probe = Some(mesh.fleet.sign_probe(grant, 0));
    let command = by(&mesh, &token, ClientCommand::OpenPool(pool));
    mesh.refuses(command, Refusal::BadProbeGrant);
}

/// A grant that is changed takes its tokens along, pools that stand included.
#[test]
fn a_token_is_never_wider_than_its_issuer_is_now() {
    type Case = (&'static str, fn(&mut PolicyDocument), Refusal);
    let cases: &[Case] = &[
        ("revoked", |d| d.client[0].revoked = true, Refusal::ClientRevoked),
        (
            "expired",
            |d| d.client[0].expires = "2024-10-04T11:00:00Z".parse().unwrap(),
            Refusal::ClientExpired,
        ),
        ("narrowed", |d| d.client[0].routes = vec!["other".into()], Refusal::OutOfScope),
        ("removed", |d| drop(d.client.remove(0)), Refusal::UnknownClient),
        ("no longer an issuer", |d| d.client[0].token_lifetime_ms_max = None, Refusal::MayNotIssue),
        (
            "of shorter tokens",
            |d| d.client[0].token_lifetime_ms_max = Some(LIFETIME - 1),
            Refusal::TokenTooLong,
        ),
        ("with another key", |d| d.client[0].key = client_document("new").key, Refusal::BadToken),
        ("without requests", |d| d.client[0].requests_per_day = 1, Refusal::RequestBudgetExceeded),
        ("with limited money", |d| d.client[0].money_per_day = Some(1), Refusal::PriceRequired),
    ];
    for (what, edit, refusal) in cases {
        let mut mesh = mesh();
        let token = minted(&mesh, |_| ());
        let pool = opened(&mut mesh, &token);
        assert_eq!(ask(&mut mesh, &token, &pool).1, Outcome::Authorised);
        let change = mesh.fleet.change_policy(edit);
        assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }), "{what}");
        assert_eq!(ask(&mut mesh, &token, &pool).1, Outcome::Refused(*refusal), "{what}");
        let of_requests = [Refusal::RequestBudgetExceeded, Refusal::PriceRequired];
        if mesh.state().policy().clients.contains_key(&name(CLIENT)) && !of_requests.contains(refusal) {
            assert_eq!(open(&mut mesh, &token).1, Outcome::Refused(*refusal), "{what}");
        }
    }
}

#[test]
fn the_custodian_rule_is_the_issuers() {
    let mut mesh = Mesh::new(4, 1, |d| {
        issuing(d);
        d.member[0].custodian = "developers".into();
    });
    let token = minted(&mesh, |_| ());
    let mut pool = mesh.fleet.pool(&mesh.log.state, 2);
    pool.token = Some(Box::new(token.clone()));
    let twin = pool.clone();
    (pool.relay, pool.relay_boot) = (crate::ids::NodeId(1), mesh.fleet.nodes[&crate::ids::NodeId(1)].boot());
    let command = by(&mesh, &token, ClientCommand::OpenPool(pool));
    mesh.refuses(command, Refusal::SameCustodian);
    let command = by(&mesh, &token, ClientCommand::OpenPool(twin));
    assert_eq!(mesh.decide(command), Outcome::PoolOpened);
}

#[test]
fn pools_and_requests_are_whose_they_are() {
    let mut mesh = mesh();
    let token = minted(&mesh, |_| ());
    let twin = minted(&mesh, |t| t.serial = [8; 16]);
    let (own, of_twin, issuers) = (opened(&mut mesh, &token), opened(&mut mesh, &twin), mesh.open_pool());
    assert_eq!(ask(&mut mesh, &token, &issuers).1, Outcome::Refused(Refusal::PoolMismatch));
    assert_eq!(ask(&mut mesh, &token, &of_twin).1, Outcome::Refused(Refusal::PoolMismatch));
    let a = request(&mut mesh, &own);
    let by_issuer = mesh.fleet.client(CLIENT, ClientCommand::Authorise(a));
    mesh.refuses(by_issuer, Refusal::PoolMismatch);
    let (id, outcome) = ask(&mut mesh, &token, &own);
    assert_eq!(outcome, Outcome::Authorised);
    let report = ClientCommand::Report(vec![Fleet::report(id)]);
    let not_yours = Outcome::Reported(vec![(0, Refusal::NotYours)]);
    assert_eq!(mesh.decide(by(&mesh, &twin, report.clone())), not_yours);
    assert_eq!(mesh.decide(mesh.fleet.client(CLIENT, report.clone())), not_yours);
    assert_eq!(mesh.decide(by(&mesh, &token, report)), Outcome::Reported(vec![]));
    // A request signed with a token that nobody has shown.
    let unseen = minted(&mesh, |t| t.serial = [9; 16]);
    assert_eq!(ask(&mut mesh, &unseen, &own).1, Outcome::Refused(Refusal::UnknownToken));
}

#[test]
fn showing_a_token_again_gives_no_new_budget() {
    type Case = (fn(&mut Token), Refusal);
    let cases: [Case; 3] = [
        (|t| t.limits.requests = Some(2), Refusal::TokenRequestsUsedUp),
        (|t| t.limits.bytes = Some(20_000), Refusal::TokenBytesUsedUp),
        (|t| t.limits.money = Some(400), Refusal::TokenMoneyUsedUp),
    ];
    for (limit, refusal) in cases {
        let mut mesh = mesh();
        let token = minted(&mesh, limit);
        let pay = |a: &mut Authorise| {
            (a.price, a.tokens_in_max, a.tokens_out_max) = (Some(PriceId::new("p").unwrap()), 100, 100);
        };
        let ask = |mesh: &mut Mesh, pool: &OpenPool| {
            let mut a = request(mesh, pool);
            pay(&mut a);
            let command = by(mesh, &token, ClientCommand::Authorise(a));
            (command.clone(), mesh.decide(command))
        };
        let pool = opened(&mut mesh, &token);
        let (first, outcome) = ask(&mut mesh, &pool);
        assert_eq!(outcome, Outcome::Authorised);
        assert_eq!(mesh.decide(first), Outcome::Refused(Refusal::Replayed), "{refusal:?}");
        assert_eq!(ask(&mut mesh, &pool).1, Outcome::Authorised, "{refusal:?}");
        assert_eq!(ask(&mut mesh, &pool).1, Outcome::Refused(refusal));
        // The same token once more, and signed once more.
        let again = opened(&mut mesh, &token);
        assert_eq!(ask(&mut mesh, &again).1, Outcome::Refused(refusal));
        let resigned = token.token.clone().sign(mesh.fleet.cluster(), &key(CLIENT));
        let again = opened(&mut mesh, &resigned);
        assert_eq!(ask(&mut mesh, &again).1, Outcome::Refused(refusal));
    }
    let mut mesh = mesh();
    let token = minted(&mesh, |t| t.limits.money = Some(400));
    let pool = opened(&mut mesh, &token);
    assert_eq!(self::ask(&mut mesh, &token, &pool).1, Outcome::Refused(Refusal::PriceRequired));
}

#[test]
fn an_issuer_takes_tokens_back_used_or_not() {
    let mut mesh = mesh();
    let (used, unused) = (minted(&mesh, |_| ()), minted(&mesh, |t| t.serial = [8; 16]));
    let pool = opened(&mut mesh, &used);
    let revoke = |t: &SignedToken| ClientCommand::RevokeToken(Box::new(t.token.clone()));
    // Nobody else may, its holder included.
    mesh.refuses(mesh.fleet.client("mate", revoke(&used)), Refusal::NotYours);
    let own = by(&mesh, &used, revoke(&used));
    mesh.refuses(own, Refusal::NotYours);
    let own = by(&mesh, &used, revoke(&unused));
    mesh.refuses(own, Refusal::NotYours);
    assert_eq!(ask(&mut mesh, &used, &pool).1, Outcome::Authorised);
    for token in [&used, &unused] {
        assert_eq!(mesh.decide(mesh.fleet.client(CLIENT, revoke(token))), Outcome::TokenRevoked);
        assert_eq!(open(&mut mesh, token).1, Outcome::Refused(Refusal::TokenRevoked));
    }
    assert_eq!(ask(&mut mesh, &used, &pool).1, Outcome::Refused(Refusal::TokenRevoked));
    let over = minted(&mesh, |t| (t.not_before, t.expires) = (Timestamp(1), Timestamp(2)));
    mesh.refuses(mesh.fleet.client(CLIENT, revoke(&over)), Refusal::TokenExpired);
    // Nor what nobody could ever use: it would fill the table for ever.
    let endless = minted(&mesh, |t| t.expires = Timestamp(u64::MAX));
    mesh.refuses(mesh.fleet.client(CLIENT, revoke(&endless)), Refusal::TokenTooLong);
    let far = minted(&mesh, |t| (t.not_before, t.expires) = (Timestamp(u64::MAX - 1), Timestamp(u64::MAX)));
    mesh.refuses(mesh.fleet.client(CLIENT, revoke(&far)), Refusal::TokenTooLong);
    let mates = Token { issuer: name("mate"), ..terms(&mesh) };
    let body = ClientCommand::RevokeToken(Box::new(mates));
    mesh.refuses(mesh.fleet.client("mate", body), Refusal::MayNotIssue);
    let wide = minted(&mesh, |t| t.routes = vec![route(); 65]);
    mesh.refuses(mesh.fleet.client(CLIENT, revoke(&wide)), Refusal::Oversized);
}

#[test]
fn tokens_that_are_alive_are_bounded_and_so_are_their_pools() {
    let mut mesh = mesh();
    let token = |mesh: &Mesh, n: u32| {
        minted(mesh, |t| {
            t.serial[..4].copy_from_slice(&n.to_le_bytes());
            t.expires = t.not_before.plus_ms(60_000);
        })
    };
    let most = TOKENS_PER_ISSUER_MAX + REVOKED_PER_ISSUER_MAX;
    let all: Vec<_> = (0..most).map(|n| token(&mesh, n)).collect();
    let revoke = |t: &SignedToken| ClientCommand::RevokeToken(Box::new(t.token.clone()));
    let one_more = token(&mesh, most);
    let (first, beside) = all.split_at(TOKENS_PER_ISSUER_MAX as usize);
    for some in [first, beside] {
        let commands = some.iter().map(|t| mesh.fleet.client(CLIENT, revoke(t))).collect();
        assert!(mesh.apply(commands).outcomes.iter().all(|o| o.1 == Outcome::TokenRevoked));
        assert_eq!(open(&mut mesh, &one_more).1, Outcome::Refused(Refusal::TooManyTokens));
    }
    mesh.refuses(mesh.fleet.client(CLIENT, revoke(&one_more)), Refusal::TooManyTokens);
    for _ in 0..4 {
        mesh.wait(20_000);
        mesh.attest_all();
    }
    let fresh = minted(&mesh, |_| ());
    for _ in 0..crate::state::POOLS_PER_TOKEN_MAX {
        opened(&mut mesh, &fresh);
    }
    assert_eq!(open(&mut mesh, &fresh).1, Outcome::Refused(Refusal::TooManyInFlight));
}

#[test]
fn presentable_says_what_apply_will() {
    use crate::state::presentable;
    let mesh = mesh();
    let policy = mesh.state().policy();
    let grant = &policy.clients[&name(CLIENT)];
    let judge =
        |t: &SignedToken, route: &RouteId| presentable(grant, mesh.fleet.cluster(), t, route, mesh.time);
    assert_eq!(judge(&minted(&mesh, |_| ()), &route()), Ok(()));
    assert_eq!(judge(&minted(&mesh, |_| ()), &other_route()), Err(Refusal::OutOfScope));
    let wide = minted(&mesh, |t| t.routes.push(RouteId::new("forbidden").unwrap()));
    assert_eq!(judge(&wide, &route()), Err(Refusal::TokenTooWide));
    let forged = terms(&mesh).sign(mesh.fleet.cluster(), &key("mate"));
    assert_eq!(judge(&forged, &route()), Err(Refusal::BadToken));
    let over = minted(&mesh, |t| (t.not_before, t.expires) = (Timestamp(1), Timestamp(2)));
    assert_eq!(judge(&over, &route()), Err(Refusal::TokenExpired));
}
