//! CIFAR-10 and CIFAR-100 in their binary format: records of one or two label bytes and 3,072 pixel bytes.

use std::fs;
use std::path::Path;

use super::dataset::{Dataset, Split, numbered};
use super::error::DataError;

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// The files of one of the two sets.
pub(super) struct Layout {
    pub(super) name: &'static str,
    /// The folder that the official archive unpacks to.
    pub(super) folder: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// The file with the names of the classes, one a line; not needed.
    class_names: &'static str,
    classes: usize,
    /// The label is the last of these bytes: CIFAR-100 has the superclass before it.
    label_bytes: usize,
}

pub(super) const LAYOUTS: [&Layout; 2] = [&CIFAR_10, &CIFAR_100];

static CIFAR_10: Layout = Layout {
    name: "CIFAR-10",
    folder: "cifar-10-batches-bin",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
    class_names: "batches.meta.txt",
    classes: 10,
    label_bytes: 1,
};

static CIFAR_100: Layout = Layout {
    name: "CIFAR-100",
    folder: "cifar-100-binary",
    train: &["train.bin"],
    test: &["test.bin"],
    class_names: "fine_label_names.txt",
    classes: 100,
    label_bytes: 2,
};

impl Layout {
    /// The files of images, training files first.
    pub(super) fn files(&self) -> impl Iterator<Item = &'static str> {
        self.train.iter().chain(self.test).copied()
    }

    pub(super) fn is_in(&self, folder: &Path) -> bool {
        self.files().any(|file| folder.join(file).is_file())
    }

    pub(super) fn load(&self, folder: &Path) -> Result<Dataset, DataError> {
        Ok(Dataset {
            name: self.name.to_owned(),
            classes: self.class_names(folder)?,
            channels: 3,
            height: SIDE,
            width: SIDE,
            train: self.split(folder, self.train)?,
            test: self.split(folder, self.test)?,
            notes: Vec::new(),
        })
    }

    fn split(&self, folder: &Path, files: &[&str]) -> Result<Split, DataError> {
        let mut split = Split::default();
        for file in files {
            self.append(&folder.join(file), &mut split)?;
        }
        Ok(split)
    }

    /// Reads the records of one file.
    fn append(&self, path: &Path, split: &mut Split) -> Result<(), DataError> {
        let bytes = self.read(path)?;
        let size = self.label_bytes + PIXELS;
        let records = bytes.chunks_exact(size);
        if bytes.is_empty() {
            return Err(DataError::Empty { path: path.to_path_buf() });
        }
        if !records.remainder().is_empty() {
            return Err(DataError::Truncated {
                path: path.to_path_buf(),
                record: records.len() as u64,
                expected: size as u64,
                found: records.remainder().len() as u64,
            });
        }
        split.images.reserve_exact(records.len() * PIXELS);
        for (record, bytes) in records.enumerate() {
            let (labels, pixels) = bytes.split_at(self.label_bytes);
            let label = labels[self.label_bytes - 1];
            if usize::from(label) >= self.classes {
                let (path, classes) = (path.to_path_buf(), self.classes);
                return Err(DataError::LabelOutOfRange { path, record, label, classes });
            }
            split.labels.push(label.into());
            split.images.extend_from_slice(pixels);
        }
        Ok(())
    }

    /// The names in the set's own file; without one, the numbers.
    fn class_names(&self, folder: &Path) -> Result<Vec<String>, DataError> {
        let path = folder.join(self.class_names);
        if !path.exists() {
            return Ok(numbered(self.classes));
        }
        let text = self.read(&path)?;
        let names = String::from_utf8_lossy(&text);
        let names: Vec<String> = names.lines().map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect();
        if names.len() != self.classes {
            return Err(DataError::ClassNames { path, expected: self.classes, found: names.len() });
        }
        Ok(names)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let advice = || {
            let files = self.files().collect::<Vec<_>>().join(", ");
            format!("{} consists of {files}; unpack or download it again", self.name)
        };
        fs::read(path).map_err(|source| DataError::reading(path, &advice(), source))
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::Path;

    use super::super::load;
    use super::*;

    /// Records whose pixels identify channel and record.
    fn records(layout: &Layout, labels: &[u8]) -> Vec<u8> {
        let record = |(number, &label): (usize, &u8)| {
            let mut bytes = vec![7; layout.label_bytes - 1];
            bytes.push(label);
            bytes.extend((0..PIXELS).map(|i| (number + 100 * (i / (SIDE * SIDE))) as u8));
            bytes
        };
        labels.iter().enumerate().flat_map(record).collect()
    }

    /// Every file of the set, with two records each.
    pub(in super::super) fn write(layout: &Layout, folder: &Path) {
        for file in layout.files() {
            fs::write(folder.join(file), records(layout, &[3, 9])).unwrap();
        }
    }

    fn small(layout: &Layout) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(layout, dir.path());
        dir
    }

    #[test]
    fn cifar_10_is_five_files_of_planes() {
        let dir = small(&CIFAR_10);
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.name.as_str(), set.channels, set.height, set.width), ("CIFAR-10", 3, 32, 32));
        assert_eq!(set.train.labels, [3, 9, 3, 9, 3, 9, 3, 9, 3, 9]);
        assert_eq!(set.test.labels, [3, 9]);
        assert_eq!(set.train.images.len(), 10 * set.image_len());
        let second = &set.test.images[PIXELS..];
        assert_eq!((second[0], second[1024], second[3071]), (1, 101, 201));
        assert_eq!(set.classes[9], "9");
    }

    #[test]
    fn the_fine_label_of_cifar_100_counts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cifar-100-binary");
        fs::create_dir(&folder).unwrap();
        write(&CIFAR_100, &folder);
        fs::write(folder.join("train.bin"), records(&CIFAR_100, &[99])).unwrap();
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.name.as_str(), set.classes.len()), ("CIFAR-100", 100));
        assert_eq!((set.train.labels, set.test.labels), (vec![99], vec![3, 9]));
    }

    #[test]
    fn class_names_come_from_the_meta_file() {
        let dir = small(&CIFAR_10);
        let meta = dir.path().join("batches.meta.txt");
        fs::write(&meta, "airplane\r\nb\nc\nd\ne\nf\ng\nh\ni\ntruck\n\n").unwrap();
        let classes = load(dir.path(), None).unwrap().classes;
        assert_eq!((classes[0].as_str(), classes[9].as_str()), ("airplane", "truck"));

        fs::write(&meta, "airplane\ntruck\n").unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(error, DataError::ClassNames { expected: 10, found: 2, .. }), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = small(&CIFAR_10);
        fs::remove_file(dir.path().join("data_batch_4.bin")).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(error, DataError::Missing { .. }));
        assert!(error.to_string().contains("data_batch_4.bin` is missing: CIFAR-10 consists of"), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        let dir = small(&CIFAR_10);
        fs::write(dir.path().join("data_batch_2.bin"), "").unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(&error, DataError::Empty { path } if path.ends_with("data_batch_2.bin")), "{error}");
    }

    #[test]
    fn a_truncated_record_is_named() {
        let dir = small(&CIFAR_10);
        let file = dir.path().join("test_batch.bin");
        fs::write(&file, &records(&CIFAR_10, &[1, 2, 3])[..2 * 3073 + 5]).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(
            matches!(&error, DataError::Truncated { path, record: 2, expected: 3073, found: 5 } if *path == file),
            "{error}"
        );
    }

    #[test]
    fn a_label_out_of_range_is_named() {
        for (layout, file, label) in [(&CIFAR_10, "data_batch_3.bin", 10), (&CIFAR_100, "test.bin", 100)] {
            let dir = small(layout);
            fs::write(dir.path().join(file), records(layout, &[1, label])).unwrap();
            let error = load(dir.path(), None).unwrap_err();
            assert!(matches!(error, DataError::LabelOutOfRange { record: 1, label: l, .. } if l == label), "{error}");
            let message = format!("{file}`, record 1: found label {label}, expected 0 to {}", label - 1);
            assert!(error.to_string().ends_with(&message), "{error}");
        }
    }
}
