use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(plain)]
fn alone(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(plain = "plain_loss")]
fn quoted(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(plain = eval::loss)]
fn path(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
