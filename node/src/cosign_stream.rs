//! One stream of this node's cosignatures to each peer, reopened with the link. A new stream begins with the newest one, so
//! that a peer that was away learns how far this node is. Those that the peer acts on go at once, of the others the newest in
//! each [`UNHURRIED`]: it covers all before it.
use crate::cosigner::{CosignerHandle, Signed};
use crate::peers::Peers;
use quorate_core::ids::NodeId;
use quorate_proto::v1::CosignatureMessage;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// Cosignatures on their way to one peer: a slow one loses the oldest, which later ones cover.
const IN_FLIGHT: usize = 256;

/// How long a peer that does not act on a checkpoint waits for a cosignature of it.
const UNHURRIED: Duration = Duration::from_millis(50);

/// Runs until the node stops.
pub async fn feed(peers: Peers, node: NodeId, cosigner: CosignerHandle) {
    let mut newest: Option<Signed> = None;
    let mut own = cosigner.subscribe();
    loop {
        let Some(mut client) = peers.client(node) else {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                signed = own.recv() => match signed {
                    Ok((signed, _)) => newest = Some(signed),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
            continue;
        };
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        if let Some(signed) = &newest {
            let _first = sender.try_send(message(signed));
        }
        let call = client.cosign(ReceiverStream::new(receiver));
        tokio::pin!(call);
        let mut unsent = false;
        let mut tick = tokio::time::interval(UNHURRIED);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                signed = own.recv() => match signed {
                    Ok((signed, audience)) => {
                        let lost = audience.includes(node) && sender.try_send(message(&signed)).is_err();
                        unsent = !audience.includes(node);
                        newest = Some(signed);
                        if lost {
                            break;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                _ = tick.tick(), if unsent => {
                    unsent = false;
                    if newest.as_ref().is_some_and(|signed| sender.try_send(message(signed)).is_err()) {
                        break;
                    }
                }
                ended = &mut call => {
                    if let Err(status) = ended {
                        tracing::debug!(node = node.0, code = %status.code(), "the stream of cosignatures ended");
                    }
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn message(signed: &Signed) -> CosignatureMessage {
    CosignatureMessage {
        size: signed.checkpoint.size.0,
        root: signed.checkpoint.root.0.to_vec().into(),
        time_s: signed.cosignature.time_s,
        signature: signed.cosignature.signature.to_vec().into(),
        log_index: signed.log_index,
    }
}
