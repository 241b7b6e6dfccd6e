//! m-sharpness: a batch split into shards of m examples, each with its own ε̂, their gradients averaged (section 3 of
//! the paper; with m the batch of one accelerator it is what data-parallel training computes).

use candle_core::Tensor;

use crate::gradient::{Gradient, Mean, loss_with_gradient};
use crate::{Error, Output, Sam};

/// The shards of one batch, and what they have come to so far. Made by [`Sam::shards`].
///
/// The value is the mean over the examples of the shards' values at w, the gradient that of the shards' gradients at
/// their own w + ε̂. For a loss that is a mean over examples both weigh each example alike, also where the last shard
/// is smaller. Layers that look at the whole batch, such as a batch normalisation, see one shard at a time.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let (w, x) = (Var::ones((3, 1), DType::F32, &Device::Cpu)?, Tensor::randn(0f32, 1., (10, 3), &Device::Cpu)?);
/// let sam = Sam::new(0.05);
/// let mut shards = sam.shards(4)?.split(&x)?;                    // 4, 4 and 2 examples
/// while let Some(shard) = shards.next_shard() {
///     let x = shard.of(&x)?;
///     let mut loss = |_| -> Result<Tensor> { x.matmul(&w)?.sqr()?.mean_all() };
///     sam.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore_into(&mut shards)?;
/// }
/// let loss: Tensor = shards.loss::<candle_core::Error>()?;
/// assert!(loss.backward()?.get(&w).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Shards<O> {
    /// Examples in a shard; none where the batch stays whole, because there is no perturbation.
    m: Option<usize>,
    rows: Option<usize>,
    done: usize,
    current: Shard,
    parts: Vec<(f64, O)>,
    gradient: Option<Mean>,
}

/// Some consecutive examples of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Shard {
    start: usize,
    len: usize,
    whole: bool,
}

/// An argument that can be split along its first dimension.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be split into shards",
    label = "expected `Tensor` or `Vec`",
    note = "implement `sam_runtime::Split` for your own types, or leave the argument out of `shards`"
)]
pub trait Split: Sized {
    /// The number of examples.
    ///
    /// # Errors
    /// If there is no first dimension.
    fn rows(&self) -> candle_core::Result<usize>;

    /// The examples from `start` on, `len` of them.
    ///
    /// # Errors
    /// If there are not as many.
    fn narrow(&self, start: usize, len: usize) -> candle_core::Result<Self>;

    /// These examples, in this order.
    ///
    /// # Errors
    /// If there are not as many.
    fn select(&self, rows: &[usize]) -> candle_core::Result<Self>;
}

/// The rows of an argument, which are as many as those of the arguments before.
pub(crate) fn same_rows(known: Option<usize>, argument: &impl Split) -> candle_core::Result<usize> {
    let found = argument.rows()?;
    if found == 0 || known.is_some_and(|known| known != found) {
        Err(Error::Rows(known.unwrap_or(found), found))?;
    }
    Ok(found)
}

impl Split for Tensor {
    fn rows(&self) -> candle_core::Result<usize> {
        self.dims().first().copied().ok_or_else(|| Error::ShardedScalar.into())
    }

    fn narrow(&self, start: usize, len: usize) -> candle_core::Result<Self> {
        Tensor::narrow(self, 0, start, len)
    }

    fn select(&self, rows: &[usize]) -> candle_core::Result<Self> {
        let rows: Vec<i64> = rows.iter().map(|row| row.cast_signed() as i64).collect();
        self.index_select(&Tensor::new(rows, self.device())?, 0)
    }
}

impl<T: Clone> Split for Vec<T> {
    fn rows(&self) -> candle_core::Result<usize> {
        Ok(self.len())
    }

    fn narrow(&self, start: usize, len: usize) -> candle_core::Result<Self> {
        match self.get(start..start + len) {
            Some(rows) => Ok(rows.to_vec()),
            None => candle_core::bail!("rows {start}..{} of a vector of {}", start + len, self.len()),
        }
    }

    fn select(&self, rows: &[usize]) -> candle_core::Result<Self> {
        let row = |row: &usize| match self.get(*row) {
            Some(row) => Ok(row.clone()),
            None => candle_core::bail!("row {row} of a vector of {}", self.len()),
        };
        rows.iter().map(row).collect()
    }
}

impl<O> Shards<O> {
    pub(crate) fn new(sam: &Sam, m: usize) -> candle_core::Result<Self> {
        if m == 0 {
            Err(Error::EmptyShard)?;
        }
        if sam.has_memory() {
            Err(Error::ShardedMemory)?;
        }
        let current = Shard { start: 0, len: 0, whole: true };
        let m = sam.perturbs().then_some(m);
        Ok(Self { m, rows: None, done: 0, current, parts: Vec::new(), gradient: None })
    }

    /// Names an argument that is split.
    ///
    /// # Errors
    /// If it has no rows, or another number of rows than the arguments named before.
    pub fn split(mut self, argument: &impl Split) -> candle_core::Result<Self> {
        self.rows = Some(same_rows(self.rows, argument)?);
        Ok(self)
    }

    /// The next shard, until all examples had their turn.
    pub fn next_shard(&mut self) -> Option<Shard> {
        let rows = self.rows.unwrap_or(1);
        let len = self.m.unwrap_or(rows).min(rows - self.done);
        self.current = Shard { start: self.done, len, whole: len == rows };
        self.done += len;
        (len > 0).then_some(self.current)
    }

    /// Takes in what the current shard's step came to.
    pub(crate) fn add(&mut self, output: O, gradient: Option<Gradient>) -> candle_core::Result<()> {
        let share = self.current.len as f64 / self.rows.unwrap_or(1) as f64;
        self.parts.push((share, output));
        if let Some(gradient) = gradient {
            self.gradient.get_or_insert_default().add(share, gradient)?;
        }
        Ok(())
    }

    /// The loss of the whole batch.
    ///
    /// # Errors
    /// If auxiliary values cannot be [joined](crate::Aux::join_shards).
    pub fn loss<E>(mut self) -> Result<O, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        let Some(gradient) = self.gradient.take() else {
            return match self.parts.pop() {
                Some((_, output)) if self.parts.is_empty() => Ok(output),
                Some(last) => Ok(O::join_shards(self.parts.into_iter().chain([last]).collect())?),
                None => Err(candle_core::Error::from(Error::Rows(0, 0)).into()),
            };
        };
        let output = O::join_shards(self.parts)?;
        let loss = loss_with_gradient(output.loss(), gradient.finish()?)?;
        Ok(output.with_loss(loss))
    }
}

impl Shard {
    /// The shard of this argument. A shard that is the whole batch costs nothing.
    ///
    /// # Errors
    /// If the argument has fewer rows than the batch.
    pub fn of<T: Split + Clone>(&self, argument: &T) -> candle_core::Result<T> {
        if self.whole { Ok(argument.clone()) } else { argument.narrow(self.start, self.len) }
    }
}
