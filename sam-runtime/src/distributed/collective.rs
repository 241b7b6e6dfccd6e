//! What a transport between ranks has to do.

use std::fmt;
use std::time::Duration;

use candle_core::{Result, Tensor};

/// The communication between the processes (ranks) of one training: what a [`Comm`](super::Comm) is made of.
///
/// Every rank calls the same functions in the same order, from one thread. A [`Comm`](super::Comm) sees to it that the ranks
/// agree on what they are about to do, with an [`all_gather`](Self::all_gather) before each of the other calls. So an
/// implementation need not check sizes.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use sam_runtime::distributed::{Collective, Comm};
///
/// /// One rank alone.
/// #[derive(Debug)]
/// struct Alone;
///
/// impl Collective for Alone {
///     fn rank(&self) -> usize {
///         0
///     }
///     fn size(&self) -> usize {
///         1
///     }
///     fn all_gather(&self, numbers: &[u64]) -> Result<Vec<u64>> {
///         Ok(numbers.to_vec())
///     }
///     fn all_reduce_sum(&self, flat: &Tensor) -> Result<Tensor> {
///         Ok(flat.clone())
///     }
///     fn broadcast(&self, _bytes: &mut [u8]) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// assert_eq!(Comm::new(Alone).size(), 1);
/// ```
pub trait Collective: fmt::Debug + Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// The number of this process among those of its machine, from 0. Provided for ranks that are all on one machine.
    fn local_rank(&self) -> usize {
        self.rank()
    }

    /// The numbers of all ranks, in the order of the ranks. Every rank passes as many.
    ///
    /// # Errors
    /// If the transport fails.
    fn all_gather(&self, numbers: &[u64]) -> Result<Vec<u64>>;

    /// The sum over the ranks of a contiguous f32 or f64 tensor of one dimension, at most 25 MB unless it is that of one
    /// variable: of the same dtype, on the same device, in a buffer of its own, and bitwise the same on every rank.
    ///
    /// # Errors
    /// If the transport fails.
    fn all_reduce_sum(&self, flat: &Tensor) -> Result<Tensor>;

    /// Writes the bytes of rank 0 over those of the other ranks. All pass as many.
    ///
    /// # Errors
    /// If the transport fails.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<()>;

    /// How long a rank waits for the others before it ends the job. Nothing, where the transport knows no such limit.
    fn set_timeout(&self, _timeout: Duration) {}
}
