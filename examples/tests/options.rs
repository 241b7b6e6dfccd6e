//! Every option of every program, with values that make no sense: an error or a run, never a panic.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::Training;

const VALUES: [&str; 12] = [
    "0",
    "-1",
    "NaN",
    "inf",
    "-inf",
    "18446744073709551615",
    "1e308",
    "99999999999999999999999",
    "",
    "unknown",
    "..",
    "1.5",
];

/// How long something may go on that does make sense, before it is ended.
const LONG: Duration = Duration::from_millis(400);

/// Runs it for a moment; gives its exit code, if it had one by then, and what it said.
fn run(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status.code().unwrap_or(-1)),
            None if start.elapsed() > LONG => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut said).unwrap();
    (code, String::from_utf8_lossy(&said).into_owned())
}

/// The options that a program's help names.
fn options(program: &str) -> Vec<String> {
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with("--") || line.starts_with("-h"));
    let names = lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    names.map(|name| name.trim_end_matches(',').split(['=', '[']).next().unwrap().to_owned()).collect()
}

#[test]
fn no_value_is_a_panic() {
    let training = Training::new("model = \"mlp-w4\"\nimages = 60.0\nvalidation = 0.5\nbatch = 10\nepochs = 1.0\n");
    let path = |name: &str| training.path(name).to_str().unwrap().to_owned();
    training.finished("trained", &[]);
    fs::write(
        training.path("t.toml"),
        "title = \"T\"\nmeasure = \"error\"\n[base]\nmodel = \"mlp-w4\"\nimages = 60.0\nvalidation = 0.5\nbatch = 10\n\
         epochs = 1.0\n[[axis]]\n[axis.choices]\nsam = { rho = 0.1 }\n",
    )
    .unwrap();
    image::GrayImage::new(4, 4).save(training.path("a.png")).unwrap();
    let (recipe, weights) = (path("recipe.toml"), path("trained/weights.safetensors"));
    let sgd = format!("sgd={weights}");
    let quick = ["--epochs", "1", "--seeds", "1", "--limit", "200"];
    let mut runs = 0;
    for (program, usual) in [
        (env!("CARGO_BIN_EXE_train"), vec![recipe.as_str()]),
        (env!("CARGO_BIN_EXE_paper"), vec![&path("t.toml"), "--seeds", "1"]),
        (env!("CARGO_BIN_EXE_cifar"), quick.to_vec()),
        (env!("CARGO_BIN_EXE_variants"), vec!["--epochs", "1", "--seeds", "1", "--only", "asam"]),
        (env!("CARGO_BIN_EXE_spectrum"), vec![&recipe, &sgd, "--order", "2"]),
        (env!("CARGO_BIN_EXE_bench"), vec!["mlp", "--iters", "1", "--batch", "2"]),
        (env!("CARGO_BIN_EXE_arithmetic"), vec!["1000", "--variables", "2", "--iters", "1"]),
        (env!("CARGO_BIN_EXE_evaluate"), vec![&weights]),
        (env!("CARGO_BIN_EXE_predict"), vec![&weights, &path("a.png")]),
    ] {
        let all = options(program);
        assert!(all.len() >= 3, "{program}: {all:?}");
        // What would reach for the network is left out.
        for option in all.iter().filter(|option| *option != "--download") {
            for value in VALUES {
                let mut command = Command::new(program);
                // A later option replaces an earlier one of the same name, or is refused.
                let kept = usual.iter().position(|word| word == option);
                let mut arguments = usual.clone();
                if let Some(at) = kept {
                    arguments.drain(at..at + 2);
                }
                let said = format!("{option}={value}");
                command.current_dir(training.folder.path()).args(&arguments).arg(&said);
                let (code, error) = run(command);
                assert!(
                    matches!(code, None | Some(0..=2))
                        && !error.contains("panicked")
                        && !error.contains("RUST_BACKTRACE"),
                    "{program} {arguments:?} {said}: {code:?} {error}"
                );
                runs += 1;
            }
        }
        // In the place of each argument.
        for at in 0..usual.len().min(2) {
            for value in VALUES {
                let mut arguments = usual.clone();
                arguments[at] = value;
                let mut command = Command::new(program);
                command.current_dir(training.folder.path()).args(&arguments);
                let (code, error) = run(command);
                assert!(!error.contains("panicked") && code != Some(101), "{program} {arguments:?}: {error}");
                runs += 1;
            }
        }
    }
    assert!(runs > 700, "{runs}");
}

