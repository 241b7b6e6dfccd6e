//! Augmentation of training images: flips and crops, Cutout and AutoAugment, in the order of the code of Foret et al.

mod operation;
mod picture;
mod policies;
mod policy;
mod view;

use serde::Serialize;

pub(crate) use self::picture::Picture;
pub use self::policy::Policy;
pub(crate) use self::view::{View, cut_out};

/// How training images are augmented. Everything is drawn anew for each image and epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Augment {
    /// A horizontal flip with probability one half, and a crop of the image padded by four reflected pixels on each side.
    pub basic: bool,
    /// AutoAugment's operations before that.
    pub auto: Option<Policy>,
    /// The side of the square that is set to 0 after normalization (Cutout); 0 for none.
    pub cutout: usize,
}

impl Augment {
    /// No augmentation.
    pub const NONE: Self = Self { basic: false, auto: None, cutout: 0 };

    /// Flips and crops.
    pub const BASIC: Self = Self { basic: true, auto: None, cutout: 0 };
}
