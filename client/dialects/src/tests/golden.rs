//! Golden files: `golden/{requests,answers,streams}/CASE/DIALECT.*` is what a vendor's documentation shows,
//! `DIALECT-to-OTHER.*` what comes of it. `UPDATE_GOLDEN=1 cargo test` rewrites them, for review.
use super::{call, endpoint, stamp, upstream};
use crate::error::DialectError;
use crate::eventstream::{self, Frames};
use crate::{AnswerTranslator, Call, Dialect, Endpoint, Operation, TargetRoute};
use bytes::Bytes;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Compares with a file, or writes it.
fn check(path: &Path, seen: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, seen).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(expected == seen, "{} differs; seen:\n{seen}", path.display());
}

fn cases(kind: &str) -> Vec<PathBuf> {
    let mut cases: Vec<_> = fs::read_dir(golden().join(kind)).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

fn pairs() -> impl Iterator<Item = (Dialect, Dialect)> {
    Dialect::ALL
        .into_iter()
        .flat_map(|a| Dialect::ALL.into_iter().map(move |b| (a, b)))
        .filter(|(a, b)| a != b)
}

/// Indents compact JSON.
fn pretty(text: &str) -> String {
    let (mut out, mut depth, mut string, mut escaped) = (String::new(), 0_usize, false, false);
    for char in text.chars() {
        if string {
            out.push(char);
            (string, escaped) = (escaped || char != '"', !escaped && char == '\\');
            continue;
        }
        match char {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => string = char == '"',
        }
        let line = |out: &mut String| {
            out.push('\n');
            out.push_str(&"  ".repeat(depth));
        };
        match char {
            '}' | ']' if out.ends_with(['{', '[']) => out.push(char),
            '}' | ']' => {
                line(&mut out);
                out.push(char);
            }
            ',' => {
                out.push(char);
                line(&mut out);
            }
            ':' => out.push_str(": "),
            _ => {
                if out.ends_with(['{', '[']) {
                    line(&mut out);
                    // the bracket itself has raised the depth by one already
                    if matches!(char, '{' | '[') {
                        out.truncate(out.len() - 2);
                    }
                }
                out.push(char);
            }
        }
    }
    out.push('\n');
    out
}

#[test]
fn requests() {
    for case in cases("requests") {
        for (from, to) in pairs() {
            let body = Bytes::from(fs::read(case.join(format!("{from}.json"))).unwrap());
            let stream = case.ends_with("tools");
            let call = Call::read(endpoint(from, stream), body).unwrap();
            let seen = match call.for_route(&TargetRoute::new(to, upstream(to))) {
                Err(refusal) => format!("refused: {refusal}\n"),
                Ok(request) => {
                    assert!(!request.passthrough);
                    let mut text = format!("POST {}\n", request.path);
                    for (name, value) in &request.headers {
                        writeln!(text, "{name}: {value}").unwrap();
                    }
                    text + "\n" + &pretty(std::str::from_utf8(&request.body).unwrap())
                }
            };
            check(&case.join(format!("{from}-to-{to}.txt")), &seen);
        }
    }
}

#[test]
fn answers() {
    for case in cases("answers") {
        for (from, to) in pairs() {
            let body = Bytes::from(fs::read(case.join(format!("{from}.json"))).unwrap());
            let target = TargetRoute::new(from, upstream(from));
            let mut translator = AnswerTranslator::new(&call(to, false), &target, stamp());
            let answer = translator.whole(200, &[], body).unwrap();
            let seen = pretty(std::str::from_utf8(&answer.body).unwrap());
            let seen = format!("{:?}\n\n{seen}", translator.outcome());
            check(&case.join(format!("{from}-to-{to}.txt")), &seen);
        }
    }
}

/// A provider's bytes. Frames are binary: their files hold a line each.
fn stream_of(case: &Path, dialect: Dialect) -> Vec<u8> {
    if dialect != Dialect::Bedrock {
        return fs::read(case.join(format!("{dialect}.sse"))).unwrap();
    }
    let mut out = Vec::new();
    for line in fs::read_to_string(case.join("bedrock.frames")).unwrap().lines() {
        let (kind, payload) = line.split_once(' ').unwrap();
        match kind.strip_prefix('!') {
            Some(kind) => eventstream::write_exception(&mut out, kind, payload),
            None => eventstream::write_event(&mut out, kind, payload),
        }
    }
    out
}

fn show(dialect: Dialect, bytes: &[u8]) -> String {
    if dialect != Dialect::Bedrock {
        return String::from_utf8(bytes.to_vec()).unwrap();
    }
    let (mut frames, mut seen) = (Frames::default(), Vec::new());
    frames.feed(bytes, &mut seen).unwrap();
    frames.finish().unwrap();
    let line = |f: &eventstream::Frame| {
        let mark = if f.message_type == "exception" { "!" } else { "" };
        format!("{mark}{} {}\n", f.kind, String::from_utf8_lossy(&f.payload))
    };
    seen.iter().map(line).collect()
}

/// Feeds a stream in pieces.
fn run(
    from: Dialect,
    to: Dialect,
    pieces: &[&[u8]],
) -> (Vec<u8>, AnswerTranslator, Result<(), DialectError>) {
    let target = TargetRoute::new(from, upstream(from));
    let mut translator = AnswerTranslator::new(&call(to, true), &target, stamp());
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&translator.feed(piece).unwrap());
    }
    let end = translator.finish().map(|last| out.extend_from_slice(&last));
    (out, translator, end)
}

