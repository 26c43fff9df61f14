//! Budgets through the whole state machine: each limit, once; then whatever order requests, words and deadlines come in.
use crate::command::*;
use crate::ids::{ClientId, PriceId, RequestId, TeamId, Timestamp};
use crate::leaf::{AnomalyRule, Leaf, LeafBody, Outcome};
use crate::policy::{ClientDocument, PolicyDocument, PriceDocument, TeamDocument};
use crate::refusal::Refusal;
use crate::state::{Applied, REFUSAL_LEAVES_MAX, State, Usage};
use crate::testing::*;
use proptest::prelude::*;

const PRICE: &str = "vendor/model";
const TEAM: &str = "research";

fn price_document() -> PriceDocument {
    PriceDocument {
        name: PRICE.into(),
        routes: vec![ROUTE.into()],
        input: 3_000_000,
        cached_input: Some(300_000),
        output: 15_000_000,
        request: 100,
        ..PriceDocument::default()
    }
}

/// The client is in a team, and there is a price.
fn governed(d: &mut PolicyDocument) {
    d.price.push(price_document());
    d.team.push(TeamDocument { name: TEAM.into(), ..TeamDocument::default() });
    d.client[0].team = Some(TEAM.into());
}

fn price() -> Option<PriceId> {
    Some(PriceId::new(PRICE).unwrap())
}

/// 3 and 15 micro-units a token, 100 a request.
fn cost(fresh: u64, cached: u64, output: u64) -> u64 {
    fresh * 3 + (cached * 3).div_ceil(10) + output * 15 + 100
}

fn client() -> ClientId {
    ClientId::new(CLIENT).unwrap()
}

fn usage(mesh: &Mesh) -> Usage {
    mesh.state().usage(&client()).unwrap_or_default()
}

fn team(mesh: &Mesh) -> Usage {
    let id = TeamId::new(TEAM).unwrap();
    mesh.state().usage_by_team(None).find(|(t, _)| **t == id).map(|(_, u)| u).unwrap_or_default()
}

/// A request of so many tokens at most, decided.
fn ask(mesh: &mut Mesh, pool: &OpenPool, tokens: (u64, u64)) -> (RequestId, Outcome) {
    let (id, command) = mesh.request_with(pool, |a| {
        (a.price, a.tokens_in_max, a.tokens_out_max) = (price(), tokens.0, tokens.1);
    });
    (id, mesh.decide(command))
}

fn settled(mesh: &mut Mesh, pool: &OpenPool, id: RequestId, bytes: (u64, u64)) -> Applied {
    let word = Settlement { bytes_up: bytes.0, bytes_down: bytes.1, ..Fleet::settlement(id) };
    mesh.apply(vec![mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![word]))])
}

fn reported(mesh: &mut Mesh, id: RequestId, (input, cached, output): (u64, u64, u64)) -> Applied {
    let word = Report { tokens_in: input, tokens_cached: cached, tokens_out: output, ..Fleet::report(id) };
    mesh.apply(vec![mesh.fleet.client(CLIENT, ClientCommand::Report(vec![word]))])
}

fn anomaly(applied: &Applied) -> Option<AnomalyRule> {
    applied.leaves.iter().find_map(|l| match l.leaf() {
        Leaf::V1 { body: LeafBody::Anomaly { rule, .. }, .. } => Some(*rule),
        _ => None,
    })
}

