//! The page: one file, no network, no script. A content security policy says so to the browser as well.
use super::collect::{Collected, Credential, Epoch, Event, Mark, MarkKind, Node, Severity, Span, Standing};
use super::html::Html;
use super::picture::{self, Axis, Bar, Moment, Row, SERIES, Shape, Stack};
use super::volume::{Bin, Tally};
use crate::finding::Finding;
use crate::words;
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::refusal::{Fault, Retry};
use std::collections::BTreeMap;
use std::fmt::Display;

const STYLE: &str = include_str!("style.css");
/// What the page has, by id.
const SECTIONS: [(&str, &str); 8] = [
    ("summary", "Summary"),
    ("cluster", "Cluster over time"),
    ("policy", "Policy"),
    ("traffic", "Requests"),
    ("events", "Anomalies and alarms"),
    ("keys", "Keys"),
    ("checked", "What was checked"),
    ("limits", "What could not be"),
];
/// Rows of tables that grow with the number of names.
const NAMES_MAX: usize = 100;

/// The whole document.
pub(super) fn render(c: &Collected) -> String {
    let mut h = Html::default();
    head(&mut h, &c.policy.cluster);
    h.raw("<body><a class=\"skip\" href=\"#summary\">Skip to the report</a><div class=\"page\">");
    definitions(&mut h);
    masthead(&mut h, &c.policy.cluster, &SECTIONS);
    h.raw("<main>");
    verdict(&mut h, c);
    summary(&mut h, c);
    cluster(&mut h, c);
    policies(&mut h, c);
    traffic(&mut h, c);
    events(&mut h, c);
    keys(&mut h, c);
    checked(&mut h, c);
    limits(&mut h, c);
    glossary(&mut h);
    h.raw("</main>");
    footer(&mut h);
    h.raw("</div></body></html>\n");
    h.finish()
}

/// Where not even the beginning holds: nothing else can be told.
pub(super) fn refused(genesis: quorate_core::crypto::Hash, finding: &Finding) -> String {
    let mut h = Html::default();
    head(&mut h, "a log that does not begin");
    h.raw("<body><div class=\"page\">");
    masthead(&mut h, "Not this cluster’s log", &[]);
    h.raw("<main>");
    fails(&mut h);
    h.text("It does not even begin as it must, so nothing about it can be told. ").raw("</p></div>");
    h.raw("<section id=\"checked\"><h2>What was found</h2><dl class=\"facts\"><dt>Genesis asked for</dt>");
    h.element("dd", &[("class", &"hash")], genesis).raw("</dl>");
    found(&mut h, finding);
    h.raw("</section></main>");
    footer(&mut h);
    h.raw("</div></body></html>\n");
    h.finish()
}

fn head(h: &mut Html, name: &str) {
    h.raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    h.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    h.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">");
    h.raw(
        "<meta name=\"referrer\" content=\"no-referrer\"><meta name=\"generator\" content=\"quorate-audit\">",
    );
    h.open("title", &[]).text(format_args!("Audit report of {name}")).close("title");
    h.raw("<style>").raw(STYLE).raw("</style></head>");
}

fn definitions(h: &mut Html) {
    h.raw(concat!(
        "<svg class=\"defs\" aria-hidden=\"true\" focusable=\"false\"><defs>",
        "<pattern id=\"hatch-bad\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">",
        "<rect class=\"hatch-bad-bg\" width=\"6\" height=\"6\"/><path class=\"hatch-bad\" d=\"M0 0V6\" stroke-width=\"7\"/></pattern>",
        "<pattern id=\"hatch-warn\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(-45)\">",
        "<rect class=\"hatch-warn-bg\" width=\"6\" height=\"6\"/><path class=\"hatch-warn\" d=\"M0 0V6\" stroke-width=\"5\"/></pattern>",
        "</defs></svg>"
    ));
}

fn masthead(h: &mut Html, name: &str, sections: &[(&str, &str)]) {
    h.raw(concat!(
        "<header><svg viewBox=\"0 0 42 42\" aria-hidden=\"true\"><path class=\"mark-line\" d=\"M21 7L35 31H7Z\"/>",
        "<circle class=\"mark-dot\" cx=\"21\" cy=\"7\" r=\"5\"/><circle class=\"mark-dot\" cx=\"35\" cy=\"31\" r=\"5\"/>",
        "<circle class=\"mark-dot\" cx=\"7\" cy=\"31\" r=\"5\"/></svg><div><div class=\"kicker\">quorate · audit report</div>"
    ));
    h.element("h1", &[], name).raw("</div></header>");
    if !sections.is_empty() {
        h.raw("<nav aria-label=\"Sections\">");
        for (id, name) in sections {
            h.element("a", &[("href", &format_args!("#{id}"))], name);
        }
        h.raw("</nav>");
    }
}

