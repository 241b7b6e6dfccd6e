//! For whom nothing is strict enough.

#![deny(warnings)]
#![forbid(unused, unused_variables, unused_mut, unused_assignments, unused_braces, unused_parens, unused_labels)]
#![forbid(unreachable_code, rust_2018_idioms, keyword_idents, non_snake_case, non_upper_case_globals)]
#![forbid(let_underscore_drop, missing_debug_implementations, single_use_lifetimes)]
#![forbid(trivial_casts, trivial_numeric_casts, unit_bindings, unnameable_types, unreachable_pub)]
#![forbid(unused_extern_crates, unused_import_braces, unused_lifetimes, unused_macro_rules, unused_qualifications)]
#![forbid(unused_results, variant_size_differences, redundant_lifetimes, macro_use_extern_crate, meta_variable_misuse)]
#![forbid(absolute_paths_not_starting_with_crate, explicit_outlives_requirements, ambiguous_negative_literals)]
#![forbid(elided_lifetimes_in_paths, if_let_rescope, tail_expr_drop_order, impl_trait_redundant_captures)]
#![forbid(closure_returning_async_block, deprecated_in_future, ffi_unwind_calls, redundant_imports)]
#![forbid(clippy::all, clippy::pedantic, clippy::nursery, clippy::shadow_reuse, clippy::shadow_same)]
#![forbid(clippy::shadow_unrelated, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]
#![forbid(unsafe_code)]

use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_flat, assert_sharp, three_four};

/// Weights.
#[derive(Debug)]
pub struct Net<'a> {
    w: &'a Var,
}

impl Net<'_> {
    /// The squared norm.
    ///
    /// # Errors
    ///
    /// Those of candle.
    #[sam(rho = 0.5, plain = plain_loss)]
    pub fn loss(&mut self, scale: f64) -> Result<(Tensor, f64)> {
        Ok(((self.w.sqr()?.sum_all()? * scale)?, scale))
    }
}

/// Every kind of argument, every key.
///
/// # Errors
///
/// Those of candle.
#[sam(rho = rho, p = 2, vars = [w.clone()], replay(draws), shards(x, y; m = 1), plain = plain_of_all)]
pub fn of_all(
    w: &Var,
    x: &Tensor,
    mut y: Tensor,
    draws: &mut usize,
    (scale, mut twice): (f64, f64),
    mut name: &str,
    rho: f64,
) -> Result<(Tensor, Option<usize>)> {
    *draws += 1;
    twice *= scale;
    y = (y * twice)?;
    if name.is_empty() {
        name = "none";
    }
    Ok((w.sqr()?.sum_all()?.mul(&(x * y)?.mean_all()?)?, (name == "none").then_some(1)))
}

/// What holds everything, in an argument.
///
/// # Errors
///
/// Those of candle.
#[sam(with = config, plain = plain_configured)]
pub fn configured(config: &mut Sam, w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

/// Names that `ref` binds.
///
/// # Errors
///
/// Those of candle.
#[sam(rho = 0.5, hardest(x; k = k))]
pub fn by_ref(w: &Var, x: &Tensor, k: usize, (ref mut scale, _): (f64, bool)) -> Result<(Tensor, &'static str)> {
    *scale *= 2.;
    Ok(((w.sqr()?.sum_all()?.broadcast_mul(x)? * *scale)?, "by_ref"))
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let mut net = Net { w: &w };
    assert_sharp(&net.loss(2.)?.0, &w, 2.);
    assert_flat(&net.plain_loss(2.)?.0, &w, 2.);

    let x = Tensor::ones((3, 1), w.dtype(), w.device())?;
    let mut draws = 0;
    let (sharp, nameless) = of_all(&w, &x, x.clone(), &mut draws, (2., 3.), "", 0.5)?;
    assert_sharp(&sharp, &w, 6.);
    assert_eq!((draws, nameless), (3, Some(3)));
    assert_flat(&plain_of_all(&w, &x, x.clone(), &mut draws, (2., 3.), "w", 0.5)?.0, &w, 6.);

    assert_sharp(&configured(&mut Sam::new(0.5), &w)?, &w, 1.);
    assert_flat(&plain_configured(&mut Sam::new(0.5), &w)?, &w, 1.);
    assert_sharp(&by_ref(&w, &x.squeeze(1)?, 1, (1., true))?.0, &w, 2.);
    Ok(())
}
