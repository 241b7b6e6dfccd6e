//! Losses of each element, shared by all backends.

/// The loss of an element x whose target is t.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// (x - t)²
    Square,
    /// -t ln σ(x) - (1 - t) ln(1 - σ(x))
    LogitEntropy,
    /// (x - t)² / 2 up to a distance δ, and a line from there on.
    Huber(f64),
}
