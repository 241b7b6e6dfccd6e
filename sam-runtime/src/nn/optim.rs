//! The optimizers under the names of `candle_nn`.

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};
pub use candle_nn::optim::*;

pub use crate::optim::AdamW;
use crate::optim::{ParamsSgd, Sgd};

/// Stochastic gradient descent without momentum, as `candle_nn`'s: [`Sgd`] has momentum and weight decay.
#[derive(Debug)]
pub struct SGD(Sgd);

impl Optimizer for SGD {
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let params = ParamsSgd { lr: learning_rate, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        Sgd::new(vars, params).map(Self)
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.0.step(grads)
    }

    fn backward_step(&mut self, loss: &candle_core::Tensor) -> Result<()> {
        self.0.backward_step(loss)
    }

    fn learning_rate(&self) -> f64 {
        self.0.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.0.set_learning_rate(lr);
    }
}

impl SGD {
    /// The variables.
    #[must_use]
    pub fn into_inner(self) -> Vec<Var> {
        self.0.into_vars()
    }

    /// Adds a variable.
    pub fn push(&mut self, var: &Var) {
        self.0.push(var);
    }
}
