//! The loss functions of the trainer, each with the attribute that makes it SAM.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::log_softmax;
use sam_runtime::{Sam, SplitBatch, nn, sam};

use crate::models::Model;
use crate::models::params::trained;

/// Images (n, channels, height, width) and their targets (n, classes): probabilities, multiplied by the weight of the
/// example. Of a text, tokens (n, length) and labels (n, length), both of an integer type.
#[derive(Clone, Debug)]
pub struct TargetBatch {
    /// Images or tokens.
    pub x: Tensor,
    /// Target probabilities or labels.
    pub target: Tensor,
}

impl SplitBatch for TargetBatch {
    fn rows(&self) -> Result<usize> {
        self.x.rows()
    }

    fn narrow_rows(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self { x: self.x.narrow_rows(start, len)?, target: self.target.narrow_rows(start, len)? })
    }

    fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        Ok(Self { x: self.x.select_rows(rows)?, target: self.target.select_rows(rows)? })
    }
}

/// A model and the settings of its loss. Every loss function returns two means over the examples: with the weight decay, if
/// that is a part of the loss, and without.
pub struct Objective<'a> {
    /// The network.
    pub model: &'a Model,
    /// λ of ½λ‖w‖², if that is a part of the loss; else 0.
    pub decay: f64,
    /// Whether batch normalizations use their running statistics.
    pub frozen: bool,
    /// Examples of a shard (m-sharpness).
    pub m: usize,
}

/// GCE's exponent (Zhang & Sabuncu 2018).
pub const GCE_Q: f64 = 0.7;

/// Truncated GCE leaves out examples whose target the model gives less than this probability.
pub const GCE_K: f64 = 0.5;

