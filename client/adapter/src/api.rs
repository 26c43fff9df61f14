//! The HTTP surface, over what [`quorate_dialects`] knows of it: methods, queries, and which of a route's paths serves an
//! operation. Pure.
//!
//! **Refuses** queries that say what no route can carry: a query never goes on, but for the fixed one that admins listed.
use crate::errors::Failure;
use http::{HeaderMap, Method, StatusCode};
use quorate_dialects::{Dialect, Endpoint, Operation};

/// Longest model name that is looked at.
pub(crate) const MODEL_BYTES_MAX: usize = 256;

/// Whose errors a caller of this path and these headers reads, before anything else is known.
pub(crate) fn dialect_of(path: &str, headers: &HeaderMap) -> Dialect {
    if path.starts_with("/v1beta/") || headers.contains_key("x-goog-api-key") {
        Dialect::Gemini
    } else if path.starts_with("/v1/messages") || headers.contains_key("anthropic-version") {
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
    let Some(endpoint) = Endpoint::of(method.as_str(), path, query, version) else {
        let other = if *method == Method::GET { "POST" } else { "GET" };
        if Endpoint::of(other, path, query, version).is_some() {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return Err(Failure::new(
                status,
                "method_not_allowed",
                format!("this endpoint takes {other}"),
                "",
            ));
        }
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            "endpoint_not_found",
            "no such endpoint",
            "`quorate serve --help` lists the endpoints; for OpenAI SDKs the base URL ends with /v1",
        ));
    };
    if endpoint.json_array {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "stream_without_sse",
            "streams are server-sent events here",
            "add ?alt=sse, as Google's SDKs do",
        ));
    }
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
            // Gemini's older way to bring a key, which is dropped like any other.
            pair.starts_with("key=") || pair.starts_with("alt=") || pair.starts_with("$alt=json")
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
        assert_eq!(post("/v1beta/models/g:streamGenerateContent"), Err("stream_without_sse".into()));
        let long = format!("/v1beta/models/{}:generateContent", "g".repeat(257));
        assert_eq!(post(&long), Err("model_too_long".into()));
    }

    #[test]
    fn the_list_of_models_is_in_the_callers_words() {
        let list = |headers: &[(&'static str, &str)], uri| get(Method::GET, uri, headers).unwrap().operation;
        assert_eq!(list(&[], "/v1/models"), Operation::Models(Dialect::OpenAi));
        let version = [("anthropic-version", "2023-06-01")];
        assert_eq!(list(&version, "/v1/models?limit=3"), Operation::Models(Dialect::Anthropic));
        assert_eq!(list(&[], "/v1beta/models"), Operation::Models(Dialect::Gemini));
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
