//! What is made of a batch before the loss sees it, and what a method remembers from batch to batch.

use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};
use sam_runtime::Sam;

use super::Method;
use super::beta_mixture::{self, Mixture};
use super::phases::{each_loss, losses};
use crate::data::loader::{Batch, Source};
use crate::losses::{Examples, GCE_K, Objective};
use crate::models::Model;
use crate::recipe::Recipe;
use crate::util::numbers::count;

/// How much of a running percentile each batch leaves.
const PERCENTILE_DECAY: f64 = 0.5;

/// The percentile of MentorNet in its authors' runs of the self-paced form, which trusts all examples at no time.
const MENTOR_NET_SHARE: f64 = 0.7;

/// The share of MentorMix's training in which all examples are trusted: the authors' burn-in of 10 of 100 ends one early.
const BURN_IN: f64 = 0.09;

/// Whether truncated GCE looks which examples it leaves out: before the last epoch of the first third, and after each further
/// twelfth. Of 120 epochs these are the 40th, the 50th and so on.
fn gce_looks(epoch: usize, epochs: usize) -> bool {
    let since = (epoch + 1).checked_sub(epochs.div_ceil(3));
    since.is_some_and(|since| since.is_multiple_of((epochs / 12).max(1)))
}

/// The share of the training after which M-DYR-H corrects labels. The authors begin with the 105th epoch of 300.
const CORRECTION_START: f64 = 0.35;

/// What INCV has found out about an image that it leaves out: in this round, or in one before.
const LEFT_OUT_NOW: f32 = 2.0;
const LEFT_OUT: f32 = 1.0;

/// In the place of a loss that has not been recorded.
const NOT_RECORDED: f64 = -1.0;

/// What a method remembers: all of it numbers, for the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// A number for each training image: its recorded losses (O2U-Net), whether it counts (GCE), or whether it is left out
    /// (INCV).
    pub each: Vec<f32>,
    /// Running percentiles (MentorNet, MentorMix), the mixture's parameters (M-DYR-H), the losses of the epoch under way
    /// (O2U-Net), or the share of the agreeing images as many of which are left out (INCV).
    pub few: Vec<f64>,
}

impl Memory {
    /// Forgets what a training of the method's has nothing to do with that follows. INCV's trainings have one memory.
    pub fn begin(&mut self, method: Method) {
        if method != Method::Incv {
            *self = Self::default();
        }
    }

    /// Whether M-DYR-H is in its second phase, in which it corrects labels and has a term against making them all alike.
    #[must_use]
    pub fn corrects(&self, method: Method, progress: f64) -> bool {
        method == Method::MDyrH && progress >= CORRECTION_START && self.mixture().is_some()
    }

    /// Adds the losses of an epoch, less their mean, to those of the epochs before (O2U-Net).
    pub fn settle(&mut self) {
        let recorded = || self.few.iter().filter(|loss| **loss != NOT_RECORDED);
        let mean = recorded().sum::<f64>() / recorded().count().max(1) as f64;
        for (sum, loss) in self.each.iter_mut().zip(&mut self.few) {
            if *loss != NOT_RECORDED {
                *sum += (*loss - mean) as f32;
            }
            *loss = NOT_RECORDED;
        }
    }

    /// Whether INCV has left out an image in an earlier round.
    #[must_use]
    pub fn leaves_out(&self, place: u32) -> bool {
        self.each.get(place as usize) == Some(&LEFT_OUT)
    }

