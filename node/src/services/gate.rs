//! Who may send a message to the peer service at all. Its messages may be large, and a message is in memory before any handler
//! sees it: so strangers are turned away by what is known before the first byte of it, the connection's key.
//!
//! A stranger may ask for a challenge, and answer the one it was given, few at a time. That is not yet an admission.
use crate::peers::Peers;
use quorate_transport::Channel;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

/// Small, and open to whoever has a key.
const CHALLENGE: &str = "/quorate.v1.Peer/Challenge";
/// Large, and open to whoever was challenged.
const ADMIT: &str = "/quorate.v1.Peer/Admit";
/// From the first byte of a stranger's quote to this node's own; a hardware TPM takes a second for it.
const ADMIT_WAIT: Duration = Duration::from_secs(10);
/// Strangers whose quotes are received and appraised at a time; each may send one large message.
const STRANGERS_MAX: usize = 16;
/// Of one address: one host cannot keep every member out that must prove itself anew.
const STRANGERS_PER_ADDRESS_MAX: usize = 4;

/// The peer service behind its gate.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    peers: Peers,
    strangers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl<S> Gate<S> {
    /// Guards a service.
    pub fn new(inner: S, peers: Peers) -> Self {
        Self { inner, peers, strangers: Arc::default() }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refused = |status: Status| -> Self::Future { Box::pin(async move { Ok(status.into_http()) }) };
        let Some(channel) = request.extensions().get::<Channel>() else {
            return refused(Status::internal("no channel"));
        };
        let path = request.uri().path();
        if path == CHALLENGE || self.peers.standing(channel.peer_key()).is_some() {
            return Box::pin(self.inner.call(request));
        }
        if path != ADMIT || !self.peers.is_challenged(channel.id()) {
            return refused(Status::permission_denied("not a member that proved itself"));
        }
        let Some(place) = Place::take(&self.strangers, channel.remote().ip()) else {
            return refused(Status::resource_exhausted("too many quotes are being appraised"));
        };
        let call = self.inner.call(request);
        Box::pin(async move {
            let answer = tokio::time::timeout(ADMIT_WAIT, call).await;
            drop(place);
            answer.unwrap_or_else(|_| Ok(Status::deadline_exceeded("the quote took too long").into_http()))
        })
    }
}
/// One stranger being heard.
struct Place {
    strangers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Place {
    fn take(strangers: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<Self> {
        let mut heard = strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = heard.get(&address).copied().unwrap_or_default();
        if heard.values().sum::<usize>() >= STRANGERS_MAX || of_address >= STRANGERS_PER_ADDRESS_MAX {
            return None;
        }
        heard.insert(address, of_address + 1);
        Some(Self { strangers: Arc::clone(strangers), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut heard = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = heard.get_mut(&self.address) {
            *count = count.saturating_sub(1);
        }
        heard.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_every_place() {
        let heard = Arc::default();
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let first: Vec<_> =
            (0..STRANGERS_PER_ADDRESS_MAX).map(|_| Place::take(&heard, ip(1)).unwrap()).collect();
        assert!(Place::take(&heard, ip(1)).is_none());
        let others: Vec<_> = (2..).map_while(|n| Place::take(&heard, ip(n))).collect();
        assert_eq!(first.len() + others.len(), STRANGERS_MAX);
        drop((first, others));
        assert!(heard.lock().unwrap().is_empty());
    }
}
