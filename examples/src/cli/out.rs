//! The folder that a program writes its results to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use clap::Args;

use crate::io::jsonl::Log;

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

    /// Checks that the folder that was named can have results in these files. Nothing is made.
    ///
    /// # Errors
    /// If it is that of a training, or has one of the files, which may not be replaced.
    pub fn check(&self, files: &[&str]) -> Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        if let Some(name) = first(folder, &OF_A_TRAINING) {
            bail!("{} is the folder of a training, as {name} shows: choose another --out", folder.display())
        }
        match first(folder, files) {
            Some(name) if !self.overwrite => Err(taken(folder, name)),
            _ => Ok(()),
        }
    }

    /// Claims the folder for results in these files, the one that was named, or the first one like the usual one that has none
    /// yet: the first file is made, which no other process does then. With `--overwrite` it may be there already, and stays as it
    /// is.
    ///
    /// # Errors
    /// As [`check`](Self::check); also if the folder cannot be made, or another process writes to it.
    pub fn claim(&self, usual: &str, files: &[&str]) -> Result<Claim> {
        self.check(files)?;
        let path = |folder: &Path| folder.join(files[0]);
        if self.overwrite {
            let folder = self.out.clone().unwrap_or_else(|| PathBuf::from(usual));
            Self { out: Some(folder.clone()), ..self.clone() }.check(files)?;
            let is_new = !path(&folder).exists();
            return Ok(Claim { log: Log::replace(&path(&folder))?, folder, is_new });
        }
        if let Some(folder) = &self.out {
            let log = Log::create(&path(folder))?.ok_or_else(|| taken(folder, files[0]))?;
            return Ok(Claim { log, folder: folder.clone(), is_new: true });
        }
        loop {
            let folder = numbered(usual, |folder| first(folder, files).or(first(folder, &OF_A_TRAINING)).is_none());
            // Another process may have been faster.
            if let Some(log) = Log::create(&path(&folder))? {
                return Ok(Claim { log, folder, is_new: true });
            }
        }
    }
}

/// Files that only the folder of a training, or of a run of `paper`, has.
const OF_A_TRAINING: [&str; 3] = ["train.lock", "lock", "checkpoint.safetensors"];

fn first<'a>(folder: &Path, files: &[&'a str]) -> Option<&'a str> {
    files.iter().copied().find(|file| folder.join(file).exists())
}

fn taken(folder: &Path, file: &str) -> Error {
    anyhow!("{} holds {file} of another run: choose another --out, or replace it with --overwrite", folder.display())
}

/// A folder that no other process writes results to.
#[derive(Debug)]
pub struct Claim {
    /// The folder.
    pub folder: PathBuf,
    log: Log,
    /// Whether the first file was made by this.
    is_new: bool,
}

impl Claim {
    /// Removes the files, those of the run before, and returns the first one as an empty log.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn log(self, files: &[&str]) -> Result<(PathBuf, Log)> {
        for path in files[1..].iter().map(|file| self.folder.join(file)).filter(|path| path.exists()) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        self.log.empty()?;
        Ok((self.folder, self.log))
    }

    /// Gives the folder back, if this has made its first file.
    pub fn give_back(self, files: &[&str]) {
        if self.is_new {
            // What cannot be removed stays, and the folder is not chosen again.
            let _ = fs::remove_file(self.folder.join(files[0]));
            let _ = fs::remove_dir(&self.folder);
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
        let claimed = |chosen: Out| chosen.claim(usual, &files).unwrap();
        let first = claimed(out(None, false));
        assert_eq!(first.folder, Path::new(usual));
        // While it runs, and afterwards.
        let second = claimed(out(None, false));
        assert_eq!(second.folder, Path::new(&format!("{usual}-2")));
        second.give_back(&files);
        drop(first);
        assert_eq!(claimed(out(None, false)).folder, Path::new(&format!("{usual}-2")));
        for chosen in [out(Some(usual), false).check(&files), out(Some(usual), false).claim("other", &files).map(drop)]
        {
            let error = chosen.unwrap_err().to_string();
            assert!(error.contains("holds log.jsonl") && error.contains("--overwrite"), "{error}");
        }
        fs::write(Path::new(usual).join("table.md"), "old").unwrap();
        let (named, _log) = claimed(out(Some(usual), true)).log(&files).unwrap();
        assert!(named == Path::new(usual) && !named.join("table.md").exists());
        assert!(out(None, true).claim(usual, &files).is_err(), "another process writes to it");
    }

    #[test]
    fn a_training_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("usual");
        let usual = usual.to_str().unwrap();
        for name in OF_A_TRAINING {
            fs::create_dir(usual).unwrap();
            fs::write(Path::new(usual).join(name), "").unwrap();
            for out in [Some(PathBuf::from(usual)), None] {
                let error = Out { out, overwrite: true }.claim(usual, &["log.jsonl"]).unwrap_err().to_string();
                assert!(error.contains("is the folder of a training") && error.contains(name), "{error}");
            }
            assert_eq!(fs::read_dir(usual).unwrap().count(), 1);
            fs::remove_dir_all(usual).unwrap();
        }
    }
}
