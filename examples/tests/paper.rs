//! The paper's tables as a stranger meets them: listed, run by several processes, scaled, reported and refused.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const TABLE: &str = r#"
title = "A small table"
measure = "error"
beside = "sharpness"

[base]
model = "mlp-w16"
images = 600.0
validation = 0.2
batch = 40
epochs = 4.0
noise = 0.2

[[axis]]
[axis.choices]
plain = {}
bootstrap = { method = "bootstrap" }

[[axis]]
[axis.choices]
sam = { rho = 0.1 }
sgd = {}

[paper]
"plain/sam" = [12.5, 0.5]
"#;

fn paper(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(arguments: &[&str]) -> String {
    let output = paper(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    text(&output.stderr)
}

/// The runs that a process has done.
fn finished(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| line.contains(": error in % "));
    lines.map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_cell_has_a_name() {
    let names = printed(&paper(&["list"]).output().unwrap());
    for name in [
        "table1/wrn-28-10/cutout/cifar100/sam",
        "table1/pyramidnet-shakedrop/aa/cifar10/sgd-2x",
        "table2/resnet152/400/sgd",
        "table3/flowers/sam",
        "table4/80/bootstrap-sam",
        "table4-literature/40/mentormix/sam",
        "table8/60/rho-0.1",
        "table9/pyramidnet/aa/cifar100/sam",
        "rho-grid/cifar10/rho-0.5",
        "p-norm/p-inf/rho-0.05",
        "inner-steps/cifar100/steps-3",
        "second-order/kept",
        "m-sharpness/m-1/rho-0.1",
    ] {
        assert!(names.lines().any(|line| line == name), "{name} is missing");
    }
}

/// Names alone on stdout, for whoever reads them; what differs from the authors is another list.
#[test]
fn deviations_are_listed() {
    let output = paper(&["list", "table9"]).output().unwrap();
    assert!(printed(&output).lines().all(|line| line.starts_with("table9/")));
    assert!(text(&output.stderr).contains("paper list --deviations"));
    let deviations = printed(&paper(&["list", "--deviations"]).output().unwrap());
    assert_eq!(deviations, sam_examples::recipe::deviations());
    assert!(deviations.contains("| O2U-Net | "), "{deviations}");
}

/// Two processes at once: together they do every run, and none twice; a third one finds nothing to do.
#[test]
fn processes_share_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, TABLE).unwrap();
    let (file, out) = (file.to_str().unwrap(), folder.path().join("out"));
    let arguments = [file, "--seeds", "2", "--quiet", "--out", out.to_str().unwrap()];
    let children: Vec<_> = (0..2).map(|_| paper(&arguments).spawn().unwrap()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| printed(&child.wait_with_output().unwrap())).collect();
    let mut runs: Vec<_> = outputs.iter().flat_map(|output| finished(output)).collect();
    runs.sort();
    let cells = ["bootstrap/sam", "bootstrap/sgd", "plain/sam", "plain/sgd"];
    let all: Vec<_> =
        cells.iter().flat_map(|cell| (0..2).map(move |seed| format!("small/{cell} seed {seed}"))).collect();
    assert_eq!(runs, all);
    let again = printed(&paper(&arguments).output().unwrap());
    assert!(finished(&again).is_empty(), "{again}");

    let report = printed(&paper(&[&["report"][..], &arguments].concat()).output().unwrap());
    let row = report.lines().find(|line| line.contains("plain/sam")).unwrap();
    assert!(row.contains("12.50 ± 0.50") && row.contains("| 2 |"), "{row}");
    assert!(!report.contains("Scaled"), "{report}");
    let full = out.join("full");
    assert_eq!(fs::read_to_string(full.join("small.md")).unwrap() + "\n", report);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(full.join("small.json")).unwrap()).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 4);
    assert_eq!(json["rows"][0]["ours"].as_array().unwrap().len(), 2);
    assert!(image::image_dimensions(full.join("small.png")).unwrap().0 == 1200);
    let files = |folder: &Path| -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let run = full.join("small/plain/sam/seed-0");
    assert_eq!(files(&run), ["events.out.tfevents", "log.jsonl", "result.json"]);

    // Another recipe does not pass for this one, nor does half a file; the rest of the table is there.
    fs::write(file, TABLE.replace("rho = 0.1", "rho = 0.2")).unwrap();
    fs::write(full.join("small/plain/sgd/seed-0/result.json"), "{ \"cell\":").unwrap();
    for command in [&["report"][..], &[]] {
        let output = paper(&[command, &arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let (report, error) = (text(&output.stdout), text(&output.stderr));
        assert!(error.contains("another recipe") && error.contains("`rho` 0.2, found 0.1"), "{error}");
        assert!(error.contains("result.json is damaged"), "{error}");
        let row = |cell| report.lines().find(|line| line.contains(cell)).unwrap().to_owned();
        assert!(row("plain/sam").contains("| another recipe "), "{report}");
        assert!(row("plain/sgd").contains(", damaged ") && row("plain/sgd").contains("| 1 |"), "{report}");
        assert!(row("bootstrap/sgd").contains("| 2 |"), "{report}");
    }
}

/// A run whose loss is not finite is a result: the others go on, and it is not tried again.
#[test]
fn runs_that_diverge_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, TABLE.replace("bootstrap = { method = \"bootstrap\" }", "hot = { lr = 1e30 }")).unwrap();
    let out = folder.path().join("out");
    let arguments = [file.to_str().unwrap(), "--seeds", "1", "--quiet", "--out", out.to_str().unwrap()];
    let report = printed(&paper(&arguments).output().unwrap());
    assert_eq!(finished(&report).len(), 2, "{report}");
    assert_eq!(report.lines().filter(|line| line.contains("seed 0: step") && line.contains("diverged")).count(), 2);
    for cell in ["hot/sam", "hot/sgd"] {
        let row = report.lines().find(|line| line.starts_with(&format!("| {cell}"))).unwrap();
        assert!(row.contains("| diverged"), "{row}");
        let result = fs::read_to_string(out.join("full/small").join(cell).join("seed-0/result.json")).unwrap();
        assert!(result.contains("\"diverged\": \"step "), "{result}");
    }
    let again = printed(&paper(&arguments).output().unwrap());
    assert!(!again.contains("seed 0:"), "{again}");
    assert!(again.contains("| diverged"), "{again}");
}

