//! Gradients: of a loss, of layers that pass theirs on without candle, and of a loss whose gradient is given.

pub(crate) mod gradient;
pub(crate) mod stale;
pub(crate) mod tape;
