#![deny(dead_code)]

use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(plain = plain_loss)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {
    let _ = loss;
}
