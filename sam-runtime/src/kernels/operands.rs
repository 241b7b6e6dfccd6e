//! What the operations on variables work on: plain values, shared by all backends.

use candle_core::{Tensor, Var};

/// The constants of one step of stochastic gradient descent, see [`Sgd`](crate::optim::Sgd).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SgdStep {
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    pub(crate) nesterov: bool,
    pub(crate) weight_decay: f64,
}

/// The constants of one step of AdamW for one variable, see [`AdamW`](crate::optim::AdamW).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AdamWStep {
    /// 1 - lr λ
    pub(crate) keep: f64,
    /// m ← base + lerp (g - m), where the base is g or m, whichever the new m is nearer to.
    pub(crate) lerp: f64,
    pub(crate) from_gradient: bool,
    pub(crate) beta2: f64,
    /// 1 - β₂
    pub(crate) rate2: f64,
    /// √(1 - β₂ᵗ)
    pub(crate) bias2_root: f64,
    pub(crate) eps: f64,
    /// -lr / (1 - β₁ᵗ)
    pub(crate) minus_rate: f64,
}

/// A variable that AdamW is about to move, with its moments in its wide type.
#[derive(Debug)]
pub(crate) struct AdamWMove<'a> {
    pub(crate) step: AdamWStep,
    pub(crate) var: &'a Var,
    pub(crate) grad: Tensor,
    pub(crate) first: &'a Tensor,
    pub(crate) second: &'a Tensor,
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
    pub(crate) step: SgdStep,
    pub(crate) var: &'a Var,
    pub(crate) grad: Tensor,
    pub(crate) velocity: Option<&'a Tensor>,
}

/// The moves that have the same constants, together: in the order of the first of each, and none is empty.
#[cfg(any(test, feature = "cuda"))]
pub(crate) fn by_step<M, S: PartialEq>(moves: &[M], step: impl Fn(&M) -> S) -> Vec<(S, Vec<&M>)> {
    let mut groups: Vec<(S, Vec<&M>)> = Vec::new();
    for one in moves {
        let own = step(one);
        match groups.iter_mut().find(|(step, _)| *step == own) {
            Some((_, group)) => group.push(one),
            None => groups.push((own, vec![one])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_grouped_by_their_constants() {
        let groups = by_step(&[1, 4, 3, 2, 7], |n| n % 3);
        assert_eq!(groups, [(1, vec![&1, &4, &7]), (0, vec![&3]), (2, vec![&2])]);
    }
}