/// Each limit of client and team: two requests fit, the third meets exactly that one, and nothing of it is held anywhere.
#[test]
fn each_limit_refuses_by_its_own_name() {
    type Case = (fn(&mut ClientDocument, &mut TeamDocument, [u64; 3]), Refusal);
    let cases: [Case; 18] = [
        (|c, _, [n, ..]| c.requests_per_minute = n, Refusal::RateExceeded),
        (|c, _, [n, ..]| c.requests_per_day = n, Refusal::RequestBudgetExceeded),
        (|c, _, [n, ..]| c.requests_per_month = Some(n), Refusal::ClientRequestsPerMonth),
        (|c, _, [_, n, _]| c.bytes_per_minute = Some(n), Refusal::ClientBytesPerMinute),
        (|c, _, [_, n, _]| c.bytes_per_day = n, Refusal::ByteBudgetExceeded),
        (|c, _, [_, n, _]| c.bytes_per_month = Some(n), Refusal::ClientBytesPerMonth),
        (|c, _, [.., n]| c.money_per_minute = Some(n), Refusal::ClientMoneyPerMinute),
        (|c, _, [.., n]| c.money_per_day = Some(n), Refusal::ClientMoneyPerDay),
        (|c, _, [.., n]| c.money_per_month = Some(n), Refusal::ClientMoneyPerMonth),
        (|_, t, [n, ..]| t.requests_per_minute = Some(n), Refusal::TeamRequestsPerMinute),
        (|_, t, [n, ..]| t.requests_per_day = Some(n), Refusal::TeamRequestsPerDay),
        (|_, t, [n, ..]| t.requests_per_month = Some(n), Refusal::TeamRequestsPerMonth),
        (|_, t, [_, n, _]| t.bytes_per_minute = Some(n), Refusal::TeamBytesPerMinute),
        (|_, t, [_, n, _]| t.bytes_per_day = Some(n), Refusal::TeamBytesPerDay),
        (|_, t, [_, n, _]| t.bytes_per_month = Some(n), Refusal::TeamBytesPerMonth),
        (|_, t, [.., n]| t.money_per_minute = Some(n), Refusal::TeamMoneyPerMinute),
        (|_, t, [.., n]| t.money_per_day = Some(n), Refusal::TeamMoneyPerDay),
        (|_, t, [.., n]| t.money_per_month = Some(n), Refusal::TeamMoneyPerMonth),
    ];
    // What two requests hold, exactly.
    let two = [2, 20_000, 2 * cost(100, 0, 100)];
    for (limit, refusal) in cases {
        let mut mesh = Mesh::new(4, 1, |d| {
            governed(d);
            limit(&mut d.client[0], &mut d.team[0], two);
        });
        let pool = mesh.open_pool();
        for _ in 0..2 {
            assert_eq!(ask(&mut mesh, &pool, (100, 100)).1, Outcome::Authorised, "{refusal:?}");
        }
        let before = (usage(&mesh), team(&mesh), mesh.state().usage_by_day().clone());
        assert_eq!(before.0.day.requests, 2);
        assert_eq!(ask(&mut mesh, &pool, (100, 100)).1, Outcome::Refused(refusal));
        assert_eq!(before, (usage(&mesh), team(&mesh), mesh.state().usage_by_day().clone()), "{refusal:?}");
        // One less of everything, and it is refused one request earlier.
        let less = two.map(|n| n - 1);
        let mut mesh = Mesh::new(4, 1, |d| {
            governed(d);
            limit(&mut d.client[0], &mut d.team[0], less);
        });
        let pool = mesh.open_pool();
        assert_eq!(ask(&mut mesh, &pool, (100, 100)).1, Outcome::Authorised);
        assert_eq!(ask(&mut mesh, &pool, (100, 100)).1, Outcome::Refused(refusal));
    }
}

#[test]
fn a_team_is_shared_and_other_clients_are_not_in_it() {
    let mut mesh = Mesh::new(4, 1, |d| {
        governed(d);
        d.team[0].requests_per_day = Some(2);
        let mate = ClientDocument { team: Some(TEAM.into()), ..client_document("mate") };
        d.client.extend([mate, client_document("stranger")]);
    });
    let mut ask = |name: &str| {
        let pool = mesh.fleet.pool(&mesh.log.state, 1);
        let open = mesh.fleet.client(name, ClientCommand::OpenPool(pool.clone()));
        assert_eq!(mesh.decide(open), Outcome::PoolOpened);
        let mut request = mesh.fleet.request(&mesh.log.state, &pool);
        request.expires = mesh.time.plus_ms(30_000);
        mesh.decide(mesh.fleet.client(name, ClientCommand::Authorise(request)))
    };
    assert_eq!([ask(CLIENT), ask("mate")], [Outcome::Authorised, Outcome::Authorised]);
    assert_eq!(ask("mate"), Outcome::Refused(Refusal::TeamRequestsPerDay));
    assert_eq!(ask(CLIENT), Outcome::Refused(Refusal::TeamRequestsPerDay));
    assert_eq!(ask("stranger"), Outcome::Authorised);
}

#[test]
fn limited_money_needs_a_price_that_fits_the_route() {
    type Limit = fn(&mut PolicyDocument);
    let limits: [(Limit, bool); 3] = [
        (|_| (), false),
        (|d| d.client[0].money_per_month = Some(1 << 40), true),
        (|d| d.team[0].money_per_minute = Some(1 << 40), true),
    ];
    for (limit, required) in limits {
        let mut mesh = Mesh::new(4, 1, |d| {
            governed(d);
            d.route.push(route_document("other"));
            d.price.push(PriceDocument {
                name: "elsewhere".into(),
                routes: vec!["other".into()],
                ..price_document()
            });
            limit(d);
        });
        let pool = mesh.open_pool();
        let mut paid_by = |price: Option<&str>| {
            let price = price.map(|p| PriceId::new(p).unwrap());
            let (_, command) = mesh.request_with(&pool, |a| a.price = price);
            mesh.decide(command)
        };
        let without = if required { Outcome::Refused(Refusal::PriceRequired) } else { Outcome::Authorised };
        assert_eq!(paid_by(None), without);
        assert_eq!(paid_by(Some("elsewhere")), Outcome::Refused(Refusal::PriceNotForRoute));
        assert_eq!(paid_by(Some("no-such")), Outcome::Refused(Refusal::PriceNotForRoute));
        assert_eq!(paid_by(Some(PRICE)), Outcome::Authorised);
    }
}

