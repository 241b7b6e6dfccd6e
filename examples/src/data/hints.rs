//! Hints for a folder in which no data set is recognized.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::archives::Archive;
use super::error::DataError;
use super::found::{Found, looked_for};
use super::listing;

/// Endings of archives, of which nothing is read.
const ARCHIVES: [&str; 7] = [".tar.gz", ".tgz", ".zip", ".tar", ".tar.bz2", ".tar.xz", ".7z"];

/// The error for a folder without a data set.
pub(super) fn unrecognized(dir: &Path) -> DataError {
    let hint = hint(dir).map_or_else(String::new, |hint| format!("{hint}; "));
    DataError::Unrecognized { path: dir.to_path_buf(), hint, looked_for: looked_for() }
}

/// The probable mistake, and what to do.
fn hint(dir: &Path) -> Option<String> {
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: BTreeSet<String> = entries.filter(|name| !name.starts_with('.')).collect();
    python(dir, &names)
        .or_else(|| archive(dir, &names))
        .or_else(|| inner(dir, &names))
        .or_else(|| flat(dir, &names))
        .or_else(|| undivided(dir, &names))
}

/// The CIFAR sets as Python's pickles.
fn python(dir: &Path, names: &BTreeSet<String>) -> Option<String> {
    let has = |name: &str| names.contains(name);
    let is_file = |name: &&str| dir.join(name).is_file();
    let (set, option, archive) = if has("cifar-10-batches-py") || has("cifar-10-python.tar.gz") || has("data_batch_1") {
        ("CIFAR-10", "cifar10", Archive::Cifar10)
    } else if has("cifar-100-python") || has("cifar-100-python.tar.gz") || ["train", "test", "meta"].iter().all(is_file)
    {
        ("CIFAR-100", "cifar100", Archive::Cifar100)
    } else {
        return None;
    };
    let url = archive.spec().downloads.first()?.url;
    Some(format!(
        "it holds the Python version of {set}, expected the binary version: get it with `cifar --download {option}`, or \
         unpack {url}"
    ))
}

fn archive(dir: &Path, names: &BTreeSet<String>) -> Option<String> {
    let is_archive = |name: &&String| ARCHIVES.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
    let archives: Vec<_> = names.iter().filter(is_archive).collect();
    let first = archives.first()?;
    let others = if archives.len() > 1 { " and the other archives" } else { "" };
    Some(format!("unpack `{}`{others} first", dir.join(first).display()))
}

/// A data set one folder further down.
fn inner(dir: &Path, names: &BTreeSet<String>) -> Option<String> {
    let folders = names.iter().map(|name| dir.join(name)).filter(|path| path.is_dir());
    let found: Vec<_> = folders.filter(|folder| !Found::all(folder).is_empty()).collect();
    let first = found.first()?;
    let others = if found.len() > 1 { " or another one in it" } else { "" };
    Some(format!("name the folder `{}`{others}, which holds a data set", first.display()))
}

/// Pictures without folders.
fn flat(dir: &Path, names: &BTreeSet<String>) -> Option<String> {
    let pictures = names.iter().filter(|name| listing::is_picture(&dir.join(name))).count();
    (pictures > 0).then(|| {
        format!(
            "it holds {pictures} pictures without folders of their classes: move them to train/CLASS/ and test/CLASS/"
        )
    })
}

/// Folders of classes that are not divided into images to train and to test on.
fn undivided(dir: &Path, names: &BTreeSet<String>) -> Option<String> {
    let holds_pictures = |path: &Path| {
        let mut entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.any(|entry| listing::is_picture(&entry.path()))
    };
    let mut classes = names.iter().filter(|name| holds_pictures(&dir.join(name)));
    let first = classes.next()?;
    let count = 1 + classes.count();
    Some(format!(
        "it holds {count} folders with pictures (`{first}`, ..) but no train/ and test/: move the folders to train/, and a \
         part of the pictures of each to a folder of the same name in test/"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use image::GrayImage;

    use super::super::{Pictures, cifar, load};
    use super::*;

    /// The hint for a folder with these files, both from loading and from listing pictures.
    #[track_caller]
    fn assert_hint(files: &[&str], hint: &str) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if listing::has_extension(&path) {
                GrayImage::new(2, 2).save(path).unwrap();
            } else {
                fs::write(path, "content").unwrap();
            }
        }
        let hint = hint.replace("DIR", &dir.path().display().to_string());
        for error in [load(dir.path(), None).unwrap_err(), Pictures::list(dir.path(), 2).unwrap_err()] {
            let expected = format!("found no data set in `{}`: {hint}; looked for ", dir.path().display());
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn the_python_version_of_cifar_is_told_from_the_binary_one() {
        let hint = |set: &str, option| {
            format!(
                "it holds the Python version of {set}, expected the binary version: get it with `cifar --download {option}`, \
                 or unpack https://www.cs.toronto.edu/~kriz/{}-binary.tar.gz",
                set.to_lowercase()
            )
        };
        assert_hint(
            &["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"],
            &hint("CIFAR-10", "cifar10"),
        );
        assert_hint(&["data_batch_1", "data_batch_2", "batches.meta"], &hint("CIFAR-10", "cifar10"));
        assert_hint(&["cifar-10-python.tar.gz"], &hint("CIFAR-10", "cifar10"));
        assert_hint(&["cifar-100-python/train"], &hint("CIFAR-100", "cifar100"));
        assert_hint(&["train", "test", "meta", "file.txt~"], &hint("CIFAR-100", "cifar100"));
    }

    #[test]
    fn archives_are_to_be_unpacked() {
        assert_hint(&["flowers.ZIP"], "unpack `DIR/flowers.ZIP` first");
        assert_hint(&["cifar-10-binary.tar.gz", "readme.txt"], "unpack `DIR/cifar-10-binary.tar.gz` first");
        assert_hint(&["train.tgz", "test.tgz"], "unpack `DIR/test.tgz` and the other archives first");
    }

    #[test]
    fn pictures_need_folders_of_classes_and_of_halves() {
        let flat = "it holds 2 pictures without folders of their classes: move them to train/CLASS/ and test/CLASS/";
        assert_hint(&["a.png", "b.JPG", "labels.csv"], flat);
        let undivided = "it holds 2 folders with pictures (`cat`, ..) but no train/ and test/: move the folders to train/, \
                         and a part of the pictures of each to a folder of the same name in test/";
        assert_hint(&["cat/0.png", "dog/0.webp", "readme.txt"], undivided);
    }

    #[test]
    fn a_set_one_folder_down_is_named() {
        assert_hint(&["flowers/train/a/0.png"], "name the folder `DIR/flowers`, which holds a data set");
    }

    #[test]
    fn a_set_beside_an_archive_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cifar-10-binary.tar.gz"), "archive").unwrap();
        cifar::tests::write(cifar::LAYOUTS[0], dir.path());
        assert_eq!(load(dir.path(), None).unwrap().name, "CIFAR-10");
    }
}
