//! Sharpness-Aware Minimization (SAM; Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, <https://arxiv.org/abs/2010.01412>) for
//! candle: one attribute on a loss function.
//!
//! The paper replaces a loss L by L<sup>SAM</sup>(w) = max L(w + ε) over ‖ε‖ₚ ≤ ρ, to first order. So does the attribute:
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{AdamW, Linear, Module, Optimizer, VarBuilder, VarMap};
//! use sam_runtime::sam;
//!
//! /// Cross-entropy of one batch.
//! #[sam(rho = 0.05, p = 2)]
//! fn loss(model: &Linear, x: &Tensor, y: &Tensor) -> Result<Tensor> {
//!     candle_nn::loss::cross_entropy(&model.forward(x)?, y)
//! }
//!
//! # fn main() -> Result<()> {
//! let vars = VarMap::new();
//! let model = candle_nn::linear(4, 3, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! let mut opt = AdamW::new_lr(vars.all_vars(), 0.01)?;
//! # let batch = || Ok::<_, candle_core::Error>((
//! #     Tensor::randn(0f32, 1., (8, 4), &Device::Cpu)?,
//! #     Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &Device::Cpu)?,
//! # ));
//! # let batches = [batch()?, batch()?];
//! for (x, y) in batches {
//!     opt.backward_step(&loss(&model, &x, &y)?)?; // the training loop does not change
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **The annotated function returns what it returned before; only its gradient is SAM's**: `loss(..)?.backward()?` gives
//! ∇L(w + ε̂(w)). So every optimizer, gradient clipping and learning rate schedule that is written for candle works unchanged. A
//! step costs two forward and backward passes, and one more copy of the weights.
//!
//! # Where to look
//!
//! | | |
//! | --- | --- |
//! | the attribute, with every key | [`sam`](macro@sam) |
//! | without the attribute, and the variants of SAM | [`Sam`], [`variants`] |
//! | batch normalization, dropout and other layers | [`nn`] |
//! | optimizers, clipping, learning rates, averages of the weights, loss scaling | [`optim`] |
//! | what a loss function may return | [`LossOutput`], [`Aux`] |
//! | how sharp a minimum is: sharpness, Hessian, slices of the loss | [`sharpness`] |
//! | errors, and how to match them | [`Error`], [`Error::of`] |
//! | evaluation, accumulation, clipping, mixed precision, resuming, threads | [`guide`] |
//! | what goes wrong, and why | [`faq`] |
//! | which promises are kept, and by which test | [`guarantees`] |
//! | several processes: data-parallel training with MPI | [`distributed`] |
//! | speed and memory, next to PyTorch; CUDA; how the crate is built | [`performance`], [`cuda`], [`architecture`] |
//!
//! # Batch normalization and dropout
//!
//! A step runs the loss function twice. The layers of [`nn`] take that into account: their batch normalization moves its running
//! statistics in the first pass alone, their dropout draws the same masks in both. With candle's own batch normalization pass
//! its statistics as `buffers = ..` ([worked example](guide#batch-normalization)). Candle's own dropout, and `Tensor::randn`
//! on the CPU, cannot be rewound: use [`nn::Dropout`], or draw the numbers from a seeded generator that is an argument, and
//! name it in `replay(rng)` ([example](guide#dropout-and-other-random-numbers)).
//!
//! # What a step guarantees
//!
//! - The value, and every [auxiliary value](Aux), is that of the plain function at w, bitwise on the CPU. (Of the
//!   [variants] with a single pass, at w + ε̂.) Later changes of a variable do not reach it, even if the function returns a view.
//! - The gradient is ∇L(w + ε̂), scaled by whatever is done to the loss afterwards, for every variable that the loss depends on.
//! - The weights are bitwise what they were, after `Ok`, `Err`, `?`, an early `return` and a panic. They are not copied:
//!   storages are swapped. After an error the running statistics of [`nn::BatchNorm`], and all `buffers`, are what they were
//!   before the step as well.
//! - One graph is alive at a time: a step's peak memory is that of a plain step and one copy of the weights. [Variants](variants)
//!   that remember or combine gradients document their extra memory.
//! - A zero gradient gives ε̂ = 0. A loss or a gradient that is not finite is an [`Error`] that says where, before any weight is
//!   touched. (On the CPU; on other devices values are not checked, see [`skipped_step_count`].)
//! - It is deterministic: bitwise the same for any number of threads, and for every order in which a map returns its variables.
//!
//! What would not be a sharpness-aware gradient is an error that says what to do: see [`Error`].
//!
//! # Graphs
//!
//! Each pass has to make its graph itself. A tensor that was computed from variables outside of the loss function, or in an
//! earlier pass, stays where it was when the weights move. A loss whose gradient goes through one is refused
//! ([`Error::StaleGraph`]): compute it inside, or `detach()` it. Views of variables move with them and may be made outside.
//!
//! An operation without a backward pass cuts the graph, and candle does not say so: `candle_nn`'s `layer_norm`, `rms_norm`,
//! `softmax_last_dim`, `rope` and `sdpa` are such, and [`nn`] has them with one. What lies before it is neither perturbed nor
//! trained. With `vars` a variable that is listed and gets no gradient is an error ([`Error::NoGradient`]); without it
//! [`Sam::diagnose`] tells which variables the loss does not reach.
//!
//! # Threads
//!
//! While the second pass runs the variables hold w + ε̂: another thread that reads them then sees that. Trainings may run at the
//! same time, on plain threads, on tokio's blocking pool, and on one rayon pool, if each has a model and an optimizer of its own,
//! and a [`Sam`] of its own if that remembers something. Steps that overlap on the same variables are refused
//! ([`Error::Displaced`]), and so is a step of the optimizers of [`optim`] on variables that hold w + ε̂ ([`Error::Moved`]).
//!
//! The passes of a step are known on the thread that runs the loss function. On threads that the loss function uses itself they
//! are not: there [`Pass::current`] is [`Pass::Plain`]. [`Context`] carries the pass to them. An annotated function that is
//! called inside another one is a part of that loss, and runs plainly; on a thread of a rayon pool call it as [`plain`]`(|| ..)`,
//! otherwise the outer step is an error ([`Error::Nested`]).
//!
//! # Cargo features
//!
//! `cudnn`, or `cuda` without cuDNN: the whole step stays on a CUDA device. SAM's arithmetic and the optimizers of [`optim`] take one
//! launch for all variables, and nothing synchronizes with the host, so values are not checked there. No kernel has run on a GPU
//! yet; they are tested on the CPU. `mpi`: [`distributed`] training on several processes. It needs an MPI library and libclang when it
//! is built; `nccl`: the same, with the gradients of GPUs summed by NCCL. `metal`, `mkl` and `accelerate` are candle's.
//!
//! # Limits
//!
//! - A loss function should have no side effects, or name what it changes in `replay` or `buffers`: it runs twice.
//! - Optimizers of other crates write to variables without asking. A step that one takes between the two passes is undone
//!   when the weights are restored.
//! - A loss keeps its gradient alive, which is as large as the weights. Keep `loss.detach()` or its number for a curve.
//! - Variables in f16 or bf16 round w + ε̂ to their dtype. Where more than half of ε̂ is lost the step is an error: keep weights
//!   in f32.
//!
//! # Repository
//!
//! Not part of this package, but of its repository: programs and experiments (`examples`, with their results in
//! `examples/results`), tests (`tests`), and how to contribute (`.github/CONTRIBUTING.md`).