#[test]
fn money_is_held_then_charged_as_reported() {
    let mut mesh = Mesh::new(4, 1, governed);
    let pool = mesh.open_pool();
    let (id, outcome) = ask(&mut mesh, &pool, (200, 300));
    assert_eq!(outcome, Outcome::Authorised);
    let held = cost(200, 0, 300);
    assert_eq!((usage(&mesh).day.money, usage(&mesh).day.reserved_money), (0, held));
    settled(&mut mesh, &pool, id, (512, 2048));
    assert_eq!(usage(&mesh).day.reserved_money, held, "until the client has spoken too");
    let applied = reported(&mut mesh, id, (120, 20, 250));
    assert_eq!(anomaly(&applied), None);
    for used in [usage(&mesh), team(&mesh)] {
        for window in [used.minute, used.day, used.month] {
            assert_eq!((window.money, window.reserved_money), (cost(100, 20, 250), 0));
            assert_eq!((window.tokens.input, window.tokens.cached, window.tokens.output), (120, 20, 250));
        }
    }
    let (_, route) = mesh.state().usage_by_route(None).next().unwrap();
    assert_eq!((route.day.money, route.in_flight), (cost(100, 20, 250), 0));
}

/// Who hangs up before the answer says what it cost does not have it for nothing.
#[test]
fn an_answer_without_tokens_is_charged_as_one_that_was_never_reported() {
    let mut mesh = Mesh::new(4, 1, governed);
    let pool = mesh.open_pool();
    let (id, _) = ask(&mut mesh, &pool, (200, 300));
    settled(&mut mesh, &pool, id, (512, 0));
    assert_eq!(anomaly(&reported(&mut mesh, id, (0, 0, 0))), None);
    assert_eq!(
        usage(&mesh).day.money,
        cost(200, 0, 256),
        "its ceiling, and what no bytes down can have carried"
    );
    // An error costs no tokens.
    let (id, _) = ask(&mut mesh, &pool, (200, 300));
    settled(&mut mesh, &pool, id, (512, 512));
    let before = usage(&mesh).day.money;
    let error = Report { status: 429, tokens_in: 0, tokens_out: 0, error_form: true, ..Fleet::report(id) };
    mesh.apply(vec![mesh.fleet.client(CLIENT, ClientCommand::Report(vec![error]))]);
    assert_eq!((usage(&mesh).day.money, usage(&mesh).day.reserved_money), (before + cost(0, 0, 0), 0));
}

/// More than bytes, or than its own ceilings: an anomaly, and charged as said, up to what was held.
#[test]
fn tokens_that_do_not_fit_are_charged_at_the_bound() {
    type Case = ((u64, u64), (u64, u64), (u64, u64), Option<AnomalyRule>, (u64, u64));
    let (bytes, ceilings) = (Some(AnomalyRule::TokensExceedBytes), Some(AnomalyRule::TokensExceedCeilings));
    let all = (u64::MAX, u64::MAX);
    let cases: [Case; 8] = [
        // ceilings, bytes, tokens said; anomaly, tokens charged
        (all, (256, 1024), (512, 1280), None, (512, 1280)),
        (all, (256, 1024), (513, 0), bytes, (513, 0)),
        (all, (256, 1024), (0, 1281), bytes, (0, 1281)),
        (all, (256, 1024), (u64::MAX, u64::MAX), bytes, (1256, 9256)),
        ((100, 200), (256, 1024), (100, 200), None, (100, 200)),
        ((100, 200), (256, 1024), (101, 0), ceilings, (100, 0)),
        ((100, 200), (256, 1024), (0, 201), ceilings, (0, 200)),
        ((100, 200), (256, 1024), (513, 0), bytes, (100, 0)),
    ];
    for (at_most, moved, (input, output), rule, charged) in cases {
        let mut mesh = Mesh::new(4, 1, governed);
        let pool = mesh.open_pool();
        let (id, _) = ask(&mut mesh, &pool, at_most);
        settled(&mut mesh, &pool, id, moved);
        let applied = reported(&mut mesh, id, (input, 0, output));
        assert_eq!(anomaly(&applied), rule, "{at_most:?} {input} {output}");
        let day = usage(&mesh).day;
        assert_eq!((day.tokens.input, day.tokens.output), charged);
        assert_eq!((day.money, day.reserved_money), (cost(charged.0, 0, charged.1), 0));
    }
}

