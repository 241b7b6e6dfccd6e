//! How sharp a minimum is: curvature, sharpness in a ball, and slices of the loss.
//!
//! A [`Landscape`] is the loss as a function of the weights: the same loss function that the network is trained with, whether it
//! is annotated or not. Everything is measured with plain passes, on any device, and afterwards the weights are bitwise what
//! they were, also after an error or a panic.
//!
//! | what | how |
//! | --- | --- |
//! | the loss in the ball of a [`Sam`](crate::Sam): its maximum, its mean, m-sharpness | [`Landscape::sharpness`], [`Landscape::average_sharpness`], [`Landscape::m_sharpness`] |
//! | products with the Hessian, its largest eigenvalues, its trace, its spectral density | [`Landscape::hessian`] |
//! | a few of these numbers during a training, at a stated cost | [`Landscape::report`] |
//! | slices along one direction or two | [`Landscape::line`], [`Landscape::plane`], [`WeightVector`] |
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//! use sam_runtime::sharpness::Landscape;
//! use sam_runtime::{Sam, sam};
//!
//! #[sam(rho = 0.05)]
//! fn loss(w: &Var) -> Result<Tensor> {
//!     (w.sqr()? * Tensor::new(&[3f64, 1.], w.device())?)?.sum_all() // its Hessian is diag(6, 2)
//! }
//!
//! # fn main() -> Result<()> {
//! let w = Var::new(&[0f64, 1.], &Device::Cpu)?;
//! let mut landscape = Landscape::new([w.clone()], || loss(&w));
//! let found = landscape.sharpness(&Sam::new(0.1), 20)?;
//! assert!(found.rise() > 0.2);
//!
//! let mut hessian = landscape.hessian()?;
//! let spectrum = hessian.spectrum(10, 0)?;
//! assert!((spectrum.values()[0] - 6.0).abs() < 1e-4 && (spectrum.values()[1] - 2.0).abs() < 1e-4);
//! # Ok(())
//! # }
//! ```
//!
//! # Networks
//!
//! Layers of [`nn`](crate::nn) in training mode give every pass of one call the same dropout masks, and their running statistics
//! are put back; candle's batch normalization wants [`Landscape::buffers`]. To look at a network as it is tested, run the loss with
//! its layers in evaluation mode: running statistics then have no part in the slices, although the weights move.
//!
//! [`Landscape::over_batches`] is for a loss of more samples than fit into one pass.

mod ball;
mod hessian;
mod lanczos;
mod landscape;
mod report;
mod session;
mod slices;
mod weight_vector;

pub use ball::{Estimate, Worst};
pub use hessian::{Eigenpair, Hessian, HessianMethod};
pub use lanczos::Spectrum;
pub use landscape::Landscape;
pub use report::Report;
pub use weight_vector::WeightVector;
