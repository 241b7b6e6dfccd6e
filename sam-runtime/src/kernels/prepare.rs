//! Tensors as the kernels of layers take them.

use candle_core::{DType, Result, Tensor};

use crate::core::image_layout::ImageLayout;

/// Contiguous; images on CUDA perhaps channels last.
pub(crate) fn dense(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous() } else { ImageLayout::of(x).arrange(x) }
}

/// The same, and on the CPU bf16 and f16 as f32, in which its kernels compute.
pub(crate) fn to_compute_dtype(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && matches!(x.dtype(), DType::BF16 | DType::F16) {
        return x.to_dtype(DType::F32)?.contiguous();
    }
    dense(x)
}

/// Ready, in the format of an input that is.
pub(crate) fn to_layout_of(x: &Tensor, other: &Tensor) -> Result<Tensor> {
    ImageLayout::of(x).arrange(&to_compute_dtype(other)?)
}

/// A layer's weights, ready for an input: on the CPU in the type that it is computed in. On CUDA kernels read them in
/// their own, so that weights in f32 train a network that computes in bf16.
pub(crate) fn weight_for(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { weight.to_dtype(to_compute_dtype(x)?.dtype())?.contiguous() } else { weight.contiguous() }
}
