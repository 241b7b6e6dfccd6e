//! Sums of tensors on GPUs by NCCL, on candle's own stream: the host does not wait for them. MPI introduces the ranks to each
//! other, and the thread that calls it is the only one that calls NCCL.

use std::cell::RefCell;
use std::ffi::c_char;
use std::ops::Range;

use candle_core::backend::BackendStorage as _;
use candle_core::cuda::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use candle_core::cuda::cudarc::nccl::result::NcclError;
use candle_core::cuda::cudarc::nccl::{Comm, Id, NcclType, ReduceOp};
use candle_core::cuda::{CudaDType, CudaDevice, WrapErr as _};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Result, Storage, Tensor};

use crate::core::error::Error;

thread_local! {
    /// One for each GPU of this rank, in the order of their first use.
    static CONNECTIONS: RefCell<Vec<Connection>> = RefCell::default();
}

/// What connects a GPU with those of the other ranks.
#[derive(Debug)]
struct Connection {
    device: CudaDevice,
    comm: Comm,
}

/// Bytes of the number that a GPU has, the same for all processes, and of what rank 0 calls the ranks together with.
const GPU: usize = 16;
const ID: usize = 128;
/// Words of an introduction.
const WORDS: usize = (GPU + ID) / size_of::<u64>();

pub(super) fn is_connected(device: &CudaDevice) -> bool {
    CONNECTIONS.with_borrow(|all| all.iter().any(|connection| connection.device.id() == device.id()))
}

/// What a rank has to tell the others before they [`connect`].
pub(super) fn introduction(device: &CudaDevice, rank: usize) -> Result<[u64; WORDS]> {
    let mut bytes = [0; GPU + ID];
    let (gpu, id) = bytes.split_at_mut(GPU);
    gpu.copy_from_slice(&device.cuda_stream().context().uuid().w()?.bytes.map(|byte| byte.to_ne_bytes()[0]));
    if rank == 0 {
        id.copy_from_slice(
            &Id::new()
                .map_err(|error| failure("ncclGetUniqueId", &error))?
                .internal()
                .map(|byte| byte.to_ne_bytes()[0]),
        );
    }
    Ok(std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j]))))
}

/// Waits until all ranks have called it, with the introductions of all.
pub(super) fn connect(device: &CudaDevice, rank: usize, introductions: &[u64]) -> Result<()> {
    let ranks: &[[u64; WORDS]] = introductions.as_chunks().0;
    let (first, gpu) = (ranks.first().copied().unwrap_or([0; WORDS]), |rank: &[u64; WORDS]| [rank[0], rank[1]]);
    for (number, other) in ranks.iter().enumerate() {
        if let Some(same) = ranks[..number].iter().position(|rank| gpu(rank) == gpu(other)) {
            let why = "they are on the same GPU, and NCCL wants one for each: open it with `Comm::cuda_device`";
            Err(Error::Ranks(format!("rank {same} and rank {number} cannot be connected: {why}")))?;
        }
    }
    let id: Vec<u8> = first.iter().flat_map(|word| word.to_le_bytes()).skip(GPU).collect();
    let id = Id::uninit(std::array::from_fn(|i| c_char::from_ne_bytes([id[i]])));
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let comm = Comm::from_rank(stream, rank, ranks.len(), id).map_err(|error| failure("ncclCommInitRank", &error))?;
    CONNECTIONS.with_borrow_mut(|all| all.push(Connection { device: device.clone(), comm }));
    Ok(())
}

/// Enqueues the sum over the ranks, and gives it with a function that tells whether it is there.
pub(super) fn sum(flat: &Tensor) -> Result<(Tensor, impl Fn() -> bool + Send + 'static)> {
    let device = flat.device().as_cuda_device()?;
    let (storage, layout) = flat.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("expected a contiguous tensor to reduce")
    };
    let sum = CONNECTIONS.with_borrow(|all| {
        let Some(connection) = all.iter().find(|connection| connection.device.id() == device.id()) else {
            candle_core::bail!("the GPU {:?} is not connected with those of the other ranks", flat.device().location())
        };
        match storage.dtype() {
            DType::F32 => connection.sum::<f32>(storage, start..end),
            DType::F64 => connection.sum::<f64>(storage, start..end),
            dtype => candle_core::bail!("expected a tensor of f32 or f64 to reduce, found {:?}", dtype.as_str()),
        }
    })?;
    let sum = Tensor::from_storage(Storage::Cuda(sum), flat.shape(), BackpropOp::none(), false);
    let event = device.cuda_stream().record_event(None).w()?;
    // If the device has failed, the next call that waits for it says why.
    Ok((sum, move || event.try_is_complete().unwrap_or(true)))
}

/// Waits for all sums of this rank.
pub(super) fn synchronize() -> Result<()> {
    CONNECTIONS
        .with_borrow(|all| all.iter().try_for_each(|connection| connection.device.cuda_stream().synchronize().w()))
}

/// Ends the connections, after all ranks have got their sums: what is not done is given up.
pub(super) fn disconnect() {
    CONNECTIONS.take();
}

impl Connection {
    fn sum<T>(&self, storage: &CudaStorage, range: Range<usize>) -> Result<CudaStorage>
    where
        T: CudaDType + NcclType + DeviceRepr + ValidAsZeroBits,
    {
        let own = storage.as_cuda_slice::<T>()?.slice(range);
        let mut sum = self.device.alloc_zeros::<T>(own.len())?;
        self.comm.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(|error| failure("ncclAllReduce", &error))?;
        Ok(CudaStorage::wrap_cuda_slice(sum, self.device.clone()))
    }
}

fn failure(call: &str, error: &NcclError) -> candle_core::Error {
    Error::Ranks(format!("{call} failed with {:?}: NCCL_DEBUG=WARN in the environment prints why", error.0)).into()
}
