//! Any bytes as one of the four files of an MNIST-like data set.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

mod common;

use std::fs;
use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::{Corpus, fuzz_target};

const FILES: [(&str, &[u8]); 4] = [
    ("train-images-idx3-ubyte", &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4]),
    ("train-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 2, 9, 0]),
    ("t10k-images-idx3-ubyte", &[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 5, 6]),
    ("t10k-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 1, 3]),
];

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((choice, bytes)) = input.split_first() else { return Corpus::Reject };
    let folder = tempfile::tempdir().unwrap();
    for (number, (name, valid)) in FILES.into_iter().enumerate() {
        let path = folder.path().join(name);
        if number != usize::from(choice % 4) {
            fs::write(path, valid).unwrap();
            continue;
        }
        match choice / 4 % 3 {
            0 => fs::write(path, bytes).unwrap(),
            1 => fs::write(path.with_extension("gz"), bytes).unwrap(),
            _ => {
                let mut encoder =
                    GzEncoder::new(fs::File::create(path.with_extension("gz")).unwrap(), Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap();
            }
        }
    }
    common::load_and_check(folder.path(), None);
    Corpus::Keep
});
