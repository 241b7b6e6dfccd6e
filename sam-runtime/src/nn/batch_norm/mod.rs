//! Batch normalization whose running statistics come from the first pass alone.

mod fused;

use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{DType, Result, Tensor, Var};
pub use candle_nn::batch_norm::*;
use candle_nn::{ModuleT, VarBuilder};

use self::fused::Normalize;
#[cfg(feature = "cuda")]
use self::fused::OnDevice;
use crate::autograd::tape::apply;
use crate::core::lock::lock;
use crate::core::pass::{Pass, Step, WeakStep};
use crate::core::storage::SwapGuard;
use crate::kernels::cpu::batch_norm::Statistics;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, to_layout_of, weight_for};
use crate::kernels::shapes::BatchNormShape;

/// `candle_nn::BatchNorm`, except that the second pass of a sharpness-aware step leaves the running statistics alone.
///
/// The second pass still normalizes by the statistics of its batch, as the authors' code does; without this layer it
/// would also move the running ones a second time, towards those of the perturbed network. A step that fails, because its
/// loss is not finite for instance, puts the running statistics back. Outside a step they move as in PyTorch: a batch with a NaN
/// makes them NaN.
///
/// Clones share variables and running statistics.
///
/// On the CPU and on CUDA it is one operation, and one with the shortcut and the ReLU that follow it in residual networks: see
/// [`forward_relu`](Self::forward_relu) and [`forward_add_relu`](Self::forward_add_relu).
#[derive(Clone, Debug)]
pub struct BatchNorm {
    layer: candle_nn::BatchNorm,
    remove_mean: bool,
    /// The steps under way whose first pass this layer has seen. A thread of a rayon pool that waits inside the second pass of
    /// one training may run a plain forward pass of another, whose layers have not seen that step.
    seen: Arc<Mutex<Vec<WeakStep>>>,
}

/// A batch normalization over `num_features` channels, dimension 1 of its input, with its variables from `vb`:
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
    let config = config.into();
    let layer = candle_nn::batch_norm(num_features, config, vb)?;
    Ok(BatchNorm { layer, remove_mean: config.remove_mean, seen: Arc::default() })
}

impl From<candle_nn::BatchNorm> for BatchNorm {
    /// The mean is subtracted, as all of candle's own constructors have it.
    fn from(layer: candle_nn::BatchNorm) -> Self {
        Self { layer, remove_mean: true, seen: Arc::default() }
    }
}

