//! The learning rate as a function of the step.

use std::f64::consts::PI;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Error, Result, Tensor};
use candle_nn::Optimizer;
use serde::{Deserialize, Serialize};

use super::state_file::{self, Kind, StateFile};

/// The learning rate of each step: a pure function, [`lr`](Self::lr), of the number of steps before it. With a warm-up in
/// front of it, if you want one.
///
/// The shapes are PyTorch's; beyond their last step they stay at their end. They can be saved with `serde`, and their position with
/// [`LrScheduler`].
///
/// ```
/// use sam_runtime::optim::LrSchedule;
///
/// let schedule = LrSchedule::cosine(0.1, 100, 0.0).warm_up(4);
/// let lrs: Vec<f64> = [0, 1, 4, 54, 104].map(|step| schedule.lr(step)).into();
/// for (lr, expected) in lrs.iter().zip([0.02, 0.04, 0.1, 0.05, 0.0]) {
///     assert!((lr - expected).abs() < 1e-12);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    lr: f64,
    shape: Shape,
    warm_up: Option<WarmUp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Shape {
    Constant,
    Linear { steps: u64, end: f64 },
    Cosine { steps: u64, end: f64 },
    Steps { every: u64, factor: f64 },
    Milestones { at: Vec<u64>, factor: f64 },
    OneCycle(OneCycle),
    InverseSqrt { steps: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WarmUp {
    /// So many steps come before the first of the schedule.
    Before(u64),
    /// The first steps of the schedule themselves.
    Over(f64),
}

/// The numbers of a [one-cycle](LrSchedule::one_cycle) schedule. `Default` has PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneCycle {
    /// The share of the steps in which the rate rises.
    pub pct_start: f64,
    /// The first rate is the highest divided by this.
    pub div_factor: f64,
    /// The last rate is the first divided by this.
    pub final_div_factor: f64,
    /// Along straight lines, not cosines.
    pub linear: bool,
    /// Down to the first rate in as many steps as it rose, and then to the last.
    pub three_phase: bool,
    /// All steps.
    pub steps: u64,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self { pct_start: 0.3, div_factor: 25.0, final_div_factor: 1e4, linear: false, three_phase: false, steps: 0 }
    }
}

impl LrSchedule {
    fn new(lr: f64, shape: Shape) -> Self {
        Self { lr, shape, warm_up: None }
    }

    /// The same rate at every step.
    #[must_use]
    pub fn constant(lr: f64) -> Self {
        Self::new(lr, Shape::Constant)
    }

    /// From `lr` to `end` · `lr` on a straight line, in so many steps.
    #[must_use]
    pub fn linear(lr: f64, steps: u64, end: f64) -> Self {
        Self::new(lr, Shape::Linear { steps, end })
    }

    /// From `lr` to `end` · `lr` along half a cosine, in so many steps.
    #[must_use]
    pub fn cosine(lr: f64, steps: u64, end: f64) -> Self {
        Self::new(lr, Shape::Cosine { steps, end })
    }

    /// Multiplied by `factor` after every `every` steps.
    #[must_use]
    pub fn step(lr: f64, every: u64, factor: f64) -> Self {
        Self::new(lr, Shape::Steps { every, factor })
    }

    /// Multiplied by `factor` at each of these steps.
    #[must_use]
    pub fn milestones(lr: f64, at: impl IntoIterator<Item = u64>, factor: f64) -> Self {
        Self::new(lr, Shape::Milestones { at: at.into_iter().collect(), factor })
    }

    /// Up to `lr` and down again (Smith and Topin 2017, <https://arxiv.org/abs/1708.07120>), as PyTorch's `OneCycleLR`.
    ///
    /// ```
    /// use sam_runtime::optim::{LrSchedule, OneCycle};
    ///
    /// let schedule = LrSchedule::one_cycle(0.1, OneCycle { steps: 1000, ..OneCycle::default() });
    /// assert!((schedule.lr(0) - 0.1 / 25.).abs() < 1e-12 && (schedule.lr(299) - 0.1).abs() < 1e-12);
    /// ```
    #[must_use]
    pub fn one_cycle(lr: f64, cycle: OneCycle) -> Self {
        Self::new(lr, Shape::OneCycle(cycle))
    }

    /// `lr` / √(1 + t / `steps`). With a [warm-up](Self::warm_up) of `steps` that is the schedule of Vaswani et al. 2017: after
    /// it `lr` √(`steps` / t), counted from the beginning.
    #[must_use]
    pub fn inverse_sqrt(lr: f64, steps: u64) -> Self {
        Self::new(lr, Shape::InverseSqrt { steps })
    }

    /// Puts so many steps in front, in which the rate rises to the first of the schedule: step t has (t + 1) / (`steps` + 1) of
    /// it. PyTorch's `LinearLR(start_factor=1 / (steps + 1), total_iters=steps)` in a `SequentialLR`.
    #[must_use]
    pub fn warm_up(self, steps: u64) -> Self {
        Self { warm_up: Some(WarmUp::Before(steps)), ..self }
    }

    /// Multiplies step t of the schedule by (t + 1) / (`steps` + 1) while t < `steps`. The schedule itself is not moved.
    #[must_use]
    pub fn ramp_up(self, steps: f64) -> Self {
        Self { warm_up: Some(WarmUp::Over(steps)), ..self }
    }

