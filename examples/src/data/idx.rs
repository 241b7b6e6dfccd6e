//! MNIST and its kin: IDX files, plain or gzip.
//!
//! ```text
//! images: magic 0x0803, count, height, width (big-endian u32), then count x height x width bytes
//! labels: magic 0x0801, count,                                 then count bytes
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::dataset::{Dataset, Split, numbered};
use super::error::DataError;
use super::paths::folder_name;

/// The four files; each may end in `.gz`.
pub(super) const NAMES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

const CLASSES: usize = 10;
const FASHION: [&str; CLASSES] =
    ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];
/// How the training labels of Fashion-MNIST begin: nothing else tells it from others.
const FASHION_LABELS: [u32; 16] = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9];

/// How the training labels of MNIST begin.
const MNIST_LABELS: [u32; 16] = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7];

/// Folders in which the files may be, below the one that is named: those of torchvision, and of a download.
pub(super) const FOLDERS: [&str; 5] = ["raw", "MNIST/raw", "FashionMNIST/raw", "mnist", "fashion-mnist"];

pub(super) fn is_in(dir: &Path) -> bool {
    NAMES.iter().any(|name| spellings(dir, name).iter().any(|path| path.is_file()))
}

pub(super) fn load(dir: &Path) -> Result<Dataset, DataError> {
    let named = dir.parent().filter(|_| dir.ends_with("raw")).unwrap_or(dir);
    read(&folder_name(named), |name| {
        let paths = spellings(dir, name);
        let path = paths.iter().find(|path| path.is_file()).unwrap_or(&paths[1]).clone();
        if path.extension().is_some_and(|extension| extension == "gz") {
            IdxFile::open_gz(path)
        } else {
            IdxFile::open(path)
        }
    })
}

/// Reads a data set from the four files that `open` opens by their [names](NAMES).
pub(super) fn read<'a>(
    name: &str,
    open: impl Fn(&str) -> Result<IdxFile<'a>, DataError>,
) -> Result<Dataset, DataError> {
    let [train_images, train_labels, test_images, test_labels] = NAMES;
    let train = open(train_images)?.images()?;
    let train_labels = open(train_labels)?.labels_of(&train)?;
    let test = open(test_images)?.images()?;
    let test_labels = open(test_labels)?.labels_of(&test)?;
    if test.size != train.size {
        return Err(DataError::SizeMismatch {
            path: test.path,
            reference: train.path,
            expected: train.size,
            found: test.size,
            advice: "are they of the same data set?",
        });
    }
    let is_fashion = train_labels.starts_with(&FASHION_LABELS);
    let name = match is_fashion {
        true => "Fashion-MNIST",
        false if train_labels.starts_with(&MNIST_LABELS) => "MNIST",
        false => name,
    };
    Ok(Dataset {
        name: name.to_owned(),
        classes: if is_fashion { FASHION.map(str::to_owned).into() } else { numbered(CLASSES) },
        channels: 1,
        height: train.size.1 as usize,
        width: train.size.0 as usize,
        train: Split { images: train.pixels, labels: train_labels },
        test: Split { images: test.pixels, labels: test_labels },
        notes: Vec::new(),
    })
}

/// What a file may be called, plain or compressed: Kaggle's copies have `.idx` in place of `-idx`.
fn spellings(dir: &Path, name: &str) -> [PathBuf; 4] {
    let dotted = name.replacen("-idx", ".idx", 1);
    [name.to_owned(), format!("{name}.gz"), dotted.clone(), format!("{dotted}.gz")].map(|name| dir.join(name))
}

/// What a file of images holds.
struct Images {
    path: PathBuf,
    pixels: Vec<u8>,
    count: usize,
    /// Width and height.
    size: (u32, u32),
}

/// An open IDX file, of which nothing has been read.
pub(super) struct IdxFile<'a> {
    path: PathBuf,
    bytes: Box<dyn Read + 'a>,
    /// Whether a fault in the bytes is one of the compressed file.
    is_gz: bool,
}