fn verdict(h: &mut Html, c: &Collected) {
    if c.findings.is_empty() {
        h.raw("<div class=\"verdict holds\" role=\"status\"><svg viewBox=\"0 0 24 24\" fill=\"none\" stroke-width=\"2\" stroke-linecap=\"round\" stroke-linejoin=\"round\" aria-hidden=\"true\"><path d=\"M12 2.5l8 3v6c0 5-3.4 8.600-8 10-4.600-1.400-8-5-8-10v-6z\"/><path d=\"M8.300 12l2.700 2.700 4.900-5.200\"/></svg>");
        h.raw("<strong>Everything in this copy of the log holds.</strong><p>");
        h.text(format_args!(
            "{} leaves were replayed from genesis through the rules that every node runs, and came out alike. ",
            words::count(c.checked.leaves)
        ));
        if let Some(end) = &c.end {
            h.text(format_args!(
                "The newest checkpoint is certified by {} ({} are needed).",
                nodes(&end.cosigners),
                c.policy.quorum()
            ));
        }
        h.raw("</p></div>");
        return;
    }
    fails(h);
    h.text(format_args!(
        "{} of {} leaves replayed alike; what this page tells is of those alone. ",
        words::count(c.position.0),
        words::count(c.claimed.0)
    ));
    h.raw("<a href=\"#checked\">What was found</a></p></div>");
}

/// Opens the verdict on a log that does not hold; the caller says more and closes it.
fn fails(h: &mut Html) {
    h.raw("<div class=\"verdict fails\" role=\"alert\"><svg viewBox=\"0 0 24 24\" fill=\"none\" stroke-width=\"2\" stroke-linecap=\"round\" stroke-linejoin=\"round\" aria-hidden=\"true\"><path d=\"M12 3l9.500 17h-19z\"/><path d=\"M12 9.500v5M12 17.300v.2\"/></svg>");
    h.raw("<strong>This copy of the log does not hold.</strong><p>");
}

fn summary(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"summary\"><h2>Summary</h2><dl class=\"facts\">");
    let fact = |h: &mut Html, name: &str, class: &str, value: &dyn Display| {
        h.element("dt", &[], name).element("dd", &[("class", &class)], value);
    };
    let (first, last) = c.period;
    let period = format!("{} to {} UTC ({})", when(first), when(last), duration(last.since_ms(first)));
    fact(h, "Period", "", &period);
    fact(h, "Genesis", "hash", &c.genesis);
    if let Some(end) = &c.end {
        fact(h, "Checkpoint", "", &format_args!("{} leaves", words::count(end.size.0)));
        fact(h, "Its root", "hash", &end.root);
    }
    let policy = format!("version {} of {}", c.policy.version, c.policy.digest);
    fact(h, "Policy", "hash", &policy);
    h.raw("</dl><ul class=\"tiles\">");
    let volume = &c.volume;
    let refused_requests: u64 = volume.clients.values().map(|t| t.refused).sum();
    let anomalies = c.summary.unsettled + c.summary.anomalies.values().sum::<u64>();
    let refused_evidence: u64 = c.nodes.values().map(|n| n.refused).sum();
    let lapses: u64 = c.nodes.values().map(|n| n.lapses).sum();
    let alarms: u64 = c.summary.alarms.values().sum();
    let flag = |grave: bool, n: u64| {
        if n == 0 {
            ""
        } else if grave {
            "grave"
        } else {
            "attend"
        }
    };
    let quorum_lacks = c.attested < c.policy.quorum();
    for (target, class, number, name) in [
        ("traffic", "", words::count(c.summary.authorised), "requests authorised"),
        ("traffic", "", words::count(c.summary.settled), "settled by their relays"),
        ("traffic", flag(false, refused_requests), words::count(refused_requests), "requests refused"),
        (
            "cluster",
            flag(true, u64::from(quorum_lacks)),
            format!("{} of {}", c.attested, c.policy.members.len()),
            "nodes attested at the end",
        ),
        ("cluster", flag(true, refused_evidence), words::count(refused_evidence), "evidence refused"),
        ("cluster", flag(false, lapses), words::count(lapses), "lapses"),
        ("events", flag(false, anomalies), words::count(anomalies), "anomalies"),
        ("events", flag(true, alarms), words::count(alarms), "alarms"),
        ("policy", "", words::count(c.policies.total), "policy versions"),
        ("keys", "", words::count(rotations(c)), "keys split anew"),
    ] {
        h.raw("<li>").open("a", &[("class", &class), ("href", &format_args!("#{target}"))]);
        h.element("b", &[], number).element("span", &[], name).raw("</a></li>");
    }
    h.raw("</ul><h3>What deserves a look</h3>");
    let mut notes: Vec<(Severity, String, &str)> = c
        .event_counts
        .iter()
        .map(|((severity, kind), n)| (severity.0, format!("{} × {kind}", words::count(*n)), "events"))
        .collect();
    if c.dark_ms > 0 {
        let text = format!("no quorum for {} in all", duration(c.dark_ms));
        notes.push((Severity::Warning, text, "cluster"));
    }
    let software: Vec<NodeId> = c.nodes.iter().filter(|(_, n)| n.software_tpm).map(|(id, _)| *id).collect();
    if !software.is_empty() {
        let text = format!("software TPM, which proves nothing about a machine: {}", nodes(&software));
        notes.push((Severity::Warning, text, "limits"));
    }
    notes.sort_by_key(|(severity, ..)| std::cmp::Reverse(*severity));
    if notes.is_empty() {
        h.raw("<p class=\"lead\">Nothing out of the ordinary.</p>");
    } else {
        h.raw("<ul class=\"notes\">");
        for (severity, text, target) in notes {
            h.raw("<li>");
            severity_chip(h, severity);
            h.raw("<span>").text(text).raw(" ");
            h.element("a", &[("href", &format_args!("#{target}"))], "more").raw("</span></li>");
        }
        h.raw("</ul>");
    }
    h.raw("</section>");
}

