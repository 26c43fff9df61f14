//! Slow and lossy links by a proxy of our own: netem may be missing. It runs in a node's namespace, which sends it what the node sends
//! to its peers; it dials them from a second address, so that its own connections are not sent to it again.
//!
//! A connection through it is late both ways, slow, stands still now and then, and is dropped after some time, for a TCP
//! connection loses no bytes in between: a lost packet is lateness, until it is the end.
use super::Dice;
use super::net::{Net, address, proxy_address};
use anyhow::Context as _;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

/// Where the first proxy of a node listens.
const PORT: u16 = 20_000;
/// Most bytes that are on their way in one direction of a connection.
const ON_THEIR_WAY: usize = 1 << 20;
const PIECE: usize = 16 * 1024;

/// One peer, reached through the proxy.
#[derive(Debug, Clone)]
pub struct Through {
    listen: SocketAddr,
    from: IpAddr,
    to: SocketAddr,
}

impl FromStr for Through {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut parts = text.split('=');
        let mut part = || parts.next().context("LISTEN=FROM=TO");
        Ok(Self { listen: part()?.parse()?, from: part()?.parse()?, to: part()?.parse()? })
    }
}

/// How bad one direction of a connection is.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bad {
    late: Duration,
    bytes_per_s: u64,
    /// Of how many pieces one stands still.
    stands_one_in: u64,
    stands: Duration,
    lives: Duration,
}

impl Bad {
    fn draw(dice: &mut Dice) -> Self {
        let ms = |dice: &mut Dice, from, to| Duration::from_millis(from + dice.below(to - from));
        Self {
            late: ms(dice, 20, 200),
            bytes_per_s: 64 * 1024 + dice.below(1 << 20),
            stands_one_in: 40,
            stands: ms(dice, 200, 1500),
            lives: ms(dice, 3_000, 20_000),
        }
    }
}

