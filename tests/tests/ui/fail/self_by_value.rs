use candle_core::{Result, Tensor};
use sam_runtime::sam;

struct Net(Tensor);

impl Net {
    #[sam]
    fn loss(self) -> Result<Tensor> {
        self.0.sqr()?.mean_all()
    }

    #[sam]
    fn changed(mut self) -> Result<Tensor> {
        self.0 = self.0.sqr()?;
        self.0.mean_all()
    }

    #[sam]
    fn boxed(self: Box<Self>) -> Result<Tensor> {
        self.0.sqr()?.mean_all()
    }
}

fn main() {}
