//! What a [`Sam`](crate::Sam) keeps from step to step, and how it outlives a process.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor, TensorId, Var};
use candle_nn::VarMap;

use super::factor::LossFactor;
use crate::checkpoint::{names_of, read, write};
use crate::gradient::Gradient;
use crate::kernels::wide;

/// Changes when a step ends, and never halfway.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Steps so far.
    pub(crate) steps: u64,
    /// The learning rate, where somebody has said it.
    pub(crate) rate: Option<f64>,
    /// The mean of gradients that a direction follows.
    pub(crate) average: Kept,
    /// The last gradient, or what LookSAM adds to the plain ones.
    pub(crate) kept: Kept,
    /// The mean and variance of ‖g‖².
    pub(crate) moments: Option<(f64, f64)>,
    /// What is perturbed.
    pub(crate) mask: Kept,
    /// What a decoupled step is still to do.
    pub(crate) remainder: Kept,
    /// What the loss that it belongs to was multiplied by.
    pub(crate) factor: LossFactor,
}

/// A tensor for some variables, in an order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    pairs: Gradient,
    places: HashMap<TensorId, usize>,
}

impl Kept {
    pub(crate) fn new(pairs: Gradient) -> Self {
        let places = pairs.iter().enumerate().map(|(place, (var, _))| (var.id(), place)).collect();
        Self { pairs, places }
    }

    pub(crate) fn get(&self, var: &Var) -> Option<&Tensor> {
        self.places.get(&var.id()).map(|place| &self.pairs[*place].1)
    }

    /// This, with other tensors for these variables.
    pub(crate) fn with(&self, newer: Gradient) -> Self {
        let mut all = self.clone();
        for (var, value) in newer {
            if let Some(place) = all.places.get(&var.id()) {
                all.pairs[*place].1 = value;
            } else {
                all.places.insert(var.id(), all.pairs.len());
                all.pairs.push((var, value));
            }
        }
        all
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Var, Tensor)> {
        self.pairs.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What of this is finite, and in place of the rest what was there before, or zeros. Asks no device to answer.
    fn finite_or(self, before: &Self) -> Result<Self> {
        let choose = |(var, value): (Var, Tensor)| {
            // 0 for finite numbers, and NaN for the others.
            let flag = (&value * 0.0)?.sum_all()?.broadcast_as(value.shape())?;
            let old = before.get(&var).map_or_else(|| value.zeros_like(), |old| old.to_dtype(value.dtype()))?;
            Ok((var, flag.eq(&flag)?.where_cond(&value, &old)?))
        };
        self.pairs.into_iter().map(choose).collect::<Result<_>>().map(Self::new)
    }

    fn is_on_cpu(&self) -> bool {
        self.pairs.iter().all(|(_, value)| value.device().is_cpu())
    }
}

const STEPS: &str = "steps";
const SEED: &str = "seed";
const RATE: &str = "rate";
const MOMENTS: &str = "moments";

impl State {
    /// This state, after a step from `before`. On the CPU a step with numbers that are not finite was an error; elsewhere
    /// nobody looks, and such numbers would stay for good.
    pub(crate) fn after(self, before: &Self) -> Result<Self> {
        let gate = |new: Kept, old: &Kept| if new.is_on_cpu() { Ok(new) } else { new.finite_or(old) };
        Ok(Self {
            average: gate(self.average, &before.average)?,
            kept: gate(self.kept, &before.kept)?,
            remainder: gate(self.remainder, &Kept::default())?,
            ..self
        })
    }

