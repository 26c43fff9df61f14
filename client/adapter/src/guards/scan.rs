//! The texts of a JSON document: every string that a person or a model may have written, decoded, with the place where it stands.
//!
//! One pass over the bytes, no recursion. **Reads** each string value, escapes undone; keys too, where an object is free-form
//! (arguments of tools, metadata). **Passes over** what the vendors' schemas fix: ids, types, names of models and roles, signatures,
//! and base64 of images and sound; base64 whose media type is text is decoded and read. Editing a text replaces its own bytes and no
//! other.
use bytes::Bytes;
use std::ops::Range;

/// Objects and arrays within one another: no vendor's form comes near, and `serde_json` gives up there too.
const DEPTH_MAX: usize = 128;
/// Strings of one document.
const TEXTS_MAX: usize = 1_000_000;

/// Shorter numbers are none that a guard looks for.
const NUMBER_DIGITS_MIN: usize = 9;

/// Keys whose strings are no text, except in free-form objects.
const FIXED: [&str; 32] = [
    "id",
    "type",
    "role",
    "model",
    "object",
    "call_id",
    "container_id",
    "content_type",
    "created_at",
    "detail",
    "encrypted_content",
    "file_id",
    "finishReason",
    "finish_reason",
    "format",
    "item_id",
    "media_type",
    "mimeType",
    "mime_type",
    "modelVersion",
    "obfuscation",
    "previous_response_id",
    "reasoning_effort",
    "responseId",
    "signature",
    "status",
    "stop_reason",
    "system_fingerprint",
    "thoughtSignature",
    "tool_call_id",
    "toolUseId",
    "tool_use_id",
];
/// Keys below which an object may have any form.
const FREE: [&str; 6] = ["input", "args", "response", "arguments", "json", "metadata"];

/// Why a document's texts cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not JSON, or not UTF-8.
    NotJson,
    /// Deeper, or of more strings, than the bounds.
    TooMuch,
}

/// One text. Content: no `Debug`.
pub(crate) struct Text {
    /// Decoded, as it is after edits.
    pub(crate) text: String,
    /// Its string in the document, quotes included. `None`: it cannot be replaced in place.
    at: Option<Range<usize>>,
    changed: bool,
    /// Of a message that a person sent.
    pub(crate) user: bool,
    /// Texts of one path and index go on from one another in a stream.
    pub(crate) path: u64,
}

impl Text {
    /// Whether it can be replaced.
    pub(crate) fn is_editable(&self) -> bool {
        self.at.is_some()
    }

    /// Puts another text there.
    pub(crate) fn set(&mut self, text: String) {
        self.changed |= self.text != text;
        self.text = text;
    }
}

/// The texts of a document, in order.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) all: Vec<Text>,
}

impl Texts {
    /// Of one document.
    pub(crate) fn of(document: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(document).map_err(|_| Unreadable::NotJson)?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| Unreadable::NotJson)?;
        let mut scan = Scan { text, at: 0, stack: vec![], objects: vec![], strings: vec![] };
        scan.run()?;
        Ok(Self { all: scan.texts() })
    }

    /// Of the events of a stream. None of them can be replaced: pieces of a word stand in many events.
    pub(crate) fn of_events(stream: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(stream).map_err(|_| Unreadable::NotJson)?;
        let mut all = Vec::new();
        for data in events(text) {
            let of_one = Self::of(data.as_bytes())?.all;
            all.extend(of_one.into_iter().map(|text| Text { at: None, ..text }));
            if all.len() > TEXTS_MAX {
                return Err(Unreadable::TooMuch);
            }
        }
        Ok(Self { all })
    }

    /// Of what is no JSON: one text, which cannot be replaced.
    pub(crate) fn of_plain(document: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(document).ok()?.to_owned();
        Some(Self { all: vec![Text { text, at: None, changed: false, user: false, path: 0 }] })
    }

    /// Whether one was replaced.
    pub(crate) fn is_changed(&self) -> bool {
        self.all.iter().any(|t| t.changed)
    }

    /// The document with what was replaced; every other byte as it was.
    pub(crate) fn apply(&self, document: &Bytes) -> Bytes {
        let mut out = Vec::with_capacity(document.len());
        let mut from = 0;
        for text in self.all.iter().filter(|t| t.changed) {
            let Some(at) = &text.at else { continue };
            out.extend_from_slice(document.get(from..at.start).unwrap_or_default());
            out.extend_from_slice(serde_json::Value::from(text.text.as_str()).to_string().as_bytes());
            from = at.end;
        }
        if from == 0 {
            return document.clone();
        }
        out.extend_from_slice(document.get(from..).unwrap_or_default());
        out.into()
    }
}

