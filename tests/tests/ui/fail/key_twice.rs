use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = 0.05, p = 2, rho = 0.1)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
