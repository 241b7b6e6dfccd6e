//! The trainings that a method consists of, and what is done after each.

use std::f64::consts::PI;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Tensor};
use nalgebra::{DMatrix, DVector};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Method;
use crate::data::loader::Source;
use crate::models::Model;
use crate::util::numbers::share_of;

/// One training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Of the recipe's epochs.
    pub epochs: f64,
    /// With which weights it begins.
    pub start: Start,
    /// How the learning rate changes.
    pub rate: Rate,
    /// What is trained on.
    pub images: Images,
    /// Whether the losses of all images are added up, epoch by epoch.
    pub record: bool,
    /// What is done with the model afterwards.
    pub then: Then,
}

/// The weights that a stage begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// New ones.
    New,
    /// Those of the stage before.
    Last,
    /// Those that were kept of an earlier stage.
    Kept,
}

/// The learning rate of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// The recipe's.
    Recipe,
    /// Always the recipe's highest.
    Constant,
    /// From a tenth of the highest to a hundredth along a line, again and again, this often.
    Cycles(u32),
}

impl Rate {
    /// What the recipe's highest learning rate is multiplied by, if the recipe does not say it.
    #[must_use]
    pub fn factor(self, progress: f64) -> Option<f64> {
        match self {
            Self::Recipe => None,
            Self::Constant => Some(1.0),
            Self::Cycles(count) => Some(0.1 - 0.09 * (progress * f64::from(count)).fract()),
        }
    }
}

/// The training images of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// Those that have been kept, at first all.
    Kept,
    /// Those that have been selected, at first none, and one half of all that have not been left out.
    SelectedAndHalf(Split),
    /// Those that have been selected.
    Selected,
}

/// One half of all images, of the two that a round of cross-validation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    round: u32,
    second: bool,
}

impl Split {
    /// Whether a round ends when this half has been selected from.
    #[must_use]
    pub fn ends_round(self) -> bool {
        !self.second
    }

    /// Whether an image is in this half, in a training of this seed.
    #[must_use]
    pub fn has(self, seed: u64, place: u32) -> bool {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Beside the streams of orders, below 2³², and those of steps and images, from 2⁶² on.
        rng.set_stream((1 << 61) | (u64::from(self.round) << 32) | u64::from(place));
        rng.random_bool(0.5) == self.second
    }
}

/// What follows a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// The weights are kept, for a later training to begin with.
    Keep,
    /// Every training image gets the label that the model predicts.
    Relabel,
    /// The share of the images that the noise is, those of the largest recorded losses, is dropped.
    DropWorst,
    /// Of the half that was not trained on, the images are selected whose labels the model predicts, and some of those are left
    /// out that have the largest losses.
    SelectFrom(Split),
    /// The last layer becomes the discriminant of Gaussian features, estimated robustly.
    Discriminate,
}

impl Method {
    /// Its trainings. The last model is the one that is tested.
    #[must_use]
    pub fn stages(self) -> Vec<Stage> {
        let whole = Stage {
            epochs: 1.0,
            start: Start::New,
            rate: Rate::Recipe,
            images: Images::Kept,
            record: false,
            then: Then::Nothing,
        };
        match self {
            Self::Plain | Self::Mixup | Self::Gce | Self::MentorNet | Self::MentorMix | Self::MDyrH => vec![whole],
            Self::Bootstrap | Self::BootstrapMixup => vec![Stage { then: Then::Relabel, ..whole }, whole],
            Self::O2u => vec![
                Stage { epochs: 0.25, rate: Rate::Constant, then: Then::Keep, ..whole },
                Stage {
                    epochs: 0.5,
                    start: Start::Last,
                    rate: Rate::Cycles(10),
                    record: true,
                    then: Then::DropWorst,
                    ..whole
                },
                Stage { start: Start::Kept, ..whole },
            ],
            Self::Incv => {
                let halves = (0..4).flat_map(|round| [false, true].map(|second| Split { round, second }));
                let selecting = halves.map(|half| Stage {
                    epochs: 0.25,
                    images: Images::SelectedAndHalf(half),
                    then: Then::SelectFrom(Split { second: !half.second, ..half }),
                    ..whole
                });
                selecting.chain([Stage { images: Images::Selected, ..whole }]).collect()
            }
            Self::Rog => vec![Stage { then: Then::Discriminate, ..whole }],
        }
    }
}

/// Cosine from 1 to 0.
#[must_use]
pub fn cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

/// Images that are looked at together.
const BATCH: usize = 500;

/// The labels that a model predicts for the images of a source.
///
/// # Errors
/// Those of the model.
pub fn predictions(model: &Model, source: &Source) -> Result<Vec<u32>> {
    let mut labels = Vec::with_capacity(source.len());
    for batch in source.in_order(BATCH) {
        labels.extend(model.forward(&batch?.0, false)?.argmax(1)?.to_vec1::<u32>()?);
    }
    Ok(labels)
}

