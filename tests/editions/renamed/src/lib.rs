//! A crate that knows the runtime and candle by other names.

use sharpness::{sam, Aux, LossOutput};
use tensors::{Device, Result, Tensor, Var};

#[derive(Aux)]
#[aux(crate = ::sharpness)]
struct Metrics {
    squares: Tensor,
    calls: usize,
}

#[derive(LossOutput)]
#[aux(crate = ::sharpness)]
struct Step {
    loss: Tensor,
    metrics: Metrics,
}

#[sam(rho = 0.5, shards(x; m = 1), replay(calls), crate = ::sharpness)]
fn loss(w: &Var, x: &Tensor, calls: &mut usize) -> Result<Step> {
    *calls += 1;
    let squares = w.sqr()?;
    let loss = squares.sum_all()?.mul(&x.mean_all()?)?;
    Ok(Step { loss, metrics: Metrics { squares, calls: *calls } })
}

#[sam(with = sam, crate = ::sharpness)]
fn with(sam: &sharpness::Sam, w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

/// The gradients at w = (3, 4), w + ε̂ = (3.3, 4.4).
///
/// # Panics
///
/// If a step fails.
#[must_use]
pub fn gradients() -> Vec<f64> {
    run().expect("two steps")
}

fn run() -> Result<Vec<f64>> {
    let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
    let x = Tensor::ones((2, 1), w.dtype(), w.device())?;
    let Step { loss, metrics } = loss(&w, &x, &mut 0)?;
    assert_eq!((metrics.squares.dims(), metrics.calls), ([4].as_slice(), 3));
    let mut gradients = Vec::new();
    for loss in [loss, with(&sharpness::Sam::new(0.5), &w)?] {
        let found = loss.backward()?.get(&w).expect("a gradient").to_vec1::<f64>()?;
        gradients.extend(found.iter().map(|g| (g * 1e9).round() / 1e9));
    }
    Ok(gradients)
}
