//! Server-sent events: WHATWG HTML, "Server-sent events", §9.2.6 (interpreting an event stream).
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>
//!
//! Lines end with LF, CR LF or CR. A last event without its blank line is read too: some servers end so.
use crate::common::{Decode, Delta};
use crate::error::DialectError;
use crate::limits::EVENT_BYTES_MAX;

/// One event: its data, and its name if it has one.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
    /// The bytes it came in, its blank line included.
    pub(crate) bytes: Vec<u8>,
}

/// Events out of bytes, cut anywhere.
#[derive(Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    event: Event,
    any_data: bool,
    /// The last byte was a CR: an LF now belongs to it.
    after_cr: bool,
    keep_bytes: bool,
    started: bool,
}

impl Events {
    /// Keeps each event's own bytes.
    pub(crate) fn keeping_bytes() -> Self {
        Self { keep_bytes: true, ..Self::default() }
    }

    /// Feeds bytes; gives each event that they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Event>) -> Result<(), DialectError> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            if let Some(rest) = bytes.strip_prefix(b"\n") {
                // the CR has ended its line, perhaps its event: this LF is the tail of whichever it was
                if self.keep_bytes {
                    match out.last_mut() {
                        Some(last) if self.event.bytes.is_empty() => last.bytes.push(b'\n'),
                        _ => self.event.bytes.push(b'\n'),
                    }
                }
                bytes = rest;
            }
        }
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let (line, rest) = bytes.split_at(end);
            let (ending, mut rest) = match rest {
                [b'\r', b'\n', rest @ ..] => ("\r\n", rest),
                [b'\r'] => {
                    self.after_cr = true;
                    ("\r", [].as_slice())
                }
                [b'\r', rest @ ..] => ("\r", rest),
                [_, rest @ ..] => ("\n", rest),
                [] => ("", [].as_slice()),
            };
            self.extend(line)?;
            if self.keep_bytes {
                self.event.bytes.extend_from_slice(ending.as_bytes());
            }
            std::mem::swap(&mut bytes, &mut rest);
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, out)?;
        }
        self.extend(bytes)
    }

    /// Whether nothing of an event is begun that more bytes would go into.
    pub(crate) fn is_border(&self) -> bool {
        let Event { name, data, bytes } = &self.event;
        self.line.is_empty() && !self.any_data && name.is_empty() && data.is_empty() && bytes.is_empty()
    }

    /// The stream is over: an event that lacks its blank line.
    pub(crate) fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), DialectError> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.take_line(&line, out)?;
        }
        self.take_line(b"", out)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), DialectError> {
        let held = self.line.len() + self.event.data.len() + self.event.bytes.len() / 2 + bytes.len();
        if held > EVENT_BYTES_MAX {
            return Err(DialectError::TooLarge { what: "an event", max: EVENT_BYTES_MAX }.in_answer());
        }
        self.line.extend_from_slice(bytes);
        if self.keep_bytes {
            self.event.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], out: &mut Vec<Event>) -> Result<(), DialectError> {
        let line = if self.started { line } else { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) };
        self.started = true;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.any_data) || !event.bytes.is_empty() {
                out.push(event);
            }
            return Ok(());
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            Some(at) => {
                let (field, value) = line.split_at(at);
                let value = value.strip_prefix(b":").unwrap_or(value);
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, [].as_slice()),
        };
        let text = |value: &[u8]| {
            String::from_utf8(value.to_vec())
                .map_err(|_| DialectError::NotJson { field: String::new() }.in_answer())
        };
        match field {
            b"data" => {
                if self.any_data {
                    self.event.data.push('\n');
                }
                self.any_data = true;
                self.event.data.push_str(&text(value)?);
            }
            b"event" => self.event.name = text(value)?,
            _ => {}
        }
        Ok(())
    }
}

/// What one dialect's events mean.
pub(crate) trait Meaning: Send {
    /// The data of one event, never empty.
    fn event(&mut self, data: &str, out: &mut Vec<Delta>) -> Result<(), DialectError>;
    /// The end of the bytes, if neither [`Delta::Done`] nor [`Delta::Error`] came before.
    fn end(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError>;
}

/// Reads a provider's events.
pub(crate) struct Reader<M> {
    events: Events,
    meaning: M,
    /// Nothing counts any more.
    over: bool,
}

impl<M> Reader<M> {
    pub(crate) fn new(meaning: M) -> Self {
        Self { events: Events::default(), meaning, over: false }
    }
}

impl<M: Meaning> Reader<M> {
    fn events(&mut self, events: &[Event], out: &mut Vec<Delta>) -> Result<(), DialectError> {
        for event in events.iter().filter(|event| !event.data.is_empty()) {
            if self.over {
                break;
            }
            self.meaning.event(&event.data, out)?;
            self.over = matches!(out.last(), Some(Delta::Done | Delta::Error(_)));
        }
        Ok(())
    }
}

impl<M: Meaning> Decode for Reader<M> {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut events = Vec::new();
        let cut = self.events.feed(bytes, &mut events);
        self.events(&events, out).map_err(DialectError::in_answer)?;
        cut
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<(), DialectError> {
        let mut events = Vec::new();
        self.events.finish(&mut events)?;
        // an event without its blank line may be half of one
        self.events(&events, out).map_err(|_| DialectError::Truncated)?;
        if self.over { Ok(()) } else { self.meaning.end(out) }
    }
}

/// Writes an event. `data` holds no line break: see [`crate::json::Raw`].
pub(crate) fn write(out: &mut Vec<u8>, name: Option<&str>, data: &str) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_any_line_ending() {
        let stream = "\u{feff}: hello\n\ndata: a\r\ndata:b\r\rdata\r\n\r\nevent: x\nid: 1\ndata:  \u{e9}\n\ndata: last";
        let expected = [("", ""), ("", "a\nb"), ("", ""), ("x", " \u{e9}"), ("", "last")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let mut events = Events::keeping_bytes();
                let mut out = Vec::new();
                events.feed(&stream.as_bytes()[..first], &mut out).unwrap();
                events.feed(&stream.as_bytes()[first..second], &mut out).unwrap();
                events.feed(&stream.as_bytes()[second..], &mut out).unwrap();
                events.finish(&mut out).unwrap();
                let seen: Vec<_> = out.iter().map(|e| (e.name.clone(), e.data.clone())).collect();
                assert_eq!(seen, expected, "cut at {first} and {second}");
                let bytes: Vec<u8> = out.iter().flat_map(|e| e.bytes.clone()).collect();
                assert_eq!(bytes, stream.as_bytes(), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_event_has_a_bound() {
        let mut events = Events::default();
        let mut out = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        let error = (0..20).find_map(|_| events.feed(&piece, &mut out).err()).unwrap();
        let inner = DialectError::TooLarge { what: "an event", max: EVENT_BYTES_MAX };
        assert_eq!(error, DialectError::Answer(Box::new(inner)));
    }
}
