//! From real numbers to counts.

/// The count nearest to x; 0 for negative ones.
#[expect(clippy::cast_sign_loss, reason = "the cast gives 0 for negative numbers, which is what is wanted")]
pub(crate) fn count(x: f64) -> usize {
    x.round() as usize
}

/// This share of n things, rounded down.
pub(crate) fn share_of(n: usize, share: f64) -> usize {
    count((n as f64 * share).floor()).min(n)
}
