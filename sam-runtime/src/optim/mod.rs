//! The optimizer of the paper's recipe, which `candle_nn` lacks.

mod sgd;

pub use sgd::{ParamsSgd, Sgd};
