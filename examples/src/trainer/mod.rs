//! The trainer: logs, checkpoints every so often and on signals, and deterministic resumption.
//!
//! [`fit()`] is the training loop. [`Job::run`] runs it for each phase of a recipe's method, with everything around it. The
//! step is the same for SGD and for SAM, which is the attribute on the loss functions; of SAM the trainer only saves the state,
//! and logs by how much the loss rises.

mod bn_stats;
mod checkpoint;
mod data;
mod ema;
mod epochs_csv;
mod evaluation;
mod fit;
mod job;
mod label_state;
mod lr;
mod optimizer;
mod orders;
mod outcome;
mod phase_end;
mod phase_length;
mod ranks;
mod recipe_diff;
mod run;
mod run_dir;
mod sealed;
mod setup;
mod step;
mod training;
mod weights;

pub use self::checkpoint::{Checkpoint, Progress};
pub use self::data::Data;
pub use self::fit::{Fit, Position, fit};
pub use self::job::{Job, Next, Session, Status};
pub use self::lr::rate;
pub use self::optimizer::Optimizer;
pub use self::outcome::{Diverged, Outcome, loss_note};
pub use self::ranks::{share, with_mean_statistics};
pub(crate) use self::recipe_diff::difference;
pub use self::run_dir::{Begin, DirLock, has_results, is_training};
pub(crate) use self::run_dir::{is_ours, kept_weights};
pub use self::weights::{WeightsInfo, load_weights};
