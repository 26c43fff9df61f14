//! Bounds how many lines of trace one place in the code writes: what a stranger can trigger, it can trigger as fast as it sends, and
//! a journal that is full or that threw the rest away hides more than a line that was left out.
//!
//! **Decides**: of one place, and of one [`WHO`] that its lines name, [`LINES`] go out in [`WINDOW`]; the rest are counted, and the
//! count is a line of its own when the window ends. So a peer that floods leaves room for what the same place says of others.
//! **Assumes** that debug and trace lines were asked for: they pass. **Bounds** its own memory: places are as many as the program
//! has, and of each at most [`WHOS_MAX`] are told apart.
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place about one party in a window.
pub const LINES: u32 = 20;
/// How long a window lasts, from its first line on.
pub const WINDOW: Duration = Duration::from_secs(30);
/// Fields that say whom a line is about.
pub const WHO: [&str; 5] = ["node", "leader", "peer", "from", "client"];
/// Parties that are told apart at one place; all others share a window.
pub const WHOS_MAX: usize = 16;
/// Between two looks at which windows ended.
const LOOK: Duration = Duration::from_secs(5);

/// Whose window it is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    place: Identifier,
    /// Hash of the party that the line names; `None` where it names none, and for those beyond the bound.
    who: Option<u64>,
}

struct Window {
    metadata: &'static Metadata<'static>,
    begun: Instant,
    written: u32,
    left_out: u64,
}

/// Lines that did not go out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    place: &'static str,
    target: &'static str,
    count: u64,
}

#[derive(Default)]
struct Windows(Mutex<HashMap<Key, Window>>);

impl Windows {
    fn all(&self) -> MutexGuard<'_, HashMap<Key, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a line goes out. The count of a window that ended unnoticed starts over with the line, and is added to the next
    /// summary.
    fn admit(&self, metadata: &'static Metadata<'static>, who: Option<u64>, now: Instant) -> bool {
        let mut all = self.all();
        let mut key = Key { place: metadata.callsite(), who };
        if who.is_some() && !all.contains_key(&key) {
            let known = all.keys().filter(|k| k.place == key.place && k.who.is_some()).count();
            if known >= WHOS_MAX {
                key.who = None;
            }
        }
        let window =
            all.entry(key).or_insert_with(|| Window { metadata, begun: now, written: 0, left_out: 0 });
        if now.saturating_duration_since(window.begun) >= WINDOW {
            window.begun = now;
            window.written = 0;
        }
        if window.written < LINES {
            window.written += 1;
            return true;
        }
        window.left_out = window.left_out.saturating_add(1);
        false
    }

    /// Forgets the windows that ended; says what was left out in them, a count for each place.
    fn ended(&self, now: Instant) -> Vec<LeftOut> {
        let mut out: Vec<LeftOut> = Vec::new();
        self.all().retain(|_, window| {
            let lasts = now.saturating_duration_since(window.begun) < WINDOW;
            if !lasts && window.left_out > 0 {
                let (place, target) = (window.metadata.name(), window.metadata.target());
                match out.iter_mut().find(|o| (o.place, o.target) == (place, target)) {
                    Some(same) => same.count = same.count.saturating_add(window.left_out),
                    None => out.push(LeftOut { place, target, count: window.left_out }),
                }
            }
            lasts
        });
        out
    }
}

/// The layer. Put it around whatever writes lines; clones share their counts.
#[derive(Clone, Default)]
pub struct BoundedLines(Arc<Windows>);

impl BoundedLines {
    /// Starts the thread that says what was left out. It ends with the last clone.
    pub fn start() -> std::io::Result<Self> {
        let bounded = Self::default();
        let windows: Weak<Windows> = Arc::downgrade(&bounded.0);
        let report = move || {
            loop {
                std::thread::sleep(LOOK);
                let Some(windows) = windows.upgrade() else { return };
                say(&windows, Instant::now());
            }
        };
        std::thread::Builder::new().name("lines".to_owned()).spawn(report)?;
        Ok(bounded)
    }
}

/// Writes what was left out in the windows that ended.
fn say(windows: &Windows, now: Instant) {
    for LeftOut { place, target, count } in windows.ended(now) {
        tracing::warn!(place, of = target, count, "lines of trace were left out: too many like them");
    }
}

impl<S: Subscriber> Layer<S> for BoundedLines {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut who = Who(None);
        event.record(&mut who);
        self.0.admit(metadata, who.0, Instant::now())
    }
}

/// Finds the party that a line is about.
struct Who(Option<u64>);

