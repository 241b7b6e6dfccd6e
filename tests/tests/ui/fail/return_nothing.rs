use candle_core::Tensor;
use sam_runtime::sam;

#[sam]
fn loss(x: &Tensor) {
    x.sqr().unwrap();
}

fn main() {}
