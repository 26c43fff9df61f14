//! Names: the dialects, the operations of each, the servers that speak OpenAI's with an accent.
use crate::error::DialectError;
use std::fmt;

/// The wire format of a caller or of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI, and servers compatible with it.
    OpenAi,
    /// Anthropic Messages.
    Anthropic,
    /// Gemini `generateContent`.
    Gemini,
    /// Amazon Bedrock Converse.
    Bedrock,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Gemini, Self::Bedrock];

    /// The name that policies use.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Bedrock => "bedrock",
        }
    }

    /// Of a policy's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which server speaks OpenAI's dialect; decides names of fields and what is refused. Ignored for other dialects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// OpenAI itself.
    #[default]
    OpenAi,
    /// Azure OpenAI, its v1 API.
    Azure,
    /// vLLM.
    Vllm,
    /// llama.cpp's server.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Mistral.
    Mistral,
    /// Groq.
    Groq,
    /// DeepSeek.
    DeepSeek,
    /// xAI.
    Xai,
    /// OpenRouter.
    OpenRouter,
    /// Some other server: only what all of the above take.
    Compatible,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::OpenAi,
        Self::Azure,
        Self::Vllm,
        Self::LlamaCpp,
        Self::Ollama,
        Self::Mistral,
        Self::Groq,
        Self::DeepSeek,
        Self::Xai,
        Self::OpenRouter,
        Self::Compatible,
    ];

    /// The name that configurations use.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "ollama",
            Self::Mistral => "mistral",
            Self::Groq => "groq",
            Self::DeepSeek => "deepseek",
            Self::Xai => "xai",
            Self::OpenRouter => "openrouter",
            Self::Compatible => "compatible",
        }
    }

    /// Of a configuration's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The likeliest flavour behind a host name. Unknown hosts are [`Flavour::Compatible`].
    pub fn of_host(host: &str) -> Self {
        let is = |domain: &str| host == domain || host.ends_with(&format!(".{domain}"));
        let known = [
            ("openai.com", Self::OpenAi),
            ("openai.azure.com", Self::Azure),
            ("services.ai.azure.com", Self::Azure),
            ("mistral.ai", Self::Mistral),
            ("groq.com", Self::Groq),
            ("deepseek.com", Self::DeepSeek),
            ("x.ai", Self::Xai),
            ("openrouter.ai", Self::OpenRouter),
        ];
        known.into_iter().find(|(domain, _)| is(domain)).map_or(Self::Compatible, |(_, flavour)| flavour)
    }
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// OpenAI `/v1/chat/completions`.
    Chat,
    /// OpenAI `/v1/responses`.
    Responses,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/embeddings`.
    Embeddings,
    /// OpenAI `GET /v1/models`, Anthropic's, Gemini's: the adapter answers it from its routes.
    Models(Dialect),
    /// Anthropic `/v1/messages`.
    Messages,
    /// Anthropic `/v1/messages/count_tokens`.
    CountTokens,
    /// Gemini `:generateContent` and `:streamGenerateContent`.
    GenerateContent {
        /// Streamed.
        stream: bool,
    },
    /// Gemini `:countTokens`.
    CountContent,
    /// Gemini `:embedContent`.
    EmbedContent,
    /// Gemini `:batchEmbedContents`.
    BatchEmbedContents,
    /// Bedrock `converse` and `converse-stream`.
    Converse {
        /// Streamed.
        stream: bool,
    },
}

impl Operation {
    /// Whose operation it is.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Chat | Self::Responses | Self::Completions | Self::Embeddings => Dialect::OpenAi,
            Self::Models(dialect) => dialect,
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::GenerateContent { .. }
            | Self::CountContent
            | Self::EmbedContent
            | Self::BatchEmbedContents => Dialect::Gemini,
            Self::Converse { .. } => Dialect::Bedrock,
        }
    }

    /// A short name, as GenAI telemetry calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat | Self::Messages | Self::Converse { .. } => "chat",
            Self::Responses => "responses",
            Self::Completions => "text_completion",
            Self::Embeddings | Self::EmbedContent | Self::BatchEmbedContents => "embeddings",
            Self::Models(_) => "models",
            Self::CountTokens | Self::CountContent => "count_tokens",
            Self::GenerateContent { .. } => "generate_content",
        }
    }

    /// Whether it is a conversation, which can be translated to every other dialect.
    pub fn is_conversation(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::Responses
                | Self::Messages
                | Self::GenerateContent { .. }
                | Self::Converse { .. }
        )
    }
}

/// What a request line of a caller names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The operation.
    pub operation: Operation,
    /// The model, where the path names it.
    pub model: Option<String>,
    /// Gemini `:streamGenerateContent` without `alt=sse`: the caller wants its stream as one JSON array.
    pub json_array: bool,
}

impl Endpoint {
    /// Reads method, path and query (without `?`). `GET /v1/models` is OpenAI's unless the caller sent
    /// `anthropic-version`. `None`: no endpoint of ours.
    pub fn of(method: &str, path: &str, query: Option<&str>, anthropic_version: bool) -> Option<Self> {
        let bare = |operation| Some(Self { operation, model: None, json_array: false });
        let openai = if anthropic_version { Dialect::Anthropic } else { Dialect::OpenAi };
        match (method, path) {
            ("POST", "/v1/chat/completions") => return bare(Operation::Chat),
            ("POST", "/v1/responses") => return bare(Operation::Responses),
            ("POST", "/v1/completions") => return bare(Operation::Completions),
            ("POST", "/v1/embeddings") => return bare(Operation::Embeddings),
            ("POST", "/v1/messages") => return bare(Operation::Messages),
            ("POST", "/v1/messages/count_tokens") => return bare(Operation::CountTokens),
            ("GET", "/v1/models") => return bare(Operation::Models(openai)),
            ("GET", "/v1beta/models" | "/v1alpha/models") => {
                return bare(Operation::Models(Dialect::Gemini));
            }
            _ => {}
        }
        let named =
            |operation, model: String| Some(Self { operation, model: Some(model), json_array: false });
        let gemini = ["/v1beta/models/", "/v1/models/", "/v1alpha/models/"];
        if let Some(rest) = gemini.iter().find_map(|prefix| path.strip_prefix(prefix)) {
            if method == "GET" {
                let dialect = if path.starts_with("/v1/") { openai } else { Dialect::Gemini };
                return named(Operation::Models(dialect), unescape(rest)?);
            }
            let (model, verb) = rest.rsplit_once(':')?;
            let operation = match verb {
                "generateContent" => Operation::GenerateContent { stream: false },
                "streamGenerateContent" => Operation::GenerateContent { stream: true },
                "countTokens" => Operation::CountContent,
                "embedContent" => Operation::EmbedContent,
                "batchEmbedContents" => Operation::BatchEmbedContents,
                _ => return None,
            };
            if method != "POST" {
                return None;
            }
            // Google's own clients of the REST API write the name of the parameter as `$alt`, escaped
            let sse = |pair: &str| matches!(pair, "alt=sse" | "$alt=sse" | "%24alt=sse");
            let sse = query.is_some_and(|q| q.split('&').any(sse));
            let json_array = operation == (Operation::GenerateContent { stream: true }) && !sse;
            return Some(Self { operation, model: Some(unescape(model)?), json_array });
        }
        let (model, verb) = path.strip_prefix("/model/")?.rsplit_once('/')?;
        match (method, verb) {
            ("POST", "converse") => named(Operation::Converse { stream: false }, unescape(model)?),
            ("POST", "converse-stream") => named(Operation::Converse { stream: true }, unescape(model)?),
            _ => None,
        }
    }
}

/// Percent-decoding of one path segment or more.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().filter(|s| !s.is_empty() && !s.contains(char::is_control))
}

/// Percent-encoding of a model as one path segment: RFC 3986 unreserved characters stand, and `:` where `keep` says so.
pub(crate) fn escape(text: &str, keep: &str) -> Result<String, DialectError> {
    if text.is_empty() || text.len() > MODEL_BYTES_MAX {
        return Err(DialectError::Malformed { field: "model".into(), expected: "a name of 1 to 512 bytes" });
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let char = char::from(byte);
        if char.is_ascii_alphanumeric() || "-._~".contains(char) || keep.contains(char) {
            out.push(char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

/// Longest name of a model: Bedrock's inference profile ARNs have at most 2048, in practice under 200.
pub(crate) const MODEL_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let of = |method, path| Endpoint::of(method, path, None, false).map(|e| (e.operation, e.model));
        assert_eq!(of("POST", "/v1/chat/completions"), Some((Operation::Chat, None)));
        assert_eq!(of("GET", "/v1/chat/completions"), None);
        assert_eq!(of("GET", "/v1/models"), Some((Operation::Models(Dialect::OpenAi), None)));
        let one = Some("a".to_owned());
        assert_eq!(of("GET", "/v1/models/a"), Some((Operation::Models(Dialect::OpenAi), one.clone())));
        assert_eq!(of("GET", "/v1beta/models/a"), Some((Operation::Models(Dialect::Gemini), one.clone())));
        let generate = Operation::GenerateContent { stream: false };
        assert_eq!(of("POST", "/v1beta/models/a:generateContent"), Some((generate, one)));
        assert_eq!(of("POST", "/v1beta/models/a:deleteContent"), None);
        let arn = "/model/arn%3Aaws%3Abedrock%3A%3A1%3Aprofile%2Fx/converse-stream";
        let model = Some("arn:aws:bedrock::1:profile/x".to_owned());
        assert_eq!(of("POST", arn), Some((Operation::Converse { stream: true }, model)));
        for bad in ["/model/%/converse", "/model/%0/converse", "/model/%0a/converse", "/model/%ff/converse"] {
            assert_eq!(of("POST", bad), None, "{bad}");
        }
        let messages = Endpoint::of("GET", "/v1/models", None, true).unwrap();
        assert_eq!(messages.operation, Operation::Models(Dialect::Anthropic));
        let path = "/v1beta/models/g:streamGenerateContent";
        assert!(Endpoint::of("POST", path, None, false).unwrap().json_array);
        assert!(!Endpoint::of("POST", path, Some("key=1&alt=sse"), false).unwrap().json_array);
    }

    #[test]
    fn escaping_is_undone_by_unescaping() {
        for model in ["a", "arn:aws:bedrock::1:profile/x", "é/%", "us.anthropic.claude-v1:0"] {
            assert_eq!(unescape(&escape(model, "").unwrap()).as_deref(), Some(model));
        }
    }
}
