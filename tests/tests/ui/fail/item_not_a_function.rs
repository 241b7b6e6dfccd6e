use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
struct Loss;

#[sam(rho = 0.05)]
impl Loss {
    fn loss(x: &Tensor) -> Result<Tensor> {
        x.sqr()?.mean_all()
    }
}

fn main() {}
