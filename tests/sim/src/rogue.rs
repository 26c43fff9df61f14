//! A hostile client: a member of the policy with a key and a small budget of its own, which sends again what was sent, alters what
//! was signed, spends one connection twice, and asks every node at once for more than it may have. It may have heard whatever any
//! client sent. What it must not get is said by the oracle.
use crate::client::{Client, Directory};
use crate::keyer::FROM_CLIENT;
use crate::network::call;
use crate::note;
use crate::peer::{Message, Reply};
use crate::rng::Rng;
use crate::world::World;
use quorate_core::command::{Authorise, ClientCommand, Command, OpenPool};
use quorate_core::crypto::Hash;
use quorate_core::ids::{ClientId, NodeId};
use quorate_core::testing::CLIENT;
use std::sync::Arc;
use std::time::Duration;

/// Its name in the policy.
pub const ROGUE: &str = "rogue";
/// What it may ask for in a minute.
pub const REQUESTS_PER_MINUTE: u64 = 20;
/// It asks for so many at once, over all relays.
const FLOOD: usize = 12;
/// For each answer.
const WITHIN: Duration = Duration::from_secs(3);

/// The client.
pub struct Rogue {
    world: Arc<World>,
    client: Client,
    rng: Rng,
}

impl Rogue {
    /// Its keys are its own.
    pub fn new(world: &Arc<World>) -> Self {
        let rng = Rng::stream(world.seed, "rogue");
        Self { world: Arc::clone(world), client: Client::named(world, 77, ROGUE), rng }
    }

    /// Until the world ends.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.range(200, 1_500))).await;
            let what = self.rng.below(5);
            note!(self.world, "the rogue begins with {what}");
            match what {
                0 => self.replays().await,
                1 => self.alters().await,
                2 => self.floods().await,
                3 => self.spends_twice().await,
                // A request like anybody's: something to send again later.
                _ => drop(self.client.request().await),
            }
        }
    }

    fn anybody(&mut self) -> NodeId {
        let members = self.world.members();
        *self.rng.pick(&members)
    }

    async fn say(&mut self, node: NodeId, message: Message) -> bool {
        let reply = call(&self.world, FROM_CLIENT, node, message, WITHIN).await;
        matches!(reply, Some(Reply::Done(Ok(()))))
    }

    fn heard(&mut self) -> Option<Command> {
        let pick = self.rng.draw();
        self.world.oracle.some_command(pick)
    }

    /// The same bytes again: at its relay, at another, at the log, over a connection that is registered again.
    async fn replays(&mut self) {
        let Some(command) = self.heard() else { return };
        let Some(a) = crate::keyer::authorise_of(&command).cloned() else { return };
        let node = if self.rng.permille(500) { a.relay } else { self.anybody() };
        if self.rng.permille(500) {
            self.say(a.keyer, Message::Register(a.pool, a.connection)).await;
        }
        let command = Arc::new(command);
        self.say(node, Message::Request(Arc::clone(&command))).await;
        self.say(node, Message::Decide(command)).await;
    }

    /// One thing is different from what was signed.
    async fn alters(&mut self) {
        let Some(mut command) = self.heard() else { return };
        let (draw, other) = (self.rng.below(8), self.anybody());
        let id = self.rng.draw().to_be_bytes();
        let Command::Client(signed) = &mut command else { return };
        let ClientCommand::Authorise(a) = &mut signed.body else { return };
        match draw {
            0 => a.request.0[..8].copy_from_slice(&id),
            1 => a.connection.0[..8].copy_from_slice(&id),
            2 => a.keyer = other,
            3 => a.relay = other,
            4 => a.response_bytes_max += 1,
            5 => a.head_digest = Hash([9; 32]),
            6 => a.expires = a.expires.plus_ms(60_000),
            _ => {
                let name = if signed.client.as_str() == ROGUE { CLIENT } else { ROGUE };
                signed.client = ClientId::new(name).expect("a name");
            }
        }
        let (relay, keyer, pool, connection) = (a.relay, a.keyer, a.pool, a.connection);
        self.say(keyer, Message::Register(pool, connection)).await;
        let command = Arc::new(command);
        self.say(relay, Message::Request(Arc::clone(&command))).await;
        self.say(other, Message::Decide(command)).await;
    }

    async fn directory(&mut self) -> Option<Directory> {
        let node = self.anybody();
        match call(&self.world, FROM_CLIENT, node, Message::Directory, WITHIN).await {
            Some(Reply::Directory(directory)) => Some(*directory),
            _ => None,
        }
    }

    /// A pool and a signed request in it, registered with its keyer.
    async fn prepared(&mut self, directory: &Directory) -> Option<(OpenPool, Authorise)> {
        let pool = self.client.open(directory).await.ok()?;
        let a = self.client.authorise(&pool, directory);
        self.say(pool.keyer, Message::Register(pool.pool, a.connection)).await.then_some((pool, a))
    }

    /// More than its budget, from all relays at once.
    async fn floods(&mut self) {
        let Some(directory) = self.directory().await else { return };
        let mut pools: Vec<OpenPool> = Vec::new();
        for _ in 0..3 {
            pools.extend(self.client.open(&directory).await.ok());
        }
        if pools.is_empty() {
            return;
        }
        let mut calls = tokio::task::JoinSet::new();
        for i in 0..FLOOD {
            let pool = &pools[i % pools.len()];
            let a = self.client.authorise(pool, &directory);
            let (world, relay, keyer) = (Arc::clone(&self.world), a.relay, a.keyer);
            let register = Message::Register(a.pool, a.connection);
            let request = Message::Request(self.client.sign(ClientCommand::Authorise(a)));
            calls.spawn(async move {
                call(&world, FROM_CLIENT, keyer, register, WITHIN).await;
                call(&world, FROM_CLIENT, relay, request, WITHIN).await
            });
        }
        let mut served = 0;
        while let Some(done) = calls.join_next().await {
            served += usize::from(matches!(done, Ok(Some(Reply::Done(Ok(()))))));
        }
        note!(self.world, "the rogue asked for {FLOOD} at once, and had {served}");
    }

    /// Two requests for one connection, or one request at two relays, at the same moment.
    async fn spends_twice(&mut self) {
        let Some(directory) = self.directory().await else { return };
        let Some((pool, a)) = self.prepared(&directory).await else { return };
        let mut b = self.client.authorise(&pool, &directory);
        b.connection = a.connection;
        let other = self.anybody();
        let second = if self.rng.permille(500) { (pool.relay, b) } else { (other, a.clone()) };
        let calls = [(pool.relay, a), second].map(|(relay, a)| {
            let message = Message::Request(self.client.sign(ClientCommand::Authorise(a)));
            let world = Arc::clone(&self.world);
            async move { call(&world, FROM_CLIENT, relay, message, WITHIN).await }
        });
        let [one, two] = calls;
        let _both = tokio::join!(biased; one, two);
    }
}
