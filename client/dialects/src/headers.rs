//! Headers: which of a caller's go to a route, which of a route's come back, and the names of rate limits.
//!
//! A caller's header that changes what is asked is sent on, where the route's dialect is the caller's own and the route takes
//! it, or refused: see [`bears_meaning`] and [`lost`]. None is dropped in silence.
//!
//! OpenAI's rate limits reset after a duration (`6m0s`), Anthropic's at a time (RFC 3339): the time is an argument.
//! <https://platform.openai.com/docs/guides/rate-limits>, <https://docs.anthropic.com/en/api/rate-limits>
use crate::dialect::Dialect;

/// What vendors, and other gateways, begin the names of their own headers with. Clouds add headers of theirs on the way, so of
/// AWS and Azure only what is about models.
const VENDORS: [&str; 13] = [
    "openai-",
    "anthropic-",
    "x-openai-",
    "x-anthropic-",
    "x-goog-",
    "x-vertex-",
    "x-amzn-bedrock-",
    "x-ms-oai-",
    // instructions to a gateway that this is not
    "x-portkey-",
    "x-litellm-",
    "helicone-",
    "cf-aig-",
    // asks that a repetition is not done twice, which nobody here promises
    "idempotency-key",
];

/// Those among them that change nothing of what is asked.
const HARMLESS: [&str; 8] = [
    // a key, which stays here, and a browser's leave to have one
    "x-goog-api-key",
    "anthropic-dangerous-direct-browser-access",
    // who asks, for the vendor's statistics
    "x-goog-api-client",
    "x-openai-client-user-agent",
    // the request line once more
    "x-goog-request-params",
    // what Google's proxy says to a service behind it
    "x-goog-authenticated-user-email",
    "x-goog-authenticated-user-id",
    "x-goog-iap-jwt-assertion",
];

/// Whether a header of a caller changes what is asked, beside the body. Such a one is sent on or refused. Lower case.
///
/// By the vendors' prefixes, so that one which is new tomorrow is refused and not dropped.
pub fn bears_meaning(name: &str) -> bool {
    VENDORS.iter().any(|prefix| name.starts_with(prefix)) && !HARMLESS.contains(&name)
}

/// Anthropic's API in whose forms translations are read and written: what callers of these versions send and expect.
const ANTHROPIC_VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];

/// Betas of Anthropic that a translation can leave out, and nothing that was asked for is lost.
const BETAS: [&str; 11] = [
    // generally available since: they say nothing any more
    "prompt-caching-2024-07-31",
    "pdfs-2024-09-25",
    "token-counting-2024-11-01",
    "message-batches-2024-09-24",
    // only open fields of the body, and each of these is translated or refused by itself
    "structured-outputs-2025-11-13",
    "extended-cache-ttl-2025-04-11",
    "files-api-2025-04-14",
    // how finely arguments of tools are cut
    "fine-grained-tool-streaming-2025-05-14",
    // larger bounds of one vendor's models: prompt and `max_tokens` go on whole, and another's model has its own bounds
    "output-128k-2025-02-19",
    "context-1m-2025-08-07",
    // about a key, which stays here
    "oauth-2025-04-20",
];

/// What of a header's value would be lost if the call were said in another dialect; `None` if nothing would.
pub fn lost<'a>(caller: Dialect, name: &str, value: &'a str) -> Option<&'a str> {
    if !bears_meaning(name) {
        return None;
    }
    let known: &[&str] = match (caller, name) {
        (Dialect::Anthropic, "anthropic-version") => &ANTHROPIC_VERSIONS,
        (Dialect::Anthropic, "anthropic-beta") => &BETAS,
        _ => return Some(value),
    };
    value.split(',').map(str::trim).find(|one| !one.is_empty() && !known.contains(one))
}

/// Headers of an answer that mean the same in every dialect.
const COMMON: [&str; 3] = ["retry-after", "retry-after-ms", "x-should-retry"];

