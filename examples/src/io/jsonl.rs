//! Append-only files: logs of one JSON object a line, and records of bytes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::files::make_folder;
use crate::util::hex::hex;
use crate::util::sha256::sha256;

/// An append-only file: a log of one JSON object a line, or records of bytes. A record that does not fit on the disk is
/// removed again, so that the file never ends with a part of one.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// Of all bytes.
    digest: Sha256,
}

/// The length of a log in bytes, and their SHA-256 in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The length.
    pub bytes: u64,
    /// The digest; empty if it is not known.
    pub digest: String,
}

/// A log that can be resumed, and has not been changed yet.
#[derive(Debug)]
pub struct Resumable {
    log: Log,
    bytes: u64,
}

impl Log {
    /// Starts a new log, creates its folder if needed, and locks the file against other processes; `None` if there is a file of
    /// that name.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub fn create(path: &Path) -> Result<Option<Self>> {
        make_folder_of(path)?;
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            file => {
                let file = file.with_context(|| format!("cannot write {}", path.display()))?;
                lock(&file, path)?;
                Ok(Some(Self::of(file, path)))
            }
        }
    }

    /// Opens a log to [empty](Self::empty) it, or starts a new one, and locks it against other processes.
    ///
    /// # Errors
    /// If the folder or the file cannot be made, or another process writes to the file.
    pub fn replace(path: &Path) -> Result<Self> {
        let log = Self::open(path)?;
        lock(&log.file, path)?;
        Ok(log)
    }

    /// Empties a log, or starts a new one.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub(crate) fn restart(path: &Path) -> Result<Self> {
        let log = Self::open(path)?;
        log.empty()?;
        Ok(log)
    }

    /// Removes all that was there before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn empty(&self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn open(path: &Path) -> Result<Self> {
        make_folder_of(path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        Ok(Self::of(file.with_context(|| format!("cannot write {}", path.display()))?, path))
    }

    fn of(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), digest: Sha256::new() }
    }

    /// A log that begins with these bytes, to be resumed after them. `None` if there is no such file. Nothing is changed.
    ///
    /// # Errors
    /// If the file is shorter, begins with other bytes, or cannot be written.
    pub(crate) fn resumable(path: &Path, after: &Extent) -> Result<Option<Resumable>> {
        let cannot = || format!("cannot resume {}", path.display());
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(cannot)?,
        };
        let Extent { bytes, digest: expected } = after;
        let (found, digest) = sha256((&file).take(*bytes)).with_context(cannot)?;
        ensure!(
            found == *bytes,
            "{} has {found} bytes, expected at least the {bytes} of when the checkpoint was saved: put the whole file \
             back, or remove it to begin it anew",
            path.display()
        );
        ensure!(
            expected.is_empty() || hex(&digest.clone().finalize()) == *expected,
            "{} has changed since the checkpoint was saved, or is of another training: put the file back, or remove it to \
             begin it anew",
            path.display()
        );
        Ok(Some(Resumable { log: Self { file, path: path.to_owned(), digest }, bytes: *bytes }))
    }

    /// Waits until everything is on the disk, and returns the extent of the file.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<Extent> {
        let sync = self.file.sync_data().and_then(|()| self.file.stream_position());
        let bytes = sync.with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(Extent { bytes, digest: hex(&self.digest.clone().finalize()) })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.append(text.as_bytes())
    }

    /// Adds bytes; on an error the file is as before.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut write = || -> io::Result<()> {
            let end = self.file.stream_position()?;
            self.file.write_all(bytes).or_else(|error| {
                self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end))).and(Err(error))
            })
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.digest.update(bytes);
        Ok(())
    }
}

impl Resumable {
    /// Cuts off what follows the bytes that it was checked for.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn cut(self) -> Result<Log> {
        let Self { mut log, bytes } = self;
        let cut = log.file.set_len(bytes).and_then(|()| log.file.seek(SeekFrom::Start(bytes)));
        cut.with_context(|| format!("cannot write {}", log.path.display()))?;
        Ok(log)
    }
}

fn make_folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    make_folder(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("cannot write {}: another process writes to it", path.display()),
        // Some file systems have no locks.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/log.jsonl");
        let mut log = Log::create(&path).unwrap().unwrap();
        log.add(&[1, 2]).unwrap();
        log.add(&"x").unwrap();
        assert!(Log::create(&path).unwrap().is_none());
        let error = Log::replace(&path).unwrap_err();
        assert!(format!("{error:#}").contains("another process writes to it"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1,2]\n\"x\"\n");
        drop(log);
        assert!(Log::create(&path).unwrap().is_none(), "not that of a run that has ended either");
        Log::replace(&path).unwrap().empty().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(Log::create(&folder.path().join("file/log.jsonl")).is_err());
    }

    #[test]
    fn a_log_is_cut_or_refused_and_never_filled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let text = || fs::read_to_string(&path).unwrap();
        let of = |bytes| Extent { bytes, ..Extent::default() };
        assert!(Log::resumable(&path, &of(3)).unwrap().is_none());
        let mut log = Log::create(&path).unwrap().unwrap();
        log.add(&[1]).unwrap();
        log.add(&[2]).unwrap();
        let extent = log.sync().unwrap();
        fs::write(&path, "[1]\n[2]\nhalf").unwrap();
        let resumable = Log::resumable(&path, &extent).unwrap().unwrap();
        assert_eq!(text(), "[1]\n[2]\nhalf", "nothing is changed yet");
        let mut log = resumable.cut().unwrap();
        log.add(&[3]).unwrap();
        assert_eq!(text(), "[1]\n[2]\n[3]\n");
        let extent = log.sync().unwrap();
        let error = Log::resumable(&path, &of(13)).unwrap_err().to_string();
        assert!(error.contains("log.jsonl has 12 bytes, expected at least the 13"), "{error}");
        assert_eq!(text(), "[1]\n[2]\n[3]\n");
        Log::resumable(&path, &extent).unwrap().unwrap();

        let other = "[1]\n[2]\n[4]\n[5]\n";
        fs::write(&path, other).unwrap();
        let error = Log::resumable(&path, &extent).unwrap_err().to_string();
        assert!(error.contains("log.jsonl has changed since the checkpoint"), "{error}");
        assert_eq!(text(), other);
    }
}
