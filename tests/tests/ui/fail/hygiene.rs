use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(shards(x; m = 32), replay(rng))]
fn loss(x: Tensor, y: Tensor, rng: &mut u64) -> Result<Tensor> {
    let _ = (__sam, __sam_size, __sam_held_y, __sam_held_rng, __sam_shards, __sam_shard, __sam_pass);
    __sam_body(x, y, rng)
}

fn main() {}
