use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(crate = sam_runtime)]
fn relative(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(crate = "::sam_runtime")]
fn quoted(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
