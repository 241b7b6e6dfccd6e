use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x; m = 32), replay(rng))]
fn loss(x: &Tensor, mut y: Tensor, rng: &mut u64) -> Result<Tensor> {
    y = y.affine(held_rng as f64, sam.rho)?;
    x.sub(&held_y)?.affine(m as f64, pass as f64)?;
    body(pass, shard, shards)
}

fn main() {}
