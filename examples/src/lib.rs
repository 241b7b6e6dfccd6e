//! Trainers and experiments with SAM, and what they are made of.
//!
//! The crate has layers. A file may use its own room and the rooms below it, and no two files use each other
//! (`tests/tests/layering.rs` of the repository):
//!
//! ```text
//! bin           the programs: cifar, variants, train, evaluate, predict, paper, spectrum, bench, arithmetic
//! cli           command lines: options, terminal output, progress
//! experiments   compare (SGD and SAM), variants, paper (the tables), hessian (the spectrum)
//! trainer       the training loop; logs, checkpoints, deterministic resumption
//! recipe        TOML files in recipes/: the settings of a training, and tables of them
//! noisy_labels  the methods of the paper's Table 4: phases, batches, losses
//! metrics       errors and losses of a model, means over seeds
//! losses        loss functions, with the attribute #[sam]
//! models        networks, built from the layers of sam_runtime::nn or of candle_nn
//! data          data sets: formats, downloads, label noise; batches of tensors
//! augment       flips and crops, Cutout, AutoAugment
//! io            atomic files, logs, TensorBoard events, leases, tables, charts
//! util          devices, random number streams, schedules, signals
//! ```
//!
//! Where to start: [`losses`] for the attribute, [`trainer::fit()`] for the training loop,
//! [`experiments::compare::run`] for the shortest training that uses both.

pub mod augment;
pub mod cli;
pub mod data;
pub mod experiments;
pub mod io;
pub mod losses;
pub mod metrics;
pub mod models;
pub mod noisy_labels;
pub mod recipe;
pub mod trainer;
pub mod util;
