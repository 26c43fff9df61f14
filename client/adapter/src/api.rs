//! The HTTP surface, over what [`quorate_dialects`] knows of it: methods, queries, and which of a route's paths serves an
//! operation. Pure.
//!
//! **Refuses** queries that say what no route can carry: a query never goes on, but for the fixed one that admins listed.
use crate::errors::{Allow, Failure};
use http::{HeaderMap, Method, StatusCode};
use quorate_dialects::{Dialect, Endpoint, Operation};

/// Longest model name that is looked at.
pub(crate) const MODEL_BYTES_MAX: usize = 256;

/// Paths of this process's own.
pub(crate) const LOCAL: [&str; 2] = ["/healthz", "/metrics"];

/// The ends of paths by which one that is nearly right is known, and what it should have been.
const NEARLY: [(&str, &str, &str); 8] = [
    ("/chat/completions", "/v1/chat/completions", OPENAI_BASE),
    ("/responses", "/v1/responses", OPENAI_BASE),
    ("/completions", "/v1/completions", OPENAI_BASE),
    ("/embeddings", "/v1/embeddings", OPENAI_BASE),
    ("/messages", "/v1/messages", ANTHROPIC_BASE),
    ("/messages/count_tokens", "/v1/messages/count_tokens", ANTHROPIC_BASE),
    ("/models", "/v1/models", OPENAI_BASE),
    ("/model", "/v1/models", OPENAI_BASE),
];
const OPENAI_BASE: &str = "for OpenAI's SDKs the base URL is this adapter's with /v1 behind it";
const ANTHROPIC_BASE: &str = "for Anthropic's SDKs the base URL is this adapter's with nothing behind it";
const GEMINI_BASE: &str = "for Google's SDKs the base URL is this adapter's with nothing behind it";

fn not_found(path: &str) -> Failure {
    let bare = path.trim_end_matches('/').to_ascii_lowercase();
    let nearly = NEARLY.iter().find(|(end, ..)| bare.ends_with(end));
    let gemini = bare.contains("/models/") && bare.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let hint = match nearly {
        _ if gemini => format!("is it /v1beta/models/MODEL:generateContent? {GEMINI_BASE}"),
        Some((_, right, base)) => format!("is it {right}? {base}"),
        None => format!("`quorate serve --help` lists the endpoints; {OPENAI_BASE}"),
    };
    Failure::new(StatusCode::NOT_FOUND, "endpoint_not_found", "no such endpoint", hint)
}

/// Whose errors a caller of this path and these headers reads, before anything else is known.
pub(crate) fn dialect_of(path: &str, headers: &HeaderMap) -> Dialect {
    let verb = path.contains("/models/") && path.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if path.starts_with("/v1beta/") || verb || headers.contains_key("x-goog-api-key") {
        Dialect::Gemini
    } else if path.starts_with("/model/") {
        Dialect::Bedrock
    } else if path.contains("/messages") || headers.contains_key("anthropic-version") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

/// Finds the endpoint.
pub(crate) fn endpoint(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Endpoint, Failure> {
    let version = headers.contains_key("anthropic-version");
    let of = |method: &str, path: &str| Endpoint::of(method, path, query, version);
    let like = if *method == Method::HEAD { &Method::GET } else { method };
    let Some(endpoint) = of(like.as_str(), path) else {
        // `MODEL:verb` may be the name of a model too, but nobody posts to one.
        let odd = *method == Method::POST && path.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let get = !odd && of("GET", path).is_some() || LOCAL.contains(&path);
        let allow = match (get, of("POST", path).is_some()) {
            (true, true) => Allow::Both,
            (true, false) => Allow::Get,
            (false, true) => Allow::Post,
            (false, false) => return Err(not_found(path)),
        };
        let hint = match *method {
            Method::OPTIONS => "web pages cannot use this adapter: it answers no preflight",
            _ => "",
        };
        return Err(Failure { hint: hint.into(), ..Failure::method(allow) });
    };
    if endpoint.model.as_ref().is_some_and(|m| m.len() > MODEL_BYTES_MAX) {
        let hint = "shorten it";
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "model_too_long",
            "the model's name is too long",
            hint,
        ));
    }
    check_query(endpoint.operation, query)?;
    Ok(endpoint)
}

