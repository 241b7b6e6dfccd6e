//! Random numbers of layers, the same in both passes of a step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Pass;
use crate::pass::Step;

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
#[derive(Clone, Copy, Debug)]
struct Places {
    next: u64,
    /// The first place of the step, and the first that it has not used.
    start: u64,
    end: u64,
    step: Option<Step>,
    pass: Pass,
}

impl Places {
    fn at(place: u64) -> Self {
        Self { next: place, start: place, end: place, step: None, pass: Pass::Plain }
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
        Self { seed: self.seed, places: Arc::new(Mutex::new(*self.lock())) }
    }

    /// A seed for one call of a layer.
    pub(super) fn next_seed(&self) -> u64 {
        let (step, pass) = (Step::current(), Pass::current());
        let mut places = self.lock();
        if step != places.step {
            places.next = places.end;
            places.start = places.end;
        } else if pass == Pass::Descent && places.pass == Pass::Ascent {
            places.next = places.start;
        }
        (places.step, places.pass) = (step, pass);
        places.next += 1;
        places.end = places.end.max(places.next);
        mix(self.seed ^ mix(places.next))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number in [0, 1) with the 24 bits that an f32 has there.
pub(super) fn uniform(seed: u64, place: u64) -> f32 {
    (mix(seed.wrapping_add(place)) >> 40) as f32 / (1u32 << 24) as f32
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
