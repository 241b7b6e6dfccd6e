//! For whom nothing is strict enough.

#![deny(warnings, unused, rust_2018_idioms, keyword_idents)]
#![deny(let_underscore_drop, missing_debug_implementations, single_use_lifetimes)]
#![deny(trivial_casts, trivial_numeric_casts, unit_bindings, unnameable_types, unreachable_pub)]
#![deny(unused_extern_crates, unused_import_braces, unused_lifetimes, unused_macro_rules, unused_qualifications)]
#![deny(unused_results, variant_size_differences, redundant_lifetimes, macro_use_extern_crate, meta_variable_misuse)]
#![deny(absolute_paths_not_starting_with_crate, explicit_outlives_requirements, ambiguous_negative_literals)]
#![deny(elided_lifetimes_in_paths, if_let_rescope, tail_expr_drop_order, impl_trait_redundant_captures)]
#![deny(closure_returning_async_block, deprecated_in_future, ffi_unwind_calls, redundant_imports)]
#![deny(clippy::all, clippy::pedantic, clippy::nursery, clippy::shadow_reuse, clippy::shadow_same)]
#![deny(clippy::shadow_unrelated, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]
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
#[sam(rho = rho, p = 2, adaptive = 0, vars = [w.clone()], replay(draws), shards(x, y; m = 1), plain = plain_loss)]
pub fn loss(
    w: &Var,
    x: &Tensor,
    mut y: Tensor,
    draws: &mut usize,
    (a, mut b): (f64, f64),
    mut step: &usize,
    rho: f64,
) -> Result<Tensor> {
    *draws += 1;
    b *= a;
    y = (y * b)?;
    if *step > 0 {
        step = &0;
    }
    w.sqr()?.sum_all()?.broadcast_mul(&(x * y)?.mean_all()?)? * (1 + *step) as f64
}

/// What holds everything, in an argument.
///
/// # Errors
///
/// Those of candle.
#[sam(with = config)]
pub fn configured(config: &mut Sam, w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[test]
fn main() -> Result<()> {
    let w = three_four();
    let (sharp, _) = Net { w: &w }.loss(2.)?;
    assert_sharp(&sharp, &w, 2.);
    let (flat, _) = Net { w: &w }.plain_loss(2.)?;
    assert_flat(&flat, &w, 2.);
    let x = Tensor::ones((3, 1), w.dtype(), w.device())?;
    let mut draws = 0;
    // ASAM with η = 0: ε = ρ w²·g / |w·g| coordinate by coordinate.
    let adaptive = loss(&w, &x, x.clone(), &mut draws, (2., 3.), &1, 0.5)?;
    let g = adaptive.backward()?.get(&w).unwrap().to_vec1::<f64>()?;
    let e = |w: f64| 0.5 * w * w * 2. * w / (18f64 * 18. + 32. * 32.).sqrt();
    assert!((g[0] - 12. * (3. + e(3.))).abs() < 1e-12 && (g[1] - 12. * (4. + e(4.))).abs() < 1e-12, "{g:?}");
    assert_eq!(draws, 3);
    assert_flat(&plain_loss(&w, &x, x.clone(), &mut draws, (2., 3.), &1, 0.5)?, &w, 6.);
    assert_sharp(&configured(&mut Sam::new(0.5), &w)?, &w, 1.);
    Ok(())
}
