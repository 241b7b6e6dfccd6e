//! A mixture of two beta distributions of losses: small ones of right labels, large ones of wrong labels (Arazo et al.
//! 2019).

use crate::numbers::share_of;

/// Two components, the one of the larger losses second, and the range that losses are scaled by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mixture {
    pub(super) components: [Beta; 2],
    pub(super) low: f64,
    pub(super) high: f64,
}

/// weight · Beta(a, b)
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Beta {
    pub(super) a: f64,
    pub(super) b: f64,
    pub(super) weight: f64,
}

/// Steps of expectation and maximisation.
const ROUNDS: usize = 10;

impl Mixture {
    /// Fitted to losses, of which the smallest and the largest twentieth only bound the range.
    pub(super) fn fit(losses: &[f32]) -> Self {
        let mut sorted: Vec<f64> = losses.iter().map(|x| f64::from(*x)).collect();
        sorted.sort_by(f64::total_cmp);
        let percentile = |p: f64| sorted.get(share_of(sorted.len(), p)).copied().unwrap_or(0.0);
        let (low, high) = (percentile(0.05), percentile(0.95));
        let mut mixture = Self {
            components: [Beta { a: 1.0, b: 2.0, weight: 0.5 }, Beta { a: 2.0, b: 1.0, weight: 0.5 }],
            low,
            high,
        };
        let inner = &sorted[sorted.partition_point(|x| *x < low)..sorted.partition_point(|x| *x <= high)];
        let scaled: Vec<f64> = inner.iter().map(|x| mixture.scaled(*x)).collect();
        for _ in 0..ROUNDS {
            let wrong: Vec<f64> = scaled.iter().map(|x| mixture.posterior(*x)).collect();
            let right: Vec<f64> = wrong.iter().map(|share| 1.0 - share).collect();
            mixture.components = [Beta::fit(&scaled, &right), Beta::fit(&scaled, &wrong)];
        }
        mixture
    }

    /// The probability that the label of an image with this loss is wrong.
    pub(super) fn wrong(&self, loss: f64) -> f64 {
        self.posterior(self.scaled(loss))
    }

    fn scaled(&self, loss: f64) -> f64 {
        ((loss - self.low) / (self.high - self.low).max(1e-12)).clamp(1e-4, 1.0 - 1e-4)
    }

    fn posterior(&self, x: f64) -> f64 {
        let [right, wrong] = self.components.map(|component| component.log_density(x));
        let share = 1.0 / (1.0 + (right - wrong).exp());
        if share.is_finite() { share } else { 0.5 }
    }
}

impl Beta {
    /// By the moments of weighted numbers.
    fn fit(x: &[f64], weights: &[f64]) -> Self {
        let total = weights.iter().sum::<f64>().max(1e-12);
        let mean = x.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() / total;
        let variance = x.iter().zip(weights).map(|(x, w)| w * (x - mean).powi(2)).sum::<f64>() / total;
        let (mean, variance) = (mean.clamp(1e-4, 1.0 - 1e-4), variance.max(1e-6));
        let a = (mean * (mean * (1.0 - mean) / variance - 1.0)).max(1e-2);
        Self { a, b: a * (1.0 - mean) / mean, weight: total / x.len().max(1) as f64 }
    }

    fn log_density(self, x: f64) -> f64 {
        let Self { a, b, weight } = self;
        weight.max(1e-12).ln() + (a - 1.0) * x.ln() + (b - 1.0) * (1.0 - x).ln() + ln_gamma(a + b)
            - ln_gamma(a)
            - ln_gamma(b)
    }
}

/// ln Γ(x) for x > 0: Stirling's series, from where it is good to ten digits.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / x;
    let series = inverse / 12.0 - inverse.powi(3) / 360.0 + inverse.powi(5) / 1260.0;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_logarithm_of_the_gamma_function() {
        for (x, expected) in [(1.0, 1.0_f64), (5.0, 24.0), (0.5, std::f64::consts::PI.sqrt()), (11.0, 3_628_800.0)] {
            assert!((ln_gamma(x) - expected.ln()).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn two_heaps_of_losses_are_told_apart() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let losses: Vec<f32> = (0..4000)
            .map(|i| if i % 5 < 3 { rng.random_range(0.0..0.6) } else { rng.random_range(2.0..4.0) })
            .collect();
        let mixture = Mixture::fit(&losses);
        assert!(mixture.wrong(0.2) < 0.05 && mixture.wrong(3.0) > 0.95, "{mixture:?}");
        assert!((mixture.components[1].weight - 0.4).abs() < 0.06, "{mixture:?}");
        for losses in [&[][..], &[1.0; 50], &[f32::NAN; 3]] {
            assert!((0.0..=1.0).contains(&Mixture::fit(losses).wrong(1.0)), "{losses:?}");
        }
    }
}
