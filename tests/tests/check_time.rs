//! What the attribute costs: 200 annotated functions add under two seconds to `cargo check`.
//!
//! `cargo test --release -p sam-tests --test check_time -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const FUNCTIONS: usize = 200;

#[test]
fn of_200_functions() {
    let workspace = Workspace::new();
    let plain = workspace.add("plain", "");
    let annotated = workspace.add("annotated", "#[sam_runtime::sam(rho = 0.05, p = 2)]");
    // What they depend on is checked here, and not again below.
    plain.check();
    annotated.check();
    let (plain, annotated): (Vec<_>, Vec<_>) = (0..5).map(|_| (plain.check(), annotated.check())).unzip();
    let (plain, annotated) = (median(plain), median(annotated));
    println!("cargo check of {FUNCTIONS} functions takes {plain:.2?}, with the attribute on each {annotated:.2?}");
    assert!(annotated.saturating_sub(plain) < Duration::from_secs(2), "{plain:.2?}, {annotated:.2?}");
}

/// A workspace below the target directory, which stays, so that the next run finds candle checked.
struct Workspace(PathBuf);

struct Package<'a> {
    workspace: &'a Path,
    name: &'static str,
    source: String,
}

impl Workspace {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check_time");
        fs::create_dir_all(&path).unwrap();
        fs::copy(root.join("Cargo.lock"), path.join("Cargo.lock")).unwrap();
        let manifest = format!(
            r#"
            [workspace]
            resolver = "3"
            members = ["plain", "annotated"]

            [workspace.dependencies]
            candle-core = "0.11.1"
            sam-runtime.path = '{}'
            "#,
            root.join("sam-runtime").display()
        );
        fs::write(path.join("Cargo.toml"), manifest).unwrap();
        Self(path)
    }

    fn add(&self, name: &'static str, attribute: &str) -> Package<'_> {
        let path = self.0.join(name);
        fs::create_dir_all(path.join("src")).unwrap();
        let manifest = format!(
            r#"
            [package]
            name = "{name}"
            edition = "2024"

            [dependencies]
            candle-core.workspace = true
            sam-runtime.workspace = true
            "#
        );
        fs::write(path.join("Cargo.toml"), manifest).unwrap();
        let package = Package { workspace: &self.0, name, source: losses(attribute) };
        package.touch();
        package
    }
}

impl Package<'_> {
    fn touch(&self) {
        fs::write(self.workspace.join(self.name).join("src/lib.rs"), &self.source).unwrap();
    }

    /// The time that `cargo check` takes for the package alone, with nothing kept from the last time.
    fn check(&self) -> Duration {
        self.touch();
        let start = Instant::now();
        let status = Command::new(env!("CARGO"))
            .args(["check", "--quiet", "--offline", "--package", self.name])
            .current_dir(self.workspace)
            .env("CARGO_TARGET_DIR", self.workspace.join("target"))
            .env("CARGO_INCREMENTAL", "0")
            .status()
            .unwrap();
        assert!(status.success());
        start.elapsed()
    }
}

/// A library, documented and without a warning.
fn losses(attribute: &str) -> String {
    let mut source = String::from(
        "//! Losses.
        #![deny(warnings, missing_docs)]

        use candle_core::{Result, Tensor};",
    );
    for i in 0..FUNCTIONS {
        write!(
            source,
            "
            /// Cross-entropy of one batch.
            ///
            /// # Errors
            ///
            /// Those of candle.
            {attribute}
            pub fn loss_{i}(w: &Tensor, b: &Tensor, mut x: Tensor, y: &Tensor, scale: f64) -> Result<Tensor> {{
                if scale != 1. {{
                    x = (x * scale)?;
                }}
                let logits = x.matmul(w)?.relu()?.broadcast_add(b)?;
                let sum = logits.exp()?.sum(1)?.log()?;
                let hit = logits.gather(&y.unsqueeze(1)?, 1)?.squeeze(1)?;
                (sum - hit)?.mean_all()
            }}"
        )
        .unwrap();
    }
    source
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
