//! The optimizer of a training, one of several.

use anyhow::Result;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use candle_nn::{Optimizer as _, VarMap};
use sam_runtime::optim::{AdamW, ParamGroup, ParamsAdamW, ParamsSgd, Sgd};

/// SGD or AdamW.
#[derive(Debug)]
pub enum Optimizer {
    /// SGD with momentum.
    Sgd(Sgd),
    /// AdamW.
    AdamW(AdamW),
}

/// Calls a method of either.
macro_rules! either {
    ($self:expr, $optimizer:ident => $call:expr) => {
        match $self {
            Self::Sgd($optimizer) => $call,
            Self::AdamW($optimizer) => $call,
        }
    };
}

impl Optimizer {
    /// SGD for these variables.
    ///
    /// # Errors
    /// If a variable is in two groups.
    pub fn sgd(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsSgd) -> Result<Self> {
        Ok(Self::Sgd(Sgd::with_groups(groups, params)?))
    }

    /// AdamW for these variables.
    ///
    /// # Errors
    /// If a variable is in two groups.
    pub fn adamw(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsAdamW) -> Result<Self> {
        Ok(Self::AdamW(AdamW::with_groups(groups, params)?))
    }

    /// The backward pass of a loss, and a step.
    ///
    /// # Errors
    /// Those of the optimizer.
    pub fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        either!(self, optimizer => optimizer.backward_step(loss))
    }

    /// A step with these gradients.
    ///
    /// # Errors
    /// Those of the optimizer.
    pub fn step(&mut self, gradient: &GradStore) -> candle_core::Result<()> {
        either!(self, optimizer => optimizer.step(gradient))
    }

    /// Sets the learning rate.
    pub fn set_learning_rate(&mut self, lr: f64) {
        either!(self, optimizer => optimizer.set_learning_rate(lr));
    }

    /// The state, under the names of the variables.
    pub(super) fn to_bytes(&self, vars: &VarMap) -> candle_core::Result<Vec<u8>> {
        either!(self, optimizer => optimizer.to_bytes(vars))
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    pub(super) fn load_bytes(&mut self, vars: &VarMap, bytes: &[u8]) -> candle_core::Result<()> {
        either!(self, optimizer => optimizer.load_bytes(vars, bytes))
    }

    /// Its name, also that of its state in a checkpoint.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd(_) => "sgd",
            Self::AdamW(_) => "adamw",
        }
    }
}
