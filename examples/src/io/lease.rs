//! Leases: a file that says which process works on a folder, on this machine or on another one that shares the folder.
//!
//! The holder keeps the file locked. The system removes the lock when the process ends, so that on the same machine a dead
//! holder is recognized at once. Other machines go by heartbeats: a thread of the holder rewrites the file again and again.
//! After a time without a heartbeat the lease has expired, and another process may take it: it first moves the file away and
//! then checks what it has moved, so that of two processes one wins. A holder that was only suspended finds out before it
//! writes a result.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::files::{files, is_stale_temp_file, make_folder};
pub use super::lease_file::Holder;
use super::lease_file::{NAME, Note, Seen, create, is_lost, look, move_away};

/// Heartbeats within the time after which a lease expires.
const HEARTBEATS: u32 = 8;

/// A folder that this process holds.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    /// The content of the file.
    holder: String,
    stale: Duration,
    lost: Arc<AtomicBool>,
    /// The thread that writes heartbeats; it ends when the sender is dropped.
    heartbeat: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The result of taking a lease.
#[derive(Debug)]
pub enum Take {
    /// This process holds it.
    Ours(Lease),
    /// Another process holds it.
    Others(Holder),
}

impl Lease {
    /// Takes the folder, which is created if needed, unless another process holds it whose last heartbeat is younger than
    /// `stale`.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn take(folder: &Path, stale: Duration) -> Result<Take> {
        let path = folder.join(NAME);
        let take = || -> io::Result<Take> {
            make_folder(folder)?;
            let holder = serde_json::to_string(&Note::new())? + "\n";
            // Twice: an expired lease is removed first.
            for _ in 0..2 {
                if let Some(file) = create(folder, &path, &holder)? {
                    return Ok(Take::Ours(Self::start_heartbeat(path.clone(), file, holder, stale)));
                }
                match look(&path, stale)? {
                    Seen::Gone => (),
                    Seen::Lives(holder) => return Ok(Take::Others(holder)),
                    Seen::Dead(found) => {
                        if !move_away(&path, &found)? {
                            break;
                        }
                    }
                }
            }
            // Other processes were faster.
            let (who, silent) = ("another process".to_owned(), Duration::ZERO);
            Ok(Take::Others(Holder { who, silent, left: stale, lives: true }))
        };
        take().with_context(|| format!("cannot lock {}", folder.display()))
    }

    fn start_heartbeat(path: PathBuf, mut file: File, holder: String, stale: Duration) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel();
        let thread = {
            let (path, holder, lost) = (path.clone(), holder.clone(), Arc::clone(&lost));
            // The file is open, and thereby locked, as long as the thread runs.
            thread::spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(stale / HEARTBEATS) {
                    if is_lost(&path, &holder).unwrap_or(false) {
                        lost.store(true, Ordering::Relaxed);
                        break;
                    }
                    // Written, not only touched, so that the time is that of the machine that has the files. If it
                    // fails now, it may succeed the next time.
                    let _ = file.rewind().and_then(|()| file.write_all(holder.as_bytes()));
                }
            })
        };
        Self { path, holder, stale, lost, heartbeat: Some((sender, thread)) }
    }

    /// Checks that the lease has not been lost, as far as the heartbeat thread has seen.
    ///
    /// # Errors
    /// If it has been lost.
    pub fn check(&self) -> Result<()> {
        let shows_life = self.heartbeat.as_ref().is_some_and(|(_, thread)| !thread.is_finished());
        ensure!(
            shows_life && !self.lost.load(Ordering::Relaxed),
            "{} was taken over by another process after {:.0} s without a sign of this one: leave the run to it",
            self.path.display(),
            self.stale.as_secs_f64()
        );
        Ok(())
    }

    /// The same, after reading the file.
    ///
    /// # Errors
    /// If it has been lost, or the file cannot be read now.
    pub fn check_file(&self) -> Result<()> {
        if is_lost(&self.path, &self.holder).with_context(|| format!("cannot read {}", self.path.display()))? {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.check()
    }

    /// Removes temporary files that killed processes have left in the folder: of the lease, and of the files that
    /// `is_ours` accepts. Files younger than half of `stale` may belong to a process that examines the lease now, and stay.
    ///
    /// # Errors
    /// If the folder cannot be read, or a file not be removed.
    pub fn sweep(&self, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let sweep = || -> io::Result<()> {
            // The age of our own file is 0, by the clock of the machine that has the files.
            let now = fs::metadata(&self.path)?.modified()?;
            for (name, path) in files(folder)? {
                let age = || now.duration_since(fs::metadata(&path)?.modified()?).map_err(io::Error::other);
                let is_left = is_stale_temp_file(&name, |name| name == NAME || is_ours(name));
                if is_left && age().is_ok_and(|age| age > self.stale / 2) {
                    fs::remove_file(&path)?;
                }
            }
            Ok(())
        };
        sweep().with_context(|| format!("cannot tidy up {}", folder.display()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_ours = self.check_file().is_ok();
        if let Some((sender, thread)) = self.heartbeat.take() {
            drop(sender);
            // It does not panic.
            let _ = thread.join();
        }
        if is_ours {
            // If this fails, the lease expires.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    impl Take {
        #[track_caller]
        fn ours(self) -> Lease {
            match self {
                Self::Ours(lock) => lock,
                Self::Others(holder) => panic!("{holder}"),
            }
        }

        #[track_caller]
        fn others(self) -> Holder {
            match self {
                Self::Ours(_) => panic!("it could be taken"),
                Self::Others(holder) => holder,
            }
        }
    }

    fn take(folder: &Path, stale: Duration) -> Take {
        Lease::take(folder, stale).unwrap()
    }

    /// A lock that a process of another machine has left, this long ago by its date.
    fn foreign(folder: &Path, modified: SystemTime) {
        let note = Note { machine: "elsewhere".to_owned(), host: "far".to_owned(), ..Note::new() };
        fs::write(folder.join(NAME), serde_json::to_string(&note).unwrap()).unwrap();
        File::options().write(true).open(folder.join(NAME)).unwrap().set_modified(modified).unwrap();
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let lock = take(&folder, LONG).ours();
        let holder = take(&folder, LONG).others();
        assert!(holder.lives && holder.who.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        drop(lock);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        take(&folder, LONG).ours();
    }

    /// A holder on this machine that was killed: its file exists, and is not locked.
    #[test]
    fn a_dead_holder_of_this_machine_is_known_at_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), serde_json::to_string(&Note::new()).unwrap()).unwrap();
        let lock = take(dir.path(), LONG).ours();
        lock.check_file().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn others_are_told_when_it_can_be_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        foreign(dir.path(), SystemTime::now() - LONG / 4);
        let holder = take(dir.path(), LONG).others();
        let left = holder.left.as_secs();
        assert!(!holder.lives && (2695..=2700).contains(&left), "{holder:?}");
        assert!(
            holder.to_string().contains("on far has it") && holder.to_string().contains("taken over in 2"),
            "{holder}"
        );
        take(dir.path(), LONG / 5).ours();
    }

    /// A date that has not come yet counts from now.
    #[test]
    fn a_lease_cannot_lie_in_the_future() {
        let dir = tempfile::tempdir().unwrap();
        foreign(dir.path(), SystemTime::now() + 1000 * LONG);
        assert_eq!(take(dir.path(), LONG).others().left, LONG);
        thread::sleep(Duration::from_millis(80));
        take(dir.path(), Duration::from_millis(50)).ours();
    }

    #[test]
    fn a_stale_lock_is_taken_and_its_holder_finds_out() {
        let dir = tempfile::tempdir().unwrap();
        // It has no heartbeat for an hour, and expires after a moment.
        let old = take(dir.path(), LONG).ours();
        thread::sleep(Duration::from_millis(80));
        let new = take(dir.path(), Duration::from_millis(50)).ours();
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
        let lock = take(dir.path(), LONG).ours();
        let (path, aside) = (dir.path().join(NAME), dir.path().join("aside"));
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
        let lock = take(dir.path(), LONG).ours();
        for (name, is_old) in [
            (".result.json.Ab12Cd.tmp", true),
            (".lock.Ab12Cd.tmp", true),
            (".lock.Ab12Ce.tmp", false),
            (".notes.Ab12Cd.tmp", true),
            (".lock-screen", true),
            ("log.jsonl", true),
        ] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - if is_old { LONG } else { Duration::ZERO }).unwrap();
        }
        lock.sweep(|name| name == "result.json").unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".lock-screen", ".lock.Ab12Ce.tmp", ".notes.Ab12Cd.tmp", "lock", "log.jsonl"]);
    }

    #[test]
    fn signs_of_life_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let stale = Duration::from_millis(800);
        let lock = take(dir.path(), stale).ours();
        thread::sleep(2 * stale);
        assert!(take(dir.path(), stale).others().silent < stale);
        lock.check_file().unwrap();
    }

    /// Many who all see the same stale lock: one has it in the end, every time.
    #[test]
    fn of_many_who_take_a_stale_lock_one_wins() {
        for _ in 0..30 {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(NAME), "dead").unwrap();
            let file = File::options().write(true).open(dir.path().join(NAME)).unwrap();
            file.set_modified(SystemTime::now() - LONG).unwrap();
            let taken = std::sync::Mutex::new(Vec::new());
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        if let Take::Ours(lock) = take(dir.path(), LONG / 2) {
                            taken.lock().unwrap().push(lock);
                        }
                    });
                }
            });
            let taken = taken.into_inner().unwrap();
            assert_eq!(taken.iter().filter(|lock| lock.check_file().is_ok()).count(), 1);
        }
    }
}
