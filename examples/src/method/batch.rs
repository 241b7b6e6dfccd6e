//! What is made of a batch before the loss sees it, and what a method remembers from batch to batch.

use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};
use sam_runtime::Sam;

use super::Method;
use super::mixture::{self, Mixture};
use super::stage::{each_loss, losses};
use crate::batches::{Batch, Source};
use crate::loss::{Examples, GCE_K, Objective};
use crate::models::Model;
use crate::numbers::share_of;
use crate::recipe::Recipe;

/// How much of a running percentile each batch leaves.
const PERCENTILE_DECAY: f64 = 0.5;

/// MentorNet trusts this share of a batch.
const MENTOR_NET_SHARE: f64 = 0.75;

/// The share of a training in which all examples are trusted.
const BURN_IN: f64 = 0.1;

/// Whether truncated GCE looks which examples it leaves out: after a third of the epochs, and after each further twelfth.
fn gce_looks(epoch: usize, epochs: usize) -> bool {
    let since = epoch.checked_sub(epochs.div_ceil(3));
    since.is_some_and(|since| since.is_multiple_of((epochs / 12).max(1)))
}

/// The share of the training after which M-DYR-H corrects labels.
const CORRECTION_START: f64 = 0.35;

/// What a method remembers: all of it numbers, for the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// A number for each training image: its recorded losses (O2U-Net), or whether it counts (GCE).
    pub each: Vec<f32>,
    /// Running percentiles (MentorNet, MentorMix), or the mixture's parameters (M-DYR-H).
    pub few: Vec<f64>,
}

impl Memory {
    /// Looks at the model at the beginning of an epoch, from 0.
    ///
    /// # Errors
    /// Those of the model.
    pub fn look(
        &mut self,
        method: Method,
        model: &Model,
        source: &Source,
        record: bool,
        epoch: usize,
        epochs: usize,
    ) -> Result<()> {
        let images = source.labels().len();
        if record {
            // Each epoch's losses, less their mean.
            let found = losses(model, source)?;
            let mean = found.iter().sum::<f32>() / found.len().max(1) as f32;
            self.each.resize(images, 0.0);
            for (place, loss) in source.places().iter().zip(found) {
                self.each[*place as usize] += loss - mean;
            }
        } else if method == Method::Gce && gce_looks(epoch, epochs) {
            self.each = vec![1.0; images];
            for (place, loss) in source.places().iter().zip(losses(model, source)?) {
                let counts = f64::from(-loss).exp() > GCE_K;
                self.each[*place as usize] = if counts { 1.0 } else { 0.0 };
            }
        } else if method == Method::MDyrH && epoch > 0 {
            let Mixture { components, low, high } = Mixture::fit(&losses(model, source)?);
            self.few = components.iter().flat_map(|beta| [beta.a, beta.b, beta.weight]).chain([low, high]).collect();
        }
        Ok(())
    }

    fn mixture(&self) -> Option<Mixture> {
        let [a, b, c, d, e, f, low, high] = self.few[..] else { return None };
        let beta = |a, b, weight| mixture::Beta { a, b, weight };
        Some(Mixture { components: [beta(a, b, c), beta(d, e, f)], low, high })
    }

