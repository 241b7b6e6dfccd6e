//! What a step does: the ball, and what is perturbed inside it.

pub(crate) mod memory;
mod memory_file;
mod presets;
pub(crate) mod stats;
mod validate;

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{Tensor, TensorId, Var};

use crate::core::error::Error;
use crate::core::norm_ball::Ball;
use crate::core::pass::Step;
use crate::core::var_list::VarSet;
use crate::distributed::{Comm, Communicator};
use crate::kernels;
use crate::optim::GradScaler;
use crate::variants::{Combination, Direction, Mask, Metric, Radius, Rho, Schedule, Scope};
use memory::{InFlight, Memory};
use stats::StepStats;

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
/// Published variants exchange pieces of this: the ascent [direction](Direction), the [metric](Metric) and
/// [scope](Scope) of the norm, the [radius](Radius), the [steps](Schedule) that are perturbed, and how the two gradients
/// are [combined](Combination). The published methods are constructors: [`Sam::asam`], [`Sam::gsam`], [`Sam::look_sam`], ..;
/// [`variants`](crate::variants) has a table of them.
///
/// The values are checked when a step begins, so that a wrong ρ is an error of the step.
///
/// What some pieces remember from step to step is behind a lock: a `&Sam` is enough. It changes when a step has ended, not
/// when it failed. A clone begins with what the original remembers, and goes its own way.
#[derive(Clone, Debug)]
#[must_use]
pub struct Sam {
    pub(crate) radius: Radius,
    p: f64,
    normalized: bool,
    pub(crate) scope: Scope,
    pub(crate) metric: Metric,
    metric_for: Option<HashSet<TensorId>>,
    pub(crate) mask: Option<Mask>,
    pub(crate) direction: Direction,
    pub(crate) ascents: AscentSteps,
    pub(crate) schedule: Schedule,
    pub(crate) combination: Combination,
    pub(crate) vars: Option<VarSet>,
    pub(crate) buffers: VarSet,
    pub(crate) seed: u64,
    loss_scale: f64,
    scaler: Option<GradScaler>,
    pub(crate) has_diagnostics: bool,
    pub(crate) comm: Option<Comm>,
    pub(crate) has_synchronized_ascent: bool,
    pub(crate) memory: Memory,
}

/// How the perturbation is found: so many steps of this length, each back onto the ball where it has left it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AscentSteps {
    pub(crate) count: usize,
    /// In units of ρ.
    pub(crate) length: f64,
}

impl Default for Sam {
    /// ρ = 0.05, p = 2: the paper's choice for CIFAR.
    fn default() -> Self {
        Self::new(Self::DEFAULT_RHO)
    }
}

impl Sam {
    /// The paper's ρ for CIFAR-10.
    pub const DEFAULT_RHO: f64 = 0.05;

    /// ASAM's η (Kwon et al. 2021, <https://arxiv.org/abs/2102.11600>, the authors' code).
    pub const ASAM_ETA: f64 = 0.01;

    /// A Euclidean ball of radius `rho` around the weights. With `rho` = 0 a step is one plain pass.
    pub fn new(rho: impl Rho) -> Self {
        Self {
            radius: Radius::Constant(rho.into()),
            p: 2.0,
            normalized: true,
            scope: Scope::Global,
            metric: Metric::Euclidean,
            metric_for: None,
            mask: None,
            direction: Direction::Gradient,
            ascents: AscentSteps { count: 1, length: 1.0 },
            schedule: Schedule::Always,
            combination: Combination::PerturbedGradient,
            vars: None,
            buffers: VarSet::default(),
            seed: 0,
            loss_scale: 1.0,
            scaler: None,
            has_diagnostics: false,
            comm: None,
            has_synchronized_ascent: false,
            memory: Memory::default(),
        }
    }

    /// The norm of the ball: 1 ≤ p ≤ ∞. p = 2 perturbs along the gradient, p = ∞ along its sign, p = 1 in the
    /// coordinates of the largest gradient only.
    pub fn p(mut self, p: impl Into<f64>) -> Self {
        self.p = p.into();
        self
    }

