//! The handle that users have of the other ranks.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use candle_core::Result;

use super::action::{Action, Contents};
use super::collective::Collective;
use super::solo::Solo;
use crate::core::rng::hash;

/// The ranks of a training: the processes that train one model, each with its share of every batch.
///
/// [`run`](super::run) makes it. With `#[sam(all_reduce = comm)]`, or [`Sam::all_reduce`](crate::Sam::all_reduce), the gradient of
/// a step is the mean over the ranks. All ranks make the same calls in the same order, from the thread that [`run`](super::run)
/// was called on; ranks that do not get an error that names both calls. A clone is a handle to the same ranks.
///
/// ```
/// use sam_runtime::distributed::Comm;
///
/// # fn main() -> candle_core::Result<()> {
/// let world = Comm::solo();
/// assert_eq!((world.rank(), world.size(), world.mean(3.5)?), (0, 1, 3.5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Comm(Arc<Ranks>);

/// A [`Comm`], or a reference to one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a communicator",
    label = "expected a `&Comm`",
    note = "`sam_runtime::distributed::run` gives one to the training: take `world: &Comm` as an argument"
)]
pub trait Communicator: Borrow<Comm> {}

#[diagnostic::do_not_recommend]
impl<T: Borrow<Comm>> Communicator for T {}

#[derive(Debug)]
struct Ranks {
    collective: Box<dyn Collective>,
    /// Whether an error that this rank was given is that of another rank.
    failure_is_elsewhere: AtomicBool,
    /// Nanoseconds.
    waited: AtomicU64,
}

impl Default for Comm {
    /// [`Comm::solo`].
    fn default() -> Self {
        Self::solo()
    }
}

impl Comm {
    /// One rank, this process: nothing is sent.
    #[must_use]
    pub fn solo() -> Self {
        Self::new(Solo)
    }

    /// The ranks of a transport of your own.
    #[must_use]
    pub fn new(collective: impl Collective + 'static) -> Self {
        let failure_is_elsewhere = AtomicBool::new(false);
        let waited = AtomicU64::new(0);
        Self(Arc::new(Ranks { collective: Box::new(collective), failure_is_elsewhere, waited }))
    }

    /// The number of this process, from 0. Rank 0 prints and writes files.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.collective.rank()
    }

    /// The number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.collective.size()
    }

    /// The number of this process among those of its machine, from 0.
    #[must_use]
    pub fn local_rank(&self) -> usize {
        self.0.collective.local_rank()
    }

    /// How long a rank waits for the others before it ends the job with a message: 5 minutes, unless set. It has to be longer
    /// than whatever one rank does alone while the others wait, such as an evaluation.
    pub fn set_timeout(&self, timeout: Duration) {
        self.0.collective.set_timeout(timeout);
    }

    /// How long this rank has waited for the others so far, without the time in which gradients are sent. A rank that waits
    /// less than all others is the slow one.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited.load(Ordering::Relaxed))
    }

    /// The mean over the ranks of a number, such as the value of the loss, which is the rank's own. The same on all ranks.
    ///
    /// # Errors
    /// If the ranks do not all call it.
    pub fn mean(&self, number: f64) -> Result<f64> {
        let numbers = self.numbers(number.to_bits())?;
        Ok(numbers.iter().map(|bits| f64::from_bits(*bits)).sum::<f64>() / numbers.len() as f64)
    }

    /// Whether it is so on any rank: whether one was told to stop, say.
    ///
    /// # Errors
    /// If the ranks do not all call it.
    pub fn any(&self, flag: bool) -> Result<bool> {
        Ok(self.numbers(flag.into())?.iter().any(|flag| *flag != 0))
    }

    fn numbers(&self, own: u64) -> Result<Vec<u64>> {
        if self.size() == 1 {
            return Ok(vec![own]);
        }
        self.agree(Action::Numbers, Contents::default(), own)
    }

    /// A seed for this rank, for what ranks have to draw differently: augmentation, dropout. Rank 0 has `seed` itself, so that
    /// a training on one rank draws what one without ranks does.
    #[must_use]
    pub fn seed(&self, seed: u64) -> u64 {
        match self.rank() {
            0 => seed,
            rank => hash(seed ^ hash(rank as u64)),
        }
    }

    /// This rank's batches of an epoch: of every n · `m` consecutive entries of `order`, with n the number of ranks, those from
    /// rank · `m` on, `m` of them. `order` is the same on all ranks, and all have as many batches: what remains of `order` at
    /// the end is left out.
    ///
    /// So a step on n ranks sees the samples of a step on one rank with batches of n · `m` samples, in the order of
    /// `shards(..; m)`.
    ///
    /// ```
    /// use sam_runtime::distributed::Comm;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let order = [4, 0, 3, 1, 2];
    /// assert!(Comm::solo().batches(&order, 2)?.eq([[4, 0], [3, 1]]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If `m` is 0.
    pub fn batches<'a, T>(&self, order: &'a [T], m: usize) -> Result<impl Iterator<Item = &'a [T]> + use<'a, T>> {
        if m == 0 {
            candle_core::bail!("`batches` of 0 samples: expected at least 1 for each rank")
        }
        Ok(order.chunks_exact(m * self.size()).map({
            let start = m * self.rank();
            move |batch| &batch[start..start + m]
        }))
    }

    /// That this rank has come to the end of its training, as all others have.
    #[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "one process has none to wait for"))]
    pub(super) fn end(&self) -> Result<()> {
        self.agree(Action::End, Contents::default(), 0).map(|_| ())
    }

    pub(super) fn collective(&self) -> &dyn Collective {
        &*self.0.collective
    }

    pub(super) fn note_waiting(&self, time: Duration) {
        self.0.waited.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn note_agreement(&self) {
        self.0.failure_is_elsewhere.store(false, Ordering::Relaxed);
    }

    pub(super) fn note_failure_elsewhere(&self) {
        self.0.failure_is_elsewhere.store(true, Ordering::Relaxed);
    }

    #[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "one process has no others"))]
    pub(super) fn failure_is_elsewhere(&self) -> bool {
        self.0.failure_is_elsewhere.load(Ordering::Relaxed)
    }
}
