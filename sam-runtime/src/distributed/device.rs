//! Which GPU a rank computes on.

use candle_core::{Device, Result};

use super::comm::Comm;
use crate::core::error::Error;

impl Comm {
    /// The GPU of this rank: the one with the number of its [`local_rank`](Self::local_rank), or the only one that it sees, where the
    /// launcher has given each process one of its own (`srun --gpus-per-task=1`).
    ///
    /// ```no_run
    /// use sam_runtime::distributed;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// distributed::run(|world| {
    ///     let device = world.cuda_device()?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// Without the feature `cuda` or without a GPU, as [`Device::new_cuda`]; if this machine has more ranks than GPUs.
    pub fn cuda_device(&self) -> Result<Device> {
        Device::new_cuda(number_of_gpu(self.local_rank(), gpus())?)
    }
}

/// How many GPUs this process sees; one if it cannot be told, and opening it will say why.
fn gpus() -> usize {
    #[cfg(feature = "cuda")]
    return candle_core::cuda::cudarc::driver::CudaContext::device_count()
        .map_or(1, |count| usize::try_from(count).unwrap_or(1).max(1));
    #[cfg(not(feature = "cuda"))]
    1
}

fn number_of_gpu(local_rank: usize, gpus: usize) -> Result<usize> {
    match gpus {
        1 => Ok(0),
        _ if local_rank < gpus => Ok(local_rank),
        _ => Err(Error::Ranks(format!(
            "the rank number {local_rank} of this machine has no GPU, there are {gpus}: start at most as many ranks on a \
             machine as it has GPUs"
        ))
        .into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_a_gpu_of_its_own() {
        assert_eq!([0, 1, 3].map(|rank| number_of_gpu(rank, 4).unwrap()), [0, 1, 3]);
        assert_eq!([0, 1, 3].map(|rank| number_of_gpu(rank, 1).unwrap()), [0; 3]);
        assert!(
            number_of_gpu(2, 2).unwrap_err().to_string().contains("number 2 of this machine has no GPU, there are 2")
        );
    }
}
