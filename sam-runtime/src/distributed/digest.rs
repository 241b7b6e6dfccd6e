//! A digest of bytes, the same in every process.

use crate::core::rng::hash;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Digest(u64);

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.add_word(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.add_word((*byte).into());
        }
    }

    pub(super) fn add_word(&mut self, word: u64) {
        self.0 = hash(self.0 ^ word);
    }

    pub(super) fn finish(self) -> u64 {
        self.0
    }
}