/// Whether a caller reads one JSON array, errors included.
pub(crate) fn wants_array(parts: &http::request::Parts) -> bool {
    Endpoint::of(parts.method.as_str(), parts.uri.path(), parts.uri.query(), false)
        .is_some_and(|e| e.json_array)
}

fn check_query(operation: Operation, query: Option<&str>) -> Result<(), Failure> {
    let known = |pair: &str| match operation {
        // Pages of a list that is short.
        Operation::Models(_) => true,
        // Says the same as the path.
        Operation::Messages | Operation::CountTokens => pair == "beta=true",
        Operation::GenerateContent { .. }
        | Operation::CountContent
        | Operation::EmbedContent
        | Operation::BatchEmbedContents => {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let stream = operation == Operation::GenerateContent { stream: true };
            match name {
                // Gemini's older way to bring a key, which is dropped like any other.
                "key" => true,
                // Whatever says how enums are written has both ways read by it.
                "alt" | "$alt" | "%24alt" => {
                    (value == "sse" && stream)
                        || value == "json"
                        || value.starts_with("json;")
                        || value.starts_with("json%3B")
                }
                // JSON without needless spaces, or with them.
                "prettyPrint" | "$prettyPrint" | "%24prettyPrint" => true,
                _ => false,
            }
        }
        Operation::Chat
        | Operation::Responses
        | Operation::Completions
        | Operation::Embeddings
        | Operation::Converse { .. } => false,
    };
    if query.unwrap_or_default().split('&').filter(|p| !p.is_empty()).all(known) {
        return Ok(());
    }
    Err(Failure::new(
        StatusCode::BAD_REQUEST,
        "query_not_allowed",
        "the query says something that no route can carry",
        "leave the query out",
    ))
}

/// Whether asking twice changes nothing but the bill.
pub(crate) fn is_pure(operation: Operation) -> bool {
    match operation {
        Operation::Embeddings
        | Operation::EmbedContent
        | Operation::BatchEmbedContents
        | Operation::CountTokens
        | Operation::CountContent
        | Operation::Models(_) => true,
        Operation::Chat
        | Operation::Responses
        | Operation::Completions
        | Operation::Messages
        | Operation::GenerateContent { .. }
        | Operation::Converse { .. } => false,
    }
}

/// The path among those a route lists that is the vendor's `usual` one, at whatever place the route has it.
pub(crate) fn upstream_path(paths: &[String], usual: &str) -> Option<String> {
    if paths.iter().any(|listed| listed == usual) {
        return Some(usual.to_owned());
    }
    let (name, query) = split(usual);
    let tail = ["/v1", "/v1beta"]
        .iter()
        .find_map(|version| name.strip_prefix(version).filter(|tail| tail.starts_with('/')));
    let elsewhere = |listed: &&String| {
        let (there, fixed) = split(listed);
        // A query that the operation needs must be there; one that only the provider needs may be.
        let before = tail.and_then(|tail| there.strip_suffix(tail));
        (query.is_none() || query == fixed)
            // `/v1/completions` is the end of `/v1/chat/completions` too.
            && before.is_some_and(|before| !(name == "/v1/completions" && before.ends_with("/chat")))
    };
    if let Some(listed) = paths.iter().find(elsewhere) {
        return Some(listed.clone());
    }
    let below = |listed: &String| {
        listed.strip_suffix('*').is_some_and(|folder| folder.ends_with('/') && usual.starts_with(folder))
    };
    (query.is_none() && paths.iter().any(below)).then(|| usual.to_owned())
}