impl<'a> IdxFile<'a> {
    fn open(path: PathBuf) -> Result<Self, DataError> {
        let bytes = Box::new(BufReader::new(open(&path)?));
        Ok(Self { path, bytes, is_gz: false })
    }

    fn open_gz(path: PathBuf) -> Result<Self, DataError> {
        let file = open(&path)?;
        Ok(Self::gz(path, file))
    }

    /// Compressed bytes; `path` is what to call them in an error.
    pub(super) fn gz(path: PathBuf, bytes: impl Read + 'a) -> Self {
        Self { path, bytes: Box::new(MultiGzDecoder::new(bytes)), is_gz: true }
    }

    fn images(mut self) -> Result<Images, DataError> {
        let [count, height, width] = self.header(0x0803, "IDX images")?;
        if count == 0 || height == 0 || width == 0 {
            return Err(DataError::ZeroSize { path: self.path, count, height, width });
        }
        let pixels = self.records(count, u64::from(height) * u64::from(width))?;
        Ok(Images { path: self.path, pixels, count: count as usize, size: (width, height) })
    }

    /// One label for each of the images.
    fn labels_of(mut self, images: &Images) -> Result<Vec<u32>, DataError> {
        let [count] = self.header(0x0801, "IDX labels")?;
        let labels = self.records(count, 1)?;
        let path = self.path;
        if let Some(record) = labels.iter().position(|&label| usize::from(label) >= CLASSES) {
            return Err(DataError::LabelOutOfRange { path, record, label: labels[record], classes: CLASSES });
        }
        if labels.len() != images.count {
            let (expected, found) = (images.count, labels.len());
            return Err(DataError::CountMismatch { images: images.path.clone(), labels: path, expected, found });
        }
        Ok(labels.into_iter().map(u32::from).collect())
    }

    /// The `N` numbers after the magic number.
    fn header<const N: usize>(&mut self, magic: u32, what: &'static str) -> Result<[u32; N], DataError> {
        let expected = 4 * (N + 1);
        let bytes = self.read_up_to(expected as u64)?;
        let mut words = bytes.as_chunks().0.iter().map(|&word| u32::from_be_bytes(word));
        if let Some(found) = words.next().filter(|&found| found != magic) {
            return Err(DataError::BadMagic { path: self.path.clone(), what, expected: magic, found });
        }
        if bytes.len() < expected {
            return Err(DataError::ShortHeader { path: self.path.clone(), expected, found: bytes.len() });
        }
        Ok(std::array::from_fn(|_| words.next().unwrap_or_default()))
    }

    /// What follows the header: `count` records of `size` bytes, and not a byte more.
    fn records(&mut self, count: u32, size: u64) -> Result<Vec<u8>, DataError> {
        let expected = u128::from(count) * u128::from(size);
        // One more than there should be: finds a surplus, and the end, where gzip has its checksum.
        let bytes = self.read_up_to(u64::try_from(expected + 1).unwrap_or(u64::MAX))?;
        let found = bytes.len() as u64;
        if u128::from(found) < expected {
            let (path, record) = (self.path.clone(), found / size);
            return Err(DataError::Truncated { path, record, expected: size, found: found % size });
        }
        if u128::from(found) > expected {
            return Err(DataError::Surplus { path: self.path.clone(), records: count });
        }
        Ok(bytes)
    }

    /// At most `limit` bytes. Memory grows with what is really there, not with what a header announces.
    fn read_up_to(&mut self, limit: u64) -> Result<Vec<u8>, DataError> {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        let mut bytes = Vec::new();
        match self.bytes.by_ref().take(limit).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) if self.is_gz && matches!(source.kind(), InvalidData | InvalidInput | UnexpectedEof) => {
                Err(DataError::CorruptGzip { path: self.path.clone(), source })
            }
            Err(source) => Err(DataError::Read { path: self.path.clone(), source }),
        }
    }
}

