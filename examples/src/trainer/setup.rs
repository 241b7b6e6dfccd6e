//! Model, optimizer and SAM of a phase.

use anyhow::Result;
use sam_runtime::Sam;
use sam_runtime::optim::{ParamGroup, ParamsAdamW, ParamsSgd};

use super::job::Job;
use super::optimizer::Optimizer;
use super::weights::load_weights;
use crate::models::Model;
use crate::models::params::{trained, trained_vars};
use crate::noisy_labels::{Phase, Start};
use crate::recipe::{OptimizerKind, Recipe};
use crate::util::rng::{model_seed, phase_seed};

/// The phase that created the model of a phase: its seed is also that of the random layers.
pub(super) fn last_fresh(phases: &[Phase], phase: usize) -> usize {
    phases.iter().take(phase + 1).rposition(|phase| phase.start == Start::New).unwrap_or(0)
}

/// A network with new weights, or those of `start`.
pub(super) fn fresh_model(job: &Job<'_>, phase: usize) -> Result<Model> {
    let Job { recipe, data, .. } = job;
    let seed = model_seed(job.seed, phase);
    let model = Model::with_init(job.device, recipe.model, data.train.shape(), data.classes, recipe.init, seed)?;
    let model = model.regularized(recipe.dropout, recipe.stochastic_depth);
    if let Some(start) = job.start_file()? {
        load_weights(&start, &model, |name| !(recipe.new_head && name.starts_with("head.")))?;
    }
    Ok(model)
}

/// The optimizer of a phase.
pub(super) fn optimizer(recipe: &Recipe, model: &Model) -> Result<Optimizer> {
    let weight_decay = if recipe.decay_in_loss { 0.0 } else { recipe.weight_decay };
    let (matrices, rest): (Vec<_>, Vec<_>) =
        trained(model.vars()).into_iter().map(|(_, var)| var).partition(|var| recipe.decay_all || var.rank() >= 2);
    let groups = [ParamGroup::new(matrices), ParamGroup::new(rest).weight_decay(0.0)];
    let Recipe { lr, momentum, nesterov, betas: [beta1, beta2], .. } = *recipe;
    match recipe.optimizer {
        OptimizerKind::Sgd => Optimizer::sgd(groups, ParamsSgd { lr, momentum, nesterov, weight_decay }),
        OptimizerKind::AdamW => {
            Optimizer::adamw(groups, ParamsAdamW { lr, beta1, beta2, weight_decay, ..ParamsAdamW::default() })
        }
    }
}

/// SAM as the recipe configures it, for the model of a phase.
pub(super) fn build_sam(job: &Job<'_>, model: &Model, phase: usize) -> Result<Sam> {
    let fresh = last_fresh(&job.recipe.method.phases(), phase);
    Ok(job.recipe.sam(&trained_vars(model.vars()))?.seed(phase_seed(job.seed, fresh)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noisy_labels::NoisyLabelMethod;

    #[test]
    fn a_stage_goes_on_with_the_model_of_the_last_fresh_one() {
        let of = |phase| last_fresh(&NoisyLabelMethod::O2u.phases(), phase);
        assert_eq!([of(0), of(1), of(2), of(3)], [0, 0, 0, 0]);
    }
}
