//! What a method keeps from step to step and from epoch to epoch.

use anyhow::{Result, ensure};

use super::beta_mixture::{Beta, Mixture};
use super::kind::NoisyLabelMethod;
use crate::data::ImageSet;
use crate::losses::GCE_K;
use crate::metrics::losses;
use crate::models::Model;
use crate::util::numbers::{count, share_of};

/// The decay of running percentiles per batch.
const PERCENTILE_DECAY: f64 = 0.5;

/// Whether truncated GCE selects its examples anew in an epoch: before the last epoch of the first third, and after each further
/// twelfth. Of 120 epochs these are the 40th, the 50th and so on.
fn gce_looks(epoch: usize, epochs: usize) -> bool {
    let since = (epoch + 1).checked_sub(epochs.div_ceil(3));
    since.is_some_and(|since| since.is_multiple_of((epochs / 12).max(1)))
}

/// The share of the training after which M-DYR-H corrects labels. The original code starts at the 105th epoch of 300.
pub(super) const CORRECTION_START: f64 = 0.35;

/// The mark of an image that INCV leaves out: since this round, or since an earlier one.
const LEFT_OUT_NOW: f32 = 2.0;
const LEFT_OUT: f32 = 1.0;

/// Stands for a loss that has not been recorded.
pub(super) const NOT_RECORDED: f64 = -1.0;

/// The state of a method, all of it numbers, which checkpoints contain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MethodState {
    /// A number for each training image: its recorded losses (O2U-Net), whether it counts (GCE), or whether it is left out
    /// (INCV).
    pub each: Vec<f32>,
    /// Running percentiles (MentorNet, MentorMix), the mixture's parameters (M-DYR-H), the losses of the current epoch
    /// (O2U-Net), or the factor of [`leave_out`](Self::leave_out) (INCV).
    pub few: Vec<f64>,
}

impl MethodState {
    /// Clears the state at the start of a phase. Only INCV keeps it from phase to phase.
    pub fn begin(&mut self, method: NoisyLabelMethod) {
        if method != NoisyLabelMethod::Incv {
            *self = Self::default();
        }
    }

    /// Checks that O2U-Net has a place for the loss of each training image, and that it has recorded some, if it should have.
    ///
    /// # Errors
    /// If it has not.
    pub fn check(&self, method: NoisyLabelMethod, images: usize, records: bool) -> Result<()> {
        let (each, few) = (self.each.len(), self.few.len());
        let is_whole = method != NoisyLabelMethod::O2u || few == images || (few == 0 && !records);
        ensure!(is_whole, "`few` of the checkpoint has {few} numbers: expected {images}");
        ensure!(!records || each == images, "`each` of the checkpoint has {each} numbers: expected {images}");
        Ok(())
    }

    /// Whether M-DYR-H corrects labels already. Its loss then has a term against equal labels for all images.
    #[must_use]
    pub fn corrects(&self, method: NoisyLabelMethod, progress: f64) -> bool {
        method == NoisyLabelMethod::MDyrH && progress >= CORRECTION_START && self.mixture().is_some()
    }

    /// Adds the losses of an epoch, minus their mean, to those of earlier epochs (O2U-Net).
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
    pub fn leaves_out(&self, image: u32) -> bool {
        self.each.get(image as usize) == Some(&LEFT_OUT)
    }

    /// Leaves out the images with the largest losses (INCV): the number of images whose label is predicted, times a factor that
    /// the first call determines: e / (1 - e), at most 2, for the share e of wrong labels that explains the number of predicted
    /// ones. They count as left out after the call with `ends_round`.
    pub fn leave_out(
        &mut self,
        indices: &[u32],
        losses: &[f32],
        agreeing: usize,
        classes: usize,
        images: usize,
        ends_round: bool,
    ) {
        if self.few.is_empty() {
            let wrong = wrong_labels(agreeing as f64 / indices.len().max(1) as f64, classes);
            self.few = vec![(wrong / (1.0 - wrong)).min(2.0)];
        }
        self.each.resize(images, 0.0);
        let count = count((self.few[0] * agreeing as f64).floor()).min(indices.len());
        let mut order: Vec<usize> = (0..indices.len()).collect();
        order.sort_by(|a, b| losses[*b].total_cmp(&losses[*a]).then(a.cmp(b)));
        for i in &order[..count] {
            self.each[indices[*i] as usize] = LEFT_OUT_NOW;
        }
        if ends_round {
            self.each.iter_mut().filter(|x| **x == LEFT_OUT_NOW).for_each(|x| *x = LEFT_OUT);
        }
    }

    /// Evaluates the model at the start of an epoch (from 0), if the method requires it.
    ///
    /// # Errors
    /// Those of the model.
    pub fn look(
        &mut self,
        method: NoisyLabelMethod,
        model: &Model,
        set: &ImageSet,
        record: bool,
        epoch: usize,
        epochs: usize,
    ) -> Result<()> {
        let images = set.labels().len();
        if record {
            self.settle();
            self.each.resize(images, 0.0);
            self.few.resize(images, NOT_RECORDED);
        } else if method == NoisyLabelMethod::Gce && gce_looks(epoch, epochs) {
            self.each = vec![1.0; images];
            for (index, loss) in set.indices().iter().zip(losses(model, set)?) {
                let counts = f64::from(-loss).exp() > GCE_K;
                self.each[*index as usize] = if counts { 1.0 } else { 0.0 };
            }
        } else if method == NoisyLabelMethod::MDyrH && epoch > 0 {
            let Mixture { components, low, high } = Mixture::fit(&losses(model, set)?);
            self.few = components.iter().flat_map(|beta| [beta.a, beta.b, beta.weight]).chain([low, high]).collect();
        }
        Ok(())
    }

