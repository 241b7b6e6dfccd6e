//! Tensors as device pointers, and uninitialized tensors for kernels to write.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::DevicePtr as _;
use candle_core::cuda::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::launch::dtype_code;
use crate::core::image_layout::ImageLayout;

/// The storage and the shape of a result.
pub(super) type Output = (CudaStorage, Shape);

/// A dense tensor on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct DevicePtr {
    pub(super) address: u64,
    /// Its [`dtype_code`].
    pub(super) dtype: u32,
    pub(super) elements: usize,
}

pub(super) fn device_ptr(tensor: &Tensor) -> Result<DevicePtr> {
    Ok(DevicePtr { address: address_of(tensor)?, dtype: dtype_code(tensor.dtype())?, elements: tensor.elem_count() })
}

/// The address of a tensor's first element, for floats, i64 and u8.
pub(super) fn address_of(tensor: &Tensor) -> Result<u64> {
    if ImageLayout::of_layout(tensor.layout()).is_none() {
        candle_core::bail!("expected a tensor without gaps, found {:?}", tensor.layout())
    }
    strided_address(tensor)
}

/// The same for a tensor with any strides.
pub(super) fn strided_address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("expected a tensor on a CUDA device, found one on {:?}", tensor.device().location())
    };
    let offset = (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
    Ok(address(storage)? + offset)
}

/// The address of a storage.
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
        DType::U8 => of::<u8>(storage),
        dtype => candle_core::bail!("expected a tensor of floats, i64 or u8, found {dtype:?}"),
    }
}

/// The device of a tensor.
pub(super) fn device(tensor: &Tensor) -> Result<&CudaDevice> {
    tensor.device().as_cuda_device()
}

/// Uninitialized device memory that a kernel fills before it becomes a tensor.
pub(super) struct UninitTensor {
    pub(super) storage: CudaStorage,
    pub(super) shape: Shape,
    pub(super) format: ImageLayout,
}

impl UninitTensor {
    pub(super) fn new(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: the elements are plain numbers. Every caller launches a kernel that writes all of them on the same
        // stream before the storage is read.
        let storage = unsafe { device.alloc_uninit(&shape, dtype)? };
        Ok(Self { storage, shape, format: ImageLayout::Nchw })
    }

    /// With the shape, dtype, layout and device of a tensor.
    pub(super) fn like(tensor: &Tensor) -> Result<Self> {
        Self::like_with_shape(tensor, tensor.shape())
    }

    /// With the dtype, layout and device of a tensor, and another shape.
    pub(super) fn like_with_shape(tensor: &Tensor, shape: impl Into<Shape>) -> Result<Self> {
        let fresh = Self::new(device(tensor)?, tensor.dtype(), shape)?;
        Ok(Self { format: ImageLayout::of(tensor), ..fresh })
    }

    /// Converts NCHW to NHWC.
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

/// The elements of a tensor, as one of this shape.
pub(crate) fn copy(tensor: &Tensor, shape: Shape) -> Result<Output> {
    let mut copy = UninitTensor::new(device(tensor)?, tensor.dtype(), shape)?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("expected a tensor on a CUDA device, found one on {:?}", tensor.device().location())
    };
    storage.copy_strided_src(&mut copy.storage, 0, layout)?;
    Ok(copy.output())
}

/// Uninitialized storage on the same device, as a token in the graph. It is never read, so it is not zeroed: that would
/// cost one launch per node.
pub(crate) fn token(like: &CudaStorage, shape: &Shape, dtype: DType) -> Result<(CudaStorage, Shape)> {
    // SAFETY: the values are plain numbers that are never used. candle may add such tokens up; garbage and NaN are
    // harmless.
    let storage = unsafe { like.device().alloc_uninit(shape, dtype)? };
    Ok((storage, shape.clone()))
}

/// Whether all these are on one CUDA device.
pub(crate) fn is_home_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else { return false };
    first.device().is_cuda() && tensors.all(|tensor| tensor.device().same_device(first.device()))
}
