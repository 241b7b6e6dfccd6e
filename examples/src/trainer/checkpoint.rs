//! Everything that a training needs to go on, in one safetensors file that is there whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::method::Memory;
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

impl Checkpoint {
    /// Writes it beside and puts it in place, so that the old one is there until the new one is whole.
    ///
    /// # Errors
    /// If it cannot be written; the old one is untouched.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let place = HashMap::from([(PLACE.to_owned(), serde_json::to_string(&self.place)?)]);
            let file = tempfile::Builder::new().prefix(".checkpoint").make_in(folder, |path| File::create_new(path))?;
            safetensors::serialize_to_file(&self.tensors, Some(place), file.path())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            // The name is on the disk when its folder is.
            File::open(folder)?.sync_all()?;
            Ok(())
        };
        let kept = if path.exists() { "; the one before is kept" } else { "" };
        write().with_context(|| format!("cannot write the checkpoint {}{kept}", path.display()))
    }

    /// Reads a checkpoint of this recipe.
    ///
    /// # Errors
    /// If it is damaged, or of another recipe.
    pub fn load(path: &Path, recipe: &str) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the checkpoint {}", path.display()))?;
        let damaged =
            || format!("{} is damaged: go on from another checkpoint, or remove it to begin again", path.display());
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(damaged)?;
        let place = header.metadata().as_ref().and_then(|metadata| metadata.get(PLACE));
        let place = place.with_context(|| format!("{} is no checkpoint of this trainer", path.display()))?;
        let place: Place = serde_json::from_str(place).with_context(damaged)?;
        if let Some(difference) = difference(&place.recipe, recipe) {
            bail!(
                "{} is a checkpoint of another training: remove it, or choose another folder; {difference}",
                path.display()
            )
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).with_context(damaged)?;
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

    pub(super) fn from_tensors(mut tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let mut take = |name: &str| match tensors.remove(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("the checkpoint has no `{name}`"),
        };
        Ok(Self {
            labels: take("labels")?.to_vec1()?,
            kept: take("kept")?.to_vec1()?,
            selected: take("selected")?.to_vec1()?,
            memory: Memory { each: take("each")?.to_vec1()?, few: take("few")?.to_vec1()? },
        })
    }
}

/// Where a recipe that was found, as JSON, differs first from the one that is expected. Keys that it has not are as a recipe has
/// them that says nothing of them: it is from before they were there.
pub(crate) fn difference(found: &str, expected: &str) -> Option<String> {
    type Object = BTreeMap<String, serde_json::Value>;
    fn object(text: &str) -> Object {
        serde_json::from_str(text).unwrap_or_default()
    }
    let silent =
        Changes::default().recipe(&Scale::default()).ok().and_then(|recipe| serde_json::to_string(&recipe).ok());
    let silent = silent.map(|silent| object(&silent)).unwrap_or_default();
    let whole = |text: &str| -> Object { silent.clone().into_iter().chain(object(text)).collect() };
    let (found, expected) = (whole(found), whole(expected));
    let key = expected.keys().chain(found.keys()).find(|key| found.get(*key) != expected.get(*key))?;
    let show = |value: Option<&serde_json::Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    Some(format!("expected `{key}` {}, found {}", show(expected.get(key)), show(found.get(key))))
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
        let mut loaded = Checkpoint::load(&path, &saved.place.recipe).unwrap();
        assert_eq!(loaded.place, saved.place);
        let bits: Vec<u32> =
            loaded.take("weight/")["w"].to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [1f32, f32::NAN, -0.0].map(f32::to_bits));
        let plan = Plan {
            labels: vec![3, 1],
            selected: vec![],
            kept: vec![0],
            memory: Memory { each: vec![0.5], few: vec![0.1] },
        };
        assert_eq!(Plan::from_tensors(plan.tensors().unwrap().into_iter().collect()).unwrap(), plan);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint().save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = format!("{:#}", Checkpoint::load(&path, &checkpoint().place.recipe).unwrap_err());
            assert!(error.contains("checkpoint.safetensors is damaged"), "{length}: {error}");
        }
    }

    #[test]
    fn that_of_another_training_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint().save(&path).unwrap();
        let error = Checkpoint::load(&path, r#"{"lr":0.1,"model":"cnn"}"#).unwrap_err().to_string();
        assert!(error.contains("expected `model` \"cnn\", found \"mlp\""), "{error}");
        candle_core::safetensors::save(&HashMap::from([("w", to_tensor(&[1f32]).unwrap())]), &path).unwrap();
        let error = Checkpoint::load(&path, "").unwrap_err().to_string();
        assert!(error.contains("no checkpoint of this trainer"), "{error}");
    }

    #[test]
    fn where_nothing_can_be_written_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/checkpoint.safetensors");
        let error = format!("{:#}", checkpoint().save(&path).unwrap_err());
        assert!(error.contains("cannot write the checkpoint"), "{error}");
    }
}
