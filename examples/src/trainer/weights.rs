//! Files of weights, with all that is needed to use them: the network, its classes, and the normalization of images.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::data::Data;
use super::job::Job;
use super::sealed::{self, NO_DIGEST};
use crate::data::MeanStd;
use crate::io::atomic::write_atomic;
use crate::models::layers::LayerSet;
use crate::models::params::named;
use crate::models::{Architecture, Model};
use crate::recipe::{MOST_TOKENS, RecipePatch, Scale};
use crate::util::device::DeviceConfig;

/// The metadata of a file of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsInfo {
    /// The network.
    pub model: Architecture,
    /// Channels, height and width of its images.
    pub shape: [usize; 3],
    /// The names of its classes, by label.
    pub classes: Vec<String>,
    /// The statistics that images are normalized by.
    pub scale: MeanStd,
    /// Whether images come from files of any size (`lazy`), cropped as such.
    pub lazy: bool,
    /// The data set that it was trained on.
    pub data: String,
    /// The recipe, in TOML.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// The epoch, from 1.
    pub epoch: usize,
    /// Its test error.
    pub test_error: f64,
}

/// The key of this in the metadata of the file.
const ABOUT: &str = "about";

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Label {
    /// SHA-256 of the file with [`NO_DIGEST`] here; files of older versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(flatten)]
    info: WeightsInfo,
}

impl WeightsInfo {
    pub(super) fn of(job: &Job<'_>, epoch: usize, test_error: f64) -> Result<Self> {
        let Job { recipe, data, seed, .. } = job;
        Ok(Self {
            model: recipe.model,
            shape: data.train.shape(),
            classes: data.class_names.clone(),
            scale: data.train.scale().clone(),
            lazy: recipe.lazy,
            data: data.name.clone(),
            recipe: recipe.to_toml()?,
            seed: *seed,
            epoch,
            test_error,
        })
    }

    /// Writes weights with this.
    pub(super) fn write(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let label = Label { digest: Some(NO_DIGEST.to_owned()), info: self.clone() };
        let about = HashMap::from([(ABOUT.to_owned(), serde_json::to_string(&label)?)]);
        let mut bytes = safetensors::serialize(weights, Some(about))?;
        sealed::seal(&mut bytes)?;
        write_atomic(path, &bytes)
    }

    /// The metadata of a file of weights, and the network with these weights.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, has no such metadata, or lacks a weight of the network.
    pub fn load(path: &Path, device: &DeviceConfig) -> Result<(Self, Model)> {
        let cannot = || format!("cannot use {}", path.display());
        let bytes = read(path)?;
        let about = Self::from_bytes(&bytes).with_context(cannot)?;
        let model = Model::at(device, about.model, about.shape, about.classes.len(), 0).with_context(cannot)?;
        put(&tensors(&bytes).with_context(cannot)?, model.vars(), |_| true).with_context(cannot)?;
        Ok((about, model))
    }

    /// The data set that the network of this file was trained on.
    ///
    /// # Errors
    /// If it is not found, or has other classes or images.
    pub fn data_set(&self, file: &Path, folder: Option<&Path>, device: &Device) -> Result<Data> {
        let name = file.display().to_string();
        let mut recipe = RecipePatch::parse(&name, &self.recipe)?.recipe(&Scale::default())?;
        // The initial weights are not read here.
        recipe.start.clear();
        recipe.new_head = false;
        recipe.frozen_norm = false;
        let data = Data::load(&recipe, folder, self.seed, device)?;
        ensure!(
            data.class_names == self.classes && data.test.shape() == self.shape,
            "{name} is of {} classes and images of {:?}: expected the {} classes and images of {:?} of {}",
            self.classes.len(),
            self.shape,
            data.classes,
            data.test.shape(),
            data.name
        );
        Ok(data)
    }

