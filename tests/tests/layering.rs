//! The crates consist of layers: a file uses what stands below it, and no files use each other in a circle.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room of `examples/src` is a folder, or a file of its own.
const EXAMPLES: &[&[&str]] = &[
    &["util"],
    &["io"],
    &["augment"],
    &["data"],
    &["models"],
    &["losses"],
    &["metrics"],
    &["noisy_labels"],
    &["recipe"],
    &["trainer"],
    &["experiments"],
    &["cli"],
    &["bin"],
];

/// From the bottom up. Those in one row do not use each other.
const RUNTIME: &[&[&str]] = &[
    &["core"],
    &["kernels", "distributed"],
    &["autograd"],
    &["optim"],
    &["nn"],
    &["variants"],
    &["sam"],
    &["step"],
    &["macro_support", "sharpness"],
];

/// Every file of a crate, by its module path.
fn paths_of_files(root: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut files = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(module(root, &path), path);
            }
        }
    }
    files
}

/// Every file of a crate, with the files that its `use` lines name.
fn files(root: &Path) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let files = paths_of_files(root);
    let known: BTreeSet<_> = files.keys().cloned().collect();
    files.into_iter().map(|(module, path)| (module.clone(), uses(&module, &path, &known))).collect()
}

fn module(root: &Path, path: &Path) -> Vec<String> {
    let path: PathBuf = path.strip_prefix(root).unwrap().with_extension("");
    let words = path.iter().map(|word| word.to_str().unwrap().to_owned());
    words.filter(|word| !["mod", "lib", "main"].contains(&&**word)).collect()
}

/// The files that a file uses: the longest known module of each path. What a `mod.rs` re-exports it does not use.
fn uses(module: &[String], path: &Path, known: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let is_root = path.file_stem().is_some_and(|stem| stem == "mod" || stem == "lib");
    let code = code.split("\nmod tests {").next().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for (start, _) in code.match_indices("use ") {
        let line = code[..start].rfind('\n').map_or(0, |end| end + 1);
        let before = code[line..start].trim();
        if !(before.is_empty() || before.starts_with("pub")) || before.starts_with("pub") && is_root {
            continue;
        }
        let Some(end) = code[start..].find(';') else { continue };
        for path in paths(&code[start + 4..start + end]) {
            let mut words: Vec<String> = path.split("::").map(str::to_owned).collect();
            let mut base = match &*words[0] {
                "crate" | "sam_examples" => Vec::new(),
                "self" => module.to_vec(),
                "super" => {
                    let ups = words.iter().take_while(|word| *word == "super").count();
                    words.drain(1..ups);
                    module[..module.len().saturating_sub(ups)].to_vec()
                }
                // A child of this file.
                first if is_root && known.contains(&[module, &[first.to_owned()]].concat()) => {
                    words.insert(0, String::new());
                    module.to_vec()
                }
                _ => continue,
            };
            base.extend(words.drain(1..));
            while !known.contains(&base) {
                base.pop();
            }
            if base != module {
                found.insert(base);
            }
        }
    }
    found
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else { return vec![tree.split(" as ").next().unwrap().to_owned()] };
    let (prefix, inner) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(paths).map(|path| format!("{prefix}{path}").replace("::self", "")).collect()
}

/// A circle of files, if there is one.
fn circle(files: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<String>> {
    let mut left: BTreeMap<_, BTreeSet<_>> = files.iter().map(|(file, uses)| (file, uses.iter().collect())).collect();
    loop {
        let free: Vec<_> = left.iter().filter(|(_, uses)| uses.is_empty()).map(|(file, _)| *file).collect();
        if free.is_empty() {
            return (!left.is_empty())
                .then(|| left.iter().map(|(file, uses)| format!("{file:?} -> {uses:?}")).collect());
        }
        for file in free {
            left.remove(file);
            for uses in left.values_mut() {
                uses.remove(file);
            }
        }
    }
}

fn sources(krate: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src")
}

fn floor(floors: &[&[&str]], module: &str) -> Option<usize> {
    floors.iter().position(|row| row.contains(&module))
}

#[test]
fn a_file_uses_what_stands_below_it() {
    for (krate, floors) in [("sam-runtime", RUNTIME), ("examples", EXAMPLES)] {
        for (file, uses) in files(&sources(krate)).iter().filter(|(file, _)| !file.is_empty()) {
            let from = floor(floors, &file[0]).unwrap_or_else(|| panic!("{krate}: {} is on no floor", file[0]));
            for used in uses.iter().filter(|used| !used.is_empty() && used[0] != file[0]) {
                let to = floor(floors, &used[0]).unwrap();
                assert!(from > to, "{krate}: {file:?} uses {used:?}, which does not stand below it");
            }
        }
    }
}

/// Also in tests, and where a path is written out.
#[test]
fn no_path_in_examples_leads_upward() {
    let root = sources("examples");
    for (module, path) in paths_of_files(&root).iter().filter(|(module, _)| !module.is_empty()) {
        let own = floor(EXAMPLES, &module[0]).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for rest in code.flat_map(|line| line.split("crate::").chain(line.split("sam_examples::")).skip(1)) {
            let room: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_above = floor(EXAMPLES, &room).is_some_and(|used| used > own);
            assert!(!is_above, "{module:?} uses `{room}`, which is above `{}`", module[0]);
        }
    }
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    for krate in ["sam-runtime", "sam-macros", "examples"] {
        let files = files(&sources(krate));
        assert!(files.values().any(|uses| uses.len() > 5), "{krate}: {files:?}");
        let circle = circle(&files);
        assert!(circle.is_none(), "{krate}: {:#?}", circle.unwrap());
    }
}
