//! The paper's tables: which runs have finished, which are missing, and our numbers compared with the paper's.
//!
//! ```text
//! OUT/full/table1.md .json .png                            what the report writes
//! OUT/full/second-order-curves.png                         the same, of a table with quantities that change
//! OUT/full/figure3-hessian.md .json .png                   the same, of a table whose runs keep weights
//! OUT/full/table1/wrn-28-10/basic/cifar10/sam/seed-0/      one run: log, events, checkpoint, result.json
//! OUT/epochs=0.1,images=0.1/table1/..                      the same, scaled down
//! ```

mod chart;
mod curves;
mod kept;
mod numbers;
mod report;
mod runs;

pub use kept::{Measuring, count, landscape, measure};
pub use numbers::{Numbers, Row, number};
pub use report::{Written, write};
pub use runs::{Ended, Found, Run, Settings, Unusable};
