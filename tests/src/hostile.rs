//! A member that root has taken over: it has the machine's TPM and its place in the policy, and says what it likes.
use anyhow::Context as _;
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use openraft::raft::InstallSnapshotRequest;
use quorate_attest::evidence::BootKeys;
use quorate_attest::qualifying;
use quorate_attest_tpm::{TpmConfig, TpmHandle};
use quorate_cluster::mesh::Site;
use quorate_core::command::Command;
use quorate_core::crypto::{Hash, encode, public_key, sha256};
use quorate_core::policy::Policy;
use quorate_proto::v1::peer_client::PeerClient;
use quorate_proto::v1::{AdmitRequest, ChallengeRequest, ProposeReply, ProposeRequest, RaftMessage};
use quorate_transport::{Connected, Identity};
use quorated::raft::types::{SnapshotMeta, TypeConfig};
use tonic::Status;

/// The taken member.
pub struct Taken {
    node: u64,
    cluster: Hash,
    pcrs: Vec<u8>,
    identity: Identity,
    boot: BootKeys,
    tpm: TpmHandle,
    event_log: Vec<u8>,
}

fn peer(connected: &Connected) -> PeerClient<tonic::transport::Channel> {
    PeerClient::new(connected.channel())
}

impl Taken {
    /// Takes the machine whose node does not run.
    pub fn machine(site: &Site, cluster: Hash, policy: &Policy) -> anyhow::Result<Self> {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).ok().context("no randomness")?;
        let cosign = Ed25519KeyPair::from_seed_unchecked(&seed).ok().context("no key")?;
        let identity = Identity::generate()?;
        let boot = BootKeys { tls: *identity.public().as_bytes(), cosign: public_key(&cosign).0 };
        let tpm = TpmHandle::spawn(TpmConfig::new(&format!("swtpm:host=127.0.0.1,port={}", site.tpm_port))?)?;
        let event_log = std::fs::read(site.dir.join("events"))?;
        let pcrs = policy.attestation.pcrs.iter().copied().collect();
        Ok(Self { node: site.id, cluster, pcrs, identity, boot, tpm, event_log })
    }

    /// A connection to a node.
    pub async fn connect(&self, address: &str) -> anyhow::Result<Connected> {
        crate::raw::connect(address, &self.identity).await
    }

    /// Asks for a challenge and makes the honest proof for it.
    pub async fn proof(&self, connected: &Connected, to: u64) -> anyhow::Result<AdmitRequest> {
        let reply = peer(connected).challenge(ChallengeRequest {}).await?.into_inner();
        let challenge: [u8; 32] = reply.challenge.as_ref().try_into()?;
        let exporter = connected.exporter();
        let nonce = qualifying::for_channel(&self.cluster.0, &challenge, exporter, self.node, to, &self.boot);
        let evidence =
            self.tpm.quote(&self.pcrs, nonce).await?.into_evidence(sha256(&self.event_log).0, None);
        Ok(AdmitRequest {
            node: self.node,
            boot: encode(&self.boot).into(),
            evidence: encode(&evidence).into(),
            blobs: vec![Bytes::from(self.event_log.clone())],
            challenge: Bytes::from_static(&[7; 32]),
        })
    }

    /// Hands a proof in.
    pub async fn admit(&self, connected: &Connected, proof: AdmitRequest) -> Result<(), Status> {
        peer(connected).admit(proof).await.map(drop)
    }

    /// Proposes commands to whom it believes to lead.
    pub async fn propose(&self, connected: &Connected, commands: &[Command]) -> Result<ProposeReply, Status> {
        let commands = commands.iter().map(|c| encode(c).into()).collect();
        let blobs = vec![Bytes::from(self.event_log.clone())];
        peer(connected)
            .propose(ProposeRequest { commands, blobs, withheld: false })
            .await
            .map(tonic::Response::into_inner)
    }
}

fn message(message: &impl serde::Serialize) -> Result<RaftMessage, Status> {
    let message = postcard::to_stdvec(message).map_err(|e| Status::internal(e.to_string()))?.into();
    Ok(RaftMessage { message })
}

impl Taken {
    /// Asks for a vote in a term, as a candidate whose log is empty.
    pub async fn vote(&self, connected: &Connected, term: u64) -> Result<(), Status> {
        let ask = openraft::raft::VoteRequest::<u64>::new(openraft::Vote::new(term, self.node), None);
        peer(connected).vote(message(&ask)?).await.map(drop)
    }

    /// Poses as the leader of a term, and sends a snapshot in one piece.
    pub async fn snapshot(
        &self,
        connected: &Connected,
        term: u64,
        meta: SnapshotMeta,
        content: Vec<u8>,
    ) -> Result<(), Status> {
        let vote = openraft::Vote::new_committed(term, self.node);
        let ask = InstallSnapshotRequest::<TypeConfig> { vote, meta, offset: 0, data: content, done: true };
        let mut peer = peer(connected).max_encoding_message_size(64 << 20);
        peer.install_snapshot(message(&ask)?).await.map(drop)
    }
}
