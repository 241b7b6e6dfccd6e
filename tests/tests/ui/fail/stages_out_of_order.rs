use candle_core::{Result, Tensor};
use sam_runtime::Sam;

fn no_ascent(sam: &Sam) {
    sam.perturb();
}

fn no_perturbation(sam: &Sam, x: &Tensor) -> Result<Tensor> {
    let mut loss = |_| x.sqr()?.mean_all();
    sam.ascend(&mut loss)?.descend(&mut loss)?.restore()
}

fn no_descent(sam: &Sam, x: &Tensor) -> Result<Tensor> {
    let mut loss = |_| x.sqr()?.mean_all();
    sam.ascend(&mut loss)?.perturb()?.restore()
}

fn main() {}
