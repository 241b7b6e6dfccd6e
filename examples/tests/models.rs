//! A small training of each family of networks by the binary `train`, and of a language model from a text file.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{Training, error};
use serde_json::Value;

fn train(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_train")).args(arguments).output().unwrap()
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", error(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn log(training: &Training, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(training.path(out).join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_family_trains() {
    let training = Training::new("");
    for cell in ["vit", "mixer", "gpt", "efficientnet"] {
        let out = training.path(cell);
        let out = out.to_str().unwrap();
        said(&train(&[&format!("families/{cell}"), "--quiet", "--out", out]));
        let result: Value =
            serde_json::from_slice(&fs::read(training.path(cell).join("result.json")).unwrap()).unwrap();
        let error = result["test_error"].as_f64().unwrap();
        // Nine of ten is chance for images.
        assert!(error > 0.0 && error < 0.87, "{cell}: {result}");
        assert_eq!(result["test_loss"].is_f64(), cell == "gpt");
        let evaluated = Command::new(env!("CARGO_BIN_EXE_evaluate")).arg(format!("{out}/weights.safetensors")).output();
        let evaluated = said(&evaluated.unwrap());
        assert!(evaluated.contains(&format!("test error {:.2} %", 100.0 * error)), "{cell}: {evaluated}");
    }
}

/// The paper's trainings and those of the other tables can be started: a dry run shows the network and its data.
#[test]
fn a_dry_run_tells_of_the_network_and_the_text() {
    let training = Training::new("");
    fs::write(training.path("input.txt"), "It was a dark and stormy night. ".repeat(1000)).unwrap();
    let folder = training.path("").to_str().unwrap().to_owned();
    let text = said(&train(&["gpt/sam", "--data", &folder, "--dry-run"]));
    assert!(text.contains("optimizer = \"adamw\"") && text.contains("betas = [0.9, 0.99]"), "{text}");
    let expected = "# input.txt: 112 training windows, 12 test windows of 256 tokens; 1 steps an epoch; gpt has 4870144 parameters";
    assert!(text.contains(expected), "{text}");
    let error = error(&train(&["gpt/sam", "--dry-run"]));
    assert!(error.contains("input.txt` is missing: name a text file"), "{error}");
}

/// A text that repeats itself is learned by heart, also if the training is stopped and resumed.
#[test]
fn a_language_model_learns_a_text() {
    let training = Training::new(
        "model = \"gpt-w32\"\nlength = 16\nbatch = 16\nsteps = 150\noptimizer = \"adamw\"\nlr = 5e-3\nweight-decay = 0.0\n\
         decay-in-loss = false\nclip = 1.0\nrho = 0.02\ndropout = 0.02\nema = 0.9\n",
    );
    let file = training.path("text");
    fs::write(&file, "abcdefghij \u{fc}\u{df} 0123456789.\n".repeat(150)).unwrap();
    let file = file.to_str().unwrap().to_owned();
    training.finished("out", &["--data", &file]);
    let lines = log(&training, "out");
    let tests: Vec<f64> = lines.iter().filter_map(|line| line["bits per token"].as_f64()).collect();
    let last = lines.iter().rev().find(|line| line["test loss"].is_f64()).unwrap();
    assert!(tests.len() > 2 && tests[tests.len() - 1] < 0.5 && tests[0] > 1.0, "{tests:?}");
    assert!(last["test error"].as_f64().unwrap() < 0.1, "{last}");
    let table = fs::read_to_string(training.path("out/epochs.csv")).unwrap();
    assert!(table.lines().next().unwrap().ends_with("test_error,test_loss"), "{table}");

    training.stopped("parts", &["--data", &file, "--every", "1000"], "\"step\":40");
    training.finished("parts", &["--data", &file, "--every", "1000", "--resume"]);
    let (whole, parts) = (training.essence("out"), training.essence("parts"));
    assert_eq!(parts.1, whole.1);
    assert!(parts == whole, "tensors differ");

    // Another text is another training.
    fs::write(&file, "abcdefghij \u{fc}\u{df} 0123456789!\n".repeat(150)).unwrap();
    let output = training.command("out", &["--data", &file, "--resume"]).output().unwrap();
    assert!(!output.status.success() && error(&output).contains("have changed since"), "{}", error(&output));
    let predict = Command::new(env!("CARGO_BIN_EXE_predict"))
        .arg(training.path("out/weights.safetensors"))
        .arg(training.path("recipe.toml"))
        .output()
        .unwrap();
    assert!(!predict.status.success() && !error(&predict).contains("panicked"), "{}", error(&predict));
}
