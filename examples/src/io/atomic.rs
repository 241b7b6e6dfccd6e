//! Atomic writing of files.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a file [atomically and durably](sam_runtime::write_atomically).
///
/// # Errors
/// If it cannot be written; the error names it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    sam_runtime::write_atomically(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