    fn parts(&self) -> [(&'static str, &Kept); 4] {
        [("average", &self.average), ("kept", &self.kept), ("mask", &self.mask), ("remainder", &self.remainder)]
    }

    pub(crate) fn save(&self, seed: u64, names: &VarMap, path: &Path) -> Result<()> {
        let names = names_of(names);
        let mut tensors = HashMap::new();
        for (part, kept) in self.parts() {
            for (place, (var, value)) in kept.iter().enumerate() {
                let Some(name) = names.get(&var.id()) else {
                    candle_core::bail!("a variable of shape {:?} has no name to save its state under", var.shape())
                };
                // The place keeps the order of sums.
                tensors.insert(format!("{part}.{place}.{name}"), value.clone());
            }
        }
        let whole = |number: u64| Tensor::new(number.cast_signed(), &Device::Cpu);
        tensors.insert(STEPS.to_owned(), whole(self.steps)?);
        tensors.insert(SEED.to_owned(), whole(seed)?);
        if let Some(rate) = self.rate {
            tensors.insert(RATE.to_owned(), Tensor::new(rate, &Device::Cpu)?);
        }
        if let Some((mean, variance)) = self.moments {
            tensors.insert(MOMENTS.to_owned(), Tensor::new(&[mean, variance], &Device::Cpu)?);
        }
        write(&tensors, path)
    }

    pub(crate) fn load(seed: u64, names: &VarMap, path: &Path) -> Result<Self> {
        read(path, |mut tensors| {
            let mut whole = |key: &str| match tensors.remove(key) {
                Some(number) => Ok(number.to_scalar::<i64>()?.cast_unsigned()),
                None => candle_core::bail!("there is no `{key}`: expected the state of a `Sam`"),
            };
            let mut state = Self { steps: whole(STEPS)?, ..Self::default() };
            let found = whole(SEED)?;
            if found != seed {
                candle_core::bail!("it is the state of a `Sam` with seed {found}, this one has {seed}")
            }
            state.rate = tensors.remove(RATE).map(|rate| rate.to_scalar()).transpose()?;
            if let Some(moments) = tensors.remove(MOMENTS) {
                let moments = moments.to_vec1::<f64>()?;
                let [mean, variance] = moments[..] else {
                    candle_core::bail!("expected two numbers as `{MOMENTS}`, found {}", moments.len())
                };
                state.moments = Some((mean, variance));
            }
            let vars = names.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut parts: HashMap<&str, Vec<(usize, Var, Tensor)>> = HashMap::new();
            for (key, value) in &tensors {
                let mut words = key.splitn(3, '.');
                let (part, place, name) = (words.next(), words.next(), words.next());
                let (Some(part), Some(Ok(place)), Some(name)) = (part, place.map(str::parse), name) else {
                    candle_core::bail!("expected the state of a `Sam`, found `{key}`")
                };
                let Some(var) = vars.get(name) else {
                    candle_core::bail!("the state of `{name}` belongs to no variable")
                };
                if var.shape() != value.shape() {
                    candle_core::bail!(
                        "the state of `{name}` has shape {:?}, its variable {:?}",
                        value.shape(),
                        var.shape()
                    )
                }
                if ![var.dtype(), wide(var.dtype())].contains(&value.dtype()) {
                    candle_core::bail!("the state of `{name}` is {:?}, its variable {:?}", value.dtype(), var.dtype())
                }
                parts.entry(part).or_default().push((place, var.clone(), value.to_device(var.device())?));
            }
            for (part, mut entries) in parts {
                entries.sort_by_key(|(place, ..)| *place);
                let kept = Kept::new(entries.into_iter().map(|(_, var, value)| (var, value)).collect());
                match part {
                    "average" => state.average = kept,
                    "kept" => state.kept = kept,
                    "mask" => state.mask = kept,
                    "remainder" => state.remainder = kept,
                    other => candle_core::bail!("expected the state of a `Sam`, found `{other}`"),
                }
            }
            Ok(state)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_not_remembered() {
        let vars = [1.0, 2.0, 3.0].map(|x| Var::new(&[x, x], &Device::Cpu).unwrap());
        let kept = |values: [[f64; 2]; 3]| {
            let pairs = vars.iter().zip(values);
            Kept::new(pairs.map(|(var, value)| (var.clone(), Tensor::new(&value, &Device::Cpu).unwrap())).collect())
        };
        let values = |kept: &Kept| kept.iter().map(|(_, value)| value.to_vec1().unwrap()).collect::<Vec<Vec<f64>>>();
        let new = kept([[1.0, 2.0], [f64::NAN, 4.0], [5.0, f64::INFINITY]]);
        let old = Kept::new(vec![(vars[1].clone(), Tensor::new(&[7.0, 8.0], &Device::Cpu).unwrap())]);
        assert_eq!(values(&new.finite_or(&old).unwrap()), [[1.0, 2.0], [7.0, 8.0], [0.0, 0.0]]);
    }
}
