//! Digests of data sets, which tell a resumed training that its data has changed.

use std::fs;
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::dataset::{Dataset, Split};
use super::error::DataError;
use super::pictures::Pictures;
use super::text::Text;
use crate::util::hex::hex;
use crate::util::sha256::sha256;

/// Of a half of a folder of pictures at most so many are read for the digest. A set that does not fit into memory takes too
/// long to be read as a whole each time that a training begins.
const READ: usize = 10_000;

const REMOVED: &str = "it was removed after the folder was listed";

/// SHA-256 over fields of known length: no two sequences of fields give the same bytes.
struct Fields(Sha256);

impl Fields {
    /// `kind` separates the digests of different types.
    fn new(kind: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.bytes(kind.as_bytes());
        fields
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn names(&mut self, names: &[String]) {
        self.number(names.len() as u64);
        for name in names {
            self.bytes(name.as_bytes());
        }
    }

    fn split(&mut self, split: &Split) {
        self.number(split.labels.len() as u64);
        for label in &split.labels {
            self.0.update(label.to_le_bytes());
        }
        self.bytes(&split.images);
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

impl Dataset {
    /// SHA-256, in hexadecimal, of the class names, the number of channels, the height, the width, and the labels and
    /// pixels of the training images and of the test images, all in their order.
    ///
    /// The [name](Dataset::name) and the [notes](Dataset::notes) are not covered: a copy in another folder has the same
    /// digest. Two sets of the same digest give the same training.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut fields = Fields::new("images");
        fields.names(&self.classes);
        for size in [self.channels, self.height, self.width] {
            fields.number(size as u64);
        }
        fields.split(&self.train);
        fields.split(&self.test);
        fields.finish()
    }
}

impl Pictures {
    /// SHA-256, in hexadecimal, of the class names, of the path below the folder, the label and the length in bytes
    /// of each training picture and each test picture, in their order, and of the bytes of 10,000 pictures of each half.
    ///
    /// In a larger set a single picture whose bytes change while its length does not may not be noticed. Neither the
    /// path of the folder itself nor [`side`](Pictures::side) is covered.
    ///
    /// # Errors
    /// If a picture has been removed since the folder was listed, or cannot be read.
    pub fn digest(&self) -> Result<String, DataError> {
        let mut fields = Fields::new("pictures");
        fields.names(&self.classes);
        for half in [&self.train, &self.test] {
            let lengths: Vec<_> = half.par_iter().map(|(path, _)| length(path)).collect();
            // The test pictures are in the order of their classes.
            let stride = half.len().div_ceil(READ).max(1);
            let contents: Vec<_> = half.par_iter().step_by(stride).map(|(path, _)| content(path, REMOVED)).collect();
            for content in contents {
                fields.bytes(&content?);
            }
            fields.number(half.len() as u64);
            for ((path, label), length) in half.iter().zip(lengths) {
                let path = path.strip_prefix(&self.folder).unwrap_or(path);
                fields.number(path.components().count() as u64);
                for part in path.components() {
                    fields.bytes(part.as_os_str().as_encoded_bytes());
                }
                fields.number(u64::from(*label));
                fields.number(length?);
            }
        }
        Ok(fields.finish())
    }
}

impl Text {
    /// SHA-256, in hexadecimal, of the bytes.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut fields = Fields::new("text");
        fields.bytes(&self.bytes);
        fields.finish()
    }
}

/// SHA-256, in hexadecimal, of the bytes of a file.
///
/// # Errors
/// If it cannot be read.
pub fn digest_of(path: &Path) -> Result<String, DataError> {
    content(path, "name another file").map(|digest| hex(&digest))
}

fn content(path: &Path, advice: &str) -> Result<Vec<u8>, DataError> {
    let read = fs::File::open(path).and_then(sha256);
    let (_, digest) = read.map_err(|source| DataError::reading(path, advice, source))?;
    Ok(digest.finalize().to_vec())
}

fn length(path: &Path) -> Result<u64, DataError> {
    let metadata = fs::metadata(path);
    let metadata = metadata.map_err(|source| DataError::reading(path, REMOVED, source));
    Ok(metadata?.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::{embedded, folder, load};

    #[test]
    fn a_digest_covers_names_shapes_labels_and_pixels() {
        let set = embedded().unwrap();
        let digest = set.digest();
        assert_eq!((digest.len(), embedded().unwrap().digest()), (64, digest.clone()));
        let changes: [fn(&mut Dataset); 7] = [
            |set| set.classes[3].push('x'),
            |set| {
                let moved = set.classes[3].pop().unwrap();
                set.classes[4].insert(0, moved);
            },
            |set| set.channels = 2,
            |set| (set.height, set.width) = (14, 56),
            |set| set.train.labels[4999] ^= 1,
            |set| set.train.images[28] ^= 1,
            |set| set.test.images[28 * 28 * 9_999] ^= 1,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut other = set.clone();
            change(&mut other);
            assert_ne!(other.digest(), digest, "change {number}");
        }
        let renamed = Dataset { name: "other".into(), notes: vec!["note".into()], ..set };
        assert_eq!(renamed.digest(), digest);
    }

    #[test]
    fn a_digest_of_pictures_covers_paths_labels_and_lengths() {
        let [dir, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in [&dir, &other] {
            folder::tests::write(dir.path());
        }
        let digest = |dir: &tempfile::TempDir| Pictures::list(dir.path(), 8).unwrap().digest().unwrap();
        let first = digest(&dir);
        assert_eq!(digest(&other), first, "the folder's own path is not covered");
        assert_eq!(load(dir.path(), None).unwrap().digest(), load(other.path(), None).unwrap().digest());

        fs::rename(other.path().join("train/cat/b.png"), other.path().join("train/cat/c.png")).unwrap();
        assert_ne!(digest(&other), first);
        let path = dir.path().join("test/dog/y.jpeg");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [bytes.as_slice(), b"\0"].concat()).unwrap();
        assert_ne!(digest(&dir), first);
        // Of the same length.
        let longer = digest(&dir);
        fs::write(&path, [bytes.as_slice(), b"\x01"].concat()).unwrap();
        assert_ne!(digest(&dir), longer);
        let mut relabeled = Pictures::list(dir.path(), 8).unwrap();
        let before = relabeled.digest().unwrap();
        relabeled.train[0].1 ^= 1;
        assert_ne!(relabeled.digest().unwrap(), before);

        fs::remove_file(&path).unwrap();
        let error = relabeled.digest().unwrap_err();
        assert!(error.to_string().contains("y.jpeg` is missing: it was removed after"), "{error}");
    }
}
