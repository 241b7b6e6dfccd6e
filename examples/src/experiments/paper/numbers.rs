//! The numbers of a table: the paper's and ours.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::metrics::Mean;
use crate::recipe::{Measure, Published};
use crate::trainer::Outcome;

/// A cell with its numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The cell's name, without the table's.
    pub cell: String,
    /// Of the measure of the table.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Of the second measure, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Numbers>,
    /// Why seeds with a result have no number: `diverged`, `damaged`, ..
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<&'static str>,
    /// The data sets.
    pub data: BTreeSet<String>,
    /// Seconds of all runs.
    pub seconds: f64,
}

/// The paper's number and ours.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    /// The paper's.
    pub paper: Option<Published>,
    /// Ours, one for each seed with a result.
    pub ours: Vec<f64>,
    /// Their mean.
    pub mean: Option<f64>,
    /// Half of the 95 % confidence interval of the mean, by Student's t-distribution; `None` for fewer than two seeds.
    pub interval: Option<f64>,
}

impl Numbers {
    pub(super) fn of(measure: Measure, paper: Option<Published>, outcomes: &[Outcome]) -> Self {
        let ours: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.value(measure)).collect();
        let mean = (!ours.is_empty()).then(|| Mean::of(&ours));
        let interval = mean.and_then(|mean| mean.interval);
        Self { paper, mean: mean.map(|mean| mean.mean), interval, ours }
    }

    /// The paper's number and ours, as text.
    pub(super) fn words(&self, measure: Measure) -> [String; 2] {
        let paper = self.paper.map_or_else(String::new, |paper| number(measure, Some(paper.mean), paper.interval));
        [paper, number(measure, self.mean, self.interval)]
    }
}

/// A number of a table as text, with its interval; empty if there is none.
#[must_use]
pub fn number(measure: Measure, mean: Option<f64>, interval: Option<f64>) -> String {
    let digits = if matches!(measure, Measure::Sharpness | Measure::BitsPerToken) { 3 } else { 2 };
    match (mean, interval) {
        (Some(mean), Some(interval)) => format!("{mean:.digits$} ± {interval:.digits$}"),
        (Some(mean), None) => format!("{mean:.digits$}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            test_error: 0.0,
            top_5_error: None,
            test_loss: None,
            sharpness: None,
            loss: 0.0,
            steps: 1,
            seconds: 1.0,
            parameters: 1,
            train_images: 1,
            test_images: 1,
            data: String::new(),
            device: String::new(),
            scaled: String::new(),
        }
    }

    #[test]
    fn intervals_are_students() {
        let of = |errors: &[f64]| {
            let outcomes: Vec<_> = errors.iter().map(|&test_error| Outcome { test_error, ..outcome() }).collect();
            Numbers::of(Measure::Error, None, &outcomes)
        };
        assert_eq!(of(&[0.5]).words(Measure::Error)[1], "50.00");
        assert_eq!(of(&[0.5]).interval, None);
        let five = of(&[0.01, 0.02, 0.03, 0.04, 0.05]);
        assert!((five.interval.unwrap() - 2.776 * (2.5f64 / 5.0).sqrt()).abs() < 1e-9);
        assert_eq!(five.words(Measure::Error)[1], "3.00 ± 1.96");
        assert_eq!(of(&[]).words(Measure::Error), ["", ""]);
        assert_eq!(number(Measure::Sharpness, Some(0.0123), None), "0.012");
    }
}
