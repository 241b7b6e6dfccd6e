use candle_core::Tensor;
use sam_runtime::{Aux, LossOutput};

#[derive(Aux)]
union Bits {
    float: f32,
    int: u32,
}

#[derive(Aux)]
#[aux(join)]
struct Count(usize);

#[derive(LossOutput)]
enum Step {
    First(Tensor),
}

#[derive(LossOutput)]
struct Nothing;

fn main() {}
