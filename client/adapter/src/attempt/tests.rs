//! Each case scripts what routes do and checks whom was asked, what came back, and what is left open. Time is virtual.
use super::*;
use crate::config::Tries;
use crate::health::Verdict;
use crate::testing::{Act, Fake, cut, lost, ok, route, status};
use quorate_client::{Darkness, MeshRefusal, Target as Aim};
use quorate_dialects::{Dialect, Flavour};

struct Bench {
    fake: Fake,
    plan: Plan,
    book: Book,
}

impl Bench {
    fn new(acts: &[(&str, Vec<Act>)]) -> Self {
        let mut fake = Fake::new(acts.iter().map(|(n, _)| route(n, Dialect::OpenAi, &["*"])).collect());
        for (name, acts) in acts {
            fake = fake.acts(name, acts.clone());
        }
        let target = |r: &std::sync::Arc<crate::upstream::Route>| Target {
            key: r.name.clone(),
            route: r.clone(),
            model: "m".into(),
            flavour: Flavour::OpenAi,
        };
        let plan = Plan {
            targets: fake.routes.iter().map(target).collect(),
            tries: Tries {
                attempts_max: 3,
                connect_ms: 500,
                first_byte_ms: 2_000,
                idle_ms: 5_000,
                total_ms: 10_000,
            },
            hedge_after: None,
            repeat_unanswered: false,
        };
        Self { fake, plan, book: Book::default() }
    }

    async fn run(&self) -> Outcome {
        let prepare = |target: &Target| Prepared {
            request: Request::post_json(Aim::Route(target.route.name.clone()), "/v1/chat/completions", "{}"),
            target: target.clone(),
        };
        let prepared: Vec<_> = self.plan.targets.iter().map(prepare).collect();
        run(&self.fake, &self.plan, &prepared, &self.book, &mut || 0.5).await
    }

    /// The end in a word, and what came of each attempt.
    async fn told(&self) -> (String, Vec<(usize, Came)>) {
        let outcome = self.run().await;
        let end = match &outcome.ended {
            Ended::Answered(answer) => format!("answered {}", answer.status.as_u16()),
            Ended::Held(held) => format!("held {}", held.status.as_u16()),
            Ended::Failed(error) => format!("failed {}", error.code()),
            Ended::TimedOut(what, _) => format!("timed out: {what}"),
            Ended::AllOpen(_) => "all open".into(),
        };
        (end, outcome.tried.iter().map(|t| (t.target, t.came)).collect())
    }
}

