use std::ops::Range;

use candle_core::Tensor;
use sam_runtime::{Aux, Output};

#[derive(Aux)]
struct Metrics {
    logits: Tensor,
    rows: Range<usize>,
}

#[derive(Output)]
struct Step {
    loss: f64,
    logits: Tensor,
}

#[derive(Output)]
struct Unnamed {
    value: Tensor,
}

fn main() {}
