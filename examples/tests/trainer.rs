//! The trainer that one can leave alone: stopped, killed, out of disk, and given the wrong checkpoint.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use common::{SMALL, Training, error, steps};

/// Everything that has a state: SAM in shards, Mixup, averages, clipping, accumulation, augmentation, random branches.
const EVERYTHING: &str = r#"
model = "shake-shake-26-2x2d"
images = 120.0
validation = 0.2
batch = 16
accumulate = 2
m = 4
epochs = 8.0
lr = 0.02
rho = 0.05
method = "mixup"
clip = 1.0
ema = 0.9
warm-up = 1.0
noise = 0.2
cutout = 8
auto-augment = "code-95"
"#;

#[test]
fn a_training_that_was_stopped_goes_on_with_the_same_bits() {
    let training = Training::new(EVERYTHING);
    training.finished("whole", &["--every", "5"]);
    training.stopped("parts", &["--every", "1000"], "\"step\":3");
    let before = steps(&training.checkpoint("parts"));
    assert!(before > 0);
    training.finished("parts", &["--every", "1000", "--resume"]);
    let (whole, parts) = (training.essence("whole"), training.essence("parts"));
    assert_eq!(parts.0, whole.0);
    assert_eq!(parts.1, whole.1);
    assert!(whole.2.len() > 100);
    assert!(parts.2 == whole.2, "tensors differ");
    let lines: Vec<Value> = whole.1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().filter(|line| line["test error"].is_f64()).count() >= 4, "{}", whole.1);
    assert!(lines.iter().any(|line| line["loss"].as_f64().is_some_and(|loss| loss > 0.0)));
}

/// A training with a stage that goes on with the model of the one before, and its random branches.
#[test]
fn a_stage_that_begins_with_an_old_model_goes_on_with_the_same_bits() {
    let training = Training::new(&EVERYTHING.replace("mixup", "o2u"));
    training.finished("whole", &["--every", "5"]);
    training.stopped("parts", &["--every", "1000"], "\"stage\":1");
    training.finished("parts", &["--every", "1000", "--resume"]);
    assert!(training.essence("parts") == training.essence("whole"));
}

/// Steps that a log tells of, in a method whose trainings have so many.
fn logged(log: &Path, steps: u64) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written, and the first is the recipe.
    let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let whole = lines.find(|line| line["stage"].is_u64());
    whole.map_or(0, |line| {
        let number = |key: &str| line[key].as_u64().unwrap();
        // A loss is that of a step, a test error comes after one.
        number("stage") * steps + number("step") + u64::from(line["loss"].is_f64())
    })
}

