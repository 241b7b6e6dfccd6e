use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x; m = 32), replay(rng))]
fn loss(x: Tensor, y: Tensor, rng: &mut u64) -> Result<Tensor> {
    let _ = (sam, m, held_y, held_rng, shards, shard, pass);
    body(x, y, rng)
}

fn main() {}
