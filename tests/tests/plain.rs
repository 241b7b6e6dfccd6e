//! Where a step runs plainly: evaluation, ρ = 0, and inside another step.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Result, Tensor};
use sam_runtime::{Pass, Sam, plain, sam};
use sam_tests::{Net, batch, gradient};

#[sam(rho = rho, plain = plain_loss)]
fn loss(net: &Net, x: &Tensor, y: &Tensor, rho: f64, passes: &RefCell<Vec<Pass>>) -> Result<Tensor> {
    passes.borrow_mut().push(Pass::current());
    net.loss(x, y)
}

#[sam]
fn outer(net: &Net, x: &Tensor, y: &Tensor, passes: &RefCell<Vec<Pass>>) -> Result<Tensor> {
    loss(net, x, y, 0.1, passes)? + net.vars[0].sqr()?.sum_all()?
}

#[test]
fn evaluation() {
    let (net, (x, y), passes) = (Net::new(DType::F64, 1), batch(9, DType::F64, 2), RefCell::default());
    let expected = gradient(&net.loss(&x, &y).unwrap(), &net.vars);
    assert_eq!(gradient(&plain(|| loss(&net, &x, &y, 0.1, &passes)).unwrap(), &net.vars), expected);
    assert_eq!(gradient(&plain_loss(&net, &x, &y, 0.1, &passes).unwrap(), &net.vars), expected);
    assert_eq!(gradient(&loss(&net, &x, &y, 0., &passes).unwrap(), &net.vars), expected);
    assert_eq!(passes.take(), [Pass::Plain; 3]);
    assert_ne!(gradient(&loss(&net, &x, &y, 0.1, &passes).unwrap(), &net.vars), expected);
    assert_eq!(passes.take(), [Pass::Ascent, Pass::Descent]);
}

/// The outermost annotated function is the loss.
#[test]
fn inside_another_step() {
    let (net, (x, y), passes) = (Net::new(DType::F64, 1), batch(9, DType::F64, 2), RefCell::default());
    let found = gradient(&outer(&net, &x, &y, &passes).unwrap(), &net.vars);
    assert_eq!(passes.take(), [Pass::Ascent, Pass::Descent]);
    let whole = || net.loss(&x, &y)? + net.vars[0].sqr()?.sum_all()?;
    let expected = gradient(&Sam::default().loss(whole).unwrap(), &net.vars);
    assert_eq!(found, expected);
}

/// A panic inside `plain` does not leave the thread plain.
#[test]
fn a_panic_ends_it() {
    let (net, (x, y), passes) = (Net::new(DType::F64, 1), batch(9, DType::F64, 2), RefCell::default());
    catch_unwind(AssertUnwindSafe(|| plain(|| panic!("on purpose")))).unwrap_err();
    loss(&net, &x, &y, 0.1, &passes).unwrap();
    assert_eq!(passes.take(), [Pass::Ascent, Pass::Descent]);
}
