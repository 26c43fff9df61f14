//! Reads one HTTP/1.1 response (RFC 9112), without IO: bytes in, head and body pieces out.
//!
//! Decides where the body ends: content-length, chunked, or close of the connection, and then only an orderly one
//! (close_notify): what is cut off is never taken for an end. Refuses heads above [`HEAD_BYTES_MAX`], a message with both
//! length and transfer-encoding, differing lengths, and encodings other than chunked (RFC 9112 §6.3, stricter).
//! Trailers are read and dropped. One response per connection: what follows it is not read.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Longest head, interim ones each counted alone.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines.
pub const HEADERS_MAX: usize = 128;
/// Longest chunk-size line with extensions, and longest trailer section.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Most interim (1xx) responses.
const INTERIM_MAX: u32 = 8;

/// Why the bytes are not a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Above [`HEAD_BYTES_MAX`].
    #[error("the head is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// Not a head.
    #[error("the head is malformed")]
    Head,
    /// Upgrade or too many interim responses.
    #[error("an interim answer that nobody asked for")]
    Interim,
    /// Content-length is not one number.
    #[error("content-length is malformed or stands twice")]
    ContentLength,
    /// Transfer-encoding other than chunked, or beside a length.
    #[error("transfer-encoding is not plain chunked")]
    TransferEncoding,
    /// A chunk's size line.
    #[error("a chunk is malformed")]
    Chunk,
    /// The bytes ended inside the message.
    #[error("the message is cut off")]
    Truncated,
}

/// Status and headers.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Headers, as sent.
    pub headers: HeaderMap,
}

/// What was read.
#[derive(Debug)]
pub enum Event {
    /// The final head.
    Head(ResponseHead),
    /// A piece of the body, never empty.
    Body(Bytes),
    /// The message is whole.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// The parser.
#[derive(Debug)]
pub struct ResponseParser {
    state: State,
    /// Unread input. Body pieces are split off it without a copy.
    input: BytesMut,
    scanned: usize,
    interim: u32,
    ended: bool,
}

impl Default for ResponseParser {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponseParser {
    /// A parser before the first byte.
    pub fn new() -> Self {
        Self { state: State::Head, input: BytesMut::new(), scanned: 0, interim: 0, ended: false }
    }

    /// Adds input. Takes a buffer over when nothing is held.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        if self.input.is_empty() {
            self.input = BytesMut::from(Bytes::from(bytes));
        } else {
            self.input.extend_from_slice(&bytes);
        }
    }

    /// Whether the message is whole.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the head was read.
    pub fn has_head(&self) -> bool {
        self.state != State::Head
    }

