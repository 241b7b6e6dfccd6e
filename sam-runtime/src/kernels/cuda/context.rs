//! The kernels on a CUDA device.
//!
//! Everything that a step launches goes onto the device's stream, one after the other; the host waits for nothing and
//! reads nothing. What is needed from step to step is allocated once: a table, the sums of blocks, the workspace of the
//! convolutions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::Result;
use candle_core::backend::BackendDevice;
use candle_core::cuda::cudarc::driver::result::device::get_default_mem_pool;
use candle_core::cuda::cudarc::driver::sys::{CUmemPool_attribute, cuMemPoolSetAttribute};
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda::{CudaDevice, DeviceId, WrapErr};

#[cfg(feature = "cudnn")]
use super::cudnn::plans::Convolutions;
use super::launch::{Arg, Machine, Memory, word};

// `MODULES: &[(&str, &str)]`: the name and the PTX of every source in `src`.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// Threads of a block, as the kernels have it.
const THREADS: u32 = 256;

/// What there is on a device, for one thread: a thread has a stream of its own, and cuDNN's handle is for one thread.
pub(super) struct Engine {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    pub(super) memory: HashMap<Memory, CudaSlice<u64>>,
    #[cfg(feature = "cudnn")]
    pub(super) convolutions: Convolutions,
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
                let entry = format!(".entry {kernel}(");
                let Some((module, ptx)) = MODULES.iter().find(|(_, ptx)| ptx.contains(&entry)) else {
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
        let (grid_dim, block_dim) = ((word(blocks)?, 1, 1), (THREADS, 1, 1));
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
