//! The CUDA context of a thread: stream, loaded kernels, scratch memory and cuDNN.
//!
//! All launches of a step go onto one stream, and none of them synchronizes with the host. What every step needs is
//! allocated once: the table of variables, partial sums, the workspace of the convolutions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda::cudarc::driver::result::device::get_default_mem_pool;
use candle_core::cuda::cudarc::driver::sys::{CUmemPool_attribute, cuMemPoolSetAttribute};
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda::{CudaDevice, DeviceId, WrapErr};

#[cfg(feature = "cudnn")]
use super::cudnn::plans::Plans;
use super::launch::shared::{
    AffineArgs, AttentionArgs, ChannelArgs, ConvArgs, GroupArgs, HeadArgs, MaskArgs, PoolArgs, THREADS,
};
use super::launch::{KernelArg, Launcher, Scratch, to_u32};

// Defines `MODULES: &[(&str, &[&str], &str)]`: name, kernels and PTX of every source in `src`.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The state of one device for one thread: each thread has its own stream, and a cuDNN handle belongs to one thread.
pub(super) struct CudaContext {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    pub(super) scratch: HashMap<Scratch, CudaSlice<u64>>,
    #[cfg(feature = "cudnn")]
    pub(super) plans: Plans,
}

thread_local! {
    static CONTEXTS: RefCell<HashMap<DeviceId, CudaContext>> = RefCell::default();
}

/// Runs `f` with the context of a device, which is created on first use.
pub(super) fn with_context<R>(device: &CudaDevice, f: impl FnOnce(&mut CudaContext) -> Result<R>) -> Result<R> {
    CONTEXTS.with_borrow_mut(|contexts| {
        let context = match contexts.entry(device.id()) {
            Entry::Occupied(context) => context.into_mut(),
            Entry::Vacant(place) => place.insert(CudaContext::new(device)?),
        };
        let result = f(context)?;
        // cudarc does not see these launches. With several streams it would have to, so synchronize.
        if context.stream.context().is_managing_stream_synchronization() {
            context.stream.synchronize().w()?;
        }
        Ok(result)
    })
}

impl CudaContext {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        keep_memory(&stream)?;
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cudnn")]
            plans: Plans::default(),
            stream,
            functions: HashMap::new(),
            scratch: HashMap::new(),
        })
    }
}

/// Lets the device's memory pool keep freed memory. By default it returns all of it at every synchronization, and the
/// next step would have to allocate again.
pub(super) fn keep_memory(stream: &CudaStream) -> Result<()> {
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the stream keeps its context alive, and the attribute is a u64 that is read during the call.
    unsafe {
        let pool = get_default_mem_pool(stream.context().cu_device()).w()?;
        cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut all).cast()).result().w()
    }
}

// SAFETY: a `repr(C)` struct of numbers, generated from the declaration that the kernels are compiled with.
unsafe impl DeviceRepr for ChannelArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for AffineArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for PoolArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for GroupArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for ConvArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for AttentionArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for HeadArgs {}
// SAFETY: as for `ChannelArgs`.
unsafe impl DeviceRepr for MaskArgs {}

impl Launcher for CudaContext {
    fn launch(&mut self, kernel: &'static str, blocks: usize, args: &[KernelArg<'_>]) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let function = match self.functions.entry(kernel) {
            Entry::Occupied(function) => function.into_mut(),
            Entry::Vacant(place) => {
                let Some((module, _, ptx)) = MODULES.iter().find(|(_, kernels, _)| kernels.contains(&kernel)) else {
                    candle_core::bail!("there is no kernel {kernel}")
                };
                let module = format!("{}-{}-{module}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
                place.insert(self.device.get_or_load_custom_func(kernel, &module, ptx)?.into_cuda_function())
            }
        };
        let mut launch = self.stream.launch_builder(function);
        for arg in args {
            match arg {
                KernelArg::U32(x) => launch.arg(x),
                KernelArg::U64(x) => launch.arg(x),
                KernelArg::F64(x) => launch.arg(x),
                KernelArg::TableChunk(x) => launch.arg(*x),
                KernelArg::Channels(x) => launch.arg(x),
                KernelArg::Affine(x) => launch.arg(x),
                KernelArg::Pool(x) => launch.arg(x),
                KernelArg::Group(x) => launch.arg(x),
                KernelArg::Conv(x) => launch.arg(x),
                KernelArg::Attention(x) => launch.arg(x),
                KernelArg::Heads(x) => launch.arg(x),
                KernelArg::Mask(x) => launch.arg(x),
            };
        }
        let (grid_dim, block_dim) = ((to_u32(blocks)?, 1, 1), (to_u32(THREADS)?, 1, 1));
        // SAFETY: `launch` passes each kernel its parameters, in number and size; the emulator's tests check both.
        // Addresses are those of tensors that the caller holds, or of this context's scratch memory. Memory freed later
        // is freed in the order of the same stream.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }.w()?;
        Ok(())
    }

    fn scratch(&mut self, purpose: Scratch, words: usize) -> Result<u64> {
        if self.scratch.get(&purpose).is_none_or(|scratch| scratch.len() < words) {
            self.scratch.insert(purpose, self.device.alloc_zeros::<u64>(words.next_power_of_two())?);
        }
        Ok(self.scratch.get(&purpose).map_or(0, |scratch| scratch.device_ptr(&self.stream).0))
    }
}
