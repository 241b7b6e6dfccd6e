//! Learning-rate schedules of recipes.

use serde::{Deserialize, Serialize};

/// How the learning rate of a training changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrShape {
    /// From the base learning rate to 0 along a cosine.
    Cosine,
    /// Constant.
    Constant,
    /// Multiplied by a factor at given times.
    Steps,
}
