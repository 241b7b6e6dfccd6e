//! A training from its start or checkpoint to its end: all phases, with saving and stopping.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;

use super::ema::Average;
use super::fit::{Fit, Position, fit};
use super::job::{Job, Next, Session, Status};
use super::outcome::Outcome;
use super::phase_length::PhaseLength;
use super::ranks;
use super::setup::{build_sam, fresh_model, optimizer};
use super::training::Training;
use super::weights::put;
use crate::data::{Background, Batch, ImageSet};
use crate::noisy_labels::{Phase, Start};
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
            if train_phase(&mut training, &mut tell)?.is_break() {
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

/// Runs the current phase to its end, or stops before.
fn train_phase(training: &mut Training<'_>, tell: &mut impl FnMut(&Status) -> Result<Next>) -> Result<ControlFlow<()>> {
    let (recipe, phase) = (training.job.recipe, training.phase());
    let images = training.images(phase.images)?;
    let length = PhaseLength::of(recipe, &phase, &images);
    length.check(recipe, &training.progress, training.is_last_phase())?;
    if training.progress.step == 0 {
        start_phase(training, &phase)?;
    }
    let (resumed_at, since) = (training.progress.step, Instant::now());
    let mut run = PhaseRun { training, tell, phase, images, length, resumed_at, since };
    // What the session before has not written or tested.
    if run.keep_epoch()?.is_break() || (run.training.progress.untested && run.test()?.is_break()) {
        return Ok(ControlFlow::Break(()));
    }
    fit(&mut run)
}

/// Model, optimizer and averages before the first step of a phase.
fn start_phase(training: &mut Training<'_>, phase: &Phase) -> Result<()> {
    let (job, index) = (training.job, training.progress.phase);
    if phase.start == Start::New && index > 0 {
        training.model = fresh_model(job, index)?;
        training.sam = build_sam(job, &training.model, index)?;
    }
    training.optimizer = optimizer(job.recipe, &training.model)?;
    training.average = Average::of(job.recipe.ema, &training.model)?;
    if phase.start == Start::Kept {
        put(&training.kept, training.model.vars(), |_| true)?;
    }
    training.labels.state.begin(job.recipe.method);
    Ok(())
}

/// A phase in the training loop.
struct PhaseRun<'r, 'a, F> {
    training: &'r mut Training<'a>,
    tell: &'r mut F,
    phase: Phase,
    images: ImageSet,
    length: PhaseLength,
    /// The first step of this session, and when it started.
    resumed_at: usize,
    since: Instant,
}

impl<F> PhaseRun<'_, '_, F> {
    fn test(&mut self) -> Result<ControlFlow<()>> {
        let length = self.length;
        self.unless_stopped(|training| training.end_epoch(length))
    }

    fn keep_epoch(&mut self) -> Result<ControlFlow<()>> {
        let per_epoch = self.length.per_epoch;
        self.unless_stopped(|training| training.keep_epoch(per_epoch))
    }

    /// Images a second of this session, on all ranks together.
    fn throughput(&self) -> f64 {
        let trained = (self.training.progress.step - self.resumed_at) * self.length.batch;
        trained as f64 / self.since.elapsed().as_secs_f64()
    }

    fn unless_stopped(&mut self, f: impl FnOnce(&mut Training<'_>) -> Result<()>) -> Result<ControlFlow<()>> {
        let done = self.training.interruptible(|training| f(training))?;
        Ok(if done.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }
}

impl<F: FnMut(&Status) -> Result<Next>> Fit for PhaseRun<'_, '_, F> {
    type Batch = Batch;
    type Batches = Background;

    fn position(&self) -> Option<Position> {
        let step = self.training.progress.step;
        let ends = step >= self.length.steps || self.training.progress.stopped_early;
        (!ends).then(|| Position { epoch: step / self.length.per_epoch, done: step % self.length.per_epoch })
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<ControlFlow<()>> {
        (self.training.progress.loss, self.training.progress.sharpness) = Default::default();
        let (method, record, epochs) = (self.training.job.recipe.method, self.phase.record, self.length.epochs);
        let images = self.images.clone();
        self.unless_stopped(|Training { labels, model, .. }| {
            labels.state.look(method, model, &images, record, epoch, epochs)
        })
    }

    fn batches(&self, at: Position) -> Background {
        let Training { job, progress, world, .. } = &*self.training;
        let seed = phase_seed(job.seed, progress.phase);
        let all = self.images.shuffled(self.length.batch, job.recipe.augment(), seed, at.epoch);
        all.of_rank(world.rank(), world.size()).after(at.done).in_background()
    }

    fn step(&mut self, _: Position, batch: Batch) -> Result<ControlFlow<()>> {
        self.training.step(&self.phase, &batch, self.length.steps, self.length.per_epoch)?;
        let step = self.training.progress.step;
        self.training.progress.untested = step == self.length.steps || step.is_multiple_of(self.length.per_epoch);
        self.keep_epoch()
    }

    fn end_epoch(&mut self, _: usize) -> Result<ControlFlow<()>> {
        self.training.read()?;
        let world = &self.training.world;
        if world.size() > 1 {
            let line = ranks::pace(self.training.progress.step, self.throughput() / world.size() as f64, world)?;
            self.training.note(&line)?;
        }
        self.test()
    }

    fn after_step(&mut self) -> Result<ControlFlow<()>> {
        let throughput = self.throughput();
        let training = &mut *self.training;
        let next = (self.tell)(&Status {
            phase: (training.progress.phase, training.phases.len()),
            step: (training.progress.step, self.length.steps),
            loss: training.loss,
            throughput,
            test_error: training.progress.test_error.map(f64::from),
        })?;
        let due = training.job.every > 0 && training.progress.steps.is_multiple_of(training.job.every);
        let is_told = training.world.any(next == Next::Stop || training.stop.is_told())?;
        if due || is_told {
            training.save()?;
        }
        Ok(if is_told { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}
