//! What the operations on variables work on: plain values, shared by all backends.

use candle_core::{Tensor, Var};

/// The constants of one step of stochastic gradient descent, see [`Sgd`](crate::optim::Sgd).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdStep {
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    pub(crate) nesterov: bool,
    pub(crate) weight_decay: f64,
}

/// A variable, its gradient, and the shape of the ball there.
#[derive(Debug)]
pub(crate) struct PerturbTarget {
    pub(crate) var: Var,
    pub(crate) grad: Tensor,
    pub(crate) metric: Scale,
    /// What ε̂ is multiplied by in the end.
    pub(crate) mask: Option<Tensor>,
}

/// T, by which the ball is scaled.
#[derive(Clone, Debug)]
pub(crate) enum Scale {
    /// 1
    One,
    /// |w| + η
    Weights(f64),
    /// This, of the variable's shape or a single number.
    Given(Tensor),
}

impl PerturbTarget {
    /// Without a metric and a mask.
    #[cfg(test)]
    pub(crate) fn plain((var, grad): (Var, Tensor)) -> Self {
        Self { var, grad, metric: Scale::One, mask: None }
    }

    /// The η of a metric |w| + η.
    pub(super) fn eta(&self) -> Option<f64> {
        if let Scale::Weights(eta) = self.metric { Some(eta) } else { None }
    }

    /// Whether there is a fused kernel for it.
    pub(super) fn is_fused(&self) -> bool {
        self.mask.is_none() && !matches!(self.metric, Scale::Given(_))
    }
}

/// A variable that is about to move: along its gradient, which is contiguous, and its velocity if it has one.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    pub(crate) var: &'a Var,
    pub(crate) grad: Tensor,
    pub(crate) velocity: Option<&'a Tensor>,
}
