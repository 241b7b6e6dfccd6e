use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x, z; m = 32))]
fn loss(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.sub(y)?.sqr()?.mean_all()
}

fn main() {}
