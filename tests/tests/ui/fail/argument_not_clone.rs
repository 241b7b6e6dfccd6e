use candle_core::{Result, Tensor};
use sam_runtime::sam;

struct Batch {
    x: Tensor,
}

struct Scale(f64);

#[sam]
fn loss(batch: Batch) -> Result<Tensor> {
    batch.x.sqr()?.mean_all()
}

#[sam]
fn taken_apart((x, scale): (Tensor, Scale)) -> Result<Tensor> {
    x.affine(scale.0, 0.)?.sqr()?.mean_all()
}

#[sam]
fn generic<F: Fn(&Tensor) -> Result<Tensor>>(x: &Tensor, f: F) -> Result<Tensor> {
    f(x)?.mean_all()
}

fn main() {}
