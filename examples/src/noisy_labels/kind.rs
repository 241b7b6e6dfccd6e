//! The methods.

use serde::{Deserialize, Serialize};

/// A method of training on wrong labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoisyLabelMethod {
    /// The labels as they are.
    Plain,
    /// Mixup (Zhang et al. 2018): images and labels of two examples in one.
    Mixup,
    /// The paper's own: train, replace the labels by the model's predictions, train from scratch.
    Bootstrap,
    /// The same, both times with Mixup.
    BootstrapMixup,
    /// Truncated generalized cross-entropy (Zhang & Sabuncu 2018): examples with a low probability of their label are left out.
    Gce,
    /// MentorNet's predefined curriculum (Jiang et al. 2018): only the examples of the smaller losses count.
    #[serde(rename = "mentornet")]
    MentorNet,
    /// MentorMix (Jiang et al. 2020): Mixup with partners that MentorNet trusts.
    #[serde(rename = "mentormix")]
    MentorMix,
    /// M-DYR-H (Arazo et al. 2019): Mixup, and labels that are corrected in proportion to the probability that they are wrong, by a
    /// mixture of two beta distributions of the losses.
    MDyrH,
    /// O2U-Net (Huang et al. 2019): the examples with the largest losses under a cyclic learning rate are dropped.
    O2u,
    /// INCV (Chen et al. 2019): cross-validation selects the examples whose labels are predicted.
    Incv,
    /// `RoG` (Lee et al. 2019): after training, a robust generative classifier on the features.
    Rog,
}

impl NoisyLabelMethod {
    /// Whether its loss is the cross-entropy of the labels, so that label smoothing applies.
    #[must_use]
    pub fn smooths(self) -> bool {
        !matches!(self, Self::Gce | Self::MDyrH | Self::MentorMix)
    }

    /// Whether it mixes examples, with the `alpha` of a recipe.
    #[must_use]
    pub fn mixes(self) -> bool {
        matches!(self, Self::Mixup | Self::BootstrapMixup | Self::MDyrH | Self::MentorMix)
    }

    /// Whether it needs the share of wrong labels.
    #[must_use]
    pub fn needs_rate(self) -> bool {
        matches!(self, Self::O2u | Self::MentorMix)
    }
}
