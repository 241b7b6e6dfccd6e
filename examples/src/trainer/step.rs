//! One step of a training.

use anyhow::{Context as _, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use sam_runtime::Sam;
use sam_runtime::nn::{self, l2_penalty};
use sam_runtime::sharpness::Landscape;
use serde_json::json;

use super::bn_stats::ShardStatistics;
use super::lr::rate;
use super::orders::Orders;
use super::outcome::{Diverged, is_not_finite};
use super::training::{Training, Unread};
use crate::data::Batch;
use crate::losses::{Objective, TargetBatch};
use crate::models::layers::{LayerSet as _, SamRuntime};
use crate::models::params::{trained, trained_vars};
use crate::noisy_labels::Phase;
use crate::util::rng::Stream;

/// Lines of the log per epoch.
const LINES: usize = 10;

/// Products with the Hessian for a report.
const PRODUCTS: usize = 5;

/// The distance between the positions of two steps in the random number stream of the layers.
const DRAWS_PER_STEP: u64 = 1 << 20;

impl Training<'_> {
    /// One step: a loss, its gradient, the weights.
    pub(super) fn step(&mut self, phase: &Phase, batch: &Batch, steps: usize, per_epoch: usize) -> Result<()> {
        let recipe = self.job.recipe;
        let step = self.progress.step;
        let progress = step as f64 / steps as f64;
        let rate = rate(recipe, phase, step, steps, per_epoch);
        self.optimizer.set_learning_rate(rate);
        let (rank, ranks) = (self.world.rank(), self.world.size());
        let draws = (step * ranks + rank) as u64 * DRAWS_PER_STEP;
        self.model.draws().set_position(draws);
        let mut rng = Stream::Step { phase: self.progress.phase, step }.rng(self.world.seed(self.job.seed));
        let examples =
            self.labels.state.examples(&recipe.noisy_label_settings(), &self.model, batch, progress, &mut rng)?;
        let corrects = self.labels.state.corrects(recipe.method, progress);
        let writes_line = step.is_multiple_of((per_epoch / LINES).max(1));
        let orders = if recipe.compare_orders && writes_line {
            let orders = Orders::of(recipe, &self.objective(), &examples, &batch.y, corrects)?;
            self.model.draws().set_position(draws);
            Some(orders)
        } else {
            None
        };
        if self.job.report > 0 && self.progress.steps.is_multiple_of(self.job.report) {
            self.report(batch)?;
        }
        let loss = match self.descend(&examples, corrects) {
            Ok(loss) => loss,
            Err(error) if is_not_finite(&error) => return Err(Diverged { step, what: error.to_string() }.into()),
            Err(error) => return Err(error),
        };
        self.read()?;
        self.unread = Some(Unread { step, loss, last: self.sam.last_stats() });
        if self.job.device.device.is_cpu() || writes_line || self.loss.is_nan() {
            self.read()?;
        }
        if let Some(average) = &mut self.average {
            average.add()?;
        }
        self.progress.step += 1;
        self.progress.steps += 1;
        if writes_line {
            let mut line = json!({ "stage": self.progress.phase, "step": step, "loss": self.loss, "rate": rate });
            let mut event = vec![("training/loss", self.loss), ("training/rate", rate)];
            if let Some(sharpness) = self.sharpness {
                line["sharpness"] = json!(sharpness);
                event.push(("training/sharpness", sharpness));
            }
            if let Some(Orders { cosine, perturbed_error }) = orders {
                line["cosine"] = json!(cosine);
                line["perturbed error"] = json!(perturbed_error);
                event.extend([("training/cosine", cosine), ("training/perturbed error", perturbed_error)]);
            }
            self.note(&line)?;
            self.add_event(&event)?;
        }
        Ok(())
    }

    /// Adds the sharpness of the loss of a batch to log and events, of the network as it is tested: neither its statistics nor
    /// its random numbers move, so the training stays what it is without reports.
    fn report(&mut self, batch: &Batch) -> Result<()> {
        let step = self.progress.step;
        let loss = || SamRuntime::cross_entropy(&self.model.forward(&batch.x, false)?, &batch.y);
        let usual = Sam::default();
        let sam = if self.job.recipe.rho > 0.0 { &self.sam } else { &usual };
        let found = Landscape::new(trained_vars(self.model.vars()), loss).report(sam, PRODUCTS);
        let found = found.map_err(anyhow::Error::from).map_err(|error| {
            if is_not_finite(&error) { Diverged { step, what: error.to_string() }.into() } else { error }
        })?;
        let mean = |number: f64| self.world.mean(number);
        let (sharpness, cosine) = (mean(found.sharpness)?, mean(found.cosine)?);
        let (largest, residual) = (mean(found.largest_eigenvalue)?, mean(found.residual)?);
        self.note(&json!({
            "stage": self.progress.phase,
            "step": step,
            "report": { "sharpness": sharpness, "cosine": cosine, "largest eigenvalue": largest, "residual": residual },
        }))?;
        self.add_event(&[
            ("report/sharpness", sharpness),
            ("report/cosine", cosine),
            ("report/largest eigenvalue", largest),
        ])
    }

    fn objective(&self) -> Objective<'_> {
        let recipe = self.job.recipe;
        Objective {
            model: &self.model,
            decay: if recipe.decay_in_loss { recipe.weight_decay } else { 0.0 },
            frozen: recipe.frozen_norm,
            m: if recipe.m == 0 { usize::MAX } else { recipe.m },
        }
    }

    /// The gradient and the update; returns the loss without the weight decay.
    fn descend(&mut self, examples: &TargetBatch, corrects: bool) -> Result<Tensor> {
        let recipe = self.job.recipe;
        let objective = self.objective();
        let rows = examples.x.dim(0)?;
        let partition = recipe.partition();
        let parts = partition.micro_batches(rows)?;
        let statistics = ShardStatistics::before(&self.model, partition.shards(rows)?.len())?;
        if recipe.clip == 0.0 && parts.len() == 1 && self.world.size() == 1 {
            let (loss, alone) = recipe.method.loss(&objective, examples, corrects, &self.sam)?;
            self.optimizer.backward_step(&loss)?;
            statistics.map_or(Ok(()), ShardStatistics::settle)?;
            return Ok(alone.detach());
        }
        let vars = trained(self.model.vars());
        let (mut sum, mut total): (Option<Tensor>, Option<GradStore>) = (None, None);
        for part in parts {
            let share = part.len() as f64 / rows as f64;
            let part = sam_runtime::SplitBatch::narrow_rows(examples, part.start, part.len())?;
            let (loss, alone) = recipe.method.loss(&objective, &part, corrects, &self.sam)?;
            let alone = if share == 1.0 { alone.detach() } else { (alone.detach() * share)? };
            sum = Some(sum.map_or(Ok(alone.clone()), |sum| sum + alone)?);
            let mut gradient = nn::backward(&if share == 1.0 { loss } else { (loss * share)? })?;
            if let Some(total) = &total {
                for (_, var) in &vars {
                    if let (Some(a), Some(b)) = (total.get(var), gradient.get(var)) {
                        let both = (a + b)?;
                        gradient.insert(var, both);
                    }
                }
            }
            total = Some(gradient);
        }
        let mut gradient = total.context("there are no images in the batch")?;
        self.world.average_gradients(&mut gradient, vars.iter().map(|(_, var)| var.clone()))?;
        if recipe.clip > 0.0 {
            clip(&mut gradient, &vars, recipe.clip)?;
        }
        self.optimizer.step(&gradient)?;
        statistics.map_or(Ok(()), ShardStatistics::settle)?;
        sum.context("there are no images in the batch")
    }
}

/// Scales a gradient whose norm exceeds `most`.
fn clip(gradient: &mut GradStore, vars: &[(String, Var)], most: f64) -> Result<()> {
    let mut squares = None;
    for (_, var) in vars {
        if let Some(grad) = gradient.get(var) {
            let square = l2_penalty(&grad.detach(), 2.0)?.to_dtype(DType::F64)?;
            squares = Some(squares.map_or(Ok(square.clone()), |sum: Tensor| sum + square)?);
        }
    }
    // Read once: this synchronizes with the device.
    let norm = squares.map_or(Ok(0.0), |sum| sum.to_scalar::<f64>())?.sqrt();
    if norm > most {
        for (_, var) in vars {
            if let Some(grad) = gradient.remove(var) {
                gradient.insert(var, (grad * (most / norm))?);
            }
        }
    }
    Ok(())
}
