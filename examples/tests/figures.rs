//! The figures of the paper: what is measured at the weights that runs keep, and that nothing is measured twice or of other weights.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const BASE: &str = r#"
title = "Figure T: a test"
measure = "error"

[base]
model = "mlp-w16"
data = "embedded"
images = 400.0
epochs = 4.0
batch = 40
keep-epochs = [1.0, 4.0]

[kept]
measure = "MEASURE"
images = 200
order = 8
rho = 0.05
grid = 5

[[axis]]
[axis.choices]
sam = { rho = 0.05 }
sgd = {}
"#;

fn table(folder: &Path, measure: &str) -> String {
    let path = folder.join("t.toml");
    let published =
        if measure == "hessian" { "[kept.paper]\nsgd = [[62.9, 2.5], [24.2, 11.4]]\n\n[[axis]]" } else { "[[axis]]" };
    fs::write(&path, BASE.replace("MEASURE", measure).replace("[[axis]]", published)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn paper(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
    command.args(arguments).args(["--quiet", "--seeds", "2", "--out"]).arg(folder.join("out")).output().unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn hessians_stand_beside_the_papers() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path(), "hessian");
    let printed = done(&paper(folder.path(), &[&table]));
    let row = |epoch: &str, cell: &str| {
        let begin = format!("| {epoch} ");
        let line = printed.lines().find(|line| line.starts_with(&begin) && line.contains(&format!("| {cell} ")));
        line.unwrap().split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    // The paper's numbers are those of the cell and the epoch.
    assert_eq!((&*row("1", "sgd")[4], &*row("4", "sgd")[4], &*row("4", "sam")[4]), ("62.9", "24.2", ""));
    assert_eq!(row("4", "sgd")[11], "2");

    // What is written is what `spectrum` finds for the same weights.
    let run = folder.path().join("out/full/t/sgd/seed-0");
    let of_run = fs::read_to_string(run.join("hessian.jsonl")).unwrap();
    let first: Value = serde_json::from_str(of_run.lines().nth(1).unwrap()).unwrap();
    let found = first["value"]["spectrum"]["values"][0].as_f64().unwrap();
    let recipe = folder.path().join("one.toml");
    fs::write(&recipe, "model = \"mlp-w16\"\ndata = \"embedded\"\nimages = 400.0\nbatch = 40\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spectrum"))
        .arg(&recipe)
        .args(["--quiet", "--images", "200", "--order", "8", "--out"])
        .arg(folder.path().join("spectrum"))
        .arg(format!("sgd={}", run.join("weights-epoch-1.safetensors").display()))
        .output()
        .unwrap();
    done(&output);
    let text = fs::read_to_string(folder.path().join("spectrum/spectrum.json")).unwrap();
    let other = serde_json::from_str::<Value>(&text).unwrap()[0]["values"][0].as_f64().unwrap();
    // One is by differences, the other exact. In the fourth epoch the gradient has jumps, and differences say so: 1e-1.
    assert!((found / other - 1.0).abs() < 0.05, "{found} {other}");

    // Nothing is measured again, and `report` measures nothing.
    let again = done(&paper(folder.path(), &[&table]));
    assert!(again.contains("and sharpness against generalization") && !again.contains("seed 0: error"), "{again}");
    assert_eq!(fs::read_to_string(run.join("hessian.jsonl")).unwrap(), of_run);
    assert!(done(&paper(folder.path(), &["report", &table])).contains("62.9"));

    // Of other weights the values are not shown.
    fs::copy(run.join("weights-epoch-1.safetensors"), run.join("weights-epoch-4.safetensors")).unwrap();
    let refused = paper(folder.path(), &["report", &table]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("hessian.jsonl has values of other networks"), "{error}");
}

#[test]
fn landscapes_are_drawn_once_all_have_finished() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path(), "landscape");
    let names = ["t-landscape.html", "t-landscape.jsonl", "t-landscape.md", "t-landscape.png"];
    let there = |name: &str| folder.path().join("out/full").join(name).is_file();
    done(&paper(folder.path(), &[&table, "--only", "sam"]));
    assert!(!names.iter().any(|name| there(name)));
    let printed = done(&paper(folder.path(), &[&table]));
    assert!(printed.contains("| sam ") && printed.contains("| trace"), "{printed}");
    assert!(names.iter().all(|name| there(name)));
}
