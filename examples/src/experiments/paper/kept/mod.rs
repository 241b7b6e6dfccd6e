//! What is measured at the weights that the runs of a table keep: landscapes (Figure 1), and Hessians (Figure 3).

mod chart;
mod hessians;
mod landscapes;
mod report;

pub use hessians::{Measuring, count, measure};
pub use landscapes::landscape;
pub(super) use report::write;
