use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = -0.05)]
fn radius(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(p = 0.5)]
fn norm(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(adaptive = -0.01)]
fn eta(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(shards(x; m = 0))]
fn shard(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
