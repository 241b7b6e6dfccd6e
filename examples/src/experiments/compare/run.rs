//! One training run of the comparison.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::Optimizer as _;
use clap::ValueEnum;
use sam_runtime::distributed::Comm;
use sam_runtime::optim::{LrSchedule, ParamsSgd, Sgd};
use serde::{Deserialize, Serialize};

use crate::augment::Augment;
use crate::data::{Batches, Dataset, ImageSet, Noise, TEST_BATCH, add_noise};
use crate::metrics::{MeanLoss, error_rate, over_ranks};
use crate::models::{Architecture, Model};
use crate::trainer::{Fit, Position, fit, with_mean_statistics};
use crate::util::device::DeviceConfig;
use crate::util::stop::Stop;

/// The settings that all runs of a comparison share.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The ranks that train together.
    pub world: Comm,
    /// The device.
    pub device: DeviceConfig,
    /// The network.
    pub architecture: Architecture,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a batch, of all ranks together.
    pub batch: usize,
    /// The constants of the optimizer; the learning rate falls from here to 0 along a cosine.
    pub sgd: ParamsSgd,
    /// The ball of SAM.
    pub ball: Ball,
    /// The augmentation of training images.
    pub augment: Augment,
    /// The share of wrong training labels, 0 to 1, and how they are drawn.
    pub noise: (f64, Noise),
}

/// The ball that SAM perturbs the weights within.
#[derive(Clone, Copy, Debug)]
pub struct Ball {
    /// The radius.
    pub rho: f64,
    /// The norm.
    pub p: f64,
}

/// The mean cross-entropy of a batch: images x of shape (n, channels, height, width), labels y of shape (n). With ρ = 0
/// the gradient is the plain one. On several ranks each has a perturbation of its own, and the gradient is the mean over them.
#[sam_runtime::sam(rho = ball.rho, p = ball.p, all_reduce = world)]
fn loss(model: &Model, x: &Tensor, y: &Tensor, ball: Ball, world: &Comm) -> candle_core::Result<Tensor> {
    model.cross_entropy(x, y)
}

/// The gradient that SGD uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TrainMode {
    /// Plain SGD: the loss function without the attribute
    Sgd,
    /// SAM: the loss function with the attribute
    Sam,
}

impl TrainMode {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "SGD",
            Self::Sam => "SAM",
        }
    }
}

/// The results of one epoch: a line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// The mode.
    #[serde(rename = "method")]
    pub mode: TrainMode,
    /// The seed of weights, order, augmentation and label noise.
    pub seed: u64,
    /// From 1.
    pub epoch: usize,
    /// The mean loss over the epoch's batches, at w.
    pub loss: f64,
    /// The share of training images that are not given their label, which may be a wrong one.
    pub train_error: f64,
    /// The share of test images that the model misclassifies.
    pub test_error: f64,
    /// Seconds of training, without the test.
    pub seconds: f64,
}

/// A trained network, and the images that it was trained on, with their labels.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Trained {
    /// The network after the last epoch.
    pub model: Model,
    /// The training images.
    pub train: ImageSet,
    /// The test images.
    pub test: ImageSet,
}

/// Trains one model; `tell` is called after each epoch. The result is `None` if the process was told to stop meanwhile.
///
/// # Errors
/// Those of candle, and of `tell`.
pub fn run(
    config: &CompareConfig,
    set: &Arc<Dataset>,
    mode: TrainMode,
    seed: u64,
    stop: &Stop,
    tell: impl FnMut(Epoch) -> Result<()>,
) -> Result<Option<Trained>> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::at(&config.device, config.architecture, shape, set.classes.len(), seed)?;
    let sgd = Sgd::new(model.vars().all_vars(), config.sgd)?;
    // Of several ranks none leaves a test before the others.
    let interrupted = if config.world.size() > 1 { Stop::default() } else { stop.clone() };
    let [mut train, test] =
        ImageSet::both(set).map(|images| images.on(&config.device.device).interrupted_by(&interrupted));
    add_noise(train.labels_mut(), set.classes.len(), config.noise.0, config.noise.1, seed)?;
    let rho = if mode == TrainMode::Sgd { 0.0 } else { config.ball.rho };
    let per_epoch = train.steps(config.batch);
    let mut run = Run {
        config,
        ball: Ball { rho, ..config.ball },
        mode,
        seed,
        model,
        sgd,
        train,
        test,
        stop: stop.clone(),
        per_epoch,
        step: 0,
        loss: MeanLoss::default(),
        started: Instant::now(),
        tell,
    };
    let ended = stop.unless_told(|| fit(&mut run))?;
    let Run { model, train, test, .. } = run;
    Ok(ended.map(|()| Trained { model, train, test }))
}

struct Run<'a, F> {
    config: &'a CompareConfig,
    ball: Ball,
    mode: TrainMode,
    seed: u64,
    model: Model,
    sgd: Sgd,
    train: ImageSet,
    test: ImageSet,
    stop: Stop,
    /// Steps of an epoch.
    per_epoch: usize,
    /// Completed steps.
    step: usize,
    loss: MeanLoss,
    /// The start of the epoch.
    started: Instant,
    tell: F,
}

impl<F: FnMut(Epoch) -> Result<()>> Fit for Run<'_, F> {
    type Batch = (Tensor, Tensor);
    type Batches = Batches;

    fn position(&self) -> Option<Position> {
        let (epoch, done) = (self.step / self.per_epoch, self.step % self.per_epoch);
        (epoch < self.config.epochs).then_some(Position { epoch, done })
    }

    fn begin_epoch(&mut self, _: usize) -> Result<ControlFlow<()>> {
        self.started = Instant::now();
        Ok(ControlFlow::Continue(()))
    }

    fn batches(&self, at: Position) -> Batches {
        let all = self.train.shuffled(self.config.batch, self.config.augment, self.seed, at.epoch);
        all.of_rank(self.config.world.rank(), self.config.world.size()).after(at.done)
    }

    fn step(&mut self, _: Position, (x, y): Self::Batch) -> Result<ControlFlow<()>> {
        let steps = (self.config.epochs * self.per_epoch) as u64;
        self.sgd.set_learning_rate(LrSchedule::cosine(self.config.sgd.lr, steps, 0.0).lr(self.step as u64));
        let loss = loss(&self.model, &x, &y, self.ball, &self.config.world)?;
        self.sgd.backward_step(&loss)?;
        self.loss.add(&loss)?;
        self.step += 1;
        let is_told = self.config.world.any(self.stop.is_told())?;
        Ok(if is_told { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn end_epoch(&mut self, epoch: usize) -> Result<ControlFlow<()>> {
        let world = &self.config.world;
        let loss = world.mean(self.loss.take()?)?;
        let seconds = self.started.elapsed().as_secs_f64();
        let of = |images: &ImageSet| Ok(error_rate(&self.model, images.in_order(TEST_BATCH))?);
        let [train_error, test_error] = with_mean_statistics(self.model.vars(), world, || {
            Ok([over_ranks::test(&self.train, world, of)?, over_ranks::test(&self.test, world, of)?])
        })?;
        let (mode, seed) = (self.mode, self.seed);
        (self.tell)(Epoch { mode, seed, epoch: epoch + 1, loss, train_error, test_error, seconds })?;
        Ok(ControlFlow::Continue(()))
    }
}
