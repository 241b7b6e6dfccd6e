use candle_core::{Result, Tensor, Var};
use candle_nn::VarMap;
use sam_runtime::sam;

#[sam(vars = varmap)]
fn loss(w: &Var, varmap: &VarMap) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

fn main() {}
