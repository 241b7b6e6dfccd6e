#![deny(unused)]

use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn loss(x: &Tensor, step: usize) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(rho = rho, plain = plain_loss)]
fn with_copy(x: Tensor, mut scale: f64, rho: f64) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {
    let _ = (loss, with_copy, plain_loss);
}
