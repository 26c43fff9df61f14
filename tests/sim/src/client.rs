//! Clients: ask a node who there is, open a pool, register a connection with the keyer, send the request, report.
use crate::keyer::FROM_CLIENT;
use crate::network::call;
use crate::node::Node;
use crate::note;
use crate::peer::{Message, Reply};
use crate::rng::Rng;
use crate::world::World;
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{Authorise, ClientCommand, Command, OpenPool};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::ids::{ConnectionId, NodeId, PolicyVersion, PoolId, RequestId, Timestamp};
use quorate_core::rendezvous;
use quorate_core::testing::{CLIENT, Fleet, route};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Who asks after the healing: what others left unsettled holds up nothing of its own.
pub const CHECKER: &str = "checker";

/// A client gives up after this.
const PATIENCE: Duration = Duration::from_secs(6);

/// What a client learns from a node.
#[derive(Clone)]
pub struct Directory {
    /// Relays with their keyers.
    pub ways: Vec<(NodeId, NodeId)>,
    /// Attested boot keys.
    pub boots: BTreeMap<NodeId, BootKeys>,
    /// Policy.
    pub policy: PolicyVersion,
    /// Share epoch of the route.
    pub share_epoch: u32,
    /// How long pools live.
    pub pool_lifetime_ms: u64,
}

impl Directory {
    /// As a node sees it.
    pub fn of(node: &Node) -> Self {
        node.ledger.read(|state| {
            let attested: Vec<NodeId> = state.attested_nodes().collect();
            let custodian = &state.policy().clients.values().next().expect("a fleet has a client").custodian;
            Self {
                ways: rendezvous::pairs(state.policy(), &attested, &route(), custodian),
                boots: attested.iter().filter_map(|n| Some((*n, state.attested(*n)?.clone()))).collect(),
                policy: state.policy().version,
                share_epoch: state.policy().routes[&route()].share_epoch(),
                pool_lifetime_ms: state.policy().attestation.pool_lifetime_ms,
            }
        })
    }
}

/// An honest client.
pub struct Client {
    world: Arc<World>,
    name: &'static str,
    rng: Rng,
    /// Pools that worked.
    pools: Vec<OpenPool>,
}

impl Client {
    /// By number.
    pub fn new(world: &Arc<World>, number: u64) -> Self {
        Self::named(world, number, CLIENT)
    }

    /// By number and name in the policy.
    pub fn named(world: &Arc<World>, number: u64, name: &'static str) -> Self {
        let rng = Rng::stream(world.seed, &format!("client {number}"));
        Self { world: Arc::clone(world), name, rng, pools: Vec::new() }
    }

    /// Requests, one after the other, for ever.
    pub async fn run(mut self) {
        let pause = if self.world.busy { 60 } else { 1_200 };
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.range(pause / 12, pause))).await;
            match self.request().await {
                Ok(relay) => note!(self.world, "a client was served by {relay}"),
                Err(why) => note!(self.world, "a client was refused: {why}"),
            }
        }
    }

    fn id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&sha256(&self.rng.draw().to_be_bytes()).0[..16]);
        id
    }

    fn now(&self) -> Timestamp {
        self.world.clients_clock.now()
    }

    async fn ask(&self, node: NodeId, message: Message) -> Result<Reply, String> {
        call(&self.world, FROM_CLIENT, node, message, PATIENCE)
            .await
            .ok_or_else(|| format!("{node} does not answer"))
    }

    async fn done(&self, node: NodeId, message: Message) -> Result<(), String> {
        match self.ask(node, message).await? {
            Reply::Done(outcome) => outcome,
            _ => Err("another answer".into()),
        }
    }

    /// Signs in its name.
    pub fn sign(&self, body: ClientCommand) -> Arc<Command> {
        Arc::new(self.world.fleet().client(self.name, body))
    }

    /// Opens a pool.
    pub async fn open(&mut self, directory: &Directory) -> Result<OpenPool, String> {
        if directory.ways.is_empty() {
            return Err("nobody is attested".into());
        }
        let (relay, keyer) = *self.rng.pick(&directory.ways);
        let pool = OpenPool {
            pool: PoolId(self.id()),
            route: route(),
            relay,
            relay_boot: directory.boots[&relay].clone(),
            keyer,
            keyer_boot: directory.boots[&keyer].clone(),
            expires: self.now().plus_ms(directory.pool_lifetime_ms / 2),
            probe: None,
            token: None,
        };
        let command = self.sign(ClientCommand::OpenPool(pool.clone()));
        self.done(relay, Message::Decide(command)).await.map_err(|e| format!("pool: {e}"))?;
        Ok(pool)
    }

    /// One request: who relayed it, or why not.
    pub async fn request(&mut self) -> Result<NodeId, String> {
        let asked = *self.rng.pick(&self.world.members());
        let Reply::Directory(directory) = self.ask(asked, Message::Directory).await? else {
            return Err("no directory".into());
        };
        let now = self.now();
        self.pools.retain(|p| {
            p.expires > now.plus_ms(10_000)
                && directory.boots.get(&p.relay) == Some(&p.relay_boot)
                && directory.boots.get(&p.keyer) == Some(&p.keyer_boot)
        });
        let pool = match self.pools.is_empty() || self.rng.permille(400) {
            true => {
                let pool = self.open(&directory).await?;
                self.pools.push(pool.clone());
                pool
            }
            false => self.rng.pick(&self.pools).clone(),
        };
        let outcome = self.request_in(&pool, &directory).await;
        if outcome.is_err() {
            self.pools.retain(|p| p.pool != pool.pool);
        }
        outcome.map(|()| pool.relay)
    }

    /// A request in a pool, over a connection of its own.
    pub fn authorise(&mut self, pool: &OpenPool, directory: &Directory) -> Authorise {
        let connection = ConnectionId(self.id());
        Authorise {
            request: RequestId(self.id()),
            pool: pool.pool,
            connection,
            route: pool.route.clone(),
            relay: pool.relay,
            keyer: pool.keyer,
            share_epoch: directory.share_epoch,
            policy: directory.policy,
            head_digest: Hash(sha256(&connection.0).0),
            body_digest: Hash([2; 32]),
            body_bytes_max: 1000,
            response_bytes_max: 9000,
            duration_ms_max: 60_000,
            price: None,
            tokens_in_max: u64::MAX,
            tokens_out_max: u64::MAX,
            expires: self.now().plus_ms(30_000),
        }
    }

    async fn request_in(&mut self, pool: &OpenPool, directory: &Directory) -> Result<(), String> {
        let request = self.authorise(pool, directory);
        self.done(pool.keyer, Message::Register(pool.pool, request.connection))
            .await
            .map_err(|e| format!("register: {e}"))?;
        let id = request.request;
        let command = self.sign(ClientCommand::Authorise(request));
        self.done(pool.relay, Message::Request(command)).await.map_err(|e| format!("request: {e}"))?;
        let report = self.sign(ClientCommand::Report(vec![Fleet::report(id)]));
        let world = Arc::clone(&self.world);
        let relay = pool.relay;
        // Nobody waits for it.
        tokio::spawn(
            async move { call(&world, FROM_CLIENT, relay, Message::Decide(report), PATIENCE).await },
        );
        Ok(())
    }
}
