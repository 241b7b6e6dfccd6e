//! What is trained on wrong labels: the methods of the paper's Table 4, each as a loss function, as what is made of a
//! batch, and as a row of stages. None of them knows of SAM: that is a matter of the attribute on the losses.
//!
//! ```text
//! bootstrap, o2u, incv, rog    stages: what is trained on, and what is done with the model afterwards
//! mixup, mentornet, mentormix  batches: what is made of the images and labels of a step
//! gce, m-dyr-h                 loss functions, with weights from the model's own losses
//! ```

mod batch;
mod beta_mixture;
mod phases;

use serde::{Deserialize, Serialize};

pub use self::batch::Memory;
pub(crate) use self::batch::step_rng;
pub use self::phases::{
    Images, Rate, Split, Stage, Start, Then, cosine, discriminate, losses, predictions, without_worst,
};

/// Which method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The labels as they are.
    Plain,
    /// Mixup (Zhang et al. 2018): images and labels of two examples in one.
    Mixup,
    /// The paper's own: train, take the model's predictions for labels, train from the beginning.
    Bootstrap,
    /// The same, both times with Mixup.
    BootstrapMixup,
    /// Truncated generalised cross-entropy (Zhang & Sabuncu 2018): examples that the model does not believe are left out.
    Gce,
    /// MentorNet's predefined curriculum (Jiang et al. 2018): only the examples of the smaller losses count.
    #[serde(rename = "mentornet")]
    MentorNet,
    /// MentorMix (Jiang et al. 2020): Mixup with partners that MentorNet trusts.
    #[serde(rename = "mentormix")]
    MentorMix,
    /// M-DYR-H (Arazo et al. 2019): Mixup, and labels that are corrected as far as a mixture of two beta distributions
    /// of the losses holds them for wrong.
    MDyrH,
    /// O2U-Net (Huang et al. 2019): those examples are dropped whose losses are largest while the learning rate cycles.
    O2u,
    /// INCV (Chen et al. 2019): cross-validation selects the examples whose labels are predicted.
    Incv,
    /// `RoG` (Lee et al. 2019): after training, a robust generative classifier on the features.
    Rog,
}

impl Method {
    /// Whether its loss is the cross-entropy of the labels, which can be smoothed.
    #[must_use]
    pub fn smooths(self) -> bool {
        !matches!(self, Self::Gce | Self::MDyrH | Self::MentorMix)
    }

    /// Whether it has to know how many labels are wrong.
    #[must_use]
    pub fn needs_rate(self) -> bool {
        matches!(self, Self::O2u | Self::MentorMix)
    }
}
