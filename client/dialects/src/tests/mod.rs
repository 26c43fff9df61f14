//! Tests over whole translations: golden files, round trips, hostile input, bytes that pass.
mod golden;
mod hostile;
mod passthrough;
mod refusals;
mod roundtrip;
mod streams;

use crate::{Call, Dialect, Endpoint, Operation, Stamp};
use bytes::Bytes;

pub(super) const MODEL: &str = "alias";

/// The upstream model of each dialect's route.
pub(super) fn upstream(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi => "gpt-up",
        Dialect::Anthropic => "claude-up",
        Dialect::Gemini => "gemini-up",
        Dialect::Bedrock => "us.anthropic.claude-up-v1:0",
    }
}

pub(super) fn stamp() -> Stamp {
    Stamp { id: "s1".into(), created: 1_700_000_000 }
}

pub(super) fn endpoint(dialect: Dialect, stream: bool) -> Endpoint {
    let (operation, model) = match dialect {
        Dialect::OpenAi => (Operation::Chat, None),
        Dialect::Anthropic => (Operation::Messages, None),
        Dialect::Gemini => (Operation::GenerateContent { stream }, Some(MODEL.to_owned())),
        Dialect::Bedrock => (Operation::Converse { stream }, Some(MODEL.to_owned())),
    };
    Endpoint { operation, model, json_array: false }
}

/// The smallest call of a dialect.
pub(super) fn call(dialect: Dialect, stream: bool) -> Call {
    let body = match (dialect, stream) {
        (Dialect::OpenAi, false) => r#"{"model":"alias","messages":[{"role":"user","content":"hi"}]}"#,
        (Dialect::OpenAi, true) => {
            r#"{"model":"alias","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#
        }
        (Dialect::Anthropic, false) => {
            r#"{"model":"alias","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#
        }
        (Dialect::Anthropic, true) => {
            r#"{"model":"alias","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"stream":true}"#
        }
        (Dialect::Gemini, _) => r#"{"contents":[{"parts":[{"text":"hi"}]}]}"#,
        (Dialect::Bedrock, _) => r#"{"messages":[{"role":"user","content":[{"text":"hi"}]}]}"#,
    };
    Call::read(endpoint(dialect, stream), Bytes::from_static(body.as_bytes())).unwrap()
}