fn cluster(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"cluster\"><h2>Cluster over time</h2><p class=\"lead\">Who proved by a TPM quote that it runs what the admins signed, and when. Only attested nodes relay, hold keys or certify.</p>");
    let axis = Axis::new(c.period);
    let mut rows = vec![Row {
        label: "quorum".into(),
        below: format!("{} needed", c.policy.quorum()),
        bars: c
            .dark
            .spans
            .rows
            .iter()
            .map(|span| {
                let (class, text) = match (span.what, span.from == c.period.0) {
                    (false, _) => ("good", "a quorum is attested"),
                    (true, true) => ("due", "not yet begun: no quorum"),
                    (true, false) => ("bad", "no quorum: nothing is forwarded"),
                };
                bar(span, class, text, "")
            })
            .collect(),
        moments: Vec::new(),
    }];
    for (id, node) in &c.nodes {
        rows.push(Row {
            label: if node.name.is_empty() { id.to_string() } else { node.name.clone() },
            below: node.custodian.clone(),
            bars: node.standing.spans.rows.iter().map(standing_bar).collect(),
            moments: node.marks.rows.iter().map(moment).collect(),
        });
    }
    let lines: Vec<(Timestamp, String)> = c
        .policies
        .rows
        .iter()
        .filter_map(|row| Some((row.time?, format!("policy {}", row.version))))
        .collect();
    let lapsed: u64 = c.nodes.values().map(|n| n.lapses).sum();
    let refused: u64 = c.nodes.values().map(|n| n.refused).sum();
    let description = format!(
        "One lane for each of {} nodes and one for the quorum, from {} to {}. {lapsed} lapses, {refused} refusals of evidence. The table below has the same facts.",
        c.nodes.len(),
        when(c.period.0),
        when(c.period.1)
    );
    picture::lanes(h, "lanes", ("Attestation of each node over time", &description), axis, &rows, &lines);
    h.raw(concat!(
        "<ul class=\"legend\"><li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"bar good\" y=\"2\" width=\"14\" height=\"10\" rx=\"2\"/></svg>attested</li>",
        "<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"bar warn\" y=\"2\" width=\"14\" height=\"10\" rx=\"2\"/></svg>lapsed, or fresh evidence due</li>",
        "<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"bar bad\" y=\"2\" width=\"14\" height=\"10\" rx=\"2\"/></svg>refused</li>",
        "<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"bar idle\" y=\"2\" width=\"14\" height=\"10\" rx=\"2\"/></svg>never attested, or no member</li>",
        "<li><svg viewBox=\"-7 -7 14 14\" aria-hidden=\"true\"><path class=\"mark cross\" d=\"M-5-5L5 5M-5 5L5-5\"/></svg>evidence or admission refused</li>",
        "<li><svg viewBox=\"-7 -15 14 14\" aria-hidden=\"true\"><path class=\"mark drop\" d=\"M-5-12L5-12L0-4Z\"/></svg>lapse</li>",
        "<li><svg viewBox=\"-7 -9 14 18\" aria-hidden=\"true\"><path class=\"mark restart\" d=\"M0-9V9\"/></svg>started again</li>",
        "<li><svg viewBox=\"-7 -9 14 18\" aria-hidden=\"true\"><path class=\"cut\" d=\"M0-9V9\"/></svg>policy change</li></ul>"
    ));
    table(
        h,
        "Nodes at the end of this copy",
        &["Node", "Custodian", "Now", "TPM", "#Attested", "#Evidence", "#Refused", "#Lapses", "#Boots"],
        c.nodes.iter(),
        |h, (id, node)| {
            th(h, format_args!("{} {}", id, node.name));
            td(h, &node.custodian);
            h.raw("<td>");
            let now = node.standing.now();
            let class = now.map_or("idle", |s| match class_of(s) {
                "due" => "warn",
                class => class,
            });
            chip(h, class, now.map_or_else(|| "never seen".into(), Standing::words));
            h.raw("</td>");
            td(h, tpm(node));
            let span = c.period.1.since_ms(c.period.0).max(1);
            num(h, format_args!("{:.1} %", node.attested_ms() as f64 * 100. / span as f64));
            for n in [node.accepted, node.refused, node.lapses, node.boots] {
                num(h, words::count(n));
            }
        },
    );
    stretches(h, c);
    h.raw("</section>");
}