#[test]
fn streams() {
    for case in cases("streams") {
        for (from, to) in pairs() {
            let stream = stream_of(&case, from);
            let (out, translator, end) = run(from, to, &[&stream]);
            end.unwrap();
            let seen = format!("{}# {:?}\n", show(to, &out), translator.outcome());
            check(&case.join(format!("{from}-to-{to}.txt")), &seen);
        }
    }
}

#[test]
fn streams_cut_at_every_byte() {
    for case in cases("streams") {
        for from in Dialect::ALL {
            let stream = stream_of(&case, from);
            for to in Dialect::ALL {
                let (whole, translator, end) = run(from, to, &[&stream]);
                end.unwrap();
                if from == to {
                    assert!(whole == stream, "{from} passes untouched");
                }
                let outcome = translator.outcome().clone();
                for cut in 0..=stream.len() {
                    let (first, second) = stream.split_at(cut);
                    let (out, translator, end) = run(from, to, &[first, second]);
                    end.unwrap();
                    assert!(out == whole, "{} {from} to {to}, cut at {cut}", case.display());
                    assert_eq!(translator.outcome(), &outcome, "{from} to {to}, cut at {cut}");
                }
                let bytes: Vec<&[u8]> = stream.chunks(1).collect();
                let (out, ..) = run(from, to, &bytes);
                assert!(out == whole, "{from} to {to}, byte by byte");
            }
        }
    }
}

#[test]
fn a_stream_cut_short_is_truncated() {
    for from in Dialect::ALL {
        let stream = stream_of(&golden().join("streams/tools"), from);
        // all but what comes after the reason to stop
        let half = &stream[..stream.len() / 2];
        for to in Dialect::ALL {
            let (.., end) = run(from, to, &[half]);
            assert_eq!(end, Err(DialectError::Truncated), "{from} to {to}");
        }
    }
}

#[test]
fn errors() {
    for (from, to) in pairs() {
        let text = fs::read_to_string(golden().join(format!("errors/{from}.txt"))).unwrap();
        let (head, body) = text.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let status: u16 = lines.next().unwrap().parse().unwrap();
        let pair = |line: &str| line.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let headers: Vec<_> = lines.map(pair).collect();
        let target = TargetRoute::new(from, upstream(from));
        let mut translator = AnswerTranslator::new(&call(to, true), &target, stamp());
        assert!(!translator.head(status, &headers).stream);
        let answer = translator.whole(status, &headers, Bytes::from(body.trim().to_owned())).unwrap();
        let mut seen = format!("{}\n", answer.status);
        for (name, value) in &answer.headers {
            writeln!(seen, "{name}: {value}").unwrap();
        }
        seen = seen + "\n" + &pretty(std::str::from_utf8(&answer.body).unwrap());
        check(&golden().join(format!("errors/{from}-to-{to}.txt")), &seen);
    }
}

/// A caller of OpenAI Responses, at routes of the other dialects.
#[test]
fn responses() {
    let root = golden().join("responses");
    let body = Bytes::from(fs::read(root.join("request.json")).unwrap());
    let endpoint = || Endpoint { operation: Operation::Responses, model: None, json_array: false };
    let asked = Call::read(endpoint(), body).unwrap();
    let short = r#"{"model":"alias","input":"hi","stream":true}"#;
    let streamed = Call::read(endpoint(), Bytes::from_static(short.as_bytes())).unwrap();
    for to in [Dialect::Anthropic, Dialect::Gemini, Dialect::Bedrock] {
        let target = TargetRoute::new(to, upstream(to));
        let request = asked.for_route(&target).unwrap();
        let seen =
            format!("POST {}\n\n{}", request.path, pretty(std::str::from_utf8(&request.body).unwrap()));
        check(&root.join(format!("to-{to}.txt")), &seen);
        for case in ["tools", "thinking"] {
            let body = Bytes::from(fs::read(golden().join(format!("answers/{case}/{to}.json"))).unwrap());
            let answer = AnswerTranslator::new(&asked, &target, stamp()).whole(200, &[], body).unwrap();
            let seen = pretty(std::str::from_utf8(&answer.body).unwrap());
            check(&root.join(format!("{case}-from-{to}.txt")), &seen);
            let stream = stream_of(&golden().join("streams").join(case), to);
            let run = |cut: usize| {
                let (first, second) = stream.split_at(cut);
                let mut translator = AnswerTranslator::new(&streamed, &target, stamp());
                let mut out = translator.feed(first).unwrap().to_vec();
                out.extend_from_slice(&translator.feed(second).unwrap());
                out.extend_from_slice(&translator.finish().unwrap());
                out
            };
            let whole = run(0);
            let seen = std::str::from_utf8(&whole).unwrap();
            check(&root.join(format!("{case}-stream-from-{to}.txt")), seen);
            assert!((0..stream.len()).all(|cut| run(cut) == whole), "{case} from {to}");
        }
    }
}
