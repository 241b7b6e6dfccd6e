//! The exponential moving average of a model: its weights, and the running statistics that belong to them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use candle_core::Tensor;

use crate::models::Model;
use crate::models::params::{is_statistic, named};

/// a ← d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) at step t: the initial weights decay fast.
///
/// Running statistics of batch normalizations are averaged like weights, as in the code of Foret et al.: those of the last
/// weights do not fit the averaged ones.
#[derive(Debug)]
pub(super) struct Average {
    decay: f64,
    steps: u32,
    values: BTreeMap<String, Tensor>,
}

const STEPS: &str = "steps";

impl Average {
    /// The average of the current model; `None` if the decay is 0.
    pub(super) fn of(decay: f64, model: &Model) -> Result<Option<Self>> {
        if decay == 0.0 {
            return Ok(None);
        }
        let copies = named(model.vars()).into_iter().map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)));
        Ok(Some(Self { decay, steps: 0, values: copies.collect::<Result<_>>()? }))
    }

    pub(super) fn add(&mut self, model: &Model) -> Result<()> {
        let t = f64::from(self.steps);
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        for (name, var) in named(model.vars()) {
            let average = self.values.get_mut(&name).with_context(|| format!("no average of `{name}`"))?;
            *average = ((&*average * decay)? + (var.as_detached_tensor() * (1.0 - decay))?)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Runs `f` with the averages as the model's variables.
    pub(super) fn during<R>(&self, model: &Model, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut values = Vec::new();
        for (_, var) in named(model.vars()) {
            values.push((var.as_detached_tensor().copy()?, var));
        }
        self.put_into(model)?;
        let result = f();
        for (value, var) in values {
            var.set(&value)?;
        }
        result
    }

    pub(super) fn put_into(&self, model: &Model) -> Result<()> {
        for (name, var) in named(model.vars()) {
            var.set(self.values.get(&name).with_context(|| format!("no average of `{name}`"))?)?;
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let steps = Tensor::new(self.steps, &candle_core::Device::Cpu).map(|steps| (STEPS.to_owned(), steps));
        self.values.iter().map(|(name, value)| (name.clone(), value.clone())).chain(steps).collect()
    }

    /// The inverse of [`tensors`](Self::tensors); nothing is changed if a tensor is missing.
    pub(super) fn restore(&mut self, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let steps = tensors.remove(STEPS).context("it has no average of the weights")?.to_scalar()?;
        let mut values = BTreeMap::new();
        for (name, value) in &self.values {
            let saved = tensors.remove(name).with_context(|| {
                let why = if is_statistic(name) {
                    ": it is from a version that averaged the weights alone, whose trainings cannot be resumed; begin \
                     again in another folder"
                } else {
                    ""
                };
                format!("it has no average of `{name}`{why}")
            })?;
            values.insert(name.clone(), saved.to_device(value.device())?);
        }
        (self.steps, self.values) = (steps, values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::models::Architecture;

    #[test]
    fn averages_follow_the_weights_and_go_back() {
        let model = Model::new(Architecture::Mlp(2), [1, 2, 2], 2, 1).unwrap();
        let mut average = Average::of(0.9, &model).unwrap().unwrap();
        let bias = named(model.vars()).into_iter().find(|(name, _)| name == "head.bias").unwrap().1;
        bias.set(&bias.ones_like().unwrap()).unwrap();
        average.add(&model).unwrap();
        average.add(&model).unwrap();
        // 0.1 of 0, then 2/11 of that: 1 - 0.1 * 2 / 11.
        let read = || bias.to_vec1::<f32>().unwrap()[0];
        let during = average.during(&model, || Ok(read())).unwrap();
        assert!((during - (1.0 - 0.1 * 2.0 / 11.0)).abs() < 1e-6, "{during}");
        assert_eq!(read(), 1.0);
        let mut other = Average::of(0.9, &model).unwrap().unwrap();
        other.restore(average.tensors().into_iter().collect()).unwrap();
        other.put_into(&model).unwrap();
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
        average.add(&model).unwrap();
        // 0.1 of 2 and 0.9 of 4.
        for value in average.during(&model, || Ok(read())).unwrap() {
            assert!((value - 3.8).abs() < 1e-6, "{value}");
        }
        assert!(read().iter().all(|value| *value == 4.0));

        let saved: BTreeMap<String, Tensor> = average.tensors().into_iter().collect();
        let mut other = Average::of(0.9, &model).unwrap().unwrap();
        other.restore(saved.clone()).unwrap();
        assert_eq!(other.steps, 1);
        let old = saved.into_iter().filter(|(name, _)| !is_statistic(name)).collect();
        let error = other.restore(old).unwrap_err().to_string();
        assert!(error.contains("averaged the weights alone"), "{error}");
    }
}
