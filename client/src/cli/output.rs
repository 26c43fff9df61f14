//! The one place that writes to the terminal.
use crate::error::{Error, chain};
use crate::trust::TrustError;
use std::io::{IsTerminal, Write};

/// What a command gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// A failed command: what failed, then what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One line, lower case.
    pub message: String,
    /// Next steps, one line each.
    pub hints: Vec<String>,
}

impl Failure {
    /// With one hint.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hints: vec![hint.into()] }
    }

    /// The lines as they are written.
    pub fn lines(&self) -> Vec<String> {
        let plain = |text: &str| {
            text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
        };
        let error = std::iter::once(format!("error: {}", plain(&self.message)));
        error
            .chain(self.hints.iter().filter(|h| !h.is_empty()).map(|h| format!("hint: {}", plain(h))))
            .collect()
    }

    pub(crate) fn report(&self) {
        let mut err = std::io::stderr().lock();
        for line in self.lines() {
            let line = match line.split_once(": ").filter(|_| std::io::stderr().is_terminal()) {
                Some(("error", rest)) => format!("\x1b[1;31merror\x1b[0m: {rest}"),
                Some((kind, rest)) => format!("\x1b[1;36m{kind}\x1b[0m: {rest}"),
                None => line,
            };
            let _ = writeln!(err, "quorate: {line}");
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(chain(&error), error.hint())
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::new(chain(&error), error.hint())
    }
}

/// A line of result.
pub(crate) fn line(text: &str) -> Outcome {
    text_out(&format!("{text}\n"))
}

/// A piece of result, shown at once.
pub(crate) fn text_out(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // Whoever reads us (head, less) has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::new(format!("cannot write the result: {e}"), "check where the output goes")),
    }
}

/// A remark beside the result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "quorate: {text}");
}

/// Text of a model or a node for a terminal: no escape sequences.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Reads a file of at most `max` bytes.
pub(crate) fn read(path: &std::path::Path, max: u64) -> Outcome<Vec<u8>> {
    use std::io::Read;
    let failed = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()), "check the path");
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(Failure::new(
            format!("{}: larger than {max} bytes", path.display()),
            "check that it is the right file",
        ));
    }
    Ok(bytes)
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &std::path::Path, text: &str) -> Outcome {
    let failed = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()), "check the folder");
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Darkness, NodeFailure};

    #[test]
    fn messages_are_pinned() {
        let node = |a: &str| NodeFailure { address: a.into(), reason: "TCP connect failed: refused".into() };
        let table = [
            (
                Failure::from(Error::NoNode(vec![node("a:1"), node("b:2")])),
                "error: no node of the trust file could be used: a:1: TCP connect failed: refused; b:2: TCP connect failed: refused\n\
                 hint: check the addresses in the trust file, and on each node whether `quorated` runs",
            ),
            (
                Error::Dark(Darkness {
                    attested: 2,
                    quorum: 3,
                    missing: vec!["n3".into(), "n4 (lapsed)".into()],
                })
                .into(),
                "error: the mesh lacks a quorum: 2 of the 3 nodes it needs are there; missing: n3, n4 (lapsed)\n\
                 hint: start the missing nodes; the mesh comes back by itself. `quorate status` names them",
            ),
            (
                Error::UnknownModel { model: "gpt".into() }.into(),
                "error: no route granted to this client serves the model \"gpt\"\n\
                 hint: `quorate status --routes` lists routes and models",
            ),
            (
                Error::Provider { status: 401, body: "{\"error\":\n\"no\"}".into() }.into(),
                "error: the provider answered 401: {\"error\":\"no\"}\n\
                 hint: the provider refused the route's credential: tell your admins",
            ),
            (
                Error::NoPairLeft { route: "openai".into() }.into(),
                "error: route \"openai\": every relay and keyer lack their shares of the key, or are barred to this client or suspended because requests failed over them\n\
                 hint: try again in a minute; if it stays so, `quorate status` names nodes without shares; if there are none, the provider may refuse the key itself: admins try each pair with `quorate admin credential check`, then `credential rotate`, or `credential lift` once the cause is gone",
            ),
            (
                Error::CredentialHeader { name: "x-api-key".into() }.into(),
                "error: the application set the header \"x-api-key\", but the route's key is the mesh's to supply\n\
                 hint: leave the key out of the application and its environment: where the SDK insists on one, any word will do with `quorate serve`",
            ),
        ];
        for (failure, expected) in table {
            assert_eq!(failure.lines().join("\n"), expected);
        }
    }

    #[test]
    fn a_terminal_gets_no_escape_sequences() {
        assert_eq!(printable("a\x1b[31mb\nc\x07"), "a[31mb\nc");
    }

    #[test]
    fn tables_align() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("node", "x"), row("n", "yy")]), "node  x\nn     yy\n");
    }
}
