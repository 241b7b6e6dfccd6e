use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

#[sam(vars = vars)]
fn loss(vars: Vec<Var>, x: &Tensor) -> Result<Tensor> {
    x.sub(&vars[0])?.sqr()?.mean_all()
}

fn main() {}
