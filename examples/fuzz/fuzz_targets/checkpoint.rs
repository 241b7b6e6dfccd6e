//! Any bytes as the checkpoint of a training, with the right digest if they have a place for one.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use image::{GrayImage, Luma};
use libfuzzer_sys::{Corpus, fuzz_target};
use sam_examples::recipe::{Recipe, RecipePatch, Scale};
use sam_examples::trainer::{Checkpoint, Data, Job, Next};
use sam_examples::util::device::DeviceConfig;
use sha2::{Digest as _, Sha256};

/// Stands in the place of the digest.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Stands in the place of the recipe, so that seeds outlive a change of its keys.
const NO_RECIPE: &str = "RECIPE";

/// Where the training stops for a seed: in each of its three phases.
const SEEDS: [(&str, usize); 3] = [("first", 3), ("second", 10), ("third", 20)];

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

/// The recipe as the checkpoints of this training have it: JSON in a string of JSON in a string of JSON. Where the variable
/// `SEEDS` names a folder, new seeds are written there.
static WORDS: LazyLock<String> = LazyLock::new(|| {
    let escaped = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"");
    let mut words = String::new();
    for (name, steps) in SEEDS {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        assert!(job.run(stop_after(steps)).unwrap().is_none());
        words = escaped(&escaped(&Checkpoint::load(&job.checkpoint()).unwrap().progress.recipe));
        if let Some(seeds) = std::env::var_os("SEEDS") {
            let file = fs::read(job.checkpoint()).unwrap();
            let (length, rest) = file.split_first_chunk().unwrap();
            let (header, data) = rest.split_at(u64::from_le_bytes(*length).try_into().unwrap());
            let header = str::from_utf8(header).unwrap();
            let digest = header.split_once(r#"\"digest\":\""#).unwrap().1[..64].to_owned();
            assert!(header.contains(&words));
            let header = header.trim_end().replace(&words, NO_RECIPE).replace(&digest, NO_DIGEST);
            let seed = [b"\x01", header.as_bytes(), b"\0", data].concat();
            fs::write(Path::new(&seeds).join(format!("seed-{name}-phase")), seed).unwrap();
        }
    }
    words
});

fn job(folder: &Path) -> Job<'_> {
    Job {
        recipe: &RECIPE,
        seed: 0,
        data: &DATA,
        device: &DeviceConfig::CPU,
        weights: None,
        folder,
        every: 0,
        report: 0,
        keep_weights: false,
        scaled: String::new(),
    }
}

fn stop_after(steps: usize) -> impl FnMut(&sam_examples::trainer::Status) -> anyhow::Result<Next> {
    let mut done = 0;
    move |_| {
        done += 1;
        Ok(if done == steps { Next::Stop } else { Next::GoOn })
    }
}

/// After an odd byte a header, a zero byte and the data; after an even one the file as it is.
fn file(input: &[u8]) -> Option<Vec<u8>> {
    let (mode, rest) = input.split_first()?;
    let mut bytes = rest.to_vec();
    if mode % 2 == 1 {
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        let (header, data) = (str::from_utf8(&rest[..end]).ok()?, rest.get(end + 1..).unwrap_or_default());
        let mut header = header.replacen(NO_RECIPE, &WORDS, 1).into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        bytes = [&(header.len() as u64).to_le_bytes()[..], &header, data].concat();
    }
    if let Some(at) = bytes.windows(64).position(|window| window == NO_DIGEST.as_bytes()) {
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    }
    Some(bytes)
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(bytes) = file(input) else { return Corpus::Reject };
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    fs::write(job.checkpoint(), &bytes).unwrap();
    let mut stop = stop_after(3);
    let mut steps = 0;
    let outcome = job.run(|status| {
        steps += 1;
        stop(status)
    });
    // What cannot be used stays as it is.
    if outcome.is_err() && steps == 0 {
        assert_eq!(fs::read(job.checkpoint()).unwrap(), bytes, "changed by {outcome:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "files were written before {outcome:?}");
    }
    Corpus::Keep
});
