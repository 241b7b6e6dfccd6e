//! What to train, and how far a training is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sam_runtime::distributed::Comm;
use serde_json::json;

use super::checkpoint::Checkpoint;
use super::data::Data;
use super::recipe_diff::{difference, differences};
use crate::data::digest_of;
use crate::recipe::Recipe;
use crate::util::device::DeviceConfig;
use crate::util::stop::Stop;

/// One training.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The seed of everything random.
    pub seed: u64,
    /// The images of this seed.
    pub data: &'a Data,
    /// Where to train; the data is on the same device.
    pub device: &'a DeviceConfig,
    /// The folder of initial weights (`start`).
    pub weights: Option<&'a Path>,
    /// The folder of log, events and checkpoint.
    pub folder: &'a Path,
    /// Steps between checkpoints; 0 for one at the end of a session only.
    pub every: usize,
    /// Steps between reports of the sharpness; 0 for none.
    pub report: usize,
    /// Whether weights are written: the last, the best, and those of `keep-epochs`.
    pub keep_weights: bool,
    /// The label of a scaled or changed recipe; empty for others.
    pub scaled: String,
}

/// The progress of a training, for display.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// The phase, from 0, and the number of phases.
    pub phase: (usize, usize),
    /// Completed steps of the phase, and the number of steps.
    pub step: (usize, usize),
    /// The loss of the last step whose loss has been read.
    pub loss: f64,
    /// Images, or windows of a text, per second of this session.
    pub throughput: f64,
    /// The last test error.
    pub test_error: Option<f64>,
}

/// What a training does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Continue.
    GoOn,
    /// Save everything and stop.
    Stop,
}

/// The settings of one session of a training.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The ranks that train together; unless set, this process alone.
    pub world: Comm,
    /// The signal to stop.
    pub stop: Stop,
    /// A checkpoint of another folder to start from, if there is none in its own.
    pub from: Option<PathBuf>,
    /// Whether a checkpoint of a recipe that differs in its length only may be resumed.
    pub may_prolong: bool,
    /// Whether the results of another training in the folder are replaced. They are removed before the first write, when all
    /// that can be refused has been checked.
    pub overwrite: bool,
}

impl Job<'_> {
    /// Its checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    /// The file of initial weights, if the recipe has one.
    pub(super) fn start_file(&self) -> Result<Option<PathBuf>> {
        let start = &self.recipe.start;
        if start.is_empty() {
            return Ok(None);
        }
        let folder =
            self.weights.with_context(|| format!("`start` is {start}: name the folder of this file with --data"))?;
        Ok(Some(folder.join(start)))
    }

    /// The recipe, the seed and the data as JSON: a checkpoint of another training has another text.
    pub(super) fn words(&self) -> Result<String> {
        let mut words = serde_json::to_value(self.recipe)?;
        words["seed"] = json!(self.seed);
        words["training images"] = json!(self.data.train.len());
        words["data set"] = json!(self.data.digest);
        if let Some(start) = self.start_file()? {
            words["initial weights"] = json!(digest_of(&start)?);
        }
        if !self.device.is_default() {
            words["place"] = json!(self.device.to_string());
        }
        Ok(words.to_string())
    }

    /// The checkpoint to resume from, if there is one, after a check that it is of this training. Rank 0 reads it for all.
    pub(super) fn saved(&self, session: &Session, words: &str) -> Result<Option<(Checkpoint, PathBuf)>> {
        let own = self.checkpoint();
        let path = match &session.from {
            _ if session.overwrite => None,
            _ if session.world.rank() > 0 || own.exists() => Some(own),
            other => other.clone(),
        };
        let checkpoint = match &path {
            Some(path) if session.world.rank() == 0 => Checkpoint::read(path)?,
            _ => Vec::new(),
        };
        let checkpoint = session.world.broadcast_bytes(&checkpoint)?;
        let Some(path) = path.filter(|_| !checkpoint.is_empty()) else { return Ok(None) };
        let checkpoint = Checkpoint::of_file(&path, checkpoint)?;
        let found = &checkpoint.progress.recipe;
        let is_length = |key: &String| ["epochs", "steps", "stretch", "patience"].contains(&key.as_str());
        let different = differences(found, words);
        if let Some(difference) = difference(found, words)
            && !(session.may_prolong && different.iter().all(is_length))
        {
            let advice = if different == ["data set"] {
                "the images or labels have changed since: put them back, or start again in another folder"
            } else {
                "start again with --overwrite, or choose another folder"
            };
            bail!("{} is a checkpoint of another training: {advice}; {difference}", path.display())
        }
        let phases = self.recipe.method.phases().len();
        ensure!(
            checkpoint.progress.phase < phases,
            "{} is in phase {}, from 0: expected one of the {phases} phases of the method",
            path.display(),
            checkpoint.progress.phase
        );
        ensure!(
            different.is_empty() || phases == 1,
            "{} cannot be prolonged, because its method has {phases} phases: start again with --overwrite",
            path.display()
        );
        Ok(Some((checkpoint, path)))
    }
}
