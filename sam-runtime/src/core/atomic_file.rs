//! An atomic and durable way to write a file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// Replaces a file by one with these contents, atomically and durably.
///
/// The contents are written to a temporary file in the same folder, which is then renamed: readers see the old file or the
/// new one, never a part of it, whatever interrupts the writer. Data and folder are synchronized with the disk, so that the
/// file is still there after a loss of power once this has returned. The new file has the default permissions (on Unix those
/// that the umask leaves), like any other new file. The temporary file of `name` is called `.name.XXXXXX.tmp`, with six
/// random letters or digits; a process that is killed while it writes leaves it behind.
///
/// # Errors
/// If the temporary file cannot be created, written or renamed; the old file is then as it was. Also if synchronizing the
/// folder fails; the new file is then in place, but might not survive a loss of power.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("sam-write-{}", std::process::id()));
/// sam_runtime::write_atomically(&path, b"epoch 12")?;
/// assert_eq!(std::fs::read(&path)?, b"epoch 12");
/// # std::fs::remove_file(path)
/// # }
/// ```
pub fn write_atomically(path: impl AsRef<Path>, contents: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().filter(|name| name.len() <= LONGEST_NAME).unwrap_or(OsStr::new("file"));
    let prefix = [OsStr::new("."), name, OsStr::new(".")].join(OsStr::new(""));
    let mut named = tempfile::Builder::new();
    named.prefix(&prefix).suffix(".tmp").rand_bytes(6);
    // With `create_new` the umask decides who may read it; tempfile's default is the owner alone.
    let mut file = named.make_in(folder, |path| File::create_new(path))?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// File systems allow 255 bytes, and the temporary file's name has 12 more.
const LONGEST_NAME: usize = 240;

/// Makes the names in a folder durable, where the system can: those of new, renamed and removed files.
///
/// # Errors
/// If the folder is missing, or the disk fails.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let parent = std::env::temp_dir();
/// # let run = parent.join(format!("sam-sync-{}", std::process::id()));
/// std::fs::create_dir(&run)?;
/// sam_runtime::sync_folder(&parent)?;
/// # std::fs::remove_dir(run)
/// # }
/// ```
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder that may be written to but not read, or a file system that does not synchronize folders.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_default_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        File::create(&other).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions(), other.metadata().unwrap().permissions());
        assert_eq!(folder.path().read_dir().unwrap().count(), 2, "no temporary file is left");

        // A folder is in the way: an error, and nothing is left either.
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(write_atomically(folder.path().join("folder"), b"x").is_err());
        assert!(write_atomically(folder.path().join("missing/file"), b"x").is_err());
        assert!(write_atomically("", b"x").is_err());
        assert_eq!(folder.path().read_dir().unwrap().count(), 3);
    }
}
