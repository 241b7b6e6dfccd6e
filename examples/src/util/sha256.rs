//! Digests of streams.

use std::io::{self, ErrorKind, Read};

use sha2::{Digest as _, Sha256};

/// Reads to the end; gives the number of bytes and their digest, to which more can be added.
pub(crate) fn sha256(mut from: impl Read) -> io::Result<(u64, Sha256)> {
    let (mut length, mut digest, mut buffer) = (0, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((length, digest)),
            Ok(read) => {
                digest.update(&buffer[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}
