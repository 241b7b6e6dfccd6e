use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x, label; m = 32))]
fn loss(x: &Tensor, label: &f64) -> Result<Tensor> {
    x.affine(1., *label)?.sqr()?.mean_all()
}

#[sam(shards(x, label; m = 32))]
fn by_value(x: &Tensor, label: f64) -> Result<Tensor> {
    x.affine(1., label)?.sqr()?.mean_all()
}

fn main() {}