/// Every stretch in which a node was not attested, as a table.
fn stretches(h: &mut Html, c: &Collected) {
    let rows: Vec<(NodeId, &Span<Standing>)> = c
        .nodes
        .iter()
        .flat_map(|(id, n)| n.standing.spans.rows.iter().map(|span| (*id, span)))
        .filter(|(_, span)| span.what != Standing::Attested)
        .collect();
    h.raw("<details><summary>Every stretch in which a node did not count</summary>");
    let shown = rows.len().min(super::collect::ROWS_MAX);
    table(
        h,
        "From the leaf with which it began",
        &["Node", "From", "Until", "#For", "Why", "#Leaf"],
        rows.iter().take(shown),
        |h, (id, span)| {
            th(h, id);
            time(h, span.from);
            time(h, span.to);
            num(h, duration(span.to.since_ms(span.from)));
            td(h, span.what.words());
            num(h, span.leaf);
        },
    );
    left_out(h, (rows.len() - shown) as u64);
    h.raw("</details>");
}

fn policies(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"policy\"><h2>Policy history</h2><p class=\"lead\">Every version names the one it replaces and is signed by enough admins of that one. <span aria-hidden=\"true\">▲</span> marks what lets more happen than before.</p>");
    table(
        h,
        "Versions, oldest first",
        &["Version", "In force", "Signed by", "What it changed", "#Leaf"],
        &c.policies.rows,
        |h, row| {
            h.raw("<th scope=\"row\">").text(row.version).raw("<br>");
            h.element("span", &[("class", &"hash")], short(&row.digest)).raw("</th>");
            match row.time {
                Some(at) => time(h, at),
                None => {
                    h.element("td", &[("class", &"when")], "genesis");
                }
            }
            h.raw("<td>").text(row.signers.join(", ")).raw("<br>");
            h.element(
                "span",
                &[("class", &"more")],
                format_args!("{} of {} admins must sign", row.threshold, row.admins),
            );
            h.raw("</td><td><ul>");
            for change in &row.changes {
                if change.widens {
                    h.element("li", &[("class", &"widens")], &change.text);
                } else {
                    h.element("li", &[], &change.text);
                }
            }
            h.raw("</ul></td>");
            num(h, row.leaf);
        },
    );
    left_out(h, c.policies.left_out());
    h.raw("</section>");
}

fn traffic(h: &mut Html, c: &Collected) {
    let volume = &c.volume;
    h.raw("<section id=\"traffic\"><h2>Requests</h2><p class=\"lead\">Authorised by the mesh, each before a byte was sent. Bytes and times are the relays’ word, rounded up to 256 bytes; tokens and statuses are the clients’.</p>");
    if volume.bins.is_empty() {
        h.raw("<p>No request was authorised.</p>");
    } else {
        chart(h, c, ("by-route", "Requests over time by route"), &volume.routes, |bin| &bin.routes);
        chart(h, c, ("by-client", "Requests over time by client"), &volume.clients, |bin| &bin.clients);
    }
    tallies(h, "Routes", "Route", &volume.routes);
    tallies(h, "Clients", "Client", &volume.clients);
    if !volume.uses.is_empty() {
        h.raw("<details><summary>Which client used which route</summary>");
        let mut uses: Vec<_> = volume.uses.iter().collect();
        uses.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let left = uses.len().saturating_sub(NAMES_MAX);
        table(
            h,
            "Authorised requests, most first",
            &["Client", "Route", "#Requests"],
            uses.into_iter().take(NAMES_MAX),
            |h, ((client, route), n)| {
                th(h, client);
                td(h, route);
                num(h, words::count(*n));
            },
        );
        left_out(h, left as u64);
        h.raw("</details>");
    }
    if !c.refusals.is_empty() {
        h.raw("<h3>What was refused</h3>");
        let mut refusals: Vec<_> = c.refusals.values().collect();
        refusals.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        table(
            h,
            "Commands that the rules refused, whose authors are proven; most first",
            &["Code", "Why", "Who has to act", "Again?", "#Times"],
            refusals,
            |h, (refusal, n)| {
                h.raw("<th scope=\"row\">").element("code", &[], refusal.code()).raw("</th>");
                td(h, refusal);
                td(
                    h,
                    match refusal.fault() {
                        Fault::Client => "the client",
                        Fault::Operator => "the admins",
                        Fault::Mesh => "the mesh",
                    },
                );
                td(
                    h,
                    match refusal.retry() {
                        Retry::Now => "at once",
                        Retry::Later => "later",
                        Retry::Never => "not without a change",
                    },
                );
                num(h, words::count(*n));
            },
        );
    }
    h.raw("</section>");
}

