use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x))]
fn none(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(shards(x, m = 32))]
fn comma(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(shards = 32)]
fn value(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
