//! Editions differ in when the temporaries of a block's last expression are dropped: the expansion has none there, and those
//! of the body live as long as in the function that was written.

use std::cell::RefCell;

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[rustfmt::skip]
#[sam(rho = 0.5)]
fn one_line(w: &Var) -> Result<Tensor> { w.sqr()?.sum_all() }

/// One line, and arguments that each pass has anew.
#[rustfmt::skip]
#[sam(rho = 0.5)]
fn rebound((a, b): (Tensor, Tensor), w: &Var) -> Result<Tensor> { w.sqr()?.sum_all()?.mul(&(a + b)?) }

/// A guard in the last expression borrows from an argument by value.
#[sam(rho = 0.5)]
fn guard(w: &Var, scale: RefCell<f64>, other: RefCell<Vec<f64>>) -> Result<Tensor> {
    w.sqr()?.sum_all()? * (*scale.borrow_mut() + other.borrow_mut()[0])
}

#[sam(rho = 0.5, shards(x; m = 1))]
fn guard_in_shards(w: &Var, x: Tensor, scale: RefCell<f64>) -> Result<(Tensor, f64)> {
    Ok((w.sqr()?.sum_all()?.mul(&(x * *scale.borrow())?.mean_all()?)?, *scale.borrow()))
}

#[sam(rho = 0.5)]
fn matched(w: &Var, scale: RefCell<Option<f64>>) -> Result<Tensor> {
    match *scale.borrow() {
        Some(scale) => w.sqr()?.sum_all()? * scale,
        None => w.sum_all(),
    }
}

#[rustfmt::skip]
#[sam(rho = 0.5)]
fn diverges(_: &Var, x: Tensor) -> Result<Tensor> { panic!("rank {}", x.rank()) }

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let one = Tensor::ones((), w.dtype(), w.device())?;
    assert_sharp(&one_line(&w)?, &w, 1.);
    assert_sharp(&rebound((one.clone(), one.clone()), &w)?, &w, 2.);
    assert_sharp(&guard(&w, RefCell::new(1.), RefCell::new(vec![2.]))?, &w, 3.);
    let two = Tensor::ones(2, w.dtype(), w.device())?;
    assert_sharp(&guard_in_shards(&w, two, RefCell::new(2.))?.0, &w, 2.);
    assert_sharp(&matched(&w, RefCell::new(Some(2.)))?, &w, 2.);
    assert!(
        std::panic::catch_unwind(|| diverges(&three_four(), Tensor::new(1f64, &candle_core::Device::Cpu)?)).is_err()
    );
    Ok(())
}
