//! Guards: what must not go out in a prompt, or come back in an answer. Opt-in, in this process, where texts are readable anyway.
//!
//! ```text
//! prompt ── rules in order ── routing, cache, attempts ── answer ── rules in order ── application
//!             block │ redact │ flag                                  block │ redact │ flag
//! ```
//! **Decides** on decoded texts ([`scan`]): each alone, all of them put together (a secret in two pieces), those of the person
//! put together, and each with escapes undone once more. Zero-width characters are passed over and full-width ones read as ASCII.
//! **Block** refuses with `guard_blocked` and the rule's name. **Redact** replaces what was found by `[redacted:KIND]` and nothing
//! else; where it cannot be replaced in place (a key, a file, behind a second layer of escapes, in a stream) it blocks. **Flag**
//! only counts, and names the rule in `x-quorate-guard`.
//!
//! **Streams**: an answer cannot be called back. So where a rule is for answers, a stream is refused, or (`streams = "buffer"`)
//! held until it is whole. **Fails closed**: what cannot be read, an external guard that does not answer in time, a schema that says
//! more than is understood.
//!
//! **Errors** of a provider are answers that may quote the prompt: rules for answers look at them too, but for `schema` and `allow`,
//! which say what a good answer is. One that is no JSON is looked at as one text. What is blocked, or cannot be looked at, goes;
//! the status and when to come back stay.
//!
//! **Leaves**: headers; spelling a secret backwards, in another alphabet or language. A guard stops accidents and careless prompts; it is no
//! border against whoever means to get round it.
mod checksum;
mod detect;
mod hook;
mod scan;
mod schema;

use crate::config::{Action, GuardConfig, GuardKind, GuardOn, StreamsUnder};
use crate::errors::Failure;
use bytes::Bytes;
use detect::{Detector, Hit};
use hook::Hook;
use http::StatusCode;
use quorate_dialects::Operation;
use regex::Regex;
use scan::{Text, Texts, Unreadable};
use schema::Schema;
use std::collections::BTreeMap;
use std::ops::Range;

/// Names the rules that flagged or redacted.
pub(crate) const GUARD_HEADER: &str = "x-quorate-guard";
/// Memory of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// How often escapes are undone: arguments within arguments.
const LAYERS_MAX: usize = 3;

/// What a rule did, for headers and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// The rule's name.
    pub(crate) rule: String,
    /// `flagged`, `redacted`, `blocked` or `failed`.
    pub(crate) did: &'static str,
}

/// What became of a document.
pub(crate) struct Passed {
    /// As it is to go on; the same memory if nothing was replaced.
    pub(crate) body: Bytes,
    pub(crate) notes: Vec<Note>,
}

/// A document that does not go on, and what happened on the way.
pub(crate) struct Blocked {
    pub(crate) failure: Failure,
    pub(crate) notes: Vec<Note>,
}

/// Whose document it is.
#[derive(Clone, Copy)]
pub(crate) struct Of<'a> {
    /// The model, as the application calls it.
    pub(crate) model: &'a str,
    pub(crate) operation: Operation,
    /// The request's body, also when its answer is looked at.
    pub(crate) request: &'a Bytes,
}

/// What the bytes of an answer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON document.
    Document,
    /// A stream of events.
    Events,
    /// A stream of items of one JSON array.
    Items,
    /// A provider's error, whatever it is written in.
    Error,
}

/// All rules, in order.
#[derive(Default)]
pub(crate) struct Guards {
    rules: Vec<Rule>,
    pub(crate) streams: StreamsUnder,
}

struct Rule {
    name: String,
    what: What,
    except: Vec<Regex>,
    action: Action,
    models: Vec<String>,
    on: GuardOn,
}

enum What {
    Detect(Vec<Detector>),
    Deny(Vec<Regex>),
    Allow(Vec<Regex>),
    Schema(Option<Schema>),
    Hook(Box<Hook>),
}

/// What a rule says of a document.
enum Said {
    Nothing,
    Found,
    /// Found, and all of it replaced.
    Replaced,
    /// It could not look.
    Failed(&'static str),
}

impl Guards {
    /// Compiles rules. Files are read here and nowhere else.
    pub(crate) fn new(rules: &[GuardConfig], streams: StreamsUnder) -> Result<Self, String> {
        let rules =
            rules.iter().map(|rule| Rule::new(rule).map_err(|e| format!("guard {:?}: {e}", rule.name)));
        Ok(Self { rules: rules.collect::<Result<_, _>>()?, streams })
    }

    /// Whether any rule is for answers of this model.
    pub(crate) fn has_answer_rules(&self, model: &str) -> bool {
        self.rules.iter().any(|r| r.is_for(model, Side::Answer))
    }

