//! Tensors of a CUDA device as addresses, and memory that becomes a tensor.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::DevicePtr as _;
use candle_core::cuda::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::launch::dtype_code;
use crate::core::image_layout::ImageLayout;

/// What a layer returns: the elements of a tensor of this shape.
pub(super) type Output = (CudaStorage, Shape);

/// A tensor on a device, without gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct DevicePtr {
    pub(super) address: u64,
    /// Its type's code.
    pub(super) dtype: u32,
    pub(super) elements: usize,
}

pub(super) fn device_ptr(tensor: &Tensor) -> Result<DevicePtr> {
    Ok(DevicePtr { address: address_of(tensor)?, dtype: dtype_code(tensor.dtype())?, elements: tensor.elem_count() })
}

/// Where a tensor's elements begin, floats or i64.
pub(super) fn address_of(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("expected a tensor on a CUDA device, found one on {:?}", tensor.device().location())
    };
    if ImageLayout::of_layout(layout).is_none() {
        candle_core::bail!("expected a tensor without gaps, found {layout:?}")
    }
    let offset = (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
    Ok(address(storage)? + offset)
}

/// Where the memory of a storage begins.
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    fn of<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
        Ok(storage.as_cuda_slice::<T>()?.device_ptr(&storage.device().cuda_stream()).0)
    }
    match storage.dtype() {
        DType::F32 => of::<f32>(storage),
        DType::F64 => of::<f64>(storage),
        DType::F16 => of::<f16>(storage),
        DType::BF16 => of::<bf16>(storage),
        DType::I64 => of::<i64>(storage),
        dtype => candle_core::bail!("expected a tensor of floats or of i64, found {dtype:?}"),
    }
}

/// The device of a tensor.
pub(super) fn device(tensor: &Tensor) -> Result<&CudaDevice> {
    tensor.device().as_cuda_device()
}

/// Memory that is about to be written: a tensor to be.
pub(super) struct UninitTensor {
    pub(super) storage: CudaStorage,
    pub(super) shape: Shape,
    pub(super) format: ImageLayout,
}

impl UninitTensor {
    pub(super) fn new(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: whoever makes one has a kernel write all of it before it becomes a tensor.
        let storage = unsafe { device.alloc_uninit(&shape, dtype)? };
        Ok(Self { storage, shape, format: ImageLayout::Nchw })
    }

    /// Of the shape, type and format of a tensor, and on its device.
    pub(super) fn like(tensor: &Tensor) -> Result<Self> {
        Self::beside(tensor, tensor.shape())
    }

    /// The same of another shape.
    pub(super) fn beside(tensor: &Tensor, shape: impl Into<Shape>) -> Result<Self> {
        let fresh = Self::new(device(tensor)?, tensor.dtype(), shape)?;
        Ok(Self { format: ImageLayout::of(tensor), ..fresh })
    }

    /// A copy, from planes.
    pub(super) fn channels_last(self) -> Result<Self> {
        let layout = Layout::contiguous(&self.shape).permute(&[0, 2, 3, 1])?;
        let mut copy = Self::new(self.storage.device(), self.storage.dtype(), self.shape)?;
        self.storage.copy_strided_src(&mut copy.storage, 0, &layout)?;
        Ok(Self { format: ImageLayout::Nhwc, ..copy })
    }

    pub(super) fn address(&self) -> Result<u64> {
        address(&self.storage)
    }

    pub(super) fn output(self) -> (CudaStorage, Shape) {
        (self.storage, self.shape)
    }

    pub(super) fn tensor(self) -> Result<Tensor> {
        let shape = self.format.shape_in_memory(&self.shape)?;
        self.format.named(&Tensor::from_storage(Storage::Cuda(self.storage), shape, BackpropOp::none(), false))
    }
}

/// Memory beside this, that nobody writes.
pub(crate) fn token(beside: &CudaStorage, shape: &Shape, dtype: DType) -> Result<(CudaStorage, Shape)> {
    // SAFETY: it is a place in a graph. Where candle adds such places up, as gradients of each other, any sum will do.
    let storage = unsafe { beside.device().alloc_uninit(shape, dtype)? };
    Ok((storage, shape.clone()))
}

/// Whether all these are on one CUDA device.
pub(crate) fn is_home_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else { return false };
    first.device().is_cuda() && tensors.all(|tensor| tensor.device().same_device(first.device()))
}
