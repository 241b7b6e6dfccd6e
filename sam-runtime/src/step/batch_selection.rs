//! Which samples of a batch a step works with, where it is not all of them at once.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};

use crate::core::error::Error;
use crate::core::pass::Pass;
use crate::sam::Sam;
use crate::step::shards::SplitBatch;
use crate::step::shares::{Division, Part, Shares, Weights};

/// Samples chosen from a batch, or taken part by part. Made by [`Sam::micro_batches`], [`Sam::hardest`] and [`Sam::sharpest`].
///
/// The loss of the whole batch is the mean of the losses of the parts, with their numbers of samples as weights. For a loss
/// that is a sum over samples call [`sum`](Self::sum), for a mean over something else, such as tokens,
/// [`weights`](Self::weights). The last part has what remains of the batch; a single sample joins the part before it
/// (unless m is 1), because a batch normalization cannot normalize one sample.
///
/// A loss function asks it for its arguments, and the stages begin with it:
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let (w, x) = (Var::ones((3, 1), DType::F32, &Device::Cpu)?, Tensor::randn(0f32, 1., (10, 3), &Device::Cpu)?);
/// let sam = Sam::new(0.05);
/// let selection = sam.hardest(4)?.split(&x)?;
/// let mut losses = |_| -> Result<Tensor> { selection.of(&x)?.matmul(&w)?.sqr()?.squeeze(1) };   // one for each sample
/// let loss: Tensor = selection.ascend(&mut losses)?.perturb()?.descend(&mut losses)?.restore::<candle_core::Error>()?;
/// assert_eq!(loss.to_scalar::<f32>()?, x.matmul(&w)?.sqr()?.mean_all()?.to_scalar::<f32>()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct BatchSelection<'a> {
    sam: &'a Sam,
    rule: Rule,
    /// Samples in a part, or to choose.
    size: usize,
    division: Division,
    current: RefCell<Rows>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// One after the other, for one ε̂.
    Parts,
    /// Those with the largest loss at w.
    Hardest,
    /// Those whose loss rises most from w to w + ε̂.
    Sharpest,
}

impl Rule {
    /// Whether the loss function returns a loss for each sample.
    pub(crate) fn is_per_sample(self) -> bool {
        self != Self::Parts
    }
}

/// Some of the batch.
#[derive(Clone, Debug)]
pub(crate) struct Portion {
    /// Its share of the samples.
    pub(crate) share: f64,
    /// What its loss is multiplied by in the loss of the whole.
    pub(crate) weight: f64,
    pub(crate) rows: Rows,
}

impl Portion {
    pub(crate) const ALL: Self = Self { share: 1.0, weight: 1.0, rows: Rows::All };
}

#[derive(Clone, Debug)]
pub(crate) enum Rows {
    All,
    Range(usize, usize),
    Chosen(Vec<usize>),
}

impl<'a> BatchSelection<'a> {
    pub(crate) fn new(sam: &'a Sam, rule: Rule, size: usize) -> candle_core::Result<Self> {
        if size == 0 {
            let (what, expected) = match rule {
                Rule::Parts => ("m", "at least one sample in a part"),
                Rule::Hardest | Rule::Sharpest => ("k", "at least one sample to choose"),
            };
            Err(Error::Setting { what, value: 0.0, expected })?;
        }
        Ok(Self { sam, rule, size, division: Division::default(), current: RefCell::new(Rows::All) })
    }

    /// Names an argument that has a row for each sample.
    ///
    /// # Errors
    /// If it has no rows, or another number of rows than the arguments named before.
    pub fn split(mut self, argument: &impl SplitBatch) -> candle_core::Result<Self> {
        self.division.add_rows(argument.rows()?)?;
        Ok(self)
    }

    /// For a loss that is a sum over samples: the losses of the parts, their gradients and their auxiliary floats are
    /// added up. For [`Sam::micro_batches`]; in place of [`weights`](Self::weights), if these were given.
    ///
    /// ```
    /// use candle_core::{Device, Result, Tensor, Var};
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// let (w, x) = (Var::new(2f64, &Device::Cpu)?, Tensor::new(&[1f64, 2., 3.], &Device::Cpu)?);
    /// let sam = Sam::new(0.5);
    /// let parts = sam.micro_batches(2)?.split(&x)?.sum();
    /// let mut loss = |_| -> Result<Tensor> { parts.of(&x)?.broadcast_mul(&w)?.sum_all() };
    /// let loss: Tensor = parts.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore::<candle_core::Error>()?;
    /// assert_eq!(loss.to_scalar::<f64>()?, 12.);
    /// # Ok(())
    /// # }
    /// ```
    pub fn sum(mut self) -> Self {
        self.division.shares = Shares::Sum;
        self
    }

