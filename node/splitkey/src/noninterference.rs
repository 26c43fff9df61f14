//! Non-interference as an executable property (DESIGN.md section 9, first oracle).
//!
//! A *world* is everything but the secret: masks, traffic secrets, requests, what hostile parties try. [`run`] plays all its
//! requests with the crate's own client, keyer and relay parts and a provider that decrypts, and writes down each party's
//! *view*: every byte it holds, gets or sends. The property: for a party P and two secrets K0 and K1 of one length, with
//! delta = K0 XOR K1, P's view of (world, K0) equals its view of (world coupled for P, K1).
//!
//! **Which randomness is held fixed.** "Everything else the same" cannot mean every random value, for K is the XOR of two of
//! them. It means a bijection on the world's randomness that keeps its distribution, so that equal views for each world
//! are equal distributions of views:
//!
//! | party | masks | keystream of holes (counter 1 on, sequence 1) | everything else |
//! |---|---|---|---|
//! | client | same (so complements change) | same: it knows it | same |
//! | node x | A_x same, A_j XOR delta for j other than x (so the B_j it holds are the same) | XOR delta where x is the relay; same where x is the keyer, which knows it | same |
//! | tap on the providers' side | same | XOR delta | same |
//!
//! A mask is uniform, so A_j XOR delta is too. A hole's keystream is ChaCha20 under a traffic secret that relay and tap do not
//! know, at a nonce and counters used for nothing else; it is replaced by a uniform string, and that ChaCha20 and HKDF are
//! pseudo-random is the one assumption the property rests on. All other keystream (head parts, body, the one-time key
//! at counter 0) stays what it is.
//!
//! **Two credentials.** The world has a second route with a fixed secret L, and shares of it. Without it, a keyer that answers
//! twice would leak nothing that one secret's world could show.
//!
//! **Hostile parties** are in the world too: a relay's questions to the keyer with bits flipped or asked again, a client that
//! registers a false secret or sends more body than it announced. Left out, because they are metered faults and not
//! equal: what the provider says to a hole that relay or keyer altered.
//!
//! **The harness bites**: each [`Fault`] breaks one rule on purpose, and the property must fail for the party that gains.

use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::client::ClientConnection;
use crate::framing::{BodyMeter, HeadRecords, HeadShape};
use crate::head::{CredentialScheme, CredentialSlot, Head, HeadTemplate, HeadTemplateSpec, Method, PathRule};
use crate::hole::{HoleAnswer, HoleKeys, tag};
use crate::keyer::KeyerConnection;
use crate::record::{ContentType, Record, RecordKeys, RecordSealer, TAG_LEN, TrafficSecret, split_records};
use crate::share::{Complement, Mask, Secret, xor};

/// One of the world's two credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credential {
    /// The one whose secret differs between runs.
    Varied,
    /// The one whose secret is the same.
    Fixed,
}

/// A relay's question to the keyer before the honest one.
#[derive(Clone, Debug)]
struct Question {
    /// Which bit of the head records is flipped; none asks honestly, and so too early.
    flipped: Option<prop::sample::Index>,
    /// Asked about the other route.
    other_route: bool,
}

#[derive(Clone, Debug)]
struct Request {
    relay: usize,
    keyer: usize,
    credential: Credential,
    traffic: [u8; 32],
    /// The secret the client registers in place of the true one, if it lies.
    registered: Option<[u8; 32]>,
    body: Vec<u8>,
    /// Body bytes sent beyond the content-length.
    excess: usize,
    questions: Vec<Question>,
}

#[derive(Clone, Debug)]
struct World {
    secrets: [Vec<u8>; 2],
    fixed_secret: Vec<u8>,
    /// A_k of the varied credential, one for each node.
    masks: Vec<Vec<u8>>,
    /// A_k of the fixed one.
    fixed_masks: Vec<Vec<u8>>,
    requests: Vec<Request>,
    /// XORed onto each request's keystream; zeros unless coupled.
    shifts: Vec<Vec<u8>>,
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Client,
    Node(usize),
    /// Whoever records what relays and providers say to each other.
    Tap,
}

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The keyer's pad is the bare keystream.
    PadWithoutMask,
    /// The keyer answers once more on the same connection, for the other route's secret.
    AnswersTwice,
    /// The relay shows the filled hole to client and keyer.
    HoleShown,
    /// A node holds both shares of its own pair.
    WholePair,
    /// One mask serves every keyer.
    SharedMask,
    /// The relay joins the shares, and the keyer sends its own.
    MaskSent,
}

