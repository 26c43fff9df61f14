mod keyed;
pub(crate) mod lab;

use super::release::RecordEdge;
use super::*;
use lab::Lab;
use quorate_core::command::{Alarm, ClientSigned, NodeCommand};
use quorate_core::proof::{Proof, Receipt};
use quorate_core::testing::{CLIENT, key};
use quorate_proto::v1::tunnel_up::Frame as UpFrame;
use quorate_splitkey::head::HeadTemplate;
use std::sync::atomic::Ordering;

const PATH: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_crosses_and_its_receipt_verifies() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 10);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hello").await;
    sealed.body(b"world").await;
    let (text, authorised, reason) = sealed.answer().await;
    assert!(text.ends_with("\r\n\r\nfine"), "{text}");
    assert_eq!(reason, "complete");
    let authorised = authorised.unwrap();
    assert!(authorised.tree_size > authorised.leaf_index);
    let seen = String::from_utf8(lab.seen.lock().unwrap().clone()).unwrap();
    assert!(
        seen.starts_with("POST /v1/chat/completions HTTP/1.1\r\n") && seen.ends_with("\r\n\r\nhelloworld"),
        "{seen}"
    );
    let settled = lab.settlement().await;
    assert_eq!((settled.request, settled.ended), (id, Ended::Complete));
    assert!(settled.bytes_up >= 256 && settled.bytes_down >= 256 && settled.bytes_up % 256 == 0);

    let proof = Proof::from_bytes(&lab.directory.receipt(id, true).await.unwrap()).unwrap();
    let (verified, authorisation) = Receipt(proof).verify(lab.cluster()).unwrap();
    assert_eq!((authorisation.request().request, authorisation.index().0), (id, authorised.leaf_index));
    assert_eq!(verified.leaves.len(), 2, "authorisation and settlement");
    let directory = Proof::from_bytes(&lab.directory.directory().await.unwrap()).unwrap();
    assert_eq!(directory.verify(lab.cluster()).unwrap().nodes.len(), 4);
    lab.relay.drained().await;
}

/// The holder of a token has its own key all the way: the tunnel, the registration, the request, the receipt.
#[tokio::test(flavor = "multi_thread")]
async fn a_tokens_request_crosses_under_its_own_key_alone() {
    let lab = Lab::of_token().await;
    let mut issuers = lab.tunnel(Lab::client_key()).unwrap();
    issuers.open(&lab.pool, ConnectionId([9; 16])).await;
    assert_eq!(issuers.refusal().await, "not_the_client");
    let registered = v1::RegisterRequest {
        pool: lab.pool.pool.0.to_vec().into(),
        connection: vec![9; 16].into(),
        traffic_secret: vec![9; 32].into(),
    };
    let refused = lab.keyer.register(&Lab::client_key(), registered).await;
    assert!(matches!(refused, Err(Problem::NotTheClient)), "{refused:?}");
    // The issuer's signature on the holder's connection.
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let Command::Client(signed) = command else { panic!("a client's") };
    let issuers = ClientSigned::sign(lab.cluster(), signed.client, signed.body, &key(CLIENT));
    let head = sealed.head.clone();
    sealed.request(&Command::Client(issuers), &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "not_the_client");

    let mut sealed = lab.connect(2).await.seal(&lab.template, PATH, 2);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    let (text, _, reason) = sealed.answer().await;
    assert!(text.ends_with("fine") && reason == "complete", "{text} {reason}");
    assert_eq!(lab.settlement().await.request, id);
    let proof = Proof::from_bytes(&lab.directory.receipt(id, true).await.unwrap()).unwrap();
    let (_, authorisation) = Receipt(proof).verify(lab.cluster()).unwrap();
    let token = lab.token.as_ref().map(|t| t.token.id(lab.cluster()));
    assert!(token.is_some() && authorisation.token() == token);

    // It allowed one request.
    let mut sealed = lab.connect(3).await.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "token_requests_used_up");
}

