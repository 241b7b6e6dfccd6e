//! What a [`Sam`](crate::Sam) keeps from step to step, and how it outlives a process.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor, TensorId, Var};
use candle_nn::VarMap;

use crate::Error;
use crate::checkpoint::{names_of, read, write};
use crate::gradient::Gradient;
use crate::pass::Step;

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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Var, Tensor)> {
        self.pairs.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

const STEPS: &str = "steps";
const RATE: &str = "rate";
const MOMENTS: &str = "moments";

impl State {
    fn parts(&self) -> [(&'static str, &Kept); 4] {
        [("average", &self.average), ("kept", &self.kept), ("mask", &self.mask), ("remainder", &self.remainder)]
    }

    pub(crate) fn save(&self, names: &VarMap, path: &Path) -> Result<()> {
        if Step::current().is_some() {
            Err(Error::MidStep)?;
        }
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
        tensors.insert(STEPS.to_owned(), Tensor::new(self.steps.cast_signed(), &Device::Cpu)?);
        if let Some(rate) = self.rate {
            tensors.insert(RATE.to_owned(), Tensor::new(rate, &Device::Cpu)?);
        }
        if let Some((mean, variance)) = self.moments {
            tensors.insert(MOMENTS.to_owned(), Tensor::new(&[mean, variance], &Device::Cpu)?);
        }
        write(&tensors, path)
    }

    pub(crate) fn load(names: &VarMap, path: &Path) -> Result<Self> {
        if Step::current().is_some() {
            Err(Error::MidStep)?;
        }
        read(path, |mut tensors| {
            let Some(steps) = tensors.remove(STEPS) else {
                candle_core::bail!("there is no `{STEPS}`: expected the state of a `Sam`")
            };
            let mut state = Self { steps: steps.to_scalar::<i64>()?.cast_unsigned(), ..Self::default() };
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
