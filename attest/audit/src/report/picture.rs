//! Pictures as inline SVG: lanes over time, and stacked bars over time. Colour never speaks alone: what is not good is hatched or
//! has a shape of its own, everything has a title, and every picture stands beside a table of the same facts.
use super::html::Html;
use crate::words;
use quorate_core::ids::Timestamp;
use std::fmt;

/// Drawing units; the page scales them.
const WIDTH: f64 = 1000.;
/// Room for names.
const LEFT: f64 = 132.;
const RIGHT: f64 = 12.;
const LANE: f64 = 30.;
const BAR: f64 = 18.;
/// A stretch is drawn at least this wide, or a short lapse in a long history would not be seen.
const BAD_WIDTH_MIN: f64 = 3.;
/// Colours of series; the last is of all others together.
pub(super) const SERIES: usize = 7;

/// A number as SVG wants it.
struct N(f64);
impl fmt::Display for N {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0)
    }
}

/// Time from left to right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    from: u64,
    to: u64,
}

impl Axis {
    pub(super) fn new((from, to): (Timestamp, Timestamp)) -> Self {
        Self { from: from.0, to: to.0.max(from.0.saturating_add(1)) }
    }
    fn x(&self, time: Timestamp) -> f64 {
        let part = time.0.clamp(self.from, self.to) - self.from;
        LEFT + (WIDTH - LEFT - RIGHT) * part as f64 / (self.to - self.from) as f64
    }
    /// Up to ten moments with round names.
    fn ticks(&self) -> Vec<(Timestamp, String)> {
        const STEPS: [u64; 24] = [
            1,
            2,
            5,
            10,
            30,
            60,
            120,
            300,
            600,
            1800,
            3600,
            7200,
            10_800,
            21_600,
            43_200,
            86_400,
            172_800,
            604_800,
            1_209_600,
            2_419_200,
            7_862_400,
            31_449_600,
            157_248_000,
            1_572_480_000,
        ];
        let span = self.to - self.from;
        let step = STEPS.into_iter().map(|s| s * 1000).find(|step| span / step <= 9).unwrap_or(span.max(1));
        let first = self.from.div_ceil(step) * step;
        (0..10)
            .map(|i| first.saturating_add(i * step))
            .take_while(|t| *t <= self.to)
            .map(|t| {
                let date = words::date(Timestamp(t));
                let part = match step {
                    s if s >= 86_400_000 => 0..10,
                    s if s >= 60_000 => 11..16,
                    _ => 11..19,
                };
                (Timestamp(t), date.get(part).unwrap_or_default().to_owned())
            })
            .collect()
    }
    fn draw(&self, h: &mut Html, top: f64, bottom: f64) {
        for (time, name) in self.ticks() {
            let x = self.x(time);
            h.empty(
                "line",
                &[("class", &"grid"), ("x1", &N(x)), ("x2", &N(x)), ("y1", &N(top)), ("y2", &N(bottom))],
            );
            // A name at the very edge would be cut off.
            let anchor = if x > WIDTH - 40. { "end" } else { "middle" };
            h.element(
                "text",
                &[("class", &"tick"), ("x", &N(x)), ("y", &N(bottom + 14.)), ("text-anchor", &anchor)],
                name,
            );
        }
    }
}

/// A stretch of a lane.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// CSS class; what is `bad` or a warning is never too narrow to see.
    pub(super) class: &'static str,
    pub(super) title: String,
    pub(super) label: String,
}

/// Whether a stretch may be too short to see.
fn is_plain(class: &str) -> bool {
    !matches!(class, "bad" | "warn")
}

/// A moment of a lane.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) time: Timestamp,
    pub(super) shape: Shape,
    pub(super) title: String,
}

/// What a moment looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Cross,
    Drop,
    Tick,
}

/// A lane.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) below: String,
    pub(super) bars: Vec<Bar>,
    pub(super) moments: Vec<Moment>,
}

