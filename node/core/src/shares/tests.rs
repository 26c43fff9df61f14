//! Sealed shares: round trips, and one thing changed at a time.
use super::*;
use proptest::prelude::*;

fn key(n: u8) -> SharePrivateKey {
    SharePrivateKey::from_seed(Zeroizing::new([n; 32]))
}

fn share(byte: u8, len: usize) -> Share {
    Share::new(Zeroizing::new(vec![byte; len]))
}

fn binding() -> ShareBinding {
    ShareBinding {
        cluster: "prod".into(),
        route: RouteId::new("claude").unwrap(),
        host: "api.example.com".into(),
        port: 443,
        scheme: CredentialScheme::XApiKey,
        public_prefix: "sk-ant-api03-".into(),
        secret_bytes: 95,
        share_epoch: 3,
        members: (1..=4).map(NodeId).collect(),
    }
}

fn shares_of(node: u64) -> NodeShares {
    let others = (1..=4).filter(|n| *n != node);
    NodeShares {
        split: SplitId([7; 16]),
        mask: share(node as u8, 95),
        complements: others.map(|n| (NodeId(n), share(0x80 | n as u8, 95))).collect(),
    }
}

fn sealed(b: &ShareBinding, node: u64, shares: &NodeShares) -> Result<SealedShares, SealError> {
    seal(b, NodeId(node), &key(node as u8).public(), shares, Zeroizing::new([0x5a; 64]))
}

fn bytes(s: &NodeShares) -> (SplitId, Vec<u8>, BTreeMap<NodeId, Vec<u8>>) {
    let others = s.complements.iter().map(|(n, s)| (*n, s.expose_bytes().to_vec()));
    (s.split, s.mask.expose_bytes().to_vec(), others.collect())
}

#[test]
fn every_node_opens_its_own() {
    let b = binding();
    for node in 1..=4 {
        let shares = shares_of(node);
        let sealed = sealed(&b, node, &shares).unwrap();
        let again = SealedShares::from_bytes(sealed.as_bytes().to_vec()).unwrap();
        let opened = open(&b, NodeId(node), &key(node as u8), &again).unwrap();
        assert_eq!(bytes(&opened), bytes(&shares));
        assert!(opened.complements.keys().all(|n| *n != NodeId(node)));
    }
}

