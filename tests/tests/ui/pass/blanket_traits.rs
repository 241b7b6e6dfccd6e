//! Traits whose methods every type has, with the names of those that the expansion calls: by value, where a method call
//! finds them before a method of the type that takes `&self`, and by reference.

#![allow(clippy::wrong_self_convention, clippy::new_ret_no_self, reason = "the names are the point")]
#![allow(clippy::toplevel_ref_arg, clippy::needless_pass_by_value, reason = "one can write it")]

use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_sharp, three_four};

macro_rules! for_everything {
    ($($by_value:ident)*) => {
        #[allow(dead_code)]
        trait ByValue: Sized {
            $(fn $by_value(self) -> String {
                unreachable!("not this one")
            })*
        }

        #[allow(dead_code)]
        trait ByRef {
            $(fn $by_value(&self) -> String {
                unreachable!("nor this one")
            })*
        }

        #[allow(dead_code)]
        trait ByMut {
            $(fn $by_value(&mut self) -> String {
                unreachable!("nor that one")
            })*
        }

        impl<T> ByValue for T {}
        impl<T> ByRef for T {}
        impl<T> ByMut for T {}
    };
}

for_everything! {
    ascend perturb descend restore restore_into new p adaptive unnormalized combination vars buffers shards micro_batches
    hardest sharpest split next_shard of sum weights loss clone_for_pass for_pass again turn replayed variables clone_from
    from into branch detached with_loss join_shards rows select variable
}

#[sam(rho = 0.5, p = 2, vars = [w.clone()], replay(calls), shards(x, y; m = 1), plain = plain_loss)]
fn loss(w: &Var, x: Tensor, y: &Tensor, calls: &mut usize, scale: f64, mut name: &str) -> Result<(Tensor, usize)> {
    *calls += 1;
    if name.is_empty() {
        name = "loss";
    }
    Ok(((w.sqr()?.sum_all()?.mul(&x.mul(y)?.mean_all()?)? * scale)?, name.len()))
}

#[sam(with = config, replay(calls), micro_batches(x; m = 1))]
fn in_parts(w: &Var, config: &mut Sam, x: &Tensor, calls: &std::cell::Cell<usize>) -> Result<Tensor> {
    calls.set(calls.get() + 1);
    w.sqr()?.sum_all()?.mul(&x.mean_all()?)
}

#[sam(rho = 0.5, hardest(x; k = 1))]
fn hardest(w: &Var, x: &Tensor, ref mut scale: f64) -> Result<Tensor> {
    *scale *= 2.;
    w.sqr()?.sum_all()?.broadcast_mul(&x.mean(1)?)? * *scale
}

#[sam(rho = 0.5, wsam = 0.5, adaptive)]
fn adaptive(w: Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.5, unnormalized)]
fn unnormalized(w: Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut calls) = (three_four(), 0);
    let x = Tensor::ones((2, 1), w.dtype(), w.device())?;
    assert_sharp(&loss(&w, x.clone(), &x, &mut calls, 2., "")?.0, &w, 2.);
    plain_loss(&w, x.clone(), &x, &mut calls, 2., "")?;
    let calls = std::cell::Cell::new(0);
    assert_sharp(&in_parts(&w, &mut Sam::new(0.5), &x, &calls)?, &w, 1.);
    assert_sharp(&hardest(&w, &x, 1.)?, &w, 2.);
    adaptive(w.as_tensor().clone())?;
    unnormalized(w.as_tensor().clone())?;
    Ok(())
}
