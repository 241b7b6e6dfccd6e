#![deny(unsafe_op_in_unsafe_fn)]

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_flat, assert_sharp, three_four};

/// The squared norm, scaled.
///
/// # Errors
///
/// Those of candle.
///
/// # Safety
///
/// `scale` must be valid for reads.
#[sam(rho = 0.5, plain = plain_loss)]
pub unsafe fn loss(w: &Var, scale: *const f64) -> Result<Tensor> {
    // SAFETY: the caller says so.
    let scale = unsafe { *scale };
    w.sqr()?.sum_all()? * scale
}

#[allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
#[sam(rho = 0.5)]
unsafe fn as_before_2024(w: &Var, scale: *const f64) -> Result<Tensor> {
    w.sqr()?.sum_all()? * *scale
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    // SAFETY: a pointer to what lives until the end of the statement.
    assert_sharp(&unsafe { loss(&w, &2.) }?, &w, 2.);
    // SAFETY: as above.
    assert_sharp(&unsafe { as_before_2024(&w, &2.) }?, &w, 2.);
    // SAFETY: as above.
    assert_flat(&unsafe { plain_loss(&w, &2.) }?, &w, 2.);
    Ok(())
}