    /// Looks at a prompt.
    pub(crate) async fn prompt(&self, of: Of<'_>) -> Result<Passed, Box<Blocked>> {
        self.look(of, of.request, Side::Prompt, Form::Document).await
    }

    /// Looks at an answer.
    pub(crate) async fn answer(&self, of: Of<'_>, body: &Bytes, form: Form) -> Result<Passed, Box<Blocked>> {
        if form != Form::Items {
            return self.look(of, body, Side::Answer, form).await;
        }
        // What is said in pieces is found in items as it is in events.
        let Some(events) = scan::as_events(body) else {
            return self.look(of, body, Side::Answer, Form::Document).await;
        };
        let Passed { notes, .. } = self.look(of, &events.into(), Side::Answer, Form::Events).await?;
        Ok(Passed { body: body.clone(), notes })
    }

    async fn look(&self, of: Of<'_>, body: &Bytes, side: Side, form: Form) -> Result<Passed, Box<Blocked>> {
        let mut notes = Vec::new();
        let mut texts: Option<Texts> = None;
        let events = form == Form::Events;
        for rule in self.rules.iter().filter(|r| r.is_for(of.model, side)) {
            if form == Form::Error && matches!(rule.what, What::Allow(_) | What::Schema(_)) {
                continue;
            }
            // A long prompt takes a while; others go on in between.
            tokio::task::yield_now().await;
            let read = || match form {
                Form::Document => Texts::of(body),
                Form::Events | Form::Items => Texts::of_events(body),
                Form::Error => Texts::of(body).or_else(|error| Texts::of_plain(body).ok_or(error)),
            };
            let texts = match texts.take().map_or_else(read, Ok) {
                Ok(read) => texts.insert(read),
                Err(error) => return Err(rule.blocks(notes, side, Some(unreadable(error)))),
            };
            let said = match &rule.what {
                What::Detect(detectors) => rule.search(texts, |text, hits| {
                    detectors.iter().for_each(|d| d.find(text, hits));
                }),
                What::Deny(patterns) => rule.search(texts, |text, hits| {
                    let found = patterns.iter().flat_map(|p| p.find_iter(text));
                    // An empty match would be everywhere.
                    let found = found.filter(|m| !m.range().is_empty());
                    hits.extend(found.map(|m| Hit { range: m.range(), what: "denied" }));
                }),
                What::Allow(patterns) => {
                    let whole = View::of(&texts.all, 0..texts.all.len()).text;
                    if patterns.iter().any(|p| p.is_match(&whole)) { Said::Nothing } else { Said::Found }
                }
                What::Schema(schema) => {
                    match schema::appraise(schema.as_ref(), of, &texts.apply(body), events) {
                        Ok(true) => Said::Nothing,
                        Ok(false) => Said::Found,
                        Err(why) => Said::Failed(why),
                    }
                }
                What::Hook(hook) => match hook.ask(&rule.name, of, side.name(), &texts.all).await {
                    Ok(hook::Answer::Allow) => Said::Nothing,
                    Ok(hook::Answer::Block) => return Err(rule.blocks(notes, side, None)),
                    Ok(hook::Answer::Flag) => Said::Found,
                    Ok(hook::Answer::Redact(new)) => {
                        let fixed = texts
                            .all
                            .iter()
                            .zip(&new)
                            .any(|(old, new)| !old.is_editable() && old.text != *new);
                        if fixed {
                            return Err(rule.blocks(notes, side, None));
                        }
                        texts.all.iter_mut().zip(new).for_each(|(old, new)| old.set(new));
                        Said::Replaced
                    }
                    Err(_) if hook.fails_open() => {
                        notes.push(rule.note("failed"));
                        continue;
                    }
                    Err(why) => Said::Failed(why),
                },
            };
            match (said, rule.action) {
                (Said::Nothing, _) => {}
                (Said::Failed(why), _) => return Err(rule.blocks(notes, side, Some(why))),
                (Said::Replaced, _) => notes.push(rule.note("redacted")),
                (Said::Found, Action::Flag) => notes.push(rule.note("flagged")),
                // What was found and could not be replaced.
                (Said::Found, Action::Block | Action::Redact) => {
                    // An external guard's word is final: it said "flag".
                    if matches!(rule.what, What::Hook(_)) {
                        notes.push(rule.note("flagged"));
                    } else {
                        return Err(rule.blocks(notes, side, None));
                    }
                }
            }
        }
        let body = texts.filter(Texts::is_changed).map_or_else(|| body.clone(), |texts| texts.apply(body));
        Ok(Passed { body, notes })
    }
}

fn unreadable(error: Unreadable) -> &'static str {
    match error {
        Unreadable::NotJson => "it is not the JSON that could be looked through",
        Unreadable::TooMuch => "it is too deep, or too much, to be looked through",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Prompt,
    Answer,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Answer => "answer",
        }
    }
}

