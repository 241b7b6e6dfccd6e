use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

#[sam(gsam)]
fn gsam(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(stable = true, second_order(2), unnormalized = 1)]
fn flags(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(hardest(x; m = 3))]
fn hardest(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum(1)
}

#[sam(micro_batches(x))]
fn micro_batches(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum_all()
}

#[sam(sharpest = x)]
fn sharpest(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum(1)
}

fn main() {}
