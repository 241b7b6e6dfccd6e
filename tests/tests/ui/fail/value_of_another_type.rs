use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = step)]
fn radius(x: &Tensor, step: usize) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(p = norm)]
fn norm(x: &Tensor, norm: &str) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(vars = x)]
fn vars(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(shards(x; m = m))]
fn shard(x: &Tensor, m: u32) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
