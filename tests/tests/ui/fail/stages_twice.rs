use candle_core::{Result, Tensor};
use sam_runtime::Sam;

fn perturbed_twice(sam: &Sam, x: &Tensor) -> Result<Tensor> {
    let mut loss = |_| x.sqr()?.mean_all();
    let ascent = sam.ascend(&mut loss)?;
    let first = ascent.perturb()?;
    let second = ascent.perturb()?;
    first.descend(&mut loss)?;
    second.descend(&mut loss)?.restore()
}

fn main() {}
