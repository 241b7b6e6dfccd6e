use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(replay = rng)]
fn value(x: &Tensor, rng: &mut u64) -> Result<Tensor> {
    x.affine(1., *rng as f64)?.mean_all()
}

#[sam(replay())]
fn empty(x: &Tensor, rng: &mut u64) -> Result<Tensor> {
    x.affine(1., *rng as f64)?.mean_all()
}

#[sam(replay(&mut rng))]
fn reference(x: &Tensor, rng: &mut u64) -> Result<Tensor> {
    x.affine(1., *rng as f64)?.mean_all()
}

fn main() {}
