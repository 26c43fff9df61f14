//! Requests of a route with a credential, through real ledgers, relay and keyer, to a provider that checks the key.
//!
//! **These bite**: [`a_keyer_that_gave_up_denies_what_is_authorised_later`] failed with each of these changed for a moment, alone:
//! the keyer waits no longer, or denies whatever connection the leaf names; the ledger forgets what was not certified in time, or
//! lets whoever asks first take it.
use super::lab::{Lab, PREFIX, SECRET, Sealed, credential};
use super::*;
use quorate_core::shares::Share;
use quorate_proto::v1::check_head_reply::Answer;
use std::sync::atomic::Ordering;
use std::time::Duration;

const PATH: &str = "/v1/chat/completions";

fn seen(lab: &Lab) -> String {
    String::from_utf8(lab.seen.lock().unwrap().clone()).unwrap()
}

/// Sends a request with the body `hi`, changed before it is signed.
async fn send(
    lab: &Lab,
    connection: u8,
    edit: impl FnOnce(&mut quorate_core::command::Authorise),
) -> (RequestId, Sealed) {
    let mut sealed = lab.connect(connection).await.seal(&lab.template, PATH, 2);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, edit);
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    (id, sealed)
}

/// The keyer's answer to a question of its own.
async fn ask(lab: &Lab, sealed: &Sealed, request: RequestId) -> Result<v1::HoleAnswer, (String, bool)> {
    let question = v1::CheckHeadRequest {
        request: request.0.to_vec().into(),
        connection: sealed.id.0.to_vec().into(),
        head: sealed.head.clone().into(),
    };
    match lab.keyer.check_head(NodeId(1), question).await.answer.unwrap() {
        Answer::Hole(hole) => Ok(hole),
        Answer::Refused(refused) => Err((refused.code, refused.retryable)),
        Answer::ContentLength(_) => panic!("a keyed head was approved without an answer for its hole"),
    }
}

/// How often the keyer said that it did not answer, once it did.
async fn denied(lab: &Lab, request: RequestId) -> usize {
    let like = |body: &LeafBody| matches!(body, LeafBody::Decided { command: Command::Node(n), .. } if n.body == NodeCommand::Unanswered(vec![request]));
    for _ in 0..500 {
        match lab.leaves().iter().filter(|body| like(body)).count() {
            0 => tokio::time::sleep(Duration::from_millis(10)).await,
            count => return count,
        }
    }
    0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_provider_with_the_key() {
    let lab = Lab::keyed().await;
    let (id, mut sealed) = send(&lab, 1, |_| ()).await;
    let (text, authorised, reason) = sealed.answer().await;
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("fine"), "{text}");
    assert!(authorised.is_some());
    assert_eq!(reason, "complete");
    let seen = seen(&lab);
    let key = format!("\r\nauthorization: Bearer {PREFIX}{SECRET}\r\n");
    assert!(seen.starts_with("POST /v1/chat/completions HTTP/1.1\r\n") && seen.contains(&key), "{seen}");
    assert!(seen.ends_with("\r\n\r\nhi"), "{seen}");
    let settled = lab.settlement().await;
    assert_eq!((settled.request, settled.ended), (id, Ended::Complete));
}

