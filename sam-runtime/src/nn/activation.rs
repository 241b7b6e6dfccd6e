//! Activation functions, each one operation with its own backward pass.
//!
//! On the CPU exponentials, tanh and erf of f32 are polynomials in vectors, off by a few units of the last place; f64 is exact, and bf16
//! and f16 are computed in f32. The backward pass computes the derivative from the input, which it reads once: nothing else is kept. Large
//! numbers and ±∞ give the limits, also of derivatives; NaN stays NaN. Where a function has a corner, its derivative there is that of
//! PyTorch.
//!
//! Methods of [`Tensor`], such as `x.gelu()`, remain candle's. Those of this module are functions:
//!
//! ```
//! use candle_core::{Device, Module, Result, Var};
//! use sam_runtime::nn::{self, Activation};
//!
//! # fn main() -> Result<()> {
//! let x = Var::new(&[-1f32, 0., 2.], &Device::Cpu)?;
//! let y = nn::silu(&x)?;
//! assert!((y.to_vec1::<f32>()?[2] - 2. / (1. + (-2f32).exp())).abs() < 1e-6);
//! assert_eq!(y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f32>()?[1], 0.5);
//! assert_eq!(Activation::Silu.forward(&x)?.to_vec1::<f32>()?, y.to_vec1::<f32>()?);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use candle_nn::{Module, VarBuilder};
use serde::{Deserialize, Serialize};

use super::elementwise::relu;
use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::activation::{Function, Gate};
use crate::kernels::cpu::activation::{activate, activate_back, gate, gate_back};
use crate::kernels::cpu::prelu::Channels;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, weight_for};

/// Defines a function without parameters.
macro_rules! activations {
    ($($(#[$doc:meta])* $name:ident, $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// If `x` is not a float tensor.
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            elementwise(Function::$function, x)
        }
    )*};
}

activations! {
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, the approximation of [`gelu_erf`] that candle's `Tensor::gelu` is: `approximate = "tanh"`
    /// in PyTorch.
    gelu, GeluTanh;
    /// x Φ(x), with the probability Φ of the normal distribution (Hendrycks and Gimpel 2016): PyTorch's GELU by default.
    gelu_erf, GeluErf;
    /// x σ(x), also called swish.
    silu, Silu;
    /// σ(x) = 1 / (1 + e⁻ˣ).
    sigmoid, Sigmoid;
    /// tanh(x).
    tanh, Tanh;
    /// x tanh(ln(1 + eˣ)) (Misra 2019). candle's is NaN from about x = 89 on.
    mish, Mish;
    /// max(x, 0)².
    relu2, Relu2;
    /// max(x, 0), at most 6.
    relu6, Relu6;
    /// (x + 3) / 6, at least 0 and at most 1.
    hard_sigmoid, HardSigmoid;
    /// x times [`hard_sigmoid`] of x.
    hard_swish, HardSwish;
}

/// x, and negative numbers times `negative_slope`.
///
/// # Errors
/// If `x` is not a float tensor.
pub fn leaky_relu(x: &Tensor, negative_slope: f64) -> Result<Tensor> {
    // Without 0 · ∞.
    if negative_slope == 0.0 { relu(x) } else { elementwise(Function::LeakyRelu(negative_slope), x) }
}

/// x, and α (eˣ - 1) of negative numbers.
///
/// # Errors
/// If `x` is not a float tensor.
pub fn elu(x: &Tensor, alpha: f64) -> Result<Tensor> {
    elementwise(Function::Elu(alpha), x)
}

/// γ x, and γ α (eˣ - 1) of negative numbers (Klambauer et al. 2017, where α is 1.6733 and γ is 1.0507).
///
/// # Errors
/// If `x` is not a float tensor.
pub fn selu(x: &Tensor, alpha: f32, gamma: f32) -> Result<Tensor> {
    elementwise(Function::Selu { alpha: alpha.into(), gamma: gamma.into() }, x)
}