/// Lanes below each other over one axis; `lines` cross them all.
pub(super) fn lanes(
    h: &mut Html,
    id: &'static str,
    (title, description): (&str, &str),
    axis: Axis,
    rows: &[Row],
    lines: &[(Timestamp, String)],
) {
    let top = if lines.is_empty() { 6. } else { 22. };
    let bottom = top + LANE * rows.len() as f64;
    begin(h, id, (title, description), bottom + 24.);
    axis.draw(h, top, bottom);
    for (row, number) in rows.iter().zip(0u32..) {
        let y = top + LANE * f64::from(number);
        let middle = y + LANE / 2.;
        h.open("g", &[]);
        let name_y = if row.below.is_empty() { middle + 4. } else { middle - 1. };
        let name = [("class", &"name" as &dyn fmt::Display), ("x", &N(LEFT - 10.)), ("y", &N(name_y))];
        h.element("text", &name, &row.label);
        if !row.below.is_empty() {
            h.element(
                "text",
                &[("class", &"below"), ("x", &N(LEFT - 10.)), ("y", &N(middle + 10.))],
                &row.below,
            );
        }
        let mut bars: Vec<&Bar> = row.bars.iter().collect();
        bars.sort_by_key(|bar| !is_plain(bar.class));
        let mut drawn: Option<(i64, &str)> = None;
        for bar in bars {
            let (from, to) = (axis.x(bar.from), axis.x(bar.to));
            let least = if is_plain(bar.class) { 0.8 } else { BAD_WIDTH_MIN };
            let width = (to - from).max(least);
            let place = (from as i64, bar.class);
            if width <= least && drawn == Some(place) {
                continue;
            }
            drawn = Some(place);
            let from = from.min(WIDTH - RIGHT - width);
            h.open(
                "rect",
                &[
                    ("class", &format_args!("bar {}", bar.class)),
                    ("x", &N(from)),
                    ("y", &N(middle - BAR / 2.)),
                    ("width", &N(width)),
                    ("height", &N(BAR)),
                    ("rx", &"2.5"),
                ],
            );
            h.element("title", &[], &bar.title).close("rect");
            if !bar.label.is_empty() && width > 8. * bar.label.chars().count() as f64 {
                h.element(
                    "text",
                    &[("class", &"on-bar"), ("x", &N(from + width / 2.)), ("y", &N(middle + 4.))],
                    &bar.label,
                );
            }
        }
        let mut last: Option<(i64, Shape)> = None;
        for moment in &row.moments {
            let x = axis.x(moment.time);
            let place = (x as i64, moment.shape);
            if last == Some(place) {
                continue;
            }
            last = Some(place);
            let (path, class) = match moment.shape {
                Shape::Cross => ("M-5-5L5 5M-5 5L5-5", "mark cross"),
                Shape::Drop => ("M-5-12L5-12L0-4Z", "mark drop"),
                Shape::Tick => ("M0-9V9", "mark restart"),
            };
            h.open(
                "path",
                &[
                    ("class", &class),
                    ("d", &path),
                    ("transform", &format_args!("translate({} {})", N(x), N(middle))),
                ],
            );
            h.element("title", &[], &moment.title).close("path");
        }
        h.close("g");
    }
    let mut last_x = f64::NEG_INFINITY;
    for (time, name) in lines {
        let x = axis.x(*time);
        h.open(
            "line",
            &[("class", &"cut"), ("x1", &N(x)), ("x2", &N(x)), ("y1", &N(top - 4.)), ("y2", &N(bottom))],
        );
        h.element("title", &[], name).close("line");
        if x - last_x > 60. {
            let anchor = if x > WIDTH - 60. { "end" } else { "middle" };
            h.element(
                "text",
                &[("class", &"cut-name"), ("x", &N(x)), ("y", &N(top - 8.)), ("text-anchor", &anchor)],
                name,
            );
            last_x = x;
        }
    }
    h.close("svg").close("div");
}

/// One bar of a stack: where it begins, and how much of each series.
pub(super) struct Stack {
    pub(super) from: Timestamp,
    pub(super) counts: [u64; SERIES],
    pub(super) title: String,
}