/// The twin of the above: one bit of the relay's share is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_share_is_a_wrong_key_and_nothing_else() {
    let lab = Lab::keyed_with(|node, shares| {
        if node == NodeId(1) {
            for share in shares.complements.values_mut() {
                let mut bytes = share.expose_bytes().to_vec();
                bytes[3] ^= 1;
                *share = Share::new(zeroize::Zeroizing::new(bytes));
            }
        }
    })
    .await;
    let (_, mut sealed) = send(&lab, 1, |_| ()).await;
    let (text, _, reason) = sealed.answer().await;
    assert!(text.starts_with("HTTP/1.1 401 Unauthorized"), "{text}");
    assert_eq!(reason, "complete");
    let seen = seen(&lab);
    assert!(seen.contains(&format!("Bearer {PREFIX}{}", &SECRET[..3])) && !seen.contains(SECRET), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_answers_once_and_only_for_what_is_certified() {
    let lab = Lab::keyed().await;
    let sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.order(command);
    let hole = ask(&lab, &sealed, id).await.unwrap();
    assert_eq!((hole.pad.len(), hole.one_time_key.len(), hole.content_length), (SECRET.len() + 1, 32, 2));
    assert_eq!(ask(&lab, &sealed, id).await, Err(("unknown_connection".to_owned(), true)));
    assert_eq!(format!("{hole:?}"), "HoleAnswer(secret)");

    let sealed = lab.connect(2).await.seal(&lab.template, PATH, 2);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.silence(&[3, 4]);
    lab.order(command);
    assert_eq!(ask(&lab, &sealed, id).await, Err(("no_quorum".to_owned(), true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_share_epoch_is_refused() {
    let lab = Lab::keyed().await;
    for (connection, share_epoch) in [(1, 0), (2, 2)] {
        let (_, mut sealed) = send(&lab, connection, |a| a.share_epoch = share_epoch).await;
        assert_eq!(sealed.tunnel.refusal().await, "stale_share_epoch");
    }
    assert_eq!(seen(&lab), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_its_share_releases_nothing() {
    let lab = Lab::keyed().await;
    let policy = lab.ledger().view().policy.clone();
    // It opened the tunnel while it had them.
    let mut sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    lab.vaults.relay.close(&policy, &crate::shares::Missing::NotSealed);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    assert_eq!(sealed.tunnel.refusal().await, "shares_missing");
    assert_eq!(seen(&lab), "");
    assert_eq!(lab.settlement().await.ended, Ended::MeshFailure);

    // And now it opens none.
    let mut tunnel = lab.tunnel(Lab::client_key()).unwrap();
    tunnel.open(&lab.pool, ConnectionId([2; 16])).await;
    assert_eq!(tunnel.refusal().await, "shares_missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_without_its_share_answers_nothing() {
    let lab = Lab::keyed().await;
    let sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    lab.vaults.keyer.erase();
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.order(command);
    assert_eq!(ask(&lab, &sealed, id).await, Err(("shares_missing".to_owned(), true)));
    assert_eq!(denied(&lab, id).await, 1, "the log hears that no hole was filled");
    assert_eq!(ask(&lab, &sealed, id).await, Err(("unknown_connection".to_owned(), true)), "as it said");
}

/// The keyer gave up before the authorisation was certified: the log hears that no hole was filled, once it is. It hears nothing
/// of a request that a relay names beside another request's connection: that one is answered over its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_that_gave_up_denies_what_is_authorised_later() {
    let lab = Lab::keyed().await;
    let late = lab.connect(1).await.seal(&lab.template, PATH, 2);
    let beside = lab.connect(2).await.seal(&lab.template, PATH, 2);
    let honest = lab.connect(3).await.seal(&lab.template, PATH, 2);
    lab.silence(&[3, 4]);
    let [late_id, honest_id] = [&late, &honest].map(|sealed| {
        let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
        lab.order(command);
        id
    });
    let gave_up = tokio::join!(ask(&lab, &late, late_id), ask(&lab, &beside, honest_id));
    let no_quorum = || Err(("no_quorum".to_owned(), true));
    assert_eq!(gave_up, (no_quorum(), no_quorum()));
    let denials = || {
        let denial = |body: LeafBody| match body {
            LeafBody::Decided { command: Command::Node(n), .. } => match n.body {
                NodeCommand::Unanswered(requests) => Some(requests),
                _ => None,
            },
            _ => None,
        };
        lab.leaves().into_iter().filter_map(denial).flatten().collect::<Vec<_>>()
    };
    assert_eq!(denials(), [], "not certified: there may be no such request");
    lab.hear_all();
    assert_eq!(denied(&lab, late_id).await, 1);
    assert_eq!(ask(&lab, &late, late_id).await, Err(("unknown_connection".to_owned(), true)), "as it said");
    assert!(ask(&lab, &honest, honest_id).await.is_ok(), "over its own connection");
    assert_eq!(denials(), [late_id]);
}

/// A relay hangs up on its keyer before there is an answer: the log hears that nobody has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_that_nobody_listens_to_any_more_says_so() {
    let lab = Lab::keyed().await;
    let sealed = lab.connect(1).await.seal(&lab.template, PATH, 2);
    lab.silence(&[3, 4]);
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    lab.order(command);
    let taken = async {
        while lab.keyer.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        answer = ask(&lab, &sealed, id) => panic!("{answer:?} without a certificate"),
        () = taken => {}
    }
    lab.hear_all();
    assert_eq!(denied(&lab, id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyer_without_its_share_takes_no_secret() {
    let lab = Lab::keyed().await;
    lab.vaults.keyer.erase();
    let registered = v1::RegisterRequest {
        pool: lab.pool.pool.0.to_vec().into(),
        connection: vec![9; 16].into(),
        traffic_secret: vec![9; 32].into(),
    };
    let refused = lab.keyer.register(&Lab::client_key(), registered).await;
    assert!(matches!(refused, Err(Problem::SharesMissing)));
}

/// Until a request hangs on shares that the keyer has not opened yet.
async fn keyer_waits_for_shares(lab: &Lab) {
    let hangs = async {
        while lab.vaults.keyer.awaited() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hangs)
        .await
        .expect("no request waits for the keyer's shares");
}

/// The policy changes in the very moment in which a keyer waits for its shares.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_came_meanwhile_is_the_one_that_counts() {
    let lab = Lab::keyed().await;
    lab.change_policy(|d| d.route[0].credential = Some(credential(d, 2, |_, _| ())));
    lab.vaults.open_relay(&lab.ledger().view().policy);
    let mut sealed = {
        // Registered while the keyer had its shares.
        lab.vaults.open_keyer(&lab.ledger().view().policy);
        lab.connect(1).await.seal(&lab.template, PATH, 2)
    };
    let policy = lab.change_policy(|d| d.route[0].credential = Some(credential(d, 3, |_, _| ())));
    let (id, command) = lab.authorise(sealed.id, &sealed.head, |a| assert_eq!(a.share_epoch, 3));
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    keyer_waits_for_shares(&lab).await;
    lab.change_policy(|d| d.client[0].requests_per_minute += 1);
    lab.vaults.open_keyer(&policy);
    assert_eq!(sealed.tunnel.refusal().await, "policy_changed");
    assert_eq!((seen(&lab), denied(&lab, id).await), (String::new(), 1));
}

/// A new splitting comes into force: nothing of the old one is used, and a node that is late waits for its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_share_epoch_replaces_the_old_one() {
    let lab = Lab::keyed().await;
    let connected = lab.connect(1).await;
    let policy = lab.change_policy(|d| d.route[0].credential = Some(credential(d, 2, |_, _| ())));
    lab.vaults.open_relay(&policy);
    let mut sealed = connected.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |a| assert_eq!(a.share_epoch, 2));
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    sealed.body(b"hi").await;
    keyer_waits_for_shares(&lab).await;
    assert_eq!(seen(&lab), "", "the keyer still has shares of epoch 1");
    lab.vaults.open_keyer(&policy);
    let (text, ..) = sealed.answer().await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let mask = |epoch| lab.vaults.keyer.mask(&lab.pool.route, epoch).map(|_| ());
    assert_eq!((mask(1), mask(2)), (Err(crate::shares::Missing::Epoch), Ok(())));
}

/// A stale pool: nothing is released, so nobody can be blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_closed_first_gets_no_request() {
    let lab = Lab::keyed().await;
    let idle = lab.connect(1).await;
    lab.close_connections().await;
    // The runtime may or may not have heard of it: the relay asks the socket.
    let mut sealed = idle.seal(&lab.template, PATH, 2);
    let (_, command) = lab.authorise(sealed.id, &sealed.head, |_| ());
    let head = sealed.head.clone();
    sealed.request(&command, &head).await;
    assert_eq!(sealed.tunnel.refusal().await, "provider_closed");
    let authorised = lab
        .leaves()
        .into_iter()
        .filter(|body| matches!(body, LeafBody::Decided { outcome: Outcome::Authorised, .. }));
    assert_eq!(authorised.count(), 0, "it was refused before it was decided");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_closes_while_the_keyer_thinks_gets_no_request() {
    let lab = Lab::keyed().await;
    lab.port.open.send_replace(false);
    let (_, mut sealed) = send(&lab, 1, |_| ()).await;
    while lab.keyer.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.close_connections().await;
    lab.port.open.send_replace(true);
    assert_eq!(sealed.tunnel.refusal().await, "provider_closed");
    assert_eq!(seen(&lab), "");
    assert_eq!(lab.settlement().await.bytes_up, 0);
}

/// A keyer that is hostile, or of another version.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_fit_the_route_releases_nothing() {
    fn hole(reply: &mut v1::CheckHeadReply) -> &mut v1::HoleAnswer {
        let Some(Answer::Hole(hole)) = &mut reply.answer else { panic!("no hole") };
        hole
    }
    let tampers: [fn(&mut v1::CheckHeadReply); 5] = [
        |reply| reply.answer = Some(Answer::ContentLength(2)),
        |reply| hole(reply).pad = vec![1; SECRET.len()].into(),
        |reply| hole(reply).pad = vec![1; SECRET.len() + 2].into(),
        |reply| hole(reply).one_time_key = vec![1; 31].into(),
        |reply| hole(reply).content_length = u64::MAX,
    ];
    let lab = Lab::keyed().await;
    for (connection, tamper) in (1..).zip(tampers) {
        *lab.port.tamper.lock().unwrap() = Some(tamper);
        let (_, mut sealed) = send(&lab, connection, |_| ()).await;
        assert_eq!(sealed.tunnel.refusal().await, "keyer_answer", "{connection}");
    }
    assert_eq!(seen(&lab), "");

    let unkeyed = Lab::new().await;
    *unkeyed.port.tamper.lock().unwrap() = Some(|reply| {
        let pad = vec![1; 33].into();
        let hole = v1::HoleAnswer { pad, one_time_key: vec![1; 32].into(), content_length: 2 };
        reply.answer = Some(Answer::Hole(hole));
    });
    let (_, mut sealed) = send(&unkeyed, 1, |_| ()).await;
    assert_eq!(sealed.tunnel.refusal().await, "keyer_answer");
    assert_eq!(seen(&unkeyed), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_without_a_certificate_or_the_keyer() {
    let lab = Lab::keyed().await;
    lab.port.silent.store(true, Ordering::Relaxed);
    let (_, mut sealed) = send(&lab, 1, |_| ()).await;
    assert_eq!(sealed.tunnel.refusal().await, "keyer_unavailable");
    lab.port.silent.store(false, Ordering::Relaxed);
    lab.silence(&[3, 4]);
    let (_, mut sealed) = send(&lab, 2, |_| ()).await;
    assert_eq!(sealed.tunnel.refusal().await, "no_quorum");
    assert_eq!(seen(&lab), "");
}
