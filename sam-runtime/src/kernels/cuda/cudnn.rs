//! Convolutions by cuDNN: forward, and the gradients of the images and of the weight.
//!
//! The first time that a convolution of some sizes runs, all of cuDNN's ways are timed and the fastest is kept, for as long
//! as the thread lives; those that give other bits every time are left out. So a thread computes the same bits again and
//! again, but two may have picked different ways. What was picked goes to `tracing`, at level debug. Where cuDNN has no way
//! the answer is None.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as BackwardData, cudnnConvolutionBwdFilterAlgo_t as BackwardFilter,
    cudnnConvolutionFwdAlgo_t as Forward, cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType, CudnnError,
    FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr};
use candle_core::cuda::{CudaDType, WrapErr, gemm_reduced_precision_f32};
use candle_core::{CudaStorage, DType, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::{Engine, Fresh, device, with};
use crate::kernels::conv::Conv;
use crate::kernels::format::Format;

/// The most memory that a way may ask for, in bytes.
const WORKSPACE: usize = 1 << 30;

/// How often a way is timed, after once for nothing: the least counts, of so many calls.
const ROUNDS: usize = 3;
const CALLS: usize = 3;

/// Without the Fourier transforms, which take the most memory and are for larger kernels.
const FORWARD: [Forward; 5] = [
    Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
    Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
    Forward::CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
    Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
    Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
];

/// Without `ALGO_0`, which adds up in any order.
const BACKWARD_DATA: [BackwardData; 3] = [
    BackwardData::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
    BackwardData::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD,
    BackwardData::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED,
];

/// Without `ALGO_0` and `ALGO_3`, which add up in any order.
const BACKWARD_FILTER: [BackwardFilter; 2] = [
    BackwardFilter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
    BackwardFilter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED,
];

/// cuDNN, what has been found out about it, and the memory that all convolutions share.
#[derive(Default)]
pub(super) struct Convolutions {
    cudnn: Option<Arc<Cudnn>>,
    plans: HashMap<Key, Option<Plan>>,
    workspace: Option<CudaSlice<u8>>,
}

impl Convolutions {
    /// From the first convolution on: to start it takes time, and memory of the device.
    fn cudnn(&mut self, stream: &Arc<CudaStream>) -> Result<Arc<Cudnn>> {
        let cudnn = match self.cudnn.take() {
            Some(cudnn) => cudnn,
            None => Cudnn::new(Arc::clone(stream))?,
        };
        Ok(Arc::clone(self.cudnn.insert(cudnn)))
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    way: Way,
    conv: Conv,
    format: Format,
    dtype: DType,
    tf32: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Forward,
    BackwardData,
    BackwardFilter,
}

/// Which of the ways, and the memory that it needs.
#[derive(Clone, Copy, Debug)]
struct Plan {
    index: usize,
    bytes: usize,
}

/// A number that cuDNN multiplies, and the one that it adds up in.
trait Element: CudnnDataType + CudaDType + DeviceRepr + WithDType {
    type Sum: CudnnDataType;
    const ZERO: Self;
    const ONE: Self;
}

macro_rules! element {
    ($($element:ty, $sum:ty, $zero:expr, $one:expr;)*) => {$(
        impl Element for $element {
            type Sum = $sum;
            const ZERO: Self = $zero;
            const ONE: Self = $one;
        }
    )*};
}

element! {
    f32, f32, 0.0, 1.0;
    f64, f64, 0.0, 1.0;
    f16, f32, f16::ZERO, f16::ONE;
    bf16, f32, bf16::ZERO, bf16::ONE;
}

/// Calls a function that is generic over [`Element`] for a type.
macro_rules! for_element {
    ($dtype:expr, |$element:ident| $call:expr) => {
        match $dtype {
            DType::F32 => {
                type $element = f32;
                $call
            }
            DType::F64 => {
                type $element = f64;
                $call
            }
            DType::F16 => {
                type $element = f16;
                $call
            }
            DType::BF16 => {
                type $element = bf16;
                $call
            }
            dtype => candle_core::bail!("expected images of f32, f64, f16 or bf16, found {dtype:?}"),
        }
    };
}

/// The convolution of x with w, of one type and in this format, as y will be.
pub(super) fn forward(conv: &Conv, x: &Tensor, w: &Tensor, format: Format) -> Result<Option<Fresh>> {
    let call =
        |engine: &mut Engine| for_element!(x.dtype(), |T| Call::<T>::new(engine, conv, format)?.forward(engine, x, w));
    with(device(x)?, call)
}

/// The gradient of x.
pub(super) fn backward_data(conv: &Conv, w: &Tensor, dy: &Tensor, format: Format) -> Result<Option<Tensor>> {
    let call = |engine: &mut Engine| {
        for_element!(w.dtype(), |T| Call::<T>::new(engine, conv, format)?.backward_data(engine, w, dy))
    };
    with(device(w)?, call)?.map(Fresh::tensor).transpose()
}

/// The gradient of w.
pub(super) fn backward_filter(conv: &Conv, x: &Tensor, dy: &Tensor, format: Format) -> Result<Option<Tensor>> {
    let call = |engine: &mut Engine| {
        for_element!(x.dtype(), |T| Call::<T>::new(engine, conv, format)?.backward_filter(engine, x, dy))
    };
    with(device(x)?, call)?.map(Fresh::tensor).transpose()
}

/// The descriptors of a convolution.
struct Call<T: Element> {
    sizes: Conv,
    format: Format,
    tf32: bool,
    conv: ConvDescriptor<T::Sum>,
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

impl<T: Element> Call<T> {
    fn new(engine: &mut Engine, sizes: &Conv, format: Format) -> Result<Self> {
        let cudnn = engine.convolutions.cudnn(&engine.stream)?;
        let Conv { images, channels, filters, groups, height, width } = *sizes;
        let pair = |a, b| Ok::<_, candle_core::Error>([int(a)?, int(b)?]);
        let mut conv = cudnn.create_conv2d::<T::Sum>(
            pair(height.padding, width.padding)?,
            pair(height.stride, width.stride)?,
            pair(height.dilation, width.dilation)?,
            cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
        )?;
        conv.set_group_count(int(groups)?)?;
        let tf32 = gemm_reduced_precision_f32();
        conv.set_math_type(match T::DTYPE {
            DType::F32 if !tf32 => cudnnMathType_t::CUDNN_FMA_MATH,
            DType::F16 | DType::BF16 => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            _ => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        })?;
        let order = match format {
            Format::Planes => cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
            Format::ChannelsLast => cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
        };
        let image = |channels, height, width| -> Result<TensorDescriptor<T>> {
            Ok(cudnn.create_4d_tensor(order, [int(images)?, int(channels)?, int(height)?, int(width)?])?)
        };
        let [x, y] = [image(channels, height.input, width.input)?, image(filters, height.output, width.output)?];
        let w = [int(filters)?, int(channels / groups)?, int(height.kernel)?, int(width.kernel)?];
        Ok(Self { sizes: *sizes, format, tf32, conv, x, w: cudnn.create_4d_filter(order, w)?, y })
    }

    fn key(&self, way: Way) -> Key {
        Key { way, conv: self.sizes, format: self.format, dtype: T::DTYPE, tf32: self.tf32 }
    }

    fn fresh(&self, engine: &Engine, elements: CudaSlice<T>, shape: Shape) -> Fresh {
        let storage = CudaStorage::wrap_cuda_slice(elements, engine.device.clone());
        Fresh { storage, shape, format: self.format }
    }

    fn forward(&self, engine: &mut Engine, x: &Tensor, w: &Tensor) -> Result<Option<Fresh>> {
        let op = ConvForward { conv: &self.conv, x: &self.x, w: &self.w, y: &self.y };
        let Conv { images, filters, height, width, .. } = self.sizes;
        read(x, |x| {
            read(w, |w| {
                let shape = Shape::from((images, filters, height.output, width.output));
                // SAFETY: cuDNN writes all of it.
                let mut y = unsafe { engine.device.alloc::<T>(shape.elem_count())? };
                let bytes = |way| op.get_workspace_size(way);
                let done = run(engine, self.key(Way::Forward), &FORWARD, bytes, |way, workspace| {
                    // SAFETY: the memory is of the sizes and types of the descriptors.
                    unsafe { op.launch(way, Some(workspace), (T::ONE, T::ZERO), &x, &w, &mut y) }
                })?;
                Ok(done.then(|| self.fresh(engine, y, shape)))
            })
        })
    }

    fn backward_data(&self, engine: &mut Engine, w: &Tensor, dy: &Tensor) -> Result<Option<Fresh>> {
        let op = ConvBackwardData { conv: &self.conv, dx: &self.x, w: &self.w, dy: &self.y };
        let Conv { images, channels, height, width, .. } = self.sizes;
        read(w, |w| {
            read(dy, |dy| {
                let shape = Shape::from((images, channels, height.input, width.input));
                // SAFETY: cuDNN writes all of it.
                let mut dx = unsafe { engine.device.alloc::<T>(shape.elem_count())? };
                let bytes = |way| op.get_workspace_size(way);
                let done = run(engine, self.key(Way::BackwardData), &BACKWARD_DATA, bytes, |way, workspace| {
                    // SAFETY: the memory is of the sizes and types of the descriptors.
                    unsafe { op.launch(way, Some(workspace), (T::ONE, T::ZERO), &mut dx, &w, &dy) }
                })?;
                Ok(done.then(|| self.fresh(engine, dx, shape)))
            })
        })
    }

    fn backward_filter(&self, engine: &mut Engine, x: &Tensor, dy: &Tensor) -> Result<Option<Fresh>> {
        let op = ConvBackwardFilter { conv: &self.conv, x: &self.x, dw: &self.w, dy: &self.y };
        let Conv { channels, filters, groups, height, width, .. } = self.sizes;
        read(x, |x| {
            read(dy, |dy| {
                let shape = Shape::from((filters, channels / groups, height.kernel, width.kernel));
                // SAFETY: cuDNN writes all of it.
                let mut dw = unsafe { engine.device.alloc::<T>(shape.elem_count())? };
                let bytes = |way| op.get_workspace_size(way);
                let done = run(engine, self.key(Way::BackwardFilter), &BACKWARD_FILTER, bytes, |way, workspace| {
                    // SAFETY: the memory is of the sizes and types of the descriptors.
                    unsafe { op.launch(way, Some(workspace), (T::ONE, T::ZERO), &x, &mut dw, &dy) }
                })?;
                Ok(done.then(|| self.fresh(engine, dw, shape)))
            })
        })
    }
}

/// The ways are timed on memory that begins so; with other memory they may be slower, or refused.
const ALIGNMENT: usize = 16;

/// Calls `f` with the elements of a tensor without gaps, or of a copy that is aligned.
fn read<T: Element, R>(tensor: &Tensor, f: impl FnOnce(CudaView<'_, T>) -> Result<R>) -> Result<R> {
    if !(tensor.layout().start_offset() * size_of::<T>()).is_multiple_of(ALIGNMENT) {
        let format = Format::of(tensor);
        return read(&format.named(&format.in_memory(tensor)?.force_contiguous()?)?, f);
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some(_)) = (&*storage, Format::of_layout(layout)) else {
        candle_core::bail!("expected a tensor without gaps on a CUDA device, found {layout:?}")
    };
    let start = layout.start_offset();
    f(storage.as_cuda_slice::<T>()?.slice(start..start + layout.shape().elem_count()))
}

/// Runs the fastest of some ways, which is found out the first time. Whether there is one.
fn run<A: Copy>(
    engine: &mut Engine,
    key: Key,
    ways: &[A],
    bytes: impl Fn(A) -> std::result::Result<usize, CudnnError>,
    mut launch: impl FnMut(A, &mut CudaSlice<u8>) -> std::result::Result<(), CudnnError>,
) -> Result<bool> {
    let known = engine.convolutions.plans.get(&key).copied();
    let plan = if let Some(plan) = known { plan } else { fastest(engine, key, ways, bytes, &mut launch)? };
    engine.convolutions.plans.insert(key, plan);
    let Some(Plan { index, bytes }) = plan else { return Ok(false) };
    let workspace = match &mut engine.convolutions.workspace {
        Some(workspace) if workspace.len() >= bytes => workspace,
        // SAFETY: whoever reads it has written it before.
        place => place.insert(unsafe { engine.device.alloc::<u8>(bytes.max(1))? }),
    };
    launch(ways[index], workspace)?;
    Ok(true)
}

/// Times the ways: the only place where the host waits for the device.
fn fastest<A: Copy>(
    engine: &Engine,
    key: Key,
    ways: &[A],
    bytes: impl Fn(A) -> std::result::Result<usize, CudnnError>,
    mut launch: impl FnMut(A, &mut CudaSlice<u8>) -> std::result::Result<(), CudnnError>,
) -> Result<Option<Plan>> {
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let mut best: Option<(f32, Plan)> = None;
    for (index, way) in ways.iter().enumerate() {
        // Not every way can do every convolution.
        let Some(bytes) = bytes(*way).ok().filter(|bytes| *bytes <= WORKSPACE) else { continue };
        // SAFETY: whoever reads it has written it before. Memory that is not to be had is a way less.
        let Ok(mut workspace) = (unsafe { engine.device.alloc::<u8>(bytes.max(1)) }) else { continue };
        if launch(*way, &mut workspace).is_err() {
            continue;
        }
        let mut least = f32::INFINITY;
        for _ in 0..ROUNDS {
            let start = engine.stream.record_event(timed).w()?;
            for _ in 0..CALLS {
                launch(*way, &mut workspace)?;
            }
            let end = engine.stream.record_event(timed).w()?;
            least = least.min(start.elapsed_ms(&end).w()? / CALLS as f32);
        }
        tracing::debug!(?key, index, bytes, ms = least, "a way to convolve");
        if best.is_none_or(|(other, _)| least < other) {
            best = Some((least, Plan { index, bytes }));
        }
    }
    tracing::debug!(?key, ?best, "the way to convolve");
    Ok(best.map(|(_, plan)| plan))
}

/// A size as cuDNN takes it.
fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::msg(format!("expected a size below 2^31, found {n}")))
}
