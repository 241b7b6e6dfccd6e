//! The images that a phase trains on, and its length.

use std::collections::HashSet;

use anyhow::{Result, bail, ensure};

use super::checkpoint::Progress;
use super::job::Job;
use super::label_state::LabelState;
use crate::data::ImageSet;
use crate::noisy_labels::{Phase, TrainSubset};
use crate::recipe::Recipe;
use crate::util::numbers::count;
use crate::util::stop::Stop;

/// The images and labels of a phase.
pub(super) fn phase_images(job: &Job<'_>, labels: &LabelState, subset: TrainSubset, stop: &Stop) -> Result<ImageSet> {
    let mut all = job.data.train.interrupted_by(stop);
    all.labels_mut().copy_from_slice(&labels.labels);
    let images = match subset {
        TrainSubset::Kept => all.part(labels.kept.clone()),
        TrainSubset::Selected => all.part(labels.selected.clone()),
        TrainSubset::SelectedAndFold(fold) => {
            let selected: HashSet<_> = labels.selected.iter().collect();
            let indices = all.indices().iter().copied();
            let is_candidate = |image: u32| fold.has(job.seed, image) && !labels.state.leaves_out(image);
            all.part(indices.filter(|image| is_candidate(*image) || selected.contains(image)).collect())
        }
    };
    ensure!(!images.is_empty(), "the method has selected no images to train on: expected at least one");
    Ok(images)
}

/// The length of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PhaseLength {
    /// Images of a step.
    pub(super) batch: usize,
    /// Steps of an epoch.
    pub(super) per_epoch: usize,
    /// Steps of the phase.
    pub(super) steps: usize,
    /// Epochs of the phase; the last one may be incomplete.
    pub(super) epochs: usize,
}

impl PhaseLength {
    pub(super) fn of(recipe: &Recipe, phase: &Phase, images: &ImageSet) -> Self {
        let batch = recipe.batch.min(images.len());
        let per_epoch = images.steps(batch);
        let whole = if recipe.steps > 0 { recipe.steps as f64 } else { recipe.epochs * per_epoch as f64 };
        let steps = count(whole * recipe.stretch * phase.epochs).max(1);
        Self { batch, per_epoch, steps, epochs: steps.div_ceil(per_epoch) }
    }

    /// The epoch, from 1, that this many steps end in.
    pub(super) fn epoch(self, step: usize) -> usize {
        step.div_ceil(self.per_epoch)
    }

    /// Whether the test error has not fallen for `patience` epochs; 0 for no such end.
    pub(super) fn stops_early(self, patience: usize, progress: &Progress) -> bool {
        let best = progress.best.map_or(0, |(_, epoch)| epoch);
        patience > 0 && self.epoch(progress.step).saturating_sub(best) >= patience
    }

    /// Checks that a training can be at this progress, and that it reaches all epochs whose weights are to be kept.
    pub(super) fn check(self, recipe: &Recipe, progress: &Progress, is_last: bool) -> Result<()> {
        let Progress { phase, step, steps, best, .. } = *progress;
        ensure!(
            step <= self.steps,
            "the checkpoint has done {step} steps: expected at most the {} of the training",
            self.steps
        );
        let all = if phase == 0 { step..=step } else { step..=usize::MAX / 2 };
        ensure!(all.contains(&steps), "the checkpoint has done {steps} steps in all, and {step} of phase {phase}");
        if let Some((_, epoch)) = best {
            let epochs = self.epoch(step);
            ensure!(epoch <= epochs, "the checkpoint has its best test error in epoch {epoch} of {epochs}");
        }
        if is_last { self.check_kept(recipe) } else { Ok(()) }
    }

    /// Checks that the last phase reaches all epochs whose weights are to be kept.
    pub(super) fn check_kept(self, recipe: &Recipe) -> Result<()> {
        if let Some(at) = recipe.keep_epochs.iter().find(|at| **at * self.per_epoch as f64 > 0.5 + self.steps as f64) {
            bail!("`keep-epochs` names epoch {at}: expected at most {}, since the training ends then", self.epochs)
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_from_the_best_epoch() {
        let length = PhaseLength { batch: 4, per_epoch: 8, steps: 100, epochs: 13 };
        let stops = |patience, step, best| {
            let progress = Progress { step, best: Some((0.5.into(), best)), ..Progress::default() };
            length.stops_early(patience, &progress)
        };
        assert!(stops(1, 16, 1) && stops(2, 24, 1));
        assert!(!stops(2, 16, 1) && !stops(0, 80, 1) && !stops(1, 8, 1));
    }

    #[test]
    fn a_progress_that_no_training_makes_is_refused() {
        let length = PhaseLength { batch: 4, per_epoch: 8, steps: 20, epochs: 3 };
        let recipe = crate::recipe::RecipePatch::default().recipe(&crate::recipe::Scale::default()).unwrap();
        let check = |phase, step, steps, best: Option<usize>| {
            let best = best.map(|epoch| (0.5.into(), epoch));
            length.check(&recipe, &Progress { phase, step, steps, best, ..Progress::default() }, true)
        };
        for (phase, step, steps, best) in [(0, 0, 0, None), (0, 20, 20, Some(3)), (1, 9, 29, Some(2)), (1, 0, 20, None)]
        {
            check(phase, step, steps, best).unwrap();
        }
        for (phase, step, steps, best, words) in [
            (0, 21, 21, None, "has done 21 steps: expected at most the 20"),
            (0, 3, 4, None, "4 steps in all, and 3 of phase 0"),
            (1, 3, 2, None, "2 steps in all"),
            (1, 3, usize::MAX, None, "steps in all"),
            (0, 8, 8, Some(2), "in epoch 2 of 1"),
        ] {
            let error = check(phase, step, steps, best).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
