//! What once was silently wrong in other people's programs, with the right value of each, from the formula.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod backward;
mod graphs;
mod overlap;
mod plain_steps;
mod state_of_layers;
mod threads;
mod values;

use candle_core::{Device, Result, Tensor, Var};

/// A variable of these numbers, in f64.
fn var(values: &[f64]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    sam_tests::values(tensor)
}

fn gradient(loss: &Tensor, var: &Var) -> Vec<f64> {
    numbers(loss.backward().unwrap().get(var).unwrap())
}

/// Asserts that numbers are these, to rounding.
#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-12 * (1. + b.abs()), "{found:?} and {expected:?}");
    }
}

/// Asserts that this is an error with all of these words.
#[track_caller]
fn refused<T>(outcome: Result<T>, words: &[&str]) {
    let Err(error) = outcome else { panic!("expected an error with {words:?}") };
    let error = error.to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}