    /// Leaves out the images of the largest losses (INCV), as many as there are images whose label is predicted, times a share
    /// that the first call finds: e / (1 - e), at most 2, for the share e of wrong labels that explains how many are predicted.
    /// They count as left out once `ends_round` was true.
    pub fn leave_out(
        &mut self,
        places: &[u32],
        losses: &[f32],
        agreeing: usize,
        classes: usize,
        images: usize,
        ends_round: bool,
    ) {
        if self.few.is_empty() {
            let wrong = wrong_labels(agreeing as f64 / places.len().max(1) as f64, classes);
            self.few = vec![(wrong / (1.0 - wrong)).min(2.0)];
        }
        self.each.resize(images, 0.0);
        let count = count((self.few[0] * agreeing as f64).floor()).min(places.len());
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by(|a, b| losses[*b].total_cmp(&losses[*a]).then(a.cmp(b)));
        for i in &order[..count] {
            self.each[places[*i] as usize] = LEFT_OUT_NOW;
        }
        if ends_round {
            self.each.iter_mut().filter(|x| **x == LEFT_OUT_NOW).for_each(|x| *x = LEFT_OUT);
        }
    }

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
            self.settle();
            self.each.resize(images, 0.0);
            self.few.resize(images, NOT_RECORDED);
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
        let beta = |a, b, weight| beta_mixture::Beta { a, b, weight };
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
            Method::Plain | Method::Bootstrap | Method::Incv | Method::Rog => {
                Ok(Examples { x: batch.x.clone(), target: labels })
            }
            Method::O2u => {
                // Only while losses are recorded.
                if !self.few.is_empty() {
                    let found = each_loss(&in_training(recipe, model, &batch.x)?, &batch.y)?;
                    for (place, loss) in batch.places.iter().zip(found) {
                        self.few[*place as usize] = loss.into();
                    }
                }
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
                let found = each_loss(&in_training(recipe, model, &batch.x)?, &batch.y)?;
                let trusted = self.trusted(0, &found, MENTOR_NET_SHARE, false);
                Ok(Examples { x: batch.x.clone(), target: weighted(&labels, trusted)? })
            }
            Method::MentorMix => self.mentor_mix(recipe, model, batch, &labels, progress, rng),
            Method::MDyrH => {
                let corrected = match self.mixture().filter(|_| progress >= CORRECTION_START) {
                    None => labels,
                    Some(mixture) => {
                        let found = each_loss(&model.forward(&batch.x, false)?, &batch.y)?;
                        let wrong = mixture.wrong();
                        let wrong: Vec<f32> = found.iter().map(|loss| wrong((*loss).into()) as f32).collect();
                        let right = wrong.iter().map(|wrong| 1.0 - wrong).collect();
                        let guesses = in_training(recipe, model, &batch.x)?.argmax(1)?.to_vec1()?;
                        let guesses = one_hot(&guesses, classes, 0.0, batch.x.device())?;
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
        let found = each_loss(&in_training(recipe, model, &batch.x)?, &batch.y)?;
        let trusted = self.trusted(0, &found, share, progress < BURN_IN);
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
        let log = candle_nn::ops::log_softmax(&in_training(recipe, model, &mixture.x)?, 1)?;
        let found = (log * &mixture.target)?.sum(1)?.neg()?.to_vec1::<f32>()?;
        let target = weighted(&mixture.target, self.trusted(1, &found, share, progress < BURN_IN))?;
        Ok(Examples { target, ..mixture })
    }

    /// 1 for losses up to the running percentile, which begins at 0, or for all, and 0 for others.
    fn trusted(&mut self, which: usize, losses: &[f32], share: f64, all: bool) -> Vec<f32> {
        let mut sorted = losses.to_vec();
        sorted.sort_by(f32::total_cmp);
        // The nearest of them, counted from the largest.
        let most = sorted.len().saturating_sub(1);
        let place = most - count(most as f64 * (1.0 - share)).min(most);
        let percentile = f64::from(sorted.get(place).copied().unwrap_or(0.0));
        if self.few.len() <= which {
            self.few.resize(which + 1, 0.0);
        }
        let running = &mut self.few[which];
        *running = PERCENTILE_DECAY * *running + (1.0 - PERCENTILE_DECAY) * percentile;
        let trust = |loss: &f32| if all || f64::from(*loss) <= *running { 1.0 } else { 0.0 };
        losses.iter().map(trust).collect()
    }
}

impl Method {
    /// The loss of examples, with the weight decay and without. `corrects`: see [`Memory::corrects`].
    ///
    /// # Errors
    /// Those of the model.
    pub fn loss(
        self,
        objective: &Objective<'_>,
        examples: &Examples,
        corrects: bool,
        sam: &Sam,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        match self {
            Self::Gce => objective.generalised_cross_entropy(examples, sam),
            Self::MDyrH if corrects => objective.balanced_cross_entropy(examples, sam),
            _ => objective.cross_entropy(examples, sam),
        }
    }
}

/// The share of labels that are wrong, in steps of a thousandth, if this share of held-out labels is predicted by a model that
/// learnt from as many wrong ones: (1 - e)² + e² / (classes - 1) of them are.
fn wrong_labels(predicted: f64, classes: usize) -> f64 {
    let explains = |e: f64| (1.0 - e).powi(2) + e * e / (classes as f64 - 1.0) <= predicted;
    (1..1000).map(|i| f64::from(i) / 1000.0).find(|e| explains(*e)).unwrap_or(0.999)
}

/// The logits of images as a step sees them, in its shards, while running statistics stay as they are.
fn in_training(recipe: &Recipe, model: &Model, x: &Tensor) -> Result<Tensor> {
    model.keeping_statistics(|| {
        let shards = recipe.normalised(x.dim(0)?)?;
        let logits = shards
            .into_iter()
            .map(|shard| Ok(model.forward(&x.narrow(0, shard.start, shard.len())?, !recipe.frozen_norm)?.detach()));
        Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 0)?)
    })
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
        for method in ["plain", "mixup", "bootstrap-mixup", "m-dyr-h", "gce", "o2u\"\nnoise = 0.4 #"] {
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
        assert_eq!(looks(120), [39, 49, 59, 69, 79, 89, 99, 109, 119]);
        assert_eq!(looks(200), [66, 82, 98, 114, 130, 146, 162, 178, 194]);
        assert_eq!(looks(5), [1, 2, 3, 4]);
    }

