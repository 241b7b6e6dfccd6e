use candle_core::{Result, Tensor};
use sam_runtime::{Sam, sam};

#[sam(with = config, rho = 0.05, p = 2, adaptive, vars = [], buffers = [])]
fn loss(config: &Sam, x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
