//! One training run of the comparison.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Tensor};
use candle_nn::Optimizer;
use clap::ValueEnum;
use sam_runtime::optim::{ParamsSgd, Sgd};
use serde::Serialize;

use crate::augment::Augment;
use crate::data::{Batches, Dataset, ImageSet, Noise, TEST_BATCH, add_noise};
use crate::metrics::error_rate;
use crate::models::{Architecture, Model};
use crate::util::device::DeviceConfig;
use crate::util::schedule::cosine;

/// The settings that all runs of a comparison share.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The device.
    pub device: DeviceConfig,
    /// The network.
    pub architecture: Architecture,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a batch.
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

/// The mean cross-entropy of a batch: images x of shape (n, channels, height, width), labels y of shape (n).
///
/// # Errors
/// Those of the model, and of an invalid ball.
#[sam_runtime::sam(rho = ball.rho, p = ball.p, plain = sgd_loss)]
fn sam_loss(model: &Model, x: &Tensor, y: &Tensor, ball: Ball) -> candle_core::Result<Tensor> {
    model.cross_entropy(x, y)
}

/// The gradient that SGD uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
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
#[derive(Clone, Debug, Serialize)]
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

/// Trains one model; `tell` is called after each epoch.
///
/// # Errors
/// Those of candle, and of `tell`.
pub fn run(
    config: &CompareConfig,
    set: &Arc<Dataset>,
    mode: TrainMode,
    seed: u64,
    mut tell: impl FnMut(Epoch) -> Result<()>,
) -> Result<()> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::at(&config.device, config.architecture, shape, set.classes.len(), seed)?;
    let mut sgd = Sgd::new(model.vars().all_vars(), config.sgd)?;
    let [mut train, test] = ImageSet::both(set).map(|images| images.on(&config.device.device));
    add_noise(train.labels_mut(), set.classes.len(), config.noise.0, config.noise.1, seed)?;

    let steps = train.steps(config.batch);
    for done in 0..config.epochs {
        let start = Instant::now();
        let progress = |step| (done * steps + step) as f64 / (config.epochs * steps) as f64;
        let rate = |step| config.sgd.lr * cosine(progress(step));
        let batches = train.shuffled(config.batch, config.augment, seed, done);
        let loss = match mode {
            TrainMode::Sgd => epoch(&model, &mut sgd, batches, rate, |model, x, y| sgd_loss(model, x, y, config.ball))?,
            TrainMode::Sam => epoch(&model, &mut sgd, batches, rate, |model, x, y| sam_loss(model, x, y, config.ball))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let train_error = error_rate(&model, train.in_order(TEST_BATCH))?;
        let test_error = error_rate(&model, test.in_order(TEST_BATCH))?;
        tell(Epoch { mode, seed, epoch: done + 1, loss, train_error, test_error, seconds })?;
    }
    Ok(())
}

/// One epoch: the same loop for both losses. Returns the mean loss.
///
/// # Errors
/// Those of the loss and the optimizer.
fn epoch<O: Optimizer>(
    model: &Model,
    optimizer: &mut O,
    batches: Batches,
    schedule: impl Fn(usize) -> f64,
    loss: impl Fn(&Model, &Tensor, &Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<f64> {
    // Summed on the device: reading each would synchronize with a GPU.
    let (mut sum, mut count) = (None::<Tensor>, 0);
    for (step, batch) in batches.enumerate() {
        let (x, y) = batch?;
        optimizer.set_learning_rate(schedule(step));
        let loss = loss(model, &x, &y)?;
        optimizer.backward_step(&loss)?;
        let loss = loss.detach().to_dtype(DType::F64)?;
        sum = Some(sum.map_or(Ok(loss.clone()), |sum| sum + loss)?);
        count += 1;
    }
    Ok(sum.map_or(Ok(0.0), |sum| sum.to_scalar::<f64>())? / f64::from(count.max(1)))
}
