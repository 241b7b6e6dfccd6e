//! The loss as a function of the weights.

use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor, Var};

/// A loss, and the variables that it is a function of.
///
/// See [the module](super) for an example.
pub struct Landscape<'a> {
    pub(super) vars: Arc<[Var]>,
    pub(super) buffers: Vec<Var>,
    /// Of each batch; their sum is 1.
    pub(super) shares: Vec<f64>,
    pub(super) loss: Box<dyn FnMut(usize) -> Result<Tensor> + 'a>,
}

impl fmt::Debug for Landscape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vars, buffers, shares, loss: _ } = self;
        f.debug_struct("Landscape")
            .field("vars", vars)
            .field("buffers", buffers)
            .field("shares", shares)
            .finish_non_exhaustive()
    }
}

impl<'a> Landscape<'a> {
    /// Of a loss function that is run over one batch. Variables that the loss does not depend on are an error when it is looked at.
    pub fn new(vars: impl IntoIterator<Item = Var>, mut loss: impl FnMut() -> Result<Tensor> + 'a) -> Self {
        Self::over_batches(vars, [1], move |_| loss())
    }

    /// Of a loss that is the mean over several batches, of so many samples each: `loss(i)` is the mean over the samples of the
    /// batch number i, the same in every call.
    ///
    /// ```
    /// use candle_core::{Device, Result, Tensor, Var};
    /// use sam_runtime::sharpness::Landscape;
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::new(1f64, &Device::Cpu)?;
    /// let x = Tensor::new(&[1f64, 2., 6.], &Device::Cpu)?;
    /// let batches = [x.narrow(0, 0, 2)?, x.narrow(0, 2, 1)?];
    /// let mut landscape = Landscape::over_batches([w.clone()], [2, 1], |i| batches[i].broadcast_mul(&w)?.mean_all());
    /// assert_eq!(landscape.loss()?, 3.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn over_batches(
        vars: impl IntoIterator<Item = Var>,
        samples: impl IntoIterator<Item = usize>,
        loss: impl FnMut(usize) -> Result<Tensor> + 'a,
    ) -> Self {
        let samples: Vec<f64> = samples.into_iter().map(|samples| samples as f64).collect();
        let all: f64 = samples.iter().sum();
        let shares = samples.iter().map(|samples| samples / all).collect();
        Self { vars: vars.into_iter().collect(), buffers: Vec::new(), shares, loss: Box::new(loss) }
    }

    /// Variables that the loss function changes, such as the running statistics of candle's batch normalization: they are put
    /// back.
    #[must_use]
    pub fn buffers(mut self, buffers: impl IntoIterator<Item = Var>) -> Self {
        self.buffers.extend(buffers);
        self
    }

    /// The same loss as a function of other variables: running statistics too, say, for a slice from one network to another.
    #[must_use]
    pub fn with_vars(mut self, vars: impl IntoIterator<Item = Var>) -> Self {
        self.vars = vars.into_iter().collect();
        self
    }

    /// The variables.
    #[must_use]
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }
}
