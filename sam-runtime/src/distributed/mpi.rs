//! Ranks that communicate by MPI: flat buffers, blocking calls, one thread. With the feature `nccl` sums of tensors on GPUs
//! do not go by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{
    Communicator as _, CommunicatorCollectives as _, Destination as _, Equivalence, Root as _, Source as _,
};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType};

use super::collective::Collective;
use super::comm::Comm;
use super::launcher;
use super::watchdog::{GATHER, Watchdog, exit_from_another_thread, turn};
use crate::core::error::Error;

/// The count of an MPI call is an i32.
const CHUNK: usize = 1 << 28;

/// How long a rank whose error came from another one leaves that one to print it.
const FOR_THE_OTHER: Duration = Duration::from_secs(5);

const ALL_REDUCE: &str = "an all-reduce";

const FAILED: i32 = 1;
const PANICKED: i32 = 101;

#[derive(Debug)]
struct Mpi {
    rank: usize,
    size: usize,
    local_rank: usize,
    /// The only one that may call MPI.
    thread: ThreadId,
    has_ended: Arc<AtomicBool>,
    watchdog: Option<Arc<Watchdog>>,
}

pub(super) fn run<T, E>(body: impl FnOnce(&Comm) -> std::result::Result<T, E>) -> std::result::Result<T, E>
where
    E: From<candle_core::Error> + fmt::Display,
{
    let Some((universe, threading)) = ::mpi::initialize_with_threading(Threading::Funneled) else {
        let why = "MPI is initialized already: call `distributed::run` once, around all that is done";
        return Err(candle_core::Error::from(Error::Ranks(why.to_owned())).into());
    };
    let world = universe.world();
    let (rank, size) = (world.rank().cast_unsigned() as usize, world.size().cast_unsigned() as usize);
    launcher::check(|name| std::env::var(name).ok(), Some(size))?;
    if size > 1 && threading < Threading::Funneled {
        fail(rank, size, &"this MPI does not allow threads next to the one that calls it (MPI_THREAD_FUNNELED)");
    }
    let thread = std::thread::current().id();
    let has_ended = Arc::new(AtomicBool::new(false));
    let watchdog = (size > 1).then(|| match Watchdog::start(rank, size) {
        Ok(watchdog) => watchdog,
        Err(error) => fail(rank, size, &error),
    });
    let local_rank = world.split_shared(world.rank()).rank().cast_unsigned() as usize;
    let comm = Comm::new(Mpi { rank, size, local_rank, thread, has_ended: Arc::clone(&has_ended), watchdog });
    if size > 1 {
        abort_on_panic(rank, size, thread);
    }
    let result = body(&comm);
    if size > 1 {
        // From here on an error ends the job: `Universe::drop` would wait for ranks that wait for this one.
        if let Err(error) = &result {
            if comm.failure_is_elsewhere() {
                std::thread::sleep(FOR_THE_OTHER);
            }
            fail(rank, size, error);
        }
        #[cfg(feature = "nccl")]
        if let Err(error) = super::nccl::synchronize() {
            fail(rank, size, &error);
        }
        if let Err(error) = comm.end() {
            fail(rank, size, &error);
        }
        #[cfg(feature = "nccl")]
        super::nccl::disconnect();
    }
    has_ended.store(true, Ordering::Relaxed);
    drop(universe);
    result
}

/// Prints why this rank ends the job, and ends it.
fn fail(rank: usize, size: usize, why: &dyn fmt::Display) -> ! {
    let_the_first_speak(rank);
    // `anyhow` prints its causes so.
    eprintln!("rank {rank} of {size}: {why:#}");
    SimpleCommunicator::world().abort(FAILED)
}

/// Where all ranks fail alike, the job ends before the others print the same.
fn let_the_first_speak(rank: usize) {
    std::thread::sleep(turn(rank));
}

fn abort_on_panic(rank: usize, size: usize, thread: ThreadId) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let_the_first_speak(rank);
        eprintln!("rank {rank} of {size} panicked:");
        report(info);
        if std::thread::current().id() == thread {
            SimpleCommunicator::world().abort(PANICKED);
        }
        exit_from_another_thread(PANICKED);
    }));
}