/// The data of each event that is not empty and not the mark of the end (WHATWG server-sent events).
pub(crate) fn events(stream: &str) -> Vec<String> {
    let (mut all, mut data) = (Vec::new(), String::new());
    let end = |data: &mut String, all: &mut Vec<String>| {
        let data = std::mem::take(data);
        if !data.is_empty() && data != "[DONE]" {
            all.push(data);
        }
    };
    let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream);
    let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
    for line in stream.split('\n') {
        if line.is_empty() {
            end(&mut data, &mut all);
        } else if let Some(value) = line.strip_prefix("data:") {
            if !data.is_empty() {
                data.push('\n');
            }
            data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
    }
    end(&mut data, &mut all);
    all
}

/// The items of a JSON array as a stream of events. `None`: it is no array.
pub(crate) fn as_events(array: &[u8]) -> Option<String> {
    let mut rest = std::str::from_utf8(array).ok()?.trim().strip_prefix('[')?.strip_suffix(']')?;
    let mut out = String::with_capacity(array.len() + 64);
    while !rest.trim_start().is_empty() {
        let mut items = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        items.next()?.ok()?;
        let (item, after) = rest.split_at_checked(items.byte_offset())?;
        out.push_str("data: ");
        // A line's end in JSON stands between its words only.
        out.extend(item.trim().chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
        out.push_str("\n\n");
        rest = match after.trim_start().strip_prefix(',') {
            Some(more) if !more.trim_start().is_empty() => more,
            Some(_) => return None,
            None if after.trim_start().is_empty() => "",
            None => return None,
        };
    }
    Some(out)
}

/// An object or array that is open.
struct Open {
    /// Which object; the nearest one around, for an array.
    object: usize,
    is_object: bool,
    /// Under which key the next value stands.
    key: Option<String>,
    free: bool,
    path: u64,
}

/// What the strings beside a string say of it.
#[derive(Default)]
struct Object {
    /// The object around.
    parent: Option<usize>,
    /// Under which key it stands there.
    key: String,
    kind: Option<String>,
    role: Option<String>,
    media: Option<String>,
    index: u64,
}

/// A string value, or a free-form object's key or long number.
struct Found {
    text: String,
    at: Range<usize>,
    object: usize,
    key: String,
    is_key: bool,
    free: bool,
    path: u64,
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    stack: Vec<Open>,
    objects: Vec<Object>,
    strings: Vec<Found>,
}

impl Scan<'_> {
    /// It is JSON: what is looked for here is only where strings stand.
    fn run(&mut self) -> Result<(), Unreadable> {
        self.objects.push(Object::default());
        let mut wants_key = false;
        while let Some(byte) = self.text.as_bytes().get(self.at).copied() {
            match byte {
                b'{' | b'[' => {
                    self.open(byte == b'{')?;
                    wants_key = byte == b'{';
                    self.at += 1;
                }
                b'}' | b']' => {
                    let closed = self.stack.pop().ok_or(Unreadable::NotJson)?;
                    if closed.is_object != (byte == b'}') {
                        return Err(Unreadable::NotJson);
                    }
                    wants_key = false;
                    self.at += 1;
                }
                b',' => {
                    wants_key = self.stack.last().is_some_and(|open| open.is_object);
                    self.at += 1;
                }
                b'"' => {
                    let (text, at) = self.string()?;
                    if wants_key {
                        self.key(text, at)?;
                        wants_key = false;
                    } else {
                        self.value(text, at)?;
                    }
                }
                b'0'..=b'9' => self.number()?,
                _ => self.at += 1,
            }
        }
        if self.stack.is_empty() { Ok(()) } else { Err(Unreadable::NotJson) }
    }

    fn open(&mut self, is_object: bool) -> Result<(), Unreadable> {
        if self.stack.len() >= DEPTH_MAX || self.objects.len() > TEXTS_MAX {
            return Err(Unreadable::TooMuch);
        }
        let depth = self.stack.len();
        let (around, key, free, path) = match self.stack.last() {
            Some(open) => (Some(open.object), open.key.clone(), open.free, open.path),
            None => (None, None, false, 0),
        };
        let name = key.clone().unwrap_or_default();
        // At the top `input` holds messages and `response` an answer.
        let is_field = self.stack.last().is_some_and(|open| open.is_object);
        let free = free || (is_field && FREE.contains(&name.as_str()) && (depth > 1 || name == "metadata"));
        let path =
            name.bytes().fold(path, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)) + 1;
        let object = if is_object {
            self.objects.push(Object { parent: around, key: name, ..Object::default() });
            self.objects.len() - 1
        } else {
            around.unwrap_or(0)
        };
        // Within an array the values stand under the array's key.
        let key = if is_object { None } else { key };
        self.stack.push(Open { object, is_object, key, free, path });
        Ok(())
    }

    fn key(&mut self, text: String, at: Range<usize>) -> Result<(), Unreadable> {
        let Some(open) = self.stack.last_mut() else { return Err(Unreadable::NotJson) };
        open.key = Some(text.clone());
        if open.free {
            let (object, path) = (open.object, open.path);
            self.found(Found { text, at, object, key: String::new(), is_key: true, free: true, path })?;
        }
        Ok(())
    }

    fn value(&mut self, text: String, at: Range<usize>) -> Result<(), Unreadable> {
        let (object, key, free, path) = match self.stack.last() {
            Some(open) => (open.object, open.key.clone().unwrap_or_default(), open.free, open.path),
            None => (0, String::new(), true, 0),
        };
        if let Some(around) = self.objects.get_mut(object) {
            match key.as_str() {
                "type" => around.kind = Some(text.clone()),
                "role" => around.role = Some(text.clone()),
                "media_type" | "mimeType" | "mime_type" => around.media = Some(text.clone()),
                _ => {}
            }
        }
        self.found(Found { text, at, object, key, is_key: false, free, path })
    }

    fn found(&mut self, found: Found) -> Result<(), Unreadable> {
        self.strings.push(found);
        if self.strings.len() > TEXTS_MAX { Err(Unreadable::TooMuch) } else { Ok(()) }
    }

    /// Indexes of choices and blocks keep their texts apart.
    fn number(&mut self) -> Result<(), Unreadable> {
        let start = self.at;
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value: u64 = rest.get(..length).and_then(|n| n.parse().ok()).unwrap_or(0);
        self.at += length.max(1);
        if let Some(Open { object, key: Some(key), .. }) = self.stack.last()
            && matches!(key.as_str(), "index" | "output_index" | "content_index")
            && let Some(around) = self.objects.get_mut(*object)
        {
            around.index = around.index.wrapping_mul(4099).wrapping_add(value.wrapping_add(1));
        }
        // A card's number may be a number, among arguments.
        match self.stack.last().filter(|open| open.free && length >= NUMBER_DIGITS_MIN) {
            Some(Open { object, path, .. }) => {
                let (text, at) = (rest.get(..length).unwrap_or_default().to_owned(), start..self.at);
                let (object, path) = (*object, *path);
                self.found(Found { text, at, object, key: String::new(), is_key: true, free: true, path })
            }
            None => Ok(()),
        }
    }

    /// The string that begins here, decoded.
    fn string(&mut self) -> Result<(String, Range<usize>), Unreadable> {
        let start = self.at;
        let mut out = String::new();
        let mut at = start + 1;
        loop {
            let rest = self.text.get(at..).ok_or(Unreadable::NotJson)?;
            let end = rest.find(['"', '\\']).ok_or(Unreadable::NotJson)?;
            out.push_str(rest.get(..end).unwrap_or_default());
            at += end;
            if self.text.as_bytes().get(at) == Some(&b'"') {
                self.at = at + 1;
                return Ok((out, start..self.at));
            }
            let (char, length) =
                escape(self.text.get(at..).unwrap_or_default()).ok_or(Unreadable::NotJson)?;
            out.push(char);
            at += length;
        }
    }

    fn texts(self) -> Vec<Text> {
        let objects = self.objects;
        let texts = self.strings.into_iter().filter_map(|found| {
            let object = objects.get(found.object)?;
            let (text, editable) = match binary(&found, object) {
                Some(Binary::Opaque) => return None,
                Some(Binary::Text(text)) => (text, false),
                None if !found.free && FIXED.contains(&found.key.as_str()) => return None,
                // Two keys that read alike would be one, and a number is none without digits.
                None => (found.text, !found.is_key),
            };
            let (user, index) = around(&objects, found.object);
            let path = found
                .key
                .bytes()
                .fold(found.path, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            let path = path.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Some(Text { text, at: editable.then_some(found.at), changed: false, user, path })
        });
        texts.collect()
    }
}

