use candle_core::{Result, Tensor};
use sam_runtime::sam;

fn plain_loss() {}

#[sam(plain = plain_loss)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
