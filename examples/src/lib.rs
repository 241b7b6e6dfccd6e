//! The trainers and what they are made of.
//!
//! Start with [`tutorial`]: a training loop, and the one line that turns it into a SAM loop; [`run`] repeats it for every
//! seed and method, [`report`] tells what came of it. That is the binary `cifar`.
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
pub mod batches;
pub mod compute;
pub mod console;
pub mod data;
pub mod kit;
pub mod loss;
pub mod method;
pub mod models;
mod numbers;
pub mod options;
pub mod paper;
pub mod recipe;
pub mod report;
pub mod run;
pub mod spectrum;
pub mod stop;
pub mod trainer;
pub mod tutorial;