/// The first half of the last dimension through [`silu`], times the second half (Shazeer 2020).
///
/// # Errors
/// If the last dimension is odd, or `x` not a float tensor.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::new(&[[2f32, 0., 1., 5.]], &Device::Cpu)?;
/// let y = nn::swiglu(&x)?.to_vec2::<f32>()?;
/// assert!((y[0][0] - 2. / (1. + (-2f32).exp())).abs() < 1e-6 && y[0][1] == 0.);
/// # Ok(())
/// # }
/// ```
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    gated(Function::Silu, false, x)
}

/// The first half of the last dimension, times [`sigmoid`] of the second half (Dauphin et al. 2017), as in PyTorch.
///
/// # Errors
/// If the last dimension is odd, or `x` not a float tensor.
pub fn glu(x: &Tensor) -> Result<Tensor> {
    gated(Function::Sigmoid, true, x)
}

fn elementwise(function: Function, x: &Tensor) -> Result<Tensor> {
    if has_fused_kernels(x.device()) {
        apply(function, &[&to_compute_dtype(x)?])?.to_dtype(x.dtype())
    } else {
        function.by_candle(x)
    }
}

fn gated(function: Function, second: bool, x: &Tensor) -> Result<Tensor> {
    let &[ref rest @ .., last] = x.dims() else { candle_core::bail!("expected at least one dimension, found none") };
    if last % 2 != 0 {
        candle_core::bail!("expected two halves in the last dimension, found {:?}", x.dims())
    }
    let half = last / 2;
    if !has_fused_kernels(x.device()) {
        let axis = rest.len();
        let (first, other) = (x.narrow(axis, 0, half)?, x.narrow(axis, half, half)?);
        return if second { first * function.by_candle(&other)? } else { function.by_candle(&first)? * other };
    }
    let op = GateOp { gate: Gate { function, half, second }, shape: [rest, &[half]].concat() };
    // Halves are those of rows, so images have to be channels first.
    apply(op, &[&to_compute_dtype(&x.contiguous()?)?])?.to_dtype(x.dtype())
}

impl FusedOp for Function {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        activate(*self, &args[0])
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(activate_back(*self, &args[0], dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::activate(*self, &args[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::activate_back(*self, &args[0], dy)?)])
    }
}

struct GateOp {
    gate: Gate,
    /// Of the output.
    shape: Vec<usize>,
}

impl FusedOp for GateOp {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        gate(self.gate, &args[0], &self.shape)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(gate_back(self.gate, &args[0], dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::gate(self.gate, &args[0], &self.shape)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::gate_back(self.gate, &args[0], dy)?)])
    }
}

/// `candle_nn::Activation`, with the functions of this module. Configurations read either: the names in files are the same.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// [`gelu_erf`].
    #[default]
    #[serde(alias = "gelu")]
    Gelu,
    /// [`gelu`], with tanh.
    #[serde(alias = "gelu_new")]
    NewGelu,
    /// [`relu`].
    Relu,
    /// [`relu2`].
    Relu2,
    /// [`relu6`].
    Relu6,
    /// [`silu`].
    Silu,
    /// [`sigmoid`].
    Sigmoid,
    /// [`hard_sigmoid`].
    HardSigmoid,
    /// [`swiglu`].
    Swiglu,
    /// [`silu`], by its other name.
    Swish,
    /// [`mish`].
    Mish,
    /// [`hard_swish`].
    HardSwish,
    /// [`elu`] with this α.
    Elu(f64),
    /// [`leaky_relu`] with this slope of negative numbers.
    LeakyRelu(f64),
    /// [`gelu`], with tanh.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluPytorchTanh,
}

impl Module for Activation {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match *self {
            Self::Gelu => gelu_erf(x),
            Self::NewGelu | Self::GeluPytorchTanh => gelu(x),
            Self::Relu => relu(x),
            Self::Relu2 => relu2(x),
            Self::Relu6 => relu6(x),
            Self::Silu | Self::Swish => silu(x),
            Self::Sigmoid => sigmoid(x),
            Self::HardSigmoid => hard_sigmoid(x),
            Self::Swiglu => swiglu(x),
            Self::Mish => mish(x),
            Self::HardSwish => hard_swish(x),
            Self::Elu(alpha) => elu(x, alpha),
            Self::LeakyRelu(negative_slope) => leaky_relu(x, negative_slope),
        }
    }
}

