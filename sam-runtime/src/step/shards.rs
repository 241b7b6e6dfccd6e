//! m-sharpness: a batch split into shards of m samples, each with its own ε̂, their gradients averaged (section 3 of
//! the paper; with m the batch of one accelerator it is what data-parallel training computes).

use std::vec::IntoIter;

use candle_core::Tensor;

use crate::autograd::fixed_gradient::loss_with_gradient;
use crate::core::error::Error;
use crate::core::pass::Before;
use crate::core::var_list::{Gradient, VarTensors};
use crate::distributed::Comm;
use crate::kernels::weighted_mean::WeightedMean;
use crate::sam::Sam;
use crate::step::exchange::Exchange;
use crate::step::output::LossOutput;
use crate::step::shares::{Division, Part, Shares, Weights};

/// The shards of one batch, and the results of those that are done. Made by [`Sam::shards`].
///
/// The value is the mean over the samples of the shards' values at w, the gradient that of the shards' gradients at
/// their own w + ε̂. For a loss that is a mean over samples both weigh each sample alike, also where the last shard
/// is smaller. For a loss that is a sum over samples call [`sum`](Self::sum), for a mean over something else, such as
/// tokens, [`weights`](Self::weights). Layers that see the whole batch, such as a batch normalization, see one shard at
/// a time.
///
/// The last shard has what remains of the batch. If that is a single sample, it joins the shard before it (unless m is 1),
/// because a batch normalization cannot normalize one sample.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let (w, x) = (Var::ones((3, 1), DType::F32, &Device::Cpu)?, Tensor::randn(0f32, 1., (10, 3), &Device::Cpu)?);
/// let sam = Sam::new(0.05);
/// let mut shards = sam.shards(4)?.split(&x)?;                    // 4, 4 and 2 samples
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
    /// Samples in a shard; none where the batch stays whole, because there is no perturbation.
    m: Option<usize>,
    division: Division,
    /// The shards to come, once the first was asked for.
    next: Option<IntoIter<Part>>,
    current: Shard,
    values: Vec<(f64, O)>,
    gradient: Option<WeightedMean>,
    /// The state of layers before the first shard: it is restored unless all shards end well.
    before: Before,
    comm: Option<Comm>,
}

/// Some consecutive samples of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Shard {
    part: Part,
    whole: bool,
}

/// An argument that can be split along its first dimension.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be split into shards",
    label = "expected `Tensor` or `Vec`",
    note = "implement `sam_runtime::SplitBatch` for your own types, or leave the argument out of `shards`"
)]
pub trait SplitBatch: Sized {
    /// The number of samples.
    ///
    /// # Errors
    /// If there is no first dimension.
    fn rows(&self) -> candle_core::Result<usize>;

    /// The samples from `start` on, `len` of them.
    ///
    /// # Errors
    /// If there are not as many.
    fn narrow_rows(&self, start: usize, len: usize) -> candle_core::Result<Self>;

    /// These samples, in this order.
    ///
    /// # Errors
    /// If there are not as many.
    fn select_rows(&self, rows: &[usize]) -> candle_core::Result<Self>;
}

impl SplitBatch for Tensor {
    fn rows(&self) -> candle_core::Result<usize> {
        self.dims().first().copied().ok_or_else(|| Error::ShardedScalar.into())
    }

    fn narrow_rows(&self, start: usize, len: usize) -> candle_core::Result<Self> {
        self.narrow(0, start, len)?.contiguous()
    }

    fn select_rows(&self, rows: &[usize]) -> candle_core::Result<Self> {
        let rows: Vec<i64> = rows.iter().map(|row| row.cast_signed() as i64).collect();
        // candle selects from contiguous tensors only.
        self.contiguous()?.index_select(&Tensor::new(rows, self.device())?, 0)
    }
}

impl<T: Clone> SplitBatch for Vec<T> {
    fn rows(&self) -> candle_core::Result<usize> {
        Ok(self.len())
    }

    fn narrow_rows(&self, start: usize, len: usize) -> candle_core::Result<Self> {
        match self.get(start..start + len) {
            Some(rows) => Ok(rows.to_vec()),
            None => candle_core::bail!("rows {start}..{} of a vector of {}", start + len, self.len()),
        }
    }

