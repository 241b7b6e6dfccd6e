use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

#[sam(gsam = -0.4)]
fn gsam(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(wsam = 1.0)]
fn wsam(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(hardest(x; k = 0))]
fn hardest(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum(1)
}

fn main() {}
