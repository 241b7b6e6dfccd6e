//! Interpolation of images.

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::shapes::{Between, Resize};

/// By two products with matrices of weights.
pub(crate) fn upsample(x: &Tensor, rows: &Resize, columns: &Resize) -> Result<Tensor> {
    let matrix = |side: &Resize| {
        let mut weights = vec![0.0; side.output * side.input];
        for (i, weights) in weights.chunks_exact_mut(side.input).enumerate() {
            let Between { low, high, weight } = side.between(i);
            weights[low] += 1.0 - weight;
            weights[high] += weight;
        }
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let on_cpu = Tensor::from_vec(weights, (side.output, side.input), &Device::Cpu)?.to_dtype(dtype)?;
        on_cpu.to_device(x.device())?.to_dtype(x.dtype())
    };
    let wide = x.broadcast_matmul(&matrix(columns)?.t()?)?;
    if x.rank() == 3 { Ok(wide) } else { matrix(rows)?.broadcast_matmul(&wide) }
}
