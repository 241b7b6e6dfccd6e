//! Tests during a training, and the weights that it writes.

use anyhow::Result;
use serde_json::json;

use super::epochs_csv;
use super::phase_length::PhaseLength;
use super::ranks::with_mean_statistics;
use super::run_dir::kept_weights;
use super::training::Training;
use super::weights::WeightsInfo;
use crate::data::ImageSet;
use crate::metrics::{Scores, bits, over_ranks};
use crate::models::params::named;
use crate::util::numbers::count;

/// The largest number of tests of a training.
const TESTS: usize = 20;

/// The least number of training images for each image of a test.
const TRAINED_PER_TESTED: usize = 4;

impl Training<'_> {
    /// Tests and logs, unless the test of this epoch is skipped.
    pub(super) fn end_epoch(&mut self, length: PhaseLength) -> Result<()> {
        let (data, patience) = (self.job.data, self.job.recipe.patience);
        let PhaseLength { epochs, steps, .. } = length;
        let epoch = length.epoch(self.progress.step);
        let affordable = epochs.saturating_mul(data.train.len()) / (TRAINED_PER_TESTED * data.test.len());
        let every = if patience > 0 { 1 } else { epochs.div_ceil(affordable.clamp(1, TESTS)) };
        if self.progress.step < steps && !epoch.is_multiple_of(every) {
            self.progress.untested = false;
            return Ok(());
        }
        let scores = self.test_scores()?;
        let error = scores.error;
        self.progress.untested = false;
        self.keep_scores(scores);
        let mut line =
            json!({ "stage": self.progress.phase, "step": self.progress.step, "epoch": epoch, "test error": error });
        let mut event = vec![("test/error", error)];
        if self.is_text() {
            line["test loss"] = json!(scores.loss);
            line["bits per token"] = json!(bits(scores.loss));
            event.extend([("test/loss", scores.loss), ("test/bits per token", bits(scores.loss))]);
        }
        self.note(&line)?;
        self.add_event(&event)?;
        if self.is_last_phase() {
            let measure = if self.is_text() { scores.loss } else { error };
            if self.progress.best.is_none_or(|(best, _)| measure < best.into()) {
                self.progress.best = Some((measure.into(), epoch));
                if self.job.keep_weights {
                    self.with_average(|training| training.write_weights("best.safetensors", epoch, error))?;
                }
            }
            self.progress.stopped_early = length.stops_early(patience, &self.progress);
        }
        if self.job.keep_weights && self.files.is_some() {
            epochs_csv::write(&self.job.folder.join("log.jsonl"), &self.job.folder.join("epochs.csv"))?;
        }
        Ok(())
    }

    /// Writes the weights of this step, if `keep-epochs` names it.
    pub(super) fn keep_epoch(&mut self, per_epoch: usize) -> Result<()> {
        let recipe = self.job.recipe;
        let here = kept_at(&recipe.keep_epochs, per_epoch, self.progress.step);
        if !self.is_last_phase() || here.is_empty() {
            return Ok(());
        }
        let error = self.test_scores()?.error;
        let epoch = (self.progress.step - 1) / per_epoch + 1;
        self.with_average(|training| {
            here.iter().try_for_each(|at| training.write_weights(&kept_weights(*at), epoch, error))
        })
    }

    /// Runs `f` with the averaged weights, if there are any, and the mean statistics of all ranks.
    pub(super) fn with_average<R>(&self, f: impl FnOnce(&Self) -> Result<R>) -> Result<R> {
        let f = || with_mean_statistics(self.model.vars(), &self.world, || f(self));
        match &self.average {
            Some(average) => average.during(f),
            None => f(),
        }
    }

    /// The test images. Of several ranks none leaves a test before the others.
    pub(super) fn test(&self) -> ImageSet {
        let images = &self.job.data.test;
        if self.world.size() > 1 { images.clone() } else { images.interrupted_by(&self.stop) }
    }

    /// Whether the data set is a text.
    pub(super) fn is_text(&self) -> bool {
        self.job.recipe.model.is_for_text()
    }

    /// A test of the averaged weights, if there are any, or of the weights.
    pub(super) fn test_scores(&self) -> Result<Scores> {
        self.with_average(|training| {
            over_ranks::test(&training.test(), &training.world, |test| {
                Ok(Scores::of(&training.model, test.in_order(test.test_batch()).in_background().pairs())?)
            })
        })
    }

    /// Remembers the last test.
    pub(super) fn keep_scores(&mut self, scores: Scores) {
        self.progress.test_error = Some(scores.error.into());
        self.progress.test_loss = self.is_text().then(|| scores.loss.into());
    }

    /// Writes the variables of the model, with what is needed to use them.
    pub(super) fn write_weights(&self, name: &str, epoch: usize, test_error: f64) -> Result<()> {
        if self.files.is_none() {
            return Ok(());
        }
        let weights = named(self.model.vars()).into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        let info = WeightsInfo::of(self.job, epoch, test_error)?;
        info.write(&weights, &self.job.folder.join(name))
    }
}

/// The epochs that end at this step.
fn kept_at(epochs: &[f64], per_epoch: usize, step: usize) -> Vec<f64> {
    epochs.iter().copied().filter(|at| count(at * per_epoch as f64).max(1) == step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where two are less than a step apart, as in a shortened run.
    #[test]
    fn weights_are_kept_at_the_ends_of_epochs() {
        let at = |step| kept_at(&[0.001, 1.0, 2.5, 2.51], 8, step);
        assert_eq!([at(1), at(8), at(20)], [vec![0.001], vec![1.0], vec![2.5, 2.51]]);
        assert!(at(0).is_empty() && at(16).is_empty());
    }
}
