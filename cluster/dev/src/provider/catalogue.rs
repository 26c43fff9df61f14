//! Which models there are, and which of them misbehave.

/// The chat model that is always there.
pub(super) const CHAT_MODEL: &str = "demo-chat";
/// The embedding model.
pub(super) const EMBED_MODEL: &str = "demo-embed";
/// Length of an embedding unless the request says less.
pub(super) const DIMENSIONS: usize = 256;

/// What a provider serves, and how long its answers are.
pub(super) struct Catalogue {
    pub(super) chat_models: Vec<String>,
    pub(super) tokens: usize,
}

impl Catalogue {
    /// Whether it is a chat model.
    pub(super) fn chats(&self, model: &str) -> bool {
        self.chat_models.iter().any(|known| known == model)
    }

    /// Whether it is the embedding model.
    #[expect(clippy::unused_self, reason = "one of several questions to a catalogue")]
    pub(super) fn embeds(&self, model: &str) -> bool {
        model == EMBED_MODEL
    }

    /// Whether it is any model.
    pub(super) fn knows(&self, model: &str) -> bool {
        self.chats(model) || self.embeds(model)
    }

    /// All models.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.chat_models.iter().map(String::as_str).chain([EMBED_MODEL])
    }
}

/// A fault, asked for by the model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `fault-close-mid-stream`: half of the answer, then a close without an end.
    CloseMidStream,
    /// `fault-error-mid-stream`: half of a streamed answer, then an error in the API's own form.
    ErrorMidStream,
    /// `fault-close`: a close instead of an answer.
    Close,
    /// `fault-slow`: the answer after `--slow-ms`.
    Slow,
    /// `fault-slow-stream`: a fifth of a second before each further chunk.
    SlowStream,
    /// `fault-400`: a refusal in the API's form, as for bad input.
    BadRequest,
    /// `fault-401`: as for a wrong key.
    Unauthorized,
    /// `fault-429`: a rate limit with `retry-after`.
    RateLimited,
    /// `fault-500`: the provider's own failure.
    ServerError,
    /// `fault-502-html`: a front end's page, not in the API's form.
    BadGatewayHtml,
    /// `fault-503`: overloaded (Anthropic says 529).
    Overloaded,
}

impl Fault {
    const ALL: [(&str, Self); 11] = [
        ("fault-close-mid-stream", Self::CloseMidStream),
        ("fault-error-mid-stream", Self::ErrorMidStream),
        ("fault-close", Self::Close),
        ("fault-slow", Self::Slow),
        ("fault-slow-stream", Self::SlowStream),
        ("fault-400", Self::BadRequest),
        ("fault-401", Self::Unauthorized),
        ("fault-429", Self::RateLimited),
        ("fault-500", Self::ServerError),
        ("fault-502-html", Self::BadGatewayHtml),
        ("fault-503", Self::Overloaded),
    ];

    /// The fault of a model name, if it is one.
    pub fn of_model(model: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == model).map(|(_, fault)| *fault)
    }
}
