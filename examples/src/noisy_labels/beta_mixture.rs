//! A mixture of two beta distributions of losses: small ones of right labels, large ones of wrong labels (Arazo et al.
//! 2019).

use crate::util::numbers::count;

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

/// Steps of expectation and maximization.
const ROUNDS: usize = 10;

/// Values of the table of probabilities.
const TABLE: usize = 100;

/// What densities are at least while a mixture is fitted.
const LEAST: f64 = 1e-12;

/// A percentile of sorted numbers, on the line between its neighbors; 0 of none.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * sorted.len().saturating_sub(1) as f64;
    let value = |place: usize| sorted.get(place).copied().unwrap_or(0.0);
    let (below, above) = (value(count(at.floor())), value(count(at.ceil())));
    below + (above - below) * at.fract()
}

impl Mixture {
    /// Fitted to losses, of which the smallest and the largest twentieth only bound the range.
    pub(super) fn fit(losses: &[f32]) -> Self {
        let mut sorted: Vec<f64> = losses.iter().map(|x| f64::from(*x)).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (percentile(&sorted, 0.05), percentile(&sorted, 0.95));
        let mut mixture = Self {
            components: [Beta { a: 1.0, b: 2.0, weight: 0.5 }, Beta { a: 2.0, b: 1.0, weight: 0.5 }],
            low,
            high,
        };
        let inner = &sorted[sorted.partition_point(|x| *x < low)..sorted.partition_point(|x| *x <= high)];
        let scaled: Vec<f64> = inner.iter().map(|x| mixture.scaled(*x).clamp(1e-4, 1.0 - 1e-4)).collect();
        for _ in 0..ROUNDS {
            let share = |x: &f64| {
                let [right, wrong] = mixture.densities(*x).map(|density| density.max(LEAST));
                wrong / (right + wrong)
            };
            let wrong: Vec<f64> = scaled.iter().map(share).collect();
            let right: Vec<f64> = wrong.iter().map(|share| 1.0 - share).collect();
            mixture.components = [Beta::fit(&scaled, &right), Beta::fit(&scaled, &wrong)];
        }
        mixture
    }

    /// The probability that the label of an image is wrong, by its loss: from a table of a hundred values, which does not fall
    /// after its highest.
    pub(super) fn wrong(&self) -> impl Fn(f64) -> f64 + use<> {
        let step = (1.0 - 2.0 * LEAST) / (TABLE - 1) as f64;
        let mut table: Vec<f64> = (0..TABLE)
            .map(|i| {
                let [right, wrong] = self.densities(LEAST + step * i as f64);
                let share = wrong / (right + wrong + LEAST);
                if share.is_finite() { share } else { 0.5 }
            })
            .collect();
        let highest = (0..TABLE).rev().max_by(|a, b| table[*a].total_cmp(&table[*b])).unwrap_or(0);
        let (_, after) = table.split_at_mut(highest);
        after.fill(after[0]);
        let mixture = *self;
        move |loss| {
            let place = count((TABLE as f64 * mixture.scaled(loss)).floor()).min(TABLE - 1);
            table[place].clamp(1e-4, 1.0 - 1e-4)
        }
    }

    /// Losses outside the range are taken for 0.001 and 0.999.
    fn scaled(&self, loss: f64) -> f64 {
        let low = self.low + 1e-5;
        match (loss - low) / (self.high - low + 1e-6) {
            x if x >= 1.0 => 1.0 - 1e-3,
            x if x <= 0.0 => 1e-3,
            x => x,
        }
    }

    fn densities(&self, x: f64) -> [f64; 2] {
        self.components.map(|component| component.log_density(x).exp())
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
        let wrong = mixture.wrong();
        assert!(wrong(0.2) < 0.05 && wrong(3.0) > 0.95, "{mixture:?}");
        assert!((mixture.components[1].weight - 0.4).abs() < 0.06, "{mixture:?}");
        for losses in [&[][..], &[1.0; 50], &[f32::NAN; 3]] {
            assert!((0.0..=1.0).contains(&Mixture::fit(losses).wrong()(1.0)), "{losses:?}");
        }
    }

    /// Losses below the range are 0.001, those above it 0.999; from the highest probability on it does not fall again.
    #[test]
    fn probabilities_come_from_the_authors_table() {
        let beta = |a, b, weight| Beta { a, b, weight };
        let mixture = Mixture { components: [beta(1.0, 1.0, 0.5), beta(3.0, 3.0, 0.5)], low: 1.0, high: 2.0 };
        assert_eq!([mixture.scaled(-5.0), mixture.scaled(1.0), mixture.scaled(9.0)], [1e-3, 1e-3, 1.0 - 1e-3]);
        assert!((mixture.scaled(1.5) - 0.5).abs() < 1e-4);
        let wrong = mixture.wrong();
        // The densities 30 x² (1 - x)² and 1, at 49 / 99 and at 10 / 99.
        let at = |x: f64| 30.0 * (x * (1.0 - x)).powi(2);
        let expected = |x: f64| at(x) / (1.0 + at(x));
        for (loss, x) in [(1.105, 10.0 / 99.0), (1.495, 49.0 / 99.0), (1.9, 49.0 / 99.0), (3.0, 49.0 / 99.0)] {
            assert!((wrong(loss) - expected(x)).abs() < 1e-9, "{loss}: {} {}", wrong(loss), expected(x));
        }
        assert_eq!(wrong(0.0), 1e-4);
        assert!((percentile(&[1.0, 2.0, 4.0], 0.75) - 3.0).abs() < 1e-12);
    }
}