/// The proxy's program: forwards until it is killed.
pub async fn proxy(through: Vec<Through>, seed: u64) -> anyhow::Result<()> {
    let dice = Arc::new(Mutex::new(Dice(seed)));
    let mut tasks = tokio::task::JoinSet::new();
    for Through { listen, from, to } in through {
        let (listener, dice) = (TcpListener::bind(listen).await?, Arc::clone(&dice));
        tasks.spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { continue };
                let (bad, seed) = {
                    let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
                    (Bad::draw(&mut dice), dice.next())
                };
                tokio::spawn(async move {
                    let socket =
                        TcpSocket::new_v4().and_then(|s| s.bind(SocketAddr::new(from, 0)).map(|()| s));
                    let Ok(socket) = socket else { return };
                    if let Ok(far) = socket.connect(to).await {
                        carry(near, far, bad, seed).await;
                    }
                });
            }
        });
    }
    println!("ready");
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Carries both directions of a connection until it ends or has lived long enough; then both sides see its end.
async fn carry(near: TcpStream, far: TcpStream, bad: Bad, seed: u64) {
    for socket in [&near, &far] {
        let _best_effort = socket.set_nodelay(true);
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let up = direction(near_read, far_write, bad, Dice(seed));
    let down = direction(far_read, near_write, bad, Dice(seed.wrapping_add(1)));
    let both = async { tokio::join!(up, down) };
    let _ended = tokio::time::timeout(bad.lives, both).await;
}

/// Each piece is written when it is due, in order.
async fn direction(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    bad: Bad,
    mut dice: Dice,
) {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut held = 0;
    // When the link is free again.
    let mut free = Instant::now();
    let mut open = true;
    let mut piece = vec![0; PIECE];
    while open || !waiting.is_empty() {
        let due = waiting.front().map(|(due, _)| *due);
        tokio::select! {
            read = from.read(&mut piece), if open && held < ON_THEIR_WAY => {
                let Ok(count) = read else { return };
                open = count > 0;
                let bytes = piece.get(..count).unwrap_or_default();
                if dice.below(bad.stands_one_in) == 0 {
                    free = free.max(Instant::now()) + bad.stands;
                }
                let takes = Duration::from_micros(count as u64 * 1_000_000 / bad.bytes_per_s);
                free = free.max(Instant::now()) + takes;
                let jitter = Duration::from_millis(dice.below(20));
                let after = waiting.back().map_or(free, |(due, _)| *due);
                waiting.push_back(((free + bad.late + jitter).max(after), bytes.to_vec()));
                held += count;
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Some((_, bytes)) = waiting.pop_front() else { continue };
                held -= bytes.len();
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    }
    let _gone = to.shutdown().await;
}

/// A node whose links are bad, until this is dropped.
pub(super) struct Slow {
    process: Child,
    inside: Vec<String>,
}

impl Slow {
    /// Makes the links of a node bad that it opened to these peers (node and port): those that there are end, and new ones go
    /// through the proxy. `program` is the one that has [`proxy`].
    pub(super) fn make(program: &Path, node: u64, peers: &[(u64, u16)], seed: u64) -> anyhow::Result<Self> {
        let inside = Net::inside(node);
        let (enter, rest) = inside.split_first().context("no namespace")?;
        let mut command = Command::new(enter);
        command.args(rest).arg(program).args(["--proxy-seed", &seed.to_string()]);
        let own = proxy_address(node);
        for (at, (peer, port)) in (0u16..).zip(peers) {
            let listen = PORT + at;
            command.arg("--proxy").arg(format!("0.0.0.0:{listen}={own}={}:{port}", address(*peer)));
        }
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut ready = [0; 5];
        let said = process.stdout.as_mut().context("no output")?;
        let heard = std::io::Read::read_exact(said, &mut ready);
        let slow = Self { process, inside };
        heard.context("the proxy did not start")?;
        for (at, (peer, port)) in (0u16..).zip(peers) {
            let there = format!("ip saddr != {own} ip daddr {} tcp dport {port}", address(*peer));
            Net::nft(&slow.inside, &format!("add rule ip slow out {there} redirect to :{}", PORT + at))?;
            // Those that were opened before: what is sent to the proxy does not look so here any more.
            Net::nft(&slow.inside, &format!("add rule inet chaos out {there} reject with tcp reset"))?;
        }
        Ok(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _undone = Net::nft(&self.inside, "flush chain ip slow out");
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Bad = Bad {
        late: Duration::from_millis(30),
        bytes_per_s: 100_000,
        stands_one_in: u64::MAX,
        stands: Duration::ZERO,
        lives: Duration::from_secs(60),
    };

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    /// The two ends of a connection through a carrier.
    async fn carried(bad: Bad) -> (TcpStream, TcpStream) {
        let ((client, near), (far, server)) = (pair().await, pair().await);
        tokio::spawn(carry(near, far, bad, 7));
        (client, server)
    }

    #[tokio::test]
    async fn bytes_arrive_whole_late_and_no_faster_than_the_link() {
        let (mut client, mut server) = carried(BAD).await;
        let sent: Vec<u8> = (0..30_000u32).map(|n| n as u8).collect();
        let begun = Instant::now();
        client.write_all(&sent).await.unwrap();
        let mut got = vec![0; sent.len()];
        server.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        // 30 kB at 100 kB/s, and the lateness
        assert!(begun.elapsed() >= Duration::from_millis(300 + 30), "{:?}", begun.elapsed());
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer", "the end comes after all bytes");
    }

    #[tokio::test]
    async fn a_connection_that_lived_long_enough_is_dropped() {
        let lives = Duration::from_millis(50);
        let (mut client, mut server) = carried(Bad { lives, ..BAD }).await;
        let mut byte = [0; 1];
        let ends = |read: std::io::Result<usize>| matches!(read, Ok(0) | Err(_));
        assert!(ends(client.read(&mut byte).await) && ends(server.read(&mut byte).await));
    }

    #[test]
    fn the_same_seed_makes_the_same_links() {
        let drawn = |seed| (0..5).map(|_| Bad::draw(&mut Dice(seed))).collect::<Vec<_>>();
        assert_eq!(drawn(3), drawn(3));
        assert_ne!(drawn(3), drawn(4));
    }

    #[test]
    fn what_to_proxy_is_read_from_the_command_line() {
        let through: Through = "0.0.0.0:20000=10.0.0.101=10.0.0.2:7000".parse().unwrap();
        assert_eq!((through.listen.port(), through.to.port()), (20_000, 7_000));
        assert!("0.0.0.0:20000=10.0.0.101".parse::<Through>().is_err());
    }
}