fn chart<K: Ord + Clone + Display>(
    h: &mut Html,
    c: &Collected,
    (id, title): (&'static str, &'static str),
    tallies: &BTreeMap<K, Tally>,
    counts: impl Fn(&Bin) -> &BTreeMap<K, u64>,
) {
    let mut names: Vec<(&K, u64)> = tallies.iter().map(|(k, t)| (k, t.authorised)).collect();
    names.retain(|(_, n)| *n > 0);
    names.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let others = names.len().saturating_sub(SERIES - 1);
    let series = |key: &K| names.iter().position(|(k, _)| *k == key).unwrap_or(SERIES).min(SERIES - 1);
    let width = c.volume.bin_ms();
    let stacks: Vec<Stack> = c
        .volume
        .bins
        .iter()
        .map(|(at, bin)| {
            let from = Timestamp(at.saturating_mul(width));
            let mut sums = [0; SERIES];
            for (key, n) in counts(bin) {
                sums.get_mut(series(key)).into_iter().for_each(|sum| *sum += n);
            }
            let total: u64 = sums.iter().sum();
            Stack { from, counts: sums, title: format!("{}: {} requests", when(from), words::count(total)) }
        })
        .collect();
    let peak = stacks.iter().map(|s| s.counts.iter().sum::<u64>()).max().unwrap_or(0);
    h.element("h3", &[], title);
    let description = format!(
        "{} requests in bars of {}; at most {} in one bar. The tables below have the sums.",
        words::count(c.summary.authorised),
        duration(width),
        words::count(peak)
    );
    picture::stacks(h, id, (title, &description), Axis::new(c.period), width, &stacks);
    h.raw("<ul class=\"legend\">");
    for ((name, n), number) in names.iter().take(SERIES - 1).zip(0u32..) {
        swatch(h, number);
        h.text(format_args!("{name} ({})", words::count(*n))).raw("</li>");
    }
    if others > 0 {
        swatch(h, (SERIES - 1) as u32);
        h.text(format_args!("{others} more")).raw("</li>");
    }
    h.raw("<li>").text(format_args!("one bar: {}", duration(width))).raw("</li></ul>");
}

fn swatch(h: &mut Html, series: u32) {
    h.raw("<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\">");
    h.empty(
        "rect",
        &[
            ("class", &format_args!("s{series}")),
            ("y", &"1"),
            ("width", &"12"),
            ("height", &"12"),
            ("rx", &"2"),
        ],
    );
    h.raw("</svg>");
}

fn tallies<K: Ord + Display>(h: &mut Html, caption: &str, head: &str, tallies: &BTreeMap<K, Tally>) {
    let mut rows: Vec<_> = tallies.iter().collect();
    rows.sort_by_key(|(_, t)| std::cmp::Reverse(t.authorised));
    let left = rows.len().saturating_sub(NAMES_MAX);
    table(
        h,
        caption,
        &[
            head,
            "#Authorised",
            "#Refused",
            "#Settled",
            "#Incomplete",
            "#Anomalies",
            "#Up / down",
            "#First byte p50 / p95",
            "#Tokens in / out",
            "Statuses",
        ],
        rows.into_iter().take(NAMES_MAX),
        |h, (name, t)| {
            th(h, name);
            for n in [t.authorised, t.refused, t.settled, t.incomplete, t.anomalies] {
                num(h, words::count(n));
            }
            pair(h, &bytes(t.bytes_up), &bytes(t.bytes_down));
            match (t.first_byte.quantile(500), t.first_byte.quantile(950)) {
                (Some(half), Some(most)) => {
                    pair(h, &duration(half.into()), &duration(most.into()));
                }
                _ => num(h, "–"),
            }
            pair(h, &words::count(t.tokens_in), &words::count(t.tokens_out));
            let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
            let said: Vec<String> = classes
                .iter()
                .zip(t.statuses)
                .filter(|(_, n)| *n > 0)
                .map(|(class, n)| format!("{class}: {}", words::count(n)))
                .collect();
            td(h, said.join(", "));
        },
    );
    left_out(h, left as u64);
}

fn events(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"events\"><h2>Anomalies and alarms</h2>");
    if c.events.total == 0 {
        h.raw("<p class=\"lead\">None.</p></section>");
        return;
    }
    h.raw("<p class=\"lead\">Everything out of the ordinary that the log itself says, in its order. A leaf’s number is where to look: <code>quorate-audit explain</code> tells a request’s whole life.</p>");
    table(h, "Oldest first", &["When", "Weight", "What", "Request", "#Leaf"], &c.events.rows, |h, event| {
        time(h, event.time);
        h.raw("<td>");
        severity_chip(h, event.severity);
        h.raw("</td><td>").element("strong", &[], event.kind).raw("<br>").text(&event.text);
        if let Some((times, last)) = event.again {
            h.raw("<br><span class=\"more\">");
            h.text(format_args!("and {} more until {}", words::count(times), when(last))).raw("</span>");
        }
        h.raw("</td>");
        request(h, event);
        num(h, event.leaf);
    });
    left_out(h, c.events.left_out());
    h.raw("</section>");
}

