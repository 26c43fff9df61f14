//! A route's answer, said to the caller.
use crate::call::{Call, TargetRoute};
use crate::error::DialectError;
use crate::outcome::Outcome;
use bytes::Bytes;

/// What a translated answer needs from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Unique among all answers, of letters, digits, `_` and `-`: ids of messages and tool calls are made from it where
    /// the provider gave none.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// Status and headers of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Status.
    pub status: u16,
    /// Headers for the caller, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// The body is a stream: feed it. Otherwise collect it and call [`AnswerTranslator::whole`].
    pub stream: bool,
}

/// A whole answer for the caller. Holds content: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
}

/// Translates one answer of one route.
pub struct AnswerTranslator {
    outcome: Outcome,
}

impl AnswerTranslator {
    /// For the answer to `call.for_route(target)`.
    pub fn new(call: &Call, target: &TargetRoute, stamp: Stamp) -> Self {
        let _ = (call, target, stamp);
        Self { outcome: Outcome::default() }
    }

    /// Status and headers, as soon as they are there. Says whether the body is a stream.
    pub fn head(&mut self, status: u16, headers: &[(String, String)]) -> Head {
        let _ = headers;
        Head { status, headers: Vec::new(), stream: false }
    }

    /// A whole body, good or error. Exclusive with [`Self::feed`].
    pub fn whole(
        &mut self,
        status: u16,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Answer, DialectError> {
        let _ = headers;
        Ok(Answer { status, headers: Vec::new(), body })
    }

    /// The next bytes of a stream, cut anywhere; the bytes for the caller, perhaps none.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Bytes, DialectError> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    /// The stream is over: the last bytes, or [`DialectError::Truncated`].
    pub fn finish(&mut self) -> Result<Bytes, DialectError> {
        Ok(Bytes::new())
    }

    /// What was observed so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}
