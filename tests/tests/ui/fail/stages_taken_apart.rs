use candle_core::Tensor;
use sam_runtime::Ascent;

fn gradient(ascent: Ascent<'_, Tensor>) {
    drop(ascent.found);
}

fn main() {}
