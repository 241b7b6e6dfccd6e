//! One training run of a variant.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::Optimizer as _;
use sam_runtime::optim::{ParamsSgd, Sgd};
use serde::Serialize;

use super::list::{Setting, Variant};
use crate::augment::Augment;
use crate::data::{Dataset, ImageSet, Noise, TEST_BATCH, add_noise};
use crate::metrics::error_rate;
use crate::models::{Architecture, Model};
use crate::util::schedule::cosine;

const BATCH: usize = 128;

/// The share of wrong labels.
const NOISE: f64 = 0.4;

/// The results of one run: a line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its name.
    pub variant: &'static str,
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

/// Trains one model for so many epochs, with the radius of the variant times `rho_factor`.
///
/// # Errors
/// Those of candle.
pub fn train(variant: &Variant, set: &Arc<Dataset>, seed: u64, epochs: usize, rho_factor: f64) -> Result<Run> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::new(Architecture::MlpNorm(128), shape, set.classes.len(), seed)?;
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut sgd = Sgd::new(model.vars().all_vars(), params)?;
    let [mut train, test] = ImageSet::both(set);
    add_noise(train.labels_mut(), set.classes.len(), NOISE, Noise::Exclusive, seed)?;

    let steps = train.steps(BATCH);
    let setting = Setting {
        rho: variant.rho.unwrap_or(0.0) * rho_factor,
        vars: model.vars(),
        velocities: sgd.velocities(),
        rate: params.lr,
        steps: (steps * epochs) as u64,
        epoch: steps as u64,
    };
    let sam = (variant.make)(&setting).seed(seed);
    let start = Instant::now();
    let (mut passes, mut test_error) = (0.0, Vec::new());
    for epoch in 0..epochs {
        for (step, batch) in train.shuffled(BATCH, Augment::NONE, seed, epoch).enumerate() {
            let (x, y): (Tensor, Tensor) = batch?;
            let done = (epoch * steps + step) as f64 / (steps * epochs) as f64;
            let rate = params.lr * cosine(done);
            sgd.set_learning_rate(rate);
            sam.set_learning_rate(rate);
            sgd.backward_step(&(variant.loss)(&sam, &model, &x, &y)?)?;
            sam.finish(rate)?;
            passes += sam.last().map_or(1.0, |last| last.passes());
        }
        test_error.push(error_rate(&model, test.in_order(TEST_BATCH))?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let train_error = error_rate(&model, train.in_order(TEST_BATCH))?;
    let rho = variant.rho.map(|rho| rho * rho_factor);
    Ok(Run {
        variant: variant.name,
        rho,
        seed,
        test_error,
        train_error,
        passes: passes / setting.steps as f64,
        seconds,
    })
}