    /// The bytes of images as the input (n, channels, height, width) of the network.
    ///
    /// # Errors
    /// If there are not as many bytes as images of its shape have.
    pub fn normalized(&self, images: &[Vec<u8>], device: &DeviceConfig) -> Result<Tensor> {
        let [channels, height, width] = self.shape;
        let plane = (height * width).max(1);
        let mut pixels = Vec::with_capacity(images.len() * channels * plane);
        for image in images {
            ensure!(
                image.len() == channels * plane,
                "an image of {} bytes: expected {}",
                image.len(),
                channels * plane
            );
            for (channel, bytes) in image.chunks(plane).enumerate() {
                let (mean, std) = (self.scale.mean[channel] as f32, self.scale.std[channel] as f32);
                pixels.extend(bytes.iter().map(|byte| (f32::from(*byte) / 255.0 - mean) / std));
            }
        }
        Ok(Tensor::from_vec(pixels, (images.len(), channels, height, width), &device.device)?)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let about = about(bytes)?
            .context("it does not say which network it is of: expected a weights file that `train` has written")?;
        let about: Self = serde_json::from_str(&about)?;
        let [channels, height, width] = about.shape;
        let Self { classes, scale: MeanStd { mean, std }, .. } = &about;
        if about.model.is_for_text() {
            ensure!(
                (channels, height) == (1, 1) && (1..=MOST_TOKENS).contains(&width),
                "its windows are {channels} x {height} x {width}: expected 1 x 1 x a length of 1 to {MOST_TOKENS} tokens"
            );
        } else {
            ensure!(
                matches!(channels, 1 | 3) && (1..=4096).contains(&height) && (1..=4096).contains(&width),
                "its images are {channels} x {height} x {width}: expected 1 or 3 channels of 1 to 4096 pixels a side"
            );
        }
        ensure!(!classes.is_empty(), "it names no classes: expected at least one");
        let is_scale = mean.len() == channels && std.len() == channels && std.iter().all(|std| *std > 0.0);
        ensure!(
            is_scale,
            "it does not say how images of {channels} channels are normalized: expected a weights file that `train` has written"
        );
        Ok(about)
    }
}

/// Loads the weights of a safetensors file into the variables of a model whose names are `wanted`.
///
/// # Errors
/// If it cannot be read, is damaged, lacks a weight, or has one of another shape.
pub fn load_weights<K: LayerSet + 'static>(path: &Path, model: &Model<K>, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let bytes = read(path)?;
    let load = || put(&tensors(&bytes)?, model.vars(), wanted);
    load().with_context(|| format!("cannot use {}", path.display()))
}

/// The bytes of a file of weights. The digest of one that `train` has written is checked.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut check = || -> Result<()> {
        // The label of other files is not ours to judge.
        let label = about(&bytes)?.and_then(|about| serde_json::from_str::<Label>(&about).ok());
        label.and_then(|label| label.digest).map_or(Ok(()), |digest| sealed::check(&mut bytes, &digest))
    };
    check().with_context(|| format!("cannot use {}: it is damaged", path.display()))?;
    Ok(bytes)
}

/// What the metadata say.
fn about(bytes: &[u8]) -> Result<Option<String>> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    Ok(header.metadata().as_ref().and_then(|metadata| metadata.get(ABOUT)).cloned())
}

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    Ok(candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?.into_iter().collect())
}