fn split(path: &str) -> (&str, Option<&str>) {
    path.split_once('?').map_or((path, None), |(name, query)| (name, Some(query)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_dialects::{Call, TargetRoute};

    fn get(method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Result<Endpoint, String> {
        let (path, query) = split(uri);
        let map =
            headers.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect();
        endpoint(&method, path, query, &map).map_err(|f| f.code.into_owned())
    }

    #[test]
    fn each_endpoint_is_found_and_nothing_else() {
        use Operation as O;
        let post = |uri: &str| get(Method::POST, uri, &[]);
        let stream = O::GenerateContent { stream: true };
        let table = [
            ("/v1/chat/completions", O::Chat, None),
            ("/v1/messages?beta=true", O::Messages, None),
            ("/v1beta/models/g:1:streamGenerateContent?alt=sse", stream, Some("g:1")),
            ("/v1beta/models/g:streamGenerateContent", stream, Some("g")),
            ("/v1beta/models/g:streamGenerateContent?%24alt=json%3Benum-encoding%3Dint", stream, Some("g")),
            ("/v1beta/models/e:embedContent?key=secret", O::EmbedContent, Some("e")),
        ];
        for (uri, operation, model) in table {
            let found = post(uri).unwrap();
            assert_eq!((found.operation, found.model.as_deref()), (operation, model), "{uri}");
        }
        assert_eq!(post("/v1/files"), Err("endpoint_not_found".into()));
        assert_eq!(post("/v1/models"), Err("method_not_allowed".into()));
        assert_eq!(get(Method::GET, "/v1/messages", &[]), Err("method_not_allowed".into()));
        assert_eq!(post("/v1/chat/completions?x=1"), Err("query_not_allowed".into()));
        assert_eq!(post("/v1/messages?x=1"), Err("query_not_allowed".into()));
        let array = |uri: &str| post(uri).unwrap().json_array;
        assert!(array("/v1beta/models/g:streamGenerateContent?key=x"));
        assert!(!array("/v1beta/models/g:streamGenerateContent?$alt=sse"));
        for odd in
            ["g:streamGenerateContent?alt=proto", "g:generateContent?alt=sse", "g:generateContent?fields=x"]
        {
            assert_eq!(post(&format!("/v1beta/models/{odd}")), Err("query_not_allowed".into()), "{odd}");
        }
        let long = format!("/v1beta/models/{}:generateContent", "g".repeat(257));
        assert_eq!(post(&long), Err("model_too_long".into()));
    }

    #[test]
    fn what_is_nearly_right_is_told_so() {
        let failure = |method, path: &str| endpoint(&method, path, None, &HeaderMap::new()).unwrap_err();
        for (path, hint) in [
            ("/chat/completions", "is it /v1/chat/completions? for OpenAI's"),
            ("/v1/v1/chat/completions", "is it /v1/chat/completions?"),
            ("/v1/chat/completions/", "is it /v1/chat/completions?"),
            ("//v1/Chat/Completions", "is it /v1/chat/completions?"),
            ("/openai/deployments/x/chat/completions", "is it /v1/chat/completions?"),
            ("/v1/v1/messages", "is it /v1/messages? for Anthropic's"),
            ("/messages/count_tokens", "is it /v1/messages/count_tokens?"),
            ("/models/g:generateContent", "is it /v1beta/models/MODEL:generateContent? for Google's"),
            ("/v1beta/models/g:predict", "is it /v1beta/models/MODEL:generateContent?"),
            ("/v1/files", "`quorate serve --help` lists"),
            ("/", "`quorate serve --help` lists"),
        ] {
            let failure = failure(Method::POST, path);
            assert_eq!(failure.code, "endpoint_not_found", "{path}");
            assert!(failure.hint.starts_with(hint), "{path}: {}", failure.hint);
        }
        for (method, path, allow) in [
            (Method::DELETE, "/v1/chat/completions", "POST"),
            (Method::HEAD, "/v1/embeddings", "POST"),
            (Method::OPTIONS, "/v1/messages", "POST"),
            (Method::PUT, "/v1/models/m", "GET"),
            (Method::GET, "/v1/messages", "POST"),
            (Method::POST, "/healthz", "GET"),
        ] {
            let failure = failure(method, path);
            assert_eq!((&*failure.code, failure.allow.text()), ("method_not_allowed", allow), "{path}");
        }
    }

    #[test]
    fn errors_are_in_the_dialect_of_the_path() {
        let of = |path| dialect_of(path, &HeaderMap::new());
        assert_eq!(of("/v1/models/g:generateContent"), Dialect::Gemini);
        assert_eq!(of("/model/b/converse"), Dialect::Bedrock);
        assert_eq!(of("/v1/v1/messages"), Dialect::Anthropic);
        assert_eq!(of("/v1/models"), Dialect::OpenAi);
    }

    #[test]
    fn the_list_of_models_is_in_the_callers_words() {
        let list = |headers: &[(&'static str, &str)], uri| get(Method::GET, uri, headers).unwrap().operation;
        assert_eq!(list(&[], "/v1/models"), Operation::Models(Dialect::OpenAi));
        let version = [("anthropic-version", "2023-06-01")];
        assert_eq!(list(&version, "/v1/models?limit=3"), Operation::Models(Dialect::Anthropic));
        assert_eq!(list(&[], "/v1beta/models"), Operation::Models(Dialect::Gemini));
        assert!(get(Method::HEAD, "/v1/models", &[]).is_ok());
    }

    #[test]
    fn upstream_paths_are_those_the_route_lists() {
        let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let path = |list: &[&str], operation: Operation, model: &str| {
            let (body, named) = match operation.dialect() {
                Dialect::OpenAi | Dialect::Anthropic => (format!("{{\"model\":\"{model}\"}}"), None),
                Dialect::Gemini | Dialect::Bedrock => ("{}".to_owned(), Some(model.to_owned())),
            };
            let endpoint = Endpoint { operation, model: named, json_array: false };
            let call = Call::read(endpoint, body.into()).unwrap();
            let said = call.for_route(&TargetRoute::new(operation.dialect(), model)).unwrap();
            upstream_path(&paths(list), &said.path)
        };
        let openai = ["/v1/chat/completions", "/v1/embeddings"];
        let stream = Operation::GenerateContent { stream: true };
        assert_eq!(path(&openai, Operation::Chat, "m").as_deref(), Some(openai[0]));
        assert_eq!(path(&openai, Operation::Completions, "m"), None);
        assert_eq!(path(&openai, Operation::Responses, "m"), None);
        for there in [
            "/openai/deployments/x/chat/completions?api-version=1",
            "/chat/completions",
            "/api/v1/chat/completions",
        ] {
            assert_eq!(path(&[there], Operation::Chat, "m").as_deref(), Some(there));
        }
        let gemini = ["/v1beta/models/g:generateContent", "/v1beta/models/g:streamGenerateContent?alt=sse"];
        assert_eq!(path(&gemini, stream, "g").as_deref(), Some(gemini[1]));
        assert_eq!(path(&gemini, stream, "other"), None);
        assert_eq!(
            path(&["/v1/models/g:streamGenerateContent"], stream, "g"),
            None,
            "not a stream of events"
        );
        let vertex = "/v1/projects/p/publishers/google/models/g:generateContent";
        let whole = Operation::GenerateContent { stream: false };
        assert_eq!(path(&[vertex], whole, "g").as_deref(), Some(vertex));
        assert_eq!(path(&["/v1/*"], Operation::Messages, "m").as_deref(), Some("/v1/messages"));
        assert_eq!(path(&["/v2/*"], Operation::Messages, "m"), None);
        let converse = Operation::Converse { stream: true };
        assert_eq!(
            path(&["/model/m/converse-stream"], converse, "m").as_deref(),
            Some("/model/m/converse-stream")
        );
    }
}
