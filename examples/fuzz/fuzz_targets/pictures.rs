//! Any bytes as a picture in a folder of pictures, loaded at once and when it is needed.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

mod common;

use std::fs;

use image::{GrayImage, Luma};
use libfuzzer_sys::{Corpus, fuzz_target};
use sam_examples::data::{ImageSet, Pictures};

const NAMES: [&str; 4] = ["0.png", "0.jpg", "0.webp", "0.bmp"];

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((choice, bytes)) = input.split_first() else { return Corpus::Reject };
    let folder = tempfile::tempdir().unwrap();
    for (class, value) in [("train/a", 1), ("train/b", 2), ("test/a", 3), ("test/b", 4)] {
        let class = folder.path().join(class);
        fs::create_dir_all(&class).unwrap();
        GrayImage::from_pixel(2, 2, Luma([value])).save(class.join("1.png")).unwrap();
    }
    fs::write(folder.path().join("train/a").join(NAMES[usize::from(choice % 4)]), bytes).unwrap();
    common::load_and_check(folder.path(), (choice / 4 % 2 == 1).then_some(3));
    let pictures = Pictures::list(folder.path(), 3).unwrap();
    assert_eq!(pictures.digest().unwrap().len(), 64);
    let [train, _] = ImageSet::files(&pictures);
    for batch in train.in_order(1) {
        if let Ok((x, _)) = batch {
            assert_eq!(x.dims(), [1, 3, 3, 3]);
        }
    }
    Corpus::Keep
});
