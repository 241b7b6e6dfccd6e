//! SVHN's cropped digits (format 2): two MATLAB files of version 5.
//!
//! ```text
//! header:  116 bytes of text, 8 unused, version 0x0100, "IM" for little-endian
//! element: type and length (two u32), then so many bytes; or, with up to 4 bytes: length and type (two u16), 4 bytes
//! matrix:  type 14, of elements: flags (its class is the first byte), dimensions, name, values; each padded to 8 bytes
//! matrices may be compressed: type 15, a zlib stream of one element
//!
//! X: bytes, 32 x 32 x 3 x n, the first index varies fastest        y: n labels, 1 to 10, where 10 is the digit 0
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::ZlibDecoder;

use super::dataset::{Dataset, Split, numbered};
use super::error::DataError;

/// The training file and the test file.
pub(super) const FILES: [&str; 2] = ["train_32x32.mat", "test_32x32.mat"];

/// Further training images, which are not read: a deviation from Table 5 of the paper (`paper list --deviations`).
const EXTRA: &str = "extra_32x32.mat";

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// More than the largest file has (531,131): a bound for damaged files.
const MOST: u32 = 1 << 20;

pub(super) fn is_in(dir: &Path) -> bool {
    FILES.iter().any(|file| dir.join(file).is_file())
}

pub(super) fn load(dir: &Path) -> Result<Dataset, DataError> {
    let [train, test] = FILES.map(|file| dir.join(file));
    let (train, test, extra) = (read(&train)?, read(&test)?, dir.join(EXTRA));
    let notes =
        if extra.is_file() { vec![format!("skipped `{}`: it is not trained on", extra.display())] } else { vec![] };
    Ok(Dataset {
        name: "SVHN".to_owned(),
        classes: numbered(10),
        channels: 3,
        height: SIDE,
        width: SIDE,
        train,
        test,
        notes,
    })
}

fn read(path: &Path) -> Result<Split, DataError> {
    let advice = "SVHN consists of train_32x32.mat and test_32x32.mat; get them with `cifar --download svhn`";
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = opened.map_err(|source| DataError::reading(path, advice, source))?;
    if length == 0 {
        return Err(DataError::Empty { path: path.to_path_buf() });
    }
    parse(&mut BufReader::new(file), length).map_err(|fault| fault.of(path))
}

/// What is wrong with a file.
enum Fault {
    System(io::Error),
    Content(String),
}

impl Fault {
    fn of(self, path: &Path) -> DataError {
        let path = path.to_path_buf();
        match self {
            Self::System(source) => DataError::Read { path, source },
            Self::Content(problem) => DataError::Matlab { path, problem },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.kind() {
            UnexpectedEof => Self::Content("it is cut off".to_owned()),
            InvalidData | InvalidInput => Self::Content(format!("it does not decompress ({error})")),
            _ => Self::System(error),
        }
    }
}

fn fault<T>(problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Content(problem.into()))
}

fn parse(file: &mut (impl Read + Seek), length: u64) -> Result<Split, Fault> {
    let mut header = [0; 128];
    file.read_exact(&mut header)?;
    match header[124..] {
        [0, 1, b'I', b'M'] => (),
        [0, 2, b'I', b'M'] => return fault("it has version 7.3, expected version 5: save it with `-v7`"),
        [.., b'M', b'I'] => return fault("it is big-endian, expected little-endian"),
        _ => return fault("its header is not that of a MATLAB file of version 5"),
    }
    let (mut images, mut labels) = (None, None);
    let mut at = header.len() as u64;
    while at < length {
        file.seek(SeekFrom::Start(at))?;
        let [kind, size] = words(file)?;
        let end = at + 8 + u64::from(size);
        if end > length {
            return fault(format!("it is cut off: it has {length} bytes, expected at least {end}"));
        }
        let mut body = file.by_ref().take(u64::from(size));
        let matrix = match kind {
            COMPRESSED => {
                let mut body = ZlibDecoder::new(body);
                let [kind, size] = words(&mut body)?;
                if kind != MATRIX {
                    return fault(format!("the element at byte {at} has type {kind}, expected {MATRIX}, a matrix"));
                }
                Matrix::read(&mut body, size)?
            }
            MATRIX => Matrix::read(&mut body, size)?,
            _ => None,
        };
        match matrix {
            Some(Matrix::Images(x)) => images = Some(x),
            Some(Matrix::Labels(y)) => labels = Some(y),
            None => (),
        }
        at = end;
    }
    match (images, labels) {
        (Some(images), Some(labels)) if images.len() == labels.len() * PIXELS => Ok(Split { images, labels }),
        (Some(images), Some(labels)) => {
            fault(format!("it has {} labels, expected {}, one for each image", labels.len(), images.len() / PIXELS))
        }
        (None, _) => fault("it has no matrix `X`, expected the images"),
        (_, None) => fault("it has no matrix `y`, expected the labels"),
    }
}