// The kernels of CUDA need unsafe code, and so does their emulator in tests.
#![cfg_attr(not(any(test, feature = "cuda")), forbid(unsafe_code))]

#[doc(hidden)]
#[path = "macro_support.rs"]
pub mod __private;
mod autograd;
mod core;
pub mod distributed;
mod kernels;
pub mod nn;
pub mod optim;
mod sam;
pub mod sharpness;
mod step;
pub mod variants;

pub use crate::core::atomic_file::{sync_folder, write_atomically};
pub use crate::core::error::Error;
pub use crate::core::names::name_variables;
pub use crate::core::pass::{Context, Pass, plain};
pub use kernels::skipped_step_count;
pub use sam::Sam;
pub use sam::stats::StepStats;
pub use step::batch_selection::BatchSelection;
pub use step::diagnosis::Diagnosis;
pub use step::output::{Aux, LossOutput, Plain};
pub use step::shards::{Shard, Shards, SplitBatch};
pub use step::shares::Weights;
pub use step::stages::{Ascent, Descent, Perturbed};
pub use variants::FunctionalSam;

// Pages of `docs`. The links between them are reference links, whose definitions in the file are for readers of the repository.
// Those of `rustdoc_links.md` come first, after an empty line, so they win here. `tests/tests/docs.rs` checks that there are both.

/// Training guide.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

/// Frequently asked questions.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/faq.md")]
pub mod faq {}

/// Guarantees, and the tests that check them.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

