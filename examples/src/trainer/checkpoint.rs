//! Everything that a training needs to go on, in one safetensors file that is there whole or not at all, under a digest of
//! all its bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data::hex;
use crate::experiments::compare::report::write_whole;
use crate::noisy_labels::Memory;
use crate::recipe::{Changes, Scale};

/// Tensors by name, and where the training is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Weights, velocities and all else, each under a name of its own.
    pub tensors: BTreeMap<String, Tensor>,
    /// Where the training is.
    pub place: Place,
}

/// Where a training is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The recipe and seed, in words: another one cannot go on from here.
    pub recipe: String,
    /// The training of the method's.
    pub stage: usize,
    /// Steps done in it.
    pub step: usize,
    /// Steps done in all stages.
    pub steps: usize,
    /// The sum of the losses of this epoch's steps.
    pub loss: Bits,
    /// The mean loss of the last epoch of the training before.
    pub last_loss: Bits,
    /// The sum of L(w + ε̂) - L(w) of this epoch's steps, if they had both.
    pub sharpness: Option<Bits>,
    /// Its mean over the last epoch of the training before.
    pub last_sharpness: Option<Bits>,
    /// Bytes of the log.
    pub log: u64,
    /// Bytes of the events.
    pub events: u64,
    /// Seconds spent.
    pub seconds: f64,
    /// The last test error.
    pub test_error: Option<Bits>,
    /// Whether the epoch whose last step was done has still to be tested.
    pub untested: bool,
    /// The lowest test error, and the epoch that it is of.
    pub best: Option<(Bits, usize)>,
    /// Whether the test error has not fallen for too long (`patience`).
    pub stopped_early: bool,
}

/// A number as its bits: text would round it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits(u64);

impl From<f64> for Bits {
    fn from(x: f64) -> Self {
        Self(x.to_bits())
    }
}

impl From<Bits> for f64 {
    fn from(Bits(bits): Bits) -> Self {
        Self::from_bits(bits)
    }
}

const PLACE: &str = "place";

/// What stands in the file in the place of its digest while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The label of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Label {
    /// SHA-256 of the file with [`NO_DIGEST`] here.
    digest: String,
    #[serde(flatten)]
    place: Place,
}

impl Checkpoint {
    /// Replaces a file by this one, atomically and durably.
    ///
    /// # Errors
    /// If it cannot be written; the old one is untouched.
    pub fn save(&self, path: &Path) -> Result<()> {
        let kept = if path.exists() { "; the one before is kept" } else { "" };
        self.to_bytes()
            .and_then(|bytes| write_whole(path, &bytes))
            .with_context(|| format!("cannot write the checkpoint {}{kept}", path.display()))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let label = Label { digest: NO_DIGEST.to_owned(), place: self.place.clone() };
        let label = HashMap::from([(PLACE.to_owned(), serde_json::to_string(&label)?)]);
        let mut bytes = safetensors::serialize(&self.tensors, Some(label))?;
        let digest = hex(&Sha256::digest(&bytes));
        let at = find(&bytes, NO_DIGEST).context("the checkpoint has no place for its digest")?;
        bytes[at..at + digest.len()].copy_from_slice(digest.as_bytes());
        Ok(bytes)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is another file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the checkpoint {}", path.display()))?;
        Self::from_bytes(bytes).with_context(|| {
            format!("{} is damaged: go on from another checkpoint, or begin again with --overwrite", path.display())
        })
    }

