use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(with = x)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
