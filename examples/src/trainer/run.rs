//! A training from its start or checkpoint to its end: all phases, with saving and stopping.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::ema::Average;
use super::job::{Job, Next, Session, Status};
use super::outcome::Outcome;
use super::setup::{build_sam, fresh_model, optimizer};
use super::training::Training;
use super::weights::put;
use crate::noisy_labels::Start;
use crate::util::numbers::count;
use crate::util::rng::phase_seed;

impl Job<'_> {
    /// Trains, from the checkpoint if there is one. `tell` is called after each step; the result is `None` if it stops the
    /// training.
    ///
    /// # Errors
    /// If a file cannot be read or written, if a checkpoint is of another training, or a loss is not finite
    /// ([`Diverged`](super::Diverged)).
    pub fn run(&self, tell: impl FnMut(&Status) -> Result<Next>) -> Result<Option<Outcome>> {
        self.run_in(&Session::default(), tell)
    }

    /// As [`run`](Self::run), in a session that can be stopped at any time.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_in(&self, session: &Session, mut tell: impl FnMut(&Status) -> Result<Next>) -> Result<Option<Outcome>> {
        let mut training = Training::begin(self, session)?;
        loop {
            if !training.train(&mut tell)? {
                return Ok(None);
            }
            if training.is_last_phase() {
                return training.conclude();
            }
            if training.interruptible(Training::end_phase)?.is_none() {
                return Ok(None);
            }
        }
    }
}

impl Training<'_> {
    /// Runs the current phase to its end; false if it is stopped before.
    fn train(&mut self, tell: &mut impl FnMut(&Status) -> Result<Next>) -> Result<bool> {
        let (recipe, phase) = (self.job.recipe, self.phase());
        let images = self.images(phase.images)?;
        let batch = recipe.batch.min(images.len());
        let per_epoch = images.steps(batch);
        let whole = if recipe.steps > 0 { recipe.steps as f64 } else { recipe.epochs * per_epoch as f64 };
        let steps = count(whole * recipe.stretch * phase.epochs).max(1);
        let epochs = steps.div_ceil(per_epoch);
        ensure!(
            self.progress.step <= steps,
            "the checkpoint has done {} steps: expected at most the {steps} of the training",
            self.progress.step
        );
        if let Some(at) =
            recipe.keep_epochs.iter().find(|at| self.is_last_phase() && **at * per_epoch as f64 > 0.5 + steps as f64)
        {
            bail!("`keep-epochs` names epoch {at}: expected at most {epochs}, since the training ends then")
        }
        let seed = phase_seed(self.job.seed, self.progress.phase);
        if self.progress.step == 0 {
            if phase.start == Start::New && self.progress.phase > 0 {
                self.model = fresh_model(self.job, self.progress.phase)?;
                self.sam = build_sam(self.job, &self.model, self.progress.phase)?;
            }
            self.sgd = optimizer(recipe, &self.model)?;
            self.average = Average::of(recipe.ema, &self.model)?;
            if phase.start == Start::Kept {
                put(&self.kept, self.model.vars(), |_| true)?;
            }
            self.labels.state.begin(recipe.method);
        }
        // What the session before has not written.
        if self.interruptible(|training| training.keep_epoch(per_epoch))?.is_none() {
            return Ok(false);
        }
        let (taken_up, since) = (self.progress.step, Instant::now());
        while self.progress.untested || (self.progress.step < steps && !self.progress.stopped_early) {
            // An epoch whose test was interrupted.
            if self.progress.untested {
                if self.interruptible(|training| training.end_epoch(per_epoch, epochs, steps))?.is_none() {
                    return Ok(false);
                }
                continue;
            }
            let (epoch, done) = (self.progress.step / per_epoch, self.progress.step % per_epoch);
            if done == 0 {
                (self.progress.loss, self.progress.sharpness) = Default::default();
                let look = |training: &mut Self| {
                    let Self { labels, model, .. } = training;
                    labels.state.look(recipe.method, model, &images, phase.record, epoch, epochs)
                };
                if self.interruptible(look)?.is_none() {
                    return Ok(false);
                }
            }
            let batches = images.shuffled(batch, recipe.augment(), seed, epoch).after(done).in_background();
            for batch in batches {
                let batch = batch?;
                self.step(&phase, &batch, steps, per_epoch)?;
                self.progress.untested = self.progress.step == steps || self.progress.step.is_multiple_of(per_epoch);
                if self.interruptible(|training| training.keep_epoch(per_epoch))?.is_none() {
                    return Ok(false);
                }
                if self.progress.untested {
                    self.read()?;
                    if self.interruptible(|training| training.end_epoch(per_epoch, epochs, steps))?.is_none() {
                        return Ok(false);
                    }
                }
                let trained = (self.progress.step - taken_up) * batch.indices.len();
                let next = tell(&Status {
                    phase: (self.progress.phase, self.phases.len()),
                    step: (self.progress.step, steps),
                    loss: self.loss,
                    throughput: trained as f64 / since.elapsed().as_secs_f64(),
                    test_error: self.progress.test_error.map(f64::from),
                })?;
                let due = self.job.every > 0 && self.progress.steps.is_multiple_of(self.job.every);
                let is_told = next == Next::Stop || self.stop.is_told();
                if due || is_told {
                    self.save()?;
                }
                if is_told {
                    return Ok(false);
                }
                if self.progress.step == steps || self.progress.stopped_early {
                    break;
                }
            }
        }
        Ok(true)
    }
}
