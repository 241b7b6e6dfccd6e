//! From a recipe's data set to what is trained and tested on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::Device;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::batches::Source;
use crate::data::{self, Dataset, Pictures, add_noise};
use crate::numbers::count;
use crate::recipe::Recipe;

/// The images of a run.
#[derive(Clone, Debug)]
pub struct Data {
    /// What it is called in reports, and whether it is not what it is called after.
    pub name: String,
    /// How many classes there are.
    pub classes: usize,
    /// What to train on, its labels noisy if the recipe says so.
    pub train: Source,
    /// What to test on.
    pub test: Source,
}

/// Folders of a recipe's name, and what a set in it must be called.
const NAMES: [(&str, &str); 3] =
    [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100"), ("fashion-mnist", "Fashion-MNIST")];

/// Mean and standard deviation of the training images, as published by everybody: another copy has others.
const ORIGINALS: [(&str, [f64; 3]); 2] = [
    ("CIFAR-10", [0.491_399_68, 0.482_158_41, 0.446_530_91]),
    ("CIFAR-100", [0.507_075_16, 0.486_548_87, 0.440_917_84]),
];

impl Data {
    /// Reads the recipe's set from a folder, or from a folder of the set's name in it, for a device.
    ///
    /// # Errors
    /// If it is not there, or damaged, or too small.
    pub fn load(recipe: &Recipe, folder: Option<&Path>, seed: u64, device: &Device) -> Result<Self> {
        let (name, classes, [train, test]) = Self::halves(recipe, folder)?;
        let images = match recipe.images {
            share if share <= 1.0 => (train.len() as f64 * share).round(),
            images => images.min(train.len() as f64).round(),
        };
        let held_out = (images * recipe.validation).round();
        let places = |from: f64, to: f64| train.places()[count(from)..count(to)].to_vec();
        let mut data = Self { train: train.part(places(0.0, images - held_out)), test, name, classes };
        if recipe.validation > 0.0 {
            data.test = train.part(places(images - held_out, images));
        }
        ensure!(
            data.train.len() >= recipe.batch,
            "`batch` is {}, but there are only {} training images: expected at most as many",
            recipe.batch,
            data.train.len()
        );
        ensure!(!data.test.is_empty(), "`validation` is {}: no image would be left to test on", recipe.validation);
        if recipe.noise > 0.0 {
            add_noise(data.train.labels_mut(), classes, recipe.noise, recipe.noise_kind, seed)?;
        }
        Ok(Self { train: data.train.on(device), test: data.test.on(device), ..data })
    }

    fn halves(recipe: &Recipe, folder: Option<&Path>) -> Result<(String, usize, [Source; 2])> {
        if recipe.data == "embedded" {
            let set = data::embedded()?;
            let (name, classes) = (set.name.clone(), set.classes.len());
            return Ok((name, classes, sized(Source::both(&Arc::new(set)), recipe.image_size)));
        }
        let folder = Self::folder(&recipe.data, folder)?;
        if recipe.lazy {
            let pictures = Pictures::list(&folder, recipe.image_size)?;
            return Ok((recipe.data.clone(), pictures.classes.len(), mixed(Source::files(&pictures))));
        }
        let size = (recipe.image_size > 0).then_some(recipe.image_size);
        // Sets of one size are kept as they are, and augmented so.
        let known = NAMES.iter().any(|(name, _)| *name == recipe.data);
        let set = data::load(&folder, size.filter(|_| !known))?;
        if let Some((_, expected)) = NAMES.iter().find(|(name, expected)| *name == recipe.data && set.name != *expected)
        {
            bail!("{} holds {}: expected {expected}", folder.display(), set.name)
        }
        let name =
            if is_a_copy(&set) { format!("{}, a copy with other pixels (JPEG?)", set.name) } else { set.name.clone() };
        let (classes, halves) = (set.classes.len(), Source::both(&Arc::new(set)));
        Ok((name, classes, if known { sized(halves, recipe.image_size) } else { mixed(halves) }))
    }

    fn folder(name: &str, folder: Option<&Path>) -> Result<PathBuf> {
        let folder =
            folder.with_context(|| format!("the data set `{name}` is not compiled in: say where it is with --data"))?;
        let inner = folder.join(name);
        Ok(if inner.is_dir() { inner } else { folder.to_owned() })
    }
}

/// Brought to a size, if one is said.
fn sized(halves: [Source; 2], side: u32) -> [Source; 2] {
    if side == 0 { halves } else { halves.map(|half| half.sized(side as usize)) }
}

/// Pictures lie class by class: the first of them in a random order, the same every time, are some of each.
fn mixed([train, test]: [Source; 2]) -> [Source; 2] {
    let mut places = train.places().to_vec();
    places.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    [train.part(places), test]
}

/// Whether a set that has the name of a well-known one has other images.
fn is_a_copy(set: &Dataset) -> bool {
    let known = ORIGINALS.iter().find(|(name, _)| set.name == *name);
    known.is_some_and(|(_, mean)| {
        set.mean_std().mean.iter().zip(mean).any(|(found, known)| (found - known).abs() > 1e-7)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Changes, Scale};

    fn load(text: &str) -> Result<Data> {
        Data::load(&Changes::parse("test", text)?.recipe(&Scale::default())?, None, 3, &Device::Cpu)
    }

    #[test]
    fn images_are_taken_held_out_and_given_wrong_labels() {
        let all = load("").unwrap();
        assert_eq!((all.train.len(), all.test.len(), all.classes), (5000, 10_000, 10));
        let some = load("images = 1000.0\nvalidation = 0.1\nnoise = 0.5").unwrap();
        assert_eq!((some.train.len(), some.test.len()), (900, 100));
        assert_eq!((some.train.places()[899], some.test.places()[0]), (899, 900));
        assert_eq!(some.test.labels(), all.train.labels(), "held-out labels are true");
        let wrong = (0..900).filter(|i| some.train.labels()[*i] != all.train.labels()[*i]).count();
        assert!((350..550).contains(&wrong), "{wrong}");
        assert_eq!(load("images = 0.2").unwrap().train.len(), 1000);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = load("images = 100.0").unwrap_err().to_string();
        assert!(error.contains("`batch` is 256") && error.contains("100 training images"), "{error}");
        let error = load("data = \"cifar10\"").unwrap_err().to_string();
        assert!(error.contains("--data"), "{error}");
    }

    #[test]
    fn some_pictures_are_of_all_classes() {
        let folder = tempfile::tempdir().unwrap();
        for (half, class) in ["train", "test"].iter().flat_map(|half| (0..4).map(move |class| (half, class))) {
            let folder = folder.path().join("pictures").join(half).join(class.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..16 {
                image::GrayImage::new(4, 4).save(folder.join(format!("{i:02}.png"))).unwrap();
            }
        }
        for lazy in ["lazy = true\nimage-size = 4\n", ""] {
            let text = format!("data = \"pictures\"\nbatch = 8\nimages = 0.5\nvalidation = 0.25\n{lazy}");
            let recipe = Changes::parse("test", &text).unwrap().recipe(&Scale::default()).unwrap();
            let data = Data::load(&recipe, Some(folder.path()), 0, &Device::Cpu).unwrap();
            assert_eq!((data.train.len(), data.test.len()), (24, 8));
            for source in [&data.train, &data.test] {
                let mut classes: Vec<_> = source.places().iter().map(|i| source.labels()[*i as usize]).collect();
                classes.sort_unstable();
                classes.dedup();
                assert!(classes.len() >= 3, "{classes:?}");
            }
        }
    }
}
