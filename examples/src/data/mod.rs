//! Labelled images: an embedded set, sets on disk, sets from the network, and label noise.
//!
//! ```text
//! embedded()                   5,000 + 10,000 images of Fashion-MNIST, compiled in
//! load(dir, image_size)        CIFAR-10, CIFAR-100, MNIST-like IDX files, SVHN, any folder of pictures
//! Pictures::list(dir, side)    the same folders, decoded picture by picture when they are needed
//! download(archive, into, ..)  CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST or SVHN, checked and put in place
//! add_noise(labels, ..)        symmetric label noise, seeded
//! ```
//!
//! All of them give a [`Dataset`]: bytes as stored, no normalisation ([`Dataset::mean_std`] has the figures for it).
//! Every failure is a [`DataError`] that names the file and the record.

mod cifar;
mod digest;
mod download;
mod embedded;
mod error;
mod folder;
mod hints;
mod idx;
pub mod loader;
mod noise;
mod pictures;
mod svhn;

use std::fmt;
use std::iter;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use download::hex;
pub use download::{Archive, Content, Download, Source, download, fetch};
pub use embedded::embedded;
pub use error::DataError;
pub use folder::MAX_IMAGE_SIZE;
pub use noise::{Noise, add_noise};
pub(crate) use pictures::{Crop, read as read_picture};
pub use pictures::{Pictures, read_like};

/// The training half or the test half of a [`Dataset`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Pixels, `n x channels x height x width`, planes row-major, 0 to 255.
    pub images: Vec<u8>,
    /// `n` labels, each an index into [`Dataset::classes`].
    pub labels: Vec<u32>,
}

impl Split {
    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image; never so after [`load`] or [`embedded()`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Labelled images of one size, for training and for testing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// What it is called in reports: "CIFAR-10", or the name of its folder.
    pub name: String,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Planes of an image: 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows of a plane.
    pub height: usize,
    /// Columns of a plane.
    pub width: usize,
    /// What to train on.
    pub train: Split,
    /// What to test on.
    pub test: Split,
    /// What was left out of the set, for the user.
    pub notes: Vec<String>,
}

/// Mean and standard deviation of each channel, of pixels scaled to 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanStd {
    /// One mean per channel.
    pub mean: Vec<f64>,
    /// One (population) standard deviation per channel, never 0.
    pub std: Vec<f64>,
}

impl Dataset {
    /// Bytes of one image: `channels x height x width`.
    #[must_use]
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Keeps the first `n` training images; all, if there are not so many. In sets of pictures they are of all classes, for
    /// [`load`] mixes them; the other sets are stored in a mixed order.
    pub fn limit(&mut self, n: usize) {
        self.train.images.truncate(n.saturating_mul(self.image_len()));
        self.train.labels.truncate(n);
    }

    /// Mean and standard deviation of the training images, over all pixels of a channel; for the original CIFAR-10
    /// these are the published constants (0.4914, 0.4822, 0.4465; 0.2470, 0.2435, 0.2616).
    ///
    /// A channel whose pixels are all alike gets the standard deviation 1, so that dividing by it is always safe.
    #[must_use]
    pub fn mean_std(&self) -> MeanStd {
        let plane = (self.height * self.width).max(1);
        // Whole numbers: exact, whatever the order.
        let mut sums = vec![(0u64, 0u64); self.channels];
        let images = self.train.images.chunks_exact(self.image_len().max(1));
        let count = (images.len() * plane).max(1) as u64;
        for image in images {
            for ((sum, squares), pixels) in sums.iter_mut().zip(image.chunks_exact(plane)) {
                *sum += pixels.iter().map(|&x| u64::from(x)).sum::<u64>();
                *squares += pixels.iter().map(|&x| u64::from(x) * u64::from(x)).sum::<u64>();
            }
        }
        let moments = sums.into_iter().map(|(sum, squares)| {
            let spread = u128::from(count) * u128::from(squares) - u128::from(sum) * u128::from(sum);
            let std = (spread as f64).sqrt() / count as f64 / 255.0;
            (sum as f64 / count as f64 / 255.0, if spread == 0 { 1.0 } else { std })
        });
        let (mean, std) = moments.unzip();
        MeanStd { mean, std }
    }
}