/// OpenAI's and Anthropic's names of what is limited. Anthropic's tokens, where it tells input from output, stay its own.
const LIMITED: [&str; 2] = ["requests", "tokens"];

fn request_id(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi | Dialect::Gemini => "x-request-id",
        Dialect::Anthropic => "request-id",
        Dialect::Bedrock => "x-amzn-requestid",
    }
}

/// The headers of an answer for the caller: its dialect's names of rate limits, `retry-after`, request ids. All else is
/// left out, `content-type` and `content-length` too, which [`crate::Answer`] brings. `now` in seconds since 1970.
pub fn for_caller(
    from: Dialect,
    to: Dialect,
    headers: &[(String, String)],
    now: u64,
) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (name, value) in headers {
        let own = |prefix: &str| from == to && name.starts_with(prefix);
        if COMMON.contains(&name.as_str())
            || own("x-ratelimit-")
            || own("anthropic-ratelimit-")
            || own("openai-processing-ms")
        {
            out.push((name.clone(), value.clone()));
        } else if name == request_id(from) {
            out.push((request_id(to).to_owned(), value.clone()));
        } else if let Some(renamed) = rate_limit(from, to, name, value, now) {
            out.push(renamed);
        }
    }
    out
}

fn rate_limit(from: Dialect, to: Dialect, name: &str, value: &str, now: u64) -> Option<(String, String)> {
    match (from, to) {
        (Dialect::OpenAi, Dialect::Anthropic) => {
            let (field, what) = name.strip_prefix("x-ratelimit-")?.split_once('-')?;
            let what = LIMITED.iter().find(|l| **l == what)?;
            let value = match field {
                "limit" | "remaining" => value.to_owned(),
                "reset" => rfc3339(now.checked_add(duration_s(value)?)?),
                _ => return None,
            };
            Some((format!("anthropic-ratelimit-{what}-{field}"), value))
        }
        (Dialect::Anthropic, Dialect::OpenAi) => {
            let (what, field) = name.strip_prefix("anthropic-ratelimit-")?.rsplit_once('-')?;
            let what = LIMITED.iter().find(|l| **l == what)?;
            let value = match field {
                "limit" | "remaining" => value.to_owned(),
                "reset" => format!("{}s", seconds_of(value)?.saturating_sub(now)),
                _ => return None,
            };
            Some((format!("x-ratelimit-{field}-{what}"), value))
        }
        _ => None,
    }
}

/// How long the provider asks to wait, in milliseconds: `retry-after-ms`, `retry-after` (seconds; dates are not read, as
/// there is no clock here).
pub fn retry_after_ms(headers: &[(String, String)]) -> Option<u64> {
    let of = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.trim());
    if let Some(ms) = of("retry-after-ms").and_then(|v| v.parse::<f64>().ok()) {
        return millis(ms);
    }
    millis(of("retry-after")?.parse::<f64>().ok()? * 1000.0)
}

/// Longest wait that is believed: a day.
const WAIT_MS_MAX: f64 = 86_400_000.0;

fn millis(ms: f64) -> Option<u64> {
    // within 0..=86,400,000 after the check: the cast cuts nothing but a fraction
    (ms.is_finite() && ms >= 0.0).then(|| ms.min(WAIT_MS_MAX).ceil() as u64)
}

/// `1s`, `6m0s`, `120ms`, `1h2m3.5s`: rounded up to seconds.
fn duration_s(text: &str) -> Option<u64> {
    let (mut rest, mut ms) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let number: f64 = number.parse().ok()?;
        let unit = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit)?;
        ms += number
            * match unit {
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                "d" => 86_400_000.0,
                _ => return None,
            };
        rest = tail;
    }
    millis(ms).map(|ms| ms.div_ceil(1000))
}

