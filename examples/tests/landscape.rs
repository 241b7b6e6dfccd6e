//! The binary `landscape`: what it writes, that it goes on where it was, and what it refuses.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::{Training, error};

fn trained() -> Training {
    let training =
        Training::new("model = \"mlp-norm-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 2.0\n");
    training.finished("sgd", &[]);
    training.finished("sam", &["--set", "rho=0.05"]);
    training
}

fn landscape(training: &Training, out: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_landscape"));
    command.arg(training.path("sgd/weights.safetensors"));
    command.arg(format!("SAM={}", training.path("sam/weights.safetensors").display()));
    command.args(["--quiet", "--images", "200", "--order", "8", "--out"]).arg(training.path(out)).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn done(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", error(&output));
    output
}

#[test]
fn it_goes_on_where_it_was() {
    let training = trained();
    let output = done(landscape(&training, "whole", &["--grid", "9"]));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("| sgd ") && table.contains("| SAM ") && table.contains("λ₁ / λ₅"), "{table}");
    let names = ["landscape.html", "landscape.jsonl", "landscape.md", "landscape.png"];
    assert_eq!(training.names("whole"), names);

    // Stopped in the middle, it has the same values in the end.
    let log = training.path("parts/landscape.jsonl");
    let mut stops = 0;
    for _ in 0..50 {
        let before = fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        let child = landscape(&training, "parts", &["--grid", "9"]).spawn().unwrap();
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < before + 40 {
            thread::sleep(Duration::from_millis(2));
            if fs::exists(training.path("parts/landscape.png")).unwrap() {
                break;
            }
        }
        let _ = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        match child.wait_with_output().unwrap().status.code() {
            Some(130) => stops += 1,
            code => {
                assert_eq!(code, Some(0));
                break;
            }
        }
    }
    assert!(stops > 0, "it was never stopped");
    for name in names {
        assert!(
            fs::read(training.path("whole").join(name)).unwrap()
                == fs::read(training.path("parts").join(name)).unwrap(),
            "{name}"
        );
    }

    // The page is whole by itself.
    let page = fs::read_to_string(training.path("whole/landscape.html")).unwrap();
    assert!(page.contains("\"name\":\"SAM\"") && !page.contains("src=") && !page.contains("http"));
    // Other settings do not mix with these.
    let output = landscape(&training, "whole", &["--grid", "11"]).output().unwrap();
    assert!(!output.status.success() && error(&output).contains("other networks or settings"), "{}", error(&output));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let training = trained();
    let other = Training::new("model = \"mlp-w8\"\nimages = 100.0\nvalidation = 0.2\nbatch = 20\nepochs = 1.0\n");
    other.finished("other", &[]);
    let refused = |command: &mut Command, words: &str| {
        let output = command.output().unwrap();
        let said = error(&output);
        assert!(!output.status.success() && said.contains(words), "{said}");
    };
    let other = other.path("other/weights.safetensors").display().to_string();
    refused(&mut landscape(&training, "a", &[&other]), "expected networks of one kind");
    let again = training.path("sgd/weights.safetensors").display().to_string();
    refused(&mut landscape(&training, "b", &[&again]), "two networks are called sgd");
    refused(&mut landscape(&training, "c", &["--grid", "1"]), "--grid is 1");
    refused(&mut landscape(&training, "d", &["--span", "0"]), "--span is 0");
    refused(&mut landscape(&training, "e", &["nowhere.safetensors"]), "nowhere.safetensors");
    assert!(["a", "b", "c", "d", "e"].iter().all(|out| !training.path(out).exists()), "nothing is made");
}