/// What the types promise, seen from outside: without a certificate the provider reads nothing, and with it, everything.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_without_a_certificate() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.silence(&[3, 4]);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    assert_eq!(sealed.tunnel.refusal().await, "no_quorum");
    assert!(lab.seen.lock().unwrap().is_empty());
    // It was applied, only never certified: it is settled all the same, once.
    assert_eq!(lab.settlement().await.ended, Ended::MeshFailure);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_without_the_keyer() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.port.silent.store(true, Ordering::Relaxed);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    assert_eq!(sealed.tunnel.refusal().await, "keyer_unavailable");
    assert!(lab.seen.lock().unwrap().is_empty());
    assert_eq!(lab.settlement().await.ended, Ended::MeshFailure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_the_route_does_not_allow_is_an_alarm() {
    let lab = Lab::new().await;
    let other =
        HeadTemplate::for_route("localhost", lab.template.port(), "", &["/v1/files".into()], "openai", &[])
            .unwrap();
    let mut sealed = lab.connect(1).await.seal(&other, "/v1/files", 0);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "head_path_not_allowed");
    assert_eq!(lab.settlement().await.ended, Ended::HeadRefused);
    assert!(lab.seen.lock().unwrap().is_empty());
    assert_eq!(lab.alarms(Alarm::HeadRefused { request: id, code: 107 }).await, 1);
}

