//! Checkpoints: everything that a training needs to resume, in one safetensors file that is written atomically and contains a
//! digest of all its bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::sealed::{self, NO_DIGEST};
use crate::io::atomic::write_atomic;

/// Tensors by name, and the progress of the training.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Weights, momentum buffers and all else.
    pub tensors: BTreeMap<String, Tensor>,
    /// The progress of the training.
    pub progress: Progress,
}

/// The progress of a training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Recipe, seed and data as JSON: another training cannot resume from here.
    pub recipe: String,
    /// The current phase.
    #[serde(rename = "stage")]
    pub phase: usize,
    /// Completed steps of the phase.
    pub step: usize,
    /// Completed steps of all phases.
    pub steps: usize,
    /// The sum of the losses of this epoch's steps.
    pub loss: Bits,
    /// The mean loss of the last epoch of the phase before.
    pub last_loss: Bits,
    /// The sum of L(w + ε̂) - L(w) of this epoch's steps, if they had both.
    pub sharpness: Option<Bits>,
    /// Its mean over the last epoch of the phase before.
    pub last_sharpness: Option<Bits>,
    /// The length of the log in bytes.
    pub log: u64,
    /// The SHA-256 of these bytes; empty in files of older versions, which do not have it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_digest: String,
    /// The length of the event file in bytes.
    pub events: u64,
    /// The SHA-256 of these bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub events_digest: String,
    /// Seconds spent.
    pub seconds: f64,
    /// The last test error.
    pub test_error: Option<Bits>,
    /// The cross-entropy of the same test, of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<Bits>,
    /// Whether the epoch that has just ended has not been tested yet.
    pub untested: bool,
    /// The lowest test error, of a text the lowest loss, and its epoch.
    pub best: Option<(Bits, usize)>,
    /// Whether that has not fallen for too long (`patience`).
    pub stopped_early: bool,
}

/// A number as its bits, which JSON does not round.
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

const PROGRESS: &str = "place";

/// The metadata of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Label {
    /// SHA-256 of the file with [`NO_DIGEST`] here.
    digest: String,
    #[serde(flatten)]
    progress: Progress,
}

impl Checkpoint {
    /// Writes the checkpoint atomically and durably.
    ///
    /// # Errors
    /// If it cannot be written; the old one is untouched.
    pub fn save(&self, path: &Path) -> Result<()> {
        let kept = if path.exists() { "; the one before is kept" } else { "" };
        self.to_bytes()
            .and_then(|bytes| write_atomic(path, &bytes))
            .with_context(|| format!("cannot write the checkpoint {}{kept}", path.display()))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let label = Label { digest: NO_DIGEST.to_owned(), progress: self.progress.clone() };
        let label = HashMap::from([(PROGRESS.to_owned(), serde_json::to_string(&label)?)]);
        let mut bytes = safetensors::serialize(&self.tensors, Some(label))?;
        sealed::seal(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is another file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::of_file(path, Self::read(path)?)
    }

    /// The bytes of a checkpoint.
    pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).with_context(|| format!("cannot read the checkpoint {}", path.display()))
    }

    /// The checkpoint with these bytes of a file.
    pub(super) fn of_file(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::from_bytes(bytes).with_context(|| {
            format!("{} is damaged: resume from another checkpoint, or start again with --overwrite", path.display())
        })
    }

    /// Reads a checkpoint from its bytes.
    ///
    /// # Errors
    /// If they are damaged, or of another file.
    pub fn from_bytes(mut bytes: Vec<u8>) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let label = header.metadata().as_ref().and_then(|metadata| metadata.get(PROGRESS));
        let label = label.context("it is not a checkpoint of this trainer")?;
        let Label { digest, progress } = serde_json::from_str(label)?;
        sealed::check(&mut bytes, &digest)?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Ok(Self { tensors: tensors.into_iter().collect(), progress })
    }

    /// Removes and returns the tensors whose names begin with `prefix`, without the prefix.
    pub fn take(&mut self, prefix: &str) -> BTreeMap<String, Tensor> {
        let names: Vec<_> = self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let taken = names.into_iter().filter_map(|name| {
            let tensor = self.tensors.remove(&name)?;
            Some((name[prefix.len()..].to_owned(), tensor))
        });
        taken.collect()
    }

    /// Adds tensors with `prefix` before their names.
    pub fn put(&mut self, prefix: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        self.tensors.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    }
}

/// A file as a tensor of a checkpoint.
pub(super) fn bytes_tensor(bytes: Vec<u8>) -> Result<Tensor> {
    let length = bytes.len();
    Ok(Tensor::from_vec(bytes, length, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checkpoint() -> Checkpoint {
        let progress = Progress { recipe: r#"{"lr":0.1,"model":"mlp"}"#.to_owned(), step: 7, ..Progress::default() };
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), progress };
        checkpoint.put("weight/", [("w".to_owned(), Tensor::new(&[1f32, f32::NAN, -0.0], &Device::Cpu).unwrap())]);
        checkpoint
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let saved = checkpoint();
        saved.save(&path).unwrap();
        let mut loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded.progress, saved.progress);
        let bits: Vec<u32> =
            loaded.take("weight/")["w"].to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [1f32, f32::NAN, -0.0].map(f32::to_bits));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // The same bytes again.
        assert!(saved.to_bytes().unwrap() == fs::read(&path).unwrap());
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
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        candle_core::safetensors::save(&HashMap::from([("w", Tensor::new(&[1f32], &Device::Cpu).unwrap())]), &path)
            .unwrap();
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
