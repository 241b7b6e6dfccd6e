//! Sharpness-Aware Minimization (Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, <https://arxiv.org/abs/2010.01412>) for
//! candle: one attribute on a loss function.
//!
//! The paper turns a loss L into another loss, L<sup>SAM</sup>(w) = max L(w + ε) over ‖ε‖ₚ ≤ ρ. So does the attribute:
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{Linear, Module, Optimizer, VarBuilder, VarMap};
//! use sam_runtime::optim::{ParamsSgd, Sgd};
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
//! let mut opt = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
//! # let batch = || Ok::<_, candle_core::Error>((
//! #     Tensor::randn(0f32, 1., (8, 4), &Device::Cpu)?,
//! #     Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &Device::Cpu)?,
//! # ));
//! # let batches = [batch()?, batch()?];
//! for (x, y) in batches {
//!     opt.backward_step(&loss(&model, &x, &y)?)?; // not a character of the loop has changed
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Same name, same signature, same value. **The annotated function returns what it returned before; only its gradient is
//! SAM's**: `loss(..)?.backward()?` gives ∇L at w + ε̂(w). So every optimizer, gradient clipping, accumulation and
//! learning rate schedule that is written for candle works unchanged.
//!
//! # What a step promises
//!
//! - The value, and every [auxiliary value](Aux), is that of the plain function at w, bitwise on the CPU. (Of the
//!   [variants] with a single pass, at w + ε̂.) It is a value of its own: also where the function returns a variable or a view
//!   of one, later changes of the variable do not reach it.
//! - The gradient is ∇L(w + ε̂), times whatever is done to the loss afterwards, for every variable that the loss depends on.
//! - The weights are bitwise what they were, after `Ok`, `Err`, `?`, an early `return` and a panic. They are not
//!   copied: buffers change places. After an error the running statistics of [`nn::BatchNorm`], and all that `buffers` lists, are
//!   what they were before the step as well.
//! - One graph is alive at a time; a step's peak memory is that of a plain step and one copy of the weights. [Variants](variants)
//!   that remember or mix gradients say what they keep in addition.
//! - A zero gradient gives ε̂ = 0. A loss or a gradient that is not finite is an [`Error`] that says where, before any
//!   weight is touched (on the CPU; on other devices values are not checked, and ε̂ = 0). Steps without a perturbation are
//!   checked in the same way.
//! - The same bits for any number of threads, and for every order in which a map hands out its variables.
//!
//! What would not be a sharpness-aware gradient is an error that says what to do: see [`Error`].
//!
//! # Graphs
//!
//! Each pass has to make its graph itself. A tensor that was computed from variables outside of the loss function, or in an
//! earlier pass, stays where it was when the weights move: logits or features from outside, a weight derived once, a cached
//! hidden state. A loss whose gradient goes through one is refused ([`Error::StaleGraph`]); compute it inside, or `detach()`
//! it. Views of variables move with them and may be made outside. So may a loss with a sharpness-aware gradient, which is
//! that gradient everywhere.
//!
//! An operation without a backward pass cuts the graph, and candle does not say so: `candle_nn`'s `layer_norm`, `rms_norm`,
//! `softmax_last_dim`, `rope` and `sdpa` are such. What lies before it is neither perturbed nor trained. With `vars` a
//! variable that is listed and gets no gradient is an error ([`Error::NoGradient`]); without it nobody knows that the variable
//! exists.
//!
//! Backward passes may run inside backward passes, as in gradient checkpointing, and several at once through one graph. (On
//! CUDA two that are nested on one thread must not share layers of [`nn`].)
//!
//! # Threads
//!
//! Trainings may run side by side, on plain threads, on tokio's blocking pool, and on one rayon pool (`spawn`, `scope`,
//! `join`, parallel iterators): each ends with the bits that it has alone, provided that each has a model and an optimizer of
//! its own, and a [`Sam`] of its own if that remembers something. Steps that meet on the same variables are refused
//! ([`Error::Displaced`]), and so is a step of [`Sgd`](optim::Sgd) on variables that hold w + ε̂ ([`Error::Moved`]).
//!
//! The passes of a step are told apart on the thread that runs the loss function. On threads that the loss function uses
//! itself they are not: there [`Pass::current`] is [`Pass::Plain`], dropout draws other masks in each pass, and batch
//! normalisation moves its statistics in both. [`Context`] carries the pass to them.
//!
//! An annotated function that is called inside another one is a part of that loss, and runs plainly. On a thread of a rayon
//! pool it cannot be told from the step of another training, which rayon may give to a thread that waits inside a pass; there
//! call it as [`plain`]`(|| ..)`, or the outer step is an error ([`Error::Nested`]).
//!
//! # State and randomness
//!
//! A step runs the loss function twice. The layers of [`nn`] know it: their batch normalisation takes its statistics from
//! the first pass alone, their dropout draws the same masks in both. For candle's own batch normalization pass
//! `buffers = ..`.
//! Candle's own dropout, and `Tensor::randn` on the CPU, cannot be replayed: use [`nn::Dropout`]. A seeded generator of
//! your own is an argument, `rng: &mut StdRng`, and `replay(rng)` makes both passes draw the same numbers from it; see
//! [`argument`] for what else can be replayed. [`Pass::current`] tells which pass is running. [`plain`] runs annotated
//! functions without SAM.
//!
//! # Variants
//!
//! What the literature has made of SAM differs in a few pieces: which direction is climbed, in which metric, how far, when,
//! on which examples, and what the two gradients come to. A [`Sam`] is put together from them, or made by the name of a
//! publication; [`variants`] has the table. A loss function takes one as an argument:
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor, Var};
//! use sam_runtime::variants::{Combination, Direction};
//! use sam_runtime::{Sam, sam};
//!
//! #[sam(with = sam)]
//! fn loss(sam: &Sam, w: &Var, x: &Tensor) -> Result<Tensor> {
//!     x.broadcast_mul(w)?.sqr()?.mean_all()
//! }
//!
//! #[sam(rho = 0.1, gsam = 0.4)] // what needs no memory is a key as well
//! fn gsam_loss(w: &Var, x: &Tensor) -> Result<Tensor> {
//!     x.broadcast_mul(w)?.sqr()?.mean_all()
//! }
//!
//! # fn main() -> Result<()> {
//! # let (w, x) = (Var::ones(3, DType::F32, &Device::Cpu)?, Tensor::randn(0f32, 1., (8, 3), &Device::Cpu)?);
//! let look_sam = Sam::look_sam();
//! loss(&look_sam, &w, &x)?;
//! let mine = Sam::new(0.1).direction(Direction::Ema { theta: 0.5 }).combination(Combination::Rescaled).with_diagnostics();
//! loss(&mine, &w, &x)?;
//! println!("{:?} at w, {:?} above", mine.last_stats().unwrap().loss()?, mine.last_stats().unwrap().perturbed_loss()?);
//! # gsam_loss(&w, &x)?;
//! # Ok(())
//! # }
//! ```
//!
//! # CUDA
//!
//! With the feature `cudnn`, or `cuda` alone, the whole step stays on the device: SAM's arithmetic and [`Sgd`](optim::Sgd) take
//! one launch for all variables, the layers of [`nn`] have kernels of their own around cuDNN's convolutions, and the host waits
//! for nothing. So nobody looks at numbers either: a gradient that is not finite gives ε̂ = 0 and is counted,
//! [`skipped_step_count`]. None of this has run on a GPU yet; the kernels are tested on the processor, see the README.
//!
//! # Without the attribute
//!
//! [`Sam::loss`] takes a closure. The four stages that the attribute writes are public, and each is a type of its own, so
//! that no other order compiles: [`Sam::ascend`], [`Ascent::perturb`], [`Perturbed::descend`], [`Descent::restore`].
//!
//! # Limits
//!
//! - While the second pass runs the variables hold w + ε̂: another thread that reads them then sees that.
//! - A loss function should be a function: what it does in addition to computing a value it does twice.
//! - Optimizers of other crates write to variables without asking. A step that one takes between the two passes is undone
//!   when the weights return.
//! - A loss keeps its gradient alive, which is as large as the weights. Keep `loss.detach()` or its number for a curve.
//! - Two optimizers that take steps on one plain loss see what the other has moved, as in PyTorch.
//! - Variables in f16 or bf16 round w + ε̂ to their type. Where more than half of ε̂ is lost the step is an error: keep weights
//!   in f32.

#[doc(hidden)]
#[path = "macro_support.rs"]
pub mod __private;
mod autograd;
mod core;
mod kernels;
pub mod nn;
pub mod optim;
mod sam;
mod step;
pub mod variants;

pub use crate::core::atomic_file::write_atomically;
pub use crate::core::error::Error;
pub use crate::core::names::name_variables;
pub use crate::core::pass::{Context, Pass, plain};
pub use kernels::skipped_step_count;
pub use sam::Sam;
pub use sam::stats::StepStats;
pub use step::batch_selection::BatchSelection;
pub use step::output::{Aux, LossOutput, Plain};
pub use step::shards::{Shard, Shards, SplitBatch};
pub use step::shares::Weights;
pub use step::stages::{Ascent, Descent, Perturbed};
pub use variants::FunctionalSam;

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
/// A model as the receiver, an error type of one's own, and the logits beside the loss:
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
/// The statistics of a stock batch normalisation, a generator, and m-sharpness:
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
/// A configured [`Sam`] from outside, and the plain function beside:
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
