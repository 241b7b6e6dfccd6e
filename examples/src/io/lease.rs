//! A file that says that a run is somebody's, on this machine or on another one that has the folder.
//!
//! The holder keeps the file locked, which the system ends with the process: on the same machine a dead holder is known at
//! once. On others the holder is known by its signs of life: it writes to the file again and again, in a thread of its
//! own. Where that has not been done for long, the holder is held for dead, and the file may be taken: it is moved away
//! first, and what was moved is looked at, so that of two who take it one wins, and a holder that only slept finds out
//! before it writes a result.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};

use crate::trainer::{files, is_left_of};

/// Signs of life until one is held for dead.
const SIGNS: u32 = 8;

/// The file's name in the folder of a run.
const NAME: &str = "lock";

/// A date that is later than now by more than this cannot be right.
const LATE: Duration = Duration::from_secs(1);

/// A folder of a run that is ours.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// What the file holds.
    holder: String,
    stale: Duration,
    lost: Arc<AtomicBool>,
    /// The thread that shows that we live; it ends when the sender goes.
    signs: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Whether a folder could be taken.
#[derive(Debug)]
pub enum Take {
    /// It could.
    Ours(Lock),
    /// Somebody else has it.
    Others(Holder),
}

/// Who has a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which process, in words.
    pub who: String,
    /// The time since its last sign of life.
    pub silent: Duration,
    /// The time after which the folder can be taken over, if there is no further sign.
    pub left: Duration,
    /// Whether it is known to live: it is a process of this machine.
    pub lives: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, silent, left, .. } = self;
        let (silent, left) = (silent.as_secs(), left.as_secs_f64().ceil());
        write!(
            f,
            "{who} has it; its last sign of life was {silent} s ago, without another one it is taken over in {left:.0} s"
        )
    }
}

/// What is in the file.
#[derive(Serialize, Deserialize)]
struct Note {
    /// The machine since it was last started.
    machine: String,
    host: String,
    pid: u32,
    /// Makes it unlike any other.
    id: String,
}

