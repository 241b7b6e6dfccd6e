//! Training on wrong labels: the methods of the paper's Table 4. A method is a sequence of phases, a transformation of each
//! batch, and a loss function. None of them depends on SAM, which is the attribute on the loss functions.
//!
//! ```text
//! bootstrap, o2u, incv, rog    phases: the images that are trained on, and what happens after the training
//! mixup, mentornet, mentormix  batches: images and targets of a step
//! gce, m-dyr-h                 loss functions, with weights from the model's own losses
//! ```

mod batch;
mod beta_mixture;
mod discriminant;
mod kind;
mod phases;
mod state;
mod targets;

pub use self::batch::MethodSettings;
pub use self::discriminant::discriminate;
pub use self::kind::NoisyLabelMethod;
pub use self::phases::{AfterPhase, Fold, Phase, PhaseLr, Start, TrainSubset};
pub use self::state::{MethodState, without_worst};
