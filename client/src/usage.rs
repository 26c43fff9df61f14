//! Token counts from an answer's first and last bytes, for the client's report: the `usage` object of OpenAI, of Anthropic and of
//! those who follow either, and Gemini's `usageMetadata`. Cheap and bounded; what is not found counts as 0. These are the
//! provider's numbers on the client's word.
//!
//! Input is counted with what the provider had cached, whether its own number includes that (OpenAI, Gemini) or not (Anthropic,
//! whose cache writes count as input too); output with hidden reasoning. A stream of Anthropic's says the input in its first
//! event and the output in its last.
use quorate_core::policy::Tokens;
use serde::Deserialize;

/// Bytes kept of each end of a body: `usage` stands in the first or last event, or near the end of the object.
const END_BYTES: usize = 2048;

/// Of English text, about.
const BYTES_A_TOKEN: u64 = 4;

/// The ends of a body.
#[derive(Default)]
pub(crate) struct UsageTail {
    first: Vec<u8>,
    tail: Vec<u8>,
    bytes: u64,
    /// Empty lines: each ends an event of a stream.
    events: u64,
    line_began: bool,
}

impl UsageTail {
    pub(crate) fn observe(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        for byte in bytes {
            self.events += u64::from(*byte == b'\n' && self.line_began);
            // A carriage return before the line's end changes nothing.
            self.line_began = *byte == b'\n' || (*byte == b'\r' && self.line_began);
        }
        let missing = END_BYTES.saturating_sub(self.first.len());
        self.first.extend(bytes.iter().take(missing));
        if bytes.len() >= END_BYTES {
            self.tail.clear();
            self.tail.extend(bytes.iter().skip(bytes.len() - END_BYTES));
            return;
        }
        if self.tail.len() + bytes.len() > 2 * END_BYTES {
            self.tail.drain(..self.tail.len() - END_BYTES);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Tokens, as far as the answer has said by now.
    pub(crate) fn tokens(&self) -> Tokens {
        let (first, last) = (String::from_utf8_lossy(&self.first), String::from_utf8_lossy(&self.tail));
        let begin = object(&first, str::split_once).map(Said::read).unwrap_or_default();
        let end = object(&last, str::rsplit_once).map(Said::read).unwrap_or_default();
        end.or(begin).tokens()
    }
}

impl UsageTail {
    /// As [`Self::tokens`]; of an answer that did not say, because it was cut off or was not asked to, a guess: a token for each
    /// event of a stream, or for each [`BYTES_A_TOKEN`].
    pub(crate) fn tokens_or_guess(&self, sent: u64) -> Tokens {
        let said = self.tokens();
        if said != Tokens::default() || self.bytes == 0 {
            return said;
        }
        let output = if self.events > 0 { self.events } else { self.bytes.div_ceil(BYTES_A_TOKEN) };
        Tokens { input: sent.div_ceil(BYTES_A_TOKEN).max(1), cached: 0, output }
    }
}

/// What follows the name of a usage object.
fn object<'t>(
    text: &'t str,
    at: impl Fn(&'t str, &'static str) -> Option<(&'t str, &'t str)>,
) -> Option<&'t str> {
    at(text, "\"usageMetadata\"").or_else(|| at(text, "\"usage\"")).map(|(_, usage)| usage)
}

/// Numbers of one usage object.
#[derive(Default)]
struct Said {
    input: Option<u64>,
    output: Option<u64>,
    /// Included in the input.
    cached: Option<u64>,
    /// Beside the input.
    cache_read: Option<u64>,
    cache_written: Option<u64>,
    /// Beside the output.
    thoughts: Option<u64>,
}

impl Said {
    fn read(usage: &str) -> Self {
        let any = |names: &[&str]| names.iter().find_map(|name| number(usage, name));
        Self {
            input: any(&["\"prompt_tokens\"", "\"input_tokens\"", "\"promptTokenCount\"", "\"inputTokens\""]),
            output: any(&[
                "\"completion_tokens\"",
                "\"output_tokens\"",
                "\"candidatesTokenCount\"",
                "\"outputTokens\"",
            ]),
            cached: any(&["\"cached_tokens\"", "\"cachedContentTokenCount\""]),
            cache_read: any(&["\"cache_read_input_tokens\"", "\"cacheReadInputTokens\""]),
            cache_written: any(&["\"cache_creation_input_tokens\"", "\"cacheWriteInputTokens\""]),
            thoughts: any(&["\"thoughtsTokenCount\""]),
        }
    }

    /// Each number from here, or else from there.
    fn or(self, other: Self) -> Self {
        // A last event without an input says nothing of the cache either.
        let input = if self.input.is_some_and(|n| n > 0) { &self } else { &other };
        Self {
            input: input.input,
            cached: input.cached,
            cache_read: input.cache_read,
            cache_written: input.cache_written,
            output: self.output.or(other.output),
            thoughts: self.thoughts.or(other.thoughts),
        }
    }

    fn tokens(&self) -> Tokens {
        let n = |said: Option<u64>| said.unwrap_or_default();
        let sum = |parts: &[Option<u64>]| parts.iter().fold(0u64, |sum, part| sum.saturating_add(n(*part)));
        Tokens {
            input: sum(&[self.input, self.cache_read, self.cache_written]),
            cached: sum(&[self.cached, self.cache_read]),
            output: sum(&[self.output, self.thoughts]),
        }
    }
}