/// The cross-entropy of each image of a source with its label.
///
/// # Errors
/// Those of the model.
pub fn losses(model: &Model, source: &Source) -> Result<Vec<f32>> {
    let mut losses = Vec::with_capacity(source.len());
    for batch in source.in_order(BATCH) {
        let (x, y) = batch?;
        losses.extend(each_loss(&model.forward(&x, false)?, &y)?);
    }
    Ok(losses)
}

/// The cross-entropy of each row of logits with its label.
pub(super) fn each_loss(logits: &Tensor, y: &Tensor) -> Result<Vec<f32>> {
    let log = candle_nn::ops::log_softmax(&logits.detach(), 1)?;
    Ok(log.gather(&y.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?.to_vec1()?)
}

/// Of places with losses, those that are left when the share with the largest losses has gone; in order.
#[must_use]
pub fn without_worst(places: &[u32], losses: &[f32], share: f64) -> Vec<u32> {
    let kept = places.len() - share_of(places.len(), share);
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(a.cmp(b)));
    let mut left: Vec<u32> = order[..kept].iter().map(|i| places[*i]).collect();
    left.sort_unstable();
    left
}

/// Of each class the share that its Gaussian is estimated from.
const NEAREST: f64 = 0.7;

/// Replaces a model's last layer by the linear discriminant of its features, under classes of one covariance and equally
/// many images, from those 70 % of each class that are nearest to its mean (one step of the minimum covariance determinant).
///
/// # Errors
/// If the model has other than one linear layer named `head`, or the covariance is singular.
pub fn discriminate(model: &Model, source: &Source, classes: usize) -> Result<()> {
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for batch in source.in_order(BATCH) {
        let (x, y) = batch?;
        let seen = model.features(&x, false)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        features.extend(seen.into_iter().map(DVector::from_vec));
        labels.extend(y.to_vec1::<u32>()?);
    }
    let (weight, bias) = discriminant(&features, &labels, classes)?;
    let width = weight.len() / classes;
    let vars = model.vars().data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
    // The part of each class that is nearest to its mean, in the covariance's own metric.
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

/// Of all classes together, each around its own mean; with a little of the identity, that no direction has none.
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
    use crate::models::Architecture;

    #[test]
    fn halves_are_halves() {
        let half = Split { round: 2, second: false };
        let other = Split { second: true, ..half };
        let count = (0..10_000).filter(|place| half.has(0, *place)).count();
        assert!((4800..5200).contains(&count), "{count}");
        assert!((0..1000).all(|place| half.has(0, place) != other.has(0, place)));
        let again = Split { round: 3, ..half };
        assert!((0..1000).any(|place| half.has(0, place) != again.has(0, place)));
        assert!((0..1000).any(|place| half.has(0, place) != half.has(1, place)));
    }

    #[test]
    fn the_largest_losses_go() {
        assert_eq!(without_worst(&[4, 9, 2, 7], &[0.1, 3.0, 0.2, 0.2], 0.5), [2, 4]);
        assert_eq!(without_worst(&[4, 9], &[0.1, 3.0], 0.0), [4, 9]);
    }

    #[test]
    fn cycles_fall_and_begin_again() {
        let rate = |progress| Rate::Cycles(10).factor(progress).unwrap();
        assert!((rate(0.0) - 0.1).abs() < 1e-12 && (rate(0.05) - 0.055).abs() < 1e-12);
        assert!((rate(0.1) - 0.1).abs() < 1e-9);
        assert_eq!(Rate::Recipe.factor(0.3), None);
    }

    #[test]
    fn o2u_trains_on_from_the_weights_of_its_first_training() {
        let stages = Method::O2u.stages();
        let found: Vec<_> = stages.iter().map(|stage| (stage.start, stage.then == Then::Keep)).collect();
        assert_eq!(found, [(Start::New, true), (Start::Last, false), (Start::Kept, false)]);
    }

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

    /// The features of a network that has learnt nothing tell classes apart, its last layer does not.
    #[test]
    fn a_discriminant_tells_classes_apart() {
        let [source, _] = Source::both(&Arc::new(data::embedded().unwrap()));
        let source = source.part((0..1000).collect());
        let model = Model::new(Architecture::Mlp(32), source.shape(), 10, 1).unwrap();
        let right = || {
            let guesses = predictions(&model, &source).unwrap();
            guesses.iter().zip(source.labels()).filter(|(guess, label)| guess == label).count()
        };
        assert!(right() < 300);
        discriminate(&model, &source, 10).unwrap();
        assert!(right() > 600, "{}", right());
    }
}