fn refused(fault: Fault, retry: Retry) -> Error {
    let text = String::new;
    Error::Refused(MeshRefusal { code: "x".into(), message: text(), hint: text(), retry, fault })
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_and_where() {
    use Came as C;
    let fail = |e: Error| vec![Act::Fail(e)];
    let dark = Error::Dark(Darkness { attested: 1, quorum: 3, missing: vec![] });
    // First route's act; the end; what came of each attempt. The second route answers.
    let table = vec![
        ("plain", vec![ok("a")], "answered 200", vec![(0, C::Answered)]),
        ("the caller's mistake", vec![status(400)], "held 400", vec![(0, C::Answered)]),
        ("another mistake", vec![status(422)], "held 422", vec![(0, C::Answered)]),
        ("5xx", vec![status(500)], "answered 200", vec![(0, C::Status(500)), (1, C::Answered)]),
        ("529", vec![status(529)], "answered 200", vec![(0, C::Status(529)), (1, C::Answered)]),
        ("429", vec![status(429)], "answered 200", vec![(0, C::Status(429)), (1, C::Answered)]),
        ("its key", vec![status(401)], "answered 200", vec![(0, C::Status(401)), (1, C::Answered)]),
        ("its models", vec![status(404)], "answered 200", vec![(0, C::Status(404)), (1, C::Answered)]),
        ("a node", fail(lost()), "answered 200", vec![(0, C::Failed), (1, C::Answered)]),
        (
            "unreachable",
            fail(Error::ProviderUnreachable { host: "h".into(), reason: "r".into() }),
            "answered 200",
            vec![(0, C::Failed), (1, C::Answered)],
        ),
        (
            "never",
            fail(Error::ProviderSuite { host: "h".into() }),
            "answered 200",
            vec![(0, C::Failed), (1, C::Answered)],
        ),
        ("perhaps charged", fail(cut()), "failed truncated", vec![(0, C::Failed)]),
        ("no quorum", fail(dark), "failed dark", vec![(0, C::Failed)]),
        ("silent", vec![Act::Silence], "timed out: the answer's first byte", vec![(0, C::NoAnswer)]),
        ("unsent", vec![Act::Unsent], "answered 200", vec![(0, C::NoConnection), (1, C::Answered)]),
    ];
    for (case, acts, end, tried) in table {
        let bench = Bench::new(&[("a", acts), ("b", vec![ok("b")])]);
        let (told, came) = bench.told().await;
        assert_eq!((told.as_str(), came), (end, tried), "{case}");
        assert_eq!(bench.fake.open(), 0, "{case}: nothing stays open");
    }
}

#[tokio::test(start_paused = true)]
async fn with_leave_what_was_not_answered_is_sent_again() {
    for act in [Act::Fail(cut()), Act::Silence] {
        let mut bench = Bench::new(&[("a", vec![act]), ("b", vec![ok("b")])]);
        bench.plan.repeat_unanswered = true;
        assert_eq!(bench.told().await.0, "answered 200");
        assert_eq!(bench.fake.sent(), ["a", "b"]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_route_is_asked_again_only_for_what_never_left() {
    let begun = Instant::now();
    let bench = Bench::new(&[("a", vec![Act::FailUnsent(lost()), Act::Fail(lost()), ok("a")])]);
    assert_eq!(bench.told().await.0, "answered 200");
    // Three quarters of 200 ms and of 400 ms, as the dice fell.
    assert_eq!(begun.elapsed(), Duration::from_millis(450), "the pauses grow");
    let bench = Bench::new(&[("a", vec![Act::Fail(lost())])]);
    assert_eq!(
        bench.told().await,
        ("failed node_lost".into(), vec![(0, Came::Failed); 3]),
        "and not for ever"
    );
    let bench = Bench::new(&[("a", vec![status(503), ok("a")])]);
    assert_eq!(bench.told().await.0, "held 503", "SDKs repeat that themselves, when the provider said");
    let bench = Bench::new(&[("a", vec![Act::Fail(refused(Fault::Client, Retry::Later)), ok("a")])]);
    assert_eq!(bench.told().await.0, "failed x", "a budget is not asked twice");
}

#[tokio::test(start_paused = true)]
async fn the_last_word_is_the_last_providers() {
    let bench = Bench::new(&[("a", vec![status(500)]), ("b", vec![status(429)])]);
    let outcome = bench.run().await;
    let Ended::Held(held) = outcome.ended else { panic!("not held") };
    assert_eq!((held.status.as_u16(), outcome.target), (429, 1));
    assert_eq!(held.headers["retry-after"], "7");
    assert_eq!(&held.body[..], b"{\"error\":{}}");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_named() {
    let bench = Bench::new(&[("a", vec![status(500)]), ("b", vec![ok("b")])]);
    let outcome = bench.run().await;
    let ids: Vec<u8> =
        outcome.tried.iter().flat_map(|t| t.trail.attempts()).map(|a| a.request.0[0]).collect();
    assert_eq!(ids, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn time_is_bounded_in_all() {
    let begun = Instant::now();
    let mut bench = Bench::new(&[("a", vec![Act::Fail(lost())])]);
    bench.plan.tries = Tries { attempts_max: 32, total_ms: 3_000, ..bench.plan.tries };
    assert_eq!(bench.told().await.0, "timed out: the request");
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    let begun = Instant::now();
    let mut bench = Bench::new(&[("a", vec![Act::Silence])]);
    bench.plan.tries.total_ms = 1_000;
    assert_eq!(bench.told().await, ("timed out: the request".into(), vec![(0, Came::NoAnswer)]));
    assert_eq!((begun.elapsed(), bench.fake.open()), (Duration::from_secs(1), 0));
    let ceiling = bench.fake.last().duration_max.unwrap();
    assert_eq!(ceiling, Duration::from_secs(1), "the mesh hears of it too");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_takes_the_first_answer_and_cancels_the_other() {
    let slow = |ms, text| Act::Slow(Duration::from_millis(ms), Box::new(ok(text)));
    let hedged = |a: Act, b: Act| {
        let mut bench = Bench::new(&[("a", vec![a]), ("b", vec![b])]);
        bench.plan.hedge_after = Some(Duration::from_millis(100));
        bench.plan.repeat_unanswered = true;
        bench
    };
    let bench = hedged(slow(50, "a"), ok("b"));
    assert_eq!(bench.told().await.1, [(0, Came::Answered)], "in time: no second request");
    let bench = hedged(slow(1_000, "a"), slow(200, "b"));
    let begun = Instant::now();
    assert_eq!(bench.told().await.1, [(0, Came::Outrun), (1, Came::Answered)]);
    assert_eq!((begun.elapsed(), bench.fake.open()), (Duration::from_millis(300), 0));
    let bench = hedged(slow(400, "a"), status(500));
    assert_eq!(bench.told().await.1, [(0, Came::Answered), (1, Came::Status(500))]);
    let bench = hedged(Act::Slow(Duration::from_millis(200), Box::new(Act::Fail(cut()))), slow(400, "b"));
    assert_eq!(bench.told().await.1, [(0, Came::Failed), (1, Came::Answered)]);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_request_cancels_it() {
    let bench = Bench::new(&[("a", vec![Act::Silence])]);
    {
        let running = bench.run();
        tokio::pin!(running);
        let _ = tokio::time::timeout(Duration::from_millis(10), &mut running).await;
        assert_eq!(bench.fake.open(), 1);
    }
    assert_eq!(bench.fake.open(), 0);
    assert_eq!(
        bench.book.verdict("a", std::time::Instant::now()),
        Verdict::Closed,
        "no word against the route"
    );
}

#[tokio::test(start_paused = true)]
async fn a_broken_route_is_passed_over_and_found_again() {
    let bench = Bench::new(&[("a", vec![status(500)]), ("b", vec![ok("b")])]);
    for _ in 0..5 {
        assert_eq!(bench.told().await.1.len(), 2);
    }
    assert_eq!(bench.told().await.1, [(1, Came::Answered)], "open: not asked");
    // Alone it is asked all the same, by one at a time.
    let alone = Bench { book: bench.book.clone(), ..Bench::new(&[("a", vec![ok("a")])]) };
    let probe = alone.book.admit("a", std::time::Instant::now(), true).unwrap();
    assert_eq!(alone.told().await.0, "all open");
    drop(probe);
    assert_eq!(alone.told().await.0, "answered 200");
    assert_eq!(bench.told().await.0, "held 500".replace("held 500", "answered 200"));
    assert_eq!(alone.book.verdict("a", std::time::Instant::now()), Verdict::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_error_answer_without_end_is_passed_on_as_it_comes() {
    let bench = Bench::new(&[("a", vec![Act::Hang(500)]), ("b", vec![ok("b")])]);
    let outcome = bench.run().await;
    let Ended::Answered(mut answer) = outcome.ended else { panic!("held") };
    assert_eq!(answer.status.as_u16(), 500);
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "data: 1\n\n", "what was read is not lost");
}
