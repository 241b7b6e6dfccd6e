use candle_core::{Result, Tensor};
use sam_runtime::sam;

struct Metrics {
    logits: Tensor,
}

#[sam]
fn loss(x: &Tensor) -> Result<(Tensor, Metrics)> {
    Ok((x.sqr()?.mean_all()?, Metrics { logits: x.clone() }))
}

#[sam]
fn text(x: &Tensor) -> Result<(Tensor, usize, Option<String>)> {
    Ok((x.sqr()?.mean_all()?, 1, None))
}

fn main() {}