/// RFC 3339 in UTC. Civil date from days: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400).saturating_add(719_468), seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds since 1970 of RFC 3339 in UTC.
fn seconds_of(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix(['Z', 'z'])?.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.split('.').next()?;
    let mut time = time.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn what_bears_meaning_is_known_by_its_prefix() {
        for name in [
            "openai-beta",
            "openai-organization",
            "openai-project",
            "openai-made-tomorrow",
            "anthropic-beta",
            "anthropic-workspace-id",
            "x-goog-user-project",
            "x-goog-fieldmask",
            "x-amzn-bedrock-guardrailidentifier",
            "x-portkey-config",
            "idempotency-key",
        ] {
            assert!(bears_meaning(name), "{name}");
        }
        let harmless = ["user-agent", "x-stainless-lang", "authorization", "x-amzn-trace-id", "x-amz-cf-id"];
        for name in harmless.iter().chain(&HARMLESS) {
            assert!(!bears_meaning(name), "{name}");
        }
        for name in HARMLESS {
            assert!(VENDORS.iter().any(|prefix| name.starts_with(prefix)), "{name} needs no entry");
        }
    }

    #[test]
    fn what_would_be_lost_is_named() {
        let beta = |value| lost(Dialect::Anthropic, "anthropic-beta", value);
        assert_eq!(beta("prompt-caching-2024-07-31, ,structured-outputs-2025-11-13"), None);
        assert_eq!(
            beta("prompt-caching-2024-07-31,interleaved-thinking-2025-05-14"),
            Some("interleaved-thinking-2025-05-14")
        );
        assert_eq!(beta("prompt-caching-2024-07-32"), Some("prompt-caching-2024-07-32"));
        let version = |value| lost(Dialect::Anthropic, "anthropic-version", value);
        assert_eq!((version("2023-06-01"), version("2023-01-01")), (None, Some("2023-01-01")));
        // a header of the route's vendor is no part of the caller's dialect
        assert_eq!(lost(Dialect::OpenAi, "anthropic-version", "2023-06-01"), Some("2023-06-01"));
        assert_eq!(lost(Dialect::OpenAi, "openai-organization", "org"), Some("org"));
        assert_eq!(lost(Dialect::OpenAi, "x-stainless-lang", "python"), None);
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_740_787_200, "2025-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(seconds_of(text), Some(seconds));
        }
        for bad in
            ["", "2025-03-01", "2025-03-01T00:00Z", "2025-13-01T00:00:00Z", "2025-03-01T00:00:00+01:00"]
        {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn rate_limits_change_their_names() {
        let openai = pairs(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6m0.2s"),
            ("retry-after", "20"),
            ("x-request-id", "req_1"),
            ("content-length", "7"),
            ("set-cookie", "no"),
        ]);
        let anthropic = pairs(&[
            ("anthropic-ratelimit-requests-limit", "60"),
            ("anthropic-ratelimit-tokens-remaining", "149984"),
            ("anthropic-ratelimit-tokens-reset", "1970-01-01T00:07:41Z"),
            ("retry-after", "20"),
            ("request-id", "req_1"),
        ]);
        assert_eq!(for_caller(Dialect::OpenAi, Dialect::Anthropic, &openai, 100), anthropic);
        let back = for_caller(Dialect::Anthropic, Dialect::OpenAi, &anthropic, 100);
        assert_eq!(back[2], ("x-ratelimit-reset-tokens".into(), "361s".into()));
        assert_eq!(for_caller(Dialect::OpenAi, Dialect::OpenAi, &openai, 100), openai[..5]);
        let gemini = for_caller(Dialect::OpenAi, Dialect::Gemini, &openai, 100);
        assert_eq!(gemini, pairs(&[("retry-after", "20"), ("x-request-id", "req_1")]));
    }

    #[test]
    fn waits() {
        for (header, value, ms) in [
            ("retry-after", "2", Some(2000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "12.5", Some(13)),
            ("retry-after", "1e300", Some(86_400_000)),
            ("retry-after", "-1", None),
            ("retry-after", "nan", None),
            ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ] {
            assert_eq!(retry_after_ms(&pairs(&[(header, value)])), ms, "{value}");
        }
    }
}
