#![allow(clippy::needless_pass_by_value, reason = "one can write it")]

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_flat, assert_sharp, three_four};
use sam_tests_attributes::{as_it_is, as_text};

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

/// Attribute macros of others see the expansion, or what it is made of.
#[sam(rho = 0.5, plain = plain_below)]
#[tracing::instrument(skip_all)]
fn traced_below(w: &Var, x: Tensor, scale: f64) -> Result<Tensor> {
    w.sqr()?.sum_all()?.mul(&x)? * scale
}

#[tracing::instrument(skip(w, x), err)]
#[sam(rho = 0.5, plain = plain_above)]
fn traced_above(w: &Var, x: Tensor, scale: f64) -> Result<Tensor> {
    w.sqr()?.sum_all()?.mul(&x)? * scale
}

#[sam(rho = 0.5, vars = [w.clone()], replay(count), shards(x, y; m = 1), plain = plain_as_it_is)]
#[as_it_is]
fn as_it_is_below(w: &Var, x: &Tensor, y: Tensor, count: &mut usize) -> Result<(Tensor, usize)> {
    *count += 1;
    Ok((w.sqr()?.sum_all()?.mul(&(x * y)?.mean_all()?)?, 1))
}

/// What goes through text has no hygiene.
#[sam(rho = 0.5, vars = [w.clone()], replay(count), shards(x, y; m = 1), plain = plain_as_text)]
#[as_text]
fn as_text_below(w: &Var, x: &Tensor, y: Tensor, count: &mut usize) -> Result<(Tensor, usize)> {
    *count += 1;
    Ok((w.sqr()?.sum_all()?.mul(&(x * y)?.mean_all()?)?, 1))
}

#[as_text]
#[as_it_is]
#[sam(rho = 0.5)]
fn as_text_above(w: &Var, x: Tensor, scale: std::cell::RefCell<f64>) -> Result<Tensor> {
    w.sqr()?.sum_all()?.mul(&x)? * *scale.borrow_mut()
}

#[cfg_attr(all(), sam(rho = 0.5), as_it_is)]
fn conditional(w: &Var, scale: f64) -> Result<Tensor> {
    w.sqr()?.sum_all()? * scale
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&loss("", &w, 2.)?, &w, 2.);
    assert_flat(&plain_loss("", &w, 2.)?, &w, 2.);
    #[expect(deprecated)]
    let sharp = old_loss(&w)?;
    assert_sharp(&sharp, &w, 1.);

    let one = Tensor::ones((), w.dtype(), w.device())?;
    assert_sharp(&traced_below(&w, one.clone(), 2.)?, &w, 2.);
    assert_flat(&plain_below(&w, one.clone(), 2.)?, &w, 2.);
    assert_sharp(&traced_above(&w, one.clone(), 2.)?, &w, 2.);
    assert_flat(&plain_above(&w, one.clone(), 2.)?, &w, 2.);
    let (x, mut count) = (Tensor::ones((2, 1), w.dtype(), w.device())?, 0);
    assert_sharp(&as_it_is_below(&w, &x, x.clone(), &mut count)?.0, &w, 1.);
    assert_sharp(&as_text_below(&w, &x, x.clone(), &mut count)?.0, &w, 1.);
    assert_eq!(count, 4);
    assert_flat(&plain_as_it_is(&w, &x, x.clone(), &mut count)?.0, &w, 1.);
    assert_flat(&plain_as_text(&w, &x, x.clone(), &mut count)?.0, &w, 1.);
    assert_sharp(&as_text_above(&w, one, std::cell::RefCell::new(2.))?, &w, 2.);
    assert_sharp(&conditional(&w, 2.)?, &w, 2.);
    Ok(())
}
