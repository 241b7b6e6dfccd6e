//! Where gradients wait for the node that they belong to.

use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use candle_core::{DType, Device, Result, Tensor};

use crate::core::lock::lock;

/// Gradients that have arrived at a node and wait for its backward function, each in its own slot. The gradient of the node's
/// token has one bit for each slot: candle adds these gradients up, so the sum says which slots belong to a backward pass.
///
/// On CUDA a token is not read, which would synchronize with the device: there a backward pass has all that came from its
/// thread.
pub(super) struct Slots<T>(Mutex<Vec<Option<Arrived<T>>>>);

struct Arrived<T> {
    /// Sums are taken in the order of arrival, whatever the slots.
    turn: usize,
    thread: ThreadId,
    gradient: T,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Numbers in a token, and bits in each: those of an f64, which stay exact when they are added.
pub(super) const TOKEN: usize = 32;
const BITS: usize = 52;

/// Whether a node of candle's graph is a token.
pub(crate) fn is_token(node: &Tensor) -> bool {
    node.dtype() == DType::F64 && node.dims() == [TOKEN] || node.device().is_cuda() && node.dims() == [1]
}

impl<T> Slots<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Arrived<T>>>> {
        lock(&self.0)
    }

    /// Leaves a gradient here. Returns that of the token.
    pub(super) fn put(&self, token: &Tensor, gradient: T) -> Result<Tensor> {
        let slot = {
            let mut slots = self.lock();
            let turn = slots.iter().flatten().map(|arrived| arrived.turn + 1).max().unwrap_or(0);
            let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
            if free >= TOKEN * BITS {
                candle_core::bail!(
                    "one output of a layer is used by more than {} layers: add some of their outputs up first",
                    TOKEN * BITS
                )
            }
            if free == slots.len() {
                slots.push(None);
            }
            slots[free] = Some(Arrived { turn, thread: thread::current().id(), gradient });
            free
        };
        if !token.device().is_cpu() {
            return Ok(token.detach());
        }
        let mut bits = vec![0.0; TOKEN];
        bits[slot / BITS] = (1u64 << (slot % BITS)) as f64;
        Tensor::from_vec(bits, TOKEN, &Device::Cpu)
    }

    /// Takes what belongs to this gradient of the token, in the order in which it came.
    pub(super) fn take(&self, token: &Tensor) -> Result<Vec<T>> {
        let bits = if token.device().is_cpu() { Some(token.to_vec1::<f64>()?) } else { None };
        let here = thread::current().id();
        #[expect(clippy::cast_sign_loss, reason = "sums of powers of two")]
        let is_mine = |slot: usize, thread: ThreadId| match &bits {
            Some(bits) => (bits[slot / BITS] as u64) >> (slot % BITS) & 1 == 1,
            None => thread == here,
        };
        let mut slots = self.lock();
        let mut taken = Vec::new();
        for (slot, arrived) in slots.iter_mut().enumerate() {
            if arrived.as_ref().is_some_and(|arrived| is_mine(slot, arrived.thread)) {
                taken.extend(arrived.take());
            }
        }
        while slots.last().is_some_and(Option::is_none) {
            slots.pop();
        }
        taken.sort_by_key(|arrived| arrived.turn);
        Ok(taken.into_iter().map(|arrived| arrived.gradient).collect())
    }
}
