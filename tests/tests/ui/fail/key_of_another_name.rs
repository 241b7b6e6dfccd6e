use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

#[sam(unnormalised)]
fn british(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(parts(x; m = 32), params = [w.clone()])]
fn other_libraries(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum_all()
}

fn main() {}