    /// What the loss sees of a batch. `rng` is the step's own.
    ///
    /// # Errors
    /// Those of the model.
    pub fn examples(
        &mut self,
        recipe: &Recipe,
        model: &Model,
        batch: &Batch,
        progress: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<Examples> {
        let classes = model.classes();
        let labels = one_hot(&batch.labels, classes, recipe.smoothing, batch.x.device())?;
        match recipe.method {
            Method::Plain | Method::Bootstrap | Method::O2u | Method::Incv | Method::Rog => {
                Ok(Examples { x: batch.x.clone(), target: labels })
            }
            Method::Mixup | Method::BootstrapMixup => {
                let share = beta(recipe.alpha, rng)?;
                mixed(&batch.x, &labels, &shuffled(batch.places.len(), rng), &vec![share; batch.places.len()])
            }
            Method::Gce => {
                let counts = |place: &u32| self.each.get(*place as usize).copied().unwrap_or(1.0);
                Ok(Examples {
                    x: batch.x.clone(),
                    target: weighted(&labels, batch.places.iter().map(counts).collect())?,
                })
            }
            Method::MentorNet => {
                let found = each_loss(&model.forward(&batch.x, false)?, &batch.y)?;
                let trusted = self.trusted(0, &found, MENTOR_NET_SHARE, progress);
                Ok(Examples { x: batch.x.clone(), target: weighted(&labels, trusted)? })
            }
            Method::MentorMix => self.mentor_mix(recipe, model, batch, &labels, progress, rng),
            Method::MDyrH => {
                let logits = model.forward(&batch.x, false)?.detach();
                let corrected = match self.mixture().filter(|_| progress > CORRECTION_START) {
                    None => labels,
                    Some(mixture) => {
                        let found = each_loss(&logits, &batch.y)?;
                        let wrong: Vec<f32> = found.iter().map(|loss| mixture.wrong((*loss).into()) as f32).collect();
                        let right = wrong.iter().map(|wrong| 1.0 - wrong).collect();
                        let guesses = one_hot(&logits.argmax(1)?.to_vec1()?, classes, 0.0, batch.x.device())?;
                        (weighted(&labels, right)? + weighted(&guesses, wrong)?)?
                    }
                };
                let share = beta(recipe.alpha, rng)?;
                mixed(&batch.x, &corrected, &shuffled(batch.places.len(), rng), &vec![share; batch.places.len()])
            }
        }
    }

    /// Partners are drawn by trust, and an example that is not trusted counts for the smaller share of its mixture.
    fn mentor_mix(
        &mut self,
        recipe: &Recipe,
        model: &Model,
        batch: &Batch,
        labels: &Tensor,
        progress: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<Examples> {
        // The published settings, by noise.
        let share = match recipe.noise {
            noise if noise <= 0.2 => 0.8,
            noise if noise <= 0.6 => 0.6,
            _ => 0.2,
        };
        let found = each_loss(&model.forward(&batch.x, false)?, &batch.y)?;
        let trusted = self.trusted(0, &found, share, progress);
        let partners = by_softmax(&trusted, rng);
        let shares = trusted.iter().map(|trust| {
            let share = beta(recipe.alpha, rng)?;
            let larger = share.max(1.0 - share);
            Ok(if *trust < 0.5 { 1.0 - larger } else { larger })
        });
        let mixture = mixed(&batch.x, labels, &partners, &shares.collect::<Result<Vec<_>>>()?)?;
        if recipe.noise < 0.5 {
            return Ok(mixture);
        }
        let log = candle_nn::ops::log_softmax(&model.forward(&mixture.x, false)?.detach(), 1)?;
        let found = (log * &mixture.target)?.sum(1)?.neg()?.to_vec1::<f32>()?;
        let target = weighted(&mixture.target, self.trusted(1, &found, share, progress))?;
        Ok(Examples { target, ..mixture })
    }

    /// 1 for losses up to the running percentile, 0 for others.
    fn trusted(&mut self, which: usize, losses: &[f32], share: f64, progress: f64) -> Vec<f32> {
        let mut sorted = losses.to_vec();
        sorted.sort_by(f32::total_cmp);
        let place = share_of(sorted.len(), share).min(sorted.len().saturating_sub(1));
        let percentile = f64::from(sorted.get(place).copied().unwrap_or(0.0));
        if self.few.len() <= which {
            self.few.resize(which + 1, percentile);
        }
        let running = &mut self.few[which];
        *running = PERCENTILE_DECAY * *running + (1.0 - PERCENTILE_DECAY) * percentile;
        let trust = |loss: &f32| if progress < BURN_IN || f64::from(*loss) <= *running { 1.0 } else { 0.0 };
        losses.iter().map(trust).collect()
    }
}

impl Method {
    /// The loss of examples, with the weight decay and without.
    ///
    /// # Errors
    /// Those of the model.
    pub fn loss(
        self,
        objective: &Objective<'_>,
        examples: &Examples,
        sam: &Sam,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        match self {
            Self::Gce => objective.generalised_cross_entropy(examples, sam),
            Self::MDyrH => objective.balanced_cross_entropy(examples, sam),
            _ => objective.cross_entropy(examples, sam),
        }
    }
}

/// A generator for one step of one stage.
pub(crate) fn step_rng(seed: u64, stage: usize, step: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Beside the streams of orders, below 2³², and those of images, from 2⁶³ on.
    rng.set_stream((1 << 62) | ((stage as u64) << 40) | step as u64);
    rng
}

fn beta(alpha: f64, rng: &mut ChaCha8Rng) -> Result<f64> {
    Ok(Beta::new(alpha, alpha)?.sample(rng))
}

fn shuffled(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<_> = (0..n).collect();
    order.shuffle(rng);
    order
}

/// As many places as there are weights, each drawn with a probability proportional to the exponential of its weight.
fn by_softmax(weights: &[f32], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut sum = 0.0;
    let sums: Vec<f64> = weights
        .iter()
        .map(|weight| {
            sum += f64::from(*weight).exp();
            sum
        })
        .collect();
    let mut draw = || {
        let at = sum * rng.random::<f64>();
        sums.partition_point(|sum| *sum <= at).min(weights.len() - 1)
    };
    weights.iter().map(|_| draw()).collect()
}

/// Of each example its share, of its partner the rest.
fn mixed(x: &Tensor, target: &Tensor, partners: &[usize], shares: &[f64]) -> Result<Examples> {
    let partners = partners.iter().map(|i| *i as u32).collect::<Vec<_>>();
    let partners = Tensor::from_vec(partners, shares.len(), &Device::Cpu)?.to_device(x.device())?;
    let shares: Vec<f32> = shares.iter().map(|share| *share as f32).collect();
    let shares = Tensor::from_vec(shares, x.dim(0)?, &Device::Cpu)?.to_device(x.device())?;
    let mix = |of: &Tensor| -> Result<Tensor> {
        let mut shape = vec![1; of.rank()];
        shape[0] = of.dim(0)?;
        let shares = shares.reshape(shape)?;
        let rest = of.index_select(&partners, 0)?.broadcast_mul(&shares.affine(-1.0, 1.0)?)?;
        Ok((of.broadcast_mul(&shares)? + rest)?)
    };
    Ok(Examples { x: mix(x)?, target: mix(target)? })
}

fn weighted(target: &Tensor, weights: Vec<f32>) -> Result<Tensor> {
    let n = weights.len();
    Ok(target.broadcast_mul(&Tensor::from_vec(weights, (n, 1), &Device::Cpu)?.to_device(target.device())?)?)
}

/// Labels (n) as probabilities (n, classes), a share of them spread over all classes.
fn one_hot(labels: &[u32], classes: usize, smoothing: f64, device: &Device) -> Result<Tensor> {
    let even = (smoothing / classes as f64) as f32;
    let mut target = vec![even; labels.len() * classes];
    for (row, label) in target.chunks_exact_mut(classes).zip(labels) {
        row[*label as usize] += 1.0 - smoothing as f32;
    }
    Ok(Tensor::from_vec(target, (labels.len(), classes), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Architecture;
    use crate::recipe::{Changes, Scale};

    fn recipe(text: &str) -> Recipe {
        Changes::parse("test", text).unwrap().recipe(&Scale::default()).unwrap()
    }

    fn batch() -> Batch {
        let pixels: Vec<f32> = (0..8 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        Batch {
            x: Tensor::from_vec(pixels, (8, 1, 4, 4), &Device::Cpu).unwrap(),
            y: Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &Device::Cpu).unwrap(),
            labels: vec![0, 1, 2, 0, 1, 2, 0, 1],
            places: (0..8).collect(),
        }
    }

    fn examples(text: &str, memory: &mut Memory, progress: f64) -> Vec<Vec<f32>> {
        let model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let examples = memory.examples(&recipe(text), &model, &batch(), progress, &mut step_rng(0, 0, 3)).unwrap();
        assert_eq!(examples.x.dims(), [8, 1, 4, 4]);
        examples.target.to_vec2().unwrap()
    }

    #[test]
    fn targets_are_probabilities() {
        for method in ["plain", "mixup", "bootstrap-mixup", "m-dyr-h", "mentornet", "gce", "o2u\"\nnoise = 0.4 #"] {
            let target = examples(&format!("method = \"{method}\""), &mut Memory::default(), 0.0);
            for row in target {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{method}: {row:?}");
            }
        }
        let smooth = examples("smoothing = 0.3", &mut Memory::default(), 0.0);
        assert!((smooth[1][1] - 0.8).abs() < 1e-6 && (smooth[1][0] - 0.1).abs() < 1e-6);
    }

    #[test]
    fn mixup_mixes_images_as_labels() {
        let target = examples("method = \"mixup\"\nalpha = 8.0", &mut Memory::default(), 0.0);
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
    fn gce_looks_after_whole_epochs() {
        let looks = |epochs| (0..epochs).filter(|epoch| gce_looks(*epoch, epochs)).collect::<Vec<_>>();
        assert_eq!(looks(120), [40, 50, 60, 70, 80, 90, 100, 110]);
        assert_eq!(looks(200), [67, 83, 99, 115, 131, 147, 163, 179, 195]);
        assert_eq!(looks(5), [2, 3, 4]);
    }

    #[test]
    fn mentors_leave_out_the_larger_losses_after_the_burn_in() {
        let mut memory = Memory::default();
        let target = examples("method = \"mentornet\"", &mut memory, 0.5);
        let left_out = target.iter().filter(|row| row.iter().sum::<f32>() == 0.0).count();
        assert_eq!((left_out, memory.few.len()), (1, 1));
        let mut memory = Memory { few: vec![-100.0, -100.0], ..Memory::default() };
        let target = examples("method = \"mentormix\"\nnoise = 0.8", &mut memory, 0.5);
        assert!(target.iter().any(|row| row.iter().sum::<f32>() == 0.0), "{target:?}");
        let target = examples("method = \"mentormix\"\nnoise = 0.2", &mut Memory::default(), 0.5);
        assert!(target.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5), "{target:?}");
    }

    #[test]
    fn gce_leaves_out_what_is_not_believed() {
        let mut memory = Memory { each: vec![1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], few: Vec::new() };
        let target = examples("method = \"gce\"", &mut memory, 0.5);
        assert_eq!(target[1], [0.0; 3]);
        assert_eq!(target[0], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn wrong_labels_are_corrected_as_far_as_they_are_held_for_wrong() {
        let certain = |weight: f64| vec![1.0, 1.0, 1.0 - weight, 1.0, 1.0, weight, 0.0, 5.0];
        let text = "method = \"m-dyr-h\"\nalpha = 0.01";
        let kept = examples(text, &mut Memory { few: certain(1e-9), each: Vec::new() }, 0.5);
        let corrected = examples(text, &mut Memory { few: certain(1.0 - 1e-9), each: Vec::new() }, 0.5);
        assert_ne!(kept, corrected);
        let early = examples(text, &mut Memory { few: certain(1.0 - 1e-9), each: Vec::new() }, 0.1);
        assert!(early.iter().flatten().zip(kept.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn partners_are_drawn_by_their_weights() {
        let mut weights = vec![0.0; 100];
        weights[7] = 5.0;
        let drawn = by_softmax(&weights, &mut step_rng(0, 0, 0)).iter().filter(|i| **i == 7).count();
        assert!((45..75).contains(&drawn), "{drawn}");
    }
}
