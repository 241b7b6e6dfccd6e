use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(rho = config.rho)]
fn radius(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

struct Net {
    rho: f64,
}

impl Net {
    #[sam(rho = self.rho)]
    fn loss(x: &Tensor) -> Result<Tensor> {
        x.sqr()?.mean_all()
    }
}

fn main() {}