/// One relay that counts too few bytes, or none, makes nothing cheaper for a client that says what it had.
#[test]
fn a_relay_that_counts_too_few_bytes_takes_nothing_off_the_price() {
    let said = (700, 100, 3000);
    let charged = |moved: (u64, u64), word: fn(&mut Report)| {
        let mut mesh = Mesh::new(4, 1, governed);
        let pool = mesh.open_pool();
        let (id, _) = ask(&mut mesh, &pool, (1000, 4000));
        settled(&mut mesh, &pool, id, moved);
        let (tokens_in, tokens_cached, tokens_out) = said;
        let mut report = Report { tokens_in, tokens_cached, tokens_out, ..Fleet::report(id) };
        word(&mut report);
        let applied = mesh.apply(vec![mesh.fleet.client(CLIENT, ClientCommand::Report(vec![report]))]);
        assert_eq!(usage(&mesh).day.reserved_money, 0);
        (usage(&mesh).day.money, anomaly(&applied))
    };
    let due = cost(600, 100, 3000);
    assert_eq!(charged((1024, 8192), |_| ()), (due, None));
    assert_eq!(charged((256, 256), |_| ()), (due, Some(AnomalyRule::TokensExceedBytes)));
    assert_eq!(charged((0, 0), |_| ()), (due, Some(AnomalyRule::TokensExceedBytes)));
    // Nothing went up, says the relay; an answer came, says the client, and how long it was it does not know.
    let silent: fn(&mut Report) = |r| (r.tokens_in, r.tokens_cached, r.tokens_out) = (0, 0, 0);
    assert_eq!(charged((0, 0), silent), (cost(1000, 0, 4000), Some(AnomalyRule::EndsDiffer)));
    // Both say that nothing came of it.
    let never: fn(&mut Report) = |r| {
        (r.tokens_in, r.tokens_cached, r.tokens_out, r.status) = (0, 0, 0, 0);
        r.ended = Ended::Unreachable;
    };
    assert_eq!(charged((0, 0), never), (0, None));
}

/// Refusals of one client fill nobody's log: so many leaves a minute, and as many of its tokens; and those that leave none change
/// nothing, so that a replay from the leaves comes to the same state.
#[test]
fn refusals_leave_no_more_leaves_than_their_part() {
    let mut mesh = Mesh::new(4, 1, |d| {
        governed(d);
        d.client.push(client_document("mate"));
        d.client[0].requests_per_minute = 1;
    });
    let mut twin = mesh.log.clone();
    let pool = mesh.open_pool();
    twin.apply(mesh.time, commands_of(mesh.applied.last().unwrap()), &mesh.fleet.blobs);
    assert_eq!(ask(&mut mesh, &pool, (1, 1)).1, Outcome::Authorised);
    twin.apply(mesh.time, commands_of(mesh.applied.last().unwrap()), &mesh.fleet.blobs);
    let most = REFUSAL_LEAVES_MAX as usize;
    let mut leaves = 0;
    let mut in_vain = |mesh: &mut Mesh, twin: &mut Log, at: usize| {
        let over = mesh.request_with(&pool, |a| a.price = price()).1;
        let wrong = mesh.request_with(&pool, |a| a.policy.0 += 1).1;
        let nobodys = Report { request: RequestId([at as u8; 16]), ..Fleet::report(RequestId([0; 16])) };
        let nobodys = mesh.fleet.client(CLIENT, ClientCommand::Report(vec![nobodys]));
        let elsewhere = mesh.pool_with(|p| p.expires = Timestamp(1));
        let applied = mesh.apply(vec![over, wrong, nobodys, elsewhere]);
        let codes: Vec<_> = applied.outcomes.iter().map(|o| o.1.clone()).collect();
        let refused = |r| Outcome::Refused(r);
        assert_eq!(codes[0], refused(Refusal::RateExceeded));
        assert_eq!(codes[1], refused(Refusal::StalePolicy));
        assert_eq!(codes[2], Outcome::Reported(vec![(0, Refusal::UnknownRequest)]));
        assert_eq!(codes[3], refused(Refusal::PoolTooLong));
        let kept = commands_of(&applied);
        leaves += kept.len();
        assert_eq!(applied.outcomes.iter().filter(|o| o.2.is_some()).count(), kept.len());
        twin.apply(mesh.time, kept, &mesh.fleet.blobs);
        assert_eq!(twin.state.digest(), mesh.state().digest(), "replayed from its leaves");
        leaves
    };
    for at in 0..most / 4 + 3 {
        let so_far = in_vain(&mut mesh, &mut twin, at);
        assert_eq!(so_far, most.min(4 * (at + 1)));
    }
    // Others have theirs, what is granted leaves leaves as ever, and the next minute has its own part.
    let others = mesh.fleet.client("mate", ClientCommand::Report(vec![]));
    let opened = mesh.pool_with(|_| ());
    let applied = mesh.apply(vec![others, opened]);
    assert_eq!(commands_of(&applied).len(), 2);
    twin.apply(mesh.time, commands_of(&applied), &mesh.fleet.blobs);
    let from = mesh.log.leaves.len();
    mesh.time = Timestamp(mesh.time.0.next_multiple_of(60_000));
    let _next = ask(&mut mesh, &pool, (1, 1));
    assert_eq!(ask(&mut mesh, &pool, (1, 1)).1, Outcome::Refused(Refusal::RateExceeded));
    assert_eq!(mesh.log.leaves.len() - from, 4, "each with its batch's end");
}

