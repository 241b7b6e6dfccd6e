//! The file of a lease: what it says, how it is created, examined and taken over.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};

/// The name of the file in the folder of a run.
pub(super) const NAME: &str = "lock";

/// A date that is later than now by more than this cannot be right.
const LATE: Duration = Duration::from_secs(1);

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which process, as text.
    pub who: String,
    /// The time since its last heartbeat.
    pub silent: Duration,
    /// The time until the lease expires, if there is no further heartbeat.
    pub left: Duration,
    /// Whether it is known to be alive: it is a process of this machine.
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

/// The content of the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Note {
    /// The boot of the machine.
    pub(super) machine: String,
    pub(super) host: String,
    pub(super) pid: u32,
    /// Unique.
    pub(super) id: String,
}

impl Note {
    pub(super) fn new() -> Self {
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

/// The boot id of the system (Linux); empty if there is none.
fn machine() -> String {
    line_of("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn line_of(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

/// Whether the file is gone or names another holder. An error (network file systems fail at times) says neither.
pub(super) fn is_lost(path: &Path, holder: &str) -> io::Result<bool> {
    match fs::read(path) {
        Ok(found) => Ok(found != holder.as_bytes()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A temporary file in the same folder, which is removed when the value is dropped.
fn beside<T>(folder: &Path, make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<NamedTempFile<T>> {
    let prefix = format!(".{NAME}.");
    tempfile::Builder::new().prefix(&prefix).suffix(".tmp").rand_bytes(6).make_in(folder, make)
}

/// Creates the file, complete and locked from the start; `None` if there is one.
pub(super) fn create(folder: &Path, path: &Path, holder: &str) -> io::Result<Option<File>> {
    let (mut file, beside): (File, TempPath) = beside(folder, |path| File::create_new(path))?.into_parts();
    hold(&file);
    file.write_all(holder.as_bytes())?;
    let made = match fs::hard_link(&beside, path) {
        // Some file systems have no hard links: another process may see an incomplete file, and waits.
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

/// Locks a file for as long as it is open. Some file systems have no locks; and on Windows others could not read it.
fn hold(file: &File) {
    if cfg!(unix) {
        let _ = file.try_lock();
    }
}

/// The state of a lease.
pub(super) enum Seen {
    Gone,
    Lives(Holder),
    /// With the content of the file.
    Dead(Vec<u8>),
}

/// Examines whether the holder is alive.
pub(super) fn look(path: &Path, stale: Duration) -> io::Result<Seen> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // The time of the machine that has the files: that of a file made now.
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
        // A live holder has it locked.
        return Ok(Seen::Dead(found));
    }
    let mut since = file.metadata()?.modified()?;
    if since > now + LATE {
        // A date in the future cannot be right: start counting now.
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

/// Moves the lease of a dead holder away; false if it is another one by now.
pub(super) fn move_away(path: &Path, dead: &[u8]) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let moved = match beside(folder, |aside| fs::rename(path, aside)) {
        Ok(moved) => moved,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    // It is removed at the end; if this process is killed, the next holder removes it.
    match fs::read(moved.path()) {
        // Yet another process has taken the lease since, and removed the file.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(found) if found == dead => Ok(true),
        Ok(_) => {
            // Another process was faster, and this is its lease: put it back, unless there is yet another.
            let _ = fs::hard_link(moved.path(), path);
            Ok(false)
        }
    }
}
