//! Where `quorate admin credential` takes a key from: a terminal without echo, a file, or a command's output. Never an
//! argument, never the environment: both can be read by other processes.
//!
//! The bytes go from the descriptor straight into one buffer of fixed size that is erased afterwards. One line end after the
//! key is dropped, no other byte is.
use crate::cli::output::{Failure, Outcome};
use quorate_splitkey::head::PUBLIC_PREFIX_MAX;
use quorate_splitkey::share::SECRET_MAX;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use zeroize::Zeroizing;

/// Longest key with its public prefix and a line end.
const KEY_BYTES_MAX: usize = PUBLIC_PREFIX_MAX + SECRET_MAX + 2;
/// Ctrl-C.
const INTERRUPT: u8 = 3;

#[derive(clap::Args)]
pub(crate) struct KeySource {
    /// Read the key from this file, in place of asking on the terminal
    #[arg(long, value_name = "FILE", conflicts_with = "from_command")]
    from_file: Option<PathBuf>,
    /// Run this with `sh -c` and read the key from its standard output: for a secret manager
    #[arg(long, value_name = "CMD")]
    from_command: Option<String>,
}

impl KeySource {
    /// Reads the key. From then on this process leaves no core dump.
    pub(crate) fn read(&self, route: &str) -> Outcome<Zeroizing<Vec<u8>>> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| {
            Failure::new(
                format!("this process cannot be kept from dumping core: {e}"),
                "check the system's limits",
            )
        })?;
        let key = match (&self.from_file, &self.from_command) {
            (Some(path), _) => {
                let failed =
                    |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()), "check the path");
                bounded(File::open(path).map_err(failed)?).map_err(failed)?
            }
            (None, Some(command)) => from_command(command)?,
            (None, None) => from_terminal(route)?,
        };
        let key = key.ok_or_else(|| {
            Failure::new(
                format!("that is longer than {KEY_BYTES_MAX} bytes"),
                "a key is one line; check that it is the right file or command",
            )
        })?;
        if key.is_empty() {
            return Err(Failure::new("no key was given", "see `quorate admin credential set --help`"));
        }
        Ok(key)
    }
}

#[cfg(test)]
impl KeySource {
    pub(crate) fn file_for_tests(path: PathBuf) -> Self {
        Self { from_file: Some(path), from_command: None }
    }
}

/// All of it, without a last line end; `None` beyond the bound.
fn bounded(mut from: impl Read) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Never grown, so that no copy is left behind.
    let mut buffer = Zeroizing::new(vec![0; KEY_BYTES_MAX + 1]);
    let mut length = 0;
    while let Some(rest @ [_, ..]) = buffer.get_mut(length..) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if length > KEY_BYTES_MAX {
        return Ok(None);
    }
    buffer.truncate(length);
    if buffer.last() == Some(&b'\n') {
        buffer.pop();
        if buffer.last() == Some(&b'\r') {
            buffer.pop();
        }
    }
    Ok(Some(buffer))
}

/// Standard input and error stay the terminal's: a secret manager may have to ask for a passphrase.
fn from_command(command: &str) -> Outcome<Option<Zeroizing<Vec<u8>>>> {
    let failed = |e: std::io::Error| Failure::new(format!("--from-command: {e}"), "run the command by hand");
    let mut child = std::process::Command::new("sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let key = match child.stdout.take() {
        Some(out) => bounded(out).map_err(failed)?,
        None => None,
    };
    let status = child.wait().map_err(failed)?;
    // A command whose output was too long ends by SIGPIPE: that it was too long says more.
    if !status.success() && key.is_some() {
        return Err(Failure::new(
            format!("--from-command ended with {status}"),
            "run the command by hand; its output was not used",
        ));
    }
    Ok(key)
}

/// Puts the terminal back, whatever happens.
struct Silent<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(tty: &'a File) -> std::io::Result<Self> {
        let before = tcgetattr(tty)?;
        let mut silent = before.clone();
        // No signal may end this program while the terminal is silent: Ctrl-C ends the line, and is seen in it.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.local_modes.insert(LocalModes::ICANON | LocalModes::ECHONL);
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(tty, OptionalActions::Flush, &silent)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.tty, OptionalActions::Flush, &self.before);
    }
}

/// One line, from one read: the terminal's line discipline gives whole lines.
struct OneLine<'a>(&'a File, bool);

impl Read for OneLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if std::mem::replace(&mut self.1, true) { Ok(0) } else { self.0.read(buffer) }
    }
}

