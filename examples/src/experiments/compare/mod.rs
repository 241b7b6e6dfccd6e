//! SGD and SAM compared on one network: the binary `cifar`.

pub mod curves;
pub mod report;
pub mod run;