/// Stacked bars over time.
pub(super) fn stacks(
    h: &mut Html,
    id: &'static str,
    words: (&str, &str),
    axis: Axis,
    bin_ms: u64,
    stacks: &[Stack],
) {
    const TOP: f64 = 10.;
    const HEIGHT: f64 = 150.;
    let bottom = TOP + HEIGHT;
    let most = stacks.iter().map(|s| s.counts.iter().sum::<u64>()).max().unwrap_or(0).max(1);
    let step = step_of(most);
    let full = most.div_ceil(step) * step;
    let y = |n: u64| bottom - HEIGHT * n as f64 / full as f64;
    begin(h, id, words, bottom + 24.);
    axis.draw(h, TOP, bottom);
    for n in (0..=full).step_by(usize::try_from(step).unwrap_or(1)) {
        h.empty(
            "line",
            &[
                ("class", &"grid"),
                ("x1", &N(LEFT)),
                ("x2", &N(WIDTH - RIGHT)),
                ("y1", &N(y(n))),
                ("y2", &N(y(n))),
            ],
        );
        let place = [("class", &"name" as &dyn fmt::Display), ("x", &N(LEFT - 10.)), ("y", &N(y(n) + 4.))];
        h.element("text", &place, words::count(n));
    }
    for stack in stacks {
        let from = axis.x(stack.from);
        let to = axis.x(stack.from.plus_ms(bin_ms));
        let width = (to - from - 0.6).max(1.);
        h.open("g", &[]).element("title", &[], &stack.title);
        let mut below = 0;
        for (count, series) in stack.counts.iter().zip(0u32..) {
            if *count == 0 {
                continue;
            }
            h.empty(
                "rect",
                &[
                    ("class", &format_args!("s{series}")),
                    ("x", &N(from)),
                    ("width", &N(width)),
                    ("y", &N(y(below + count))),
                    ("height", &N(y(below) - y(below + count))),
                ],
            );
            below += count;
        }
        h.close("g");
    }
    h.close("svg").close("div");
}

/// A round number of which at most five fill the height.
fn step_of(most: u64) -> u64 {
    let mut tens = 1u64;
    loop {
        for factor in [1, 2, 5] {
            let step = tens.saturating_mul(factor);
            if most.div_ceil(step) <= 5 {
                return step;
            }
        }
        tens = tens.saturating_mul(10);
    }
}

fn begin(h: &mut Html, id: &'static str, (title, description): (&str, &str), height: f64) {
    let (title_id, text_id) = (format!("{id}-title"), format!("{id}-text"));
    h.open("div", &[("class", &"picture"), ("tabindex", &"0"), ("role", &"group"), ("aria-label", &title)]);
    h.open(
        "svg",
        &[
            ("viewBox", &format_args!("0 0 {} {}", N(WIDTH), N(height))),
            ("role", &"img"),
            ("aria-labelledby", &format_args!("{title_id} {text_id}")),
        ],
    );
    h.element("title", &[("id", &title_id)], title).element("desc", &[("id", &text_id)], description);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_few_round_ticks() {
        let start = 1_795_297_200_123;
        for span in [1, 900, 4_000, 61_000, 3_600_000, 86_400_000, 40 * 86_400_000, 4_000 * 86_400_000] {
            let axis = Axis::new((Timestamp(start), Timestamp(start + span)));
            let ticks = axis.ticks();
            assert!(ticks.len() <= 10, "{span}: {ticks:?}");
            assert!(span < 4_000 || ticks.len() >= 2, "{span}: {ticks:?}");
            assert!(ticks.iter().all(|(t, _)| axis.x(*t) >= LEFT && axis.x(*t) <= WIDTH - RIGHT));
        }
        assert_eq!(Axis::new((Timestamp(0), Timestamp(9_000))).ticks()[3].1, "00:00:03");
    }

    #[test]
    fn heights_are_round() {
        for (most, step) in [(1, 1), (5, 1), (6, 2), (11, 5), (26, 10), (1_000_000, 200_000)] {
            assert_eq!(step_of(most), step, "{most}");
        }
    }
}
