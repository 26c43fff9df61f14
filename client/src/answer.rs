//! Error answers (4xx and 5xx): whether they are in the API's own form, which the log wants to know of each request on a
//! route with a credential, because a gateway before the API answers a spoilt key in another way than the API itself.
//!
//! Decides by the dialect of the route and the body alone; what follows from it is [`quorate_core::state::FaultKind`]'s. An answer that is
//! longer than [`ERROR_BYTES_MAX`] or takes longer than [`ERROR_TIME_MAX`] is not the API's: its own errors are a few lines.
use quorate_core::ids::RequestId;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Longest body of an error answer that is looked at.
pub(crate) const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Longest time its body may take.
pub(crate) const ERROR_TIME_MAX: Duration = Duration::from_secs(5);

/// A 400 in the API's own form: the application's mistake, or a spoilt key. Another pair will tell.
pub(crate) struct Disputed {
    pub(crate) first: RequestId,
    /// Ends when the first report has gone out.
    pub(crate) told: JoinHandle<()>,
}

/// Whether an error answer's whole body is what the dialect's API sends: `{"error": {…}}` of OpenAI and all who follow it,
/// `{"type": "error", "error": {…}}` of Anthropic, `{"error": {"status": …}}` of Google, `{"message": …}` of Bedrock.
pub fn is_own_error_form(dialect: &str, body: &[u8]) -> bool {
    if body.len() > ERROR_BYTES_MAX {
        return false;
    }
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(body) else { return false };
    let error = object.get("error").is_some_and(serde_json::Value::is_object);
    match dialect {
        "anthropic" => error && object.get("type").and_then(serde_json::Value::as_str) == Some("error"),
        "gemini" => {
            object.get("error").and_then(|e| e.get("status")).is_some_and(serde_json::Value::is_string)
        }
        "bedrock" => object.get("message").is_some_and(serde_json::Value::is_string),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_form() {
        let openai = r#"{"error":{"message":"no","type":"invalid_request_error","code":null}}"#;
        let anthropic = r#"{"type":"error","error":{"type":"invalid_request_error","message":"no"}}"#;
        let gemini = r#"{"error":{"code":400,"message":"no","status":"INVALID_ARGUMENT"}}"#;
        let bedrock = r#"{"message":"no"}"#;
        let gateway = "<html><head><title>400 Bad Request</title></head></html>";
        let table = [
            ("openai", openai, true),
            ("openai", anthropic, true),
            ("anthropic", anthropic, true),
            ("anthropic", openai, false),
            ("gemini", gemini, true),
            ("gemini", openai, false),
            ("gemini", gateway, false),
            ("bedrock", bedrock, true),
            ("bedrock", gemini, false),
            ("openai", gateway, false),
            ("anthropic", gateway, false),
            ("openai", r#"{"error":"no"}"#, false),
            ("openai", r#"[{"error":{}}]"#, false),
            ("openai", r#"{"message":"no"}"#, false),
            ("anthropic", r#"{"type":"message","error":{}}"#, false),
            ("openai", "", false),
            ("openai", r#"{"error":{"message":"cut"#, false),
        ];
        for (dialect, body, expected) in table {
            assert_eq!(is_own_error_form(dialect, body.as_bytes()), expected, "{dialect} {body}");
        }
    }

    #[test]
    fn a_body_beyond_the_bound_is_not_looked_at() {
        let filled = |bytes: usize| {
            let body = |fill: usize| format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(fill));
            body(bytes - body(0).len())
        };
        assert!(is_own_error_form("openai", filled(ERROR_BYTES_MAX).as_bytes()));
        assert!(!is_own_error_form("openai", filled(ERROR_BYTES_MAX + 1).as_bytes()));
    }

    /// Nesting deeper than the parser's bound is refused, not followed.
    #[test]
    fn a_deep_body_is_no_error_form() {
        let deep = format!(r#"{{"error":{}"#, r#"{"a":"#.repeat(10_000));
        assert!(!is_own_error_form("openai", deep.as_bytes()));
    }
}