/// Whether a person sent the message around, and the indexes on the way there.
fn around(objects: &[Object], from: usize) -> (bool, u64) {
    let (mut at, mut index, mut user) = (Some(from), 0_u64, None);
    for _ in 0..=DEPTH_MAX {
        let Some(object) = at.and_then(|at| objects.get(at)) else { break };
        index = index.wrapping_mul(31).wrapping_add(object.index);
        user = user.or(object.role.as_deref().map(|role| role == "user"));
        at = object.parent;
    }
    (user.unwrap_or(false), index)
}

enum Binary {
    /// Of images, sound, or sealed by a provider.
    Opaque,
    /// A file of text.
    Text(String),
}

/// Base64, by what stands beside it.
fn binary(found: &Found, object: &Object) -> Option<Binary> {
    if found.is_key {
        return None;
    }
    let kind = object.kind.as_deref();
    let (media, base64) = match found.text.strip_prefix("data:").and_then(|url| url.split_once(";base64,")) {
        Some((media, base64)) => (Some(media), base64),
        None => {
            let by_key = match found.key.as_str() {
                "data" if kind == Some("redacted_thinking") => return Some(Binary::Opaque),
                "data" => {
                    kind == Some("base64")
                        || matches!(object.key.as_str(), "inlineData" | "inline_data" | "input_audio")
                }
                "bytes" => object.key == "source",
                "b64_json" => true,
                _ => false,
            };
            if found.free || !by_key {
                return None;
            }
            (object.media.as_deref(), found.text.as_str())
        }
    };
    let media = media.unwrap_or_default().to_ascii_lowercase();
    let is_text =
        media.starts_with("text/") || ["json", "xml", "yaml", "csv"].iter().any(|kind| media.contains(kind));
    if !is_text {
        // What does not even look like base64 is read like any other.
        return looks_like_base64(base64).then_some(Binary::Opaque);
    }
    let decoded = decode(base64)?;
    Some(Binary::Text(String::from_utf8_lossy(&decoded).into_owned()))
}