/// Pools that end at once count for a minute all the same.
#[test]
fn no_more_pools_are_opened_in_a_minute_than_may_be_open() {
    let mut mesh = Mesh::four();
    let brief = |mesh: &mut Mesh| {
        let expires = mesh.time.plus_ms(2);
        let command = mesh.pool_with(|p| p.expires = expires);
        mesh.decide(command)
    };
    for _ in 0..256 {
        assert_eq!(brief(&mut mesh), Outcome::PoolOpened);
    }
    assert_eq!(brief(&mut mesh), Outcome::Refused(Refusal::TooManyInFlight));
    for _ in 0..4 {
        mesh.wait(16_000);
        mesh.attest_all();
    }
    assert_eq!(brief(&mut mesh), Outcome::PoolOpened);
}

#[test]
fn admins_may_allow_for_tokens_that_no_byte_carries() {
    let mut mesh = Mesh::new(4, 1, |d| {
        governed(d);
        (d.price[0].unseen_input, d.price[0].unseen_output) = (1000, 5000);
    });
    let pool = mesh.open_pool();
    let asked = |m: &mut Mesh| {
        let (id, _) = ask(m, &pool, (u64::MAX, u64::MAX));
        settled(m, &pool, id, (256, 1024));
        id
    };
    let id = asked(&mut mesh);
    assert_eq!(anomaly(&reported(&mut mesh, id, (1512, 0, 6280))), None);
    let id = asked(&mut mesh);
    let applied = reported(&mut mesh, id, (1512, 0, 6281));
    assert_eq!(anomaly(&applied), Some(AnomalyRule::TokensExceedBytes));
}

#[test]
fn the_models_own_ceilings_bound_what_is_held() {
    let mut mesh = Mesh::new(4, 1, |d| {
        governed(d);
        (d.price[0].input_max, d.price[0].output_max) = (Some(500), Some(700));
    });
    let pool = mesh.open_pool();
    ask(&mut mesh, &pool, (u64::MAX, u64::MAX));
    assert_eq!(usage(&mesh).day.reserved_money, cost(500, 0, 700));
    ask(&mut mesh, &pool, (10, 20));
    assert_eq!(usage(&mesh).day.reserved_money, cost(500, 0, 700) + cost(10, 0, 20));
}

/// Who says nothing pays what it held, as far as bytes allow; who never reached the provider pays nothing.
#[test]
fn what_is_never_reported_is_charged_at_its_deadline() {
    type Case = (Option<(u64, u64)>, Option<(u64, u64)>, u64);
    let cases: [Case; 6] = [
        (None, None, cost(2000 - 744, 0, 9256)),
        (Some((256, 512)), None, cost(512, 0, 768)),
        (Some((0, 0)), None, 0),
        (None, Some((10, 20)), cost(10, 0, 20)),
        (None, Some((u64::MAX, u64::MAX)), cost(2000 - 744, 0, 9256)),
        (Some((0, 0)), Some((10, 20)), cost(10, 0, 20)),
    ];
    for (bytes, tokens, expected) in cases {
        let mut mesh = Mesh::new(4, 1, |d| {
            governed(d);
            d.attestation.settle_ms = 1000;
        });
        let pool = mesh.open_pool();
        // 1,000 and 9,000 bytes at most: as many tokens, and 256 of each.
        let (id, _) = ask(&mut mesh, &pool, (u64::MAX, u64::MAX));
        assert_eq!(usage(&mesh).month.reserved_money, cost(1256, 0, 9256));
        if let Some(bytes) = bytes {
            settled(&mut mesh, &pool, id, bytes);
        }
        if let Some((input, output)) = tokens {
            reported(&mut mesh, id, (input, 0, output));
        }
        let deadline = mesh.state().request(&id).unwrap().deadline;
        mesh.time = Timestamp(deadline.0.max(mesh.time.0 + 1) - 1);
        mesh.apply(vec![]);
        let month = usage(&mesh).month;
        assert_eq!((month.money, month.reserved_money), (expected, 0), "{bytes:?} {tokens:?}");
        mesh.wait(120_000);
        mesh.apply(vec![]);
        assert_eq!(usage(&mesh).month.money, expected, "once");
        assert_eq!(usage(&mesh).in_flight, 0);
    }
}

#[test]
fn a_price_change_reaches_requests_that_begin_after_it() {
    let mut mesh = Mesh::new(4, 1, governed);
    let pool = mesh.open_pool();
    let (id, _) = ask(&mut mesh, &pool, (100, 100));
    let change = mesh.fleet.change_policy(|d| d.price[0].output = 1_500_000_000);
    assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
    settled(&mut mesh, &pool, id, (512, 2048));
    reported(&mut mesh, id, (100, 0, 100));
    assert_eq!(usage(&mesh).day.money, cost(100, 0, 100));
    ask(&mut mesh, &pool, (0, 100));
    assert_eq!(usage(&mesh).day.reserved_money, 100 * 1500 + 100);
}

