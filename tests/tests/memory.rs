//! A step holds one graph at a time and one copy of the weights: its peak is that of a plain step plus that copy.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_runtime::{plain, sam};
use sam_tests::counting::{Counting, peak_of};
use sam_tests::{copy, is_for_the_cpu, tensor};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 192;

#[sam]
fn loss(layers: &[Var], x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut x = x.clone();
    for layer in layers {
        x = x.matmul(layer)?.tanh()?;
    }
    Ok((x.sqr()?.mean_all()?, x))
}

/// The most bytes that a step adds, its backward pass included.
fn peak(step: impl Fn() -> Result<(Tensor, Tensor)>) -> usize {
    peak_of(|| {
        let (loss, _logits) = step().unwrap();
        let _grads = loss.backward().unwrap();
    })
}

#[test]
fn is_that_of_a_plain_step_plus_one_copy_of_the_weights() {
    if is_for_the_cpu("the memory is the host's") {
        return;
    }
    let layers: Vec<Var> = (0..24).map(|i| copy(&tensor(&[WIDTH, WIDTH], DType::F32, i))).collect();
    let weights = 24 * WIDTH * WIDTH * 4;
    // Where the activations outweigh the weights, and where it is the other way round.
    for rows in [16, 64, 256, 1024] {
        let x = Tensor::ones((rows, WIDTH), DType::F32, &Device::Cpu).unwrap();
        peak(|| loss(&layers, &x)); // threads and their buffers come into being
        let flat = peak(|| plain(|| loss(&layers, &x)));
        let sharp = peak(|| loss(&layers, &x));
        let allowed = (flat + weights) as f64 * 1.05;
        assert!((sharp as f64) < allowed, "{rows} rows: {sharp} bytes, {flat} plain, {weights} weights");
    }
}
