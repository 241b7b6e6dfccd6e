#![deny(unused)]

use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn loss(x: &Tensor, step: usize) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(rho = rho, plain = plain_loss)]
fn twice(x: Tensor, scale: f64, rho: f64) -> Result<Tensor> {
    let y = 1;
    x.sqr()?.mean_all()
}

fn main() {
    let _ = (loss, twice, plain_loss);
}
