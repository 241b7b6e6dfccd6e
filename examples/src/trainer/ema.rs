//! The exponential moving average of a model: its weights, and the running statistics that belong to them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use candle_core::{Tensor, Var};
use sam_runtime::optim::Ema;

use crate::models::Model;
use crate::models::params::{is_statistic, named};

/// An [`Ema`] with a decay that grows, and its place in a checkpoint.
///
/// Running statistics of batch normalizations are averaged like weights, as in the code of Foret et al.: those of the last
/// weights do not fit the averaged ones.
#[derive(Debug)]
pub(super) struct Average {
    ema: Ema,
    vars: Vec<(String, Var)>,
}

const STEPS: &str = "steps";

impl Average {
    /// The average of the current model; `None` if the decay is 0.
    pub(super) fn of(decay: f64, model: &Model) -> Result<Option<Self>> {
        if decay == 0.0 {
            return Ok(None);
        }
        let vars = named(model.vars());
        let ema = Ema::new(vars.iter().map(|(_, var)| var.clone()).collect(), decay)?.warm_up();
        Ok(Some(Self { ema, vars }))
    }

    pub(super) fn add(&mut self) -> Result<()> {
        Ok(self.ema.update()?)
    }

    /// Runs `f` with the averages as the model's variables.
    pub(super) fn during<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        self.ema.apply(f)
    }

    pub(super) fn put_into_model(&self) -> Result<()> {
        Ok(self.ema.copy_to_vars()?)
    }

    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let averages: HashMap<_, _> = self.ema.averages().map(|(var, average)| (var.id(), average)).collect();
        let named = |(name, var): &(String, Var)| Some((name.clone(), (*averages.get(&var.id())?).clone()));
        let steps = Tensor::new(u32::try_from(self.ema.steps())?, &candle_core::Device::Cpu)?;
        Ok(self.vars.iter().filter_map(named).chain([(STEPS.to_owned(), steps)]).collect())
    }

    /// The inverse of [`tensors`](Self::tensors); nothing is changed if a tensor is missing.
    pub(super) fn restore(&mut self, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let steps: u32 = tensors.remove(STEPS).context("it has no average of the weights")?.to_scalar()?;
        let mut values = Vec::new();
        for (name, var) in &self.vars {
            let saved = tensors.remove(name).with_context(|| {
                let why = if is_statistic(name) {
                    ": it is from a version that averaged the weights alone, whose trainings cannot be resumed; begin \
                     again in another folder"
                } else {
                    ""
                };
                format!("it has no average of `{name}`{why}")
            })?;
            values.push((var.clone(), saved));
        }
        Ok(self.ema.resume(steps.into(), values)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Architecture;

    #[test]
    fn averages_follow_the_weights_and_go_back() {
        let model = Model::new(Architecture::Mlp(2), [1, 2, 2], 2, 1).unwrap();
        let mut average = Average::of(0.9, &model).unwrap().unwrap();
        let bias = named(model.vars()).into_iter().find(|(name, _)| name == "head.bias").unwrap().1;
        bias.set(&bias.ones_like().unwrap()).unwrap();
        average.add().unwrap();
        average.add().unwrap();
        // 0.1 of 0, then 2/11 of that: 1 - 0.1 * 2 / 11.
        let read = || bias.to_vec1::<f32>().unwrap()[0];
        let during = average.during(|| Ok(read())).unwrap();
        assert!((during - (1.0 - 0.1 * 2.0 / 11.0)).abs() < 1e-6, "{during}");
        assert_eq!(read(), 1.0);
        let mut other = Average::of(0.9, &model).unwrap().unwrap();
        other.restore(average.tensors().unwrap().into_iter().collect()).unwrap();
        other.put_into_model().unwrap();
        assert_eq!(read(), during);
        assert!(Average::of(0.0, &model).unwrap().is_none());
    }

    /// The averaged weights are tested with their own statistics.
    #[test]
    fn statistics_are_averaged_like_weights() {
        let model = Model::new(Architecture::MlpNorm(2), [1, 2, 2], 2, 1).unwrap();
        let statistics = || -> Vec<(String, Var)> {
            named(model.vars()).into_iter().filter(|(name, _)| is_statistic(name)).collect()
        };
        assert!(!statistics().is_empty());
        let set = |value: f64| {
            for (_, var) in statistics() {
                var.set(&(var.ones_like().unwrap() * value).unwrap()).unwrap();
            }
        };
        let read = || -> Vec<f32> { statistics().iter().flat_map(|(_, var)| var.to_vec1().unwrap()).collect() };
        set(2.0);
        let mut average = Average::of(0.9, &model).unwrap().unwrap();
        set(4.0);
        average.add().unwrap();
        // 0.1 of 2 and 0.9 of 4.
        for value in average.during(|| Ok(read())).unwrap() {
            assert!((value - 3.8).abs() < 1e-6, "{value}");
        }
        assert!(read().iter().all(|value| *value == 4.0));

        let saved: BTreeMap<String, Tensor> = average.tensors().unwrap().into_iter().collect();
        let mut other = Average::of(0.9, &model).unwrap().unwrap();
        other.restore(saved.clone()).unwrap();
        assert_eq!(other.ema.steps(), 1);
        let old = saved.into_iter().filter(|(name, _)| !is_statistic(name)).collect();
        let error = other.restore(old).unwrap_err().to_string();
        assert!(error.contains("averaged the weights alone"), "{error}");
    }
}
