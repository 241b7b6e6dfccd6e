//! Whatever a pass does to what it was given, the next begins with what the caller gave.

#![allow(clippy::needless_arbitrary_self_type, clippy::needless_pass_by_value, reason = "one can write it")]
#![allow(clippy::toplevel_ref_arg, reason = "one can write it")]

use std::cell::{Cell, RefCell};

use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_sharp, gradient, three_four};

/// A list of factors.
struct Chain<'a> {
    w: &'a Var,
    factor: f64,
    next: Option<Box<Self>>,
}

impl Chain<'_> {
    /// The product of the factors: 2 · 3.
    #[sam(rho = 0.5)]
    fn product(mut self: &Self) -> Result<Tensor> {
        let mut product = self.factor;
        while let Some(next) = &self.next {
            product *= next.factor;
            self = next;
        }
        self.w.sqr()?.sum_all()? * product
    }
}

#[sam(rho = 0.5)]
fn ref_mut(w: &Var, ref mut k: f64) -> Result<Tensor> {
    *k *= 2.;
    w.sqr()?.sum_all()? * *k
}

#[sam(rho = 0.5)]
fn ref_mut_in_a_pattern(w: &Var, (ref mut k, [_, ref mut l]): (f64, [f64; 2])) -> Result<Tensor> {
    *k *= 2.;
    *l += *k;
    w.sqr()?.sum_all()? * *l
}

/// Behind `ref`, a cell that the function owns.
#[sam(rho = 0.5)]
fn ref_to_a_cell(w: &Var, ref k: Cell<f64>, (l, ref n): (RefCell<f64>, Cell<f64>)) -> Result<Tensor> {
    k.set(k.get() * 2.);
    *l.borrow_mut() *= 2.;
    n.set(n.get() * 2.);
    w.sqr()?.sum_all()? * (k.get() * *l.borrow() * n.get())
}

/// What the attribute is configured with is an argument, too.
#[sam(with = sam)]
fn configuration<'a>(w: &Var, mut sam: &'a Sam, other: &'a Sam) -> Result<(Tensor, bool)> {
    let is_first = !std::ptr::eq(sam, other);
    sam = other;
    Ok(((w.sqr()?.sum_all()? * if is_first { 2. } else { 3. })?, std::ptr::eq(sam, other)))
}

/// A `&mut` is shared with the caller, and so by both passes.
#[sam(rho = 0.5)]
fn mut_of_the_caller(w: &Var, &mut (ref mut calls, _): &mut (usize, String)) -> Result<Tensor> {
    *calls += 1;
    w.sqr()?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let chain = Chain { w: &w, factor: 2., next: Some(Box::new(Chain { w: &w, factor: 3., next: None })) };
    // 2 · 3 · 2 (w + 0.5 w / |w|)
    let first = |loss: &Tensor| gradient(loss, std::slice::from_ref(&w))[0][0];
    assert!((first(&chain.product()?) - 39.6).abs() < 1e-12);
    assert!((first(&ref_mut(&w, 1.)?) - 13.2).abs() < 1e-12);
    assert_sharp(&ref_mut_in_a_pattern(&w, (1., [0., 1.]))?, &w, 3.);
    assert_sharp(&ref_to_a_cell(&w, Cell::new(1.), (RefCell::new(1.), Cell::new(1.)))?, &w, 8.);
    let (sharp, moved) = configuration(&w, &Sam::new(0.5), &Sam::new(0.))?;
    assert_sharp(&sharp, &w, 2.);
    assert!(moved);
    let mut calls = (0, String::new());
    assert_sharp(&mut_of_the_caller(&w, &mut calls)?, &w, 1.);
    assert_eq!(calls.0, 2);
    Ok(())
}
