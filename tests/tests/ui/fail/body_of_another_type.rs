use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn loss(x: &Tensor) -> Result<Tensor> {
    let y: f64 = x.sqr()?;
    y
}

#[sam]
fn arguments(x: &Tensor, y: Tensor) -> Result<Tensor> {
    x.sub(y)?.square()?.mean_all()
}

fn main() {}