/// Measurements, and how to repeat them.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/performance.md")]
pub mod performance {}

/// CUDA: how to build it, and what was tested.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/cuda.md")]
pub mod cuda {}

/// How the crate is built, for contributors.
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("rustdoc_links.md")]
#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}

/// # A radius that changes
///
/// The radius may be any expression of the arguments, and so may the norm:
///
/// ```
/// # use candle_core::{Device, Result, Tensor, Var};
/// # use sam_runtime::sam;
/// struct Schedule {
///     end: usize,
/// }
///
/// impl Schedule {
///     fn rho(&self, step: usize) -> f64 {
///         0.1 * step as f64 / self.end as f64
///     }
/// }
///
/// #[sam(rho = schedule.rho(step), p = inf)]
/// fn loss(w: &Var, schedule: &Schedule, step: usize) -> Result<Tensor> {
///     w.sqr()?.sum_all()
/// }
/// # fn main() -> Result<()> {
/// let w = Var::new(&[1f64, -2.], &Device::Cpu)?;
/// let g = loss(&w, &Schedule { end: 10 }, 5)?.backward()?;
/// assert_eq!(g.get(&w).unwrap().to_vec1::<f64>()?, [2.1, -4.1]);
/// # Ok(())
/// # }
/// ```
///
/// # Methods, custom errors and auxiliary values
///
/// ```
/// # use candle_core::{DType, Device, Tensor, Var};
/// # use sam_runtime::sam;
/// struct Model {
///     w: Var,
/// }
///
/// impl Model {
///     #[sam(adaptive)]
///     fn loss(&self, x: &Tensor) -> anyhow::Result<(Tensor, Tensor)> {
///         let logits = x.matmul(&self.w)?;
///         anyhow::ensure!(logits.dim(1)? == 1, "one output is expected");
///         Ok((logits.sqr()?.mean_all()?, logits))
///     }
/// }
/// # fn main() -> anyhow::Result<()> {
/// let model = Model { w: Var::ones((3, 1), DType::F32, &Device::Cpu)? };
/// let (loss, logits) = model.loss(&Tensor::ones((5, 3), DType::F32, &Device::Cpu)?)?;
/// assert_eq!((loss.to_scalar::<f32>()?, logits.dims()), (9.0, [5, 1].as_slice()));
/// # Ok(())
/// # }
/// ```
///
/// # Stock batch normalization, a generator, and m-sharpness
///
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// # use candle_nn::{BatchNorm, Linear, Module, ModuleT, VarBuilder, VarMap};
/// # use rand::{RngExt, SeedableRng};
/// # use rand_chacha::ChaCha8Rng;
/// # use sam_runtime::sam;
/// # use sam_runtime::variants::named;
/// struct Net {
///     vars: VarMap,
///     norm: BatchNorm,
///     head: Linear,
/// }
///
/// #[sam(buffers = named(&net.vars, |name| name.contains("running")), replay(rng), shards(x; m = 4))]
/// fn loss(net: &Net, x: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
///     let brightness = rng.random_range(0.8..1.2);
///     net.head.forward(&net.norm.forward_t(&(x * brightness)?, true)?)?.sqr()?.mean_all()
/// }
/// # fn main() -> Result<()> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # let norm = candle_nn::batch_norm(3, 1e-5, vb.pp("norm"))?;
/// # let head = candle_nn::linear(3, 1, vb.pp("head"))?;
/// # let net = Net { vars, norm, head };
/// # let x = Tensor::randn(0f32, 1., (10, 3), &Device::Cpu)?;
/// let gradient = loss(&net, &x, &mut ChaCha8Rng::seed_from_u64(0))?.backward()?;
/// # assert!(gradient.get(net.head.weight()).is_some());
/// # Ok(())
/// # }
/// ```
///
/// # A configured `Sam`, and the plain function
///
/// ```
/// # use candle_core::{Device, Result, Tensor, Var};
/// # use sam_runtime::{Sam, sam};
/// #[sam(with = sam, plain = flat_loss)]
/// fn loss(w: &Var, sam: &Sam) -> Result<Tensor> {
///     w.sqr()?.sum_all()
/// }
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
/// let sam = Sam::new(1.0);
/// assert_eq!(loss(&w, &sam)?.to_scalar::<f64>()?, flat_loss(&w, &sam)?.to_scalar::<f64>()?);
/// # Ok(())
/// # }
/// ```
///
#[doc(inline)]
pub use sam_macros::sam;
pub use sam_macros::{Aux, LossOutput};

/// The example of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
