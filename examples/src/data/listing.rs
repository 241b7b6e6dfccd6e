//! Folders of pictures, listed without opening a picture: `train/CLASS/*.png` and `test/CLASS/*.png`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::error::DataError;

/// Names of the folder to test on; the first one that is there is read.
const TEST: [&str; 4] = ["test", "val", "valid", "validation"];

/// The files that are taken for pictures.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];

/// Whether a folder is laid out so.
pub(super) fn is_in(dir: &Path) -> bool {
    TEST.iter().chain(&["train"]).any(|half| dir.join(half).is_dir())
}

/// What a folder of pictures holds. No picture has been opened.
pub(super) struct Listed {
    /// Names of the classes, by label.
    pub(super) classes: Vec<String>,
    /// In a random order that is always the same, so that the first of them are of all classes.
    pub(super) train: Vec<Picture>,
    /// Class by class.
    pub(super) test: Vec<Picture>,
    /// What has been skipped.
    pub(super) notes: Vec<String>,
}

/// The pictures of a folder that [`is_in`] accepts.
pub(super) fn list_halves(dir: &Path) -> Result<Listed, DataError> {
    let train_dir = dir.join("train");
    let mut test_dirs = TEST.iter().map(|half| dir.join(half)).filter(|half| half.is_dir());
    let test_dir = test_dirs.next().unwrap_or_else(|| dir.join("test"));
    let classes = same_classes(&train_dir, &test_dir)?;
    let mut notes = Vec::new();
    let mut train = list(&train_dir, &classes, &mut notes)?;
    train.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    let test = list(&test_dir, &classes, &mut notes)?;
    notes
        .extend(test_dirs.map(|other| format!("skipped `{}`: `{}` is tested on", other.display(), test_dir.display())));
    let classes = classes.iter().map(|class| class.to_string_lossy().into_owned()).collect();
    Ok(Listed { classes, train, test, notes })
}

/// The names of the class folders, which must be the same in both halves.
fn same_classes(train: &Path, test: &Path) -> Result<BTreeSet<OsString>, DataError> {
    let [in_train, in_test] = [class_names(train)?, class_names(test)?];
    if let Some(class) = in_train.symmetric_difference(&in_test).next() {
        let (present, absent) = if in_train.contains(class) { (train, test) } else { (test, train) };
        return Err(DataError::ClassMissing {
            class: class.to_string_lossy().into_owned(),
            present: present.to_path_buf(),
            absent: absent.to_path_buf(),
        });
    }
    if in_train.len() < 2 {
        let mut others = Skipped::default();
        for name in entries(train)?.difference(&in_train) {
            others.add(&train.join(name));
        }
        let (path, found) = (train.to_path_buf(), in_train.len());
        return Err(DataError::TooFewClasses { path, found, skipped: others.to_string() });
    }
    Ok(in_train)
}

fn class_names(half: &Path) -> Result<BTreeSet<OsString>, DataError> {
    let folders = entries(half)?.into_iter().filter(|entry| half.join(entry).is_dir());
    Ok(folders.collect())
}

/// A picture that has not been opened, and its label.
pub(super) type Picture = (PathBuf, u32);

/// The pictures of one half, class by class, in the order of their names; a note of everything else in it.
fn list(half: &Path, classes: &BTreeSet<OsString>, notes: &mut Vec<String>) -> Result<Vec<Picture>, DataError> {
    let mut pictures = Vec::new();
    let mut skipped = Skipped::default();
    for name in entries(half)?.difference(classes) {
        skipped.add(&half.join(name));
    }
    for (label, class) in (0..).zip(classes) {
        let folder = half.join(class);
        let before = pictures.len();
        let mut others = Skipped::default();
        for path in entries(&folder)?.into_iter().map(|name| folder.join(name)) {
            if is_picture(&path) {
                pictures.push((path, label));
            } else {
                others.add(&path);
            }
        }
        if pictures.len() == before {
            return Err(DataError::NoPictures { path: folder, skipped: others.to_string() });
        }
        skipped.merge(others);
    }
    if !skipped.is_empty() {
        notes.push(format!("skipped {skipped} in `{}`", half.display()));
    }
    Ok(pictures)
}

/// What is not read in a folder of pictures.
#[derive(Default)]
struct Skipped {
    /// Pictures outside of class folders.
    pictures: usize,
    /// Other files, and their extensions.
    files: usize,
    extensions: BTreeSet<String>,
    folders: usize,
}

impl Skipped {
    fn add(&mut self, path: &Path) {
        if path.is_dir() {
            self.folders += 1;
            return;
        }
        if is_picture(path) {
            self.pictures += 1;
            return;
        }
        self.files += 1;
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        self.extensions.insert(extension.map_or_else(|| "no extension".to_owned(), |known| format!(".{known}")));
    }

    fn merge(&mut self, other: Self) {
        self.pictures += other.pictures;
        self.files += other.files;
        self.folders += other.folders;
        self.extensions.extend(other.extensions);
    }

    fn is_empty(&self) -> bool {
        self.pictures + self.files + self.folders == 0
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extensions = self.extensions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let kinds = [
            (self.pictures, "picture outside of class folders", "pictures outside of class folders", String::new()),
            (self.files, "file that is not a picture", "files that are not pictures", format!(" ({extensions})")),
            (self.folders, "nested folder", "nested folders", String::new()),
        ];
        let kinds = kinds.into_iter().filter(|(count, ..)| *count > 0);
        let parts: Vec<_> = kinds
            .map(|(count, one, many, more)| format!("{count} {}{more}", if count == 1 { one } else { many }))
            .collect();
        f.write_str(&parts.join(" and "))
    }
}

/// Whether a path is a file with the extension of a picture.
pub(super) fn is_picture(path: &Path) -> bool {
    has_extension(path) && path.is_file()
}

pub(super) fn has_extension(path: &Path) -> bool {
    let is = |extension: &OsStr| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    path.extension().is_some_and(is)
}

/// Names in a folder, sorted, without hidden ones (`.DS_Store`, `._cat.png`).
fn entries(dir: &Path) -> Result<BTreeSet<OsString>, DataError> {
    let advice = "a folder of pictures has train/CLASS/ and the same classes in test/, val/, valid/ or validation/";
    let failed = |source| DataError::reading(dir, advice, source);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.insert(name);
        }
    }
    Ok(names)
}