impl Objective<'_> {
    /// The cross-entropy; of a text the mean over its tokens.
    ///
    /// # Errors
    /// If the shapes do not fit.
    #[sam(with = sam, shards(examples; m = self.m))]
    pub fn cross_entropy(&self, examples: &TargetBatch, sam: &Sam) -> Result<(Tensor, Tensor)> {
        let (logits, target) = (self.logits(examples)?, &examples.target);
        self.decayed(if target.dtype().is_int() {
            nn::cross_entropy(&logits, &target.flatten_all()?)?
        } else {
            nn::cross_entropy_with_probs(&logits, target)?
        })
    }

    /// The generalized cross-entropy (1 - f^q) / q of the probability f of the target.
    ///
    /// # Errors
    /// If the shapes do not fit.
    #[sam(with = sam, shards(examples; m = self.m))]
    pub fn generalized_cross_entropy(&self, examples: &TargetBatch, sam: &Sam) -> Result<(Tensor, Tensor)> {
        let powers = (log_softmax(&self.logits(examples)?, 1)? * GCE_Q)?.exp()?;
        let costs = (powers.affine(-1.0, 1.0)? / GCE_Q)?;
        self.decayed((costs * &examples.target)?.sum(D::Minus1)?.mean_all()?)
    }

    /// The cross-entropy, and the divergence of the batch's mean prediction from even ones, which keeps a model that
    /// corrects its own labels from making them all alike (Arazo et al. 2019).
    ///
    /// # Errors
    /// If the shapes do not fit.
    #[sam(with = sam, shards(examples; m = self.m))]
    pub fn balanced_cross_entropy(&self, examples: &TargetBatch, sam: &Sam) -> Result<(Tensor, Tensor)> {
        let logits = self.logits(examples)?;
        let mean = log_softmax(&logits, 1)?.exp()?.mean(0)?;
        let even = (mean.elem_count() as f64).recip();
        let divergence = (mean.log()?.mean_all()?.neg()? + even.ln())?;
        self.decayed((nn::cross_entropy_with_probs(&logits, &examples.target)? + divergence)?)
    }

    fn logits(&self, examples: &TargetBatch) -> Result<Tensor> {
        self.model.forward(&examples.x, !self.frozen)
    }

    /// The loss with the weight decay, and without.
    fn decayed(&self, loss: Tensor) -> Result<(Tensor, Tensor)> {
        if self.decay == 0.0 {
            return Ok((loss.clone(), loss));
        }
        let mut decayed = loss.clone();
        for (_, var) in trained(self.model.vars()) {
            decayed = nn::add(&decayed, &nn::l2_penalty(&var, self.decay)?)?;
        }
        Ok((decayed, loss))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sam_runtime::plain;

    use super::*;
    use crate::models::Architecture;

    fn examples() -> TargetBatch {
        let pixels: Vec<f32> = (0..6 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let target: Vec<f32> = (0..6 * 3).map(|i| if i % 3 == i / 3 % 3 { 1.0 } else { 0.0 }).collect();
        TargetBatch {
            x: Tensor::from_vec(pixels, (6, 1, 4, 4), &Device::Cpu).unwrap(),
            target: Tensor::from_vec(target, (6, 3), &Device::Cpu).unwrap(),
        }
    }

    fn value(loss: &Tensor) -> f64 {
        f64::from(loss.to_scalar::<f32>().unwrap())
    }

    #[test]
    fn losses_are_those_of_their_formulas() {
        let model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let objective = Objective { model: &model, decay: 0.01, frozen: false, m: usize::MAX };
        let examples = examples();
        let log = log_softmax(&model.forward(&examples.x, true).unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
        let log: Vec<Vec<f64>> = log.iter().map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
        let wanted = |i: usize| log[i][i % 3];
        let entropy = -(0..6).map(wanted).sum::<f64>() / 6.0;
        let generalized = (0..6).map(|i| (1.0 - (GCE_Q * wanted(i)).exp()) / GCE_Q).sum::<f64>() / 6.0;
        let even = |class: usize| log.iter().map(|row| row[class].exp()).sum::<f64>() / 6.0;
        let divergence = (0..3).map(|class| ((1.0 / 3.0) / even(class)).ln() / 3.0).sum::<f64>();
        let decay: f64 = trained(model.vars())
            .iter()
            .flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .map(|w| 0.005 * f64::from(w) * f64::from(w))
            .sum();
        plain(|| {
            for ((loss, alone), expected) in [
                (objective.cross_entropy(&examples, &Sam::default()).unwrap(), entropy),
                (objective.generalized_cross_entropy(&examples, &Sam::default()).unwrap(), generalized),
                (objective.balanced_cross_entropy(&examples, &Sam::default()).unwrap(), entropy + divergence),
            ] {
                assert!((value(&alone) - expected).abs() < 1e-5, "{alone} {expected}");
                assert!((value(&loss) - value(&alone) - decay).abs() < 1e-5);
            }
        });
    }

    /// Of a text, also in shards.
    #[test]
    fn the_loss_of_a_text_is_the_mean_over_its_tokens() {
        let model = Model::new("gpt-w8".parse().unwrap(), [1, 1, 5], 7, 1).unwrap();
        let tokens = |step| {
            let tokens: Vec<u32> = (0..20u32).map(|i| i * step % 7).collect();
            Tensor::from_vec(tokens, (4, 5), &Device::Cpu).unwrap()
        };
        let examples = TargetBatch { x: tokens(3), target: tokens(5) };
        let log = log_softmax(&model.forward(&examples.x, true).unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
        let expected = -(0..20).map(|i| f64::from(log[i][i * 5 % 7])).sum::<f64>() / 20.0;
        for m in [usize::MAX, 2] {
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m };
            let found = value(&objective.cross_entropy(&examples, &Sam::new(0.05)).unwrap().1);
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    /// In shards each has its own perturbation: the gradient is the mean of theirs.
    #[test]
    fn shards_have_perturbations_of_their_own() {
        let model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let (sam, all) = (Sam::new(0.5), examples());
        let gradient = |m, examples: &TargetBatch| {
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m };
            let gradient = objective.cross_entropy(examples, &sam).unwrap().0.backward().unwrap();
            let head = trained(model.vars()).into_iter().find(|(name, _)| name == "head.weight").unwrap().1;
            gradient.get(&head).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let halves = [0, 3].map(|start| gradient(usize::MAX, &all.narrow_rows(start, 3).unwrap()));
        for (i, g) in gradient(3, &all).iter().enumerate() {
            assert!((g - f32::midpoint(halves[0][i], halves[1][i])).abs() < 1e-6);
        }
        assert_ne!(gradient(3, &all), gradient(6, &all));
    }
}
