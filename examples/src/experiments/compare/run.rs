//! One training run, epoch by epoch.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_nn::Optimizer;
use clap::ValueEnum;
use sam_runtime::optim::{ParamsSgd, Sgd};
use serde::Serialize;

use crate::augment::Augment;
use crate::data::loader::Source;
use crate::data::{Dataset, Noise, add_noise};
use crate::experiments::compare::tutorial::{Ball, epoch, error_rate, sam_loss, sgd_loss};
use crate::models::{Architecture, Model};
use crate::noisy_labels::cosine;
use crate::util::device::Place;

/// Images that are looked at together when a model is tested.
const TEST_BATCH: usize = 500;

/// What the runs of one experiment have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it is trained.
    pub place: Place,
    /// The network.
    pub architecture: Architecture,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a batch.
    pub batch: usize,
    /// The optimizer's constants; its learning rate falls from here to 0 along a cosine.
    pub sgd: ParamsSgd,
    /// The ball of SAM.
    pub ball: Ball,
    /// What is done to training images.
    pub augment: Augment,
    /// How many training labels are wrong, from 0 to 1, and how.
    pub noise: (f64, Noise),
}

/// With which gradients SGD steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Plain SGD: the loss function without the attribute
    Sgd,
    /// SAM: the loss function with the attribute
    Sam,
}

impl Method {
    /// What it is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "SGD",
            Self::Sam => "SAM",
        }
    }
}

/// What one epoch came to: a line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Epoch {
    /// The method.
    pub method: Method,
    /// The seed of weights, order, augmentation and label noise.
    pub seed: u64,
    /// From 1.
    pub epoch: usize,
    /// Mean loss over the epoch's batches, at w.
    pub loss: f64,
    /// Share of training images that are not given their label, which may be a wrong one.
    pub train_error: f64,
    /// Share of test images that the model gets wrong.
    pub test_error: f64,
    /// Seconds of training, without the test.
    pub seconds: f64,
}

/// Trains one model, and tells of each epoch.
///
/// # Errors
/// Those of candle, and of `tell`.
pub fn run(
    plan: &Plan,
    set: &Arc<Dataset>,
    method: Method,
    seed: u64,
    mut tell: impl FnMut(Epoch) -> Result<()>,
) -> Result<()> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::at(&plan.place, plan.architecture, shape, set.classes.len(), seed)?;
    let mut sgd = Sgd::new(model.vars().all_vars(), plan.sgd)?;
    let [mut train, test] = Source::both(set).map(|source| source.on(&plan.place.device));
    add_noise(train.labels_mut(), set.classes.len(), plan.noise.0, plan.noise.1, seed)?;

    let steps = train.steps(plan.batch);
    for done in 0..plan.epochs {
        let start = Instant::now();
        let progress = |step| (done * steps + step) as f64 / (plan.epochs * steps) as f64;
        let rate = |step| plan.sgd.lr * cosine(progress(step));
        let batches = train.shuffled(plan.batch, plan.augment, seed, done);
        let loss = match method {
            Method::Sgd => epoch(&model, &mut sgd, batches, rate, |model, x, y| sgd_loss(model, x, y, plan.ball))?,
            Method::Sam => epoch(&model, &mut sgd, batches, rate, |model, x, y| sam_loss(model, x, y, plan.ball))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let train_error = error_rate(&model, train.in_order(TEST_BATCH))?;
        let test_error = error_rate(&model, test.in_order(TEST_BATCH))?;
        tell(Epoch { method, seed, epoch: done + 1, loss, train_error, test_error, seconds })?;
    }
    Ok(())
}
