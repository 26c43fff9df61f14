//! Token counts from an answer's last bytes, for the client's report: OpenAI's and Anthropic's `usage` object. Cheap and
//! bounded; what is not found counts as 0. These are the provider's numbers on the client's word.

/// Bytes kept of the end of a body: `usage` stands in the last event or near the end of the object.
const TAIL_BYTES: usize = 2048;

/// The end of a body.
#[derive(Default)]
pub(crate) struct UsageTail {
    tail: Vec<u8>,
}

impl UsageTail {
    pub(crate) fn observe(&mut self, bytes: &[u8]) {
        if bytes.len() >= TAIL_BYTES {
            self.tail.clear();
            self.tail.extend(bytes.iter().skip(bytes.len() - TAIL_BYTES));
            return;
        }
        if self.tail.len() + bytes.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Tokens in and out.
    pub(crate) fn tokens(&self) -> (u64, u64) {
        let text = String::from_utf8_lossy(&self.tail);
        let Some((_, usage)) = text.rsplit_once("\"usage\"") else { return (0, 0) };
        let number = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| {
                    let (_, rest) = usage.split_once(name)?;
                    let digits = rest.trim_start_matches([':', ' ', '\n', '\t']);
                    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                    digits.get(..end)?.parse().ok()
                })
                .unwrap_or(0)
        };
        (
            number(["\"prompt_tokens\"", "\"input_tokens\""]),
            number(["\"completion_tokens\"", "\"output_tokens\""]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(body: &[u8], piece: usize) -> (u64, u64) {
        let mut tail = UsageTail::default();
        body.chunks(piece).for_each(|p| tail.observe(p));
        tail.tokens()
    }

    #[test]
    fn finds_usage_whatever_the_pieces() {
        let mut body = vec![b' '; 10_000];
        body.extend(
            br#"data: {"choices":[],"usage":{"prompt_tokens": 7,"completion_tokens":31,"total_tokens":38}}"#,
        );
        for piece in [1, 100, 3000, 20_000] {
            assert_eq!(tokens(&body, piece), (7, 31), "{piece}");
        }
        assert_eq!(tokens(br#"{"usage":{"input_tokens":3,"output_tokens":4}}"#, 9), (3, 4));
        assert_eq!(tokens(b"no such thing", 4), (0, 0));
        assert_eq!(tokens(br#""usage":{"prompt_tokens":99999999999999999999}"#, 4), (0, 0));
    }
}
