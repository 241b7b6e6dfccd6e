//! The folder that a program writes its results to.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

/// The options that choose the folder of results. Those of another run are overwritten with `--overwrite` only.
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
                bail!(
                    "{} holds {file} of another run: choose another --out, or replace it with --overwrite",
                    named.display()
                )
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
