//! What people expect of a trainer: going on, prolonging, stopping early, testing and using what was trained.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{Training, error};
use serde_json::Value;

const CONSTANT: &str = "model = \"mlp-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 6.0\nrho = 0.05\n\
                        noise = 0.2\nema = 0.9\nschedule = \"constant\"\n";

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", error(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// With a constant learning rate, a training of three epochs that is prolonged to six is one of six.
#[test]
fn a_finished_training_is_prolonged() {
    let training = Training::new(CONSTANT);
    training.finished("whole", &[]);
    training.finished("parts", &["--set", "epochs = 3.0"]);
    // It is not begun with another recipe, and not prolonged without a word.
    let output = training.command("parts", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    training.finished("parts", &["--resume"]);
    let (whole, parts) = (training.essence("whole"), training.essence("parts"));
    assert_eq!((parts.0["steps"].as_u64(), parts.0["test_error"].as_f64()), (Some(96), whole.0["test_error"].as_f64()));
    assert!(parts.2 == whole.2, "tensors differ");
    assert!(parts.1.contains("\"prolonged\":\"expected `epochs` 6.0, found 3.0\""), "{}", parts.1);
    let output = training.command("parts", &["--resume", "--set", "lr = 0.2"]).output().unwrap();
    assert!(error(&output).contains("expected `lr` 0.2, found 0.1"), "{}", error(&output));
    // It has done more steps than that already.
    let output = training.command("parts", &["--resume", "--set", "epochs = 2.0"]).output().unwrap();
    assert!(error(&output).contains("has done 96 steps: expected at most the 32"), "{}", error(&output));
}

/// `--resume` begins where there is nothing, and goes on from another folder's checkpoint.
#[test]
fn resuming_begins_or_goes_on_from_elsewhere() {
    let training = Training::new(CONSTANT);
    training.finished("whole", &["--resume"]);
    training.stopped("first", &[], "\"epoch\":2");
    for (out, from) in [("second", "first"), ("third", "first/checkpoint.safetensors")] {
        let resume = format!("--resume={}", training.path(from).display());
        training.finished(out, &[&resume]);
        let (whole, other) = (training.essence("whole"), training.essence(out));
        assert!(other.0 == whole.0 && other.2 == whole.2, "{out}");
    }
    assert!(!training.path("first/result.json").exists());
    // Where there is one, it is said that the other is not used.
    let output =
        training.command("whole", &[&format!("--resume={}", training.path("first").display())]).output().unwrap();
    assert!(output.status.success());
    assert!(error(&output).contains("which the folder has already, not from "), "{}", error(&output));
    let output = training.command("fourth", &["--resume=missing.safetensors"]).output().unwrap();
    assert!(error(&output).contains("there is no checkpoint missing.safetensors"), "{}", error(&output));
    assert!(!training.path("fourth").exists());
}

#[test]
fn a_training_stops_early_and_keeps_the_best() {
    let training = Training::new(&CONSTANT.replace("epochs = 6.0", "epochs = 200.0\npatience = 3"));
    training.finished("out", &[]);
    let table = fs::read_to_string(training.path("out/epochs.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next().unwrap(), "stage,epoch,step,loss,rate,sharpness,test_error");
    let rows: Vec<Vec<f64>> =
        lines.map(|line| line.split(',').map(|number| number.parse().unwrap()).collect()).collect();
    let errors: Vec<f64> = rows.iter().map(|row| row[6]).collect();
    // Every epoch is tested; the last three are not better than the best before.
    assert_eq!(
        rows.iter().map(|row| row[1]).collect::<Vec<_>>(),
        (1..=rows.len()).map(|i| i as f64).collect::<Vec<_>>()
    );
    let best = errors.iter().copied().fold(1.0, f64::min);
    let epoch = errors.iter().position(|error| *error == best).unwrap() + 1;
    assert!(rows.len() < 200 && rows.len() == epoch + 3, "{table}");
    let evaluated = |name: &str| {
        let weights = training.path("out").join(name);
        printed(&run(env!("CARGO_BIN_EXE_evaluate"), &[weights.to_str().unwrap()]))
    };
    let words = |error: f64, epoch: usize| (format!("test error {:.2} %", 100.0 * error), format!("epoch {epoch}\n"));
    for (name, (error, epoch)) in [
        ("best.safetensors", words(best, epoch)),
        ("weights.safetensors", words(errors[errors.len() - 1], errors.len())),
    ] {
        let said = evaluated(name);
        assert!(said.contains(&error) && said.contains(&epoch) && said.contains("top-5 error"), "{said}");
    }
    // Interrupted or not, it is the same.
    training.stopped("parts", &[], "\"epoch\":2");
    training.finished("parts", &["--resume"]);
    assert!(training.essence("parts") == training.essence("out"));
    assert_eq!(fs::read_to_string(training.path("parts/epochs.csv")).unwrap(), table);
    let output = training.command("stages", &["--set", "method = \"bootstrap\""]).output().unwrap();
    assert!(error(&output).contains("`patience` is 3: expected 0"), "{}", error(&output));
}

/// Patience is asked again when the recipe has changed, and results of the shorter training do not stay as those of the
/// longer one.
#[test]
fn a_training_that_stopped_early_is_prolonged() {
    let training = Training::new(&CONSTANT.replace("epochs = 6.0", "epochs = 40.0\npatience = 1"));
    training.finished("out", &[]);
    let steps = |out: &str| training.essence(out).0["steps"].as_u64().unwrap();
    let early = steps("out");
    assert!(early < 640, "{early}");
    let output = training.command("out", &["--resume", "--set", "epochs = 50.0"]).output().unwrap();
    assert!(error(&output).contains("the training stopped early in epoch"), "{}", error(&output));
    assert!(training.path("out/result.json").exists());
    assert!(!fs::read_to_string(training.path("out/log.jsonl")).unwrap().contains("prolonged"));

    for name in ["checkpoint.safetensors", "result.json", "weights.safetensors", "log.jsonl", "train.lock"] {
        fs::create_dir_all(training.path("stopped")).unwrap();
        fs::copy(training.path("out").join(name), training.path("stopped").join(name)).unwrap();
    }
    training.finished("out", &["--resume", "--set", "patience = 0"]);
    assert_eq!(steps("out"), 640);

    let longer = ["--resume", "--set", "patience = 0", "--set", "epochs = 4000.0"];
    training.stopped("stopped", &longer, "prolonged");
    assert!(!training.path("stopped/result.json").exists() && !training.path("stopped/weights.safetensors").exists());
}

#[test]
fn pictures_are_classified() {
    let training = Training::new("data = \"pictures\"\nmodel = \"mlp-w8\"\nbatch = 4\nepochs = 40.0\nlr = 0.05\n");
    for half in ["train", "test"] {
        for (class, value) in [("dark", 20u8), ("light", 230)] {
            let folder = training.path("pictures").join(half).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..6u8 {
                let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([value, value + i, value]));
                picture.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    let data = training.folder.path().to_str().unwrap().to_owned();
    training.finished("out", &["--data", &data]);
    let weights = training.path("out/weights.safetensors");
    let weights = weights.to_str().unwrap();
    let (night, noon) = (training.path("night.png"), training.path("noon.png"));
    image::RgbImage::from_pixel(31, 17, image::Rgb([10, 15, 12])).save(&night).unwrap();
    image::GrayImage::from_pixel(8, 8, image::Luma([240])).save(&noon).unwrap();
    let (night, noon) = (night.to_str().unwrap(), noon.to_str().unwrap());
    let said = printed(&run(env!("CARGO_BIN_EXE_predict"), &[weights, night, noon, "--top", "2"]));
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with(&format!("{night}: dark ")) && lines[0].contains(" %, light "), "{said}");
    assert!(lines[1].starts_with(&format!("{noon}: light ")) && lines.len() == 2, "{said}");
    let said = printed(&run(env!("CARGO_BIN_EXE_evaluate"), &[weights, "--data", &data]));
    assert!(said.contains("pictures: test error 0.00 %, 12 images"), "{said}");

    // One that is no picture is said, and the others are classified all the same.
    let recipe = training.path("recipe.toml");
    let output = run(env!("CARGO_BIN_EXE_predict"), &[weights, recipe.to_str().unwrap(), &data, noon]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error(&output).contains("cannot classify") && error(&output).contains("it is a folder"),
        "{}",
        error(&output)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("light"));
    let output = run(env!("CARGO_BIN_EXE_predict"), &[recipe.to_str().unwrap(), noon]);
    assert!(error(&output).contains("cannot use"), "{}", error(&output));
}

/// A language model has no picture to classify and no spectrum.
#[test]
fn programs_for_images_refuse_language_models() {
    let training = Training::new("model = \"gpt-w8\"\nlength = 16\nbatch = 8\nepochs = 1.0\n");
    training.finished("out", &[]);
    let weights = training.path("out/weights.safetensors").to_str().unwrap().to_owned();
    let recipe = training.path("recipe.toml").to_str().unwrap().to_owned();
    for output in [
        run(env!("CARGO_BIN_EXE_predict"), &[&weights, "a.png"]),
        run(env!("CARGO_BIN_EXE_spectrum"), &[&recipe, &format!("gpt={weights}"), "--out", &recipe]),
    ] {
        assert_eq!(output.status.code(), Some(2));
        assert!(error(&output).contains("language model"), "{}", error(&output));
    }
}

/// A folder that nothing is read from.
#[test]
fn no_data_folder_is_ignored() {
    let training = Training::new(CONSTANT);
    let data = training.folder.path().to_str().unwrap().to_owned();
    training.finished("out", &[]);
    let weights = training.path("out/weights.safetensors");
    for output in [
        training.command("other", &["--data", &data]).output().unwrap(),
        run(env!("CARGO_BIN_EXE_evaluate"), &[weights.to_str().unwrap(), "--data", &data]),
        run(env!("CARGO_BIN_EXE_paper"), &["families", "--only", "vit", "--data", &data, "--out", &data]),
    ] {
        assert_eq!(output.status.code(), Some(2));
        assert!(error(&output).contains("remove --data"), "{}", error(&output));
    }
    assert!(!training.path("other").exists());
}

/// A dry run says what would be done, in a form that can be run, and writes nothing.
#[test]
fn a_dry_run_shows_the_whole_recipe() {
    let training = Training::new("rho = 0.1\nmodel = \"mlp-w16\"\nimages = 400.0\nbatch = 20\nepochs = 2.0\n");
    let output = training.command("out", &["--dry-run", "--set", "lr = 0.3"]).output().unwrap();
    let text = printed(&output);
    assert!(!training.path("out").exists());
    assert!(text.contains("lr = 0.3\n") && text.contains("rho = 0.1\n") && text.contains("momentum = 0.9\n"), "{text}");
    assert!(text.contains("400 training images, 10000 test images of 10 classes; 20 steps an epoch"), "{text}");
    fs::write(training.path("whole.toml"), &text).unwrap();
    let again = run(env!("CARGO_BIN_EXE_train"), &[training.path("whole.toml").to_str().unwrap(), "--dry-run"]);
    assert_eq!(printed(&again), text);
}

/// Threads that compute, and threads that load: other numbers of them give the same weights.
#[test]
fn threads_do_not_change_the_bits() {
    let training = Training::new(&format!("{CONSTANT}cutout = 8\n").replace("mlp-w16", "cnn-w2"));
    training.finished("usual", &["--set", "epochs = 1.0"]);
    for (out, threads, workers) in [("few", "1", "1"), ("many", "3", "2")] {
        training.finished(out, &["--set", "epochs = 1.0", "--threads", threads, "--workers", workers]);
        assert!(training.essence(out) == training.essence("usual"), "{threads} threads, {workers} workers");
    }
}

#[test]
fn shells_complete_the_options() {
    for (program, option) in [(env!("CARGO_BIN_EXE_train"), "--dry-run"), (env!("CARGO_BIN_EXE_cifar"), "--augment")] {
        for shell in ["bash", "zsh", "fish"] {
            let script = printed(&run(program, &["--completions", shell]));
            assert!(script.contains(option) || script.contains(&option[2..]), "{shell}: {script}");
        }
    }
}

/// Help has examples and names every key of a recipe.
#[test]
fn help_has_examples_and_keys() {
    for program in [
        env!("CARGO_BIN_EXE_train"),
        env!("CARGO_BIN_EXE_paper"),
        env!("CARGO_BIN_EXE_cifar"),
        env!("CARGO_BIN_EXE_variants"),
        env!("CARGO_BIN_EXE_spectrum"),
        env!("CARGO_BIN_EXE_bench"),
        env!("CARGO_BIN_EXE_arithmetic"),
        env!("CARGO_BIN_EXE_evaluate"),
        env!("CARGO_BIN_EXE_predict"),
    ] {
        let name = program.rsplit('/').next().unwrap();
        let help = printed(&run(program, &["--help"]));
        assert!(help.contains("Example") && help.contains(&format!("Usage: {name}")), "{help}");
        assert_eq!(printed(&run(program, &["--version"])), format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        if ["train", "paper"].contains(&name) {
            let training = Training::new("");
            let recipe =
                run(env!("CARGO_BIN_EXE_train"), &[training.path("recipe.toml").to_str().unwrap(), "--dry-run"]);
            for line in printed(&recipe).lines().filter(|line| line.contains(" = ")) {
                let key = line.split(" = ").next().unwrap();
                assert!(help.contains(&format!("  {key} = ")), "{key}");
            }
        }
    }
}

/// The table of epochs tells the same as the log.
#[test]
fn the_table_of_epochs_is_that_of_the_log() {
    let training = Training::new(CONSTANT);
    training.finished("out", &[]);
    let log = fs::read_to_string(training.path("out/log.jsonl")).unwrap();
    let tested = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let tested: Vec<Value> = tested.filter(|line| line["test error"].is_f64()).collect();
    let table = fs::read_to_string(training.path("out/epochs.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + tested.len());
    for (line, row) in tested.iter().zip(table.lines().skip(1)) {
        assert!(row.ends_with(&format!(",{}", line["test error"])), "{row}");
    }
}
