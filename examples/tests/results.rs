//! The committed tables are those of the committed logs. `UPDATE_EXPECT=1` writes tables and pictures anew.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::{Path, PathBuf};

use sam_examples::experiments::compare::run::{Epoch, TrainMode};
use sam_examples::experiments::compare::{curves, report};
use sam_examples::experiments::variants::run::Run;
use sam_examples::experiments::variants::{self, Variant, chart, variants};

fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
}

fn log<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether files are written instead of compared.
fn updates() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// The table in a Markdown file, with what stands before and after it.
fn parts(text: &str) -> [String; 3] {
    let start = text.find("| ").unwrap();
    let end = start + text[start..].find("|\n\n").map_or(text.len() - start, |end| end + 2);
    [&text[..start], &text[start..end], &text[end..]].map(str::to_owned)
}

#[test]
fn of_comparisons() {
    let both = [TrainMode::Sgd, TrainMode::Sam];
    let mut found = 0;
    for folder in fs::read_dir(results()).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.ends_with("variants") || !folder.join("log.jsonl").exists() {
            continue;
        }
        let log: Vec<Epoch> = log(&folder.join("log.jsonl"));
        let path = folder.join("table.md");
        let [title, table, rest] = parts(&fs::read_to_string(&path).unwrap());
        let expected = report::table(&log, &both);
        if updates() {
            fs::write(path, title.clone() + &expected + &rest).unwrap();
            curves::draw(&log, &both, title.trim(), title.contains("wrong labels"), &folder.join("curves.png"))
                .unwrap();
        } else {
            assert_eq!(table, expected, "{}", folder.display());
        }
        found += 1;
    }
    assert_eq!(found, 5);
}

/// The row of F-SAM, of a later run, is from a log of its own.
#[test]
fn of_the_variants() {
    let folder = results().join("variants");
    let [mut runs, later]: [Vec<Run>; 2] = ["log.jsonl", "f-sam.jsonl"].map(|name| log(&folder.join(name)));
    let all = variants();
    let of_later: Vec<Variant> =
        variants().into_iter().filter(|variant| ["SAM", "F-SAM"].contains(&variant.name)).collect();
    let rows = |table: String| -> Vec<Vec<String>> {
        table.lines().map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let mut expected = rows(variants::report::table(&all, &runs));
    let row = rows(variants::report::table(&of_later, &later)).pop().unwrap();
    let place = expected.iter().position(|row| row[1] == "F-SAM").unwrap();
    expected[place] = row;
    runs.retain(|run| run.variant != "F-SAM");
    runs.extend(later.into_iter().filter(|run| run.variant == "F-SAM"));

    let path = folder.join("table.md");
    let [title, table, rest] = parts(&fs::read_to_string(&path).unwrap());
    if updates() {
        expected.remove(1);
        let cells: Vec<Vec<String>> = expected.into_iter().map(|row| row[1..row.len() - 1].to_vec()).collect();
        fs::write(path, title.clone() + &sam_examples::io::table::align(&cells) + &rest).unwrap();
        chart::draw(&all, &runs, title.trim(), &folder.join("variants.png")).unwrap();
    } else {
        expected[1].clear();
        let mut found = rows(table);
        found[1].clear();
        assert_eq!(found, expected);
    }
}
