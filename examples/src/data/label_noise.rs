//! Symmetric label noise, as in the paper's experiment on noisy labels (section 3.3).

use clap::ValueEnum;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use crate::util::rng::Stream;

/// Which class a noisy label gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// Any class but the true one, all equally likely: a share `rate` of the labels comes out wrong.
    Exclusive,
    /// Any class, the true one among them: a share `rate * (1 - 1 / classes)` comes out wrong. The paper's own figures
    /// for SGD fit this reading.
    Inclusive,
}

/// Replaces each label, independently and with probability `rate`, by another of the `classes`, and returns how many
/// labels are now wrong.
///
/// The same seed gives the same labels on every machine. Of two rates with one seed, the larger changes what the
/// smaller changes, in the same way, and more.
///
/// # Errors
///
/// If `rate` is not within 0 to 1, or if there are fewer than two classes.
pub fn add_noise(labels: &mut [u32], classes: usize, rate: f64, noise: Noise, seed: u64) -> Result<usize, DataError> {
    if !(0.0..=1.0).contains(&rate) {
        return Err(DataError::NoiseRate { rate });
    }
    let count = u32::try_from(classes).ok().filter(|&count| count >= 2);
    let count = count.ok_or(DataError::NoiseClasses { classes })?;

    let mut rng = Stream::Default.rng(seed);
    let mut changed = 0;
    for label in labels {
        // Both are drawn whether needed or not: so the draws are the same for every rate.
        let is_noisy = rng.random::<f64>() < rate;
        let drawn = match noise {
            Noise::Inclusive => rng.random_range(0..count),
            Noise::Exclusive => {
                let among_others = rng.random_range(0..count - 1);
                among_others + u32::from(among_others >= *label)
            }
        };
        if is_noisy && drawn != *label {
            *label = drawn;
            changed += 1;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn clean() -> Vec<u32> {
        (0..20_000).map(|i| i % 10).collect()
    }

    fn noisy(rate: f64, noise: Noise, seed: u64) -> (Vec<u32>, usize) {
        let mut labels = clean();
        let changed = add_noise(&mut labels, 10, rate, noise, seed).unwrap();
        (labels, changed)
    }

    #[test]
    fn the_count_is_of_labels_that_are_wrong() {
        for (noise, share) in [(Noise::Exclusive, 0.4), (Noise::Inclusive, 0.36)] {
            let (labels, changed) = noisy(0.4, noise, 1);
            assert_eq!(changed, labels.iter().zip(clean()).filter(|(a, b)| **a != *b).count());
            let deviation = (changed as f64 / 20_000.0 - share) / (share * (1.0 - share) / 20_000.0).sqrt();
            assert!(deviation.abs() < 4.0, "{noise:?}: {changed} labels, {deviation} standard deviations off");
        }
    }

    #[test]
    fn all_classes_that_may_be_drawn_are_equally_likely() {
        // 2,000 labels of each class, among 9 or 10: 222 or 200 expected, 14 the standard deviation.
        for (noise, same) in [(Noise::Exclusive, 0..1), (Noise::Inclusive, 130..270)] {
            let (labels, _) = noisy(1.0, noise, 2);
            let mut seen = [0u32; 100];
            for (&to, from) in labels.iter().zip(clean()) {
                seen[(from * 10 + to) as usize] += 1;
            }
            for (pair, count) in seen.iter().enumerate() {
                let expected = if pair / 10 == pair % 10 { same.clone() } else { 130..290 };
                assert!(expected.contains(count), "{noise:?}: {count} of {} became {}", pair / 10, pair % 10);
            }
        }
    }

    #[test]
    fn the_extremes() {
        for noise in [Noise::Exclusive, Noise::Inclusive] {
            assert_eq!(noisy(0.0, noise, 3), (clean(), 0));
        }
        assert_eq!(noisy(1.0, Noise::Exclusive, 3).1, 20_000);
    }

    #[test]
    fn a_seed_fixes_the_labels() {
        assert_eq!(noisy(0.5, Noise::Inclusive, 4), noisy(0.5, Noise::Inclusive, 4));
        assert_ne!(noisy(0.5, Noise::Inclusive, 4), noisy(0.5, Noise::Inclusive, 5));
        let mut labels = vec![0; 12];
        add_noise(&mut labels, 10, 0.5, Noise::Exclusive, 0).unwrap();
        assert_eq!(labels, [0, 0, 2, 0, 0, 8, 5, 0, 0, 7, 0, 0]);
    }

    #[test]
    fn more_noise_contains_less_noise() {
        let (some, more) = (noisy(0.2, Noise::Exclusive, 6).0, noisy(0.6, Noise::Exclusive, 6).0);
        assert!(clean().iter().zip(some).zip(more).all(|((&clean, some), more)| some == clean || some == more));
    }

    #[test]
    fn bad_arguments_are_refused() {
        for rate in [-0.1, 1.1, f64::NAN] {
            let error = add_noise(&mut [], 10, rate, Noise::Inclusive, 0).unwrap_err();
            assert!(matches!(error, DataError::NoiseRate { .. }), "{error}");
        }
        let error = add_noise(&mut [0], 1, 0.5, Noise::Exclusive, 0).unwrap_err();
        assert!(matches!(error, DataError::NoiseClasses { classes: 1 }), "{error}");
    }
}
