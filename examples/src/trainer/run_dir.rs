//! The folder of a training: its files, and the lock that keeps other processes out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::io::files::{files, is_stale_temp_file, make_folder};

/// The file that keeps other processes out.
const LOCK: &str = "train.lock";

/// What it holds: the proof that a folder is that of a training.
const MARK: &str = "sam-examples: a training writes to this folder\n";

/// Files that hold the results of a training, or the way to them.
const RESULTS: [&str; 4] = ["checkpoint.safetensors", "result.json", "weights.safetensors", "best.safetensors"];

/// Those of a training that has ended.
const ENDED: [&str; 2] = ["result.json", "weights.safetensors"];

/// Files that tell how it went.
const LOGS: [&str; 3] = ["log.jsonl", "events.out.tfevents", "epochs.csv"];

/// The file of the weights that `keep-epochs` keeps of an epoch.
pub(crate) fn kept_weights(epoch: f64) -> String {
    format!("weights-epoch-{epoch}.safetensors")
}

/// Whether it is such a file.
fn is_kept_epoch(name: &str) -> bool {
    let epoch = name.strip_prefix("weights-epoch-").and_then(|rest| rest.strip_suffix(".safetensors"));
    epoch.is_some_and(|epoch| epoch.parse::<f64>().is_ok())
}

fn is_result(name: &str) -> bool {
    RESULTS.contains(&name) || is_kept_epoch(name)
}

/// Whether a file of this name is one that a training writes.
pub(crate) fn is_ours(name: &str) -> bool {
    is_result(name) || LOGS.contains(&name)
}

/// How a training treats earlier results in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// There must be no results.
    New,
    /// It resumes from the checkpoint, if there is one; results without a checkpoint are an error.
    Resume,
    /// It replaces the results of the training before.
    Overwrite,
}

impl Begin {
    /// Whether a training may begin so in a folder. Nothing is made or changed.
    ///
    /// # Errors
    /// If there are files that may not be overwritten, or none to resume from.
    pub fn check(self, folder: &Path) -> Result<()> {
        check(folder, self).map(|_| ())
    }
}

/// The lock on a folder: no other process of this machine trains in it. The system releases it when the process ends.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl DirLock {
    /// Locks a folder, which is created if needed. In the folder of a training, temporary files of killed writers are removed;
    /// no other file is touched.
    ///
    /// # Errors
    /// If there are files of this training's names that may not be overwritten, if another process has the folder, or if
    /// it cannot be written to. Nothing has been changed then.
    pub fn take(folder: &Path, begin: Begin) -> Result<Self> {
        let lock = Self::take_if_free(folder, begin)?;
        lock.with_context(|| {
            format!("another process trains in {}: wait for it, or choose another folder", folder.display())
        })
    }

    /// As [`take`](Self::take); `None` if another process has the folder.
    ///
    /// # Errors
    /// The others of `take`.
    pub fn take_if_free(folder: &Path, begin: Begin) -> Result<Option<Self>> {
        // Before anything is made.
        check(folder, begin)?;
        let cannot = || format!("cannot train in {}", folder.display());
        make_folder(folder).with_context(cannot)?;
        let path = folder.join(LOCK);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        // Nobody else writes from here on.
        let is_training = check(folder, begin)?;
        if is_training {
            for (name, path) in files(folder).with_context(cannot)? {
                if is_stale_temp_file(&name, is_ours) {
                    fs::remove_file(path).with_context(cannot)?;
                }
            }
        } else {
            file.write_all(MARK.as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)?;
        }
        Ok(Some(Self(file)))
    }
}

/// Removes the files that a training has written to its folder.
pub(super) fn remove_results(folder: &Path) -> Result<()> {
    remove(folder, is_ours)
}

/// Removes what only a training that has ended leaves in its folder.
pub(super) fn remove_end(folder: &Path) -> Result<()> {
    remove(folder, |name| ENDED.contains(&name))
}