/// Reads the data set in `dir`, whatever its format:
///
/// - CIFAR-10: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, here or in `cifar-10-batches-bin`;
/// - CIFAR-100: `train.bin` and `test.bin`, here or in `cifar-100-binary`; the fine labels;
/// - MNIST and its kin: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k-`, each either
///   plain or `.gz` (plain, if both are there), and also with `.idx` in place of `-idx`, here or in `raw`,
///   `MNIST/raw`, `FashionMNIST/raw`, `mnist` or `fashion-mnist`;
/// - SVHN: `train_32x32.mat` and `test_32x32.mat`, here or in `svhn`;
/// - pictures: `train/CLASS/*.png` (or `.jpg`, `.jpeg`, `.webp`, `.bmp`) and the same classes in `test` (or, if there
///   is none, `val`, `valid` or `validation`); one channel if all are grey, otherwise three. Other files and nested
///   folders are skipped, with a [note](Dataset::notes) of how many. The training pictures are in a random
///   order that is always the same, so that the first of them are of all classes.
///
/// Pictures must be of one size, unless `image_size` is given: then each is cropped to its central square and scaled to
/// that many pixels a side. The other formats have fixed sizes and refuse `image_size`.
///
/// # Errors
///
/// If nothing, or more than one data set, is recognised, and if anything in the files is not as it should be.
pub fn load(dir: &Path, image_size: Option<u32>) -> Result<Dataset, DataError> {
    expect_folder(dir)?;
    let found = Found::all(dir);
    match found.as_slice() {
        [one] => one.load(image_size),
        [] => Err(hints::unrecognised(dir)),
        several => Err(DataError::Ambiguous {
            path: dir.to_path_buf(),
            found: several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn expect_folder(dir: &Path) -> Result<(), DataError> {
    if dir.is_dir() {
        return Ok(());
    }
    let path = dir.to_path_buf();
    let advice = "name the folder that holds the data set".to_owned();
    Err(if dir.exists() { DataError::NotAFolder { path } } else { DataError::Missing { path, advice } })
}

/// A data set, recognised by the names of its files but not yet read.
struct Found {
    format: Format,
    folder: PathBuf,
}

#[derive(Clone, Copy)]
enum Format {
    Cifar(&'static cifar::Layout),
    Idx,
    Svhn,
    Pictures,
}

impl Found {
    /// Every data set in `dir`.
    fn all(dir: &Path) -> Vec<Self> {
        let cifar = cifar::LAYOUTS.iter().flat_map(|layout| {
            [dir.to_path_buf(), dir.join(layout.folder)].map(|folder| (Format::Cifar(layout), folder))
        });
        let here = |format| iter::once((format, dir.to_path_buf()));
        let idx = here(Format::Idx).chain(idx::FOLDERS.iter().map(|folder| (Format::Idx, dir.join(folder))));
        let svhn = here(Format::Svhn).chain([(Format::Svhn, dir.join("svhn"))]);
        cifar
            .chain(idx)
            .chain(svhn)
            .chain(here(Format::Pictures))
            .map(|(format, folder)| Self { format, folder })
            .filter(Self::is_there)
            .collect()
    }

    fn is_there(&self) -> bool {
        match self.format {
            Format::Cifar(layout) => layout.is_in(&self.folder),
            Format::Idx => idx::is_in(&self.folder),
            Format::Svhn => svhn::is_in(&self.folder),
            Format::Pictures => folder::is_in(&self.folder),
        }
    }

    fn load(&self, image_size: Option<u32>) -> Result<Dataset, DataError> {
        match self.format {
            Format::Pictures => folder::load(&self.folder, image_size),
            _ if image_size.is_some() => {
                Err(DataError::FixedImageSize { path: self.folder.clone(), format: self.format.name() })
            }
            Format::Cifar(layout) => layout.load(&self.folder),
            Format::Idx => idx::load(&self.folder),
            Format::Svhn => svhn::load(&self.folder),
        }
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Cifar(layout) => layout.name,
            Self::Idx => "IDX",
            Self::Svhn => "SVHN",
            Self::Pictures => "pictures",
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in `{}`", self.format.name(), self.folder.display())
    }
}

/// The names that [`load`] goes by, for the message when there is none of them.
fn looked_for() -> String {
    let cifar = cifar::LAYOUTS.map(|layout| {
        let files = layout.files().collect::<Vec<_>>().join(", ");
        format!("{files} (here or in {}, {})", layout.folder, layout.name)
    });
    let idx =
        format!("{}, each with or without .gz (here or in {}, IDX)", idx::NAMES.join(", "), idx::FOLDERS.join(", "));
    let svhn = format!("{} (here or in svhn, SVHN)", svhn::FILES.join(", "));
    let pictures = "train/CLASS/*.png, .jpg, .jpeg, .webp or .bmp, and the same classes in test/, val/, valid/ or \
                    validation/ (pictures)"
        .to_owned();
    cifar.into_iter().chain([idx, svhn, pictures]).collect::<Vec<_>>().join("; ")
}

/// The last part of a folder's path: what a data set without a name of its own is called.
fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    full.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Names for classes that have none: their labels.
fn numbered(classes: usize) -> Vec<String> {
    (0..classes).map(|class| class.to_string()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use tempfile::TempDir;

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

    #[test]
    fn moments_are_of_the_training_images_by_channel() {
        let set = Dataset {
            name: String::new(),
            classes: numbered(2),
            channels: 2,
            height: 1,
            width: 2,
            train: Split { images: vec![0, 255, 51, 51, 255, 0, 51, 51], labels: vec![0, 1] },
            test: Split { images: vec![9; 4], labels: vec![0] },
            notes: Vec::new(),
        };
        assert_eq!(set.mean_std(), MeanStd { mean: vec![0.5, 0.2], std: vec![0.5, 1.0] });
        let none = Dataset { train: Split::default(), ..set };
        assert_eq!(none.mean_std(), MeanStd { mean: vec![0.0; 2], std: vec![1.0; 2] });
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