/// Killed 50 times, at random moments: the checkpoint is always whole and never an older one, and in the end everything
/// is as if nothing had happened.
#[test]
fn kill_9_loses_no_file_and_at_most_the_steps_since_the_last_checkpoint() {
    let training = Training::new(&SMALL.replace("epochs = 5.0", "epochs = 100.0"));
    training.finished("whole", &["--every", "10"]);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let checkpoint = training.checkpoint("killed");
    let (mut kills, mut last, mut progressed) = (0, 0, 0);
    while kills < 50 {
        let mut arguments = vec!["--every", "10"];
        if checkpoint.exists() {
            arguments.push("--resume");
        }
        let mut child = training.command("killed", &arguments).spawn().unwrap();
        thread::sleep(Duration::from_millis(rng.random_range(20..500)));
        if let Some(status) = child.try_wait().unwrap() {
            // It was done before it could be killed: again from the beginning.
            assert!(status.success(), "{}", error(&child.wait_with_output().unwrap()));
            assert!(training.essence("killed") == training.essence("whole"));
            fs::remove_dir_all(training.path("killed")).unwrap();
            last = 0;
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        let (log, saved) =
            (training.path("killed/log.jsonl"), if checkpoint.exists() { steps(&checkpoint) } else { 0 });
        let done = logged(&log, 2000);
        assert!(done <= saved + 10, "{done} steps were done, {saved} are saved");
        if checkpoint.exists() {
            let done = saved;
            assert!(done >= last, "{done} steps after {last}");
            progressed += u32::from(done > last);
            last = done;
        }
    }
    assert!(progressed >= 10, "{progressed} of the runs came to a checkpoint");
    let resume: &[&str] = if checkpoint.exists() { &["--every", "10", "--resume"] } else { &["--every", "10"] };
    training.finished("killed", resume);
    assert!(training.essence("killed") == training.essence("whole"));
    assert_eq!(training.names("killed"), training.names("whole"));
}

/// A limit on the size of files stands in for a full disk: both end a write in the middle with an error.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_the_old_checkpoint_is_kept() {
    let training = Training::new(&SMALL.replace("epochs = 5.0", "epochs = 2000.0"));
    let mut child = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#, env!("CARGO_BIN_EXE_train")])
        .arg(training.path("recipe.toml"))
        .args(["--quiet", "--every", "5", "--out"])
        .arg(training.path("out"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !training.checkpoint("out").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a checkpoint");
        thread::sleep(Duration::from_millis(5));
    }
    let limit = ["--fsize=50000", "--pid", &child.id().to_string()];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    let error = error(&output);
    assert!(error.contains("cannot write") && error.contains("checkpoint") && error.contains("kept"), "{error}");
    assert!(error.contains("too large"), "{error}");
    assert!(steps(&training.checkpoint("out")) >= 5);
    assert_eq!(training.names("out"), ["checkpoint.safetensors", "events.out.tfevents", "log.jsonl", "train.lock"]);
}

#[test]
fn a_checkpoint_that_is_damaged_or_another_trainings_is_refused_and_kept() {
    let training = Training::new(SMALL);
    training.finished("out", &["--every", "5"]);
    // Once more, from the end of the last training.
    training.finished("out", &["--every", "5", "--resume"]);
    let whole = fs::read(training.checkpoint("out")).unwrap();
    let refused = |arguments: &[&str]| {
        let before = fs::read(training.checkpoint("out")).unwrap();
        let output = training.command("out", arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(fs::read(training.checkpoint("out")).unwrap() == before);
        error(&output)
    };
    let message = refused(&["--every", "5"]);
    assert!(message.contains("say --resume"), "{message}");
    let message = refused(&["--resume", "--set", "model = \"mlp-w32\""]);
    assert!(
        message.contains("another training") && message.contains("mlp-w32") && message.contains("mlp-w64"),
        "{message}"
    );
    let message = refused(&["--resume", "--seed", "1"]);
    assert!(message.contains("`seed` 1, found 0"), "{message}");
    fs::write(training.checkpoint("out"), &whole[..whole.len() - 1000]).unwrap();
    let message = refused(&["--resume"]);
    assert!(message.contains("checkpoint.safetensors is damaged"), "{message}");
    fs::remove_file(training.checkpoint("out")).unwrap();
    let output = training.command("out", &["--resume"]).output().unwrap();
    assert!(error(&output).contains("no checkpoint"), "{}", error(&output));
}

#[test]
fn recipes_are_refused_by_file_and_line() {
    let training = Training::new("epochs = 1.0\n\nrhoo = 0.1\n");
    let output = training.command("out", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("recipe.toml, line 3: unknown field `rhoo`"), "{}", error(&output));
    let output = training.command("out", &["--set", "lr = -1.0"]).output().unwrap();
    assert!(error(&output).contains("recipe.toml, line 3"), "{}", error(&output));
}

fn weights(path: &Path) -> std::collections::HashMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}

/// A recipe that begins with the weights of another: normalizations keep their statistics, the head is new.
#[test]
fn fine_tuning_begins_with_a_file_and_keeps_its_statistics() {
    let first = "model = \"cnn-w2\"\nimages = 200.0\nvalidation = 0.2\nbatch = 20\nepochs = 2.0\n";
    let training = Training::new(first);
    training.finished("first", &[]);
    let tuned = "start = \"weights.safetensors\"\nfrozen-norm = true\nnew-head = true\nrho = 0.05\n";
    fs::write(training.path("recipe.toml"), format!("{first}{tuned}")).unwrap();
    let data = training.path("first");
    let data = data.to_str().unwrap();
    training.finished("second", &["--data", data]);
    let (before, after) =
        (weights(&training.path("first/weights.safetensors")), weights(&training.path("second/weights.safetensors")));
    for (name, values) in &before {
        assert_eq!(name.contains("running"), *values == after[name], "{name}");
    }
    // What it began with has changed since.
    let start = training.path("first/weights.safetensors");
    let whole = fs::read(&start).unwrap();
    fs::copy(training.path("second/weights.safetensors"), &start).unwrap();
    let output = training.command("second", &["--data", data, "--resume"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("expected `initial weights`"), "{}", error(&output));
    fs::write(&start, whole).unwrap();
    training.finished("second", &["--data", data, "--resume"]);
    let refused = |arguments: &[&str]| {
        let output = training.command("third", arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        error(&output)
    };
    let message = refused(&[]);
    assert!(message.contains("name the folder of this file with --data"), "{message}");
    let message = refused(&["--data", data, "--set", "model = \"cnn-w3\""]);
    assert!(
        message.contains("cannot use") && message.contains("weights.safetensors") && message.contains("has shape"),
        "{message}"
    );
    let message = refused(&["--data", data, "--set", "start = \"other.safetensors\""]);
    assert!(message.contains("other.safetensors"), "{message}");
}

/// A folder of pictures that are decoded when they are needed.
#[test]
fn pictures_are_trained_on_from_their_files() {
    let training = Training::new(
        "data = \"pictures\"\nlazy = true\nimage-size = 8\nmodel = \"mlp-w8\"\nbatch = 4\nepochs = 20.0\nlr = 0.05\n",
    );
    for half in ["train", "test"] {
        for (class, value) in [("dark", 20u8), ("light", 230)] {
            let folder = training.path("pictures").join(half).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..6u8 {
                let picture = image::RgbImage::from_pixel(12, 10, image::Rgb([value, value + i, value]));
                picture.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    training.finished("out", &["--data", training.folder.path().to_str().unwrap()]);
    let result: Value = serde_json::from_slice(&fs::read(training.path("out/result.json")).unwrap()).unwrap();
    assert_eq!((&result["test_error"], &result["train_images"]), (&0.0.into(), &12.into()));
}

/// Of a network that was just trained, by its recipe and seed; the picture and the table are there.
#[test]
fn a_trained_network_has_a_spectrum() {
    let training = Training::new(SMALL);
    training.finished("out", &["--seed", "3"]);
    let look = |weights: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spectrum"));
        command
            .arg(training.path("recipe.toml"))
            .arg(weights)
            .args(["--quiet", "--seed", "3", "--order", "12", "--out"]);
        command.arg(training.path("spectrum")).output().unwrap()
    };
    let weights = training.path("out/weights.safetensors");
    let output = look(&format!("sam={}", weights.display()));
    assert!(output.status.success(), "{}", error(&output));
    let table = fs::read_to_string(training.path("spectrum/spectrum.md")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), table);
    assert!(table.contains("mlp-w64, 800 images") && table.contains("| sam "), "{table}");
    let all: Value = serde_json::from_slice(&fs::read(training.path("spectrum/spectrum.json")).unwrap()).unwrap();
    let values: Vec<f64> = serde_json::from_value(all[0]["values"].clone()).unwrap();
    assert!(values.len() == 12 && values[0] > 0.0 && values.is_sorted_by(|a, b| a >= b), "{values:?}");
    assert!(training.path("spectrum/spectrum.png").exists());

    let refused = |weights: &str| {
        let output = look(weights);
        assert_eq!(output.status.code(), Some(2));
        error(&output)
    };
    assert!(refused("weights.safetensors").contains("expected NAME=FILE"));
    let few = |order: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spectrum"));
        command.arg(training.path("recipe.toml")).arg(format!("sam={}", weights.display()));
        command.args(["--quiet", "--seed", "3", "--order", order, "--overwrite", "--out"]);
        command.arg(training.path("spectrum")).output().unwrap()
    };
    let output = few("3");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !table.contains("NaN"), "{table}");
    assert!(refused("a=missing.safetensors").contains("missing.safetensors"));
}

/// Reports of the sharpness are lines of the log, and change nothing of the training.
#[test]
fn reports_leave_the_training_as_it_is() {
    let training = Training::new(
        "model = \"mlp-norm-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 2.0\nrho = 0.05\nema = 0.9\n",
    );
    training.finished("without", &[]);
    training.finished("with", &["--report", "7"]);
    let weights = |out: &str| fs::read(training.path(out).join("weights.safetensors")).unwrap();
    assert!(weights("without") == weights("with"));
    let (without, with) = (training.essence("without"), training.essence("with"));
    let (reports, others): (Vec<&str>, Vec<&str>) = with.1.lines().partition(|line| line.contains("\"report\""));
    assert_eq!(others, without.1.lines().collect::<Vec<_>>());
    assert_eq!(reports.len(), 5, "{reports:?}");
    for line in reports {
        let report = &serde_json::from_str::<Value>(line).unwrap()["report"];
        assert!(report["sharpness"].as_f64().unwrap() > 0.0 && report["cosine"].as_f64().unwrap() <= 1.0, "{line}");
        assert!(report["largest eigenvalue"].as_f64().unwrap() != 0.0, "{line}");
    }
}