/// Numbers of another type are another result.
#[test]
fn places_lie_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, TABLE).unwrap();
    let out = folder.path().join("out");
    let arguments = [file.to_str().unwrap(), "--only", "plain/sgd", "--seeds", "1", "--quiet", "--out"];
    let arguments = [&arguments[..], &[out.to_str().unwrap()]].concat();
    printed(&paper(&arguments).output().unwrap());
    let report = printed(&paper(&[&arguments[..], &["--bf16"]].concat()).output().unwrap());
    assert!(report.contains("training images, bf16.") && !report.contains("Scaled"), "{report}");
    assert!(out.join("full,bf16/small/plain/sgd/seed-0/result.json").exists());
    let result = fs::read_to_string(out.join("full/small/plain/sgd/seed-0/result.json")).unwrap();
    assert!(!result.contains("place"), "{result}");
}

#[test]
fn scaled_runs_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    fs::write(&file, TABLE).unwrap();
    let out = folder.path().join("out");
    let arguments = [
        file.to_str().unwrap(),
        "--only",
        "plain",
        "--seeds",
        "1",
        "--scale",
        "epochs=0.5,width=0.5",
        "--set",
        "lr = 0.05",
        "--quiet",
        "--out",
        out.to_str().unwrap(),
    ];
    let report = printed(&paper(&arguments).output().unwrap());
    assert!(report.contains("Scaled: epochs=0.5,width=0.5,lr=0.05."), "{report}");
    assert_eq!(finished(&report).len(), 2);
    assert_eq!(report.matches(" s, scaled: epochs=0.5,width=0.5,lr=0.05\n").count(), 2, "{report}");
    assert!(report.contains("| ours, L(w + ε̂) - L(w) |") && !report.contains("paper, L(w"), "{report}");
    let result = out.join("epochs=0.5,width=0.5,lr=0.05/small/plain/sam/seed-0/result.json");
    let text = fs::read_to_string(&result).unwrap();
    assert!(text.contains(r#""scaled": "epochs=0.5,width=0.5,lr=0.05""#), "{text}");

    // A result from before there was a key counts; what has been run stays in the table, whatever is asked for now.
    fs::write(&result, text.replace("    \"direction\": \"gradient\",\n", "")).unwrap();
    let arguments = arguments.map(|argument| if argument == "plain" { "bootstrap/sgd" } else { argument });
    let report = printed(&paper(&arguments).output().unwrap());
    for cell in ["plain/sam", "plain/sgd", "bootstrap/sgd"] {
        assert!(report.contains(&format!("| {cell} ")), "{report}");
    }
    assert!(!report.contains("another recipe") && !report.contains("| bootstrap/sam "), "{report}");
    let result = out.join("epochs=0.5,width=0.5,lr=0.05/small/plain/sgd/seed-0/result.json");
    let result: serde_json::Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!((&result["recipe"]["epochs"], &result["recipe"]["model"]), (&2.0.into(), &"mlp-w8".into()));
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    for (arguments, words) in [
        (&["table7", "--out", out][..], "expected one of table1, table2"),
        (&["table1", "--only", "wrn-29", "--out", out], "no cell"),
        (&["table1", "--scale", "2", "--out", out], "more than 0 and at most 1"),
        (&["table1", "--set", "speed = 3", "--out", out], "--set, line 1: unknown field `speed`"),
        (&["table1", "--seeds", "0", "--out", out], "--seeds is 0"),
        (&["nowhere/mine.toml", "--out", out], "cannot read"),
    ] {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    assert!(!Path::new(out).exists());
    let error = refused(&["table1", "--only", "wrn-28-10/basic/cifar10/sam", "--seeds", "1", "--quiet", "--out", out]);
    assert!(error.contains("table1/wrn-28-10/basic/cifar10/sam seed 0") && error.contains("--data"), "{error}");
}
