//! What the table says of tests is true of the tree that it was built from: each test that a row names is there.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file of the workspace.
fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !["target", "node_modules", "corpus"].iter().any(|skipped| name == *skipped) {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
}

/// Names of the tests in a file: each function that a line with `#[test]`, or another attribute ending so, stands above.
fn tests_in(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test && !line.starts_with("//"))
        {
            names.insert(rest.split(['(', '<']).next().unwrap_or_default());
            is_test = false;
        }
    }
    names
}

/// The literals in which rows say what shows that their check bites.
fn claims(text: &str) -> Vec<String> {
    let mut claims = Vec::new();
    for (at, _) in text.match_indices("bites") {
        // Up to the statement's end, which no literal holds.
        for (part, piece) in text[at..].split('"').enumerate() {
            if part % 2 == 1 {
                claims.push(piece.to_owned());
            } else if piece.contains(';') {
                break;
            }
        }
    }
    claims
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*".contains(c))
}

/// What a claim names that is not there: a file, a test of that file, or a test of the whole tree.
fn missing(claim: &str, tests: &BTreeSet<String>, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut missing = Vec::new();
    // The tests of the file that was named last, until a word that is none.
    let mut of: Option<(String, String)> = None;
    for word in claim.split([' ', ';', '(', ')']).filter(|w| !w.is_empty()) {
        let bare = word.trim_end_matches([',', ':', '.']);
        if bare.contains('/') && bare.ends_with(".rs") {
            match read(bare) {
                Some(text) => of = word.ends_with(':').then(|| (bare.to_owned(), text)),
                None => missing.push(bare.to_owned()),
            }
            continue;
        }
        let long = bare.matches('_').count() >= 2;
        match &of {
            // A word without `_` is a name where it is listed.
            Some((file, text))
                if is_name(bare) && !bare.contains('*') && (bare.contains('_') || bare != word) =>
            {
                if !tests_in(text).contains(bare) {
                    missing.push(format!("{bare} in {file}"));
                }
                // More of them follow a comma; after anything else the claim goes on in words.
                if !word.ends_with(',') {
                    of = None;
                }
            }
            _ => {
                of = None;
                let found = match bare.split_once('*') {
                    Some((begin, end)) => tests.iter().any(|t| t.starts_with(begin) && t.ends_with(end)),
                    None => tests.contains(bare),
                };
                if is_name(bare) && (long || bare.contains('*')) && !found {
                    missing.push(bare.to_owned());
                }
            }
        }
    }
    missing
}

#[test]
fn every_test_that_a_row_names_is_there() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let tests: BTreeSet<String> = texts.iter().flat_map(|t| tests_in(t)).map(str::to_owned).collect();
    assert!(tests.len() > 500, "{} tests in the tree", tests.len());
    let read = |path: &str| std::fs::read_to_string(root().join(path)).ok();
    let drill = root().join("tests/src/drill");
    let mut named = 0;
    for file in std::fs::read_dir(&drill).unwrap().map(|entry| entry.unwrap().path()) {
        if file.ends_with("named.rs") {
            continue;
        }
        for claim in claims(&std::fs::read_to_string(&file).unwrap()) {
            let missing = missing(&claim, &tests, &read);
            assert!(missing.is_empty(), "{}: no {missing:?}, named by {claim:?}", file.display());
            named += usize::from(claim.contains('_'));
        }
    }
    assert!(named >= 12, "only {named} rows name a test");
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    let tests = BTreeSet::from(["a_real_test".to_owned(), "a_fork_is_found".to_owned()]);
    let read = |path: &str| (path == "a/b.rs").then(|| "#[test]\nfn one() {}\nfn two() {}\n".to_owned());
    let check = |claim| missing(claim, &tests, &read);
    assert!(check("state test a_real_test; a/b.rs: one: as it says, *_is_found").is_empty());
    assert_eq!(check("state test an_unreal_test"), ["an_unreal_test"]);
    assert_eq!(check("a/c.rs: one"), ["a/c.rs"]);
    assert!(check("a/b.rs: with each off, a_real_test").is_empty());
    assert_eq!(check("a/b.rs: one, two, in words"), ["two in a/b.rs"]);
    assert_eq!(check("with each off, *_is_lost"), ["*_is_lost"]);
    assert_eq!(
        claims("let bites = \"x_y_z\";\n held.bites(bites)").first().map(String::as_str),
        Some("x_y_z")
    );
}
