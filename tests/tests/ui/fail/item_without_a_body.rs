use candle_core::{Result, Tensor};
use sam_runtime::sam;

trait Model {
    #[sam(rho = 0.05)]
    fn loss(&self, x: &Tensor) -> Result<Tensor>;
}

fn main() {}
