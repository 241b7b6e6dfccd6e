//! Limits, and conversions from real numbers to counts.

/// The largest number of epochs, seeds, steps and images of a batch that is accepted; more is a typing error.
pub const MOST: u64 = 1_000_000;

/// The integer nearest to x; 0 for negative x.
#[expect(clippy::cast_sign_loss, reason = "the cast gives 0 for negative numbers, which is what is wanted")]
pub(crate) fn count(x: f64) -> usize {
    x.round() as usize
}

/// Points from -`span` to `span`, at equal distances.
pub(crate) fn spaced(span: f64, points: usize) -> Vec<f64> {
    let last = (points.max(2) - 1) as f64;
    (0..points).map(|i| span * (2.0 * i as f64 / last - 1.0)).collect()
}

/// This share of n, rounded down.
pub(crate) fn share_of(n: usize, share: f64) -> usize {
    count((n as f64 * share).floor()).min(n)
}
