//! The images and targets of a step, and its loss.

use anyhow::Result;
use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use sam_runtime::Sam;

use super::kind::NoisyLabelMethod;
use super::state::{CORRECTION_START, MethodState};
use super::targets::{beta, by_softmax, mixed, one_hot, shuffled, weighted};
use crate::data::Batch;
use crate::losses::{Objective, TargetBatch};
use crate::metrics::losses_of;
use crate::models::Model;
use crate::models::params::keeping_statistics;
use crate::util::partition::Partition;

/// The percentile of MentorNet, as published for the self-paced form, which has no burn-in.
const MENTOR_NET_SHARE: f64 = 0.7;

/// The share of MentorMix's training in which all examples are trusted. The original code has 10 of 100 epochs, and ends one
/// epoch early.
const BURN_IN: f64 = 0.09;

/// What the methods need of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MethodSettings {
    /// The method.
    pub method: NoisyLabelMethod,
    /// The share of each label that is spread over all classes.
    pub smoothing: f64,
    /// Both parameters of the Beta distribution of Mixup.
    pub alpha: f64,
    /// The share of wrong labels.
    pub noise: f64,
    /// Whether batch normalizations use their running statistics.
    pub frozen_norm: bool,
    /// How a batch is divided.
    pub partition: Partition,
}

