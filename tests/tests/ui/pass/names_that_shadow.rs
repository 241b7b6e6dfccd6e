//! The expansion means `core` and the runtime, whatever the names stand for where it is.

#![allow(non_camel_case_types)]

use candle_core::{Tensor, Var};
use sam_tests::{assert_sharp, three_four};

mod core {}
mod std {}
mod sam_runtime {}
struct f64;
struct usize;
struct Option;
struct Some;
struct Sam;
struct Pass;
struct Clone;
type Result<T> = candle_core::Result<T>;

fn perturb() {}
fn body() {}

/// Functions and types of the names that the expansion gives to its variables, and arguments too.
#[::sam_runtime::sam(rho = 0.5, p = 2, shards(shard; m = m), replay(pass), vars = [sam.clone()])]
fn loss(
    sam: &Var,
    shard: Tensor,
    shards: &Tensor,
    m: ::core::primitive::usize,
    pass: &mut ::core::primitive::usize,
    held_shard: i64,
    held_pass: i64,
) -> Result<Tensor> {
    body();
    perturb();
    *pass += m;
    let scale = shard.mean_all()?.mul(&shards.mean_all()?)?;
    sam.sqr()?.sum_all()?.mul(&scale)? * (held_shard * held_pass) as ::core::primitive::f64
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut pass) = (three_four(), 0);
    let x = Tensor::ones((1, 2), w.dtype(), w.device())?;
    let sharp = loss(&w, x.clone(), &x, 1, &mut pass, 2, 3)?;
    assert_sharp(&sharp, &w, 6.);
    assert_eq!(pass, 1);
    let _ = (f64, usize, Option, Some, Sam, Pass, Clone);
    Ok(())
}
