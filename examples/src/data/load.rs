//! Reading of a data set of any known format.

use std::path::Path;

use super::dataset::Dataset;
use super::error::DataError;
use super::found::Found;
use super::hints;
use super::paths::expect_folder;

/// Reads the data set in `dir`, whatever its format:
///
/// - CIFAR-10: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, here or in `cifar-10-batches-bin`;
/// - CIFAR-100: `train.bin` and `test.bin`, here or in `cifar-100-binary`; the fine labels;
/// - MNIST and its kin: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k-`, each either
///   plain or `.gz` (plain, if both are there), and also with `.idx` in place of `-idx`, here or in `raw`,
///   `MNIST/raw`, `FashionMNIST/raw`, `mnist` or `fashion-mnist`;
/// - SVHN: `train_32x32.mat` and `test_32x32.mat`, here or in `svhn`;
/// - pictures: `train/CLASS/*.png` (or `.jpg`, `.jpeg`, `.webp`, `.bmp`) and the same classes in `test` (or, if there
///   is none, `val`, `valid` or `validation`); one channel if all are gray, otherwise three. Other files and nested
///   folders are skipped, with a [note](Dataset::notes) of how many. The training pictures are in a random
///   order that is always the same, so that the first of them are of all classes.
///
/// Pictures must be of one size, unless `image_size` is given: then each is cropped to its central square and scaled to
/// that many pixels a side. The other formats have fixed sizes and refuse `image_size`.
///
/// # Errors
///
/// If no data set, or more than one, is recognized, and if a file is invalid.
pub fn load(dir: &Path, image_size: Option<u32>) -> Result<Dataset, DataError> {
    expect_folder(dir)?;
    let found = Found::all(dir);
    match found.as_slice() {
        [one] => one.load(image_size),
        [] => Err(hints::unrecognized(dir)),
        several => Err(DataError::Ambiguous {
            path: dir.to_path_buf(),
            found: several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::PathBuf;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use tempfile::TempDir;

    use super::super::{cifar, folder, idx, svhn};
    use super::*;

    /// A sound data set of every format.
    fn sound_sets() -> Vec<TempDir> {
        let sets: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
        cifar::tests::write(cifar::LAYOUTS[0], sets[0].path());
        cifar::tests::write(cifar::LAYOUTS[1], sets[1].path());
        idx::tests::write(sets[2].path());
        svhn::tests::write(sets[3].path());
        folder::tests::write(sets[4].path());
        sets
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&dir.path().join("nowhere"), None).unwrap_err();
        assert!(error.to_string().contains("nowhere` is missing: name the folder"), "{error}");
        fs::write(dir.path().join("file"), "").unwrap();
        let error = load(&dir.path().join("file"), None).unwrap_err();
        assert!(matches!(error, DataError::NotAFolder { .. }), "{error}");
    }

    #[test]
    fn an_unknown_folder_tells_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let error = load(dir.path(), None).unwrap_err().to_string();
        for name in ["data_batch_1.bin", "cifar-100-binary", "train-images-idx3-ubyte", "train/CLASS/*.png"] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn two_data_sets_are_one_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let folders = cifar::LAYOUTS.map(|layout| dir.path().join(layout.folder));
        for (layout, folder) in cifar::LAYOUTS.into_iter().zip(&folders) {
            fs::create_dir(folder).unwrap();
            cifar::tests::write(layout, folder);
        }
        let error = load(dir.path(), None).unwrap_err();
        let both = format!("CIFAR-10 in `{}`, CIFAR-100 in `{}`", folders[0].display(), folders[1].display());
        assert!(error.to_string().contains(&both), "{error}");
        assert_eq!(load(&folders[1], None).unwrap().name, "CIFAR-100");
    }

    #[test]
    fn only_pictures_can_be_resized() {
        let sets = sound_sets();
        for (set, format) in sets.iter().zip(["CIFAR-10", "CIFAR-100", "IDX", "SVHN"]) {
            let error = load(set.path(), Some(16)).unwrap_err();
            assert!(matches!(error, DataError::FixedImageSize { format: f, .. } if f == format), "{error}");
        }
        assert_eq!(load(sets[4].path(), Some(16)).unwrap().width, 16);
    }

    /// Whatever is in the files: an error or a data set in order, never a panic.
    #[test]
    fn damaged_files_never_panic() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for set in sound_sets() {
            let files = files_below(set.path());
            for round in 0..200 {
                let path = &files[rng.random_range(0..files.len())];
                let sound = fs::read(path).unwrap();
                fs::write(path, damaged(&sound, round % 3, &mut rng)).unwrap();
                let size = rng.random::<bool>().then_some(4).filter(|_| path.extension().is_some_and(|e| e == "png"));
                match load(set.path(), size) {
                    Ok(set) => assert_in_order(&set),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                fs::write(path, sound).unwrap();
            }
            assert_in_order(&load(set.path(), None).unwrap());
        }
    }

    fn files_below(dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
    }

    /// Cut off, with a few bits flipped near the beginning, or with a few bytes replaced anywhere.
    fn damaged(sound: &[u8], how: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        match how {
            0 => bytes.truncate(rng.random_range(0..sound.len())),
            1 => {
                let reach = sound.len().min(64);
                for _ in 0..rng.random_range(1..4) {
                    bytes[rng.random_range(0..reach)] ^= 1 << rng.random_range(0..8);
                }
            }
            _ => {
                for _ in 0..rng.random_range(1..9) {
                    bytes[rng.random_range(0..sound.len())] = rng.random();
                }
            }
        }
        bytes
    }

    fn assert_in_order(set: &Dataset) {
        for split in [&set.train, &set.test] {
            assert!(!split.is_empty());
            assert_eq!(split.images.len(), split.len() * set.image_len());
            assert!(split.labels.iter().all(|&label| (label as usize) < set.classes.len()));
        }
    }
}
