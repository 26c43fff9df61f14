//! Why something was not translated. Names fields, never their values.
use crate::dialect::{Dialect, Operation};
use thiserror::Error;

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's request is wrong in any dialect: 400.
    Caller,
    /// The request is right, but this route's dialect cannot say it: try another route, then 400.
    Route,
    /// The provider's answer cannot be understood: 502, another route may do better.
    Upstream,
}

/// A refusal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DialectError {
    /// Not JSON, or too deep.
    #[error("{field}: not JSON")]
    NotJson {
        /// Where; empty for the whole body.
        field: String,
    },
    /// A field that must be there.
    #[error("{field} is missing")]
    Missing {
        /// Path of the field.
        field: String,
    },
    /// A field of another form.
    #[error("{field}: expected {expected}")]
    Malformed {
        /// Path of the field.
        field: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A key that one object has twice: readers would disagree on which counts.
    #[error("{field} appears twice")]
    Twice {
        /// Path of the field.
        field: String,
    },
    /// A field that the route's dialect cannot say.
    #[error("{field} cannot be said to a provider that speaks {target}: {why}")]
    Untranslatable {
        /// Path of the field.
        field: String,
        /// The route's dialect.
        target: Dialect,
        /// What stands against it.
        why: &'static str,
    },
    /// An operation that the route's dialect lacks.
    #[error("{operation:?} cannot be asked of a provider that speaks {target}")]
    NoSuchOperation {
        /// The caller's operation.
        operation: Operation,
        /// The route's dialect.
        target: Dialect,
    },
    /// Something longer than its bound in [`crate::limits`].
    #[error("{what} is larger than {max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its bound.
        max: usize,
    },
    /// A request of a form that is not known here. A provider of the caller's own dialect may know it.
    #[error("not understood, so not translated: {0}")]
    NotUnderstood(Box<DialectError>),
    /// A provider's answer that is not of its dialect.
    #[error("the provider's answer: {0}")]
    Answer(Box<DialectError>),
    /// A frame whose checksum or lengths are wrong.
    #[error("the provider's event stream is damaged: {what}")]
    DamagedFrame {
        /// What is wrong.
        what: &'static str,
    },
    /// A stream without its end.
    #[error("the provider's stream ended before its last event")]
    Truncated,
}

impl DialectError {
    /// Who has to change something.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotJson { .. }
            | Self::Missing { .. }
            | Self::Malformed { .. }
            | Self::Twice { .. }
            | Self::TooLarge { .. } => Fault::Caller,
            Self::Untranslatable { .. } | Self::NoSuchOperation { .. } | Self::NotUnderstood(_) => {
                Fault::Route
            }
            Self::Answer(_) | Self::DamagedFrame { .. } | Self::Truncated => Fault::Upstream,
        }
    }

    /// The same fact, found in an answer.
    pub(crate) fn in_answer(self) -> Self {
        match self.fault() {
            Fault::Upstream => self,
            Fault::Caller | Fault::Route => Self::Answer(Box::new(self)),
        }
    }

    /// The same fact, found while translating what passed [`crate::Call::read`].
    pub(crate) fn in_translation(self) -> Self {
        match self.fault() {
            Fault::Caller => Self::NotUnderstood(Box::new(self)),
            Fault::Route | Fault::Upstream => self,
        }
    }

    /// The field that it names, if it names one.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::NotJson { field }
            | Self::Missing { field }
            | Self::Malformed { field, .. }
            | Self::Twice { field }
            | Self::Untranslatable { field, .. } => Some(field),
            Self::Answer(inner) | Self::NotUnderstood(inner) => inner.field(),
            Self::NoSuchOperation { .. }
            | Self::TooLarge { .. }
            | Self::DamagedFrame { .. }
            | Self::Truncated => None,
        }
    }
}
