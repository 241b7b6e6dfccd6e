use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
async fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