fn remove(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let cannot = || format!("cannot train in {}", folder.display());
    for (name, path) in files(folder).with_context(cannot)? {
        if is_wanted(&name) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Whether a folder holds results of a training.
///
/// # Errors
/// If it cannot be read.
pub fn has_results(folder: &Path) -> Result<bool> {
    let files = files(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(files.iter().any(|(name, _)| is_result(name)))
}

/// Whether a folder is a training's already; an error if this training may not have it.
fn check(folder: &Path, begin: Begin) -> Result<bool> {
    let cannot = || format!("cannot train in {}", folder.display());
    let is_training = is_training(folder).with_context(cannot)?;
    ensure!(
        !folder.join("lock").exists(),
        "{} is the folder of a run of `paper`: choose another folder",
        folder.display()
    );
    let files = files(folder).with_context(cannot)?;
    let first = |is: &dyn Fn(&str) -> bool| files.iter().map(|(name, _)| name.as_str()).find(|name| is(name));
    if !is_training {
        if let Some(name) = first(&is_ours) {
            bail!("{} has a file {name}, but is not the folder of a training: choose another --out", folder.display())
        }
        return Ok(false);
    }
    let has_checkpoint = folder.join(RESULTS[0]).exists();
    // One that was killed before its first checkpoint may have begun with the others.
    let is_in_the_way = |name: &str| if begin == Begin::Resume { ENDED.contains(&name) } else { is_result(name) };
    match (begin, first(&is_in_the_way)) {
        (Begin::New, Some(_)) if has_checkpoint => bail!(
            "there is a checkpoint in {}: say --resume to continue it, --overwrite to start again, or choose another --out",
            folder.display()
        ),
        (Begin::New, Some(name)) => {
            bail!(
                "{} holds {name} of another training: replace it with --overwrite, or choose another --out",
                folder.display()
            )
        }
        (Begin::Resume, Some(name)) if !has_checkpoint => bail!(
            "{} holds {name}, but no checkpoint to resume from: start again with --overwrite, or choose another --out",
            folder.display()
        ),
        _ => Ok(true),
    }
}

/// Whether a training has written the lock of this folder.
///
/// # Errors
/// If it cannot be read, or is a file of another program.
pub fn is_training(folder: &Path) -> Result<bool> {
    let path = folder.join(LOCK);
    let mut found = Vec::new();
    match File::open(&path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(false),
        file => file?.take(1 + MARK.len() as u64).read_to_end(&mut found)?,
    };
    // Empty: its writer was killed at once.
    ensure!(
        found.is_empty() || found == MARK.as_bytes(),
        "{} is not of this program: choose another --out",
        path.display()
    );
    Ok(!found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_one_process_s() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let held = DirLock::take(&folder, Begin::New).unwrap();
        let error = DirLock::take(&folder, Begin::Resume).unwrap_err().to_string();
        assert!(error.contains("another process trains in"), "{error}");
        drop(held);
        let held = DirLock::take(&folder, Begin::Resume).unwrap();
        assert_eq!(names(&folder), [LOCK]);
        drop(held);
        fs::write(folder.join("lock"), "").unwrap();
        assert!(DirLock::take(&folder, Begin::New).unwrap_err().to_string().contains("a run of `paper`"));
    }

    /// What looks like a temporary file, and other people's files of our names.
    const USERS: [&str; 9] = [
        ".tmp",
        ".tmpAb12Cd",
        ".checkpoint",
        ".checkpoint-old",
        ".clock",
        ".lock-screen",
        ".notes.Ab12Cd.tmp",
        ".log.jsonl.Ab12.tmp",
        "results.csv",
    ];

    #[test]
    fn what_is_the_users_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in USERS {
            fs::write(folder.join(name), name).unwrap();
        }
        fs::create_dir(folder.join(".log.jsonl.Ab12Cd.tmp")).unwrap();
        for begin in [Begin::New, Begin::Resume, Begin::Overwrite] {
            drop(DirLock::take(folder, begin).unwrap());
        }
        fs::write(folder.join(".result.json.Ab12Cd.tmp"), "half").unwrap();
        drop(DirLock::take(folder, Begin::New).unwrap());
        let mut expected = [&USERS[..], &[LOCK, ".log.jsonl.Ab12Cd.tmp"]].concat();
        expected.sort_unstable();
        assert_eq!(names(folder), expected);
        for name in USERS {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), name);
        }
    }

    /// A file with one of our names in a folder where nothing was trained is refused with any option, and nothing is created.
    #[test]
    fn files_of_others_are_not_overwritten() {
        for (name, words) in [("log.jsonl", "has a file log.jsonl"), (LOCK, "is not of this program")] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "mine").unwrap();
            for begin in [Begin::New, Begin::Resume, Begin::Overwrite] {
                let error = format!("{:#}", DirLock::take(folder.path(), begin).unwrap_err());
                assert!(error.contains(words) && error.contains("another --out"), "{error}");
            }
            assert_eq!(names(folder.path()), [name]);
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "mine");
        }
    }

    #[test]
    fn results_are_kept_unless_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        drop(DirLock::take(folder, Begin::New).unwrap());
        // A log alone is what a training leaves that was killed before its first checkpoint.
        fs::write(folder.join("log.jsonl"), "").unwrap();
        drop(DirLock::take(folder, Begin::New).unwrap());
        fs::write(folder.join("best.safetensors"), "").unwrap();
        drop(DirLock::take(folder, Begin::Resume).unwrap());
        assert!(DirLock::take(folder, Begin::New).is_err());
        fs::remove_file(folder.join("best.safetensors")).unwrap();
        for (name, begins) in
            [("result.json", &[Begin::New, Begin::Resume][..]), ("weights-epoch-50.safetensors", &[Begin::New])]
        {
            fs::write(folder.join(name), "").unwrap();
            for &begin in begins {
                let error = DirLock::take(folder, begin).unwrap_err().to_string();
                assert!(error.contains(name) && error.contains("--overwrite"), "{error}");
            }
            fs::remove_file(folder.join(name)).unwrap();
        }
        fs::write(folder.join("checkpoint.safetensors"), "").unwrap();
        let error = DirLock::take(folder, Begin::New).unwrap_err().to_string();
        assert!(error.contains("say --resume"), "{error}");
        drop(DirLock::take(folder, Begin::Resume).unwrap());
        assert_eq!(names(folder), ["checkpoint.safetensors", "log.jsonl", LOCK]);
        fs::write(folder.join("result.json"), "").unwrap();
        let held = DirLock::take(folder, Begin::Overwrite).unwrap();
        assert_eq!(
            names(folder),
            ["checkpoint.safetensors", "log.jsonl", "result.json", LOCK],
            "a lock removes nothing"
        );
        remove_end(folder).unwrap();
        assert_eq!(names(folder), ["checkpoint.safetensors", "log.jsonl", LOCK]);
        remove_results(folder).unwrap();
        assert_eq!(names(folder), [LOCK]);
        drop(held);
    }
}