    /// The learning rate of the step that has so many steps before it.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        let t = step as f64;
        let ramp = |steps: f64| if t < steps { (t + 1.0) / (steps + 1.0) } else { 1.0 };
        let (warmth, step) = match self.warm_up {
            None => (1.0, step),
            Some(WarmUp::Before(steps)) => (ramp(steps as f64), step.saturating_sub(steps)),
            Some(WarmUp::Over(steps)) => (ramp(steps), step),
        };
        self.lr * warmth * self.shape.factor(step)
    }
}

impl Shape {
    fn factor(&self, step: u64) -> f64 {
        let t = step as f64;
        let progress = |steps: u64| if step < steps { t / steps as f64 } else { 1.0 };
        let drops = |count: usize, factor: f64| factor.powi(i32::try_from(count).unwrap_or(i32::MAX));
        match self {
            Self::Constant | Self::Steps { every: 0, .. } => 1.0,
            Self::Linear { steps, end } => 1.0 + (end - 1.0) * progress(*steps),
            Self::Cosine { steps, end } => end + (1.0 - end) * (0.5 * (1.0 + (PI * progress(*steps)).cos())),
            Self::Steps { every, factor } => drops(usize::try_from(step / every).unwrap_or(usize::MAX), *factor),
            Self::Milestones { at, factor } => drops(at.iter().filter(|at| **at <= step).count(), *factor),
            Self::OneCycle(cycle) => cycle.factor(t),
            Self::InverseSqrt { steps } => 1.0 / (1.0 + t / (*steps).max(1) as f64).sqrt(),
        }
    }
}

impl OneCycle {
    /// As PyTorch's, with a highest rate of 1.
    fn factor(&self, t: f64) -> f64 {
        let (steps, first) = (self.steps as f64, 1.0 / self.div_factor);
        let (rise, last) = (self.pct_start * steps - 1.0, first / self.final_div_factor);
        let (begin, end, from, to) = if t <= rise {
            (0.0, rise, first, 1.0)
        } else if self.three_phase && t <= 2.0 * rise {
            (rise, 2.0 * rise, 1.0, first)
        } else if self.three_phase {
            (2.0 * rise, steps - 1.0, first, last)
        } else {
            (rise, steps - 1.0, 1.0, last)
        };
        let progress = if t < end { (t - begin) / (end - begin) } else { 1.0 };
        if self.linear { from + (to - from) * progress } else { to + (from - to) / 2.0 * ((PI * progress).cos() + 1.0) }
    }
}

const FILE: Kind = Kind { label: "sam-runtime learning rate", what: "the position of an `LrScheduler`", version: 1 };

const STEP: &str = "step";
const SCHEDULE: &str = "schedule";

/// A schedule and the number of steps so far.
///
/// ```
/// # use candle_core::{Device, Result, Var};
/// # use candle_nn::Optimizer;
/// use sam_runtime::optim::{AdamW, LrSchedule, LrScheduler};
///
/// # fn main() -> Result<()> {
/// # let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let mut adamw = AdamW::new_lr(vec![w.clone()], 0.)?;
/// let mut scheduler = LrScheduler::new(LrSchedule::linear(0.1, 10, 0.0).warm_up(2));
/// for _ in 0..12 {
///     scheduler.set_next(&mut adamw);
///     adamw.backward_step(&w.sqr()?.sum_all()?)?;
/// }
/// assert_eq!((scheduler.steps(), scheduler.lr()), (12, 0.0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LrScheduler {
    schedule: LrSchedule,
    steps: u64,
}

impl LrScheduler {
    /// At the first step.
    #[must_use]
    pub fn new(schedule: LrSchedule) -> Self {
        Self { schedule, steps: 0 }
    }

    /// The schedule.
    #[must_use]
    pub fn schedule(&self) -> &LrSchedule {
        &self.schedule
    }

    /// The number of steps so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The learning rate of the next step.
    #[must_use]
    pub fn lr(&self) -> f64 {
        self.schedule.lr(self.steps)
    }

    /// Sets and returns the learning rate of the next step, and counts that step.
    pub fn set_next(&mut self, optimizer: &mut impl Optimizer) -> f64 {
        let lr = self.lr();
        optimizer.set_learning_rate(lr);
        self.steps += 1;
        lr
    }

    /// Writes the number of steps to a safetensors file, with the schedule. The file is replaced
    /// [atomically](crate::write_atomically).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        state_file::write(path.as_ref(), &self.to_bytes()?)
    }

    /// What [`save`](Self::save) writes, for a checkpoint that holds more than this.
    ///
    /// # Errors
    /// None today.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut file = StateFile::new(&FILE);
        file.label(SCHEDULE, self.describe()?);
        file.insert(STEP, &Tensor::new(self.steps.cast_signed(), &Device::Cpu)?);
        file.serialize()
    }

    /// Reads a file of [`save`](Self::save). On an error all is as before.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else, or the position in another schedule.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        state_file::read(path.as_ref(), |bytes| self.load_bytes(bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let own = self.describe()?;
        self.steps = state_file::parse(bytes, &FILE, |file| {
            let found = file.label(SCHEDULE).unwrap_or("none");
            if found != own {
                candle_core::bail!("it is the position in another schedule: expected {own}, found {found}")
            }
            let Some(view) = file.tensors.get(STEP) else { candle_core::bail!("the file has no `{STEP}`") };
            state_file::count(&view.load(&Device::Cpu)?, "the number of steps")
        })?;
        Ok(())
    }

    fn describe(&self) -> Result<String> {
        serde_json::to_string(&self.schedule).map_err(Error::wrap)
    }
}
