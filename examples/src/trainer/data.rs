//! The training and test images of a recipe, or windows of its text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::Device;
use clap::ValueEnum as _;

use crate::data::{self, Archive, Dataset, ImageSet, Pictures, Text, add_noise};
use crate::recipe::Recipe;
use crate::util::numbers::count;

/// The images of a run.
#[derive(Clone, Debug)]
pub struct Data {
    /// The name in reports, with a note if it is not the original set.
    pub name: String,
    /// The number of classes.
    pub classes: usize,
    /// Their names, by label.
    pub class_names: Vec<String>,
    /// A digest of the images and labels as they are stored.
    pub digest: String,
    /// What was left out of the set, for the user.
    pub notes: Vec<String>,
    /// The training images, with label noise if the recipe has it.
    pub train: ImageSet,
    /// The test images.
    pub test: ImageSet,
}

/// Names of data sets in recipes, and the names of the sets.
const NAMES: [(&str, &str); 5] = [
    ("cifar10", "CIFAR-10"),
    ("cifar100", "CIFAR-100"),
    ("mnist", "MNIST"),
    ("fashion-mnist", "Fashion-MNIST"),
    ("svhn", "SVHN"),
];

/// The published means of the training images; those of other copies differ.
const ORIGINALS: [(&str, [f64; 3]); 2] = [
    ("CIFAR-10", [0.491_399_68, 0.482_158_41, 0.446_530_91]),
    ("CIFAR-100", [0.507_075_16, 0.486_548_87, 0.440_917_84]),
];

impl Data {
    /// The same, whose images are loaded by so many threads of their own; `None` for the threads that compute.
    ///
    /// # Errors
    /// If they cannot be started.
    pub fn with_workers(self, workers: Option<usize>) -> Result<Self> {
        let Some(workers) = workers else { return Ok(self) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).build().context("cannot start the workers")?;
        let pool = Arc::new(pool);
        Ok(Self { train: self.train.loaded_by(&pool), test: self.test.loaded_by(&pool), ..self })
    }

    /// Reads the recipe's set from a folder, or from a folder of the set's name in it, for a device. The text of a language model is
    /// a file of that name in the folder, or is named in place of the folder.
    ///
    /// # Errors
    /// If it is missing, damaged, or too small, or if a folder is named that the recipe does not read.
    pub fn load(recipe: &Recipe, folder: Option<&Path>, seed: u64, device: &Device) -> Result<Self> {
        let is_text = recipe.model.is_for_text();
        let stored = if is_text { Stored::text(recipe, folder) } else { Stored::read(recipe, folder) };
        let Stored { name, class_names, digest, notes, halves: [train, test] } = stored?;
        let classes = class_names.len();
        let images = match recipe.images {
            share if share <= 1.0 => (train.len() as f64 * share).round(),
            images => images.min(train.len() as f64).round(),
        };
        let held_out = (images * recipe.validation).round();
        let indices = |from: f64, to: f64| train.indices()[count(from)..count(to)].to_vec();
        let train_part = train.part(indices(0.0, images - held_out));
        let mut data = Self { train: train_part, test, name, classes, class_names, digest, notes };
        if recipe.validation > 0.0 {
            data.test = train.part(indices(images - held_out, images));
        }
        ensure!(
            data.train.len() >= recipe.batch,
            "`batch` is {}, but there are only {} training {}: expected at most as many",
            recipe.batch,
            data.train.len(),
            if is_text { "windows" } else { "images" }
        );
        ensure!(
            !data.test.is_empty(),
            "`validation` is {}: no image would be left to test on; choose a larger share",
            recipe.validation
        );
        if recipe.noise > 0.0 {
            add_noise(data.train.labels_mut(), classes, recipe.noise, recipe.noise_kind, seed)?;
        }
        Ok(Self { train: data.train.on(device), test: data.test.on(device), ..data })
    }
}

/// A data set as it is stored.
struct Stored {
    name: String,
    class_names: Vec<String>,
    digest: String,
    notes: Vec<String>,
    halves: [ImageSet; 2],
}

