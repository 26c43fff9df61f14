//! A network of namespaces: one for each node, joined by a bridge in the program's own, where the provider and the applications
//! are. Links are cut by a rule in the namespace that sends, so a cut has a direction.
//!
//! The program's own namespaces are private (`cluster/chaos` makes them with unshare), so nothing here touches the machine's
//! network, and everything is gone when the last process in them ends.
use anyhow::ensure;
use quorate_cluster::mesh::{Place, run};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the provider and the applications are.
pub(super) const HUB: &str = "10.231.0.254";

/// The namespaces, made.
pub struct Net {
    nodes: u64,
}

/// A node's address.
pub(super) fn address(node: u64) -> String {
    format!("10.231.0.{node}")
}

/// A node's second address: its proxy's.
pub(super) fn proxy_address(node: u64) -> String {
    format!("10.231.0.{}", 100 + node)
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).map(drop)
}

impl Net {
    /// Makes a network for so many nodes. `dir` holds a hosts file, so that `localhost` is the hub everywhere: the provider's
    /// certificate is for that name.
    pub fn make(nodes: u64, dir: &Path) -> anyhow::Result<Self> {
        // Two lines of heading, and the loopback interface that every new namespace has.
        ensure!(
            fs::read_to_string("/proc/net/dev")?.lines().count() == 3,
            "this is a network with interfaces already; run it by cluster/chaos, which gives it one of its own"
        );
        // What is mounted and unmounted here is so for the nodes as well: each runs in a copy of these mounts.
        run(Command::new("mount").args(["--make-rshared", "/"]))?;
        fs::create_dir_all("/run/netns")?;
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/netns"]))?;
        let hosts = dir.join("hosts");
        fs::write(&hosts, format!("{HUB} localhost\n"))?;
        run(Command::new("mount").arg("--bind").arg(&hosts).arg("/etc/hosts"))?;
        ip("link set lo up")?;
        ip("link add name hub type bridge")?;
        ip(&format!("addr add {HUB}/24 dev hub"))?;
        ip("link set hub up")?;
        let net = Self { nodes };
        net.filter(&[])?;
        for node in 1..=nodes {
            ip(&format!("netns add n{node}"))?;
            ip(&format!("link add name v{node} type veth peer name eth0 netns n{node}"))?;
            ip(&format!("link set v{node} master hub up"))?;
            ip(&format!("-n n{node} addr add {}/24 dev eth0", address(node)))?;
            ip(&format!("-n n{node} addr add {}/24 dev eth0", proxy_address(node)))?;
            ip(&format!("-n n{node} link set eth0 up"))?;
            ip(&format!("-n n{node} link set lo up"))?;
            net.filter(&Self::inside(node))?;
            Self::nft(&Self::inside(node), "add table ip slow")?;
            let chain = "add chain ip slow out { type nat hook output priority -100; }";
            Self::nft(&Self::inside(node), chain)?;
        }
        Ok(net)
    }

    /// Where a mesh has its nodes here.
    pub fn place(node: u64) -> Place {
        match node {
            0 => Place { host: HUB.into(), inside: vec![] },
            _ => Place { host: address(node), inside: Self::inside(node) },
        }
    }

    pub(super) fn inside(node: u64) -> Vec<String> {
        ["ip", "netns", "exec", &format!("n{node}")].map(ToOwned::to_owned).into()
    }

    pub(super) fn nft(inside: &[String], rule: &str) -> anyhow::Result<()> {
        let mut command = Command::new(inside.first().map_or("nft", String::as_str));
        if let Some(rest) = inside.get(1..) {
            command.args(rest).arg("nft");
        }
        run(command.arg(rule)).map(drop)
    }

    fn filter(&self, inside: &[String]) -> anyhow::Result<()> {
        Self::nft(inside, "add table inet chaos")?;
        Self::nft(inside, "add chain inet chaos out { type filter hook output priority 0; }")
    }

    /// Nothing that the node sends arrives there any more.
    pub fn cut(&self, from: u64, to: u64) -> anyhow::Result<()> {
        let (inside, to) = match (from, to) {
            (0, to) => (vec![], address(to)),
            (from, 0) => (Self::inside(from), HUB.to_owned()),
            (from, to) => (Self::inside(from), address(to)),
        };
        Self::nft(&inside, &format!("add rule inet chaos out ip daddr {to} drop"))
    }

    /// Nothing passes between the two sides, either way.
    pub fn split(&self, one: &[u64], other: &[u64]) -> anyhow::Result<()> {
        for a in one {
            for b in other {
                self.cut(*a, *b)?;
                self.cut(*b, *a)?;
            }
        }
        Ok(())
    }

    /// Every link is whole again.
    pub fn heal(&self) -> anyhow::Result<()> {
        Self::nft(&[], "flush chain inet chaos out")?;
        (1..=self.nodes).try_for_each(|node| Self::nft(&Self::inside(node), "flush chain inet chaos out"))
    }
}