/// Whatever the binding says is bound: one field changed, and the shares do not open.
#[test]
fn what_is_bound_cannot_be_moved() {
    type Case = (&'static str, fn(&mut ShareBinding));
    let cases: &[Case] = &[
        ("cluster", |b| b.cluster = "prox".into()),
        ("route", |b| b.route = RouteId::new("other").unwrap()),
        ("host", |b| b.host = "api.example.org".into()),
        ("port", |b| b.port = 8443),
        ("scheme", |b| b.scheme = CredentialScheme::ApiKey),
        ("prefix", |b| b.public_prefix.push('x')),
        ("length", |b| b.secret_bytes = 94),
        ("epoch", |b| b.share_epoch = 4),
        ("a member more", |b| assert!(b.members.insert(NodeId(5)))),
        ("a member less", |b| assert!(b.members.remove(&NodeId(4)))),
        ("a field's end is another's beginning", |b| {
            (b.host, b.public_prefix) = ("api.example.coms".into(), "k-ant-api03-".into());
        }),
    ];
    let sealed = sealed(&binding(), 1, &shares_of(1)).unwrap();
    for (what, edit) in cases {
        let mut b = binding();
        edit(&mut b);
        assert_eq!(open(&b, NodeId(1), &key(1), &sealed).err(), Some(OpenError::NotForThis), "{what}");
    }
    assert!(open(&binding(), NodeId(1), &key(1), &sealed).is_ok(), "the unchanged twin");
    let as_another = open(&binding(), NodeId(2), &key(1), &sealed);
    assert_eq!(as_another.err(), Some(OpenError::NotForThis), "node");
    let with_another = open(&binding(), NodeId(1), &key(2), &sealed);
    assert_eq!(with_another.err(), Some(OpenError::NotForThis), "key");
}

#[test]
fn a_changed_byte_does_not_open() {
    let sealed = sealed(&binding(), 1, &shares_of(1)).unwrap();
    let len = sealed.as_bytes().len();
    for at in [0, 1087, 1088, ENC_BYTES - 1, ENC_BYTES, len - TAG_BYTES, len - 1] {
        let mut bytes = sealed.as_bytes().to_vec();
        bytes[at] ^= 1;
        let changed = SealedShares::from_bytes(bytes).unwrap();
        let opened = open(&binding(), NodeId(1), &key(1), &changed);
        assert_eq!(opened.err(), Some(OpenError::NotForThis), "byte {at}");
    }
}

/// An admin's machine that makes a mistake: the sealer refuses, and so does the opener, who cannot rest on that.
#[test]
fn shares_that_do_not_fit_are_refused_on_both_sides() {
    type Case = (&'static str, fn(&mut NodeShares), UnfitShares);
    let cases: &[Case] = &[
        ("short mask", |s| s.mask = share(1, 94), UnfitShares::Length { wanted: 95, got: 94 }),
        (
            "long complement",
            |s| drop(s.complements.insert(NodeId(3), share(1, 96))),
            UnfitShares::Length { wanted: 95, got: 96 },
        ),
        // With its own complement beside its mask the node would hold the key.
        (
            "its own complement",
            |s| drop(s.complements.insert(NodeId(1), share(1, 95))),
            UnfitShares::Complements,
        ),
        ("one too few", |s| drop(s.complements.remove(&NodeId(2))), UnfitShares::Complements),
        ("a stranger's", |s| drop(s.complements.insert(NodeId(9), share(1, 95))), UnfitShares::Complements),
    ];
    let b = binding();
    for (what, edit, expected) in cases {
        let mut shares = shares_of(1);
        edit(&mut shares);
        assert_eq!(sealed(&b, 1, &shares).err(), Some(SealError::Unfit(*expected)), "{what}");
        let forced = force(&b, NodeId(1), &plaintext(&shares));
        assert_eq!(open(&b, NodeId(1), &key(1), &forced).err(), Some(OpenError::Unfit(*expected)), "{what}");
    }
    let stranger = seal(&b, NodeId(5), &key(5).public(), &shares_of(5), Zeroizing::new([1; 64]));
    assert_eq!(stranger.err(), Some(SealError::Unfit(UnfitShares::NotAMember(NodeId(5)))));
}

/// Seals bytes that the sealer would not make.
fn force(b: &ShareBinding, node: NodeId, plain: &[u8]) -> SealedShares {
    let to = PublicKey::from_bytes(key(node.0 as u8).public().as_bytes()).unwrap();
    let mut once = Once { entropy: Zeroizing::new([9; 64]), left: 1 };
    let (enc, ciphertext) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeS::Base,
        &to,
        &b.info(node),
        plain,
        b"",
        &mut once,
    )
    .unwrap();
    SealedShares([&enc.to_bytes()[..], &ciphertext].concat())
}

#[test]
fn the_plaintext_is_borshs_and_only_one_form_is_read() {
    let shares = shares_of(2);
    let plain = plaintext(&shares);
    let (split, mask, complements) = bytes(&shares);
    assert_eq!(plain[..], borsh::to_vec(&(split, mask, complements)).unwrap());
    let undecodable = |plain: &[u8]| {
        let forced = force(&binding(), NodeId(2), plain);
        open(&binding(), NodeId(2), &key(2), &forced).err() == Some(OpenError::Undecodable)
    };
    for cut in [0, 15, 16, 19, 20, plain.len() - 1] {
        assert!(undecodable(&plain[..cut]), "cut at {cut}");
    }
    assert!(undecodable(&[&plain[..], &[0]].concat()), "a byte behind");
    let mut long = plain.to_vec();
    long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(undecodable(&long), "a length of 4 GiB");
    // Two complements in the other order: the same set in another form.
    let mut swapped = plain.to_vec();
    let (first, size) = (16 + 4 + 95 + 4, 8 + 4 + 95);
    swapped[first..first + 2 * size].rotate_left(size);
    assert!(undecodable(&swapped), "descending");
}

#[test]
fn keys_and_seals_have_one_length() {
    let public = key(1).public();
    assert_eq!(SharePublicKey::from_bytes(public.as_bytes()), Ok(public.clone()));
    assert_eq!(SharePublicKey::from_bytes(&public.as_bytes()[1..]), Err(BadShareBytes::Length(1215)));
    // FIPS 203 §7.2: coefficients are below q.
    assert_eq!(SharePublicKey::from_bytes(&[0xff; 1216]), Err(BadShareBytes::PublicKey));
    for len in [0, ENC_BYTES + TAG_BYTES - 1, SEALED_BYTES_MAX + 1] {
        assert_eq!(SealedShares::from_bytes(vec![0; len]), Err(BadShareBytes::Length(len)));
    }
    let mut longest = binding();
    longest.secret_bytes = SECRET_BYTES_MAX;
    longest.members = (1..=MEMBERS_MAX as u64).map(NodeId).collect();
    let complements = longest.members.iter().skip(1).map(|n| (*n, share(2, 1024)));
    let shares =
        NodeShares { split: SplitId([0; 16]), mask: share(1, 1024), complements: complements.collect() };
    let sealed = sealed(&longest, 1, &shares).unwrap();
    assert!(SealedShares::from_bytes(sealed.as_bytes().to_vec()).is_ok());
}

#[test]
fn fresh_entropy_makes_another_seal() {
    let b = binding();
    let with = |e| seal(&b, NodeId(1), &key(1).public(), &shares_of(1), Zeroizing::new([e; 64])).unwrap();
    assert!(with(1) != with(2));
    assert!(with(1) == with(1), "and nothing else is drawn");
}

#[test]
fn debug_output_holds_no_secret() {
    let text = format!("{:?} {:?}", key(1).public(), sealed(&binding(), 1, &shares_of(1)).unwrap());
    assert!(text.starts_with("SharePublicKey(") && text.len() < 100, "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_parse_or_are_refused(plain in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Some(shares) = parse(&plain) {
            prop_assert_eq!(&plaintext(&shares)[..], &plain[..]);
        }
    }
}