impl Stored {
    fn read(recipe: &Recipe, folder: Option<&Path>) -> Result<Self> {
        if recipe.data == "embedded" {
            expect_use(recipe, folder)?;
            return Ok(Self::of(data::embedded()?).sized(recipe.image_size));
        }
        let folder = place(&recipe.data, folder)?;
        if recipe.lazy {
            let pictures = Pictures::list(&folder, recipe.image_size)?;
            return Ok(Self {
                name: recipe.data.clone(),
                class_names: pictures.classes.clone(),
                digest: pictures.digest()?,
                notes: pictures.notes.clone(),
                halves: ImageSet::files(&pictures),
            });
        }
        let size = (recipe.image_size > 0).then_some(recipe.image_size);
        // Sets of a fixed size are augmented at that size.
        let known = NAMES.iter().find(|(name, _)| *name == recipe.data);
        let set = data::load(&folder, size.filter(|_| known.is_none()))?;
        let Some((_, expected)) = known else {
            return Ok(Self::of(set));
        };
        if set.name != *expected {
            bail!("{} holds {}: expected {expected}", folder.display(), set.name)
        }
        Ok(Self::of(set).sized(recipe.image_size))
    }

    fn text(recipe: &Recipe, place: Option<&Path>) -> Result<Self> {
        let text = match place {
            Some(file) if file.is_file() => Text::read(file)?,
            _ if recipe.data == "embedded" => {
                expect_use(recipe, place)?;
                Text::embedded()
            }
            Some(folder) => Text::read(&folder.join(&recipe.data))?,
            None => Text::read(Path::new(&recipe.data))?,
        };
        Ok(Self {
            name: text.name.clone(),
            class_names: Text::tokens(),
            digest: text.digest(),
            notes: Vec::new(),
            halves: ImageSet::text(&Arc::new(text), recipe.length)?,
        })
    }

    fn of(set: Dataset) -> Self {
        let name =
            if is_a_copy(&set) { format!("{}, a copy with other pixels (JPEG?)", set.name) } else { set.name.clone() };
        let (class_names, digest, notes) = (set.classes.clone(), set.digest(), set.notes.clone());
        Self { name, class_names, digest, notes, halves: ImageSet::both(&Arc::new(set)) }
    }

    /// The same set, with images scaled to a size unless that is 0.
    fn sized(self, side: u32) -> Self {
        let halves = if side == 0 { self.halves } else { self.halves.map(|half| half.sized(side as usize)) };
        Self { halves, ..self }
    }
}

/// Checks that a recipe reads something in the data folder, if there is one.
fn expect_use(recipe: &Recipe, folder: Option<&Path>) -> Result<()> {
    match folder {
        Some(folder) if !recipe.reads_data_folder() => bail!(
            "--data is {}, but the recipe has `data = \"embedded\"`, what is compiled in: set `data` in the recipe, or remove --data",
            folder.display()
        ),
        _ => Ok(()),
    }
}

/// The folder of a set: a folder of its name in the data folder, or the data folder itself, if that has the name or the set is
/// recognized by its content.
fn place(name: &str, folder: Option<&Path>) -> Result<PathBuf> {
    let folder =
        folder.with_context(|| format!("the data set `{name}` is not compiled in: name its folder with --data"))?;
    let inner = folder.join(name);
    // Where a download of this set is: several may be in one folder.
    let downloaded = Archive::from_str(name, false).ok().map(|archive| folder.join(archive.spec().folder));
    if let Some(inner) = [Some(&inner), downloaded.as_ref()].into_iter().flatten().find(|inner| inner.is_dir()) {
        return Ok(inner.clone());
    }
    let is_called_so = folder.canonicalize().is_ok_and(|folder| folder.file_name().is_some_and(|it| it == name));
    let is_told_by_content = NAMES.iter().any(|(known, _)| *known == name);
    ensure!(
        is_called_so || is_told_by_content,
        "there is no folder {}: expected the data set `{name}` there, or --data to name a folder called `{name}`",
        inner.display()
    );
    Ok(folder.to_owned())
}

