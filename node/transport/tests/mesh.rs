//! Two ends over real sockets: keys, exporters, streams, dead peers, and links that come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod echo;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use echo::{EchoServer, chat, slow, who};
use quorate_transport::{
    Address, AdmissionError, CloseReason, ConnectError, Connected, Expect, Fault, Identity, Incoming,
    KeyMismatch, Limits, Link, LinkError, LinkOptions, LinkState, ListenerStats, Stage, Target, connect,
    grpc_server, is_transport_failure,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Code;

/// Plenty on a loaded machine; what must be fast is asserted apart.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keep-alive interval plus timeout: 2 s + 3 s.
const ALIVE: Duration = Duration::from_secs(5);
/// The same, and as much again for a loaded machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

struct Node {
    identity: Identity,
    address: Address,
    stats: Arc<ListenerStats>,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0", Identity::generate().unwrap(), Limits::default()).await
    }

    async fn start_at(at: &str, identity: Identity, limits: Limits) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let incoming = Incoming::new(listener, &identity, limits).unwrap();
        let (address, stats) = (Address::from(incoming.local_addr()), incoming.stats());
        let task = tokio::spawn(async move {
            grpc_server().add_service(EchoServer).serve_with_incoming(incoming).await.unwrap();
        });
        Self { identity, address, stats, task }
    }

    fn expect(&self) -> Expect {
        Expect::Key(self.identity.public())
    }
}

fn client() -> Identity {
    Identity::generate().unwrap()
}

async fn dial(node: &Node, who: &Identity) -> Connected {
    connect(&node.address, who, node.expect(), PATIENCE).await.unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}"))
}

