//! A training as the tests of the binary `train` run it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// Small, of two trainings, each with an average.
pub const SMALL: &str = r#"
model = "mlp-w64"
images = 1000.0
validation = 0.2
batch = 40
epochs = 5.0
method = "bootstrap"
rho = 0.05
noise = 0.4
ema = 0.9
"#;

pub struct Training {
    pub folder: tempfile::TempDir,
}

impl Training {
    pub fn new(recipe: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, out: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.arg(self.path("recipe.toml")).args(["--quiet", "--out"]).arg(self.path(out)).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub fn finished(&self, out: &str, arguments: &[&str]) {
        let output = self.command(out, arguments).output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
    }

    /// Stops it with SIGTERM once it has logged something with these words. On a busy machine it may have ended before this
    /// is seen, and begins anew.
    #[track_caller]
    pub fn stopped(&self, out: &str, arguments: &[&str], words: &str) {
        let log = self.path(out).join("log.jsonl");
        for _ in 0..20 {
            let mut child = self.command(out, arguments).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                if fs::read_to_string(&log).is_ok_and(|text| text.contains(words)) {
                    Command::new("kill").arg(child.id().to_string()).status().unwrap();
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
            let output = child.wait_with_output().unwrap();
            match output.status.code() {
                Some(130) => return,
                Some(0) => fs::remove_dir_all(self.path(out)).unwrap(),
                _ => panic!("{}", error(&output)),
            }
        }
        panic!("it ended before it was stopped, each of 20 times");
    }

    pub fn checkpoint(&self, out: &str) -> std::path::PathBuf {
        self.path(out).join("checkpoint.safetensors")
    }

    /// Of the files in its folder.
    pub fn names(&self, out: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(out)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Everything that an interruption must not change.
    pub fn essence(&self, out: &str) -> (Value, String, Vec<(String, Vec<u8>)>) {
        let mut result: Value = serde_json::from_slice(&fs::read(self.path(out).join("result.json")).unwrap()).unwrap();
        result["seconds"] = 0.into();
        let bytes = fs::read(self.checkpoint(out)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> =
            tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect();
        tensors.sort();
        (result, fs::read_to_string(self.path(out).join("log.jsonl")).unwrap(), tensors)
    }
}

pub fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Steps that a checkpoint has done.
pub fn steps(checkpoint: &Path) -> u64 {
    let bytes = fs::read(checkpoint).unwrap();
    safetensors::SafeTensors::deserialize(&bytes).expect("the file is whole");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let place: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["place"]).unwrap();
    place["steps"].as_u64().unwrap()
}