/// Conversions between enumerations with the same variants.
macro_rules! same_variants {
    ($($plain:ident)*; $($with:ident)*) => {
        impl From<candle_nn::Activation> for Activation {
            fn from(stock: candle_nn::Activation) -> Self {
                match stock {
                    $(candle_nn::Activation::$plain => Self::$plain,)*
                    $(candle_nn::Activation::$with(x) => Self::$with(x),)*
                }
            }
        }

        impl From<Activation> for candle_nn::Activation {
            fn from(ours: Activation) -> Self {
                match ours {
                    $(Activation::$plain => Self::$plain,)*
                    $(Activation::$with(x) => Self::$with(x),)*
                }
            }
        }
    };
}

same_variants! {
    Gelu NewGelu Relu Relu2 Relu6 Silu Sigmoid HardSigmoid Swiglu Swish Mish HardSwish GeluPytorchTanh; Elu LeakyRelu
}

/// `candle_nn::PReLU`: x, and negative numbers times a slope that is trained (He et al. 2015). At 0 the derivative is the slope, as in
/// PyTorch. On CUDA it consists of candle's operations.
#[derive(Clone, Debug)]
pub struct PReLU {
    weight: Tensor,
    is_scalar: bool,
}

impl PReLU {
    /// With one slope if `is_scalar`, else with one for each channel, or for each element.
    #[must_use]
    pub fn new(weight: Tensor, is_scalar: bool) -> Self {
        Self { weight, is_scalar }
    }

    /// The slopes.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Whether there is one slope for all.
    #[must_use]
    pub fn is_scalar(&self) -> bool {
        self.is_scalar
    }

    /// The slopes in a shape that fits `x`, and which elements each is for.
    fn slopes_for(&self, x: &Tensor) -> Result<(Tensor, Channels)> {
        let (weights, n) = (self.weight.elem_count(), x.elem_count());
        if self.is_scalar || x.rank() < 2 && weights == 1 {
            return Ok((self.weight.reshape(())?, Channels { channels: 1, plane: n.max(1) }));
        }
        if x.shape() == self.weight.shape() {
            return Ok((self.weight.clone(), Channels { channels: n.max(1), plane: 1 }));
        }
        let &[_, channels, ref rest @ ..] = x.dims() else {
            candle_core::bail!("expected a slope for each element of {:?}, found {:?}", x.dims(), self.weight.dims())
        };
        if channels != weights {
            candle_core::bail!("expected a slope for each of {channels} channels, dimension 1, found {weights}")
        }
        let mut shape = vec![1; x.rank()];
        shape[1] = channels;
        let plane = rest.iter().product::<usize>().max(1);
        Ok((self.weight.reshape(shape)?, Channels { channels: channels.max(1), plane }))
    }
}

impl From<candle_nn::PReLU> for PReLU {
    fn from(stock: candle_nn::PReLU) -> Self {
        Self::new(stock.weight().clone(), stock.is_scalar())
    }
}

impl Module for PReLU {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (slopes, channels) = self.slopes_for(x)?;
        if x.device().is_cpu() {
            return apply(channels, &[&to_compute_dtype(x)?, &weight_for(x, &slopes)?])?.to_dtype(x.dtype());
        }
        let slopes = slopes.to_dtype(x.dtype())?;
        x.gt(&x.zeros_like()?)?.where_cond(x, &x.broadcast_mul(&slopes)?)
    }
}

impl FusedOp for Channels {
    fn name(&self) -> &'static str {
        "prelu"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        self.prelu(&args[0], &args[1])
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [x, slopes] = [&args[0], &args[1]];
        let dx = wanted[0].then(|| self.prelu_back(x, slopes, dy)).transpose()?;
        Ok(vec![dx, wanted[1].then(|| self.slopes_back(x, slopes, dy)).transpose()?])
    }
}

/// A [`PReLU`] with its variable `weight` from `vb`, of `num_channels` slopes, or of one slope for all; they begin at 0.25.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn prelu(num_channels: Option<usize>, vb: VarBuilder<'_>) -> Result<PReLU> {
    candle_nn::prelu(num_channels, vb).map(PReLU::from)
}