fn number(usage: &str, name: &str) -> Option<u64> {
    let (_, rest) = usage.split_once(name)?;
    let digits = rest.trim_start_matches([':', ' ', '\n', '\t']);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// The most tokens of output that a request's body asks for, in whichever dialect: so many for each answer.
pub(crate) fn tokens_asked(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Inner {
        #[serde(alias = "maxTokens")]
        max_output_tokens: Option<u64>,
        candidate_count: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Asked {
        max_completion_tokens: Option<u64>,
        max_output_tokens: Option<u64>,
        max_tokens: Option<u64>,
        n: Option<u64>,
        #[serde(rename = "generationConfig", alias = "inferenceConfig")]
        inner: Option<Inner>,
    }
    let asked: Asked = serde_json::from_slice(body).ok()?;
    let own = asked.max_completion_tokens.or(asked.max_output_tokens).or(asked.max_tokens);
    let inner = asked.inner.as_ref();
    let each = own.or_else(|| inner?.max_output_tokens)?;
    let answers = asked.n.or_else(|| inner?.candidate_count).unwrap_or(1).max(1);
    Some(each.saturating_mul(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(body: &[u8], piece: usize) -> (u64, u64, u64) {
        let mut tail = UsageTail::default();
        body.chunks(piece).for_each(|p| tail.observe(p));
        let Tokens { input, cached, output } = tail.tokens();
        (input, cached, output)
    }

    #[test]
    fn finds_usage_whatever_the_pieces() {
        let mut body = vec![b' '; 10_000];
        body.extend(
            br#"data: {"choices":[],"usage":{"prompt_tokens": 7,"completion_tokens":31,"total_tokens":38}}"#,
        );
        for piece in [1, 100, 3000, 20_000] {
            assert_eq!(tokens(&body, piece), (7, 0, 31), "{piece}");
        }
        assert_eq!(tokens(br#"{"usage":{"input_tokens":3,"output_tokens":4}}"#, 9), (3, 0, 4));
        assert_eq!(tokens(b"no such thing", 4), (0, 0, 0));
        assert_eq!(tokens(br#""usage":{"prompt_tokens":99999999999999999999}"#, 4), (0, 0, 0));
    }

    #[test]
    fn what_an_answer_does_not_say_is_guessed() {
        let guess = |body: &[u8], sent| {
            let mut tail = UsageTail::default();
            body.chunks(3).for_each(|p| tail.observe(p));
            let Tokens { input, cached, output } = tail.tokens_or_guess(sent);
            (input, cached, output)
        };
        assert_eq!(guess(b"data: {\"a\":1}\n\ndata: {\"b\":2}\r\n\r\ndata: {", 400), (100, 0, 2));
        assert_eq!(guess(br#"{"content":"ten bytes.."}"#, 2), (1, 0, 7));
        assert_eq!(guess(b"", 400), (0, 0, 0), "nothing came");
        assert_eq!(guess(br#"{"usage":{"input_tokens":3,"output_tokens":4}}"#, 400), (3, 0, 4));
    }

    #[test]
    fn the_ceiling_an_application_asks_for_is_found() {
        for (body, expected) in [
            (r#"{"model":"m","max_tokens":100,"messages":[{"content":"max_tokens"}]}"#, Some(100)),
            (r#"{"max_completion_tokens":50,"max_tokens":100,"n":3}"#, Some(150)),
            (r#"{"max_output_tokens":7}"#, Some(7)),
            (r#"{"generationConfig":{"maxOutputTokens":8,"candidateCount":2}}"#, Some(16)),
            (r#"{"inferenceConfig":{"maxTokens":9}}"#, Some(9)),
            (r#"{"model":"m"}"#, None),
            (r#"{"max_tokens":"many"}"#, None),
            ("not JSON", None),
        ] {
            assert_eq!(tokens_asked(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn cached_input_is_counted_once_in_each_dialect() {
        let openai = br#"{"usage":{"prompt_tokens":2006,"completion_tokens":300,"prompt_tokens_details":{"cached_tokens":1920}}}"#;
        assert_eq!(tokens(openai, 64), (2006, 1920, 300));
        let anthropic = br#"{"usage":{"input_tokens":21,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":5}}"#;
        assert_eq!(tokens(anthropic, 64), (1121, 1000, 5));
        let gemini = br#"{"usageMetadata":{"promptTokenCount":50,"cachedContentTokenCount":40,"candidatesTokenCount":9,"thoughtsTokenCount":11}}"#;
        assert_eq!(tokens(gemini, 64), (50, 40, 20));
        let bedrock = br#"{"usage":{"inputTokens":30,"outputTokens":628,"totalTokens":658}}"#;
        assert_eq!(tokens(bedrock, 64), (30, 0, 628));
    }

    #[test]
    fn a_stream_that_says_its_input_first_is_heard() {
        let mut body = br#"event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":472,"cache_read_input_tokens":8,"output_tokens":2}}}
"#
        .to_vec();
        body.extend(std::iter::repeat_n(b"data: {}\n".iter(), 2000).flatten());
        body.extend(br#"data: {"type":"message_delta","usage":{"output_tokens":89}}"#);
        assert_eq!(tokens(&body, 100), (480, 8, 89));
        // A last event with everything says it all.
        body.extend(br#"data: {"type":"message_delta","usage":{"input_tokens":480,"output_tokens":90}}"#);
        assert_eq!(tokens(&body, 100), (480, 0, 90));
    }
}
