use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn loss(x: &Tensor) -> Result<Tensor> {
    let y = x.
}

fn main() {}
