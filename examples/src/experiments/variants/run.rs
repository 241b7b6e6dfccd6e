//! One training run of a variant.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::Optimizer as _;
use sam_runtime::Sam;
use sam_runtime::optim::{LrSchedule, ParamsSgd, Sgd};
use serde::{Deserialize, Serialize};

use super::list::{Setting, Variant};
use crate::augment::Augment;
use crate::data::{Batches, Dataset, ImageSet, Noise, TEST_BATCH, add_noise};
use crate::metrics::error_rate;
use crate::models::{Architecture, Model};
use crate::trainer::{Fit, Position, fit};
use crate::util::stop::Stop;

const BATCH: usize = 128;

/// The share of wrong labels.
const NOISE: f64 = 0.4;

/// The results of one run: a line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub variant: String,
    /// Its radius, if it has one.
    pub rho: Option<f64>,
    /// The seed.
    pub seed: u64,
    /// The test error after each epoch.
    pub test_error: Vec<f64>,
    /// The share of training images that are not given their label, which may be a wrong one, at the end.
    pub train_error: f64,
    /// Forward and backward passes a step.
    pub passes: f64,
    /// Seconds of training and testing.
    pub seconds: f64,
}

impl Run {
    /// The test error after the last epoch.
    #[must_use]
    pub fn last(&self) -> f64 {
        self.test_error.last().copied().unwrap_or(1.0)
    }

    /// The lowest test error.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.test_error.iter().copied().fold(1.0, f64::min)
    }
}

/// Trains one model for so many epochs, with the radius of the variant times `rho_factor`. The result is `None` if the process
/// was told to stop meanwhile.
///
/// # Errors
/// Those of candle.
pub fn train(
    variant: &Variant,
    set: &Arc<Dataset>,
    seed: u64,
    epochs: usize,
    rho_factor: f64,
    stop: &Stop,
) -> Result<Option<Run>> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::new(Architecture::MlpNorm(128), shape, set.classes.len(), seed)?;
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let sgd = Sgd::new(model.vars().all_vars(), params)?;
    let [mut train, test] = ImageSet::both(set).map(|images| images.interrupted_by(stop));
    add_noise(train.labels_mut(), set.classes.len(), NOISE, Noise::Exclusive, seed)?;

    let per_epoch = train.steps(BATCH);
    let steps = per_epoch * epochs;
    let setting = Setting {
        rho: variant.rho.unwrap_or(0.0) * rho_factor,
        vars: model.vars(),
        velocities: sgd.momentum_buffers(),
        rate: params.lr,
        steps: steps as u64,
        epoch: per_epoch as u64,
    };
    let sam = (variant.make)(&setting).seed(seed);
    let start = Instant::now();
    let (loss, test_error) = (variant.loss, Vec::new());
    let mut training = Training {
        loss,
        sam,
        seed,
        model,
        sgd,
        lr: params.lr,
        train,
        test,
        per_epoch,
        steps,
        step: 0,
        passes: 0.0,
        test_error,
    };
    let (mut train_error, mut seconds) = (0.0, 0.0);
    let finished = stop.unless_told(|| {
        let end = fit(&mut training)?;
        seconds = start.elapsed().as_secs_f64();
        if end.is_continue() {
            train_error = error_rate(&training.model, training.train.in_order(TEST_BATCH))?;
        }
        Ok(end)
    })?;
    let Training { test_error, passes, .. } = training;
    let rho = variant.rho.map(|rho| rho * rho_factor);
    let passes = passes / steps as f64;
    Ok(finished.map(|()| Run { variant: variant.name.to_owned(), rho, seed, test_error, train_error, passes, seconds }))
}

struct Training {
    loss: fn(&Sam, &Model, &Tensor, &Tensor) -> candle_core::Result<Tensor>,
    sam: Sam,
    seed: u64,
    model: Model,
    sgd: Sgd,
    /// The initial learning rate.
    lr: f64,
    train: ImageSet,
    test: ImageSet,
    /// Steps of an epoch, and of the run.
    per_epoch: usize,
    steps: usize,
    /// Completed steps.
    step: usize,
    /// The sum over the steps.
    passes: f64,
    test_error: Vec<f64>,
}

impl Fit for Training {
    type Batch = (Tensor, Tensor);
    type Batches = Batches;

    fn position(&self) -> Option<Position> {
        let (epoch, done) = (self.step / self.per_epoch, self.step % self.per_epoch);
        (self.step < self.steps).then_some(Position { epoch, done })
    }

    fn begin_epoch(&mut self, _: usize) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    fn batches(&self, at: Position) -> Batches {
        self.train.shuffled(BATCH, Augment::NONE, self.seed, at.epoch).after(at.done)
    }

    fn step(&mut self, _: Position, (x, y): Self::Batch) -> Result<ControlFlow<()>> {
        let rate = LrSchedule::cosine(self.lr, self.steps as u64, 0.0).lr(self.step as u64);
        self.sgd.set_learning_rate(rate);
        self.sam.set_learning_rate(rate);
        self.sgd.backward_step(&(self.loss)(&self.sam, &self.model, &x, &y)?)?;
        self.sam.apply_decoupled(rate)?;
        self.passes += self.sam.last_stats().map_or(1.0, |last| last.passes());
        self.step += 1;
        Ok(self.train.until_interrupted())
    }

    fn end_epoch(&mut self, _: usize) -> Result<ControlFlow<()>> {
        self.test_error.push(error_rate(&self.model, self.test.in_order(TEST_BATCH))?);
        Ok(ControlFlow::Continue(()))
    }
}
