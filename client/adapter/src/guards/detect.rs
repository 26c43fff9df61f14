//! What the built-in guards look for: well-known forms of keys, and personal data. Where a form has a checksum it must hold, so
//! that a number of another kind is left alone. Pure, linear in the text.
use super::checksum;
use regex::Regex;
use std::collections::BTreeSet;
use std::ops::Range;

/// Entropy of a value behind `token =` and the like that nobody writes by hand, bits for each character.
const ENTROPY_MIN: f64 = 3.5;
/// Groups of digits that one run of them is taken apart into, at most: a card's number has four.
const GROUPS_MAX: usize = 24;

/// Something found. Where, and of what kind; never what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) range: Range<usize>,
    pub(crate) what: &'static str,
}

/// Finds what one kind looks like.
type Find = fn(&Regex, &str, &'static str, &mut Vec<Hit>);

/// One kind: its name in configurations, its form, and what else must hold.
struct Kind {
    name: &'static str,
    form: &'static str,
    find: Find,
}

const SECRETS: &[Kind] = &[
    Kind { name: "aws", form: r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b", find: all },
    Kind {
        name: "github",
        form: r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
        find: all,
    },
    Kind { name: "gitlab", form: r"\bglpat-[A-Za-z0-9_-]{20,64}", find: all },
    Kind {
        name: "slack",
        form: r"\bxox[abeoprs]-[A-Za-z0-9-]{10,255}|\bxapp-[0-9]-[A-Za-z0-9-]{10,255}|hooks\.slack\.com/services/T[A-Z0-9]{6,16}/B[A-Z0-9]{6,16}/[A-Za-z0-9]{16,64}",
        find: all,
    },
    Kind {
        name: "google",
        form: r"\bAIza[0-9A-Za-z_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{28}|\bya29\.[0-9A-Za-z_-]{20,512}",
        find: all,
    },
    Kind { name: "anthropic", form: r"\bsk-ant-[A-Za-z0-9_-]{16,255}", find: all },
    Kind { name: "openai", form: r"\bsk-(?:proj-|svcacct-|admin-|None-)?[A-Za-z0-9_-]{32,255}", find: all },
    Kind { name: "stripe", form: r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}", find: all },
    Kind {
        name: "private_key",
        form: r"(?s)-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY[A-Z ]{0,8}-----.*?(?:-----END [A-Z0-9 ]{0,32}PRIVATE KEY[A-Z ]{0,8}-----|\z)",
        find: all,
    },
    Kind {
        name: "jwt",
        form: r"\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,16384}\.[A-Za-z0-9_-]{8,4096}",
        find: all,
    },
    Kind {
        name: "assignment",
        form: r#"(?i)\b[a-z0-9_.-]{0,32}(?:api[_-]?key|secret|token|passwd|password|access[_-]?key|credential|private[_-]?key)[a-z0-9_.-]{0,32}\\?["']?\s{0,4}(?:=>|:=|=|:)\s{0,4}\\?["']?([A-Za-z0-9+/_.~-]{16,512}={0,2})"#,
        find: assigned,
    },
];

const PERSONAL: &[Kind] = &[
    Kind {
        name: "email",
        form: r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b",
        find: all,
    },
    Kind { name: "iban", form: r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}", find: ibans },
    Kind { name: "card", form: r"\b[0-9](?:[ -]?[0-9]){12,30}\b", find: cards },
    Kind {
        name: "national_id",
        form: r"(?i)\b(?:[0-9XYZ][0-9]{7}-?[A-Z]|[A-Z]{6}[0-9L-V]{2}[A-EHLMPR-T][0-9L-V]{2}[A-Z][0-9L-V]{3}[A-Z]|[12][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[0-9AB]{2}[ ]?[0-9]{3}[ ]?[0-9]{3}[ ]?[0-9]{2}|[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}|[0-9]{17}[0-9X]|[0-9]{6}[-+A][0-9]{3}[0-9A-Y]|[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}|[0-9]{11})\b",
        find: national,
    },
    Kind {
        name: "phone",
        form: r"\+[1-9][0-9]{0,3}(?:[ ()./-]{0,2}[0-9]){6,14}\b|(?:\(\b[2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b",
        find: phones,
    },
];

/// A kind, ready to be looked for.
pub(crate) struct Detector {
    form: Regex,
    what: &'static str,
    find: Find,
}

impl Detector {
    /// Adds what is there.
    pub(crate) fn find(&self, text: &str, hits: &mut Vec<Hit>) {
        (self.find)(&self.form, text, self.what, hits);
    }
}

/// Kinds of secrets.
pub(crate) fn secrets(only: Option<&BTreeSet<String>>) -> Result<Vec<Detector>, String> {
    chosen(SECRETS, only)
}

/// Kinds of personal data.
pub(crate) fn personal(only: Option<&BTreeSet<String>>) -> Result<Vec<Detector>, String> {
    chosen(PERSONAL, only)
}

fn chosen(kinds: &[Kind], only: Option<&BTreeSet<String>>) -> Result<Vec<Detector>, String> {
    let unknown = only.into_iter().flatten().find(|name| !kinds.iter().any(|k| k.name == name.as_str()));
    if let Some(name) = unknown {
        let names: Vec<_> = kinds.iter().map(|k| k.name).collect();
        return Err(format!("detect: {name:?} is none of {}", names.join(", ")));
    }
    let wanted = kinds.iter().filter(|k| only.is_none_or(|only| only.contains(k.name)));
    let made = |k: &Kind| {
        let form = Regex::new(k.form).map_err(|e| e.to_string())?;
        Ok(Detector { form, what: k.name, find: k.find })
    };
    wanted.map(made).collect()
}

fn all(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    hits.extend(form.find_iter(text).map(|m| Hit { range: m.range(), what }));
}

/// Only the value goes, and only if it looks drawn at random.
fn assigned(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    let values = form.captures_iter(text).filter_map(|c| c.get(1));
    let random = values.filter(|value| {
        let text = value.as_str();
        let (mut digits, mut letters) = (false, false);
        text.bytes().for_each(|b| {
            digits |= b.is_ascii_digit();
            letters |= b.is_ascii_alphabetic();
        });
        digits && letters && checksum::entropy(text) >= ENTROPY_MIN
    });
    hits.extend(random.map(|value| Hit { range: value.range(), what }));
}

fn ibans(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    for found in form.find_iter(text) {
        // A word may follow that the form takes for more of it.
        let plain = compact(found.as_str());
        let Some(length) = checksum::iban_length(&plain) else { continue };
        let number: String = plain.chars().take(length).collect();
        if number.len() == length && checksum::iban(&number) {
            let end = end_of(found.as_str(), length);
            hits.push(Hit { range: found.start()..found.start() + end, what });
        }
    }
}

/// Without separators.
fn compact(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

/// Where the first `length` characters that are no separators end.
fn end_of(text: &str, length: usize) -> usize {
    let marks = text.char_indices().filter(|(_, c)| !matches!(c, ' ' | '-'));
    marks.take(length).last().map_or(0, |(at, c)| at + c.len_utf8())
}

/// Cards have 13 to 19 digits and may stand among other groups of digits.
fn cards(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    for found in form.find_iter(text) {
        let groups: Vec<Range<usize>> = groups(found.as_str());
        let mut from = 0;
        while from < groups.len() {
            let end = (from..groups.len()).rev().find(|to| {
                let span = groups.get(from).zip(groups.get(*to)).map(|(a, b)| a.start..b.end);
                span.and_then(|s| found.as_str().get(s)).is_some_and(|text| checksum::card(&compact(text)))
            });
            match end.and_then(|to| Some((to, groups.get(from)?.start..groups.get(to)?.end))) {
                Some((to, span)) => {
                    let range = found.start() + span.start..found.start() + span.end;
                    hits.push(Hit { range, what });
                    from = to + 1;
                }
                None => from += 1,
            }
        }
    }
}

fn groups(text: &str) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices([' ', '-']).take(GROUPS_MAX) {
        groups.push(start..at);
        start = at + 1;
    }
    groups.push(start..text.len());
    groups
}

fn national(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    let found = form.find_iter(text).filter(|m| checksum::national_id(m.as_str()));
    hits.extend(found.map(|m| Hit { range: m.range(), what }));
}

fn phones(form: &Regex, text: &str, what: &'static str, hits: &mut Vec<Hit>) {
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
    let found = form.find_iter(text).filter(|m| (8..=15).contains(&digits(m.as_str())));
    hits.extend(found.map(|m| Hit { range: m.range(), what }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(detectors: &[Detector], text: &str) -> Vec<(&'static str, String)> {
        let mut hits = Vec::new();
        detectors.iter().for_each(|d| d.find(text, &mut hits));
        hits.into_iter().map(|h| (h.what, text[h.range].to_owned())).collect()
    }

    #[test]
    fn keys_of_each_kind_are_found_and_their_like_is_not() {
        let all = secrets(None).unwrap();
        let a = |n: usize| "aB3dE6gH9j".repeat(30)[..n].to_owned();
        let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----";
        let cases = [
            ("aws", "AKIAIOSFODNN7EXAMPLE".to_owned()),
            ("github", format!("ghp_{}", a(36))),
            ("github", format!("github_pat_{}", a(40))),
            ("gitlab", format!("glpat-{}", a(20))),
            ("slack", "xoxb-1234567890-abcdef".to_owned()),
            ("google", format!("AIza{}", a(35))),
            ("anthropic", format!("sk-ant-api03-{}", a(80))),
            ("openai", format!("sk-proj-{}", a(48))),
            ("stripe", format!("sk_live_{}", a(24))),
            ("private_key", pem.to_owned()),
            ("private_key", pem[..40].to_owned()),
            ("jwt", format!("eyJ{}.eyJ{}.{}", a(20), a(30), a(43))),
        ];
        for (kind, key) in cases {
            let text = format!("use {key}");
            assert!(
                found(&all, &text).contains(&(kind, key.clone())),
                "{kind} in {text}: {:?}",
                found(&all, &text)
            );
        }
        let value = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        for text in [
            format!("aws_secret_access_key = {value}"),
            format!("{{\"client_secret\": \"{value}\"}}"),
            format!("{{\\\"client_secret\\\": \\\"{value}\\\"}}"),
            format!("DB_PASSWORD={value}"),
        ] {
            assert_eq!(found(&all, &text), [("assignment", value.to_owned())], "{text}");
        }
        for harmless in [
            "the token: supercalifragilisticexpialidocious",
            "password: aaaaaaaaaaaaaaaa1111111111111111",
            "AKIA is a prefix; sk-learn too; sk-ant-eater",
            "tokens_per_second: 1234567890123456",
            "-----BEGIN PUBLIC KEY-----\nMHcC\n-----END PUBLIC KEY-----",
            "eyJhbGciOi.eyJx.y",
        ] {
            assert_eq!(found(&all, harmless), [], "{harmless}");
        }
    }

    #[test]
    fn personal_data_is_found_where_its_checksum_holds() {
        let all = personal(None).unwrap();
        for (kind, text, hit) in [
            ("email", "to ada.l+x@mail.example.org.", "ada.l+x@mail.example.org"),
            ("phone", "call +49 (30) 901820-0 now", "+49 (30) 901820-0"),
            ("phone", "or (415) 555-2671", "(415) 555-2671"),
            ("iban", "pay DE89 3704 0044 0532 0130 00 TODAY", "DE89 3704 0044 0532 0130 00"),
            ("iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
            ("card", "4111 1111 1111 1111", "4111 1111 1111 1111"),
            ("card", "order 12 4111-1111-1111-1111 5", "4111-1111-1111-1111"),
            ("card", "378282246310005", "378282246310005"),
            ("national_id", "DNI 12345678Z", "12345678Z"),
            ("national_id", "CF RSSMRA85T10A562S", "RSSMRA85T10A562S"),
            ("national_id", "NIR 2 55 08 14 168 025 38", "2 55 08 14 168 025 38"),
            ("national_id", "CPF 111.444.777-35", "111.444.777-35"),
            ("national_id", "11010519491231002X", "11010519491231002X"),
            ("national_id", "131052-308T", "131052-308T"),
            ("national_id", "PESEL 44051401359", "44051401359"),
            ("national_id", "RRN 85.07.30-033.28", "85.07.30-033.28"),
        ] {
            assert!(found(&all, text).contains(&(kind, hit.to_owned())), "{text}: {:?}", found(&all, text));
        }
        for harmless in [
            "DE88 3704 0044 0532 0130 00",
            "4111 1111 1111 1112",
            "12345678A",
            "111.444.777-36",
            "11010519491231002Y",
            "131052-308U",
            "44051401358",
            "at@ example, 1.2.3.4, 2024-01-02 03:04:05",
            "build 20240102030405",
        ] {
            assert_eq!(found(&all, harmless), [], "{harmless}");
        }
    }

    #[test]
    fn kinds_can_be_chosen_by_name_only() {
        let only = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(secrets(Some(&only(&["aws", "jwt"]))).unwrap().len(), 2);
        assert!(secrets(Some(&only(&["awz"]))).err().unwrap().contains("awz"));
        assert!(personal(Some(&only(&["aws"]))).is_err());
    }
}