    /// Scales the ball by |w| + η in each coordinate, so that rescaling a layer does not change the perturbation's
    /// effect (ASAM, Kwon et al. 2021): ε̂ = T · ε̂(T g) with T = |w| + η. Usual ρ are ten times larger, and up.
    ///
    /// Short for a [`metric`](Self::metric) of [`Metric::Adaptive`].
    pub fn adaptive(self, eta: impl Into<f64>) -> Self {
        self.metric(Metric::Adaptive { eta: eta.into() })
    }

    /// How the ball is shaped.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Has the metric for these variables only; for the others T = 1. The authors of ASAM leave out biases:
    /// `.metric_for(named(&vars, |name| name.ends_with("weight")))`, see [`named`](crate::variants::named).
    pub fn metric_for(mut self, vars: impl IntoIterator<Item = Var>) -> Self {
        self.metric_for = Some(vars.into_iter().map(|var| var.id()).collect());
        self
    }

    /// What one ball is around: all variables, each, or groups.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Perturbs some coordinates only.
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// ε̂ = ρ g, and in a metric ρ T² g, without a norm (USAM, Andriushchenko and Flammarion 2022,
    /// <https://arxiv.org/abs/2206.06232>). For p = 2. It depends on the scale of the loss.
    #[doc(alias = "unnormalised")]
    pub fn unnormalized(mut self) -> Self {
        self.normalized = false;
        self
    }

    /// How large the ball is, where that changes.
    pub fn radius(mut self, radius: Radius) -> Self {
        self.radius = radius;
        self
    }

    /// ρ as a function of the number of steps before this one. Called once at the beginning of each step; it may ask this
    /// `Sam` for what is known of the [last](Self::last_stats) one.
    pub fn rho_schedule(self, rho: impl Fn(u64) -> f64 + Send + Sync + 'static) -> Self {
        self.radius(Radius::Schedule(Arc::new(rho)))
    }

    /// What the perturbation follows.
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Finds the perturbation in `count` steps of length `length` · ρ, each from where the last one led and back onto the
    /// ball where it has left it (the paper's appendix C.6, with p = 2). A length of 1 makes one step SAM.
    pub fn ascent_steps(mut self, count: usize, length: f64) -> Self {
        self.ascents = AscentSteps { count, length };
        self
    }

    /// Which steps are sharpness-aware.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// How the gradients at w and at w + ε̂ are combined.
    pub fn combination(mut self, combination: Combination) -> Self {
        self.combination = combination;
        self
    }

    /// Perturbs these variables only; without it, all variables that the loss depends on are perturbed. The gradient is that
    /// of all of them in any case. A variable that is listed several times, such as a tied weight under two names, counts
    /// once. One that gets no gradient is an error ([`Error::NoGradient`]): list running statistics as
    /// [`buffers`](Self::buffers).
    pub fn vars(mut self, vars: impl IntoIterator<Item = Var>) -> Self {
        self.vars = Some(vars.into_iter().collect());
        self
    }

    /// Variables that the loss function writes to, such as the running statistics of `candle_nn`'s batch normalization: they
    /// keep the value that the first pass gave them, and are never perturbed. If the step fails they are restored to the value from
    /// before it. [`nn::BatchNorm`](crate::nn::BatchNorm) needs none.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result, Tensor};
    /// # use candle_nn::{ModuleT, VarBuilder, VarMap};
    /// use sam_runtime::Sam;
    /// use sam_runtime::variants::named;
    ///
    /// # fn main() -> Result<()> {
    /// # let (vars, x) = (VarMap::new(), Tensor::randn(3f32, 2., (16, 4), &Device::Cpu)?);
    /// let bn = candle_nn::batch_norm(4, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    /// let sam = Sam::new(0.05).buffers(named(&vars, |name| name.contains("running_")));
    /// sam.loss(|| -> Result<Tensor> { bn.forward_t(&x, true)?.sqr()?.sum_all() })?;
    /// let once = (x.mean(0)? * 0.1)?;                         // momentum 0.1, from 0: one pass moved it
    /// let moved = (bn.running_mean() - once)?.abs()?.max(0)?.to_scalar::<f32>()?;
    /// assert!(moved < 1e-6);
    /// # Ok(())
    /// # }
    /// ```
    pub fn buffers(mut self, buffers: impl IntoIterator<Item = Var>) -> Self {
        self.buffers = buffers.into_iter().collect();
        self
    }

