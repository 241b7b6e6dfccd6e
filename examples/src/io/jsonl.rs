//! Append-only files: logs of one JSON object a line, and records of bytes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// An append-only file: a log of one JSON object a line, or records of bytes. A record that does not fit on the disk is
/// removed again, so that the file never ends with a part of one.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Starts a new log, creates its folder if needed, and locks the file against other processes.
    ///
    /// # Errors
    /// If the folder or the file cannot be made, or another process writes to the file.
    pub fn create(path: &Path) -> Result<Self> {
        Self::begin(path, |file| match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(io::Error::new(ErrorKind::WouldBlock, "another process writes to it")),
            // Some file systems have no locks.
            _ => Ok(()),
        })
    }

    /// Empties a log, or starts a new one.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub(crate) fn restart(path: &Path) -> Result<Self> {
        Self::begin(path, |_| Ok(()))
    }

    fn begin(path: &Path, before: impl FnOnce(&File) -> io::Result<()>) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            before(&file)?;
            file.set_len(0)?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Resumes a log after its first `after` bytes; what follows them is cut off. `None` if there is no such file.
    ///
    /// # Errors
    /// If the file is shorter, or cannot be written.
    pub(crate) fn resume(path: &Path, after: u64) -> Result<Option<Self>> {
        let mut file = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot write {}", path.display()))?,
        };
        let cut = |file: &mut File| -> io::Result<u64> {
            let found = file.metadata()?.len();
            if found >= after {
                file.set_len(after)?;
                file.seek(SeekFrom::End(0))?;
            }
            Ok(found)
        };
        let found = cut(&mut file).with_context(|| format!("cannot write {}", path.display()))?;
        ensure!(
            found >= after,
            "{} has {found} bytes, expected at least the {after} of when the checkpoint was saved: put the whole file \
             back, or remove it to begin it anew",
            path.display()
        );
        Ok(Some(Self { file, path: path.to_owned() }))
    }

    /// Waits until everything is on the disk, and returns the length of the file in bytes.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<u64> {
        let sync = self.file.sync_data().and_then(|()| self.file.stream_position());
        sync.with_context(|| format!("cannot write {}", self.path.display()))
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
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(&folder.path().join("new/log.jsonl")).unwrap();
        log.add(&[1, 2]).unwrap();
        log.add(&"x").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("new/log.jsonl")).unwrap(), "[1,2]\n\"x\"\n");
        let error = Log::create(&folder.path().join("new/log.jsonl")).unwrap_err();
        assert!(format!("{error:#}").contains("another process writes to it"), "{error:#}");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(Log::create(&folder.path().join("file/log.jsonl")).is_err());
    }

    #[test]
    fn a_log_is_cut_or_refused_and_never_filled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        assert!(Log::resume(&path, 3).unwrap().is_none());
        fs::write(&path, "[1]\n[2]\nhalf").unwrap();
        Log::resume(&path, 8).unwrap().unwrap().add(&[3]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[3]\n");
        let error = Log::resume(&path, 13).unwrap_err().to_string();
        assert!(error.contains("log.jsonl has 12 bytes, expected at least the 13"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[3]\n");
    }
}