impl Note {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        Self {
            machine: machine(),
            host: line_of("/proc/sys/kernel/hostname").or_else(|| line_of("/etc/hostname")).unwrap_or_default(),
            pid: std::process::id(),
            id: format!("{now}-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// A name that the system gives itself when it starts (Linux); empty if there is none.
fn machine() -> String {
    line_of("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn line_of(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

impl Lock {
    /// Takes the folder, which is made if need be, unless somebody else has it who was heard of within `stale`.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn take(folder: &Path, stale: Duration) -> Result<Take> {
        let path = folder.join(NAME);
        let take = || -> io::Result<Take> {
            fs::create_dir_all(folder)?;
            let holder = serde_json::to_string(&Note::new())? + "\n";
            // Twice: what is taken over is free first.
            for _ in 0..2 {
                if let Some(file) = create(folder, &path, &holder)? {
                    return Ok(Take::Ours(Self::show_life(path.clone(), file, holder, stale)));
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
            // Others were faster.
            let (who, silent) = ("another process".to_owned(), Duration::ZERO);
            Ok(Take::Others(Holder { who, silent, left: stale, lives: true }))
        };
        take().with_context(|| format!("cannot lock {}", folder.display()))
    }

    fn show_life(path: PathBuf, mut file: File, holder: String, stale: Duration) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel();
        let thread = {
            let (path, holder, lost) = (path.clone(), holder.clone(), Arc::clone(&lost));
            // The file is open, and so locked, as long as the thread lives.
            thread::spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(stale / SIGNS) {
                    if is_lost(&path, &holder).unwrap_or(false) {
                        lost.store(true, Ordering::Relaxed);
                        break;
                    }
                    // Written, not only touched: so the time is that of the machine that has the files. If it fails
                    // now, it may not the next time.
                    let _ = file.rewind().and_then(|()| file.write_all(holder.as_bytes()));
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
        let shows_life = self.signs.as_ref().is_some_and(|(_, thread)| !thread.is_finished());
        ensure!(
            shows_life && !self.lost.load(Ordering::Relaxed),
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

    /// Removes what processes that were killed have left half written in the folder: of this file, and of those of which
    /// `is_ours` says so. What is not older than a holder's last sign of life may be another's who looks at the lock now,
    /// and stays.
    ///
    /// # Errors
    /// If the folder cannot be read, or a file not be removed.
    pub fn sweep(&self, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let sweep = || -> io::Result<()> {
            // Our own file is from now, by the clock of the machine that has the files.
            let now = fs::metadata(&self.path)?.modified()?;
            for (name, path) in files(folder)? {
                let age = || now.duration_since(fs::metadata(&path)?.modified()?).map_err(io::Error::other);
                let is_left = is_left_of(&name, |name| name == NAME || is_ours(name));
                if is_left && age().is_ok_and(|age| age > self.stale / 2) {
                    fs::remove_file(&path)?;
                }
            }
            Ok(())
        };
        sweep().with_context(|| format!("cannot tidy up {}", folder.display()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let is_ours = self.check_file().is_ok();
        if let Some((sender, thread)) = self.signs.take() {
            drop(sender);
            // It does not panic, and there would be nothing to do about it.
            let _ = thread.join();
        }
        if is_ours {
            // Otherwise it is found stale one day.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the file is gone or has another holder's name. Where it cannot be read (a network's file system comes and
/// goes) nobody knows.
fn is_lost(path: &Path, holder: &str) -> io::Result<bool> {
    match fs::read(path) {
        Ok(found) => Ok(found != holder.as_bytes()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A file beside, with a name that says what it is of, which goes when the value does.
fn beside<T>(folder: &Path, make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<NamedTempFile<T>> {
    let prefix = format!(".{NAME}.");
    tempfile::Builder::new().prefix(&prefix).suffix(".tmp").rand_bytes(6).make_in(folder, make)
}

/// Makes the file, whole and locked from its first moment; none if there is one.
fn create(folder: &Path, path: &Path, holder: &str) -> io::Result<Option<File>> {
    let (mut file, beside): (File, TempPath) = beside(folder, |path| File::create_new(path))?.into_parts();
    hold(&file);
    file.write_all(holder.as_bytes())?;
    let made = match fs::hard_link(&beside, path) {
        // Some have no links: whoever looks at it now finds a file that is not whole, and waits.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            File::create_new(path).and_then(|mut made| {
                hold(&made);
                made.write_all(holder.as_bytes())?;
                file = made;
                Ok(())
            })
        }
        made => made,
    };
    match made {
        Ok(()) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks a file for as long as it is open. Some file systems have no locks; and Windows would keep others from reading it.
fn hold(file: &File) {
    if cfg!(unix) {
        let _ = file.try_lock();
    }
}

/// What a look at a lock shows.
enum Seen {
    Gone,
    Lives(Holder),
    /// And what the file holds.
    Dead(Vec<u8>),
}

/// Looks whether the holder lives.
fn look(path: &Path, stale: Duration) -> io::Result<Seen> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // By the clock of the machine that has the files: that of a file made now.
    let now = beside(folder, |path| File::create_new(path))?.as_file().metadata()?.modified()?;
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Seen::Gone),
        file => file?,
    };
    let mut found = Vec::new();
    io::Read::by_ref(&mut file).take(1 << 16).read_to_end(&mut found)?;
    let note = serde_json::from_slice::<Note>(&found).ok();
    let is_here = cfg!(unix) && note.as_ref().is_some_and(|note| !note.machine.is_empty() && note.machine == machine());
    let lock = if is_here { Some(file.try_lock()) } else { None };
    if let Some(Ok(())) = lock {
        // The system would not have let us have it.
        return Ok(Seen::Dead(found));
    }
    let mut since = file.metadata()?.modified()?;
    if since > now + LATE {
        // Nobody has lived later than now: from here on it counts.
        file.set_modified(now)?;
        since = now;
    }
    let silent = now.duration_since(since).unwrap_or_default();
    if silent > stale {
        return Ok(Seen::Dead(found));
    }
    let who =
        note.map_or_else(|| "an unknown process".to_owned(), |note| format!("process {} on {}", note.pid, note.host));
    let lives = matches!(lock, Some(Err(TryLockError::WouldBlock)));
    Ok(Seen::Lives(Holder { who, silent, left: stale.saturating_sub(silent), lives }))
}

/// Moves a dead holder's lock away; false if it is not that any more.
fn move_away(path: &Path, dead: &[u8]) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let moved = match beside(folder, |aside| fs::rename(path, aside)) {
        Ok(moved) => moved,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    // It goes at the end; what a kill leaves is swept away by the next holder.
    match fs::read(moved.path()) {
        // Yet another has taken the lock since, and tidied up.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(found) if found == dead => Ok(true),
        Ok(_) => {
            // Somebody else was faster, and this is a new one: it goes back, unless there is yet another.
            let _ = fs::hard_link(moved.path(), path);
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    impl Take {
        #[track_caller]
        fn ours(self) -> Lock {
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
        Lock::take(folder, stale).unwrap()
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

    /// The holder of this machine that was killed: its file is there, and nobody has it locked.
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
        // It says nothing for an hour, and is held for dead after a moment.
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
