//! The training loop.

use std::ops::ControlFlow;

use anyhow::Result;

/// The next step of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Completed steps of the epoch.
    pub done: usize,
}

/// A training that [`fit()`] runs. A method that returns [`ControlFlow::Break`] stops it.
pub trait Fit {
    /// A batch.
    type Batch;
    /// The batches of an epoch.
    type Batches: Iterator<Item = candle_core::Result<Self::Batch>>;

    /// The next step; `None` at the end of the training.
    fn position(&self) -> Option<Position>;

    /// Called before the first step of an epoch.
    ///
    /// # Errors
    /// Those of the training.
    fn begin_epoch(&mut self, epoch: usize) -> Result<ControlFlow<()>>;

    /// The batches from this position to the end of its epoch.
    fn batches(&self, at: Position) -> Self::Batches;

    /// One step: learning rate, loss, gradient, update.
    ///
    /// # Errors
    /// Those of the training.
    fn step(&mut self, at: Position, batch: Self::Batch) -> Result<ControlFlow<()>>;

    /// Called after the last step of an epoch, or of the training.
    ///
    /// # Errors
    /// Those of the training.
    fn end_epoch(&mut self, epoch: usize) -> Result<ControlFlow<()>>;

    /// Called after each step, and after the end of an epoch if it was the last one.
    ///
    /// # Errors
    /// Those of the training.
    fn after_step(&mut self) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// Runs a training from its position to its end.
///
/// # Errors
/// Those of the training and of its batches.
pub fn fit(training: &mut impl Fit) -> Result<ControlFlow<()>> {
    while let Some(mut at) = training.position() {
        let epoch = at.epoch;
        if at.done == 0 && training.begin_epoch(epoch)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for batch in training.batches(at) {
            if training.step(at, batch?)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let next = training.position().filter(|next| next.epoch == epoch);
            if next.is_none() && training.end_epoch(epoch)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if training.after_step()?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}