/// Minute, day and month roll at once: what runs over is charged to the windows it began in, and the new ones are whole.
#[test]
fn what_runs_over_a_months_end_is_charged_to_it() {
    let mut mesh = Mesh::dark(4, 1, |d| {
        governed(d);
        d.client[0].money_per_month = Some(cost(100, 0, 100));
    });
    // 2024-10-31T23:59:50Z.
    mesh.time = Timestamp(1_730_419_190_000);
    mesh.recover();
    let pool = mesh.open_pool();
    let (id, outcome) = ask(&mut mesh, &pool, (100, 100));
    assert_eq!(outcome, Outcome::Authorised);
    assert_eq!(ask(&mut mesh, &pool, (0, 0)).1, Outcome::Refused(Refusal::ClientMoneyPerMonth));
    mesh.time = Timestamp(1_730_419_200_000 - 2);
    assert_eq!(ask(&mut mesh, &pool, (0, 0)).1, Outcome::Refused(Refusal::ClientMoneyPerMonth));
    assert_eq!(ask(&mut mesh, &pool, (100, 100)).1, Outcome::Authorised, "the first of November");
    settled(&mut mesh, &pool, id, (512, 2048));
    reported(&mut mesh, id, (50, 0, 50));
    let month = usage(&mesh).month;
    assert_eq!((month.money, month.reserved_money, month.requests), (0, cost(100, 0, 100), 1));
    let days: Vec<_> = mesh.state().usage_by_day().values().map(|d| (d.requests, d.money)).collect();
    assert_eq!(days, [(1, cost(50, 0, 50)), (1, 0)], "late charges reach their day");
}

#[test]
fn policies_with_wrong_prices_or_teams_are_refused() {
    let parse = |edit: &dyn Fn(&mut PolicyDocument)| {
        let mut document = Fleet::new(4, 1, governed).document;
        edit(&mut document);
        crate::policy::Policy::parse(toml::to_string(&document).unwrap().as_bytes())
    };
    assert!(parse(&|_| ()).is_ok());
    type Case<'a> = (&'a dyn Fn(&mut PolicyDocument), &'a str);
    let cases: [Case; 7] = [
        (&|d| d.client[0].team = Some("none".into()), "client \"app\": no team named \"none\""),
        (&|d| d.price[0].routes = vec!["none".into()], "price \"vendor/model\": no route named \"none\""),
        (&|d| d.price[0].routes = vec![], "price \"vendor/model\": at least one route"),
        (&|d| d.price.push(price_document()), "price \"vendor/model\": the name stands twice"),
        (&|d| d.team.push(d.team[0].clone()), "team \"research\": the name stands twice"),
        (&|d| d.client[0].token_lifetime_ms_max = Some(999), "token_lifetime_ms_max is 1,000 to 86400000"),
        (&|d| d.currency = "in cash".into(), "currency: a name has"),
    ];
    for (edit, expected) in cases {
        let mistakes = parse(edit).unwrap_err();
        assert!(mistakes.0.iter().any(|m| m.contains(expected)), "{expected}: {mistakes:?}");
    }
}

// --- whatever the order ---

#[derive(Debug, Clone)]
enum Op {
    /// A client asks, through one of three relays.
    Ask { client: usize, relay: u64, bytes: (u64, u64), tokens: (u64, u64) },
    /// A relay's word on one of the requests so far.
    Settle { which: usize, bytes: (u64, u64) },
    /// A client's word.
    Report { which: usize, tokens: (u64, u64, u64) },
    /// Something that was sent before arrives once more.
    Again { which: usize },
    /// The batch ends here.
    Next { wait: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..3usize, 1..4u64, (0..2000u64, 0..20_000u64), (0..3000u64, 0..20_000u64))
            .prop_map(|(client, relay, bytes, tokens)| Op::Ask { client, relay, bytes, tokens }),
        3 => (any::<prop::sample::Index>(), (0..30u64, 0..100u64))
            .prop_map(|(i, (up, down))| Op::Settle { which: i.index(1 << 16), bytes: (up * 256, down * 256) }),
        3 => (any::<prop::sample::Index>(), (0..4000u64, 0..4000u64, 0..30_000u64))
            .prop_map(|(i, tokens)| Op::Report { which: i.index(1 << 16), tokens }),
        2 => any::<prop::sample::Index>().prop_map(|i| Op::Again { which: i.index(1 << 16) }),
        3 => prop_oneof![Just(1u64), Just(7_000), Just(19_000)].prop_map(|wait| Op::Next { wait }),
    ];
    prop::collection::vec(op, 1..120)
}

