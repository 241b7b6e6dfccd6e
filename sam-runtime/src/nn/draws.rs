//! Random numbers of layers, the same in both passes of a step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Pass;
use crate::pass::{Run, Step};
use crate::variants::hash;

/// Where the random layers of a network get their numbers from: each call takes the next place of one stream, and the
/// second pass of a sharpness-aware step takes the places of the first again, as the authors' code does.
///
/// Clones are the same stream. What is drawn is a function of the seed and the place, so a run that is taken up again
/// [seeks](Self::seek) the place where it was.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::{Draws, Shake};
///
/// # fn main() -> Result<()> {
/// let (a, b) = (Tensor::ones((4, 2), DType::F32, &Device::Cpu)?, Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?);
/// let draws = Draws::seeded(7);
/// let shake = Shake::new(draws.clone());
/// let first = shake.forward(&a, &b, true)?.to_vec2::<f32>()?;
/// assert_ne!(shake.forward(&a, &b, true)?.to_vec2::<f32>()?, first);
/// draws.seek(0);
/// assert_eq!(shake.forward(&a, &b, true)?.to_vec2::<f32>()?, first);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Draws {
    seed: u64,
    places: Arc<Mutex<Places>>,
}

/// Which place is next.
#[derive(Clone, Debug)]
struct Places {
    next: u64,
    /// The first place of the step, for each part of its batch, and the first that it has not used.
    starts: Vec<u64>,
    end: u64,
    step: Option<Step>,
    run: Run,
}

impl Places {
    fn at(place: u64) -> Self {
        Self { next: place, starts: Vec::new(), end: place, step: None, run: Run::NONE }
    }
}

impl Draws {
    /// From the beginning. Streams with the same seed have the same numbers.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { seed, places: Arc::new(Mutex::new(Places::at(0))) }
    }

    /// Goes on from this place, outside a step.
    pub fn seek(&self, place: u64) {
        *self.lock() = Places::at(place);
    }

    /// A stream of its own that goes on from the same place.
    pub(super) fn fork(&self) -> Self {
        Self { seed: self.seed, places: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// A seed for one call of a layer.
    pub(super) fn next_seed(&self) -> u64 {
        let (step, run) = (Step::current(), Run::current());
        let mut places = self.lock();
        if step != places.step {
            places.next = places.end;
            places.starts.clear();
        }
        if step != places.step || run != places.run {
            if run.pass == Pass::Descent
                && let Some(start) = places.starts.get(run.part)
            {
                places.next = *start;
            } else {
                let start = places.end;
                places.next = start;
                places.starts.resize(run.part, start);
                places.starts.push(start);
            }
        }
        (places.step, places.run) = (step, run);
        places.next += 1;
        places.end = places.end.max(places.next);
        hash(self.seed ^ hash(places.next))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number in [0, 1) with the 24 bits that an f32 has there.
pub(super) fn uniform(seed: u64, place: u64) -> f32 {
    (hash(seed.wrapping_add(place)) >> 40) as f32 / (1u32 << 24) as f32
}
