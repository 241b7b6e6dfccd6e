use candle_core::{Result, Tensor};
use sam_runtime::sam;

struct Net {
    w: Tensor,
    mask: Option<Tensor>,
}

impl Net {
    #[sam]
    fn loss(&mut self) -> Result<Tensor> {
        let mask = self.mask.unwrap();
        self.w.mul(&mask)?.mean_all()
    }
}

fn main() {}
