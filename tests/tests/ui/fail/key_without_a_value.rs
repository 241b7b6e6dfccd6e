use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho)]
fn radius(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(p = , adaptive)]
fn norm(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(vars(x))]
fn vars(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
