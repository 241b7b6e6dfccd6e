//! What is measured at the weights that the runs of a table keep: landscapes (Figure 1), and Hessians (Figure 3).

mod chart;
mod hessians;
mod landscapes;

pub(super) use hessians::write;
pub use hessians::{Measuring, count, measure};
pub use landscapes::landscape;
