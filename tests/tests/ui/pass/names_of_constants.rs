//! Constants, statics, unit structs and functions with the names that one would give to the variables of the expansion: a
//! `let` can have none of these names, whatever its hygiene.

#![allow(clippy::needless_pass_by_value, reason = "one can write it")]
#![allow(non_upper_case_globals, non_camel_case_types, dead_code, reason = "such names are what this is about")]

use candle_core::{Result, Tensor, Var};
use sam_tests::{assert_sharp, three_four};

const body: u8 = 0;
const sam: u8 = 0;
const shard: u8 = 0;
const held_x: u8 = 0;
const pass: u8 = 0;
const loss: u8 = 0;
const size: u8 = 0;
const error: u8 = 0;
static m: u8 = 0;
static k: u8 = 0;
static shards: u8 = 0;
static held_y: u8 = 0;
static ascent: u8 = 0;
static perturbed: u8 = 0;
struct examples;
struct descent;
struct held_count;
struct part;

fn held_self() {}

#[::sam_runtime::sam(rho = 0.5, replay(count), shards(x, y; m = 1), plain = plain_of_shards)]
fn of_shards(w: &Var, x: Tensor, y: &Tensor, count: &mut usize) -> Result<Tensor> {
    *count += usize::from(body + sam + m + shards);
    w.sqr()?.sum_all()?.mul(&x.mul(y)?.mean_all()?)
}

#[::sam_runtime::sam(rho = 0.5, hardest(x; k = 1))]
fn of_examples(w: &Var, x: &Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()?.broadcast_mul(&x.mean(1)?)
}

#[::sam_runtime::sam(rho = 0.5)]
fn of_all(w: &Var, x: Tensor) -> std::result::Result<Tensor, impl From<candle_core::Error> + std::fmt::Debug> {
    w.sqr()?.sum_all()?.mul(&x.mean_all()?)
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut count) = (three_four(), 0);
    let x = Tensor::ones((2, 1), w.dtype(), w.device())?;
    assert_sharp(&of_shards(&w, x.clone(), &x, &mut count)?, &w, 1.);
    assert_sharp(&of_examples(&w, &x)?, &w, 1.);
    assert_sharp(&of_all(&w, x).unwrap(), &w, 1.);
    Ok(())
}
