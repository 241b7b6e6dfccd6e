//! A file that says that a run is somebody's, on this machine or on another one that has the folder.
//!
//! The holder writes to it again and again. Where that has not been done for long, the holder is held for dead, and the
//! file may be taken: it is moved away first, and what was moved is looked at, so that of two who take it one wins, and
//! a holder that only slept finds out before it writes a result.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

/// A folder of a run that is ours.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    holder: String,
    stale: Duration,
    written: Instant,
}

impl Lock {
    /// Takes the folder, which is made if need be; none if somebody else has it, who was heard of within `stale`.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn take(folder: &Path, stale: Duration) -> Result<Option<Self>> {
        let path = folder.join("lock");
        let take = || -> std::io::Result<Option<Self>> {
            fs::create_dir_all(folder)?;
            let holder = name();
            let ours = create(&path, &holder)? || (is_stale(&path, stale)? && steal(&path, &holder)?);
            if !ours {
                return Ok(None);
            }
            Ok(Some(Self { path: path.clone(), holder, stale, written: Instant::now() }))
        };
        take().with_context(|| format!("cannot lock {}", folder.display()))
    }

    /// To be called often: tells the others that the holder lives.
    ///
    /// # Errors
    /// If somebody has taken the folder.
    pub fn beat(&mut self) -> Result<()> {
        if self.written.elapsed() < self.stale / 8 {
            return Ok(());
        }
        self.check()?;
        // Written, not only touched: so the time is that of the machine that has the files.
        let write =
            OpenOptions::new().write(true).open(&self.path).and_then(|mut f| f.write_all(self.holder.as_bytes()));
        write.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.written = Instant::now();
        Ok(())
    }

    /// Whether the folder is still ours.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self) -> Result<()> {
        let found = fs::read_to_string(&self.path).unwrap_or_default();
        ensure!(
            found == self.holder,
            "{} was taken over by another process after {:.0} s without a sign of this one: leave the run to it",
            self.path.display(),
            self.stale.as_secs_f64()
        );
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.check().is_ok() {
            // Otherwise it is found stale one day.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A name that nobody else has.
fn name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{} {now} {}\n", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// False if it exists.
fn create(path: &Path, holder: &str) -> std::io::Result<bool> {
    match File::create_new(path) {
        Ok(mut file) => file.write_all(holder.as_bytes()).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// By the clock of the machine that has the files: that of a file written now.
fn is_stale(path: &Path, stale: Duration) -> std::io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let now = tempfile::Builder::new().prefix(".clock").tempfile_in(folder)?.as_file().metadata()?.modified()?;
    match fs::metadata(path) {
        Ok(metadata) => Ok(now.duration_since(metadata.modified()?).unwrap_or_default() > stale),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Moves a stale lock away, and makes one of ours.
fn steal(path: &Path, holder: &str) -> std::io::Result<bool> {
    let before = fs::read_to_string(path).unwrap_or_default();
    let aside = path.with_file_name(format!(".lock-{}", holder.trim().replace(' ', "-")));
    match fs::rename(path, &aside) {
        Ok(()) => {
            let moved = fs::read_to_string(&aside)?;
            if moved != before {
                // Somebody else was faster, and this is a new one: it goes back, unless there is yet another.
                let _ = fs::hard_link(&aside, path);
                fs::remove_file(&aside)?;
                return Ok(false);
            }
            fs::remove_file(&aside)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    create(path, holder)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let lock = Lock::take(&folder, LONG).unwrap().unwrap();
        assert!(Lock::take(&folder, LONG).unwrap().is_none());
        drop(lock);
        assert!(!folder.join("lock").exists());
        assert!(Lock::take(&folder, LONG).unwrap().is_some());
    }

    #[test]
    fn a_stale_lock_is_taken_and_its_holder_finds_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = Lock::take(dir.path(), Duration::from_millis(50)).unwrap().unwrap();
        thread::sleep(Duration::from_millis(80));
        let new = Lock::take(dir.path(), Duration::from_millis(50)).unwrap().unwrap();
        let error = old.beat().unwrap_err().to_string();
        assert!(error.contains("taken over"), "{error}");
        drop(old);
        new.check().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn beats_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let stale = Duration::from_millis(400);
        let mut lock = Lock::take(dir.path(), stale).unwrap().unwrap();
        for _ in 0..12 {
            thread::sleep(Duration::from_millis(60));
            lock.beat().unwrap();
        }
        assert!(Lock::take(dir.path(), stale).unwrap().is_none());
    }

    /// Many who all see the same stale lock: exactly one gets it, every time.
    #[test]
    fn of_many_who_take_a_stale_lock_one_wins() {
        for _ in 0..30 {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("lock"), "dead").unwrap();
            thread::sleep(Duration::from_millis(12));
            let winners = Arc::new(AtomicUsize::new(0));
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        if let Some(lock) = Lock::take(dir.path(), Duration::from_millis(10)).unwrap() {
                            winners.fetch_add(1, Ordering::Relaxed);
                            std::mem::forget(lock);
                        }
                    });
                }
            });
            // A thread that was away for more than 10 ms may find the winner's lock stale too: then it is taken over.
            assert!((1..=2).contains(&winners.load(Ordering::Relaxed)));
        }
    }
}
