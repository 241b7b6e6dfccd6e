//! Metrics of a model on images, and means over seeds.

pub mod over_ranks;

use anyhow::Result;
use candle_core::{DType, Tensor};
use sam_runtime::nn;

use crate::data::{ImageSet, TEST_BATCH};
use crate::models::Model;

/// The share of images that a model misclassifies.
///
/// # Errors
/// Those of the model.
pub fn error_rate(
    model: &Model,
    batches: impl Iterator<Item = candle_core::Result<(Tensor, Tensor)>>,
) -> candle_core::Result<f64> {
    Ok(Scores::of(model, batches)?.error)
}

/// How well a model does on images, or on the tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The share of the labels that are not the likeliest.
    pub error: f64,
    /// The mean cross-entropy of the labels, in nats.
    pub loss: f64,
}

impl Scores {
    /// Of a model in evaluation.
    ///
    /// # Errors
    /// Those of the model.
    pub fn of(
        model: &Model,
        batches: impl Iterator<Item = candle_core::Result<(Tensor, Tensor)>>,
    ) -> candle_core::Result<Self> {
        let (mut wrong, mut sum, mut count) = (0, 0.0, 0);
        for batch in batches {
            let (x, y) = batch?;
            let (logits, y) = (model.forward(&x, false)?.detach(), y.flatten_all()?);
            wrong += logits.argmax(1)?.ne(&y)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
            let loss = nn::cross_entropy(&logits, &y)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            sum += loss * y.elem_count() as f64;
            count += y.elem_count();
        }
        let count = count.max(1) as f64;
        Ok(Self { error: f64::from(wrong) / count, loss: sum / count })
    }
}

/// The bits that a text needs for each token, for a cross-entropy in nats.
#[must_use]
pub fn bits(loss: f64) -> f64 {
    loss / std::f64::consts::LN_2
}

/// The top-5 error of a model: the share of labels that are not among its five likeliest classes; `None` for at most five
/// classes.
///
/// # Errors
/// Those of the model.
pub fn top_5_error(model: &Model, images: &ImageSet) -> Result<Option<f64>> {
    if model.classes() <= 5 {
        return Ok(None);
    }
    let mut wrong = 0;
    for batch in images.in_order(images.test_batch()).in_background().pairs() {
        let (x, y) = batch?;
        wrong += not_in_top_5(&model.forward(&x, false)?, &y.flatten_all()?)?;
    }
    Ok(Some(f64::from(wrong) / (images.len() * images.labels_each()) as f64))
}

/// The number of rows of logits (n, classes) in which at least five others are not lower than that of the label (n). Nothing is
/// lower than NaN.
fn not_in_top_5(logits: &Tensor, y: &Tensor) -> Result<u32> {
    let lower = logits.broadcast_lt(&logits.gather(&y.unsqueeze(1)?, 1)?)?.to_dtype(DType::U32)?.sum(1)?;
    let most = logits.dim(1)?.saturating_sub(5) as u32;
    Ok(lower.lt(most)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?)
}

/// The mean of the losses of steps. They are summed on the device: reading each would synchronize with a GPU.
#[derive(Debug, Default)]
pub struct MeanLoss {
    sum: Option<Tensor>,
    count: u32,
}

impl MeanLoss {
    /// Adds the loss of a step.
    ///
    /// # Errors
    /// Those of candle.
    pub fn add(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        let loss = loss.detach().to_dtype(DType::F64)?;
        self.sum = Some(match &self.sum {
            Some(sum) => (sum + loss)?,
            None => loss,
        });
        self.count += 1;
        Ok(())
    }

    /// The mean, 0 without losses; starts anew.
    ///
    /// # Errors
    /// Those of candle.
    pub fn take(&mut self) -> candle_core::Result<f64> {
        let Self { sum, count } = std::mem::take(self);
        Ok(sum.map_or(Ok(0.0), |sum| sum.to_scalar::<f64>())? / f64::from(count.max(1)))
    }
}

/// The labels that a model predicts for the images of a set.
///
/// # Errors
/// Those of the model.
pub fn predictions(model: &Model, images: &ImageSet) -> Result<Vec<u32>> {
    let mut labels = Vec::with_capacity(images.len());
    for batch in images.in_order(TEST_BATCH) {
        labels.extend(model.forward(&batch?.0, false)?.argmax(1)?.to_vec1::<u32>()?);
    }
    Ok(labels)
}

/// The cross-entropy of each image of a set with its label.
///
/// # Errors
/// Those of the model.
pub fn losses(model: &Model, images: &ImageSet) -> Result<Vec<f32>> {
    let mut losses = Vec::with_capacity(images.len());
    for batch in images.in_order(TEST_BATCH) {
        let (x, y) = batch?;
        losses.extend(losses_of(&model.forward(&x, false)?, &y)?);
    }
    Ok(losses)
}

/// The cross-entropy of each row of logits with its label, on the host.
///
/// # Errors
/// If the shapes do not fit.
pub fn losses_of(logits: &Tensor, y: &Tensor) -> Result<Vec<f32>> {
    Ok(nn::cross_entropy_per_example(&logits.detach(), y)?.to_vec1()?)
}

/// A mean over seeds, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half of its 95 % confidence interval, by Student's t-distribution; `None` for a single seed.
    pub interval: Option<f64>,
}

impl Mean {
    /// The mean of these numbers.
    #[must_use]
    pub fn of(numbers: &[f64]) -> Self {
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let squares = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let freedom = numbers.len().saturating_sub(1);
        let interval = (freedom > 0).then(|| student(freedom) * (squares / (n - 1.0) / n).sqrt());
        Self { mean, interval }
    }

    /// In percent, with the interval if there is one.
    #[must_use]
    pub fn percent(self) -> String {
        let mean = 100.0 * self.mean;
        self.interval.map_or_else(|| format!("{mean:.1}"), |interval| format!("{mean:.1} ± {:.1}", 100.0 * interval))
    }
}

/// 97.5 % of Student's distribution, by degrees of freedom from 1.
fn student(freedom: usize) -> f64 {
    const STUDENT: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    STUDENT.get(freedom - 1).copied().unwrap_or(1.96 + 2.4 / freedom as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_fifth_place_is_among_the_five() {
        let logits = Tensor::new(&[[0f32, 5.0, 1.0, 4.0, 2.0, 3.0, -1.0]; 7], &Device::Cpu).unwrap();
        let labels = Tensor::arange(0u32, 7, &Device::Cpu).unwrap();
        assert_eq!(not_in_top_5(&logits, &labels).unwrap(), 2);
        assert_eq!(not_in_top_5(&logits.affine(f64::NAN, 0.0).unwrap(), &labels).unwrap(), 7);
    }

    #[test]
    fn means_and_intervals() {
        assert_eq!(Mean::of(&[0.2]), Mean { mean: 0.2, interval: None });
        let Mean { mean, interval } = Mean::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((interval.unwrap() - 3.182 * (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    }
}
