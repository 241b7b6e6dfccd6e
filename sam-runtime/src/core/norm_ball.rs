//! Equation 2 of the paper, for every p: mathematics, no tensors.
//!
//! For a gradient g and 1/p + 1/q = 1 the perturbation that raises the linearized loss most inside the ball
//! ‖ε‖_p ≤ ρ is
//!
//! ```text
//! ε̂ = ρ · sign(g) · |g|^(q-1) / (Σ|g|^q)^(1/p)
//! ```
//!
//! With M = max|g| and r = |g|/M the M cancels, since q - 1 = q/p:
//!
//! ```text
//! ε̂ = ρ · sign(g) · r^(q-1) / (Σ r^q)^(1/p)
//! ```
//!
//! so that nothing overflows, ‖ε̂‖_p = ρ to rounding, and a scaled loss gives the same ε̂. The limits need no case of
//! their own: p = ∞ (q = 1) gives ρ · sign(g), p = 1 (q = ∞) shares ρ among the coordinates of largest |g|.

/// { ε : ‖T⁻¹ε‖_p ≤ ρ }. Where it is not normalized ε̂ = ρ T² g instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ball {
    pub(crate) rho: f64,
    pub(crate) p: f64,
    pub(crate) normalized: bool,
}

impl Ball {
    pub(crate) fn norm(self) -> DualNorm {
        DualNorm::new(self.p)
    }
}

/// The norm of the ball, p, and the order of its dual, q.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DualNorm {
    p: f64,
    q: f64,
}

impl DualNorm {
    /// `p` in [1, ∞].
    pub(crate) fn new(p: f64) -> Self {
        let q = if p == 1.0 {
            f64::INFINITY
        } else if p.is_infinite() {
            1.0
        } else {
            p / (p - 1.0)
        };
        Self { p, q }
    }

    /// r^q, a term of Σ r^q.
    pub(crate) fn term(self) -> Power {
        Power::new(self.q)
    }

    /// r^(q-1), the size of ε̂ in one coordinate before scaling.
    pub(crate) fn size(self) -> Power {
        // q - 1 = 1/(p - 1): taken from p it keeps its digits where q is near 1.
        Power::new(if self.p.is_infinite() { 0.0 } else { 1.0 / (self.p - 1.0) })
    }

    /// 1/p, the exponent of Σ r^q.
    pub(crate) fn root(self) -> f64 {
        1.0 / self.p
    }

    /// ρ / (Σ r^q)^(1/p): what r^(q-1) is multiplied by. Zero for a zero gradient, whose sum is 0.
    pub(crate) fn scale(self, rho: f64, sum: f64) -> f64 {
        if sum > 0.0 { rho / sum.powf(self.root()) } else { 0.0 }
    }
}

/// x ↦ x^e on [0, 1], the cheap way where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Power {
    /// e = 0: p = ∞.
    One,
    /// e = 1: p = 2 or p = ∞.
    Same,
    /// e = 2: p = 2.
    Square,
    /// e = ½: p = 3.
    Root,
    /// e = ∞: p = 1. Only the largest coordinates, where r = 1, count.
    Largest,
    /// A small whole number: p = 1.5, 1.25, ..
    Whole(i32),
    /// Any other.
    Real(f64),
}

impl Power {
    fn new(e: f64) -> Self {
        match e {
            0.0 => Self::One,
            1.0 => Self::Same,
            2.0 => Self::Square,
            0.5 => Self::Root,
            f64::INFINITY => Self::Largest,
            e if e.round() == e && e < 64.0 => Self::Whole(e as i32),
            e => Self::Real(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(power: Power, x: f64) -> f64 {
        match power {
            Power::One => 1.0,
            Power::Same => x,
            Power::Square => x * x,
            Power::Root => x.sqrt(),
            Power::Largest => f64::from(x >= 1.0),
            Power::Whole(e) => x.powi(e),
            Power::Real(e) => x.powf(e),
        }
    }

    /// ε̂ by the formula, as a reader would write it.
    fn perturbation(rho: f64, p: f64, g: &[f64]) -> Vec<f64> {
        let norm = DualNorm::new(p);
        let max = g.iter().fold(0f64, |m, g| m.max(g.abs()));
        let sum = g.iter().map(|g| at(norm.term(), g.abs() / max)).sum();
        let scale = norm.scale(rho, sum);
        g.iter().map(|g| scale * at(norm.size(), g.abs() / max) * if *g == 0.0 { 0.0 } else { g.signum() }).collect()
    }

    fn norm(p: f64, e: &[f64]) -> f64 {
        let max = e.iter().fold(0f64, |m, e| m.max(e.abs()));
        if p.is_infinite() { max } else { max * e.iter().map(|e| (e.abs() / max).powf(p)).sum::<f64>().powf(1.0 / p) }
    }

    #[test]
    fn lies_on_the_sphere_and_attains_the_dual_norm() {
        let g = [0.3, -2.0, 1e-3, 0.0, 2.0, -0.7];
        for p in [1.0, 1.01, 1.25, 1.5, 2.0, 3.0, 7.0, 1e3, f64::INFINITY] {
            let e = perturbation(0.05, p, &g);
            assert!((norm(p, &e) / 0.05 - 1.0).abs() < 1e-12, "p = {p}: {}", norm(p, &e));
            // Hölder's inequality is met with equality: <g, ε̂> = ρ ‖g‖_q.
            let q = if p == 1.0 {
                f64::INFINITY
            } else if p.is_infinite() {
                1.0
            } else {
                p / (p - 1.0)
            };
            let gain: f64 = g.iter().zip(&e).map(|(g, e)| g * e).sum();
            assert!((gain / (0.05 * norm(q, &g)) - 1.0).abs() < 1e-12, "p = {p}: {gain}");
        }
    }

    #[test]
    fn the_two_ends() {
        assert_eq!(perturbation(1.0, f64::INFINITY, &[3.0, -0.1, 0.0]), [1.0, -1.0, 0.0]);
        assert_eq!(perturbation(1.0, 1.0, &[2.0, -0.1, -2.0]), [0.5, 0.0, -0.5]);
    }
}
