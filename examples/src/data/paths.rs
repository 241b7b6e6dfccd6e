//! Folders of data sets.

use std::path::Path;

use super::error::DataError;

pub(super) fn expect_folder(dir: &Path) -> Result<(), DataError> {
    if dir.is_dir() {
        return Ok(());
    }
    let path = dir.to_path_buf();
    let advice = "name the folder that holds the data set".to_owned();
    Err(if dir.exists() { DataError::NotAFolder { path } } else { DataError::Missing { path, advice } })
}

/// The last part of a folder's path: the name of a data set that has no other.
pub(super) fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    full.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned())
}