fn request(h: &mut Html, event: &Event) {
    h.raw("<td>");
    if let Some((id, of)) = &event.request {
        h.element("span", &[("class", &"hash id")], id);
        if let Some((client, route)) = of {
            h.raw("<br>").text(format_args!("{client} over {route}"));
        }
    } else {
        h.raw("–");
    }
    h.raw("</td>");
}

fn rotations(c: &Collected) -> u64 {
    c.credentials.values().map(|credential| epochs(credential).saturating_sub(1)).sum()
}

/// How many splittings a credential went through.
fn epochs(credential: &Credential) -> u64 {
    let mut last = None;
    let spans = credential.epochs.spans.rows.iter().filter_map(|span| match span.what {
        Epoch::Usable(e) | Epoch::Frozen(e) => Some(e),
        Epoch::None => None,
    });
    spans.filter(|e| last.replace(*e) != Some(*e)).count() as u64
}

fn keys(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"keys\"><h2>Keys</h2><p class=\"lead\">A provider’s key is split among the nodes; no node has it whole. Each splitting is a share epoch, and a number is never used twice. Nodes make new signing keys whenever they start.</p>");
    if c.credentials.is_empty() {
        h.raw("<p>No route has a provider key.</p>");
    } else {
        let rows: Vec<Row> = c
            .credentials
            .iter()
            .map(|(route, credential)| Row {
                label: route.to_string(),
                below: format!("{} splitting(s)", epochs(credential)),
                bars: credential.epochs.spans.rows.iter().map(epoch_bar).collect(),
                moments: credential
                    .notes
                    .rows
                    .iter()
                    .map(|(time, leaf, text)| Moment {
                        time: *time,
                        shape: Shape::Cross,
                        title: format!("{}, leaf {leaf}: {text}", when(*time)),
                    })
                    .collect(),
            })
            .collect();
        let words = (
            "Share epochs of each route over time",
            "One lane for each route with a provider key. The table below has the same facts.",
        );
        picture::lanes(h, "epochs", words, Axis::new(c.period), &rows, &[]);
        let spans = c.credentials.iter().flat_map(|(route, credential)| {
            credential.epochs.spans.rows.iter().map(move |span| (route, span))
        });
        table(
            h,
            "Share epochs",
            &["Route", "What", "From", "Until", "#Leaf"],
            spans.take(super::collect::ROWS_MAX),
            |h, (route, span)| {
                th(h, route);
                td(h, epoch_words(span.what));
                time(h, span.from);
                time(h, span.to);
                num(h, span.leaf);
            },
        );
        let notes: Vec<_> = c
            .credentials
            .iter()
            .flat_map(|(route, credential)| credential.notes.rows.iter().map(move |note| (route, note)))
            .collect();
        if !notes.is_empty() {
            table(
                h,
                "What the mesh imposed on keys that failed",
                &["Route", "When", "What", "#Leaf"],
                notes,
                |h, (route, (at, leaf, text))| {
                    th(h, route);
                    time(h, *at);
                    td(h, text);
                    num(h, leaf);
                },
            );
        }
    }
    h.raw("</section>");
}

fn checked(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"checked\"><h2>What was checked</h2>");
    for finding in &c.findings {
        found(h, finding);
    }
    h.raw("<p class=\"lead\">By this program alone, from the genesis digest and this copy. No node was asked or believed.</p>");
    let k = &c.checked;
    let rows: [(u64, &str, &str); 8] = [
        (
            k.leaves,
            "leaves",
            "replaying the commands gives these very leaves, and each is in the tree at its place",
        ),
        (
            k.batches,
            "batches",
            "each ends with the policy, the attested nodes and the evidence that they rest on",
        ),
        (k.commands, "commands", "signed by who they say, and decided as the policy of their moment demands"),
        (
            k.quotes,
            "TPM quotes",
            "by the enrolled key, fresh, bound to the log and the boot keys, and good by the reference values of their moment",
        ),
        (k.checkpoints, "checkpoints", "of this very tree, and certified by a quorum that was attested then"),
        (k.cosignatures, "cosignatures", "by the boot keys that evidence proves"),
        (k.tiles, "tiles", "what proofs are made from leads to the certified root"),
        (k.blobs, "blobs", "policies, event logs and measurement lists have the digests that leaves name"),
    ];
    table(h, "", &["#How many", "What", "What was found"], rows, |h, (n, what, text)| {
        num(h, words::count(n));
        th(h, what);
        td(h, text);
    });
    h.raw("</section>");
}

fn found(h: &mut Html, finding: &Finding) {
    h.raw("<div class=\"finding\"><strong>").text(&finding.place).raw("</strong><br>");
    h.text(&finding.fault).raw(" <code>").text(finding.fault.code()).raw("</code>");
    h.element("p", &[("class", &"lead")], finding.fault.meaning()).raw("</div>");
}

