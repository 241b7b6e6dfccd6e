use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = 0.05)]
#[sam(p = 1)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
