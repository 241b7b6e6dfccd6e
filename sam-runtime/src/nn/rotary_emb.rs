//! Rotary position embeddings (Su et al. 2021), with gradients: `rope` and its variants turn pairs of elements by angles.
//!
//! x may have any strides, and cos and sin more times than x, or another float type. Where cos and sin are (batch, times, half), each
//! sample has its own angles, also if there are more times than those of x, where candle takes wrong ones. If a gradient of cos or sin is
//! needed, the rotation consists of candle's operations, which have one.
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//! use sam_runtime::nn::rotary_emb::rope;
//!
//! # fn main() -> Result<()> {
//! let x = Var::new(&[[[[1f32, 0., 0., 0.]]]], &Device::Cpu)?;
//! let angles = Tensor::new(&[[0.5f32, 0.]], &Device::Cpu)?;
//! let y = rope(&x, &angles.cos()?, &angles.sin()?)?;
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [0.5f32.cos(), 0., 0.5f32.sin(), 0.]);
//! assert!(y.sqr()?.sum_all()?.backward()?.get(&x).is_some());
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};

pub use candle_nn::rotary_emb::*;

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::rotary_emb::{rotate, rotate_back};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::prepare::to_compute_dtype;
use crate::kernels::shapes::RotaryShape;
use crate::kernels::{has_fused_kernels, portable};

/// Turns pairs of `xs` (batch, heads, time, dim), of which one is in the first half of dim and one in the second, by the angles whose
/// `cos` and `sin` are (times, dim / 2) or (batch, times, dim / 2).
///
/// # Errors
/// If the shapes do not fit.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turned(xs, cos, sin, Order { interleaved: false, heads_inside: false })
}

/// [`rope`] of pairs that are neighbors.
///
/// # Errors
/// If the shapes do not fit.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turned(xs, cos, sin, Order { interleaved: true, heads_inside: false })
}

/// [`rope`] of `xs` (batch, time, heads, dim).
///
/// # Errors
/// If the shapes do not fit.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turned(xs, cos, sin, Order { interleaved: false, heads_inside: true })
}

#[derive(Clone, Copy)]
struct Order {
    interleaved: bool,
    heads_inside: bool,
}

fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor, order: Order) -> Result<Tensor> {
    let Order { interleaved, heads_inside } = order;
    let (batch, second, third, dim) = x.dims4()?;
    let (time, heads) = if heads_inside { (second, third) } else { (third, second) };
    let step = |angles: &Tensor| match *angles.dims() {
        [times, half] if half * 2 == dim && times >= time => Ok(0),
        [n, times, half] if n == batch && half * 2 == dim && times >= time => Ok(times * half),
        _ => candle_core::bail!(
            "expected cos and sin ({time}, {half}) or ({batch}, {time}, {half}), or with more times, for {:?}, found {:?}",
            x.dims(),
            angles.dims(),
            half = dim / 2
        ),
    };
    let steps = [step(cos)?, step(sin)?];
    let rotation = RotaryShape { interleaved, batch, heads, time, half: dim / 2, heads_inside, steps };
    if cos.track_op() || sin.track_op() || !has_fused_kernels(x.device()) {
        return portable::rotary_emb::rotate(&rotation, [x, cos, sin]);
    }
    // On CUDA kernels read angles in the type that they compute in.
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let [cos, sin] = [cos.to_dtype(wide)?.contiguous()?, sin.to_dtype(wide)?.contiguous()?];
    apply(rotation, &[&to_compute_dtype(&x.contiguous()?)?, &cos, &sin])?.to_dtype(x.dtype())
}

impl FusedOp for RotaryShape {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        rotate(self, [&args[0], &args[1], &args[2]])
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(rotate_back(self, [dy, &args[1], &args[2]])?), None, None])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::rotate(self, [&args[0], &args[1], &args[2]])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::rotate_back(self, [dy, &args[1], &args[2]])?), None, None])
    }
}