impl MethodState {
    /// The images and targets of a step. `rng` is the generator of the step.
    ///
    /// # Errors
    /// Those of the model.
    pub fn examples(
        &mut self,
        settings: &MethodSettings,
        model: &Model,
        batch: &Batch,
        progress: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<TargetBatch> {
        // A text: its labels are integers, and no method but the plain one knows what to do with them.
        if batch.y.rank() == 2 {
            return Ok(TargetBatch { x: batch.x.clone(), target: batch.y.clone() });
        }
        let classes = model.classes();
        let labels = one_hot(&batch.labels, classes, settings.smoothing, batch.x.device())?;
        match settings.method {
            NoisyLabelMethod::Plain | NoisyLabelMethod::Bootstrap | NoisyLabelMethod::Incv | NoisyLabelMethod::Rog => {
                Ok(TargetBatch { x: batch.x.clone(), target: labels })
            }
            NoisyLabelMethod::O2u => {
                // Only in the phase that records losses.
                if !self.few.is_empty() {
                    let found = losses_of(&in_training(settings, model, &batch.x)?, &batch.y)?;
                    for (index, loss) in batch.indices.iter().zip(found) {
                        self.few[*index as usize] = loss.into();
                    }
                }
                Ok(TargetBatch { x: batch.x.clone(), target: labels })
            }
            NoisyLabelMethod::Mixup | NoisyLabelMethod::BootstrapMixup => {
                let share = beta(settings.alpha, rng)?;
                mixed(&batch.x, &labels, &shuffled(batch.indices.len(), rng), &vec![share; batch.indices.len()])
            }
            NoisyLabelMethod::Gce => {
                let counts = |index: &u32| self.each.get(*index as usize).copied().unwrap_or(1.0);
                Ok(TargetBatch {
                    x: batch.x.clone(),
                    target: weighted(&labels, batch.indices.iter().map(counts).collect())?,
                })
            }
            NoisyLabelMethod::MentorNet => {
                let found = losses_of(&in_training(settings, model, &batch.x)?, &batch.y)?;
                let trusted = self.trusted(0, &found, MENTOR_NET_SHARE, false);
                Ok(TargetBatch { x: batch.x.clone(), target: weighted(&labels, trusted)? })
            }
            NoisyLabelMethod::MentorMix => self.mentor_mix(settings, model, batch, &labels, progress, rng),
            NoisyLabelMethod::MDyrH => {
                let corrected = match self.mixture().filter(|_| progress >= CORRECTION_START) {
                    None => labels,
                    Some(mixture) => {
                        let found = losses_of(&model.forward(&batch.x, false)?, &batch.y)?;
                        let wrong = mixture.wrong();
                        let wrong: Vec<f32> = found.iter().map(|loss| wrong((*loss).into()) as f32).collect();
                        let right = wrong.iter().map(|wrong| 1.0 - wrong).collect();
                        let guesses = in_training(settings, model, &batch.x)?.argmax(1)?.to_vec1()?;
                        let guesses = one_hot(&guesses, classes, 0.0, batch.x.device())?;
                        (weighted(&labels, right)? + weighted(&guesses, wrong)?)?
                    }
                };
                let share = beta(settings.alpha, rng)?;
                mixed(&batch.x, &corrected, &shuffled(batch.indices.len(), rng), &vec![share; batch.indices.len()])
            }
        }
    }

    /// Partners are drawn by trust, and an example that is not trusted has the smaller share of its combination.
    fn mentor_mix(
        &mut self,
        settings: &MethodSettings,
        model: &Model,
        batch: &Batch,
        labels: &Tensor,
        progress: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<TargetBatch> {
        // The published settings, by noise.
        let share = match settings.noise {
            noise if noise <= 0.2 => 0.8,
            noise if noise <= 0.6 => 0.6,
            _ => 0.2,
        };
        let found = losses_of(&in_training(settings, model, &batch.x)?, &batch.y)?;
        let trusted = self.trusted(0, &found, share, progress < BURN_IN);
        let partners = by_softmax(&trusted, rng);
        let shares = trusted.iter().map(|trust| {
            let share = beta(settings.alpha, rng)?;
            let larger = share.max(1.0 - share);
            Ok(if *trust < 0.5 { 1.0 - larger } else { larger })
        });
        let mixture = mixed(&batch.x, labels, &partners, &shares.collect::<Result<Vec<_>>>()?)?;
        if settings.noise < 0.5 {
            return Ok(mixture);
        }
        let log = candle_nn::ops::log_softmax(&in_training(settings, model, &mixture.x)?, 1)?;
        let found = (log * &mixture.target)?.sum(1)?.neg()?.to_vec1::<f32>()?;
        let target = weighted(&mixture.target, self.trusted(1, &found, share, progress < BURN_IN))?;
        Ok(TargetBatch { target, ..mixture })
    }
}

impl NoisyLabelMethod {
    /// The loss of examples, with the weight decay and without. `corrects`: see [`MethodState::corrects`].
    ///
    /// # Errors
    /// Those of the model.
    pub fn loss(
        self,
        objective: &Objective<'_>,
        examples: &TargetBatch,
        corrects: bool,
        sam: &Sam,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        match self {
            Self::Gce => objective.generalized_cross_entropy(examples, sam),
            Self::MDyrH if corrects => objective.balanced_cross_entropy(examples, sam),
            _ => objective.cross_entropy(examples, sam),
        }
    }
}

/// The logits of images in training mode, shard by shard; running statistics are restored.
fn in_training(settings: &MethodSettings, model: &Model, x: &Tensor) -> Result<Tensor> {
    keeping_statistics(model.vars(), || {
        let shards = settings.partition.shards(x.dim(0)?)?;
        let logits = shards
            .into_iter()
            .map(|shard| Ok(model.forward(&x.narrow(0, shard.start, shard.len())?, !settings.frozen_norm)?.detach()));
        Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 0)?)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::state::NOT_RECORDED;
    use super::*;
    use crate::models::Architecture;
    use crate::util::rng::Stream;

    fn step_rng() -> ChaCha8Rng {
        Stream::Step { phase: 0, step: 3 }.rng(0)
    }

    fn settings(method: NoisyLabelMethod) -> MethodSettings {
        let partition = Partition { micro_batches: 1, m: 0, is_sam: false };
        MethodSettings { method, smoothing: 0.0, alpha: 1.0, noise: 0.0, frozen_norm: false, partition }
    }

    fn batch() -> Batch {
        let pixels: Vec<f32> = (0..8 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        Batch {
            x: Tensor::from_vec(pixels, (8, 1, 4, 4), &Device::Cpu).unwrap(),
            y: Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &Device::Cpu).unwrap(),
            labels: vec![0, 1, 2, 0, 1, 2, 0, 1],
            indices: (0..8).collect(),
        }
    }

    fn examples(settings: &MethodSettings, state: &mut MethodState, progress: f64) -> Vec<Vec<f32>> {
        let model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let examples = state.examples(settings, &model, &batch(), progress, &mut step_rng()).unwrap();
        assert_eq!(examples.x.dims(), [8, 1, 4, 4]);
        examples.target.to_vec2().unwrap()
    }

    #[test]
    fn targets_are_probabilities() {
        for method in [
            NoisyLabelMethod::Plain,
            NoisyLabelMethod::Mixup,
            NoisyLabelMethod::BootstrapMixup,
            NoisyLabelMethod::MDyrH,
            NoisyLabelMethod::Gce,
            NoisyLabelMethod::O2u,
        ] {
            let target = examples(&settings(method), &mut MethodState::default(), 0.0);
            for row in target {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{method:?}: {row:?}");
            }
        }
        let smoothing = MethodSettings { smoothing: 0.3, ..settings(NoisyLabelMethod::Plain) };
        let smooth = examples(&smoothing, &mut MethodState::default(), 0.0);
        assert!((smooth[1][1] - 0.8).abs() < 1e-6 && (smooth[1][0] - 0.1).abs() < 1e-6);
    }

    #[test]
    fn mixup_mixes_images_as_labels() {
        let target = examples(
            &MethodSettings { alpha: 8.0, ..settings(NoisyLabelMethod::Mixup) },
            &mut MethodState::default(),
            0.0,
        );
        // One share for the batch: of a row's own label, the rest of its partner's.
        let own: Vec<f32> =
            target.iter().zip([0, 1, 2, 0, 1, 2, 0, 1]).map(|(row, label): (_, usize)| row[label]).collect();
        let share = own.iter().copied().find(|x| *x < 1.0).unwrap();
        assert!(share > 0.0 && own.iter().all(|x| (x - share).abs() < 1e-6 || (x - 1.0).abs() < 1e-6), "{target:?}");
        for row in &target {
            let rest = row.iter().sum::<f32>() - row.iter().copied().fold(0.0, f32::max);
            let is_share = [0.0, share.min(1.0 - share)].iter().any(|expected| (rest - expected).abs() < 1e-6);
            assert!(is_share, "{share}: {target:?}");
        }
        let mixture =
            mixed(&batch().x, &one_hot(&batch().labels, 3, 0.0, &Device::Cpu).unwrap(), &[1; 8], &[0.25; 8]).unwrap();
        let (before, after) = (batch().x.flatten_all().unwrap(), mixture.x.flatten_all().unwrap());
        let (before, after) = (before.to_vec1::<f32>().unwrap(), after.to_vec1::<f32>().unwrap());
        assert!((after[40] - (0.25 * before[40] + 0.75 * before[24])).abs() < 1e-6);
        let expected = [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.75, 0.25]];
        assert_eq!(mixture.target.to_vec2::<f32>().unwrap()[..3], expected);
    }

    #[test]
    fn mentors_leave_out_the_larger_losses_after_the_burn_in() {
        let mut state = MethodState::default();
        let target = examples(&settings(NoisyLabelMethod::MentorNet), &mut state, 0.5);
        let left_out = target.iter().filter(|row| row.iter().sum::<f32>() == 0.0).count();
        // The percentile begins at 0: half of the first batch's is below nearly all losses.
        assert_eq!((left_out, state.few.len()), (8, 1));
        // Of 0 to 7 the percentile for three quarters is the nearest, 5; half of it counts, and of the next batch's a half more.
        let (mut state, losses) = (MethodState::default(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let trusted = state.trusted(0, &losses, 0.75, false);
        assert_eq!((state.few[0], trusted), (2.5, vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
        state.trusted(0, &losses, 0.75, false);
        assert_eq!(state.few[0], 3.75);
        assert_eq!(state.trusted(1, &losses, 0.75, true), [1.0; 8]);
        let mut state = MethodState { few: vec![-100.0, -100.0], ..MethodState::default() };
        let noisy = |noise| MethodSettings { noise, ..settings(NoisyLabelMethod::MentorMix) };
        let target = examples(&noisy(0.8), &mut state, 0.5);
        assert!(target.iter().any(|row| row.iter().sum::<f32>() == 0.0), "{target:?}");
        let target = examples(&noisy(0.2), &mut MethodState::default(), 0.5);
        assert!(target.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5), "{target:?}");
    }

    /// Losses are those in training mode, in which a batch normalization uses the statistics of the batch; its running statistics
    /// do not change.
    #[test]
    fn losses_are_those_of_training() {
        let model: Model = Model::new(Architecture::MlpNorm(8), [1, 4, 4], 3, 1).unwrap();
        let statistics = || {
            let vars = model.vars().data().lock().unwrap();
            let var = vars.iter().find(|(name, _)| name.ends_with("running_mean")).unwrap().1;
            var.to_vec1::<f32>().unwrap()
        };
        let partition = Partition { micro_batches: 1, m: 4, is_sam: false };
        let settings = MethodSettings { partition, ..settings(NoisyLabelMethod::Plain) };
        let (before, batch) = (statistics(), batch());
        let found = in_training(&settings, &model, &batch.x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(statistics(), before);
        let half = model.forward(&batch.x.narrow(0, 4, 4).unwrap(), true).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found[4..], half);
        assert_ne!(found, model.forward(&batch.x, false).unwrap().to_vec2::<f32>().unwrap());
    }

    /// O2U-Net adds the losses of the steps, less the mean of the epoch.
    #[test]
    fn losses_are_recorded_step_by_step() {
        let model: Model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let settings = MethodSettings { noise: 0.4, ..settings(NoisyLabelMethod::O2u) };
        let batch = batch();
        let mut state = MethodState::default();
        let step = |state: &mut MethodState| {
            state.examples(&settings, &model, &batch, 0.5, &mut step_rng()).unwrap();
        };
        step(&mut state);
        assert_eq!(state, MethodState::default(), "nothing is recorded before");
        let losses = losses_of(&model.forward(&batch.x, false).unwrap(), &batch.y).unwrap();
        let mean = losses.iter().sum::<f32>() / 8.0;
        // Ten images, of which the last two are not in the batch; then the next epoch begins.
        state = MethodState { each: vec![1.0; 10], few: vec![NOT_RECORDED; 10] };
        step(&mut state);
        state.settle();
        for (sum, loss) in state.each.iter().zip(&losses) {
            assert!((sum - (1.0 + loss - mean)).abs() < 1e-5, "{sum} {loss} {mean}");
        }
        assert_eq!(state.each[8..], [1.0; 2]);
        assert!(state.few.iter().all(|loss| *loss == NOT_RECORDED));
        let before = state.clone();
        state.settle();
        assert_eq!(state, before);
    }

    #[test]
    fn the_divergence_belongs_to_the_second_phase() {
        let mixture = MethodState { few: vec![1.0, 1.0, 0.5, 1.0, 1.0, 0.5, 0.0, 5.0], each: Vec::new() };
        let corrects = |progress| mixture.corrects(NoisyLabelMethod::MDyrH, progress);
        assert_eq!([corrects(0.0), corrects(0.34), corrects(0.35), corrects(1.0)], [false, false, true, true]);
        assert!(
            !MethodState::default().corrects(NoisyLabelMethod::MDyrH, 1.0)
                && !mixture.corrects(NoisyLabelMethod::Plain, 1.0)
        );
        let model: Model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let objective = Objective { model: &model, decay: 0.0, frozen: false, m: usize::MAX };
        let (batch, sam) = (batch(), Sam::default());
        let target = one_hot(&batch.labels, 3, 0.0, &Device::Cpu).unwrap();
        let examples = TargetBatch { x: batch.x, target };
        let value = |loss: (Tensor, Tensor)| loss.0.to_scalar::<f32>().unwrap();
        let loss = |corrects| value(NoisyLabelMethod::MDyrH.loss(&objective, &examples, corrects, &sam).unwrap());
        assert_eq!(loss(false), value(objective.cross_entropy(&examples, &sam).unwrap()));
        assert_eq!(loss(true), value(objective.balanced_cross_entropy(&examples, &sam).unwrap()));
        assert_ne!(loss(false), loss(true));
    }

    #[test]
    fn gce_leaves_out_what_is_not_believed() {
        let mut state = MethodState { each: vec![1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], few: Vec::new() };
        let target = examples(&settings(NoisyLabelMethod::Gce), &mut state, 0.5);
        assert_eq!(target[1], [0.0; 3]);
        assert_eq!(target[0], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn wrong_labels_are_corrected_as_far_as_they_are_held_for_wrong() {
        let certain = |weight: f64| vec![1.0, 1.0, 1.0 - weight, 1.0, 1.0, weight, 0.0, 5.0];
        let settings = MethodSettings { alpha: 0.01, ..settings(NoisyLabelMethod::MDyrH) };
        let kept = examples(&settings, &mut MethodState { few: certain(1e-9), each: Vec::new() }, 0.5);
        let corrected = examples(&settings, &mut MethodState { few: certain(1.0 - 1e-9), each: Vec::new() }, 0.5);
        assert_ne!(kept, corrected);
        let early = examples(&settings, &mut MethodState { few: certain(1.0 - 1e-9), each: Vec::new() }, 0.1);
        // No probability is below 0.0001.
        assert!(early.iter().flatten().zip(kept.iter().flatten()).all(|(a, b)| (a - b).abs() < 2e-4));
    }
}
