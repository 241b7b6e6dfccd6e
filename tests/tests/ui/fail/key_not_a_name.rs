use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(0.05)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(rho: 0.05)]
fn colon(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
