//! What lies in the folder of a training, and who may write there.

use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// Beginnings of names of what a process that is killed leaves half written.
const LEFT: [&str; 4] = [".checkpoint", ".clock", ".lock-", ".tmp"];

/// What processes that were killed have left half written in a folder.
pub(crate) fn left_behind(folder: &Path) -> io::Result<Vec<DirEntry>> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let is_left = |entry: &DirEntry| LEFT.iter().any(|left| entry.file_name().to_string_lossy().starts_with(left));
    Ok(entries.into_iter().filter(is_left).collect())
}

/// A folder that no other process of this machine trains in. The system gives it back when the process ends, however.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl Held {
    /// Takes a folder, which is made if need be, and removes what was left half written there.
    ///
    /// # Errors
    /// If another process has it, or it cannot be written to.
    pub fn take(folder: &Path) -> Result<Self> {
        let cannot = || format!("cannot train in {}", folder.display());
        ensure!(!folder.join("lock").exists(), "{} is a run of `paper`: choose another folder", folder.display());
        fs::create_dir_all(folder).with_context(cannot)?;
        let path = folder.join("train.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                bail!("another process trains in {}: wait for it, or choose another folder", folder.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        for entry in left_behind(folder).with_context(cannot)? {
            fs::remove_file(entry.path()).with_context(cannot)?;
        }
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_process_s_and_tidy() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let held = Held::take(&folder).unwrap();
        let error = Held::take(&folder).unwrap_err().to_string();
        assert!(error.contains("another process trains in"), "{error}");
        drop(held);
        fs::write(folder.join(".checkpointXYZ"), "half").unwrap();
        fs::write(folder.join("checkpoint.safetensors"), "whole").unwrap();
        let _held = Held::take(&folder).unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["checkpoint.safetensors", "train.lock"]);
        fs::write(folder.join("lock"), "").unwrap();
        assert!(Held::take(&folder).unwrap_err().to_string().contains("a run of `paper`"));
    }
}
