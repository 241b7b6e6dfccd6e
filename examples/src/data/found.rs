//! Recognition of a data set by the names of its files.

use std::fmt;
use std::iter;
use std::path::{Path, PathBuf};

use super::dataset::Dataset;
use super::error::DataError;
use super::{cifar, folder, idx, listing, svhn};

/// A data set, recognized by the names of its files but not yet read.
pub(super) struct Found {
    pub(super) format: Format,
    pub(super) folder: PathBuf,
}

#[derive(Clone, Copy)]
pub(super) enum Format {
    Cifar(&'static cifar::Layout),
    Idx,
    Svhn,
    Pictures,
}

impl Found {
    /// Every data set in `dir`.
    pub(super) fn all(dir: &Path) -> Vec<Self> {
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
            Format::Pictures => listing::is_in(&self.folder),
        }
    }

    pub(super) fn load(&self, image_size: Option<u32>) -> Result<Dataset, DataError> {
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

/// The names that [`load`](super::load()) looks for, for its error message.
pub(super) fn looked_for() -> String {
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
