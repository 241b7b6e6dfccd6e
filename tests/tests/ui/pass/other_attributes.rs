use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_flat, assert_sharp, three_four};

/// Above and below.
#[inline(never)]
#[sam(rho = 0.5, plain = plain_loss)]
#[must_use = "a loss"]
#[track_caller]
#[doc = "Below."]
#[allow(clippy::ptr_arg)]
fn loss(#[expect(unused_variables)] name: &str, w: &Var, #[allow(unused_mut)] mut scale: f64) -> Result<Tensor> {
    //! And inside.
    #![expect(unused_labels)]
    'unused: { w.sqr()?.sum_all()? * scale }
}

#[deprecated(note = "call `loss`")]
#[sam(rho = 0.5)]
#[cold]
fn old_loss(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[test]
fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&loss("", &w, 2.)?, &w, 2.);
    assert_flat(&plain_loss("", &w, 2.)?, &w, 2.);
    #[expect(deprecated)]
    let sharp = old_loss(&w)?;
    assert_sharp(&sharp, &w, 1.);
    Ok(())
}