/// Every key of a recipe.
#[test]
fn no_value_of_a_recipe_is_a_panic() {
    let training = Training::new("");
    let recipe = training.path("recipe.toml");
    let dry = Command::new(env!("CARGO_BIN_EXE_train")).arg(&recipe).arg("--dry-run").output().unwrap();
    let keys = String::from_utf8(dry.stdout).unwrap();
    let keys: Vec<_> = keys.lines().filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect();
    assert!(keys.len() > 35, "{keys:?}");
    for key in keys {
        for value in [
            "0",
            "-1",
            "0.0",
            "-1.0",
            "nan",
            "inf",
            "9223372036854775807",
            "1e308",
            "\"\"",
            "\"..\"",
            "[]",
            "[nan]",
            "true",
        ] {
            let small = ["model = \"mlp-w4\"", "images = 60.0", "validation = 0.5", "batch = 10", "epochs = 1.0"];
            let small = small.iter().filter(|line| !line.starts_with(&format!("{key} ")));
            let small: Vec<_> = small.filter(|_| key != "steps" || value == "0").collect();
            let text = small.into_iter().copied().collect::<Vec<_>>().join("\n") + "\n";
            fs::write(&recipe, format!("{text}{key} = {value}\n")).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
            command.current_dir(training.folder.path()).args(["recipe.toml", "--quiet", "--out", "out", "--overwrite"]);
            let (code, error) = run(command);
            assert!(
                matches!(code, None | Some(0 | 2)) && !error.contains("panicked"),
                "{key} = {value}: {code:?} {error}"
            );
        }
    }
}

/// What has no effect is said, before anything is read, downloaded or written.
#[test]
fn no_option_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (cifar, bench) = (env!("CARGO_BIN_EXE_cifar"), env!("CARGO_BIN_EXE_bench"));
    let (paper, train) = (env!("CARGO_BIN_EXE_paper"), env!("CARGO_BIN_EXE_train"));
    for (program, arguments, words) in [
        (cifar, &["--image-size", "32"][..], "--image-size has no effect"),
        (cifar, &["--only", "sgd", "--rho", "0.1"], "--rho has no effect"),
        (cifar, &["--noise", "0", "--noise-kind", "inclusive"], "--noise-kind has no effect"),
        (cifar, &["--momentum", "0", "--nesterov"], "--nesterov has no effect"),
        (cifar, &["--tf32"], "--tf32 has no effect"),
        (cifar, &["--model", "gpt"], "a language model"),
        (cifar, &["--model", "vit-b-16"], "multiples of 16 pixels"),
        (cifar, &["--download", "cifar10", "--lr=-1"], "--lr is -1"),
        (cifar, &["--download", "cifar10", "--lr", "nan"], "--lr is NaN"),
        (cifar, &["--download", "cifar10", "--momentum", "2"], "--momentum is 2"),
        (cifar, &["--download", "cifar10", "--weight-decay=-1"], "--weight-decay is -1"),
        (cifar, &["--download", "cifar10", "--batch", "0"], "--batch is 0"),
        (cifar, &["--seed", "18446744073709551615"], "--seed is 18446744073709551615"),
        (env!("CARGO_BIN_EXE_variants"), &["--only", "zzz"], "--only is zzz"),
        (env!("CARGO_BIN_EXE_variants"), &["--seed", "18446744073709551615"], "--seed is"),
        (env!("CARGO_BIN_EXE_variants"), &["--rho-factor", "0"], "--rho-factor is 0"),
        (env!("CARGO_BIN_EXE_arithmetic"), &["--bf16"], "--bf16 has no effect"),
        (bench, &["mlp", "--iters", "0"], "--iters is 0"),
        (bench, &["mlp", "--batch", "18446744073709551615"], "--batch is 18446744073709551615"),
        (bench, &["mlp-w18446744073709551615"], "a width of 1 to 65536"),
        (bench, &["mlp", "--channels-last"], "--channels-last has no effect"),
        (bench, &["mlp", "--verbose"], "--verbose has no effect"),
        (bench, &["shake-shake-26-2x1d"], "expected at least 2"),
        (paper, &["report", "families", "--every", "5"], "--every"),
        (paper, &["report", "families", "--data", "x"], "--data"),
        (paper, &["report", "families", "--threads", "2"], "--threads"),
        (paper, &["families", "--set", "alpha = 0.5"], "`alpha` has no effect"),
        (train, &["table4/40/sgd", "--set", "p = 1.0"], "`p` has no effect: it needs `rho` above 0"),
    ] {
        let output = Command::new(program).current_dir(folder.path()).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{arguments:?}");
    }
}