    fn select_rows(&self, rows: &[usize]) -> candle_core::Result<Self> {
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
            Err(Error::Setting { what: "m", value: 0.0, expected: "at least one sample in a shard" })?;
        }
        if sam.has_memory() {
            Err(Error::ShardedMemory)?;
        }
        if sam.has_synchronized_ascent {
            let why =
                "each shard has its own perturbation, not that of all ranks: use `micro_batches`, or leave it out";
            Err(Error::Settings { what: "synchronized_ascent", why })?;
        }
        let current = Shard { part: Part { start: 0, len: 0, weight: 1.0 }, whole: true };
        Ok(Self {
            m: sam.perturbs().then_some(m),
            division: Division::default(),
            next: None,
            current,
            values: Vec::new(),
            gradient: None,
            before: Before::default(),
            comm: sam.comm.clone(),
        })
    }

    /// Names an argument that is split.
    ///
    /// # Errors
    /// If it has no rows, or another number of rows than the arguments named before.
    pub fn split(mut self, argument: &impl SplitBatch) -> candle_core::Result<Self> {
        self.division.add_rows(argument.rows()?)?;
        Ok(self)
    }

    /// For a loss that is a sum over samples: the losses of the shards, their gradients and their auxiliary floats are
    /// added up. In place of [`weights`](Self::weights), if these were given.
    ///
    /// ```
    /// use candle_core::{Device, Result, Tensor, Var};
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// let (w, x) = (Var::new(2f64, &Device::Cpu)?, Tensor::new(&[1f64, 2., 3.], &Device::Cpu)?);
    /// let sam = Sam::new(0.5);
    /// let mut shards = sam.shards(2)?.split(&x)?.sum();
    /// while let Some(shard) = shards.next_shard() {
    ///     let x = shard.of(&x)?;
    ///     let mut loss = |_| -> Result<Tensor> { x.broadcast_mul(&w)?.sum_all() };
    ///     sam.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore_into(&mut shards)?;
    /// }
    /// let loss: Tensor = shards.loss::<candle_core::Error>()?;
    /// assert_eq!(loss.to_scalar::<f64>()?, 12.);
    /// # Ok(())
    /// # }
    /// ```
    pub fn sum(mut self) -> Self {
        self.division.shares = Shares::Sum;
        self
    }

    /// For a loss that is a mean with a [weight](Weights) for each sample: the losses of the shards, their gradients and
    /// their auxiliary floats are averaged with the sums of the weights in each shard. Samples that weigh nothing are put
    /// into a neighboring shard, where they would fill one.
    ///
    /// # Errors
    /// If there is not one weight for each row of the arguments, one is negative or not finite, or all are 0.
    pub fn weights<W: Weights + ?Sized>(mut self, weights: &W) -> candle_core::Result<Self> {
        self.division.set_weights(weights)?;
        Ok(self)
    }

    /// The next shard, until all samples had their turn.
    pub fn next_shard(&mut self) -> Option<Shard> {
        let parts = || self.division.parts(self.m).into_iter();
        let part = self.next.get_or_insert_with(parts).next()?;
        self.current = Shard { part, whole: part.len == self.division.rows.unwrap_or(1) };
        Some(self.current)
    }

    /// Adds the result of the current shard's step.
    pub(crate) fn add(&mut self, output: O, gradient: Option<Gradient>, before: Before) -> candle_core::Result<()> {
        self.before.append(before);
        let weight = self.current.part.weight;
        self.values.push((weight, output));
        if let Some(gradient) = gradient {
            self.gradient.get_or_insert_default().add(weight, gradient)?;
        }
        Ok(())
    }

    /// The loss of the whole batch. Its gradient is the mean over the ranks of a [distributed](crate::distributed) training.
    ///
    /// # Errors
    /// If auxiliary values cannot be [joined](crate::Aux::join_shards), or another rank has failed.
    pub fn loss<E>(mut self) -> Result<O, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let before = std::mem::take(&mut self.before);
        let mut exchange = Exchange::begin(self.comm.as_ref());
        let output = self.joined(&mut exchange)?;
        before.forget();
        Ok(output)
    }

    fn joined<E>(mut self, exchange: &mut Exchange) -> Result<O, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let gradient = self.gradient.take().map(WeightedMean::finish).transpose()?;
        let Some(gradient) = exchange.finish(gradient, &mut VarTensors::default())? else {
            return match self.values.pop() {
                Some((_, output)) if self.values.is_empty() => Ok(output),
                Some(last) => Ok(O::join_shards(self.values.into_iter().chain([last]).collect())?),
                None => Err(candle_core::Error::from(Error::Rows(0, 0)).into()),
            };
        };
        let output = O::join_shards(self.values)?;
        let loss = loss_with_gradient(output.loss(), gradient)?;
        Ok(output.with_loss(loss))
    }
}

impl Shard {
    /// The shard of this argument. A shard that is the whole batch costs nothing.
    ///
    /// # Errors
    /// If the argument has fewer rows than the batch.
    pub fn of<T: SplitBatch + Clone>(&self, argument: &T) -> candle_core::Result<T> {
        if self.whole { Ok(argument.clone()) } else { argument.narrow_rows(self.part.start, self.part.len) }
    }
}