/// Opens a file that is not empty.
fn open(path: &Path) -> Result<File, DataError> {
    let advice = "an MNIST-like data set consists of four IDX files, each with or without .gz; download it again";
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match opened {
        Ok((0, _)) => Err(DataError::Empty { path: path.to_path_buf() }),
        Ok((_, file)) => Ok(file),
        Err(source) => Err(DataError::reading(path, advice, source)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::super::load;
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn images(count: u32, height: u32, width: u32) -> Vec<u8> {
        let mut bytes = words(&[0x803, count, height, width]);
        bytes.extend((0..count * height * width).map(|i| i as u8));
        bytes
    }

    fn labels(labels: &[u8]) -> Vec<u8> {
        let mut bytes = words(&[0x801, labels.len() as u32]);
        bytes.extend(labels);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Three training and two test images of 2 x 3; the training files are compressed.
    pub(in super::super) fn write(dir: &Path) {
        fs::write(dir.join("train-images-idx3-ubyte.gz"), gz(&images(3, 2, 3))).unwrap();
        fs::write(dir.join("train-labels-idx1-ubyte.gz"), gz(&labels(&[0, 5, 9]))).unwrap();
        fs::write(dir.join("t10k-images-idx3-ubyte"), images(2, 2, 3)).unwrap();
        fs::write(dir.join("t10k-labels-idx1-ubyte"), labels(&[1, 2])).unwrap();
    }

    /// The error that comes of one file with these bytes among sound ones.
    fn error_with(file: &str, bytes: &[u8]) -> DataError {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        fs::write(dir.path().join(file), bytes).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(error.to_string().contains(file), "{error} does not name {file}");
        error
    }

    #[test]
    fn plain_and_compressed_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("my-digits");
        fs::create_dir(&folder).unwrap();
        write(&folder);
        let set = load(&folder, None).unwrap();
        assert_eq!((set.name.as_str(), set.channels, set.height, set.width), ("my-digits", 1, 2, 3));
        assert_eq!(set.train.images, (0..18).collect::<Vec<u8>>());
        assert_eq!((set.train.labels, set.test.labels), (vec![0, 5, 9], vec![1, 2]));
        assert_eq!(set.classes.join(""), "0123456789");
    }

    #[test]
    fn fashion_mnist_is_recognized_by_its_labels() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        fs::write(dir.path().join("train-images-idx3-ubyte"), images(16, 2, 3)).unwrap();
        fs::write(dir.path().join("train-labels-idx1-ubyte"), labels(&FASHION_LABELS.map(|l| l as u8))).unwrap();
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.name.as_str(), set.classes[9].as_str()), ("Fashion-MNIST", "ankle boot"));
        fs::write(dir.path().join("train-labels-idx1-ubyte"), labels(&MNIST_LABELS.map(|l| l as u8))).unwrap();
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.name.as_str(), set.classes[9].as_str()), ("MNIST", "9"));
    }

    #[test]
    fn the_folders_of_torchvision_and_of_downloads_are_found() {
        for inner in FOLDERS {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("digits").join(inner);
            fs::create_dir_all(&folder).unwrap();
            write(&folder);
            let set = load(&dir.path().join("digits"), None).unwrap();
            let name = inner.strip_suffix("/raw").unwrap_or(if inner == "raw" { "digits" } else { inner });
            assert_eq!((set.name.as_str(), set.train.len()), (name, 3));
        }
        let dir = tempfile::tempdir().unwrap();
        for inner in ["MNIST/raw", "FashionMNIST/raw"] {
            fs::create_dir_all(dir.path().join(inner)).unwrap();
            write(&dir.path().join(inner));
        }
        let error = load(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("MNIST/raw`, IDX in `"), "{error}");
    }

    #[test]
    fn the_spelling_of_kaggle_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        for name in ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
            fs::rename(dir.path().join(name), dir.path().join(name.replace("-idx", ".idx"))).unwrap();
        }
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.train.labels, set.test.labels), (vec![0, 5, 9], vec![1, 2]));
    }

    #[test]
    fn a_missing_file_is_named() {
        for name in ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte"] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path());
            fs::remove_file(dir.path().join(name)).unwrap();
            let error = load(dir.path(), None).unwrap_err();
            assert!(matches!(error, DataError::Missing { .. }) && error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_wrong_magic_number_is_shown() {
        let error = error_with("t10k-labels-idx1-ubyte", &images(2, 2, 3));
        assert!(error.to_string().contains("begins with 0x00000803, expected the magic number 0x00000801"), "{error}");
        let error = error_with("train-images-idx3-ubyte", &gz(&images(3, 2, 3)));
        assert!(matches!(error, DataError::BadMagic { expected: 0x803, .. }), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        for name in ["t10k-labels-idx1-ubyte", "train-images-idx3-ubyte.gz"] {
            assert!(matches!(error_with(name, &[]), DataError::Empty { .. }));
        }
    }

    #[test]
    fn a_short_header_is_refused() {
        let error = error_with("t10k-images-idx3-ubyte", &images(2, 2, 3)[..15]);
        assert!(matches!(error, DataError::ShortHeader { expected: 16, found: 15, .. }), "{error}");
        let error = error_with("train-labels-idx1-ubyte", &[0, 0]);
        assert!(matches!(error, DataError::ShortHeader { expected: 8, found: 2, .. }), "{error}");
    }

    #[test]
    fn a_truncated_record_is_named() {
        let error = error_with("t10k-images-idx3-ubyte", &images(2, 2, 3)[..16 + 6 + 2]);
        assert!(matches!(error, DataError::Truncated { record: 1, expected: 6, found: 2, .. }), "{error}");
        let error = error_with("t10k-labels-idx1-ubyte", &labels(&[1, 2])[..9]);
        assert!(matches!(error, DataError::Truncated { record: 1, expected: 1, found: 0, .. }), "{error}");
    }

    #[test]
    fn bytes_after_the_last_record_are_refused() {
        let mut bytes = images(2, 2, 3);
        bytes.push(0);
        assert!(matches!(error_with("t10k-images-idx3-ubyte", &bytes), DataError::Surplus { records: 2, .. }));
    }

    #[test]
    fn a_huge_header_costs_no_memory() {
        let huge = words(&[0x803, u32::MAX, u32::MAX, u32::MAX]);
        let error = error_with("t10k-images-idx3-ubyte", &huge);
        assert!(matches!(error, DataError::Truncated { record: 0, found: 0, .. }), "{error}");
        let error = error_with("train-images-idx3-ubyte.gz", &gz(&huge));
        assert!(matches!(error, DataError::Truncated { record: 0, found: 0, .. }), "{error}");
    }

    #[test]
    fn images_of_no_size_are_refused() {
        for (count, height, width) in [(0, 2, 3), (2, 0, 3), (2, 2, 0)] {
            let error = error_with("t10k-images-idx3-ubyte", &images(count, height, width));
            assert!(matches!(error, DataError::ZeroSize { .. }), "{error}");
        }
    }

    #[test]
    fn a_label_out_of_range_is_named() {
        let error = error_with("t10k-labels-idx1-ubyte", &labels(&[9, 10]));
        assert!(error.to_string().ends_with("record 1: found label 10, expected 0 to 9"), "{error}");
    }

    #[test]
    fn every_image_has_one_label() {
        let error = error_with("t10k-labels-idx1-ubyte", &labels(&[1, 2, 3]));
        assert!(matches!(error, DataError::CountMismatch { expected: 2, found: 3, .. }), "{error}");
    }

    #[test]
    fn training_and_test_images_have_one_size() {
        let error = error_with("t10k-images-idx3-ubyte", &images(2, 3, 3));
        assert!(matches!(error, DataError::SizeMismatch { expected: (3, 2), found: (3, 3), .. }), "{error}");
    }

    #[test]
    fn a_corrupt_gzip_file_is_refused() {
        let sound = gz(&images(3, 2, 3));
        let mut flipped = sound.clone();
        flipped[sound.len() - 6] ^= 1; // in the checksum, behind the last record
        for bytes in [&sound[..sound.len() - 3], &flipped, b"no gzip file"] {
            let error = error_with("train-images-idx3-ubyte.gz", bytes);
            assert!(matches!(error, DataError::CorruptGzip { .. }), "{error}");
        }
    }
}
