//! Batch normalisation whose running statistics come from the first pass alone.

use std::ops::Deref;

use candle_core::{Result, Tensor, Var};
use candle_nn::{BatchNormConfig, ModuleT, VarBuilder};

use crate::Pass;
use crate::weights::Displaced;

/// `candle_nn::BatchNorm`, except that the second pass of a sharpness-aware step leaves the running statistics alone.
///
/// The second pass still normalises by the statistics of its batch, as the authors' code does; without this layer it
/// would also move the running ones a second time, towards those of the perturbed network.
#[derive(Clone, Debug)]
pub struct BatchNorm(candle_nn::BatchNorm);

/// A batch normalisation over `num_features` channels, dimension 1 of its input, with its variables from `vb`:
/// `weight`, `bias`, `running_mean` and `running_var`, as in `candle_nn`.
///
/// # Errors
/// If `eps` is negative, or `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{ModuleT, VarBuilder, VarMap};
/// use sam_runtime::{Sam, nn};
///
/// # fn main() -> Result<()> {
/// let (vars, x) = (VarMap::new(), Tensor::randn(3f32, 2., (16, 4), &Device::Cpu)?);
/// let bn = nn::batch_norm(4, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// Sam::new(0.05).loss(|| -> Result<Tensor> { bn.forward_t(&x, true)?.sqr()?.sum_all() })?;
/// let once = (x.mean(0)? * 0.1)?;                         // momentum 0.1, from 0: one pass moved it
/// let moved = (bn.running_mean() - once)?.abs()?.max(0)?.to_scalar::<f32>()?;
/// assert!(moved < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn batch_norm<C: Into<BatchNormConfig>>(num_features: usize, config: C, vb: VarBuilder<'_>) -> Result<BatchNorm> {
    candle_nn::batch_norm(num_features, config, vb).map(BatchNorm)
}

impl BatchNorm {
    /// Normalises by the statistics of the batch, and moves the running ones towards them in all but the second pass.
    ///
    /// # Errors
    /// If `x` has no dimension 1, or one of another size than the layer.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        if Pass::current() != Pass::Descent {
            return self.0.forward_train(x);
        }
        let mut statistics = Displaced::default();
        statistics.keep([Var::from_tensor(self.running_mean())?, Var::from_tensor(self.running_var())?])?;
        let y = self.0.forward_train(x)?;
        statistics.restore()?;
        Ok(y)
    }
}

impl From<candle_nn::BatchNorm> for BatchNorm {
    fn from(layer: candle_nn::BatchNorm) -> Self {
        Self(layer)
    }
}

/// For `running_mean()`, `eps()` and the other getters.
impl Deref for BatchNorm {
    type Target = candle_nn::BatchNorm;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train { self.forward_train(x) } else { self.0.forward_t(x, false) }
    }
}
