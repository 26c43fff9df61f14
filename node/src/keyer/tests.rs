use super::*;
use quorate_core::ids::RouteId;

fn pool(n: u8, client: &str, expires: u64) -> PoolFacts {
    let boot = |b| BootKeys { tls: [b; 32], cosign: [b; 32] };
    PoolFacts {
        id: PoolId([n; 16]),
        client: ClientId::new(client).unwrap(),
        token: None,
        route: RouteId::new("r").unwrap(),
        relay: (NodeId(1), boot(1)),
        keyer: (NodeId(2), boot(2)),
        expires: Timestamp(expires),
    }
}

fn connection(n: u64) -> ConnectionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    ConnectionId(id)
}

fn secret() -> TrafficSecret {
    TrafficSecret::new([7; SECRET_LEN])
}

#[test]
fn a_connection_is_registered_once_and_spent_once() {
    let mut registry = Registry::default();
    let (one, now) = (connection(1), Timestamp(0));
    registry.register(pool(1, "a", 10), one, secret(), now).unwrap();
    assert!(matches!(
        registry.register(pool(1, "a", 10), one, secret(), now),
        Err(Problem::AlreadyRegistered)
    ));
    assert!(matches!(
        registry.register(pool(2, "b", 10), one, secret(), now),
        Err(Problem::AlreadyRegistered)
    ));
    let (facts, holder) = registry.take(&one, NodeId(1)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((facts, holder.is_registered()), (pool(1, "a", 10), true));
    assert!(matches!(registry.take(&one, NodeId(1)), Err(Refused::UnknownConnection)));
    assert!(matches!(
        registry.register(pool(1, "a", 10), one, secret(), now),
        Err(Problem::AlreadyRegistered)
    ));
}

#[test]
fn only_the_pools_relay_can_spend_a_connection() {
    let mut registry = Registry::default();
    registry.register(pool(1, "a", 10), connection(1), secret(), Timestamp(0)).unwrap();
    assert!(matches!(registry.take(&connection(1), NodeId(3)), Err(Refused::NotTheRelay)));
    assert!(registry.take(&connection(1), NodeId(1)).is_ok());
}

#[test]
fn a_client_cannot_crowd_the_others_out() {
    let mut registry = Registry::default();
    let mut next = 0;
    let mut register = |registry: &mut Registry, client: &str, n: u8| {
        next += 1;
        registry.register(pool(n, client, 10), connection(next), secret(), Timestamp(0))
    };
    for _ in 0..WAITING_PER_CLIENT_MAX {
        register(&mut registry, "a", 1).unwrap();
    }
    assert!(matches!(register(&mut registry, "a", 2), Err(Problem::TooManyRegistrations)));
    register(&mut registry, "b", 3).unwrap();
    registry.take(&connection(1), NodeId(1)).unwrap_or_else(|e| panic!("{e}"));
    register(&mut registry, "a", 2).unwrap();
}

#[test]
fn secrets_are_forgotten_with_their_pool() {
    let mut registry = Registry::default();
    registry.register(pool(1, "a", 10), connection(1), secret(), Timestamp(0)).unwrap();
    registry.register(pool(2, "a", 20), connection(2), secret(), Timestamp(0)).unwrap();
    registry.forget_expired(Timestamp(10));
    assert_eq!((registry.waiting, registry.pools.len(), registry.pool_of.len()), (1, 1, 1));
    assert!(matches!(registry.take(&connection(1), NodeId(1)), Err(Refused::UnknownConnection)));
    registry.forget_expired(Timestamp(20));
    assert!(registry.by_client.is_empty() && registry.pools.is_empty() && registry.pool_of.is_empty());
}

#[test]
fn alarm_codes_are_unique() {
    use HeadRefusal as H;
    let heads = [
        H::PartCount,
        H::PartTooLong,
        H::Byte,
        H::LineUnterminated,
        H::RequestLine,
        H::MethodNotAllowed,
        H::PathTooLong,
        H::PathNotAllowed,
        H::Host,
        H::HeaderSyntax,
        H::HeaderNotAllowed,
        H::HeaderRepeated,
        H::HeaderOrder,
        H::HeaderValue,
        H::HeaderValueTooLong,
        H::CredentialOpening,
        H::ContentLengthMissing,
        H::ContentLengthNotCanonical,
        H::ContentLengthTooLarge,
        H::GetWithBody,
        H::ConnectionClose,
        H::End,
        H::NotCanonical,
    ];
    let codes: HashSet<u16> = heads.into_iter().map(|h| code_of(&h.into()).0).collect();
    assert_eq!(codes.len(), heads.len());
}
