//! What a step does: the ball, and what is perturbed inside it.

use candle_core::Var;

use crate::dual_norm::DualNorm;
use crate::pass::Step;
use crate::stages::Ascent;
use crate::{Error, Output, Pass, Shards};

/// Sharpness-Aware Minimization of Foret et al. (ICLR 2021, <https://arxiv.org/abs/2010.01412>): the gradient of
/// a loss at the worst point of a ball around the weights, to first order.
///
/// The attribute [`#[sam]`](macro@crate::sam) builds one; without it, [`Sam::loss`] takes a closure, and the four
/// stages can be run one by one, as the attribute does:
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
/// let mut loss = |_| -> Result<Tensor> { w.sqr()?.sum_all() };
///
/// let sam = Sam::new(0.05).p(2);
/// let loss = sam.ascend(&mut loss)?    // L(w), ∇L(w)
///     .perturb()?                      // w ← w + ε̂(w)
///     .descend(&mut loss)?             // ∇L(w + ε̂)
///     .restore::<candle_core::Error>()?;
///
/// assert_eq!(loss.to_scalar::<f64>()?, 25.0);
/// let g = loss.backward()?.get(&w).unwrap().to_vec1::<f64>()?;
/// assert!((g[0] - 2. * 3.03).abs() < 1e-12 && (g[1] - 2. * 4.04).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
///
/// The values are checked when a step begins, so that a wrong ρ is an error of the step.
#[derive(Clone, Debug)]
#[must_use]
pub struct Sam {
    pub(crate) ball: Ball,
    pub(crate) vars: Option<Vec<Var>>,
}

/// { ε : ‖T⁻¹ε‖_p ≤ ρ }, with T = 1, or T = diag(|w| + η) where it is adaptive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ball {
    pub(crate) rho: f64,
    pub(crate) p: f64,
    pub(crate) eta: Option<f64>,
}

impl Ball {
    pub(crate) fn norm(self) -> DualNorm {
        DualNorm::new(self.p)
    }

    fn check(self) -> Result<(), Error> {
        let radius = |value: f64| value.is_finite() && value >= 0.0;
        match self {
            Self { rho, .. } if !radius(rho) => Err(Error::Rho(rho)),
            Self { p, .. } if p.is_nan() || p < 1.0 => Err(Error::P(p)),
            Self { eta: Some(eta), .. } if !radius(eta) => Err(Error::Eta(eta)),
            _ => Ok(()),
        }
    }
}

impl Default for Sam {
    /// ρ = 0.05, p = 2: the paper's choice for CIFAR.
    fn default() -> Self {
        Self::new(Self::RHO)
    }
}

impl Sam {
    /// The paper's ρ for CIFAR-10.
    pub const RHO: f64 = 0.05;

    /// ASAM's η (Kwon et al. 2021, <https://arxiv.org/abs/2102.11600>, the authors' code).
    pub const ETA: f64 = 0.01;

    /// A Euclidean ball of radius `rho` around the weights. With `rho` = 0 a step is one plain pass.
    pub fn new(rho: impl Into<f64>) -> Self {
        Self { ball: Ball { rho: rho.into(), p: 2.0, eta: None }, vars: None }
    }

    /// The norm of the ball: 1 ≤ p ≤ ∞. p = 2 perturbs along the gradient, p = ∞ along its sign, p = 1 in the
    /// coordinates of the largest gradient only.
    pub fn p(mut self, p: impl Into<f64>) -> Self {
        self.ball.p = p.into();
        self
    }

    /// Scales the ball by |w| + η in each coordinate, so that rescaling a layer does not change the perturbation's
    /// effect (ASAM, Kwon et al. 2021): ε̂ = T · ε̂(T g) with T = |w| + η. Usual ρ are ten times larger, and up.
    pub fn adaptive(mut self, eta: impl Into<f64>) -> Self {
        self.ball.eta = Some(eta.into());
        self
    }

    /// Perturbs these variables only, the others stay where they are; without it, whatever the loss depends on is
    /// perturbed. Variables among these that get no gradient, such as the statistics of a batch normalisation, are
    /// state, and keep what the first pass has made of them.
    pub fn vars(mut self, vars: impl IntoIterator<Item = Var>) -> Self {
        self.vars = Some(vars.into_iter().collect());
        self
    }

    /// Whether ρ, p and η are in range; a step asks this first.
    ///
    /// # Errors
    /// If one is not.
    pub fn check(&self) -> candle_core::Result<()> {
        Ok(self.ball.check()?)
    }

    /// The loss whose value is L(w) and whose gradient is ∇L(w + ε̂).
    ///
    /// The closure runs twice and must compute the same function both times.
    ///
    /// # Errors
    /// Those of the closure, and [`Error`]. The weights are then what they were.
    ///
    /// ```
    /// use candle_core::{DType, Device, Result, Tensor, Var};
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::ones(10, DType::F32, &Device::Cpu)?;
    /// let loss = Sam::new(0.05).loss(|| -> Result<Tensor> { w.exp()?.sum_all() })?;
    /// let gradient = loss.backward()?;
    /// # assert!(gradient.get(&w).is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn loss<O, E>(&self, mut loss: impl FnMut() -> Result<O, E>) -> Result<O, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        let mut loss = |_| loss();
        self.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore()
    }

    /// Stage one: runs the loss at w and takes its gradient.
    ///
    /// Inside a pass of another loss, inside [`plain`](crate::plain) and for ρ = 0 there is no perturbation: the loss
    /// runs once, and the further stages hand it on.
    ///
    /// # Errors
    /// Those of the loss, and [`Error`].
    pub fn ascend<O, E>(&self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Ascent<O>, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        self.check()?;
        Ascent::run(self, loss)
    }

    /// Splits a batch into shards of `m` examples, for a step with each (m-sharpness).
    ///
    /// # Errors
    /// If `m` is 0.
    pub fn shards<O>(&self, m: usize) -> candle_core::Result<Shards<O>> {
        Shards::new(self, m)
    }

    /// Whether a step that begins now has a second pass.
    pub(crate) fn perturbs(&self) -> bool {
        self.ball.rho > 0.0 && Step::is_outermost()
    }
}