#[tokio::test]
async fn both_ends_know_the_same_channel() {
    let node = Node::start().await;
    let me = client();
    let first = dial(&node, &me).await;
    assert_eq!(first.peer_key(), node.identity.public());
    let seen = who(&first).await.unwrap();
    assert_eq!(seen.peer_key, me.public().to_string());
    assert_eq!(seen.exporter, format!("{:02x?}", first.exporter()));

    // all calls of one connection carry one id; another connection has another id and exporter
    assert_eq!(who(&first).await.unwrap().id, seen.id);
    let second = dial(&node, &me).await;
    let seen_second = who(&second).await.unwrap();
    assert_ne!(seen_second.id, seen.id);
    assert_ne!(seen_second.exporter, seen.exporter);
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn first_contact_reports_the_key() {
    let node = Node::start().await;
    let connected = connect(&node.address, &client(), Expect::danger_any_key(), PATIENCE).await.unwrap();
    assert_eq!(connected.peer_key(), node.identity.public());
}

#[tokio::test]
async fn the_wrong_key_is_refused_with_both_keys_named() {
    let node = Node::start().await;
    let expected = client().public();
    let error = connect(&node.address, &client(), Expect::Key(expected), PATIENCE).await.unwrap_err();
    match &error {
        ConnectError::WrongKey { address, source } => {
            assert_eq!(address, &node.address);
            assert_eq!(*source, KeyMismatch { expected, got: node.identity.public() });
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((error.fault(), error.retriable()), (Fault::Peer, true));
    until("the server sees the failure", || node.stats.failed() == 1).await;
    assert_eq!(node.stats.established(), 0);
}

#[tokio::test]
async fn streams_run_both_ways() {
    let node = Node::start().await;
    let connected = dial(&node, &client()).await;
    assert_eq!(chat(&connected, 100).await.unwrap(), 100);
    // more than both windows hold
    let big = echo::big_echo(&connected, 16 << 20).await.unwrap();
    assert_eq!(big, 16 << 20);
}

#[tokio::test]
async fn a_dead_connection_fails_fast_and_stays_dead() {
    let node = Node::start().await;
    let connected = dial(&node, &client()).await;
    who(&connected).await.unwrap();
    connected.cut();
    assert_eq!(within(PATIENCE, connected.closed()).await, CloseReason::Cut);
    for _ in 0..3 {
        let status = within(Duration::from_secs(2), who(&connected)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.message(), "the connection is over: cut here");
    }
    // the node is there all along, and saw one connection only
    assert_eq!(node.stats.accepted(), 1);
}

#[tokio::test]
async fn a_server_can_end_a_connection() {
    let node = Node::start().await;
    let connected = dial(&node, &client()).await;
    let error = within(PATIENCE, echo::cut_me(&connected)).await.unwrap_err();
    assert!(is_transport_failure(&error), "{error:?}");
    within(PATIENCE, connected.closed()).await;
    until("the place is free", || node.stats.open() == 0).await;
}

#[tokio::test]
async fn dropping_every_handle_closes_the_connection() {
    let node = Node::start().await;
    let connected = dial(&node, &client()).await;
    who(&connected).await.unwrap();
    assert_eq!(node.stats.open(), 1);
    let closed = connected.closed();
    drop(connected);
    assert_eq!(within(PATIENCE, closed).await, CloseReason::Ended);
    until("the place is free", || node.stats.open() == 0).await;
}

/// A wire that can go dead without a word: it forwards until told to hold everything back.
#[derive(Clone, Default)]
struct Wire {
    dead: Arc<AtomicBool>,
    /// How often something came back over it.
    back: Arc<AtomicUsize>,
}

impl Wire {
    async fn to(&self, to: Address) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let wire = self.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, wire) = (to.clone(), wire.clone());
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to.as_str()).await.unwrap();
                    let (mut near_r, mut near_w) = near.split();
                    let (mut far_r, mut far_w) = far.split();
                    let sent = AtomicUsize::new(0);
                    let out = pump(&mut near_r, &mut far_w, &wire.dead, &sent);
                    let back = pump(&mut far_r, &mut near_w, &wire.dead, &wire.back);
                    tokio::join!(out, back);
                });
            }
        });
        address
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    dead: &AtomicBool,
    passed: &AtomicUsize,
) {
    let mut bytes = vec![0; 65536];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        passed.fetch_add(1, Ordering::SeqCst);
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_silent_peer_is_noticed_idle_or_busy() {
    let node = Node::start().await;
    let wires = [Wire::default(), Wire::default()];
    let me = client();
    let [idle, busy] = {
        let [one, two] = &wires;
        let (one, two) = (one.to(node.address.clone()).await, two.to(node.address.clone()).await);
        let connected = [one, two].map(|through| {
            let me = &me;
            let expect = node.expect();
            async move { connect(&through, me, expect, PATIENCE).await.unwrap() }
        });
        let [idle, busy] = connected;
        [idle.await, busy.await]
    };
    who(&idle).await.unwrap();
    let call = tokio::spawn(slow(busy.channel()));
    let started = Instant::now();
    // longer than interval and timeout, and answered meanwhile: a live connection survives its keep-alives
    let before = wires.each_ref().map(|w| w.back.load(Ordering::SeqCst));
    until("keep-alives are answered", || {
        let answers = wires.iter().zip(before).map(|(w, b)| w.back.load(Ordering::SeqCst) - b);
        answers.min() >= Some(2) && started.elapsed() > ALIVE
    })
    .await;
    assert_eq!((idle.close_reason(), busy.close_reason()), (None, None));

    wires.iter().for_each(|w| w.dead.store(true, Ordering::SeqCst));
    let cut = Instant::now();
    assert_eq!(within(NOTICED_WITHIN, idle.closed()).await, CloseReason::Silent);
    assert_eq!(within(NOTICED_WITHIN, busy.closed()).await, CloseReason::Silent);
    assert!(cut.elapsed() < NOTICED_WITHIN, "{:?} since {started:?}", cut.elapsed());
    let status = within(Duration::from_secs(2), call).await.unwrap().unwrap_err();
    assert_eq!((status.code(), is_transport_failure(&status)), (Code::Unavailable, true), "{status:?}");
}

#[tokio::test]
async fn what_never_answers_times_out_by_stage() {
    // accepts TCP and says nothing
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::from(mute.local_addr().unwrap());
    let allowed = Duration::from_millis(200);
    let error = connect(&address, &client(), Expect::danger_any_key(), allowed).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { stage: Stage::Tls, .. }), "{error:?}");

    // nobody listens
    drop(mute);
    let error = connect(&address, &client(), Expect::danger_any_key(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error:?}");
    assert_eq!((error.fault(), error.retriable()), (Fault::Network, true));
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = tcp.read(&mut [0; 4096]).await;
    });
    let error = connect(&address, &client(), Expect::danger_any_key(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn slow_handshakes_end_and_do_not_block_others() {
    let limits =
        Limits { handshake_timeout: Duration::from_secs(2), handshakes_max: 4, connections_max: 100 };
    let node = Node::start_at("127.0.0.1:0", client(), limits).await;
    // half of the places from one address: two of these stay, the others are turned away
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(TcpStream::connect(node.address.as_str()).await.unwrap());
    }
    until("the surplus is turned away", || node.stats.turned_away() == 2).await;
    until("the slow ones are dropped", || node.stats.timed_out() == 2).await;
    who(&dial(&node, &client()).await).await.unwrap();
}

#[tokio::test]
async fn the_peers_answer_is_told_from_a_failure_on_the_way() {
    let node = Node::start().await;
    let connected = dial(&node, &client()).await;
    let answer = echo::refused(&connected).await.unwrap_err();
    assert_eq!((answer.code(), is_transport_failure(&answer)), (Code::Unavailable, false));

    let call = tokio::spawn(slow(connected.channel()));
    until("the call is there", || node.stats.established() == 1).await;
    who(&connected).await.unwrap();
    connected.cut();
    let in_flight = within(PATIENCE, call).await.unwrap().unwrap_err();
    assert!(is_transport_failure(&in_flight), "{in_flight:?}");
    assert!(is_transport_failure(&who(&connected).await.unwrap_err()));
}

#[tokio::test]
async fn a_draining_server_says_goodbye() {
    let identity = client();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let incoming = Incoming::new(listener, &identity, Limits::default()).unwrap();
    let address = Address::from(incoming.local_addr());
    let (drain, asked) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let asked = async { asked.await.unwrap_or(()) };
        grpc_server().add_service(EchoServer).serve_with_incoming_shutdown(incoming, asked).await
    });
    let expect = Expect::Key(identity.public());
    let connected = connect(&address, &client(), expect, PATIENCE).await.unwrap();
    who(&connected).await.unwrap();
    drain.send(()).unwrap();
    // the client holds its handle, and still neither end waits for the other
    within(PATIENCE, connected.closed()).await;
    within(PATIENCE, server).await.unwrap().unwrap();
    let error = connect(&address, &client(), expect, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error:?}");
}

