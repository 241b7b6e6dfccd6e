//! The dtypes that numbers are computed in.

use candle_core::{DType, Result, Tensor};

/// The accumulation dtype of a dtype, on any device: f32 for half precision.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The distance from 1 to the next number.
pub(crate) fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F16 => half::f16::EPSILON.to_f64(),
        DType::BF16 => half::bf16::EPSILON.to_f64(),
        _ => f64::from(f32::EPSILON),
    }
}

/// The dtype that numbers of a tensor are computed in where there is no kernel for it: f64 on the CPU, else [`wide`].
pub(crate) fn exact_dtype(tensor: &Tensor) -> DType {
    if tensor.device().is_cpu() { DType::F64 } else { wide(tensor.dtype()) }
}

/// The tensor in that dtype, without its graph.
pub(crate) fn exact(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().to_dtype(exact_dtype(tensor))
}
