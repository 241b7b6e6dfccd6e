//! Links of the documentation lead somewhere, in the repository and on docs.rs.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The text between each `open` and the `close` after it.
fn between<'a>(text: &'a str, open: &str, close: char) -> BTreeSet<&'a str> {
    text.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0)).collect()
}

/// The labels and targets of link definitions.
fn definitions(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "))
}

/// Between pages there are reference links alone: what is defined before a page, in `rustdoc_links.md`, takes the place of the
/// definition at its end.
#[test]
fn every_link_has_a_target_here_and_in_rustdoc() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sam-runtime/docs");
    let in_rustdoc = fs::read_to_string(docs.join("../src/rustdoc_links.md")).unwrap();
    let mut in_use = BTreeSet::new();
    for path in fs::read_dir(&docs).unwrap().map(|entry| entry.unwrap().path()) {
        let (page, text) = (path.display(), fs::read_to_string(&path).unwrap());
        // Without programs.
        let text: String = text.split("```").step_by(2).collect();
        for target in between(&text, "](", ')') {
            assert!(
                target.starts_with('#') || target.starts_with("https://"),
                "{page}: {target} should be a reference"
            );
        }
        let labels = between(&text, "][", ']');
        let defined: BTreeSet<_> = definitions(&text).map(|(label, _)| label).collect();
        assert_eq!(labels, defined, "{page}");
        for (label, target) in definitions(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked =
                fs::read_to_string(docs.join(file)).unwrap_or_else(|error| panic!("{page}: {target}: {error}"));
            let has_heading = linked.lines().filter(|line| line.starts_with('#')).any(|line| {
                let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).eq(anchor.chars())
            });
            assert!(anchor.is_empty() || has_heading, "{page}: {target} has no such heading");
            in_use.insert(label.to_owned());
        }
    }
    let defined: BTreeSet<_> = definitions(&in_rustdoc).map(|(label, _)| label.to_owned()).collect();
    assert_eq!(in_use, defined, "rustdoc_links.md");
}
