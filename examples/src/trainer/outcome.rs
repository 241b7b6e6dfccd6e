//! The result of a training.

use sam_runtime::Error;
use serde::{Deserialize, Serialize};

use crate::metrics::bits;
use crate::recipe::Measure;

/// Errors, losses and costs of a finished training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The share of test images that the last model misclassifies, or of the tokens of a text that it does not predict.
    pub test_error: f64,
    /// The share whose label is not among its five likeliest classes; `None` for at most five classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_5_error: Option<f64>,
    /// The mean cross-entropy of the last model on a text to test on, in nats for each token; `None` for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// L(w + ε̂) - L(w) with the weight decay, on the last shard of a step, the mean over the last epoch; `None` if a step does not
    /// evaluate both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharpness: Option<f64>,
    /// The mean loss of the last epoch, without the weight decay: at w, or, if a step has no pass there, at w + ε.
    pub loss: f64,
    /// Steps of all phases.
    pub steps: usize,
    /// Seconds of training and testing.
    pub seconds: f64,
    /// Parameters.
    pub parameters: usize,
    /// Training images, or windows of a text.
    pub train_images: usize,
    /// Test images, or windows of a text.
    pub test_images: usize,
    /// The data set.
    pub data: String,
    /// The device and dtype; empty for f32 on the CPU.
    #[serde(rename = "place", default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// The label of a scaled or changed recipe; empty for others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scaled: String,
}

impl Outcome {
    /// Its number in a table of this measure, if it has one.
    #[must_use]
    pub fn value(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Error => Some(100.0 * self.test_error),
            Measure::Accuracy => Some(100.0 * (1.0 - self.test_error)),
            Measure::Top5Error => self.top_5_error.map(|error| 100.0 * error),
            Measure::Sharpness => self.sharpness,
            Measure::BitsPerToken => self.test_loss.map(bits),
        }
    }

    /// The loss of a text in words, or nothing.
    #[must_use]
    pub fn test_loss_note(&self) -> String {
        self.test_loss.map_or_else(String::new, loss_note)
    }

    /// The end of a line about it: the label of a scaled recipe, or nothing.
    #[must_use]
    pub fn scaled_note(&self) -> String {
        if self.scaled.is_empty() { String::new() } else { format!(", scaled: {}", self.scaled) }
    }
}

/// A cross-entropy in words.
#[must_use]
pub fn loss_note(loss: f64) -> String {
    format!(", loss {loss:.4} ({:.3} bits per token, perplexity {:.2})", bits(loss), loss.exp())
}

/// A training whose loss or gradient is not finite. It is not repeated: it is deterministic.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("step {step} diverged: {what}; try a lower learning rate, or `clip`")]
pub struct Diverged {
    /// The step of the phase.
    pub step: usize,
    /// What was not finite.
    pub what: String,
}

/// Whether a step failed because a loss or a gradient is not finite.
pub(super) fn is_not_finite(error: &anyhow::Error) -> bool {
    let step = error.chain().find_map(|cause| Error::of(cause.downcast_ref()?));
    matches!(step, Some(Error::NonFiniteLoss { .. } | Error::NonFiniteGradient { .. } | Error::NonFiniteNorm(_)))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use sam_runtime::Pass;

    use super::*;

    #[test]
    fn what_is_not_finite_is_told_from_other_errors() {
        let wrapped = |error: Error| anyhow::Error::from(candle_core::Error::from(error));
        assert!(is_not_finite(&wrapped(Error::NonFiniteLoss { pass: Pass::Ascent, value: f64::NAN })));
        let (shape, dtype) = ((2, 3).into(), DType::F32);
        let gradient = Error::NonFiniteGradient { pass: Pass::Descent, name: None, index: 1, count: 2, shape, dtype };
        assert!(is_not_finite(&wrapped(gradient)));
        assert!(is_not_finite(&wrapped(Error::NonFiniteNorm(f64::INFINITY))));
        assert!(is_not_finite(&wrapped(Error::NonFiniteNorm(f64::INFINITY)).context("step 3")));
        assert!(!is_not_finite(&wrapped(Error::Rho(f64::NAN))));
    }
}
