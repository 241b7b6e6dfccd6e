//! AutoAugment (Cubuk et al. 2019).

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::picture::Picture;
use super::policies::{CODE, PAPER, SVHN, Step};

/// A list of sub-policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The 25 sub-policies of its publication.
    Paper25,
    /// The 95 sub-policies of the code of Foret et al.
    Code95,
    /// The 25 sub-policies of its publication for SVHN.
    Svhn25,
}

impl Policy {
    fn sub_policies(self) -> &'static [[Step; 2]] {
        match self {
            Self::Paper25 => &PAPER,
            Self::Code95 => &CODE,
            Self::Svhn25 => &SVHN,
        }
    }

    /// Draws a sub-policy, and applies each of its operations with its probability.
    pub(crate) fn apply(self, picture: &mut Picture<'_>, rng: &mut impl Rng) {
        let policies = self.sub_policies();
        for (operation, tenths, level) in policies[rng.random_range(0..policies.len())] {
            if rng.random_ratio(tenths, 10) {
                operation.apply(level, picture, rng);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::operation::Operation;
    use super::*;

    /// The policies' figures, checked by the sums of the tables' columns.
    #[test]
    fn policies_are_those_of_the_tables() {
        let sums = |policies: &[[Step; 2]]| {
            let steps = policies.iter().flatten();
            steps.fold((0, 0), |(tenths, levels), step| (tenths + step.1, levels + u32::from(step.2)))
        };
        assert_eq!((sums(&PAPER), sums(&CODE), sums(&SVHN)), ((265, 267), (902, 890), (329, 143)));
        assert!(CODE.iter().flatten().chain(PAPER.iter().flatten()).all(|step| step.1 <= 10 && step.2 <= 10));
        assert_eq!(PAPER[0], [(Operation::Invert, 1, 7), (Operation::Contrast, 2, 6)]);
        assert_eq!(CODE[94], [(Operation::Equalize, 6, 9), (Operation::Equalize, 4, 4)]);
    }

    /// Every sub-policy on colored and on gray pictures; the same seed gives the same picture.
    #[test]
    fn policies_run_and_repeat() {
        let run = |policy: Policy, channels: usize, seed| {
            let mut pixels: Vec<u8> = (0..channels * 32 * 32).map(|i| (i * 31 % 253) as u8).collect();
            let fill = vec![125; channels];
            let mut picture = Picture { pixels: &mut pixels, height: 32, width: 32, fill: &fill };
            policy.apply(&mut picture, &mut ChaCha8Rng::seed_from_u64(seed));
            pixels
        };
        for (policy, channels) in [(Policy::Paper25, 3), (Policy::Paper25, 1), (Policy::Code95, 3), (Policy::Svhn25, 3)]
        {
            let pictures: Vec<_> = (0..400).map(|seed| run(policy, channels, seed)).collect();
            assert_eq!(run(policy, channels, 7), pictures[7]);
            let changed = pictures.iter().filter(|picture| **picture != pictures[0]).count();
            assert!(changed > 200, "{changed}");
        }
    }
}