    /// The same of its bytes.
    ///
    /// # Errors
    /// If they are damaged, or of another file.
    pub fn from_bytes(mut bytes: Vec<u8>) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let label = header.metadata().as_ref().and_then(|metadata| metadata.get(PLACE));
        let label = label.context("it is not a checkpoint of this trainer")?;
        let Label { digest, place } = serde_json::from_str(label)?;
        ensure!(digest.len() == NO_DIGEST.len(), "it has no digest");
        // The first of these in the file is in the header, which the tensors follow.
        let at = find(&bytes, &digest).context("it has no digest")?;
        bytes[at..at + digest.len()].copy_from_slice(NO_DIGEST.as_bytes());
        let found = hex(&Sha256::digest(&bytes));
        ensure!(found == digest, "its SHA-256 is {found}, expected {digest}");
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Ok(Self { tensors: tensors.into_iter().collect(), place })
    }

    /// Takes out the tensors whose names begin so, without that.
    pub fn take(&mut self, prefix: &str) -> BTreeMap<String, Tensor> {
        let names: Vec<_> = self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let taken = names.into_iter().filter_map(|name| {
            let tensor = self.tensors.remove(&name)?;
            Some((name[prefix.len()..].to_owned(), tensor))
        });
        taken.collect()
    }

    /// Adds tensors under names that begin so.
    pub fn put(&mut self, prefix: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        self.tensors.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    }
}

/// Where a text begins in bytes.
fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

/// Numbers as a tensor, bit for bit.
fn to_tensor<T: candle_core::WithDType>(numbers: &[T]) -> Result<Tensor> {
    Ok(Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?)
}

/// What a method remembers and what it has made of the labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) labels: Vec<u32>,
    pub(super) kept: Vec<u32>,
    pub(super) selected: Vec<u32>,
    pub(super) memory: Memory,
}

impl Plan {
    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![
            ("labels".to_owned(), to_tensor(&self.labels)?),
            ("kept".to_owned(), to_tensor(&self.kept)?),
            ("selected".to_owned(), to_tensor(&self.selected)?),
            ("each".to_owned(), to_tensor(&self.memory.each)?),
            ("few".to_owned(), to_tensor(&self.memory.few)?),
        ])
    }

    /// What [`tensors`](Self::tensors) has made, for a training of so many images of so many classes.
    ///
    /// # Errors
    /// If something is missing, or cannot be of such a training.
    pub(super) fn from_tensors(mut tensors: BTreeMap<String, Tensor>, images: usize, classes: usize) -> Result<Self> {
        let mut take = |name: &str| match tensors.remove(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("the checkpoint has no `{name}`"),
        };
        let plan = Self {
            labels: take("labels")?.to_vec1()?,
            kept: take("kept")?.to_vec1()?,
            selected: take("selected")?.to_vec1()?,
            memory: Memory { each: take("each")?.to_vec1()?, few: take("few")?.to_vec1()? },
        };
        let Self { labels, kept, selected, memory } = &plan;
        ensure!(labels.len() == images, "the checkpoint has {} labels: expected {images}", labels.len());
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            bail!("the checkpoint has a label {label}: expected 0 to {}", classes - 1)
        }
        for (name, places) in [("kept", kept), ("selected", selected)] {
            if let Some(place) = places.iter().find(|place| **place as usize >= images) {
                bail!("`{name}` of the checkpoint names image {place}: expected 0 to {}", images - 1)
            }
        }
        let each = memory.each.len();
        ensure!(each == 0 || each == images, "`each` of the checkpoint has {each} numbers: expected {images}");
        Ok(plan)
    }
}

/// The keys in which a recipe that was found, as JSON, differs from the one that is expected. Keys that it has not are as a
/// recipe has them that says nothing of them: it is from before they were there.
pub(crate) fn differences(found: &str, expected: &str) -> Vec<String> {
    let (found, expected) = (whole(found), whole(expected));
    let mut keys: Vec<_> = expected.keys().chain(found.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| found.get(key) != expected.get(key));
    keys
}

/// Where two recipes differ first, in words.
pub(crate) fn difference(found: &str, expected: &str) -> Option<String> {
    let key = differences(found, expected).into_iter().next()?;
    let (found, expected) = (whole(found), whole(expected));
    let show = |value: Option<&serde_json::Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    Some(format!("expected `{key}` {}, found {}", show(expected.get(&key)), show(found.get(&key))))
}

