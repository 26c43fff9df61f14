//! The gRPC API: messages and services generated from `quorate/v1/*.proto`, and the limits both sides keep. No logic.
#![forbid(unsafe_code)]
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]

/// Package `quorate.v1`.
pub mod v1 {
    tonic::include_proto!("quorate.v1");

    impl std::fmt::Debug for RegisterRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("RegisterRequest(secret)")
        }
    }

    impl std::fmt::Debug for HoleAnswer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("HoleAnswer(secret)")
        }
    }
}

/// File descriptors, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate.descriptors.bin"));

/// Metadata key of a [`v1::Refused`] in a failed unary call's status.
pub const REFUSAL_METADATA: &str = "quorate-refusal-bin";

/// Largest message a client may send: a policy document and some.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest message between peers: a Raft entry batch or a proof.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest command.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Largest piece of TLS records in one tunnel message.
pub const TUNNEL_DATA_BYTES_MAX: usize = 64 * 1024;
