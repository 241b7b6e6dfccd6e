use candle_core::{Result, Tensor};
use sam_runtime::sam;

struct Rng(f64);

#[sam(replay(rng))]
fn exclusive(x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    x.affine(1., rng.0)?.mean_all()
}

#[sam(replay(rng))]
fn shared(x: &Tensor, rng: &Rng) -> Result<Tensor> {
    x.affine(1., rng.0)?.mean_all()
}

fn main() {}
