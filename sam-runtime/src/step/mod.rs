//! One step: ascend → perturb → descend → restore, over a whole batch or a part of it.

mod aux_collections;
mod aux_values;
pub(crate) mod batch_selection;
pub(crate) mod diagnosis;
mod exchange;
pub(crate) mod output;
mod passes;
pub(crate) mod perturb;
mod second_order;
mod session;
pub(crate) mod shards;
pub(crate) mod shares;
pub(crate) mod stages;

use crate::core::pass::Pass;
use crate::sam::Sam;
use batch_selection::{BatchSelection, Rule};
use output::LossOutput;
use shards::Shards;
use stages::Ascent;

impl Sam {
    /// The loss whose value is L(w) and whose gradient is ∇L(w + ε̂).
    ///
    /// The closure runs twice and must compute the same function both times.
    ///
    /// # Errors
    /// Those of the closure, and [`Error`](crate::Error). The weights are then what they were.
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
        O: LossOutput,
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
    /// Those of the loss, and [`Error`](crate::Error).
    pub fn ascend<O, E>(&self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Ascent<'_, O>, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        self.validate().map_err(candle_core::Error::from)?;
        Ascent::run(self, None, loss)
    }

    /// Splits a batch into shards of `m` samples, for a step with each (m-sharpness): one ε̂ for each shard. For losses
    /// that are no means over samples see [`Shards::sum`] and [`Shards::weights`].
    ///
    /// # Errors
    /// If `m` is 0, or a piece of this remembers something from step to step.
    #[doc(alias = "m_sharpness")]
    pub fn shards<O>(&self, m: usize) -> candle_core::Result<Shards<O>> {
        Shards::new(self, m)
    }

    /// Takes a batch in parts of `m` samples, in each pass one after the other: one ε̂ from all of them, and the memory of
    /// one part (gradient accumulation). For losses that are no means over samples see [`BatchSelection::sum`] and
    /// [`BatchSelection::weights`].
    ///
    /// # Errors
    /// If `m` is 0.
    pub fn micro_batches(&self, m: usize) -> candle_core::Result<BatchSelection<'_>> {
        BatchSelection::new(self, Rule::Parts, m)
    }

    /// Takes both gradients on the `k` samples with the largest loss (K-SAM, Ni et al. 2022,
    /// <https://arxiv.org/abs/2210.12864>). The loss function returns one loss for each sample; the value is their mean
    /// over the whole batch. Choosing reads them on the host.
    ///
    /// # Errors
    /// If `k` is 0.
    #[doc(alias = "K-SAM")]
    pub fn hardest(&self, k: usize) -> candle_core::Result<BatchSelection<'_>> {
        BatchSelection::new(self, Rule::Hardest, k)
    }

    /// Takes the second gradient on the `k` samples whose loss rises most (ESAM's sharpness-sensitive data selection, Du
    /// et al. 2022, <https://arxiv.org/abs/2110.03141>). Otherwise as [`hardest`](Self::hardest).
    ///
    /// # Errors
    /// If `k` is 0.
    #[doc(alias = "ESAM")]
    pub fn sharpest(&self, k: usize) -> candle_core::Result<BatchSelection<'_>> {
        BatchSelection::new(self, Rule::Sharpest, k)
    }
}

impl BatchSelection<'_> {
    /// Stage one, as [`Sam::ascend`].
    ///
    /// # Errors
    /// Those of the loss, and [`Error`](crate::Error).
    pub fn ascend<O, E>(&self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Ascent<'_, O>, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let sam = self.begin().map_err(candle_core::Error::from)?;
        Ascent::run(sam, Some(self), loss)
    }
}