/// Whether a set with a well-known name has other images.
fn is_a_copy(set: &Dataset) -> bool {
    let known = ORIGINALS.iter().find(|(name, _)| set.name == *name);
    known.is_some_and(|(_, mean)| {
        set.mean_std().mean.iter().zip(mean).any(|(found, known)| (found - known).abs() > 1e-7)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{RecipePatch, Scale};

    fn load(text: &str) -> Result<Data> {
        Data::load(&RecipePatch::parse("test", text)?.recipe(&Scale::default())?, None, 3, &Device::Cpu)
    }

    #[test]
    fn one_of_several_downloads_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        for name in ["cifar-10-batches-bin", "cifar-100-binary", "svhn"] {
            std::fs::create_dir(inside(name)).unwrap();
        }
        let place = |name| place(name, Some(folder.path())).unwrap();
        assert_eq!(place("cifar10"), inside("cifar-10-batches-bin"));
        assert_eq!(place("cifar100"), inside("cifar-100-binary"));
        assert_eq!(place("svhn"), inside("svhn"));
        std::fs::create_dir(inside("cifar10")).unwrap();
        assert_eq!(place("cifar10"), inside("cifar10"), "a folder of that name comes first");
    }

    #[test]
    fn images_are_taken_held_out_and_given_wrong_labels() {
        let all = load("").unwrap();
        assert_eq!((all.train.len(), all.test.len(), all.classes), (5000, 10_000, 10));
        let some = load("images = 1000.0\nvalidation = 0.1\nnoise = 0.5").unwrap();
        assert_eq!((some.train.len(), some.test.len()), (900, 100));
        assert_eq!((some.train.indices()[899], some.test.indices()[0]), (899, 900));
        assert_eq!(some.test.labels(), all.train.labels(), "held-out labels are true");
        let wrong = (0..900).filter(|i| some.train.labels()[*i] != all.train.labels()[*i]).count();
        assert!((350..550).contains(&wrong), "{wrong}");
        assert_eq!(load("images = 0.2").unwrap().train.len(), 1000);
    }

    #[test]
    fn a_text_is_a_file_by_its_name_or_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.txt");
        std::fs::write(&file, "Once upon a time. ".repeat(100)).unwrap();
        let load = |text: &str, place: Option<&Path>| {
            let recipe = RecipePatch::parse(
                "test",
                &format!(
                    "model = \"gpt\"\nbatch = 8\n{text}\n{}",
                    if text.contains("length") { "" } else { "length = 32" }
                ),
            )
            .unwrap();
            Data::load(&recipe.recipe(&Scale::default()).unwrap(), place, 0, &Device::Cpu)
        };
        let named = load("data = \"some.txt\"\nvalidation = 0.5", Some(folder.path())).unwrap();
        assert_eq!((&*named.name, named.classes, named.train.len(), named.test.len()), ("some.txt", 256, 25, 25));
        assert_eq!(load("", Some(&file)).unwrap().digest, named.digest);
        let path = format!("data = {:?}", file.to_str().unwrap());
        assert_eq!(load(&path, None).unwrap().test.len(), 5);
        assert_eq!(load("", None).unwrap().name, "Apache License 2.0");
        let error = load("data = \"other.txt\"", Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("other.txt` is missing"), "{error}");
        let error = load("length = 300", Some(&file)).unwrap_err().to_string();
        assert!(error.contains("some.txt has 1800 bytes"), "{error}");
        let error = load("images = 0.1", Some(&file)).unwrap_err().to_string();
        assert!(error.contains("5 training windows"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            let recipe = RecipePatch::parse("test", text).unwrap().recipe(&Scale::default()).unwrap();
            Data::load(&recipe, Some(folder.path()), 0, &Device::Cpu)
        };
        for text in ["", "model = \"gpt\"\nbatch = 1"] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains("set `data` in the recipe, or remove --data"), "{error}");
        }
        load("start = \"weights.safetensors\"").unwrap();
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
            let recipe = RecipePatch::parse("test", &text).unwrap().recipe(&Scale::default()).unwrap();
            let data = Data::load(&recipe, Some(folder.path()), 0, &Device::Cpu).unwrap();
            assert_eq!((data.train.len(), data.test.len()), (24, 8));
            for source in [&data.train, &data.test] {
                let mut classes: Vec<_> = source.indices().iter().map(|i| source.labels()[*i as usize]).collect();
                classes.sort_unstable();
                classes.dedup();
                assert!(classes.len() >= 3, "{classes:?}");
            }
        }
    }

    /// A missing set is not replaced by another one in the folder.
    #[test]
    fn a_set_is_the_one_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (half, class) in ["train", "test"].iter().flat_map(|half| (0..2).map(move |class| (half, class))) {
            let folder = folder.path().join("pictures").join(half).join(class.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            image::GrayImage::new(4, 4).save(folder.join("0.png")).unwrap();
        }
        let load = |name: &str, folder: &Path| {
            let recipe = RecipePatch::parse("test", &format!("data = \"{name}\"\nbatch = 2")).unwrap();
            Data::load(&recipe.recipe(&Scale::default()).unwrap(), Some(folder), 0, &Device::Cpu)
        };
        let pictures = folder.path().join("pictures");
        assert_eq!(load("pictures", folder.path()).unwrap().class_names, ["0", "1"]);
        assert_eq!(load("pictures", &pictures).unwrap().classes, 2);
        let error = load("flowers", &pictures).unwrap_err().to_string();
        assert!(error.contains("no folder") && error.contains("flowers"), "{error}");
        let error = load("cifar10", &pictures).unwrap_err().to_string();
        assert!(error.contains("holds pictures: expected CIFAR-10"), "{error}");
    }
}