fn link(node: &Node, admitted: Arc<AtomicUsize>) -> (Link, watch::Sender<Target>) {
    let target = Target { address: node.address.clone(), expect: node.expect() };
    let (sender, receiver) = watch::channel(target);
    let link = Link::start("test", client(), receiver, LinkOptions::default(), move |connected| {
        let admitted = admitted.clone();
        async move {
            who(&connected).await.map_err(|e| AdmissionError::Incomplete(e.into()))?;
            admitted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    (link, sender)
}

async fn wait_up(link: &Link) -> Arc<Connected> {
    let mut state = link.state();
    let up = within(PATIENCE, state.wait_for(|s| s.up().is_some())).await.unwrap().up().cloned();
    up.unwrap()
}

async fn wait_down(link: &Link) -> Arc<LinkError> {
    let mut state = link.state();
    let state = within(PATIENCE, state.wait_for(|s| matches!(s, LinkState::Down { .. }))).await.unwrap();
    match &*state {
        LinkState::Down { error, .. } => error.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_link_comes_back_with_its_peer() {
    let node = Node::start().await;
    let admitted = Arc::new(AtomicUsize::new(0));
    let (link, _target) = link(&node, admitted.clone());
    let first = wait_up(&link).await;
    assert_eq!(admitted.load(Ordering::SeqCst), 1);

    // the listener goes, and with it the open connection
    let Node { identity, address, stats, task } = node;
    task.abort();
    let _ = task.await;
    first.cut();
    let error = wait_down(&link).await;
    assert!(matches!(*error, LinkError::Lost(CloseReason::Cut)), "{error:?}");
    let mut state = link.state();
    within(
        PATIENCE,
        state.wait_for(|s| match s {
            LinkState::Down { error, .. } => matches!(**error, LinkError::Connect(ConnectError::Tcp { .. })),
            _ => false,
        }),
    )
    .await
    .unwrap();
    drop(stats);

    let node = Node::start_at(address.as_str(), identity, Limits::default()).await;
    let second = wait_up(&link).await;
    assert_ne!(first.id(), second.id());
    assert_eq!(admitted.load(Ordering::SeqCst), 2, "each connection is admitted anew");
    who(&second).await.unwrap();

    // shutting down closes the connection and says so
    let mut state = link.state();
    within(PATIENCE, link.shutdown()).await;
    within(PATIENCE, second.closed()).await;
    let last = state.borrow_and_update().clone();
    assert!(matches!(last, LinkState::Down { error, .. } if matches!(*error, LinkError::Shutdown)));
    until("the node sees it", || node.stats.open() == 0).await;
}

#[tokio::test]
async fn a_link_follows_its_target() {
    let (one, two) = (Node::start().await, Node::start().await);
    let (link, target) = link(&one, Arc::default());
    let first = wait_up(&link).await;

    // the same place and a key that still fits: the connection stays
    target.send_replace(Target { address: one.address.clone(), expect: Expect::danger_any_key() });
    target.send_replace(Target { address: one.address.clone(), expect: one.expect() });
    who(&first).await.unwrap();
    assert_eq!(link.up().unwrap().id(), first.id());

    // another place
    target.send_replace(Target { address: two.address.clone(), expect: two.expect() });
    let mut state = link.state();
    within(PATIENCE, state.wait_for(|s| s.up().is_some_and(|c| c.peer_key() == two.identity.public())))
        .await
        .unwrap();
    assert_eq!(within(PATIENCE, first.closed()).await, CloseReason::Cut);

    // the right place and a wrong key
    target.send_replace(Target { address: two.address.clone(), expect: one.expect() });
    let error = wait_down(&link).await;
    match &*error {
        LinkError::Connect(ConnectError::WrongKey { source, .. }) => {
            assert_eq!(*source, KeyMismatch { expected: one.identity.public(), got: two.identity.public() });
        }
        other => panic!("{other:?}"),
    }

    // its owner goes
    drop(target);
    let mut state = link.state();
    within(
        PATIENCE,
        state.wait_for(
            |s| matches!(s, LinkState::Down { error, .. } if matches!(**error, LinkError::Shutdown)),
        ),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_peer_that_is_not_admitted_is_not_up_and_not_hammered() {
    let node = Node::start().await;
    let (_target, receiver) = watch::channel(Target { address: node.address.clone(), expect: node.expect() });
    let link = Link::start(
        "test",
        client(),
        receiver,
        LinkOptions::default(),
        |connected: Arc<Connected>| async move {
            who(&connected).await.map_err(|e| AdmissionError::Incomplete(e.into()))?;
            Err(AdmissionError::Rejected("PCR 11 matches no reference value".into()))
        },
    );
    let error = wait_down(&link).await;
    let began = Instant::now();
    assert!(matches!(*error, LinkError::Admission(AdmissionError::Rejected(_))), "{error:?}");
    assert_eq!(error.fault(), Fault::Peer);
    let before = node.stats.accepted();
    until("it tries again and again", || node.stats.accepted() >= before + 6).await;
    assert!(link.up().is_none());
    // 25+50+100+200+400+800 ms at the least come before the next six
    assert!(began.elapsed() > Duration::from_millis(1_500), "six attempts in {:?}", began.elapsed());
    until("rejected connections are closed", || node.stats.open() == 0).await;
}

#[tokio::test]
async fn admission_has_a_deadline() {
    let node = Node::start().await;
    let (_target, receiver) = watch::channel(Target { address: node.address.clone(), expect: node.expect() });
    let allowed = Duration::from_millis(100);
    let options = LinkOptions { admission_timeout: allowed, ..LinkOptions::default() };
    let link = Link::start("test", client(), receiver, options, |_| std::future::pending());
    let error = wait_down(&link).await;
    assert!(matches!(*error, LinkError::AdmissionTimedOut { allowed: a } if a == allowed), "{error:?}");
}
