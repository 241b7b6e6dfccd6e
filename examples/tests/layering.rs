//! The layers of `examples/src`: a file uses its own room and those below, and no files use each other in a circle.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the bottom to the top. A room is a folder, or a file of its own.
const ROOMS: &str = "util io augment data models losses metrics noisy_labels recipe trainer experiments cli bin";

type Module = Vec<String>;

/// The text of each file below a folder, by module.
fn read(folder: &Path, module: &Module, files: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner: Module = module.iter().cloned().chain([name.clone()]).collect();
        if path.is_dir() {
            read(&path, &inner, files);
        } else {
            let is_facade = ["mod", "lib"].contains(&name.as_str());
            files.insert(if is_facade { module.clone() } else { inner }, fs::read_to_string(path).unwrap());
        }
    }
}

/// The paths of a tree of imports: `a::{b, c::{d, e}}` has three.
fn paths(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let (inner, _) = rest.rsplit_once('}').unwrap();
    let mut depth = 0;
    let parts = inner.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts.flat_map(paths).map(|path| format!("{}{path}", head.trim())).collect()
}

/// The file that a path in a module leads to, if it is one of this crate.
fn target(path: &str, module: &Module, files: &BTreeMap<Module, String>) -> Option<Module> {
    let mut at = module.clone();
    for segment in path.split("::") {
        match segment {
            "crate" | "sam_examples" => at.clear(),
            "super" => drop(at.pop()),
            "self" => (),
            name => {
                at.push(name.to_owned());
                if !files.contains_key(&at) {
                    at.pop();
                    break;
                }
            }
        }
    }
    (at != *module).then_some(at)
}

/// The files that the imports of each file lead to; those of tests are left out.
fn imports(files: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let of = |(module, text): (&Module, &String)| {
        let code = text.split("#[cfg(test)]").next().unwrap();
        let items = code.split(';').map(|item| item.rsplit_once("\n\n").map_or(item, |(_, last)| last).trim_start());
        let uses = items.filter_map(|item| {
            ["use ", "pub use ", "pub(crate) use "].iter().find_map(|start| item.strip_prefix(start))
        });
        let targets = uses.flat_map(paths).filter_map(|path| target(&path, module, files)).collect();
        (module.clone(), targets)
    };
    files.iter().filter(|(module, _)| !module.is_empty()).map(of).collect()
}

fn source() -> BTreeMap<Module, String> {
    let mut files = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Module::new(), &mut files);
    files
}

/// Also in tests, and where a path is written out.
#[test]
fn no_file_uses_a_room_above() {
    let height = |room: &str| ROOMS.split(' ').position(|known| known == room);
    for (module, text) in source().iter().filter(|(module, _)| !module.is_empty()) {
        let own = height(&module[0]).unwrap_or_else(|| panic!("`{}` is not in the table of rooms", module[0]));
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for rest in code.flat_map(|line| line.split("crate::").chain(line.split("sam_examples::")).skip(1)) {
            let room: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_above = height(&room).is_some_and(|used| used > own);
            assert!(!is_above, "{} uses `{room}`, which is above `{}`", module.join("/"), module[0]);
        }
    }
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut open = imports(&source());
    assert!(open[&vec!["trainer".to_owned(), "run".to_owned()]].len() > 5, "{open:?}");
    // Files that use no other open file are in no circle.
    while let Some(done) = open.iter().find(|(_, uses)| uses.iter().all(|used| !open.contains_key(used))) {
        let done = done.0.clone();
        open.remove(&done);
    }
    let uses = |(file, uses): (&Module, &BTreeSet<Module>)| {
        let used: Vec<_> = uses.iter().filter(|used| open.contains_key(*used)).map(|used| used.join("/")).collect();
        format!("{} uses {}", file.join("/"), used.join(", "))
    };
    let circle: Vec<_> = open.iter().map(uses).collect();
    assert!(circle.is_empty(), "a circle, and what uses its files:\n{}", circle.join("\n"));
}
