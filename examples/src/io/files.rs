//! The files of a folder, and those that interrupted writers leave behind.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Whether a file is the temporary file of a writer that was killed, for a file that `is_ours` accepts. The names are those of
/// [`sam_runtime::write_atomically`].
pub(crate) fn is_stale_temp_file(name: &str, is_ours: impl Fn(&str) -> bool) -> bool {
    let of = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.rsplit_once('.'));
    of.is_some_and(|(name, random)| {
        random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()) && is_ours(name)
    })
}

/// Makes a folder and those that it is in, where they are missing, durably.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|folder| !is_here(folder) && !folder.exists()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(sync_folder)
}

fn is_here(folder: &Path) -> bool {
    folder.as_os_str().is_empty()
}

/// [`sam_runtime::sync_folder`] of the parent of a path, which is empty for a name alone.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    sam_runtime::sync_folder(if is_here(folder) { Path::new(".") } else { folder })
}

/// The regular files of a folder whose names are UTF-8, sorted by name; none if there is no folder.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.file_type()?.is_file()
        {
            files.push((name, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}
