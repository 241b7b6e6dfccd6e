//! A training loop for candle, and the one line that turns it into a SAM loop.
//!
//! [`sam_loss`] and [`sgd_loss`] are the same function, with and without the attribute: `plain = sgd_loss` keeps the
//! function as it is written under a name of its own, so that both can be run and compared. In a project of your own you
//! would write one loss function, and put `#[sam]` above it or not.

use candle_core::{DType, Result, Tensor};
use candle_nn::Optimizer;

use crate::data::loader::Batches;
use crate::models::Model;

/// The mean cross-entropy of a batch: images x of shape (n, channels, height, width), labels y of shape (n).
///
/// # Errors
/// Those of the model, and of a ball that is none.
#[sam_runtime::sam(rho = ball.rho, p = ball.p, plain = sgd_loss)]
pub fn sam_loss(model: &Model, x: &Tensor, y: &Tensor, ball: Ball) -> Result<Tensor> {
    model.cross_entropy(x, y)
}

/// What the attribute is told from the command line. With constants, `#[sam(rho = 0.05)]`, there would be no need for it.
#[derive(Clone, Copy, Debug)]
pub struct Ball {
    /// Its radius.
    pub rho: f64,
    /// Its norm.
    pub p: f64,
}

/// One epoch: the same loop for both losses. Returns the mean loss.
///
/// # Errors
/// Those of the loss and the optimizer.
pub fn epoch<O: Optimizer>(
    model: &Model,
    optimizer: &mut O,
    batches: Batches,
    schedule: impl Fn(usize) -> f64,
    loss: impl Fn(&Model, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<f64> {
    // Added up where the loss is: to look at each would wait for a GPU.
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

/// The share of images that a model gets wrong.
///
/// # Errors
/// Those of the model.
pub fn error_rate(model: &Model, batches: impl Iterator<Item = Result<(Tensor, Tensor)>>) -> Result<f64> {
    let (mut wrong, mut count) = (0, 0);
    for batch in batches {
        let (x, y) = batch?;
        let guesses = model.forward(&x, false)?.argmax(1)?;
        wrong += guesses.ne(&y)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
        count += y.elem_count();
    }
    Ok(f64::from(wrong) / count.max(1) as f64)
}
