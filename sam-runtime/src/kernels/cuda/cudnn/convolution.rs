//! Convolutions by cuDNN: forward, data gradient and filter gradient.
//!
//! On the first run with given sizes, all of cuDNN's [plans](super::plan) are timed, and the fastest is kept as long as
//! the thread lives. So a thread is deterministic, but two threads may have picked different plans. The choice is
//! logged with `tracing` at debug level. Without a plan the functions return `None`.

use candle_core::cuda::gemm_reduced_precision_f32;
use candle_core::{Result, Tensor};

use super::convolution_graph::{Addresses, ConvOp, Operation};
use super::plan::ALIGNMENT;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cuda::buffers::{UninitTensor, address_of, device};
use crate::kernels::cuda::context::{CudaContext, with_context};
use crate::kernels::shapes::ConvShape;

/// The convolution of x with w, of one dtype, all in this layout.
pub(crate) fn forward(conv: &ConvShape, x: &Tensor, w: &Tensor, format: ImageLayout) -> Result<Option<UninitTensor>> {
    let ConvShape { images, filters, height, width, .. } = *conv;
    let shape = (images, filters, height.output, width.output);
    run(ConvOp::Forward, conv, format, [x, w], shape, |[x, w], y| Addresses { x, w, y })
}

/// The gradient of x.
pub(crate) fn backward_data(conv: &ConvShape, w: &Tensor, dy: &Tensor, format: ImageLayout) -> Result<Option<Tensor>> {
    let ConvShape { images, channels, height, width, .. } = *conv;
    let shape = (images, channels, height.input, width.input);
    let dx = run(ConvOp::BackwardData, conv, format, [w, dy], shape, |[w, y], x| Addresses { x, w, y })?;
    dx.map(UninitTensor::tensor).transpose()
}

/// The gradient of w.
pub(crate) fn backward_filter(
    conv: &ConvShape,
    x: &Tensor,
    dy: &Tensor,
    format: ImageLayout,
) -> Result<Option<Tensor>> {
    let ConvShape { channels, filters, groups, height, width, .. } = *conv;
    let shape = (filters, channels / groups, height.kernel, width.kernel);
    let dw = run(ConvOp::BackwardFilter, conv, format, [x, dy], shape, |[x, y], w| Addresses { x, w, y })?;
    dw.map(UninitTensor::tensor).transpose()
}

/// Runs one of the three operations, from two operands to the third.
fn run(
    op: ConvOp,
    conv: &ConvShape,
    format: ImageLayout,
    from: [&Tensor; 2],
    to: (usize, usize, usize, usize),
    operands: impl Fn([u64; 2], u64) -> Addresses,
) -> Result<Option<UninitTensor>> {
    let [a, b] = from;
    let (dtype, tf32) = (a.dtype(), gemm_reduced_precision_f32());
    let operation = Operation { op, conv: *conv, format, dtype, tf32 };
    let [a, b] = [aligned(a)?, aligned(b)?];
    let addresses = [address_of(&a)?, address_of(&b)?];
    with_context(device(&a)?, |context| {
        let fresh = UninitTensor { format, ..UninitTensor::new(&context.device, dtype, to)? };
        let at = operands(addresses, fresh.address()?);
        let CudaContext { device, stream, plans, .. } = context;
        // SAFETY: `at` has the addresses of tensors of the operation's shapes and dtype, which are held here.
        let done = unsafe { plans.convolve(device, stream, operation, at)? };
        Ok(done.then_some(fresh))
    })
}

/// The tensor itself, or a copy with the alignment that plans require.
fn aligned(tensor: &Tensor) -> Result<Tensor> {
    if (tensor.layout().start_offset() * tensor.dtype().size_in_bytes()).is_multiple_of(ALIGNMENT) {
        return Ok(tensor.clone());
    }
    let format = ImageLayout::of(tensor);
    format.named(&format.in_memory(tensor)?.force_contiguous()?)
}