/// All keys of a recipe.
fn whole(recipe: &str) -> BTreeMap<String, serde_json::Value> {
    fn object(text: &str) -> BTreeMap<String, serde_json::Value> {
        serde_json::from_str(text).unwrap_or_default()
    }
    let silent =
        Changes::default().recipe(&Scale::default()).ok().and_then(|recipe| serde_json::to_string(&recipe).ok());
    let silent = silent.map(|silent| object(&silent)).unwrap_or_default();
    silent.into_iter().chain(object(recipe)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checkpoint() -> Checkpoint {
        let place = Place { recipe: r#"{"lr":0.1,"model":"mlp"}"#.to_owned(), step: 7, ..Place::default() };
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), place };
        checkpoint.put("weight/", [("w".to_owned(), to_tensor(&[1f32, f32::NAN, -0.0]).unwrap())]);
        checkpoint
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let saved = checkpoint();
        saved.save(&path).unwrap();
        let mut loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded.place, saved.place);
        let bits: Vec<u32> =
            loaded.take("weight/")["w"].to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [1f32, f32::NAN, -0.0].map(f32::to_bits));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // The same bytes again.
        assert!(saved.to_bytes().unwrap() == fs::read(&path).unwrap());
    }

    #[test]
    fn a_plan_is_that_of_its_images() {
        let plan = Plan {
            labels: vec![3, 1],
            selected: vec![],
            kept: vec![0],
            memory: Memory { each: vec![0.5, 0.25], few: vec![0.1] },
        };
        let load = |change: &dyn Fn(&mut Plan)| {
            let mut plan = plan.clone();
            change(&mut plan);
            Plan::from_tensors(plan.tensors().unwrap().into_iter().collect(), 2, 4)
        };
        assert_eq!(load(&|_| ()).unwrap(), plan);
        for (change, words) in [
            (&(|plan: &mut Plan| plan.labels[0] = 4) as &dyn Fn(&mut Plan), "label 4: expected 0 to 3"),
            (&|plan| plan.labels.push(0), "3 labels: expected 2"),
            (&|plan| plan.kept.push(2), "`kept` of the checkpoint names image 2: expected 0 to 1"),
            (&|plan| plan.selected.push(u32::MAX), "`selected`"),
            (&|plan| plan.memory.each.truncate(1), "`each` of the checkpoint has 1 numbers"),
        ] {
            let error = load(change).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let whole = checkpoint().to_bytes().unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = format!("{:#}", Checkpoint::load(&path).unwrap_err());
            assert!(error.contains("checkpoint.safetensors is damaged"), "{length}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let whole = checkpoint().to_bytes().unwrap();
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::from_bytes(bytes).is_err(), "bit {bit}");
        }
        Checkpoint::from_bytes(whole).unwrap();
    }

    #[test]
    fn recipes_are_compared() {
        let (found, expected) = (r#"{"lr":0.1,"model":"mlp"}"#, r#"{"lr":0.1,"model":"cnn"}"#);
        assert_eq!(difference(found, expected).unwrap(), "expected `model` \"cnn\", found \"mlp\"");
        assert_eq!(difference(found, found), None);
        assert_eq!(differences(found, r#"{"lr":0.2,"epochs":3.0}"#), ["epochs", "lr"]);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        candle_core::safetensors::save(&HashMap::from([("w", to_tensor(&[1f32]).unwrap())]), &path).unwrap();
        let error = format!("{:#}", Checkpoint::load(&path).unwrap_err());
        assert!(error.contains("not a checkpoint of this trainer"), "{error}");
    }

    #[test]
    fn where_nothing_can_be_written_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/checkpoint.safetensors");
        let error = format!("{:#}", checkpoint().save(&path).unwrap_err());
        assert!(error.contains("cannot write the checkpoint"), "{error}");
    }
}