    /// The next event; `None` asks for more input.
    #[allow(clippy::should_implement_trait, reason = "fallible, and None is not the end")]
    pub fn next(&mut self) -> Result<Option<Event>, HttpError> {
        loop {
            match self.state {
                State::Head => match self.head()? {
                    Some(head) => return Ok(Some(Event::Head(head))),
                    None => return Ok(None),
                },
                State::Fixed(0) | State::Done => {
                    self.state = State::Done;
                    if self.ended {
                        return Ok(None);
                    }
                    self.ended = true;
                    return Ok(Some(Event::End));
                }
                State::Fixed(left) => {
                    let Some((piece, left)) = self.piece(left) else { return Ok(None) };
                    self.state = State::Fixed(left);
                    return Ok(Some(Event::Body(piece)));
                }
                State::ChunkData(left) => {
                    let Some((piece, left)) = self.piece(left) else { return Ok(None) };
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Some(Event::Body(piece)));
                }
                State::UntilClose => {
                    if self.input.is_empty() {
                        return Ok(None);
                    }
                    return Ok(Some(Event::Body(self.input.split().freeze())));
                }
                State::ChunkSize => match self.line()? {
                    None => return Ok(None),
                    Some(line) => {
                        self.state = match chunk_size(&line)? {
                            0 => State::Trailers,
                            size => State::ChunkData(size),
                        }
                    }
                },
                State::ChunkEnd => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::ChunkSize,
                    Some(_) => return Err(HttpError::Chunk),
                },
                State::Trailers => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::Done,
                    Some(_) => {}
                },
            }
        }
    }

    /// The connection ended; `orderly` when with close_notify. Gives the end of a body that only the close delimits.
    pub fn close(&mut self, orderly: bool) -> Result<(), HttpError> {
        match self.state {
            State::Done | State::Fixed(0) => Ok(()),
            State::UntilClose if orderly => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(HttpError::Truncated),
        }
    }

    fn piece(&mut self, left: u64) -> Option<(Bytes, u64)> {
        if self.input.is_empty() {
            return None;
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
        Some((self.input.split_to(take).freeze(), left - take as u64))
    }

    /// A line up to CRLF, taken with it. Bare LF is not a line's end here.
    fn line(&mut self) -> Result<Option<Bytes>, HttpError> {
        match self.input.windows(2).position(|w| w == b"\r\n") {
            Some(at) if at <= LINE_BYTES_MAX => {
                let line = self.input.split_to(at).freeze();
                let _ = self.input.split_to(2);
                Ok(Some(line))
            }
            // One more: it may be the first half of the line's end.
            None if self.input.len() <= LINE_BYTES_MAX + 1 => Ok(None),
            _ => Err(HttpError::Chunk),
        }
    }

    fn head(&mut self) -> Result<Option<ResponseHead>, HttpError> {
        loop {
            // Parse only once the empty line is there: a provider that sends byte by byte costs no more.
            let from = self.scanned.saturating_sub(3);
            let found = self.input.get(from..).unwrap_or_default().windows(4).position(|w| w == b"\r\n\r\n");
            let Some(end) = found.map(|at| from + at + 4) else {
                self.scanned = self.input.len();
                return if self.input.len() > HEAD_BYTES_MAX {
                    Err(HttpError::HeadTooLong)
                } else {
                    Ok(None)
                };
            };
            if end > HEAD_BYTES_MAX {
                return Err(HttpError::HeadTooLong);
            }
            let bytes = self.input.split_to(end);
            self.scanned = 0;
            let head = parse_head(&bytes)?;
            if head.status.is_informational() {
                self.interim += 1;
                if head.status == StatusCode::SWITCHING_PROTOCOLS || self.interim > INTERIM_MAX {
                    return Err(HttpError::Interim);
                }
                continue;
            }
            self.state = framing(&head)?;
            return Ok(Some(head));
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<ResponseHead, HttpError> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut lines);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        _ => return Err(HttpError::Head),
    }
    if response.version != Some(1) && response.version != Some(0) {
        return Err(HttpError::Head);
    }
    let status = response.code.and_then(|c| StatusCode::from_u16(c).ok()).ok_or(HttpError::Head)?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| HttpError::Head)?;
        headers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| HttpError::Head)?);
    }
    Ok(ResponseHead { status, headers })
}

/// RFC 9112 §6.3.
fn framing(head: &ResponseHead) -> Result<State, HttpError> {
    let mut lengths = head.headers.get_all(http::header::CONTENT_LENGTH).iter();
    let mut encodings = head.headers.get_all(http::header::TRANSFER_ENCODING).iter();
    let (length, encoding) = (lengths.next(), encodings.next());
    if lengths.next().is_some() {
        return Err(HttpError::ContentLength);
    }
    if encodings.next().is_some() || (encoding.is_some() && length.is_some()) {
        return Err(HttpError::TransferEncoding);
    }
    if head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED {
        return Ok(State::Done);
    }
    match (length, encoding) {
        (_, Some(value)) if value.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(State::ChunkSize),
        (_, Some(_)) => Err(HttpError::TransferEncoding),
        (Some(value), None) => {
            let digits =
                value.to_str().ok().filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|d| d.parse().ok()).map(State::Fixed).ok_or(HttpError::ContentLength)
        }
        (None, None) => Ok(State::UntilClose),
    }
}