type View = Vec<(&'static str, Vec<u8>)>;

#[derive(Default)]
struct Outcome {
    client: View,
    nodes: Vec<View>,
    tap: View,
    /// What the provider read of each request: the application stream, or nothing past the first record it refused.
    provider: Vec<Vec<u8>>,
}

impl Outcome {
    fn view(&self, party: Party) -> &View {
        match party {
            Party::Client => &self.client,
            Party::Node(node) => &self.nodes[node],
            Party::Tap => &self.tap,
        }
    }
}

fn template(credential: Credential, secret_len: usize) -> HeadTemplate {
    let scheme = match credential {
        Credential::Varied => CredentialScheme::Bearer,
        Credential::Fixed => CredentialScheme::XApiKey,
    };
    HeadTemplate::try_from(HeadTemplateSpec {
        host: "provider.example".into(),
        port: 443,
        base_path: String::new(),
        paths: vec![PathRule { method: Method::Post, path: "/v1/messages".into(), prefix: false }],
        headers: vec![],
        credential: Some(CredentialSlot {
            scheme,
            public_prefix: "sk-".into(),
            secret_len: u16::try_from(secret_len).unwrap(),
        }),
    })
    .unwrap()
}

fn head(content_length: usize) -> Head {
    Head {
        method: Method::Post,
        path: "/v1/messages".into(),
        headers: vec![],
        content_length: content_length as u64,
    }
}

/// The canonical head of a request with the key in its place, written out by hand.
fn canonical(credential: Credential, secret: &[u8], body: &[u8]) -> Vec<u8> {
    let line = match credential {
        Credential::Varied => "authorization: Bearer sk-",
        Credential::Fixed => "x-api-key: sk-",
    };
    let front = format!("POST /v1/messages HTTP/1.1\r\nhost: provider.example\r\n{line}");
    let tail = format!("\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    [front.as_bytes(), secret, tail.as_bytes(), body].concat()
}

fn mask(bytes: &[u8]) -> Mask {
    Mask::new(Zeroizing::new(bytes.to_vec())).unwrap_or_else(|_| unreachable!())
}

fn complement(secret: &[u8], mask: &[u8]) -> Complement {
    Complement::new(xor(secret, mask)).unwrap_or_else(|_| unreachable!())
}

impl World {
    fn node_count(&self) -> usize {
        self.masks.len()
    }

    fn delta(&self) -> Vec<u8> {
        xor(&self.secrets[0], &self.secrets[1]).to_vec()
    }

    /// The table in the module's documentation.
    fn coupled(&self, party: Party) -> Self {
        let delta = self.delta();
        let mut world = self.clone();
        if let Party::Node(node) = party {
            for (at, mask) in world.masks.iter_mut().enumerate() {
                if at != node {
                    *mask = xor(mask, &delta).to_vec();
                }
            }
        }
        for (request, shift) in self.requests.iter().zip(&mut world.shifts) {
            let sees_the_hole = match party {
                Party::Client => false,
                Party::Node(node) => request.relay == node,
                Party::Tap => true,
            };
            // a hole of the other credential stays as it is
            if sees_the_hole && request.credential == Credential::Varied {
                *shift = delta.clone();
            }
        }
        world
    }

    fn masks_of(&self, credential: Credential) -> &[Vec<u8>] {
        match credential {
            Credential::Varied => &self.masks,
            Credential::Fixed => &self.fixed_masks,
        }
    }
}

fn run(world: &World, secret: &[u8], fault: Fault) -> Outcome {
    let mut outcome = Outcome { nodes: vec![View::new(); world.node_count()], ..Outcome::default() };
    let secret_of = |credential| match credential {
        Credential::Varied => secret,
        Credential::Fixed => &world.fixed_secret,
    };
    let mask_of = |credential, keyer: usize| {
        let at = if fault == Fault::SharedMask && credential == Credential::Varied { 0 } else { keyer };
        world.masks_of(credential)[at].as_slice()
    };
    for (node, view) in outcome.nodes.iter_mut().enumerate() {
        for credential in [Credential::Varied, Credential::Fixed] {
            view.push(("own mask", mask_of(credential, node).to_vec()));
            for keyer in 0..world.node_count() {
                if keyer != node || fault == Fault::WholePair {
                    let share = complement(secret_of(credential), mask_of(credential, keyer));
                    view.push(("complement", share.expose_bytes().to_vec()));
                }
            }
        }
    }
    for (request, shift) in world.requests.iter().zip(&world.shifts) {
        let secret = secret_of(request.credential);
        let own = mask_of(request.credential, request.keyer);
        let play = Play {
            request,
            shift,
            fault,
            secret,
            mask: mask(own),
            complement: complement(secret, own),
            other_mask: mask(&world.fixed_masks[request.keyer]),
        };
        play.run(&mut outcome);
    }
    outcome
}

/// One request, with what its honest parties use.
struct Play<'a> {
    request: &'a Request,
    shift: &'a [u8],
    fault: Fault,
    secret: &'a [u8],
    mask: Mask,
    complement: Complement,
    other_mask: Mask,
}

impl Play<'_> {
    fn run(self, outcome: &mut Outcome) {
        let Request { relay, keyer, credential, traffic, .. } = *self.request;
        let template = template(credential, self.secret.len());
        let truth = TrafficSecret::new(traffic);
        let registered = self.request.registered.unwrap_or(traffic);

        // what the provider will use: the true secret, and the (shifted) keystream of its hole
        let provider_keys = RecordKeys::new(&truth);
        let provider_hole = self.shifted(provider_keys.hole(1, self.secret.len() + 1));

        // the client; one that lies seals for the keyer with what it registered
        let connection = ClientConnection::new(TrafficSecret::new(registered), TrafficSecret::new([0; 32]));
        let body = &self.request.body;
        let sealed = connection.seal_request(&template, &head(body.len())).unwrap();
        let head_records = sealed.head;
        let body_records = self.client_body(&registered);
        outcome.client.push(("registered secret", registered.to_vec()));
        outcome.client.push(("head", head_records.to_bytes()));
        outcome.client.push(("body", body_records.clone()));
        outcome.nodes[keyer].push(("registered secret", registered.to_vec()));
        outcome.nodes[relay].push(("head", head_records.to_bytes()));
        outcome.nodes[relay].push(("body", body_records.clone()));

        let answer = self.ask(outcome, &template, &registered, &head_records);
        let Some(answer) = answer else {
            outcome.client.push(("refused", vec![]));
            outcome.provider.push(vec![]);
            return;
        };
        outcome.nodes[relay].push(("pad", answer.expose_pad().to_vec()));
        outcome.nodes[relay].push(("one-time key", answer.expose_one_time_key().to_vec()));
        outcome.nodes[relay].push(("content-length", answer.content_length().to_be_bytes().to_vec()));
        let mut meter = BodyMeter::new(answer.content_length());
        let filled = answer.fill(template.credential().unwrap(), &self.complement);
        let Ok(filled) = filled else { unreachable!("lengths are the template's") };
        let hole = filled.as_bytes().to_vec();
        let mut released = Vec::new();
        head_records.release_into(Some(filled), &mut released).unwrap();
        let cut = meter.body_bytes(&body_records, &mut released).is_err();
        outcome.nodes[relay].push(("released", released.clone()));
        outcome.tap.push(("released", released.clone()));
        if self.fault == Fault::HoleShown {
            outcome.client.push(("shown hole", hole.clone()));
            outcome.nodes[keyer].push(("shown hole", hole));
        }

        let read = provider_reads(&provider_keys, &provider_hole, &released);
        // the provider's answer tells whether it liked the key, and nothing else of it
        let accepted = read.starts_with(&canonical(credential, self.secret, body));
        let status: &[u8] = if accepted { b"200" } else { b"no" };
        outcome.client.push(("answer", [status, &[u8::from(cut)]].concat()));
        for view in [&mut outcome.nodes[relay], &mut outcome.tap] {
            let mut records = Vec::new();
            let mut sealer = RecordSealer::new(&TrafficSecret::new([0; 32]));
            sealer.seal_into(ContentType::ApplicationData, status, &mut records).unwrap();
            view.push(("sealed answer", records));
        }
        outcome.provider.push(read);
    }

    fn shifted(&self, mut keys: HoleKeys) -> HoleKeys {
        for (byte, shift) in keys.keystream.iter_mut().zip(self.shift) {
            *byte ^= shift;
        }
        keys
    }

    fn client_body(&self, registered: &[u8; 32]) -> Vec<u8> {
        let mut sealer = RecordSealer::new(&TrafficSecret::new(*registered));
        (0..3).for_each(|_| sealer.skip().unwrap());
        let mut records = Vec::new();
        for chunk in [&self.request.body[..], &vec![b'+'; self.request.excess]] {
            for plaintext in chunk.chunks(1000) {
                sealer.seal_into(ContentType::ApplicationData, plaintext, &mut records).unwrap();
            }
        }
        records
    }

    /// The relay's questions, and the keyer's answer if there is one.
    fn ask(
        &self,
        outcome: &mut Outcome,
        template: &HeadTemplate,
        registered: &[u8; 32],
        honest: &HeadRecords,
    ) -> Option<HoleAnswer> {
        let Request { relay, keyer, credential, .. } = *self.request;
        let mut connection = KeyerConnection::new();
        connection.register(TrafficSecret::new(*registered)).unwrap();
        let other = match credential {
            Credential::Varied => Credential::Fixed,
            Credential::Fixed => Credential::Varied,
        };
        let other = super::noninterference::template(other, self.secret.len());
        let mut asked = |template: &HeadTemplate, bytes: &[u8]| {
            let Ok(records) = HeadRecords::from_bytes(bytes, HeadShape::AroundHole) else { return };
            let said = match connection.check_head(template, &records) {
                Ok(checked) => format!("{:?}", checked.content_length()),
                Err(refusal) => format!("{refusal:?}"),
            };
            outcome.nodes[keyer].push(("question", bytes.to_vec()));
            outcome.nodes[keyer].push(("said", said.clone().into_bytes()));
            outcome.nodes[relay].push(("said", said.into_bytes()));
        };
        for question in &self.request.questions {
            let mut bytes = honest.to_bytes();
            if let Some(at) = question.flipped {
                let bit = at.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            asked(if question.other_route { &other } else { template }, &bytes);
        }
        if self.request.questions.is_empty() {
            asked(template, &honest.to_bytes());
        }

        let hole =
            self.shifted(RecordKeys::new(&TrafficSecret::new(*registered)).hole(1, self.secret.len() + 1));
        let keystream = hole.keystream.to_vec();
        connection.replace_keystream_for_tests(&keystream);
        let content_length = self.request.body.len() as u64;
        let answer = connection.answer(&self.mask).ok()?;
        let answer = match self.fault {
            Fault::PadWithoutMask => {
                let zeros = mask(&vec![0; self.secret.len()]);
                hole.answer(&zeros, content_length).ok()?
            }
            Fault::AnswersTwice => {
                let second = hole.answer(&self.other_mask, content_length).ok()?;
                outcome.nodes[relay].push(("second pad", second.expose_pad().to_vec()));
                answer
            }
            Fault::MaskSent => {
                outcome.nodes[relay].push(("mask", self.mask.expose_bytes().to_vec()));
                answer
            }
            Fault::None | Fault::HoleShown | Fault::WholePair | Fault::SharedMask => answer,
        };
        outcome.nodes[keyer].push(("pad", answer.expose_pad().to_vec()));
        outcome.nodes[keyer].push(("one-time key", answer.expose_one_time_key().to_vec()));
        Some(answer)
    }
}

/// The application stream as a TLS endpoint reads it: sequence numbers by its own count, stopping at what does not open.
fn provider_reads(keys: &RecordKeys, hole: &HoleKeys, bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let records = split_records(bytes).unwrap().unwrap();
    for (sequence, record) in (0u64..).zip(records) {
        let opened = match sequence {
            1 => open_hole(hole, &record),
            _ => keys.open(sequence, record).ok(),
        };
        let Some(mut inner) = opened else { return stream };
        if inner.pop() != Some(ContentType::ApplicationData.code()) {
            return stream;
        }
        stream.extend(inner);
    }
    stream
}

fn open_hole(hole: &HoleKeys, record: &Record) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    record.write_to(&mut bytes);
    let (header, fragment) = bytes.split_at(5);
    let (ciphertext, got) = fragment.split_at(fragment.len() - TAG_LEN);
    let right = tag(&hole.one_time_key, header, ciphertext) == got;
    right.then(|| xor(&hole.keystream, ciphertext).to_vec())
}