impl Rule {
    fn new(config: &GuardConfig) -> Result<Self, String> {
        let patterns = |list: &[String]| list.iter().map(|p| pattern(p)).collect::<Result<Vec<_>, _>>();
        let what = match config.kind {
            GuardKind::Secrets => What::Detect(detect::secrets(config.detect.as_ref())?),
            GuardKind::Personal => What::Detect(detect::personal(config.detect.as_ref())?),
            GuardKind::Deny => What::Deny(patterns(&config.patterns)?),
            GuardKind::Allow => What::Allow(patterns(&config.patterns)?),
            GuardKind::Schema => {
                let read = |path: &std::path::PathBuf| Schema::load(path);
                What::Schema(config.schema_file.as_ref().map(read).transpose()?)
            }
            GuardKind::Http => What::Hook(Box::new(Hook::new(config)?)),
        };
        Ok(Self {
            name: config.name.clone(),
            what,
            except: patterns(&config.except)?,
            action: config.action(),
            models: config.models.clone(),
            on: config.on(),
        })
    }

    fn is_for(&self, model: &str, side: Side) -> bool {
        let on = match self.on {
            GuardOn::Both => true,
            GuardOn::Prompt => side == Side::Prompt,
            GuardOn::Answer => side == Side::Answer,
        };
        on && (self.models.is_empty() || self.models.iter().any(|m| m == model))
    }

    fn note(&self, did: &'static str) -> Note {
        Note { rule: self.name.clone(), did }
    }

    fn blocks(&self, mut notes: Vec<Note>, side: Side, why: Option<&'static str>) -> Box<Blocked> {
        notes.push(self.note(if why.is_some() { "failed" } else { "blocked" }));
        let side = side.name();
        let message = match why {
            None => format!("guard {:?} blocked the {side}", self.name),
            Some(why) => {
                format!("guard {:?} could not look at the {side}, so it is blocked: {why}", self.name)
            }
        };
        let hint = "the adapter's configuration says what this guard is for";
        let failure = Failure::new(StatusCode::FORBIDDEN, "guard_blocked", message, hint);
        Box::new(Blocked { failure, notes })
    }

    /// Looks for something, and replaces it where that is the action.
    fn search(&self, texts: &mut Texts, find: impl Fn(&str, &mut Vec<Hit>)) -> Said {
        let hits_in = |view: &View| {
            let mut hits = Vec::new();
            find(&view.text, &mut hits);
            hits.retain(|hit| {
                let found = view.text.get(hit.range.clone()).unwrap_or_default();
                !self
                    .except
                    .iter()
                    .any(|except| except.find(found).is_some_and(|m| m.range() == (0..found.len())))
            });
            merged(hits)
        };
        let redact = self.action == Action::Redact;
        let (mut found, mut left) = (false, false);
        for at in 0..texts.all.len() {
            let Some(text) = texts.all.get_mut(at) else { break };
            let view = View::of(std::slice::from_ref(text), [0]);
            let hits = hits_in(&view);
            if hits.is_empty() {
                continue;
            }
            found = true;
            left |= !redact || !text.is_editable();
            if redact {
                view.replace(std::slice::from_mut(text), &hits);
            }
        }
        // In pieces: only what no text holds alone is new.
        let mut together: Vec<Vec<usize>> = vec![
            (0..texts.all.len()).collect(),
            texts.all.iter().enumerate().filter(|(_, t)| t.user).map(|(at, _)| at).collect(),
        ];
        let mut paths: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, text) in texts.all.iter().enumerate().filter(|(_, t)| !t.is_editable()) {
            paths.entry(text.path).or_default().push(at);
        }
        together.extend(paths.into_values().filter(|path| path.len() > 1));
        for which in together {
            let view = View::of(&texts.all, which);
            let mut hits = hits_in(&view);
            hits.retain(|hit| view.pieces(&hit.range).len() > 1);
            if hits.is_empty() {
                continue;
            }
            found = true;
            let editable =
                |(at, _): &(usize, Range<usize>)| texts.all.get(*at).is_some_and(Text::is_editable);
            left |= !redact || !hits.iter().all(|hit| view.pieces(&hit.range).iter().all(editable));
            if redact {
                view.replace(&mut texts.all, &hits);
            }
        }
        // Behind further layers of escapes it can be seen, but not replaced.
        for text in &texts.all {
            let mut layer = scan::unescaped(&text.text);
            for _ in 0..LAYERS_MAX {
                let Some(view) = layer.map(View::plain) else { break };
                if !hits_in(&view).is_empty() {
                    (found, left) = (true, true);
                }
                layer = scan::unescaped(&view.text).filter(|next| *next != view.text);
            }
        }
        match (found, left) {
            (false, _) => Said::Nothing,
            (true, true) => Said::Found,
            (true, false) => Said::Replaced,
        }
    }
}

