//! The momentum buffers of an optimizer, for those who follow them.

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{Tensor, Var};

use crate::core::lock::lock;
use crate::core::var_list::Gradient;

/// An optimizer's momentum buffers, as they are when they are read. This crate's [`Sgd`](crate::optim::Sgd) and
/// [`AdamW`](crate::optim::AdamW) return their own; for another optimizer, [`set`](Self::set) them after each of its steps.
#[derive(Clone, Debug, Default)]
pub struct MomentumBuffers(Arc<Mutex<Gradient>>);

impl MomentumBuffers {
    /// Sets what they are now. Until there is one a step along them is a plain step. Of a variable that is listed several
    /// times the first counts.
    pub fn set(&self, buffers: impl IntoIterator<Item = (Var, Tensor)>) {
        *self.lock() = buffers.into_iter().collect();
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Gradient> {
        lock(&self.0)
    }
}
