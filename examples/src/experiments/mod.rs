//! The experiments: SGD and SAM compared, the variants of SAM, the paper's tables, the Hessian and the landscape of the loss.

pub mod compare;
pub mod figure2;
pub mod hessian;
pub mod landscape;
pub mod paper;
pub mod variants;
