use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(all_reduce = ranks)]
fn number(x: &Tensor, ranks: usize) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(all_reduce = world)]
fn without_an_argument(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
