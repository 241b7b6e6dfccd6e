use candle_core::Tensor;
use sam_runtime::Ascent;

fn plain(ascent: Ascent<Tensor>) -> Tensor {
    let Ascent { output, .. } = ascent;
    output
}

fn main() {}