/// Whether the kinds that a rule names are known.
pub(crate) fn check_kinds(config: &GuardConfig) -> Result<(), String> {
    match config.kind {
        GuardKind::Secrets => detect::secrets(config.detect.as_ref()).map(drop),
        GuardKind::Personal => detect::personal(config.detect.as_ref()).map(drop),
        GuardKind::Deny | GuardKind::Allow | GuardKind::Schema | GuardKind::Http => Ok(()),
    }
}

/// A pattern of a configuration.
pub(crate) fn pattern(text: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|e| format!("pattern {text:?}: {e}").replace('\n', " "))
}

/// Hits in order, those that overlap as one.
fn merged(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end)));
    let mut out: Vec<Hit> = Vec::new();
    for hit in hits {
        match out.last_mut() {
            Some(last) if hit.range.start < last.range.end => {
                last.range.end = last.range.end.max(hit.range.end)
            }
            _ => out.push(hit),
        }
    }
    out
}

/// Texts one behind the other, as a detector reads them, and where each part of that came from.
struct View {
    text: String,
    /// Start in the view, which text, the source's range.
    parts: Vec<(usize, usize, Range<usize>)>,
}

impl View {
    fn plain(text: String) -> Self {
        Self { text, parts: vec![] }
    }

    fn of(texts: &[Text], which: impl IntoIterator<Item = usize>) -> Self {
        let mut view = Self { text: String::new(), parts: vec![] };
        for at in which {
            let text = texts.get(at).map_or("", |t| t.text.as_str());
            let mut from = 0;
            for (place, char) in text.char_indices().filter(|(_, c)| is_odd(*c)) {
                let end = place + char.len_utf8();
                view.push(text, at, from..place);
                // U+FF01..U+FF5E are ASCII's ! to ~, 0xFEE0 higher.
                if let Some(ascii) = u32::from(char).checked_sub(0xfee0).and_then(char::from_u32)
                    && ascii.is_ascii_graphic()
                {
                    view.parts.push((view.text.len(), at, place..end));
                    view.text.push(ascii);
                }
                from = end;
            }
            view.push(text, at, from..text.len());
        }
        view
    }

    fn push(&mut self, text: &str, at: usize, range: Range<usize>) {
        if !range.is_empty() {
            self.parts.push((self.text.len(), at, range.clone()));
            self.text.push_str(text.get(range).unwrap_or_default());
        }
    }

    /// Where a range came from: one piece for each text.
    fn pieces(&self, range: &Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
        let first = self.parts.partition_point(|(start, ..)| *start <= range.start).saturating_sub(1);
        for (index, (start, at, source)) in self.parts.iter().enumerate().skip(first) {
            if *start >= range.end {
                break;
            }
            let end = self.parts.get(index + 1).map_or(self.text.len(), |(next, ..)| *next);
            let plain = end - start == source.len();
            let from = if plain { source.start + range.start.saturating_sub(*start) } else { source.start };
            let to = if plain { source.end - end.saturating_sub(range.end) } else { source.end };
            match pieces.last_mut() {
                Some((last, piece)) if last == at => piece.end = to,
                _ => pieces.push((*at, from..to)),
            }
        }
        pieces
    }

    /// Puts marks in place of hits: in the first text that a hit stands in; its pieces in others go.
    fn replace(&self, texts: &mut [Text], hits: &[Hit]) {
        let mut edits: BTreeMap<usize, Vec<(Range<usize>, String)>> = BTreeMap::new();
        for hit in hits {
            for (nth, (at, range)) in self.pieces(&hit.range).into_iter().enumerate() {
                let mark = if nth == 0 { format!("[redacted:{}]", hit.what) } else { String::new() };
                edits.entry(at).or_default().push((range, mark));
            }
        }
        for (at, edits) in edits {
            let Some(text) = texts.get_mut(at).filter(|t| t.is_editable()) else { continue };
            let (mut new, mut from) = (String::with_capacity(text.text.len()), 0);
            for (range, mark) in edits {
                new.push_str(text.text.get(from..range.start).unwrap_or_default());
                new.push_str(&mark);
                from = range.end;
            }
            new.push_str(text.text.get(from..).unwrap_or_default());
            text.set(new);
        }
    }
}

/// Characters that hide: no width, or ASCII's double.
fn is_odd(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
        || matches!(char, '\u{ff01}'..='\u{ff5e}')
}

#[cfg(test)]
mod tests;
