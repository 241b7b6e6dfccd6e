//! Any bytes as the checkpoint of a training, with the right digest if they have a place for one.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use std::fs;
use std::sync::LazyLock;

use image::{GrayImage, Luma};
use libfuzzer_sys::{Corpus, fuzz_target};
use sam_examples::recipe::{Recipe, RecipePatch, Scale};
use sam_examples::trainer::{Data, Job, Next};
use sam_examples::util::device::DeviceConfig;
use sha2::{Digest as _, Sha256};

/// Stands in the place of the digest.
const NO_DIGEST: &[u8] = &[b'0'; 64];

static RECIPE: LazyLock<Recipe> = LazyLock::new(|| {
    let text = "data = \"pictures\"\nmodel = \"mlp-w1\"\nbatch = 4\nepochs = 8.0\nrho = 0.1\nmethod = \"o2u\"\n\
                noise = 0.2\nema = 0.9\n";
    RecipePatch::parse("recipe", text).unwrap().recipe(&Scale::default()).unwrap()
});

/// Four pictures of each of two classes to train on, and as many to test on.
static DATA: LazyLock<Data> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    for (half, class) in ["train", "test"].iter().flat_map(|half| (0..2u8).map(move |class| (half, class))) {
        let folder = folder.path().join("pictures").join(half).join(class.to_string());
        fs::create_dir_all(&folder).unwrap();
        for i in 0..4u8 {
            GrayImage::from_pixel(2, 2, Luma([200 * class + i])).save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
    Data::load(&RECIPE, Some(folder.path()), 0, &DeviceConfig::CPU.device).unwrap()
});

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut bytes = input.to_vec();
    if let Some(at) = bytes.windows(64).position(|window| window == NO_DIGEST) {
        let digest = Sha256::digest(&bytes);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    }
    let folder = tempfile::tempdir().unwrap();
    let job = Job {
        recipe: &RECIPE,
        seed: 0,
        data: &DATA,
        device: &DeviceConfig::CPU,
        weights: None,
        folder: folder.path(),
        every: 0,
        keep_weights: false,
        scaled: String::new(),
    };
    fs::write(job.checkpoint(), &bytes).unwrap();
    let mut steps = 0;
    let outcome = job.run(|_| {
        steps += 1;
        Ok(if steps == 3 { Next::Stop } else { Next::GoOn })
    });
    // What cannot be used stays as it is.
    if outcome.is_err() && steps == 0 {
        assert_eq!(fs::read(job.checkpoint()).unwrap(), bytes);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    Corpus::Keep
});
