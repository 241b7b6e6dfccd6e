//! Random numbers of layers, the same in all passes of a step.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::core::lock::lock;
use crate::core::pass::{Pass, Run, Step, WeakStep};
use crate::core::rng::hash;

/// The random stream of a network's layers: each call of a layer takes the next position of it, and the second pass of a
/// sharpness-aware step takes the positions of the first again, as the authors' code does.
///
/// Clones are the same stream. The numbers are a function of the seed and the position, so a training that is resumed
/// [sets](Self::set_position) the position where it was.
///
/// The positions are remembered for each step and each part of its batch, so other steps, other threads and evaluation
/// may use the stream between the passes of a step. In further passes, calls are matched with those of the first pass
/// by their order. All passes should therefore call the same layers in the same order; a call that the first pass does not
/// have takes a new position.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::{RngStream, ShakeShake};
///
/// # fn main() -> Result<()> {
/// let (a, b) = (Tensor::ones((4, 2), DType::F32, &Device::Cpu)?, Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?);
/// let rng = RngStream::new(7);
/// let shake = ShakeShake::new(rng.clone());
/// let first = shake.forward(&a, &b, true)?.to_vec2::<f32>()?;
/// assert_ne!(shake.forward(&a, &b, true)?.to_vec2::<f32>()?, first);
/// rng.set_position(0);
/// assert_eq!(shake.forward(&a, &b, true)?.to_vec2::<f32>()?, first);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RngStream {
    seed: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The position that the next call takes.
    next: u64,
    /// Of the steps that are under way.
    records: Vec<Record>,
}

/// The positions that a step's first pass took.
#[derive(Debug)]
struct Record {
    step: WeakStep,
    /// For each part of the batch.
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    positions: Vec<u64>,
    /// The run that takes positions now, and how many it has taken.
    run: u64,
    taken: usize,
}

impl State {
    fn fresh(&mut self) -> u64 {
        let position = self.next;
        self.next = self.next.wrapping_add(1);
        position
    }

    /// The position of a call in a run of a step.
    fn position(&mut self, step: &Step, run: Run) -> u64 {
        let first = run.pass != Pass::Descent;
        let known = self.records.iter().position(|record| record.step.is(step));
        let index = match known {
            Some(index) => index,
            None if first => {
                self.records.retain(|record| !record.step.is_over());
                self.records.push(Record { step: step.downgrade(), parts: Vec::new() });
                self.records.len() - 1
            }
            // The layer has no part in the step's first pass.
            None => return self.fresh(),
        };
        let position = if first { Some(self.fresh()) } else { None };
        let parts = &mut self.records[index].parts;
        if first && parts.len() <= run.part {
            parts.resize_with(run.part + 1, Part::default);
        }
        let Some(part) = parts.get_mut(run.part) else { return self.fresh() };
        if part.run != run.number {
            (part.run, part.taken) = (run.number, 0);
            if first {
                part.positions.clear();
            }
        }
        part.taken += 1;
        match position {
            Some(position) => {
                part.positions.push(position);
                position
            }
            None => part.positions.get(part.taken - 1).copied().unwrap_or_else(|| self.fresh()),
        }
    }
}

impl RngStream {
    /// From the beginning. Streams with the same seed have the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, state: Arc::default() }
    }

    /// Continues at this position. For use between steps: those under way draw new numbers in their further passes.
    pub fn set_position(&self, position: u64) {
        *self.lock() = State { next: position, records: Vec::new() };
    }

    /// A seed for one call of a layer.
    pub(super) fn next_seed(&self) -> u64 {
        let position = match Step::current() {
            Some(step) => self.lock().position(&step, Run::current()),
            None => self.lock().fresh(),
        };
        hash(self.seed ^ hash(position.wrapping_add(1)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
