//! Any bytes as a file of CIFAR-10 or CIFAR-100.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

mod common;

use std::fs;

use libfuzzer_sys::{Corpus, fuzz_target};

/// The files of each set, of which the last has the names of the classes and may be missing.
const SETS: [&[&str]; 2] = [
    &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
        "batches.meta.txt",
    ],
    &["train.bin", "test.bin", "fine_label_names.txt"],
];

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((choice, bytes)) = input.split_first() else { return Corpus::Reject };
    let choice = usize::from(*choice);
    let files = SETS[choice % 2];
    let chosen = choice / 2 % files.len();
    let folder = tempfile::tempdir().unwrap();
    for file in &files[..files.len() - 1] {
        fs::write(folder.path().join(file), vec![7; 3073 + choice % 2]).unwrap();
    }
    fs::write(folder.path().join(files[chosen]), bytes).unwrap();
    common::load_and_check(folder.path(), None);
    Corpus::Keep
});
