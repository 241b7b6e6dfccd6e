//! Which examples of a batch a step works with, where it is not all of them at once.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};

use crate::shards::same_rows;
use crate::stages::Ascent;
use crate::{Error, Output, Pass, Sam, Split};

/// Examples chosen from a batch, or taken part by part. Made by [`Sam::parts`], [`Sam::hardest`] and [`Sam::sharpest`].
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
/// let examples = sam.hardest(4)?.split(&x)?;
/// let mut losses = |_| -> Result<Tensor> { examples.of(&x)?.matmul(&w)?.sqr()?.squeeze(1) };   // one for each example
/// let loss: Tensor = examples.ascend(&mut losses)?.perturb()?.descend(&mut losses)?.restore::<candle_core::Error>()?;
/// assert_eq!(loss.to_scalar::<f32>()?, x.matmul(&w)?.sqr()?.mean_all()?.to_scalar::<f32>()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Examples<'a> {
    sam: &'a Sam,
    rule: Rule,
    /// Examples in a part, or to choose.
    size: usize,
    rows: Option<usize>,
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
    /// Whether the loss function returns a loss for each example.
    pub(crate) fn is_per_example(self) -> bool {
        self != Self::Parts
    }
}

/// Some of the batch, and how much of it that is.
#[derive(Clone, Debug)]
pub(crate) struct Portion {
    pub(crate) share: f64,
    pub(crate) rows: Rows,
}

impl Portion {
    pub(crate) const ALL: Self = Self { share: 1.0, rows: Rows::All };
}

#[derive(Clone, Debug)]
pub(crate) enum Rows {
    All,
    Range(usize, usize),
    Chosen(Vec<usize>),
}

impl<'a> Examples<'a> {
    pub(crate) fn new(sam: &'a Sam, rule: Rule, size: usize) -> candle_core::Result<Self> {
        if size == 0 {
            Err(Error::EmptyShard)?;
        }
        Ok(Self { sam, rule, size, rows: None, current: RefCell::new(Rows::All) })
    }

    /// Names an argument that has a row for each example.
    ///
    /// # Errors
    /// If it has no rows, or another number of rows than the arguments named before.
    pub fn split(mut self, argument: &impl Split) -> candle_core::Result<Self> {
        self.rows = Some(same_rows(self.rows, argument)?);
        Ok(self)
    }

    /// Those rows of the argument that the loss function is now to work with.
    ///
    /// # Errors
    /// If it has fewer rows than the batch.
    pub fn of<T: Split + Clone>(&self, argument: &T) -> candle_core::Result<T> {
        match &*self.current.borrow() {
            Rows::All => Ok(argument.clone()),
            Rows::Range(start, len) => argument.narrow(*start, *len),
            Rows::Chosen(rows) => argument.select(rows),
        }
    }

    /// Stage one, as [`Sam::ascend`].
    ///
    /// # Errors
    /// Those of the loss, and [`Error`](crate::Error).
    pub fn ascend<O, E>(&self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Ascent<'_, O>, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        self.current.replace(Rows::All);
        self.sam.check()?;
        Ascent::run(self.sam, Some(self), loss)
    }

    pub(crate) fn rule(&self) -> Rule {
        self.rule
    }

    pub(crate) fn show(&self, rows: Rows) {
        self.current.replace(rows);
    }

    /// What a pass goes over, before any are chosen.
    pub(crate) fn portions(&self) -> Vec<Portion> {
        let rows = self.rows.unwrap_or(1);
        if self.rule.is_per_example() || self.size >= rows {
            return vec![Portion::ALL];
        }
        let part = |start| {
            let len = self.size.min(rows - start);
            Portion { share: len as f64 / rows as f64, rows: Rows::Range(start, len) }
        };
        (0..rows).step_by(self.size).map(part).collect()
    }

    /// Those with the largest of these numbers, the first of equals first, in the order of the batch.
    pub(crate) fn choose(&self, sizes: &[f64]) -> Portion {
        if self.size >= sizes.len() {
            return Portion::ALL;
        }
        let mut rows: Vec<_> = (0..sizes.len()).collect();
        rows.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
        rows.truncate(self.size);
        rows.sort_unstable();
        Portion { share: self.size as f64 / sizes.len() as f64, rows: Rows::Chosen(rows) }
    }

    /// One loss for each example, on the host.
    pub(crate) fn losses(&self, losses: &Tensor, pass: Pass) -> candle_core::Result<Vec<f64>> {
        let rows = match &*self.current.borrow() {
            Rows::All => self.rows,
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
