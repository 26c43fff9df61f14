//! Measures, over loopback: a full mutual handshake, and a unary call's round trip on an open connection.
//!
//! `cargo run --release -p quorate-transport --example rtt`

use std::time::{Duration, Instant};

use quorate_transport::{Address, Expect, Identity, Incoming, Limits, connect, grpc_server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (node, me) = (Identity::generate()?, Identity::generate()?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let incoming = Incoming::new(listener, &node, Limits::default())?;
    let address = Address::from(incoming.local_addr());
    let (_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(grpc_server().add_service(health).serve_with_incoming(incoming));
    let expect = Expect::Key(node.public());

    let mut handshakes = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        let connected = connect(&address, &me, expect, TIMEOUT).await?;
        handshakes.push(started.elapsed());
        drop(connected);
    }
    report("TCP + mutual TLS handshake", &mut handshakes);

    let connected = connect(&address, &me, expect, TIMEOUT).await?;
    let mut client = HealthClient::new(connected.channel());
    let ask = HealthCheckRequest { service: String::new() };
    for _ in 0..2_000 {
        client.check(ask.clone()).await?;
    }
    let mut calls = Vec::new();
    for _ in 0..20_000 {
        let started = Instant::now();
        client.check(ask.clone()).await?;
        calls.push(started.elapsed());
    }
    report("unary round trip", &mut calls);

    let at_once = 64;
    let each = 1_000;
    let started = Instant::now();
    let tasks: Vec<_> = (0..at_once)
        .map(|_| {
            let (mut client, ask) = (client.clone(), ask.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    client.check(ask.clone()).await?;
                }
                Ok::<_, tonic::Status>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = f64::from(at_once * each) / started.elapsed().as_secs_f64();
    println!("{at_once} callers on one connection: {rate:.0} calls/s");
    Ok(())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
}
