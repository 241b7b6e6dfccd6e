//! Ends: by every signal, also in the middle of a test, with nobody reading, and by kill -9.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Training, error, steps};

const LONG: &str = "model = \"mlp-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 1000.0\nrho = 0.05\n";

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

#[track_caller]
fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_mins(2), "waited for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn says(log: &Path, words: &str) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains(words))
}

#[test]
fn every_signal_saves_and_stops() {
    let training = Training::new(LONG);
    for name in ["INT", "TERM", "HUP", "USR1"] {
        let child = training.command(name, &[]).spawn().unwrap();
        wait_for("a step", || says(&training.path(name).join("log.jsonl"), "\"step\":1"));
        signal(&child, name);
        let start = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "SIG{name}: {:?}", start.elapsed());
        assert_eq!(output.status.code(), Some(130), "SIG{name}: {}", error(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("--resume goes on"));
        assert!(steps(&training.checkpoint(name)) > 0);
    }
}

/// A comparison writes the table and the picture of the trainings that have ended.
#[test]
fn a_comparison_that_is_stopped_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in ["INT", "TERM", "HUP", "USR1"].into_iter().enumerate() {
        let (program, words, picture) = match i % 2 {
            0 => (env!("CARGO_BIN_EXE_cifar"), "\"sam\"", "curves.png"),
            _ => (env!("CARGO_BIN_EXE_variants"), "\"SGD\"", "variants.png"),
        };
        let out = folder.path().join(name);
        let mut command = Command::new(program);
        command.args(["--quiet", "--epochs", "1", "--seeds", "100000", "--out"]).arg(&out);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("a training", || says(&out.join("log.jsonl"), words));
        signal(&child, name);
        let start = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "SIG{name}: {:?}", start.elapsed());
        assert_eq!(output.status.code(), Some(130), "SIG{name}: {}", error(&output));
        let table = fs::read_to_string(out.join("table.md")).unwrap();
        assert!(table.contains("stopped after ") && table.contains("| SGD") && !table.contains("NaN"), "{table}");
        assert!(out.join(picture).exists());
    }
}

