use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

/// The body uses its arguments up and changes them; the second pass has them as they came.
#[sam(rho = 0.5)]
fn loss(mut w: Tensor, factors: Vec<f64>, mut scale: f64, mut other: &Var) -> Result<Tensor> {
    for factor in factors {
        scale *= factor;
    }
    w = (w * scale)?;
    if scale > 1. {
        other = Box::leak(Box::new(three_four()));
    }
    w.mul(other)?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let sharp = loss(w.as_tensor().clone(), vec![0.5, 2.], 1., &w)?;
    assert_sharp(&sharp, &w, 1.);
    Ok(())
}