/// `chunk-size [ chunk-ext ]`, RFC 9112 §7.1.
fn chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| HttpError::Chunk)?.trim_end_matches([' ', '\t']);
    if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(HttpError::Chunk);
    }
    u64::from_str_radix(digits, 16).map_err(|_| HttpError::Chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Read {
        status: u16,
        body: Vec<u8>,
        end: bool,
    }

    /// Feeds the pieces, then closes.
    fn read(pieces: &[&[u8]], orderly: bool) -> Result<Read, HttpError> {
        let mut parser = ResponseParser::new();
        let mut got = Read { status: 0, body: vec![], end: false };
        let drain = |parser: &mut ResponseParser, got: &mut Read| -> Result<(), HttpError> {
            while let Some(event) = parser.next()? {
                match event {
                    Event::Head(head) => got.status = head.status.as_u16(),
                    Event::Body(piece) => {
                        assert!(!piece.is_empty());
                        got.body.extend_from_slice(&piece);
                    }
                    Event::End => {
                        assert!(!got.end, "one end");
                        got.end = true;
                    }
                }
            }
            Ok(())
        };
        for piece in pieces {
            parser.feed(piece.to_vec());
            drain(&mut parser, &mut got)?;
        }
        parser.close(orderly)?;
        drain(&mut parser, &mut got)?;
        Ok(got)
    }

    const FIXED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nt: v\r\n\r\n";
    const CLOSED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nhello";

    #[test]
    fn the_longest_line_is_read_wherever_it_is_cut() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (length, good) in [(LINE_BYTES_MAX, true), (LINE_BYTES_MAX + 1, false)] {
            let line = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(length - 2));
            for cut in [length - 1, length, length + 1, length + 2] {
                let mut parser = ResponseParser::new();
                parser.feed(chunked.as_bytes().to_vec());
                assert!(matches!(parser.next(), Ok(Some(Event::Head(_)))));
                parser.feed(line.as_bytes()[..cut].to_vec());
                let first = parser.next();
                let read = match first {
                    Ok(None) => {
                        parser.feed(line.as_bytes()[cut..].to_vec());
                        parser.next()
                    }
                    other => other,
                };
                assert_eq!(matches!(read, Ok(Some(Event::Body(_)))), good, "{length} cut at {cut}: {read:?}");
            }
        }
    }

    #[test]
    fn every_framing_at_every_split_point() {
        for message in [FIXED, CHUNKED, CLOSED] {
            for at in 0..=message.len() {
                let (a, b) = message.split_at(at);
                let got = read(&[a, b], true).unwrap();
                assert_eq!(got, Read { status: 200, body: b"hello".to_vec(), end: true }, "split at {at}");
            }
        }
    }

    #[test]
    fn a_cut_is_never_an_end() {
        for message in [FIXED, CHUNKED, CLOSED] {
            for at in 0..message.len() {
                // An orderly close inside a close-delimited body is a shorter body, by design of HTTP.
                let head_end = message.len() - 5;
                if std::ptr::eq(message, CLOSED) && at >= head_end {
                    assert_eq!(read(&[&message[..at]], false), Err(HttpError::Truncated), "{at}");
                    continue;
                }
                assert_eq!(read(&[&message[..at]], true), Err(HttpError::Truncated), "{at}");
            }
        }
    }

    #[test]
    fn refuses_what_has_two_readings() {
        let cases: [(&[u8], HttpError); 11] = [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", HttpError::ContentLength),
            (b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", HttpError::ContentLength),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n", HttpError::ContentLength),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                HttpError::TransferEncoding,
            ),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", HttpError::TransferEncoding),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", HttpError::Chunk),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n", HttpError::Chunk),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", HttpError::Chunk),
            (b"HTTP/1.1 101 Switching\r\n\r\n", HttpError::Interim),
            (b"SSH-2.0-OpenSSH\r\n\r\n", HttpError::Head),
            (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", HttpError::Head),
        ];
        for (message, expected) in cases {
            assert_eq!(read(&[message], true).unwrap_err(), expected, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let mut parser = ResponseParser::new();
        parser.feed(b"HTTP/1.1 200 OK\r\nx: ".to_vec());
        parser.feed(vec![b'a'; HEAD_BYTES_MAX]);
        assert_eq!(parser.next().unwrap_err(), HttpError::HeadTooLong);
    }

    #[test]
    fn what_follows_the_message_is_not_read() {
        let got = read(&[FIXED, b"HTTP/1.1 500 no\r\n\r\n"], true).unwrap();
        assert_eq!(got, Read { status: 200, body: b"hello".to_vec(), end: true });
    }

    #[test]
    fn answers_without_a_body_end_at_once() {
        let got = read(&[b"HTTP/1.1 204 No Content\r\n\r\n"], false).unwrap();
        assert_eq!(got, Read { status: 204, body: vec![], end: true });
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_message(
            body in proptest::collection::vec(any::<u8>(), 1..300),
            chunk in 1usize..50,
            cut in 1usize..40,
        ) {
            let mut message = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for piece in body.chunks(chunk) {
                message.extend(format!("{:x}\r\n", piece.len()).bytes());
                message.extend(piece);
                message.extend(b"\r\n");
            }
            message.extend(b"0\r\n\r\n");
            let pieces: Vec<&[u8]> = message.chunks(cut).collect();
            prop_assert_eq!(read(&pieces, false).unwrap(), Read { status: 200, body, end: true });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1usize..40) {
            let mut message = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            message.extend(bytes);
            let pieces: Vec<&[u8]> = message.chunks(cut).collect();
            let _ = read(&pieces, true);
        }
    }
}