    /// The seed of all that is drawn: random directions, masks, steps. What is drawn is a function of the seed and of the
    /// number of the step.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Multiplies the loss by this number before each backward pass, and divides the gradients by it before anything is
    /// done with them, so that small gradients survive a network in f16. A gradient that overflows is, on the CPU, an
    /// [`Error::NonFiniteGradient`]: halve the scale with [`set_loss_scale`](Self::set_loss_scale) and continue. On other
    /// devices this is not checked: the returned gradient is not finite then, and what is remembered stays as it was.
    /// Variables should be f32 (master weights): gradients are returned in the dtype of their variable, and variables in f16
    /// or bf16 lose much of a small ε̂ to rounding. On the CPU that is an [`Error::LostToRounding`], where they would lose more
    /// than half of it.
    pub fn loss_scale(mut self, scale: f64) -> Self {
        self.loss_scale = scale;
        self
    }

    /// As [`loss_scale`](Self::loss_scale), between two steps.
    pub fn set_loss_scale(&mut self, scale: f64) {
        self.loss_scale = scale;
    }

    /// Has the [scaler](GradScaler) set the loss scale of each step, in place of [`loss_scale`](Self::loss_scale): both passes are
    /// scaled by what it is when they run. [`GradScaler::step`] leaves out a step whose gradient, of either pass, overflows.
    pub fn grad_scaler(mut self, scaler: &GradScaler) -> Self {
        self.scaler = Some(scaler.clone());
        self
    }

