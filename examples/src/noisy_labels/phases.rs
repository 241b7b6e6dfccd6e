//! The phases of the methods: trainings that follow each other.

use rand::RngExt;

use super::kind::NoisyLabelMethod;
use crate::util::rng::Stream;

/// One of the trainings of a method.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Its share of the recipe's epochs.
    pub epochs: f64,
    /// The initial weights.
    pub start: Start,
    /// How the learning rate changes.
    pub rate: PhaseLr,
    /// The images that are trained on.
    pub images: TrainSubset,
    /// Whether the losses of all images are summed over the epochs.
    pub record: bool,
    /// What happens afterwards.
    pub then: AfterPhase,
}

/// The initial weights of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// New ones.
    New,
    /// Those of the phase before.
    Last,
    /// Those that an earlier phase has kept.
    Kept,
}

/// The learning rate of a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PhaseLr {
    /// The schedule of the recipe.
    Recipe,
    /// The base learning rate of the recipe, constant.
    Constant,
    /// So many cycles, in each of which it falls linearly from a tenth of the base learning rate to a hundredth.
    Cycles(u32),
}

impl PhaseLr {
    /// The factor of the base learning rate; `None` for the schedule of the recipe.
    #[must_use]
    pub fn factor(self, progress: f64) -> Option<f64> {
        match self {
            Self::Recipe => None,
            Self::Constant => Some(1.0),
            Self::Cycles(count) => Some(0.1 - 0.09 * (progress * f64::from(count)).fract()),
        }
    }
}

/// The training images of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainSubset {
    /// Those that were kept, initially all.
    Kept,
    /// Those that were selected, initially none, and one fold of the images that were not left out.
    SelectedAndFold(Fold),
    /// Those that were selected.
    Selected,
}

/// One of the two folds of a round of cross-validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    round: u32,
    second: bool,
}

impl Fold {
    /// Whether the round ends after a selection from this fold.
    #[must_use]
    pub fn ends_round(self) -> bool {
        !self.second
    }

    /// Whether an image is in this fold, in a training of this seed.
    #[must_use]
    pub fn has(self, seed: u64, image: u32) -> bool {
        Stream::Fold { round: self.round, image }.rng(seed).random_bool(0.5) == self.second
    }
}

/// What follows a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterPhase {
    /// Nothing.
    Nothing,
    /// The weights are kept as the initial weights of a later phase.
    Keep,
    /// Every training image gets the label that the model predicts.
    Relabel,
    /// The images with the largest recorded losses are dropped, as large a share as the share of noise.
    DropWorst,
    /// Of the fold that was not trained on, the images whose label is predicted are selected, and some of those with the largest
    /// losses are left out.
    SelectFrom(Fold),
    /// The last layer is replaced by the discriminant of Gaussian features, estimated robustly.
    Discriminate,
}

impl NoisyLabelMethod {
    /// Its phases. The model of the last one is tested.
    #[must_use]
    pub fn phases(self) -> Vec<Phase> {
        let whole = Phase {
            epochs: 1.0,
            start: Start::New,
            rate: PhaseLr::Recipe,
            images: TrainSubset::Kept,
            record: false,
            then: AfterPhase::Nothing,
        };
        match self {
            Self::Plain | Self::Mixup | Self::Gce | Self::MentorNet | Self::MentorMix | Self::MDyrH => vec![whole],
            Self::Bootstrap | Self::BootstrapMixup => vec![Phase { then: AfterPhase::Relabel, ..whole }, whole],
            Self::O2u => vec![
                Phase { epochs: 0.25, rate: PhaseLr::Constant, then: AfterPhase::Keep, ..whole },
                Phase {
                    epochs: 0.5,
                    start: Start::Last,
                    rate: PhaseLr::Cycles(10),
                    record: true,
                    then: AfterPhase::DropWorst,
                    ..whole
                },
                Phase { start: Start::Kept, ..whole },
            ],
            Self::Incv => {
                let folds = (0..4).flat_map(|round| [false, true].map(|second| Fold { round, second }));
                let selecting = folds.map(|fold| Phase {
                    epochs: 0.25,
                    images: TrainSubset::SelectedAndFold(fold),
                    then: AfterPhase::SelectFrom(Fold { second: !fold.second, ..fold }),
                    ..whole
                });
                selecting.chain([Phase { images: TrainSubset::Selected, ..whole }]).collect()
            }
            Self::Rog => vec![Phase { then: AfterPhase::Discriminate, ..whole }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_halves() {
        let half = Fold { round: 2, second: false };
        let other = Fold { second: true, ..half };
        let count = (0..10_000).filter(|place| half.has(0, *place)).count();
        assert!((4800..5200).contains(&count), "{count}");
        assert!((0..1000).all(|place| half.has(0, place) != other.has(0, place)));
        let again = Fold { round: 3, ..half };
        assert!((0..1000).any(|place| half.has(0, place) != again.has(0, place)));
        assert!((0..1000).any(|place| half.has(0, place) != half.has(1, place)));
    }

    #[test]
    fn cycles_fall_and_begin_again() {
        let rate = |progress| PhaseLr::Cycles(10).factor(progress).unwrap();
        assert!((rate(0.0) - 0.1).abs() < 1e-12 && (rate(0.05) - 0.055).abs() < 1e-12);
        assert!((rate(0.1) - 0.1).abs() < 1e-9);
        assert_eq!(PhaseLr::Recipe.factor(0.3), None);
    }

    #[test]
    fn o2u_trains_on_from_the_weights_of_its_first_training() {
        let phases = NoisyLabelMethod::O2u.phases();
        let found: Vec<_> = phases.iter().map(|phase| (phase.start, phase.then == AfterPhase::Keep)).collect();
        assert_eq!(found, [(Start::New, true), (Start::Last, false), (Start::Kept, false)]);
    }
}