fn parties(world: &World) -> impl Iterator<Item = Party> {
    (0..world.node_count()).map(Party::Node).chain([Party::Client, Party::Tap])
}

/// Whether `party` cannot tell the two secrets apart in this world.
fn is_blind(world: &World, party: Party, fault: Fault) -> bool {
    let zero = run(world, &world.secrets[0], fault);
    let one = run(&world.coupled(party), &world.secrets[1], fault);
    zero.view(party) == one.view(party)
}

fn secret_text(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(b'!'..=b'~', length)
}

fn request(nodes: usize, hostile: bool) -> impl Strategy<Value = Request> {
    let question = (any::<Option<prop::sample::Index>>(), any::<bool>())
        .prop_map(|(flipped, other_route)| Question { flipped, other_route });
    let credential = prop::sample::select(vec![Credential::Varied, Credential::Varied, Credential::Fixed]);
    let mischief = (
        prop::option::weighted(0.2, any::<[u8; 32]>()),
        prop_oneof![3 => Just(0usize), 1 => 1usize..50],
        prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(question, 1..3)],
    );
    (0..nodes, 1..nodes, credential, any::<[u8; 32]>(), prop::collection::vec(any::<u8>(), 0..2500), mischief)
        .prop_map(move |(relay, step, credential, traffic, body, (registered, excess, questions))| {
            let keyer = (relay + step) % nodes;
            let request = Request {
                relay,
                keyer,
                credential,
                traffic,
                registered: None,
                body,
                excess: 0,
                questions: vec![],
            };
            if hostile { Request { registered, excess, questions, ..request } } else { request }
        })
}

