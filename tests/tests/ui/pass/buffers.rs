//! Variables that keep the value of the first pass.

use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_sharp, three_four};

/// What a batch normalization does: it keeps a statistic of what it sees, and has no gradient for it.
fn observe(mean: &Var, w: &Var) -> Result<()> {
    mean.set(&w.detach().mean_all()?)
}

#[sam(rho = 0.5, buffers = [mean.clone()])]
fn loss(w: &Var, mean: &Var) -> Result<Tensor> {
    observe(mean, w)?;
    w.sqr()?.sum_all()
}

#[sam(rho = 0.5, vars = [w.clone()], buffers = means.iter().cloned())]
fn with_vars(w: &Var, means: &[Var]) -> Result<Tensor> {
    for mean in means {
        observe(mean, w)?;
    }
    w.sqr()?.sum_all()
}

#[sam(with = sam)]
fn configured(sam: &Sam, w: &Var, mean: &Var) -> Result<Tensor> {
    observe(mean, w)?;
    w.sqr()?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let zero = || Var::zeros((), w.dtype(), w.device());
    // The mean of w, not that of w + ε.
    let mean = zero()?;
    assert_sharp(&loss(&w, &mean)?, &w, 1.);
    assert_eq!(mean.to_scalar::<f64>()?, 3.5);
    let means = [zero()?, zero()?];
    assert_sharp(&with_vars(&w, &means)?, &w, 1.);
    for mean in &means {
        assert_eq!(mean.to_scalar::<f64>()?, 3.5);
    }
    let mean = zero()?;
    assert_sharp(&configured(&Sam::new(0.5).buffers([mean.clone()]), &w, &mean)?, &w, 1.);
    assert_eq!(mean.to_scalar::<f64>()?, 3.5);
    Ok(())
}
