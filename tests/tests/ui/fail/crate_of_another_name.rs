use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(crate = ::sam)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
