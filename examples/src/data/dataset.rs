//! Images and labels in memory.

use serde::{Deserialize, Serialize};

/// The training images or the test images of a [`Dataset`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Pixels, `n x channels x height x width`, planes row-major, 0 to 255.
    pub images: Vec<u8>,
    /// `n` labels, each an index into [`Dataset::classes`].
    pub labels: Vec<u32>,
}

impl Split {
    /// The number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image; never so after [`load`](super::load()) or [`embedded`](super::embedded()).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Labeled images of one size, for training and for testing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The name in reports: "CIFAR-10", or that of its folder.
    pub name: String,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Channels of an image: 1 (gray) or 3 (red, green, blue).
    pub channels: usize,
    /// Pixels of a column.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// The training images.
    pub train: Split,
    /// The test images.
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

    /// Keeps the first `n` training images. In sets of pictures they are of all classes, for
    /// [`load`](super::load()) mixes them; the other sets are stored in a mixed order.
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
        // Integers: exact in any order.
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

/// Class names for a set without any: the labels.
pub(super) fn numbered(classes: usize) -> Vec<String> {
    (0..classes).map(|class| class.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