fn limits(h: &mut Html, c: &Collected) {
    h.raw("<section id=\"limits\"><h2>What could not be checked</h2><p class=\"lead\">What no copy of a log can show, and what this one does not.</p><ul class=\"notes\">");
    let mut note = |chip_class: &'static str, word: &str, text: &dyn Display| {
        h.raw("<li>");
        chip(h, chip_class, word);
        h.raw("<span>").text(text).raw("</span></li>");
    };
    if !c.findings.is_empty() {
        let rest = c.claimed.0.saturating_sub(c.position.0);
        note(
            "bad",
            "broken",
            &format_args!(
                "History was not followed beyond leaf {}: {} leaves were not looked at.",
                c.position,
                words::count(rest)
            ),
        );
    }
    let software: Vec<NodeId> = c.nodes.iter().filter(|(_, n)| n.software_tpm).map(|(id, _)| *id).collect();
    if !software.is_empty() {
        note(
            "warn",
            "machine",
            &format_args!(
                "The TPM of {} is software, as policy permits: its evidence proves nothing about a machine.",
                nodes(&software)
            ),
        );
    }
    if c.firmware_unchecked {
        note(
            "warn",
            "firmware",
            &"Some reference values name no TPM firmware version, so it was not compared.",
        );
    }
    note(
        "idle",
        "second log",
        &"Whether somebody was shown another history that is certified just as well. Compare what several nodes serve: quorate-audit monitor.",
    );
    note(
        "idle",
        "later",
        &format_args!("What happened after {} UTC. A mirror made now says more.", when(c.period.1)),
    );
    note(
        "idle",
        "memory",
        &"What a node’s memory held after it was measured: quotes show what was loaded, not what became of it.",
    );
    note(
        "idle",
        "time",
        &format_args!(
            "The exact time: it is the proposing leader’s clock, which a quorum found within {} of its own.",
            duration(c.policy.attestation.clock_skew_ms)
        ),
    );
    note(
        "idle",
        "numbers",
        &"Bytes and durations are the relays’ word, tokens and statuses the clients’. Where they contradict each other, it is an anomaly above.",
    );
    note(
        "idle",
        "content",
        &"Prompts and answers: they are not in the log. Only who holds the salt can show which body a digest is of.",
    );
    note(
        "idle",
        "strangers",
        &"Commands whose author is not proven: anybody could have made them up, so they leave no leaf.",
    );
    note(
        "idle",
        "cosigners",
        &format_args!(
            "Who cosigned between the {} checkpoint(s) that this copy holds. All leaves rest on the newest one.",
            c.checked.checkpoints
        ),
    );
    h.raw("</ul></section>");
}

fn glossary(h: &mut Html) {
    h.raw("<section id=\"words\"><h2>Words</h2><dl class=\"words\">");
    for (word, text) in [
        (
            "attested",
            "The node showed a fresh TPM quote that fits the reference values which the admins signed.",
        ),
        (
            "lapse",
            "Its newest evidence became too old. It neither relays nor certifies until there is new evidence.",
        ),
        (
            "relay, keyer",
            "The relay carries a request’s encrypted records; the keyer fills in its part of the provider’s key. Neither sees both.",
        ),
        ("settlement", "The relay’s word on how a request ended; the client’s is its report."),
        ("anomaly", "What relay and client say does not fit together, or one of them never said anything."),
        ("share epoch", "One splitting of a provider’s key into shares."),
        (
            "certified",
            "Cosigned by so many attested nodes that two histories cannot both be, with at most the tolerated number of hostile nodes.",
        ),
        ("leaf", "One entry of the log, by its number. Everything on this page can be found again there."),
    ] {
        h.element("dt", &[], word).element("dd", &[], text);
    }
    h.raw("</dl></section>");
}

fn footer(h: &mut Html) {
    h.raw("<footer><p>").text(format_args!(
        "Made by quorate-audit {} without network. The same copy gives the same page, byte for byte.",
        env!("CARGO_PKG_VERSION")
    ));
    h.raw("</p></footer>");
}

// What tables are made of.

/// A table; a column whose name begins with `#` holds numbers.
fn table<I: IntoIterator>(
    h: &mut Html,
    caption: &str,
    columns: &[&str],
    rows: I,
    mut row: impl FnMut(&mut Html, I::Item),
) {
    h.open("div", &[("class", &"table"), ("tabindex", &"0"), ("role", &"group"), ("aria-label", &caption)]);
    h.raw("<table>");
    if !caption.is_empty() {
        h.element("caption", &[], caption);
    }
    h.raw("<thead><tr>");
    for column in columns {
        let (class, name) = column.strip_prefix('#').map_or(("", *column), |name| ("n", name));
        h.element("th", &[("scope", &"col"), ("class", &class)], name);
    }
    h.raw("</tr></thead><tbody>");
    for item in rows {
        h.raw("<tr>");
        row(h, item);
        h.raw("</tr>");
    }
    h.raw("</tbody></table></div>");
}

