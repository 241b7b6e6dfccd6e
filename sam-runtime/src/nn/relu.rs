//! ReLU.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::widened;
use crate::kernels::float::{Float, elements, for_float, with_elements};

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// max(x, 0). As in PyTorch the gradient at 0 is 0 and NaN stays NaN, where candle has 1 and 0.
///
/// # Errors
/// If `x` is not a float tensor.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Var::new(&[-1f32, 0., 2.], &Device::Cpu)?;
/// let y = nn::relu(&x)?;
/// assert_eq!(y.to_vec1::<f32>()?, [0., 0., 2.]);
/// assert_eq!(y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f32>()?, [0., 0., 1.]);
/// # Ok(())
/// # }
/// ```
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { widened(x)?.contiguous()?.apply_op1(Relu)?.to_dtype(x.dtype()) } else { x.relu() }
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_float!(x.dtype(), self.name(), |T| {
            let (x, zero) = (elements::<T>(x, layout)?, T::default());
            let y = map(x, x, |x, _| if x < zero { zero } else { x });
            Ok((<T as WithDType>::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        for_float!(y.dtype(), self.name(), |T| {
            let dx = with_elements::<T, _>(y, |y| {
                let zero = T::default();
                with_elements(&dy, |dy| Ok(map(dy, y, |dy, y| if y > zero { dy } else { zero })))
            })?;
            Tensor::from_vec(dx, y.shape(), y.device()).map(Some)
        })
    }
}

fn map<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::default(); a.len()];
    let inputs = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (a, b))| {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = f(*a, *b));
    });
    out
}
