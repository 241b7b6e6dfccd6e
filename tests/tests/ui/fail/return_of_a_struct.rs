use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;

struct Step {
    loss: Tensor,
    hits: usize,
}

#[sam]
fn loss(w: &Var) -> Result<Step> {
    Ok(Step { loss: w.sqr()?.sum_all()?, hits: 1 })
}

fn main() {}