/// Types of elements.
const BYTES: u32 = 2;
const DOUBLES: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Classes of matrices.
const CLASS_DOUBLE: u8 = 6;
const CLASS_BYTE: u8 = 9;

/// A matrix of a name that is read.
enum Matrix {
    Images(Vec<u8>),
    Labels(Vec<u32>),
}

impl Matrix {
    /// None if it has another name.
    fn read(from: &mut impl Read, size: u32) -> Result<Option<Self>, Fault> {
        let mut body = from.by_ref().take(size.into());
        let Element { bytes: flags, .. } = Element::read(&mut body, 8)?;
        let Element { bytes: dimensions, .. } = Element::read(&mut body, 4 * 8)?;
        let Element { bytes: name, .. } = Element::read(&mut body, 64)?;
        let class = flags.first().copied().unwrap_or_default();
        let dimensions: Vec<_> = dimensions.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let matrix = match name.as_slice() {
            b"X" => Self::images(&mut body, class, &dimensions)?,
            b"y" => Self::labels(&mut body, class, &dimensions)?,
            _ => return Ok(None),
        };
        if io::copy(&mut body, &mut io::sink())? > 0 {
            return fault(format!("matrix `{}` continues after its values", String::from_utf8_lossy(&name)));
        }
        // Also where the checksum of a compressed matrix is compared.
        if from.read(&mut [0])? > 0 {
            return fault(format!("more follows matrix `{}` in its element", String::from_utf8_lossy(&name)));
        }
        Ok(Some(matrix))
    }

    fn images(body: &mut impl Read, class: u8, dimensions: &[u32]) -> Result<Self, Fault> {
        let count = match *dimensions {
            [32, 32, 3, count] if (1..=MOST).contains(&count) => count,
            // MATLAB drops a last dimension of 1.
            [32, 32, 3] => 1,
            _ => {
                return fault(format!(
                    "`X` has dimensions {dimensions:?}, expected [32, 32, 3, n] with n from 1 to {MOST}"
                ));
            }
        };
        let expected = u64::from(count) * PIXELS as u64;
        let Element { kind, mut bytes } = Element::read(body, expected)?;
        if (class, kind) != (CLASS_BYTE, BYTES) || bytes.len() as u64 != expected {
            return fault(format!(
                "`X` has {} bytes of class {class} and type {kind}, expected {expected} of class {CLASS_BYTE} and type {BYTES}",
                bytes.len()
            ));
        }
        for plane in bytes.chunks_exact_mut(SIDE * SIDE) {
            for (y, x) in (0..SIDE).flat_map(|y| (0..y).map(move |x| (y, x))) {
                plane.swap(y * SIDE + x, x * SIDE + y);
            }
        }
        Ok(Self::Images(bytes))
    }

    fn labels(body: &mut impl Read, class: u8, dimensions: &[u32]) -> Result<Self, Fault> {
        let ([count, 1] | [1, count]) = *dimensions else {
            return fault(format!("`y` has dimensions {dimensions:?}, expected [n, 1]"));
        };
        if count > MOST {
            return fault(format!("`y` has {count} labels, expected at most {MOST}"));
        }
        let Element { kind, bytes } = Element::read(body, 8 * u64::from(count))?;
        // Doubles that are small integers are stored as bytes.
        let values: Vec<f64> = match (class, kind) {
            (CLASS_BYTE | CLASS_DOUBLE, BYTES) => bytes.iter().map(|&label| label.into()).collect(),
            (CLASS_DOUBLE, DOUBLES) => bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
            _ => return fault(format!("`y` is of class {class} and type {kind}, expected bytes or doubles")),
        };
        if values.len() != count as usize {
            return fault(format!("`y` has {} values, expected {count}", values.len()));
        }
        let label = |(record, value): (usize, f64)| {
            let label = (1..=10).find(|&label| f64::from(label) == value);
            let label = label.ok_or_else(|| {
                Fault::Content(format!("record {record} has label {value}, expected 1 to 10, where 10 is the digit 0"))
            });
            label.map(|label: u32| label % 10)
        };
        Ok(Self::Labels(values.into_iter().enumerate().map(label).collect::<Result<_, _>>()?))
    }
}

