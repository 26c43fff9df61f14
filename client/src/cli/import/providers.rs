//! Where LiteLLM's provider prefixes lead, as LiteLLM's own documentation has it.

/// A provider that LiteLLM knows by a prefix.
pub(super) struct Provider {
    /// Before the first `/` of a model.
    pub(super) prefix: &'static str,
    /// Host, or none where every account has its own.
    pub(super) host: Option<&'static str>,
    /// What stands before `/v1/…`.
    pub(super) base_path: &'static str,
    pub(super) dialect: &'static str,
    /// Where LiteLLM looks for the key when the file names none.
    pub(super) key: &'static str,
    pub(super) scheme: &'static str,
}

const fn openai(
    prefix: &'static str,
    host: &'static str,
    base_path: &'static str,
    key: &'static str,
) -> Provider {
    Provider { prefix, host: Some(host), base_path, dialect: "openai", key, scheme: "bearer" }
}

const PROVIDERS: [Provider; 21] = [
    openai("openai", "api.openai.com", "", "OPENAI_API_KEY"),
    openai("text-completion-openai", "api.openai.com", "", "OPENAI_API_KEY"),
    Provider {
        prefix: "anthropic",
        host: Some("api.anthropic.com"),
        base_path: "",
        dialect: "anthropic",
        key: "ANTHROPIC_API_KEY",
        scheme: "x-api-key",
    },
    Provider {
        prefix: "gemini",
        host: Some("generativelanguage.googleapis.com"),
        base_path: "",
        dialect: "gemini",
        key: "GEMINI_API_KEY",
        scheme: "x-goog-api-key",
    },
    Provider {
        prefix: "azure",
        host: None,
        base_path: "/openai",
        dialect: "openai",
        key: "AZURE_API_KEY",
        scheme: "api-key",
    },
    Provider {
        prefix: "bedrock",
        host: None,
        base_path: "",
        dialect: "bedrock",
        key: "AWS_BEARER_TOKEN_BEDROCK",
        scheme: "bearer",
    },
    openai("mistral", "api.mistral.ai", "", "MISTRAL_API_KEY"),
    openai("groq", "api.groq.com", "/openai", "GROQ_API_KEY"),
    openai("deepseek", "api.deepseek.com", "", "DEEPSEEK_API_KEY"),
    openai("xai", "api.x.ai", "", "XAI_API_KEY"),
    openai("openrouter", "openrouter.ai", "/api", "OPENROUTER_API_KEY"),
    openai("together_ai", "api.together.xyz", "", "TOGETHERAI_API_KEY"),
    openai("fireworks_ai", "api.fireworks.ai", "/inference", "FIREWORKS_AI_API_KEY"),
    openai("cerebras", "api.cerebras.ai", "", "CEREBRAS_API_KEY"),
    openai("nvidia_nim", "integrate.api.nvidia.com", "", "NVIDIA_NIM_API_KEY"),
    openai("deepinfra", "api.deepinfra.com", "", "DEEPINFRA_API_KEY"),
    own("hosted_vllm", "HOSTED_VLLM_API_KEY"),
    own("openai_like", "OPENAI_LIKE_API_KEY"),
    own("custom_openai", "OPENAI_API_KEY"),
    own("ollama", ""),
    own("ollama_chat", ""),
];

/// A server of one's own: `api_base` says where.
const fn own(prefix: &'static str, key: &'static str) -> Provider {
    Provider { prefix, host: None, base_path: "", dialect: "openai", key, scheme: "bearer" }
}

/// Prefixes that LiteLLM serves in ways that no key in a header can: why.
const CANNOT: [(&str, &str); 7] = [
    (
        "vertex_ai",
        "Google Cloud wants short-lived OAuth tokens, not a key that can be split; use gemini/ with an API key",
    ),
    ("sagemaker", "SageMaker wants requests signed with SigV4, which nobody but the key's holder can do"),
    ("watsonx", "watsonx wants short-lived IAM tokens, not a key that can be split"),
    ("cohere", "its API is in a dialect of its own"),
    ("cohere_chat", "its API is in a dialect of its own"),
    ("replicate", "its API is in a dialect of its own"),
    ("huggingface", "its endpoints are in several dialects; name the server as openai/ with an api_base"),
];

/// A model's provider and the name it has there, or why there is none.
pub(super) fn of_model(model: &str) -> Result<(&'static Provider, &str), String> {
    let find = |prefix: &str| PROVIDERS.iter().find(|provider| provider.prefix == prefix);
    if let Some((prefix, rest)) = model.split_once('/') {
        if let Some((_, why)) = CANNOT.iter().find(|(name, _)| *name == prefix) {
            return Err((*why).to_owned());
        }
        if let Some(provider) = find(prefix) {
            // bedrock/converse/MODEL and bedrock/REGION/MODEL name the same model
            let rest = if prefix == "bedrock" { rest.rsplit('/').next().unwrap_or(rest) } else { rest };
            return Ok((provider, rest));
        }
        return Err(
            "this importer does not know the provider: add the route by hand if it speaks a known dialect"
                .to_owned(),
        );
    }
    // LiteLLM knows many names without a prefix; these families are unmistakable.
    let begins = |list: &[&str]| list.iter().any(|begin| model.starts_with(begin));
    let prefix = if begins(&["gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-"]) {
        "openai"
    } else if begins(&["claude-"]) {
        "anthropic"
    } else {
        return Err("without a provider's prefix: write it as PROVIDER/MODEL".to_owned());
    };
    find(prefix).map(|provider| (provider, model)).ok_or_else(|| "no such provider".to_owned())
}
