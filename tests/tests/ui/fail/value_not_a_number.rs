use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = "0.05", p = 'p', adaptive = true)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
