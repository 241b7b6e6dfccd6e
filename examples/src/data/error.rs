//! The errors of data sets.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a data set could not be read, downloaded or changed.
///
/// The message names the file, the record (counted from 0), what was expected and what was found, and what to do. An
/// underlying error is the [`source`](std::error::Error::source), not a part of the message: print the chain.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or a folder that the format needs is not there.
    #[error("`{path}` is missing: {advice}")]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What to do about it.
        advice: String,
    },

    /// The path of the data set is not a folder.
    #[error("`{path}` is not a folder: name the folder that holds the data set")]
    NotAFolder {
        /// What was named.
        path: PathBuf,
    },

    /// The operating system would not read a file or a folder.
    #[error("cannot read `{path}`: check its permissions and the disk")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// No format was recognized.
    #[error("found no data set in `{path}`: {hint}looked for {looked_for}")]
    Unrecognized {
        /// The folder that was searched.
        path: PathBuf,
        /// What is probably wrong and what to do, and a semicolon; empty if nothing is known.
        hint: String,
        /// The files and folders of the known formats.
        looked_for: String,
    },

    /// More than one data set was recognized.
    #[error("`{path}` holds more than one data set ({found}): name the folder of one of them, or move the others away")]
    Ambiguous {
        /// The folder that was searched.
        path: PathBuf,
        /// Every data set in it, with its folder.
        found: String,
    },

    /// A file of length zero.
    #[error("`{path}` is empty: download or copy it again")]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// A file ends within its header.
    #[error("`{path}` is cut off: found {found} of the {expected} bytes of its header; download or copy it again")]
    ShortHeader {
        /// The file.
        path: PathBuf,
        /// Length of the header in bytes.
        expected: usize,
        /// Bytes found.
        found: usize,
    },

    /// A file ends within a record.
    #[error("`{path}` is cut off: found {found} of the {expected} bytes of record {record}; download or copy it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The incomplete record, counted from 0.
        record: u64,
        /// Length of a record in bytes.
        expected: u64,
        /// Bytes found of this one.
        found: u64,
    },

    /// A file continues after the last record that its header announces.
    #[error("`{path}` continues after the {records} records that its header announces; download or copy it again")]
    Surplus {
        /// The file.
        path: PathBuf,
        /// Records announced.
        records: u32,
    },

    /// An IDX file has another magic number.
    #[error(
        "`{path}` begins with {found:#010x}, expected the magic number {expected:#010x} of {what}: is it another file?"
    )]
    BadMagic {
        /// The file.
        path: PathBuf,
        /// What such a file holds.
        what: &'static str,
        /// The magic number of such a file.
        expected: u32,
        /// The first four bytes, big-endian.
        found: u32,
    },

    /// A header announces no images, or images without pixels.
    #[error("`{path}` announces {count} records of {height} x {width} values, expected at least one of each")]
    ZeroSize {
        /// The file.
        path: PathBuf,
        /// Records.
        count: u32,
        /// Rows of an image.
        height: u32,
        /// Columns of an image.
        width: u32,
    },

    /// A text without a window to train on and one to test on.
    #[error(
        "the text {name} has {found} bytes: expected more than `length`, {length}, both in the last tenth, which is tested on, and before"
    )]
    ShortText {
        /// The text.
        name: String,
        /// Its bytes.
        found: usize,
        /// Bytes of a window.
        length: usize,
    },

    /// An invalid file of SVHN.
    #[error("`{path}` is not a MATLAB file of SVHN: {problem}; get it again with `cifar --download svhn`")]
    Matlab {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A compressed file does not decompress.
    #[error("`{path}` is no sound gzip file: download or copy it again")]
    CorruptGzip {
        /// The file.
        path: PathBuf,
        /// The decompressor's reason.
        source: io::Error,
    },

    /// An out-of-range label.
    #[error("`{path}`, record {record}: found label {label}, expected 0 to {}", .classes - 1)]
    LabelOutOfRange {
        /// The file.
        path: PathBuf,
        /// The record, counted from 0.
        record: usize,
        /// The label.
        label: u8,
        /// How many classes there are.
        classes: usize,
    },

    /// There are more or fewer labels than images.
    #[error("`{labels}` has {found} labels, expected {expected}, one for each image of `{images}`")]
    CountMismatch {
        /// The file of images.
        images: PathBuf,
        /// The file of labels.
        labels: PathBuf,
        /// How many images there are.
        expected: usize,
        /// How many labels there are.
        found: usize,
    },

    /// Two images, or two files of images, differ in size.
    #[error(
        "`{path}` is {} x {} (width x height), expected {} x {} as in `{reference}`: {advice}",
        .found.0, .found.1, .expected.0, .expected.1
    )]
    SizeMismatch {
        /// The file.
        path: PathBuf,
        /// The file whose size it should have.
        reference: PathBuf,
        /// Width and height of the reference, in pixels.
        expected: (u32, u32),
        /// Width and height of this one, in pixels.
        found: (u32, u32),
        /// What to do about it.
        advice: &'static str,
    },

    /// A file of class names has too many or too few.
    #[error("`{path}` names {found} classes, expected {expected}, one a line")]
    ClassNames {
        /// The file.
        path: PathBuf,
        /// How many classes the data set has.
        expected: usize,
        /// How many lines are not blank.
        found: usize,
    },

    /// A folder of pictures has fewer than two classes.
    #[error(
        "`{path}` holds {found} classes{}, expected at least 2: make a folder for each class in it",
        if .skipped.is_empty() { String::new() } else { format!(" (found {})", .skipped) }
    )]
    TooFewClasses {
        /// The folder.
        path: PathBuf,
        /// How many class folders it has.
        found: usize,
        /// What else it holds; empty if it holds nothing.
        skipped: String,
    },

    /// A class occurs in one half of a folder of pictures only.
    #[error("class `{class}` is in `{present}` but not in `{absent}`: add it there, or remove it here")]
    ClassMissing {
        /// The class.
        class: String,
        /// The folder that has it.
        present: PathBuf,
        /// The folder that has not.
        absent: PathBuf,
    },

    /// A class without pictures.
    #[error(
        "`{path}` holds no pictures{}, expected .png, .jpg, .jpeg, .webp or .bmp files: add some, or remove the folder",
        if .skipped.is_empty() { String::new() } else { format!(" (found {})", .skipped) }
    )]
    NoPictures {
        /// The folder of the class.
        path: PathBuf,
        /// What it holds instead; empty if it holds nothing.
        skipped: String,
    },

    /// A picture that does not decode.
    #[error("`{path}` is not a valid PNG, JPEG, WebP or BMP picture: replace or remove it")]
    Picture {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        source: image::ImageError,
    },

    /// An image size that is out of range.
    #[error("image size {size} is out of range: choose 1 to {max}")]
    ImageSize {
        /// The size asked for, in pixels.
        size: u32,
        /// The largest one allowed.
        max: u32,
    },

    /// An image size was asked for where it is fixed.
    #[error("`{path}` holds {format} images, whose size is fixed: leave out --image-size")]
    FixedImageSize {
        /// The folder.
        path: PathBuf,
        /// The format found there.
        format: &'static str,
    },

    /// A noise rate outside of 0 to 1.
    #[error("noise rate {rate} is out of range: choose 0 to 1")]
    NoiseRate {
        /// The rate asked for.
        rate: f64,
    },

    /// Label noise needs another class to choose.
    #[error("label noise needs at least 2 classes, found {classes}")]
    NoiseClasses {
        /// How many classes there are.
        classes: usize,
    },

    /// The file of certificates that the user names holds none.
    #[error(
        "SSL_CERT_FILE is `{path}`, where no certificate was found: name a file of certificates (PEM), or unset it"
    )]
    Certificates {
        /// The file.
        path: PathBuf,
        /// The reason, if the file cannot be read.
        source: Option<rustls_native_certs::Error>,
    },

    /// A download failed to start, or was interrupted.
    #[error("cannot download {url}: check the network and try again")]
    Network {
        /// Where from.
        url: String,
        /// The network's reason.
        source: Box<ureq::Error>,
    },

    /// A download of the wrong length.
    #[error(
        "{url} has {} bytes, expected {expected}: the file there has changed or was cut off; try again later",
        if .found > .expected { format!("more than {}", .expected) } else { .found.to_string() }
    )]
    DownloadSize {
        /// Where from.
        url: String,
        /// The right length in bytes.
        expected: u64,
        /// Bytes received; reading stops after the first one too many.
        found: u64,
    },

    /// A download of the right length with the wrong content.
    #[error("{url} has SHA-256 {found}, expected {expected}: the file there has changed or was damaged on the way")]
    DownloadHash {
        /// Where from.
        url: String,
        /// The right hash, hexadecimal.
        expected: String,
        /// The hash of what was received, hexadecimal.
        found: String,
    },

    /// A file or a folder could not be written.
    #[error("cannot write to `{path}`: check its permissions and the free space")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// An archive could not be unpacked.
    #[error("cannot unpack {url} in `{path}`: check the free space")]
    Unpack {
        /// Where the archive is from.
        url: String,
        /// The folder it was unpacked in.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// An archive holds something that does not belong in its folder.
    #[error("{url} holds `{entry}`, expected plain files and folders in `{folder}` only: nothing was put in place")]
    ForeignEntry {
        /// Where the archive is from.
        url: String,
        /// The path of the entry.
        entry: PathBuf,
        /// The folder that everything should be in.
        folder: String,
    },

    /// A downloaded data set lacks a file, or has one of the wrong length.
    #[error(
        "`{path}` has {} bytes, expected {expected}: remove its folder and download again",
        .found.map_or("no".to_owned(), |bytes| bytes.to_string())
    )]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Its right length in bytes.
        expected: u64,
        /// Its length in bytes, if it is there.
        found: Option<u64>,
    },
}

impl DataError {
    /// A failure to read `path`; `advice` is for the case that there is no such thing.
    pub(super) fn reading(path: &Path, advice: &str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path, advice: advice.to_owned() },
            _ => Self::Read { path, source },
        }
    }

    /// A failure to write to `path`.
    pub(super) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::Write { path, source }
    }
}
