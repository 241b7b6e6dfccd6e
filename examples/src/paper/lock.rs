//! A file that says that a run is somebody's, on this machine or on another one that has the folder.
//!
//! The holder writes to it again and again, in a thread of its own. Where that has not been done for long, the holder is
//! held for dead, and the file may be taken: it is moved away first, and what was moved is looked at, so that of two who
//! take it one wins, and a holder that only slept finds out before it writes a result.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use crate::trainer::left_behind;

/// Signs of life until one is held for dead.
const SIGNS: u32 = 8;

/// A folder of a run that is ours.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    holder: String,
    stale: Duration,
    lost: Arc<AtomicBool>,
    /// The thread that shows that we live; it ends when the sender goes.
    signs: Option<(Sender<()>, JoinHandle<()>)>,
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
            Ok(ours.then(|| Self::show_life(path.clone(), holder, stale)))
        };
        take().with_context(|| format!("cannot lock {}", folder.display()))
    }

    fn show_life(path: PathBuf, holder: String, stale: Duration) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel();
        let thread = {
            let (path, holder, lost) = (path.clone(), holder.clone(), Arc::clone(&lost));
            thread::spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(stale / SIGNS) {
                    if is_lost(&path, &holder).unwrap_or(false) {
                        lost.store(true, Ordering::Relaxed);
                        break;
                    }
                    // Written, not only touched: so the time is that of the machine that has the files. If it fails
                    // now, it may not the next time.
                    let _ = OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(holder.as_bytes()));
                }
            })
        };
        Self { path, holder, stale, lost, signs: Some((sender, thread)) }
    }

    /// Whether the folder is still ours, as far as has been seen.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.lost.load(Ordering::Relaxed),
            "{} was taken over by another process after {:.0} s without a sign of this one: leave the run to it",
            self.path.display(),
            self.stale.as_secs_f64()
        );
        Ok(())
    }

    /// The same, by a look at the file.
    ///
    /// # Errors
    /// If it is not, or the file cannot be read now.
    pub fn check_file(&self) -> Result<()> {
        if is_lost(&self.path, &self.holder).with_context(|| format!("cannot read {}", self.path.display()))? {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.check()
    }

    /// Removes what processes that were killed have left half written in the folder. What is not older than a holder's
    /// last sign of life may be another's who looks at the lock now, and stays.
    ///
    /// # Errors
    /// If the folder cannot be read, or a file not be removed.
    pub fn sweep(&self) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let sweep = || -> std::io::Result<()> {
            // Our own file is from now, by the clock of the machine that has the files.
            let now = fs::metadata(&self.path)?.modified()?;
            for entry in left_behind(folder)? {
                let age = || now.duration_since(entry.metadata()?.modified()?).map_err(std::io::Error::other);
                if age().is_ok_and(|age| age > self.stale / 2) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep().with_context(|| format!("cannot tidy up {}", folder.display()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.signs.take() {
            drop(sender);
            // It does not panic, and there would be nothing to do about it.
            let _ = thread.join();
        }
        if self.check_file().is_ok() {
            // Otherwise it is found stale one day.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the file is gone or has another holder's name. Where it cannot be read (a network's file system comes and
/// goes) nobody knows.
fn is_lost(path: &Path, holder: &str) -> std::io::Result<bool> {
    match fs::read(path) {
        Ok(found) => Ok(found != holder.as_bytes()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
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
            let moved = match fs::read_to_string(&aside) {
                // Yet another has taken the lock since, and tidied up.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                moved => moved?,
            };
            if moved != before {
                // Somebody else was faster, and this is a new one: it goes back, unless there is yet another.
                let _ = fs::hard_link(&aside, path);
                let _ = fs::remove_file(&aside);
                return Ok(false);
            }
            // What stays is tidied up by the next holder.
            let _ = fs::remove_file(&aside);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    create(path, holder)
}

#[cfg(test)]
mod tests {
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
        // It says nothing for an hour, and is held for dead after a moment.
        let old = Lock::take(dir.path(), LONG).unwrap().unwrap();
        thread::sleep(Duration::from_millis(80));
        let new = Lock::take(dir.path(), Duration::from_millis(50)).unwrap().unwrap();
        let error = old.check_file().unwrap_err().to_string();
        assert!(error.contains("taken over"), "{error}");
        drop(old);
        new.check_file().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_that_cannot_be_read_now_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), LONG).unwrap().unwrap();
        let (path, aside) = (dir.path().join("lock"), dir.path().join("aside"));
        // A folder in its place: a read fails, and the file is not gone.
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let error = lock.check_file().unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
        lock.check().unwrap();
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        lock.check_file().unwrap();
    }

    #[test]
    fn what_the_dead_have_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), LONG).unwrap().unwrap();
        for (name, is_old) in [(".checkpointAb", true), (".lock-1-2-3", true), (".clockC", false), ("log.jsonl", true)]
        {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - if is_old { LONG } else { Duration::ZERO }).unwrap();
        }
        lock.sweep().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".clockC", "lock", "log.jsonl"]);
    }

    #[test]
    fn signs_of_life_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let stale = Duration::from_millis(800);
        let lock = Lock::take(dir.path(), stale).unwrap().unwrap();
        thread::sleep(2 * stale);
        assert!(Lock::take(dir.path(), stale).unwrap().is_none());
        lock.check_file().unwrap();
    }

    /// Many who all see the same stale lock: one has it in the end, every time.
    #[test]
    fn of_many_who_take_a_stale_lock_one_wins() {
        for _ in 0..30 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("lock");
            fs::write(&path, "dead").unwrap();
            let long_ago = SystemTime::now() - LONG;
            File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
            let taken = std::sync::Mutex::new(Vec::new());
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let lock = Lock::take(dir.path(), LONG / 2).unwrap();
                        taken.lock().unwrap().extend(lock);
                    });
                }
            });
            let taken = taken.into_inner().unwrap();
            assert_eq!(taken.iter().filter(|lock| lock.check_file().is_ok()).count(), 1);
        }
    }
}
