//! The engine of gradients, on top of candle's.
//!
//! ```text
//! gradient        ∇L of a loss, as buffers of its own
//! fused_op        an operation with its own backward pass
//! join_op         operations of candle's graph with one to three inputs
//! slots           where gradients wait for their node
//! tape            fused operations in candle's graph, and without it
//! fixed_gradient  a loss whose gradient is given
//! stale           whether a graph was made in the pass whose backward pass uses it
//! ```
//!
//! `docs/architecture.md` has a picture, and lists what all this relies on in candle.

pub(crate) mod fixed_gradient;
pub(crate) mod fused_op;
pub(crate) mod gradient;
mod join_op;
mod slots;
pub(crate) mod stale;
pub(crate) mod tape;
