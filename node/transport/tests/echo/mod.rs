//! A small gRPC service written by hand: who calls, an echo both ways, and a call that ends its connection.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use quorate_transport::{Channel, Connected};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Bytes = Vec<u8>;

#[derive(Clone)]
pub(crate) struct EchoServer;

impl tonic::server::NamedService for EchoServer {
    const NAME: &'static str = "test.Echo";
}

impl tower::Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Bytes, Bytes>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Who" => grpc.unary(Who, request).await,
                "/test.Echo/Slow" => grpc.unary(Slow, request).await,
                "/test.Echo/CutMe" => grpc.unary(CutMe, request).await,
                "/test.Echo/Refused" => Status::unavailable("come back later").into_http(),
                "/test.Echo/Chat" => grpc.streaming(Chat, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

fn channel<T>(request: &Request<T>) -> Channel {
    request.extensions().get::<Channel>().expect("every request has its channel").clone()
}

struct Who;
impl tonic::server::UnaryService<Bytes> for Who {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;
    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let c = channel(&request);
        ready(Ok(Response::new(format!("{} {} {:02x?}", c.id(), c.peer_key(), c.exporter()).into_bytes())))
    }
}

struct Slow;
impl tonic::server::UnaryService<Bytes> for Slow {
    type Response = Bytes;
    type Future = std::future::Pending<Result<Response<Bytes>, Status>>;
    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        std::future::pending()
    }
}

struct CutMe;
impl tonic::server::UnaryService<Bytes> for CutMe {
    type Response = Bytes;
    type Future = std::future::Pending<Result<Response<Bytes>, Status>>;
    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        channel(&request).cut();
        std::future::pending()
    }
}

struct Chat;
impl tonic::server::StreamingService<Bytes> for Chat {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;
    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(Ok(Response::new(Box::pin(request.into_inner()) as Self::ResponseStream)))
    }
}

async fn unary(channel: tonic::transport::Channel, path: &'static str) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    let path = http::uri::PathAndQuery::from_static(path);
    let codec = ProstCodec::<Bytes, Bytes>::default();
    grpc.unary(Request::new(Bytes::new()), path, codec).await.map(Response::into_inner)
}

/// What the server knows about the connection of a call.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) peer_key: String,
    pub(crate) exporter: String,
}

pub(crate) async fn who(connected: &Connected) -> Result<Seen, Status> {
    let text = String::from_utf8(unary(connected.channel(), "/test.Echo/Who").await?).unwrap();
    let mut parts = text.splitn(3, ' ').map(str::to_owned);
    let mut part = || parts.next().unwrap();
    Ok(Seen { id: part(), peer_key: part(), exporter: part() })
}

pub(crate) async fn slow(channel: tonic::transport::Channel) -> Result<Bytes, Status> {
    unary(channel, "/test.Echo/Slow").await
}

pub(crate) async fn cut_me(connected: &Connected) -> Result<Bytes, Status> {
    unary(connected.channel(), "/test.Echo/CutMe").await
}

pub(crate) async fn refused(connected: &Connected) -> Result<Bytes, Status> {
    unary(connected.channel(), "/test.Echo/Refused").await
}

async fn open(
    connected: &Connected,
    out: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Streaming<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(connected.channel());
    grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    let path = http::uri::PathAndQuery::from_static("/test.Echo/Chat");
    let codec = ProstCodec::<Bytes, Bytes>::default();
    grpc.streaming(Request::new(out), path, codec).await.map(Response::into_inner)
}

/// Ping-pong: each message is sent only after the echo of the one before.
pub(crate) async fn chat(connected: &Connected, rounds: usize) -> Result<usize, Status> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(vec![0]).await.unwrap();
    let mut back = open(connected, tokio_stream::wrappers::ReceiverStream::new(receiver)).await?;
    for round in 0..rounds {
        let got = back.message().await?.expect("an echo");
        assert_eq!(got, [round as u8]);
        if round + 1 < rounds {
            sender.send(vec![(round + 1) as u8]).await.unwrap();
        }
    }
    drop(sender);
    assert_eq!(back.message().await?, None);
    Ok(rounds)
}

/// Sends this many bytes in pieces and counts what comes back.
pub(crate) async fn big_echo(connected: &Connected, bytes: usize) -> Result<usize, Status> {
    let piece = 64 << 10;
    let out = futures::stream::iter((0..bytes / piece).map(move |i| vec![i as u8; piece]));
    let mut back = open(connected, out).await?;
    let mut got = 0;
    while let Some(message) = back.next().await {
        got += message?.len();
    }
    Ok(got)
}