fn world(hostile: bool) -> impl Strategy<Value = World> {
    (2usize..6, 16usize..120).prop_flat_map(move |(nodes, length)| {
        let masks = || prop::collection::vec(prop::collection::vec(any::<u8>(), length), nodes);
        (
            [secret_text(length), secret_text(length)],
            secret_text(length),
            masks(),
            masks(),
            prop::collection::vec(request(nodes, hostile), 1..6),
        )
            .prop_map(move |(secrets, fixed_secret, masks, fixed_masks, requests)| World {
                secrets,
                fixed_secret,
                masks,
                fixed_masks,
                shifts: vec![vec![0; length]; requests.len()],
                requests,
            })
    })
}

/// A small world in which each node relays and keys once for each credential.
fn example() -> World {
    let bytes = |seed: u8| (0..32u8).map(|at| at.wrapping_mul(91).wrapping_add(seed)).collect::<Vec<u8>>();
    let requests: Vec<Request> = (0..6u8)
        .map(|at| Request {
            relay: usize::from(at % 3),
            keyer: usize::from((at + 1) % 3),
            credential: if at < 3 { Credential::Varied } else { Credential::Fixed },
            traffic: [at + 1; 32],
            registered: None,
            body: b"a prompt".to_vec(),
            excess: 0,
            questions: vec![],
        })
        .collect();
    World {
        secrets: [b"abcdefghijklmnopqrstuvwxyzABCDEF".to_vec(), b"0123456789abcdef0123456789abcdef".to_vec()],
        fixed_secret: b"another-secret-of-the-same-size!".to_vec(),
        masks: (1..4).map(bytes).collect(),
        fixed_masks: (11..14).map(bytes).collect(),
        shifts: vec![vec![0; 32]; requests.len()],
        requests,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// No single party, honest or not, can tell one secret from another.
    #[test]
    fn nobody_alone_learns_anything(world in world(true)) {
        for party in parties(&world) {
            prop_assert!(is_blind(&world, party, Fault::None), "{party:?} can tell the secrets apart");
        }
    }

    /// What a provider decrypts is the canonical head with the key, from sequence 0, then content-length bytes. In both
    /// runs, so the property above is not won by requests that fail.
    #[test]
    fn providers_read_the_canonical_head(world in world(false)) {
        for (world, secret) in parties(&world)
            .map(|party| (world.coupled(party), &world.secrets[1]))
            .chain([(world.clone(), &world.secrets[0])])
        {
            let outcome = run(&world, secret, Fault::None);
            for (request, read) in world.requests.iter().zip(&outcome.provider) {
                let secret = match request.credential {
                    Credential::Varied => secret,
                    Credential::Fixed => &world.fixed_secret,
                };
                prop_assert!(*read == canonical(request.credential, secret, &request.body));
            }
        }
    }

    /// A hostile client gets no byte more through: what is read is nothing, or the canonical head and at most
    /// content-length bytes.
    #[test]
    fn hostile_clients_get_nothing_more_through(world in world(true)) {
        let outcome = run(&world, &world.secrets[0], Fault::None);
        for (request, read) in world.requests.iter().zip(&outcome.provider) {
            let secret = match request.credential {
                Credential::Varied => &world.secrets[0],
                Credential::Fixed => &world.fixed_secret,
            };
            let expected = canonical(request.credential, secret, &request.body);
            let released = request.questions.is_empty() && request.registered.is_none();
            prop_assert!(*read == expected || read.is_empty() && !released);
        }
    }

    /// Twin of [`Secret::split`]: its pairs are the worlds' masks and complements.
    #[test]
    fn worlds_hold_what_splitting_gives(world in world(false)) {
        let secret = Secret::new(Zeroizing::new(world.secrets[0].clone())).unwrap_or_else(|_| unreachable!());
        let pairs = secret.split(world.node_count(), Zeroizing::new(world.masks.concat()));
        let pairs = pairs.unwrap_or_else(|_| unreachable!());
        for (pair, mask) in pairs.iter().zip(&world.masks) {
            prop_assert_eq!(pair.mask.expose_bytes(), mask.as_slice());
            let share = complement(&world.secrets[0], mask);
            prop_assert_eq!(pair.complement.expose_bytes(), share.expose_bytes());
        }
    }
}

/// Each broken rule shows itself to the party that gains by it, and the unbroken twin to none.
#[test]
fn the_harness_bites() {
    let world = example();
    let nodes = [Party::Node(0), Party::Node(1), Party::Node(2)];
    for party in parties(&world) {
        assert!(is_blind(&world, party, Fault::None), "{party:?}");
    }
    for fault in [
        Fault::PadWithoutMask,
        Fault::AnswersTwice,
        Fault::HoleShown,
        Fault::WholePair,
        Fault::SharedMask,
        Fault::MaskSent,
    ] {
        for node in nodes {
            assert!(!is_blind(&world, node, fault), "{node:?} should gain by {fault:?}");
        }
        assert_eq!(is_blind(&world, Party::Client, fault), fault != Fault::HoleShown, "{fault:?}");
    }
}

/// A coupling that changes nothing but the secret must be seen: views do hold what depends on it.
#[test]
fn without_coupling_every_node_sees_a_difference() {
    let world = example();
    let [zero, one] = [0, 1].map(|at| run(&world, &world.secrets[at], Fault::None));
    for party in parties(&world) {
        assert_eq!(zero.view(party) == one.view(party), party == Party::Client, "{party:?}");
    }
}

/// What section 8 of the design admits: any two nodes hold a whole pair, so the two of them have the key.
#[test]
fn two_nodes_together_have_the_key() {
    let world = example();
    let outcome = run(&world, &world.secrets[0], Fault::None);
    let masks = outcome.nodes[0].iter().filter(|(label, _)| *label == "own mask");
    let found = masks.flat_map(|(_, mask)| {
        let shares = outcome.nodes[1].iter().filter(|(label, _)| *label == "complement");
        shares.map(|(_, share)| xor(mask, share).to_vec())
    });
    assert!(found.into_iter().any(|joined| joined == world.secrets[0]));
}

/// What the traffic secret's secrecy is for: a relay that knows it reads the key off its own ciphertext.
#[test]
fn a_client_and_a_tap_together_have_the_key() {
    let world = example();
    let outcome = run(&world, &world.secrets[0], Fault::None);
    let keystream = RecordKeys::new(&TrafficSecret::new(world.requests[0].traffic)).hole(1, 32).keystream;
    let (_, released) = &outcome.tap[0];
    let records = split_records(released).unwrap().unwrap();
    assert_eq!(xor(&keystream, records[1].fragment()).as_slice(), world.secrets[0]);
}