impl Who {
    fn take(&mut self, field: &Field, value: impl std::hash::Hash) {
        if self.0.is_none() && WHO.contains(&field.name()) {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            self.0 = Some(hasher.finish());
        }
    }
}

impl Visit for Who {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if self.0.is_none() && WHO.contains(&field.name()) {
            self.take(field, format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// What was written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Written {
        fn lines(&self, wanted: impl Fn(&str) -> bool) -> usize {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().filter(|line| wanted(line)).count()
        }
    }

    /// Runs something whose lines are bounded.
    fn bounded(run: impl FnOnce()) -> (Written, BoundedLines) {
        let (written, bounds) = (Written::default(), BoundedLines::default());
        let lines = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_writer(written.clone())
            .finish()
            .with(bounds.clone());
        tracing::subscriber::with_default(lines, run);
        (written, bounds)
    }

    #[test]
    fn a_flood_leaves_a_few_lines_and_a_count() {
        let (written, bounds) = bounded(|| {
            for _ in 0..10_000 {
                tracing::warn!("an entry is from the future");
            }
            tracing::warn!("something else");
        });
        assert_eq!(written.lines(|l| l.contains("from the future")), LINES as usize);
        assert_eq!(written.lines(|l| l.contains("something else")), 1, "another place is not bounded by it");
        assert!(bounds.0.ended(Instant::now()).is_empty(), "the window lasts");
        let ended = bounds.0.ended(Instant::now() + WINDOW);
        let [left_out] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!(left_out.count, 10_000 - u64::from(LINES));
        assert!(left_out.place.contains("lines.rs:"), "{left_out:?}");
        assert!(bounds.0.ended(Instant::now() + 2 * WINDOW).is_empty(), "said once");
        assert!(bounds.0.all().is_empty(), "and forgotten");
    }

    #[test]
    fn what_the_place_of_a_flood_says_of_another_party_is_written() {
        let (written, bounds) = bounded(|| {
            let say = |node: u64| tracing::warn!(node, "a message was refused");
            (0..1000).for_each(|_| say(1));
            say(2);
            // under however many names it comes
            (10..10_000).for_each(say);
            say(2);
        });
        assert_eq!(written.lines(|l| l.ends_with(" node=1")), LINES as usize);
        assert_eq!(written.lines(|l| l.ends_with(" node=2")), 2);
        let all = written.lines(|l| l.contains("a message was refused"));
        assert_eq!(all, LINES as usize + 2 + (WHOS_MAX - 2) + LINES as usize, "strangers share a window");
        assert_eq!(bounds.0.all().len(), WHOS_MAX + 1);
        let ended = bounds.0.ended(Instant::now() + WINDOW);
        assert_eq!(ended.len(), 1, "one line for a place: {ended:?}");
        assert_eq!(ended[0].count, 1000 + 2 + 9_990 - all as u64);
    }

    #[test]
    fn lines_that_were_asked_for_pass() {
        let (written, bounds) = bounded(|| {
            for _ in 0..100 {
                tracing::debug!("asked for");
            }
        });
        assert_eq!(written.lines(|l| l.contains("asked for")), 100);
        assert!(bounds.0.all().is_empty());
    }

    #[test]
    fn a_window_ends_by_itself_and_keeps_its_count_for_the_summary() {
        let (_, bounds) = bounded(|| tracing::info!("once"));
        let windows = &bounds.0;
        let (metadata, begun) = windows.all().values().map(|w| (w.metadata, w.begun)).next().unwrap();
        let admitted =
            |at: Instant, times: u32| (0..times).filter(|_| windows.admit(metadata, None, at)).count();
        assert_eq!(admitted(begun, LINES + 4), LINES as usize - 1);
        assert_eq!(admitted(begun + WINDOW - Duration::from_millis(1), 1), 0);
        assert_eq!(admitted(begun + WINDOW, 3), 3, "the next window");
        assert!(windows.ended(begun + WINDOW).is_empty());
        let ended = windows.ended(begun + 2 * WINDOW);
        assert_eq!(ended.iter().map(|l| l.count).collect::<Vec<_>>(), [6]);
    }

    #[test]
    fn the_count_is_a_line_of_its_own() {
        let (_, flooded) = bounded(|| (0..100).for_each(|_| tracing::warn!("flood")));
        let (written, again) = bounded(|| say(&flooded.0, Instant::now() + WINDOW));
        assert_eq!(written.lines(|l| l.contains("left out") && l.contains("count=80")), 1);
        assert_eq!(written.lines(|l| l.contains("lines.rs:")), 1, "it says of which place");
        drop(again);
    }
}