/// A hostile relay shows the keyer other records than the client signed: refused, and no alarm about the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_judges_only_the_signed_records_for_the_pools_relay_and_once() {
    let lab = Lab::new().await;
    let ask = async |from: u64, sealed: &lab::Sealed, request: RequestId, head: &[u8]| {
        let (request, connection) = (request.0.to_vec().into(), sealed.id.0.to_vec().into());
        let question = v1::CheckHeadRequest { request, connection, head: head.to_vec().into() };
        match lab.keyer.check_head(NodeId(from), question).await.answer.unwrap() {
            v1::check_head_reply::Answer::ContentLength(length) => Ok(length),
            v1::check_head_reply::Answer::Refused(refused) => Err((refused.code, refused.retryable)),
            v1::check_head_reply::Answer::Hole(_) => panic!("the route has no credential"),
        }
    };
    let err = |code: &str, retryable| Err((code.to_owned(), retryable));
    let sealed = lab.connect(1).await.seal(&lab.template, PATH, 7);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.order(command);
    assert_eq!(ask(3, &sealed, id, &sealed.head).await, err("not_the_relay", false));
    assert_eq!(ask(1, &sealed, id, &sealed.head).await, Ok(7));
    assert_eq!(ask(1, &sealed, id, &sealed.head).await, err("unknown_connection", true));

    let sealed = lab.connect(2).await.seal(&lab.template, PATH, 7);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.order(command);
    let mut altered = sealed.head.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(ask(1, &sealed, id, &altered).await, err("authorisation_mismatch", false));

    let sealed = lab.connect(3).await.seal(&lab.template, PATH, 7);
    let (id, command) = lab.authorise(ConnectionId([9; 16]), &sealed.head, |_| ());
    lab.order(command);
    assert_eq!(ask(1, &sealed, id, &sealed.head).await, err("authorisation_mismatch", false));

    let sealed = lab.connect(4).await.seal(&lab.template, PATH, 7);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.silence(&[3, 4]);
    lab.order(command);
    assert_eq!(ask(1, &sealed, id, &sealed.head).await, err("no_quorum", true));
    let alarms = lab.leaves().into_iter().filter(|body| {
        matches!(body, LeafBody::Decided { command: Command::Node(n), .. } if matches!(n.body, NodeCommand::Alarm(_)))
    });
    assert_eq!(alarms.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_stands_only_so_long_by_the_nodes_own_clock() {
    let lab = Lab::new().await;
    let ledger = &lab.relay.inner.ledger;
    let pool = PoolFacts::find(ledger, lab.pool.pool).await.unwrap();
    let (view, now) = (ledger.view(), crate::clock::now());
    let refused = |pool: &PoolFacts, at| match pool.check_standing(&view, at) {
        Ok(_) => None,
        Err(Problem::Refused(refusal)) => Some(refusal),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(refused(&pool, now), None);
    let attestation = &view.policy.attestation;
    let stale = now.plus_ms(attestation.lapse_ms + attestation.clock_skew_ms + 1_000);
    assert!(stale < pool.expires);
    assert_eq!(refused(&pool, stale), Some(Refusal::RelayNotAttested));
    assert_eq!(refused(&pool, pool.expires), Some(Refusal::UnknownPool));
    let mut restarted = pool.clone();
    restarted.keyer.1.cosign[0] ^= 1;
    assert_eq!(refused(&restarted, now), Some(Refusal::KeyerNotAttested));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_other_than_the_signed_ones_are_refused() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 0);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let mut head = sealed.head.clone();
    *head.last_mut().unwrap() ^= 1;
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "head_digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_connection_is_refused() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 0);
    let (_, command) = lab.authorise(ConnectionId([9; 16]), &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "pool_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_request_reaches_nobody() {
    let lab = Lab::new().await;
    let mut first = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let (id, command) = lab.authorise(first.id, &first.head, |_| ());
    let head = first.head.clone();
    first.request(&command, &head).await;
    first.body(b"hi").await;
    assert_eq!(first.answer().await.2, "complete");
    lab.settlement().await;
    let seen = lab.seen.lock().unwrap().len();
    let mut second = lab.connect(2).await.seal(&lab.template, PATH, 2);
    let (_, replay) = lab.authorise(second.id, &second.head, |a| a.request = id);
    let head = second.head.clone();
    second.request(&replay, &head).await;
    assert_eq!(second.tunnel.refusal().await, "replayed");
    assert_eq!(lab.seen.lock().unwrap().len(), seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pools_client_gets_a_tunnel() {
    let lab = Lab::new().await;
    let mut tunnel = lab.tunnel(PublicKey::from_bytes([7; 32])).unwrap();
    tunnel.open(&lab.pool, ConnectionId([1; 16])).await;
    assert_eq!(tunnel.refusal().await, "not_the_client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_one_tunnel() {
    let lab = Lab::new().await;
    let _first = lab.connect(1).await;
    let mut second = lab.tunnel(Lab::client_key()).unwrap();
    second.open(&lab.pool, ConnectionId([1; 16])).await;
    assert_eq!(second.refusal().await, "connection_in_use");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_beyond_the_content_length_is_cut() {
    let lab = Lab::new().await;
    let long = lab.connect(1).await;
    let mut sealed = long.seal(&lab.template, PATH, 4);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    // Five bytes of plaintext by the record's length, where the head says four.
    sealed.tunnel.send(UpFrame::Data([&[23, 3, 3, 0, 22][..], &[0; 22]].concat().into())).await;
    assert_eq!(sealed.tunnel.refusal().await, "body_refused");
    assert_eq!(lab.settlement().await.ended, Ended::CeilingReached);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_length_above_the_ceiling_is_refused() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 11);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |a| a.body_bytes_max = 10);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "body_above_ceiling");
    assert_eq!(lab.settlement().await.ended, Ended::CeilingReached);
    assert!(lab.seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_beyond_its_ceiling_is_cut() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 3);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |a| a.response_bytes_max = 50_000);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"big").await;
    assert_eq!(sealed.answer().await.2, "ceiling_reached");
    assert_eq!(lab.settlement().await.ended, Ended::CeilingReached);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_runs_too_long_is_ended() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 4);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |a| a.duration_ms_max = 100);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hang").await;
    assert_eq!(sealed.answer().await.2, "timed_out");
    assert_eq!(lab.settlement().await.ended, Ended::TimedOut);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_settled_as_cancelled() {
    let lab = Lab::new().await;
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 4);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hang").await;
    while !matches!(sealed.tunnel.next().await, Some(v1::tunnel_down::Frame::Authorised(_))) {}
    assert!(lab.relay.is_running(&id));
    drop(sealed);
    assert_eq!(lab.settlement().await.ended, Ended::Cancelled);
    lab.relay.drained().await;
    assert!(!lab.relay.is_running(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_idle_tunnels_and_gives_running_requests_a_deadline() {
    let lab = Lab::new().await;
    let mut idle = lab.connect(1).await;
    let mut sealed = lab.connect(2).await.seal(&lab.template, PATH, 4);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hang").await;
    while !matches!(sealed.tunnel.next().await, Some(v1::tunnel_down::Frame::Authorised(_))) {}
    lab.relay.drain(Instant::now() + std::time::Duration::from_millis(100));
    assert_eq!(idle.tunnel.refusal().await, "shutting_down");
    assert_eq!(sealed.tunnel.refusal().await, "shutting_down");
    assert_eq!(lab.settlement().await.ended, Ended::MeshFailure);
    assert!(matches!(lab.tunnel(Lab::client_key()), Err(Problem::ShuttingDown)));
    lab.relay.drained().await;
}

/// The window is full while the quorum is silent; the rest waits at the client, and all of it arrives in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_flows_through_a_bounded_window_and_the_client_may_half_close() {
    let lab = Lab::new().await;
    let body: Vec<u8> = (0..700_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, body.len() as u64);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |a| a.body_bytes_max = 1 << 20);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    for chunk in body.chunks(60_000) {
        sealed.body(chunk).await;
    }
    sealed.half_close();
    let (text, _, reason) = sealed.answer().await;
    assert!(text.ends_with("fine") && reason == "complete", "{reason}: {text}");
    assert!(lab.seen.lock().unwrap().ends_with(&body));
    assert!(lab.settlement().await.bytes_up > 700_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_provider_is_named() {
    let lab = Lab::unreachable().await;
    let mut tunnel = lab.tunnel(Lab::client_key()).unwrap();
    tunnel.open(&lab.pool, ConnectionId([1; 16])).await;
    assert_eq!(tunnel.refusal().await, "provider_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_tunnels_are_bounded() {
    let lab = Lab::new().await;
    let mut held = Vec::new();
    for n in 0..8 {
        held.push(lab.connect(n).await);
    }
    assert!(matches!(lab.tunnel(Lab::client_key()), Err(Problem::TooManyTunnels)));
    held.clear();
    lab.relay.drained().await;
    assert!(lab.tunnel(Lab::client_key()).is_ok());
}

/// What the runtime has not heard of, since it had no turn, is seen all the same.
#[tokio::test]
async fn a_farewell_is_seen_before_the_runtime_tells() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let look = |came: &mut Vec<u8>| super::release::look(&socket, came);
    let mut came = Vec::new();
    assert!(look(&mut came) && came.is_empty());
    far.write_all(b"farewell").unwrap();
    drop(far);
    assert!(socket.try_read(&mut [0; 8]).is_err(), "the runtime knows of nothing");
    assert!(!look(&mut came));
    assert_eq!(came, b"farewell");
}

#[test]
fn records_are_followed_by_length_only() {
    let stream =
        [&[23, 3, 3, 0, 3][..], &[0, 0, 0], &[23, 3, 3, 0, 0], &[21, 3, 3, 1, 0], &[9; 256]].concat();
    for cut in 0..=stream.len() {
        let mut edge = RecordEdge::default();
        let (one, two) = stream.split_at(cut);
        edge.feed(one);
        assert_eq!(edge.at_boundary(), [0, 8, 13, stream.len()].contains(&cut), "{cut}");
        edge.feed(two);
        assert!(edge.at_boundary());
    }
}
