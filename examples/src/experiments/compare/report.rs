//! The table of a comparison.

use super::run::{Epoch, TrainMode};
use crate::io::table::align;
use crate::metrics::Mean;

/// All epochs of a mode: one row for each seed.
pub(super) fn seeds(log: &[Epoch], mode: TrainMode) -> Vec<Vec<&Epoch>> {
    let mut seeds: Vec<Vec<&Epoch>> = Vec::new();
    for epoch in log.iter().filter(|epoch| epoch.mode == mode) {
        match seeds.iter_mut().find(|seed| seed[0].seed == epoch.seed) {
            Some(seed) => seed.push(epoch),
            None => seeds.push(vec![epoch]),
        }
    }
    seeds
}

/// The mean over the seeds of `value`, epoch by epoch.
pub(super) fn curve(seeds: &[Vec<&Epoch>], value: impl Fn(&Epoch) -> f64) -> Vec<Mean> {
    let epochs = seeds.iter().map(Vec::len).min().unwrap_or(0);
    (0..epochs).map(|i| Mean::of(&seeds.iter().map(|seed| value(seed[i])).collect::<Vec<_>>())).collect()
}

/// The table in Markdown: test errors after the last epoch and after the best one, which is selected on the test
/// set.
#[must_use]
pub fn table(log: &[Epoch], modes: &[TrainMode]) -> String {
    let head = ["method", "last epoch", "best epoch", "at epoch", "training error", "s per epoch"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for &mode in modes {
        let seeds = seeds(log, mode);
        let test = curve(&seeds, |epoch| epoch.test_error);
        let Some((best, lowest)) = test.iter().enumerate().min_by(|a, b| a.1.mean.total_cmp(&b.1.mean)) else {
            continue;
        };
        let train = curve(&seeds, |epoch| epoch.train_error);
        let mut seconds: Vec<f64> = seeds.iter().flatten().map(|epoch| epoch.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        rows.push(vec![
            mode.name().to_owned(),
            test[test.len() - 1].percent(),
            lowest.percent(),
            (best + 1).to_string(),
            train[train.len() - 1].percent(),
            format!("{:.2}", seconds[seconds.len() / 2]),
        ]);
    }
    align(&rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn log() -> Vec<Epoch> {
        let mut log = Vec::new();
        for mode in [TrainMode::Sgd, TrainMode::Sam] {
            for seed in 0..3 {
                for epoch in 1..=4 {
                    let test_error = 0.3 - 0.05 * epoch as f64 + 0.01 * seed as f64;
                    let train_error = test_error / 2.0;
                    log.push(Epoch { mode, seed, epoch, loss: 1.0, train_error, test_error, seconds: 0.5 });
                }
            }
        }
        log
    }

    #[test]
    fn the_table_lines_up() {
        let table = table(&log(), &[TrainMode::Sgd, TrainMode::Sam]);
        let widths: Vec<_> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
        assert!(table.contains("| SAM    | 11.0 ± 2.5 | 11.0 ± 2.5 | 4 "), "{table}");
    }
}
