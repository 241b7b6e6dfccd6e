//! SGD and SAM compared: the binary `cifar`.

pub mod report;
pub mod run;
pub mod tutorial;