/// Sets variables to weights of their names and shapes, all or none.
pub(super) fn put(weights: &BTreeMap<String, Tensor>, vars: &VarMap, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut values = Vec::new();
    for (name, var) in named(vars).into_iter().filter(|(name, _)| wanted(name)) {
        let weight = weights
            .get(&name)
            .with_context(|| format!("it has no weight `{name}`: expected the weights of the same network"))?;
        ensure!(
            weight.dims() == var.dims(),
            "its weight `{name}` has shape {:?}: expected {:?}",
            weight.dims(),
            var.dims()
        );
        let value = weight.to_dtype(var.dtype())?.to_device(var.device())?;
        values.push((var, value));
    }
    for (var, value) in values {
        var.set(&value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> WeightsInfo {
        WeightsInfo {
            model: Architecture::Mlp(3),
            shape: [1, 2, 2],
            classes: vec!["cat".to_owned(), "dog".to_owned()],
            scale: MeanStd { mean: vec![0.5], std: vec![0.25] },
            lazy: false,
            data: "a test".to_owned(),
            recipe: String::new(),
            seed: 1,
            epoch: 2,
            test_error: 0.25,
        }
    }

    #[test]
    fn flipped_bits_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let model: Model = Model::new(Architecture::Mlp(3), [1, 2, 2], 2, 7).unwrap();
        let weights = named(model.vars()).into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        about().write(&weights, &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let data = 4 * weights.values().map(Tensor::elem_count).sum::<usize>();
        for bit in 8 * (whole.len() - data)..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            for error in [
                WeightsInfo::load(&path, &DeviceConfig::CPU).err().unwrap(),
                load_weights(&path, &model, |_| true).unwrap_err(),
            ] {
                assert!(format!("{error:#}").contains("weights.safetensors: it is damaged: its SHA-256"), "{error:#}");
            }
        }
        // Files of others, and of older versions, have no digest.
        for metadata in [None, Some(HashMap::from([(ABOUT.to_owned(), serde_json::to_string(&about()).unwrap())]))] {
            std::fs::write(&path, safetensors::serialize(&weights, metadata).unwrap()).unwrap();
            load_weights(&path, &model, |_| true).unwrap();
        }
        WeightsInfo::load(&path, &DeviceConfig::CPU).unwrap();
    }

    /// As long as a recipe may be.
    #[test]
    fn a_language_model_may_be_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let long = |length| WeightsInfo {
            model: Architecture::Gpt(8),
            shape: [1, 1, length],
            classes: crate::data::Text::tokens(),
            scale: MeanStd { mean: vec![0.0], std: vec![1.0] },
            ..about()
        };
        let model: Model = Model::new(Architecture::Gpt(8), [1, 1, 4100], 256, 7).unwrap();
        let weights = named(model.vars()).into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        long(4100).write(&weights, &path).unwrap();
        assert_eq!(WeightsInfo::load(&path, &DeviceConfig::CPU).unwrap().0.shape, [1, 1, 4100]);
        long(70_000).write(&weights, &path).unwrap();
        let error = format!("{:#}", WeightsInfo::load(&path, &DeviceConfig::CPU).err().unwrap());
        assert!(error.contains("a length of 1 to 65536 tokens"), "{error}");
    }

    #[test]
    fn a_file_says_what_it_is_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let model: Model = Model::new(Architecture::Mlp(3), [1, 2, 2], 2, 7).unwrap();
        let vars = model.vars().data().lock().unwrap();
        let weights: BTreeMap<_, _> = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        about().write(&weights, &path).unwrap();
        let (found, loaded) = WeightsInfo::load(&path, &DeviceConfig::CPU).unwrap();
        assert_eq!(found, about());
        let x = Tensor::new(&[[[[0.1f32, 0.2], [0.3, 0.4]]]], &Device::Cpu).unwrap();
        let logits = |model: &Model| model.forward(&x, false).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logits(&loaded), logits(&model));

        let refused = |about: &WeightsInfo| {
            about.write(&weights, &path).unwrap();
            format!("{:#}", WeightsInfo::load(&path, &DeviceConfig::CPU).err().unwrap())
        };
        assert!(refused(&WeightsInfo { model: Architecture::Mlp(4), ..about() }).contains("has shape"));
        assert!(refused(&WeightsInfo { shape: [2, 2, 2], ..about() }).contains("expected 1 or 3 channels"));
        assert!(refused(&WeightsInfo { classes: vec![], ..about() }).contains("names no classes"));
        let no_scale = MeanStd { mean: vec![], std: vec![] };
        assert!(refused(&WeightsInfo { scale: no_scale, ..about() }).contains("normalized"));
        write_atomic(&path, &safetensors::serialize(&weights, None).unwrap()).unwrap();
        let error = format!("{:#}", WeightsInfo::load(&path, &DeviceConfig::CPU).err().unwrap());
        assert!(error.contains("weights.safetensors") && error.contains("which network"), "{error}");
    }
}
