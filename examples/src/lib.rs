//! The trainers and what they are made of.
//!
//! Start with [`tutorial`](experiments::compare::tutorial): a training loop, and the one line that turns it into a SAM loop; [`run`](experiments::compare::run) repeats it for every
//! seed and method, [`report`](experiments::compare::report) tells what came of it. That is the binary `cifar`.
//!
//! The paper's experiments are the binaries `paper` and `train`; `spectrum` looks at what was trained:
//!
//! ```text
//! recipe     what to do: TOML files in recipes/, a base and what each cell changes
//! data       sets of images                      augment    what is done to them
//! batches    images as tensors, from a thread    models     networks, from a kit of layers
//! loss       loss functions, with the attribute  method     what is trained on wrong labels
//! trainer    the loop: log, checkpoint, resume   paper      tables of runs beside the paper's numbers
//! spectrum   the Hessian of what was trained
//! ```

pub mod augment;
pub mod cli;
pub mod data;
pub mod experiments;
pub mod io;
pub mod losses;
pub mod models;
pub mod noisy_labels;
pub mod recipe;
pub mod trainer;
pub mod util;