fn th(h: &mut Html, text: impl Display) {
    h.element("th", &[("scope", &"row")], text);
}
fn td(h: &mut Html, text: impl Display) {
    h.element("td", &[], text);
}
fn num(h: &mut Html, text: impl Display) {
    h.element("td", &[("class", &"n")], text);
}
/// Two numbers, on two lines where there is no room for one.
fn pair(h: &mut Html, one: &str, other: &str) {
    let whole = |text: &str| text.replace(' ', "\u{a0}");
    h.element("td", &[("class", &"n pair")], format_args!("{}\u{a0}/ {}", whole(one), whole(other)));
}
fn time(h: &mut Html, at: Timestamp) {
    h.open("td", &[("class", &"when")])
        .element("time", &[("datetime", &words::date(at))], when(at))
        .close("td");
}
fn chip(h: &mut Html, class: &str, text: impl Display) {
    h.element("span", &[("class", &format_args!("chip {class}"))], text);
}
fn severity_chip(h: &mut Html, severity: Severity) {
    match severity {
        Severity::Grave => chip(h, "bad", "grave"),
        Severity::Warning => chip(h, "warn", "warning"),
        Severity::Notice => chip(h, "idle", "notice"),
    }
}
fn left_out(h: &mut Html, n: u64) {
    if n > 0 {
        h.raw("<p class=\"more\">")
            .text(format_args!("and {} more, left out here.", words::count(n)))
            .raw("</p>");
    }
}

// What pictures are made of.

fn bar<T>(span: &Span<T>, class: &'static str, text: &str, label: &str) -> Bar {
    let title = format!(
        "{text}: {} to {} ({}), from leaf {}",
        when(span.from),
        when(span.to),
        duration(span.to.since_ms(span.from)),
        span.leaf
    );
    Bar { from: span.from, to: span.to, class, title, label: label.into() }
}

fn class_of(standing: &Standing) -> &'static str {
    match standing {
        Standing::Attested => "good",
        Standing::Refused(_) | Standing::PolicyChanged => "bad",
        Standing::Lapsed => "warn",
        Standing::Awaiting | Standing::Recovered => "due",
        Standing::Never | Standing::Removed => "idle",
    }
}

fn standing_bar(span: &Span<Standing>) -> Bar {
    bar(span, class_of(&span.what), &span.what.words(), "")
}

fn moment(mark: &Mark) -> Moment {
    let shape = match mark.kind {
        MarkKind::Lapsed => Shape::Drop,
        MarkKind::Refused => Shape::Cross,
        MarkKind::Restarted => Shape::Tick,
    };
    Moment {
        time: mark.time,
        shape,
        title: format!("{}, leaf {}: {}", when(mark.time), mark.leaf, mark.text),
    }
}

fn epoch_words(epoch: Epoch) -> String {
    match epoch {
        Epoch::Usable(e) => format!("share epoch {e}"),
        Epoch::Frozen(e) => format!("share epoch {e}, frozen by admins"),
        Epoch::None => "no provider key".into(),
    }
}

fn epoch_bar(span: &Span<Epoch>) -> Bar {
    let class = match span.what {
        Epoch::Usable(e) if e % 2 == 1 => "epoch-a",
        Epoch::Usable(_) => "epoch-b",
        Epoch::Frozen(_) => "bad",
        Epoch::None => "idle",
    };
    let label = match span.what {
        Epoch::Usable(e) => format!("epoch {e}"),
        Epoch::Frozen(_) | Epoch::None => String::new(),
    };
    bar(span, class, &epoch_words(span.what), &label)
}

// Words.

fn nodes(ids: &[NodeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn tpm(node: &Node) -> String {
    match (node.boots, node.software_tpm) {
        (0, _) => "–".into(),
        (_, true) => format!("software, firmware {:016x}", node.firmware),
        (_, false) => format!("hardware, firmware {:016x}", node.firmware),
    }
}

fn short(hash: &quorate_core::crypto::Hash) -> String {
    hash.to_string().chars().take(16).chain(['…']).collect()
}

/// To the second.
fn when(time: Timestamp) -> String {
    let date = words::date(time);
    format!("{} {}", date.get(..10).unwrap_or_default(), date.get(11..19).unwrap_or_default())
}

fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 if ms.is_multiple_of(1000) => format!("{s} s"),
        1..60 => format!("{:.1} s", ms as f64 / 1000.),
        60..3600 if s.is_multiple_of(60) => format!("{} min", s / 60),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 if s % 3600 < 60 => format!("{} h", s / 3600),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ if s % 86_400 < 3600 => format!("{} d", s / 86_400),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut size, mut unit) = (n as f64, 0);
    while size >= 1024. && unit + 1 < units.len() {
        size /= 1024.;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_500, "1.5 s"),
            (60_000, "1 min"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
            (86_400_000, "1 d"),
            (190_000_000, "2 d 4 h"),
        ] {
            assert_eq!(duration(ms), expected);
        }
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(3 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
        );
        assert_eq!(when(Timestamp(1_795_297_200_123)), "2026-11-21 21:40:00");
    }
}
