//! The discriminant of `RoG` (Lee et al. 2019).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Tensor};
use nalgebra::{DMatrix, DVector};

use crate::data::{ImageSet, TEST_BATCH};
use crate::models::Model;
use crate::models::params::named;
use crate::util::numbers::share_of;

/// The share of each class that its Gaussian is estimated from.
const NEAREST: f64 = 0.7;

/// Replaces a model's last layer by the linear discriminant of its features, under classes of one covariance and equally
/// many images, from those 70 % of each class that are nearest to its mean (one step of the minimum covariance determinant).
///
/// # Errors
/// If the model has other than one linear layer named `head`, or the covariance is singular.
pub fn discriminate(model: &Model, images: &ImageSet, classes: usize) -> Result<()> {
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for batch in images.in_order(TEST_BATCH) {
        let (x, y) = batch?;
        let seen = model.features(&x, false)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        features.extend(seen.into_iter().map(DVector::from_vec));
        labels.extend(y.to_vec1::<u32>()?);
    }
    let (weight, bias) = discriminant(&features, &labels, classes)?;
    let width = weight.len() / classes;
    let vars: BTreeMap<_, _> = named(model.vars()).into_iter().collect();
    let (Some(head), Some(shift)) = (vars.get("head.weight"), vars.get("head.bias")) else {
        bail!("expected a last layer `head` to put the discriminant into")
    };
    head.set(&Tensor::from_vec(weight, (classes, width), head.device())?)?;
    shift.set(&Tensor::from_vec(bias, classes, shift.device())?)?;
    Ok(())
}

/// The weights (classes, width) and the bias of a linear discriminant.
fn discriminant(features: &[DVector<f64>], labels: &[u32], classes: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, label)| members[*label as usize].push(i));
    let width = features.first().map_or(0, DVector::len);

    let estimate = |members: &[Vec<usize>]| -> Result<_> {
        let means: Vec<_> = members.iter().map(|class| mean(features, class, width)).collect();
        let covariance = covariance(features, members, &means, width)
            .cholesky()
            .context("the covariance of the features is singular: expected finite features that differ")?;
        Ok((means, covariance))
    };
    let (means, metric) = estimate(&members)?;
    // The images of each class that are nearest to its mean, in the metric of the covariance.
    for (class, mean) in members.iter_mut().zip(&means) {
        let distance = |i: usize| {
            let off = &features[i] - mean;
            off.dot(&metric.solve(&off))
        };
        let mut order: Vec<(f64, usize)> = class.iter().map(|i| (distance(*i), *i)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let nearest = share_of(class.len(), NEAREST).max(1).min(class.len());
        *class = order[..nearest].iter().map(|(_, i)| *i).collect();
    }
    let (means, covariance) = estimate(&members)?;
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for mean in &means {
        let direction = covariance.solve(mean);
        bias.push((-0.5 * direction.dot(mean)) as f32);
        weight.extend(direction.iter().map(|x| *x as f32));
    }
    Ok((weight, bias))
}

fn mean(features: &[DVector<f64>], members: &[usize], width: usize) -> DVector<f64> {
    let sum = members.iter().fold(DVector::zeros(width), |sum, i| sum + &features[*i]);
    sum / members.len().max(1) as f64
}

/// The covariance of all classes together, each around its own mean, with a small multiple of the identity added so that it is
/// regular.
fn covariance(features: &[DVector<f64>], members: &[Vec<usize>], means: &[DVector<f64>], width: usize) -> DMatrix<f64> {
    let count = members.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let mut sum = DMatrix::zeros(width, width);
    for (class, mean) in members.iter().zip(means) {
        for i in class {
            let off = &features[*i] - mean;
            sum.ger(1.0 / count, &off, &off, 1.0);
        }
    }
    let ridge = (1e-4 * sum.trace() / width.max(1) as f64).max(1e-12);
    sum + DMatrix::from_diagonal_element(width, width, ridge)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data;
    use crate::metrics::predictions;
    use crate::models::Architecture;

    /// How many images a class has says nothing, and those far away are not among its 70 %.
    #[test]
    fn classes_of_a_discriminant_are_equally_likely() {
        // One pixel is the feature: 8 images of class 0 at 0 to 0.7, 4 of class 1 at 3 to 3.3, of each one more far away.
        let (near, far) = ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 9.0);
        let values: Vec<f64> = near.into_iter().chain([far]).chain([3.0, 3.1, 3.2, 3.3, far]).collect();
        let labels: Vec<u32> = (0..values.len()).map(|i| u32::from(i > 8)).collect();
        let features: Vec<_> = values.iter().map(|x| DVector::from_vec(vec![*x])).collect();
        let (weight, bias) = discriminant(&features, &labels, 2).unwrap();
        // Of nine images six are kept, of five three; 0.7 of 5 is 3.5.
        let border = (bias[0] - bias[1]) / (weight[1] - weight[0]);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        // The nearest to 1.3 and to 4.3, which the far ones have drawn to themselves.
        let [first, second] = [mean(&near[2..]), mean(&[3.1, 3.2, 3.3])];
        assert!((f64::from(border) - 0.5 * (first + second)).abs() < 1e-4, "{border} {first} {second}");
    }

    /// The features of a network that has learned nothing tell classes apart, its last layer does not.
    #[test]
    fn a_discriminant_tells_classes_apart() {
        let [images, _] = ImageSet::both(&Arc::new(data::embedded().unwrap()));
        let images = images.part((0..1000).collect());
        let model = Model::new(Architecture::Mlp(32), images.shape(), 10, 1).unwrap();
        let right = || {
            let guesses = predictions(&model, &images).unwrap();
            guesses.iter().zip(images.labels()).filter(|(guess, label)| guess == label).count()
        };
        assert!(right() < 300);
        discriminate(&model, &images, 10).unwrap();
        assert!(right() > 600, "{}", right());
    }
}