fn looks_like_base64(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_' | b'\n' | b'\r'))
}

/// Base64 in either alphabet, whatever stands between.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' | b'\n' | b'\r' | b' ' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
        }
    }
    Some(out)
}

/// An escape of RFC 8259 §7 and its length; half a pair of surrogates is the replacement character.
fn escape(text: &str) -> Option<(char, usize)> {
    let unit = |text: &str| {
        let hex = text.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(hex, 16).ok()
    };
    let char = match text.as_bytes().get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let first = unit(text)?;
            if (0xd800..0xdc00).contains(&first)
                && let Some(second) = text.get(6..).and_then(unit).filter(|s| (0xdc00..0xe000).contains(s))
            {
                let char = char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))?;
                return Some((char, 12));
            }
            return Some((char::from_u32(first).unwrap_or('\u{fffd}'), 6));
        }
        _ => return None,
    };
    Some((char, 2))
}

/// Escapes undone once more, where there are any: tool arguments are JSON within JSON.
pub(crate) fn unescaped(text: &str) -> Option<String> {
    if !text.contains('\\') {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (char, length) = escape(from).unwrap_or(('\\', 1));
        out.push(char);
        rest = from.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(document: &str) -> Vec<String> {
        Texts::of(document.as_bytes()).unwrap().all.into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn texts_of_every_dialect_are_found_and_nothing_else() {
        let openai = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"},
            {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]},
            {"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"id\":1}"}}]},
            {"role":"tool","tool_call_id":"call_1","content":"r"}],"metadata":{"k":"v"},"stop":["x"],"user":"u"}"#;
        assert_eq!(texts(openai), ["s", "t", "f", "{\"id\":1}", "r", "k", "v", "x", "u"]);
        let anthropic = r#"{"model":"m","system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":[
            {"type":"document","source":{"type":"text","media_type":"text/plain","data":"plain"}},
            {"source":{"data":"c2VjcmV0","media_type":"text/plain","type":"base64"},"type":"document"},
            {"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}},
            {"type":"tool_use","id":"toolu_1","name":"f","input":{"id":"i","deep":[{"data":"d"}]}},
            {"type":"thinking","thinking":"h","signature":"sig"},
            {"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"r"}]}]}]}"#;
        assert_eq!(texts(anthropic), ["s", "plain", "secret", "f", "id", "i", "deep", "data", "d", "h", "r"]);
        let gemini = r#"{"systemInstruction":{"parts":[{"text":"s"}]},"contents":[{"role":"user","parts":[{"text":"t"},
            {"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}},{"functionResponse":{"name":"f","response":{"id":"i"}}},
            {"functionCall":{"name":"g","args":{"type":"a"}}}]}]}"#;
        assert_eq!(texts(gemini), ["s", "t", "f", "id", "i", "g", "type", "a"]);
        let responses = r#"{"model":"m","instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"t"}]},
            {"type":"function_call_output","call_id":"call_1","output":"o"}]}"#;
        assert_eq!(texts(responses), ["i", "t", "o"]);
        let bedrock = r#"{"messages":[{"role":"user","content":[{"text":"t"},{"image":{"format":"png","source":{"bytes":"iVBO"}}},
            {"toolResult":{"toolUseId":"x","content":[{"json":{"id":"i"}}]}}]}]}"#;
        assert_eq!(texts(bedrock), ["t", "id", "i"]);
    }

    #[test]
    fn an_array_is_the_events_of_its_items() {
        let events = as_events(b" [{\"a\":\n1},\r\n {\"b\":\"],\"}]\n").unwrap();
        assert_eq!(events, "data: {\"a\": 1}\n\ndata: {\"b\":\"],\"}\n\n");
        assert_eq!(as_events(b"[]").as_deref(), Some(""));
        for bad in ["{}", "[1,]", "[1 2]", "[1]x", "[,1]", "["] {
            assert_eq!(as_events(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn escapes_are_undone_and_only_what_changed_is_written() {
        let document =
            Bytes::from_static(br#"{ "a" : "\u0041\"\\\ud83d\ude00\ud800x" ,"b":["one" , 1.50,"two"]}"#);
        let mut texts = Texts::of(&document).unwrap();
        assert_eq!(texts.all[0].text, "A\"\\\u{1f600}\u{fffd}x");
        assert_eq!(texts.apply(&document), document);
        texts.all[1].set("one".into());
        assert!(!texts.is_changed());
        texts.all[1].set("1\"\n".into());
        assert_eq!(
            &texts.apply(&document)[..],
            br#"{ "a" : "\u0041\"\\\ud83d\ude00\ud800x" ,"b":["1\"\n" , 1.50,"two"]}"#
        );
    }

    #[test]
    fn what_is_no_json_or_too_deep_is_refused() {
        for bad in ["no json", "", "{", "}", "{\"a\":\"", "[}", "\"\\x\"", "\"\\u00\""] {
            assert_eq!(Texts::of(bad.as_bytes()).err(), Some(Unreadable::NotJson), "{bad}");
        }
        assert_eq!(Texts::of(b"\"\xff\"").err(), Some(Unreadable::NotJson));
        let deep = "[".repeat(129) + &"]".repeat(129);
        assert_eq!(Texts::of(deep.as_bytes()).err(), Some(Unreadable::TooMuch));
    }

    #[test]
    fn pieces_of_a_stream_have_the_path_of_what_they_go_on_from() {
        let stream = "event: x\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}}]}\r\n\r\ndata: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"c\"}}]}\n\ndata: [DONE]\n\n";
        let texts = Texts::of_events(stream.as_bytes()).unwrap().all;
        let of: Vec<&str> = texts.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(of, ["a", "b", "c"]);
        assert!(texts[0].path == texts[2].path && texts[0].path != texts[1].path);
        assert!(texts.iter().all(|t| !t.is_editable()));
    }

    #[test]
    fn whose_message_it_is_does_not_depend_on_the_order_of_keys() {
        let document =
            r#"{"messages":[{"content":[{"text":"a"}],"role":"user"},{"role":"assistant","content":"b"}]}"#;
        let users: Vec<bool> = Texts::of(document.as_bytes()).unwrap().all.iter().map(|t| t.user).collect();
        assert_eq!(users, [true, false]);
    }

    #[test]
    fn base64_in_either_alphabet() {
        assert_eq!(decode("c2Vj\ncmV0").as_deref(), Some(&b"secret"[..]));
        assert_eq!(decode("-_-_").as_deref(), decode("+/+/").as_deref());
        assert_eq!(decode("*"), None);
    }
}