/// What the test itself knows of a request that was sent.
#[derive(Clone)]
struct Sent {
    client: usize,
    relay: crate::ids::NodeId,
    id: RequestId,
    bytes: (u64, u64),
    tokens: (u64, u64),
    authorised: bool,
    settled: Option<(u64, u64)>,
    reported: Option<(u64, u64, u64)>,
}

impl Sent {
    fn ceilings(&self) -> (u64, u64) {
        (self.tokens.0.min(self.bytes.0 + 256), self.tokens.1.min(self.bytes.1 + 256))
    }
    /// What it costs in the end, worked out anew: bytes and micro-units.
    fn due(&self) -> (u64, u64) {
        let held = self.bytes.0 + self.bytes.1;
        let bytes = self.settled.map_or(held, |(up, down)| held.min(up + down));
        if matches!(self.settled, Some((0, _))) && self.reported.is_none() {
            return (bytes, 0);
        }
        let (mut input, mut output) = self.ceilings();
        // No tokens at all of an answer is no word.
        let reported = self.reported.filter(|r| *r != (0, 0, 0));
        let sent = self.settled.filter(|(up, _)| *up > 0);
        if let (Some((up, down)), None) = (sent, reported) {
            (input, output) = (input.min(up + 256), output.min(down + 256));
        }
        let cached = reported.map_or(0, |r| r.1.min(r.0.min(input)));
        if let Some((i, _, o)) = reported {
            (input, output) = (i.min(input), o.min(output));
        }
        (bytes, cost(input - cached, cached, output))
    }
}

const NAMES: [&str; 3] = [CLIENT, "mate", "alone"];

fn limited(d: &mut PolicyDocument) {
    governed(d);
    d.attestation.settle_ms = 1_000;
    for name in &NAMES[1..] {
        d.client.push(client_document(name));
    }
    d.client[1].team = Some(TEAM.into());
    for c in &mut d.client {
        c.requests_per_minute = 6;
        c.bytes_per_minute = Some(60_000);
        c.money_per_minute = Some(300_000);
        c.money_per_month = Some(900_000);
    }
    let t = &mut d.team[0];
    t.requests_per_minute = Some(9);
    t.bytes_per_day = Some(300_000);
    (t.money_per_minute, t.money_per_day) = (Some(400_000), Some(1_000_000));
}

