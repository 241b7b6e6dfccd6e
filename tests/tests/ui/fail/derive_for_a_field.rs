use std::ops::Range;

use candle_core::Tensor;
use sam_runtime::{Aux, LossOutput};

#[derive(Aux)]
struct Metrics {
    logits: Tensor,
    rows: Range<usize>,
}

#[derive(LossOutput)]
struct Step {
    loss: f64,
    logits: Tensor,
}

#[derive(LossOutput)]
struct Unnamed {
    value: Tensor,
}

fn main() {}