impl Mpi {
    fn world(&self) -> Result<SimpleCommunicator> {
        if self.has_ended.load(Ordering::Relaxed) {
            Err(Error::Ranks("`distributed::run` has returned: the ranks communicate inside of it only".to_owned()))?;
        }
        if std::thread::current().id() != self.thread {
            let why = "a call of MPI from another thread than that of `distributed::run`: train on that thread";
            Err(Error::Ranks(why.to_owned()))?;
        }
        Ok(SimpleCommunicator::world())
    }

    fn wait<T>(&self, what: &'static str, call: impl FnOnce() -> T) -> T {
        match &self.watchdog {
            Some(watchdog) => watchdog.wait(what, call),
            None => call(),
        }
    }

    /// By NCCL, on the device.
    #[cfg(feature = "nccl")]
    fn sum_on_gpus(&self, flat: &Tensor) -> Result<Tensor> {
        use super::nccl;
        self.world()?;
        let device = flat.device().as_cuda_device()?;
        if !nccl::is_connected(device) {
            let introductions = self.all_gather(&nccl::introduction(device, self.rank)?)?;
            self.wait("the connection of the GPUs", || nccl::connect(device, self.rank, &introductions))?;
        }
        let (sum, is_done) = self.wait(ALL_REDUCE, || nccl::sum(flat))?;
        self.watchdog.as_ref().inspect(|watchdog| watchdog.follow("an all-reduce of GPUs", is_done));
        Ok(sum)
    }

    fn sum<T: Equivalence + WithDType>(&self, own: &[T], device: &Device) -> Result<Tensor> {
        let world = self.world()?;
        let mut sum = vec![T::zero(); own.len()];
        for (own, sum) in own.chunks(CHUNK).zip(sum.chunks_mut(CHUNK)) {
            self.wait(ALL_REDUCE, || world.all_reduce_into(own, sum, SystemOperation::sum()));
        }
        let len = sum.len();
        Tensor::from_vec(sum, len, &Device::Cpu)?.to_device(device)
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// By way of rank 0, which so knows who is missing.
    fn all_gather(&self, numbers: &[u64]) -> Result<Vec<u64>> {
        let world = self.world()?;
        let mut all = vec![0u64; self.size * numbers.len()];
        self.wait(GATHER, || {
            if self.rank > 0 {
                world.process_at_rank(0).send(numbers);
                world.process_at_rank(0).broadcast_into(&mut all[..]);
                return;
            }
            all[..numbers.len()].copy_from_slice(numbers);
            let missing = |ranks| self.watchdog.as_ref().inspect(|watchdog| watchdog.set_missing(ranks));
            missing((1..self.size).collect());
            let mut received = vec![0u64; numbers.len()];
            for _ in 1..self.size {
                let status = world.any_process().receive_into(&mut received[..]);
                let rank = status.source_rank().cast_unsigned() as usize;
                all[rank * numbers.len()..][..numbers.len()].copy_from_slice(&received);
                self.watchdog.as_ref().inspect(|watchdog| watchdog.arrived(rank));
            }
            world.process_at_rank(0).broadcast_into(&mut all[..]);
        });
        Ok(all)
    }

    fn all_reduce_sum(&self, flat: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "nccl")]
        if flat.device().is_cuda() {
            return self.sum_on_gpus(flat);
        }
        let device = flat.device();
        let host = flat.to_device(&Device::Cpu)?;
        let (storage, layout) = host.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("expected a contiguous tensor to reduce")
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(own)) => self.sum(&own[start..end], device),
            Storage::Cpu(CpuStorage::F64(own)) => self.sum(&own[start..end], device),
            _ => candle_core::bail!(
                "expected a tensor of f32 or f64 to reduce, found {:?}",
                DType::as_str(&host.dtype())
            ),
        }
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let world = self.world()?;
        for chunk in bytes.chunks_mut(CHUNK) {
            self.wait("a broadcast", || world.process_at_rank(0).broadcast_into(chunk));
        }
        Ok(())
    }

    fn set_timeout(&self, timeout: Duration) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.set_timeout(timeout);
        }
    }
}
