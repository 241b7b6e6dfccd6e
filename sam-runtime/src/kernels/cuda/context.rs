//! The kernels on a CUDA device.
//!
//! Everything that a step launches goes onto the device's stream, one after the other; the host waits for nothing and
//! reads nothing. What is needed from step to step is allocated once: a table, the sums of blocks, the workspace of the
//! convolutions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::result::device::get_default_mem_pool;
use candle_core::cuda::cudarc::driver::sys::{CUmemPool_attribute, cuMemPoolSetAttribute};
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda::{CudaDType, CudaDevice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

#[cfg(feature = "cudnn")]
use super::cudnn::plans::Convolutions;
use super::format::ImageLayout;
use super::launch::{Arg, Machine, Memory, code};

/// PTX by the beginning of its kernels' names.
const MODULES: [(&str, &str); 2] = [
    ("sam", include_str!(concat!(env!("OUT_DIR"), "/sam.ptx"))),
    ("nn", include_str!(concat!(env!("OUT_DIR"), "/nn.ptx"))),
];

/// Threads of a block, as the kernels have it.
const THREADS: u32 = 256;

/// What there is on a device, for one thread: a thread has a stream of its own, and cuDNN's handle is for one thread.
pub(crate) struct Engine {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    memory: HashMap<Memory, CudaSlice<u64>>,
    #[cfg(feature = "cudnn")]
    convolutions: Convolutions,
}

thread_local! {
    static ENGINES: RefCell<HashMap<DeviceId, Engine>> = RefCell::default();
}

/// Runs `f` with what there is on a device.
pub(super) fn with<R>(device: &CudaDevice, f: impl FnOnce(&mut Engine) -> Result<R>) -> Result<R> {
    ENGINES.with_borrow_mut(|engines| {
        let engine = match engines.entry(device.id()) {
            Entry::Occupied(engine) => engine.into_mut(),
            Entry::Vacant(place) => place.insert(Engine::new(device)?),
        };
        let result = f(engine)?;
        // The launches here tell cudarc nothing. On one stream they need not; with several it would have to know.
        if engine.stream.context().is_managing_stream_synchronization() {
            engine.stream.synchronize().w()?;
        }
        Ok(result)
    })
}

impl Engine {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        keep_memory(&stream)?;
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cudnn")]
            convolutions: Convolutions::default(),
            stream,
            functions: HashMap::new(),
            memory: HashMap::new(),
        })
    }
}

/// Lets the device's pool keep what is freed: by default it returns all of it whenever the host waits for the device, and
/// the next step would have to get it again.
pub(super) fn keep_memory(stream: &CudaStream) -> Result<()> {
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is that of a living context, and the attribute is a u64, which is read during the call.
    unsafe {
        let pool = get_default_mem_pool(stream.context().cu_device()).w()?;
        cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut all).cast()).result().w()
    }
}

impl Machine for Engine {
    fn launch(&mut self, kernel: &'static str, blocks: usize, args: &[Arg<'_>]) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let function = match self.functions.entry(kernel) {
            Entry::Occupied(function) => function.into_mut(),
            Entry::Vacant(place) => {
                let Some((module, ptx)) = MODULES.iter().find(|(module, _)| kernel.starts_with(module)) else {
                    candle_core::bail!("there is no kernel {kernel}")
                };
                let module = format!("{}-{}-{module}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
                place.insert(self.device.get_or_load_custom_func(kernel, &module, ptx)?.into_cuda_function())
            }
        };
        let mut launch = self.stream.launch_builder(function);
        for arg in args {
            match arg {
                Arg::U32(x) => launch.arg(x),
                Arg::U64(x) => launch.arg(x),
                Arg::F64(x) => launch.arg(x),
                Arg::Piece(x) => launch.arg(*x),
                Arg::Channels(x) => launch.arg(x),
                Arg::Affine(x) => launch.arg(x),
                Arg::Pool(x) => launch.arg(x),
                Arg::Convolution(x) => launch.arg(x),
            };
        }
        let (grid_dim, block_dim) = ((super::launch::word(blocks)?, 1, 1), (THREADS, 1, 1));
        // SAFETY: `device` gives each kernel the arguments that it has, which the tests run on the processor. Addresses are
        // those of tensors that the caller holds, or of this engine's memory; what is freed later is freed in the order of
        // the same stream.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }.w()?;
        Ok(())
    }

    fn memory(&mut self, purpose: Memory, words: usize) -> Result<u64> {
        if self.memory.get(&purpose).is_none_or(|memory| memory.len() < words) {
            self.memory.insert(purpose, self.device.alloc_zeros::<u64>(words.next_power_of_two())?);
        }
        Ok(self.memory.get(&purpose).map_or(0, |memory| memory.device_ptr(&self.stream).0))
    }
}

/// A tensor on a device, without gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    address: u64,
    /// Its type's code.
    dtype: u32,
    elements: usize,
}

pub(super) fn place(tensor: &Tensor) -> Result<Place> {
    Ok(Place { address: address_of(tensor)?, dtype: code(tensor.dtype())?, elements: tensor.elem_count() })
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
pub(super) struct Fresh {
    storage: CudaStorage,
    shape: Shape,
    format: ImageLayout,
}

impl Fresh {
    fn new(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: whoever makes one has a kernel write all of it before it becomes a tensor.
        let storage = unsafe { device.alloc_uninit(&shape, dtype)? };
        Ok(Self { storage, shape, format: ImageLayout::Nchw })
    }

    /// Of the shape, type and format of a tensor, and on its device.
    fn like(tensor: &Tensor) -> Result<Self> {
        Self::beside(tensor, tensor.shape())
    }

    /// The same of another shape.
    fn beside(tensor: &Tensor, shape: impl Into<Shape>) -> Result<Self> {
        let fresh = Self::new(device(tensor)?, tensor.dtype(), shape)?;
        Ok(Self { format: ImageLayout::of(tensor), ..fresh })
    }

    /// A copy, from planes.
    fn channels_last(self) -> Result<Self> {
        let layout = Layout::contiguous(&self.shape).permute(&[0, 2, 3, 1])?;
        let mut copy = Self::new(self.storage.device(), self.storage.dtype(), self.shape)?;
        self.storage.copy_strided_src(&mut copy.storage, 0, &layout)?;
        Ok(Self { format: ImageLayout::Nhwc, ..copy })
    }

    fn address(&self) -> Result<u64> {
        address(&self.storage)
    }

    fn output(self) -> (CudaStorage, Shape) {
        (self.storage, self.shape)
    }

    fn tensor(self) -> Result<Tensor> {
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
