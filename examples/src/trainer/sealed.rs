//! The digest of a safetensors file, in its own metadata.

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::util::hex::hex;

/// Stands in the metadata for the digest while that is computed.
pub(super) const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Replaces the [`NO_DIGEST`] in the header of a file by the SHA-256 of all its bytes.
pub(super) fn seal(bytes: &mut [u8]) -> Result<()> {
    let digest = hex(&Sha256::digest(&*bytes));
    let at = find(bytes, NO_DIGEST).context("the header of the file has no place for its digest")?;
    bytes[at..at + digest.len()].copy_from_slice(digest.as_bytes());
    Ok(())
}

/// Checks the digest that the header of a file names, and removes it there.
pub(super) fn check(bytes: &mut [u8], digest: &str) -> Result<()> {
    ensure!(digest.len() == NO_DIGEST.len(), "it has no digest");
    // The first of these in the file is in the header, which the tensors follow.
    let at = find(bytes, digest).context("it has no digest")?;
    bytes[at..at + digest.len()].copy_from_slice(NO_DIGEST.as_bytes());
    let found = hex(&Sha256::digest(&*bytes));
    ensure!(found == digest, "its SHA-256 is {found}, expected {digest}");
    Ok(())
}

/// The position of a text in bytes.
fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}
