//! SAM's gradient compared with the exact gradient of L(w + ε̂(w)), which has a second-order term too (appendix C.4, Figures 4
//! and 5 of the paper).

use anyhow::{Result, ensure};
use candle_core::{Tensor, Var};
use sam_runtime::nn;

use crate::losses::{Objective, TargetBatch};
use crate::models::Model;
use crate::models::params::{keeping_statistics, trained_vars};
use crate::noisy_labels::NoisyLabelMethod;
use crate::recipe::Recipe;

/// The comparison of the two gradients of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Orders {
    /// The cosine of the angle between them.
    pub(super) cosine: f64,
    /// The share of the step's images that the model misclassifies at w + ε̂, with ε̂ of the whole batch.
    pub(super) perturbed_error: f64,
}

impl Orders {
    /// The comparison for a batch with these labels. The model and its statistics do not change.
    pub(super) fn of(
        recipe: &Recipe,
        objective: &Objective<'_>,
        examples: &TargetBatch,
        labels: &Tensor,
        corrects: bool,
    ) -> Result<Self> {
        let (model, vars) = (objective.model, trained_vars(objective.model.vars()));
        let method = recipe.method;
        keeping_statistics(model.vars(), || {
            let [first, second] = [false, true].map(|second_order| {
                let recipe = Recipe { second_order, ..recipe.clone() };
                gradient(method, &recipe, objective, examples, corrects, &vars)
            });
            let (first, second) = (first?, second?);
            let perturbed_error = error_at(model, examples, labels, recipe, &vars)?;
            Ok(Self { cosine: cosine(&first, &second)?, perturbed_error })
        })
    }
}

fn gradient(
    method: NoisyLabelMethod,
    recipe: &Recipe,
    objective: &Objective<'_>,
    examples: &TargetBatch,
    corrects: bool,
    vars: &[Var],
) -> Result<Vec<Option<Tensor>>> {
    let sam = recipe.sam(vars)?;
    let gradient = nn::backward(&method.loss(objective, examples, corrects, &sam)?.0)?;
    Ok(vars.iter().map(|var| gradient.get(var).cloned()).collect())
}

fn dot(a: &[Option<Tensor>], b: &[Option<Tensor>]) -> Result<f64> {
    let mut sum = 0.0;
    for pair in a.iter().zip(b) {
        if let (Some(a), Some(b)) = pair {
            sum += f64::from((a * b)?.sum_all()?.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        }
    }
    Ok(sum)
}

fn cosine(a: &[Option<Tensor>], b: &[Option<Tensor>]) -> Result<f64> {
    let length = (dot(a, a)? * dot(b, b)?).sqrt();
    ensure!(length > 0.0, "expected gradients that are not 0, to take the cosine of");
    Ok(dot(a, b)? / length)
}

/// The error of a batch at w + ε̂, from the logits of the descent pass.
fn error_at(model: &Model, examples: &TargetBatch, labels: &Tensor, recipe: &Recipe, vars: &[Var]) -> Result<f64> {
    let sam = Recipe { second_order: false, ..recipe.clone() }.sam(vars)?;
    let mut guesses = None;
    sam.loss(|| {
        let logits = model.forward(&examples.x, !recipe.frozen_norm)?;
        // The last pass is the descent pass.
        guesses = Some(logits.detach().argmax(1)?);
        nn::cross_entropy_with_probs(&logits, &examples.target)
    })?;
    let guesses: Vec<u32> = guesses.map_or_else(|| Ok(Vec::new()), |guesses| guesses.to_vec1())?;
    let labels: Vec<u32> = labels.to_vec1()?;
    let wrong = guesses.iter().zip(&labels).filter(|(guess, label)| guess != label).count();
    Ok(wrong as f64 / labels.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::Architecture;
    use crate::recipe::{RecipePatch, Scale};

    #[test]
    fn a_small_radius_has_both_gradients_alike() {
        let model: Model = Model::new(Architecture::MlpNorm(8), [1, 4, 4], 3, 1).unwrap();
        let pixels: Vec<f32> = (0..8 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &Device::Cpu).unwrap();
        let target: Vec<f32> = (0..24).map(|i| if i % 3 == (i / 3) % 3 { 1.0 } else { 0.0 }).collect();
        let examples = TargetBatch {
            x: Tensor::from_vec(pixels, (8, 1, 4, 4), &Device::Cpu).unwrap(),
            target: Tensor::from_vec(target, (8, 3), &Device::Cpu).unwrap(),
        };
        let before = trained_vars(model.vars()).iter().map(|var| var.copy().unwrap()).collect::<Vec<_>>();
        let of = |rho: f64| {
            let recipe = RecipePatch::parse("test", &format!("rho = {rho:?}\nbatch = 8")).unwrap();
            let recipe = recipe.recipe(&Scale::default()).unwrap();
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m: usize::MAX };
            Orders::of(&recipe, &objective, &examples, &labels, false).unwrap()
        };
        let (small, large) = (of(1e-3), of(0.5));
        assert!(small.cosine > 0.999 && small.cosine < 1.0 + 1e-6, "{small:?}");
        assert!(large.cosine < small.cosine && large.cosine >= -1.0, "{large:?}");
        assert!(large.perturbed_error >= small.perturbed_error && large.perturbed_error > 0.0, "{large:?}");
        for (var, before) in trained_vars(model.vars()).iter().zip(before) {
            let off = (var.as_tensor() - before).unwrap().abs().unwrap().sum_all().unwrap();
            assert_eq!(off.to_scalar::<f32>().unwrap(), 0.0);
        }
    }
}