impl BatchNorm {
    /// With γ and β, and a momentum of 0.1.
    ///
    /// # Errors
    /// If a tensor has other than `num_features` elements, or `eps` is negative.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new(num_features, running_mean, running_var, weight, bias, eps).map(Self::from)
    }

    /// [`new`](Self::new) without γ and β.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_no_bias(num_features: usize, running_mean: Tensor, running_var: Tensor, eps: f64) -> Result<Self> {
        candle_nn::BatchNorm::new_no_bias(num_features, running_mean, running_var, eps).map(Self::from)
    }

    /// [`new`](Self::new) with a momentum.
    ///
    /// # Errors
    /// As [`new`](Self::new), and if `momentum` is not in [0, 1].
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let layer = candle_nn::BatchNorm::new_with_momentum(
            num_features,
            running_mean,
            running_var,
            weight,
            bias,
            eps,
            momentum,
        )?;
        Ok(layer.into())
    }

    /// [`new_no_bias`](Self::new_no_bias) with a momentum.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new_no_bias_with_momentum(num_features, running_mean, running_var, eps, momentum)
            .map(Self::from)
    }

    /// Normalizes by the statistics of the batch, and moves the running ones towards them in all but the second pass.
    ///
    /// # Errors
    /// If `x` has no dimension 1, or one of another size than the layer, or fewer than two values for each channel.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x, None, false, true)
    }

    /// `relu(self.forward_t(x, train))`
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train).
    pub fn forward_relu(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, true, train)
    }

    /// `relu(self.forward_t(x, train) + shortcut)`
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train), and if `shortcut` has another shape than `x`.
    pub fn forward_add_relu(&self, x: &Tensor, shortcut: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, Some(shortcut), true, train)
    }

    fn forward(&self, x: &Tensor, shortcut: Option<&Tensor>, relu: bool, train: bool) -> Result<Tensor> {
        let channels = self.layer.running_mean().dim(0)?;
        if x.rank() < 2 || x.dim(1)? != channels {
            candle_core::bail!("expected a batch of {channels} channels to normalize, found {:?}", x.dims())
        }
        if let Some(shortcut) = shortcut.filter(|shortcut| shortcut.dims() != x.dims()) {
            candle_core::bail!("expected a shortcut of {:?}, found {:?}", x.dims(), shortcut.dims())
        }
        if train && x.elem_count() <= channels {
            candle_core::bail!(
                "expected at least two values for each channel to train on, found a batch of {:?}: choose the batch size, \
                 and the m of `shards`, so that no batch and no shard has a single row",
                x.dims()
            )
        }
        if !x.dtype().is_float() {
            candle_core::bail!("expected a batch of floats to normalize, found {:?}", x.dtype())
        }
        let moves = train && self.begin_move()?;
        if has_fused_kernels(x.device()) && x.elem_count() > 0 {
            self.fused(x, shortcut, relu, train, moves)
        } else {
            let mut y = if train { self.stock_train(x, moves)? } else { self.layer.forward_t(x, false)? };
            if let Some(shortcut) = shortcut {
                y = (y + shortcut)?;
            }
            if relu { y.relu() } else { Ok(y) }
        }
    }

    /// Whether this pass moves the running statistics. If it does, the step knows what they were before.
    fn begin_move(&self) -> Result<bool> {
        let Some(step) = Step::current() else { return Ok(true) };
        {
            let mut seen = lock(&self.seen);
            let is_seen = seen.iter().any(|known| known.is(&step));
            if Pass::current() == Pass::Descent {
                if is_seen {
                    return Ok(false);
                }
            } else if !is_seen {
                seen.retain(|known| !known.is_over());
                seen.push(step.downgrade());
            }
        }
        step.keep(self.layer.running_mean())?;
        step.keep(self.layer.running_var())?;
        Ok(true)
    }

    fn fused(&self, x: &Tensor, shortcut: Option<&Tensor>, relu: bool, train: bool, moves: bool) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = to_compute_dtype(x)?;
        let norm = BatchNormShape {
            channels: x.dim(1)?,
            plane: x.dims()[2..].iter().product(),
            eps: self.layer.eps(),
            centered: self.remove_mean,
            relu,
        };
        let mut args = vec![x.clone()];
        if let Some((weight, bias)) = self.layer.weight_and_bias() {
            args.extend([weight_for(&x, weight)?, weight_for(&x, bias)?]);
        }
        if let Some(shortcut) = shortcut {
            args.push(to_layout_of(&x, &shortcut.to_dtype(dtype)?)?);
        }
        let affine = self.layer.weight_and_bias().is_some();
        let statistics = Arc::new(OnceLock::new());
        let fixed = if train || !x.device().is_cpu() { None } else { Some(self.running()?) };
        #[cfg(feature = "cuda")]
        let on_device = OnDevice {
            running: [self.layer.running_mean().detach(), self.layer.running_var().detach()],
            momentum: moves.then(|| self.layer.momentum()),
            train,
            statistics: OnceLock::new(),
        };
        let layer = Normalize {
            norm,
            affine,
            fixed,
            statistics: Arc::clone(&statistics),
            #[cfg(feature = "cuda")]
            on_device,
        };
        let y = apply(layer, &args.iter().collect::<Vec<_>>())?;
        if let Some(statistics) = statistics.get().filter(|_| moves) {
            self.move_statistics(statistics, x.elem_count() / norm.channels)?;
        }
        y.to_dtype(dtype)
    }

    fn running(&self) -> Result<Statistics> {
        let values = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1();
        Ok(Statistics { mean: values(self.layer.running_mean())?, var: values(self.layer.running_var())? })
    }

    fn move_statistics(&self, batch: &Statistics, count: usize) -> Result<()> {
        let (momentum, running) = (self.layer.momentum(), self.running()?);
        let moved = |running: &[f64], batch: &[f64], factor: f64, var: &Tensor| {
            let step = running
                .iter()
                .zip(batch)
                .map(|(running, batch)| running * (1.0 - momentum) + batch * momentum * factor);
            let values = Tensor::from_vec(step.collect::<Vec<f64>>(), var.shape(), var.device())?;
            Var::from_tensor(var)?.set(&values.to_dtype(var.dtype())?)
        };
        if self.remove_mean {
            moved(&running.mean, &batch.mean, 1.0, self.layer.running_mean())?;
        }
        // The variance of the population that the batch is a sample of.
        let unbiased = count as f64 / (count as f64 - 1.0);
        moved(&running.var, &batch.var, unbiased, self.layer.running_var())
    }

    /// For other devices.
    fn stock_train(&self, x: &Tensor, moves: bool) -> Result<Tensor> {
        if moves {
            return self.layer.forward_train(x);
        }
        let mut statistics = SwapGuard::new(&Step::current().unwrap_or_else(Step::begin), Vec::new())?;
        statistics.keep(&[Var::from_tensor(self.running_mean())?, Var::from_tensor(self.running_var())?])?;
        let y = self.layer.forward_train(x)?;
        statistics.restore()?;
        Ok(y)
    }
}

/// For `running_mean()`, `eps()` and the other getters.
impl Deref for BatchNorm {
    type Target = candle_nn::BatchNorm;

    fn deref(&self) -> &Self::Target {
        &self.layer
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, false, train)
    }
}
