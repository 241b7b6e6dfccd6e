//! The end of a phase, and of a training.

use std::collections::BTreeSet;

use anyhow::Result;

use super::label_state::LabelState;
use super::outcome::Outcome;
use super::ranks::with_mean_statistics;
use super::setup::optimizer;
use super::training::Training;
use crate::metrics::{losses, over_ranks, predictions, top_5_error};
use crate::models::params::named;
use crate::noisy_labels::{AfterPhase, discriminate, without_worst};

impl Training<'_> {
    /// What follows a phase that is not the last.
    pub(super) fn end_phase(&mut self) -> Result<()> {
        self.follow()?;
        self.progress.phase += 1;
        self.progress.step = 0;
        self.optimizer = optimizer(self.job.recipe, &self.model)?;
        self.average = None;
        if self.job.every > 0 { self.save() } else { Ok(()) }
    }

    /// The end of the last phase. The checkpoint stays that of its last step, so that the training can be prolonged.
    pub(super) fn conclude(&mut self) -> Result<Option<Outcome>> {
        if self.job.every > 0 {
            self.save()?;
        }
        let trained: Vec<_> = named(self.model.vars())
            .into_iter()
            .map(|(_, var)| Ok((var.as_tensor().copy()?, var)))
            .collect::<Result<_>>()?;
        let outcome = self.follow().and_then(|()| self.outcome());
        match outcome {
            Err(error) if self.stop.is_why(&error) => {
                for (value, var) in trained {
                    var.set(&value)?;
                }
                self.save().map(|()| None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Applies what the phase has after its training. Until all images have been evaluated, only the variables of the model
    /// change.
    fn follow(&mut self) -> Result<()> {
        let phase = self.phase();
        let images = self.images(phase.images)?;
        let per_epoch = images.steps(self.job.recipe.batch.min(images.len()));
        let counted = (self.progress.step - 1) % per_epoch + 1;
        self.progress.last_loss = (f64::from(self.progress.loss) / counted as f64).into();
        self.progress.last_sharpness = self.progress.sharpness.map(|sum| (f64::from(sum) / counted as f64).into());
        if let Some(average) = &self.average {
            average.put_into_model()?;
        }
        match phase.then {
            AfterPhase::Nothing => (),
            AfterPhase::Keep => {
                let copies =
                    named(self.model.vars()).into_iter().map(|(name, var)| Ok((name, var.as_tensor().copy()?)));
                self.kept = copies.collect::<Result<_>>()?;
            }
            AfterPhase::Relabel => {
                for (image, label) in images.indices().iter().zip(predictions(&self.model, &images)?) {
                    self.labels.labels[*image as usize] = label;
                }
            }
            AfterPhase::DropWorst => {
                self.labels.state.settle();
                let losses: Vec<f32> =
                    images.indices().iter().map(|image| self.labels.state.each[*image as usize]).collect();
                self.labels.kept = without_worst(images.indices(), &losses, self.job.recipe.noise);
            }
            AfterPhase::SelectFrom(fold) => {
                let LabelState { labels, selected, state, .. } = &mut self.labels;
                let mut selection: BTreeSet<u32> = selected.iter().copied().collect();
                let is_open = |image: &u32| !selection.contains(image) && !state.leaves_out(*image);
                let all = self.job.data.train.indices().iter().copied();
                let other =
                    images.part(all.filter(|image| fold.has(self.job.seed, *image) && is_open(image)).collect());
                let losses = losses(&self.model, &other)?;
                let predicted = predictions(&self.model, &other)?.into_iter().zip(other.indices());
                let right: Vec<u32> = predicted
                    .filter(|(label, image)| labels[**image as usize] == *label)
                    .map(|(_, image)| *image)
                    .collect();
                let classes = self.job.data.classes;
                state.leave_out(other.indices(), &losses, right.len(), classes, labels.len(), fold.ends_round());
                selection.extend(right);
                *selected = selection.into_iter().collect();
            }
            AfterPhase::Discriminate => {
                discriminate(&self.model, &images, self.job.data.classes)?;
                // The weights have been replaced: their average is not tested.
                let average = self.average.take();
                let scores = self.test_scores();
                self.average = average;
                self.keep_scores(scores?);
            }
        }
        Ok(())
    }

    fn outcome(&mut self) -> Result<Outcome> {
        // The variables of the model are their averages already.
        let average = self.average.take();
        let mut errors = || -> Result<_> {
            let test_error = if let Some(error) = self.progress.test_error {
                error
            } else {
                let scores = self.test_scores()?;
                self.keep_scores(scores);
                scores.error.into()
            };
            let top_5_error = self.with_average(|training| {
                over_ranks::test(&training.test(), &training.world, |test| top_5_error(&training.model, test))
            })?;
            Ok((test_error.into(), top_5_error))
        };
        let errors = errors();
        self.average = average;
        let (test_error, top_5_error) = errors?;
        if let Some(files) = &mut self.files {
            files.log.sync()?;
            files.events.sync()?;
        }
        if self.job.keep_weights {
            let images = self.images(self.phase().images)?;
            let per_epoch = images.steps(self.job.recipe.batch.min(images.len()));
            let epoch = (self.progress.step - 1) / per_epoch + 1;
            with_mean_statistics(self.model.vars(), &self.world, || {
                self.write_weights("weights.safetensors", epoch, test_error)
            })?;
        }
        Ok(Outcome {
            test_error,
            top_5_error,
            test_loss: self.progress.test_loss.map(f64::from),
            sharpness: self.progress.last_sharpness.map(f64::from),
            loss: self.progress.last_loss.into(),
            steps: self.progress.steps,
            seconds: self.progress.seconds + self.began.elapsed().as_secs_f64(),
            parameters: self.model.parameters(),
            train_images: self.job.data.train.len(),
            test_images: self.job.data.test.len(),
            data: self.job.data.name.clone(),
            device: self.job.device.to_string(),
            scaled: self.job.scaled.clone(),
        })
    }
}
