//! Labeled images, and texts: an embedded set, sets on disk, downloads, label noise, and batches of tensors.
//!
//! ```text
//! embedded()                   5,000 + 10,000 images of Fashion-MNIST, compiled in
//! load(dir, image_size)        CIFAR-10, CIFAR-100, MNIST-like IDX files, SVHN, any folder of pictures
//! Pictures::list(dir, side)    the same folders, decoded picture by picture when they are needed
//! download(archive, into, ..)  CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST or SVHN, verified and put in place
//! Text::read(path)             a text, whose bytes are tokens
//! add_noise(labels, ..)        symmetric label noise, seeded
//! ImageSet, Batches            images, or windows of a text, as tensors: shuffled, augmented, in the background
//! ```
//!
//! The first four give a [`Dataset`], or a list of [`Pictures`]: bytes as stored, not normalized ([`Dataset::mean_std`] has
//! the statistics for that). Every failure is a [`DataError`] that names the file and the record.

mod archives;
mod batches;
mod cifar;
mod dataset;
mod decode;
mod digest;
mod download;
mod embedded;
mod error;
mod folder;
mod found;
mod hints;
mod idx;
mod image_set;
mod label_noise;
mod listing;
mod load;
mod paths;
mod pictures;
mod svhn;
mod text;

pub use archives::{Archive, ArchiveSpec, Content, Download};
pub use batches::{Background, Batches};
pub use dataset::{Dataset, MeanStd, Split};
pub use digest::digest_of;
pub use download::{download, fetch};
pub use embedded::embedded;
pub use error::DataError;
pub use folder::MAX_IMAGE_SIZE;
pub use image_set::{Batch, ImageSet, TEST_BATCH};
pub use label_noise::{Noise, add_noise};
pub use load::load;
pub use pictures::{Pictures, read_like};
pub use text::{Text, VOCABULARY};
