//! Files: what is the user's stays, what is written is on the disk, and a training goes on from nothing but its own.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{SMALL, Training, error};

const SHORT: &str = "model = \"mlp-w8\"\nimages = 200.0\nvalidation = 0.2\nbatch = 20\nepochs = 4.0\nrho = 0.05\n";

#[track_caller]
fn refused(training: &Training, out: &str, arguments: &[&str]) -> String {
    let output = training.command(out, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    error(&output)
}

/// `--out .`, in a folder with files that look like temporary ones: trained or refused, they stay.
#[test]
fn files_of_the_user_stay() {
    let training = Training::new(SHORT);
    let names = [".tmp", ".tmpx", ".checkpoint", ".checkpoint.bak", ".clock", ".lock-mine", "thesis.tex"];
    let is_there = |folder: &Path| names.iter().all(|name| fs::read_to_string(folder.join(name)).unwrap() == *name);
    for out in ["trained", "refused"] {
        fs::create_dir(training.path(out)).unwrap();
        for name in names {
            fs::write(training.path(out).join(name), name).unwrap();
        }
    }
    training.finished("trained", &[]);
    refused(&training, "trained", &[]);
    training.finished("trained", &["--overwrite"]);
    assert!(is_there(&training.path("trained")));

    fs::write(training.path("refused/result.json"), "mine").unwrap();
    for arguments in [&[][..], &["--resume"], &["--overwrite"]] {
        let message = refused(&training, "refused", arguments);
        assert!(message.contains("result.json") && message.contains("not the folder of a training"), "{message}");
    }
    assert!(is_there(&training.path("refused")));
    assert_eq!(fs::read_to_string(training.path("refused/result.json")).unwrap(), "mine");
    assert_eq!(training.names("refused").len(), names.len() + 1);
}

#[test]
fn results_are_not_overwritten() {
    let training = Training::new(SHORT);
    training.finished("out", &[]);
    let result = fs::read(training.path("out/result.json")).unwrap();
    let message = refused(&training, "out", &["--seed", "1"]);
    assert!(message.contains("say --resume"), "{message}");
    fs::remove_file(training.checkpoint("out")).unwrap();
    for arguments in [&["--seed", "1"][..], &["--seed", "1", "--resume"]] {
        let message = refused(&training, "out", arguments);
        assert!(
            message.contains(".safetensors of another") || message.contains("result.json, but no checkpoint"),
            "{message}"
        );
        assert!(message.contains("--overwrite"), "{message}");
    }
    assert!(fs::read(training.path("out/result.json")).unwrap() == result);
    training.finished("out", &["--seed", "1", "--overwrite"]);
    assert!(fs::read(training.path("out/result.json")).unwrap() != result);

    // Without --out each training has a folder of its own, and --resume means the latest.
    let here = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(training.folder.path()).args(["recipe.toml", "--quiet"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(here(&[]).contains("runs/train\n"));
    assert!(here(&[]).contains("runs/train-2\n"));
    assert!(here(&["--resume"]).contains("runs/train-2\n"));
    assert!(!training.path("runs/train-3").exists());
    // The one with the highest number, also where others are gone or are no trainings.
    fs::rename(training.path("runs/train-2"), training.path("runs/train-12")).unwrap();
    fs::create_dir(training.path("runs/train-99")).unwrap();
    fs::create_dir(training.path("runs/train-old")).unwrap();
    assert!(here(&["--resume"]).contains("runs/train-12\n"));
}

/// What is refused has removed nothing, also where the results may be replaced.
#[test]
fn refused_trainings_remove_nothing() {
    let training = Training::new(SHORT);
    training.finished("out", &[]);
    let all = || training.names("out").into_iter().map(|name| fs::read(training.path("out").join(name)).unwrap());
    let before: Vec<_> = all().collect();
    let out = training.path("out").to_str().unwrap().to_owned();
    for (arguments, words) in [
        (&["--set", "keep-epochs = [9.0]"][..], "`keep-epochs` names epoch 9"),
        (&["--set", "keep-epochs = [9.0]", "--set", "method = \"bootstrap\""], "`keep-epochs` names epoch 9"),
        (&["--data", &out, "--set", "start = \"missing.safetensors\""], "missing.safetensors"),
        (&["--data", &out, "--set", "start = \"best.safetensors\"", "--set", "model = \"mlp-w4\""], "has shape"),
        (&["--data", &out, "--set", "start = \"best.safetensors\""], "which --overwrite would remove"),
    ] {
        let message = refused(&training, "out", &[arguments, &["--overwrite"]].concat());
        assert!(message.contains(words), "{message}");
        assert!(all().eq(before.iter().cloned()), "{message}");
    }
    // The initial weights may be there in other ways.
    fs::copy(training.path("out/best.safetensors"), training.path("out/mine.safetensors")).unwrap();
    training.finished("out", &["--data", &out, "--set", "start = \"mine.safetensors\"", "--overwrite"]);
}

/// The other programs: a new folder for each run, or one that is named and empty, or `--overwrite`.
#[test]
fn comparisons_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cifar"));
        command.current_dir(folder.path()).args(["--quiet", "--epochs", "1", "--seeds", "1", "--limit", "500"]);
        command.args(arguments).output().unwrap()
    };
    for arguments in [&[][..], &[], &["--out", "named"]] {
        assert!(run(arguments).status.success());
    }
    let table = |name: &str| fs::read_to_string(folder.path().join(name).join("table.md")).unwrap();
    assert_eq!(table("runs/cifar").lines().next(), table("runs/cifar-2").lines().next());
    // Every option is written down.
    for option in ["--model mlp", "--lr 0.05", "--noise 0.4 --noise-kind exclusive", "--rho 0.2 --p 2", "--limit 500"] {
        assert!(table("named").contains(option), "{}", table("named"));
    }
    let before = table("named");
    let output = run(&["--out", "named", "--lr", "0.1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("named holds log.jsonl of another run"), "{}", error(&output));
    assert_eq!(table("named"), before);
    assert!(run(&["--out", "named", "--lr", "0.1", "--overwrite"]).status.success());
    assert!(table("named").contains("--lr 0.1"));
}

/// Two that begin at the same time have a folder each, and one that begins later does not empty their logs.
#[test]
fn comparisons_at_once_have_folders_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    for (program, name, more) in [
        (env!("CARGO_BIN_EXE_cifar"), "cifar", &["--limit", "500"][..]),
        (env!("CARGO_BIN_EXE_variants"), "variants", &["--only", "sam, p"]),
    ] {
        let begin = || {
            let mut command = Command::new(program);
            command.current_dir(folder.path()).args(["--quiet", "--epochs", "1", "--seeds", "1"]).args(more);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        for child in [begin(), begin(), begin()] {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", error(&output));
        }
        let log = |folder_name: String| {
            fs::read_to_string(folder.path().join("runs").join(folder_name).join("log.jsonl")).unwrap().lines().count()
        };
        assert!([name.to_owned(), format!("{name}-2"), format!("{name}-3")].map(log).iter().all(|lines| *lines >= 2));
    }
}

/// Trainings too: none waits for another, and none is refused.
#[test]
fn trainings_at_once_have_folders_of_their_own() {
    let training = Training::new(SHORT);
    let begin = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(training.folder.path()).args(["recipe.toml", "--quiet"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [begin(), begin(), begin()] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
    }
    for name in ["train", "train-2", "train-3"] {
        assert!(training.path("runs").join(name).join("result.json").exists(), "{name}");
    }
}

/// The folder of a training is not another program's, also to overwrite; an older table does not outlive its log.
#[test]
fn comparisons_replace_only_comparisons() {
    let training = Training::new(SHORT);
    training.finished("out", &[]);
    let compare = |program: &str, out: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["--quiet", "--seeds", "1", "--overwrite", "--out"]).arg(training.path(out));
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let before = training.essence("out");
    for program in [env!("CARGO_BIN_EXE_cifar"), env!("CARGO_BIN_EXE_variants")] {
        let output = compare(program, "out", &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(error(&output).contains("is the folder of a training"), "{}", error(&output));
    }
    assert!(training.essence("out") == before && !training.path("out/table.md").exists());

    fs::create_dir(training.path("old")).unwrap();
    for name in ["log.jsonl", "table.md", "curves.png"] {
        fs::write(training.path("old").join(name), "old").unwrap();
    }
    let output = compare(env!("CARGO_BIN_EXE_cifar"), "old", &["--model", "vit-b-16"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        training.names("old").iter().all(|name| fs::read_to_string(training.path("old").join(name)).unwrap() == "old")
    );
    let mut child = compare(env!("CARGO_BIN_EXE_cifar"), "old", &["--epochs", "100000"]);
    while fs::read_to_string(training.path("old/log.jsonl")).unwrap().matches('\n').count() == 0 {
        assert!(child.try_wait().unwrap().is_none());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(training.names("old"), ["log.jsonl"]);
}

/// What the runtime's own tests cannot see: when the system was asked to write what. A library that is loaded before the
/// C library notes each `fsync`: the file that it is of, and which file has the checkpoint's name by then.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_is_on_the_disk_before_it_has_its_name() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    const WATCH: &str = r#"
        use std::io::Write as _;
        use std::os::unix::fs::MetadataExt as _;

        unsafe extern "C" {
            fn syscall(number: i64, ...) -> i64;
        }

        #[unsafe(no_mangle)]
        pub extern "C" fn fsync(file: i32) -> i32 {
            let inode = |path: &str| std::fs::metadata(path).map_or(0, |file| file.ino());
            let path = std::fs::read_link(format!("/proc/self/fd/{file}")).unwrap_or_default();
            let (log, checkpoint) = (std::env::var("WATCH_LOG").unwrap(), std::env::var("WATCH_FILE").unwrap());
            if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(log) {
                let synced = inode(&path.to_string_lossy());
                let _ = writeln!(log, "{}\t{synced}\t{}", path.display(), inode(&checkpoint));
            }
            const FSYNC: i64 = if cfg!(target_arch = "aarch64") { 82 } else { 74 };
            // SAFETY: the arguments are those of this system call.
            unsafe { syscall(FSYNC, file) as i32 }
        }
    "#;
    let training = Training::new(SHORT);
    let (source, library) = (training.path("watch.rs"), training.path("watch.so"));
    fs::write(&source, WATCH).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(&source);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", error(&output));

    let (log, checkpoint) = (training.path("watch.log"), training.checkpoint("out"));
    let mut command = training.command("out", &["--every", "8"]);
    command.env("LD_PRELOAD", &library).env("WATCH_LOG", &log).env("WATCH_FILE", &checkpoint);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", error(&output));
    let log = fs::read_to_string(&log).unwrap();
    let lines: Vec<(&str, u64, u64)> = log
        .lines()
        .map(|line| {
            let mut words = line.split('\t');
            let mut next = || words.next().unwrap();
            (next(), next().parse().unwrap(), next().parse().unwrap())
        })
        .collect();
    let folder = training.path("out");
    let mut saved = 0;
    for (i, &(path, written, before)) in lines.iter().enumerate() {
        if !path.contains(".checkpoint.safetensors.") {
            continue;
        }
        // The data are synchronized under another name; the next call is of the folder, and the file has its name by then.
        assert_ne!(written, before, "{log}");
        let (path, _, named) = lines[i + 1];
        assert_eq!((Path::new(path), named), (folder.as_path(), written), "{log}");
        saved += 1;
    }
    // The folder is new: so is its name in the one above.
    let first = lines.iter().position(|line| line.0.contains(".checkpoint")).unwrap();
    assert!(lines[..first].iter().any(|line| Path::new(line.0) == training.folder.path()), "{log}");
    // Four times eight steps, the end, and no other way to the file.
    assert_eq!(saved, 5, "{log}");
    let file = fs::metadata(&checkpoint).unwrap();
    assert_eq!(file.ino(), lines.iter().rfind(|line| line.0.contains(".checkpoint")).unwrap().1);
    // The permissions that the umask leaves, like those of any file.
    let other = fs::metadata(training.path("recipe.toml")).unwrap();
    for name in ["checkpoint.safetensors", "weights.safetensors", "best.safetensors", "result.json", "epochs.csv"] {
        let file = fs::metadata(folder.join(name)).unwrap();
        assert_eq!(file.permissions().mode(), other.permissions().mode(), "{name}");
    }
}

/// A log that is shorter than it was is not filled with zeros.
#[test]
fn logs_are_cut_or_refused() {
    let training = Training::new(SMALL);
    training.finished("whole", &["--every", "5"]);
    training.stopped("parts", &["--every", "1000"], "\"stage\":1");
    let log = training.path("parts/log.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..text.len() / 2]).unwrap();
    let checkpoint = fs::read(training.checkpoint("parts")).unwrap();
    let message = refused(&training, "parts", &["--resume"]);
    assert!(message.contains("log.jsonl has ") && message.contains("expected at least the "), "{message}");
    assert_eq!(fs::read_to_string(&log).unwrap(), text[..text.len() / 2]);
    assert!(fs::read(training.checkpoint("parts")).unwrap() == checkpoint);
    // A longer log of another training, and a short event file: neither is touched.
    let other = fs::read_to_string(training.path("whole/log.jsonl")).unwrap().replace("\"seed\":0", "\"seed\":1");
    assert!(other.len() > text.len());
    fs::write(&log, &other).unwrap();
    let message = refused(&training, "parts", &["--resume"]);
    assert!(message.contains("log.jsonl has changed since the checkpoint was saved"), "{message}");
    assert_eq!(fs::read_to_string(&log).unwrap(), other);
    let events = training.path("parts/events.out.tfevents");
    let records = fs::read(&events).unwrap();
    fs::write(&events, &records[..records.len() / 2]).unwrap();
    let longer = format!("{text}{{\"after\": 1}}\n");
    fs::write(&log, &longer).unwrap();
    let message = refused(&training, "parts", &["--resume"]);
    assert!(message.contains("events.out.tfevents has "), "{message}");
    assert_eq!(fs::read_to_string(&log).unwrap(), longer);
    // What was written after the checkpoint is cut off; a file that is gone is begun anew.
    fs::write(&log, format!("{text}{{\"after\": 1}}\nhalf")).unwrap();
    fs::remove_file(training.path("parts/events.out.tfevents")).unwrap();
    training.finished("parts", &["--every", "5", "--resume"]);
    assert!(training.essence("parts") == training.essence("whole"));
    assert!(!fs::read(training.path("parts/events.out.tfevents")).unwrap().starts_with(&[0; 12]));
}

/// Images or labels that have changed since the checkpoint.
#[test]
fn another_data_set_is_noticed() {
    let training = Training::new("data = \"pictures\"\nmodel = \"mlp-w8\"\nbatch = 4\nepochs = 200.0\nlr = 0.05\n");
    let folder = |half: &str, class: &str| training.path("pictures").join(half).join(class);
    for (half, class, value) in ["train", "test"].iter().flat_map(|half| [(half, "dark", 20u8), (half, "light", 230)]) {
        fs::create_dir_all(folder(half, class)).unwrap();
        for i in 0..6u8 {
            let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([value, value + i, value]));
            picture.save(folder(half, class).join(format!("{i}.png"))).unwrap();
        }
    }
    let data = training.folder.path().to_str().unwrap().to_owned();
    training.stopped("out", &["--data", &data], "\"step\":30");
    let before = fs::read(training.checkpoint("out")).unwrap();
    // One pixel.
    let path = folder("train", "dark").join("0.png");
    let mut picture = image::open(&path).unwrap().to_rgb8();
    picture.put_pixel(3, 3, image::Rgb([255, 0, 0]));
    picture.save(&path).unwrap();
    let message = refused(&training, "out", &["--data", &data, "--resume"]);
    assert!(message.contains("the images or labels have changed since"), "{message}");
    assert!(fs::read(training.checkpoint("out")).unwrap() == before);
}

/// Every byte of a checkpoint is under its digest: what was flipped is said, and nothing is changed.
#[test]
fn flipped_bits_are_noticed() {
    let training = Training::new(SHORT);
    training.finished("out", &[]);
    let path = training.checkpoint("out");
    let whole = fs::read(&path).unwrap();
    let logs = || fs::read(training.path("out/log.jsonl")).unwrap();
    let log = logs();
    for i in 0..12 {
        let mut bytes = whole.clone();
        let at = 8 + i * (whole.len() - 9) / 11;
        bytes[at] ^= 1 << (i % 8);
        fs::write(&path, &bytes).unwrap();
        let message = refused(&training, "out", &["--resume"]);
        assert!(message.contains("checkpoint.safetensors is damaged"), "{message}");
        assert!(logs() == log && fs::read(&path).unwrap() == bytes);
    }
    fs::write(&path, &whole).unwrap();
    training.finished("out", &["--resume"]);
}
