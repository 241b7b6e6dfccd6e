//! The loss functions of all methods, each with the one line that makes it SAM.

use candle_core::{D, Result, Tensor, Var};
use candle_nn::ops::log_softmax;
use sam_runtime::{Sam, Split, nn, sam};

use crate::models::layers::Kit;
use crate::models::{Model, is_statistic};

/// Some images (n, channels, height, width) and what is wanted of them (n, classes): probabilities, times the weight of
/// the example.
#[derive(Clone, Debug)]
pub struct Examples {
    /// Images.
    pub x: Tensor,
    /// Wanted probabilities.
    pub target: Tensor,
}

impl Split for Examples {
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

/// A model and how it is trained. Every loss is a mean over the examples, and comes with the weight decay, if that is a
/// part of it, and beside it without.
pub struct Objective<'a> {
    /// The network.
    pub model: &'a Model,
    /// λ of ½λ‖w‖², if it is a part of the loss.
    pub decay: f64,
    /// Whether batch normalisations go by their running statistics.
    pub frozen: bool,
    /// Examples of a shard.
    pub m: usize,
}

/// GCE's exponent (Zhang & Sabuncu 2018).
pub const GCE_Q: f64 = 0.7;

/// What is wanted of an example counts no more once the model gives it less than this probability (truncated GCE).
pub const GCE_K: f64 = 0.5;

impl Objective<'_> {
    /// The cross-entropy.
    ///
    /// # Errors
    /// If the shapes do not fit.
    #[sam(with = sam, shards(examples; m = self.m))]
    pub fn cross_entropy(&self, examples: &Examples, sam: &Sam) -> Result<(Tensor, Tensor)> {
        self.decayed(nn::cross_entropy_soft(&self.logits(examples)?, &examples.target)?)
    }

    /// The generalised cross-entropy (1 - f^q) / q of the probability f of what is wanted.
    ///
    /// # Errors
    /// If the shapes do not fit.
    #[sam(with = sam, shards(examples; m = self.m))]
    pub fn generalised_cross_entropy(&self, examples: &Examples, sam: &Sam) -> Result<(Tensor, Tensor)> {
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
    pub fn balanced_cross_entropy(&self, examples: &Examples, sam: &Sam) -> Result<(Tensor, Tensor)> {
        let logits = self.logits(examples)?;
        let mean = log_softmax(&logits, 1)?.exp()?.mean(0)?;
        let even = (mean.elem_count() as f64).recip();
        let divergence = (mean.log()?.mean_all()?.neg()? + even.ln())?;
        self.decayed((nn::cross_entropy_soft(&logits, &examples.target)? + divergence)?)
    }

    fn logits(&self, examples: &Examples) -> Result<Tensor> {
        self.model.forward(&examples.x, !self.frozen)
    }

    /// The loss with the weight decay, and without.
    fn decayed(&self, loss: Tensor) -> Result<(Tensor, Tensor)> {
        if self.decay == 0.0 {
            return Ok((loss.clone(), loss));
        }
        let mut decayed = loss.clone();
        for (_, var) in trained(self.model) {
            decayed = nn::add(&decayed, &nn::l2_penalty(&var, self.decay)?)?;
        }
        Ok((decayed, loss))
    }
}

/// The variables that are trained, in the order of their names: that of the map changes from process to process.
#[must_use]
pub fn trained<K: Kit + 'static>(model: &Model<K>) -> Vec<(String, Var)> {
    let vars = model.vars().data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut trained: Vec<_> = vars.iter().filter(|(name, _)| !is_statistic(name)).collect();
    trained.sort_by_key(|(name, _)| name.as_str());
    trained.into_iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

/// The same without the names.
#[must_use]
pub fn trained_vars<K: Kit + 'static>(model: &Model<K>) -> Vec<Var> {
    trained(model).into_iter().map(|(_, var)| var).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sam_runtime::plain;

    use super::*;
    use crate::models::Architecture;

    fn examples() -> Examples {
        let pixels: Vec<f32> = (0..6 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let target: Vec<f32> = (0..6 * 3).map(|i| if i % 3 == i / 3 % 3 { 1.0 } else { 0.0 }).collect();
        Examples {
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
        let generalised = (0..6).map(|i| (1.0 - (GCE_Q * wanted(i)).exp()) / GCE_Q).sum::<f64>() / 6.0;
        let even = |class: usize| log.iter().map(|row| row[class].exp()).sum::<f64>() / 6.0;
        let divergence = (0..3).map(|class| ((1.0 / 3.0) / even(class)).ln() / 3.0).sum::<f64>();
        let decay: f64 = trained(&model)
            .iter()
            .flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .map(|w| 0.005 * f64::from(w) * f64::from(w))
            .sum();
        plain(|| {
            for ((loss, alone), expected) in [
                (objective.cross_entropy(&examples, &Sam::default()).unwrap(), entropy),
                (objective.generalised_cross_entropy(&examples, &Sam::default()).unwrap(), generalised),
                (objective.balanced_cross_entropy(&examples, &Sam::default()).unwrap(), entropy + divergence),
            ] {
                assert!((value(&alone) - expected).abs() < 1e-5, "{alone} {expected}");
                assert!((value(&loss) - value(&alone) - decay).abs() < 1e-5);
            }
        });
    }

    /// In shards each has its own perturbation: the gradient is the mean of theirs.
    #[test]
    fn shards_have_perturbations_of_their_own() {
        let model = Model::new(Architecture::Mlp(8), [1, 4, 4], 3, 1).unwrap();
        let (sam, all) = (Sam::new(0.5), examples());
        let gradient = |m, examples: &Examples| {
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m };
            let gradient = objective.cross_entropy(examples, &sam).unwrap().0.backward().unwrap();
            let head = trained(&model).into_iter().find(|(name, _)| name == "head.weight").unwrap().1;
            gradient.get(&head).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let halves = [0, 3].map(|start| gradient(usize::MAX, &all.narrow_rows(start, 3).unwrap()));
        for (i, g) in gradient(3, &all).iter().enumerate() {
            assert!((g - f32::midpoint(halves[0][i], halves[1][i])).abs() < 1e-6);
        }
        assert_ne!(gradient(3, &all), gradient(6, &all));
    }
}