/// `nohup` has SIGHUP ignored, and so it stays.
#[test]
fn what_is_ignored_stays_ignored() {
    let training = Training::new(LONG);
    let mut child = Command::new("sh")
        .args(["-c", r#"trap "" HUP; exec "$0" "$@""#, env!("CARGO_BIN_EXE_train")])
        .arg(training.path("recipe.toml"))
        .args(["--quiet", "--out"])
        .arg(training.path("out"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("a step", || says(&training.path("out/log.jsonl"), "\"step\":1"));
    signal(&child, "HUP");
    thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// A network that takes long to test: it stops in the middle, and what goes on from there has the same bits.
#[test]
fn a_test_is_interrupted() {
    let training = Training::new(
        "model = \"resnet20-w8\"\nimages = 40.0\nbatch = 40\nepochs = 1.0\nbasic = false\nrho = 0.05\nema = 0.9\n",
    );
    let child = training.command("parts", &[]).spawn().unwrap();
    let log = training.path("parts/log.jsonl");
    wait_for("the only step", || says(&log, "\"step\":0"));
    let start = Instant::now();
    // Of 10,000 images: some are tested.
    thread::sleep(Duration::from_millis(300));
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    let took = start.elapsed();
    assert_eq!(output.status.code(), Some(130), "{}", error(&output));
    assert!(!says(&log, "test error"), "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(steps(&training.checkpoint("parts")), 1);
    let start = Instant::now();
    training.finished("parts", &["--resume"]);
    assert!(took < start.elapsed().max(Duration::from_secs(3)), "{took:?} until it stopped");
    training.finished("whole", &[]);
    assert!(training.essence("parts") == training.essence("whole"));
}

/// Nobody reads what is said, or it cannot be written: everything is done all the same, and the files are there.
#[test]
fn nobody_has_to_listen() {
    let training = Training::new(&LONG.replace("epochs = 1000.0", "epochs = 20.0"));
    let mut child = training.command("deaf", &[]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(training.path("deaf/result.json").exists());

    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = training.command("full", &[]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("cannot write to the standard output"), "{}", error(&output));
    assert!(training.path("full/result.json").exists());
    assert_eq!(training.command("mute", &[]).stdout(full()).stderr(full()).status().unwrap().code(), Some(2));
    assert!(training.path("mute/result.json").exists());

    // With a bar or lines on the standard error, and a comparison.
    let mut command = Command::new(env!("CARGO_BIN_EXE_cifar"));
    command.args(["--epochs", "2", "--seeds", "1", "--limit", "500", "--out"]).arg(training.path("cifar"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for name in ["table.md", "curves.png"] {
        assert!(training.path("cifar").join(name).exists(), "{name}");
    }

    // A table of runs whose reader leaves after the first line.
    let table = "title = \"T\"\nmeasure = \"error\"\n[base]\nmodel = \"mlp-w8\"\nimages = 200.0\nvalidation = 0.2\n\
                 batch = 20\nepochs = 2.0\n[[axis]]\n[axis.choices]\nsam = { rho = 0.1 }\nsgd = {}\n";
    fs::write(training.path("t.toml"), table).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
    command.arg(training.path("t.toml")).args(["--seeds", "2", "--quiet", "--out"]).arg(training.path("paper"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for run in ["sam/seed-0", "sgd/seed-0", "sam/seed-1", "sgd/seed-1"] {
        assert!(training.path("paper/full/t").join(run).join("result.json").exists(), "{run}");
    }
    assert!(training.path("paper/full/t.md").exists());
}

/// The spectrum's files are there before it prints; the program that starts itself once more stays one process.
#[test]
fn a_spectrum_is_one_process_and_writes_first() {
    let training = Training::new("model = \"mlp-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 2.0\n");
    training.finished("out", &[]);
    let spectrum = |out: &str, order: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spectrum"));
        command.arg(training.path("recipe.toml"));
        command.arg(format!("sgd={}", training.path("out/weights.safetensors").display()));
        command.args(["--quiet", "--order", order, "--out"]).arg(training.path(out));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = spectrum("spectrum", "5");
    drop(child.stdout.take());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    for name in ["spectrum.md", "spectrum.json", "spectrum.png"] {
        assert!(training.path("spectrum").join(name).exists(), "{name}");
    }

    if cfg!(target_os = "linux") {
        let mut child = spectrum("killed", "100000");
        let environment = format!("/proc/{}/environ", child.id());
        wait_for("the second start", || {
            fs::read(&environment)
                .is_ok_and(|all| String::from_utf8_lossy(&all).contains("CANDLE_GRAD_DO_NOT_DETACH=1"))
        });
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
        assert!(children.is_ok_and(|children| children.trim().is_empty()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

const TABLE: &str = "title = \"T\"\nmeasure = \"error\"\n[base]\nmodel = \"mlp-w16\"\nimages = 400.0\nvalidation = 0.2\n\
                     batch = 20\nepochs = 100.0\n[[axis]]\n[axis.choices]\nsam = { rho = 0.1 }\n";

/// The run of a process that was killed is taken over at once, and ends with the same numbers.
#[test]
fn a_killed_run_is_taken_over() {
    let training = Training::new("");
    fs::write(training.path("t.toml"), TABLE).unwrap();
    let paper = |out: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
        command.arg(training.path("t.toml")).args(["--seeds", "1", "--quiet", "--every", "50", "--out"]);
        command.arg(training.path(out)).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let run = training.path("killed/full/t/sam/seed-0");
    let mut child = paper("killed", &[]).spawn().unwrap();
    wait_for("a checkpoint", || run.join("checkpoint.safetensors").exists());
    // Meanwhile it is somebody's, and it is said whose.
    let output = paper("killed", &[]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    if !run.join("result.json").exists() {
        assert!(output.status.success() && words.contains(&format!("process {} on ", child.id())), "{words}");
        assert!(words.contains("without another one it is taken over in "), "{words}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(run.join("lock").exists() || run.join("result.json").exists());
    let output = paper("killed", &[]).output().unwrap();
    assert!(output.status.success(), "{}", error(&output));
    assert!(paper("whole", &[]).output().unwrap().status.success());
    let result = |out: &str| {
        let bytes = fs::read(training.path(out).join("full/t/sam/seed-0/result.json")).unwrap();
        let mut result: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        result["outcome"]["seconds"] = 0.into();
        result
    };
    assert_eq!(result("killed"), result("whole"));

    // A process of another machine may live: it is said when its run is taken over, and the exit code is not 0.
    let run = training.path("foreign/full/t/sam/seed-0");
    fs::create_dir_all(&run).unwrap();
    let note = r#"{"machine":"another","host":"far","pid":7,"id":"1"}"#;
    fs::write(run.join("lock"), note).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_hours(1000);
    fs::OpenOptions::new().write(true).open(run.join("lock")).unwrap().set_modified(later).unwrap();
    let output = paper("foreign", &["--stale", "10"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(75), "{words}");
    assert!(words.contains("process 7 on far has it") && words.contains("taken over in 10 s"), "{words}");
    // A lease does not lie in the future.
    thread::sleep(Duration::from_secs(11));
    assert!(paper("foreign", &["--stale", "10"]).output().unwrap().status.success());
    assert!(run.join("result.json").exists());
    let output = paper("foreign", &["--stale", "0"]).output().unwrap();
    assert!(error(&output).contains("--stale is 0: expected 10"), "{}", error(&output));
}

/// A result that was copied from another seed or cell does not count.
#[test]
fn results_of_other_runs_are_refused() {
    let training = Training::new("");
    fs::write(training.path("t.toml"), TABLE.replace("epochs = 100.0", "epochs = 2.0")).unwrap();
    let paper = |seeds: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
        command.arg(training.path("t.toml")).args(["--seeds", seeds, "--quiet", "--out"]).arg(training.path("out"));
        command.output().unwrap()
    };
    assert!(paper("1").status.success());
    let folder = training.path("out/full/t/sam");
    fs::create_dir(folder.join("seed-1")).unwrap();
    fs::copy(folder.join("seed-0/result.json"), folder.join("seed-1/result.json")).unwrap();
    let output = paper("2");
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("the result of t/sam seed 0, expected that of t/sam seed 1"), "{}", error(&output));
}
