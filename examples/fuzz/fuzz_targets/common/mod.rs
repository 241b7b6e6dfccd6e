//! What all targets check.

use std::path::Path;

use sam_examples::data::{Dataset, load};

/// Loads the data set in a folder: an error that says something, or a set in order.
pub fn load_and_check(dir: &Path, image_size: Option<u32>) {
    match load(dir, image_size) {
        Ok(set) => assert_in_order(&set),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn assert_in_order(set: &Dataset) {
    for split in [&set.train, &set.test] {
        assert!(!split.is_empty());
        assert_eq!(split.images.len(), split.len() * set.image_len());
        assert!(split.labels.iter().all(|&label| (label as usize) < set.classes.len()));
    }
    assert_eq!(set.digest().len(), 64);
    assert!(set.mean_std().std.iter().all(|std| *std > 0.0));
}
