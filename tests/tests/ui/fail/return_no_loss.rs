use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
fn number(x: &Tensor) -> Result<f64> {
    x.sqr()?.mean_all()?.to_scalar()
}

#[sam]
fn last((x, hits): (&Tensor, usize)) -> Result<(usize, Tensor)> {
    Ok((hits, x.sqr()?.mean_all()?))
}

#[sam(shards(x; m = 32))]
fn in_shards(x: &Tensor) -> Result<Vec<Tensor>> {
    Ok(vec![x.sqr()?.mean_all()?])
}

fn main() {}
