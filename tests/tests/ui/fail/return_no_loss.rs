use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn number(x: &Tensor) -> Result<f64> {
    x.sqr()?.mean_all()?.to_scalar()
}

#[sam]
fn last(x: &Tensor) -> Result<(usize, Tensor)> {
    Ok((x.dim(0)?, x.sqr()?.mean_all()?))
}

fn main() {}
