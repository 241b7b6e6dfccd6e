//! The trainer as a stranger meets it: what it writes, that it repeats itself, and how it refuses.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn cifar(out: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cifar")).args(["--quiet", "--out"]).arg(out).args(arguments).output().unwrap()
}

/// Runs it, and gives what it says of its failure.
#[track_caller]
fn refused(out: &Path, arguments: &[&str]) -> String {
    let output = cifar(out, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(!out.exists() || out.is_file(), "something is left behind: {}", out.display());
    String::from_utf8(output.stderr).unwrap()
}

const SHORT: [&str; 6] = ["--epochs", "2", "--seeds", "2", "--limit", "1000"];

#[test]
fn writes_a_log_a_table_and_a_picture_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let out = folder.path().join(name);
        let output = cifar(&out, &SHORT);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), out)
    };
    let (printed, out) = run("first");
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(table.contains("| SGD ") && table.contains("| SAM ") && table.contains(" ± "), "{table}");
    assert!(printed.contains("40 % wrong labels") && printed.contains("| SAM "), "{printed}");
    assert_eq!(image::image_dimensions(out.join("curves.png")).unwrap(), (1200, 750));

    // The same but for the clock: every number of every line.
    let (_, again) = run("second");
    let numbers = |out: &Path| -> Vec<serde_json::Value> {
        let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
        let mut lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            line["seconds"] = 0.into();
        }
        lines
    };
    let first = numbers(&out);
    assert_eq!(first.len(), 8);
    assert_eq!(numbers(&again), first);
    assert!(first.iter().all(|line| line["loss"].as_f64().unwrap() > 0.));
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn reads_a_folder_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for half in ["train", "test"] {
        for (class, value) in [("dark", 20u8), ("light", 230)] {
            let pictures = folder.path().join(half).join(class);
            fs::create_dir_all(&pictures).unwrap();
            for i in 0..6u8 {
                let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([value, value + i, value]));
                picture.save(pictures.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    fs::write(folder.path().join("train/dark/notes.txt"), "no picture").unwrap();
    let data = folder.path().to_str().unwrap();
    let out = folder.path().join("out");
    let output = cifar(&out, &["--data", data, "--model", "mlp", "--epochs", "20", "--batch", "4", "--seeds", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.starts_with("skipped 1 file that is not a picture (.txt) in "), "{notes}");
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(table.lines().filter(|line| line.contains("| 0.0 ")).count() == 2, "{table}");
}

#[test]
fn refuses_with_exit_code_2_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let missing = folder.path().join("nothing");
    let error = refused(&out, &["--data", missing.to_str().unwrap()]);
    assert!(error.starts_with("error: ") && error.contains("nothing") && error.contains("missing"), "{error}");

    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let error = refused(&out, &["--data", data.to_str().unwrap()]);
    assert!(error.contains("looked for"), "{error}");

    for batch in ["1", "2", "3", "4", "5"] {
        fs::write(data.join(format!("data_batch_{batch}.bin")), vec![0; 3073]).unwrap();
    }
    fs::write(data.join("test_batch.bin"), vec![0; 3073 + 5]).unwrap();
    let error = refused(&out, &["--data", data.to_str().unwrap()]);
    assert!(error.contains("test_batch.bin") && error.contains('1'), "{error}");
    let mut record = vec![0; 2 * 3073];
    record[3073] = 17;
    fs::write(data.join("test_batch.bin"), record).unwrap();
    let error = refused(&out, &["--data", data.to_str().unwrap()]);
    assert!(error.contains("test_batch.bin") && error.contains("17") && error.contains("record 1"), "{error}");

    assert!(refused(&out, &["--epochs", "0"]).contains("--epochs is 0"));
    assert!(refused(&out, &["--batch", "100000"]).contains("5000 training images"));
    assert!(refused(&out, &["--noise", "1.5"]).contains("1.5"));
    assert!(refused(&out, &["--rho=-1"]).contains("rho"));

    // A folder that cannot be made, because a file has its name.
    fs::write(&out, "").unwrap();
    let error = refused(&out, &SHORT);
    assert!(error.contains(out.to_str().unwrap()), "{error}");
}

/// Before anything is downloaded, and without a folder left behind.
#[test]
fn a_file_of_certificates_that_holds_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [data, empty, missing] = ["data", "empty.pem", "missing.pem"].map(|name| folder.path().join(name));
    fs::write(&empty, "").unwrap();
    for certificates in [&empty, &missing] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cifar"));
        command
            .env_remove("SSL_CERT_DIR")
            .env("SSL_CERT_FILE", certificates)
            .arg("--out")
            .arg(folder.path().join("out"));
        let output = command.args(["--quiet", "--download", "cifar10", "--data"]).arg(&data).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("SSL_CERT_FILE is `{}`, where no certificate was found", certificates.display());
        assert!(error.contains(&expected), "{error}");
        assert!(!data.exists());
    }
}
