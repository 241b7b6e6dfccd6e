use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(replay(rng))]
fn loss(x: &Tensor, seed: &mut u64) -> Result<Tensor> {
    x.affine(1., *seed as f64)?.mean_all()
}

struct Net;

impl Net {
    #[sam(replay(self))]
    fn loss(&self, x: &Tensor) -> Result<Tensor> {
        x.sqr()?.mean_all()
    }
}

fn main() {}
