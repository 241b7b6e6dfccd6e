use candle_core::{Result, Tensor};
use sam_runtime::{Sam, sam};

#[sam(with = config)]
fn loss(config: Sam, x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