    pub(super) fn mixture(&self) -> Option<Mixture> {
        let [a, b, c, d, e, f, low, high] = self.few[..] else { return None };
        let beta = |a, b, weight| Beta { a, b, weight };
        Some(Mixture { components: [beta(a, b, c), beta(d, e, f)], low, high })
    }

    /// 1 for losses up to the running percentile, which starts at 0, and 0 for others; 1 for every loss if `all`.
    pub(super) fn trusted(&mut self, which: usize, losses: &[f32], share: f64, all: bool) -> Vec<f32> {
        let mut sorted = losses.to_vec();
        sorted.sort_by(f32::total_cmp);
        // The nearest rank, counted from the largest.
        let most = sorted.len().saturating_sub(1);
        let rank = most - count(most as f64 * (1.0 - share)).min(most);
        let percentile = f64::from(sorted.get(rank).copied().unwrap_or(0.0));
        if self.few.len() <= which {
            self.few.resize(which + 1, 0.0);
        }
        let running = &mut self.few[which];
        *running = PERCENTILE_DECAY * *running + (1.0 - PERCENTILE_DECAY) * percentile;
        let trust = |loss: &f32| if all || f64::from(*loss) <= *running { 1.0 } else { 0.0 };
        losses.iter().map(trust).collect()
    }
}

/// The share of labels that are wrong, in steps of a thousandth, if this share of held-out labels is predicted by a model that
/// learned from as many wrong ones: (1 - e)² + e² / (classes - 1) of them are.
fn wrong_labels(predicted: f64, classes: usize) -> f64 {
    let explains = |e: f64| (1.0 - e).powi(2) + e * e / (classes as f64 - 1.0) <= predicted;
    (1..1000).map(|i| f64::from(i) / 1000.0).find(|e| explains(*e)).unwrap_or(0.999)
}

/// The images that remain when the share with the largest losses is removed, sorted.
#[must_use]
pub fn without_worst(indices: &[u32], losses: &[f32], share: f64) -> Vec<u32> {
    let kept = indices.len() - share_of(indices.len(), share);
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(a.cmp(b)));
    let mut left: Vec<u32> = order[..kept].iter().map(|i| indices[*i]).collect();
    left.sort_unstable();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_losses_are_those_of_all_images() {
        let state = |each, few| MethodState { each: vec![0.0; each], few: vec![0.0; few] };
        let o2u = NoisyLabelMethod::O2u;
        for (state, records) in [(state(0, 0), false), (state(4, 4), true), (state(4, 4), false)] {
            state.check(o2u, 4, records).unwrap();
        }
        for (state, records) in [(state(0, 0), true), (state(4, 3), false), (state(0, 4), true), (state(4, 5), true)] {
            assert!(state.check(o2u, 4, records).is_err(), "{state:?}");
        }
        state(0, 1).check(NoisyLabelMethod::MentorNet, 4, false).unwrap();
    }

    #[test]
    fn gce_looks_after_whole_epochs() {
        let looks = |epochs| (0..epochs).filter(|epoch| gce_looks(*epoch, epochs)).collect::<Vec<_>>();
        assert_eq!(looks(120), [39, 49, 59, 69, 79, 89, 99, 109, 119]);
        assert_eq!(looks(200), [66, 82, 98, 114, 130, 146, 162, 178, 194]);
        assert_eq!(looks(5), [1, 2, 3, 4]);
    }

    #[test]
    fn incv_leaves_out_the_largest_losses_once_a_round_has_ended() {
        // (1 - e)² + e² / 9 is 0.36 + 0.16 / 9 at e = 0.4.
        assert!((wrong_labels(0.36 + 0.16 / 9.0 + 1e-9, 10) - 0.4).abs() < 1e-9);
        let mut state = MethodState::default();
        // Two of four labels are predicted, so of ten classes e = 0.299, and of two 0.427 are left out: none.
        state.leave_out(&[0, 1, 2, 3], &[0.1, 0.9, 0.2, 0.5], 2, 10, 8, false);
        assert!((state.few[0] - 0.299 / 0.701).abs() < 0.01, "{state:?}");
        assert_eq!(state.each, [0.0; 8]);
        state.few[0] = 1.5;
        state.leave_out(&[0, 1, 2, 3], &[0.1, 0.9, 0.2, 0.5], 2, 10, 8, false);
        assert!((0..8).all(|place| !state.leaves_out(place)));
        state.begin(NoisyLabelMethod::Incv);
        state.leave_out(&[4, 5, 6, 7], &[0.1, 0.2, 0.3, 0.4], 1, 10, 8, true);
        let left_out: Vec<_> = (0..8).filter(|place| state.leaves_out(*place)).collect();
        assert_eq!(left_out, [1, 2, 3, 7]);
        state.begin(NoisyLabelMethod::Plain);
        assert_eq!(state, MethodState::default());
    }

    #[test]
    fn the_largest_losses_go() {
        assert_eq!(without_worst(&[4, 9, 2, 7], &[0.1, 3.0, 0.2, 0.2], 0.5), [2, 4]);
        assert_eq!(without_worst(&[4, 9], &[0.1, 3.0], 0.0), [4, 9]);
    }
}
