//! The paper's tables: what has been run, what is missing, and the numbers beside the paper's.
//!
//! ```text
//! OUT/full/table1.md .json .png                            what the report writes
//! OUT/full/table1/wrn-28-10/basic/cifar10/sam/seed-0/      one run: log, events, checkpoint, result.json
//! OUT/epochs=0.1,images=0.1/table1/..                      the same, scaled
//! ```

mod chart;
mod report;
mod runs;

pub use crate::io::lease::{Holder, Lock, Take};
pub use report::{Numbers, Row, Written, number, write};
pub use runs::{Ended, Found, Run, Settings, Unusable};
