//! Random number streams. The generator, `ChaCha8`, has 2⁶⁴ streams for a seed, and everything random in a training has its own.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What random numbers are drawn for. The streams of two different values never coincide, as long as there are fewer
/// than 2³² images, epochs and rounds, 2²² phases and 2⁴⁰ steps of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The stream that a seed starts with: label noise, and the weights of a model (from another seed, [`model_seed`]).
    Default,
    /// The order of the training images in an epoch.
    Order {
        /// From 0.
        epoch: usize,
    },
    /// The halves of a round of cross-validation (INCV).
    Fold {
        /// The round.
        round: u32,
        /// The index of the image.
        image: u32,
    },
    /// What is drawn once a step: Mixup's shares and partners.
    Step {
        /// The phase of the training.
        phase: usize,
        /// The step of the phase.
        step: usize,
    },
    /// The augmentation of an image.
    Augment {
        /// From 0.
        epoch: usize,
        /// The index of the image.
        image: u32,
    },
}

impl Stream {
    /// Its generator for a seed.
    #[must_use]
    pub fn rng(self, seed: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.number());
        rng
    }

    fn number(self) -> u64 {
        match self {
            Self::Default => 0,
            Self::Order { epoch } => 1 + epoch as u64,
            Self::Fold { round, image } => (1 << 61) | (u64::from(round) << 32) | u64::from(image),
            Self::Step { phase, step } => (1 << 62) | ((phase as u64) << 40) | step as u64,
            Self::Augment { epoch, image } => (1 << 63) | ((epoch as u64) << 32) | u64::from(image),
        }
    }
}

/// The seed of a phase: that of its order and augmentation.
#[must_use]
pub fn phase_seed(seed: u64, phase: usize) -> u64 {
    seed ^ ((phase as u64) << 32)
}

/// The seed of the weights of a phase's model. Not the phase's own: label noise is drawn from the default stream of that.
#[must_use]
pub fn model_seed(seed: u64, phase: usize) -> u64 {
    phase_seed(seed, phase) ^ (1 << 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs and checkpoints of earlier versions depend on these numbers.
    #[test]
    fn streams_have_fixed_numbers() {
        assert_eq!(Stream::Default.number(), 0);
        assert_eq!(Stream::Order { epoch: 3 }.number(), 4);
        assert_eq!(Stream::Fold { round: 2, image: 5 }.number(), (1 << 61) + (2 << 32) + 5);
        assert_eq!(Stream::Step { phase: 2, step: 5 }.number(), (1 << 62) + (2 << 40) + 5);
        assert_eq!(Stream::Augment { epoch: 2, image: 5 }.number(), (1 << 63) + (2 << 32) + 5);
        assert_eq!(model_seed(7, 1), 7 + (1 << 32) + (1 << 63));
    }
}
