//! cuDNN's graph interface: convolutions, and attention.

pub(super) mod attention;
mod attention_graph;
mod backend;
pub(super) mod convolution;
mod convolution_graph;
mod nodes;
mod plan;
pub(super) mod plans;
