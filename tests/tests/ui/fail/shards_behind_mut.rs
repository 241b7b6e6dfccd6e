use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x; m = 32))]
fn loss(x: &mut Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