/// No window of anybody stands above its limit.
fn within_limits(state: &State) {
    let policy = state.policy();
    let check = |what: &str, usage: &Usage, limits: &crate::policy::Limits| {
        let windows = [
            (usage.minute, [limits.requests.minute, limits.bytes.minute, limits.money.minute]),
            (usage.day, [limits.requests.day, limits.bytes.day, limits.money.day]),
            (usage.month, [limits.requests.month, limits.bytes.month, limits.money.month]),
        ];
        for (w, limits) in windows {
            let used = [w.requests, w.bytes + w.reserved_bytes, w.money + w.reserved_money];
            for (used, limit) in used.into_iter().zip(limits) {
                assert!(limit.is_none_or(|l| used <= l), "{what}: {used} of {limit:?}");
            }
        }
    };
    for (id, usage) in state.usage_by_client(None) {
        check(id.as_str(), &usage, &policy.clients[id].limits);
    }
    for (id, usage) in state.usage_by_team(None) {
        check(id.as_str(), &usage, &policy.teams[id].limits);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Three clients over three relays, in any order, with duplicates, across the end of a month, on a node that never stops and
    /// on one that is restored from its own snapshot after every entry: no limit is passed, nothing is lost or charged twice.
    #[test]
    fn no_interleaving_passes_a_budget_or_loses_money(ops in ops()) {
        let mut mesh = Mesh::dark(4, 1, limited);
        // 2024-10-31T23:58:50Z.
        mesh.time = Timestamp(1_730_419_130_000);
        mesh.recover();
        let mut pools = Vec::new();
        for name in NAMES {
            for relay in 1..4 {
                let pool = mesh.fleet.pool(&mesh.log.state, relay);
                let open = mesh.fleet.client(name, ClientCommand::OpenPool(pool.clone()));
                prop_assert_eq!(mesh.decide(open), Outcome::PoolOpened);
                pools.push(pool);
            }
        }
        let cluster = mesh.fleet.cluster();
        let mut restored = mesh.log.clone();
        let (mut sent, mut past): (Vec<Sent>, Vec<(Command, Option<usize>)>) = (Vec::new(), Vec::new());
        let mut batch: Vec<(Command, Option<usize>)> = Vec::new();
        let mut said: Vec<(Command, usize, Op)> = Vec::new();
        for op in ops.into_iter().chain([Op::Next { wait: 1 }]) {
            match op.clone() {
                Op::Ask { client, relay, bytes, tokens } => {
                    let pool = pools[client * 3 + relay as usize - 1].clone();
                    let mut a = mesh.fleet.request(&mesh.log.state, &pool);
                    (a.body_bytes_max, a.response_bytes_max) = bytes;
                    (a.tokens_in_max, a.tokens_out_max, a.price) = (tokens.0, tokens.1, price());
                    (a.expires, a.duration_ms_max) = (mesh.time.plus_ms(30_000), 2_000);
                    let id = a.request;
                    let command = mesh.fleet.client(NAMES[client], ClientCommand::Authorise(a));
                    past.push((command, Some(sent.len())));
                    batch.extend(past.last().cloned());
                    let relay = pool.relay;
                    sent.push(Sent {
                        client, relay, id, bytes, tokens, authorised: false, settled: None, reported: None,
                    });
                }
                Op::Settle { which, bytes } if !sent.is_empty() => {
                    let at = which % sent.len();
                    let s = &sent[at];
                    let word = Settlement { bytes_up: bytes.0, bytes_down: bytes.1, ..Fleet::settlement(s.id) };
                    let command = mesh.fleet.node_command(s.relay, NodeCommand::Settle(vec![word]));
                    said.push((command.clone(), at, op));
                    past.push((command, None));
                    batch.extend(past.last().cloned());
                }
                Op::Report { which, tokens } if !sent.is_empty() => {
                    let at = which % sent.len();
                    let s = &sent[at];
                    let word = Report {
                        tokens_in: tokens.0,
                        tokens_cached: tokens.1,
                        tokens_out: tokens.2,
                        ..Fleet::report(s.id)
                    };
                    let command = mesh.fleet.client(NAMES[s.client], ClientCommand::Report(vec![word]));
                    said.push((command.clone(), at, op));
                    past.push((command, None));
                    batch.extend(past.last().cloned());
                }
                Op::Again { which } if !past.is_empty() => {
                    batch.push(past[which % past.len()].clone());
                }
                Op::Settle { .. } | Op::Report { .. } | Op::Again { .. } => {}
                Op::Next { wait } => {
                    mesh.wait(wait);
                    if wait > 1 {
                        let applied = mesh.attest_all();
                        let commands = commands_of(&applied);
                        restored.apply(mesh.time, commands, &mesh.fleet.blobs);
                    }
                    let (commands, asks): (Vec<_>, Vec<_>) = std::mem::take(&mut batch).into_iter().unzip();
                    let applied = mesh.apply(commands.clone());
                    restored.apply(mesh.time, commands.clone(), &mesh.fleet.blobs);
                    let bytes = restored.state.to_bytes();
                    restored.state = State::from_bytes(&bytes, cluster).unwrap();
                    prop_assert_eq!(restored.state.digest(), mesh.state().digest());
                    within_limits(mesh.state());
                    for ((command, ask), (_, outcome, _)) in commands.iter().zip(asks).zip(&applied.outcomes) {
                        if let Some(at) = ask {
                            sent[at].authorised |= *outcome == Outcome::Authorised;
                        }
                        // What was taken of the words, once each.
                        let taken = matches!(outcome, Outcome::Settled(r) | Outcome::Reported(r) if r.is_empty());
                        if taken && let Some((_, at, op)) = said.iter().find(|(c, ..)| c == command) {
                            match op {
                                Op::Settle { bytes, .. } => {
                                    prop_assert!(sent[*at].settled.replace(*bytes).is_none());
                                }
                                Op::Report { tokens, .. } => {
                                    prop_assert!(sent[*at].reported.replace(*tokens).is_none());
                                }
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
        // Everything is over.
        for _ in 0..3 {
            mesh.wait(15_000);
            mesh.attest_all();
        }
        let over = mesh.state();
        for (_, usage) in over.usage_by_client(None).map(|(c, u)| (c.to_string(), u))
            .chain(over.usage_by_team(None).map(|(t, u)| (t.to_string(), u)))
        {
            prop_assert_eq!((usage.in_flight, usage.minute.reserved_money, usage.month.reserved_money), (0, 0, 0));
            prop_assert_eq!((usage.day.reserved_bytes, usage.month.reserved_bytes), (0, 0));
        }
        let due: Vec<_> = sent.iter().filter(|s| s.authorised).map(Sent::due).collect();
        let days = over.usage_by_day().values();
        let total = days.fold((0, 0, 0), |t, d| (t.0 + d.requests, t.1 + d.bytes, t.2 + d.money));
        let bytes: u64 = due.iter().map(|d| d.0).sum();
        let money: u64 = due.iter().map(|d| d.1).sum();
        prop_assert_eq!(total, (due.len() as u64, bytes, money));
        prop_assert!(over.usage_by_day().values().all(|d| (d.reserved_bytes, d.reserved_money) == (0, 0)));
    }
}

/// The commands of an entry, from its leaves.
fn commands_of(applied: &Applied) -> Vec<Command> {
    let command = |l: &crate::state::AppliedLeaf| match l.leaf() {
        Leaf::V1 { body: LeafBody::Decided { command, .. }, .. } => Some(command.clone()),
        _ => None,
    };
    applied.leaves.iter().filter_map(command).collect()
}
