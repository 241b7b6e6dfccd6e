//! The exponential moving average of the weights.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use candle_core::Tensor;

use crate::loss::trained;
use crate::models::Model;

/// a ← d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) at step t, so that the beginning is soon forgotten.
#[derive(Debug)]
pub(super) struct Average {
    decay: f64,
    steps: u32,
    weights: BTreeMap<String, Tensor>,
}

const STEPS: &str = "steps";

impl Average {
    /// Of a model's weights as they are now; none where the decay is 0.
    pub(super) fn of(decay: f64, model: &Model) -> Result<Option<Self>> {
        if decay == 0.0 {
            return Ok(None);
        }
        let copies = trained(model).into_iter().map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)));
        Ok(Some(Self { decay, steps: 0, weights: copies.collect::<Result<_>>()? }))
    }

    pub(super) fn add(&mut self, model: &Model) -> Result<()> {
        let t = f64::from(self.steps);
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        for (name, var) in trained(model) {
            let average = self.weights.get_mut(&name).with_context(|| format!("no average of `{name}`"))?;
            *average = ((&*average * decay)? + (var.as_detached_tensor() * (1.0 - decay))?)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Runs `f` while the model has the averages for its weights.
    pub(super) fn during<R>(&self, model: &Model, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut weights = Vec::new();
        for (_, var) in trained(model) {
            weights.push((var.as_detached_tensor().copy()?, var));
        }
        self.put_into(model)?;
        let result = f();
        for (weight, var) in weights {
            var.set(&weight)?;
        }
        result
    }

    pub(super) fn put_into(&self, model: &Model) -> Result<()> {
        for (name, var) in trained(model) {
            var.set(self.weights.get(&name).with_context(|| format!("no average of `{name}`"))?)?;
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let steps = Tensor::new(self.steps, &candle_core::Device::Cpu).map(|steps| (STEPS.to_owned(), steps));
        self.weights.iter().map(|(name, weight)| (name.clone(), weight.clone())).chain(steps).collect()
    }

    pub(super) fn restore(&mut self, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        self.steps = tensors.remove(STEPS).context("it has no average of the weights")?.to_scalar()?;
        self.weights = tensors;
        Ok(())
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
        let bias = trained(&model).into_iter().find(|(name, _)| name == "head.bias").unwrap().1;
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
}