    /// For a loss that is a mean with a [weight](Weights) for each sample: the losses of the parts, their gradients and
    /// their auxiliary floats are averaged with the sums of the weights in each part. Samples that weigh nothing are put
    /// into a neighboring part, where they would fill one. For [`Sam::micro_batches`].
    ///
    /// # Errors
    /// If there is not one weight for each row of the arguments, one is negative or not finite, or all are 0.
    pub fn weights<W: Weights + ?Sized>(mut self, weights: &W) -> candle_core::Result<Self> {
        self.division.set_weights(weights)?;
        Ok(self)
    }

    /// Those rows of the argument that the loss function is now to work with.
    ///
    /// # Errors
    /// If it has fewer rows than the batch.
    pub fn of<T: SplitBatch + Clone>(&self, argument: &T) -> candle_core::Result<T> {
        match &*self.current.borrow() {
            Rows::All => Ok(argument.clone()),
            Rows::Range(start, len) => argument.narrow_rows(*start, *len),
            Rows::Chosen(rows) => argument.select_rows(rows),
        }
    }

    /// Before the first pass: checks the settings, and shows all rows.
    pub(super) fn begin(&self) -> Result<&Sam, Error> {
        self.current.replace(Rows::All);
        self.sam.validate()?;
        let shares = &self.division.shares;
        if self.rule.is_per_sample() && !matches!(shares, Shares::Samples) {
            let what = if matches!(shares, Shares::Sum) { "sum" } else { "weights" };
            let why = "it says how the losses of micro-batches are added up: `hardest` and `sharpest` have a loss for each sample";
            return Err(Error::Settings { what, why });
        }
        Ok(self.sam)
    }

    pub(crate) fn rule(&self) -> Rule {
        self.rule
    }

    pub(crate) fn show(&self, rows: Rows) {
        self.current.replace(rows);
    }

    /// What a pass goes over, before any are chosen.
    pub(crate) fn portions(&self) -> Vec<Portion> {
        if self.rule.is_per_sample() {
            return vec![Portion::ALL];
        }
        let parts = self.division.parts(Some(self.size));
        if parts.len() == 1 {
            return vec![Portion::ALL];
        }
        let rows: usize = parts.iter().map(|part| part.len).sum();
        let share = |len: usize| len as f64 / rows as f64;
        let portion = |part: Part| Portion {
            share: share(part.len),
            weight: part.weight,
            rows: Rows::Range(part.start, part.len),
        };
        parts.into_iter().map(portion).collect()
    }

    /// The samples with the largest of these numbers, in the order of the batch. Of equal numbers the first is chosen.
    pub(crate) fn choose(&self, sizes: &[f64]) -> Portion {
        if self.size >= sizes.len() {
            return Portion::ALL;
        }
        let mut rows: Vec<_> = (0..sizes.len()).collect();
        rows.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
        rows.truncate(self.size);
        rows.sort_unstable();
        Portion { share: self.size as f64 / sizes.len() as f64, weight: 1.0, rows: Rows::Chosen(rows) }
    }

    /// One loss for each sample, on the host.
    pub(crate) fn losses(&self, losses: &Tensor, pass: Pass) -> candle_core::Result<Vec<f64>> {
        let rows = match &*self.current.borrow() {
            Rows::All => self.division.rows,
            Rows::Range(_, len) => Some(*len),
            Rows::Chosen(rows) => Some(rows.len()),
        };
        if losses.rank() != 1 || rows.is_some_and(|rows| rows != losses.elem_count()) || losses.elem_count() == 0 {
            Err(Error::NotPerExample { found: losses.shape().clone(), rows })?;
        }
        if !losses.dtype().is_float() {
            Err(Error::NotFloat(losses.dtype()))?;
        }
        let losses = losses.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        match losses.iter().find(|loss| !loss.is_finite()) {
            Some(value) => Err(Error::NonFiniteLoss { pass, value: *value }.into()),
            None => Ok(losses),
        }
    }
}