/// A part of a matrix.
struct Element {
    kind: u32,
    bytes: Vec<u8>,
}

impl Element {
    /// Reads one of at most so many bytes. Memory grows with what is really there, not with what a header announces.
    fn read(from: &mut impl Read, most: u64) -> Result<Self, Fault> {
        let [first] = words(from)?;
        let (kind, size, room) = match (first & 0xffff, first >> 16) {
            (_, 0) => {
                let [size] = words(from)?;
                (first, u64::from(size), u64::from(size).next_multiple_of(8))
            }
            (kind, size) => (kind, u64::from(size), 4),
        };
        if size > most || size > room {
            return fault(format!("it has an element of {size} bytes, expected at most {most}"));
        }
        let mut bytes = Vec::new();
        from.take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        io::copy(&mut from.take(room - size), &mut io::sink())?;
        Ok(Self { kind, bytes })
    }
}

fn words<const N: usize>(from: &mut impl Read) -> Result<[u32; N], Fault> {
    let mut words = [0; N];
    for word in &mut words {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        *word = u32::from_le_bytes(bytes);
    }
    Ok(words)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};

    use super::super::load;
    use super::*;

    fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
        let size = bytes.len() as u32;
        let mut element = match bytes.len() {
            1..=4 => (kind | size << 16).to_le_bytes().to_vec(),
            _ => [kind.to_le_bytes(), size.to_le_bytes()].concat(),
        };
        element.extend(bytes);
        element.resize(element.len().next_multiple_of(8), 0);
        element
    }

    fn matrix(name: &str, class: u8, dimensions: &[u32], kind: u32, values: &[u8]) -> Vec<u8> {
        let dimensions: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
        let parts = [
            element(6, &[class, 0, 0, 0, 0, 0, 0, 0]),
            element(5, &dimensions),
            element(1, name.as_bytes()),
            element(kind, values),
        ];
        element(MATRIX, &parts.concat())
    }

    fn compressed(matrix: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(matrix).unwrap();
        let bytes = encoder.finish().unwrap();
        [&COMPRESSED.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), &bytes].concat()
    }

    fn file(elements: &[Vec<u8>]) -> Vec<u8> {
        let mut file = b"MATLAB 5.0 MAT-file".to_vec();
        file.resize(124, b' ');
        file.extend([0, 1, b'I', b'M']);
        file.extend(elements.concat());
        file
    }

    /// Images whose first row counts from the record's number, one row for each channel.
    fn images(count: usize) -> Vec<u8> {
        let pixel = |record: usize, channel: usize, x: usize, y: usize| (100 * channel + record + x + 40 * y) as u8;
        let places = (0..count).flat_map(|record| (0..3).map(move |channel| (record, channel)));
        let columns = places.flat_map(|(record, channel)| (0..SIDE).map(move |x| (record, channel, x)));
        columns.flat_map(|(record, channel, x)| (0..SIDE).map(move |y| pixel(record, channel, x, y))).collect()
    }

    fn x(count: usize) -> Vec<u8> {
        matrix("X", CLASS_BYTE, &[32, 32, 3, count as u32], BYTES, &images(count))
    }

    fn y(labels: &[u8]) -> Vec<u8> {
        matrix("y", CLASS_BYTE, &[labels.len() as u32, 1], BYTES, labels)
    }

    /// Five training images and two test images; the former are compressed.
    pub(in super::super) fn write(dir: &Path) {
        let train = file(&[compressed(&x(5)), compressed(&y(&[1, 9, 10, 2, 3]))]);
        fs::write(dir.join(FILES[0]), train).unwrap();
        fs::write(dir.join(FILES[1]), file(&[x(2), y(&[10, 4])])).unwrap();
    }

    /// The error for a test file with these bytes.
    fn problem(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        fs::write(dir.path().join(FILES[1]), bytes).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(&error, DataError::Matlab { path, .. } if path.ends_with(FILES[1])), "{error}");
        error.to_string()
    }

    #[test]
    fn plain_and_compressed_matrices_are_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        fs::write(dir.path().join(EXTRA), "more").unwrap();
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.name.as_str(), set.channels, set.height, set.width), ("SVHN", 3, 32, 32));
        assert_eq!((set.train.labels, set.test.labels), (vec![1, 9, 0, 2, 3], vec![0, 4]));
        assert_eq!(set.train.images.len(), 5 * PIXELS);
        assert_eq!(set.test.images, set.train.images[..2 * PIXELS]);
        let second = &set.test.images[PIXELS..];
        assert_eq!((second[0], second[1], second[32], second[1024], second[2048 + 1]), (1, 2, 41, 101, 202));
        assert!(set.notes.len() == 1 && set.notes[0].contains(EXTRA), "{:?}", set.notes);
    }

    #[test]
    fn labels_may_be_doubles_and_other_matrices_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let labels: Vec<u8> = [7.0f64, 10.0].iter().flat_map(|label| label.to_le_bytes()).collect();
        let other = matrix("note", 4, &[1, 40], 4, &[7; 80]);
        let y = matrix("y", CLASS_DOUBLE, &[1, 2], DOUBLES, &labels);
        fs::write(dir.path().join(FILES[1]), file(&[compressed(&other), other, y, x(2)])).unwrap();
        assert_eq!(load(dir.path(), None).unwrap().test.labels, [7, 0]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        fs::remove_file(dir.path().join(FILES[0])).unwrap();
        let error = load(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("train_32x32.mat` is missing: SVHN consists of"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut hdf5 = file(&[]);
        hdf5[125] = 2;
        let mut damaged = file(&[compressed(&x(2)), y(&[1, 2])]);
        let end = 128 + compressed(&x(2)).len();
        damaged[end - 1] ^= 1; // in the checksum
        let sound = file(&[x(2), y(&[1, 2])]);
        let cases: [(&[u8], &str); 14] = [
            (&sound[..100], "it is cut off"),
            (&sound[..sound.len() - 1], "it is cut off: it has"),
            (&sound[..128 + 4], "it is cut off"),
            (&[b'x'; 200], "its header is not that"),
            (&hdf5, "it has version 7.3"),
            (&damaged, "it does not decompress"),
            (&file(&[x(2)]), "it has no matrix `y`"),
            (&file(&[y(&[1, 2])]), "it has no matrix `X`"),
            (&file(&[x(2), y(&[1, 2, 3])]), "it has 3 labels, expected 2"),
            (&file(&[x(2), y(&[1, 11])]), "record 1 has label 11, expected 1 to 10"),
            (&file(&[x(2), y(&[0, 1])]), "record 0 has label 0, expected 1 to 10"),
            (
                &file(&[matrix("X", CLASS_BYTE, &[32, 32, 1, 2], BYTES, &[0; 2048])]),
                "`X` has dimensions [32, 32, 1, 2]",
            ),
            (&file(&[matrix("X", CLASS_BYTE, &[32, 32, 3, 2], BYTES, &[0; 3072])]), "`X` has 3072 bytes"),
            (&file(&[matrix("X", CLASS_DOUBLE, &[32, 32, 3, 1], BYTES, &[0; 3072])]), "`X` has 3072 bytes of class 6"),
        ];
        for (bytes, expected) in cases {
            let problem = problem(bytes);
            let expected = format!("is not a MATLAB file of SVHN: {expected}");
            assert!(problem.contains(&expected), "{problem}: expected {expected}");
        }
    }

    #[test]
    fn a_huge_header_costs_no_memory() {
        let mut huge = matrix("X", CLASS_BYTE, &[32, 32, 3, MOST], BYTES, &[0; 8]);
        let size = huge.len() - 8 - 4;
        huge[size..size + 4].copy_from_slice(&(MOST * 3072).wrapping_sub(1).to_le_bytes());
        assert!(problem(&file(&[huge])).contains("cut off"));
        assert!(problem(&file(&[matrix("X", CLASS_BYTE, &[32, 32, 3, u32::MAX], BYTES, &[])])).contains("dimensions"));
    }
}
