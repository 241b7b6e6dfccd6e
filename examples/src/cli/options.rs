//! What the command lines of all programs have in common: checks of numbers, folders of results, shell completions.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::error::ErrorKind;
use clap::{Arg, Args, Parser, value_parser};
use clap_complete::Shell;

/// The most epochs, seeds, steps and images of a batch that make sense; more are slips of the keyboard.
pub const MOST: u64 = 1_000_000;

/// Reads the command line; with `--completions SHELL` alone it prints a script for that shell and ends the program.
#[must_use]
pub fn parse<T: Parser>() -> T {
    let completions = Arg::new("completions")
        .long("completions")
        .value_name("SHELL")
        .value_parser(value_parser!(Shell))
        .exclusive(true)
        .help("Print a script that completes the options in a shell");
    let mut command = T::command().arg(completions);
    let matches = command.get_matches_mut();
    if let Some(shell) = matches.get_one::<Shell>("completions") {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut command, name, &mut script);
        crate::cli::console::print(&String::from_utf8_lossy(&script));
        std::process::exit(0);
    }
    // Again without the argument, which may not be missed.
    T::from_arg_matches(&matches)
        .unwrap_or_else(|error| T::command().error(ErrorKind::MissingRequiredArgument, error).exit())
}

/// Checks that an option is in a range.
///
/// # Errors
/// If it is not; NaN is in none.
///
/// ```
/// use sam_examples::cli::options::within;
///
/// within("epochs", 3, 1..=100)?;
/// assert_eq!(within("epochs", 0, 1..=100).unwrap_err().to_string(), "--epochs is 0: expected 1 to 100");
/// # Ok::<_, anyhow::Error>(())
/// ```
#[expect(clippy::needless_pass_by_value, reason = "numbers are small")]
pub fn within<T: Display + PartialOrd>(option: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    ensure!(range.contains(&value), "--{option} is {value}: expected {} to {}", range.start(), range.end());
    Ok(())
}

/// Checks that an option is a finite number above 0.
///
/// # Errors
/// If it is not.
pub fn above_0(option: &str, value: f64) -> Result<()> {
    ensure!(value > 0.0 && value.is_finite(), "--{option} is {value}: expected a number above 0");
    Ok(())
}

/// Checks that an option is a finite number, 0 or more.
///
/// # Errors
/// If it is not.
pub fn at_least_0(option: &str, value: f64) -> Result<()> {
    ensure!(value >= 0.0 && value.is_finite(), "--{option} is {value}: expected 0 or more");
    Ok(())
}

/// Checks that there are so many seeds from the first one on.
///
/// # Errors
/// If there is none, or the last is larger than a seed can be.
pub fn seeds(first: u64, count: u64) -> Result<()> {
    within("seeds", count, 1..=MOST)?;
    let most = u64::MAX - count;
    ensure!(first <= most, "--seed is {first}: expected at most {most}, so that {count} seeds follow");
    Ok(())
}

/// Where a program writes its results. Those of another run are never overwritten unless that is said.
#[derive(Clone, Debug, Args)]
pub struct Out {
    /// Folder of what is written [default: a new one in runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Replace the results that are in the folder
    #[arg(long)]
    overwrite: bool,
}

impl Out {
    /// The folder that was named.
    #[must_use]
    pub fn named(&self) -> Option<&Path> {
        self.out.as_deref()
    }

    /// Whether results are replaced.
    #[must_use]
    pub fn overwrites(&self) -> bool {
        self.overwrite
    }

    /// The folder for results in these files: the one that was named, or one like the usual one that has none yet.
    /// Nothing is made.
    ///
    /// # Errors
    /// If the one that was named has one of the files.
    pub fn folder(&self, usual: &str, files: &[&str]) -> Result<PathBuf> {
        let first = |folder: &Path| files.iter().find(|file| folder.join(file).exists());
        let Some(named) = &self.out else {
            return Ok(if self.overwrite {
                PathBuf::from(usual)
            } else {
                numbered(usual, |folder| first(folder).is_none())
            });
        };
        match first(named).filter(|_| !self.overwrite) {
            None => Ok(named.clone()),
            Some(file) => {
                bail!("{} holds {file} of another run: choose another --out, or say --overwrite", named.display())
            }
        }
    }
}

/// The first of `usual`, `usual-2`, `usual-3`, .. that is wanted.
pub fn numbered(usual: &str, is_wanted: impl Fn(&Path) -> bool) -> PathBuf {
    let others = (2u64..).map(|i| PathBuf::from(format!("{usual}-{i}")));
    let mut all = std::iter::once(PathBuf::from(usual)).chain(others);
    all.find(|folder| is_wanted(folder)).unwrap_or_else(|| PathBuf::from(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert!(within("p", f64::NAN, 1.0..=f64::INFINITY).is_err());
        within("p", f64::INFINITY, 1.0..=f64::INFINITY).unwrap();
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(above_0("lr", bad).unwrap_err().to_string().contains("--lr is "));
        }
        at_least_0("momentum", 0.0).unwrap();
        assert!(at_least_0("momentum", f64::NAN).is_err() && at_least_0("momentum", -0.1).is_err());
        seeds(u64::MAX - 3, 3).unwrap();
        assert!(seeds(u64::MAX, 1).unwrap_err().to_string().contains("--seed is"));
        assert!(seeds(0, 0).unwrap_err().to_string().contains("--seeds is 0"));
    }

    #[test]
    fn results_are_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("usual");
        let usual = usual.to_str().unwrap();
        let out = |out: Option<&str>, overwrite| Out { out: out.map(PathBuf::from), overwrite };
        let files = ["log.jsonl", "table.md"];
        assert_eq!(out(None, false).folder(usual, &files).unwrap(), Path::new(usual));
        std::fs::create_dir(usual).unwrap();
        assert_eq!(out(None, false).folder(usual, &files).unwrap(), Path::new(usual));
        std::fs::write(Path::new(usual).join("table.md"), "").unwrap();
        assert_eq!(out(None, false).folder(usual, &files).unwrap(), Path::new(&format!("{usual}-2")));
        assert_eq!(out(None, true).folder(usual, &files).unwrap(), Path::new(usual));
        let error = out(Some(usual), false).folder("other", &files).unwrap_err().to_string();
        assert!(error.contains("holds table.md") && error.contains("--overwrite"), "{error}");
        assert_eq!(out(Some(usual), true).folder("other", &files).unwrap(), Path::new(usual));
    }
}
