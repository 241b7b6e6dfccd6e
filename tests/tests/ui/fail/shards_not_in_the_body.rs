use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

#[sam(shards(x; m = 32))]
fn loss(w: &Var, x: &Tensor) -> Result<Tensor> {
    println!("{x}");
    w.sqr()?.sum_all()
}

#[sam(hardest(x; k = 32, reduction = sum))]
fn losses(w: &Var, x: &Tensor) -> Result<Tensor> {
    w.mul(x)
}

#[sam(eta = 0.1)]
fn adaptive(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

fn main() {}
