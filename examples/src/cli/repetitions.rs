//! Options for how long and how often an experiment trains.

use std::ops::Range;

use anyhow::Result;
use clap::Args;

use super::options::{seeds, within};
use crate::util::numbers::MOST;

/// How long and how often an experiment trains, `SEEDS` times by default.
#[derive(Clone, Copy, Debug, Args)]
pub struct Repetitions<const SEEDS: u64> {
    /// Passes over the training images
    #[arg(long, default_value_t = 40)]
    pub epochs: usize,

    /// Number of repetitions, with other weights, order and wrong labels
    #[arg(long = "seeds", value_name = "SEEDS", default_value_t = SEEDS)]
    pub count: u64,

    /// First seed
    #[arg(long = "seed", value_name = "SEED", default_value_t = 0)]
    pub first: u64,
}

impl<const SEEDS: u64> Repetitions<SEEDS> {
    /// Checks the numbers.
    ///
    /// # Errors
    /// If one is out of range.
    pub fn check(self) -> Result<()> {
        within("epochs", self.epochs as u64, 1..=MOST)?;
        seeds(self.first, self.count)
    }

    /// The seeds.
    #[must_use]
    pub fn seeds(self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// The number of seeds, as text.
    #[must_use]
    pub fn words(self) -> String {
        if self.count == 1 { "1 seed".to_owned() } else { format!("{} seeds", self.count) }
    }
}