    #[test]
    fn mentors_leave_out_the_larger_losses_after_the_burn_in() {
        let mut memory = Memory::default();
        let target = examples("method = \"mentornet\"", &mut memory, 0.5);
        let left_out = target.iter().filter(|row| row.iter().sum::<f32>() == 0.0).count();
        // The percentile begins at 0: half of the first batch's is below nearly all losses.
        assert_eq!((left_out, memory.few.len()), (8, 1));
        // Of 0 to 7 the percentile for three quarters is the nearest, 5; half of it counts, and of the next batch's a half more.
        let (mut memory, losses) = (Memory::default(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let trusted = memory.trusted(0, &losses, 0.75, false);
        assert_eq!((memory.few[0], trusted), (2.5, vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
        memory.trusted(0, &losses, 0.75, false);
        assert_eq!(memory.few[0], 3.75);
        assert_eq!(memory.trusted(1, &losses, 0.75, true), [1.0; 8]);
        let mut memory = Memory { few: vec![-100.0, -100.0], ..Memory::default() };
        let target = examples("method = \"mentormix\"\nnoise = 0.8", &mut memory, 0.5);
        assert!(target.iter().any(|row| row.iter().sum::<f32>() == 0.0), "{target:?}");
        let target = examples("method = \"mentormix\"\nnoise = 0.2", &mut Memory::default(), 0.5);
        assert!(target.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5), "{target:?}");
    }

    /// Losses are those of the step, in which a batch normalisation goes by the batch; it has not moved its statistics.
    #[test]
    fn losses_are_those_of_training() {
        let model: Model = Model::new(Architecture::MlpNorm(8), [1, 4, 4], 3, 1).unwrap();
        let statistics = || {
            let vars = model.vars().data().lock().unwrap();
            let var = vars.iter().find(|(name, _)| name.ends_with("running_mean")).unwrap().1;
            var.to_vec1::<f32>().unwrap()
        };
        let (before, batch, recipe) = (statistics(), batch(), recipe("m = 4\nbatch = 8"));
        let found = in_training(&recipe, &model, &batch.x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(statistics(), before);
        let half = model.forward(&batch.x.narrow(0, 4, 4).unwrap(), true).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found[4..], half);
        assert_ne!(found, model.forward(&batch.x, false).unwrap().to_vec2::<f32>().unwrap());
    }

    /// O2U-Net adds the losses of the steps, less the mean of the epoch.
    #[test]
    fn losses_are_recorded_step_by_step() {
        let model: Model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let (recipe, batch) = (recipe("method = \"o2u\"\nnoise = 0.4"), batch());
        let mut memory = Memory::default();
        let step = |memory: &mut Memory| {
            memory.examples(&recipe, &model, &batch, 0.5, &mut step_rng(0, 0, 3)).unwrap();
        };
        step(&mut memory);
        assert_eq!(memory, Memory::default(), "nothing is recorded before");
        let losses = each_loss(&model.forward(&batch.x, false).unwrap(), &batch.y).unwrap();
        let mean = losses.iter().sum::<f32>() / 8.0;
        // Ten images, of which the last two are not in the batch; then the next epoch begins.
        memory = Memory { each: vec![1.0; 10], few: vec![NOT_RECORDED; 10] };
        step(&mut memory);
        memory.settle();
        for (sum, loss) in memory.each.iter().zip(&losses) {
            assert!((sum - (1.0 + loss - mean)).abs() < 1e-5, "{sum} {loss} {mean}");
        }
        assert_eq!(memory.each[8..], [1.0; 2]);
        assert!(memory.few.iter().all(|loss| *loss == NOT_RECORDED));
        let before = memory.clone();
        memory.settle();
        assert_eq!(memory, before);
    }

    #[test]
    fn the_divergence_belongs_to_the_second_phase() {
        let mixture = Memory { few: vec![1.0, 1.0, 0.5, 1.0, 1.0, 0.5, 0.0, 5.0], each: Vec::new() };
        let corrects = |progress| mixture.corrects(Method::MDyrH, progress);
        assert_eq!([corrects(0.0), corrects(0.34), corrects(0.35), corrects(1.0)], [false, false, true, true]);
        assert!(!Memory::default().corrects(Method::MDyrH, 1.0) && !mixture.corrects(Method::Plain, 1.0));
        let model: Model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let objective = Objective { model: &model, decay: 0.0, frozen: false, m: usize::MAX };
        let (batch, sam) = (batch(), Sam::default());
        let target = one_hot(&batch.labels, 3, 0.0, &Device::Cpu).unwrap();
        let examples = Examples { x: batch.x, target };
        let value = |loss: (Tensor, Tensor)| loss.0.to_scalar::<f32>().unwrap();
        let loss = |corrects| value(Method::MDyrH.loss(&objective, &examples, corrects, &sam).unwrap());
        assert_eq!(loss(false), value(objective.cross_entropy(&examples, &sam).unwrap()));
        assert_eq!(loss(true), value(objective.balanced_cross_entropy(&examples, &sam).unwrap()));
        assert_ne!(loss(false), loss(true));
    }

    #[test]
    fn incv_leaves_out_the_largest_losses_once_a_round_has_ended() {
        // (1 - e)² + e² / 9 is 0.36 + 0.16 / 9 at e = 0.4.
        assert!((wrong_labels(0.36 + 0.16 / 9.0 + 1e-9, 10) - 0.4).abs() < 1e-9);
        let mut memory = Memory::default();
        // Two of four labels are predicted, so of ten classes e = 0.299, and of two 0.427 are left out: none.
        memory.leave_out(&[0, 1, 2, 3], &[0.1, 0.9, 0.2, 0.5], 2, 10, 8, false);
        assert!((memory.few[0] - 0.299 / 0.701).abs() < 0.01, "{memory:?}");
        assert_eq!(memory.each, [0.0; 8]);
        memory.few[0] = 1.5;
        memory.leave_out(&[0, 1, 2, 3], &[0.1, 0.9, 0.2, 0.5], 2, 10, 8, false);
        assert!((0..8).all(|place| !memory.leaves_out(place)));
        memory.begin(Method::Incv);
        memory.leave_out(&[4, 5, 6, 7], &[0.1, 0.2, 0.3, 0.4], 1, 10, 8, true);
        let left_out: Vec<_> = (0..8).filter(|place| memory.leaves_out(*place)).collect();
        assert_eq!(left_out, [1, 2, 3, 7]);
        memory.begin(Method::Plain);
        assert_eq!(memory, Memory::default());
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
        // No probability is below 0.0001.
        assert!(early.iter().flatten().zip(kept.iter().flatten()).all(|(a, b)| (a - b).abs() < 2e-4));
    }

    #[test]
    fn partners_are_drawn_by_their_weights() {
        let mut weights = vec![0.0; 100];
        weights[7] = 5.0;
        let drawn = by_softmax(&weights, &mut step_rng(0, 0, 0)).iter().filter(|i| **i == 7).count();
        assert!((45..75).contains(&drawn), "{drawn}");
    }
}