fn from_terminal(route: &str) -> Outcome<Option<Zeroizing<Vec<u8>>>> {
    let tty = File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    ask(&tty, route)
}

fn no_terminal(error: std::io::Error) -> Failure {
    Failure::new(
        format!("there is no terminal to ask for the key ({error})"),
        "use --from-file FILE, or --from-command CMD with a secret manager",
    )
}

fn ask(mut tty: &File, route: &str) -> Outcome<Option<Zeroizing<Vec<u8>>>> {
    let line = {
        // Silent before it asks: what is typed at once is not shown either.
        let silent = Silent::new(tty).map_err(no_terminal)?;
        write!(tty, "key of route {route} (nothing is shown): ").map_err(no_terminal)?;
        bounded(OneLine(silent.tty, false)).map_err(no_terminal)?
    };
    match &line {
        Some(bytes) if bytes.contains(&INTERRUPT) => {
            let _ = writeln!(tty);
            Err(Failure::new("interrupted", "nothing was changed"))
        }
        _ => Ok(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: Option<PathBuf>, command: Option<&str>) -> Outcome<Zeroizing<Vec<u8>>> {
        KeySource { from_file: file, from_command: command.map(Into::into) }.read("r")
    }

    #[test]
    fn one_line_end_is_dropped_and_nothing_else() {
        let table: [(&[u8], &[u8]); 5] = [
            (b"key\n", b"key"),
            (b"key\r\n", b"key"),
            (b"key", b"key"),
            (b"key\n\n", b"key\n"),
            (b" key ", b" key "),
        ];
        for (given, expected) in table {
            assert_eq!(bounded(given).unwrap().unwrap().as_slice(), expected);
        }
        assert!(bounded(&vec![b'x'; KEY_BYTES_MAX][..]).unwrap().is_some());
        assert!(bounded(&vec![b'x'; KEY_BYTES_MAX + 1][..]).unwrap().is_none());
    }

    #[test]
    fn files_and_commands_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-from-file\n").unwrap();
        assert_eq!(of(Some(path), None).unwrap().as_slice(), b"sk-from-file");
        assert_eq!(of(None, Some("printf 'sk-from-%s' command")).unwrap().as_slice(), b"sk-from-command");
    }

    /// What a terminal shows while somebody types, what is read, and whether it echoes again afterwards.
    fn typed(keys: &'static [u8]) -> (String, Outcome<Option<Zeroizing<Vec<u8>>>>, bool) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let tty = File::options().read(true).write(true).open(name).unwrap();
        let mut screen = File::from(master);
        let person = std::thread::spawn(move || {
            let mut shown = Vec::new();
            let mut piece = [0; 256];
            while !shown.ends_with(b"shown): ") {
                let read = screen.read(&mut piece).unwrap();
                shown.extend_from_slice(&piece[..read]);
            }
            screen.write_all(keys).unwrap();
            // Until the line's own end is shown.
            while !shown.ends_with(b"\n") {
                let read = screen.read(&mut piece).unwrap();
                shown.extend_from_slice(&piece[..read]);
            }
            (String::from_utf8(shown).unwrap(), screen)
        });
        let key = ask(&tty, "r");
        let (shown, _screen) = person.join().unwrap();
        let modes = tcgetattr(&tty).unwrap().local_modes;
        (shown, key, modes.contains(LocalModes::ECHO | LocalModes::ISIG))
    }

    #[test]
    fn a_terminal_shows_nothing_of_the_key_and_echoes_again_afterwards() {
        let (shown, key, echoes) = typed(b"sk-typed-at-the-terminal\n");
        assert_eq!(key.unwrap().unwrap().as_slice(), b"sk-typed-at-the-terminal");
        assert_eq!(shown, "key of route r (nothing is shown): \r\n");
        assert!(echoes);
        let (shown, key, echoes) = typed(b"sk-half\x03");
        assert_eq!(key.unwrap_err().message, "interrupted");
        assert!(!shown.contains("sk-half") && echoes);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        let message = |o: Outcome<Zeroizing<Vec<u8>>>| o.err().unwrap().lines().join("\n");
        assert!(message(of(None, Some("true"))).contains("no key was given"));
        assert!(message(of(None, Some("yes sk-secret"))).contains("longer than"));
        let failed = message(of(None, Some("echo sk-secret; exit 3")));
        assert!(failed.contains("exit status: 3") && !failed.contains("sk-secret"), "{failed}");
        assert!(message(of(Some("/does/not/exist".into()), None)).contains("/does/not/exist"));
    }
}
