use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(replay(x), shards(x, y, y; m = 32))]
fn loss(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.sub(y)?.sqr()?.mean_all()
}

fn main() {}
