use candle_core::{Result, Tensor};
use sam_runtime::sam;

trait Model {
    fn loss(&self) -> Result<Tensor>;
}

impl Model for Tensor {
    #[sam(plain = plain_loss)]
    fn loss(&self) -> Result<Tensor> {
        self.sqr()?.mean_all()
    }
}

fn main() {}
