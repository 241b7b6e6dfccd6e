//! Any bytes as a MATLAB file of SVHN's.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

mod common;

use std::fs;
use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};
use libfuzzer_sys::{Corpus, fuzz_target};

fn header() -> Vec<u8> {
    let mut header = vec![b' '; 124];
    header.extend([0, 1, b'I', b'M']);
    header
}

/// An element of a type, its length before it.
fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn padded(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut element = element(kind, bytes);
    element.resize(element.len().next_multiple_of(8), 0);
    element
}

fn matrix(name: &str, dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let dimensions: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
    let flags = padded(6, &[9, 0, 0, 0, 0, 0, 0, 0]);
    element(14, &[flags, padded(5, &dimensions), padded(1, name.as_bytes()), padded(2, values)].concat())
}

fn valid() -> Vec<u8> {
    [header(), matrix("X", &[32, 32, 3, 1], &[5; 3072]), matrix("y", &[1, 1], &[10])].concat()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    element(15, &encoder.finish().unwrap())
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((choice, bytes)) = input.split_first() else { return Corpus::Reject };
    let folder = tempfile::tempdir().unwrap();
    let file = match choice % 4 {
        0 => bytes.to_vec(),
        1 => [&header(), bytes].concat(),
        2 => [header(), compressed(bytes), matrix("y", &[1, 1], &[1])].concat(),
        _ => [header(), matrix("X", &[32, 32, 3, 1], &[5; 3072]), compressed(bytes)].concat(),
    };
    fs::write(folder.path().join("train_32x32.mat"), file).unwrap();
    fs::write(folder.path().join("test_32x32.mat"), valid()).unwrap();
    common::load_and_check(folder.path(), None);
    Corpus::Keep
});
