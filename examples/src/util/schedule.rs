//! Learning-rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate of a training changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// From the base learning rate to 0 along a cosine.
    Cosine,
    /// Constant.
    Constant,
    /// Multiplied by a factor at given times.
    Steps,
}

/// Cosine from 1 to 0.
#[must_use]
pub fn cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}
