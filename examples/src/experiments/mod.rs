//! The experiments: SGD and SAM compared, the variants of SAM, the paper's tables, the Hessian.

pub mod compare;
pub mod hessian;
pub mod paper;
pub mod variants;