    /// Has the gradient of each step be the mean over the ranks of a [distributed](crate::distributed) training. All ranks run
    /// the step, each on its own samples. Every rank finds its own ε̂ on them, which is m-sharpness with m their number, and one
    /// gradient is sent, after the last pass, also with [`shards`](Self::shards) and [`micro_batches`](Self::micro_batches) and
    /// whether or not this rank's step had a perturbation. For a loss that is a mean over samples, every rank needs as many of
    /// them.
    ///
    /// The value of the loss stays the rank's own: see [`Comm::mean`]. If the step fails on one rank, it is an error on all
    /// ([`Error::OtherRank`]), and all weights are what they were. Steps inside of another one, or under
    /// [`plain`](crate::plain), send nothing.
    ///
    /// What a variant remembers of gradients is that of the rank's own, unless the ascent is
    /// [synchronized](Self::synchronized_ascent): each rank saves its own state, and the file says which rank it is of.
    ///
    /// ```
    /// # use candle_core::{Device, Result, Tensor, Var};
    /// use sam_runtime::Sam;
    /// use sam_runtime::distributed;
    ///
    /// # fn main() -> Result<()> {
    /// distributed::run(|world| {
    ///     let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
    ///     let sam = Sam::new(0.05).all_reduce(world);
    ///     let loss = sam.loss(|| -> Result<Tensor> { w.sqr()?.sum_all() })?;
    ///     assert_eq!(loss.to_scalar::<f32>()?, 25.);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn all_reduce(mut self, comm: impl Communicator) -> Self {
        self.comm = Some(comm.borrow().clone());
        self
    }

    /// With [`all_reduce`](Self::all_reduce): has ε̂ be that of the samples of all ranks. The gradient of each pass is then the
    /// mean over the ranks, so that two gradients are sent for a step and not one, and what a variant remembers is the same on
    /// all ranks. It is not for [`shards`](Self::shards), which have an ε̂ each.
    pub fn synchronized_ascent(mut self) -> Self {
        self.has_synchronized_ascent = true;
        self
    }

    /// What the loss is multiplied by now.
    pub(crate) fn current_loss_scale(&self) -> f64 {
        self.scaler.as_ref().map_or(self.loss_scale, GradScaler::scale)
    }

    /// Has [`last`](Self::last_stats) tell also of norms, angles and curvature, at the price of a copy of the gradient and a few
    /// more readings of it.
    pub fn with_diagnostics(mut self) -> Self {
        self.has_diagnostics = true;
        self
    }

    /// The statistics of the last step, once there was one. With [`shards`](Self::shards) each of them is a step.
    #[must_use]
    pub fn last_stats(&self) -> Option<StepStats> {
        self.memory.lock().last.clone()
    }

    /// Sets the learning rate that a [`Radius::LinkedToLr`] goes with, as [`Sam::gsam`]'s does: call
    /// `sam.set_learning_rate(opt.learning_rate())` before each step. Without it the first step is an error. With other radii
    /// it does nothing. [`save`](Self::save) saves it as well.
    pub fn set_learning_rate(&self, rate: f64) {
        self.memory.lock().state.rate = Some(rate);
    }

    /// An error if the radius goes with a learning rate that was never set, or is not finite.
    pub(crate) fn check_rate(&self) -> Result<(), Error> {
        match (&self.radius, self.memory.lock().state.rate) {
            (Radius::LinkedToLr { .. }, None) => Err(Error::Settings {
                what: "Radius::LinkedToLr",
                why: "no learning rate is set: call `sam.set_learning_rate(opt.learning_rate())` before each step",
            }),
            (Radius::LinkedToLr { .. }, Some(value)) if !value.is_finite() => {
                Err(Error::Setting { what: "learning rate", value, expected: "a finite number" })
            }
            _ => Ok(()),
        }
    }

    /// What is left to do after the optimizer's step, for [`Combination::WsamDecoupled`]: w ← w - lr a (g₂ - g). Nothing, for
    /// all others. Where the optimizer's step was left out, `apply_decoupled(0.)` does away with it.
    ///
    /// What the loss was multiplied by before its backward pass multiplies g₂ - g too, as it multiplies g. The last backward
    /// pass counts; without one there is nothing left to do. What is done to the gradients afterwards, such as
    /// clipping them by their norm, cannot be known here: pass a smaller rate.
    ///
    /// ```
    /// # use candle_core::{Device, Result, Tensor, Var};
    /// # use candle_nn::{Optimizer, SGD};
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::new(3f64, &Device::Cpu)?;
    /// let (sam, mut sgd) = (Sam::wsam(), SGD::new(vec![w.clone()], 0.1)?);
    /// let loss = sam.loss(|| -> Result<Tensor> { w.sqr() })?;
    /// sgd.backward_step(&(loss * 0.5)?)?;                               // w - lr g / 2 = 3 - 0.1 · 6 / 2
    /// sam.apply_decoupled(0.1)?;                                                 // - lr · 9 (g₂ - g) / 2 = 0.1 · 9 · 0.1 / 2
    /// assert!((w.to_scalar::<f64>()? - 2.655).abs() < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If candle fails.
    pub fn apply_decoupled(&self, learning_rate: f64) -> candle_core::Result<()> {
        let (remainder, factor) = {
            let state = &mut self.memory.lock().state;
            (std::mem::take(&mut state.remainder), std::mem::take(&mut state.factor))
        };
        for (var, rest) in remainder.iter() {
            let one = kernels::number(rest, 1.0)?;
            kernels::mix(var.as_tensor(), &one, rest, &factor.times(-learning_rate, rest)?)?;
        }
        Ok(())
    }

    /// Whether a variable is one of those that are perturbed, if it gets a gradient.
    pub(crate) fn may_move(&self, var: &Var) -> bool {
        self.vars.as_ref().is_none_or(|vars| vars.contains(var)) && !self.buffers.contains(var)
    }

    /// Whether a step that begins now may have a perturbation.
    pub(crate) fn perturbs(&self) -> bool {
        Step::is_outermost() && self.radius_now() > 0.0
    }

    /// ρ of a step that begins now.
    pub(crate) fn radius_now(&self) -> f64 {
        let (steps, rate) = {
            let memory = self.memory.lock();
            (memory.state.steps, memory.state.rate)
        };
        self.radius.before(steps, rate)
    }

    /// Whether a step depends on those before.
    pub(crate) fn has_memory(&self) -> bool {
        self.direction.has_memory()
            || self.mask.is_some_and(Mask::has_memory)
            || self.schedule.has_memory()
            || self.combination.has_memory()
            || self.radius.has_memory()
    }

    /// Marks a step as in progress, as long as the result lives.
    ///
    /// # Errors
    /// If another one is, and steps depend on those before.
    pub(crate) fn in_flight(&self) -> Result<InFlight<'_>, Error> {
        self.memory.begin(self.has_memory())
    }

    pub(crate) fn ball(&self, rho: f64) -> Ball {
        Ball { rho, p: self.p, normalized: self.normalized }
    }

    pub(crate) fn scaling(&self, var: &Var, grad: &Tensor) -> candle_core::Result<kernels::Scale> {
        self.metric.at(var, grad, self.metric_for.as_ref())
    }
}
