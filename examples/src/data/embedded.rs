//! The data set that is compiled in: a part of Fashion-MNIST.

use super::dataset::Dataset;
use super::error::DataError;
use super::idx::{self, IdxFile};

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../data/fashion-mnist/", $name)).as_slice())
    };
}

/// Their origin: `README.md` in the same folder.
const FILES: [(&str, &[u8]); 4] = [
    file!("train-images-idx3-ubyte.gz"),
    file!("train-labels-idx1-ubyte.gz"),
    file!("t10k-images-idx3-ubyte.gz"),
    file!("t10k-labels-idx1-ubyte.gz"),
];

/// The first 5,000 training images and all 10,000 test images of Fashion-MNIST: 28 x 28, gray, ten classes.
///
/// # Errors
///
/// None, unless the program itself is damaged.
pub fn embedded() -> Result<Dataset, DataError> {
    idx::read("embedded", |name| {
        let (name, bytes) = FILES.into_iter().find(|(file, _)| file.starts_with(name)).unwrap_or((name, &[]));
        Ok(IdxFile::gz(name.into(), bytes))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_is_fashion_mnist() {
        let set = embedded().unwrap();
        assert_eq!((set.name.as_str(), set.channels, set.height, set.width), ("Fashion-MNIST", 1, 28, 28));
        assert_eq!((set.train.len(), set.test.len()), (5_000, 10_000));
        assert_eq!(set.train.images.len(), 5_000 * set.image_len());
        assert_eq!(set.test.images.len(), 10_000 * set.image_len());
        assert_eq!(set.test.labels[..10], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]);
        for class in 0..10 {
            assert_eq!(set.test.labels.iter().filter(|&&label| label == class).count(), 1_000);
        }
    }

    #[test]
    fn its_moments_are_those_of_the_whole_set() {
        // 0.2860 and 0.3530 for all 60,000 training images.
        let moments = embedded().unwrap().mean_std();
        assert!((moments.mean[0] - 0.2860).abs() < 2e-3, "{moments:?}");
        assert!((moments.std[0] - 0.3530).abs() < 2e-3, "{moments:?}");
    }
}
